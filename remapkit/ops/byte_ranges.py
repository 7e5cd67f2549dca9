"""Finds operations that only move ranges of bytes: the kernel copies such a target, and no tensor is created.

This uses headers only: every source is one contiguous range of bytes, and each step maps a list of ranges to a list
of ranges. Lists of more than `MOST` ranges are abandoned, so that the cost stays bounded; reading elements is then as
fast.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from remapkit.ops.base import Op
from remapkit.ops.join import FillOp, Join, Nested, infer_concat, infer_stack
from remapkit.ops.steps import Cast, OpStep, Permute, Pick, Reshape
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import TensorSpec

FEW = 64
"""Up to this number, ranges of any size are copied; more ranges must be `LONG` on average."""
LONG = 1 << 16
"""The length of a long range in bytes."""
MOST = 1 << 16
"""The most ranges for one tensor."""


@dataclass(frozen=True, slots=True)
class Range:
    """`length` bytes at `offset` of source number `source`."""

    source: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _RangeTensor:
    """A tensor as ranges of its sources, in row-major order; `starts` are their offsets in the tensor."""

    spec: TensorSpec
    ranges: tuple[Range, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, spec: TensorSpec, ranges: Iterator[Range]) -> _RangeTensor | None:
        kept: list[Range] = []
        starts: list[int] = []
        at = 0
        for piece in ranges:
            last = kept[-1] if kept else None
            if last is not None and last.source == piece.source and last.offset + last.length == piece.offset:
                kept[-1] = Range(last.source, last.offset, last.length + piece.length)
            elif piece.length:
                kept.append(piece)
                starts.append(at)
            at += piece.length
            if len(kept) > MOST:
                return None
        return cls(spec, tuple(kept), tuple(starts))

    def cut_ranges(self, start: int, length: int) -> Iterator[Range]:
        """Yield the ranges that bytes `start` to `start + length` consist of."""
        number = bisect_right(self.starts, start) - 1
        while length > 0:
            inside = start - self.starts[number]
            piece = self.ranges[number]
            taken = min(length, piece.length - inside)
            yield Range(piece.source, piece.offset + inside, taken)
            start, length, number = start + taken, length - taken, number + 1


def find_byte_ranges(ops: Sequence[Op], specs: Sequence[TensorSpec]) -> tuple[Range, ...] | None:
    """Return the ranges of the sources that the result consists of, or None if its bytes must be computed.

    >>> from remapkit.ops.join import SplitPart
    >>> find_byte_ranges((SplitPart(0, 1, 3),), [TensorSpec("F32", (6, 2))])
    (Range(source=0, offset=16, length=16),)
    """
    laid = _lay_move(ops, specs, 0)
    if laid is None or (len(laid.ranges) > FEW and laid.spec.nbytes < LONG * len(laid.ranges)):
        return None
    return laid.ranges


def _lay_move(ops: Sequence[Op], specs: Sequence[TensorSpec], number: int) -> _RangeTensor | None:
    """Lay out what operations make of sources, the first of which is source `number`."""
    if ops and isinstance(ops[0], FillOp):
        return None
    if ops and isinstance(ops[0], Nested):
        starts = itertools.accumulate(ops[0].widths, initial=number)
        inputs = zip(ops[0].divide(specs), starts, strict=False)
        laid = _apply_join(ops[0].join, [_lay_move(each, own, start) for (each, own), start in inputs])
        return _apply_ops(ops[1:], laid)
    if ops and isinstance(ops[0], Join):
        sources = [_lay_source(number + n, spec) for n, spec in enumerate(specs)]
        return _apply_ops(ops[1:], _apply_join(ops[0], sources))
    return _apply_ops(ops, _lay_source(number, specs[0]))


def _lay_source(number: int, spec: TensorSpec) -> _RangeTensor | None:
    if DTYPE_BITS[spec.dtype] < 8:
        return None
    return _RangeTensor.of(spec, iter((Range(number, 0, spec.nbytes),)))


def _apply_ops(ops: Sequence[Op], laid: _RangeTensor | None) -> _RangeTensor | None:
    for op in ops:
        if laid is None:
            return None
        for step in op.steps(laid.spec):
            laid = _apply_step(step, laid)
            if laid is None:
                return None
    return laid


def _apply_step(step: OpStep, laid: _RangeTensor) -> _RangeTensor | None:
    spec = step.infer(laid.spec)
    if isinstance(step, Reshape) or (isinstance(step, Cast) and step.dtype == laid.spec.dtype):
        return _RangeTensor(spec, laid.ranges, laid.starts)
    if isinstance(step, Permute):
        long = [dim for dim in step.order if laid.spec.shape[dim] != 1]
        return _RangeTensor(spec, laid.ranges, laid.starts) if long == sorted(long) else None
    if isinstance(step, Pick):
        return _RangeTensor.of(spec, _pick_ranges(step, laid)) if _count_pieces(step, laid.spec) <= MOST else None
    return None


def _count_outer(shape: Sequence[int], dim: int) -> int:
    return math.prod(shape[:dim])


def _count_inner_bytes(spec: TensorSpec, dim: int) -> int:
    """Return the size of one index of a dimension in bytes."""
    return math.prod(spec.shape[dim + 1 :]) * DTYPE_BITS[spec.dtype] // 8


def _count_pieces(step: Pick, spec: TensorSpec) -> int:
    return _count_outer(spec.shape, step.dim) * sum(
        1 if indices.step == 1 else len(indices) for indices in step.ranges
    )


def _pick_ranges(step: Pick, laid: _RangeTensor) -> Iterator[Range]:
    inner, size = _count_inner_bytes(laid.spec, step.dim), laid.spec.shape[step.dim]
    for outer in range(_count_outer(laid.spec.shape, step.dim)):
        begin = outer * size * inner
        for indices in step.ranges:
            for start in (indices.start,) if indices.step == 1 else indices:
                length = inner * (len(indices) if indices.step == 1 else 1)
                yield from laid.cut_ranges(begin + start * inner, length)


def _apply_join(join: Join, sources: Sequence[_RangeTensor | None]) -> _RangeTensor | None:
    if join.combine is not None:
        return None
    width = len(join.branches)
    parts = []
    for number, source in enumerate(sources):
        if join.merge and number % width:
            continue  # equal to the first of its branches, which is taken
        part = _apply_ops(join.branches[number % width], source)
        if part is None:
            return None
        parts.append(part)
    joined: list[_RangeTensor | None] = [*parts]
    if join.concat is not None:
        joined = []
        for at in range(0, len(parts), width):
            group = parts[at : at + width]
            spec = infer_concat([part.spec for part in group], join.concat)
            joined.append(_interleave_parts(group, join.concat % len(spec.shape), spec))
    whole = [tensor for tensor in joined if tensor is not None]
    if len(whole) < len(joined):
        return None
    if join.stack is None:
        return whole[0]
    spec = infer_stack([tensor.spec for tensor in whole], join.stack)
    return _interleave_parts(whole, join.stack % len(spec.shape), spec)


def _interleave_parts(parts: Sequence[_RangeTensor], dim: int, spec: TensorSpec) -> _RangeTensor | None:
    """Concatenate tensors along `dim`: for each index of the dimensions before it, a range of each tensor."""
    outer = _count_outer(parts[0].spec.shape, dim)
    if outer * len(parts) > MOST:
        return None

    def ranges() -> Iterator[Range]:
        for index in range(outer):
            for part in parts:
                length = part.spec.nbytes // outer
                yield from part.cut_ranges(index * length, length)

    return _RangeTensor.of(spec, ranges())
