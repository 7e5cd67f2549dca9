"""Fit a header to the layouts of the installed packs: exactly, in another size, in part, or how far off.

Names with their numbers left open find the candidates; the manifests of each candidate, and the rules of the packs
that read it, then decide. No list of tell-tale keys is involved. Whether a manifest is met exactly is a question for
its digest, so that nothing is read for the answer; else at most `MAX_JUDGED` manifests are read, the nearest first,
and rules are compiled only where the cache does not say which keys they take (`pack_rules.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from remapkit.companions.names import WEIGHT_LEAVES, find_scaled_weights
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.registry.candidates import MAX_NAMES, Candidate, Manifest, RootFit, fit_candidates, list_candidates
from remapkit.registry.fit_adapters import AdapterFit, fit_adapter, is_adapter
from remapkit.registry.layouts import digest_tensors
from remapkit.registry.pack_rules import PackRules
from remapkit.tensors.families import mask_indices
from remapkit.tensors.relations import Contradiction, Relations
from remapkit.tensors.spec import StateDictSpec, TensorSpec

MAX_JUDGED = 8
"""The most manifests that are read for one root."""
MAX_NEAR = 3
"""The most layouts that are named for a checkpoint that has none of them."""
OF_INPUTS = re.compile(r"(?:^|\.)(?:input_scale|scale_input|scaled_fp8)$")
"""Names that belong to no weight, but are only in files with scaled ones."""


class Verdict(Enum):
    """How well a header fits a layout."""

    EXACT = "exactly"
    OTHER_SIZE = "in another size"
    PART = "a part of it"
    NEAR = "not"


@dataclass(frozen=True, slots=True)
class LayoutFit:
    """How the keys under a root fit a layout.

    `missing` are names of the layout that are not there (in another size with numbers left open, `*`), `foreign`
    keys that are none of its names, `shapes` the common names with another shape. `outside` counts the keys outside
    the root, and `scales` the companions of quantised weights, which no layout lists. `contradicts` are the shapes
    that no size of the layout has.
    """

    layout: str
    packs: tuple[str, ...]
    root: str
    verdict: Verdict
    keys: int
    outside: int
    missing: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    scales: int = 0
    numbers: int = 0
    """How many names the checkpoint and the layout's manifest do not have in common, numbers counted."""
    contradicts: tuple[Contradiction, ...] = ()
    lost: str = ""
    """The prefix that the names of the layout have, and those of the checkpoint lack."""

    @property
    def fits(self) -> bool:
        """Whether the keys are those of the layout: all of its names, or a part of them, and no others."""
        return self.verdict is not Verdict.NEAR


