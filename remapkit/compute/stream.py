"""Operations on files: the bytes of one target at a time, in stripes, without torch.

Sources are read box by box, so that neither a stack of experts nor a transposed matrix is ever in memory as a whole.
They are not mapped: a file that becomes shorter while it is read would end the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from remapkit.compute.lazy import (
    Box,
    Calculated,
    FileRange,
    Lazy,
    Leaf,
    Permuted,
    Reshaped,
    build_tree,
    make_contiguous,
)
from remapkit.formats.reader import Reader
from remapkit.plans.moves import Move
from remapkit.tensors.elements import choose_word
from remapkit.tensors.spec import TensorSpec

STRIPE = 16 << 20
"""Bytes of a target that are made at once."""
TURNED = 48 << 20
"""The same for a target with its dimensions in another order: every stripe of it touches the whole source."""
PIECE = 1 << 18
"""Bytes that are handed out at once: larger writes cost several times more on machines with slow first touch."""


class Streams:
    """The bytes of moves with operations."""

    def __call__(self, move: Move, reader: Reader) -> Iterator[memoryview]:
        """The target's bytes: contiguous, row-major, little-endian, in pieces."""
        header = reader.header()
        sources = [_make_leaf(fqn, header[fqn], reader) for fqn in move.sources]
        yield from make_stripes(build_tree(move.ops, sources))


def _make_leaf(fqn: str, spec: TensorSpec, reader: Reader) -> Lazy:
    extent = reader.extent(fqn)
    if extent is None:
        return _Later(fqn, spec, reader)
    source, start = extent.source, extent.offset
    return FileRange(spec, lambda offset, length: source.read(start + offset, length))


class _Later(Lazy):
    """A source that is not one stretch of a file: read as a whole, when it is first needed."""

    def __init__(self, fqn: str, spec: TensorSpec, reader: Reader) -> None:
        self.spec, self._fqn, self._reader = spec, fqn, reader
        self._leaf: Leaf | None = None

    def read(self, box: Box) -> np.ndarray:
        """A box of what was read."""
        if self._leaf is None:
            raw = np.empty(self.spec.nbytes, "u1")
            at = 0
            for chunk in self._reader.chunks(self._fqn):
                raw[at : at + len(chunk)] = np.frombuffer(chunk, "u1")
                at += len(chunk)
            self._leaf = Leaf(self.spec, raw.view(choose_word(self.spec.dtype)).reshape(self.spec.shape))
        return self._leaf.read(box)


def make_stripes(lazy: Lazy, size: int = STRIPE) -> Iterator[memoryview]:
    """The bytes of a tensor, row-major, made in stripes of about `size` bytes."""
    if isinstance(lazy, Reshaped):
        lazy = lazy.inner  # the same bytes
    if 0 in lazy.spec.shape:
        return
    if isinstance(lazy, Permuted) and size == STRIPE:
        size = TURNED
    if isinstance(lazy, Calculated):
        size = min(size, STRIPE // 8)  # each step of a calculation makes an array of its own
    itemsize = choose_word(lazy.spec.dtype).itemsize
    for box in split_into_boxes(lazy.spec.shape, max(1, size // itemsize)):
        made = make_contiguous(lazy.read(box)).reshape(-1).view("u1")
        for start in range(0, len(made), PIECE):
            yield made[start : start + PIECE].data


def split_into_boxes(shape: Sequence[int], elements: int) -> Iterator[Box]:
    """Boxes that follow one another in row-major order, each of at most so many elements where that can be.

    >>> list(split_into_boxes((2, 3), 4))
    [(slice(0, 1, None), slice(0, 3, None)), (slice(1, 2, None), slice(0, 3, None))]
    """
    axis, inner = len(shape), 1
    while axis > 0 and inner * shape[axis - 1] <= elements:
        axis -= 1
        inner *= shape[axis]
    rest = tuple(slice(0, size) for size in shape[axis:])
    if axis == 0:
        yield rest
        return
    rows = max(1, elements // inner)
    for index in np.ndindex(*shape[: axis - 1]):
        outer = tuple(slice(each, each + 1) for each in index)
        for start in range(0, shape[axis - 1], rows):
            yield (*outer, slice(start, min(start + rows, shape[axis - 1])), *rest)


__all__ = ["Streams", "make_stripes", "split_into_boxes"]
