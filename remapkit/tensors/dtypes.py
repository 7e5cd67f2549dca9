"""The dtypes of checkpoints: one row each, from which every other table of dtypes is derived. No torch, no numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DtypeInfo:
    """One dtype: its safetensors name, its width, and its names in other libraries (None if they lack it).

    `numpy` is a dtype that can calculate with the elements directly. `storage` is torch's class of typed storages,
    which pickles name. A float has `exponent_bits` and `mantissa_bits`, and `specials` says which of its bit patterns
    are not finite numbers: `ieee` those of the largest exponent (infinities and NaN), `fn` only all ones (NaN),
    `fnuz` only that of -0 (NaN; zero is unsigned), `finite` none. The last three are torch's suffixes.
    """

    name: str
    bits: int
    kind: Literal["bool", "unsigned", "signed", "float", "complex"]
    torch: str | None = None
    numpy: str | None = None
    storage: str | None = None
    exponent_bits: int = 0
    mantissa_bits: int = 0
    specials: Literal["ieee", "fn", "fnuz", "finite"] = "ieee"

    @property
    def is_signed(self) -> bool:
        """Whether it has negative numbers: all floats except `F8_E8M0` have a sign bit."""
        if self.kind == "float":
            return 1 + self.exponent_bits + self.mantissa_bits == self.bits
        return self.kind in ("signed", "complex")

    @property
    def largest_code(self) -> int:
        """The bit pattern of the largest finite value of a float."""
        above = {"ieee": 1 << self.mantissa_bits, "fn": 1}.get(self.specials, 0)
        return (1 << (self.exponent_bits + self.mantissa_bits)) - 1 - above

    @property
    def largest(self) -> float:
        """The largest finite value of a float."""
        return self.decode(self.largest_code)

    def decode(self, code: int) -> float:
        """Return the value of a bit pattern of a float.

        >>> DTYPES["BF16"].decode(0x3FC0), DTYPES["F8_E4M3"].largest, DTYPES["F8_E5M2"].decode(0xFC)
        (1.5, 448.0, -inf)
        """
        negative, magnitude = divmod(code, 1 << (self.exponent_bits + self.mantissa_bits))
        sign = -1.0 if negative else 1.0
        if magnitude > self.largest_code or (self.specials == "fnuz" and negative and not magnitude):
            infinite = self.specials == "ieee" and magnitude == self.largest_code + 1
            return sign * math.inf if infinite else math.nan
        exponent, fraction = divmod(magnitude, 1 << self.mantissa_bits)
        bias = (1 << (self.exponent_bits - 1)) - (self.specials != "fnuz")
        if exponent or not self.mantissa_bits:  # F8_E8M0, without a mantissa, has no subnormals and no zero
            fraction += 1 << self.mantissa_bits
        else:
            exponent = 1  # subnormals have the exponent of the smallest normal numbers
        return sign * math.ldexp(fraction, exponent - bias - self.mantissa_bits)


DTYPES: Mapping[str, DtypeInfo] = {
    row.name: row
    for row in (
        DtypeInfo("BOOL", 8, "bool", "bool", "u1", "BoolStorage"),
        DtypeInfo("F4", 4, "float", None, None, None, 2, 1, "finite"),
        DtypeInfo("F6_E2M3", 6, "float", None, None, None, 2, 3, "finite"),
        DtypeInfo("F6_E3M2", 6, "float", None, None, None, 3, 2, "finite"),
        DtypeInfo("U8", 8, "unsigned", "uint8", "u1", "ByteStorage"),
        DtypeInfo("I8", 8, "signed", "int8", "i1", "CharStorage"),
        DtypeInfo("F8_E5M2", 8, "float", "float8_e5m2", None, None, 5, 2, "ieee"),
        DtypeInfo("F8_E4M3", 8, "float", "float8_e4m3fn", None, None, 4, 3, "fn"),
        DtypeInfo("F8_E8M0", 8, "float", "float8_e8m0fnu", None, None, 8, 0, "fn"),
        DtypeInfo("F8_E4M3FNUZ", 8, "float", "float8_e4m3fnuz", None, None, 4, 3, "fnuz"),
        DtypeInfo("F8_E5M2FNUZ", 8, "float", "float8_e5m2fnuz", None, None, 5, 2, "fnuz"),
        DtypeInfo("I16", 16, "signed", "int16", "<i2", "ShortStorage"),
        DtypeInfo("U16", 16, "unsigned", "uint16", "<u2"),
        DtypeInfo("F16", 16, "float", "float16", "<f2", "HalfStorage", 5, 10),
        DtypeInfo("BF16", 16, "float", "bfloat16", None, "BFloat16Storage", 8, 7),
        DtypeInfo("I32", 32, "signed", "int32", "<i4", "IntStorage"),
        DtypeInfo("U32", 32, "unsigned", "uint32", "<u4"),
        DtypeInfo("F32", 32, "float", "float32", "<f4", "FloatStorage", 8, 23),
        DtypeInfo("C64", 64, "complex", "complex64", "<c8", "ComplexFloatStorage"),
        DtypeInfo("F64", 64, "float", "float64", "<f8", "DoubleStorage", 11, 52),
        DtypeInfo("I64", 64, "signed", "int64", "<i8", "LongStorage"),
        DtypeInfo("U64", 64, "unsigned", "uint64", "<u8"),
        DtypeInfo("C128", 128, "complex", "complex128", "<c16", "ComplexDoubleStorage"),
    )
}
"""All dtypes by safetensors name; `C128` occurs only in `.pth` files."""

DTYPE_BITS: Mapping[str, int] = {row.name: row.bits for row in DTYPES.values()}
"""The width of an element in bits."""

_FLOATS = [row for row in DTYPES.values() if row.kind == "float"]

PLAIN_FLOATS = tuple(row.name for row in _FLOATS if row.bits >= 16)
"""The floats that support arithmetic."""

CASTABLE_FLOATS = tuple(row.name for row in _FLOATS if row.bits >= 8 and row.is_signed)
"""The floats that can be cast to one another. `F8_E8M0` is for scales, and elements of narrower ones share bytes."""

INTEGERS = tuple(row.name for row in DTYPES.values() if row.kind in ("signed", "unsigned"))

BY_TORCH_NAME: Mapping[str, str] = {row.torch: row.name for row in DTYPES.values() if row.torch}
"""The safetensors name of each torch dtype."""

PACKED_TORCH_NAMES: Mapping[str, str] = {"F4": "float4_e2m1fn_x2"}
"""The torch dtypes whose elements are bytes of two: the last dimension of a shape in torch is half of the other."""

BY_STORAGE: Mapping[str, str] = {row.storage: row.name for row in DTYPES.values() if row.storage}
"""The dtype of the elements of each of torch's typed storages."""


