"""Tensors as views of storages: which are one stretch of bytes, which fit, and how the others are gathered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING

from remapkit.diagnostics.wording import format_bytes, show_key
from remapkit.files.errors import FileFault
from remapkit.formats.pickle.values import Tensor
from remapkit.tensors.spec import DTYPE_BITS, TensorSpec

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


def find_view_end(tensor: Tensor) -> int:
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
            raise FileFault("RK405", f"the {name} {show_key(str(max(values)), 40)} overflows 64 bits", key=fqn)
    itemsize = DTYPE_BITS[tensor.dtype] // 8
    # A 0 among the sizes does not help: other readers multiply from the left.
    if math.prod(size for size in tensor.shape if size) * itemsize >= 1 << 63:
        raise FileFault("RK405", f"the shape {show_key(str(list(tensor.shape)), 80)} overflows 64 bits", key=fqn)
    if find_view_end(tensor) * itemsize > storage_bytes:
        title = (
            f"the view ends at byte {find_view_end(tensor) * itemsize} of storage {show_key(tensor.storage.key)!r}, "
            f"which is {storage_bytes} bytes"
        )
        raise FileFault("RK405", title, key=fqn)
    return TensorSpec(tensor.dtype, tensor.shape)


def check_expansion(fqn: str, tensor: Tensor, spec: TensorSpec, storage_bytes: int) -> None:
    """Raise `FileFault` (RK410) for a view that repeats its storage into much more than it is."""
    if spec.nbytes > storage_bytes + EXPAND_FREE:
        zero = 0 in [step for size, step in zip(tensor.shape, tensor.stride, strict=True) if size > 1]
        why = "stride 0" if zero else "overlapping strides"
        what = f"a {_format_bytes(storage_bytes)} storage into {format_bytes(spec.nbytes)} ({why})"
        title = f"tensor {show_key(fqn)!r} repeats {what}; refused"
        raise FileFault("RK410", title, key=fqn, help=("--allow-expand reads it all the same",))


def _format_bytes(nbytes: int) -> str:
    return f"{nbytes}-byte" if nbytes < 1000 else format_bytes(nbytes)


Read = Callable[[int, int], bytes | memoryview]
"""`length` bytes at an offset of a storage."""
_STRIPE = 64 << 20
"""Bytes of a target that are made at once where its dimensions are in another order: each takes its whole storage."""
_NEAR = 1 << 18
"""Elements within so many bytes are read in one go, whatever lies between them."""
_DENSE = 16 << 20
"""The same where a quarter of what is read is wanted."""


def gather(read: Read, tensor: Tensor, size: int) -> Iterator[memoryview]:
    """The bytes of a strided view, contiguous and row-major, in pieces of about `size` bytes.

    Elements are moved as opaque words of their width, so every dtype comes through to the bit. Everything is read,
    not mapped: a file that becomes shorter meanwhile would end the process where it is mapped.
    """
    import numpy as np

    if 0 in tensor.shape:
        return
    itemsize = DTYPE_BITS[tensor.dtype] // 8
    word = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "V16"}[itemsize]
    # Without the dimensions of size 1: numpy before 2 has at most 32.
    kept = [(size, step * itemsize) for size, step in zip(tensor.shape, tensor.stride, strict=True) if size > 1]
    shape, strides = tuple(size for size, _ in kept), tuple(step for _, step in kept)
    turned = any(outer < inner for outer, inner in pairwise(step for step in strides if step))
    for start, part in _cut_slabs(shape, strides, max(1, (_STRIPE if turned else max(size, _NEAR)) // itemsize)):
        out = np.empty(part, word)
        read_strided(read, out, tensor.offset * itemsize + start, strides[len(strides) - len(part) :])
        flat = out.reshape(-1).view("u1").data
        for at in range(0, len(flat), max(size, itemsize)):
            yield flat[at : at + max(size, itemsize)]


def _cut_slabs(
    shape: tuple[int, ...], strides: tuple[int, ...], elements: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """A view in row-major slabs of at most `elements` elements: where each starts, and its shape."""
    axis, inner = len(shape), 1
    while axis > 0 and inner * shape[axis - 1] <= elements:
        axis -= 1
        inner *= shape[axis]
    if axis == 0:
        yield 0, shape
        return
    rows = max(1, elements // inner)
    for index in product(*(range(count) for count in shape[: axis - 1])):
        before = sum(place * step for place, step in zip(index, strides, strict=False))
        for row in range(0, shape[axis - 1], rows):
            count = min(rows, shape[axis - 1] - row)
            yield before + row * strides[axis - 1], (count, *shape[axis:])


def read_strided(read: Read, out: np.ndarray, start: int, strides: Sequence[int]) -> None:
    """Fill `out` with the elements that lie `strides` bytes apart from `start` on, in bounded memory."""
    import numpy as np

    reach = [(count - 1) * step for count, step in zip(out.shape, strides, strict=True)]
    length = sum(reach) + out.itemsize
    if length <= _NEAR or (length <= _DENSE and length <= 4 * out.nbytes) or not any(reach):
        raw = read(start, length)
        out[...] = np.ndarray(out.shape, out.dtype, raw, strides=tuple(strides))
        return
    axis = max(range(len(reach)), key=reach.__getitem__)
    half = out.shape[axis] // 2
    before = (slice(None),) * axis
    read_strided(read, out[(*before, slice(None, half))], start, strides)
    read_strided(read, out[(*before, slice(half, None))], start + half * strides[axis], strides)
