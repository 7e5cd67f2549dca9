"""TODO-DOC remapkit/sources/declared.py"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import UnreadableCheckpoint, UsageError
from remapkit.diagnostics.source import Text
from remapkit.diagnostics.wording import escape_line
from remapkit.formats import open_checkpoint
from remapkit.tensors.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.rulefile.syntax import RuleFile


def find_home_folder(file: RuleFile) -> Path:
    """The folder that paths in a rule file are relative to: its own, the real one where it is known by a link."""
    if file.path is not None:
        return Path(os.path.realpath(file.path)).parent
    return Path(os.path.realpath(file.folder or "."))


def resolve_declared_path(file: RuleFile, written: Text) -> Path:
    """The file that a rule file names: relative to it, and not outside its folder, links followed.

    A rule file may come from anybody. What it names is read, and parts of it are shown. Raises `UsageError` (RK424).
    """
    folder = find_home_folder(file)
    path = folder / written.value
    try:
        real = Path(os.path.realpath(path))
    except (OSError, ValueError):
        real = Path("/")
    if real.is_relative_to(folder) and "\0" not in written.value:
        return path
    title = f"the rule file names a file outside its folder: {written.value}"
    help = (
        "if you trust it, name the file yourself: --target-keys FILE, or --keys FILE for the source",
        f"or put it below {folder}",
    )
    raise UsageError(Diagnostic("RK424", escape_line(title), (Label(written.span),), help))


def read_declared(path: Path) -> StateDictSpec:
    """The header of a file that a rule file names; a refusal shows nothing of what it holds."""
    try:
        return read_header(path)
    except UnreadableCheckpoint as error:
        raise UnreadableCheckpoint([_hide_content(each, path) for each in error.diagnostics]) from None


def _hide_content(problem: Diagnostic, path: Path) -> Diagnostic:
    if problem.code != "RK401":
        return problem
    title = "neither a manifest nor a checkpoint that can be read"
    help = (f"look at it yourself: remapkit inspect {path}",)
    return replace(problem, title=title, help=help, notes=(), place=str(path))


def read_header(path: Path, *, root: str | None = None) -> StateDictSpec:
    """The header of a manifest or a checkpoint."""
    with open_checkpoint(path, root=root) as reader:
        return reader.header()
