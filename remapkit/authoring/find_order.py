"""Which dimensions and orders turn one tensor into another, decided on fingerprints alone.

A join of tensors has fingerprints too: views along the joined dimension follow one another, and all others add up. So
one search serves tensors, concatenations and stacks, and what is to be split as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from remapkit.authoring.fingerprint import Dims, Prints, list_long_dims
from remapkit.authoring.name_order import list_likely_orders, name_order
from remapkit.authoring.relation import SIMPLEST, UNSETTLED, OpText
from remapkit.tensors.elements import Array
from remapkit.tensors.spec import TensorSpec

MOST_DIMS = 6
"""Tensors of more long dimensions are compared in their own order only."""


@dataclass(frozen=True, slots=True)
class Order:
    """How `source` becomes `target`: each long dimension in a new order, then the dimensions themselves.

    `picks` has the order by dimension of the source; `dims` the source's dimension for each long one of the target.
    `is_sure` is False if equal elements allow other orders too.
    """

    source: TensorSpec
    target: TensorSpec
    picks: Mapping[int, Array]
    dims: Dims
    is_sure: bool = True

    def name_ops(self, *, but: int | None = None) -> tuple[OpText, ...] | None:
        """Return the operations, None if an order has no name; `but` is a dimension that is left alone."""
        found: list[OpText] = []
        rank = len(self.source.shape)
        for dim, order in self.picks.items():
            if dim != but:
                named = name_order(order, self.source.shape[dim], dim, rank)
                if named is None:
                    return None
                found += named
        shape = [self.source.shape[dim] for dim in range(rank)]
        return (*found, *name_dims(shape, self.dims, self.target.shape))


def join_prints(groups: Sequence[Sequence[Prints]], dim: int, stack_dim: int | None) -> Prints:
    """Return the fingerprints of some tensors concatenated along `dim`, and those of all groups stacked.

    With `stack_dim` None there is one group. Only views of single dimensions and the total are made.
    """
    made = [_concatenate(group, dim) for group in groups]
    if stack_dim is None:
        return made[0]
    shape = list(made[0].spec.shape)
    shape.insert(stack_dim, len(made))
    views: dict[Dims, Array] = {
        (): _add_up([one.views[()] for one in made]),
        (stack_dim,): np.concatenate([one.views[()] for one in made]),
    }
    for old in made[0].long_dims:
        new = old + (old >= stack_dim)
        views[(new,)] = _add_up([one.views[(old,)] for one in made])
    return Prints("", TensorSpec(made[0].spec.dtype, tuple(shape)), views)


def _concatenate(parts: Sequence[Prints], dim: int) -> Prints:
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    shape = list(first.spec.shape)
    shape[dim] = sum(part.spec.shape[dim] for part in parts)
    views: dict[Dims, Array] = {(): _add_up([part.views[()] for part in parts])}
    for other in list_long_dims(shape):
        # A part of size 1 has no view along the dimension: its only element is its total.
        each = [part.views[(other,)] if (other,) in part.views else part.views[()] for part in parts]
        views[(other,)] = np.concatenate(each) if other == dim else _add_up(each)
    return Prints("", TensorSpec(first.spec.dtype, tuple(shape)), views)


def _add_up(views: Sequence[Array]) -> Array:
    total: Array = np.sum(np.stack(views), axis=0, dtype="<u8")
    return total


def permute_prints(prints: Prints, order: Dims) -> Prints:
    """Return the fingerprints of a permuted tensor."""
    shape = tuple(prints.spec.shape[dim] for dim in order)
    views: dict[Dims, Array] = {(): prints.views[()]}
    views.update({(new,): prints.views[(old,)] for new, old in enumerate(order) if (old,) in prints.views})
    return Prints(prints.fqn, TensorSpec(prints.spec.dtype, shape), views)


def find_order(source: Prints, target: Prints) -> Order | None:
    """Return the simplest order that gives the target's fingerprints: dimensions as they are, before others."""
    ours, theirs = source.long_dims, target.long_dims
    if len(ours) != len(theirs) or source.total != target.total:
        return None
    if any((dim,) not in source.views for dim in ours) or any((dim,) not in target.views for dim in theirs):
        return None
    fits = _list_bijections(source, target)
    for dims in fits:
        picks: dict[int, Array] = {}
        is_sure = len(fits) == 1 or list(dims) == sorted(dims)
        for old, new in zip(dims, theirs, strict=True):
            order = _find_pick(source.views[(old,)], target.views[(new,)])
            if order is None:
                break
            if (order != np.arange(len(order))).any():
                picks[old] = order
                is_sure = is_sure and has_distinct(source.views[(old,)])
        else:
            return Order(source.spec, target.spec, picks, dims, is_sure)
    return None


def judge_order(is_sure: bool, *ops: Sequence[OpText]) -> str:
    """Return what settled operations where values allow others: a name does, a list of indices does not.

    >>> judge_order(True), judge_order(False, ["transpose"]) == SIMPLEST
    ('', True)
    """
    has_index = any(isinstance(op, Mapping) and "index" in op for some in ops for op in some)
    return "" if is_sure else UNSETTLED if has_index else SIMPLEST


def has_distinct(view: Array) -> bool:
    """Return whether no two elements of a view are equal."""
    return len(np.unique(view)) == len(view)


