"""Joins groups of keys whose words do not occur in every combination: `{conv1|norm1}.{weight|gamma}`.

A rule of such a group takes keys that no example has (`conv1.gamma`). So it is the last step, it is held against all
keys and proven like every rule, and it is undone where that fails.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence, Set
from dataclasses import dataclass
from typing import Generic, TypeVar

from remapkit.authoring.fold_relation import Folded
from remapkit.authoring.split_keys import MARK, Segments, join_words
from remapkit.tensors.families import is_canonical_integer

SAMPLE = 32
"""The keys of each group that are tried before all of them: most pairs fail there."""
PASSES = 16
"""How often each key may be read on average; when that is spent, the groups stay apart."""
NEAREST = 32
"""The most groups of one kind that each is compared with."""
RULE = 8
"""What a rule weighs besides its words: two rules are joined if the text does not get heavier."""
MOST_NUMBERS = 8
"""The most indices that are written as words."""

Item = TypeVar("Item")
Words = Mapping[str, Folded]


@dataclass(frozen=True, slots=True)
class Explainer(Generic[Item]):
    """How target words follow from source words.

    `explain` returns the items of one rule for some keys, None if there is none; `is_shown(joined, parts)` tells
    whether the items of a joined group show nothing that its parts do not; `weigh` counts the segments to be read.
    """

    explain: Callable[[Sequence[str], Mapping[str, Folded]], tuple[Item, ...] | None]
    is_shown: Callable[[Sequence[Item], Sequence[Sequence[Item]]], bool]
    weigh: Callable[[Sequence[Item]], int]


@dataclass(frozen=True, slots=True)
class Span:
    """Which words become one: all but the first `start` and the last `end`."""

    start: int
    end: int


@dataclass(slots=True)
class Budget:
    """The steps that are left, keys read and pairs looked at; below 0 no further groups are joined."""

    left: int


Spans = dict[tuple[object, object, Span], bool]


def join_loosely(
    groups: Sequence[list[str]],
    split: MutableMapping[str, Folded],
    explainer: Explainer[Item],
    budget: Budget | None = None,
) -> tuple[list[list[str]], list[bool]]:
    """Return fewer groups, and which of them were joined here; `split` is changed for keys whose words are.

    Two groups are joined if their words differ in one place, or in one and the last, of whose combinations at least
    half occur, and if one rule maps them all and is lighter; those that save most come first. It ends: each round but
    the last leaves fewer groups. Cost: by default no more than `PASSES` passes over the keys.
    """
    budget = budget or Budget(PASSES * sum(map(len, groups)) + 100_000)
    # A joined group gets a new number, so that no pair is tried twice.
    joined = dict(enumerate(groups))
    masked = {fqn: _mask_numbers(folded.source) for fqn, folded in split.items()}
    families = set(masked.values())
    tried: dict[tuple[int, int, Span], tuple[int, Words]] = {}
    spans = {number: _list_spans(group, split) for number, group in joined.items()}
    while True:
        best: tuple[int, Words] = (0, {})
        chosen = (-1, -1)
        neighbours = _list_neighbours(spans)
        budget.left -= len(neighbours) + len(joined)
        for one, other, span in neighbours:
            if (one, other, span) not in tried:
                if budget.left < 0:
                    break
                sample = [fqn for number in (one, other) for fqn in joined[number][:SAMPLE]]
                budget.left -= len(sample)
                cuts = _find_cuts(sample, span, split, explainer)
                if not cuts:
                    tried[one, other, span] = 0, {}
                    continue
                budget.left -= (3 + len(cuts)) * (len(joined[one]) + len(joined[other]))
                found = _try_pair((joined[one], joined[other]), span, cuts, split, explainer)
                budget.left -= len(families)
                takes_more = found[0] and _takes_others(families, masked, found[1])
                tried[one, other, span] = (0, {}) if takes_more else found
            if tried[one, other, span][0] > best[0]:
                best, chosen = tried[one, other, span], (one, other)
        if not best[0]:
            break
        split.update(best[1])
        number = max(joined) + 1
        joined[number] = [fqn for part in chosen for fqn in joined[part]]
        spans[number] = _list_spans(joined[number], split)
        for part in chosen:
            del joined[part], spans[part]
        if budget.left < 0:  # each further round would look at all pairs again
            break
    return list(joined.values()), [number >= len(groups) for number in joined]


def _list_spans(group: Sequence[str], split: Mapping[str, Folded]) -> Spans:
    """Return where words of a group may become one, by what two groups must share; and if one word is there."""
    form, columns = split[group[0]].form, _list_columns(group, split)
    last = len(columns) - 1
    hidden = [_hide_numbers(column) for column in columns]
    found: Spans = {}
    for start in range(len(columns)):
        for stop in range(start + 1, len(columns) + 1):
            if not _may_be_one(columns[start:stop]):
                break
            rest = tuple(hidden[place] for place in (*range(start), *range(stop, last)))
            found[form, rest, Span(start, len(columns) - stop)] = stop == start + 1
    return found


def _list_neighbours(spans_of: Mapping[int, Spans]) -> list[tuple[int, int, Span]]:
    """Return pairs of groups that differ in one place, or in it and the last word; one of them has one word there."""
    buckets: defaultdict[tuple[object, object, Span], list[int]] = defaultdict(list)
    for number, spans in spans_of.items():
        for key in spans:
            buckets[key].append(number)
    found = {
        (one, other, key[2]): None
        for key, members in buckets.items()
        for place, one in enumerate(members)
        for other in members[place + 1 : place + 1 + NEAREST]
        if spans_of[one][key] or spans_of[other][key]
    }
    return sorted(found, key=lambda pair: (pair[0], pair[1], -pair[2].start))


def _list_columns(group: Sequence[str], split: Mapping[str, Folded]) -> list[frozenset[str]]:
    return [frozenset(words) for words in zip(*(split[fqn].source for fqn in group), strict=True)]


def _hide_numbers(words: frozenset[str]) -> frozenset[str] | None:
    return None if all(map(is_canonical_integer, words)) else words


def _may_be_one(columns: Sequence[frozenset[str]]) -> bool:
    """Return whether words in a row may be read as one; with indices among them only if they do not count anything.

    >>> names = frozenset({"residual"})
    >>> [_may_be_one([names, frozenset(numbers)]) for numbers in ("1", "0236", "0123")]
    [True, True, False]
    """
    if any(word.startswith(MARK) for words in columns for word in words):
        return False
    numbers = [sorted(map(int, words)) for words in columns if _hide_numbers(words) is None]
    return len(numbers) < len(columns) and all(
        len(row) == 1 or (len(row) <= MOST_NUMBERS and row != list(range(len(row)))) for row in numbers
    )


def _is_dense(parts: Sequence[Sequence[str]], split: Mapping[str, Folded]) -> bool:
    """Return whether at least half of the combinations of the words in which the parts differ occur.

    Not if each word goes with one other only: that is one word in two segments.
    """
    one, other = (_list_columns(part, split) for part in parts)
    places = [place for place in range(len(one)) if _hide_numbers(one[place]) != _hide_numbers(other[place])]
    seen = {tuple(split[fqn].source[place] for place in places) for part in parts for fqn in part}
    sizes = [len(one[place] | other[place]) for place in places]
    is_paired = len(places) > 1 and set(sizes) == {len(seen)}
    return math.prod(sizes) <= 2 * len(seen) and not is_paired


def _mask_numbers(words: Segments) -> str:
    """Return the words in one, with # for numbers."""
    segments = ".".join(words).split(".")
    return ".".join("#" if is_canonical_integer(segment) else segment for segment in segments)


