"""A relation as one source and what follows from it, so that its names can be generalised like those of a move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remapkit.authoring.find_arithmetic import find_arithmetic
from remapkit.authoring.relation import Relation
from remapkit.authoring.split_keys import COUNTED, GLUE, NEXT, Cut, Segments, split_key
from remapkit.authoring.verify_relation import signature
from remapkit.tensors.families import is_canonical_integer


@dataclass(frozen=True, slots=True)
class Folded:
    """The words of the first source, and those of the other sources and the targets, joined by `NEXT`.

    Sources or targets that differ only in an index that the rule counts are one name, with `COUNTED` for the index.
    `form` is equal for relations that one rule may map.
    """

    source: Segments
    rest: Segments
    form: object


def is_rename(relation: Relation) -> bool:
    """Return whether a relation moves one tensor as it is.

    >>> is_rename(Relation(("a",), ("b",))), is_rename(Relation(("a",), ("b",), ops=("transpose",)))
    (True, False)
    """
    return relation == Relation(relation.sources[:1], relation.targets[:1], by=relation.by)


def fold_relation(relation: Relation, source_cut: Cut, target_cut: Cut) -> Folded | None:
    """Fold a relation; None if no index counts what it stacks or unstacks.

    >>> found = fold_relation(Relation(("e.0.w", "e.1.w"), ("experts",), "stack"), "segments", "segments")
    >>> [word.replace("\\0", "") for word in found.source], found.rest
    (['e', '#{0}', 'w'], ('experts',))
    """
    stacked = len(relation.sources) if relation.join == "stack" else relation.count if relation.join else 0
    unstacked = len(relation.targets) if relation.cut == "unstack" else relation.count if relation.cut else 0
    sources = _fold_names(relation.sources, stacked, source_cut, counts_from_zero=True)
    targets = _fold_names(relation.targets, unstacked, target_cut)
    if sources is None or targets is None:
        return None
    # The patterns of one rule have the same captures, so a source that is read again adds no name to explain.
    names = [*sources[1:], *targets]
    rest = [word for name in names for word in (NEXT, *name)][1:]
    return Folded(sources[0], tuple(rest), (signature(relation), len(sources), tuple(map(_find_glue, names))))


def _find_glue(words: Segments) -> Segments:
    return tuple(word for word in words if word.startswith(GLUE))


def _fold_names(
    names: Sequence[str], count: int, cut: Cut, *, counts_from_zero: bool = False
) -> list[Segments] | None:
    """Return the words of each name, of one per group of `count` names that an index tells apart."""
    split = [split_key(name, cut) for name in names]
    if not count:
        return split
    width = len(split) // count
    folded = [_count_index(split[place::width]) for place in range(width)]
    if any(name is None for name in folded):
        return None
    if counts_from_zero:
        # What is stacked is read by a pattern, which has the index once, as it is.
        marks = [[word for word in name or () if word.startswith(COUNTED)] for name in folded]
        if any(found != [f"{COUNTED}{{0}}"] for found in marks):
            return None
    return [name for name in folded if name is not None]


def _count_index(names: Sequence[Segments]) -> Segments | None:
    """Return the words of names of which each has the next index; None if they differ in anything else."""
    if len({len(words) for words in names}) > 1:
        return None
    index = [tuple(map(str, range(len(names))))]
    folded: list[str] = []
    for column in zip(*names, strict=True):
        if len(set(column)) == 1 and len(names) > 1:
            folded.append(column[0])
        elif tuple(column) == index[0]:
            folded.append(f"{COUNTED}{{0}}")
        elif all(map(is_canonical_integer, column)):
            found = find_arithmetic([int(word) for word in column], index, [0])
            if found is None:
                return None
            folded.append(f"{COUNTED}{found[1]}")
        else:
            return None
    return tuple(folded) if any(word.startswith(COUNTED) for word in folded) else None
