"""Lays out checkpoints in the format of torch.save for streaming, without torch.

Source: torch/serialization.py (records `data.pkl`, `byteorder`, `data/<key>`, `version`), inline_container.cc of
torch (storages aligned to 64 bytes by an extra field named FB) and PKWARE's APPNOTE.TXT, sections 4.3.7 to 4.3.16 and
4.5.3. `torch.load(weights_only=True, mmap=True)` reads the result.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from remapkit.files.errors import is_utf8, make_unwritable
from remapkit.formats.reader import Reader
from remapkit.formats.torch_file import METADATA
from remapkit.plans.moves import Move
from remapkit.tensors.dtypes import DTYPES, PACKED_TORCH_NAMES
from remapkit.tensors.spec import TensorSpec
from remapkit.write.layout import BytesPiece, FileLayout, Piece, Seal, check_dims, make_tensor_piece

_ALIGNMENT = 64
_MAX32 = 0xFFFFFFFF
_DATE = 0x21  # 1980-01-01, the first day of zip: the same input gives the same bytes
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")


@dataclass(frozen=True, slots=True)
class _Record:
    """One entry: its content, and its checksum if that is known before it is written."""

    name: str
    piece: Piece
    crc: int | None


def lay_out_pth(
    name: str,
    moves: Sequence[Move],
    reader: Reader,
    metadata: Mapping[str, str],
    tied: Iterable[Sequence[str]],
) -> FileLayout:
    """Lay out one file in the format of torch.save; tied targets share one storage.

    Raises `UnwritableOutput` (RK505) for a dtype that torch has no name for.
    """
    check_dims(moves)
    keys, owners = _assign_storage_keys(moves, tied)
    prefix = _name_folder(name) + "/"
    records = [
        _make_record(
            prefix + "data.pkl", pickle_tensors((move.target, move.spec, keys[move.target]) for move in moves)
        ),
        _make_record(prefix + "byteorder", b"little"),
        *(_make_tensor_record(f"{prefix}data/{keys[move.target]}", move, reader) for move in owners),
        _make_record(prefix + "version", b"3\n"),
    ]
    if metadata:
        text = json.dumps(dict(sorted(metadata.items())), ensure_ascii=False)
        records.append(_make_record(prefix + METADATA, text.encode("utf-8")))
    pieces, seals = _lay_out_zip(records)
    return FileLayout(name, tuple(pieces), tuple(owners), tuple(seals))


def _assign_storage_keys(moves: Sequence[Move], tied: Iterable[Sequence[str]]) -> tuple[dict[str, str], list[Move]]:
    """Return the storage of each target, and the moves whose data is written: the first of each tied group."""
    group_of = {name: number for number, group in enumerate(tied) for name in group}
    keys: dict[str, str] = {}
    of_group: dict[int, str] = {}
    owners: list[Move] = []
    for move in moves:
        group = group_of.get(move.target)
        if group is not None and group in of_group:
            keys[move.target] = of_group[group]
            continue
        keys[move.target] = str(len(owners))
        owners.append(move)
        if group is not None:
            of_group[group] = keys[move.target]
    return keys, owners


def _make_record(name: str, data: bytes) -> _Record:
    return _Record(name, BytesPiece(data), zlib.crc32(data))


def _make_tensor_record(name: str, move: Move, reader: Reader) -> _Record:
    crc = None if move.ops else reader.crc32(move.sources[0])
    return _Record(name, make_tensor_piece(move, reader), 0 if not move.spec.nbytes else crc)


def _name_folder(name: str) -> str:
    """Return the archive's folder as torch names it: the file name without its suffix, or `archive` if not UTF-8."""
    stem = name.rpartition(".")[0] or name
    return stem if is_utf8(stem) else "archive"


# --- zip ------------------------------------------------------------------------------------------


def _lay_out_zip(records: Sequence[_Record]) -> tuple[list[Piece], list[Seal]]:
    """Return the pieces of an archive, and the offsets of checksums that are known only after the data is written."""
    pieces: list[Piece] = []
    places: list[tuple[int, int]] = []
    at = 0
    for record in records:
        header = _make_local_header(record, at)
        places.append((at, len(pieces) + 1))
        pieces += [BytesPiece(header), record.piece]
        at += len(header) + record.piece.nbytes
    directory_at, seals, entries = at, [], []
    for record, (header_at, piece) in zip(records, places, strict=True):
        if record.crc is None:
            seals.append(Seal(piece, (header_at + 14, at + 16)))
        entries.append(_make_central_entry(record, header_at))
        at += len(entries[-1])
    entries.append(_make_end_records(len(records), directory_at, at))
    return [*pieces, BytesPiece(b"".join(entries))], seals


