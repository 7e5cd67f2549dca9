"""What a learned file requires, because its rules follow from the numbers of layers that A has.

Indices that end before the last layer, tables of indices, and arithmetic such as `3-i` or `i//4` are shown by one
depth only. For a checkpoint with another, they would make other tensors without an error. So the file counts. So it
does where too few layers were seen: `h.0 -> g.0.0` and `h.1 -> g.1.0` may be `g.{i}.0` or `g.{i%2}.{i//2}`.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from remapkit.authoring.derive import DraftRule, How, count_targets
from remapkit.authoring.find_arithmetic import ENOUGH
from remapkit.authoring.generalize import ComputedSegment, Copied, Fixed, LookedUp, SegmentItem, get_word
from remapkit.authoring.split_keys import COUNTED, GLUE, MARK, Segments, list_sections, split_key
from remapkit.patterns.literals import literal_text
from remapkit.rulefile.names import choose_name
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.tensors.families import is_canonical_integer

_NUMBER = f"{MARK}any"
"""Stands for an index before the one that is counted."""


@dataclass(frozen=True, slots=True)
class Depth:
    """An index that is counted: `pattern` captures it as `i`; `numbers` are those that A has."""

    pattern: str
    captures: int
    numbers: Sequence[int]

    @property
    def is_whole(self) -> bool:
        """Whether A has every index up to the last."""
        return list(self.numbers) == list(range(len(self.numbers)))

    def write_requirement(self, param: str) -> str:
        """Return the entry of `require`, by the name of the counted param where indices are missing in A."""
        if not self.is_whole:
            return emit_flow({"that": f"{param} == {self.numbers[-1] + 1}"})
        by = {"by": "i"} if self.captures > 1 else {}
        return emit_flow({"count": self.pattern, **by, "is": len(self.numbers)})

    def write_param(self) -> dict[str, object]:
        """Return the value of the counted param."""
        by = {"by": "i"} if self.captures > 1 else {}
        return {"count": self.pattern, **by, "value": self.numbers[-1] + 1}


def find_depths(parts: Sequence[DraftRule], fqns: Iterable[str]) -> list[Depth]:
    """Return the indices on whose number in A the rules depend without counting it; `fqns` are A's keys.

    Rules of single indices, as of a last layer that differs, depend on their number only if A has all indices up to
    the last: `0` and `2` with nothing between are parts of a module, which nobody counts. Cost: the distinct names of
    A without their last index, for each number of words that are cut off.
    """
    wanted: dict[tuple[str, Segments, str, bool], bool] = {}
    few: set[tuple[str, Segments, str, bool]] = set()
    changing, unclear = _find_changing(parts), _find_unclear(parts)
    for number, part in enumerate(parts):
        for place in _list_places(part):
            depends = _depends_on_depth(part, place)
            if depends or (number, place) in changing:
                wanted |= {prefix: depends or wanted.get(prefix, False) for prefix in _list_prefixes(part, place)}
            elif (number, place) in unclear:
                few.update(_list_prefixes(part, place))
    depths = {key: _make_depth(key, sorted(numbers)) for key, numbers in _find_numbers([*wanted, *few], fqns).items()}
    return [
        depth
        for key, depth in depths.items()
        if (wanted[key] or depth.is_whole if key in wanted else len(depth.numbers) < ENOUGH)
    ]


def _list_places(part: DraftRule) -> list[int]:
    words = part.example.words
    if any("" in column for column in words):
        return []
    return [place for place in range(len(words)) if all(map(is_canonical_integer, words[place]))]


def _depends_on_depth(part: DraftRule, place: int) -> bool:
    """Return whether more or fewer indices at a place would make what the rule says of the others wrong.

    A table from numbers to plain words, as `0` to `up` and `2` to `down`, names parts of a module and counts none.
    """
    for item in part.example.items:
        if isinstance(item, LookedUp) and item.place == place and any(map(_has_digit, item.entries)):
            return True
        if not isinstance(item, ComputedSegment) or place not in item.places:
            continue
        if len(item.places) > 1:
            # The stride is the number of the inner indices.
            if place == item.places[1]:
                return True
        elif not re.fullmatch(r"\{0\}([+-][0-9]+)?", item.written):
            is_counted = place in part.counts and item.written == f"{part.counts[place][1].name}-1-{{0}}"
            if not is_counted:
                return True
    return part.how is How.TIGHT and len(part.example.words[place]) > 1 and place not in part.counts


def _has_digit(entry: tuple[str, str]) -> bool:
    return re.search("[0-9]", entry[1]) is not None


def _find_changing(parts: Sequence[DraftRule]) -> set[tuple[int, int]]:
    """Return the fixed indices for which other rules have others, as of a last layer that differs.

    A first one that differs stays the first, if all after it are counted.
    """
    groups: defaultdict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    for number, part in enumerate(parts):
        words = part.example.words
        for place in _list_places(part):
            others = (_mask(column) for at, column in enumerate(words) if at != place)
            groups[place, *others].append((number, place))
    return {
        (number, place)
        for members in groups.values()
        if len(members) > 1
        for number, place in members
        if len(parts[number].example.words[place]) == 1
        and place not in parts[number].counts
        and not _is_before_counted(parts[number], place, [parts[other] for other, _ in members])
    }


def _is_before_counted(part: DraftRule, place: int, others: Sequence[DraftRule]) -> bool:
    last = max((int(other.example.words[place][-1]) for other in others if place in other.counts), default=-1)
    return int(part.example.words[place][0]) < last


def _find_unclear(parts: Sequence[DraftRule]) -> set[tuple[int, int]]:
    """Return the indices that a name has beside a number of its own, where nothing shows that these are two things.

    `g.{i}.0` may be `g.{i%2}.{i//2}`, unless another key goes to `g.{i}` without one: that is the layer then.
    """
    found: defaultdict[tuple[object, ...], list[tuple[int, int, bool]]] = defaultdict(list)
    for number, part in enumerate(parts):
        words = part.example.words
        items = part.example.items
        sections = [items[start:end] for start, end in list_sections([get_word(item) for item in items])]
        own = [column[0] for column in words if len(column) == 1 and is_canonical_integer(column[0])]
        for section in sections[-count_targets(part.example.relations[0], len(sections)) :]:
            for spelled in _spell_tables(section, words):
                for at, item in enumerate(spelled):
                    for place in _list_places(part):
                        if len(words[place]) > 1 and _is_shift(item, place):
                            before = [_mask(column) for column in words[:place]]
                            found[*before, place, *spelled[:at]].append((number, place, _has_number(spelled, own)))
    return {
        (number, place)
        for members in found.values()
        if all(has_number for _, _, has_number in members)
        for number, place, _ in members
    }


def _is_shift(item: SegmentItem, place: int) -> bool:
    return item == Copied(place) or (isinstance(item, ComputedSegment) and item.places == (place,))


def _spell_tables(section: Sequence[SegmentItem], words: Sequence[Segments]) -> Iterator[list[SegmentItem]]:
    """Yield a target for each choice of the words that tables read, with what these say."""
    places = list(dict.fromkeys(item.place for item in section if isinstance(item, LookedUp)))
    for chosen in itertools.product(*(words[place] for place in places)):
        word_at = dict(zip(places, chosen, strict=True))
        yield [
            each
            for item in section
            for each in (
                map(Fixed, dict(item.entries)[word_at[item.place]].split("."))
                if isinstance(item, LookedUp)
                else (item,)
            )
        ]


def _has_number(section: Sequence[SegmentItem], own: Sequence[str]) -> bool:
    """Return whether a target has a number that is none of the source's `own`."""
    left = list(own)
    for item in section:
        if isinstance(item, Fixed) and is_canonical_integer(item.word):
            if item.word not in left:
                return True
            left.remove(item.word)
    return False


