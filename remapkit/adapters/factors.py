"""The factors of a low-rank update, and what an operation on the weight does to each of them.

An update of a weight W, seen as a matrix of rows (dimension 0, OUT) and columns (all other dimensions, IN), is
up @ down with up [OUT, r] and down [r, IN]. Every operation of a rule is linear in W or adds a constant, so the
update of the result follows: what acts on rows acts on `up`, what acts on columns acts on `down`, and a transpose
swaps them.

`Factors` follows one tensor through operations. It keeps the axes of both matrices and, for each dimension of the
weight, which axes it consists of; it emits operations in the form in which rule files write them.

Invariant: with the emitted ops applied to the stored matrices, the update of the current weight at index (i0, i1, ..)
is the sum over the LoRA rank of up[...] * down[...], where each dimension's index is split over its axes, the slowest
first. Axes of size 1 may be in a matrix and in no dimension.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from remapkit.ops.attention import FlipHalves, GroupQkv, Rope, UngroupQkv
from remapkit.ops.base import Op
from remapkit.ops.calls import SizedOp
from remapkit.ops.dtype import AddOp, CastOp, ScaleOp
from remapkit.ops.join import SplitPart
from remapkit.ops.rearrange import Rearrange
from remapkit.ops.reorder import Flip, Index, Roll
from remapkit.ops.shape import PadOp, Slice, Zeros
from remapkit.ops.steps import OpStep, Permute, Pick, Reshape
from remapkit.tensors.spec import TensorSpec

OpText = str | Mapping[str, object]
"""An operation as a rule file writes it."""
RANK = -1
"""The label of the axis that both matrices share: the LoRA rank."""


class CannotFollow(Exception):
    """Raised if an operation on a weight has no counterpart on the factors of its update; says why."""


@dataclass(slots=True)
class Matrix:
    """One stored tensor of an adapter: the label and the size of each axis, and the operations on it so far.

    A ghost stands for columns that are nowhere stored: they may be reordered, and none may go or come.
    """

    labels: list[int]
    sizes: list[int]
    ops: list[OpText] = field(default_factory=list)
    is_ghost: bool = False
    place: int = 0
    """Which of the stored tensors it is: 0 the first (up), 1 the second (down)."""

    def reshape(self, labels: Sequence[int], sizes: Sequence[int]) -> None:
        """Give it other axes of the same elements; two reshapes in a row are one."""
        old = list(self.sizes)
        if self.ops and isinstance(last := self.ops[-1], Mapping) and "reshape" in last:
            self.ops.pop()
            (before,) = last.values()
            assert isinstance(before, Mapping)
            old = before["from"]
        if old != list(sizes):
            self.ops.append({"reshape": {"from": old, "to": list(sizes)}})
        self.labels, self.sizes = list(labels), list(sizes)

    def permute(self, order: Sequence[int]) -> None:
        """Put axis `order[n]` at place n."""
        if list(order) == sorted(order):
            return
        self.ops.append("transpose" if len(order) == 2 else {"permute": list(order)})
        self.labels, self.sizes = [self.labels[at] for at in order], [self.sizes[at] for at in order]

    def arrange(self, labels: Sequence[int]) -> None:
        """Put the axes into this order; others, which must be of size 1, go."""
        kept = [at for at, label in enumerate(self.labels) if label in set(labels)]
        if len(kept) < len(self.labels):
            self.reshape([self.labels[at] for at in kept], [self.sizes[at] for at in kept])
        self.permute([self.labels.index(label) for label in labels])

    def do(self, name: str, label: int, size: int, **args: object) -> None:
        """Do an operation along one axis, which then has this size."""
        at = self.labels.index(label)
        repeats = name == "index" and isinstance(order := args["order"], list) and len(set(order)) < len(order)
        if self.is_ghost and (self.sizes[at] != size or repeats):
            raise CannotFollow(f"{name} changes the rows, and with them the norms that a magnitude is for")
        given = {**({"dim": at} if at or name == "slice" else {}), **args}
        self.ops.append({name: given} if given else name)
        self.sizes[at] = size

    def size_of(self, label: int) -> int:
        """Return the size of an axis."""
        return self.sizes[self.labels.index(label)]


class Factors:
    """The matrices of an update of a weight, through the operations on the weight.

    With `down` None, `up` has the axes of the weight: it is a difference or, with `is_whole`, the tensor itself. With
    a ghost for `down`, `up` is a magnitude: the norms of the rows of the weight with its update.
    """

    def __init__(
        self, up: Matrix, down: Matrix | None, layout: Sequence[Sequence[int]], *, is_whole: bool = False
    ) -> None:
        self.up, self.down, self.is_whole = up, down, is_whole
        self.layout = [list(labels) for labels in layout]
        self.is_zero = False
        self._labels = itertools.count(1 + max((label for labels in layout for label in labels), default=0))

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Return the matrices that there are."""
        return (self.up,) if self.down is None else (self.up, self.down)

    @property
    def _has_norms(self) -> bool:
        return self.down is not None and self.down.is_ghost

    def holders(self, label: int) -> list[Matrix]:
        """Return the matrices that have an axis: one, or both for the index of a stack."""
        return [matrix for matrix in self.matrices if label in matrix.labels]

    # ------------------------------------------------------------------------------------------ operations

    def apply(self, ops: Iterable[Op], spec: TensorSpec) -> TensorSpec:
        """Follow the operations on a weight with this header; return the header of the result."""
        for op in ops:
            self._apply_op(op.find_op(spec) if isinstance(op, SizedOp) else op, spec)
            spec = op.infer(spec)
        return spec

    def _apply_op(self, op: Op, spec: TensorSpec) -> None:
        if isinstance(op, CastOp) or (isinstance(op, AddOp) and not self.is_whole and not self._has_norms):
            return  # an adapter keeps its own dtype, and what is added to every element is in no update
        if self._has_norms and isinstance(op, AddOp | PadOp):
            raise CannotFollow(f"{op.name} changes the rows, and with them the norms that a magnitude is for")
        if isinstance(op, Zeros):
            self.is_zero = True
        elif isinstance(op, AddOp):
            self.up.ops.append({"add": op.term})
        elif isinstance(op, ScaleOp):  # the norms of rows have no sign
            self.up.ops.append({"scale": abs(op.factor) if self._has_norms else op.factor})
        elif isinstance(op, Rearrange):
            self._rearrange(op, spec)
        elif (args := _spell_args(op, spec, is_whole=self.is_whole)) is not None:
            dim = getattr(op, "dim") % len(spec.shape)  # noqa: B009
            size = op.infer(spec).shape[dim]
            if size == spec.shape[dim] == 1:
                return  # one element stays where it is
            label = self._join_dim(dim, op.name)
            for matrix in self.holders(label):
                matrix.do(args[0], label, size, **args[1])
        else:
            for step in op.steps(spec):
                self._apply_step(step, spec, op.name)
                spec = step.infer(spec)

    def _apply_step(self, step: OpStep, spec: TensorSpec, name: str) -> None:
        if isinstance(step, Permute):
            self.layout = [self.layout[dim] for dim in step.order]
        elif isinstance(step, Reshape):
            self._reshape(spec.shape, step.shape, name)
        elif isinstance(step, Pick) and len(step.ranges) == 1 and step.ranges[0].step == 1:
            label, taken = self._join_dim(step.dim, name), step.ranges[0]
            for matrix in self.holders(label):
                matrix.do("slice", label, len(taken), start=taken.start, stop=taken.stop)
        else:
            raise CannotFollow(f"{name} has no counterpart on the matrices of an adapter")

    def _rearrange(self, op: Rearrange, spec: TensorSpec) -> None:
        pattern, sizes = op.measure(spec)
        axes: dict[str, list[int]] = {}
        for dim, group in enumerate(pattern.left):
            if len(group) == 1:
                axes[group[0]] = self.layout[dim]
            elif group:
                labels = self._cut_dim(dim, [sizes[axis] for axis in group], op.name)
                axes |= {axis: [label] for axis, label in zip(group, labels, strict=True)}
        self.layout = [[label for axis in group for label in axes[axis]] for group in pattern.right]

    def _reshape(self, old: Sequence[int], new: Sequence[int], name: str) -> None:
        """Divide the dimensions into the shortest runs of equal products, and cut or join the axes of each run."""
        layout: list[list[int]] = []
        before = after = 0
        while before < len(old) or after < len(new):
            first, start = before, after
            have, want = 1, 1
            while True:
                if have == want and (before > first or after > start) and have > 0:
                    break
                if have <= want and before < len(old):
                    have *= old[before]
                    before += 1
                elif after < len(new):
                    want *= new[after]
                    after += 1
                else:
                    break
            layout += self._recut(range(first, before), new[start:after], name)
        self.layout = layout

    def _recut(self, dims: range, sizes: Sequence[int], name: str) -> list[list[int]]:
        """Return the axes of new dimensions of these sizes, in place of some old dimensions."""
        labels = [label for dim in dims for label in self.layout[dim] if self._size(label) != 1]
        made: list[list[int]] = []
        for size in sizes:
            own: list[int] = []
            left = size
            while left > 1:
                if not labels:
                    raise CannotFollow(f"{name} has no counterpart on the matrices of an adapter")
                here = self._size(labels[0])
                if left % here == 0:
                    own.append(labels.pop(0))
                    left //= here
                elif here % left == 0:
                    one, rest = self._cut(labels.pop(0), [left, here // left])
                    own.append(one)
                    labels.insert(0, rest)
                    left = 1
                else:
                    raise CannotFollow(f"{name} mixes the rows and the columns of a weight")
            made.append(own)
        return made

    # ------------------------------------------------------------------------------------------ axes

    def _size(self, label: int) -> int:
        return self.holders(label)[0].size_of(label)

    def _cut(self, label: int, sizes: Sequence[int]) -> list[int]:
        """Divide an axis into several, the slowest first; return their labels."""
        made = [next(self._labels) for _ in sizes]
        for matrix in self.holders(label):
            at = matrix.labels.index(label)
            matrix.reshape(
                [*matrix.labels[:at], *made, *matrix.labels[at + 1 :]],
                [*matrix.sizes[:at], *sizes, *matrix.sizes[at + 1 :]],
            )
        return made

    def _cut_dim(self, dim: int, sizes: Sequence[int], name: str) -> list[int]:
        return self._cut(self._join_dim(dim, name), sizes)

    def _join_dim(self, dim: int, name: str) -> int:
        """Return the one axis of a dimension, after joining those that it has."""
        labels = self.layout[dim]
        if len(labels) == 1:
            return labels[0]
        holders = {id(matrix): matrix for label in labels for matrix in self.holders(label)}
        if not labels:
            raise CannotFollow(f"{name} along a dimension of size 1 that the weight did not have")
        if len(holders) > 1:
            raise CannotFollow(f"{name} along a dimension that has rows and columns of the weight")
        (matrix,) = holders.values()
        others = [label for label in matrix.labels if label not in labels]
        at = min(matrix.labels.index(label) for label in labels)
        at = sum(label in others for label in matrix.labels[:at])
        matrix.permute([matrix.labels.index(label) for label in [*others[:at], *labels, *others[at:]]])
        joined = next(self._labels)
        size = math.prod(matrix.size_of(label) for label in labels)
        sizes = [matrix.size_of(label) for label in others]
        matrix.reshape([*others[:at], joined, *others[at:]], [*sizes[:at], size, *sizes[at:]])
        self.layout[dim] = [joined]
        return joined

    # ------------------------------------------------------------------------------------------ the result

    def finish(self, spec: TensorSpec) -> None:
        """Bring the matrices into the form in which the adapter of a weight with this header is stored.

        up [OUT, r] (and as many dimensions of size 1 as the weight has more than two), down [r, IN...]; of a stack,
        both with its index in front; a whole tensor in the weight's own shape. Each then has one axis a dimension.
        """
        if self.down is None:
            self.up.arrange([label for labels in self.layout for label in labels])
            self._relabel(self.up, list(range(len(spec.shape))), list(spec.shape))
            return
        stack = [labels[0] for labels in self.layout[:1] if len(labels) == 1 and len(self.holders(labels[0])) == 2]
        if stack and len(spec.shape) != 3:
            raise CannotFollow(f"the result is a stack, but not of matrices: {list(spec.shape)}")
        rest = [[label for label in labels if self._size(label) != 1] for labels in self.layout[len(stack) :]]
        out, *columns = rest or [[]]
        ins = [label for labels in columns for label in labels]
        sides = [{id(m) for label in labels for m in self.holders(label)} for labels in (out, ins)]
        one, other = id(self.up), id(self.down)
        if not columns:
            raise CannotFollow(f"the result is not a matrix: {list(spec.shape)}")
        if (sides[0] | sides[1]) - {one, other} or sides[0] & sides[1] or max(map(len, sides)) > 1:
            raise CannotFollow("the result mixes the rows and the columns of the weight")
        swapped = other in sides[0] or one in sides[1]
        if swapped:
            self.up, self.down = self.down, self.up
        shape, at = spec.shape, len(stack)
        ones = [1] * (len(shape) - 2 - at)
        self.up.arrange([*stack, *out, RANK])
        self.down.arrange([*stack, RANK, *ins])
        rank = self.up.size_of(RANK)
        more = [-2 - number for number in range(len(ones))]
        self._relabel(self.up, [*range(at + 1), RANK, *more], [*shape[: at + 1], rank, *ones])
        self._relabel(
            self.down, [*range(at), RANK, *range(at + 1, len(shape))], [*shape[:at], rank, *shape[at + 1 :]]
        )

    def _relabel(self, matrix: Matrix, labels: list[int], sizes: list[int]) -> None:
        matrix.reshape(labels, sizes)
        self.layout = [[dim] for dim in range(max(labels) + 1)]


def _spell_args(op: Op, spec: TensorSpec, *, is_whole: bool) -> tuple[str, dict[str, object]] | None:
    """Return an operation along one dimension as a name and arguments, without the dimension; None for others."""
    if isinstance(op, SplitPart):
        (step,) = op.steps(spec)
        assert isinstance(step, Pick)
        return "slice", {"start": step.ranges[0].start, "stop": step.ranges[0].stop}
    if isinstance(op, Slice):
        stop = spec.shape[op.dim % len(spec.shape)] if op.stop is None else op.stop
        return "slice", {"start": op.start, "stop": stop}
    if isinstance(op, PadOp):
        # The value of new elements is the weight's, and no update's.
        return "pad", {"to": op.to, **({"value": op.value} if is_whole and op.value else {})}
    if isinstance(op, FlipHalves | Flip):
        return op.name, {}
    if isinstance(op, Roll):
        return op.name, {"by": op.by}
    if isinstance(op, Index):
        return op.name, {"order": list(op.order)}
    if isinstance(op, Rope):
        return op.name, {"to": op.to, "heads": op.heads, "head_dim": op.head_dim}
    if isinstance(op, UngroupQkv | GroupQkv):
        return op.name, {"heads": op.heads, "kv_heads": op.kv_heads, "head_dim": op.head_dim}
    return None