@dataclass(frozen=True, slots=True)
class LayoutFits:
    """What a header is: one layout, several under different roots, an adapter, or the nearest layouts.

    `broken` are the packs that could not be asked because their rules cannot be compiled, with the reason.
    """

    fits: tuple[LayoutFit, ...] = ()
    adapters: tuple[AdapterFit, ...] = ()
    near: tuple[LayoutFit, ...] = ()
    scaled: tuple[str, ...] = ()
    broken: Mapping[str, Diagnostic] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether any layout fits."""
        return bool(self.fits or any(each.known == each.modules for each in self.adapters))


# --------------------------------------------------------------------------------------------------------- layouts


def fit_layouts(header: StateDictSpec, layout: str | None = None) -> LayoutFits:
    """Return the layouts that a header fits, under which roots, else the nearest; only `layout` if it is given.

    The shapes exclude no layout that is given: they are only named in `contradicts`.

    >>> from remapkit.tensors.spec import TensorSpec
    >>> found = fit_layouts(StateDictSpec({"net.a": TensorSpec("F32", (1,))}))
    >>> found.known, found.fits
    (False, ())
    """
    if not 0 < len(header) <= MAX_NAMES:
        return LayoutFits()
    candidates = list_candidates()
    if layout is not None:
        candidates = [each for each in candidates if each.layout == layout]
    if is_adapter(header):
        return LayoutFits(adapters=fit_adapter(header, candidates))
    judge = _Judge(header, trusted=layout is not None)
    rough = fit_candidates(list(judge.tensors), candidates)
    fits: list[LayoutFit] = []
    for judge_root in (judge.find_exact, judge.find_parts):
        for root, lost in dict.fromkeys((each.root, each.lost) for each in rough if each.is_part):
            if not any(_overlaps(root, fit.root) for fit in fits):
                here = [each for each in rough if each.is_part and (each.root, each.lost) == (root, lost)]
                fits += judge_root(here)
    near = {} if fits else {fit.candidate.layout: fit for fit in reversed(rough)}
    nearest = sorted(near.values(), key=lambda fit: fit.rank)[:MAX_NEAR]
    measured = tuple(map(judge.measure, nearest))
    return LayoutFits(tuple(fits), near=measured, scaled=tuple(judge.scaled), broken=judge.rules.broken)


def _overlaps(one: str, other: str) -> bool:
    """Return whether one root lies inside another."""
    return not one or not other or f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


@dataclass(frozen=True, slots=True)
class _Difference:
    """The keys under a root against one manifest."""

    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    shapes: tuple[str, ...]
    contradicts: tuple[Contradiction, ...] = ()

    @property
    def numbers(self) -> int:
        return len(self.missing) + len(self.foreign)


class _Judge:
    """Compares the tensors of a header, without the companions of scaled weights, with manifests and rules.

    A packed weight has the shape of its numbers, not that of the weight, and perhaps another name (`qweight`): it is
    compared by the name of the weight alone. `trusted` says that shapes exclude no layout.
    """

    def __init__(self, header: StateDictSpec, *, trusted: bool) -> None:
        self._trusted = trusted
        self.scaled = find_scaled_weights(header)
        self.companions = {name for found in self.scaled.values() for name in found}
        if self.scaled:
            self.companions |= {fqn for fqn in header if OF_INPUTS.search(fqn)}
        names = {fqn: _name_weight(fqn, header) for fqn in self.scaled}
        self.packed = {names[fqn] for fqn in self.scaled if not header[fqn].dtype.startswith("F8")}
        self.tensors = {names.get(fqn, fqn): spec for fqn, spec in header.items() if fqn not in self.companions}
        self._size = len(header)
        self._read: dict[str, tuple[StateDictSpec, Relations] | None] = {}
        self.rules = PackRules()

    def find_exact(self, rough: Sequence[RootFit]) -> list[LayoutFit]:
        """Return the layouts that have exactly the names and shapes under a root, which all of `rough` are about."""
        place = rough[0]
        inside = self._cut(place)
        counts = Counter(map(mask_indices, inside))
        alike = {
            number: [manifest for manifest in each.candidate.manifests.values() if manifest.counts == counts]
            for number, each in enumerate(rough)
        }
        if not any(alike.values()):
            return []
        equal = _Difference((), (), ())
        if any(self._is_packed(place, fqn) for fqn in inside):
            is_equal = lambda manifest: self._compare(manifest, place, inside) == equal  # noqa: E731
        else:
            digest = digest_tensors(inside)
            is_equal = lambda manifest: manifest.digest == digest  # noqa: E731
        found = [rough[number] for number, manifests in alike.items() if any(map(is_equal, manifests))]
        return [self._make_fit(each, Verdict.EXACT, equal) for each in found]

    def find_parts(self, rough: Sequence[RootFit]) -> list[LayoutFit]:
        """Return the layouts of which the keys under a root are a part, or that they are in another size.

        The nearest are returned: those with the fewest tensors that are not as in their manifest, and of these the
        ones whose equal dimensions are equal here, if there are any. They are found without reading all manifests:
        how many names of each kind there are says how many must differ at least.
        """
        inside = self._cut(rough[0])
        counts = Counter(map(mask_indices, inside))
        ordered = sorted(
            (
                (_count_least(counts, manifest), number, manifest)
                for number, each in enumerate(rough)
                for manifest in each.candidate.manifests.values()
            ),
            key=lambda one: one[:2],
        )
        found: dict[str, tuple[int, LayoutFit, bool]] = {}
        best: int | None = None
        judged = 0
        for least, number, manifest in ordered:
            if judged == MAX_JUDGED or (best is not None and least > best):
                break
            if (differs := self._compare(manifest, rough[number], inside)) is None:
                continue
            judged += 1
            distance = differs.numbers + len(differs.shapes)
            fit = self._make_fit(rough[number], *self._decide(rough[number], differs, inside))
            before = found.get(fit.layout)
            if fit.fits and (before is None or distance <= before[0]):
                # Of manifests that are as near, one whose equal dimensions are equal here is enough.
                was_equal = before is not None and before[0] == distance and before[2]
                is_equal = was_equal or self._has_equal(manifest, inside)
                found[fit.layout] = distance, fit, is_equal
                best = distance if best is None else min(best, distance)
        nearest = [(fit, is_equal) for distance, fit, is_equal in found.values() if distance == best]
        agreeing = [fit for fit, is_equal in nearest if is_equal]
        return agreeing or [fit for fit, _ in nearest]

    def _has_equal(self, manifest: Manifest, inside: Mapping[str, TensorSpec]) -> bool:
        """Return whether what is equal in a manifest that was read is equal here."""
        found = self._read[manifest.digest]
        return found is not None and not self.packed and found[1].has_equal(inside)

    def measure(self, rough: RootFit) -> LayoutFit:
        """Return how far off a candidate is that fits nowhere."""
        inside = self._cut(rough)
        counts = Counter(map(mask_indices, inside))
        nearest = min(rough.candidate.manifests.values(), key=lambda manifest: _count_least(counts, manifest))
        differs = self._compare(nearest, rough, inside) or _Difference((), (), ())
        here = set(map(mask_indices, inside))
        lacking = tuple(sorted(rough.candidate.kinds - here))
        strangers = tuple(fqn for fqn in inside if mask_indices(fqn) not in rough.candidate.kinds)
        strangers = strangers or self._find_unspoken(rough.candidate, differs.foreign, inside) or ()
        return self._make_fit(
            rough, Verdict.NEAR, replace(differs, missing=lacking, foreign=strangers), differs.numbers
        )

    def _cut(self, place: RootFit) -> dict[str, TensorSpec]:
        prefix = f"{place.root}." if place.root else ""
        inside = ((fqn, spec) for fqn, spec in self.tensors.items() if fqn.startswith(prefix))
        return {f"{place.lost}{fqn[len(prefix) :]}": spec for fqn, spec in inside}

    def _make_fit(
        self, rough: RootFit, verdict: Verdict, differs: _Difference, numbers: int | None = None
    ) -> LayoutFit:
        prefix = f"{rough.root}." if rough.root else ""
        scales = sum(fqn.startswith(prefix) for fqn in self.companions)
        return LayoutFit(
            rough.candidate.layout,
            rough.candidate.packs,
            rough.root,
            verdict,
            rough.keys,
            self._size - rough.keys - scales,
            differs.missing,
            tuple(fqn.removeprefix(rough.lost) for fqn in differs.foreign),
            differs.shapes,
            scales,
            differs.numbers if numbers is None else numbers,
            differs.contradicts,
            rough.lost,
        )

    def _is_packed(self, place: RootFit, fqn: str) -> bool:
        own = fqn.removeprefix(place.lost)
        return bool(self.packed) and (f"{place.root}.{own}" if place.root else own) in self.packed

    def _compare(self, manifest: Manifest, place: RootFit, inside: Mapping[str, TensorSpec]) -> _Difference | None:
        """Compare with a manifest; None if it cannot be read, because it was removed meanwhile."""
        if manifest.digest not in self._read:
            read = _read_manifest(manifest)
            self._read[manifest.digest] = None if read is None else (read, Relations(read))
        if (found := self._read[manifest.digest]) is None:
            return None
        known, relations = found
        packed = {fqn for fqn in inside if self._is_packed(place, fqn)}
        shapes = (fqn for fqn, spec in known.items() if fqn in inside and inside[fqn].shape != spec.shape)
        return _Difference(
            tuple(fqn for fqn in known if fqn not in inside),
            tuple(fqn for fqn in inside if fqn not in known),
            tuple(fqn for fqn in shapes if fqn not in packed),
            tuple(relations.list_contradictions(inside, packed)),
        )

    def _decide(
        self, rough: RootFit, differs: _Difference, inside: Mapping[str, TensorSpec]
    ) -> tuple[Verdict, _Difference, int]:
        """Return what keys of a candidate's kinds are to one of its manifests, and the difference as it is shown."""
        numbers = differs.numbers
        if not numbers and not differs.shapes:
            return Verdict.EXACT, differs, 0
        lacking = tuple(sorted(rough.candidate.kinds.difference(map(mask_indices, inside))))
        strangers = self._find_unspoken(rough.candidate, differs.foreign, inside)
        if strangers is None or strangers:
            return Verdict.NEAR, replace(differs, missing=lacking, foreign=strangers or ()), numbers
        if differs.contradicts and not self._trusted:
            return Verdict.NEAR, replace(differs, missing=lacking, foreign=()), numbers
        if not lacking and (differs.foreign or differs.shapes):
            return Verdict.OTHER_SIZE, replace(differs, missing=(), foreign=()), numbers
        missing = lacking if differs.foreign or differs.shapes else differs.missing
        return Verdict.PART, replace(differs, missing=missing, foreign=()), numbers

    def _find_unspoken(
        self, candidate: Candidate, fqns: Sequence[str], inside: Iterable[str]
    ) -> tuple[str, ...] | None:
        """Return the keys that no pack that reads the layout takes, none if none reads it; None if undecided.

        A pack whose rules cannot be compiled says nothing; where no other reads the layout, nothing is decided.
        """
        if not candidate.readers:
            return ()
        left, asked = tuple(fqns), False
        for pack in candidate.readers:
            if not left:
                break
            taken = self.rules.select_taken(pack, left, inside)
            if taken is not None:
                asked = True
                left = tuple(fqn for fqn in left if fqn not in taken)
            elif pack.pack not in self.rules.broken:  # too many rules were compiled already
                return None
        return left if asked or not left else None


def _name_weight(fqn: str, header: Mapping[str, TensorSpec]) -> str:
    """Return the name that a scaled weight has in files without scales."""
    head, dot, leaf = fqn.rpartition(".")
    plain = f"{head}{dot}{WEIGHT_LEAVES[0]}"
    return plain if leaf in WEIGHT_LEAVES and plain not in header else fqn


def _count_least(counts: Mapping[str, int], manifest: Manifest) -> int:
    """Return how many names a manifest and keys at least do not have in common, by their counts of each kind."""
    kinds = counts.keys() | manifest.counts.keys()
    return sum(abs(counts.get(kind, 0) - manifest.counts.get(kind, 0)) for kind in kinds)


def _read_manifest(manifest: Manifest) -> StateDictSpec | None:
    from remapkit.diagnostics.errors import RemapkitError
    from remapkit.sources.declared import read_declared

    try:
        return read_declared(manifest.path) if manifest.path is not None else None
    except RemapkitError:
        return None
