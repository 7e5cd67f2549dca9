"""A strict reader of zip archives as torch.save writes them: ambiguous archives are refused.

Source: PKWARE's APPNOTE.TXT; comments give its sections. Zip readers disagree about archives whose parts contradict
each other, which lets one file show one content to a scanner and another to a loader. So contradictions are refused:
duplicate names, entries that share or overlap bytes, a local header that differs from the directory, bytes outside
the file. Names that differ only in case count as duplicates, because torch's reader ignores case.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from remapkit.diagnostics.wording import format_bytes, show_key
from remapkit.files.errors import FileFault
from remapkit.files.source_file import SourceFile

_END = struct.Struct("<4s4H2LH")  # 4.3.16 end of central directory record
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14 zip64 end of central directory record
_LOCATOR64 = struct.Struct("<4sLQL")  # 4.3.15 zip64 end of central directory locator
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # 4.3.12 file header of the central directory
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7 local file header
_MAX_COMMENT = 65535
MAX_ENTRIES = 1_000_000
"""The most entries in an archive; each costs a few hundred bytes of memory."""
_MAX_ENTRY = 2000
"""The most bytes of the directory that an entry may take on average, with its name and the extra fields."""
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
STORED, DEFLATED = 0, 8


def _raise_fault(title: str, key: str | None = None, *help: str) -> NoReturn:
    raise FileFault("RK403", title, key=key, help=help)


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One file in an archive: `packed` bytes at `offset` that decompress to `size` bytes.

    `described`: a data descriptor that repeats checksum and sizes may follow the data.
    """

    name: str
    method: int
    header: int
    offset: int
    packed: int
    size: int
    crc: int
    described: bool = False

    @property
    def is_stored(self) -> bool:
        """Whether the bytes are uncompressed."""
        return self.method == STORED


@dataclass(frozen=True, slots=True)
class _Directory:
    offset: int
    size: int
    count: int


def read_archive(source: SourceFile) -> dict[str, ZipEntry]:
    """Return the entries of a zip archive by name, in its order; raises `FileFault` (RK403)."""
    directory = _read_directory(source)
    entries: dict[str, ZipEntry] = {}
    for entry in _read_entries(source, directory):
        if entry.name in entries:
            _raise_fault(f"duplicate entry {show_key(entry.name)!r}", entry.name)
        entries[entry.name] = entry
    lower: dict[str, str] = {}
    for name in entries:
        other = lower.setdefault(name.lower(), name)
        if other != name:
            _raise_fault(f"the entries {show_key(other)!r} and {show_key(name)!r} differ only in case", name)
    _check_disjoint(source, entries, directory)
    return entries


