"""Operations with several sources or several targets: concat, merge, stack, split, fills."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from remapkit.ops.base import Op, RefusedOp, describe_size, infer_ops, normalize_dim
from remapkit.ops.combine import Combine
from remapkit.ops.steps import OpStep, Pick, Reshape, with_size
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import TensorSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Join(Op):
    """Join several tensors: run each branch's operations, then concatenate or combine the branches, then stack.

    The tensors are ordered by index, then by branch. `concat` and `stack` are dimensions, or None if there is only
    one branch or one index. `sizes` are the required sizes of the branches; with `equal`, they must be equal. With
    `merge` all branches must give the same bytes, which whoever runs the operation has to compare first
    (`compute/merged.py`), and the first is taken.
    """

    branches: tuple[tuple[Op, ...], ...]
    concat: int | None
    stack: int | None
    sizes: tuple[int, ...] | None = None
    equal: bool = False
    merge: bool = False
    combine: Combine | None = None
    name: ClassVar[str] = "join"


@dataclass(frozen=True, slots=True)
class Nested(Op):
    """Join tensors that are computed first, as `inputs`: the first operation of a move through several rule files.

    Input n is made of the next `widths[n]` sources by `inputs[n]`, the operations of a move; by none, it is its one
    source.
    """

    join: Join
    inputs: tuple[tuple[Op, ...], ...]
    widths: tuple[int, ...]
    name: ClassVar[str] = "join"

    def divide(self, sources: Sequence[T]) -> Iterator[tuple[tuple[Op, ...], Sequence[T]]]:
        """Yield each input's operations and its own sources."""
        at = 0
        for ops, width in zip(self.inputs, self.widths, strict=True):
            yield ops, sources[at : at + width]
            at += width


@dataclass(frozen=True, slots=True)
class SplitPart(Op):
    """Part `index` of a split along `dim` into `count` equal parts, or into parts of `sizes`."""

    dim: int
    index: int
    count: int
    sizes: tuple[int, ...] | None = None
    name: ClassVar[str] = "split"

    @property
    def has_equals(self) -> bool:
        """Whether another part has the same size, so that swapping the two would not be noticed."""
        return self.count > 1 and (self.sizes is None or self.sizes.count(self.sizes[self.index]) > 1)

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one slice."""
        dim = normalize_dim(self.dim, spec)
        size = spec.shape[dim]
        if self.sizes is None:
            if size % self.count:
                raise RefusedOp(
                    f"cannot split {describe_size(dim, size)} into {self.count} equal parts", "give `sizes`"
                )
            start, length = self.index * (size // self.count), size // self.count
        else:
            if sum(self.sizes) != size:
                written = " + ".join(map(str, self.sizes))
                title = f"cannot split {describe_size(dim, size)} into {written} = {sum(self.sizes)}"
                raise RefusedOp(title, "the sizes of the parts must add up to the whole")
            start, length = sum(self.sizes[: self.index]), self.sizes[self.index]
        return (Pick(dim, (range(start, start + length),)),)


@dataclass(frozen=True, slots=True)
class TakeIndex(Op):
    """One element of a dimension, which is removed."""

    dim: int
    index: int
    name: ClassVar[str] = "unstack"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one slice and one reshape."""
        dim = normalize_dim(self.dim, spec)
        pick = Pick(dim, (range(self.index, self.index + 1),))
        return pick, Reshape((*spec.shape[:dim], *spec.shape[dim + 1 :]))


@dataclass(frozen=True, slots=True)
class FillOp(Op):
    """A tensor without a source: `zeros`, `ones`, `arange` (row-major, from 0), `tril`, or one number."""

    value: str | float
    spec: TensorSpec
    name: ClassVar[str] = "add"


