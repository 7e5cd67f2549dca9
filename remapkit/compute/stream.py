"""Runs operations on files: computes the bytes of one target at a time, in stripes, without torch.

Invariant: the concatenated stripes are the target, row-major; each is computed from only the source elements that it
needs. So neither a stack of experts nor a transposed matrix is ever in memory as a whole. Sources are not mapped:
reading a mapped file that was truncated meanwhile would end the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from remapkit.compute.lazy import (
    Box,
    Combined,
    ComputedTensor,
    FileRange,
    Lazy,
    Leaf,
    Permuted,
    Reshaped,
    build_tree,
    make_contiguous,
)
from remapkit.formats.reader import Reader
from remapkit.formats.strided import split_into_boxes
from remapkit.plans.moves import Move
from remapkit.tensors.elements import choose_word
from remapkit.tensors.spec import TensorSpec

STRIPE = 16 << 20
"""Bytes of a target that are computed at once."""
TRANSPOSED = 48 << 20
"""The same for a transposed target: each of its stripes reads from the whole source."""
PIECE = 1 << 18
"""Bytes that are yielded at once: larger writes are several times slower where the first touch of memory is slow."""


def stream_move(move: Move, reader: Reader) -> Iterator[memoryview]:
    """Yield the bytes of a target with operations: contiguous, row-major, little-endian, in pieces."""
    header = reader.header()
    sources = [_make_leaf(fqn, header[fqn], reader) for fqn in move.sources]
    return make_stripes(build_tree(move.ops, sources))


def _make_leaf(fqn: str, spec: TensorSpec, reader: Reader) -> Lazy:
    extent = reader.extent(fqn)
    if extent is None:
        return _LateLeaf(fqn, spec, reader)
    source, start = extent.source, extent.offset
    return FileRange(spec, lambda offset, length: source.read(start + offset, length))


class _LateLeaf(Lazy):
    """A source that is not one range of a file: read as a whole on first use."""

    def __init__(self, fqn: str, spec: TensorSpec, reader: Reader) -> None:
        self.spec, self._fqn, self._reader = spec, fqn, reader
        self._leaf: Leaf | None = None

    def read(self, box: Box) -> np.ndarray:
        """Return a box of the source."""
        if self._leaf is None:
            raw = np.empty(self.spec.nbytes, "u1")
            fill_buffer(raw.data, self._reader.chunks(self._fqn))
            self._leaf = Leaf(self.spec, raw.view(choose_word(self.spec.dtype)).reshape(self.spec.shape))
        return self._leaf.read(box)


def make_stripes(lazy: Lazy, size: int = STRIPE) -> Iterator[memoryview]:
    """Yield the bytes of a tensor, row-major, computed in stripes of about `size` bytes."""
    if isinstance(lazy, Reshaped):
        lazy = lazy.inner  # the same bytes
    if 0 in lazy.spec.shape:
        return
    if isinstance(lazy, Permuted) and size == STRIPE:
        size = TRANSPOSED
    if isinstance(lazy, ComputedTensor | Combined):
        size = min(size, STRIPE // 8)  # each step of a calculation allocates an array
    itemsize = choose_word(lazy.spec.dtype).itemsize
    for box in split_into_boxes(lazy.spec.shape, max(1, size // itemsize)):
        made = make_contiguous(lazy.read(box)).reshape(-1).view("u1")
        for start in range(0, len(made), PIECE):
            yield made[start : start + PIECE].data


def fill_buffer(buffer: memoryview, chunks: Iterable[memoryview]) -> None:
    """Copy consecutive chunks into a buffer of exactly their total size."""
    at = 0
    for chunk in chunks:
        buffer[at : at + len(chunk)] = chunk
        at += len(chunk)
    assert at == len(buffer), f"{at} of {len(buffer)} bytes were read"
