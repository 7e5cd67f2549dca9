"""File locks: one process writes an output at a time.

The lock is on a file beside the output, `.remapkit-<tag>.lock`. Whoever holds it removes it; one that a killed
process left behind is locked by nobody, so the next writer takes it. A checkpoint as one file and the same checkpoint
as shards with their index are one output. A file that is written alone under a shard's name is an output of its own,
and shares the lock of the checkpoint that it is a shard of: processes may write a shard each, but none of them while
another writes, or removes, all of the shards.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
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
"""How often, and after how many seconds, a lock is asked for that somebody holds."""


def lock_path(output: Path) -> Path:
    """The lock of an output: in its folder, under a name of fixed length that always fits."""
    tag = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:16]
    return output.parent / f"{LOCK_PREFIX}{tag}{LOCK_SUFFIX}"


@contextlib.contextmanager
def hold_locks(targets: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of some outputs while the block runs: under the names as given, and where links lead.

    Filesystems without locks have none to hold. Raises `UnwritableOutput`: RK510 where another process writes one of
    the outputs, RK503 where nothing can be written beside it.
    """
    alone, shared = _choose_locks(targets)
    with contextlib.ExitStack() as stack:
        # In one order, so that of two processes that want the same locks one gets them all.
        for path in sorted(alone | shared):
            mode = fcntl.LOCK_EX if path in alone else fcntl.LOCK_SH
            stack.callback(_release_lock, path, _take_lock(path, (alone | shared)[path], mode))
        yield


def _choose_locks(targets: Iterable[Path]) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """The locks to hold alone, and those to share, each with the output that it is of as the user knows it."""
    outputs: dict[Path, Path] = {}
    for target in targets:
        known = target.parent / derive_whole_name(target.name)
        for path in (Path(os.path.realpath(target.parent), target.name), Path(os.path.realpath(target))):
            outputs.setdefault(path.parent / derive_whole_name(path.name), known)
    alone: dict[Path, Path] = {}
    shared: dict[Path, Path] = {}
    for path, known in outputs.items():
        whole = path.parent / derive_output_name(path.name)
        # Shards that are written with their index need no lock but that of all.
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
        # Between the open and the lock its holder may have removed it: then this is a lock that nobody else meets.
        if is_named(fd, path):
            return fd
        os.close(fd)
    raise _make_busy_error(target)


def _lock_file(fd: int, mode: int) -> None:
    """Lock an open file; raises `BlockingIOError` where somebody else goes on holding it.

    Whoever removes what dead processes left holds a lock too, for an instant: that is no writer.
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
        # Another user's file can still be locked where it can be read.
        if path.exists():
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        raise


def is_named(fd: int, path: Path) -> bool:
    """Whether an open file is still the one under this name."""
    try:
        named = path.stat(follow_symlinks=False)
    except OSError:
        return False
    mine = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)


def _release_lock(path: Path, fd: int | None) -> None:
    """Remove the file while it is still locked: whoever waits at it finds out that it is no longer there.

    One that others still share is left to the last of them.
    """
    if fd is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        last = True
    except OSError as error:
        # Any other error: the filesystem has no locks.
        last = not isinstance(error, BlockingIOError)
    # Between the two locks another process may have taken the file, and removed it.
    if last and is_named(fd, path):
        with contextlib.suppress(OSError):
            path.unlink()
    os.close(fd)


def _make_busy_error(target: Path) -> UnwritableOutput:
    help = ("wait for it, or write to another name",)
    return make_unwritable("RK510", f"{target} is being written by another process; nothing was changed", help=help)
