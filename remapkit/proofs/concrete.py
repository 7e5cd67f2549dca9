"""What a key map does with concrete keys: by the real matcher and templates, not by the automata of the proofs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from remapkit.patterns.matcher import Program
from remapkit.patterns.template import CaptureItem, MapItem
from remapkit.proofs.keymap import KeyMap, Made


def read_parts(key_map: KeyMap, key: str) -> tuple[str, ...] | None:
    """Return the text of each part of the pattern in the reading that counts, or None if the key does not match."""
    parts = key_map.pattern.parts
    named = tuple(replace(part, name=f"part{number}") for number, part in enumerate(parts))
    found = Program(replace(key_map.pattern, parts=named)).find_captures(key)
    return None if found is None else tuple(found.values())


def bind_captures(key_map: KeyMap, reading: Sequence[str]) -> Mapping[str, str]:
    """Return the captures of a reading, which has a text for each part of the pattern."""
    return {
        part.name: text for part, text in zip(key_map.pattern.parts, reading, strict=True) if part.name is not None
    }


def identify_target(key_map: KeyMap, key: str, captures: Mapping[str, str]) -> tuple[str, ...]:
    """Return the target and the folded integers that count as part of it."""
    return (str(key_map.target(key, captures)), *(str(int(captures[name])) for name in key_map.folded))


def render_target(key_map: KeyMap, key: str) -> str:
    """Return the target of a key, "" if it has none."""
    captures = key_map.reader(key)
    return "" if captures is None else str(key_map.target(key, captures) or "")


def has_target(key_map: KeyMap, key: str, target: str) -> bool:
    """Return whether a key map really maps a key to a target, for some index if it makes one."""
    captures = key_map.reader(key)
    found = None if captures is None else key_map.target(key, captures)
    made = next((item for item in key_map.items or () if isinstance(item, Made)), None)
    if found is None or made is None:
        return found == target
    before, _, after = found.partition(f"{{{made.name}}}")
    middle = target[len(before) : len(target) - len(after)]
    known = middle.isdecimal() and (made.count is None or int(middle) < made.count)
    return known and target == f"{before}{middle}{after}"


def list_lossy_captures(key_map: KeyMap) -> tuple[str, ...]:
    """Return the captures that are looked up in a lossy table."""
    return tuple(
        name
        for item in key_map.items or ()
        if isinstance(item, MapItem) and item.table in key_map.lossy
        for name in item.names
    )


def is_admitted(key_map: KeyMap, keys: Sequence[str]) -> bool:
    """Return whether two keys differ in what the author admits to lose: a `forget`, or one value of a lossy table."""
    one, other = (key_map.reader(key) for key in keys)
    if one is None or other is None:
        return False
    return any(one[name] != other[name] for name in key_map.forget) or is_table_loss(key_map, one, other)


def is_table_loss(key_map: KeyMap, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether two readings, of which only captures of lossy tables matter, differ in keys with one value."""
    return any(
        any(one[name] != other[name] for name in item.names)
        and item.mapping[tuple([one[name] for name in item.names])]
        == item.mapping[tuple([other[name] for name in item.names])]
        for item in key_map.items or ()
        if isinstance(item, MapItem) and item.table in key_map.lossy
    )


def find_only_difference(key_map: KeyMap, keys: Sequence[str]) -> int | None:
    """Return the part in which two keys differ, or None if they differ in several."""
    one, other = (read_parts(key_map, key) for key in keys)
    if one is None or other is None:
        return None
    differing = [number for number, text in enumerate(one) if text != other[number]]
    return differing[0] if len(differing) == 1 else None


def find_lost_part(key_map: KeyMap, keys: Sequence[str]) -> int | None:
    """Return a part in which two keys differ but their targets do not (forgotten captures first), or None."""
    one, other = (read_parts(key_map, key) for key in keys)
    if one is None or other is None:
        return None
    shown = {name for item in key_map.items or () if isinstance(item, CaptureItem) for name in (item.name,)}
    shown.update(name for item in key_map.items or () if isinstance(item, MapItem) for name in item.names)
    parts = key_map.pattern.parts
    differing = [number for number in range(len(parts)) if one[number] != other[number]]
    forgotten = [number for number in differing if parts[number].name in key_map.forget]
    if forgotten:
        return forgotten[0]
    if len(differing) == 1 and parts[differing[0]].name in key_map.folded:
        # Two spellings of one index.
        return differing[0]
    if not differing or any(parts[number].name in {*shown, *key_map.folded} for number in differing):
        return None
    return differing[0]
