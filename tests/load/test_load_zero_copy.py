"""Shared where that is safe, copied where it is not: addresses, memory, files that go away, bytes out of step."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from load_kit import Plain, on_meta, raw, same_state
from safetensors.torch import save_file
from torch import nn

import remapkit
from remapkit.loading import sources as values


def maps_of(path: Path) -> list[tuple[int, int, str]]:
    """Where this process has the file mapped, and how (`rw-p`: private, copy on write)."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            start, end, how = re.split(r"[- ]", line, maxsplit=2)
            found.append((int(start, 16), int(end, 16), how[:4]))
    return found


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_tensor_lies_inside_the_map_of_the_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"p{suffix}"
    state = Plain(64).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = on_meta(lambda: Plain(64))
    loaded = remapkit.load_into(model, path)
    assert loaded.shared == 3
    mapped = maps_of(path)
    assert {how for _, _, how in mapped} == {"rw-p"}
    for value in model.state_dict().values():
        assert any(start <= value.data_ptr() < end for start, end, _ in mapped)
    del model, value
    assert maps_of(path) == [], "the map goes with the last tensor"


def test_a_copy_lies_outside_of_any_map(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    source = Plain()
    save_file(source.state_dict(), path)
    model = on_meta(Plain)
    loaded = remapkit.load_into(model, path, copy=True)
    assert (loaded.shared, loaded.copied) == (0, 3)
    assert maps_of(path) == []
    path.write_bytes(b"overwritten")
    same_state(model, source)


MEASURE = """
import json, sys, torch
from torch import nn
import remapkit
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) << 10
with torch.device("meta"):
    model = nn.ModuleList([nn.Linear(1024, 1024, bias=False) for _ in range(16)])
options = {"copy": sys.argv[2] == "copy", "dtype": torch.bfloat16 if sys.argv[2] == "cast" else None}
with torch.device("meta"):
    warm = nn.ModuleList([nn.Linear(1024, 1024, bias=False) for _ in range(16)])
ones = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
remapkit.load_into(nn.Linear(2, 2), ones, dtype=options["dtype"], assign=True)
before = peak()
loaded = remapkit.load_into(model, sys.argv[1], **options)
print(json.dumps({"grown": peak() - before, "shared": loaded.shared, "nbytes": loaded.nbytes}))
"""


def measured(path: Path, how: str) -> dict[str, int]:
    run = subprocess.run([sys.executable, "-c", MEASURE, path, how], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, int] = json.loads(run.stdout)
    return found


def test_memory_does_not_grow_without_a_copy_and_a_cast_needs_one_tensor_more(tmp_path: Path) -> None:
    """64 MiB in 16 tensors, each in a process of its own: peak resident memory, from the kernel."""
    path = tmp_path / "m.safetensors"
    save_file({f"{n}.weight": torch.full((1024, 1024), float(n)) for n in range(16)}, path)
    shared, copied, cast = (measured(path, how) for how in ("share", "copy", "cast"))
    megabyte = 1 << 20
    assert shared["nbytes"] == 64 * megabyte
    assert shared["shared"] == 16
    assert shared["grown"] < 4 * megabyte
    assert copied["grown"] > 60 * megabyte, "the measure sees a copy"
    assert cast["grown"] < (32 + 4 + 6) * megabyte, "half of the bytes, and one source tensor"


def test_deleting_and_replacing_the_file_change_nothing(tmp_path: Path) -> None:
    path, other = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    source = Plain()
    save_file(source.state_dict(), path)
    save_file(Plain().state_dict(), other)
    model = on_meta(Plain)
    remapkit.load_into(model, path)
    other.replace(path)
    same_state(model, source)
    path.unlink()
    same_state(model, source)


def test_writes_go_to_memory_not_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    source = Plain()
    save_file(source.state_dict(), path)
    before = path.read_bytes()
    one, two = on_meta(Plain), on_meta(Plain)
    remapkit.load_into(one, path)
    remapkit.load_into(two, path)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.fill_(7.0)
    same_state(two, source)
    assert path.read_bytes() == before
    assert all((parameter == 7.0).all() for parameter in one.parameters())


def misaligned(path: Path, state: dict[str, torch.Tensor], shift: int) -> None:
    """A safetensors file whose data starts `shift` bytes after a multiple of 8."""
    save_file(state, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length].rstrip(b" "), content[8 + length :]
    header += b" " * ((shift - len(header)) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize("shift", range(8))
def test_what_does_not_start_at_a_multiple_of_its_width_is_copied(shift: int, tmp_path: Path) -> None:
    dtypes = {"f8": torch.float64, "f4": torch.float32, "f2": torch.bfloat16, "u1": torch.uint8}
    state = {name: torch.arange(8).to(dtype) for name, dtype in dtypes.items()}
    path = tmp_path / "m.safetensors"
    misaligned(path, state, shift)
    model = nn.Module()
    for name, value in state.items():
        model.register_buffer(name, torch.empty_like(value, device="meta"))
    loaded = remapkit.load_into(model, path)
    fits = {name: shift % dtype.itemsize == 0 for name, dtype in dtypes.items()}
    assert loaded.shared == sum(fits.values())
    for name, buffer in model.named_buffers():
        assert raw(buffer) == raw(state[name])
        assert buffer.data_ptr() % buffer.element_size() == 0
        assert any(start <= buffer.data_ptr() < end for start, end, _ in maps_of(path)) == fits[name]


def strided() -> dict[str, torch.Tensor]:
    whole = torch.arange(48.0).reshape(4, 12)
    return {"a.weight": whole[:, ::3].t(), "a.bias": whole[1, 2:6], "b.weight": whole[:, 8:]}


def test_strided_views_are_gathered(tmp_path: Path) -> None:
    torch.save(strided(), tmp_path / "s.pth")
    model = on_meta(Plain)
    loaded = remapkit.load_into(model, tmp_path / "s.pth")
    assert (loaded.shared, loaded.copied) == (1, 2)
    assert all(value.is_contiguous() for value in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, strided()[name])


def tied_file(path: Path) -> torch.Tensor:
    weight = torch.arange(16.0).reshape(4, 4)
    torch.save({"a.weight": weight, "a.bias": weight[0], "b.weight": weight}, path)
    return weight


def apart(path: Path) -> bool:
    """Whether writing to one parameter leaves the others alone."""
    weight = tied_file(path)
    model = on_meta(Plain)
    remapkit.load_into(model, path)
    with torch.no_grad():
        model.a.weight.fill_(-1)
        model.a.bias.fill_(-2)
    return torch.equal(model.b.weight, weight) and bool((model.a.weight == -1).all())


def test_what_is_one_storage_in_the_file_and_two_tensors_in_the_model_is_not_shared(tmp_path: Path) -> None:
    assert apart(tmp_path / "t.pth")
    state = torch.load(tmp_path / "t.pth")
    model = on_meta(Plain)
    loaded = remapkit.load_into(model, state)
    assert loaded.shared == 1
    assert len({value.untyped_storage().data_ptr() for value in model.parameters()}) == 3


def test_a_loader_that_shares_overlaps_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remapkit.loading.prepare.find_overlapping_targets", lambda *_: frozenset())
    assert not apart(tmp_path / "t.pth")


def test_a_filesystem_without_maps_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_maps(*args: object, **options: object) -> object:
        raise OSError(19, "No such device")

    path = tmp_path / "p.safetensors"
    source = Plain()
    save_file(source.state_dict(), path)
    monkeypatch.setattr(values.mmap, "mmap", no_maps)
    model = on_meta(Plain)
    loaded = remapkit.load_into(model, path)
    assert loaded.shared == 0
    same_state(model, source)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_file(Plain().state_dict(), path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        remapkit.load_into(on_meta(Plain), path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_saving_one_tensor_of_a_loaded_model_does_not_save_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_file(Plain(128).state_dict(), path)
    model = on_meta(lambda: Plain(128))
    remapkit.load_into(model, path)
    torch.save({"bias": model.a.bias}, tmp_path / "bias.pth")
    assert (tmp_path / "bias.pth").stat().st_size < path.stat().st_size / 4


@pytest.mark.skipif(not values._NORESERVE, reason="this system has no MAP_NORESERVE that is known here")
def test_maps_reserve_no_memory(tmp_path: Path) -> None:
    """A private map that reserves is refused where the file is larger than memory."""
    path = tmp_path / "p.safetensors"
    save_file(Plain().state_dict(), path)
    model = on_meta(Plain)
    remapkit.load_into(model, path)
    areas = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    flags = [re.search(r"VmFlags: (.*)", area) for area in areas if str(path) in area]
    assert flags
    assert all(found and "nr" in found[1].split() for found in flags)


def test_the_package_that_loads_into_modules_hides_no_public_name() -> None:
    """A submodule becomes an attribute of its package: none may be called like a public function."""
    modules = {entry.stem for entry in Path(remapkit.__file__).parent.iterdir()}
    functions = {name for name in remapkit.__all__ if callable(getattr(remapkit, name))}
    assert not modules & functions
    assert callable(remapkit.load)
