"""Files of torch.save, read without torch: to the bit what torch.load reads."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ckpt_kit import DTYPES, SAVED, Saved, assert_same, check_saved, load, raw, save, state_dicts
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.formats import open_checkpoint
from remapkit.formats import strided as views
from remapkit.formats import torch_file as pth
from remapkit.formats.pickle import values

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::UserWarning")
ALL = settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@ALL
@given(state=state_dicts(), saved=SAVED, size=st.sampled_from([1, 7, 16, 64, 1 << 18]))
def test_what_is_read_is_what_torch_reads(
    state: dict[str, torch.Tensor], saved: Saved, size: int, tmp_path: Path
) -> None:
    check_saved(state, saved, size, tmp_path / "model.pth")


def _ignoring_strides(shape: Any, stride: Any) -> bool:
    return True


def _without_offset(self: Any, fqn: str) -> Any:
    found = ORIGINAL_EXTENT(self, fqn)
    if found is None or not found.length:
        return found
    return pth.Extent(found.source, self._storages[self._tensors[fqn].storage.key].offset, found.length)


def _row_major(buffer: memoryview, tensor: Any, size: int) -> Any:
    contiguous = [1] * len(tensor.shape)
    for axis in range(len(tensor.shape) - 2, -1, -1):
        contiguous[axis] = contiguous[axis + 1] * tensor.shape[axis + 1]
    yield from ORIGINAL_GATHER(
        buffer, values.PickledTensor(tensor.storage, tensor.dtype, 0, tensor.shape, contiguous), size
    )


def _tied_by_storage(tensors: Any) -> Any:
    groups: dict[str, list[str]] = {}
    for fqn, tensor in tensors.items():
        groups.setdefault(tensor.storage.key, []).append(fqn)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


ORIGINAL_EXTENT, ORIGINAL_GATHER = pth.PthReader.extent, views.gather
FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "strides are ignored": (pth, "is_contiguous", _ignoring_strides),
    "nothing is contiguous": (pth, "is_contiguous", lambda shape, stride: False),
    "the offset is forgotten": (pth.PthReader, "extent", _without_offset),
    "views are gathered as if contiguous": (pth, "gather", _row_major),
    "all views of a storage are tied": (pth, "_find_tied", _tied_by_storage),
    "nothing is tied": (pth, "_find_tied", lambda tensors: ()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_property_sees_a_planted_fault(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    owner, name, planted = FAULTS[fault]
    monkeypatch.setattr(owner, name, planted)

    @settings(ALL, phases=[Phase.generate], database=None, derandomize=True, report_multiple_bugs=False)
    @given(state=state_dicts(), saved=SAVED, size=st.sampled_from([1, 16, 1 << 18]))
    def property(state: dict[str, torch.Tensor], saved: Saved, size: int) -> None:
        check_saved(state, saved, size, tmp_path / "model.pth")

    with pytest.raises((AssertionError, ValueError, UnreadableCheckpoint)):
        property()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str, zipped: bool, tmp_path: Path) -> None:
    content = torch.randint(0, 2 if dtype == "BOOL" else 256, (96,), dtype=torch.uint8)
    base = content.view(DTYPES[dtype])
    state = {"whole": base, "part": base[1:3], "every.second": base[::2], "scalar": base[0], "none": base[:0]}
    torch.save(state, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    with open_checkpoint(tmp_path / "model.pth") as reader:
        assert_same(reader, state)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu])
def test_the_rarer_eight_bit_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype)
    torch.save({"w": tensor.reshape(16, 16).t()}, tmp_path / "model.pth")
    with open_checkpoint(tmp_path / "model.pth") as reader:
        assert reader.header()["w"].dtype == "F8_" + str(dtype).removeprefix("torch.float8_").upper().replace(
            "8M0FNU", "8M0"
        )
        assert b"".join(reader.chunks("w")) == raw(tensor.reshape(16, 16).t())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda a: a[:, ::2],
        lambda a: a.t(),
        lambda a: a[1],
        lambda a: a[:, 3],
        lambda a: a[1:, 2:5],
        lambda a: a[0].expand(5, 8),
        lambda a: a[:, :1].expand(4, 6),
        lambda a: a.unfold(1, 4, 1),
        lambda a: a.diagonal(),
        lambda a: a[2, 3],
        lambda a: a[4:],
        lambda a: a.reshape(2, 2, 8).permute(2, 0, 1),
        lambda a: a[None, :, None],
    ],
)
def test_views_by_hand(make: Any, zipped: bool, tmp_path: Path) -> None:
    base = torch.arange(32, dtype=torch.int32).reshape(4, 8)
    state = {"view": make(base), "base": base}
    torch.save(state, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    with open_checkpoint(tmp_path / "model.pth") as reader:
        assert_same(reader, state)


def test_a_view_with_forty_dimensions(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.int16)
    view = base.as_strided((1,) * 20 + (2,) + (1,) * 18 + (3,), (7,) * 20 + (1,) + (0,) * 18 + (4,))
    torch.save({"w": view}, tmp_path / "model.pth")
    with open_checkpoint(tmp_path / "model.pth") as reader:
        assert reader.header()["w"].shape == tuple(view.shape)
        assert b"".join(reader.chunks("w")) == raw(view)


def repacked(path: Path, method: int, names: Callable[[str], str] = lambda name: name) -> None:
    """The same archive, compressed otherwise and its entries renamed."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(names(name), content)


