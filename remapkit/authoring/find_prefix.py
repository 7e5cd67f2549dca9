"""Find what turns the names of a source into those of a target: another prefix, or one segment less."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from remapkit.tensors.families import Family
from remapkit.tensors.spec import StateDictSpec

MAX_TRIED = 16
"""The most changes that are tried on all keys: those that fit most families by their first keys."""
MAX_LIKE = 200
"""The most target keys of one leaf and shape that a family is compared with."""
MAX_ROUNDS = 8
"""The most changes of one rule file."""

Segments = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of names: the segments in front are replaced, and each segment `without` is taken out."""

    removed: Segments = ()
    added: Segments = ()
    without: str | None = None

    def apply(self, fqn: str) -> str | None:
        """Return the new name; None if the change is about other names.

        >>> Change(("net",), ("model", "unet")).apply("net.in.w"), Change(without="module").apply("in.module.w")
        ('model.unet.in.w', 'in.w')
        """
        segments = tuple(fqn.split("."))
        if self.without is not None:
            return ".".join(self.keep(segments, segments)) if self.without in segments else None
        if segments[: len(self.removed)] != self.removed:
            return None
        return ".".join((*self.added, *segments[len(self.removed) :]))

    def keep(self, words: Sequence[str], parts: Sequence[str]) -> list[str]:
        """Return those of the parts of a name, one for each segment, that are left; `words` are the segments."""
        if self.without is None:
            return list(parts[len(self.removed) :])
        return [part for word, part in zip(words, parts, strict=True) if word != self.without]


def find_changes(families: Sequence[Family], target: StateDictSpec) -> Mapping[Family, Change]:
    """Return for each family the change under which each of its keys is a target key of the same shape.

    A change must account for two keys or for all. Where two changes account for equally many, neither is taken.

    >>> from remapkit.tensors.families import find_families
    >>> from remapkit.tensors.spec import TensorSpec
    >>> source, target = (
    ...     StateDictSpec({f"{root}.{i}.w": TensorSpec("F32", (2,)) for i in range(3)}) for root in ("h", "model.h")
    ... )
    >>> list(find_changes(find_families(source), target).values())
    [Change(removed=(), added=('model',), without=None)]
    """
    found: dict[Family, Change] = {}
    free = dict(target)
    rest = list(families)
    total = sum(len(family.fqns) for family in families)
    for _ in range(MAX_ROUNDS):
        fitting = {change: _list_fitting(change, rest, free) for change in _propose_changes(rest, free)}
        counts = {change: sum(len(family.fqns) for family in taken) for change, taken in fitting.items()}
        ordered = sorted(counts, key=lambda change: -counts[change])
        if not ordered or counts[ordered[0]] < min(2, total):
            break
        rivals = [each for each in ordered[1:] if counts[each] == counts[ordered[0]]]
        disputed = {family for each in rivals for family in fitting[each]}
        taken = [family for family in fitting[ordered[0]] if family not in disputed]
        if not taken:
            rest = [family for family in rest if family not in disputed]
            continue
        found.update(dict.fromkeys(taken, ordered[0]))
        for family in taken:
            for fqn in family.fqns:
                del free[ordered[0].apply(fqn) or ""]
        rest = [family for family in rest if family not in found]
    return found


def _propose_changes(families: Sequence[Family], free: Mapping[str, object]) -> list[Change]:
    """Return the changes that fit the first keys of most families."""
    alike: defaultdict[object, list[Segments]] = defaultdict(list)
    for fqn, spec in free.items():
        segments = tuple(fqn.split("."))
        place = alike[segments[-1], getattr(spec, "shape", None)]
        if len(place) < MAX_LIKE:
            place.append(segments)
    votes: Counter[Change] = Counter()
    for family in families:
        segments = tuple(family.fqns[0].split("."))
        for other in alike[segments[-1], family.specs[0].shape]:
            votes.update(_compare(segments, other))
    return [change for change, _ in votes.most_common(MAX_TRIED)]


def _compare(one: Segments, other: Segments) -> set[Change]:
    """Return the changes that turn one name into the other; a prefix with a number is a layer."""
    common = 0
    while common < min(len(one), len(other)) and one[-1 - common] == other[-1 - common]:
        common += 1
    removed, added = one[: len(one) - common], other[: len(other) - common]
    found = set()
    if not any(segment.isdecimal() or not segment for segment in (*removed, *added)):
        found.add(Change(removed, added))
    for segment in set(one) - set(other):
        if segment and not segment.isdecimal() and tuple(each for each in one if each != segment) == other:
            found.add(Change(without=segment))
    # A segment that is only in front is a prefix.
    return {change for change in found if change.without is None or one[0] != change.without or one.count(one[0]) > 1}


def _list_fitting(change: Change, families: Sequence[Family], free: Mapping[str, object]) -> list[Family]:
    """Return the families whose keys all become free target keys of their shape, no two of them the same."""
    fitting = []
    taken: set[str] = set()
    for family in families:
        new = [change.apply(fqn) or "" for fqn in family.fqns]
        if "" in new:  # the change is about other names; an empty key, which a target may have, is nobody's
            continue
        if change.without is not None and not _is_constant(family, change.without):
            continue
        if not all(
            getattr(free.get(fqn), "shape", None) == spec.shape for fqn, spec in zip(new, family.specs, strict=True)
        ):
            continue
        if len({*new, *taken}) == len(new) + len(taken):
            taken.update(new)
            fitting.append(family)
    return fitting


def _is_constant(family: Family, segment: str) -> bool:
    """Return whether a segment stands in the same places of all keys."""
    places = {tuple(word == segment for word in fqn.split(".")) for fqn in family.fqns}
    return len(places) == 1
