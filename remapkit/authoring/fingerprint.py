"""Fingerprints of tensors: sums of hashed elements along each dimension, which ignore the order in all others.

For a tensor and some of its dimensions, a *view* holds for each index the sum, modulo 2**64, of the hashes of all
elements at that index. So a view of a slice is a slice of the view; views of a concatenation are concatenated along
its dimension, and added along all others; a transposed tensor has the same views under other dimensions. All views of
a tensor come out of one pass in bounded memory, as about as many numbers as its sizes add up to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from remapkit.authoring.pair_by_value import PairableTensors
from remapkit.compute.cast import calculate_block, cast_elements
from remapkit.files.source_file import split_evenly
from remapkit.formats.strided import split_into_boxes
from remapkit.ops.steps import Add
from remapkit.tensors.dtypes import CASTABLE_FLOATS, DTYPE_BITS, DTYPES, PLAIN_FLOATS, is_exact_cast
from remapkit.tensors.elements import Array, choose_word
from remapkit.tensors.spec import TensorSpec

Dims = tuple[int, ...]
Views = Mapping[Dims, Array]

BLOCK = 1 << 16
"""Elements that are hashed at once."""
LARGEST_VIEW = 1 << 16
"""A view of several dimensions that has more numbers must be much smaller than its tensor."""
MOST_STACKED = 1 << 12
"""The most tensors that are stacked twice in one: experts of layers."""
LONGEST_ROW = 1 << 22
"""The most numbers of a view of one dimension."""
WINDOW = 8
"""Consecutive elements of a vector that are hashed together, since single elements occur in many vectors."""


@dataclass(frozen=True, slots=True)
class Prints:
    """The fingerprints of one tensor, in its own dtype or as cast to another.

    `views` has the sums by dimensions: `()` is the total, and `(0, 1)` has the row-major indices of both. Dimensions
    of size 1 have no view. `digest` is that of the bytes in their order, `is_constant` tells that all elements are
    equal.
    `plus` maps 1 and -1 to the digest after adding it, for vectors of floats.
    """

    fqn: str
    spec: TensorSpec
    views: Views
    digest: bytes = b""
    is_constant: bool = False
    plus: Mapping[int, bytes] | None = None

    @property
    def total(self) -> int:
        """The sum over all elements."""
        return int(self.views[()][0])

    @property
    def long_dims(self) -> Dims:
        """The dimensions of more than one element."""
        return list_long_dims(self.spec.shape)


def list_long_dims(shape: Sequence[int]) -> Dims:
    """Return the dimensions of more than one element.

    >>> list_long_dims((3, 1, 2))
    (0, 2)
    """
    return tuple(dim for dim, size in enumerate(shape) if size != 1)


def can_cast(old: str, new: str) -> bool:
    """Return whether the language's `cast` accepts the two dtypes."""
    return old != new and ((old in CASTABLE_FLOATS and new in CASTABLE_FLOATS) or is_exact_cast(old, new))


def take_prints(values: PairableTensors, fqn: str, dtypes: Iterable[str] = ()) -> Mapping[str, Prints]:
    """Return the fingerprints of a tensor by dtype: its own, and as cast to each of `dtypes` that it can be cast to.

    The tensor is read once. An empty tensor, and one whose elements are smaller than a byte, have none.
    """
    spec = values.header()[fqn]
    if not spec.numel or DTYPE_BITS[spec.dtype] < 8:
        return {}
    takers = {spec.dtype: _Taker(spec)}
    takers.update({dtype: _Taker(TensorSpec(dtype, spec.shape)) for dtype in dtypes if can_cast(spec.dtype, dtype)})
    for box, block in _read_blocks(values, fqn, spec):
        for dtype, taker in takers.items():
            taker.add_block(box, block if dtype == spec.dtype else cast_elements(block, spec.dtype, dtype))
    return {dtype: taker.make_prints(fqn) for dtype, taker in takers.items()}


def hash_windows(elements: Array) -> Array:
    """Return a hash of each `WINDOW` consecutive elements of a vector's view."""
    count = len(elements) - WINDOW + 1
    found = np.zeros(max(0, count), "<u8")
    if count > 0:
        for place in range(WINDOW):
            found = found * np.uint64(0x9E3779B97F4A7C15) + elements[place : place + count]
    return found


def _read_blocks(values: PairableTensors, fqn: str, spec: TensorSpec) -> Iterator[tuple[tuple[slice, ...], Array]]:
    """Yield the tensor in boxes of at most `BLOCK` elements: their place, and their raw elements."""
    word = choose_word(spec.dtype)
    pieces = _Pieces(values.chunks(fqn))
    for box in split_into_boxes(spec.shape, BLOCK):
        shape = tuple(along.stop - along.start for along in box)
        count = int(np.prod(shape, dtype=np.int64))
        yield box, np.frombuffer(pieces.take(count * word.itemsize), word).reshape(shape)


