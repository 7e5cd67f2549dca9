"""Copies bytes from one file to another by the fastest method that the system supports.

Tried in this order: sharing blocks (reflink, if the filesystem supports it and the offsets are aligned),
`copy_file_range`, `sendfile`, and a loop over 256 KiB: larger buffers measured several times slower where the first
touch of memory is slow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Protocol, Self

from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.files.errors import make_unreadable
from remapkit.files.source_file import CHUNK, SourceFile

STEP = 16 << 20
"""Bytes that the kernel copies at once: small enough that progress and Ctrl-C work."""
BLOCK = 4096
"""The alignment of reflinks on XFS and btrfs, in bytes."""
AHEAD = 256 << 20
"""How many bytes the read-ahead may be ahead of the copy."""
_LOOK = 1 << 20
_FICLONERANGE = 0x4020940D
_CLONE_FROM = 1 << 16
_UNSUPPORTED_ERRNOS = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EBADF,
    errno.ENOTTY,
}


class AdvanceBytes(Protocol):
    """A callback that receives the number of bytes written since the last call."""

    def __call__(self, nbytes: int, /) -> None: ...


class Copier:
    """Copies ranges of files to one open file. A method that the filesystem refused once is not tried again.

    `used` lists the methods used: a subset of reflink, copy_file_range, sendfile and loop.
    """

    def __init__(self, out: int, advance: AdvanceBytes) -> None:
        self._out = out
        self._advance = advance
        self._ways: list[tuple[str, Callable[[SourceFile, int, int, int], int]]] = []
        if hasattr(os, "copy_file_range"):
            self._ways.append(("copy_file_range", self._copy_file_range))
        if hasattr(os, "sendfile"):
            self._ways.append(("sendfile", self._sendfile))
        self._clones = True
        self.used: dict[str, None] = {}

    def can_clone(self, source: SourceFile) -> bool:
        """Return whether the filesystem can share blocks between the two files; tested by sharing the first block.

        Only for a new file, which is truncated again afterwards: its final content may be shorter than a block.
        """
        if not self._clones or source.size < BLOCK or not self._clone(source, 0, BLOCK, 0):
            return False
        os.ftruncate(self._out, 0)
        return True

    def copy(self, source: SourceFile, offset: int, length: int, at: int) -> None:
        """Copy `length` bytes at `offset` of `source` to `at`."""
        if self._clones and length >= _CLONE_FROM and (offset - at) % BLOCK == 0:
            head = -offset % BLOCK
            self._copy_plain(source, offset, head, at)
            cloned = self._clone(source, offset + head, length - head, at + head)
            offset, at, length = offset + head + cloned, at + head + cloned, length - head - cloned
        self._copy_plain(source, offset, length, at)

    def _clone(self, source: SourceFile, offset: int, length: int, at: int) -> int:
        """Share blocks with the source; return the number of bytes shared, 0 if the filesystem cannot do it."""
        # The last block may be partial only at the end of the source.
        if offset + length != source.size:
            length -= length % BLOCK
        if length <= 0:
            return 0
        import fcntl

        try:
            with source.hold_open() as fd:
                fcntl.ioctl(self._out, _FICLONERANGE, struct.pack("=qQQQ", fd, offset, length, at))
        except UnreadableCheckpoint:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            self._clones = False
            return 0
        self.used["reflink"] = None
        self._advance(length)
        return length

    def _copy_plain(self, source: SourceFile, offset: int, length: int, at: int) -> None:
        while length > 0:
            done = self._step(source, offset, min(length, STEP), at)
            self._advance(done)
            offset, at, length = offset + done, at + done, length - done

    def _step(self, source: SourceFile, offset: int, length: int, at: int) -> int:
        while self._ways:
            name, way = self._ways[0]
            try:
                done = way(source, offset, length, at)
            except UnreadableCheckpoint:
                raise
            except OSError as error:
                if error.errno not in _UNSUPPORTED_ERRNOS:
                    raise
                done = 0
            if done:
                self.used[name] = None
                return done
            # Some filesystems return 0 if unsupported; the loop distinguishes that from a file that became shorter.
            del self._ways[0]
        return self._copy_loop(source, offset, length, at)

    def _copy_file_range(self, source: SourceFile, offset: int, length: int, at: int) -> int:
        with source.hold_open() as fd:
            return os.copy_file_range(fd, self._out, length, offset, at)

    def _sendfile(self, source: SourceFile, offset: int, length: int, at: int) -> int:
        os.lseek(self._out, at, os.SEEK_SET)
        with source.hold_open() as fd:
            return os.sendfile(self._out, fd, offset, length)

    def _copy_loop(self, source: SourceFile, offset: int, length: int, at: int) -> int:
        with source.hold_open() as fd:
            piece = os.pread(fd, min(length, CHUNK), offset)
        if not piece:
            title = f"{source.path.name} became shorter while it was read; nothing was written"
            raise make_unreadable("RK412", title, source.path)
        write_all(self._out, piece, at)
        self.used["loop"] = None
        return len(piece)


def write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    """Write all of `data` at offset `at`: a single write may be partial."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        at += done
        view = view[done:]


class Writeback:
    """Starts writing buffered data to the disk during the copy, so that the flush at the end is short.

    Measured: a copy of 1 GB with its flush takes 0.78 of the time. This is only a hint, and only on Linux.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = 0
        self._call = _load_sync_file_range()

    def advance(self, nbytes: int) -> None:
        """Count `nbytes` more bytes as written; every 16 MiB, start writing them to the disk."""
        self._waiting += nbytes
        if self._waiting >= STEP and self._call is not None:
            self._waiting = 0
            self._call(self._fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE_WRITE = 2


def _load_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except AttributeError:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


class ReadAhead:
    """Has the kernel read the next ranges while earlier ones are written.

    `stretches` are (file, offset, length) in the order of the copy, and `done()` returns how many of their bytes are
    copied; file is None for generated bytes. Ranges that are cached already are skipped. This is only a hint: if it
    fails, the copy reads the bytes itself.
    """

    def __init__(self, stretches: Iterable[tuple[SourceFile | None, int, int]], done: Callable[[], int]) -> None:
        self._stretches = stretches
        self._done = done
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remapkit read-ahead", daemon=True)

    def __enter__(self) -> Self:
        if hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT"):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # The descriptors must outlive the thread that reads from them.
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        ahead = 0
        with contextlib.suppress(OSError, UnreadableCheckpoint):
            for source, offset, length in self._stretches:
                for at in range(offset, offset + length, _LOOK) if source is not None else ():
                    while ahead + at - offset - self._done() > AHEAD:
                        if self._stop.wait(0.002):
                            return
                    if self._stop.is_set():
                        return
                    assert source is not None
                    self._fetch_range(source, at, min(_LOOK, offset + length - at))
                ahead += length

    def _fetch_range(self, source: SourceFile, offset: int, length: int) -> None:
        with source.hold_open() as fd:
            try:
                os.preadv(fd, [bytearray(1)], offset + length - 1, os.RWF_NOWAIT)
            except BlockingIOError:
                # The kernel reads at most the device's read-ahead at once, often 128 KiB.
                for at in range(offset, offset + length, CHUNK):
                    os.posix_fadvise(fd, at, min(CHUNK, offset + length - at), os.POSIX_FADV_WILLNEED)


def expect_sequential(source: SourceFile) -> None:
    """Tell the kernel that the file will be read from start to end."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError), source.hold_open() as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
