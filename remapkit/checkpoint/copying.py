"""Bytes from one file to another, by the fastest way the system has.

In this order: sharing the blocks (reflink, where the filesystem can and the offsets are aligned), `copy_file_range`,
`sendfile`, and a loop over 256 KiB: larger buffers measured several times slower where first touch of memory is slow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable
from typing import Protocol

from remapkit.checkpoint.faults import unreadable
from remapkit.checkpoint.reader import CHUNK, SourceFile

STEP = 32 << 20
"""Bytes that the kernel copies at once: small enough for a progress bar to move and Ctrl-C to be heard."""
BLOCK = 4096
"""What reflinks are aligned to on XFS and btrfs."""
_FICLONERANGE = 0x4020940D
_CLONE_FROM = 1 << 16
_NOT_HERE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ENOTTY}


class Advance(Protocol):
    """Told how many more bytes are written."""

    def __call__(self, nbytes: int, /) -> None: ...


class Copier:
    """Copies stretches of files to one open file; what the filesystem refused once is not tried again.

    `used` says how: a subset of reflink, copy_file_range, sendfile and loop.
    """

    def __init__(self, out: int, advance: Advance) -> None:
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
        """Whether the filesystem shares blocks between the two files; found out by sharing the first."""
        return self._clones and source.size >= BLOCK and self._clone(source, 0, BLOCK, 0) > 0

    def copy(self, source: SourceFile, offset: int, length: int, at: int) -> None:
        """Copy `length` bytes at `offset` of `source` to `at`."""
        if self._clones and length >= _CLONE_FROM and (offset - at) % BLOCK == 0:
            head = -offset % BLOCK
            self._plain(source, offset, head, at)
            cloned = self._clone(source, offset + head, length - head, at + head)
            offset, at, length = offset + head + cloned, at + head + cloned, length - head - cloned
        self._plain(source, offset, length, at)

    def _clone(self, source: SourceFile, offset: int, length: int, at: int) -> int:
        """Share blocks with the source; how many bytes are shared, 0 where the filesystem cannot."""
        # The last block may be partial only where the source ends too.
        if offset + length != source.size:
            length -= length % BLOCK
        if length <= 0:
            return 0
        import fcntl

        try:
            fcntl.ioctl(self._out, _FICLONERANGE, struct.pack("=qQQQ", source.fd, offset, length, at))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            self._clones = False
            return 0
        self.used["reflink"] = None
        self._advance(length)
        return length

    def _plain(self, source: SourceFile, offset: int, length: int, at: int) -> None:
        while length > 0:
            done = self._step(source, offset, min(length, STEP), at)
            self._advance(done)
            offset, at, length = offset + done, at + done, length - done

    def _step(self, source: SourceFile, offset: int, length: int, at: int) -> int:
        while self._ways:
            name, way = self._ways[0]
            try:
                done = way(source, offset, length, at)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                done = 0
            if done:
                self.used[name] = None
                return done
            # Some filesystems answer 0 for what they cannot do; the loop tells that from a file that became shorter.
            del self._ways[0]
        return self._loop(source, offset, length, at)

    def _copy_file_range(self, source: SourceFile, offset: int, length: int, at: int) -> int:
        return os.copy_file_range(source.fd, self._out, length, offset, at)

    def _sendfile(self, source: SourceFile, offset: int, length: int, at: int) -> int:
        os.lseek(self._out, at, os.SEEK_SET)
        return os.sendfile(self._out, source.fd, offset, length)

    def _loop(self, source: SourceFile, offset: int, length: int, at: int) -> int:
        piece = os.pread(source.fd, min(length, CHUNK), offset)
        if not piece:
            raise unreadable("RK412", f"{source.path.name} became shorter while it was read", source.path)
        write_all(self._out, piece, at)
        self.used["loop"] = None
        return len(piece)


def write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    """Write all of `data` at `at`: a single write may stop short."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        at += done
        view = view[done:]


def expect_sequential(source: SourceFile) -> None:
    """Tell the kernel that the file will be read from start to end."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
