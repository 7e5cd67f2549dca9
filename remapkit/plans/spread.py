"""How a scale is spread over its weight, and what an operation on the weight does to it.

The value of a scaled weight is its numbers times its scales: a scale is for the whole weight, for a row, or for a
block. A tensor of scales with the dimensions of its weight has a width for each: how many elements share a scale. The
width is 1 where there are as many scales as elements, `WHOLE` where there is one scale for all of them, and that of a
block otherwise: it comes from the caller, never from shapes (5 scales for 640 rows fit blocks of 128 to 159).

Invariant: with the ops of a `Spread` done to the scales, element i of the weight as it is now has the scale at the
index i // width, dimension by dimension. So what only moves elements that share a scale leaves the scales alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeAlias

from remapkit.ops.base import Op, describe_size
from remapkit.ops.calls import SizedOp
from remapkit.ops.reorder import Index, is_permutation
from remapkit.ops.shape import PermuteOp, ReshapeOp, Slice
from remapkit.ops.steps import Add, Cast, OpStep, Pad, Permute, Pick, Reshape, Scale
from remapkit.tensors.dtypes import PLAIN_FLOATS
from remapkit.tensors.spec import TensorSpec

WHOLE = 0
"""The width of a dimension with one scale for all of it."""
Width: TypeAlias = int | None
"""None: several elements share a scale, and nobody said how many."""
Block: TypeAlias = tuple[int, int]
"""The sizes of a block along the last two dimensions of a weight: rows, columns."""

DEQUANTIZE = "`dequantize` the weight with its scale first: the result is a plain float"
CONFIG = (
    "the size of blocks is `quantization_config.weight_block_size` of the checkpoint's config: --config config.json"
)


class NoCounterpart(Exception):
    """Raised if an operation on a weight has no counterpart on its scales: the reason, and what to do."""

    def __init__(self, reason: str, *help: str) -> None:
        super().__init__(reason)
        self.help = help


@dataclass(slots=True)
class Spread:
    """A tensor of scales through the operations on its weight.

    `widths` has one entry for each dimension of the weight. A flat one, [OUT], has scales for the rows and no other
    dimension. With `is_one`, it is one number for the whole weight, or a description of it, in any shape.
    """

    widths: list[Width]
    spec: TensorSpec
    is_one: bool = False
    is_flat: bool = False
    is_block: bool = False
    ops: list[Op] = field(default_factory=list)
    _was_flat: bool = False

    # ------------------------------------------------------------------------------------------ operations

    def apply(self, ops: Iterable[Op], weight: TensorSpec) -> TensorSpec:
        """Follow operations on a weight with this header; return its header after them."""
        for each in ops:
            op = each.find_op(weight) if isinstance(each, SizedOp) else each
            steps = op.steps(weight)
            for step in steps:
                self._apply_step(step, weight, op if len(steps) == 1 else None)
                weight = step.infer(weight)
        return weight

    def _apply_step(self, step: OpStep, weight: TensorSpec, op: Op | None) -> None:
        if isinstance(step, Cast) and step.dtype == weight.dtype:
            return
        if isinstance(step, Cast | Scale | Add):
            name = {Cast: "cast", Scale: "scale", Add: "add"}[type(step)]
            raise NoCounterpart(f"{name} changes the numbers that the scales multiply")
        if isinstance(step, Pad) and step.after and step.value != 0:
            raise NoCounterpart(f"its scales would multiply the elements that pad adds, {step.value}")
        if self.is_one:
            return
        if isinstance(step, Pick):
            self._pick(step, weight, op)
        elif isinstance(step, Pad):
            self._pad(step, weight)
        elif isinstance(step, Permute):
            self._permute(step, weight)
        else:
            self._reshape(step, weight)

    def _pick(self, step: Pick, weight: TensorSpec, op: Op | None) -> None:
        size, width = weight.shape[step.dim], self.widths[step.dim]
        taken = sum(map(len, step.ranges))
        if not taken:
            raise NoCounterpart("nothing is left that a scale could be for")
        if step.ranges == (range(size),):
            return
        if width == WHOLE:
            if taken > size and not (self.is_flat or self._was_flat):
                raise NoCounterpart(f"more than the {describe_size(step.dim, size)} that one scale is for")
        elif width is None:
            raise self._refuse_unknown(step.dim, weight)
        elif width == 1 and op is not None and "dim" in {each.name for each in fields(op)}:  # type: ignore[arg-type]
            self._do(replace(op, dim=step.dim))  # type: ignore[type-var]
        else:
            self._take(step.dim, _list_blocks(step, size, width))

    def _take(self, dim: int, order: Sequence[int]) -> None:
        """Take the scales of `order` along a dimension."""
        if list(order) == list(range(self.spec.shape[dim])):
            return
        if list(order) == list(range(order[0], order[0] + len(order))):
            self._do(Slice(dim, order[0], order[0] + len(order)))
            return
        if is_permutation(tuple(order)) and len(order) < self.spec.shape[dim]:
            self._do(Slice(dim, 0, len(order)))
        self._do(Index(dim, tuple(order)))

    def _pad(self, step: Pad, weight: TensorSpec) -> None:
        size, width = weight.shape[step.dim], self.widths[step.dim]
        if not step.after or (width == WHOLE and (self.is_flat or self._was_flat)):
            return
        if width is None:
            raise self._refuse_unknown(step.dim, weight)
        if width in (WHOLE, 1) or math.ceil((size + step.after) / width) != math.ceil(size / width):
            raise NoCounterpart(f"there is no scale for what pad adds to {describe_size(step.dim, size)}")

    def _permute(self, step: Permute, weight: TensorSpec) -> None:
        for place, dim in enumerate(step.order):
            if self.widths[dim] is None and place != dim:
                raise self._refuse_unknown(dim, weight)
        self._unfold(len(self.widths))
        self.widths = [self.widths[dim] for dim in step.order]
        if step.order != tuple(range(len(step.order))):
            self._do(PermuteOp(step.order))

    def _reshape(self, step: Reshape, weight: TensorSpec) -> None:
        if self.is_flat and step.shape[:1] == weight.shape[:1]:
            self.widths = [1, *[WHOLE] * (len(step.shape) - 1)]
            return
        self._unfold(len(self.widths))
        if 0 in weight.shape:
            raise NoCounterpart("the weight has no elements")
        widths: list[Width] = [WHOLE] * len(step.shape)
        shape = [1] * len(step.shape)
        for old, new in _list_runs(weight.shape, step.shape):
            kinds = {self.widths[dim] for dim in old}
            if len(old) == len(new) == 1:
                widths[new[0]], shape[new[0]] = self.widths[old[0]], self.spec.shape[old[0]]
            elif kinds == {1}:
                for dim in new:
                    widths[dim], shape[dim] = 1, step.shape[dim]
            elif kinds != {WHOLE}:
                raise NoCounterpart("reshape joins or divides dimensions that its scales are spread over")
        self.widths = widths
        if tuple(shape) != self.spec.shape:
            self._do(ReshapeOp(tuple(shape)))

    def _do(self, op: Op) -> None:
        self.ops.append(op)
        self.spec = op.infer(self.spec)

    def _unfold(self, rank: int) -> None:
        """Give flat scales, [OUT], the dimensions of their weight: [OUT, 1]."""
        if self.is_flat:
            self.is_flat, self._was_flat = False, True
            if rank > 1:
                self._do(ReshapeOp((*self.spec.shape, *[1] * (rank - 1))))

    def _refuse_unknown(self, dim: int, weight: TensorSpec) -> NoCounterpart:
        there = f"{self.spec.shape[dim]} scales for {describe_size(dim, weight.shape[dim])}"
        return NoCounterpart(f"{there} are of blocks whose size is not known", CONFIG, DEQUANTIZE)

    # ------------------------------------------------------------------------------------------ the result

    def fold(self, weight: TensorSpec) -> None:
        """Make scales that were flat flat again: a row each, as whoever reads them expects."""
        if not self._was_flat:
            return
        if not weight.shape:
            raise NoCounterpart("its scales are for rows, and no row is left")
        rows, *others = zip(self.widths, weight.shape, strict=True)
        if rows[0] != 1 or any(width != WHOLE and size > 1 for width, size in others):
            raise NoCounterpart("its scales are for rows, and the rows become columns")
        self.is_flat, self._was_flat = True, False
        self._do(ReshapeOp((self.spec.numel,)))

    def check_form(self, start: Sequence[Width], before: TensorSpec, weight: TensorSpec) -> None:
        """Raise unless the scales are spread over the weight as they were: whoever reads them expects that.

        `start` are the widths over the weight `before`; a stack of weights has one dimension more in front.
        """
        if self.is_one or self.is_flat:
            return
        end, fault = self.widths, NoCounterpart("the dimensions that its scales are spread over change places")
        if len(end) == len(start):
            pairs = zip(end, start, weight.shape, strict=True)
            if any(size > 1 and one != other for one, other, size in pairs):
                raise fault
            return
        old = [width for width, size in zip(start, before.shape, strict=True) if size > 1]
        new = [width for width, size in zip(end, weight.shape, strict=True) if size > 1]
        more = abs(len(new) - len(old))
        longer, shorter = (new, old) if len(new) >= len(old) else (old, new)
        if longer != [1] * more + shorter:
            raise fault
        if (self.is_block or None in start) and list(end[-2:]) != list(start[-2:]):
            raise fault


def _list_blocks(step: Pick, size: int, width: int) -> list[int]:
    """Return the block that each block of the result is; raises `NoCounterpart` if it would be parts of several.

    >>> _list_blocks(Pick(0, (range(256, 640),)), 640, 128), _list_blocks(Pick(0, (range(256),)), 256, 128)
    ([2, 3, 4], [0, 1])
    """
    if len(step.ranges) == 1 and step.ranges[0].step == 1:
        start, stop = step.ranges[0].start, step.ranges[0].stop
        if start % width and start // width != (stop - 1) // width:
            low, high = start // width * width, math.ceil(start / width) * width
            near = " and ".join(str(each) for each in (low, high) if 0 < each < size)
            at = {0: "row", 1: "column"}.get(step.dim, "element")
            cut = f"the cut at {at} {start} lies inside a block of {width}"
            raise NoCounterpart(cut, *([f"the nearest cuts between blocks are {near}"] if near else []), DEQUANTIZE)
        return list(range(start // width, start // width + math.ceil((stop - start) / width)))
    blocks = [index // width for each in step.ranges for index in each]
    chunks = [set(blocks[at : at + width]) for at in range(0, len(blocks), width)]
    if any(len(chunk) > 1 for chunk in chunks):
        raise NoCounterpart(f"elements of several blocks of {width} would be in one block")
    return [chunk.pop() for chunk in chunks]


def _list_runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return the shortest runs of dimensions of equal products, without those of size 1.

    >>> _list_runs((6, 1, 4), (2, 3, 4, 1))
    [([0], [0, 1]), ([2], [2])]
    """
    runs: list[tuple[list[int], list[int]]] = []
    left = [dim for dim, size in enumerate(old) if size > 1]
    right = [dim for dim, size in enumerate(new) if size > 1]
    while left:
        run = ([left.pop(0)], [right.pop(0)])
        while (have := math.prod(old[d] for d in run[0])) != (want := math.prod(new[d] for d in run[1])):
            if have < want:
                run[0].append(left.pop(0))
            else:
                run[1].append(right.pop(0))
        runs.append(run)
    return runs


