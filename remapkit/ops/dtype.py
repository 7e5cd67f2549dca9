"""Operations on values: casts, scales, additions."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

from remapkit.ops.base import Op, RefusedOp
from remapkit.ops.steps import Add, Cast, OpStep, Scale
from remapkit.tensors.spec import DTYPE_BITS, TensorSpec

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
"""The dtypes that are cast into one another."""


EXACT = {"BF16": ("F32", "F64"), "F16": ("F32", "F64"), "F32": ("F64",)}


_INTEGERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")


def is_exact(old: str, new: str) -> bool:
    """Whether a cast keeps every value.

    >>> is_exact("BF16", "F32"), is_exact("F32", "BF16"), is_exact("I32", "I64")
    (True, False, True)
    """
    if old == new:
        return True
    if old in _INTEGERS and new in _INTEGERS:
        signed = old[0] == new[0] or new[0] == "I"
        return signed and DTYPE_BITS[new] > DTYPE_BITS[old]
    return new in EXACT.get(old, ())


def check_value(value: float, dtype: str) -> None:
    """Refuse a value that a dtype has no number for."""
    if dtype in FLOATS:
        if abs(value) > _LARGEST[dtype]:
            raise RefusedOp(f"{value} is beyond the largest {dtype}, {_LARGEST[dtype]:g}")
        return
    low, high = get_integer_range(dtype)
    if value != int(value) or not low <= value <= high:
        raise RefusedOp(f"{value} is no {dtype}")


_LARGEST = {
    "F64": sys.float_info.max,
    "F32": float((2 - 2**-23) * 2.0**127),
    "F16": 65504.0,
    "BF16": float((2 - 2**-7) * 2.0**127),
    "F8_E4M3": 448.0,
    "F8_E5M2": 57344.0,
    "F8_E4M3FNUZ": 240.0,
    "F8_E5M2FNUZ": 57344.0,
}
"""The largest finite value of each float."""


def get_integer_range(dtype: str) -> tuple[int, int]:
    """The smallest and the largest value of an integer dtype (of BOOL: 0 and 1)."""
    if dtype == "BOOL":
        return 0, 1
    if dtype not in _INTEGERS:
        raise RefusedOp(f"there are no plain numbers of {dtype}")
    bits = DTYPE_BITS[dtype]
    return (0, (1 << bits) - 1) if dtype[0] == "U" else (-(1 << bits - 1), (1 << bits - 1) - 1)


@dataclass(frozen=True, slots=True)
class CastOp(Op):
    """Another dtype, between floats; integers only into wider ones. `old` is the dtype that it must have had."""

    dtype: str
    old: str | None = None
    name: ClassVar[str] = "cast"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """One cast."""
        if self.old is not None and spec.dtype != self.old:
            raise RefusedOp(f"cast is from {self.old}, and the tensor is {spec.dtype}", code="RK352")
        both_floats = spec.dtype in FLOATS and self.dtype in FLOATS
        if not both_floats and not is_exact(spec.dtype, self.dtype):
            title = f"{spec.dtype} -> {self.dtype} is no cast: values would be lost"
            raise RefusedOp(title, "casts go between floats, and from integers to wider integers", code="RK352")
        return (Cast(self.dtype),)

    def keeps_shape(self, spec: TensorSpec) -> bool:
        """A cast shows in the dtype."""
        return False


@dataclass(frozen=True, slots=True)
class ScaleOp(Op):
    """Every element times a number, rounded to the tensor's dtype."""

    factor: float
    name: ClassVar[str] = "scale"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """One multiplication."""
        _check_plain_float(self.name, spec)
        return (Scale(self.factor),)


@dataclass(frozen=True, slots=True)
class AddOp(Op):
    """Every element plus a number, rounded to the tensor's dtype."""

    term: float
    name: ClassVar[str] = "add"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """One addition."""
        _check_plain_float(self.name, spec)
        return (Add(self.term),)


def _check_plain_float(name: str, spec: TensorSpec) -> None:
    if spec.dtype not in FLOATS[:4]:
        raise RefusedOp(f"{name} is for {', '.join(FLOATS[:4])}, and the tensor is {spec.dtype}", code="RK352")
