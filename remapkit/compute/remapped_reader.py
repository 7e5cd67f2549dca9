"""A checkpoint as its plan would write it, without writing it: the header and the bytes of the targets."""

from __future__ import annotations

from collections.abc import Iterator

from remapkit.compute.move_bytes import read_target_chunks, refuse_unequal_merges
from remapkit.files.source_file import CHUNK, split_evenly
from remapkit.formats.reader import Reader
from remapkit.plans.model import ResolvedPlan
from remapkit.tensors.spec import StateDictSpec


class Remapped:
    """The targets of a plan, read like a checkpoint; nothing is cached.

    Raises `FailedCheck` (RK347) if tensors to merge differ.
    """

    def __init__(self, reader: Reader, plan: ResolvedPlan) -> None:
        refuse_unequal_merges(plan.moves, reader)
        self._reader, self._header = reader, plan.target
        self._moves = {move.target: move for move in plan.moves}

    def header(self) -> StateDictSpec:
        """Return names, dtypes and shapes of the targets."""
        return self._header

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield the bytes of a target, computed on demand."""
        return split_evenly(read_target_chunks(self._moves[fqn], self._reader), size)
