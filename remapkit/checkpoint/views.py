"""Tensors as views of storages: which are one stretch of bytes, which fit, and how the others are gathered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from remapkit.checkpoint.faults import FileFault, shown, sized
from remapkit.checkpoint.pickle import Tensor
from remapkit.spec import DTYPE_BITS, TensorSpec

if TYPE_CHECKING:
    import numpy as np

EXPAND_FREE = 64 << 20
"""Bytes by which views may repeat their storages without anybody asking: small expanded buffers are common."""


def is_contiguous(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements lie one after another, row-major; strides of dimensions of size 1 mean nothing.

    >>> is_contiguous((2, 3), (3, 1)), is_contiguous((2, 3), (1, 2)), is_contiguous((2, 1), (1, 7))
    (True, False, True)
    """
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size == 0:
            return True
        if size != 1:
            if step != expected:
                return False
            expected *= size
    return True


def span(tensor: Tensor) -> int:
    """One past the last element of the storage that the view touches; 0 where it has no elements."""
    if 0 in tensor.shape:
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    return tensor.offset + last + 1


def check_view(fqn: str, tensor: Tensor, storage_bytes: int) -> TensorSpec:
    """The spec of a view that lies within its storage; raises `FileFault` (RK405) for one that does not."""
    if len(tensor.shape) != len(tensor.stride):
        raise FileFault("RK405", f"{len(tensor.shape)} dimensions, but {len(tensor.stride)} strides", key=fqn)
    for name, values in (("offset", (tensor.offset,)), ("size", tensor.shape), ("stride", tensor.stride)):
        if any(value < 0 for value in values):
            raise FileFault("RK405", f"a negative {name}: {min(values)}", key=fqn)
        if any(value >= 1 << 63 for value in values):
            raise FileFault("RK405", f"the {name} {shown(str(max(values)), 40)} overflows 64 bits", key=fqn)
    itemsize = DTYPE_BITS[tensor.dtype] // 8
    # A 0 among the sizes does not help: other readers multiply from the left.
    if math.prod(size for size in tensor.shape if size) * itemsize >= 1 << 63:
        raise FileFault("RK405", f"the shape {shown(str(list(tensor.shape)), 80)} overflows 64 bits", key=fqn)
    if span(tensor) * itemsize > storage_bytes:
        title = (
            f"the view ends at byte {span(tensor) * itemsize} of storage {shown(tensor.storage.key)!r}, "
            f"which is {storage_bytes} bytes"
        )
        raise FileFault("RK405", title, key=fqn)
    return TensorSpec(tensor.dtype, tensor.shape)


def check_expansion(fqn: str, tensor: Tensor, spec: TensorSpec, storage_bytes: int) -> None:
    """Raise `FileFault` (RK410) for a view that repeats its storage into much more than it is."""
    if spec.nbytes > storage_bytes + EXPAND_FREE:
        zero = 0 in [step for size, step in zip(tensor.shape, tensor.stride, strict=True) if size > 1]
        why = "stride 0" if zero else "overlapping strides"
        what = f"a {_bytes(storage_bytes)} storage into {sized(spec.nbytes)} ({why})"
        title = f"tensor {shown(fqn)!r} repeats {what}; refused"
        raise FileFault("RK410", title, key=fqn, help=("--allow-expand reads it all the same",))


def _bytes(nbytes: int) -> str:
    return f"{nbytes}-byte" if nbytes < 1000 else sized(nbytes)


def gather(buffer: memoryview, tensor: Tensor, size: int) -> Iterator[memoryview]:
    """The bytes of a strided view, contiguous and row-major, in pieces of about `size` bytes.

    `buffer` is the storage. Elements are moved as opaque words of their width, so every dtype comes through to the
    bit.
    """
    import numpy as np

    itemsize = DTYPE_BITS[tensor.dtype] // 8
    word = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "V16"}[itemsize]
    base = np.frombuffer(buffer, dtype="u1")
    if 0 in tensor.shape:
        return
    needed = base[tensor.offset * itemsize : span(tensor) * itemsize]
    flat = np.frombuffer(needed, dtype=word)
    # Without the dimensions of size 1: numpy before 2 has at most 32.
    kept = [(size, step * itemsize) for size, step in zip(tensor.shape, tensor.stride, strict=True) if size > 1]
    shape, strides = [size for size, _ in kept], [step for _, step in kept]
    view = np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False)
    for piece in _pieces(view, max(1, size // itemsize)):
        yield np.ascontiguousarray(piece).reshape(-1).view("u1").data


def _pieces(view: np.ndarray, elements: int) -> Iterator[np.ndarray]:
    """A view in row-major pieces of at most `elements` elements."""
    axis, inner = view.ndim, 1
    while axis > 0 and inner * view.shape[axis - 1] <= elements:
        axis -= 1
        inner *= view.shape[axis]
    if axis == 0:
        yield view
        return
    import numpy as np

    rows = max(1, elements // inner)
    for index in np.ndindex(*view.shape[: axis - 1]):
        for start in range(0, view.shape[axis - 1], rows):
            yield view[(*index, slice(start, start + rows))]