def _list_bijections(source: Prints, target: Prints) -> list[Dims]:
    ours, theirs = source.long_dims, target.long_dims
    sizes = [target.spec.shape[dim] for dim in theirs]
    orders = permutations(ours) if len(ours) <= MOST_DIMS else iter([ours])
    fits = [dims for dims in orders if [source.spec.shape[dim] for dim in dims] == sizes]
    signs = {dim: _sign(source.views[(dim,)]) for dim in ours}
    wanted = [_sign(target.views[(dim,)]) for dim in theirs]
    fits = [dims for dims in fits if [signs[dim] for dim in dims] == wanted]
    # Dimensions whose views are equal as they stand need no order: they come first.
    fits.sort(
        key=lambda dims: sum(
            not np.array_equal(source.views[(old,)], target.views[(new,)])
            for old, new in zip(dims, theirs, strict=True)
        )
    )
    return fits


def _sign(view: Array) -> int:
    """Return a number that depends on the elements of a view but not on their order."""
    mixed = (view ^ (view >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return int(np.sum(mixed ^ (mixed >> np.uint64(32)), dtype="<u8"))


def _find_pick(old: Array, new: Array) -> Array | None:
    if np.array_equal(old, new):
        return np.arange(len(old))
    by_old, by_new = np.argsort(old, kind="stable"), np.argsort(new, kind="stable")
    ranked = old[by_old]
    if not np.array_equal(ranked, new[by_new]):
        return None
    if (ranked[1:] == ranked[:-1]).any():
        # Equal elements may stand for one another: an order with a name is likelier than the first that fits.
        for likely in list_likely_orders(len(old)):
            if np.array_equal(old[likely], new):
                return likely
    order = np.empty(len(old), np.int64)
    order[by_new] = by_old
    return order


# -------------------------------------------------------------------------------------------- dimensions as words


def name_dims(shape: Sequence[int], dims: Dims, wanted: Sequence[int]) -> tuple[OpText, ...]:
    """Return the operations that bring the long dimensions into an order, and those of size 1 to their places."""
    if list(dims) == sorted(dims):
        return fit_shape(shape, wanted)
    short = [dim for dim in range(len(shape)) if dim not in dims]
    order: list[int] = []
    left = list(dims)
    for size in wanted:
        if size != 1 and left:
            order.append(left.pop(0))
        elif size == 1 and short:
            order.append(short.pop(0))
    order += [*left, *short]
    moved = [shape[dim] for dim in order]
    swapped = [place for place, dim in enumerate(order) if place != dim]
    if len(order) == 2:
        op: OpText = "transpose"
    elif len(swapped) == 2:
        op = {"transpose": swapped}
    else:
        op = {"permute": order}
    return (op, *fit_shape(moved, wanted))


def fit_shape(shape: Sequence[int], wanted: Sequence[int]) -> tuple[OpText, ...]:
    """Return the operation that gives another shape to the same elements: `squeeze`, `unsqueeze`, or `reshape`.

    >>> fit_shape([4, 3, 1, 1], [4, 3]), fit_shape([4], [4, 1]), fit_shape([4, 6], [4, 2, 3])
    (({'squeeze': [2, 3]},), ({'unsqueeze': 1},), ({'reshape': [4, 2, 3]},))
    """
    if list(shape) == list(wanted):
        return ()
    for op, long, short in (("squeeze", shape, wanted), ("unsqueeze", wanted, shape)):
        ones = _find_ones(long, short)
        if ones:
            return ({op: ones[0] if len(ones) == 1 else ones},)
    return ({"reshape": list(wanted)},)


def _find_ones(long: Sequence[int], short: Sequence[int]) -> list[int]:
    """Return the dimensions of size 1 that `long` has beyond `short`, [] if that is not all that it has."""
    ones: list[int] = []
    rest = list(short)
    for dim, size in enumerate(long):
        # A 1 that both have is kept while as many are left as are wanted.
        if rest and rest[0] == size and (size != 1 or list(long[dim:]).count(1) <= rest.count(1)):
            rest.pop(0)
            continue
        if size != 1:
            return []
        ones.append(dim)
    return ones if not rest else []


def find_merged_axes(source: Prints, target: Prints) -> tuple[tuple[OpText, ...], bool] | None:
    """Return a `rearrange` that joins or splits dimensions in another order: a convolution's weights as a matrix.

    With it comes whether no two elements that it moves are equal. The first dimension stays; all others are one
    dimension on one of the sides.
    """
    big, small = (source, target) if len(source.long_dims) > len(target.long_dims) else (target, source)
    if len(small.long_dims) != 2 or len(big.long_dims) < 3 or source.total != target.total:
        return None
    first, rest = big.long_dims[0], big.long_dims[1:]
    if rest not in big.views or len(big.long_dims) != len(big.spec.shape) or len(small.spec.shape) != 2:
        return None
    if not np.array_equal(big.views[(first,)], small.views[(0,)]):
        return None
    order = _find_pick(big.views[rest], small.views[(1,)])
    if order is None:
        return None
    sizes = [big.spec.shape[dim] for dim in rest]
    names = "abcdefgh"[: len(rest)]
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    for places in permutations(range(len(rest))):
        if np.array_equal(grid.transpose(places).reshape(-1), order):
            apart = f"o {' '.join(names)}"
            flat = f"o ({' '.join(names[place] for place in places)})"
            sides = (apart, flat) if big is source else (flat, apart)
            given = {names[n]: size for n, size in enumerate(sizes) if big is source or n != places[0]}
            return ({"rearrange": {"pattern": " -> ".join(sides), **given}},), has_distinct(big.views[rest])
    return None