def _mask(column: Segments) -> object:
    return None if all(map(is_canonical_integer, column)) else frozenset(column)


def _list_prefixes(part: DraftRule, place: int) -> Iterator[tuple[str, Segments, str, bool]]:
    """Yield how names are cut, the words before the index, what follows it in its segment, and if more do."""
    words = part.example.words
    following = words[place + 1][0] if place + 1 < len(words) else ""
    columns = [(_NUMBER,) if len(column) > 1 and _mask(column) is None else column for column in words[:place]]
    if any(word.startswith(COUNTED) for column in columns for word in column):
        return
    glue = following if following.startswith(GLUE) else ""
    for prefix in itertools.product(*columns):
        # Words of several segments, as loose rules have them, are as many words of a name.
        flat = [piece for word in prefix for piece in ((word,) if word == _NUMBER else split_key(word, "segments"))]
        yield part.example.cuts[0], tuple(flat), glue, place + 1 < len(words)


def _find_numbers(
    wanted: Iterable[tuple[str, Segments, str, bool]], fqns: Iterable[str]
) -> Mapping[tuple[str, Segments, str, bool], set[int]]:
    found: dict[tuple[str, Segments, str, bool], set[int]] = {key: set() for key in wanted}
    masks: defaultdict[tuple[str, int], dict[tuple[bool, ...], None]] = defaultdict(dict)
    for cut, prefix, _, _ in found:
        masks[cut, len(prefix)][tuple(word == _NUMBER for word in prefix)] = None
    lengths = sorted(masks)
    names = list(fqns) if found else []
    for cut in dict.fromkeys(cut for cut, _ in lengths):
        for fqn in names:
            words = split_key(fqn, cut)  # type: ignore[arg-type]
            for length in (length for each, length in lengths if each == cut and length < len(words)):
                if not is_canonical_integer(words[length]):
                    continue
                following = words[length + 1] if length + 1 < len(words) else ""
                glue = following if following.startswith(GLUE) else ""
                for mask in masks[cut, length]:
                    if not all(is_canonical_integer(words[at]) for at, is_hidden in enumerate(mask) if is_hidden):
                        continue
                    prefix = tuple(_NUMBER if mask[at] else words[at] for at in range(length))
                    key = (cut, prefix, glue, length + 1 < len(words))
                    if key in found:
                        found[key].add(int(words[length]))
    return found


