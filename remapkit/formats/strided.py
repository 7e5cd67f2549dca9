"""Tensors as views of storages: checks their bounds, finds contiguous ones, and gathers the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING

from remapkit.diagnostics.wording import format_bytes, show_key
from remapkit.files.errors import FileFault
from remapkit.formats.pickle.values import PickledTensor
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import TensorSpec

if TYPE_CHECKING:
    import numpy as np

EXPAND_FREE = 64 << 20
"""The bytes that views may add to their storages without `allow_expand`: small expanded buffers are common."""


def is_contiguous(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Return whether the elements are contiguous and row-major; strides of dimensions of size 1 are ignored.

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


def find_view_end(tensor: PickledTensor) -> int:
    """Return the index after the last element of the storage that the view uses; 0 if it has no elements."""
    if 0 in tensor.shape:
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    return tensor.offset + last + 1


def check_view(fqn: str, tensor: PickledTensor, storage_bytes: int) -> TensorSpec:
    """Return the spec of a view, which must be inside its storage; raises `FileFault` (RK405) if it is not."""
    if len(tensor.shape) != len(tensor.stride):
        raise FileFault("RK405", f"{len(tensor.shape)} dimensions, but {len(tensor.stride)} strides", key=fqn)
    for name, values in (("offset", (tensor.offset,)), ("size", tensor.shape), ("stride", tensor.stride)):
        if any(value < 0 for value in values):
            raise FileFault("RK405", f"a negative {name}: {min(values)}", key=fqn)
        if any(value >= 1 << 63 for value in values):
            raise FileFault("RK405", f"the {name} {show_key(str(max(values)), 40)} overflows 64 bits", key=fqn)
    itemsize = DTYPE_BITS[tensor.dtype] // 8
    # Sizes of 0 are ignored: other readers multiply from the left, and overflow before they reach the 0.
    if math.prod(size for size in tensor.shape if size) * itemsize >= 1 << 63:
        raise FileFault("RK405", f"the shape {show_key(str(list(tensor.shape)), 80)} overflows 64 bits", key=fqn)
    if find_view_end(tensor) * itemsize > storage_bytes:
        name = show_key(str(tensor.storage.key))
        title = (
            f"the view ends at byte {find_view_end(tensor) * itemsize} of storage {name!r}, "
            f"which is {storage_bytes} bytes"
        )
        raise FileFault("RK405", title, key=fqn)
    if tensor.packed is not None:
        return TensorSpec(tensor.packed, (*tensor.shape[:-1], 2 * tensor.shape[-1]))
    return TensorSpec(tensor.dtype, tensor.shape)


def check_expansion(fqn: str, tensor: PickledTensor, spec: TensorSpec, storage_bytes: int) -> None:
    """Raise `FileFault` (RK410) for a view that repeats its storage into much more data."""
    if spec.nbytes > storage_bytes + EXPAND_FREE:
        zero = 0 in [step for size, step in zip(tensor.shape, tensor.stride, strict=True) if size > 1]
        why = "stride 0" if zero else "overlapping strides"
        what = f"a {_format_bytes(storage_bytes)} storage into {format_bytes(spec.nbytes)} ({why})"
        title = f"tensor {show_key(fqn)!r} repeats {what}; refused"
        raise FileFault("RK410", title, key=fqn, help=("pass --allow-expand to read it anyway",))


def _format_bytes(nbytes: int) -> str:
    return f"{nbytes}-byte" if nbytes < 1000 else format_bytes(nbytes)


Read = Callable[[int, int], bytes | memoryview]
"""Returns `length` bytes at an offset of a storage; called as `read(offset, length)`."""
_STRIPE = 64 << 20
"""Bytes of a transposed target that are gathered at once: each stripe reads its whole storage."""
_NEAR = 1 << 18
"""Elements within this many bytes are read at once, including the bytes between them."""
_DENSE = 16 << 20
"""The same limit if at least a quarter of the bytes read is needed."""


def gather(read: Read, tensor: PickledTensor, size: int) -> Iterator[memoryview]:
    """Yield the bytes of a strided view, contiguous and row-major, in pieces of about `size` bytes.

    Elements are moved as opaque words of their width, so every dtype is preserved bit for bit. Everything is read,
    not mapped: if a mapped file became shorter meanwhile, that would end the process.
    """
    import numpy as np

    from remapkit.tensors.elements import choose_word

    if 0 in tensor.shape:
        return
    itemsize = DTYPE_BITS[tensor.dtype] // 8
    # Dimensions of size 1 are removed: numpy before 2 supports at most 32 dimensions.
    kept = [(size, step * itemsize) for size, step in zip(tensor.shape, tensor.stride, strict=True) if size > 1]
    shape, strides = tuple(size for size, _ in kept), tuple(step for _, step in kept)
    is_transposed = any(outer < inner for outer, inner in pairwise(step for step in strides if step))
    stripe = _STRIPE if is_transposed else max(size, _NEAR)
    for box in split_into_boxes(shape, max(1, stripe // itemsize)):
        out = np.empty([along.stop - along.start for along in box], choose_word(tensor.dtype))
        start = sum(along.start * step for along, step in zip(box, strides, strict=True))
        read_strided(read, out, tensor.offset * itemsize + start, strides)
        flat = out.reshape(-1).view("u1").data
        for at in range(0, len(flat), max(size, itemsize)):
            yield flat[at : at + max(size, itemsize)]


def split_into_boxes(shape: Sequence[int], elements: int) -> Iterator[tuple[slice, ...]]:
    """Yield boxes that follow one another in row-major order, each of at most `elements` elements (`elements` >= 1).

    The last dimensions that fit are whole, the one before them is cut, and those before that are taken one by one.

    >>> list(split_into_boxes((2, 3), 4))
    [(slice(0, 1, None), slice(0, 3, None)), (slice(1, 2, None), slice(0, 3, None))]
    """
    axis, inner = len(shape), 1
    while axis > 0 and inner * shape[axis - 1] <= elements:
        axis -= 1
        inner *= shape[axis]
    rest = tuple(slice(0, size) for size in shape[axis:])
    if axis == 0:
        yield rest
        return
    rows = max(1, elements // inner)
    for index in product(*map(range, shape[: axis - 1])):
        outer = tuple(slice(place, place + 1) for place in index)
        for start in range(0, shape[axis - 1], rows):
            yield (*outer, slice(start, min(start + rows, shape[axis - 1])), *rest)


def read_strided(read: Read, out: np.ndarray, start: int, strides: Sequence[int]) -> None:
    """Fill `out` with the elements that are `strides` bytes apart, beginning at `start`, in bounded memory.

    A small span is read at once, including the bytes between the elements. Otherwise the dimension with the largest
    span is halved: each half has fewer elements, so the recursion ends at the latest at a single element, whose span
    is zero. Reads at most four times the result if elements are dense, and 256 kB for each isolated element.
    """
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
