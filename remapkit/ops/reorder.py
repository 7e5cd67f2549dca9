"""Operations that reorder the elements along one dimension: flip, roll, index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remapkit.ops.base import Op, RefusedOp, describe_size, normalize_dim
from remapkit.ops.steps import OpStep, Pick
from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Flip(Op):
    """Reverse a dimension."""

    dim: int = 0
    name: ClassVar[str] = "flip"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one reordering."""
        dim = normalize_dim(self.dim, spec)
        return (Pick(dim, (range(spec.shape[dim] - 1, -1, -1),)),)


@dataclass(frozen=True, slots=True)
class Roll(Op):
    """Move every element `by` places towards the end of a dimension; the last ones come first."""

    dim: int
    by: int
    name: ClassVar[str] = "roll"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one reordering."""
        dim = normalize_dim(self.dim, spec)
        size = spec.shape[dim]
        first = -self.by % size if size else 0
        return (Pick(dim, (range(first, size), range(first))),) if first else ()


@dataclass(frozen=True, slots=True)
class Index(Op):
    """Take the elements `order` of a dimension; all of 0, 1, 2, ... must be an order of the whole dimension."""

    dim: int
    order: tuple[int, ...]
    name: ClassVar[str] = "index"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one selection."""
        dim = normalize_dim(self.dim, spec)
        size, there = spec.shape[dim], f"{describe_size(dim, spec.shape[dim])}, {list(spec.shape)}"
        if max(self.order) >= size:
            raise RefusedOp(f"index has {max(self.order)}, but there are {there}", "count from 0")
        if is_permutation(self.order) and len(self.order) < size:
            title = f"index orders {len(self.order)}, but there are {there}"
            raise RefusedOp(title, "list every element once; to leave some out, cut them with `slice` first")
        ranges: list[range] = []
        for number in self.order:
            if ranges and ranges[-1].stop == number:
                ranges[-1] = range(ranges[-1].start, number + 1)
            else:
                ranges.append(range(number, number + 1))
        return (Pick(dim, tuple(ranges)),)


def is_permutation(order: tuple[int, ...]) -> bool:
    """Return whether an order has each of 0, 1, 2, ... once.

    >>> is_permutation((2, 0, 1)), is_permutation((0, 0, 1)), is_permutation((1, 2))
    (True, False, False)
    """
    return sorted(order) == list(range(len(order)))
