"""Correlated captures: those that a target uses in several places, so that its parts depend on each other."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from remapkit.patterns.template import CaptureItem, MapItem
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.keymap import KeyMap

MAX_CASES = 4096
"""A key map with more cases is undecided."""

MAX_LISTED = 50_000
"""The most combinations of correlated captures that are compared."""


def find_constants(key_map: KeyMap) -> dict[str, str]:
    """Return the captures that have only one word."""
    return {
        part.name: part.values[0]
        for part in key_map.pattern.captures
        if part.name and part.values and part.is_constant
    }


def find_correlated(key_map: KeyMap, hidden: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the captures that the target (with the `hidden` ones) uses in several places, in the pattern's order."""
    known = key_map.correlated.get(tuple(hidden))
    if known is None:
        known = key_map.correlated[tuple(hidden)] = _find_correlated(key_map, hidden)
    return known


def _find_correlated(key_map: KeyMap, hidden: Sequence[str]) -> tuple[str, ...]:
    fixed = find_constants(key_map)
    uses = Counter[str](hidden)
    correlated: set[str] = set()
    for item in key_map.items or ():
        if isinstance(item, CaptureItem):
            uses[item.name] += 1
        elif isinstance(item, MapItem):
            uses.update(dict.fromkeys(item.names, 1))
            if "" in item.mapping.values() or any("" in values for values in item.mapping):
                # The empty word has no position that could say which entry was read.
                correlated.update(item.names)
    correlated.update(name for name, count in uses.items() if count > 1)
    correlated.difference_update(fixed)
    for item in key_map.items or ():
        if isinstance(item, MapItem) and correlated.intersection(item.names):
            correlated.update(name for name in item.names if name not in fixed)
    return tuple(part.name for part in key_map.pattern.captures if part.name is not None and part.name in correlated)


def list_assignments(
    key_map: KeyMap, names: Sequence[str], budget: Budget, limit: int = MAX_CASES
) -> Iterator[dict[str, str]]:
    """Yield every combination of words of some captures; raises `Exhausted` if there are more than `limit`."""
    spaces = []
    for name in names:
        part = key_map.pattern.capture(name)
        if part is None or part.values is None:
            raise Exhausted
        spaces.append(part.values)
    if math.prod(map(len, spaces)) > limit:
        raise Exhausted
    for values in itertools.product(*spaces):
        budget.spend(len(values) + 1)
        yield dict(zip(names, values, strict=True))


def _read_parts(key_map: KeyMap, hidden: Sequence[str], known: Mapping[str, str]) -> tuple[str, ...]:
    """Return the texts of all parts of the target, and of the hidden outputs, that depend on known captures only."""
    texts = [known.get(name, "") for name in hidden]
    for item in key_map.items or ():
        if isinstance(item, CaptureItem):
            texts.append(known.get(item.name, ""))
        elif isinstance(item, MapItem) and all(name in known for name in item.names):
            texts.append(item.mapping[tuple([known[name] for name in item.names])])
    return tuple(texts)


def _is_admitted(key_map: KeyMap, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether two combinations with the same texts differ in the captures of a lossy table."""
    return any(
        any(one.get(name) != other.get(name) for name in item.names)
        for item in key_map.items or ()
        if isinstance(item, MapItem) and item.table in key_map.lossy
    )


def drop_admitted(
    key_map: KeyMap, hidden: Sequence[str], assignments: Iterable[Mapping[str, str]]
) -> Iterator[Mapping[str, str]]:
    """Yield combinations of captures, without those that the author admits to confuse with an earlier one."""
    constants = find_constants(key_map)
    kept: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for values in assignments:
        same = kept.setdefault(_read_parts(key_map, hidden, {**constants, **values}), [])
        if not any(_is_admitted(key_map, values, other) for other in same):
            same.append(values)
            yield values


def find_confused(
    key_map: KeyMap, hidden: Sequence[str], budget: Budget, *, quotient: bool = False
) -> tuple[Mapping[str, str], Mapping[str, str]] | None:
    """Return the two shortest combinations of correlated captures that give every part of the target the same text.

    A capture that some part copies is known from that part, whatever the others say; so only captures that are
    looked up, which are finite, are listed. `quotient`: without the pairs that the author admits to confuse.
    """
    names = find_correlated(key_map, hidden)
    copied = {*hidden, *(item.name for item in key_map.items or () if isinstance(item, CaptureItem))}
    if copied.issuperset(names):
        return None
    looked_up = {name for item in key_map.items or () if isinstance(item, MapItem) for name in item.names}
    finite = [name for name in names if name in looked_up]
    found: Iterable[Mapping[str, str]] = sorted(
        list_assignments(key_map, finite, budget, MAX_LISTED), key=lambda each: sum(map(len, each.values()))
    )
    found = drop_admitted(key_map, hidden, found) if quotient else found
    constants = find_constants(key_map)
    seen: dict[tuple[str, ...], Mapping[str, str]] = {}
    best: tuple[int, Mapping[str, str], Mapping[str, str]] | None = None
    for values in found:
        first = seen.setdefault(_read_parts(key_map, hidden, {**constants, **values}), values)
        if first is not values:
            size = sum(len(word) for each in (first, values) for word in each.values())
            if best is None or size < best[0]:
                best = (size, first, values)
    return None if best is None else best[1:]
