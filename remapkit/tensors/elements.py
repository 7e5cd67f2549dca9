"""Converts raw elements to numbers and back with numpy alone, bit for bit like torch, except for NaN payloads.

bfloat16 and the 8-bit floats are computed here rather than by a library: the results must be those of torch, which
saturates float8_e4m3fn at 448 where others return NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from remapkit.tensors.dtypes import DTYPES

Array = np.ndarray

WORDS: Mapping[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
    16: np.dtype("V16"),
}
"""Opaque elements by their width in bytes: elements that are only moved keep every bit."""


def choose_word(dtype: str) -> np.dtype[Any]:
    """Return the opaque element of a dtype."""
    return WORDS[DTYPES[dtype].bits // 8]


def decode_elements(raw: Array, dtype: str) -> Array:
    """Decode opaque elements exactly: to numpy's own dtype if it has one, else to float32.

    >>> decode_elements(np.array([0x3F80, 0xC000], "<u2"), "BF16").tolist()
    [1.0, -2.0]
    """
    numpy_name = DTYPES[dtype].numpy
    if numpy_name is not None:
        return raw.view(numpy_name)
    if dtype == "BF16":  # the upper half of a float32
        return (raw.astype("<u4") << np.uint32(16)).view("<f4")
    values: Array = np.take(_make_decoding(dtype), raw)
    return values


@np.errstate(all="ignore")  # overflow gives infinity, as in torch, without a warning
def encode_elements(values: Array, dtype: str) -> Array:
    """Encode numbers as opaque elements, rounded to the nearest, ties to even.

    As in torch, narrow floats are converted from single precision: a float64 is rounded to float32 first.

    >>> encode_elements(np.array([1.0, 3.14159]), "BF16").tolist()
    [16256, 16457]
    >>> encode_elements(np.array([1e9]), "F8_E4M3").tolist() == [0x7E]
    True
    """
    row = DTYPES[dtype]
    if row.kind == "float" and dtype != "F64":
        values = np.ascontiguousarray(values).astype("<f4", copy=False)
    if row.numpy is not None:
        return values.astype(row.numpy, copy=False).view(choose_word(dtype))
    bits = values.view("<u4")
    if dtype == "BF16":
        half = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)  # a tie rounds up only to an even result
        return np.where(np.isnan(values), np.uint32(0x7FC0), (bits + half) >> np.uint32(16)).astype("<u2")
    carry = (bits & np.uint32(0xFFFF)) + np.uint32(0xFFFF)  # has bit 16 set if any of the lower 16 bits is set
    codes: Array = np.take(_make_encoding(dtype), (bits | carry) >> np.uint32(16))
    return codes


@cache
def _make_decoding(dtype: str) -> Array:
    """Return the value of each bit pattern of a small float."""
    row = DTYPES[dtype]
    return np.array([row.decode(code) for code in range(1 << row.bits)], "<f4")


@cache
@np.errstate(all="ignore")
def _make_encoding(dtype: str) -> Array:
    """Return the 8-bit float for each float32, by its upper 16 bits, the last of them set if any lower bit is set.

    That is rounding to odd, with 7 bits of mantissa. Rounding its result to the nearest gives the same as rounding
    once, because it keeps at least two bits more than the 8-bit floats have: a value stays on its side of the
    midpoint between two neighbors, or on the midpoint.
    """
    row = DTYPES[dtype]
    inputs = (np.arange(1 << 16, dtype="<u4") << np.uint32(16)).view("<f4")
    count = row.largest_code + 1
    finite = _make_decoding(dtype)[:count].astype("<f8")  # codes of positive values are in the order of the values
    midpoints = np.append((finite[:-1] + finite[1:]) / 2, (3 * finite[-1] - finite[-2]) / 2)
    below = np.searchsorted(midpoints, np.abs(inputs), "left")
    codes = np.where(below % 2, np.searchsorted(midpoints, np.abs(inputs), "right"), below)
    # Above the largest value, `count` is infinity (ieee) or NaN (fnuz); torch saturates without an infinity (fn).
    if row.specials == "fn":
        codes = np.minimum(codes, count - 1)
    negative = np.signbit(inputs) & ((codes != 0) | (row.specials != "fnuz"))
    codes = np.where(np.isnan(inputs), 0x80 if row.specials == "fnuz" else 0x7F, codes | (negative * 0x80))
    return codes.astype("u1")
