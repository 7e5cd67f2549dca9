"""Rules from examples: pairs of source and target keys, generalised to a few rules that map exactly these keys.

Nothing is guessed from the form of names. A target segment is explained by source segments (a copy, a shifted or
folded index, an entry of a table) only if that holds for every pair; keys are joined into one rule only if every
combination of their words occurs; a key that cannot be explained gets a rule for itself.

The search is greedy, so fewer rules may exist than it finds. Its invariant: every group of keys has an explanation
(`_explain_group`).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from remapkit.tensors.families import is_canonical_integer

Segments = tuple[str, ...]
_FOLDS = range(2, 65)
"""The strides that are tried for `i*k+j`, `n//k` and `n%k`."""
_LARGEST = 1000
"""Arithmetic is enumerated when a rule is compiled: larger indices are only copied or looked up."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A target segment that is the same word in every pair."""

    word: str


@dataclass(frozen=True, slots=True)
class Copied:
    """A target segment that is the source segment at `place`."""

    place: int


@dataclass(frozen=True, slots=True)
class ComputedSegment:
    """A target segment that is arithmetic on source segments; `{0}` in `written` is the first of `places`."""

    places: tuple[int, ...]
    written: str


@dataclass(frozen=True, slots=True)
class LookedUp:
    """A target segment (or several, joined by dots) that is a function of the source segment at `place`."""

    place: int
    entries: tuple[tuple[str, str], ...]


SegmentItem = Fixed | Copied | ComputedSegment | LookedUp


@dataclass(frozen=True, slots=True)
class Example:
    """A generalised rule: the words of the source segments, the items of the target, and the pairs it maps."""

    words: tuple[Segments, ...]
    items: tuple[SegmentItem, ...]
    pairs: tuple[tuple[str, str], ...]

    @property
    def is_identity(self) -> bool:
        """Whether every key keeps its name."""
        return all(source == target for source, target in self.pairs)

    @property
    def computed_places(self) -> frozenset[int]:
        """The source segments that must be bounded, because arithmetic or a table uses them."""
        bounded: set[int] = set()
        for item in self.items:
            if isinstance(item, ComputedSegment):
                bounded.update(item.places)
            elif isinstance(item, LookedUp):
                bounded.add(item.place)
        return frozenset(bounded)


def generalize(pairs: Mapping[str, str]) -> tuple[Example, ...]:
    """Return a few rules that map exactly these pairs, in the order of their first keys.

    >>> words = {"q": "query", "k": "key"}
    >>> pairs = {f"layers.{n}.{word}.w": f"h.{n}.attn.{words[word]}.w" for n in range(3) for word in words}
    >>> example, = generalize(pairs)
    >>> example.words
    (('layers',), ('0', '1', '2'), ('q', 'k'), ('w',))
    >>> example.items[3]
    LookedUp(place=2, entries=(('q', 'query'), ('k', 'key')))
    """
    split = _split_keys(pairs)
    finest: defaultdict[object, list[str]] = defaultdict(list)
    for fqn, (source, target) in split.items():
        finest[_mask_indices(source), _mask_indices(target)].append(fqn)
    groups = [group for members in finest.values() for group in _split_group(members, split)]
    before = len(groups) + 1
    # Joining can make further joins possible. It ends: every round but the last leaves fewer groups.
    while len(groups) < before:
        before = len(groups)
        for from_the_end in range(1, max((len(split[group[0]][0]) for group in groups), default=0) + 1):
            groups = _join_groups(groups, from_the_end, split)
    order = {fqn: number for number, fqn in enumerate(pairs)}
    groups = [sorted(group, key=order.__getitem__) for group in groups]
    return tuple(_make_example(group, split, pairs) for group in sorted(groups, key=lambda group: order[group[0]]))


