"""Joins groups of keys whose words do not occur in every combination, as an author does: `{conv1|norm1}.{weight|gamma}`.

A rule of such a group takes keys that no example has (`conv1.gamma`). So it is the last step, it is held against all
keys and proven like every rule, and it is undone where that fails.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from remapkit.authoring.fold_relation import Folded
from remapkit.authoring.split_keys import MARK, join_words
from remapkit.tensors.families import is_canonical_integer

PASSES = 64
"""How often each key may be read on average; when that is spent, the groups stay apart."""


class Explained(Protocol):
    """What a target word follows from; equal for equal reasons."""


Item = TypeVar("Item", bound=Explained)
Split = MutableMapping[str, Folded]
Explain = Callable[[Sequence[str], Mapping[str, Folded]], tuple[Item, ...] | None]
MayJoin = Callable[[tuple[Item, ...], Sequence[tuple[Item, ...]]], bool]
"""Whether what explains a joined group is nothing that its parts do not show: `(joined, parts)`."""


def join_loosely(
    groups: Sequence[list[str]], split: Split, explain: Explain[Item], may_join: MayJoin[Item]
) -> tuple[list[list[str]], list[bool]]:
    """Return fewer groups, and which of them were joined here; `split` is changed for keys whose words are.

    Two groups are joined if their words differ in one segment, or in one and the last, of whose combinations at least
    half occur, and if one rule maps them all. It ends: each round but the last leaves fewer groups. Cost: no more than
    `PASSES` passes over the keys.
    """
    left = PASSES * sum(map(len, groups)) + 10_000
    joined: list[tuple[list[str], bool]] = [(group, False) for group in groups]
    failed: set[tuple[int, int]] = set()
    while True:
        for one, other in _list_neighbours([group for group, _ in joined], split):
            first, second = joined[one][0], joined[other][0]
            if (id(first), id(second)) in failed:
                continue
            left -= len(first) + len(second)
            if left < 0:
                break
            changed = _join_pair(first, second, split, explain, may_join)
            if changed is None:
                failed.add((id(first), id(second)))
                continue
            split.update(changed)
            joined[one] = ([*first, *second], True)
            del joined[other]
            break
        else:
            break
        if left < 0:
            break
    return [group for group, _ in joined], [loose for _, loose in joined]


def _list_neighbours(groups: Sequence[Sequence[str]], split: Mapping[str, Folded]) -> Iterator[tuple[int, int]]:
    """Yield pairs of groups that differ in the words of one segment, or of one and the last."""
    columns = [_list_columns(group, split) for group in groups]
    buckets: defaultdict[object, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        places = [place for place, words in enumerate(columns[number]) if words is not None]
        if not places or any(word.startswith(MARK) for word in split[group[0]].source):
            continue
        form = (split[group[0]].form, len(columns[number]), tuple(places))
        # Whatever they differ in besides the last segment: without that segment, the rest is equal.
        for place in places:
            rest = tuple(words for other, words in enumerate(columns[number]) if other not in (place, places[-1]))
            buckets[form, place, rest].append(number)
    pairs = dict.fromkeys(
        (members[one], members[other])
        for members in buckets.values()
        for one in range(len(members))
        for other in range(one + 1, len(members))
    )
    for one, other in sorted(pairs):
        if _is_dense(groups[one], groups[other], columns[one], columns[other], split):
            yield one, other


def _list_columns(group: Sequence[str], split: Mapping[str, Folded]) -> list[frozenset[str] | None]:
    """Return the words of each segment; None where they are indices."""
    found = [frozenset(words) for words in zip(*(split[fqn].source for fqn in group), strict=True)]
    return [None if all(map(is_canonical_integer, words)) else words for words in found]


def _is_dense(
    one: Sequence[str],
    other: Sequence[str],
    columns: Sequence[frozenset[str] | None],
    others: Sequence[frozenset[str] | None],
    split: Mapping[str, Folded],
) -> bool:
    """Return whether at least half of the combinations of the words that would vary occur."""
    places = [place for place, (first, second) in enumerate(zip(columns, others, strict=True)) if first != second]
    seen = {tuple(split[fqn].source[place] for place in places) for fqn in (*one, *other)}
    possible = 1
    for place in places:
        possible *= len((columns[place] or frozenset()) | (others[place] or frozenset()))
    return possible <= 2 * len(seen)


def _join_pair(
    one: list[str], other: list[str], split: Mapping[str, Folded], explain: Explain[Item], may_join: MayJoin[Item]
) -> dict[str, Folded] | None:
    """Return the words of the keys as one rule can map them; None if none can."""
    whole = [*one, *other]
    parts = [found for group in (one, other) if (found := explain(group, split)) is not None]
    for words in _list_cuts(whole, split):
        items = explain(whole, words)
        if items is not None and may_join(items, parts):
            return words
    return None


def _list_cuts(whole: Sequence[str], split: Mapping[str, Folded]) -> Iterator[dict[str, Folded]]:
    """Yield the targets as they are, or with several words as one where some have more: `shortcut`, `residual.2`."""
    found = {fqn: split[fqn] for fqn in whole}
    lengths = {len(folded.rest) for folded in found.values()}
    if len(lengths) == 1:
        yield found
        return
    shortest = min(lengths)
    # The shortest keeps its words; of the longer ones, those after `start` become one.
    for start in range(shortest):
        end = shortest - 1 - start
        cut: dict[str, Folded] = {}
        for fqn, folded in found.items():
            middle = folded.rest[start : len(folded.rest) - end]
            if any(word.startswith(MARK) for word in middle):
                break
            after = folded.rest[len(folded.rest) - end :]
            cut[fqn] = replace(folded, rest=(*folded.rest[:start], join_words(middle), *after))
        else:
            yield cut
