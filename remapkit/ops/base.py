"""What every operation is: its dtype and shape inference, and how it refuses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from remapkit.diagnostics.wording import count_noun
from remapkit.ops.steps import OpStep
from remapkit.tensors.spec import DTYPE_BITS, TensorSpec


class RefusedOp(Exception):
    """A tensor that an operation cannot be done on: a sentence with the numbers, and what to do."""

    def __init__(self, title: str, *help: str, code: str = "RK350") -> None:
        super().__init__(title)
        self.title, self.help, self.code = title, help, code
        self.op: Op | None = None


def normalize_dim(dim: int, spec: TensorSpec) -> int:
    """The dimension counted from 0; raises `RefusedOp` where the tensor has none such."""
    rank = len(spec.shape)
    if not -rank <= dim < rank:
        raise RefusedOp(f"there is no dimension {dim} in a tensor of {dims(rank)}, {list(spec.shape)}", code="RK351")
    return dim % rank


def dims(rank: int) -> str:
    return count_noun(rank, "dimension")


def describe_size(dim: int, size: int) -> str:
    """What lies along a dimension, in words.

    >>> describe_size(0, 84), describe_size(1, 3), describe_size(2, 5)
    ('84 rows', '3 columns', '5 elements of dimension 2')
    """
    noun = {0: "row", 1: "column"}.get(dim)
    if noun is None:
        return f"{size} elements of dimension {dim}"
    return count_noun(size, noun)


def infer(steps: Iterable[OpStep], spec: TensorSpec) -> TensorSpec:
    """The header after all steps."""
    for step in steps:
        spec = step.infer(spec)
    return spec


class Op:
    """One operation on one tensor."""

    __slots__ = ()
    name: ClassVar[str] = ""

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """The steps for a tensor of this header; raises `RefusedOp` where it does not fit."""
        raise NotImplementedError

    def infer(self, spec: TensorSpec) -> TensorSpec:
        """The header of the result; raises `RefusedOp`."""
        return infer(self.steps(spec), spec)

    def keeps_shape(self, spec: TensorSpec) -> bool:
        """Whether names and shapes could not tell if it was left out or done twice."""
        return self.infer(spec).shape == spec.shape


def infer_ops(ops: Iterable[Op], spec: TensorSpec) -> TensorSpec:
    """The header after several operations on one tensor; raises `RefusedOp`."""
    for op in ops:
        if DTYPE_BITS[spec.dtype] < 8:
            raise RefusedOp(f"{op.name} on {spec.dtype}, whose elements are less than a byte", code="RK352")
        try:
            spec = op.infer(spec)
        except RefusedOp as refused:
            refused.op = op
            raise
    return spec
