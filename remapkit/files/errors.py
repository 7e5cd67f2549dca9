"""Errors about files: raised without a path where they are detected; the path is added in one place."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import (
    FailedWrite,
    MissingCheckpoint,
    OutputExists,
    RefusedRead,
    UnreadableCheckpoint,
    UnwritableOutput,
)
from remapkit.diagnostics.wording import escape_line, show_key

MAX_DIMS = 64
"""torch tensors have at most this many dimensions."""


class FileFault(Exception):
    """A problem in a file's content, raised without the path; the code that opened the file adds it (`at`)."""

    def __init__(
        self,
        code: str,
        title: str,
        *,
        key: str | None = None,
        help: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(title)
        self.code, self.title, self.key, self.help, self.notes = code, title, key, help, notes

    def at(self, path: Path) -> UnreadableCheckpoint:
        """Return the error for users, with the path."""
        refused = self.__cause__ if isinstance(self.__cause__, OSError) else None
        return make_unreadable(
            self.code, self.title, path, key=self.key, help=self.help, notes=self.notes, refused=refused
        )


def make_unreadable(
    code: str,
    title: str,
    path: Path | None = None,
    *,
    key: str | None = None,
    help: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    refused: OSError | None = None,
) -> UnreadableCheckpoint:
    """Return the error for a checkpoint that cannot be read; its location is the file and the key.

    `refused` is the system's error; the result is then an `OSError` too.
    """
    place = None if path is None else str(path) if key is None else f"{path}: {show_key(key)}"
    kind = UnreadableCheckpoint
    if refused is not None:
        kind = MissingCheckpoint if isinstance(refused, FileNotFoundError) else RefusedRead
    number = None if refused is None else refused.errno
    return kind(Diagnostic(code, escape_line(title), help=help, notes=notes, place=place), number)


def make_note(code: str, title: str, path: Path, *, help: tuple[str, ...] = ()) -> Diagnostic:
    """Return a note about a checkpoint that was read."""
    return Diagnostic(code, escape_line(title), help=help, place=str(path), severity=Severity.NOTE)


def is_utf8(name: str) -> bool:
    r"""Return whether a file name is valid UTF-8; Python represents other bytes as lone surrogates.

    >>> is_utf8("a.pth"), is_utf8("a\udcff.pth")
    (True, False)
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def convert_os_error(path: Path, error: OSError) -> UnwritableOutput:
    """Convert an error of the system: RK504 for a full disk, RK509 for a failing one, RK503 for anything else."""
    folder = path.parent
    if error.errno in NO_SPACE:
        return make_no_space(path, error, "")
    if error.errno == errno.EIO:
        title = f"{path}: the disk failed (input/output error); nothing was changed"
        return FailedWrite(Diagnostic("RK509", escape_line(title), help=("look at the system's log: dmesg",)))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return make_unwritable("RK503", f"cannot write in {folder}: {(error.strerror or 'refused').lower()}")
    if error.errno == errno.EISDIR:
        return make_unwritable("RK503", f"{path} is a directory", help=("name a file",))
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if folder.is_dir():  # /proc, for example, has its own files only
            return make_unwritable("RK503", f"no file can be created in {folder}", help=("write to another folder",))
        return make_unwritable("RK503", f"there is no directory {folder}", help=("create it first",))
    return make_unwritable("RK503", f"cannot write {path}: {(error.strerror or str(error)).lower()}")


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors for a full disk, an exceeded quota, and a limit on the size of a file."""


def make_no_space(path: Path, error: OSError, after: str) -> UnwritableOutput:
    """Return the error for a full disk (RK504); `after` says how much was written."""
    limits = {errno.EDQUOT: "the quota is used up", errno.EFBIG: "the limit on the size of a file was reached"}
    notes = (limits[error.errno],) if error.errno in limits else ()
    return make_unwritable("RK504", f"no space left on {path.parent}{after}; nothing was changed", notes=notes)


def make_existing_error(paths: Sequence[Path], *, notes: tuple[str, ...] = ()) -> UnwritableOutput:
    """Return the error for files that exist although `force` is not set (RK500)."""
    more = f" and {len(paths) - 1} more of its files exist" if len(paths) > 1 else " exists"
    return make_unwritable("RK500", f"{paths[0]}{more} (use --force)", notes=notes)


def make_unwritable(
    code: str, title: str, *, help: tuple[str, ...] = (), notes: tuple[str, ...] = ()
) -> UnwritableOutput:
    """Return the error for an output that cannot be written: `OutputExists` for RK500, else `UnwritableOutput`."""
    kind = OutputExists if code == "RK500" else UnwritableOutput
    return kind(Diagnostic(code, escape_line(title), help=help, notes=notes))
