"""Replay a witness with the real matcher, before it is reported."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from remapkit.patterns.automaton import Automaton, build_automaton
from remapkit.patterns.pattern import Part, Pattern
from remapkit.patterns.template import CaptureItem, TextItem
from remapkit.patterns.tree import literal
from remapkit.patterns.unparse import unparse
from remapkit.proofs.keymap import WHOLE, KeyMap, Made

TargetKey = tuple["str | Made", ...]
"""A target key: text, and the indices that `unstack` makes."""


def can_meet(one: TargetKey, other: TargetKey) -> bool:
    """Return whether two targets can be equal for some index of each: search the product of their automata.

    It ends because each pair of positions is visited once.
    """
    left, right = (_machine(each) for each in (one, other))
    if left.nullable and right.nullable:
        return True
    pending = [(a, b) for a in left.first for b in right.first]
    seen = set(pending)
    while pending:
        a, b = pending.pop()
        if not any(low <= top and bottom <= high for low, high in left.chars[a] for bottom, top in right.chars[b]):
            continue
        if a in left.last and b in right.last:
            return True
        following = {(c, d) for c in left.follow[a] for d in right.follow[b]} - seen
        seen |= following
        pending += following
    return False


def _machine(target: TargetKey) -> Automaton:
    return build_automaton([Part(None, literal(each) if isinstance(each, str) else each.node) for each in target])


def make_target(key_map: KeyMap, key: str, captures: Mapping[str, str]) -> TargetKey:
    """Return the target of a key; a dropped key has an empty one."""
    found: list[str | Made] = []
    for item in key_map.items or ():
        if isinstance(item, Made):
            found.append(item)
        elif isinstance(item, TextItem):
            found.append(item.text)
        elif isinstance(item, CaptureItem):
            found.append(key if item == WHOLE else captures[item.name])
        else:
            found.append(item.mapping[tuple(captures[name] for name in item.names)])
    return tuple(found)


def is_reading(pattern: Pattern, key: str, texts: Sequence[str]) -> bool:
    """Return whether a key can be split into these texts, one for each part of a pattern."""
    if "".join(texts) != key or len(texts) != len(pattern.parts):
        return False
    if pattern.leaf is not None and key.rpartition(".")[2] not in pattern.leaf:
        return False
    return all(re.fullmatch(unparse(part.node), text) for part, text in zip(pattern.parts, texts, strict=True))