def _make_depth(key: tuple[str, Segments, str, bool], numbers: Sequence[int]) -> Depth:
    _, prefix, glue, has_more = key
    count = itertools.count()
    written, dot = "", ""
    for word in (*prefix, f"{MARK}i"):
        if word.startswith(GLUE):
            written, dot = written + literal_text(word[len(GLUE) :]), ""
            continue
        if word == _NUMBER:
            text = f"{{at{next(count)}:int}}"
        else:
            text = "{i:int}" if word == f"{MARK}i" else literal_text(word)
        written, dot = f"{written}{dot}{text}", "."
    if glue:
        written += literal_text(glue[len(GLUE) :]) + "{rest:**}"
    elif has_more:
        written += ".{rest:**}"
    return Depth(written, 1 + next(count), numbers)


def write_requirements(depths: Sequence[Depth], taken: Iterable[str]) -> tuple[list[str], dict[str, object]]:
    """Return the lines of `require`, and the counted params for depths of which A has not every index."""
    lines = [
        "# A has these numbers of layers, and the rules follow from them (bounds, tables, arithmetic, few layers).",
        "# What they do for others would be a guess, so others are refused. Review the rules before you drop a line.",
        "require:",
    ]
    names = set(taken)
    params: dict[str, object] = {}
    for depth in depths:
        name = "" if depth.is_whole else choose_name("count", names)
        lines.append(f"  - {depth.write_requirement(name)}")
        if name:
            params[name] = depth.write_param()
    return [*lines, ""], params
