"""Compiled pipelines: rules with operations. Sources are joined, transformed and split, always in this order:

    each source's own ops -> concat, merge, multiply, divide or dequantize -> stack -> ops
        -> unstack -> split or copy -> each target's own ops

A pipeline is symbolic: its numbers may be params. `Pipeline.resolve` evaluates them, and `plans/groups.py` turns the
result into moves.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from remapkit.diagnostics.source import Span
from remapkit.ops import base, dtype, join
from remapkit.ops.calls import Arg, Call, Params, evaluate_arg, list_params, take_values
from remapkit.ops.combine import Combine, Kind, SizedNumber
from remapkit.patterns.pattern import Pattern
from remapkit.patterns.template import Template
from remapkit.rulefile.arithmetic import SIZE, BadNumber, Expr, ParamValue
from remapkit.rules.axes import (
    MAX_PARTS,
    Axis,
    describe_counts,
)
from remapkit.tensors.dtypes import CASTABLE_FLOATS
from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How a tensor is split or joined: `sizes` are the part sizes; `equal` requires equal parts.

    Without sizes, a split makes equal parts and a concat accepts parts of any size.
    """

    dim: int
    sizes: tuple[Arg, ...] | None = None
    equal: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


Sized = tuple[SplitRule, tuple[tuple[str, ParamValue], ...]]
"""A split whose sizes use `size(k)`, and the values of the other names in them."""


@dataclass(frozen=True, slots=True)
class CombineRule:
    """Arithmetic of the first source with the second; `block` has the sizes of blocks along the last dimensions.

    `dim` is that of `fold_weight_norm` (None: the norm of the whole tensor), `over` that of `multiply`.
    """

    kind: Kind
    to: str | None
    block: tuple[Arg, ...]
    dim: int | None = None
    over: Arg = 1
    span: Span | None = field(default=None, compare=False, repr=False)

    def resolve(self, params: Params) -> Combine:
        """Return the operation; raises `BadNumber`."""
        block = tuple(int(evaluate_arg(size, params)) for size in self.block)
        if block and min(block) < 1:
            raise BadNumber(f"a size of `block` must be at least 1, got {min(block)}")
        over: int | SizedNumber = 1
        if isinstance(self.over, Expr) and SIZE in self.over.names:
            over = SizedNumber(self.over, take_values([name for name in self.over.names if name != SIZE], params))
        else:
            over = int(evaluate_arg(self.over, params))
        return Combine(self.kind, self.to, block, self.dim, over)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The operations of a rule on values. `before` has the operations of each part, `after` those of each target.

    `order` has the pattern that each part of a `concat` or `merge` reads: several parts may read one.
    `templates[pattern][target]` are the target keys, in terms of the captures of each source's pattern. `family` is
    `by` of `concat` or `merge`, `spread` that of `split` or `copy`. No template has a capture of `stack.by` or
    `family.by` (they are folded); every template has those of `unstack.by` and `spread.by`, which no pattern has.
    """

    id: str
    span: Span
    patterns: tuple[Pattern, ...]
    templates: tuple[tuple[Template, ...], ...]
    before: tuple[tuple[Call, ...], ...]
    after: tuple[tuple[Call, ...], ...]
    ops: tuple[Call, ...] = ()
    concat: SplitRule | None = None
    stack: Axis | None = None
    unstack: Axis | None = None
    split: SplitRule | None = None
    share: Literal["copy", "tie"] | None = None
    merge: bool = False
    family: Axis | None = None
    spread: Axis | None = None
    order: tuple[int, ...] = (0,)
    combine: CombineRule | None = None

    @property
    def folded(self) -> tuple[str, ...]:
        """The captures whose values are joined into one tensor, in the order of the joined sources."""
        return tuple(name for axis in (self.stack, self.family) if axis is not None for name in axis.by)

    @property
    def made(self) -> tuple[str, ...]:
        """The captures that only the targets have: each target has an index of one tensor."""
        return tuple(name for axis in (self.unstack, self.spread) if axis is not None for name in axis.by)

    def find_made_counts(self, params: Params) -> dict[str, int | None]:
        """Return for each capture of `made` the number of its values, if that is known."""
        axes = [axis for axis in (self.unstack, self.spread) if axis is not None]
        return {name: count for axis in axes for name, count in zip(axis.by, axis.find_counts(params), strict=True)}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the params that the pipeline needs."""
        calls = [*itertools.chain(*self.before, self.ops, *self.after)]
        numbers: list[Arg] = [arg for call in calls for _, arg in call.args]
        axes = (self.stack, self.family, self.unstack, self.spread)
        numbers += [count for axis in axes if axis is not None for count in axis.count or ()]
        numbers += [size for each in (self.split, self.concat) if each is not None for size in each.sizes or ()]
        numbers += (*self.combine.block, self.combine.over) if self.combine is not None else ()
        return tuple(dict.fromkeys(name for number in numbers for name in list_params(number)))

    def list_captures(self, params: Params) -> tuple[str, ...]:
        """Return the captures that its numbers use, so that they differ by key."""
        return tuple(name for name in self.names if name not in params and name != SIZE)

    def resolve(self, params: Params) -> Resolved:
        """Return the pipeline with its numbers evaluated; raises `BadNumber` if the params do not allow that.

        `params` has the captures too, if the numbers use any (`list_captures`).
        """
        spans: dict[int, Span | None] = {}
        sized = _take_sized(self.split, params)

        def resolve_calls(calls: tuple[Call, ...]) -> tuple[base.Op, ...]:
            made = []
            for call in calls:
                op = call.op(params)
                spans[id(op)] = call.span
                made.append(op)
            return tuple(made)

        return Resolved(
            before=tuple(map(resolve_calls, self.before)),
            ops=resolve_calls(self.ops),
            after=tuple(map(resolve_calls, self.after)),
            stacked=_resolve_counts(self.stack, params),
            unstacked=_resolve_counts(self.unstack, params),
            gathered=_resolve_counts(self.family, params, self.concat),
            spread=_resolve_counts(self.spread, params, self.split),
            sizes=_resolve_sizes(self.split, params) if not sized else None,
            sized=sized,
            joined=_resolve_sizes(self.concat, params),
            combine=self.combine.resolve(params) if self.combine is not None else None,
            spans=spans,
        )


