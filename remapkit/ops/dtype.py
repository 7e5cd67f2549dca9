"""Operations on values: casts, scales, additions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remapkit.ops.base import Op, RefusedOp
from remapkit.ops.steps import Add, Cast, OpStep, Scale
from remapkit.tensors.dtypes import (
    CASTABLE_FLOATS,
    DTYPES,
    INTEGERS,
    PLAIN_FLOATS,
    get_integer_range,
    is_exact_cast,
)
from remapkit.tensors.spec import TensorSpec


def check_value(value: float, dtype: str) -> None:
    """Raise `RefusedOp` for a value that a dtype cannot represent."""
    if dtype in CASTABLE_FLOATS:
        if abs(value) > DTYPES[dtype].largest:
            raise RefusedOp(f"{value} is beyond the largest {dtype}, {DTYPES[dtype].largest:g}")
        return
    if dtype != "BOOL" and dtype not in INTEGERS:
        raise RefusedOp(f"{dtype} cannot be filled with a number")
    low, high = get_integer_range(dtype)
    if value != int(value) or not low <= value <= high:
        raise RefusedOp(f"{value} is not a value of {dtype}")


@dataclass(frozen=True, slots=True)
class CastOp(Op):
    """Cast between floats, and from integers to wider ones. `old`, if given, is the required old dtype."""

    dtype: str
    old: str | None = None
    name: ClassVar[str] = "cast"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one cast."""
        if self.old is not None and spec.dtype != self.old:
            raise RefusedOp(f"cast expects {self.old}, but the tensor is {spec.dtype}", code="RK352")
        both_floats = spec.dtype in CASTABLE_FLOATS and self.dtype in CASTABLE_FLOATS
        if not both_floats and not is_exact_cast(spec.dtype, self.dtype):
            title = f"cannot cast {spec.dtype} to {self.dtype}: values would be lost"
            raise RefusedOp(title, "floats can be cast to floats, and integers to wider integers", code="RK352")
        return (Cast(self.dtype),)

    def keeps_shape(self, spec: TensorSpec) -> bool:
        """Return False: the dtype shows whether a cast was done."""
        return False


@dataclass(frozen=True, slots=True)
class ScaleOp(Op):
    """Multiply every element by a number, rounded to the tensor's dtype."""

    factor: float
    name: ClassVar[str] = "scale"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one multiplication."""
        _check_plain_float(self.name, spec)
        return (Scale(self.factor),)


@dataclass(frozen=True, slots=True)
class AddOp(Op):
    """Add a number to every element, rounded to the tensor's dtype."""

    term: float
    name: ClassVar[str] = "add"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one addition."""
        _check_plain_float(self.name, spec)
        return (Add(self.term),)


def _check_plain_float(name: str, spec: TensorSpec) -> None:
    if spec.dtype not in PLAIN_FLOATS:
        raise RefusedOp(
            f"{name} needs {', '.join(PLAIN_FLOATS[:-1])} or {PLAIN_FLOATS[-1]}, got {spec.dtype}", code="RK352"
        )
