"""Checks the files that a run is about to write, of all outputs at once, before the first is opened."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from remapkit.diagnostics.errors import OutputExists
from remapkit.diagnostics.wording import join_words, list_names
from remapkit.files.atomic import check_targets
from remapkit.files.errors import make_unwritable
from remapkit.files.index_names import derive_output_name
from remapkit.files.source_file import SourceFile
from remapkit.write.replaced import find_other_layouts


@dataclass(frozen=True, slots=True)
class CheckedOutput:
    """The real paths of an output's files, and the files of another layout that it replaces."""

    targets: tuple[Path, ...]
    replaced: tuple[Path, ...]


def check_folders(paths: Sequence[Path]) -> None:
    """Raise `UnwritableOutput` (RK503) with every directory that several outputs need and that does not exist."""
    folders = dict.fromkeys(path.parent for path in paths)
    missing = [folder for folder in folders if not os.path.lexists(folder)]
    if len(missing) > 1:
        title = f"there are no directories {join_words(map(str, missing), 3)}"
        help = f"create them first: mkdir -p {' '.join(shlex.quote(str(folder)) for folder in missing[:20])}"
        raise make_unwritable("RK503", title, help=(help,))


def check_outputs(
    outputs: Sequence[Sequence[Path]], sources: Sequence[SourceFile], force: bool
) -> list[CheckedOutput]:
    """Return the targets of every output; an output is the list of its files.

    Raises `UnwritableOutput`: see `check_targets` and `find_other_layouts`. If `force` is not set and several outputs
    exist, the error names all of them.
    """
    checked, existing = [], []
    for paths in outputs:
        try:
            targets = check_targets(paths, sources, force)
            replaced = find_other_layouts(paths[0].parent, [path.name for path in paths], sources, force)
        except OutputExists as error:
            existing.append((paths[-1], error))
        else:
            checked.append(CheckedOutput(tuple(targets), tuple(replaced)))
    if len(existing) == 1:
        raise existing[0][1]
    if existing:
        title = f"{len(existing)} of {len(outputs)} outputs exist (use --force)"
        raise make_unwritable("RK500", title, notes=(list_names([str(path) for path, _ in existing], 20),))
    return checked


def find_same_output(paths: Sequence[Path], whole_names: Sequence[str]) -> tuple[int, int] | None:
    """Return the positions of two outputs that would write the same file, or of which one replaces the other.

    `whole_names` are the names of the outputs as one file. Shards that are written one by one are separate outputs,
    but none of them can be written together with the whole. Links are followed.
    """
    named: dict[Path, int] = {}
    parts: dict[Path, int] = {}
    for number, (path, name) in enumerate(zip(paths, whole_names, strict=True)):
        real = Path(os.path.realpath(path.with_name(name)))
        for place in dict.fromkeys((Path(os.path.realpath(path.parent), name), real)):
            if place in named:
                return named[place], number
            named[place] = number
            whole = place.with_name(derive_output_name(place.name))
            if whole != place:
                parts.setdefault(whole, number)
    return next(((named[place], parts[place]) for place in parts if place in named), None)
