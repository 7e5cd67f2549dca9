"""Hostile files, made here: pickles by opcode, archives by field, headers by hand. Nothing of them is ever run."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

# --- pickles ------------------------------------------------------------------------------------------

PROTO = b"\x80\x02"


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    if 0 <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(dotted: str) -> bytes:
    module, _, leaf = dotted.rpartition(".")
    return b"c" + module.encode() + b"\n" + leaf.encode() + b"\n"


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(function: str, *parts: bytes) -> bytes:
    return name(function) + tuple_of(*parts) + b"R"


def storage(key: str = "0", numel: int = 4, cls: str = "torch.FloatStorage") -> bytes:
    return tuple_of(text("storage"), name(cls), text(key), text("cpu"), integer(numel)) + b"Q"


def tensor(shape: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, of: bytes = b"") -> bytes:
    sizes = tuple_of(*map(integer, shape))
    strides = tuple_of(*map(integer, stride))
    empty = name("collections.OrderedDict") + b")R"
    return call("torch._utils._rebuild_tensor_v2", of or storage(), integer(offset), sizes, strides, b"\x89", empty)


def array(shape: tuple[int, ...] = (4,), data: bytes = b"C\x10" + bytes(16), cls: str = "numpy.ndarray") -> bytes:
    made = call("numpy.core.multiarray._reconstruct", name(cls), tuple_of(integer(0)), b"C\x01b")
    order = tuple_of(integer(3), text("<"), b"N", b"N", b"N", integer(-1), integer(-1), integer(0))
    dtype = call("numpy.dtype", text("f4"), b"\x89", b"\x88") + order + b"b"
    return made + tuple_of(integer(1), tuple_of(*map(integer, shape)), dtype, b"\x89", data) + b"b"


def mapping(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def pickled(value: bytes) -> bytes:
    return PROTO + value + b"."


# --- archives ------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """One entry of an archive; what is not None replaces what would be true."""

    name: str
    content: bytes
    deflate: bool = False
    flags: int = 0
    local_name: str | None = None
    size: int | None = None
    local_size: int | None = None
    crc: int | None = None
    local_crc: int | None = None
    method: int | None = None
    same_place_as: int | None = None
    shift: int = 0
    extra: bytes = b""


def deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


@cache
def deflate_zeros(count: int) -> bytes:
    """Half a gigabyte of zeros is in two attacks, and packed once; its bytes are not kept."""
    return deflate(bytes(count))


@dataclass
class Archive:
    """An archive written field by field."""

    entries: list[Entry] = field(default_factory=list)
    count: int | None = None
    directory_shift: int = 0
    tail: bytes = b""

    def bytes(self) -> bytes:
        out = bytearray()
        placed: list[tuple[int, bytes, int]] = []
        for entry in self.entries:
            packed = entry.content
            if entry.deflate:
                zeros = entry.content == bytes(len(entry.content))
                packed = deflate_zeros(len(entry.content)) if zeros else deflate(entry.content)
            crc = zlib.crc32(entry.content) if entry.crc is None else entry.crc
            if entry.same_place_as is not None:
                placed.append((placed[entry.same_place_as][0], packed, crc))
                continue
            placed.append((len(out) + entry.shift, packed, crc))
            local = (entry.local_name or entry.name).encode()
            size = len(entry.content) if entry.local_size is None else entry.local_size
            method = entry.method if entry.method is not None else 8 * entry.deflate
            packed_size = size if not entry.deflate else len(packed)
            checksum = crc if entry.local_crc is None else entry.local_crc
            fields = (20, entry.flags, method, 0, 0, checksum, packed_size, size, len(local), len(entry.extra))
            out += b"PK\x03\x04" + struct.pack("<5H3L2H", *fields) + local + entry.extra + packed
        start = len(out)
        for entry, (header, packed, crc) in zip(self.entries, placed, strict=True):
            raw = entry.name.encode()
            size = len(entry.content) if entry.size is None else entry.size
            method = entry.method if entry.method is not None else 8 * entry.deflate
            packed_size = size if not entry.deflate else len(packed)
            fields = (20, 20, entry.flags, method, 0, 0, crc, packed_size, size, len(raw), 0, 0, 0, 0, 0, header)
            out += b"PK\x01\x02" + struct.pack("<6H3L5H2L", *fields) + raw
        count = len(self.entries) if self.count is None else self.count
        directory = start + self.directory_shift
        out += b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, len(out) - start, directory, 0) + self.tail
        return bytes(out)


def archive(pickle: bytes, storages: dict[str, bytes] | None = None, *more: Entry) -> Archive:
    """What torch.save would write: the pickle, and one storage of 16 bytes."""
    found = {"0": bytes(16)} if storages is None else storages
    return Archive([Entry("m/data.pkl", pickle), *(Entry(f"m/data/{key}", raw) for key, raw in found.items()), *more])


def pth(value: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """A `.pth` whose pickle is this value."""
    return archive(pickled(value), storages).bytes()


def legacy(value: bytes, storages: dict[str, tuple[int, bytes]] | None = None) -> bytes:
    """A file of the format before zip archives."""
    found = {"0": (4, bytes(16))} if storages is None else storages
    head = pickled(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19") + pickled(b"M\xe9\x03") + pickled(b"}")
    keys = pickled(b"](" + b"".join(map(text, found)) + b"e")
    return head + pickled(value) + keys + b"".join(struct.pack("<q", n) + raw for n, raw in found.values())


# --- safetensors ------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def zipped(pickle: bytes, method: int, **entries: bytes) -> bytes:
    """An archive by the standard library, for large deflated entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("m/data.pkl", pickle)
        for key, raw in entries.items():
            file.writestr(f"m/data/{key.removeprefix('_')}", raw)
    return buffer.getvalue()
