"""The bytes of one target in chunks, copied from its source or computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from remapkit.compute.merged import find_unequal_in_files, has_merge
from remapkit.diagnostics.errors import FailedCheck
from remapkit.formats.reader import Reader
from remapkit.plans.moves import Move

Run = Callable[[Move, Reader], Iterator[memoryview]]
"""Yields the bytes of a move with operations: contiguous, row-major, little-endian, in pieces of any size."""


def read_target_chunks(move: Move, reader: Reader, run: Run | None = None) -> Iterator[memoryview]:
    """Yield the bytes of a target: its source's, or those that `run` (by default `stream_move`) computes."""
    if not move.ops:
        return reader.chunks(move.sources[0])
    if run is None:
        from remapkit.compute.stream import stream_move  # imports numpy, which a rename never needs

        return stream_move(move, reader)
    return run(move, reader)


def refuse_unequal_merges(moves: Sequence[Move], reader: Reader) -> None:
    """Compare all tensors that are merged; raises `FailedCheck` (RK347) if two that must be equal differ."""
    if any(map(has_merge, moves)) and (problems := find_unequal_in_files(moves, reader)):
        raise FailedCheck(problems)