def infer_concat(specs: Sequence[TensorSpec], dim: int, names: Sequence[str] | None = None) -> TensorSpec:
    """Return the header of tensors concatenated along `dim`; `names` are their names in messages."""
    first, names = specs[0], names or [""] * len(specs)
    at = normalize_dim(dim, first)
    for spec, name in zip(specs, names, strict=True):
        _check_same_dtype(first, spec, names[0], name)
        if len(spec.shape) != len(first.shape) or with_size(spec.shape, at, 0) != with_size(first.shape, at, 0):
            title = f"{name} is {list(spec.shape)} but {names[0]} is {list(first.shape)}"
            raise RefusedOp(f"{title}; only dimension {at} may differ", code="RK353")
    return TensorSpec(first.dtype, with_size(first.shape, at, sum(spec.shape[at] for spec in specs)))


def _check_sizes(join: Join, specs: Sequence[TensorSpec], names: Sequence[str]) -> None:
    assert join.concat is not None
    sizes = [spec.shape[normalize_dim(join.concat, spec)] for spec in specs]
    wanted = list(join.sizes) if join.sizes is not None else [sizes[0]] * len(sizes) if join.equal else sizes
    for name, size, expected in zip(names, sizes, wanted, strict=True):
        if size != expected:
            what = "`sizes` says" if join.sizes is not None else f"{names[0]} has"
            raise RefusedOp(
                f"{name} has {size} elements along dimension {join.concat}, but {what} {expected}", code="RK353"
            )


def infer_merge(specs: Sequence[TensorSpec], names: Sequence[str]) -> TensorSpec:
    """Return the header of tensors of one dtype and shape, of which one is taken."""
    first = specs[0]
    for spec, name in zip(specs, names, strict=True):
        _check_same_dtype(first, spec, names[0], name)
        if spec.shape != first.shape:
            title = (
                f"{name} is {list(spec.shape)} but {names[0]} is {list(first.shape)}; merged tensors must be equal"
            )
            raise RefusedOp(title, "join them with `concat` if each has a part of the whole", code="RK353")
    return first


def infer_stack(specs: Sequence[TensorSpec], dim: int, names: Sequence[str] | None = None) -> TensorSpec:
    """Return the header of tensors of one shape stacked along a new dimension `dim`."""
    first, names = specs[0], names or [""] * len(specs)
    rank = len(first.shape) + 1
    at = normalize_dim(dim, TensorSpec(first.dtype, (1,) * rank))
    for spec, name in zip(specs, names, strict=True):
        _check_same_dtype(first, spec, names[0], name)
        if spec.shape != first.shape:
            title = f"{name} is {list(spec.shape)} but {names[0]} is {list(first.shape)}; stacked shapes must match"
            raise RefusedOp(title, code="RK353")
    return TensorSpec(first.dtype, (*first.shape[:at], len(specs), *first.shape[at:]))


def _check_same_dtype(first: TensorSpec, spec: TensorSpec, one: str, other: str) -> None:
    for name, tensor_spec in ((one, first), (other, spec)):
        if DTYPE_BITS[tensor_spec.dtype] < 8:  # two elements share a byte, so one element is not a range of bytes
            raise RefusedOp(
                f"{name} is {tensor_spec.dtype}, whose elements are smaller than a byte; it can only be renamed",
                code="RK352",
            )
    if spec.dtype != first.dtype:
        title = f"{other} is {spec.dtype} but {one} is {first.dtype}; add an explicit cast"
        help = "cast one of them in its entry: {path: ..., ops: [{cast: F32}]}"
        if any(each.dtype.startswith("F8_") for each in (first, spec)):
            help = "`dequantize` 8-bit numbers that have a scale; others can be cast: {path: ..., ops: [{cast: F32}]}"
        raise RefusedOp(title, help, code="RK353")


