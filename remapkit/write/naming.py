"""Gives finished files their names: those of all outputs, or of none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedWrite, RemapkitError
from remapkit.diagnostics.wording import count_noun, escape_line, list_names
from remapkit.files.atomic import NewFile, link_second_name, put_back, sync_directory
from remapkit.files.index_names import is_index
from remapkit.files.source_file import describe_os_error
from remapkit.write.replaced import dress_files, remove_replaced


@dataclass(frozen=True, slots=True)
class FinishedOutput:
    """The complete files of one output, an index last, and the files of another layout that it replaces."""

    files: tuple[NewFile, ...]
    replaced: tuple[Path, ...] = ()

    def list_old_indexes(self) -> list[Path]:
        """Return the indexes that must not outlive the first rename of a shard: they may list the same shards."""
        if len(self.files) == 1:
            return []
        indexes = (self.files[-1].target, *(path for path in self.replaced if is_index(path.name)))
        return [index for index in indexes if index.exists()]


def name_outputs(outputs: Sequence[FinishedOutput], force: bool) -> None:
    """Give the files of all outputs their names, and remove the layouts that they replace.

    Interrupts must be ignored meanwhile. Raises `OSError` with everything unchanged; `FailedWrite`: RK514 if files
    were replaced that could not be restored, RK513 if an old layout cannot be removed.
    """
    for output in outputs:
        dress_files(output.files, output.replaced)
    _Renaming(force, sum(len(output.files) for output in outputs)).rename(outputs)
    problems: list[Diagnostic] = []
    for output in outputs:
        try:
            remove_replaced(output.replaced, output.files[-1].target)
        except FailedWrite as error:
            problems += error.diagnostics
    if problems:
        raise FailedWrite(problems)


class _Renaming:
    """One run of renames. Files that they replace keep a second name, a hard link, until all are done."""

    def __init__(self, force: bool, count: int) -> None:
        self._force = force
        self._count = count
        self._lost: list[Path] = []
        self._kept = contextlib.ExitStack()
        self._undo = contextlib.ExitStack()

    def rename(self, outputs: Sequence[FinishedOutput]) -> None:
        """Remove the old indexes, then name the shards of all outputs, then the last file of each."""
        shards = [new for output in outputs for new in output.files[:-1]]
        indexes = [index for output in outputs for index in output.list_old_indexes()]
        with self._kept:
            try:
                if self._force:
                    for index in indexes:
                        self._remove(index)
                    _sync_folders(indexes)
                for new in shards:
                    self._name(new)
                _sync_folders(new.target for new in shards)
                for output in outputs:
                    self._name(output.files[-1])
            except BaseException as error:
                self._undo.close()
                if self._lost and isinstance(error, OSError) and not isinstance(error, RemapkitError):
                    raise self._make_partial_error(outputs[-1].files[-1].target, error) from error
                raise
            self._undo.pop_all()
            _sync_folders(output.files[-1].target for output in outputs)

    def _remove(self, index: Path) -> None:
        old = link_second_name(index, self._kept)
        index.unlink(missing_ok=True)
        if old is None:
            self._lost.append(index)
        self._undo.callback(self._put_back_index, index, old)

    def _put_back_index(self, index: Path, old: Path | None) -> None:
        # An index must not refer to a shard that was replaced.
        if not self._lost:
            put_back(index, old, existed=True)

    def _name(self, new: NewFile) -> None:
        # A single rename either happens or does not: only of several must the first ones be undone.
        if self._count == 1:
            new.rename()
            return
        existed = self._force and new.target.exists()
        old = link_second_name(new.target, self._kept) if existed else None
        new.rename()
        if existed and old is None:
            self._lost.append(new.target)
        self._undo.callback(put_back, new.target, old, existed)

    def _make_partial_error(self, last: Path, error: OSError) -> FailedWrite:
        lost = f"{len(self._lost)} of {count_noun(self._count, 'file')}"
        title = f"{lost} were replaced or removed when the system refused: {describe_os_error(error)}"
        notes = [list_names(list(map(str, self._lost)))]
        if any(is_index(path.name) for path in self._lost):
            notes.append("the index was removed first, so that nothing looks complete")
        help = ("remove the cause, then run the same command again",)
        return FailedWrite(Diagnostic("RK514", escape_line(title), notes=tuple(notes), help=help, place=str(last)))


def _sync_folders(paths: Iterable[Path]) -> None:
    for folder in dict.fromkeys(path.parent for path in paths):
        sync_directory(folder)
