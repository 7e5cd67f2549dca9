"""Lazy tensors: any box of one can be read, which reads only the source elements that it needs.

`build_tree` turns the operations of a move into a tree of lazy tensors. Invariant: `read(box)` returns exactly what
slicing the whole tensor would, and each node reads from its inner nodes only boxes whose elements the result
contains. So memory is a small multiple of the box (`Reshaped` is the exception: if its inner tensor is not
contiguous, it is computed as a whole, once), and reading ends because each node only reads from nodes below it.
Elements are opaque words of their width except where a cast or arithmetic needs numbers, so every dtype is preserved
bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from remapkit.compute.cast import calculate_block, combine_blocks, divide_norms, square_elements
from remapkit.formats.strided import Read, read_strided, split_into_boxes
from remapkit.ops.base import Op
from remapkit.ops.combine import Combine
from remapkit.ops.join import FillOp, Join, Nested, infer_concat, infer_stack
from remapkit.ops.steps import Add, Cast, OpStep, Pad, Permute, Pick, Reshape, Scale
from remapkit.tensors.elements import Array, choose_word, encode_elements
from remapkit.tensors.spec import TensorSpec

Along = slice | Array
"""The selection along one dimension: a slice of step 1 with both ends, or indices."""
Box = tuple[Along, ...]
BOUND = 16 << 20
"""The most bytes that are read at once if only some of them are needed."""
TILE = 1 << 18
"""Bytes of a transposed box that are copied at once: they fit into the cache."""


class Lazy:
    """A tensor that is read in boxes."""

    spec: TensorSpec

    def read(self, box: Box) -> Array:
        """Return the elements of a box, in any memory order."""
        raise NotImplementedError


def count_elements(along: Along) -> int:
    """Return the number of selected elements."""
    return along.stop - along.start if isinstance(along, slice) else len(along)


def measure_shape(box: Box) -> tuple[int, ...]:
    """Return the shape of a box."""
    return tuple(map(count_elements, box))


def make_whole_box(spec: TensorSpec) -> Box:
    """Return the box of the whole tensor."""
    return tuple(slice(0, size) for size in spec.shape)


def list_indices(along: Along) -> Array:
    """Convert a selection to indices."""
    return np.arange(along.start, along.stop) if isinstance(along, slice) else along


def simplify_indices(chosen: Array) -> Along:
    """Convert indices to a slice if they are consecutive."""
    if len(chosen) and chosen[-1] - chosen[0] == len(chosen) - 1 and (np.diff(chosen) == 1).all():
        return slice(int(chosen[0]), int(chosen[-1]) + 1)
    return chosen


def put_box(out: Array, dim: int, place: slice | int, made: Array) -> None:
    """Copy a box to its position along a dimension."""
    # With the ellipsis numpy returns a view even of a single element, which it would otherwise copy to a scalar.
    _copy_box(out[(*(slice(None),) * dim, place, ...)], made)


def _copy_box(out: Array, made: Array) -> None:
    """Copy a box. A transposed one is copied in tiles: whole columns would miss the cache for each element."""
    if made.ndim < 2 or made.strides[-1] == made.itemsize or not made.size:
        out[...] = made
        return
    across = max(16, TILE // (made.nbytes // made.shape[-1]))
    for start in range(0, made.shape[-1], across):
        out[..., start : start + across] = made[..., start : start + across]


def make_contiguous(made: Array) -> Array:
    """Return a box in contiguous memory."""
    if made.flags.c_contiguous:
        return made
    out = np.empty(made.shape, made.dtype)
    _copy_box(out, made)
    return out


@dataclass(slots=True)
class Leaf(Lazy):
    """A source that is an array in memory."""

    spec: TensorSpec
    array: Array

    def read(self, box: Box) -> Array:
        """Return a view if possible, else a copy."""
        slices = [along if isinstance(along, slice) else slice(None) for along in box]
        index: tuple[Any, ...] = (*slices, ...)
        elements: Array = self.array[index]
        for dim, along in enumerate(box):
            if not isinstance(along, slice):
                elements = np.take(elements, along, dim)
        return elements


@dataclass(slots=True)
class FileRange(Lazy):
    """A source that is one range of a file. It is read, not mapped: reading a mapped, truncated file is fatal."""

    spec: TensorSpec
    bytes_at: Read

    def read(self, box: Box) -> Array:
        """Return the elements of a box; reads only them and small gaps between them."""
        out = np.empty(measure_shape(box), choose_word(self.spec.dtype))
        if out.size:
            self._fill_box(out, box)
        return out

    def _fill_box(self, out: Array, box: Box) -> None:
        listed = next((dim for dim, along in enumerate(box) if not isinstance(along, slice)), None)
        if listed is None:
            steps = [out.itemsize * math.prod(self.spec.shape[dim + 1 :]) for dim in range(len(box))]
            start = sum(
                along.start * step for along, step in zip(box, steps, strict=True) if isinstance(along, slice)
            )
            read_strided(self.bytes_at, out, start, steps)
            return
        # Listed indices are read at once if they are dense enough, else one by one. Each call handles one dimension
        # of indices and passes on a box with one fewer: the recursion is no deeper than the number of dimensions.
        chosen = list_indices(box[listed])
        low, high = int(chosen.min()), int(chosen.max()) + 1
        if (high - low) * (out.nbytes // len(chosen)) <= max(BOUND, 4 * out.nbytes):
            near = self.read((*box[:listed], slice(low, high), *box[listed + 1 :]))
            np.take(near, chosen - low, listed, out=out)
            return
        for place, index in enumerate(chosen):
            one = (*box[:listed], slice(int(index), int(index) + 1), *box[listed + 1 :])
            self._fill_box(out[(slice(None),) * listed + (slice(place, place + 1),)], one)


@dataclass(slots=True)
class Permuted(Lazy):
    """A transposed tensor."""

    spec: TensorSpec
    inner: Lazy
    order: tuple[int, ...]

    def read(self, box: Box) -> Array:
        """Read the inner box with the dimensions in their old order, and transpose it."""
        inner_box: list[Along] = [slice(0, 0)] * len(box)
        for dim, source in enumerate(self.order):
            inner_box[source] = box[dim]
        return self.inner.read(tuple(inner_box)).transpose(self.order)


@dataclass(slots=True)
class Picked(Lazy):
    """Chosen elements along one dimension."""

    spec: TensorSpec
    inner: Lazy
    dim: int
    chosen: Along

    def read(self, box: Box) -> Array:
        """Read the inner tensor at the chosen indices."""
        along = box[self.dim]
        if isinstance(self.chosen, slice):
            start = self.chosen.start
            inner_along: Along = (
                slice(start + along.start, start + along.stop) if isinstance(along, slice) else start + along
            )
        else:
            inner_along = simplify_indices(self.chosen[along])
        return self.inner.read((*box[: self.dim], inner_along, *box[self.dim + 1 :]))


def _fill_part(out: Array, box: Box, dim: int, part: Lazy, start: int) -> None:
    """Fill the elements of a box that lie in `part`, which begins at `start` along a dimension."""
    indices = list_indices(box[dim])
    inside = np.flatnonzero((indices >= start) & (indices < start + part.spec.shape[dim]))
    if not len(inside):
        return
    elements = part.read((*box[:dim], simplify_indices(indices[inside] - start), *box[dim + 1 :]))
    place = simplify_indices(inside)
    if isinstance(place, slice):
        put_box(out, dim, place, elements)
    else:
        out[(slice(None),) * dim + (place,)] = elements


@dataclass(slots=True)
class Padded(Lazy):
    """More elements at the end of one dimension."""

    spec: TensorSpec
    inner: Lazy
    dim: int
    value: Array

    def read(self, box: Box) -> Array:
        """Return the inner tensor's elements, and the value beyond its end."""
        out = np.empty(measure_shape(box), self.value.dtype)
        out[...] = self.value
        _fill_part(out, box, self.dim, self.inner, 0)
        return out