def _take_sized(split: SplitRule | None, params: Params) -> Sized | None:
    """Return the sizes of a split that use `size(k)`, with the values that they use besides."""
    names = {name for size in (split.sizes if split is not None else None) or () for name in list_params(size)}
    if split is None or SIZE not in names:
        return None
    return split, take_values(sorted(names - {SIZE}), params)


def _resolve_sizes(split: SplitRule | None, params: Params) -> tuple[int, ...] | None:
    if split is None or split.sizes is None:
        return None
    sizes = tuple(int(evaluate_arg(size, params)) for size in split.sizes)
    if min(sizes) < 1:
        raise BadNumber(f"a size must be at least 1, got {min(sizes)}")
    return sizes


def _resolve_counts(axis: Axis | None, params: Params, parts: SplitRule | None = None) -> tuple[int, ...] | None:
    """Return the numbers of values, which `sizes` of the parts must agree with."""
    counts = axis.resolve_counts(params) if axis is not None else None
    if axis is None or counts is None:
        return None
    if parts is not None and parts.sizes is not None and len(parts.sizes) != math.prod(counts):
        raise BadNumber(f"`sizes` has {len(parts.sizes)} entries, but `count` is {describe_counts(counts)}")
    if axis.word in ("split", "copy") and math.prod(counts) > MAX_PARTS:
        raise BadNumber(f"`count` must make at most {MAX_PARTS:,} targets, got {math.prod(counts):,}")
    return counts


@dataclass(frozen=True, slots=True)
class Resolved:
    """A pipeline with its numbers evaluated; `spans` maps operations (by identity) to positions in the rule file."""

    before: tuple[tuple[base.Op, ...], ...]
    ops: tuple[base.Op, ...]
    after: tuple[tuple[base.Op, ...], ...]
    stacked: tuple[int, ...] | None
    unstacked: tuple[int, ...] | None
    gathered: tuple[int, ...] | None
    spread: tuple[int, ...] | None
    sizes: tuple[int, ...] | None
    joined: tuple[int, ...] | None
    combine: Combine | None
    spans: dict[int, Span | None]
    sized: Sized | None = None

    def find_sizes(self, spec: TensorSpec) -> tuple[int, ...] | None:
        """Return the sizes of the parts that a tensor is split into; raises `RefusedOp` if its sizes do not give any.

        None: equal parts.
        """
        if self.sized is None:
            return self.sizes
        split, values = self.sized
        try:
            return _resolve_sizes(split, {**dict(values), SIZE: spec.shape})
        except BadNumber as error:
            refused = base.RefusedOp(f"cannot split {list(spec.shape)}: {error}")
            refused.op = join.SplitPart(split.dim, 0, 1)
            raise refused from None


@dataclass(frozen=True, slots=True)
class AddedTargets:
    """One compiled entry of `add`; `targets` has all its target keys."""

    id: str
    span: Span
    targets: tuple[str, ...]
    value: str | float
    shape: tuple[Arg, ...]
    dtype: str
    template: Template | None = None

    def op(self, params: Params) -> join.FillOp:
        """Return the operation that creates its value; raises `BadNumber` or `RefusedOp`."""
        shape = tuple(int(evaluate_arg(size, params)) for size in self.shape)
        if shape and min(shape) < 0:
            raise BadNumber(f"a size must be at least 0, got the shape {list(shape)}")
        spec = TensorSpec(self.dtype, shape)
        if isinstance(self.value, float | int):
            dtype.check_value(self.value, self.dtype)
        if self.value == "arange" and self.dtype not in CASTABLE_FLOATS and spec.numel:
            dtype.check_value(spec.numel - 1, self.dtype)
        if self.value == "tril" and len(shape) < 2:
            raise base.RefusedOp("tril needs at least two dimensions")
        return join.FillOp(self.value, spec)
