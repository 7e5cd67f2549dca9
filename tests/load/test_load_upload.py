"""Uploads, on a queue that copies as late as it may: what was in a buffer then is what arrives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from load_kit import Plain, Tiny, everything, on_meta, same_state
from safetensors.torch import save_file

import remapkit
from remapkit.files.source_file import Extent, SourceFile
from remapkit.loading import transfer as carry
from remapkit.loading.cuda_upload import Upload
from remapkit.tensors.spec import TensorSpec

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


class LateQueue:
    """The worst that a device may do: nothing is copied before somebody waits for it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.copied = 0

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.waiting.append((target, source))

    def mark(self) -> LateMark:
        return LateMark(self, len(self.waiting) + self.copied)


class LateMark:
    def __init__(self, queue: LateQueue, position: int) -> None:
        self.queue, self.position = queue, position

    def synchronize(self) -> None:
        while self.queue.copied < self.position:
            target, source = self.queue.waiting.pop(0)
            target.copy_(source)
            self.queue.copied += 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SourceFile]:
    path = tmp_path_factory.mktemp("upload") / "bytes"
    path.write_bytes(bytes(torch.randint(0, 256, (4096,), dtype=torch.uint8).numpy()))
    opened = SourceFile(path)
    yield opened
    opened.close()


extents = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000)), max_size=12)


def upload(source: SourceFile, wanted: list[tuple[int, int]], size: int) -> None:
    queue = LateQueue()
    with Upload(CPU, queue, size=size, pinned=False) as lift:
        found = [lift.tensor(Extent(source, start, length), TensorSpec("U8", (length,))) for start, length in wanted]
        held = sum(piece.numel() for _, piece in queue.waiting)
        assert held <= 2 * size, "no more than two buffers are ever on their way"
    whole = source.read(0, source.size)
    for (start, length), tensor in zip(wanted, found, strict=True):
        assert bytes(tensor.numpy()) == whole[start : start + length]


@settings(max_examples=200, deadline=None)
@given(extents, st.integers(1, 600))
def test_every_byte_arrives_however_late_the_copies_are(
    source: SourceFile, wanted: list[tuple[int, int]], size: int
) -> None:
    upload(source, wanted, size)


def test_a_buffer_that_is_not_waited_for_would_be_seen(source: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = Upload._reserve_stage

    def careless(self: Upload, wanted: int) -> Any:
        for stage in self._stages:
            stage.free_after = None
        return reserve(self, wanted)

    monkeypatch.setattr(Upload, "_reserve_stage", careless)
    with pytest.raises(AssertionError):
        upload(source, [(0, 2000)], 100)


def test_large_pieces_are_read_by_several_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remapkit.loading.cuda_upload._SLICE", 7)
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 4)
    opened = SourceFile(path)
    upload(opened, [(3, 1000), (1, 5), (0, 1024)], 64)
    opened.close()


def test_load_into_through_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to a device, with the CPU in its place: staged, cast there, and synchronised before it is assigned."""
    queues: list[LateQueue] = []

    class Lifts:
        def __init__(self, stack: Any) -> None:
            self.stack = stack
            queues.append(LateQueue())
            self.lift = stack.enter_context(Upload(CPU, queues[-1], size=40, pinned=False))

        def __getitem__(self, device: torch.device) -> Upload:
            return self.lift  # type: ignore[no-any-return]

    monkeypatch.setattr(carry, "_Uploads", Lifts)
    monkeypatch.setattr(carry, "_is_staged", lambda device: True)
    path = tmp_path / "p.safetensors"
    source = Plain()
    save_file(source.state_dict(), path)
    model = on_meta(Plain)
    loaded = remapkit.load_into(model, path)
    same_state(model, source)
    assert (loaded.shared, queues[0].waiting) == (0, [])
    assert queues[0].copied > 3


@needs_cuda
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_on_cuda(dtype: torch.dtype | None, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    source = Plain(3000)
    save_file(source.state_dict(), path)
    model = on_meta(lambda: Plain(3000))
    loaded = remapkit.load_into(model, path, device="cuda", dtype=dtype)
    assert loaded.devices == ("cuda:0",)
    for name, value in model.state_dict().items():
        assert value.is_cuda
        wanted = source.state_dict()[name].to(dtype or torch.float32)
        assert torch.equal(value.cpu(), wanted), name


@needs_cuda
def test_the_whole_module_is_on_the_device_afterwards() -> None:
    """Also what the checkpoint does not bring: kept and tied names, non-persistent buffers, rebuilt values."""
    source, model, twin = Tiny(), Tiny(), on_meta(Tiny)
    state = {name: value for name, value in source.state_dict().items() if "weight" not in name}
    remapkit.load_into(model, state, device="cuda", strict=False)
    assert model.head.weight is model.embed.weight
    remapkit.load_into(twin, source.state_dict(), device="cuda", factory=Tiny)
    for module in (model, twin):
        assert {str(value.device) for _, value in everything(module)} == {"cuda:0"}
    tokens = torch.arange(4)
    assert torch.allclose(twin.eval()(tokens.cuda()).cpu(), source.eval()(tokens), atol=1e-5)
