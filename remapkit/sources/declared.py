"""Find and read the source and target manifests that a rule file declares.

Rule files are untrusted: only files below the folder of the rule file are read, and the content of a file that is not
a checkpoint is never shown.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import UnreadableCheckpoint, UsageError
from remapkit.diagnostics.source import Text
from remapkit.diagnostics.wording import escape_line
from remapkit.files.strict_json import read_json_file
from remapkit.sources.mounts import SourceLike
from remapkit.tensors.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.rulefile.syntax import RuleFile


def find_home_folder(file: RuleFile) -> Path:
    """Return the folder that paths in a rule file are relative to: its own folder, with links resolved."""
    if file.path is not None:
        return Path(os.path.realpath(file.path)).parent
    return Path(os.path.realpath(file.folder or "."))


def resolve_declared_path(file: RuleFile, written: Text) -> Path:
    """Return the path of a file that a rule file names, relative to the rule file.

    Raises `UsageError` (RK424) if it is outside the folder of the rule file after following links: it would be read
    and partly shown.
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
        f"or move it below {folder}",
    )
    raise UsageError(Diagnostic("RK424", escape_line(title), (Label(written.span),), help))


def read_declared(path: Path) -> StateDictSpec:
    """Read the header of a file that a rule file names; error messages show none of its content."""
    try:
        return read_header(path)
    except UnreadableCheckpoint as error:
        raise type(error)([_hide_content(each, path) for each in error.diagnostics]) from None


def _hide_content(problem: Diagnostic, path: Path) -> Diagnostic:
    if problem.code != "RK401":
        return problem
    title = "not a manifest or a checkpoint that can be read"
    help = (f"inspect it yourself: remapkit inspect {path}",)
    return replace(problem, title=title, help=help, notes=(), place=str(path))


def read_declared_target(file: RuleFile) -> StateDictSpec | None:
    """Read the header of the manifest that a rule file declares as its target, if there is one.

    A declared model without arguments may have a manifest next to the rule file, `keys/wan.vae.WanVAE.json` for
    `model: wan.vae:WanVAE`, so that nothing needs to be imported.
    """
    written = file.target
    if written is None:
        return None
    if written.keys is not None:
        return _read_manifest(file, written.keys, "target")
    beside = find_model_manifest(file)
    return None if beside is None else _read_manifest(file, beside, "target")


def find_target_manifest(file: RuleFile) -> Text | None:
    """Return the manifest of the target as a rule file names it, or the one of its model beside it."""
    if file.target is not None and file.target.keys is not None:
        return file.target.keys
    return find_model_manifest(file)


def find_model_manifest(file: RuleFile) -> Text | None:
    """Return the manifest beside a rule file of the model that it declares as its target, None if there is none."""
    written = file.target
    if written is None or written.model is None or written.model_args or written.config is not None:
        return None
    if file.path is None or "/" in written.model.value or "\\" in written.model.value:
        return None
    beside = replace(written.model, value=f"keys/{written.model.value.replace(':', '.')}.json")
    return beside if resolve_declared_path(file, beside).is_file() else None


def read_declared_source(file: RuleFile) -> StateDictSpec | None:
    """Read the header of the manifest that a rule file declares as its source, if there is one."""
    written = file.source_keys
    return None if written is None else _read_manifest(file, written, "source")


def read_declared_config(file: RuleFile, written: Text) -> dict[str, Any]:
    """Read the config.json that a rule file declares for its target; a message shows none of its content."""
    path = resolve_declared_path(file, written)
    problem = "it is not a JSON object"
    try:
        content = read_json_file(path)
    except UnreadableCheckpoint as error:
        content, problem = None, "there is no such file" if isinstance(error, FileNotFoundError) else problem
    if isinstance(content, dict):
        return content
    title = f"the declared config {escape_line(written.value)} cannot be read: {problem}"
    help = (f"the path is relative to the rule file; remapkit looked in {path.parent}",)
    raise UsageError(Diagnostic("RK611", title, (Label(written.span),), help))


def _read_manifest(file: RuleFile, written: Text, what: str) -> StateDictSpec:
    path = resolve_declared_path(file, written)
    try:
        found = path.stat() if path.is_file() else None
        if found is None:
            return read_declared(path)
        return _read_cached(path, (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino))
    except UnreadableCheckpoint as error:
        raise type(error)([_place_problem(each, path, written, what) for each in error.diagnostics]) from None


@lru_cache(maxsize=8)
def _read_cached(path: Path, _stamp: tuple[int, ...]) -> StateDictSpec:
    """Read a header; read it again only if the times, the size or the inode of its file change."""
    return read_declared(path)


def _place_problem(problem: Diagnostic, path: Path, written: Text, what: str) -> Diagnostic:
    """Return the problem of a declared manifest, located at its declaration."""
    title = f"the declared {what}: {problem.title}"
    help = (*problem.help, f"the path is relative to the rule file; remapkit looked in {path.parent}")
    return replace(problem, title=title, labels=(Label(written.span), *problem.labels), help=help)


def read_header(source: SourceLike, *, root: str | None = None) -> StateDictSpec:
    """Read the header of a manifest or a checkpoint."""
    from remapkit.sources.open import open_checkpoint  # the readers, which a proof does not need

    with open_checkpoint(source, root=root) as reader:
        return reader.header()