def is_exact_cast(old: str, new: str) -> bool:
    """Return whether a cast keeps every value: for floats the range, precision, infinities and negative zero.

    >>> is_exact_cast("BF16", "F32"), is_exact_cast("F32", "BF16"), is_exact_cast("I32", "I64")
    (True, False, True)
    """
    a, b = DTYPES[old], DTYPES[new]
    if old == new:
        return True
    if old in INTEGERS and new in INTEGERS:
        return b.bits > a.bits and (b.is_signed or not a.is_signed)
    if old not in CASTABLE_FLOATS or new not in CASTABLE_FLOATS:
        return False
    keeps_range = b.largest >= a.largest and b.decode(1) <= a.decode(1) and b.mantissa_bits >= a.mantissa_bits
    keeps_infinity = b.specials == "ieee" or a.specials != "ieee"
    return keeps_range and keeps_infinity and (b.specials != "fnuz" or a.specials == "fnuz")


def get_integer_range(dtype: str) -> tuple[int, int]:
    """Return the smallest and the largest value of an integer dtype, or of BOOL.

    >>> get_integer_range("I8"), get_integer_range("BOOL")
    ((-128, 127), (0, 1))
    """
    row = DTYPES[dtype]
    if row.kind == "bool":
        return 0, 1
    return (-(1 << (row.bits - 1)), (1 << (row.bits - 1)) - 1) if row.is_signed else (0, (1 << row.bits) - 1)