def _takes_others(families: Set[str], masked: Mapping[str, str], words: Words) -> bool:
    """Return whether a rule for some keys, in any combination of their words, takes a key that is not one of them.

    `families` are all keys with # for numbers; `masked` is that of each key.
    """
    columns = [{_mask_numbers((word,)) for word in column} for column in _list_columns(list(words), words)]
    return any(_is_match(family, columns) for family in families - {masked[fqn] for fqn in words})


def _is_match(text: str, columns: Sequence[Set[str]]) -> bool:
    """Return whether a text is a row of words, one of each column; words may have several segments.

    >>> _is_match("a.b.c.w", [{"a", "a.b"}, {"b", "c"}, {"w"}]), _is_match("a.w", [{"a"}, {"w", "b"}, {"w"}])
    (True, False)
    """
    first, rest = columns[0], columns[1:]
    if not rest:
        return text in first
    return any(text.startswith(f"{word}.") and _is_match(text[len(word) + 1 :], rest) for word in first)


def _find_cuts(
    sample: Sequence[str], span: Span, split: Mapping[str, Folded], explainer: Explainer[Item]
) -> list[Span | None]:
    """Return the cuts of the targets under which one rule maps the sample; the keys of a group have equal lengths."""
    sources = _merge_sources(sample, span, split)
    cuts = [(cut, _cut_targets(sources, cut)) for cut in _list_target_cuts(sources)]
    return [cut for cut, words in cuts if words and explainer.explain(sample, words) is not None]


