"""A source file that stays open for the whole run: its identity, its bytes by range, and whether it changed."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.diagnostics.wording import format_bytes
from remapkit.files.errors import make_unreadable

CHUNK = 1 << 18
"""Bytes read or written at once: larger buffers are several times slower where the first touch of memory is slow."""


class _Pool:
    """The shards that are open at the moment, the most recently used last."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.files: dict[int, SourceFile] = {}

    def make_room(self) -> None:
        """Close the least recently used shards if a quarter of the process's limit on open files is used."""
        while len(self.files) >= find_open_limit():
            for key, file in self.files.items():
                if file.park():
                    del self.files[key]
                    break
            else:
                return


def find_open_limit() -> int:
    """Return how many shards may be open at once: outputs, libraries and other readers need descriptors too."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, OSError, ValueError):
        soft = 256
    return max(2, min(soft if soft > 0 else 1024, 4096) // 4)


_POOL = _Pool()


class SourceFile:
    """A regular file that is open for reading, with its status at the time it was opened.

    The descriptor, not the path, identifies the file: if the path is renamed or replaced meanwhile, reads still go to
    the file whose header was read. Raises `UnreadableCheckpoint` (RK400) if the path cannot be opened or is not a
    regular file: a pipe or a device would block or never end.
    """

    __slots__ = ("_lasting", "_open", "_pins", "device", "fd", "inode", "path", "size", "stamp")

    def __init__(
        self, path: Path, *, name: str | None = None, dir_fd: int | None = None, lasting: bool = True
    ) -> None:
        self.path = path
        self._lasting, self._open, self._pins = lasting, True, 0
        with _POOL.lock:
            if not lasting:
                _POOL.make_room()
            self.fd = _open_regular(path, name, dir_fd)
            status = os.fstat(self.fd)
            if not lasting:
                _POOL.files[id(self)] = self
        self.size = status.st_size
        self.device, self.inode = status.st_dev, status.st_ino
        self.stamp = _take_stamp(status)

    @contextlib.contextmanager
    def hold_open(self) -> Iterator[int]:
        """Yield the descriptor, and keep it open while the block runs.

        There may be more shards than a process may have open files: the least recently used ones are closed, and
        reopened when they are needed. The path must then still refer to the same file.
        """
        with _POOL.lock:
            if self.fd < 0 and self._open:
                self._reopen()
            elif not self._lasting and self._open:
                _POOL.files[id(self)] = _POOL.files.pop(id(self))
            self._pins += 1
        try:
            yield self.fd
        finally:
            with _POOL.lock:
                self._pins -= 1

    def _reopen(self) -> None:
        _POOL.make_room()
        fd = _open_regular(self.path, None, None)
        status = os.fstat(fd)
        if _has_new_stamp(self.stamp, _take_stamp(status)):
            os.close(fd)
            raise make_unreadable("RK412", f"{self.path.name} changed while it was read", self.path)
        self.fd = fd
        _POOL.files[id(self)] = self

    def park(self) -> bool:
        """Close the descriptor until it is needed again; return False if it is in use."""
        if self._pins:
            return False
        os.close(self.fd)
        self.fd = -1
        return True

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`; fewer are an error, because the size was known."""
        pieces = []
        while length > 0:
            try:
                with self.hold_open() as fd:
                    piece = os.pread(fd, min(length, 1 << 30), offset)
            except UnreadableCheckpoint:
                raise
            except OSError as error:
                raise make_unreadable(
                    "RK400", f"cannot read: {describe_os_error(error)}", self.path, refused=error
                ) from error
            if not piece:
                raise make_unreadable("RK412", f"{self.path.name} became shorter while it was read", self.path)
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def chunks(self, offset: int, length: int, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield `length` bytes at `offset` in pieces of at most `size`."""
        while length > 0:
            piece = self.read(offset, min(size, length))
            yield memoryview(piece)
            offset += len(piece)
            length -= len(piece)

    def has_changed(self) -> bool:
        """Return whether the file was written to since it was opened."""
        with self.hold_open() as fd:
            now = _take_stamp(os.fstat(fd))
        return _has_new_stamp(self.stamp, now)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        with _POOL.lock:
            self._open = False
            _POOL.files.pop(id(self), None)
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    def __repr__(self) -> str:
        return f"SourceFile({str(self.path)!r}, {format_bytes(self.size)})"


def _take_stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return the fields that change when a file is written to: mtime can be set back, ctime cannot."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink


def _has_new_stamp(then: tuple[int, ...], now: tuple[int, ...]) -> bool:
    # Adding or removing a hard link updates the ctime as well, and changes the number of links.
    return now[:4] != then[:4] or (now[4] != then[4] and now[5] == then[5])


def _open_regular(path: Path, name: str | None, dir_fd: int | None) -> int:
    try:
        # O_NONBLOCK: opening a named pipe would otherwise wait for a writer forever.
        fd = os.open(name or path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError as error:
        raise make_unreadable("RK400", f"no such file: {path}", refused=error) from error
    except (OSError, ValueError) as error:
        refused = error if isinstance(error, OSError) else None
        words = str(error) if refused is None else describe_os_error(refused)
        raise make_unreadable("RK400", f"cannot open {path}: {words}", refused=refused) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise make_unreadable("RK400", f"{path} is not a regular file")
    return fd


def describe_os_error(error: OSError) -> str:
    """Return the system's message in lower case and without numbers: `permission denied`."""
    return (error.strerror or str(error)).lower()


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at `offset` of a file: the whole tensor, contiguous, row-major, little-endian."""

    source: SourceFile
    offset: int
    length: int

    @property
    def file(self) -> Path:
        """The path of the file."""
        return self.source.path


def split_evenly(chunks: Iterator[memoryview], size: int) -> Iterator[memoryview]:
    """Yield the same bytes in pieces of exactly `size`; the last one may be shorter."""
    kept = bytearray()
    for chunk in chunks:
        if not kept and len(chunk) == size:
            yield chunk
            continue
        kept += chunk
        while len(kept) >= size:
            yield memoryview(bytes(kept[:size]))
            del kept[:size]
    if kept:
        yield memoryview(bytes(kept))
