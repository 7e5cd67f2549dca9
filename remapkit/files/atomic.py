"""New files that appear whole or not at all.

A file is written under a temporary name in the target's folder, flushed to the disk, and only then renamed. A process
that is killed leaves the old target, or none, and a temporary file. The next run removes such files: those of running
writers are locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from remapkit.diagnostics.wording import format_bytes
from remapkit.files.errors import convert_os_error, make_existing_error, make_unwritable
from remapkit.files.locks import LOCK_SUFFIX, is_named
from remapkit.files.source_file import SourceFile

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".remapkit-", ".tmp"


def check_targets(paths: Sequence[Path], sources: Sequence[SourceFile], force: bool) -> list[Path]:
    """Return the real paths of the targets (links are followed).

    Raises `UnwritableOutput`: RK500 if some exist and `force` is not set, RK501 if one is also a source, RK503 if one
    is a directory, or its directory does not exist.
    """
    targets = [_check_target(path, sources) for path in paths]
    existing = [] if force else [path for path, target in zip(paths, targets, strict=True) if target.exists()]
    if existing:
        raise make_existing_error(existing)
    return targets


def _check_target(path: Path, sources: Sequence[SourceFile]) -> Path:
    real = Path(os.path.realpath(path))
    try:
        status = real.stat()
    except FileNotFoundError:
        if not real.parent.is_dir():
            raise make_unwritable(
                "RK503", f"there is no directory {real.parent}", help=("create it first",)
            ) from None
        return real
    except OSError as error:
        raise convert_os_error(real, error) from error
    if real.is_dir():
        raise make_unwritable("RK503", f"{path} is a directory", help=("name a file",))
    if not real.is_file():
        raise make_unwritable("RK503", f"{path} is not a regular file")
    if any((source.device, source.inode) == (status.st_dev, status.st_ino) for source in sources):
        help = ["write to another file"]
        if len(sources) == 1 and real.suffix == ".safetensors":
            help.append("or rename the tensors inside the file: --in-place")
        title = "source and target are the same file"
        raise make_unwritable("RK501", title, notes=(f"both are {real}",), help=tuple(help))
    return real


def journal_path(path: Path) -> Path:
    """Return the path of the journal of a rename in place: in the file's folder, with a name of fixed length."""
    return path.with_name(f"{TEMPORARY_PREFIX}{zlib.crc32(os.fsencode(path.name)):08x}.journal")


def check_space(folder: Path, name: str, needed: int) -> None:
    """Raise `UnwritableOutput` (RK502) if the filesystem has less than `needed` bytes free."""
    filesystem = os.statvfs(folder)
    free = filesystem.f_bavail * filesystem.f_frsize
    if needed > free:
        title = f"not enough space for {name}: {format_bytes(needed)} needed, {folder} has {format_bytes(free)} free"
        raise make_unwritable("RK502", title, help=("make room there, or write to another disk",))


class NewFile:
    """A file that is being written. `commit` gives it its name; if the block ends without a commit, it is removed.

    >>> import pathlib, tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp(), "out.bin")
    >>> with NewFile(target, force=False) as new:
    ...     _ = os.write(new.fd, b"data")
    ...     new.commit()
    >>> target.read_bytes()
    b'data'
    """

    def __init__(self, target: Path, *, force: bool, mode: int = 0o666, kept: tuple[Path, int] | None = None) -> None:
        self.target = target
        self._force = force
        self._mode = mode
        self._dress: FileAttributes | None = None
        self.complete = kept is not None
        if kept is not None:
            self.temporary, self.fd = kept
            return
        remove_stale(target.parent)
        try:
            self.temporary, self.fd = _create_temporary(target)
        except OSError as error:
            raise convert_os_error(target, error) from error

    @classmethod
    def resume(cls, target: Path, fingerprint: str, size: int, *, force: bool, mode: int = 0o666) -> Self | None:
        """Return the file that a killed run with the same `fingerprint` completed, or None."""
        kept = _claim_completed(_completed_path(target, fingerprint), size)
        return None if kept is None else cls(target, force=force, mode=mode, kept=kept)

    def mark_complete(self, fingerprint: str) -> None:
        """Mark the flushed file as complete: if this run is killed, the next one with this fingerprint reuses it."""
        with contextlib.suppress(OSError):
            self.temporary = self.temporary.rename(_completed_path(self.target, fingerprint))

    def flush(self) -> None:
        """Wait until the file's bytes are on the disk."""
        os.fsync(self.fd)

    def commit(self) -> None:
        """Flush, and give the file its name in one step. The directory is flushed too."""
        self.flush()
        self.rename()
        sync_directory(self.target.parent)

    def set_dress(self, dress: FileAttributes | None) -> None:
        """Set owner, mode and attributes of the file, if the one that it replaces will be removed before `rename`."""
        self._dress = dress

    def rename(self) -> None:
        """Set the file's mode, then rename it; raises `UnwritableOutput` (RK500) if the name was taken meanwhile.

        The mode is set only here: until then only the owner may read the file. Owner, mode and extended attributes
        are those of the file that it replaces, or of `set_dress`; otherwise `mode` and the umask apply.
        """
        dress = self._dress or FileAttributes.of(self.target)
        if dress is None:
            os.fchmod(self.fd, self._mode & ~_read_umask())
        else:
            dress.apply_to(self.fd)
        if self._force:
            self.temporary.rename(self.target)
            return
        try:
            # A file that appeared under this name since the check is not overwritten.
            _rename_new(self.temporary, self.target)
        except FileExistsError:
            raise make_existing_error([self.target]) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)
        os.close(self.fd)


