"""The base of operations: shape inference, and the exception for tensors that do not fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from remapkit.diagnostics.wording import count_noun
from remapkit.ops.steps import OpStep
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import TensorSpec


class RefusedOp(Exception):
    """Raised if an operation does not fit a tensor: one sentence with the numbers, and what to do."""

    def __init__(self, title: str, *help: str, code: str = "RK350") -> None:
        super().__init__(title)
        self.title, self.help, self.code = title, help, code
        self.op: Op | None = None


def normalize_dim(dim: int, spec: TensorSpec) -> int:
    """Return the dimension counted from 0; raises `RefusedOp` if it is out of range."""
    rank = len(spec.shape)
    if not -rank <= dim < rank:
        raise RefusedOp(
            f"there is no dimension {dim} in a tensor of {count_dims(rank)}, {list(spec.shape)}", code="RK351"
        )
    return dim % rank


def count_dims(rank: int) -> str:
    return count_noun(rank, "dimension")


def describe_size(dim: int, size: int) -> str:
    """Format a size with the name of its dimension.

    >>> describe_size(0, 84), describe_size(1, 3), describe_size(2, 5)
    ('84 rows', '3 columns', '5 elements of dimension 2')
    """
    noun = {0: "row", 1: "column"}.get(dim)
    if noun is None:
        return f"{size} elements of dimension {dim}"
    return count_noun(size, noun)


def infer(steps: Iterable[OpStep], spec: TensorSpec) -> TensorSpec:
    """Return the header after all steps."""
    for step in steps:
        spec = step.infer(spec)
    return spec


class Op:
    """One operation on one tensor."""

    __slots__ = ()
    name: ClassVar[str] = ""

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return the steps for a tensor with this header; raises `RefusedOp` if it does not fit."""
        raise NotImplementedError

    def infer(self, spec: TensorSpec) -> TensorSpec:
        """Return the header of the result; raises `RefusedOp`."""
        return infer(self.steps(spec), spec)

    def keeps_shape(self, spec: TensorSpec) -> bool:
        """Return whether the shape is unchanged: no check then notices if the operation is omitted or done twice."""
        return self.infer(spec).shape == spec.shape


def infer_ops(ops: Iterable[Op], spec: TensorSpec) -> TensorSpec:
    """Return the header after several operations on one tensor; raises `RefusedOp`."""
    for op in ops:
        if DTYPE_BITS[spec.dtype] < 8:
            raise RefusedOp(
                f"{op.name} does not support {spec.dtype}: its elements are smaller than a byte", code="RK352"
            )
        try:
            spec = op.infer(spec)
        except RefusedOp as refused:
            refused.op = op
            raise
    return spec
