"""The bytes of one target in chunks, copied from its source or computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
