"""Differences of two keys of one key map, and whether the author declares them lossy (`forget`, lossy tables)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from remapkit.patterns.template import CaptureItem, MapItem
from remapkit.proofs.keymap import KeyMap, readings

APART = 100
"""The most combinations of lossy values that are examined individually."""


def list_captures(item: CaptureItem | MapItem) -> tuple[str, ...]:
    return (item.name,) if isinstance(item, CaptureItem) else item.names


def list_lossy_captures(key_map: KeyMap) -> tuple[str, ...]:
    """Return the captures that are looked up in a lossy table."""
    return tuple(
        name
        for item in key_map.items or ()
        if isinstance(item, MapItem) and item.table in key_map.lossy
        for name in item.names
    )


def is_admitted(key_map: KeyMap, keys: tuple[str, str]) -> bool:
    """Return whether two keys differ in a capture declared lossy; then they never occur together."""
    one, other = (key_map.reader(key) for key in keys)
    if one is None or other is None:
        return False
    if any(one[name] != other[name] for name in key_map.forget):
        return True
    return any(
        one[name] != other[name] and item.mapping[(one[name],)] == item.mapping[(other[name],)]
        for item in key_map.items or ()
        if isinstance(item, MapItem) and item.table in key_map.lossy
        for name in item.names
    )


def split_by_captures(key_map: KeyMap, names: Sequence[str]) -> Iterator[KeyMap]:
    """Split a key map by the values of captures; if there are too many, add those captures to the target instead."""
    parts = [part for part in key_map.pattern.captures if part.name in names]
    spaces = [part.values for part in parts if part.values is not None]
    if len(spaces) < len(parts) or math.prod(map(len, spaces)) > APART:
        yield replace(key_map, folded=(*key_map.folded, *names), forget=(), lossy=())
        return
    for values in itertools.product(*spaces):
        given = {part.name: value for part, value in zip(parts, values, strict=True)}
        pattern = replace(
            key_map.pattern,
            parts=tuple(
                part.restrict_to((given[part.name],)) if part.name in given else part
                for part in key_map.pattern.parts
            ),
        )
        yield replace(key_map, pattern=pattern, forget=(), lossy=())


def get_shown_target(text: str, key_map: KeyMap) -> str | None:
    """Return the text of a collision as a target, or None if it contains folded captures."""
    return None if key_map.folded else text


def has_lossy_table(key_map: KeyMap) -> bool:
    return any(isinstance(item, MapItem) and item.table in key_map.lossy for item in key_map.items or ())


def bind_captures(key_map: KeyMap, reading: Sequence[str]) -> Mapping[str, str]:
    return {
        part.name: text for part, text in zip(key_map.pattern.parts, reading, strict=True) if part.name is not None
    }


def identify_target(key_map: KeyMap, key: str, captures: Mapping[str, str]) -> tuple[str, ...]:
    """Return the target and the folded captures that count as part of it."""
    return (str(key_map.target(key, captures)), *(captures[name] for name in key_map.folded))


def render_target(key_map: KeyMap, key: str) -> str:
    captures = key_map.reader(key)
    return "" if captures is None else str(key_map.target(key, captures) or "")


def find_lost_part(key_map: KeyMap, keys: tuple[str, str]) -> int | None:
    """Return a part in which two keys differ but their targets do not (forgotten captures first), or None."""
    one, other = (readings(key_map.pattern, key, 1) for key in keys)
    if not one or not other:
        return None
    shown = {
        name
        for item in key_map.items or ()
        if isinstance(item, CaptureItem | MapItem)
        for name in list_captures(item)
    }
    parts = key_map.pattern.parts
    differing = [number for number in range(len(parts)) if one[0][number] != other[0][number]]
    forgotten = [number for number in differing if parts[number].name in key_map.forget]
    if forgotten:
        return forgotten[0]
    if not differing or any(parts[number].name in {*shown, *key_map.folded} for number in differing):
        return None
    return differing[0]