def _try_pair(
    parts: tuple[list[str], list[str]],
    span: Span,
    cuts: Sequence[Span | None],
    split: Mapping[str, Folded],
    explainer: Explainer[Item],
) -> tuple[int, Words]:
    """Return how much lighter one rule is, and the words of the keys as it maps them; 0 if there is none."""
    whole = [*parts[0], *parts[1]]
    sources = _merge_sources(whole, span, split)
    if not _is_dense(parts, sources):
        return 0, {}
    shown = [(part, found) for part in parts if (found := explainer.explain(part, split)) is not None]
    weight = sum(_weigh_group(part, split, explainer.weigh(found)) for part, found in shown)
    best: tuple[int, Words] = (0, {})
    for cut in cuts:
        words = _cut_targets(sources, cut)
        items = explainer.explain(whole, words) if words else None
        if items is None or not explainer.is_shown(items, [found for _, found in shown]):
            continue
        gain = weight - _weigh_group(whole, words, explainer.weigh(items))
        if gain > best[0]:
            best = gain, words
    return best


def _weigh_group(group: Sequence[str], split: Mapping[str, Folded], targets: int) -> int:
    """Return about how much there is to read in a rule, in segments."""
    columns = _list_columns(group, split)
    return RULE + targets + sum(_count_segments(words) for words in columns if _hide_numbers(words) is not None)


def _count_segments(words: Iterable[str]) -> int:
    return sum(1 + word.count(".") for word in words)


def _merge_words(words: Segments, span: Span) -> Segments:
    stop = len(words) - span.end
    return (*words[: span.start], join_words(words[span.start : stop]), *words[stop:])


def _merge_sources(fqns: Iterable[str], span: Span, split: Mapping[str, Folded]) -> Words:
    # `replace` would cost more than all the rest.
    return {
        fqn: Folded(_merge_words(folded.source, span), folded.rest, folded.form)
        for fqn in fqns
        for folded in (split[fqn],)
    }


def _list_target_cuts(sources: Words) -> list[Span | None]:
    """Return None for targets as they are, or which words become one: `shortcut`, `residual.2`."""
    lengths = {len(folded.rest) for folded in sources.values()}
    shortest = min(lengths)
    return [None] if len(lengths) == 1 else [Span(start, shortest - 1 - start) for start in range(shortest)]


def _cut_targets(sources: Words, cut: Span | None) -> Words:
    """Return the keys with several words of their targets as one; none if our own marks are among these words."""
    if cut is None:
        return sources
    found: dict[str, Folded] = {}
    for fqn, folded in sources.items():
        if any(word.startswith(MARK) for word in folded.rest[cut.start : len(folded.rest) - cut.end]):
            return {}
        found[fqn] = Folded(folded.source, _merge_words(folded.rest, cut), folded.form)
    return found
