"""Renames tensors inside one safetensors file: only its header is written.

If the filesystem can share blocks, a new file with the new header and the old data atomically replaces the old one.
Otherwise the header is overwritten under a journal. If the new header is too long for its space, whole blocks are
inserted at the front of the file (Linux: fallocate with FALLOC_FL_INSERT_RANGE, on ext4 and XFS). If none of that
works, or the file is small, the whole file is rewritten.

The journal (old header, new header, old size, inserted bytes) is on the disk before the file changes and is removed
after the new header is on the disk. So a crash leaves one of these states, and readers refuse the file in all but the
first and the last:

1. no journal, old file;
2. journal, old file;
3. journal, blocks inserted: zeros in front of the old header;
4. journal, header partly written: every byte is either that of state 2 or 3, or the new one;
5. journal, new file;
6. no journal, new file.

`recover` turns states 2 to 5 into state 1: it removes the inserted blocks, writes the old header, flushes, and
removes the journal last. If it is interrupted, the file is a mixture of old and new bytes, with or without the
inserted blocks, which it accepts again (`Journal.can_restore`). So repeating it until it completes restores the old
file, byte for byte.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import RemapkitError, UnreadableCheckpoint, UnwritableOutput
from remapkit.diagnostics.wording import escape_line, join_words
from remapkit.files.atomic import NewFile, ignore_interrupts, journal_path, sync_directory
from remapkit.files.copy import BLOCK, Copier, write_all
from remapkit.files.errors import FileFault, convert_os_error, make_unwritable
from remapkit.files.locks import hold_locks, is_named
from remapkit.files.source_file import SourceFile, describe_os_error
from remapkit.files.strict_json import parse_json
from remapkit.formats.reader import Reader
from remapkit.formats.safetensors import MAX_HEADER, SafetensorsReader, header_json, pad_header, parse_header
from remapkit.plans.moves import Move

REWRITE_BELOW = 1 << 20
"""Files smaller than this (in bytes) are rewritten: that is as fast, and needs no journal."""
_MAGIC = b"remapkit journal 1\n"
_MAX_JOURNAL = 2 * MAX_HEADER + (1 << 16)
_COLLAPSE, _INSERT = 0x08, 0x20


def make_header(moves: Sequence[Move], reader: SafetensorsReader, metadata: Mapping[str, str]) -> bytes:
    """Return the JSON of the new header: new names, in the order of the data. Raises `UnwritableOutput` (RK507)."""
    if any(move.ops for move in moves):
        raise _make_refusal("--in-place only renames: this plan computes new values")
    names = {move.sources[0]: move.target for move in moves}
    header = reader.header()
    left = [fqn for fqn in header if fqn not in names and header[fqn].nbytes]
    if left:
        raise _make_refusal(f"--in-place cannot drop tensors ({join_words(left, 1)}): the format allows no holes")
    tensors = ((names[fqn], spec) for fqn, spec in header.items() if fqn in names)
    return header_json(tensors, metadata)


def _make_refusal(title: str) -> Exception:
    return make_unwritable("RK507", title, help=("write a new file with -o OUT",))


def check_no_links(path: Path, source: SourceFile) -> None:
    """Raise `UnwritableOutput` (RK507) for a symbolic link, or a file with several hard links: all would change."""
    if path.is_symlink():
        target = os.path.realpath(path)
        help = ("name that file if it is the one to change",)
        raise make_unwritable("RK507", f"{path} is a link to {target}", help=help)
    with source.hold_open() as fd:
        links = os.fstat(fd).st_nlink
    if links > 1:
        raise _make_refusal(f"{path.name} has {links} hard links; --in-place would change them all")


def replace_header(path: Path, reader: SafetensorsReader, raw: bytes) -> tuple[str, int]:
    """Replace the header of the file; return the method used, and the number of bytes written.

    Raises `UnwritableOutput`; the file is then unchanged, or has a journal from which `recover` restores it.
    """
    source = reader.sources[0]
    try:
        if source.size >= REWRITE_BELOW:
            written = _clone_file(path, source, reader.data_start, raw)
            if written:
                return "reflink", written
            written = _overwrite_header(path, source, reader.data_start, raw)
            if written:
                return "header" if len(raw) + 8 <= reader.data_start else "shifted", written
        return _rewrite_file(path, source, reader.data_start, raw)
    except RemapkitError:
        raise
    except OSError as error:
        raise convert_os_error(path, error) from error


def _clone_file(path: Path, source: SourceFile, data_start: int, raw: bytes) -> int:
    """Write a new file with the new header and the old blocks; return 0 if the filesystem cannot share blocks."""
    header = pad_header(raw, data_start % BLOCK)
    with NewFile(path, force=True) as new:
        copier = Copier(new.fd, lambda nbytes: None)
        if not copier.can_clone(source):
            return 0
        write_all(new.fd, header, 0)
        copier.copy(source, data_start, source.size - data_start, len(header))
        _commit_file(new, source)
    return len(header)


def _rewrite_file(path: Path, source: SourceFile, data_start: int, raw: bytes) -> tuple[str, int]:
    header = pad_header(raw, data_start % BLOCK)
    with NewFile(path, force=True) as new:
        copier = Copier(new.fd, lambda nbytes: None)
        write_all(new.fd, header, 0)
        copier.copy(source, data_start, source.size - data_start, len(header))
        _commit_file(new, source)
    return next(iter(copier.used), "header"), len(header) + source.size - data_start


def _commit_file(new: NewFile, source: SourceFile) -> None:
    if source.has_changed() or not is_named(source.fd, new.target):
        raise make_unwritable("RK507", f"{new.target.name} changed while it was read; nothing was changed")
    with ignore_interrupts():
        new.commit()


# --- overwriting with a journal -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Journal:
    """A file before and after a rename: its size, the bytes inserted at its front, its old and its new header."""

    file: str
    size: int
    insert: int
    old: bytes
    new: bytes

    def pack(self) -> bytes:
        """Return the journal as bytes, with a checksum."""
        facts = json.dumps({"file": self.file, "size": self.size, "insert": self.insert}).encode("utf-8")
        body = struct.pack("<3Q", len(facts), len(self.old), len(self.new)) + facts + self.old + self.new
        return _MAGIC + struct.pack("<L", zlib.crc32(body)) + body

    @classmethod
    def unpack(cls, raw: bytes) -> Journal | None:
        """Parse a journal; return None if the bytes are incomplete or not what a rename writes."""
        head = len(_MAGIC)
        if raw[:head] != _MAGIC or len(raw) < head + 28:
            return None
        (crc,) = struct.unpack_from("<L", raw, head)
        body = raw[head + 4 :]
        facts_len, old_len, new_len = struct.unpack_from("<3Q", body)
        if zlib.crc32(body) != crc or len(body) != 24 + facts_len + old_len + new_len:
            return None
        try:
            facts = parse_json(body[24 : 24 + facts_len])
        except FileFault:
            return None
        if not isinstance(facts, dict) or facts.keys() != {"file", "size", "insert"}:
            return None
        old_at, new_at = 24 + facts_len, 24 + facts_len + old_len
        journal = cls(facts["file"], facts["size"], facts["insert"], body[old_at:new_at], body[new_at:])
        return journal if journal._is_sound() else None

    def _is_sound(self) -> bool:
        """Return whether it may be ours: two headers of the same tensors, whose lengths differ by whole blocks.

        Anyone who can write to a folder can put a journal into it. So any other content is refused, and an accepted
        journal can only do what a rename does.
        """
        if type(self.file) is not str or type(self.size) is not int or type(self.insert) is not int:
            return False
        if self.insert < 0 or self.insert % BLOCK or len(self.new) != len(self.old) + self.insert:
            return False
        if not 8 <= len(self.old) <= self.size or len(self.new) > MAX_HEADER + 8:
            return False
        data_bytes = self.size - len(self.old)
        try:
            (_, old), (_, new) = (parse_header(raw[8:], data_bytes) for raw in (self.old, self.new))
        except FileFault:
            return False
        lengths = all(int.from_bytes(raw[:8], "little") == len(raw) - 8 for raw in (self.old, self.new))
        # A rename may drop tensors without elements: they have no bytes.
        held = [[entry for entry in header.values() if entry[0].nbytes] for header in (old, new)]
        return lengths and held[0] == held[1]

    def can_restore(self, front: bytes, size: int) -> bool:
        """Return whether a file that begins with `front` is between the two states: every byte is old or new."""
        inserted = size - self.size
        if inserted not in (0, self.insert):
            return False
        before = b"\0" * inserted + self.old
        # An interrupted recovery may have removed the blocks already: the rest of the new header is then in front.
        after = self.new[self.insert - inserted :][: len(before)]
        return len(front) == len(before) == len(after) and _is_either(front, before, after)


def _is_either(front: bytes, before: bytes, after: bytes) -> bool:
    """Return whether every byte is that of one of two texts; compares blocks, and single bytes in mixed blocks."""
    for at in range(0, len(front), BLOCK):
        piece, one, other = (text[at : at + BLOCK] for text in (front, before, after))
        if piece not in (one, other) and not all(
            byte in pair for byte, pair in zip(piece, zip(one, other, strict=True), strict=True)
        ):
            return False
    return True


def _overwrite_header(path: Path, source: SourceFile, data_start: int, raw: bytes) -> int:
    """Overwrite the header under a journal; return 0 if it does not fit and blocks cannot be inserted."""
    insert = _choose_insert_size(len(raw) + 8 - data_start)
    length = data_start + insert - 8
    if length > MAX_HEADER:
        raise _make_refusal("the new header would be longer than the format allows")
    header = length.to_bytes(8, "little") + raw.ljust(length)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _lock_file(fd, path)
        if source.has_changed() or os.fstat(fd).st_ino != source.inode:
            raise make_unwritable("RK507", f"{path.name} changed while it was read; nothing was changed")
        if insert and not _can_shift(fd):
            return 0
        journal = Journal(path.name, source.size, insert, source.read(0, data_start), header)
        with ignore_interrupts():
            return len(header) if _write_under_journal(fd, path, journal) else 0
    finally:
        os.close(fd)


def _write_under_journal(fd: int, path: Path, journal: Journal) -> bool:
    """Write the journal, make room, write the header, remove the journal; return False if room cannot be made."""
    _write_journal(path, journal)
    try:
        if journal.insert and not _fallocate(fd, _INSERT, journal.insert):
            _drop_journal(path, "is unchanged")
            return False
        write_all(fd, journal.new, 0)
        os.fsync(fd)
    except RemapkitError:
        raise
    except OSError as error:
        try:
            _restore_header(fd, path, journal)
        except JournalLeft:
            raise
        except OSError:
            title = f"{path.name} is half renamed: {describe_os_error(error)}"
            raise make_unwritable("RK508", title, help=(f"restore it with `remapkit recover {path}`",)) from error
        raise
    _drop_journal(path, "is renamed")
    return True


def _choose_insert_size(missing: int) -> int:
    """Return the size of whole blocks for twice the missing bytes, so that the next rename fits."""
    return 0 if missing <= 0 else (2 * missing + BLOCK - 1) // BLOCK * BLOCK


def _lock_file(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise make_unwritable("RK507", f"{path.name} is being rewritten by another process") from None
    except OSError:
        """Some network filesystems have no locks; the user must then avoid two renames of one file at once."""


def _write_journal(path: Path, journal: Journal) -> None:
    with NewFile(journal_path(path), force=True, mode=0o600) as new:
        with contextlib.suppress(OSError):
            owner = path.stat()
            os.fchown(new.fd, owner.st_uid, owner.st_gid)
        write_all(new.fd, journal.pack(), 0)
        new.commit()


class JournalLeft(UnwritableOutput):
    """The file is complete, but its journal cannot be removed."""


def _drop_journal(path: Path, state: str) -> None:
    """Remove the journal; raises `JournalLeft` (RK512), whose message describes the file by `state`."""
    journal = journal_path(path)
    try:
        journal.unlink()
    except OSError as error:
        title = f"{path.name} {state}, but its journal cannot be removed: {describe_os_error(error)}"
        notes = ("remapkit does not read the file while the journal exists",)
        help = [f"to keep the file as it is now, remove the journal: rm {shlex.quote(str(journal))}"]
        if state == "is renamed":
            help.append(f"to restore the old names: remapkit recover {shlex.quote(str(path))}")
        raise JournalLeft(Diagnostic("RK512", escape_line(title), notes=notes, help=tuple(help))) from error
    sync_directory(path.parent)


def _can_shift(fd: int) -> bool:
    """Return whether blocks can be inserted: only on Linux, and only if the block size is ours."""
    return os.uname().sysname == "Linux" and BLOCK % os.fstatvfs(fd).f_bsize == 0


def _fallocate(fd: int, mode: int, length: int) -> bool:
    """Insert or collapse `length` bytes at the front of a file; return False if the filesystem cannot."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fallocate64", None) or libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while call(fd, mode, 0, length):
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EFBIG, errno.EPERM):
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def recover(path: Path) -> bool:
    """Restore a file from its journal, byte for byte; return False if there is none. May be interrupted and repeated.

    Raises `UnwritableOutput` (RK507, RK508) if the file is not the one that the journal describes, or is being
    rewritten at the moment.
    """
    path = Path(os.path.realpath(path))
    if not os.path.lexists(journal_path(path)):
        return False
    with hold_locks([path]):
        return _recover_file(path)