def _create_temporary(target: Path) -> tuple[Path, int]:
    tag = zlib.crc32(os.fsencode(target.name))
    for number in range(100):
        name = f"{TEMPORARY_PREFIX}{tag:08x}-{os.getpid()}-{number}{TEMPORARY_SUFFIX}"
        temporary = target.with_name(name)
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        # Between the open and the lock another process may have removed the file as a leftover of a dead process.
        if os.fstat(fd).st_nlink:
            return temporary, fd
        os.close(fd)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


@dataclass(frozen=True, slots=True)
class FileAttributes:
    """The owner, group, mode and extended attributes of a file."""

    owner: int
    group: int
    mode: int
    attributes: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Return the attributes of a file (links are followed), or None if it does not exist."""
        try:
            status = path.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                return None
            raise
        attributes = []
        with contextlib.suppress(OSError, AttributeError):
            for name in os.listxattr(path):
                if name not in _CONTENT_ATTRIBUTES:
                    with contextlib.suppress(OSError):
                        attributes.append((name, os.getxattr(path, name)))
        return cls(status.st_uid, status.st_gid, status.st_mode & 0o7777, tuple(attributes))

    def apply_to(self, fd: int) -> None:
        """Apply the attributes to an open file: the mode always, the others if the system allows it."""
        with contextlib.suppress(OSError):
            os.fchown(fd, self.owner, self.group)
        os.fchmod(fd, self.mode)
        # After the mode, which would change an access control list.
        for name, value in self.attributes:
            with contextlib.suppress(OSError):
                os.setxattr(fd, name, value)


_CONTENT_ATTRIBUTES = ("security.ima", "security.evm", "security.capability")
"""Attributes that describe the old bytes, and would be wrong for the new ones."""


def _read_umask() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    # The only other way to read the umask is to set it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _completed_path(target: Path, fingerprint: str) -> Path:
    tag = zlib.crc32(os.fsencode(target.name))
    return target.with_name(f"{TEMPORARY_PREFIX}{tag:08x}-{fingerprint}{TEMPORARY_SUFFIX}")


def _claim_completed(path: Path, size: int) -> tuple[Path, int] | None:
    """Open and lock the file if it is ours alone, has this size, and no running process holds it; else None."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(fd)
        alone = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()
        if alone and status.st_size == size:
            return path, fd
    os.close(fd)
    return None


_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_NO_SUCH_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def _rename_new(old: Path, new: Path) -> None:
    """Rename in one step without replacing a file; raises `FileExistsError` if `new` exists."""
    try:
        _rename_noreplace(old, new)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_SUCH_RENAME:
            raise
        # A hard link never replaces a file either. On filesystems without both calls a race cannot be avoided.
        try:
            os.link(old, new)
        except OSError as refused:
            if refused.errno not in _NO_LINKS:
                raise
            old.rename(new)
        else:
            old.unlink()


def _rename_noreplace(old: Path, new: Path) -> None:
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(new))


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and lock files of dead processes: those that no process has locked."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(TEMPORARY_PREFIX) and entry.name.endswith((TEMPORARY_SUFFIX, LOCK_SUFFIX)):
                _remove_if_dead(Path(entry.path))


def _remove_if_dead(path: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the open and the lock a running process may have created a new file under this name.
            if is_named(fd, path):
                path.unlink()
        finally:
            os.close(fd)


def link_second_name(target: Path, stack: contextlib.ExitStack) -> Path | None:
    """Hard-link a file under a second name while the stack is open; None if it does not exist or cannot be linked."""
    second = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY_SUFFIX}")
    try:
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    stack.callback(os.close, fd)
    try:
        # Locked, so that no other process removes the second name as a leftover of a dead process.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.link(target, second)
    except OSError:
        return None
    stack.callback(_remove_file, second)
    return second


def _remove_file(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def put_back(target: Path, old: Path | None, existed: bool) -> None:
    """Undo a rename: restore the file from its second name, or remove the target if there was none."""
    with contextlib.suppress(OSError):
        if old is not None:
            old.replace(target)
        elif not existed:
            target.unlink(missing_ok=True)


def sync_directory(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C while the block runs: renaming several files must not stop halfway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