@settings(ALL, max_examples=40)
@given(state=state_dicts())
def test_deflated_archives_hold_the_same(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save(state, Saved(True, 2, (), dict), path)
    expected = load(path, ())
    repacked(path, zipfile.ZIP_DEFLATED)
    with open_checkpoint(path) as reader:
        for fqn, tensor in expected.items():
            assert reader.extent(fqn) is None or not tensor.numel()
            assert b"".join(reader.chunks(fqn, 16)) == raw(tensor)
        reader.check_sums()


@pytest.mark.parametrize("prefix", ["", "archive/", "any name/", "模型/", "a/b/c/", "./", "model.v1.0_final(2)/"])
def test_entries_named_in_any_way(prefix: str, tmp_path: Path) -> None:
    state = {"w": torch.arange(6, dtype=torch.int16).reshape(2, 3), "b": torch.zeros(2)}
    path = tmp_path / "model.pth"
    torch.save(state, path)
    repacked(path, zipfile.ZIP_STORED, lambda name: prefix + name.partition("/")[2])
    with open_checkpoint(path) as reader:
        assert_same(reader, state)


def test_zip64(tmp_path: Path) -> None:
    """Sizes and offsets in zip64 fields, as an archive above 4 GiB has them, forced for a small one."""
    state = {"w": torch.arange(6, dtype=torch.int16)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            with new.open(zipfile.ZipInfo(info.filename), "w", force_zip64=True) as entry:
                entry.write(old.read(info))
    with open_checkpoint(path) as reader:
        assert_same(reader, state)


@pytest.mark.slow
def test_an_archive_beyond_four_gigabytes(tmp_path: Path) -> None:
    """A sparse file: entries after the first 4 GiB have their offsets in zip64 fields only."""
    import struct

    state = {"huge": torch.empty(0, dtype=torch.uint8), "w": torch.arange(5.0)}
    small = tmp_path / "small.pth"
    torch.save(state, small)
    content = small.read_bytes()
    gap = (1 << 32) + 4096
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(small) as archive:
        infos = archive.infolist()
    with path.open("wb") as file:
        # What lies before is an entry too: bytes that belong to none are refused.
        name = infos[0].filename.split("/")[0].encode() + b"/pad"
        length = gap - 30 - len(name) - 20
        wide = struct.pack("<HHQQ", 1, 16, length, length)
        file.write(b"PK\x03\x04" + struct.pack("<5H3L2H", 45, 0, 0, 0, 0, 0, *[0xFFFFFFFF] * 2, len(name), 20))
        file.write(name + wide)
        file.seek(gap)
        start = file.tell()
        file.write(content[: archive.start_dir])
        directory = file.tell()
        fields = (45, 45, 0, 0, 0, 0, 0, *[0xFFFFFFFF] * 2, len(name), len(wide), 0, 0, 0, 0, 0)
        file.write(b"PK\x01\x02" + struct.pack("<6H3L5H2L", *fields) + name + wide)
        for info in infos:
            name = info.filename.encode()
            extra = struct.pack("<HHQ", 1, 8, start + info.header_offset)
            sizes = (info.CRC, info.file_size, info.file_size)
            fields = (20, 20, info.flag_bits, 0, 0, 0, *sizes, len(name), len(extra), 0, 0, 0, 0)
            file.write(b"PK\x01\x02" + struct.pack("<6H3L5H2L", *fields, 0xFFFFFFFF) + name + extra)
        end = file.tell()
        here = len(infos) + 1
        file.write(b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, here, here, end - directory, directory))
        file.write(b"PK\x06\x07" + struct.pack("<LQL", 0, end, 1))
        file.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, here, here, end - directory, 0xFFFFFFFF, 0))
    with open_checkpoint(path) as reader:
        assert_same(reader, state)
        extent = reader.extent("w")
        assert extent is not None
        assert extent.offset > 1 << 32


def test_a_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(5.0)}, tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with open_checkpoint(tmp_path / "model.pth") as reader:
        assert_same(reader, {"w": torch.arange(5.0)})
        reader.check_sums()


def test_a_damaged_storage_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"w": torch.full((50,), 3.0)}, path)
    content = path.read_bytes()
    at = content.index(torch.full((50,), 3.0).numpy().tobytes())
    path.write_bytes(content[: at + 9] + b"\x55" + content[at + 10 :])
    with open_checkpoint(path) as reader, pytest.raises(UnreadableCheckpoint, match="checksum") as caught:
        reader.check_sums()
    assert caught.value.diagnostics[0].code == "RK403"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(3).to_sparse(), "'w' is a sparse tensor, which is not supported"),
        (lambda: torch.eye(3).to_sparse_csr(), "'w' is a sparse tensor, which is not supported"),
        (lambda: torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), "'w' is a quantized tensor"),
        (lambda: torch.eye(2, device="meta"), "'w' is a meta tensor (it has no data), which is not supported"),
        (
            lambda: torch.eye(2, dtype=torch.complex64).conj(),
            "'w' is a lazily conjugate tensor (call .resolve_conj()",
        ),
    ],
)
def test_tensors_of_other_kinds_are_refused_by_name(make: Any, words: str, zipped: bool, tmp_path: Path) -> None:
    torch.save({"w": make(), "b": torch.zeros(2)}, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnreadableCheckpoint) as caught:
        open_checkpoint(tmp_path / "m.pth")
    assert caught.value.diagnostics[0].code == "RK409"
    assert words in caught.value.diagnostics[0].title


def test_a_file_that_grows_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"w": torch.zeros(2)}, path)
    with open_checkpoint(path) as reader:
        reader.check_unchanged()
        with path.open("ab") as file:
            file.write(b"x")
        with pytest.raises(UnreadableCheckpoint, match=r"model\.pth changed while it was read"):
            reader.check_unchanged()
