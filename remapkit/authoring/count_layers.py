"""Bounds in terms of how many layers a checkpoint has: `0..layers-2`, and `layers-1` for a last one that differs.

Rules whose indices are bounded, because arithmetic uses them or another rule takes the last layer, would be wrong
for a deeper model. A count param says the same for every depth. Its value is one more than the largest index of A, so
for A itself nothing changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from remapkit.authoring.derive import CountParam, DraftRule, How
from remapkit.authoring.generalize import ComputedSegment, Copied, Fixed, LookedUp, SegmentItem
from remapkit.authoring.new import name_captures
from remapkit.authoring.split_keys import MARK, list_sections
from remapkit.rulefile.names import choose_name
from remapkit.tensors.families import is_canonical_integer

FEWEST = 2
"""The fewest layers besides a last one that differs: of one and one, either could be the exception."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Indices of a rule that may be counted: `numbers` at `place` after the fixed words `prefix`."""

    prefix: tuple[str, ...]
    numbers: range

    @property
    def place(self) -> int:
        return len(self.prefix)


def count_layers(parts: Sequence[DraftRule], fqns: Iterable[str], taken: Iterable[str] = ()) -> list[DraftRule]:
    """Return the rules with indices that are counted in the checkpoint where they are bounded; `fqns` are A's keys.

    Only rows of indices that end with the last layer, or with the one before it if another rule takes that, are
    counted. `taken` are names that params must not have.
    """
    rows = [_find_row(part) for part in parts]
    prefixes = list(dict.fromkeys(row.prefix for row in rows if row is not None))
    depths = _find_depths(prefixes, fqns)
    names = set(taken)
    found = list(parts)
    for prefix in prefixes:
        depth = depths[prefix]
        lasts = _find_lasts(parts, rows, prefix, depth)
        ends = {depth - 1, *({depth - 2} if lasts else ())}
        counted = [
            number
            for number, row in enumerate(rows)
            if row is not None and row.prefix == prefix and row.numbers[-1] in ends and len(row.numbers) >= FEWEST
        ]
        if not counted:
            continue
        singular = name_captures([*((word,) for word in prefix), ("0", "1"), ("x",)])[len(prefix)][0]
        param = CountParam(choose_name(f"{singular}s", names), prefix, depth)
        for number in counted:
            row = rows[number]
            assert row is not None
            bound = f"{row.numbers[0]}..{param.name}-{depth - row.numbers[-1]}"
            found[number] = _reverse_from(found[number], row.place, param, bound)
        for number, part in lasts.items():
            found[number] = replace(part, counts={**part.counts, len(prefix): (f"{param.name}-1", param)})
    return found


def _find_row(part: DraftRule) -> _Row | None:
    """Return the first bounded row of indices of a rule, if it is all that its words before it are fixed for."""
    words = part.example.words
    place = next((place for place, column in enumerate(words) if is_canonical_integer(column[0])), len(words))
    if part.how is How.LITERAL or place >= len(words) - 1 or not place:
        return None
    prefix = tuple(column[0] for column in words[:place])
    if any(len(column) > 1 for column in words[:place]) or any(word.startswith(MARK) for word in prefix):
        return None
    is_bounded = part.how is How.TIGHT or place in part.example.computed_places
    if not is_bounded or not all(map(is_canonical_integer, words[place])):
        return None
    if any(isinstance(item, LookedUp) and item.place == place for item in part.example.items):
        return None
    numbers = [int(word) for word in words[place]]
    whole = range(numbers[0], numbers[-1] + 1)
    return _Row(prefix, whole) if numbers == list(whole) else None


def _find_depths(prefixes: Iterable[tuple[str, ...]], fqns: Iterable[str]) -> Mapping[tuple[str, ...], int]:
    depths = dict.fromkeys(prefixes, 0)
    lengths = {len(prefix) for prefix in depths}
    for fqn in fqns:
        segments = tuple(fqn.split("."))
        for length in lengths:
            prefix = segments[:length]
            if prefix in depths and len(segments) > length + 1 and is_canonical_integer(segments[length]):
                depths[prefix] = max(depths[prefix], int(segments[length]) + 1)
    return depths


# ------------------------------------------------------------------------------------------------ the last layer


def _find_lasts(
    parts: Sequence[DraftRule], rows: Sequence[_Row | None], prefix: tuple[str, ...], depth: int
) -> dict[int, DraftRule]:
    """Return the rules of the last layer only, with its index as one that is read, as other layers have theirs."""
    siblings = [
        part
        for part, row in zip(parts, rows, strict=True)
        if row is not None and row.prefix == prefix and row.numbers[-1] == depth - 2 and len(row.numbers) >= FEWEST
    ]
    place = len(prefix)
    index = str(depth - 1)
    found: dict[int, DraftRule] = {}
    for number, part in enumerate(parts):
        words = part.example.words
        if tuple(column[0] for column in words[:place]) != prefix or not siblings:
            continue
        if len(words) <= place + 1 or words[place] != (index,) or any(len(column) > 1 for column in words[:place]):
            continue
        items = _read_index(part, place, depth - 1, siblings)
        if items is not None:
            found[number] = replace(part, example=replace(part.example, items=items), how=How.TIGHT)
    return found


def _read_index(
    part: DraftRule, place: int, index: int, siblings: Sequence[DraftRule]
) -> tuple[SegmentItem, ...] | None:
    """Return the items with what follows from the index in each name; None if that is not the only way to read it."""
    shifts = {found for sibling in siblings for item in sibling.example.items if (found := _find_shift(item, place))}
    if len(shifts) != 1:
        return None
    ((written, shift),) = shifts
    items = list(part.example.items)
    for start, end in list_sections([item.word if isinstance(item, Fixed) else "" for item in items]):
        places = [number for number in range(start, end) if items[number] == Fixed(str(index + shift))]
        if len(places) != 1:
            return None
        items[places[0]] = Copied(place) if not shift else ComputedSegment((place,), written)
    return tuple(items)


def _find_shift(item: SegmentItem, place: int) -> tuple[str, int] | None:
    if item == Copied(place):
        return "{0}", 0
    if isinstance(item, ComputedSegment) and item.places == (place,):
        found = re.fullmatch(r"\{0\}([+-][0-9]+)", item.written)
        return (item.written, int(found[1])) if found else None
    return None


def _reverse_from(part: DraftRule, place: int, param: CountParam, bound: str) -> DraftRule:
    """Bound a row, and count from the end what is numbered from there: `3-i` of four layers is `layers-1-i`."""
    reverse = ComputedSegment((place,), f"{param.depth - 1}-{{0}}")
    counted = ComputedSegment((place,), f"{param.name}-1-{{0}}")
    items = tuple(counted if item == reverse else item for item in part.example.items)
    return replace(part, example=replace(part.example, items=items), counts={**part.counts, place: (bound, param)})
