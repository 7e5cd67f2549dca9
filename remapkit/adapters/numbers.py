"""Read the one number that a tensor holds, such as an alpha, from its bytes, and calculate with it as files do."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

from remapkit.tensors.spec import TensorSpec

_FORMS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}
_FLOATS = ("F64", "F32", "F16", "BF16")


def decode_number(data: bytes, spec: TensorSpec) -> float | None:
    """Return the number of a tensor of one element; None for other shapes and dtypes.

    >>> decode_number(bytes.fromhex("8040"), TensorSpec("BF16", ()))
    4.0
    """
    if spec.numel != 1:
        return None
    if spec.dtype == "BF16":  # the upper half of an F32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    form = _FORMS.get(spec.dtype)
    return None if form is None else float(struct.unpack(form, data)[0])


def round_number(number: float, dtype: str) -> float:
    """Return the nearest number that a float dtype has; infinity where it is too large.

    >>> round_number(261.0, "BF16"), round_number(261.0, "F16")
    (260.0, 261.0)
    """
    try:
        if dtype != "BF16":
            return float(struct.unpack(_FORMS[dtype], struct.pack(_FORMS[dtype], number))[0])
        (bits,) = struct.unpack("<I", struct.pack("<f", number))
    except OverflowError:
        return math.copysign(math.inf, number)
    if not math.isfinite(number):
        return number
    bits += 0x7FFF + (bits >> 16 & 1)  # to the nearest, ties to even
    return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0])


def is_exact(number: float, by: float, wanted: Fraction, dtype: str) -> bool:
    """Return whether a tensor of this number, multiplied by another one as `scale` does it, is what it must be.

    >>> is_exact(87.0, 3.0, Fraction(261), "BF16"), is_exact(87.0, 3.0, Fraction(261), "F32")
    (False, True)
    """
    if dtype not in _FLOATS:
        return by == 1 and number == wanted
    wide = "F64" if dtype == "F64" else "F32"
    made = round_number(round_number(number * round_number(by, wide), wide), dtype)
    return math.isfinite(made) and Fraction(made) == wanted
