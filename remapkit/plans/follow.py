"""Scales that follow their weights: the same operation on both, or one scale for a whole that its parts share.

The value of a scaled weight is its numbers times its scales, spread over it. A weight that is concatenated, stacked,
split or unstacked keeps its value if its scales are

* treated alike, where they have an element for each index of the dimension (a scale for each row, rows concatenated),
  or where whole tensors are stacked;
* or shared, where one scale is for all of it: `merge`d if weights are concatenated (equal bytes, which are compared
  before anything is written), copied to each part if a weight is split.

Only the dimension of the operation matters, and no block size is taken from shapes: scales of blocks along it are
refused, since a block might be cut or joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from remapkit.ops.base import Op
from remapkit.ops.join import Join, SplitPart, TakeIndex
from remapkit.plans.moves import Move
from remapkit.tensors.spec import TensorSpec


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
