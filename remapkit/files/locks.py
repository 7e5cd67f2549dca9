"""File locks: one process writes an output at a time.

The lock is on a file in the output's folder, `.remapkit-<tag>.lock`. The process that holds it removes it. One that
remains after a process was killed is not locked, so the next writer takes it. A checkpoint as one file and the
same checkpoint as shards with their index are one output. A file that is written alone under a shard's name is a
separate output that holds the lock of its checkpoint in shared mode: several processes may each write one shard, but
not while another one writes, or removes, all of the shards.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from remapkit.diagnostics.errors import UnwritableOutput
from remapkit.files.errors import convert_os_error, make_unwritable
from remapkit.files.index_names import derive_output_name, derive_whole_name

LOCK_PREFIX, LOCK_SUFFIX = ".remapkit-", ".lock"
_ATTEMPTS = 100
_PATIENCE, _PAUSE = 20, 0.005
"""How often a lock that another process holds is tried again, and the seconds between tries."""


def lock_path(output: Path) -> Path:
    """Return the path of an output's lock file: in its folder, with a name of fixed length."""
    import hashlib  # takes 5 ms, and only writing needs it

    tag = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:16]
    return output.parent / f"{LOCK_PREFIX}{tag}{LOCK_SUFFIX}"


@contextlib.contextmanager
def hold_locks(targets: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of some outputs while the block runs: of the names as given, and of the targets of links.

    On filesystems without locks, does nothing. Raises `UnwritableOutput`: RK510 if another process is writing one of
    the outputs, RK503 if its folder is not writable.
    """
    alone, shared = _choose_locks(targets)
    with contextlib.ExitStack() as stack:
        # Sorted, so that of two processes that request the same locks one gets all of them.
        for path in sorted(alone | shared):
            mode = fcntl.LOCK_EX if path in alone else fcntl.LOCK_SH
            stack.callback(_release_lock, path, _take_lock(path, (alone | shared)[path], mode))
        yield


def _choose_locks(targets: Iterable[Path]) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Return the exclusive and the shared locks: mappings from the lock to the output as the user named it."""
    outputs: dict[Path, Path] = {}
    for target in targets:
        known = target.parent / derive_whole_name(target.name)
        for path in (Path(os.path.realpath(target.parent), target.name), Path(os.path.realpath(target))):
            outputs.setdefault(path.parent / derive_whole_name(path.name), known)
    alone: dict[Path, Path] = {}
    shared: dict[Path, Path] = {}
    for path, known in outputs.items():
        whole = path.parent / derive_output_name(path.name)
        # Shards that are written with their index need only the lock of the whole output.
        if whole == path or whole not in outputs:
            alone[lock_path(path)] = known
        if whole not in outputs:
            shared[lock_path(whole)] = known.parent / derive_output_name(known.name)
    return alone, shared


def _take_lock(path: Path, target: Path, mode: int) -> int | None:
    for _ in range(_ATTEMPTS):
        try:
            fd = _open_lock(path)
        except PermissionError as error:
            if path.exists():
                help = (f"remove {path} if nobody writes there any more",)
                raise make_unwritable("RK510", f"{target} is locked by another user", help=help) from None
            raise convert_os_error(target, error) from error
        except OSError as error:
            raise convert_os_error(target, error) from error
        try:
            _lock_file(fd, mode)
        except BlockingIOError:
            os.close(fd)
            raise _make_busy_error(target) from None
        except OSError:
            # The filesystem has no locks.
            _release_lock(path, fd)
            return None
        # Between the open and the lock its holder may have removed the file: no other process would see this lock.
        if is_named(fd, path):
            return fd
        os.close(fd)
    raise _make_busy_error(target)


def _lock_file(fd: int, mode: int) -> None:
    """Lock an open file; raises `BlockingIOError` if another process keeps holding it.

    A process that removes the files of dead processes holds the lock for an instant too, without being a writer.
    """
    for _ in range(_PATIENCE):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
            return
        time.sleep(_PAUSE)
    fcntl.flock(fd, mode | fcntl.LOCK_NB)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o644)
    except PermissionError:
        # Another user's file can still be locked if it is readable.
        if path.exists():
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        raise


def is_named(fd: int, path: Path) -> bool:
    """Return whether this path still refers to the open file."""
    try:
        named = path.stat(follow_symlinks=False)
    except OSError:
        return False
    mine = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)


def _release_lock(path: Path, fd: int | None) -> None:
    """Remove the file while it is still locked: a process that waits for it then sees that it was removed.

    A lock that other processes still share is removed by the last of them.
    """
    if fd is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        last = True
    except OSError as error:
        # Any other error: the filesystem has no locks.
        last = not isinstance(error, BlockingIOError)
    # Between the two locks another process may have locked the file and removed it.
    if last and is_named(fd, path):
        with contextlib.suppress(OSError):
            path.unlink()
    os.close(fd)


def _make_busy_error(target: Path) -> UnwritableOutput:
    help = ("wait for it, or write to another name",)
    return make_unwritable("RK510", f"{target} is being written by another process; nothing was changed", help=help)
