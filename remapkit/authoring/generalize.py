"""Rules from examples: relations of source and target keys, generalised to a few rules that map exactly these keys.

Nothing is guessed from the form of names. A target segment is explained by source segments (a copy, a shifted or
folded index, an entry of a table) only if that holds for every pair; keys are joined into one rule only if every
combination of their words occurs; a key that cannot be explained gets a rule for itself.

The search is greedy, so fewer rules may exist than it finds. Its invariant: every group of keys has an explanation
(`_explain_group`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from remapkit.authoring.find_arithmetic import find_arithmetic
from remapkit.authoring.fold_relation import Folded, fold_relation, is_rename
from remapkit.authoring.join_loosely import Explainer, join_loosely
from remapkit.authoring.relation import Relation
from remapkit.authoring.split_keys import (
    CUTS,
    GLUE,
    MARK,
    NEXT,
    Cut,
    Segments,
    has_numbers_inside,
    list_sections,
)
from remapkit.tensors.families import is_canonical_integer

Cuts = tuple[Cut, Cut]
"""How the names of sources and of targets are cut into words."""


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
    """A generalised rule: the words of the source, the items of all that follows from it, and what it maps."""

    words: tuple[Segments, ...]
    items: tuple[SegmentItem, ...]
    relations: tuple[Relation, ...]
    cuts: Cuts = ("segments", "segments")
    is_loose: bool = False
    """Whether not every combination of its words occurs."""

    @property
    def is_identity(self) -> bool:
        """Whether every key keeps its name and its values."""
        return all(is_rename(each) and each.sources == each.targets for each in self.relations)

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


def generalize(examples: Mapping[str, str] | Iterable[Relation], *, loosely: bool = False) -> tuple[Example, ...]:
    """Return a few rules that map exactly these pairs or relations, in the order of their first keys.

    Names are cut at dots; also around numbers inside segments where that gives fewer rules. A relation that no rule
    can count (experts 0 and 2 stacked) is in no example. `loosely` joins words of which not every combination occurs.

    >>> words = {"q": "query", "k": "key"}
    >>> pairs = {f"layers.{n}.{word}.w": f"h.{n}.attn.{words[word]}.w" for n in range(3) for word in words}
    >>> example, = generalize(pairs)
    >>> example.words
    (('layers',), ('0', '1', '2'), ('q', 'k'), ('w',))
    >>> example.items[3]
    LookedUp(place=2, entries=(('q', 'query'), ('k', 'key')))
    >>> example, = generalize({f"resblocks_{n}.w": f"h.{n}.w" for n in range(3)})
    >>> [words for words in example.words if len(words) > 1]
    [('0', '1', '2')]
    """
    if isinstance(examples, Mapping):
        examples = [Relation((fqn,), (other,)) for fqn, other in examples.items()]
    wanted = list(examples)
    relations = [each for each in wanted if not _has_mark(each)]
    best: tuple[Example, ...] | None = None
    for cuts in _list_cuts(relations):
        found = _generalize_cut(relations, cuts, loosely=loosely)
        if best is None or _weigh_examples(found, relations) < _weigh_examples(best, relations):
            best = found
    literal = [Example((("",),), (Fixed(""),), (each,)) for each in wanted if _has_mark(each) and is_rename(each)]
    order = {each.sources[0]: number for number, each in enumerate(wanted)}
    return tuple(sorted([*(best or ()), *literal], key=lambda each: order[each.relations[0].sources[0]]))


def _has_mark(relation: Relation) -> bool:
    """Return whether a name has the character that marks our own words: it is written as it is, or not at all."""
    return any(MARK in fqn for fqn in (*relation.sources, *relation.targets))


def _list_cuts(relations: Sequence[Relation]) -> list[Cuts]:
    """Return the cuts that differ for these names, the plainest first."""
    sources = {fqn for relation in relations for fqn in relation.sources}
    targets = {fqn for relation in relations for fqn in relation.targets}
    return [(CUTS[0], CUTS[0]), *((cut, cut) for cut in CUTS[1:] if has_numbers_inside((*sources, *targets), cut))]


def _weigh_examples(examples: Sequence[Example], relations: Sequence[Relation]) -> int:
    """Return about how many lines and words the rules take; what is left out weighs most."""
    left = len(relations) - sum(len(example.relations) for example in examples)
    words = sum(
        len(column) for example in examples for column in example.words if len(column) > 1 and _is_word(column)
    )
    entries = sum(len(item.entries) for example in examples for item in example.items if isinstance(item, LookedUp))
    return 1000 * left + 6 * len(examples) + words + entries


def _is_word(column: Segments) -> bool:
    return not all(map(is_canonical_integer, column))


def _generalize_cut(relations: Sequence[Relation], cuts: Cuts, *, loosely: bool) -> tuple[Example, ...]:
    split, kept = _fold_relations(relations, cuts)
    finest: defaultdict[object, list[str]] = defaultdict(list)
    for fqn, folded in split.items():
        finest[folded.form, _mask_indices(folded.source), _mask_indices(folded.rest)].append(fqn)
    groups = [group for members in finest.values() for group in _split_group(members, split)]
    before = len(groups) + 1
    # Joining can make further joins possible. It ends: every round but the last leaves fewer groups.
    while len(groups) < before:
        before = len(groups)
        for from_the_end in range(1, max((len(split[group[0]].source) for group in groups), default=0) + 1):
            groups = _join_groups(groups, from_the_end, split)
    order = {fqn: number for number, fqn in enumerate(split)}
    groups = sorted((sorted(group, key=order.__getitem__) for group in groups), key=lambda group: order[group[0]])
    loose = [False] * len(groups)
    if loosely:
        groups, loose = join_loosely(groups, split, Explainer(_explain_group, _is_shown, _weigh_items))
        groups = [sorted(group, key=order.__getitem__) for group in groups]
    found = sorted(zip(groups, loose, strict=True), key=lambda each: order[each[0][0]])
    return tuple(replace(_make_example(group, split, kept, cuts), is_loose=each) for group, each in found)


def _weigh_items(items: Sequence[SegmentItem]) -> int:
    entries = sum(1 + word.count(".") for item in items if isinstance(item, LookedUp) for _, word in item.entries)
    return len(items) + entries


def _is_shown(joined: Sequence[SegmentItem], parts: Sequence[Sequence[SegmentItem]]) -> bool:
    """Return whether joined groups show no arithmetic, and no table of indices, that none of them shows alone.

    >>> sum, table = ComputedSegment((1,), "{0}//4"), LookedUp(1, (("3", "0"), ("6", "1")))
    >>> _is_shown([sum], [[table], [Fixed("1")]]), _is_shown([sum], [[sum], [Fixed("1")]])
    (False, True)
    """
    shown = [item for part in parts for item in part]
    tables = {item.place for item in shown if isinstance(item, LookedUp)}
    return all(
        item in shown
        if isinstance(item, ComputedSegment)
        else not isinstance(item, LookedUp)
        or item.place in tables
        or not all(is_canonical_integer(word) for word, _ in item.entries)
        for item in joined
    )


def split_example(example: Example, *, singly: bool = False) -> tuple[Example, ...]:
    """Split an example into several that map the same keys: one per word, or lower and upper indices.

    `singly` makes one per relation. If its words do not occur in every combination, it is first split until they do.

    >>> example, = generalize({f"l.{n}.{leaf}": f"h.{n}.{leaf}" for n in range(2) for leaf in "wb"})
    >>> [each.words[-1] for each in split_example(example)], len(split_example(example, singly=True))
    ([('w',), ('b',)], 4)
    """
    if example.is_loose and not singly:
        return _generalize_cut(example.relations, example.cuts, loosely=False)
    split, kept = _fold_relations(example.relations, example.cuts)
    varying = [place for place, words in enumerate(example.words) if len(words) > 1]
    groups: defaultdict[object, list[str]] = defaultdict(list)
    # Words before indices, and the last one first: `weight` and `bias` differ more often than their modules do.
    place = max(varying, key=lambda place: (_is_word(example.words[place]), place))
    words = example.words[place]
    upper = set(words[len(words) // 2 :])
    for fqn, folded in split.items():
        word = folded.source[place]
        groups[fqn if singly else word if _is_word(words) else word in upper].append(fqn)
    found = [group for members in groups.values() for group in _split_group(members, split)]
    return tuple(_make_example(group, split, kept, example.cuts) for group in found)


SplitKeys = Mapping[str, Folded]
"""The folded relations by their first source, which no two of them share."""


def _fold_relations(relations: Iterable[Relation], cuts: Cuts) -> tuple[dict[str, Folded], dict[str, Relation]]:
    split: dict[str, Folded] = {}
    kept: dict[str, Relation] = {}
    for relation in relations:
        folded = fold_relation(relation, *cuts)
        if folded is not None:
            split[relation.sources[0]], kept[relation.sources[0]] = folded, relation
    return split, kept


def _mask_indices(segments: Segments) -> Segments:
    return tuple("#" if is_canonical_integer(word) else word for word in segments)


def _make_example(group: Sequence[str], split: SplitKeys, kept: Mapping[str, Relation], cuts: Cuts) -> Example:
    items = _explain_group(group, split)
    assert items is not None
    return Example(_list_words(group, split), items, tuple(kept[fqn] for fqn in group), cuts)


def _list_words(group: Sequence[str], split: SplitKeys) -> tuple[Segments, ...]:
    """Return the distinct words of each segment: indices in ascending order, others in order of appearance."""
    columns = (tuple(dict.fromkeys(words)) for words in zip(*(split[fqn].source for fqn in group), strict=True))
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
            parts[split[fqn].source[place]].append(fqn)
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
        folded = split[group[0]]
        columns = _list_words(group, split)
        place = len(folded.source) - from_the_end
        if place < 0 or any(is_canonical_integer(word) or word.startswith(MARK) for word in columns[place]):
            buckets[id(group)].append(group)
            continue
        rest = tuple(
            frozenset(words) if not is_canonical_integer(words[0]) else None
            for number, words in enumerate(columns)
            if number != place
        )
        buckets[folded.form, len(folded.source), len(folded.rest), rest].append(group)
    return [group for bucket in buckets.values() for group in _merge_bucket(bucket, split)]


def _merge_bucket(bucket: list[list[str]], split: SplitKeys) -> list[list[str]]:
    if len(bucket) == 1 or _is_explained_by_parts(bucket, split):
        return [[fqn for group in bucket for fqn in group]]
    merged: list[list[str]] = []
    for group in bucket:
        for known in merged:
            if _is_explained_by_parts((known, group), split):
                known += group
                break
        else:
            merged.append(list(group))
    return merged


def _is_explained_by_parts(parts: Sequence[list[str]], split: SplitKeys) -> bool:
    items = _explain_group([fqn for part in parts for fqn in part], split)
    if items is None or _is_shown(items, ()):
        return items is not None
    return _is_shown(items, [found for part in parts if (found := _explain_group(part, split))])


# ------------------------------------------------------------------------------------------------ explaining


def _explain_group(group: Sequence[str], split: SplitKeys) -> tuple[SegmentItem, ...] | None:
    """Return the item for each word that follows from the source; None if there is none.

    Every name needs all segments that vary: else two keys become one. The patterns of further sources have the
    captures of the first, each once and as it is.
    """
    first = split[group[0]]
    try:
        columns = list(zip(*(split[fqn].source for fqn in group), strict=True))
        wanted = list(zip(*(split[fqn].rest for fqn in group), strict=True))
    except ValueError:  # names of several lengths
        return None
    words = {place: words for place, column in enumerate(columns) if len(words := set(column)) > 1}
    varying = {place: all(map(is_canonical_integer, words[place])) for place in words}
    items: list[SegmentItem] = []
    sections = list_sections(first.rest)
    patterns = _count_patterns(first)
    for number, (start, end) in enumerate(sections):
        found = _explain_name(wanted[start:end], columns, varying, is_pattern=number < patterns)
        if found is None:
            return None
        items += [Fixed(NEXT), *found] if number else found
    return tuple(items)


def _count_patterns(folded: Folded) -> int:
    assert isinstance(folded.form, tuple)
    return int(folded.form[1]) - 1


Varying = Mapping[int, bool]
"""The segments in which keys differ, and whether each of their words there is an index."""


def _explain_name(
    wanted: Sequence[Segments], columns: Sequence[Segments], varying: Varying, *, is_pattern: bool
) -> list[SegmentItem] | None:
    items: list[SegmentItem] = []
    used: set[int] = set()
    for words in wanted:
        item = _explain_segment(words, columns, varying, used)
        if item is None or (is_pattern and not isinstance(item, Fixed | Copied)):
            return None
        places = _list_places(item)
        if is_pattern and used.intersection(places):
            return None
        used.update(places)
        items.append(item)
    return None if set(varying) - used else list(_join_tables(items))


def _list_places(item: SegmentItem) -> tuple[int, ...]:
    if isinstance(item, ComputedSegment):
        return item.places
    return (item.place,) if isinstance(item, Copied | LookedUp) else ()


def _explain_segment(
    wanted: Segments, columns: Sequence[Segments], varying: Varying, used: set[int]
) -> SegmentItem | None:
    words = set(wanted)
    if len(words) == 1:
        return Fixed(wanted[0])
    # The likeliest source is a segment that no other target segment uses yet; of several, the leftmost.
    for place in sorted(varying, key=lambda place: (place in used, place)):
        if columns[place] == wanted:
            # Of several segments a capture can only read what a table lists.
            is_several = any("." in word for word in wanted)
            return LookedUp(place, tuple({word: word for word in wanted}.items())) if is_several else Copied(place)
    indices = [place for place, is_index in varying.items() if is_index]
    if indices and all(map(is_canonical_integer, words)):
        computed = _find_arithmetic([int(word) for word in wanted], columns, indices)
        if computed is not None:
            return computed
    for place in sorted(varying, key=lambda place: (varying[place], place in used, place)):
        entries: dict[str, str] = {}
        if all(entries.setdefault(word, found) == found for word, found in zip(columns[place], wanted, strict=True)):
            return LookedUp(place, tuple(entries.items()))
    return None


def _find_arithmetic(
    wanted: Sequence[int], columns: Sequence[Sequence[str]], varying: Sequence[int]
) -> ComputedSegment | None:
    found = find_arithmetic(wanted, columns, varying)
    return None if found is None else ComputedSegment(*found)


def get_word(item: SegmentItem) -> str:
    """Return the word of a fixed segment; "" for others."""
    return item.word if isinstance(item, Fixed) else ""


def _join_tables(items: Sequence[SegmentItem]) -> Iterator[SegmentItem]:
    """Join neighbouring lookups of one segment into one table: `norm1 -> residual.0`."""
    pending: LookedUp | None = None
    glue = ""
    for place, item in enumerate(items):
        following = items[place + 1] if place + 1 < len(items) else None
        is_glue = pending is not None and isinstance(item, Fixed) and item.word.startswith(GLUE)
        if is_glue and isinstance(following, LookedUp) and pending and following.place == pending.place:
            glue = get_word(item)
            continue
        if isinstance(item, LookedUp) and pending is not None and item.place == pending.place:
            values = dict(item.entries)
            between = glue[len(GLUE) :] if glue else "."
            joined = tuple((word, f"{value}{between}{values[word]}") for word, value in pending.entries)
            pending, glue = LookedUp(item.place, joined), ""
            continue
        if pending is not None:
            yield pending
        pending = item if isinstance(item, LookedUp) else None
        if pending is None:
            yield item
    if pending is not None:
        yield pending