def infer_join(join: Join, specs: Sequence[TensorSpec], names: Sequence[str]) -> TensorSpec:
    """Return the header of the result of `join` for sources with these headers."""
    width = len(join.branches)
    made = [infer_ops(join.branches[n % width], spec) for n, spec in enumerate(specs)]
    if join.merge:
        made = [infer_merge(made[at : at + width], names[at : at + width]) for at in range(0, len(made), width)]
        names = names[::width]
    elif join.concat is not None:
        groups = [slice(at, at + width) for at in range(0, len(made), width)]
        firsts = [names[group][0] for group in groups]
        for group in groups:
            _check_sizes(join, made[group], names[group])
        made = [infer_concat(made[group], join.concat, names[group]) for group in groups]
        names = firsts
    if join.combine is not None:
        pairs = range(0, len(made), 2)
        made = [join.combine.infer(made[at], made[at + 1], names[at : at + 2]) for at in pairs]
        names = names[::2]
    return made[0] if join.stack is None else infer_stack(made, join.stack, names)


def infer_move(ops: Sequence[Op], specs: Sequence[TensorSpec], names: Sequence[str]) -> TensorSpec:
    """Return the header of a move: its operations applied to its sources' headers. Raises `RefusedOp`."""
    if ops and isinstance(ops[0], FillOp):
        return infer_ops(ops[1:], ops[0].spec)
    if ops and isinstance(ops[0], Join):
        return infer_ops(ops[1:], infer_join(ops[0], specs, names))
    if ops and isinstance(ops[0], Nested):
        made, firsts = infer_inputs(ops[0], specs, names)
        return infer_ops(ops[1:], infer_join(ops[0].join, made, firsts))
    return infer_ops(ops, specs[0])


def infer_inputs(
    nested: Nested, specs: Sequence[TensorSpec], names: Sequence[str]
) -> tuple[list[TensorSpec], list[str]]:
    """Return the headers of the inputs of a nested join, and the first source of each as its name."""
    pairs = zip(nested.divide(specs), nested.divide(names), strict=True)
    made = [(infer_move(ops, own, called), called[0] if called else "") for (ops, own), (_, called) in pairs]
    return [spec for spec, _ in made], [name for _, name in made]


def needs_values(ops: Sequence[Op], specs: Sequence[TensorSpec]) -> bool:
    """Return whether names and shapes cannot show that an operation was omitted, done twice, or in another order.

    >>> from remapkit.ops.shape import Transpose
    >>> spec = TensorSpec("F32", (6, 6))
    >>> needs_values((Transpose(),), [spec]), needs_values((Transpose(),), [TensorSpec("F32", (6, 4))])
    (True, False)
    >>> needs_values((SplitPart(0, 1, 3),), [spec]), needs_values((SplitPart(0, 1, 2, (2, 4)),), [spec])
    (True, False)
    """
    rest = ops
    if ops and isinstance(ops[0], FillOp):
        return False
    if ops and isinstance(ops[0], Nested):
        if any(needs_values(each, own) for each, own in ops[0].divide(specs)):
            return True
        return needs_values((ops[0].join, *ops[1:]), infer_inputs(ops[0], specs, [""] * len(specs))[0])
    if ops and isinstance(ops[0], Join):
        made = [infer_ops(ops[0].branches[n % len(ops[0].branches)], spec) for n, spec in enumerate(specs)]
        branches = zip(itertools.cycle(ops[0].branches), specs, strict=False)
        if ops[0].combine is not None:
            return True
        joined = made[:: len(ops[0].branches)] if ops[0].merge else made  # merged tensors are compared anyway
        if len(set(joined)) < len(joined) or any(needs_values(branch, [spec]) for branch, spec in branches):
            return True
        spec, rest = infer_join(ops[0], specs, [""] * len(specs)), ops[1:]
    else:
        spec = specs[0]
    for op in rest:
        alike = isinstance(op, TakeIndex) or (isinstance(op, SplitPart) and op.has_equals)
        if alike or (not isinstance(op, SplitPart) and op.keeps_shape(spec)):
            return True
        spec = op.infer(spec)
    return False
