"""Say what to do about targets of another shape: grids of positions, and rows at the end that one side lacks."""

from __future__ import annotations

import math
from collections.abc import Iterable

Shape = tuple[int, ...]

MAX_TOKENS = 5
"""The most tokens beside a grid of positions: one for the class, and registers."""


def find_grids(brought: Shape, wanted: Shape) -> tuple[int, int, int] | None:
    """Return the sides of two square grids of positions and the number of tokens beside both, or None.

    The shapes may differ in one dimension only.

    >>> find_grids((1, 17, 8), (1, 50, 8))
    (4, 7, 1)
    >>> find_grids((1, 18, 8), (1, 50, 8)) is None
    True
    """
    if (dim := find_only_difference(brought, wanted)) is None:
        return None
    for tokens in range(MAX_TOKENS + 1):
        sizes = brought[dim] - tokens, wanted[dim] - tokens
        if min(sizes) > 0 and all(math.isqrt(size) ** 2 == size for size in sizes):
            return math.isqrt(sizes[0]), math.isqrt(sizes[1]), tokens
    return None


def find_only_difference(brought: Shape, wanted: Shape) -> int | None:
    """Return the only dimension in which two shapes differ, or None.

    >>> find_only_difference((34, 8), (32, 8)), find_only_difference((34, 8), (32, 4))
    (0, None)
    """
    dims = [dim for dim, pair in enumerate(zip(brought, wanted, strict=False)) if pair[0] != pair[1]]
    return dims[0] if len(dims) == 1 and len(brought) == len(wanted) else None


def advise_shapes(pairs: Iterable[tuple[str, Shape, Shape]]) -> tuple[list[str], bool]:
    """Return what to do about some targets with the shape that is brought and the one that is wanted.

    The flag says whether that explains all of them. An operation is proposed only if it gives every one of the others
    its shape, and keeps more than half of the dimension.

    >>> advise_shapes([("embed.w", (34, 8), (32, 8))])[0][0]
    'if the last 2 of dimension 0 are padding, remove them in the rule: ops: [{slice: {dim: 0, start: 0, stop: 32}}]'
    """
    advice: list[str] = []
    others: list[tuple[int | None, Shape, Shape]] = []
    for target, brought, wanted in pairs:
        grids = find_grids(brought, wanted) if "pos" in target.lower() else None
        if grids is None:
            others.append((find_only_difference(brought, wanted), brought, wanted))
        elif not advice:
            old, new, tokens = grids
            more = f" (+{tokens})" if tokens else ""
            advice.append(
                f"{target} has a positional grid of {old}×{old}{more}, the model has {new}×{new}: interpolation is "
                f"not a remap; build the model for {old}×{old}, or interpolate the tensor before (F.interpolate)"
            )
    changes = {(dim, old[dim], new[dim]) for dim, old, new in others if dim is not None}
    if len(changes) != 1 or any(dim is None for dim, _, _ in others):
        return advice, not others
    dim, old, new = changes.pop()
    if new < old < 2 * new:
        them = f"the last of dimension {dim} is" if old == new + 1 else f"the last {old - new} of dimension {dim} are"
        remove = f"ops: [{{slice: {{dim: {dim}, start: 0, stop: {new}}}}}]"
        advice.append(f"if {them} padding, remove {'it' if old == new + 1 else 'them'} in the rule: {remove}")
    elif old < new < 2 * old:
        add = f"ops: [{{pad: {{dim: {dim}, to: {new}, value: 0}}}}]"
        advice.append(f"if the model only pads dimension {dim}, pad it with zeros in the rule: {add}")
    return advice, False
