"""Operations on shapes: transpose, permute, reshape, squeeze, unsqueeze, slice, pad, zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from remapkit.ops.base import Op, RefusedOp, count_dims, describe_size, normalize_dim
from remapkit.ops.dtype import check_value
from remapkit.ops.steps import OpStep, Pad, Permute, Pick, Reshape
from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Transpose(Op):
    """Swap two dimensions; without `dims`, those of a matrix."""

    dims: tuple[int, int] | None = None
    name: ClassVar[str] = "transpose"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one permutation."""
        if self.dims is None and len(spec.shape) != 2:
            title = (
                f"transpose without dimensions needs a matrix, got {count_dims(len(spec.shape))}, {list(spec.shape)}"
            )
            raise RefusedOp(title, "name the two dimensions: transpose: [0, 1]")
        one, other = (normalize_dim(dim, spec) for dim in self.dims or (0, 1))
        order = list(range(len(spec.shape)))
        order[one], order[other] = other, one
        return (Permute(tuple(order)),)


@dataclass(frozen=True, slots=True)
class PermuteOp(Op):
    """Reorder the dimensions: `order[n]` becomes dimension n."""

    order: tuple[int, ...]
    name: ClassVar[str] = "permute"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one permutation."""
        if len(self.order) != len(spec.shape):
            listed = count_dims(len(self.order))
            title = f"permute lists {listed}, but the tensor has {len(spec.shape)}, {list(spec.shape)}"
            raise RefusedOp(title, "list every dimension once")
        return (Permute(self.order),)


@dataclass(frozen=True, slots=True)
class Zeros(Op):
    """Replace every element by zero; none of them is read."""

    name: ClassVar[str] = "zeros"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return steps that keep no row, and pad with as many: a NaN times 0 would not be 0."""
        if not spec.shape:
            return (Reshape((1,)), Pick(0, (range(0),)), Pad(0, 1, 0), Reshape(()))
        return (Pick(0, (range(0),)), Pad(0, spec.shape[0], 0))


@dataclass(frozen=True, slots=True)
class ReshapeOp(Op):
    """Give the same elements another shape; one size may be -1. `old`, if given, is the required old shape."""

    shape: tuple[int, ...]
    old: tuple[int, ...] | None = None
    name: ClassVar[str] = "reshape"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one reshape."""
        if self.old is not None and tuple(_resolve_shape(self.old, spec)) != spec.shape:
            raise RefusedOp(f"reshape expects {list(self.old)}, but the tensor is {list(spec.shape)}")
        return (Reshape(_resolve_shape(self.shape, spec)),)


def _resolve_shape(shape: Sequence[int], spec: TensorSpec) -> tuple[int, ...]:
    known = math.prod(size for size in shape if size != -1)
    if -1 not in shape:
        if known != spec.numel:
            title = f"cannot reshape {list(spec.shape)} ({spec.numel} elements) to {list(shape)} ({known} elements)"
            raise RefusedOp(title)
        return tuple(shape)
    if known == 0 or spec.numel % known:
        raise RefusedOp(f"cannot reshape {list(spec.shape)} ({spec.numel} elements) to {list(shape)}")
    return tuple(spec.numel // known if size == -1 else size for size in shape)


@dataclass(frozen=True, slots=True)
class Squeeze(Op):
    """Remove dimensions of size 1, numbered as in the input."""

    dims: tuple[int, ...]
    name: ClassVar[str] = "squeeze"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one reshape."""
        removed = {normalize_dim(dim, spec) for dim in self.dims}
        for dim in sorted(removed):
            if spec.shape[dim] != 1:
                title = f"cannot squeeze dimension {dim}: it has {spec.shape[dim]} elements, {list(spec.shape)}"
                raise RefusedOp(title)
        return (Reshape(tuple(size for dim, size in enumerate(spec.shape) if dim not in removed)),)


@dataclass(frozen=True, slots=True)
class Unsqueeze(Op):
    """Insert dimensions of size 1, numbered as in the result."""

    dims: tuple[int, ...]
    name: ClassVar[str] = "unsqueeze"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one reshape."""
        rank = len(spec.shape) + len(self.dims)
        new = {normalize_dim(dim, TensorSpec(spec.dtype, (1,) * rank)) for dim in self.dims}
        if len(new) != len(self.dims):
            raise RefusedOp(f"unsqueeze lists a dimension twice: {list(self.dims)} of {rank}")
        sizes = iter(spec.shape)
        return (Reshape(tuple(1 if dim in new else next(sizes) for dim in range(rank))),)


@dataclass(frozen=True, slots=True)
class Slice(Op):
    """Keep elements `start` to `stop` (excluded) along a dimension; without `stop`, to the end."""

    dim: int
    start: int
    stop: int | None
    name: ClassVar[str] = "slice"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one slice."""
        dim = normalize_dim(self.dim, spec)
        size = spec.shape[dim]
        stop = size if self.stop is None else self.stop
        if not self.start <= stop <= size or self.start == self.stop:
            raise RefusedOp(
                f"slice {self.start} to {stop} does not fit {describe_size(dim, size)}, {list(spec.shape)}"
            )
        return (Pick(dim, (range(self.start, stop),)),)


@dataclass(frozen=True, slots=True)
class PadOp(Op):
    """Append elements of `value` along a dimension until its size is `to`."""

    dim: int
    to: int
    value: float = 0
    name: ClassVar[str] = "pad"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one pad."""
        dim = normalize_dim(self.dim, spec)
        size = spec.shape[dim]
        if self.to < size:
            raise RefusedOp(
                f"cannot pad to {self.to}: there are already {describe_size(dim, size)}, {list(spec.shape)}"
            )
        check_value(self.value, spec.dtype)
        return (Pad(dim, self.to - size, self.value),)