def split_example(example: Example, *, singly: bool = False) -> tuple[Example, ...]:
    """Split an example into several that map the same pairs: one per word, or lower and upper indices.

    `singly` makes one per pair.

    >>> example, = generalize({f"l.{n}.{leaf}": f"h.{n}.{leaf}" for n in range(2) for leaf in "wb"})
    >>> [each.words[-1] for each in split_example(example)], len(split_example(example, singly=True))
    ([('w',), ('b',)], 4)
    """
    pairs = dict(example.pairs)
    split = _split_keys(pairs)
    varying = [place for place, words in enumerate(example.words) if len(words) > 1]
    groups: defaultdict[object, list[str]] = defaultdict(list)
    # Words before indices, and the last one first: `weight` and `bias` differ more often than their modules do.
    place = max(varying, key=lambda place: (not all(map(is_canonical_integer, example.words[place])), place))
    words = example.words[place]
    is_index = all(map(is_canonical_integer, words))
    upper = set(words[len(words) // 2 :])
    for fqn in pairs:
        word = split[fqn][0][place]
        groups[fqn if singly else word in upper if is_index else word].append(fqn)
    found = [group for members in groups.values() for group in _split_group(members, split)]
    return tuple(_make_example(group, split, pairs) for group in found)


def _split_keys(pairs: Mapping[str, str]) -> SplitKeys:
    return {source: (tuple(source.split(".")), tuple(target.split("."))) for source, target in pairs.items()}


SplitKeys = Mapping[str, tuple[Segments, Segments]]


def _mask_indices(segments: Segments) -> Segments:
    return tuple("#" if is_canonical_integer(word) else word for word in segments)


def _make_example(group: Sequence[str], split: SplitKeys, pairs: Mapping[str, str]) -> Example:
    items = _explain_group(group, split)
    assert items is not None
    return Example(_list_words(group, split), items, tuple((fqn, pairs[fqn]) for fqn in group))


def _list_words(group: Sequence[str], split: SplitKeys, side: int = 0) -> tuple[Segments, ...]:
    """Return the distinct words of each segment: indices in ascending order, others in order of appearance."""
    columns = (tuple(dict.fromkeys(words)) for words in zip(*(split[fqn][side] for fqn in group), strict=True))
    return tuple(
        tuple(sorted(words, key=int)) if all(map(is_canonical_integer, words)) else words for words in columns
    )


# ------------------------------------------------------------------------------------------------ joining


def _split_group(group: list[str], split: SplitKeys) -> list[list[str]]:
    """Return the group, or if one rule cannot map it, its parts, split by the segment that gives the fewest.

    Every split is by a segment with several words, so parts are smaller than the group and the recursion ends; a
    single key always has an explanation. Cost: for v segments with several words, v! passes over the group at worst;
    v is two or three in real keys.
    """
    if _explain_group(group, split) is not None:
        return [group]
    best: list[list[str]] = [[fqn] for fqn in group]
    for place, words in enumerate(_list_words(group, split)):
        if len(words) < 2:
            continue
        parts: defaultdict[str, list[str]] = defaultdict(list)
        for fqn in group:
            parts[split[fqn][0][place]].append(fqn)
        found = [part for members in parts.values() for part in _split_group(members, split)]
        if len(found) < len(best):
            best = found
    return best


def _join_groups(groups: list[list[str]], from_the_end: int, split: SplitKeys) -> list[list[str]]:
    """Join groups that differ only in the words of one segment, if one rule maps them all.

    All their other segments have the same words, so in the joined group every combination of words occurs. (Indices
    may differ: an index is first written unbounded, and `learn` narrows it if it matches too much.)
    """
    buckets: defaultdict[object, list[list[str]]] = defaultdict(list)
    for group in groups:
        source, target = split[group[0]]
        columns = _list_words(group, split)
        place = len(source) - from_the_end
        if place < 0 or any(map(is_canonical_integer, columns[place])):
            buckets[id(group)].append(group)
            continue
        rest = tuple(
            frozenset(words) if not is_canonical_integer(words[0]) else None
            for number, words in enumerate(columns)
            if number != place
        )
        buckets[len(source), len(target), rest].append(group)
    return [group for bucket in buckets.values() for group in _merge_bucket(bucket, split)]


def _merge_bucket(bucket: list[list[str]], split: SplitKeys) -> list[list[str]]:
    whole = [fqn for group in bucket for fqn in group]
    if len(bucket) == 1 or _explain_group(whole, split) is not None:
        return [whole]
    merged: list[list[str]] = []
    for group in bucket:
        for known in merged:
            if _explain_group([*known, *group], split) is not None:
                known += group
                break
        else:
            merged.append(list(group))
    return merged


# ------------------------------------------------------------------------------------------------ explaining


def _explain_group(group: Sequence[str], split: SplitKeys) -> tuple[SegmentItem, ...] | None:
    """Return the item for each target segment; None if there is none, or a varying segment would be lost."""
    sources = [split[fqn][0] for fqn in group]
    targets = [split[fqn][1] for fqn in group]
    if len({len(words) for words in sources}) > 1 or len({len(words) for words in targets}) > 1:
        return None
    varying = [place for place, words in enumerate(zip(*sources, strict=True)) if len(set(words)) > 1]
    columns = list(zip(*sources, strict=True))
    items: list[SegmentItem] = []
    used: set[int] = set()
    for wanted in zip(*targets, strict=True):
        item = _explain_segment(wanted, columns, varying, used)
        if item is None:
            return None
        used.update(_list_places(item))
        items.append(item)
    if set(varying) - used:
        return None
    return tuple(_join_tables(items))


def _list_places(item: SegmentItem) -> tuple[int, ...]:
    if isinstance(item, ComputedSegment):
        return item.places
    return (item.place,) if isinstance(item, Copied | LookedUp) else ()


def _explain_segment(
    wanted: Sequence[str], columns: Sequence[Sequence[str]], varying: Sequence[int], used: set[int]
) -> SegmentItem | None:
    if len(set(wanted)) == 1:
        return Fixed(wanted[0])
    # The likeliest source is a segment that no other target segment uses yet; of several, the leftmost.
    for place in sorted(varying, key=lambda place: (place in used, place)):
        if tuple(columns[place]) == tuple(wanted):
            return Copied(place)
    if all(map(is_canonical_integer, wanted)):
        computed = _find_arithmetic([int(word) for word in wanted], columns, varying)
        if computed is not None:
            return computed
    for place in sorted(varying, key=lambda place: (is_canonical_integer(columns[place][0]), place in used, place)):
        entries: dict[str, str] = {}
        if all(entries.setdefault(word, found) == found for word, found in zip(columns[place], wanted, strict=True)):
            return LookedUp(place, tuple(entries.items()))
    return None


def _find_arithmetic(
    wanted: Sequence[int], columns: Sequence[Sequence[str]], varying: Sequence[int]
) -> ComputedSegment | None:
    """Return the first of `n+c`, `i*k+j`, `n//k` and `n%k` that gives all required indices.

    At most 63 strides per pair of index segments are tried, and nearly all fail within a few keys.
    """
    numbers = {
        place: values
        for place in varying
        if all(map(is_canonical_integer, columns[place]))
        and max(values := [int(word) for word in columns[place]]) < _LARGEST
    }
    for places, written, value in _list_expressions(numbers, wanted):
        rows = zip(*(numbers[place] for place in places), strict=True)
        if all(value(row) == found for row, found in zip(rows, wanted, strict=True)):
            return ComputedSegment(places, written)
    return None


IndexExpression = tuple[tuple[int, ...], str, Callable[[Sequence[int]], int]]


def _list_expressions(numbers: Mapping[int, Sequence[int]], wanted: Sequence[int]) -> Iterator[IndexExpression]:
    for place, values in numbers.items():
        shift = wanted[0] - values[0]
        yield (place,), f"{{0}}{shift:+d}", lambda row, shift=shift: row[0] + shift  # type: ignore[misc]
    for one, other in itertools.permutations(numbers, 2):
        # With a smaller stride, two pairs of indices could give the same number.
        for stride in (stride for stride in _FOLDS if stride > max(numbers[other])):
            yield (one, other), f"{{0}}*{stride}+{{1}}", lambda row, k=stride: row[0] * k + row[1]  # type: ignore[misc]
    for place, values in numbers.items():
        for stride in (stride for stride in _FOLDS if stride < max(values)):
            yield (place,), f"{{0}}//{stride}", lambda row, k=stride: row[0] // k  # type: ignore[misc]
            yield (place,), f"{{0}}%{stride}", lambda row, k=stride: row[0] % k  # type: ignore[misc]


def _join_tables(items: Iterable[SegmentItem]) -> Iterator[SegmentItem]:
    """Join neighbouring lookups of one segment into one table: `norm1 -> residual.0`."""
    pending: LookedUp | None = None
    for item in items:
        if isinstance(item, LookedUp) and pending is not None and item.place == pending.place:
            values = dict(item.entries)
            joined = tuple((word, f"{value}.{values[word]}") for word, value in pending.entries)
            pending = LookedUp(item.place, joined)
            continue
        if pending is not None:
            yield pending
        pending = item if isinstance(item, LookedUp) else None
        if pending is None:
            yield item
    if pending is not None:
        yield pending
