"""Builds candidates for relations from rows that were found: operations and joins. Nothing is read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from remapkit.authoring.find_order import (
    Order,
    find_merged_axes,
    find_order,
    fit_shape,
    join_prints,
    judge_order,
    name_dims,
    permute_prints,
)
from remapkit.authoring.fingerprint import Dims, Prints, list_long_dims
from remapkit.authoring.name_order import name_order
from remapkit.authoring.relation import UNSETTLED, OpText, Relation
from remapkit.tensors.elements import Array
from remapkit.tensors.spec import StateDictSpec, TensorSpec

Ops = tuple[OpText, ...]
Described = tuple[Ops, str]
"""Operations, and what settled them where the values allow others."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of a tensor of A in the order in which they occur in one of B: `indices` of its view of `dims`.

    `is_sure` is False if rows of A that are equal to some of them might be meant.
    """

    prints: Prints
    dims: Dims
    indices: Array
    is_sure: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether each row occurs once."""
        return len(self.indices) == len(self.prints.views[self.dims]) and len(set(self.indices.tolist())) == len(
            self.indices
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """A tensor of B that comes from one of A: the rows of its view of `dims`; without a segment, all of it.

    `ops` are the operations where they are known, casts aside.
    """

    target: Prints
    dims: Dims = ()
    segment: Segment | None = None
    ops: Ops | None = None


# --------------------------------------------------------------------------------------------------- one to one


def describe_whole(source: Prints, target: Prints) -> Described | None:
    """Return the operations that turn one whole tensor into another, casts aside; None if there are none."""
    order = find_order(source, target)
    named = order.name_ops() if order is not None else None
    # An index list is longer than any reshape.
    if order is not None and named is not None:
        return named, judge_order(order.is_sure, named)
    if source.digest == target.digest:
        return fit_shape(source.spec.shape, target.spec.shape), ""
    merged = find_merged_axes(source, target)
    return None if merged is None else (merged[0], judge_order(merged[1], merged[0]))


def describe_slice(selection: Selection) -> Described | None:
    """Return the operations for some rows of one tensor; the order in the other dimensions is not known."""
    segment, target = selection.segment, selection.target
    if segment is None or len(segment.dims) != 1:
        return None
    (dim,) = segment.dims
    shape = list(segment.prints.spec.shape)
    named = name_order(segment.indices, shape[dim], dim, len(shape))
    if named is None:
        return None
    shape[dim] = len(segment.indices)
    # A dimension that is cut to one element is no long one, but has its place.
    others = [other for other in list_long_dims(shape) if other != dim]
    theirs = list(list_long_dims(target.spec.shape))
    if selection.dims:
        place = theirs.index(selection.dims[0])
        others.insert(place, dim)
    if [shape[other] for other in others] != [target.spec.shape[other] for other in theirs]:
        return None
    by = judge_order(segment.is_sure, named)
    # A slice goes on where its rows do: only a list of indices is a guess.
    return (*named, *name_dims(shape, tuple(others), target.spec.shape)), by if by == UNSETTLED else ""


# -------------------------------------------------------------------------------------------------- several to one


def build_join(target: Prints, dims: Dims, segments: Sequence[Segment], header: StateDictSpec) -> Relation | None:
    """Return a concat or a stack of the segments, or both, that gives the target; None if the language has none."""
    if len(dims) == 2 and all(segment.dims == () for segment in segments):
        return _build_stack_of_stacks(target, dims, segments, header)
    if len(dims) == 2:
        return _build_stacked_concat(target, dims, segments, header)
    (dim,) = dims
    part_rank = len(segments[0].prints.spec.shape)
    if all(segment.dims == () for segment in segments) and part_rank == len(target.spec.shape) - 1:
        return _build_stack(target, dim, [segment.prints for segment in segments], header)
    owners = list(dict.fromkeys(segment.prints.fqn for segment in segments))
    if len(owners) == len(segments) and all(segment.is_whole for segment in segments):
        return _build_concat(target, dim, segments, header)
    if len(owners) < len(segments) and (merged := _merge_segments(segments)) is not None:
        return _build_concat(target, dim, merged, header)
    return _build_concat_of_slices(target, dim, segments, header)


def _merge_segments(segments: Sequence[Segment]) -> list[Segment] | None:
    """Return a segment for each tensor, whose rows are mixed with those of others; None if one is not whole."""
    by_owner: dict[str, list[Segment]] = {}
    for segment in segments:
        by_owner.setdefault(segment.prints.fqn, []).append(segment)
    merged = [
        Segment(
            some[0].prints,
            some[0].dims,
            np.concatenate([segment.indices for segment in some]),
            all(segment.is_sure for segment in some),
        )
        for some in by_owner.values()
        if len({segment.dims for segment in some}) == 1
    ]
    whole = len(merged) == len(by_owner) and all(segment.is_whole for segment in merged)
    return merged if whole else None


def _build_stack(target: Prints, dim: int, parts: Sequence[Prints], header: StateDictSpec) -> Relation | None:
    if len({part.spec.shape for part in parts}) > 1 or len({part.fqn for part in parts}) < len(parts):
        return None
    sources = tuple(part.fqn for part in parts)
    casts = _Casts(header, sources, target.spec.dtype)
    for stack_dim in dict.fromkeys((dim, 0)):
        order = find_order(join_prints([[part] for part in parts], 0, stack_dim), target)
        if order is not None and casts.are_equal and (ops := order.name_ops()) is not None:
            by = judge_order(order.is_sure, ops)
            return Relation(sources, (target.fqn,), "stack", dim=stack_dim, ops=(*ops, *casts.of_whole), by=by)
    return None


def _build_stack_of_stacks(
    target: Prints, dims: Dims, segments: Sequence[Segment], header: StateDictSpec
) -> Relation | None:
    """Return a stack of the tensors at all indices of the first two dimensions, in their order."""
    sources = tuple(segment.prints.fqn for segment in segments)
    shapes = {segment.prints.spec.shape for segment in segments}
    casts = _Casts(header, sources, target.spec.dtype)
    if dims != (0, 1) or shapes != {target.spec.shape[2:]} or len(set(sources)) < len(sources) or not casts.are_equal:
        return None
    ops: Ops = ({"reshape": list(target.spec.shape)}, *casts.of_whole)
    return Relation(sources, (target.fqn,), "stack", ops=ops)


def _build_concat(target: Prints, dim: int, segments: Sequence[Segment], header: StateDictSpec) -> Relation | None:
    parts = [segment.prints for segment in segments]
    known = {segment.dims[0] for segment in segments if segment.dims}
    if len({len(part.spec.shape) for part in parts} | {len(target.spec.shape)}) == 1 and len(known) < 2:
        # The whole is turned, if it must be, not each part.
        for join_dim in known or list_short_dims(parts, dim):
            relation = _join_parts(target, parts, [() for _ in parts], join_dim, header)
            if relation is not None:
                return relation
    moves = [_orient(segment, target.spec.shape, dim) for segment in segments]
    permuted = [move for move in moves if move is not None]
    if len(permuted) < len(moves):
        return None
    return _join_parts(target, [part for _, part in permuted], [ops for ops, _ in permuted], dim, header)


def list_short_dims(parts: Sequence[Prints], first: int) -> list[int]:
    """Return the dimensions in which all parts have one element, beginning with `first`."""
    dims = [dim for dim in range(len(parts[0].spec.shape)) if all(part.spec.shape[dim] == 1 for part in parts)]
    return sorted(dims, key=lambda dim: dim != first)


def _join_parts(
    target: Prints, parts: Sequence[Prints], turns: Sequence[Ops], dim: int, header: StateDictSpec
) -> Relation | None:
    if len({part.spec.shape[:dim] + part.spec.shape[dim + 1 :] for part in parts}) > 1:
        return None
    order = find_order(join_prints([parts], dim, None), target)
    if order is None:
        return None
    sizes = [part.spec.shape[dim] for part in parts]
    named = name_by_parts(order, dim, sizes, dim)
    if named is None:
        return None
    ops, each = named
    before = [(*turn, *own) for turn, own in zip(turns, each, strict=True)]
    by = judge_order(order.is_sure, ops, *each)
    return replace(_finish_concat(target, parts, before, ops, dim, sizes, header), by=by)


def _finish_concat(
    target: Prints,
    parts: Sequence[Prints],
    before: Sequence[Ops],
    ops: Ops,
    dim: int,
    sizes: Sequence[int],
    header: StateDictSpec,
) -> Relation:
    sources = tuple(part.fqn for part in parts)
    casts = _Casts(header, sources, target.spec.dtype)
    each = tuple((*own, *cast) for own, cast in zip(before, casts.of_parts, strict=True))
    return Relation(
        sources,
        (target.fqn,),
        "concat",
        dim=dim,
        sizes=() if len(set(sizes)) == 1 else tuple(sizes),
        before=each if any(each) else (),
        ops=(*ops, *casts.of_whole),
    )


def _build_concat_of_slices(
    target: Prints, dim: int, segments: Sequence[Segment], header: StateDictSpec
) -> Relation | None:
    before: list[Ops] = []
    by = ""
    for segment in segments:
        shape = list(target.spec.shape)
        shape[dim] = len(segment.indices)
        part = Prints("", TensorSpec(target.spec.dtype, tuple(shape)), {})
        whole = segment.prints.spec.shape
        if not segment.dims:
            before.append(fit_shape(whole, shape))
            continue
        described = describe_slice(Selection(part, (dim,) if shape[dim] > 1 else (), segment))
        if described is None:
            return None
        before.append(described[0])
        by = by or described[1]
    sizes = [len(segment.indices) for segment in segments]
    relation = _finish_concat(target, [segment.prints for segment in segments], before, (), dim, sizes, header)
    return replace(relation, by=by)


def _build_stacked_concat(
    target: Prints, dims: Dims, segments: Sequence[Segment], header: StateDictSpec
) -> Relation | None:
    """Return a concat and a stack: the segments cover the indices of the first dimension one after the other."""
    groups = _split_groups(target, dims, segments)
    if groups is None:
        return None
    parts = [segment.prints for group in groups for segment in group]
    join_dims = {segment.dims for group in groups for segment in group}
    if len({part.fqn for part in parts}) < len(parts) or len(join_dims) > 1 or len(groups[0][0].dims) != 1:
        return None
    (dim,) = groups[0][0].dims
    order = find_order(join_prints([[one.prints for one in group] for group in groups], dim, 0), target)
    ops = order.name_ops() if order is not None else None
    if order is None or ops is None or len({part.spec.dtype for part in parts}) > 1:
        return None
    sizes = [part.spec.shape[dim] for part in parts[: len(groups[0])]]
    relation = _finish_concat(target, parts, [()] * len(parts), ops, dim, sizes, header)
    return replace(relation, count=len(groups), by=judge_order(order.is_sure, ops))


def _split_groups(target: Prints, dims: Dims, segments: Sequence[Segment]) -> list[list[Segment]] | None:
    """Return the segments for each index of the stacked dimension: as many, as large, and each of them whole."""
    rows = target.spec.shape[dims[1]]
    groups: list[list[Segment]] = [[]]
    filled = 0
    for segment in segments:
        groups[-1].append(segment)
        filled += len(segment.indices)
        if filled == rows:
            groups.append([])
            filled = 0
        elif filled > rows:
            return None
    groups.pop()
    merged: list[list[Segment]] = []
    for group in groups:
        owners = {segment.prints.fqn for segment in group}
        whole = group if len(owners) == len(group) else _merge_segments(group)
        if whole is None or not all(segment.is_whole for segment in whole):
            return None
        merged.append(list(whole))
    shapes = [[segment.prints.spec.shape for segment in group] for group in merged]
    return merged if all(shape == shapes[0] for shape in shapes) else None


def _orient(segment: Segment, shape: Sequence[int], dim: int) -> tuple[Ops, Prints] | None:
    """Return what brings a part into the form of a slice of the target, and its fingerprints then."""
    prints = segment.prints
    wanted = list(shape)
    wanted[dim] = len(segment.indices)
    old = prints.spec.shape
    if len(old) != len(wanted):
        ops = fit_shape(old, wanted)
        long, theirs = prints.long_dims, list_long_dims(wanted)
        if [old[one] for one in long] != [wanted[one] for one in theirs]:
            return None
        views: dict[Dims, Array] = {(): prints.views[()]}
        views.update({(new,): prints.views[(one,)] for one, new in zip(long, theirs, strict=True)})
        return ops, Prints(prints.fqn, TensorSpec(prints.spec.dtype, tuple(wanted)), views)
    for own in segment.dims or (dim, *(one for one in range(len(old)) if old[one] == 1)):
        others = [one for one in range(len(old)) if one != own]
        order = (*others[:dim], own, *others[dim:])
        if [old[one] for one in order] != wanted:
            continue
        turned = permute_prints(prints, order)
        if order == tuple(range(len(old))):
            return (), turned
        return ("transpose",) if len(old) == 2 else ({"permute": list(order)},), turned
    return None


def name_by_parts(order: Order, dim: int, sizes: Sequence[int], there: int) -> tuple[Ops, list[Ops]] | None:
    """Return operations for the whole, and for each part where its rows have an order of their own.

    `dim` is the dimension of the source along which the parts lie; `there` the dimension that it is in a part.
    """
    whole = order.name_ops()
    none: list[Ops] = [() for _ in sizes]
    pick = order.picks.get(dim)
    if whole is not None and not any(isinstance(op, Mapping) and "index" in op for op in whole):
        return whole, none
    ops = order.name_ops(but=dim)
    if pick is not None and ops is not None:
        each: list[Ops | None] = []
        start = 0
        for size in sizes:
            rows = pick[start : start + size] - start
            inside = rows.min() >= 0 and rows.max() < size
            each.append(name_order(rows, size, there, len(order.source.shape)) if inside else None)
            start += size
        if all(one is not None for one in each):
            return ops, [one for one in each if one is not None]
    return None if whole is None else (whole, none)


class _Casts:
    """The casts of sources to one dtype: of the whole if all sources have one dtype, else of each."""

    def __init__(self, header: StateDictSpec, sources: Sequence[str], dtype: str) -> None:
        each: list[Ops] = [() if header[fqn].dtype == dtype else ({"cast": dtype},) for fqn in sources]
        self.are_equal = len({header[fqn].dtype for fqn in sources}) == 1
        self.of_whole: Ops = each[0] if self.are_equal else ()
        self.of_parts: list[Ops] = [() for _ in sources] if self.are_equal else each
