"""Steps: the few primitives that every operation is composed of, with exact shapes. No tensor is touched here.

A step takes one tensor. `Pick` covers everything that only selects or reorders along one dimension: slices, swapped
halves, rotary permutations, grouped heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Permute:
    """Dimension `order[n]` of the source becomes dimension n."""

    order: tuple[int, ...]

    def infer(self, spec: TensorSpec) -> TensorSpec:
        """Return the header of the result."""
        return replace(spec, shape=tuple(spec.shape[dim] for dim in self.order))


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same elements in the same row-major order under another shape."""

    shape: tuple[int, ...]

    def infer(self, spec: TensorSpec) -> TensorSpec:
        """Return the header of the result."""
        return replace(spec, shape=self.shape)


@dataclass(frozen=True, slots=True)
class Pick:
    """Along `dim`, the elements at the indices of all ranges, in the order of the ranges."""

    dim: int
    ranges: tuple[range, ...]

    def infer(self, spec: TensorSpec) -> TensorSpec:
        """Return the header of the result."""
        return replace(spec, shape=with_size(spec.shape, self.dim, sum(map(len, self.ranges))))


@dataclass(frozen=True, slots=True)
class Pad:
    """`after` more elements of `value` along `dim`."""

    dim: int
    after: int
    value: float

    def infer(self, spec: TensorSpec) -> TensorSpec:
        """Return the header of the result."""
        return replace(spec, shape=with_size(spec.shape, self.dim, spec.shape[self.dim] + self.after))


@dataclass(frozen=True, slots=True)
class Cast:
    """The same values in another dtype, rounded to the nearest."""

    dtype: str

    def infer(self, spec: TensorSpec) -> TensorSpec:
        """Return the header of the result."""
        return replace(spec, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class Scale:
    """Every element times a number."""

    factor: float

    def infer(self, spec: TensorSpec) -> TensorSpec:
        """Return the header of the result."""
        return spec


@dataclass(frozen=True, slots=True)
class Add:
    """Every element plus a number."""

    term: float

    def infer(self, spec: TensorSpec) -> TensorSpec:
        """Return the header of the result."""
        return spec


OpStep = Permute | Reshape | Pick | Pad | Cast | Scale | Add


def with_size(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """Return the shape with another size of one dimension."""
    return (*shape[:dim], size, *shape[dim + 1 :])
