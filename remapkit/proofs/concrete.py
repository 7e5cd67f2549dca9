"""What a key map does with concrete keys: by the real matcher and templates, not by the automata of the proofs.

Witnesses are replayed with it before they are reported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from remapkit.patterns.automaton import Automaton, build_automaton
from remapkit.patterns.matcher import Program
from remapkit.patterns.pattern import Part, Pattern
from remapkit.patterns.template import CaptureItem, MapItem, TextItem
from remapkit.patterns.tree import literal
from remapkit.patterns.unparse import unparse
from remapkit.proofs.keymap import WHOLE, KeyMap, Made, list_names

TargetKey = tuple["str | Made", ...]
"""A target key: text, and the indices that `unstack` makes."""


def read_parts(key_map: KeyMap, key: str) -> tuple[str, ...] | None:
    """Return the text of each part of the pattern in the reading that counts, or None if the key does not match."""
    parts, leaf = key_map.pattern.parts, key_map.pattern.leaf
    if leaf is not None and key.rpartition(".")[2] not in leaf:
        return None
    named = tuple(replace(part, name=f"part{number}") for number, part in enumerate(parts))
    found = Program(replace(key_map.pattern, parts=named)).find_captures(key)
    return None if found is None else tuple(found.values())


def bind_captures(key_map: KeyMap, reading: Sequence[str]) -> Mapping[str, str]:
    """Return the captures of a reading, which has a text for each part of the pattern."""
    return {
        part.name: text for part, text in zip(key_map.pattern.parts, reading, strict=True) if part.name is not None
    }


def is_reading(pattern: Pattern, key: str, texts: Sequence[str]) -> bool:
    """Return whether a key can be split into these texts, one for each part of a pattern."""
    if "".join(texts) != key or len(texts) != len(pattern.parts):
        return False
    if pattern.leaf is not None and key.rpartition(".")[2] not in pattern.leaf:
        return False
    return all(re.fullmatch(unparse(part.node), text) for part, text in zip(pattern.parts, texts, strict=True))


def identify_target(key_map: KeyMap, key: str, captures: Mapping[str, str]) -> tuple[str, ...]:
    """Return the target and the folded integers that count as part of it."""
    return (str(key_map.target(key, captures)), *(str(int(captures[name])) for name in key_map.folded))


def read_target(key_map: KeyMap, key: str) -> str | None:
    """Return the target of a key, with the name of an index that `unstack` makes; None if it has no target."""
    captures = key_map.reader(key)
    return None if captures is None else key_map.target(key, captures)


def render_target(key_map: KeyMap, key: str) -> str:
    """Return the target of a key, "" if it has none."""
    return read_target(key_map, key) or ""


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


def has_target(key_map: KeyMap, key: str, target: str) -> bool:
    """Return whether a key map really maps a key to a target, for some index if it makes one."""
    captures = key_map.reader(key)
    return captures is not None and can_meet(make_target(key_map, key, captures), (target,))


def can_meet(one: TargetKey, other: TargetKey) -> bool:
    """Return whether two targets can be equal for some index of each: search the product of their automata.

    It ends because each pair of positions is visited once.
    """
    left, right = (_build_automaton(each) for each in (one, other))
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


def _build_automaton(target: TargetKey) -> Automaton:
    return build_automaton([Part(None, literal(each) if isinstance(each, str) else each.node) for each in target])


def list_lossy_items(key_map: KeyMap) -> list[MapItem]:
    """Return the parts of the target that are looked up in a lossy table."""
    return [item for item in key_map.items or () if isinstance(item, MapItem) and item.table in key_map.lossy]


def list_losable(*key_maps: KeyMap) -> tuple[str, ...]:
    """Return the captures in which keys must agree for their collision not to be admitted, folded ones included."""
    names: dict[str, None] = {}
    for key_map in key_maps:
        lossy = (name for item in list_lossy_items(key_map) for name in item.names)
        for name in (*key_map.folded, *key_map.forget, *lossy):
            part = key_map.pattern.capture(name)
            if part is not None and not part.is_constant:
                names[name] = None
    return tuple(names)


def is_admitted(key_map: KeyMap, keys: Sequence[str]) -> bool:
    """Return whether two keys differ in what the author admits to lose: a `forget`, or one value of a lossy table."""
    if not key_map.has_source:
        return False
    one, other = (key_map.reader(key) for key in keys)
    if one is None or other is None:
        return False
    return any(one[name] != other[name] for name in key_map.forget) or is_table_loss(key_map, one, other)


def is_table_loss(key_map: KeyMap, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether two readings, of which only captures of lossy tables matter, differ in keys with one value."""
    for item in list_lossy_items(key_map):
        left, right = (tuple([captures[name] for name in item.names]) for captures in (one, other))
        if left != right and item.mapping[left] == item.mapping[right]:
            return True
    return False


def find_lossy_arithmetic(key_map: KeyMap, keys: Sequence[str]) -> MapItem | None:
    """Return arithmetic that gives two keys one number although its captures differ, if no other field differs.

    Then the arithmetic loses the difference; otherwise the target can be split into its fields in two ways.
    """
    one, other = (key_map.reader(key) for key in keys)
    found: MapItem | None = None
    for item in key_map.items or ():
        if isinstance(item, TextItem):
            continue
        if one is None or other is None or isinstance(item, Made) or not {*list_names(item)} <= one.keys():
            return None
        left, right = (tuple(captures[name] for name in list_names(item)) for captures in (one, other))
        if isinstance(item, MapItem) and item.mapping[left] == item.mapping[right]:
            if found is None and left != right and item.table is None:
                found = item
        elif left != right:
            return None
    return found


def find_only_difference(key_map: KeyMap, keys: Sequence[str]) -> int | None:
    """Return the part in which two keys differ, or None if they differ in several."""
    differing = _list_differences(key_map, keys)
    return differing[0] if len(differing) == 1 else None


def find_lost_part(key_map: KeyMap, keys: Sequence[str]) -> int | None:
    """Return a part in which two keys differ but their targets do not (forgotten captures first), or None."""
    differing = _list_differences(key_map, keys)
    names = [key_map.pattern.parts[number].name for number in differing]
    for number, name in zip(differing, names, strict=True):
        if name in key_map.forget:
            return number
    if len(differing) == 1 and names[0] in key_map.folded:
        # Two spellings of one index.
        return differing[0]
    shown = {*key_map.folded, *(name for item in key_map.items or () for name in list_names(item))}
    return differing[0] if differing and shown.isdisjoint(names) else None


def _list_differences(key_map: KeyMap, keys: Sequence[str]) -> list[int]:
    """Return the parts in which two keys differ; none if it does not match both."""
    one, other = (read_parts(key_map, key) for key in keys)
    if one is None or other is None:
        return []
    return [number for number, text in enumerate(one) if text != other[number]]
