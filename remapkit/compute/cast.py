"""Casts and arithmetic on blocks of raw elements, as torch does them.

Arithmetic on the 16-bit floats is done in single precision and rounded once.
"""

from __future__ import annotations

import numpy as np

from remapkit.ops.combine import Combine
from remapkit.ops.steps import Add, Cast, Scale
from remapkit.tensors.elements import Array, decode_elements, encode_elements
from remapkit.tensors.spec import TensorSpec


def calculate_block(step: Cast | Scale | Add, block: Array, dtype: str) -> Array:
    """Apply one step to a block of raw elements of `dtype`; return raw elements."""
    if not block.ndim:  # numpy turns arrays without a dimension into scalars
        return calculate_block(step, block.reshape(1), dtype).reshape(())
    if isinstance(step, Cast):
        return cast_elements(block, dtype, step.dtype)
    values = decode_elements(block, dtype)
    if dtype == "F16":
        values = values.astype("<f4")
    with np.errstate(all="ignore"):
        if isinstance(step, Scale):
            return encode_elements(values * values.dtype.type(step.factor), dtype)
        return encode_elements(values + values.dtype.type(step.term), dtype)


def combine_blocks(combine: Combine, block: Array, spread: Array, specs: tuple[TensorSpec, ...]) -> Array:
    """Multiply or divide raw elements by others, whose shape broadcasts; `specs` are those of both and the result."""
    first, second, made = specs
    wide = "<f8" if combine.find_precision(first, second) == "F64" else "<f4"
    with np.errstate(all="ignore"):
        values, by = (
            decode_elements(np.atleast_1d(raw), spec.dtype).astype(wide)
            for raw, spec in ((block, first), (spread, second))
        )
        by = by / by.dtype.type(combine.find_over(first)) if combine.over != 1 else by
        values = values / by if combine.kind == "divide" else values * by
        return encode_elements(values, made.dtype).reshape(block.shape)


def square_elements(block: Array, dtype: str) -> Array:
    """Return the squares of raw elements in double precision."""
    values = decode_elements(np.atleast_1d(block), dtype).astype("<f8").reshape(block.shape)
    with np.errstate(all="ignore"):
        squares: Array = values * values
    return squares


def divide_norms(raw: Array, squares: Array, specs: tuple[TensorSpec, TensorSpec]) -> Array:
    """Return raw lengths divided by norms, whose `squares` have their shape; `specs` are before and after."""
    lengths = decode_elements(np.atleast_1d(raw), specs[0].dtype).astype("<f8").reshape(squares.shape)
    with np.errstate(all="ignore"):
        return encode_elements(np.atleast_1d(lengths / np.sqrt(squares)), specs[1].dtype).reshape(squares.shape)


def cast_elements(block: Array, old: str, new: str) -> Array:
    """Cast raw elements from one dtype to another, rounded to the nearest, ties to even.

    >>> cast_elements(np.array([1.0, 3.14159], "<f4").view("<u4"), "F32", "BF16")
    array([16256, 16457], dtype=uint16)
    """
    return block if old == new else encode_elements(decode_elements(block, old), new)
