"""Casts and arithmetic on raw elements with numpy, bit for bit what torch does (but for the payloads of NaN).

Arithmetic on the 16-bit floats is done in single precision and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from remapkit.ops.steps import Add, Cast, Scale
from remapkit.tensors.spec import DTYPE_BITS

WORDS: Mapping[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
    16: np.dtype("V16"),
}
"""Opaque elements by their width in bytes."""

_NATIVE = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "u1",
}
Array = np.ndarray


def choose_word(dtype: str) -> np.dtype[Any]:
    """The opaque element of a dtype."""
    return WORDS[DTYPE_BITS[dtype] // 8]


def calculate_block(step: Cast | Scale | Add, block: Array, dtype: str) -> Array:
    """A block of raw elements of `dtype` after one step, raw again."""
    if not block.ndim:  # numpy makes numbers of its own of arrays without a dimension
        return calculate_block(step, block.reshape(1), dtype).reshape(())
    if isinstance(step, Cast):
        return cast_elements(block, dtype, step.dtype)
    with np.errstate(all="ignore"):
        values = _decode_values(block, dtype)
        number = values.dtype.type(step.factor if isinstance(step, Scale) else step.term)
        done = values * number if isinstance(step, Scale) else values + number
        return _encode_raw(done, dtype)


def cast_elements(block: Array, old: str, new: str) -> Array:
    """Raw elements of one dtype as raw elements of another, rounded to the nearest, ties to even.

    >>> cast_elements(np.array([1.0, 3.14159], "<f4").view("<u4"), "F32", "BF16")
    array([16256, 16457], dtype=uint16)
    """
    if old == new:
        return block
    if old.startswith("F8") or new.startswith("F8"):
        from remapkit.compute.torch_eager import cast_block

        return cast_block(block, old, new)
    if old in ("BF16", "F16", "F32", "F64"):
        with np.errstate(all="ignore"):
            return _encode_raw(_decode_values(block, old), new)
    return block.view(_NATIVE[old]).astype(_NATIVE[new]).view(choose_word(new))


def _decode_values(block: Array, dtype: str) -> Array:
    """As numbers to calculate with: single precision for the narrow floats, as torch does."""
    if dtype == "BF16":
        return (block.astype("<u4") << np.uint32(16)).view("<f4")
    values: Array = block.view(_NATIVE[dtype])
    return values.astype("<f4") if dtype == "F16" else values


def _encode_raw(values: Array, dtype: str) -> Array:
    if dtype == "F64":
        return values.astype("<f8").view("<u8")
    values = np.ascontiguousarray(values).astype("<f4", copy=False)  # the narrow floats are made of single precision
    if dtype == "F32":
        return values.view("<u4")
    if dtype == "F16":
        return values.astype("<f2").view("<u2")
    bits = values.view("<u4")
    rounded = (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype("<u2")


def encode_values(values: Array, dtype: str) -> Array:
    """Numbers (float64 or int64) as raw elements of a dtype."""
    if dtype in ("BF16", "F16", "F32", "F64") or dtype.startswith("F8"):
        return cast_elements(np.ascontiguousarray(values).astype("<f8").view("<u8"), "F64", dtype)
    return values.astype(_NATIVE[dtype]).view(choose_word(dtype))
