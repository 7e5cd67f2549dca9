"""Repeats that would rather match nothing than go on: where they are, and how to write them otherwise.

`re` leaves a repeat as soon as its body matches nothing. If the body tries nothing last, all other ways through the
repeat have been tried by then, so this changes no match. Otherwise it does, and hence such repeats are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat, Seq


@dataclass(frozen=True, slots=True)
class _Ways:
    """Whether a pattern can match nothing, or something, and whether it tries nothing before some other way."""

    nothing: bool
    something: bool
    nothing_first: bool


def find_repeat_of_nothing(node: PatternNode) -> Repeat | None:
    """Return the first repeat, an inner before an outer one, whose body tries to match nothing before something else.

    >>> item = Alt((Seq(()), Chars(((97, 97),))))
    >>> find_repeat_of_nothing(Repeat(item, 0, None)) is not None, find_repeat_of_nothing(Repeat(item, 0, 1))
    (True, None)
    """
    found: list[Repeat] = []
    _list_ways(node, found)
    return found[0] if found else None


def _list_ways(node: PatternNode, found: list[Repeat]) -> _Ways:
    """Return the ways of a pattern; add to `found` the repeats in it whose body tries nothing first."""
    if isinstance(node, Chars):
        return _Ways(False, True, False)
    if isinstance(node, Group):
        return _list_ways(node.item, found)
    if isinstance(node, Repeat):
        body = _list_ways(node.item, found)
        # Without a choice of how often, `re` takes every round, even if it matches nothing.
        if body.nothing_first and node.high not in (node.low, 1):
            found.append(node)
        something = body.something and node.high != 0
        return _Ways(node.low == 0 or body.nothing, something, something and body.nothing_first)
    ways = [_list_ways(each, found) for each in (node.items if isinstance(node, Seq) else node.branches)]
    something = any(each.something for each in ways)
    first = any(each.nothing_first for each in ways)
    if isinstance(node, Seq):
        nothing = all(each.nothing for each in ways)
        return _Ways(nothing, something, nothing and first)
    empty = next((number for number, each in enumerate(ways) if each.nothing), len(ways))
    return _Ways(empty < len(ways), something, first or any(each.something for each in ways[empty + 1 :]))


def write_nothing_last(repeat: Repeat) -> PatternNode:
    """Return a repeat of the same language whose body cannot match nothing; the body of the given one can.

    >>> from remapkit.patterns.unparse import unparse
    >>> unparse(write_nothing_last(Repeat(Alt((Seq(()), Chars(((97, 97),)))), 2, None)))
    'a*'
    """
    body = _drop_nothing(repeat.item)
    assert body is not None
    if repeat.high is None and isinstance(body, Repeat) and (body.low, body.high) == (1, None):
        body = body.item
    return Repeat(body, 0, repeat.high)


def _drop_nothing(node: PatternNode) -> PatternNode | None:
    """Return the pattern without the empty word; None if it has no other."""
    if not _list_ways(node, []).nothing:
        return node
    if isinstance(node, Alt):
        branches = tuple(each for branch in node.branches if (each := _drop_nothing(branch)) is not None)
        return Alt(branches) if len(branches) > 1 else branches[0] if branches else None
    if isinstance(node, Seq):
        # All items can match nothing: the first one that does not may be any of them.
        starts = ((number, _drop_nothing(item)) for number, item in enumerate(node.items))
        ways = [Seq((item, *node.items[number + 1 :])) for number, item in starts if item is not None]
        return Alt(tuple(ways)) if len(ways) > 1 else ways[0] if ways else None
    assert isinstance(node, Repeat | Group)
    item = _drop_nothing(node.item)
    if item is None or isinstance(node, Group) or node.high in (0, 1):
        return None if isinstance(node, Repeat) and node.high == 0 else item
    return Repeat(item, 1, node.high)