class _Pieces:
    """Bytes from chunks, in pieces of any size."""

    def __init__(self, chunks: Iterator[memoryview]) -> None:
        self._chunks, self._kept = split_evenly(chunks, 1 << 20), bytearray()

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        while len(self._kept) < size:
            self._kept += next(self._chunks)
        taken = bytes(self._kept[:size])
        del self._kept[:size]
        return taken


class _Taker:
    """Sums up the views of one tensor, block by block."""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._bases = {
            dims: np.zeros([spec.shape[dim] for dim in dims] or [1], "<u8") for dims in _choose_bases(spec.shape)
        }
        self._digest = hashlib.blake2b(digest_size=16)
        self._hash = _choose_hash(spec.dtype)
        self._first: bytes | None = None
        self._is_constant = True
        has_plus = len(list_long_dims(spec.shape)) < 2 and spec.dtype in PLAIN_FLOATS
        self._plus = {term: hashlib.blake2b(digest_size=16) for term in (1, -1)} if has_plus else None

    def add_block(self, box: tuple[slice, ...], block: Array) -> None:
        """Add the raw elements of a box; the boxes must come in row-major order."""
        block = np.ascontiguousarray(block)
        raw = block.reshape(-1)
        self._digest.update(raw.view("u1").data)
        self._first = self._first or raw[:1].tobytes()
        self._is_constant = self._is_constant and bool((raw == np.frombuffer(self._first, raw.dtype)).all())
        for term, digest in (self._plus or {}).items():
            digest.update(np.ascontiguousarray(calculate_block(Add(term), raw, self._spec.dtype)).view("u1").data)
        hashed = self._hash(raw).reshape(block.shape)
        for dims, base in self._bases.items():
            others = tuple(dim for dim in range(block.ndim) if dim not in dims)
            base[tuple(box[dim] for dim in dims)] += hashed.sum(others, dtype="<u8") if others else hashed

    def make_prints(self, fqn: str) -> Prints:
        """Return what was summed up."""
        views = {dims: _sum_base(self._bases, dims).reshape(-1) for dims in _choose_views(self._spec.shape)}
        plus = {term: digest.digest() for term, digest in self._plus.items()} if self._plus is not None else None
        return Prints(fqn, self._spec, views, self._digest.digest(), self._is_constant, plus)


def _choose_bases(shape: Dims) -> list[Dims]:
    """Choose the views that are summed up from the elements: few, from which all others are summed up at the end."""
    bases: list[Dims] = []
    for dims in sorted(_choose_views(shape), key=len, reverse=True):
        if len(dims) > 1 or not any(set(dims) <= set(base) for base in bases):
            bases.append(dims)
    return bases


def _sum_base(bases: Mapping[Dims, Array], dims: Dims) -> Array:
    """Return a view, summed up from the smallest base that contains its dimensions."""
    base = min((one for one in bases if set(dims) <= set(one)), key=lambda one: bases[one].size)
    others = tuple(place for place, dim in enumerate(base) if dim not in dims)
    summed: Array = np.asarray(bases[base].sum(others, dtype="<u8")) if others else bases[base]
    return summed


def _choose_views(shape: Dims) -> list[Dims]:
    """Choose the views: the total, each dimension, and where they are small those of two or of all but the first.

    Of four dimensions and more, those of the first two are of tensors that were stacked twice.
    """
    dims = list_long_dims(shape)
    chosen: list[Dims] = [(), *((dim,) for dim in dims if shape[dim] <= LONGEST_ROW)]
    several = list(combinations(dims, 2)) if len(dims) == 3 else [dims[1:]] if len(dims) > 3 else []
    numel = int(np.prod(shape, dtype=np.int64))
    for some in several:
        if int(np.prod([shape[dim] for dim in some], dtype=np.int64)) <= max(LARGEST_VIEW, numel // 32):
            chosen.append(some)
    if len(dims) > 3 and shape[dims[0]] * shape[dims[1]] <= MOST_STACKED:
        chosen.append(dims[:2])
    return chosen


# ------------------------------------------------------------------------------------------------------- hashes


def _choose_hash(dtype: str) -> Callable[[Array], Array]:
    """Return a function that hashes raw elements of a dtype."""
    bits = DTYPES[dtype].bits
    if bits <= 16:
        table = _make_table(bits)
        return lambda raw: table[raw]
    if bits == 128:
        return lambda raw: _mix(_mix(raw.view("<u8")[::2]) + raw.view("<u8")[1::2])
    return lambda raw: _mix(raw.astype("<u8"))


@cache
def _make_table(bits: int) -> Array:
    return _mix(np.arange(1 << bits, dtype="<u8"))


def _mix(words: Array) -> Array:
    """Mix the bits of 64-bit words (the finaliser of splitmix64): sums of the results do not collide by chance."""
    mixed = words + np.uint64(0x9E3779B97F4A7C15)
    shifted = np.empty_like(mixed)  # fresh memory costs more than the arithmetic
    mixed ^= np.right_shift(mixed, np.uint64(30), out=shifted)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= np.right_shift(mixed, np.uint64(27), out=shifted)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= np.right_shift(mixed, np.uint64(31), out=shifted)
    result: Array = mixed
    return result
