"""New files that appear whole or not at all.

A file is written under a temporary name beside its target, flushed to the disk, and only then given its name. A
process that is killed leaves the old target, or none, and a temporary file that the next run removes: a living
writer holds a lock on its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from remapkit.checkpoint.faults import cannot_write, sized, unwritable
from remapkit.checkpoint.reader import SourceFile

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".remapkit-", ".tmp"


def check_target(path: Path, sources: Sequence[SourceFile], force: bool) -> Path:
    """Where a target really lies (links are followed), refused where it must not or cannot be written.

    Raises `UnwritableOutput`: RK500 where it exists and `force` is not set, RK501 where it is one of the sources,
    RK503 where it is a directory or has none.
    """
    real = Path(os.path.realpath(path))
    try:
        found = real.stat()
    except FileNotFoundError:
        if not real.parent.is_dir():
            raise unwritable("RK503", f"there is no directory {real.parent}", help=("make it first",)) from None
        return real
    except OSError as error:
        raise cannot_write(real, error) from error
    if real.is_dir():
        raise unwritable("RK503", f"{path} is a directory", help=("name a file",))
    if not real.is_file():
        raise unwritable("RK503", f"{path} is not a regular file")
    if any((source.device, source.inode) == (found.st_dev, found.st_ino) for source in sources):
        title = "source and target are the same file (use --in-place)"
        raise unwritable("RK501", title, notes=(f"both are {real}",))
    if not force:
        raise unwritable("RK500", f"{path} exists (use --force)")
    return real


def journal_path(path: Path) -> Path:
    """Where the journal of a rename in place lies: beside the file, under a name that fits, long as the file's is."""
    return path.with_name(f"{TEMPORARY_PREFIX}{zlib.crc32(os.fsencode(path.name)):08x}.journal")


def check_space(folder: Path, name: str, needed: int) -> None:
    """Raise `UnwritableOutput` (RK502) where the filesystem has less room than the output needs."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise unwritable("RK502", f"{name} needs {sized(needed)}, {folder} has {sized(free)} free")


class NewFile:
    """A file that is being written. `commit` gives it its name; leaving the block without it removes it.

    >>> import pathlib, tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp(), "out.bin")
    >>> with NewFile(target, force=False) as new:
    ...     _ = os.write(new.fd, b"data")
    ...     new.commit()
    >>> target.read_bytes()
    b'data'
    """

    def __init__(self, target: Path, *, force: bool) -> None:
        self.target = target
        self._force = force
        remove_stale(target.parent)
        try:
            self.temporary, self.fd = _create(target)
        except OSError as error:
            raise cannot_write(target, error) from error

    def flush(self) -> None:
        """Give the file its mode and wait until its bytes are on the disk."""
        with contextlib.suppress(FileNotFoundError):
            old = self.target.stat()
            os.fchmod(self.fd, old.st_mode & 0o7777)
            with contextlib.suppress(OSError):
                os.fchown(self.fd, old.st_uid, old.st_gid)
        os.fsync(self.fd)

    def commit(self) -> None:
        """Flush, and give the file its name in one step. The directory is flushed too."""
        self.flush()
        self.rename()
        sync_directory(self.target.parent)

    def rename(self) -> None:
        """Give the file its name; raises `UnwritableOutput` (RK500) where another file took it meanwhile."""
        if self._force:
            self.temporary.rename(self.target)
            return
        try:
            # A link never replaces: what appeared under this name since it was checked stays.
            os.link(self.temporary, self.target)
        except FileExistsError:
            raise unwritable("RK500", f"{self.target} exists (use --force)") from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            self.temporary.rename(self.target)
            return
        self.temporary.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)
        os.close(self.fd)


def _create(target: Path) -> tuple[Path, int]:
    tag = zlib.crc32(os.fsencode(target.name))
    for number in range(100):
        name = f"{TEMPORARY_PREFIX}{tag:08x}-{os.getpid()}-{number}{TEMPORARY_SUFFIX}"
        temporary = target.with_name(name)
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        # Between the open and the lock another process may have taken the file for a dead one's.
        if os.fstat(fd).st_nlink:
            return temporary, fd
        os.close(fd)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def remove_stale(folder: Path) -> None:
    """Remove the temporary files of dead processes: those that nobody holds a lock on."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(TEMPORARY_PREFIX) and entry.name.endswith(TEMPORARY_SUFFIX):
                _remove_if_dead(Path(entry.path))


def _remove_if_dead(path: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(fd)


def sync_directory(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
