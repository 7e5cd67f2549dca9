"""The only writer of small text files: rule files, manifests, witnesses."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import OutputExists, UnwritableOutput
from remapkit.diagnostics.wording import escape_line
from remapkit.files.atomic import (
    NewFile,
    check_targets,
    ignore_interrupts,
    link_second_name,
    put_back,
    sync_directory,
)
from remapkit.files.copy import write_all
from remapkit.files.errors import convert_os_error, make_unwritable
from remapkit.files.locks import hold_locks


class Opened(Protocol):
    """A file that is open for reading, identified by device and inode."""

    device: int
    inode: int


def write_texts(
    files: Mapping[Path, str],
    *,
    force: bool,
    sources: Iterable[Path | Opened] = (),
    folders: Sequence[Path] = (),
) -> None:
    """Write several text files, in this order: all of them or none, and none of them partially.

    `sources` are the files that the command reads: they are never written, under any of their names. A symbolic link
    stays a link, and its target is replaced; a replaced file keeps its mode. Missing `folders` are created. Raises
    `UnwritableOutput` with nothing changed: RK500 if files exist and `force` is not set, RK501 if one is a source,
    RK503 and RK504 if one cannot be written, RK510 if another process is writing it.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "keys.json")
    >>> write_texts({path: "{}"}, force=False)
    >>> path.read_text()
    '{}'
    """
    _check_names(files)
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(_make_folder(folder))
        stack.enter_context(hold_locks(files))
        _check_files(files, force, sources)
        targets = check_targets(list(files), (), force)
        try:
            new = [stack.enter_context(NewFile(target, force=force)) for target in targets]
            for new_file, text in zip(new, files.values(), strict=True):
                write_all(new_file.fd, text.encode("utf-8"), 0)
                new_file.flush()
            with ignore_interrupts():
                _name_files(new)
        except UnwritableOutput:
            raise
        except OSError as error:
            raise convert_os_error(targets[0], error) from error


def _check_names(files: Mapping[Path, str]) -> None:
    real: dict[str, Path] = {}
    for path in files:
        if path.name in ("", "-"):
            raise make_unwritable("RK503", f"{str(path)!r} is not a file name", help=("name a file",))
        other = real.setdefault(os.path.realpath(path), path)
        if other is not path:
            raise make_unwritable("RK503", f"{other} and {path} are the same file", help=("name another file",))


def _check_files(files: Mapping[Path, str], force: bool, sources: Iterable[Path | Opened]) -> None:
    """Report every file that is a source and, if `force` is not set, every file that exists."""
    read = set(_list_identities(sources))
    problems = []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in read:
            title = f"{path} is an input of this command: it is never written"
            problems.append(Diagnostic("RK501", escape_line(title), help=("name another file",)))
        elif not force and not stat.S_ISDIR(status.st_mode):
            problems.append(Diagnostic("RK500", escape_line(f"{path} exists (use --force)")))
    if problems:
        exist = all(problem.code == "RK500" for problem in problems)
        raise (OutputExists if exist else UnwritableOutput)(problems)


def _list_identities(sources: Iterable[Path | Opened]) -> Iterator[tuple[int, int]]:
    for source in sources:
        if not isinstance(source, Path):
            yield source.device, source.inode
            continue
        with contextlib.suppress(OSError):
            status = source.stat()
            yield status.st_dev, status.st_ino


@contextlib.contextmanager
def _make_folder(folder: Path) -> Iterator[None]:
    """Create the folder if it is missing; if the block fails and the folder is empty, remove it again."""
    try:
        folder.mkdir()
    except FileExistsError:
        yield
        return
    except OSError as error:
        raise convert_os_error(folder, error) from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def _name_files(files: Sequence[NewFile]) -> None:
    """Give the files their names; if one fails, restore the old content of those before it."""
    with contextlib.ExitStack() as kept, contextlib.ExitStack() as undo:
        for new in files:
            old = link_second_name(new.target, kept)
            existed = new.target.exists()
            new.rename()
            undo.callback(put_back, new.target, old, existed)
        undo.pop_all()
        for folder in dict.fromkeys(new.target.parent for new in files):
            sync_directory(folder)