@dataclass(slots=True)
class Squeezed(Lazy):
    """Another shape that differs only in dimensions of size 1."""

    spec: TensorSpec
    inner: Lazy

    def read(self, box: Box) -> Array:
        """Read the inner box with the same elements, and reshape it."""
        long = iter(along for along, size in zip(box, self.spec.shape, strict=True) if size != 1)
        inner_box = tuple(slice(0, 1) if size == 1 else next(long) for size in self.inner.spec.shape)
        empty = any(count_elements(along) == 0 for along in box)
        return (
            np.empty(measure_shape(box), choose_word(self.spec.dtype))
            if empty
            else self.inner.read(inner_box).reshape(measure_shape(box))
        )


@dataclass(slots=True)
class ComputedTensor(Lazy):
    """Every element cast, scaled or added to."""

    spec: TensorSpec
    inner: Lazy
    step: Cast | Scale | Add

    def read(self, box: Box) -> Array:
        """Read the inner box, and apply the step."""
        return calculate_block(self.step, make_contiguous(self.inner.read(box)), self.inner.spec.dtype)


@dataclass(slots=True)
class Combined(Lazy):
    """Arithmetic of two tensors, the second one spread over the first."""

    spec: TensorSpec
    first: Lazy
    second: Lazy
    combine: Combine
    widths: tuple[int, ...]

    def read(self, box: Box) -> Array:
        """Read the inner box, and the elements of the second tensor that apply to it."""
        shape = measure_shape(box)
        if 0 in shape:
            return np.empty(shape, choose_word(self.spec.dtype))
        places = [list_indices(along) // width for along, width in zip(box, self.widths, strict=True)]
        near = tuple(slice(int(place.min()), int(place.max()) + 1) for place in places)
        spread = make_contiguous(self.second.read(near))
        for dim, (place, along) in enumerate(zip(places, near, strict=True)):
            if (spread.shape[dim] > 1 and self.widths[dim] > 1) or not isinstance(box[dim], slice):
                spread = np.take(spread, place - along.start, dim)
        specs = (self.first.spec, self.second.spec, self.spec)
        return combine_blocks(self.combine, make_contiguous(self.first.read(box)), spread, specs)


@dataclass(slots=True)
class NormFactors(Lazy):
    """The factors of `fold_weight_norm`: each length divided by its norm, in the shape of the norms.

    The first read reads the whole weight once, in boxes of a fixed size, so that the sums do not depend on who asks.
    """

    spec: TensorSpec
    weight: Lazy
    lengths: Lazy
    dim: int | None
    _made: Array | None = None

    def read(self, box: Box) -> Array:
        """Return the factors of a box."""
        if self._made is None:
            squares = np.zeros(self.spec.shape, "<f8")
            for part in split_into_boxes(self.weight.spec.shape, BOUND // 64):
                block = square_elements(make_contiguous(self.weight.read(part)), self.weight.spec.dtype)
                others = tuple(dim for dim in range(block.ndim) if dim != self.dim)
                place = tuple(part[dim] if dim == self.dim else slice(None) for dim in range(block.ndim))
                squares[place] += block.sum(others, keepdims=True)
            raw = self.lengths.read(make_whole_box(self.lengths.spec))
            self._made = divide_norms(raw, squares, (self.lengths.spec, self.spec))
        return Leaf(self.spec, self._made).read(box)


@dataclass(slots=True)
class Concatenated(Lazy):
    """Tensors one after the other along a dimension."""

    spec: TensorSpec
    parts: Sequence[Lazy]
    dim: int

    def read(self, box: Box) -> Array:
        """Read the pieces of all parts that overlap the box."""
        out = np.empty(measure_shape(box), choose_word(self.spec.dtype))
        start = 0
        for part in self.parts:
            _fill_part(out, box, self.dim, part, start)
            start += part.spec.shape[self.dim]
        return out


@dataclass(slots=True)
class Stacked(Lazy):
    """Tensors of one shape as the elements of a new dimension."""

    spec: TensorSpec
    parts: Sequence[Lazy]
    dim: int

    def read(self, box: Box) -> Array:
        """Read the same box of every selected tensor."""
        out = np.empty(measure_shape(box), choose_word(self.spec.dtype))
        inner_box = (*box[: self.dim], *box[self.dim + 1 :])
        for place, index in enumerate(list_indices(box[self.dim])):
            put_box(out, self.dim, place, self.parts[index].read(inner_box))
        return out


@dataclass(slots=True)
class FilledTensor(Lazy):
    """A tensor without a source."""

    fill: FillOp

    @property
    def spec(self) -> TensorSpec:  # type: ignore[override]
        """Its header."""
        return self.fill.spec

    def read(self, box: Box) -> Array:
        """Compute the values of a box from their indices."""
        shape, value = measure_shape(box), self.fill.value
        if value == "arange":
            strides = np.cumprod((1, *reversed(self.spec.shape[1:])))[::-1] if self.spec.shape else ()
            grid = np.zeros(shape, "<i8")
            for dim, (along, stride) in enumerate(zip(box, strides, strict=True)):
                grid += (list_indices(along) * stride).reshape([-1 if n == dim else 1 for n in range(len(box))])
            return encode_elements(grid, self.spec.dtype)
        if value == "tril":
            lower = list_indices(box[-2])[:, None] >= list_indices(box[-1])[None, :]
            return encode_elements(np.broadcast_to(lower, shape).astype("<i8"), self.spec.dtype)
        number = {"zeros": 0, "ones": 1}.get(value, value) if isinstance(value, str) else value
        kind = "<i8" if isinstance(number, int) and abs(number) < 1 << 63 else "<f8"
        if isinstance(number, int) and kind == "<f8":
            kind = "<u8"
        return np.broadcast_to(encode_elements(np.array([number], kind), self.spec.dtype)[0], shape)


# ------------------------------------------------------------------------------------------------------- the tree


def build_tree(ops: Sequence[Op], sources: Sequence[Lazy]) -> Lazy:
    """Build the lazy tensor that the operations of a move compute from its sources."""
    if ops and isinstance(ops[0], FillOp):
        return _chain_ops(ops[1:], FilledTensor(ops[0]))
    if ops and isinstance(ops[0], Join):
        return _chain_ops(ops[1:], _join_sources(ops[0], sources))
    if ops and isinstance(ops[0], Nested):
        inputs = [build_tree(each, own) for each, own in ops[0].divide(sources)]
        return _chain_ops(ops[1:], _join_sources(ops[0].join, inputs))
    return _chain_ops(ops, sources[0])


def _join_sources(join: Join, sources: Sequence[Lazy]) -> Lazy:
    width = len(join.branches)
    if join.merge:
        sources, width = sources[::width], 1
    made = [_chain_ops(join.branches[n % width], source) for n, source in enumerate(sources)]
    if join.concat is not None:
        made = [_concatenate_parts(made[at : at + width], join.concat) for at in range(0, len(made), width)]
    if join.combine is not None:
        made = [_combine_pair(join.combine, made[at], made[at + 1]) for at in range(0, len(made), 2)]
    if join.stack is None:
        return made[0]
    spec = infer_stack([part.spec for part in made], join.stack)
    return Stacked(spec, made, join.stack % len(spec.shape))


def _concatenate_parts(parts: Sequence[Lazy], dim: int) -> Lazy:
    spec = infer_concat([part.spec for part in parts], dim)
    return Concatenated(spec, parts, dim % len(spec.shape))


def _combine_pair(combine: Combine, first: Lazy, second: Lazy) -> Lazy:
    spec = combine.infer(first.spec, second.spec)
    if combine.kind == "fold_weight_norm":
        shape = tuple(size if dim == combine.dim else 1 for dim, size in enumerate(spec.shape))
        factors = TensorSpec(combine.find_precision(first.spec, second.spec), shape)
        second, combine = NormFactors(factors, first, second, combine.dim), Combine("multiply")
    widths = combine.find_widths(first.spec, second.spec)
    if len(second.spec.shape) != len(spec.shape):  # one element
        second = Reshaped(TensorSpec(second.spec.dtype, (1,) * len(spec.shape)), second)
    return Combined(spec, first, second, combine, widths)


def _chain_ops(ops: Sequence[Op], inner: Lazy) -> Lazy:
    for op in ops:
        for step in op.steps(inner.spec):
            inner = _apply_step(step, inner)
    return inner


def _apply_step(step: OpStep, inner: Lazy) -> Lazy:
    spec = step.infer(inner.spec)
    if isinstance(step, Permute):
        return Permuted(spec, inner, step.order)
    if isinstance(step, Pick):
        if len(step.ranges) == 1 and step.ranges[0].step == 1:
            return Picked(spec, inner, step.dim, slice(step.ranges[0].start, step.ranges[0].stop))
        chosen = np.concatenate([np.arange(indices.start, indices.stop, indices.step) for indices in step.ranges])
        return Picked(spec, inner, step.dim, chosen)
    if isinstance(step, Pad):
        return Padded(spec, inner, step.dim, encode_elements(np.array([step.value], "<f8"), spec.dtype)[0])
    if isinstance(step, Reshape):
        return Reshaped(spec, inner)
    # Element-wise steps commute with a reshape, which is moved outwards: as the root it costs nothing
    # (`make_stripes`).
    if isinstance(inner, Reshaped):
        return Reshaped(spec, ComputedTensor(TensorSpec(spec.dtype, inner.inner.spec.shape), inner.inner, step))
    return ComputedTensor(spec, inner, step)


class Reshaped(Lazy):
    """Another shape for the same row-major order: a view if possible, else computed as a whole when read."""

    __slots__ = ("_made", "inner", "spec")

    def __init__(self, spec: TensorSpec, inner: Lazy) -> None:
        self.spec = spec
        self.inner: Lazy = inner.inner if isinstance(inner, Reshaped) else inner
        self._made: Lazy | None = None

    def read(self, box: Box) -> Array:
        """Return a box of the reshaped tensor."""
        if self._made is None:
            self._made = self._make_reshaped()
        return self._made.read(box)

    def _make_reshaped(self) -> Lazy:
        old, new = self.inner.spec.shape, self.spec.shape
        if [size for size in old if size != 1] == [size for size in new if size != 1]:
            return Squeezed(self.spec, self.inner)
        if isinstance(self.inner, Leaf) and self.inner.array.flags.c_contiguous:
            return Leaf(self.spec, self.inner.array.reshape(new))
        if isinstance(self.inner, FileRange):
            return FileRange(self.spec, self.inner.bytes_at)
        return Leaf(self.spec, make_contiguous(self.inner.read(make_whole_box(self.inner.spec))).reshape(new))
