"""Names for the order of a dimension: the simplest operation of the language that gives it.

An order is an array of indices: element n of the result is element `order[n]` of the source. What it becomes, the
first that fits: nothing, `slice`, `flip`, `flip_halves`, `roll`, `rope`, `ungroup_qkv`, `group_qkv`, `rearrange`,
`index`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from remapkit.authoring.relation import OpText
from remapkit.ops.attention import GroupQkv, Rope, UngroupQkv
from remapkit.ops.base import Op, RefusedOp
from remapkit.ops.steps import Pick
from remapkit.tensors.elements import Array
from remapkit.tensors.spec import TensorSpec

LONGEST_INDEX = 64
"""The longest list of indices that is written: a longer one is not a rule that anybody can check."""


def name_order(order: Array, size: int, dim: int, rank: int) -> tuple[OpText, ...] | None:
    """Return the operations for an order of some or all of the `size` elements of a dimension, None without any.

    >>> name_order(np.array([2, 3, 0, 1]), 4, 0, 2)
    ({'flip_halves': {'dim': 0}},)
    >>> name_order(np.array([0, 2, 4, 1, 3, 5]), 6, 1, 2)
    ({'rope': {'to': 'half', 'heads': 1, 'head_dim': 6, 'dim': 1}},)
    """
    count = len(order)
    if count == size and (order == np.arange(size)).all():
        return ()
    first = int(order.min())
    if int(order.max()) - first == count - 1 and count < size:
        cut: OpText = {"slice": {"dim": dim, "start": first, "stop": first + count}}
        rest = name_order(order - first, count, dim, rank)
        return None if rest is None else (cut, *rest)
    if count == size and len(np.unique(order)) == size:
        for name in _NAMINGS:
            if (found := name(order, dim, rank)) is not None:
                return (found,)
    if count <= LONGEST_INDEX:
        return ({"index": {"dim": dim, "order": order.tolist()}},)
    return None


def list_likely_orders(size: int) -> Iterator[Array]:
    """Yield the orders that have a name and need no further evidence, for elements that are partly alike."""
    yield np.arange(size)
    if size % 2 == 0:
        yield np.roll(np.arange(size), size // 2)
    yield np.arange(size)[::-1]
    for head_dim in range(4, size + 1, 2):
        if size % head_dim == 0:
            for to in ("half", "interleaved"):
                yield _list_indices(Rope(to, size // head_dim, head_dim), size)


def _name_flip(order: Array, dim: int, rank: int) -> OpText | None:
    return {"flip": {"dim": dim}} if (order == np.arange(len(order))[::-1]).all() else None


def _name_roll(order: Array, dim: int, rank: int) -> OpText | None:
    size, first = len(order), int(order[0])
    if (order != (np.arange(size) + first) % size).any():
        return None
    if 2 * first == size:
        return {"flip_halves": {"dim": dim}}
    return {"roll": {"dim": dim, "by": size - first if 2 * first > size else -first}}


def _name_rope(order: Array, dim: int, rank: int) -> OpText | None:
    size = len(order)
    if order[0] != 0 or size % 2:
        return None
    for to, half in (("half", int(np.flatnonzero(order == 1)[0])), ("interleaved", int(order[1]))):
        head_dim = 2 * half
        if half < 2 or size % head_dim:
            continue
        if (_list_indices(Rope(to, size // head_dim, head_dim), size) == order).all():
            return {"rope": {"to": to, "heads": size // head_dim, "head_dim": head_dim, "dim": dim}}
    return None


def _name_qkv(order: Array, dim: int, rank: int) -> OpText | None:
    """Name an order that groups or ungroups q, k and v: the first run has the queries of a group, the others tell."""
    runs = list_runs(order)
    if order[0] != 0 or len(runs) < 3:
        return None
    first = len(runs[0])
    for name, head_dim in (("ungroup_qkv", len(runs[-1])), ("group_qkv", len(runs[1]))):
        share, rest = divmod(first, head_dim)
        kv_heads, over = divmod(len(order), (share + 2) * head_dim)
        if rest or over or kv_heads < 2 or not share:
            continue
        op = (UngroupQkv if name == "ungroup_qkv" else GroupQkv)(share * kv_heads, kv_heads, head_dim)
        if (_list_indices(op, len(order)) == order).all():
            return {name: {"heads": share * kv_heads, "kv_heads": kv_heads, "head_dim": head_dim, "dim": dim}}
    return None


def _name_rearrange(order: Array, dim: int, rank: int) -> OpText | None:
    """Name an order in which digits of the index change places: `(a b) -> (b a)`."""
    loops = find_loops(order)
    if loops is None or not 2 <= len(loops) <= 6:
        return None
    slowest_first = sorted(range(len(loops)), key=lambda n: -loops[n][1])
    names = dict(zip(slowest_first, "abcdefgh", strict=False))
    before = " ".join(f"x{n}" for n in range(dim))
    rest = "..." if dim < rank - 1 or rank == 1 else ""
    left = f"({' '.join(names[n] for n in slowest_first)})"
    right = f"({' '.join(names[n] for n in range(len(loops)))})"
    if dim == rank - 1 > 0:
        before = "..."
    sides = (" ".join(filter(None, (before, side, rest))) for side in (left, right))
    sizes = {names[n]: loops[n][0] for n in slowest_first[1:]}
    return {"rearrange": {"pattern": " -> ".join(sides), **sizes}}


_NAMINGS: tuple[Callable[[Array, int, int], OpText | None], ...] = (
    _name_flip,
    _name_roll,
    _name_rope,
    _name_qkv,
    _name_rearrange,
)


def list_runs(order: Array) -> list[Array]:
    """Split an order where the next index is not one more.

    >>> [run.tolist() for run in list_runs(np.array([3, 4, 0, 1, 2]))]
    [[3, 4], [0, 1, 2]]
    """
    return np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)


def find_loops(order: Array) -> list[tuple[int, int]] | None:
    """Return the order as nested loops, the outermost first: how often each runs, and its step; None if it is none.

    Each round takes the longest arithmetic row at the start, which must repeat; the length shrinks, so it ends.

    >>> find_loops(np.array([0, 2, 4, 1, 3, 5]))
    [(2, 1), (3, 2)]
    """
    loops: list[tuple[int, int]] = []
    if len(order) < 2 or order[0] != 0:
        return None
    while len(order) > 1:
        step = int(order[1])
        wrong = np.flatnonzero(order != np.arange(len(order)) * step)
        length = int(wrong[0]) if len(wrong) else len(order)
        if length < 2 or len(order) % length:
            return None
        rows = order.reshape(-1, length)
        if (rows != rows[:, :1] + np.arange(length) * step).any():
            return None
        loops.insert(0, (length, step))
        order = rows[:, 0]
    by_step = sorted(loops, key=lambda loop: loop[1])
    reach = 1
    for length, step in by_step:
        if step != reach:
            return None
        reach *= length
    return loops


def _list_indices(op: Op, size: int) -> Array:
    """Return the order that an operation gives to a vector."""
    try:
        (step,) = op.steps(TensorSpec("U8", (size,)))
    except RefusedOp:
        return np.empty(0, np.int64)
    assert isinstance(step, Pick)
    return np.concatenate([np.arange(part.start, part.stop, part.step) for part in step.ranges])
