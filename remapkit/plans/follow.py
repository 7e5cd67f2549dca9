"""Scales that follow their weights: what an operation on a weight does to its scales.

The value of a scaled weight is its numbers times its scales, spread over it (`spread`). `follow` returns the move of
the scales that keeps every value: rows that are moved take their scales along, blocks are moved as wholes, and one
scale for a whole tensor is copied to its parts; if whole tensors are concatenated, their scales must be equal
(`merge`: compared before anything is written). What has no such counterpart is refused with the reason.

Scales that rules move are judged by `find_follow_fault` too, which says what is wrong with them. There, no block size
is taken from shapes: scales of blocks along the dimension are refused, since a block might be cut or joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from remapkit.companions.names import Kind, is_of_module
from remapkit.ops.base import Op, RefusedOp, describe_size, infer_ops
from remapkit.ops.join import FillOp, Join, Nested, SplitPart, TakeIndex, infer_join
from remapkit.ops.steps import Cast, OpStep, Permute, Pick, Reshape
from remapkit.plans.moves import Move
from remapkit.plans.spread import WHOLE, Block, NoCounterpart, Spread, Width, read_spread
from remapkit.tensors.spec import TensorSpec

PLAIN = "only renames and copies keep their values: convert the file before quantisation"


@dataclass(frozen=True, slots=True)
class Follower:
    """What becomes of companions: of weights in this header, with this block size if their scales are of blocks."""

    header: Mapping[str, TensorSpec]
    block: Block | None = None

    def follow(self, move: Move, companions: Sequence[str], kind: Kind) -> tuple[tuple[Op, ...], TensorSpec]:
        """Return the operations on companions of a kind, one of each source of a move, and the result's header.

        Raises `NoCounterpart` if nothing keeps the value of the weight.

        >>> from remapkit.plans.moves import RuleRef
        >>> header = {"w": TensorSpec("F8_E4M3", (6, 4)), "w_scale": TensorSpec("F32", (6, 1))}
        >>> move = Move("k", ("w",), (SplitPart(0, 1, 3),), RuleRef("r"), TensorSpec("F8_E4M3", (2, 4)))
        >>> ops, spec = Follower(header).follow(move, ("w_scale",), ("stem", "_scale"))
        >>> str(spec)
        'F32 [2, 1]'
        """
        if not move.ops:
            return (), self.header[companions[0]]
        if isinstance(move.ops[0], Nested | FillOp):
            raise NoCounterpart("it joins what was joined before")
        for weight in dict.fromkeys(move.sources):
            if not self.header[weight].dtype.startswith(("F8_", "I8")):
                raise NoCounterpart(f"the numbers of {weight} are packed", PLAIN)
        try:
            return self._follow(
                move, [self._read(*pair, kind) for pair in zip(move.sources, companions, strict=True)]
            )
        except RefusedOp as refused:
            raise NoCounterpart(f"its scales do not fit: {refused.title}", *refused.help) from None

    def _read(self, weight: str, companion: str, kind: Kind) -> Spread:
        numbers, scales = self.header[weight], self.header[companion]
        if kind == ("module", "comfy_quant"):
            return Spread([WHOLE] * len(numbers.shape), scales, is_one=True)
        if is_of_module(kind) and scales.numel != 1:
            raise NoCounterpart(f"{companion} is {list(scales.shape)}, and not one number")
        if "scale" not in kind[1] and kind[1] != "SCB":
            raise NoCounterpart(f"{companion} does not scale rows or blocks", PLAIN)
        return read_spread(numbers, scales, self.block)

    def _follow(self, move: Move, spreads: Sequence[Spread]) -> tuple[tuple[Op, ...], TensorSpec]:
        first, weights = move.ops[0], [self.header[fqn] for fqn in move.sources]
        # A part of one row does not show whether its scale is for that row or for all.
        largest = max(range(len(weights)), key=lambda number: weights[number].numel)
        before, start = weights[largest], list(spreads[largest].widths)
        if isinstance(first, Join):
            spread, weight = _join(first, move, weights, spreads)
            weight = spread.apply(move.ops[1:], weight)
        else:
            spread = spreads[0]
            weight = spread.apply(move.ops, weights[0])
        spread.fold(weight)
        spread.check_form(start, before, weight)
        return tuple(spread.ops), spread.spec


def _join(
    join: Join, move: Move, weights: Sequence[TensorSpec], spreads: Sequence[Spread]
) -> tuple[Spread, TensorSpec]:
    """Return how the scales of joined weights are spread over the whole, and the header of that."""
    if join.combine is not None:
        raise NoCounterpart(f"{join.combine.kind} changes the numbers that the scales multiply")
    width, made, specs = len(join.branches), [], [spread.spec for spread in spreads]
    for number, (weight, spread) in enumerate(zip(weights, spreads, strict=True)):
        made.append(spread.apply(join.branches[number % width], weight))
        spread.fold(made[-1])
    first, rank = spreads[0], len(made[0].shape)
    if len({(each.is_one, each.is_flat, each.is_block, len(each.spec.shape)) for each in spreads}) > 1:
        raise NoCounterpart("the scales of the parts are of different forms")
    if any(each.ops != spreads[number % width].ops for number, each in enumerate(spreads)):
        raise NoCounterpart("the scales of the parts need different operations")
    merge = join.merge or (first.is_one and join.concat is not None)
    concat = None if merge or join.concat is None else join.concat % rank
    widths = list(first.widths)
    if concat is not None:
        groups = [slice(at, at + width) for at in range(0, len(made), width)]
        widths, *others = [_concat(concat, made[own], spreads[own], move.sources[own]) for own in groups]
        if any(other != widths for other in others):
            raise NoCounterpart("the scales of the parts are for different numbers of elements")
    if join.stack is not None:
        if first.is_one or first.is_flat:
            shape = list(first.spec.shape)
            reason = f"its scale is {shape}: a scale that is stacked too must have the dimensions of its weight"
            raise NoCounterpart(reason)
        widths.insert(join.stack % (rank + 1), 1)
    stack = None if join.stack is None else join.stack % (rank + 1)
    own = Join(tuple(tuple(spread.ops) for spread in spreads[:width]), concat, stack, merge=merge)
    spec = infer_join(own, specs, move.sources)
    made_of = Spread(widths, spec, first.is_one, first.is_flat, first.is_block, [own])
    return made_of, infer_join(join, weights, move.sources)


def _concat(dim: int, weights: Sequence[TensorSpec], spreads: Sequence[Spread], names: Sequence[str]) -> list[Width]:
    """Return the widths of scales that are concatenated as their weights are."""
    long = [spread for spread, weight in zip(spreads, weights, strict=True) if weight.shape[dim] > 1] or [spreads[0]]
    widths = list(long[0].widths)
    for spread, weight in zip(spreads, weights, strict=True):
        pairs = zip(spread.widths, widths, weight.shape, strict=True)
        if any(one != other and size > 1 for one, other, size in pairs):
            raise NoCounterpart("the scales of the parts are for different numbers of elements")
    width = widths[dim]
    if width == WHOLE or width is None:
        what = "rows" if dim == 0 else "columns" if dim == 1 else f"elements of dimension {dim}"
        raise NoCounterpart(f"one scale may be for the {what} of several parts: they would need to be equal")
    for fqn, weight in list(zip(names, weights, strict=True))[:-1]:
        if weight.shape[dim] % width:
            size = describe_size(dim, weight.shape[dim])
            raise NoCounterpart(f"{fqn} has {size}, and its last block of {width} would go on in the next part")
    return widths


def list_steps(ops: Sequence[Op], specs: Sequence[TensorSpec]) -> list[object]:
    """Return what operations do to tensors with these headers, in a form that is equal if the same is done.

    >>> from remapkit.ops.shape import Slice
    >>> spec = TensorSpec("F32", (6, 1))
    >>> list_steps([Slice(0, 2, 4)], [spec]) == list_steps([SplitPart(0, 1, 3)], [spec])
    True
    """
    first = ops[0] if ops else None
    if not isinstance(first, Join):
        return _list_plain_steps(ops, specs[0])
    if first.combine is not None:
        return [first, *ops[1:]]
    width, rank = len(first.branches), len(infer_ops(first.branches[0], specs[0]).shape)
    branches = [_list_plain_steps(branch, spec) for branch, spec in zip(first.branches, specs, strict=False)]
    concat = None if first.concat is None or width == 1 else first.concat % rank
    stack = None if first.stack is None else first.stack % (rank + 1)
    joined = infer_join(first, specs, [""] * len(specs))
    return [branches, concat, stack, first.merge, *_list_plain_steps(ops[1:], joined)]


def _list_plain_steps(ops: Sequence[Op], spec: TensorSpec) -> list[object]:
    made: list[object] = []
    for op in ops:
        for step in op.steps(spec):
            if isinstance(step, Pick):
                order = [index for each in step.ranges for index in each]
                made += [(step.dim, order)] if order != list(range(spec.shape[step.dim])) else []
            elif not _is_nothing(step, spec):
                made.append(step)
            spec = step.infer(spec)
    return made


def _is_nothing(step: OpStep, spec: TensorSpec) -> bool:
    """Return whether a step changes no element and no order: a header alone does not show that a `scale` does."""
    if isinstance(step, Permute):
        return step.order == tuple(sorted(step.order))
    return isinstance(step, Reshape | Cast) and step.infer(spec) == spec


def can_follow(ops: Sequence[Op], weight: TensorSpec, scales: Sequence[str]) -> bool:
    """Return whether scales could follow these operations on a weight: one join or one part, and nothing else.

    Only on 8-bit numbers: others are packed, and their dimensions are not those of the scales.
    """
    if len(ops) != 1 or not weight.dtype.startswith(("F8_", "I8")):
        return False
    if not all("scale" in name.rpartition(".")[2] for name in scales):
        return False
    if isinstance(ops[0], Join):
        return not any(ops[0].branches) and not ops[0].merge and ops[0].combine is None
    return isinstance(ops[0], SplitPart | TakeIndex)


def find_follow_fault(
    move: Move, scales: Sequence[str], images: Sequence[Move], header: Mapping[str, TensorSpec]
) -> str | None:
    """Return why the scales of the sources of a weight, one each, do not follow it; None if they do.

    `images` are the moves of these scales whose target belongs to the target of `move`.
    """
    (op,) = move.ops
    pairs = [(header[weight], header[scale]) for weight, scale in zip(move.sources, scales, strict=True)]
    alike = [_is_carried(op, *pair) for pair in pairs]
    # One row with one scale says nothing: it may be a block that the next row belongs to.
    joined = op.concat if isinstance(op, Join) else None
    long = joined is None or any(weight.shape[joined % len(weight.shape)] > 1 for weight, _ in pairs)
    if all(alike) and long:
        if any(image.ops == move.ops and image.sources == tuple(scales) for image in images):
            return None
        return f"its scales need the same `{describe_op(op)}`, in the same order"
    if not all(_is_shared(op, *pair) for pair in pairs):
        at = alike.index(False) if long else 0
        name, shape = scales[at], list(pairs[at][1].shape)
        if isinstance(op, Join) and op.stack is not None:
            return f"{name} is {shape}: a scale that is stacked too must have the dimensions of its weight"
        return f"{name} is {shape}, which may be scales of blocks, that would be cut or joined"
    if isinstance(op, Join):
        if any(_is_merged(image) and image.sources == tuple(scales) for image in images):
            return None
        return "its scales must be equal: `merge` them, in the same order, into the scale of the whole"
    if any(not image.ops and image.sources == tuple(scales) for image in images):
        return None
    return "its scale is for all parts: `copy` it to the module of each"


def describe_op(op: Op) -> str:
    """Return the field of a rule that an operation comes from."""
    if isinstance(op, Join):
        return "concat" if op.stack is None else "stack"
    return op.name


def _is_carried(op: Op, weight: TensorSpec, scale: TensorSpec) -> bool:
    """Return whether a scale has an element for each index of the dimension that an operation joins or cuts."""
    rank = len(weight.shape)
    if len(scale.shape) != rank:
        return False
    dim = op.concat if isinstance(op, Join) else op.dim if isinstance(op, SplitPart | TakeIndex) else None
    return dim is None or weight.shape[dim % rank] == scale.shape[dim % rank]


def _is_shared(op: Op, weight: TensorSpec, scale: TensorSpec) -> bool:
    """Return whether one scale is for all indices of the dimension, before and after the operation.

    A part of what one scale is for has that scale. But two wholes of the shape [1, 1] may be a block each.
    """
    if isinstance(op, Join):
        return op.stack is None and scale.numel == 1 and len(scale.shape) < 2
    assert isinstance(op, SplitPart | TakeIndex)
    rank = len(weight.shape)
    return (scale.numel == 1 and len(scale.shape) < 2) or (
        isinstance(op, SplitPart) and len(scale.shape) == rank and scale.shape[op.dim % rank] == 1
    )


def _is_merged(image: Move) -> bool:
    """Return whether a move takes one of equal tensors, and does no more."""
    op = image.ops[0] if len(image.ops) == 1 else None
    return isinstance(op, Join) and op.merge and op.stack is None and not any(op.branches)
