"""The bytes of one target in chunks, from wherever a plan takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from remapkit.formats.reader import Reader
from remapkit.plans.moves import Move

Run = Callable[[Move, Reader], Iterator[memoryview]]
"""The bytes of a move with operations: contiguous, row-major, little-endian, in pieces of any size."""


def read_target_chunks(move: Move, reader: Reader, run: Run | None) -> Iterator[memoryview]:
    """The bytes of a target: its source's, or what its operations make of its sources."""
    if not move.ops:
        return reader.chunks(move.sources[0])
    assert run is not None, "moves with operations need `run`"
    return run(move, reader)