def read_spread(weight: TensorSpec, scale: TensorSpec, block: Block | None) -> Spread:
    """Return how scales are spread over a weight; raises `NoCounterpart` if their shape does not say it.

    >>> f8, f32 = TensorSpec("F8_E4M3", (640, 256)), lambda *shape: TensorSpec("F32", shape)
    >>> read_spread(f8, f32(5, 2), (128, 128)).widths, read_spread(f8, f32(5, 2), None).widths
    ([128, 128], [None, None])
    >>> read_spread(f8, f32(640, 1), None).widths, read_spread(f8, f32(640), None).is_flat
    ([1, 0], True)
    """
    rank, shape = len(weight.shape), scale.shape
    if scale.numel == 1 and len(shape) < 2:
        return Spread([WHOLE] * rank, scale, is_one=True)
    is_grid = block is not None and shape == find_grid(weight.shape, block)
    if scale.dtype not in PLAIN_FLOATS and not is_grid:
        raise NoCounterpart(f"scales in {scale.dtype} may be in an order of their own")
    if is_grid and block is not None:
        return Spread([*[1] * (rank - 2), *block], scale, is_block=True)
    if shape == weight.shape[:1]:
        return Spread([1, *[WHOLE] * (rank - 1)], scale, is_flat=True)
    if len(shape) != rank:
        raise NoCounterpart(
            f"scales of the shape {list(shape)} are not spread over {list(weight.shape)} in a known way"
        )
    widths: list[Width] = [
        WHOLE if own == 1 else 1 if own == size else None for own, size in zip(shape, weight.shape, strict=True)
    ]
    if None in widths and block is not None:
        grid, sizes = list(find_grid(weight.shape, block) or ()), " x ".join(map(str, block))
        raise NoCounterpart(f"blocks of {sizes} need scales of the shape {grid}, got {list(shape)}", CONFIG)
    return Spread(widths, scale)


def find_grid(weight: Sequence[int], block: Block) -> tuple[int, ...] | None:
    """Return the shape of the scales of blocks; None for a weight of fewer than two dimensions.

    >>> find_grid((640, 200), (128, 128)), find_grid((8, 256, 256), (128, 128))
    ((5, 2), (8, 2, 2))
    """
    if len(weight) < 2:
        return None
    return (*weight[:-2], *(math.ceil(size / width) for size, width in zip(weight[-2:], block, strict=True)))
