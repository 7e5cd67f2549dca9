"""Arrays of numpy in pickles: what `ndarray.__reduce__` and `dtype.__reduce__` write becomes tensors over bytes.

Source: numpy/_core/src/multiarray/methods.c (`array_reduce`, `array_setstate`), descriptor.c (`arraydescr_setstate`),
numpy/_core/numeric.py (`_frombuffer`, which protocol 5 writes). The bytes stay where they are in the pickle: only
their place and their number are kept, and the number must be that of the shape and dtype.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator
from typing import Any

from remapkit.diagnostics.wording import format_bytes, show_key
from remapkit.files.errors import MAX_DIMS
from remapkit.formats.pickle.machine import TEXT_OBJECT, Machine
from remapkit.formats.pickle.values import (
    Global,
    Opaque,
    PickledArray,
    PickledBytes,
    PickledDtype,
    PickledStorage,
    PickledTensor,
    PickleFault,
    describe_kind,
)
from remapkit.tensors.dtypes import DTYPES

_DTYPES = {row.numpy.lstrip("<"): row.name for row in DTYPES.values() if row.numpy} | {"u1": "U8", "b1": "BOOL"}
"""The dtype of each code in the pickles of numpy: `f4`, `i8`, `b1`."""

_PIECE = 1 << 20


def recode_latin(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the bytes that protocol 2 writes as UTF-8 text, a character each; raises `UnicodeError`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for piece in pieces:
        yield decoder.decode(bytes(piece)).encode("latin-1")
    yield decoder.decode(b"", True).encode("latin-1")


def encode_latin(machine: Machine, value: Any) -> PickledBytes | None:
    """Return the bytes that a text stands for, a character each; None if it has other characters."""
    if isinstance(value, str):
        # Charged like text that is read: a text in the memo may be encoded any number of times.
        machine.objects -= 1 + len(value) // TEXT_OBJECT
        try:
            kept = value.encode("latin-1")
        except UnicodeEncodeError:
            return None
        return PickledBytes("bytes", True, size=len(kept), kept=kept)
    if not isinstance(value, PickledBytes) or not value.is_text:
        return None
    if value.size < 0:
        return None
    if not value.is_counted:
        data, end = machine.data, value.start + value.length
        pieces = (data[at : min(at + _PIECE, end)] for at in range(value.start, end, _PIECE))
        try:
            value.size = sum(map(len, recode_latin(pieces)))
        except UnicodeError:
            value.size = -1
            return None
        value.is_counted = True
    return value


def encode_text(machine: Machine, args: tuple[Any, ...]) -> Opaque:
    """`_codecs.encode(text, "latin1")`: how protocol 2 writes bytes."""
    if len(args) == 2 and args[1] in ("latin1", "latin-1"):
        return encode_latin(machine, args[0]) or Opaque("_codecs.encode", known=True)
    return Opaque("_codecs.encode", known=True)


def make_bytes(machine: Machine, args: tuple[Any, ...]) -> Opaque:
    """`bytes()`: how protocol 2 writes empty bytes."""
    return Opaque("builtins.bytes", known=True) if args else PickledBytes("bytes", True, kept=b"")


def make_dtype(machine: Machine, args: tuple[Any, ...]) -> Opaque:
    """`numpy.dtype(code, align, copy)`; its byte order comes with its state."""
    if not args or not isinstance(args[0], str):
        return PickledDtype("numpy.dtype", True, problem=f"of dtype {describe_kind(args[0] if args else None)}")
    return PickledDtype("numpy.dtype", True, code=_DTYPES.get(args[0]), problem=_find_problem(args[0]))


def _find_problem(code: str) -> str:
    if code in _DTYPES:
        return ""
    words = {
        "O": "of Python objects",
        "S": "of byte strings",
        "U": "of strings",
        "M": "of dates",
        "m": "of durations",
    }
    return words.get(code[:1]) or ("of records" if code[:1] == "V" else f"of dtype {show_key(code, 40)}")


def set_dtype_state(dtype: PickledDtype, state: Any) -> None:
    """Take `(version, byte order, subarray, names, fields, size, alignment, flags)`, and since 4 metadata."""
    if not isinstance(state, tuple) or len(state) not in (8, 9) or state[0] not in (3, 4):
        raise PickleFault(f"the state of a numpy.dtype is {_describe_state(state)}, not what numpy writes")
    _, order, subarray, names, fields, *_ = state
    metadata = state[8:9]
    if order not in ("<", ">", "|"):
        words = show_key(repr(order), 40) if isinstance(order, str) else describe_kind(order)
        raise PickleFault(f"the byte order of a numpy.dtype is {words}")
    if (subarray, names, fields) != (None, None, None):
        dtype.problem = "of records"
    elif not dtype.problem and any(each is not None for each in metadata):
        dtype.problem = "whose dtype has metadata (save it with .astype of a plain dtype)"
    elif not dtype.problem and order == ">":
        dtype.problem = "of big-endian numbers (save it with .astype(a.dtype.newbyteorder('<')))"


def _describe_state(state: Any) -> str:
    return f"a tuple of {len(state)}" if isinstance(state, tuple) else describe_kind(state)


def reconstruct(machine: Machine, args: tuple[Any, ...]) -> Opaque:
    """`_reconstruct(ndarray, (0,), b"b")`: an array that gets its content with its state."""
    cls = args[0] if args else None
    if not isinstance(cls, Global) or str(cls) != "numpy.ndarray":
        return (
            Opaque(str(cls)) if isinstance(cls, Global) else Opaque(f"numpy array of the class {describe_kind(cls)}")
        )
    return PickledArray("numpy array without its content")


def set_array_state(machine: Machine, state: Any) -> PickledTensor | Opaque:
    """Take `(version, shape, dtype, whether it is in Fortran's order, bytes)`."""
    if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1:
        raise PickleFault(f"the state of a numpy.ndarray is {_describe_state(state)}, not what numpy writes")
    _, shape, dtype, is_fortran, data = state
    if type(is_fortran) is not bool:
        raise PickleFault(f"the order of a numpy.ndarray is {describe_kind(is_fortran)}")
    return _make_array(machine, data, dtype, shape, "F" if is_fortran else "C", None)


def make_from_buffer(machine: Machine, args: tuple[Any, ...]) -> PickledTensor | Opaque:
    """`_frombuffer(bytes, dtype, shape, order)`, and for the order `K` how to transpose the result."""
    if len(args) not in (4, 5):
        raise PickleFault(f"_frombuffer is called with {len(args)} arguments, not with 4 or 5")
    data, dtype, shape, order, *axes = args
    if not isinstance(order, str) or order not in ("C", "F", "K"):
        raise PickleFault(f"the order of a numpy.ndarray is {describe_kind(order)}")
    return _make_array(machine, data, dtype, shape, order, axes[0] if axes else None)


def _make_array(machine: Machine, data: Any, dtype: Any, shape: Any, order: str, axes: Any) -> PickledTensor | Opaque:
    if not isinstance(dtype, PickledDtype):
        raise PickleFault(f"the dtype of a numpy.ndarray is {describe_kind(dtype)}")
    if dtype.problem or dtype.code is None:
        return Opaque(f"numpy array {dtype.problem}")
    sizes = _check_shape(shape)
    found = data if isinstance(data, PickledBytes) and not data.is_text else encode_latin(machine, data)
    if found is None:
        raise PickleFault(f"the bytes of a numpy.ndarray are {describe_kind(data)}")
    row = DTYPES[dtype.code]
    count = math.prod(sizes)
    if found.size != count * (row.bits // 8):
        title = f"a numpy.ndarray of shape {show_key(str(list(sizes)), 80)} and dtype {row.torch} has"
        raise PickleFault(f"{title} {format_bytes(found.size)} of data, not {_say_size(count * (row.bits // 8))}")
    sizes, strides = _lay_out(sizes, order, axes)
    machine.objects -= 2 + len(sizes) // 4
    machine.arrays += 1
    storage = PickledStorage(machine.arrays, dtype.code, count, found)
    return PickledTensor(storage, dtype.code, 0, sizes, strides)


def _say_size(nbytes: int) -> str:
    return format_bytes(nbytes) if nbytes < 1 << 63 else "more than a file can have"


def _check_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMS or not all(type(n) is int and n >= 0 for n in shape):
        raise PickleFault("the shape of a numpy.ndarray is not made of whole numbers")
    return shape


def _lay_out(shape: tuple[int, ...], order: str, axes: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape and the strides, in elements."""
    if order == "F":
        return shape, tuple(math.prod(shape[:axis]) for axis in range(len(shape)))
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if order == "C" or axes is None:
        return shape, strides
    if not isinstance(axes, tuple) or not all(type(n) is int for n in axes) or sorted(axes) != [*range(len(shape))]:
        raise PickleFault("the axes of a numpy.ndarray are not an order of its dimensions")
    return tuple(shape[axis] for axis in axes), tuple(strides[axis] for axis in axes)


CALLS = {
    "_codecs.encode": encode_text,
    "builtins.bytes": make_bytes,
    "numpy.dtype": make_dtype,
    **{f"numpy.{package}.multiarray._reconstruct": reconstruct for package in ("core", "_core")},
    **{f"numpy.{package}.numeric._frombuffer": make_from_buffer for package in ("core", "_core")},
    **{
        f"numpy.{package}.multiarray.scalar": lambda machine, args: Opaque("number of numpy", known=True)
        for package in ("core", "_core")
    },
}
"""The calls in the pickles of arrays, by both names of numpy's package (`core` until numpy 2)."""
