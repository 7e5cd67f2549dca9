"""The layouts that a checkpoint may have: those whose manifests have its names, numbers left open, under which root.

The manifests and the rules of the candidates decide (`fit_layouts.py`). The cost is bounded: every candidate is
compared once under each of `MAX_ROOTS` roots, as sets.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remapkit.registry.layouts import PackLayouts, list_layouts, list_pack_layouts
from remapkit.tensors.families import mask_indices
from remapkit.tensors.roots import list_roots

MAX_NAMES = 200_000
"""Checkpoints with more tensors are not identified."""
MAX_KINDS = 5_000
"""Nor are those whose names still differ in more ways when their numbers are left open."""
MAX_ROOTS = 40
"""The most roots, those with most keys first, under which a layout is looked for."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest of a layout: its digest, and how many names it has of each kind."""

    path: Path | None
    digest: str
    counts: Mapping[str, int]


@dataclass(slots=True)
class Candidate:
    """A layout, or a pack's source without a name for it, with the manifests that have names of the same kinds.

    `packs` read the layout; `readers` are those of them that declare one of these manifests.
    """

    layout: str
    packs: tuple[str, ...]
    kinds: frozenset[str]
    readers: list[PackLayouts] = field(default_factory=list)
    manifests: dict[str, Manifest] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RootFit:
    """The keys under a root against a candidate: `keys` in all, `foreign` of them of no kind of the candidate's.

    `lacking` counts the candidate's kinds of which there is no key. With `lost`, a prefix, in front of them the keys
    are compared: the mirror image of a root, which stands in front of keys that a layout has without it.
    """

    candidate: Candidate
    root: str
    keys: int
    foreign: int
    lacking: int
    lost: str = ""

    @property
    def is_part(self) -> bool:
        """Whether all keys are of the candidate's kinds, and at least half of its kinds are there."""
        return not self.foreign and 2 * self.lacking <= len(self.candidate.kinds)

    @property
    def is_near(self) -> bool:
        """Whether at least half of the keys are of the candidate's kinds."""
        return 2 * self.foreign <= self.keys and self.foreign < self.keys

    @property
    def rank(self) -> tuple[object, ...]:
        """The order of fits, the best first: how far off, then the outer root."""
        depth = self.root.count(".") + bool(self.root)
        return (
            not self.is_part,
            bool(self.lost),
            self.foreign + self.lacking,
            depth,
            self.root,
            self.lost,
            self.candidate.layout,
        )


def list_candidates() -> list[Candidate]:
    """Return the layouts of the installed packs, by their kinds, and the sources of packs that name no layout."""
    found = list_pack_layouts()
    owner = {name: layout for layout in list_layouts(found) for name in (layout.name, *layout.aliases)}
    candidates: dict[tuple[str, frozenset[str]], Candidate] = {}
    for each in found:
        for side, is_source in ((each.source, True), (each.target, False)):
            layout = owner[side.names[0]] if side.names else None
            if not side.kinds or (layout is None and not is_source):
                continue
            name = layout.name if layout is not None else f"the source of {each.pack}"
            readers = layout.read_by if layout is not None else (each.pack,)
            candidate = candidates.setdefault((name, side.kinds), Candidate(name, readers, side.kinds))
            candidate.manifests.setdefault(side.digest, Manifest(side.manifest, side.digest, side.counts))
            candidate.readers += [each] if is_source else []
    return list(candidates.values())


def fit_candidates(names: Sequence[str], candidates: Sequence[Candidate]) -> list[RootFit]:
    """Return each candidate that is near under its best root, the best first; under every root where it is a part.

    A candidate that is near under none is compared with a lost prefix in front of all names.

    >>> layout = Candidate("m/a", (), frozenset({"h.*.w", "out.w"}))
    >>> [(fit.root, fit.lacking) for fit in fit_candidates(["net.h.0.w", "net.h.1.w", "step"], [layout])]
    [('net', 1)]
    """
    kinds = Counter(map(mask_indices, names)) if len(names) <= MAX_NAMES else Counter[str]()
    if not 0 < len(kinds) <= MAX_KINDS:
        return []
    roots = ("", *(root.path for root in list_roots(names)[:MAX_ROOTS]))
    inside = {root: cut_root(kinds, root) for root in roots}
    keys = {root: sum(below.values()) for root, below in inside.items()}
    found: list[RootFit] = []
    for candidate in candidates:
        known = candidate.kinds
        fits = [
            compare_kinds(candidate, root, below, keys[root])
            for root, below in inside.items()
            if not known.isdisjoint(below)
        ]
        parts = [fit for fit in fits if fit.is_part]
        if not any(fit.is_near for fit in fits):
            fits = [compare_kinds(candidate, "", kinds, keys[""], lost) for lost in list_lost(known)]
            parts = sorted((fit for fit in fits if fit.is_part), key=lambda fit: fit.rank)[:1]
        found += parts or sorted((fit for fit in fits if fit.is_near), key=lambda fit: fit.rank)[:1]
    return sorted(found, key=lambda fit: fit.rank)


def cut_root(kinds: Mapping[str, int], root: str) -> dict[str, int]:
    """Return the kinds under a root, without it.

    >>> cut_root({"net.a": 1, "network.b": 2}, "net")
    {'a': 1}
    """
    prefix = f"{root}." if root else ""
    return {kind[len(prefix) :]: count for kind, count in kinds.items() if kind.startswith(prefix)}


def compare_kinds(candidate: Candidate, root: str, kinds: Mapping[str, int], keys: int, lost: str = "") -> RootFit:
    """Compare the kinds under a root, with a lost prefix in front, with those of a candidate."""
    here = {f"{lost}{kind}" for kind in kinds} if lost else kinds.keys()
    foreign = sum(kinds[kind.removeprefix(lost)] for kind in here - candidate.kinds)
    return RootFit(candidate, root, keys, foreign, len(candidate.kinds - here), lost)


def list_lost(kinds: Collection[str]) -> list[str]:
    """Return the prefixes that at least half of the kinds have, the shortest first: each longer one goes on from it.

    >>> list_lost({"net.h.*.w", "net.h.*.b", "net.norm", "head"})
    ['net.', 'net.h.']
    """
    found: Counter[str] = Counter()
    for kind in kinds:
        words = kind.split(".")[:-1]
        names = itertools.takewhile(lambda word: word != "*", words)
        found.update(itertools.accumulate(f"{name}." for name in names))
    return sorted(
        (prefix for prefix, count in found.items() if 2 * count >= len(kinds)), key=lambda each: (len(each), each)
    )
