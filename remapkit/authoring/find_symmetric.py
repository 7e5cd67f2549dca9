"""Operations that may leave a tensor as it is, told from the elements along each of its dimensions.

A symmetric matrix does not show whether it was transposed, nor a palindrome whether it was flipped. What is so as a
whole is so along its first row and its first column: few others are left to be compared as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import permutations

import numpy as np

from remapkit.authoring.name_order import list_likely_orders, name_order
from remapkit.authoring.relation import OpText
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.elements import Array, choose_word
from remapkit.tensors.spec import TensorSpec

MOST_DIMS = 6
"""Dimensions are exchanged in tensors of no more than these."""


class Lines:
    """The elements of a tensor along each dimension, from its first element on; its bytes come in pieces."""

    def __init__(self, spec: TensorSpec) -> None:
        self._shape, self._start = spec.shape, 0
        self._word = choose_word(spec.dtype) if 8 <= DTYPE_BITS[spec.dtype] <= 64 else None
        strides = [int(np.prod(spec.shape[dim + 1 :], dtype=np.int64)) for dim in range(len(spec.shape))]
        long = [dim for dim, size in enumerate(spec.shape) if size > 1]
        self._strides = {dim: strides[dim] for dim in long} if spec.numel and self._word is not None else {}
        self._found: dict[int, list[Array]] = {dim: [] for dim in self._strides}

    def add_piece(self, piece: memoryview) -> None:
        """Take what a piece has of the lines; pieces are whole elements, row-major."""
        if not self._strides or self._word is None:
            return
        elements = np.frombuffer(piece, self._word)
        for dim, stride in self._strides.items():
            place = -(-self._start // stride)
            if place < self._shape[dim]:
                first = place * stride - self._start
                self._found[dim].append(elements[first::stride][: self._shape[dim] - place].copy())
        self._start += len(elements)

    def list_images(self) -> Iterator[tuple[OpText, ...]]:
        """Yield the operations that leave all lines as they are: one order, or one exchange of dimensions.

        >>> lines = Lines(TensorSpec("U8", (2, 2)))
        >>> lines.add_piece(memoryview(bytes([1, 2, 2, 3])))
        >>> list(lines.list_images())
        [('transpose',)]
        """
        lines = {dim: np.concatenate(found) for dim, found in self._found.items()}
        rank = len(self._shape)
        for dims in permutations(lines) if len(lines) <= MOST_DIMS else ():
            if dims != tuple(lines) and _are_exchanged(lines, dims):
                moved = dict(zip(lines, dims, strict=True))
                yield ("transpose",) if rank == 2 else ({"permute": [moved.get(dim, dim) for dim in range(rank)]},)
        for dim, line in lines.items():
            if len(np.unique(line)) < len(line):
                for order in _list_orders(len(line)):
                    if np.array_equal(line[order], line) and (named := name_order(order, len(line), dim, rank)):
                        yield named


def _are_exchanged(lines: Mapping[int, Array], dims: tuple[int, ...]) -> bool:
    return all(np.array_equal(lines[old], lines[new]) for old, new in zip(lines, dims, strict=True))


@cache
def _list_orders(size: int) -> list[Array]:
    return [order for order in list_likely_orders(size) if (order != np.arange(size)).any()]
