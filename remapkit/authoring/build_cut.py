"""Builds candidates for the relations of one source: moves, splits, unstacks, slices, copies. Nothing is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from remapkit.authoring.build_relation import (
    Described,
    Ops,
    Selection,
    describe_slice,
    describe_whole,
    list_short_dims,
    name_by_parts,
)
from remapkit.authoring.find_order import find_order, fit_shape, join_prints, judge_order
from remapkit.authoring.fingerprint import Dims, Prints, list_long_dims
from remapkit.authoring.relation import SIMPLEST, UNSETTLED, Relation
from remapkit.tensors.elements import Array
from remapkit.tensors.spec import StateDictSpec, TensorSpec


def build_cut(
    sources: Mapping[str, Prints], selections: Sequence[Selection], header: StateDictSpec
) -> Relation | None:
    """Return the relation for all targets that come from one source: a move, a cut, or copies with operations.

    `sources` are the fingerprints of the source by dtype, of those of the targets at least where no operations are
    known.
    """
    dtypes = {selection.target.spec.dtype for selection in selections}
    has_ops = any(selection.ops for selection in selections)
    if len(dtypes) > 1 or has_ops:
        return build_copies(sources, selections, header)
    (dtype,) = dtypes
    source = sources[dtype]
    for build in (_build_unstack, _build_split):
        relation = build(source, selections)
        if relation is not None:
            return replace(relation, ops=(*_cast(header, source.fqn, dtype), *relation.ops))
    return build_copies(sources, selections, header)


def _cast(header: StateDictSpec, fqn: str, dtype: str) -> Ops:
    return () if header[fqn].dtype == dtype else ({"cast": dtype},)


def build_copies(
    sources: Mapping[str, Prints], selections: Sequence[Selection], header: StateDictSpec
) -> Relation | None:
    """Return copies, each with operations of its own where they differ; one target is a move."""
    described = [_describe(sources, selection) for selection in selections]
    each = [one for one in described if one is not None]
    if len(each) < len(described):
        return None
    fqn = next(iter(sources.values())).fqn
    casts = [_cast(header, fqn, selection.target.spec.dtype) for selection in selections]
    by = max((settled for _, settled in each), key=("", SIMPLEST, UNSETTLED).index)
    targets = tuple(selection.target.fqn for selection in selections)
    if len(each) == 1 and not selections[0].ops:
        return Relation((fqn,), targets, ops=(*each[0][0], *casts[0]), by=by)
    # What calculates does so in the target's dtype.
    whole = [(*cast, *ops) for cast, (ops, _) in zip(casts, each, strict=True)]
    if len(set(map(str, whole))) == 1:
        return Relation((fqn,), targets, cut="copy" if len(whole) > 1 else "", ops=whole[0], by=by)
    if len(set(map(str, casts))) == 1:
        return Relation((fqn,), targets, cut="copy", ops=casts[0], after=tuple(ops for ops, _ in each), by=by)
    return Relation((fqn,), targets, cut="copy", after=tuple(whole), by=by)


def _describe(sources: Mapping[str, Prints], selection: Selection) -> Described | None:
    if selection.ops is not None:
        return selection.ops, ""
    if selection.segment is not None:
        return describe_slice(selection)
    return describe_whole(sources[selection.target.spec.dtype], selection.target)


def _build_split(source: Prints, selections: Sequence[Selection]) -> Relation | None:
    """Return a split if the targets have each row of one dimension once."""
    segments = [selection.segment for selection in selections]
    views = {segment.dims for segment in segments if segment is not None}
    if None in segments or len(selections) < 2 or len(views) > 1 or len(next(iter(views))) != 1:
        return None
    ((dim,),) = views
    rows = {id(one): one.segment.indices for one in selections if one.segment is not None}
    taken = np.concatenate(list(rows.values()))
    if len(taken) != source.spec.shape[dim] or len(set(taken.tolist())) != len(taken):
        return None
    in_order = sorted(selections, key=lambda one: int(rows[id(one)].min()))
    blocks = [int(rows[id(one)].max()) - int(rows[id(one)].min()) + 1 == len(rows[id(one)]) for one in selections]
    if not all(blocks):
        in_order = sorted(selections, key=lambda one: int(rows[id(one)][0]))
    places = {selection.dims for selection in selections if selection.dims}
    ranks = {len(selection.target.spec.shape) for selection in selections}
    if ranks != {len(source.spec.shape)}:
        return _split_reshaped(source, in_order, dim, [len(rows[id(one)]) for one in in_order])
    if len(places) > 1:
        return None
    targets = [one.target for one in in_order]
    for cut_dim in [place[0] for place in places] or list_short_dims(targets, dim):
        relation = _finish_split(source, in_order, targets, cut_dim, [() for _ in in_order])
        if relation is not None:
            return relation
    return None


def _split_reshaped(
    source: Prints, selections: Sequence[Selection], dim: int, sizes: Sequence[int]
) -> Relation | None:
    """Split in the form of the source, then take away or add dimensions of size 1 in each target."""
    parts: list[Prints] = []
    after: list[Ops] = []
    for selection, size in zip(selections, sizes, strict=True):
        shape = list(source.spec.shape)
        shape[dim] = size
        old = selection.target.spec.shape
        long, theirs = list_long_dims(shape), list_long_dims(old)
        if [shape[one] for one in long] != [old[one] for one in theirs]:
            return None
        views: dict[Dims, Array] = {(): selection.target.views[()]}
        views.update({(one,): selection.target.views[(new,)] for one, new in zip(long, theirs, strict=True)})
        parts.append(Prints(selection.target.fqn, TensorSpec(selection.target.spec.dtype, tuple(shape)), views))
        after.append(fit_shape(shape, old))
    return _finish_split(source, selections, parts, dim, after)


def _finish_split(
    source: Prints, selections: Sequence[Selection], parts: Sequence[Prints], dim: int, after: Sequence[Ops]
) -> Relation | None:
    shapes = [[*part.spec.shape[:dim], *part.spec.shape[dim + 1 :]] for part in parts]
    if any(shape != shapes[0] for shape in shapes):
        return None
    order = find_order(source, join_prints([parts], dim, None))
    if order is None:
        return None
    sizes = [part.spec.shape[dim] for part in parts]
    ours = order.dims[list_long_dims(order.target.shape).index(dim)]
    named = name_by_parts(order, ours, sizes, dim)
    if named is None:
        return None
    ops, each = named
    each = [(*own, *more) for own, more in zip(each, after, strict=True)]
    return Relation(
        (source.fqn,),
        tuple(selection.target.fqn for selection in selections),
        cut="split",
        dim=dim,
        sizes=() if len(set(sizes)) == 1 else tuple(sizes),
        ops=ops,
        after=tuple(each) if any(each) else (),
        by=judge_order(order.is_sure, ops, *each),
    )


def _build_unstack(source: Prints, selections: Sequence[Selection]) -> Relation | None:
    """Return an unstack, with a split of each element if several targets have its rows."""
    segments = [selection.segment for selection in selections]
    views = {segment.dims for segment in segments if segment is not None}
    if None in segments or len(views) != 1:
        return None
    (dims,) = views
    if len(dims) == 1:
        if any(selection.dims for selection in selections):
            return None
        rank = len(selections[0].target.spec.shape)
        return _finish_unstack(source, selections, dims[0], 0, 1) if rank == len(source.spec.shape) - 1 else None
    if dims == (0, 1) and not any(selection.dims for selection in selections):
        return _unstack_twice(source, selections)
    if len(dims) != 2 or any(len(selection.dims) > 1 for selection in selections):
        return None
    places = {selection.dims for selection in selections}
    if len(places) != 1 or () in places:
        return None
    rows = source.spec.shape[dims[1]]
    count = source.spec.shape[dims[0]]
    if len(selections) % count or len(selections) == count:
        return None
    return _finish_unstack(source, selections, dims[0], next(iter(places))[0], rows)


def _unstack_twice(source: Prints, selections: Sequence[Selection]) -> Relation | None:
    """Return an unstack of all that the first two dimensions stack, in their order."""
    shape = source.spec.shape
    at = {int(one.segment.indices[0]): one.target for one in selections if one.segment is not None}
    shapes = {target.spec.shape for target in at.values()}
    if sorted(at) != list(range(shape[0] * shape[1])) or len(at) < len(selections) or shapes != {shape[2:]}:
        return None
    ops: Ops = ({"reshape": [len(at), *shape[2:]]},)
    return Relation((source.fqn,), tuple(at[place].fqn for place in sorted(at)), cut="unstack", ops=ops)


def _finish_unstack(
    source: Prints, selections: Sequence[Selection], stacked: int, dim: int, rows: int
) -> Relation | None:
    count = source.spec.shape[stacked]
    firsts = {id(one): int(one.segment.indices.min()) for one in selections if one.segment is not None}
    in_order = sorted(selections, key=lambda one: firsts[id(one)])
    width, rest = divmod(len(selections), count)
    numbers = [firsts[id(one)] // rows for one in in_order]
    if rest or not width or numbers != [n // width for n in range(len(selections))]:
        return None
    groups = [[one.target for one in in_order[at : at + width]] for at in range(0, len(in_order), width)]
    shapes = [[target.spec.shape for target in group] for group in groups]
    if any(shape != shapes[0] for shape in shapes):
        return None
    targets = tuple(one.target.fqn for one in in_order)
    sizes = [target.spec.shape[dim] for target in groups[0]] if width > 1 else []
    for stack_dim in dict.fromkeys((stacked, 0)):
        if stack_dim > len(groups[0][0].spec.shape):
            continue
        order = find_order(source, join_prints(groups, dim, stack_dim))
        ops = order.name_ops() if order is not None else None
        if order is None or ops is None:
            continue
        by = judge_order(order.is_sure, ops)
        if width == 1:
            return Relation((source.fqn,), targets, cut="unstack", dim=stack_dim, ops=ops, by=by)
        return Relation(
            (source.fqn,),
            targets,
            cut="split",
            dim=dim,
            sizes=tuple(sizes) if len(set(sizes)) > 1 else (),
            ops=ops,
            count=count,
            count_dim=stack_dim,
            by=by,
        )
    return None