def _read_directory(source: SourceFile) -> _Directory:
    # Only a comment of at most 65,535 bytes may follow the end record. The last signature is used; if it is part of
    # a comment, the comment length read from there does not reach the end of the file, which is refused.
    tail_start = max(0, source.size - _END.size - _MAX_COMMENT)
    tail = source.read(tail_start, source.size - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        _raise_fault("the zip archive has no end record: the file is truncated", None, "fetch it again")
    _, disk, first_disk, count_here, count, size, offset, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        _raise_fault("bytes follow the end of the zip archive")
    end = tail_start + at
    if end >= _LOCATOR64.size and source.read(end - _LOCATOR64.size, 4) == b"PK\x06\x07":
        wide_directory = _read_directory64(source, end - _LOCATOR64.size)
        for narrow, wide, most in (
            (count, wide_directory.count, _MAX16),
            (size, wide_directory.size, _MAX32),
            (offset, wide_directory.offset, _MAX32),
        ):
            if narrow not in (wide, most):
                _raise_fault("the zip archive's two end records contradict each other")
        return wide_directory
    if disk or first_disk or count_here != count:
        _raise_fault("a multi-part zip archive, which is not supported")
    if offset + size != end:
        _raise_fault("the zip archive's directory is not where its end record says")
    return _Directory(offset, size, count)


def _read_directory64(source: SourceFile, locator: int) -> _Directory:
    _, disk, at, disks = _LOCATOR64.unpack(source.read(locator, _LOCATOR64.size))
    if disk or disks > 1 or at + _END64.size > locator:
        _raise_fault("the zip64 end record is not where its locator says")
    signature, length, _, _, disk, first_disk, count_here, count, size, offset = _END64.unpack(
        source.read(at, _END64.size)
    )
    if signature != b"PK\x06\x06" or at + 12 + length != locator or disk or first_disk or count_here != count:
        _raise_fault("the zip64 end record is broken")
    if offset + size != at:
        _raise_fault("the zip archive's directory is not where its end record says")
    return _Directory(offset, size, count)


def _read_entries(source: SourceFile, directory: _Directory) -> Iterator[ZipEntry]:
    if directory.count > MAX_ENTRIES:
        _raise_fault(f"the archive holds {directory.count} entries; at most {MAX_ENTRIES} are supported")
    if not directory.count * _CENTRAL.size <= directory.size <= directory.count * _MAX_ENTRY:
        _raise_fault(f"a zip directory of {format_bytes(directory.size)} for {directory.count} entries")
    raw = source.read(directory.offset, directory.size)
    at = 0
    for _ in range(directory.count):
        if at + _CENTRAL.size > len(raw):
            _raise_fault("the zip directory ends within an entry")
        fields = _CENTRAL.unpack_from(raw, at)
        signature, _, _, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len, disk = fields[:14]
        header = fields[16]
        start = at + _CENTRAL.size
        at = start + name_len + extra_len + comment_len
        if signature != b"PK\x01\x02" or at > len(raw):
            _raise_fault("the zip directory holds a broken entry")
        raw_name = raw[start : start + name_len]
        extra = raw[start + name_len : start + name_len + extra_len]
        size, packed, header, disk = _widen_fields(extra, size, packed, header, disk)
        name = _decode_name(raw_name)
        if b"\0" in raw_name:
            _raise_fault("the entry's name holds a NUL, where many readers end it", name)
        if disk:
            _raise_fault("a multi-part zip archive, which is not supported", name)
        _check_method(name, flags, method, packed, size)
        offset = _locate_data(source, directory, header, raw_name, name, method, packed, size, crc)
        yield ZipEntry(name, method, header, offset, packed, size, crc, bool(flags & 8))
    if at != len(raw):
        _raise_fault("the zip directory is longer than its entries")


def _widen_fields(extra: bytes, size: int, packed: int, header: int, disk: int) -> tuple[int, int, int, int]:
    """Return the four fields; those that are all ones in their header are read from the zip64 extra field (4.5.3)."""
    wide = [size == _MAX32, packed == _MAX32, header == _MAX32, disk == _MAX16]
    if not any(wide):
        return size, packed, header, disk
    at = 0
    while at + 4 <= len(extra):  # 4.5.1: header ID and data size, then the data
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            return _unpack_wide(field, (size, packed, header, disk), wide)
        at += 4 + length
    return size, packed, header, disk


def _unpack_wide(field: bytes, narrow: tuple[int, int, int, int], wide: list[bool]) -> tuple[int, int, int, int]:
    values, at = list(narrow), 0
    # 4.5.3: the order is fixed (original size, compressed size, header offset, disk); fields that fit are omitted.
    for number, marked in enumerate(wide):
        if marked:
            width = 4 if number == 3 else 8
            if at + width > len(field):
                _raise_fault("a zip64 field is too short")
            values[number] = int.from_bytes(field[at : at + width], "little")
            at += width
    return values[0], values[1], values[2], values[3]


def _decode_name(raw: bytes) -> str:
    # 4.4.4: bit 11 means UTF-8, otherwise code page 437; torch does not set the bit, but writes UTF-8.
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _check_method(name: str, flags: int, method: int, packed: int, size: int) -> None:
    if flags & 0x2041:  # 4.4.4: bits 0, 6 and 13 are encryption, strong encryption and masked headers
        _raise_fault("the entry is encrypted", name)
    if method not in (STORED, DEFLATED):
        _raise_fault(f"the entry is compressed by method {method}; only stored and deflated ones are supported", name)
    if method == STORED and packed != size:
        _raise_fault(f"the entry's sizes differ though it is stored: {packed} and {size} bytes", name)


def _locate_data(
    source: SourceFile,
    directory: _Directory,
    header: int,
    raw_name: bytes,
    name: str,
    method: int,
    packed: int,
    size: int,
    crc: int,
) -> int:
    """Return the offset of the entry's bytes from its local header, which must agree with the directory."""
    if header + _LOCAL.size + len(raw_name) > directory.offset:
        _raise_fault("the entry is outside the file", name)
    raw = source.read(header, _LOCAL.size + len(raw_name))
    fields = _LOCAL.unpack_from(raw)
    signature, _, local_flags, local_method = fields[:4]
    local_crc, local_packed, local_size, name_len, extra_len = fields[6:]
    if signature != b"PK\x03\x04":
        _raise_fault("the entry's local header is not where the directory says", name)
    if name_len != len(raw_name) or raw[_LOCAL.size :] != raw_name:
        _raise_fault("the entry's local header has another name", name)
    if local_method != method or local_flags & 0x2041:
        _raise_fault("the entry's local header contradicts the directory", name)
    offset = header + _LOCAL.size + name_len + int(extra_len)
    if offset > directory.offset:
        _raise_fault("the entry is outside the file", name)
    if _MAX32 in (local_size, local_packed):
        extra = source.read(offset - extra_len, extra_len)
        local_size, local_packed, _, _ = _widen_fields(extra, local_size, local_packed, 0, 0)
    # 4.4.4 bit 3: checksum and sizes follow the data (as torch writes them); the local header may contain zeros.
    unknown = {0, _MAX32} if local_flags & 8 else set()
    if (local_size != size and local_size not in unknown) or (local_packed != packed and local_packed not in unknown):
        _raise_fault(
            f"the entry's sizes disagree: {local_size} bytes in its local header, {size} in the directory", name
        )
    if local_crc != crc and not (local_flags & 8 and local_crc == 0):
        _raise_fault("the entry's local header has another checksum than the directory", name)
    if offset + packed > directory.offset:
        _raise_fault(f"the entry is outside the file: {format_bytes(packed)} at {offset}", name)
    return int(offset)


def _check_disjoint(source: SourceFile, entries: dict[str, ZipEntry], directory: _Directory) -> None:
    """Check that every byte before the directory belongs to exactly one entry: one sort, then one pass in file order.

    A local header shared by two names lets a small file expand into a huge one; bytes outside all entries can hide
    content that another reader finds.
    """
    end, before = 0, None
    for entry in sorted(entries.values(), key=lambda entry: entry.header):
        if entry.header < end and before is not None:
            same = entry.header == before.header
            words = "share one local header" if same else "overlap"
            _raise_fault(f"the entries {show_key(before.name)!r} and {show_key(entry.name)!r} {words}", entry.name)
        _check_gap(source, before, end, entry.header)
        end, before = entry.offset + entry.packed, entry
    _check_gap(source, before, end, directory.offset)


def _check_gap(source: SourceFile, entry: ZipEntry | None, start: int, end: int) -> None:
    """Check that only the entry's data descriptor, if anything, follows its data."""
    if start == end:
        return
    if entry is None:
        _raise_fault(f"{format_bytes(end - start)} precede the first entry of the zip archive")
    raw = source.read(start, end - start) if entry.described and end - start <= 24 else b""
    raw = raw[4:] if len(raw) in (16, 24) and raw[:4] == b"PK\x07\x08" else raw
    forms = {12: "<3L", 20: "<L2Q"}  # 4.3.9: crc-32 and the two sizes, which have 8 bytes in zip64 archives
    if len(raw) not in forms or struct.unpack(forms[len(raw)], raw) != (entry.crc, entry.packed, entry.size):
        _raise_fault(f"{format_bytes(end - start)} follow the entry's data and belong to no entry", entry.name)


def read_entry(source: SourceFile, entry: ZipEntry, limit: int) -> bytes:
    """Read the whole content of a small entry and verify its checksum; raises `FileFault` (RK403)."""
    if entry.size > limit:
        _raise_fault(f"the entry is {format_bytes(entry.size)}; at most {format_bytes(limit)} are read", entry.name)
    return b"".join(read_entry_chunks(source, entry))


def read_entry_chunks(source: SourceFile, entry: ZipEntry, size: int = 1 << 18) -> Iterator[bytes]:
    """Yield the content of an entry in pieces of at most `size`, inflated if it is compressed.

    Never yields more than the size in the directory. Raises `FileFault` (RK403) if the content is shorter or longer,
    is not a deflate stream, or has another checksum; a checksum of 0 means that none was written.
    """
    crc, total = 0, 0
    pieces = source.chunks(entry.offset, entry.packed, size)
    for piece in pieces if entry.is_stored else _inflate(pieces, entry, size):
        total += len(piece)
        if total > entry.size:
            _raise_fault(f"the entry inflates to more than the {entry.size} bytes it declares", entry.name)
        crc = zlib.crc32(piece, crc)
        yield bytes(piece)
    if total != entry.size:
        _raise_fault(f"the entry holds {total} bytes, not the {entry.size} it declares", entry.name)
    if entry.crc not in (0, crc):
        _raise_fault(f"the entry's checksum is {crc:08x}, not {entry.crc:08x}: the file is damaged", entry.name)


def _inflate(pieces: Iterator[memoryview], entry: ZipEntry, size: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for piece in pieces:
            waiting: bytes | memoryview = piece
            while waiting:
                out = inflater.decompress(waiting, size)
                waiting = inflater.unconsumed_tail
                if out:
                    yield out
                elif inflater.eof:
                    break  # remaining input is refused below
        # The input can be consumed while output is still buffered.
        while not inflater.eof and (out := inflater.decompress(b"", size)):
            yield out
    except zlib.error as error:
        _raise_fault(f"the entry cannot be inflated: {error}", entry.name)
    if not inflater.eof or inflater.unused_data:
        _raise_fault("the entry's deflate stream does not end where the entry does", entry.name)