def _make_local_header(record: _Record, at: int) -> bytes:
    name, size = record.name.encode("utf-8"), record.piece.nbytes
    # 4.5.3: in a local header, a zip64 field contains both sizes, and the header's own size fields are all ones.
    wide = struct.pack("<HHQQ", 1, 16, size, size) if size >= _MAX32 else b""
    bare = at + _LOCAL.size + len(name) + len(wide) + 4
    padding = -bare % _ALIGNMENT
    extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    narrow = _MAX32 if wide else size
    version = 45 if wide else 20
    fields = (version, 0x800, 0, 0, _DATE, record.crc or 0, narrow, narrow, len(name), len(extra))
    return _LOCAL.pack(b"PK\x03\x04", *fields) + name + extra


def _make_central_entry(record: _Record, header_at: int) -> bytes:
    # 4.5.3: in the directory, the zip64 field contains only the fields that are all ones, in this order.
    name, size = record.name.encode("utf-8"), record.piece.nbytes
    wide = b""
    if size >= _MAX32:
        wide += struct.pack("<QQ", size, size)
    if header_at >= _MAX32:
        wide += struct.pack("<Q", header_at)
    extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
    narrow = min(size, _MAX32)
    version = 45 if wide else 20
    sizes = (record.crc or 0, narrow, narrow, len(name), len(extra), 0, 0, 0, 0, min(header_at, _MAX32))
    return _CENTRAL.pack(b"PK\x01\x02", version, version, 0x800, 0, 0, _DATE, *sizes) + name + extra


def _make_end_records(count: int, directory_at: int, at: int) -> bytes:
    size = at - directory_at
    wide = b""
    if count >= 0xFFFF or at >= _MAX32:
        record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, directory_at)
        wide = record + struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    short = min(count, 0xFFFF)
    numbers = (short, short, min(size, _MAX32), min(directory_at, _MAX32), 0)
    return wide + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *numbers)


# --- pickle ---------------------------------------------------------------------------------------


def pickle_tensors(tensors: Iterable[tuple[str, TensorSpec, str]]) -> bytes:
    """Return the pickle (protocol 2) of a dict of contiguous tensors, given as name, spec and storage key."""
    parts = [b"\x80\x02}("]
    for fqn, spec, key in tensors:
        parts += [_pickle_text(fqn), _pickle_tensor(fqn, spec, key)]
    return b"".join([*parts, b"u."])


def _pickle_tensor(fqn: str, spec: TensorSpec, key: str) -> bytes:
    storage, name = DTYPES[spec.dtype].storage, DTYPES[spec.dtype].torch
    shape = spec.shape
    if spec.dtype in PACKED_TORCH_NAMES and shape and shape[-1] % 2 == 0:
        name, shape = PACKED_TORCH_NAMES[spec.dtype], (*shape[:-1], shape[-1] // 2)
    if name is None:
        title = f"{fqn} is {spec.dtype}, which torch.save does not support"
        raise make_unwritable("RK505", title, help=("write a .safetensors file",))
    function = b"ctorch._utils\n_rebuild_tensor_v2\n" if storage else b"ctorch._utils\n_rebuild_tensor_v3\n"
    cls = f"ctorch\n{storage}\n" if storage else "ctorch.storage\nUntypedStorage\n"
    numel = spec.numel if storage else spec.nbytes
    identity = (
        b"("
        + _pickle_text("storage")
        + cls.encode()
        + _pickle_text(key)
        + _pickle_text("cpu")
        + _pickle_int(numel)
        + b"tQ"
    )
    dtype = b"" if storage else f"ctorch\n{name}\n".encode()
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    view = _pickle_int(0) + _pickle_ints(shape) + _pickle_ints(_compute_strides(shape))
    return function + b"(" + identity + view + hooks + dtype + b"tR"


def _compute_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return row-major strides as torch computes them: a dimension of size 0 counts as 1.

    >>> _compute_strides((2, 0, 3))
    (3, 3, 1)
    """
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return tuple(reversed(strides))


def _pickle_ints(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_pickle_int, values)) + b"t"


def _pickle_int(value: int) -> bytes:
    if value < 1 << 8:
        return b"K" + value.to_bytes(1, "little")
    if value < 1 << 31:
        return b"J" + value.to_bytes(4, "little")
    return b"\x8a\x09" + value.to_bytes(9, "little")


def _pickle_text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + len(data).to_bytes(4, "little") + data
