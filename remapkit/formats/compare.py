"""Compares the values of two checkpoints tensor by tensor, streaming: only bytes that differ are decoded.

No torch: `tensors/elements.py` decodes the floats that numpy lacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from remapkit.files.source_file import CHUNK, split_evenly
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import StateDictSpec, TensorSpec

if TYPE_CHECKING:
    import numpy as np

_ELEMENTS = 1 << 16
"""The number of elements compared at once."""


class Contents(Protocol):
    """Anything comparable: a checkpoint, or a checkpoint with rules applied to it."""

    def header(self) -> StateDictSpec:
        """Return names, dtypes and shapes."""
        ...

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield the tensor's bytes, row-major and little-endian, in pieces."""
        ...


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between two tensors.

    `max_abs` is the largest |a - b|: 0.0 if all values are equal, `inf` if one is infinite and the other is not, and
    None if the shapes differ. A NaN equals a NaN of any payload; `nans` counts the elements where only one of the two
    is NaN, and `max_abs` is then NaN.
    """

    a: str
    b: str
    spec_a: TensorSpec
    spec_b: TensorSpec
    max_abs: float | None
    differing: int = 0
    nans: int = 0
    bytes_equal: bool = False

    @property
    def identical(self) -> bool:
        """Whether dtype, shape and bytes are the same."""
        return self.bytes_equal and self.spec_a == self.spec_b

    def is_within(self, tolerance: float = 0.0) -> bool:
        """Return whether the shapes are the same and no two values differ by more than `tolerance`."""
        return self.max_abs is not None and not math.isnan(self.max_abs) and self.max_abs <= tolerance

    def describe(self) -> str:
        """Return one line that says what differs, and by how much."""
        parts = []
        if self.spec_a.shape != self.spec_b.shape:
            return f"shape {list(self.spec_a.shape)} and {list(self.spec_b.shape)}"
        if self.spec_a.dtype != self.spec_b.dtype:
            parts.append(f"{self.spec_a.dtype} and {self.spec_b.dtype}")
        if self.bytes_equal:
            parts.append("identical" if not parts else "same bytes")
        elif self.max_abs == 0:
            parts.append("equal values, other bytes")
        else:
            parts.append(f"{self.differing} of {self.spec_a.numel} values, max |Δ| = {self.max_abs:g}")
        if self.nans:
            parts.append(f"{self.nans} NaN in one only")
        return ", ".join(parts)


def compare(a: Contents, b: Contents, names: Iterable[tuple[str, str]]) -> Iterator[Difference]:
    """Compare pairs of tensors (a name in `a`, a name in `b`) one at a time, in bounded memory."""
    for name_a, name_b in names:
        yield compare_tensor(a, name_a, b, name_b)


def compare_tensor(a: Contents, name_a: str, b: Contents, name_b: str) -> Difference:
    """Compare one tensor of `a` with one of `b`."""
    spec_a, spec_b = a.header()[name_a], b.header()[name_b]
    if spec_a.shape != spec_b.shape:
        return Difference(name_a, name_b, spec_a, spec_b, None)
    if spec_a.dtype == spec_b.dtype and has_same_bytes(a, name_a, b, name_b):
        return Difference(name_a, name_b, spec_a, spec_b, 0.0, bytes_equal=True)
    return _compare_values(a, name_a, b, name_b)


def has_same_bytes(a: Contents, name_a: str, b: Contents, name_b: str) -> bool:
    """Return whether two tensors of one dtype and shape have the same bytes."""
    return are_equal_streams(a.chunks(name_a), b.chunks(name_b))


def are_equal_streams(a: Iterator[memoryview], b: Iterator[memoryview]) -> bool:
    """Return whether two streams of equal length, in pieces of any size, are equal; stops at a difference."""
    pairs = zip(split_evenly(a, CHUNK), split_evenly(b, CHUNK), strict=True)
    # Python compares memoryviews element by element, but bytes with one memcmp.
    return all(piece_a.tobytes() == piece_b.tobytes() for piece_a, piece_b in pairs)


def _compare_values(a: Contents, name_a: str, b: Contents, name_b: str) -> Difference:
    import numpy as np

    spec_a, spec_b = a.header()[name_a], b.header()[name_b]
    worst, differing, nans = 0.0, 0, 0
    width_a, width_b = (_ELEMENTS * DTYPE_BITS[spec.dtype] // 8 for spec in (spec_a, spec_b))
    pieces_a, pieces_b = split_evenly(a.chunks(name_a), width_a), split_evenly(b.chunks(name_b), width_b)
    for piece_a, piece_b in zip(pieces_a, pieces_b, strict=True):
        deltas, only_one = _compute_deltas(piece_a, spec_a.dtype, piece_b, spec_b.dtype)
        nans += int(only_one.sum())
        differing += int(np.count_nonzero(deltas)) + int(only_one.sum())
        worst = max(worst, float(deltas.max(initial=0.0)))
    return Difference(name_a, name_b, spec_a, spec_b, math.nan if nans else worst, differing, nans)


def _compute_deltas(a: memoryview, dtype_a: str, b: memoryview, dtype_b: str) -> tuple[np.ndarray, np.ndarray]:
    """Return |a - b| (0 where both are NaN or equal infinities), and a mask where only one of them is NaN."""
    import numpy as np

    x, y = decode_tensor(a, dtype_a), decode_tensor(b, dtype_b)
    if x.dtype == y.dtype and x.dtype.kind in "iu":
        # 64-bit integers do not fit into a float: their distance is exact in unsigned arithmetic.
        unsigned = x.astype("u8"), y.astype("u8")
        distance = np.where(x > y, unsigned[0] - unsigned[1], unsigned[1] - unsigned[0])
        return distance.astype("f8"), np.zeros(x.shape, dtype=bool)
    wide = "c16" if "c" in (x.dtype.kind, y.dtype.kind) else "f8"
    with np.errstate(invalid="ignore", over="ignore"):
        x, y = x.astype(wide), y.astype(wide)
        nan_x, nan_y = np.isnan(x), np.isnan(y)
        distance = np.abs(x - y)
    distance[(x == y) | nan_x | nan_y] = 0.0
    return distance, nan_x != nan_y


def decode_tensor(data: memoryview, dtype: str) -> np.ndarray:
    """Decode packed elements: to numpy's own dtype if it has one, else to float32.

    >>> decode_tensor(memoryview(bytes([0x80, 0x3F, 0x00, 0xC0])), "BF16").tolist()
    [1.0, -2.0]
    >>> decode_tensor(memoryview(bytes([0x38, 0x7E])), "F8_E4M3").tolist()
    [1.0, 448.0]
    """
    import numpy as np

    from remapkit.tensors.elements import choose_word, decode_elements

    bits = DTYPE_BITS[dtype]
    if bits < 8:
        return decode_elements(_unpack_codes(np.frombuffer(data, "u1"), bits), dtype)
    return decode_elements(np.frombuffer(data, choose_word(dtype)), dtype)


def _unpack_codes(raw: np.ndarray, bits: int) -> np.ndarray:
    """Unpack elements of less than a byte, lowest bits first."""
    import numpy as np

    stream = np.unpackbits(raw, bitorder="little")
    elements = stream[: len(stream) // bits * bits].reshape(-1, bits)
    return np.packbits(elements, axis=1, bitorder="little").reshape(-1)
