"""One writer an output: a lock that the system takes back when its process is gone.

The lock is on a file beside the output, `.remapkit-<tag>.lock`. Whoever holds it removes it; one that a killed
process left behind is locked by nobody, so the next writer takes it. A checkpoint as one file and the same checkpoint
as shards with their index are one output.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from remapkit.checkpoint.faults import cannot_write, unwritable
from remapkit.diagnostic import UnwritableOutput

LOCK_PREFIX, LOCK_SUFFIX = ".remapkit-", ".lock"
_LAYOUT = re.compile(r"(?s)(.+?)(?:-[0-9]{5,}-of-[0-9]{5,})?(\.[^.]+?)(?:\.index\.json)?")
_ATTEMPTS = 100


def output_name(name: str) -> str:
    """The name that a checkpoint has as one file, from that of any of its files in any layout.

    >>> output_name("model-00001-of-00003.safetensors"), output_name("model.safetensors.index.json")
    ('model.safetensors', 'model.safetensors')
    >>> output_name("pytorch_model.bin"), output_name("rules.yaml"), output_name("README")
    ('pytorch_model.bin', 'rules.yaml', 'README')
    """
    found = _LAYOUT.fullmatch(name)
    return name if found is None else found[1] + found[2]


def lock_path(target: Path) -> Path:
    """Where the lock of an output lies: in its folder, under a name that fits however long the output's is."""
    tag = hashlib.sha256(os.fsencode(output_name(target.name))).hexdigest()[:16]
    return target.with_name(f"{LOCK_PREFIX}{tag}{LOCK_SUFFIX}")


@contextlib.contextmanager
def hold(targets: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of some outputs while the block runs: under the names as given, and where links lead.

    Filesystems without locks have none to hold. Raises `UnwritableOutput`: RK510 where another process writes one of
    the outputs, RK503 where nothing can be written beside it.
    """
    wanted: dict[Path, Path] = {}
    for target in targets:
        for path in (Path(os.path.realpath(target.parent), target.name), Path(os.path.realpath(target))):
            wanted.setdefault(lock_path(path), target)
    with contextlib.ExitStack() as stack:
        # In one order, so that of two processes that want the same locks one gets them all.
        for path in sorted(wanted):
            stack.callback(_release, path, _take(path, wanted[path]))
        yield


def _take(path: Path, target: Path) -> int | None:
    for _ in range(_ATTEMPTS):
        try:
            fd = _open(path)
        except PermissionError as error:
            if path.exists():
                help = (f"remove {path} if nobody writes there any more",)
                raise unwritable("RK510", f"{target} is locked by another user", help=help) from None
            raise cannot_write(target, error) from error
        except OSError as error:
            raise cannot_write(target, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise _busy(target) from None
        except OSError:
            # The filesystem has no locks.
            _release(path, fd)
            return None
        # Between the open and the lock its holder may have removed it: then this is a lock that nobody else meets.
        if is_named(fd, path):
            return fd
        os.close(fd)
    raise _busy(target)


def _open(path: Path) -> int:
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
        found = path.stat(follow_symlinks=False)
    except OSError:
        return False
    mine = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _release(path: Path, fd: int | None) -> None:
    """Remove the file while it is still locked: whoever waits at it finds out that it is no longer there."""
    if fd is not None:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(fd)


def _busy(target: Path) -> UnwritableOutput:
    help = ("wait for it, or write to another name",)
    output = target.with_name(output_name(target.name))
    return unwritable("RK510", f"{output} is being written by another process; nothing was changed", help=help)
