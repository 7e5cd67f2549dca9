"""What every reader of a checkpoint gives: a header, byte extents, and the bytes of one tensor at a time."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.files.errors import sized, unreadable
from remapkit.tensors.spec import StateDictSpec

CHUNK = 1 << 18
"""Bytes read or written at once: larger buffers cost several times more on machines with slow first touch."""


class _Pool:
    """The shards that are open just now, those that were used last at the end."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.files: dict[int, SourceFile] = {}

    def make_room(self) -> None:
        """Close what was not used for longest where a quarter of what a process may have open is taken."""
        while len(self.files) >= most_open():
            for key, file in self.files.items():
                if file.park():
                    del self.files[key]
                    break
            else:
                return


def most_open() -> int:
    """How many shards are open at once: outputs, libraries and other readers need descriptors too."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, OSError, ValueError):
        soft = 256
    return max(2, min(soft if soft > 0 else 1024, 4096) // 4)


_POOL = _Pool()


class SourceFile:
    """A regular file held open for reading, with what it looked like when it was opened.

    Holding the descriptor rather than the path means that a file which is renamed or replaced meanwhile is still
    the one whose header was read. Raises `UnreadableCheckpoint` (RK400) where the path cannot be opened or is not a
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
            found = os.fstat(self.fd)
            if not lasting:
                _POOL.files[id(self)] = self
        self.size = found.st_size
        self.device, self.inode = found.st_dev, found.st_ino
        self.stamp = _stamp(found)

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """The descriptor, open for as long as the block lasts.

        There may be more shards than files that a process may have open: those that were not used for longest are
        closed, and opened again when they are. What is then found under the name must still be the same file.
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
        found = os.fstat(fd)
        if _written_since(self.stamp, _stamp(found)):
            os.close(fd)
            raise unreadable("RK412", f"{self.path.name} changed while it was read", self.path)
        self.fd = fd
        _POOL.files[id(self)] = self

    def park(self) -> bool:
        """Close the descriptor until it is needed again; False where it is in use."""
        if self._pins:
            return False
        os.close(self.fd)
        self.fd = -1
        return True

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`; fewer are an error, because the size was known."""
        pieces = []
        while length > 0:
            try:
                with self.held() as fd:
                    piece = os.pread(fd, min(length, 1 << 30), offset)
            except OSError as error:
                raise unreadable("RK400", f"cannot read: {reason(error)}", self.path) from error
            if not piece:
                raise unreadable("RK412", f"{self.path.name} became shorter while it was read", self.path)
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def chunks(self, offset: int, length: int, size: int = CHUNK) -> Iterator[memoryview]:
        """`length` bytes at `offset` in pieces of at most `size`."""
        while length > 0:
            piece = self.read(offset, min(size, length))
            yield memoryview(piece)
            offset += len(piece)
            length -= len(piece)

    def changed(self) -> bool:
        """Whether the file was written to since it was opened."""
        with self.held() as fd:
            now = _stamp(os.fstat(fd))
        return _written_since(self.stamp, now)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        with _POOL.lock:
            self._open = False
            _POOL.files.pop(id(self), None)
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    def __repr__(self) -> str:
        return f"SourceFile({str(self.path)!r}, {sized(self.size)})"


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to: a time of modification can be set back, one of change cannot."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink


def _written_since(then: tuple[int, ...], now: tuple[int, ...]) -> bool:
    # A name given to the file or taken from it moves its time of change as well, and changes the number of links.
    return now[:4] != then[:4] or (now[4] != then[4] and now[5] == then[5])


def _open_regular(path: Path, name: str | None, dir_fd: int | None) -> int:
    try:
        # O_NONBLOCK: opening a named pipe would otherwise wait for a writer for ever.
        fd = os.open(name or path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError as error:
        raise unreadable("RK400", f"no such file: {path}") from error
    except (OSError, ValueError) as error:
        words = reason(error) if isinstance(error, OSError) else str(error)
        raise unreadable("RK400", f"cannot open {path}: {words}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise unreadable("RK400", f"{path} is not a regular file")
    return fd


def reason(error: OSError) -> str:
    """What the system says, in lower case and without numbers: `permission denied`."""
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


def even(chunks: Iterator[memoryview], size: int) -> Iterator[memoryview]:
    """The same bytes in pieces of exactly `size`, but for the last."""
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


@runtime_checkable
class Reader(Protocol):
    """A checkpoint opened for reading.

    No method imports torch. A reader is a context manager; after `close` its extents stay valid as facts, its
    `chunks` do not.
    """

    path: Path
    format: str
    """`safetensors`, `sharded safetensors`, `pth`, `legacy pth`, `sharded pth` or `manifest` (which has no data)."""
    root: str
    """The wrapper the state dict was found under, `a.b`; empty where it is the file's top level."""
    notes: tuple[Diagnostic, ...]
    """What the user should hear about the file: a wrapper taken, objects ignored."""
    sources: Sequence[SourceFile]
    """The files that are read; a target that is one of them would be the source itself."""

    def header(self) -> StateDictSpec:
        """Names, dtypes, shapes and tied groups, in the file's order."""
        ...

    def extent(self, fqn: str) -> Extent | None:
        """Where the tensor's bytes lie, or None where they are not one contiguous stretch of a file."""
        ...

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """The tensor's bytes, contiguous, row-major and little-endian, in pieces of at most about `size` bytes."""
        ...

    def crc32(self, fqn: str) -> int | None:
        """The checksum of the tensor's bytes where the file holds just that, else None."""
        ...

    def check_unchanged(self) -> None:
        """Raise `UnreadableCheckpoint` (RK412) where a file was written to since it was opened."""
        ...

    def check_sums(self) -> None:
        """Read everything, and raise `UnreadableCheckpoint` (RK403) where a checksum of the file does not fit."""
        ...

    def close(self) -> None:
        """Release files and maps."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class FileReader:
    """What readers of files share: they hold their files, and close them."""

    def __init__(self, path: Path, sources: Sequence[SourceFile]) -> None:
        self.path = path
        self.root = ""
        self.notes: tuple[Diagnostic, ...] = ()
        self.sources = sources

    def crc32(self, fqn: str) -> int | None:
        """None: most formats hold no checksums."""
        return None

    def check_sums(self) -> None:
        """Nothing: most formats hold no checksums."""

    def check_unchanged(self) -> None:
        """Raise `UnreadableCheckpoint` (RK412) where a file was written to since it was opened."""
        for source in self.sources:
            if source.changed():
                raise unreadable("RK412", f"{source.path.name} changed while it was read", source.path)

    def close(self) -> None:
        """Close every file; a second call does nothing."""
        for source in self.sources:
            with contextlib.suppress(OSError):
                source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