def _recover_file(path: Path) -> bool:
    journal_at = journal_path(path)
    if not os.path.lexists(journal_at):
        return False
    raw = _read_journal(journal_at)
    journal = None if raw is None else Journal.unpack(raw)
    if journal is None or journal.file != path.name:
        title = f"the journal of {path.name} is damaged; it was not used"
        raise make_unwritable("RK508", title, help=(f"look at {path.name}, then remove {journal_path(path)}",))
    try:
        _restore_file(path, journal)
    except RemapkitError:
        raise
    except OSError as error:
        raise convert_os_error(path, error) from error
    return True


def _read_journal(path: Path) -> bytes | None:
    """Return the bytes of a journal, or None for what cannot be one: a link, a pipe, a device, too many bytes."""
    try:
        if path.is_symlink():
            return None
        source = SourceFile(path)
    except (OSError, UnreadableCheckpoint):
        return None
    try:
        return source.read(0, source.size) if source.size <= _MAX_JOURNAL else None
    finally:
        source.close()


def _restore_file(path: Path, journal: Journal) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _lock_file(fd, path)
        with ignore_interrupts():
            _restore_header(fd, path, journal)
    finally:
        os.close(fd)


def _restore_header(fd: int, path: Path, journal: Journal) -> None:
    size = os.fstat(fd).st_size
    front = os.pread(fd, len(journal.old) + max(0, min(size - journal.size, journal.insert)), 0)
    if not journal.can_restore(front, size):
        title = f"{path.name} is not the file whose rename was interrupted; it was not changed"
        raise make_unwritable("RK508", title, help=(f"remove {journal_path(path)} if that is intended",))
    if size != journal.size:
        if not _fallocate(fd, _COLLAPSE, journal.insert):
            raise make_unwritable("RK508", f"the filesystem of {path.name} cannot remove inserted blocks")
        os.fsync(fd)
    write_all(fd, journal.old, 0)
    os.fsync(fd)
    _drop_journal(path, "is restored")


def require_safetensors(reader: Reader) -> SafetensorsReader:
    """Return the reader if it reads one safetensors file; raises `UnwritableOutput` (RK507) for any other."""
    if not isinstance(reader, SafetensorsReader):
        raise _make_refusal(f"--in-place renames inside one safetensors file, but this is {reader.format}")
    return reader
