"""Fit a header to the layouts of the installed packs: exactly, in another size, in part, or how far off.

Names with their numbers left open find the candidates; the manifest of each candidate, and the rules of the packs
that read it, then decide. No list of tell-tale keys is involved. The cost is bounded: every root and every layout is
compared once, and the rules of at most `MAX_JUDGED` candidates are compiled.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from remapkit.companions.names import find_adapter_module, find_scaled_weights
from remapkit.registry.identify import MAX_KINDS, MAX_NAMES, MAX_ROOTS
from remapkit.registry.layouts import Layout, PackLayouts, list_layouts, list_pack_layouts
from remapkit.tensors.families import mask_indices
from remapkit.tensors.roots import list_roots
from remapkit.tensors.spec import StateDictSpec

MAX_JUDGED = 4
"""The most candidates that are compared with their manifests and rules."""
MAX_NEAR = 3
"""The most layouts that are named for a checkpoint that has none of them."""
OF_INPUTS = re.compile(r"(?:^|\.)(?:input_scale|scale_input|scaled_fp8)$")
"""Names that belong to no weight, but are only in files with scaled ones."""

ADAPTER_FORMS = (
    ("PEFT", "base_model.model.", False),
    ("ComfyUI", "diffusion_model.", False),
    ("diffusers", "transformer.", False),
    ("diffusers", "unet.", False),
    ("kohya", "lora_unet_", True),
    ("kohya", "lora_transformer_", True),
    ("bare", "", False),
)
"""How files name the modules of an adapter: a prefix, and whether dots are written as `_`."""


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
    the root, and `scales` the companions of quantised weights, which no layout lists.
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

    @property
    def fits(self) -> bool:
        """Whether the keys are those of the layout: all of its names, or a part of them, and no others."""
        return self.verdict is not Verdict.NEAR


@dataclass(frozen=True, slots=True)
class AdapterFit:
    """How an adapter fits a layout: `known` of its modules are modules of it, named in a known form."""

    layout: str
    form: str
    modules: int
    known: int


@dataclass(frozen=True, slots=True)
class LayoutFits:
    """What a header is: one layout, several under different roots, an adapter, or the nearest layouts."""

    fits: tuple[LayoutFit, ...] = ()
    adapters: tuple[AdapterFit, ...] = ()
    near: tuple[LayoutFit, ...] = ()
    scaled: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether any layout fits."""
        return bool(self.fits or any(each.known == each.modules for each in self.adapters))


@dataclass(slots=True)
class _Candidate:
    """A layout, or a pack without names for it, with the names of one of its manifests."""

    layout: str
    packs: tuple[str, ...]
    read_by: PackLayouts | None
    manifests: list[tuple[PackLayouts, bool]] = field(default_factory=list)
    kinds: frozenset[str] = frozenset()


def fit_layouts(header: StateDictSpec) -> LayoutFits:
    """Return the layouts that a header fits, under which roots, else the nearest.

    >>> from remapkit.tensors.spec import TensorSpec
    >>> found = fit_layouts(StateDictSpec({"net.a": TensorSpec("F32", (1,))}))
    >>> found.known, found.fits
    (False, ())
    """
    names = list(header)
    if not 0 < len(names) <= MAX_NAMES:
        return LayoutFits()
    candidates = _list_candidates()
    if 2 * sum(find_adapter_module(fqn) is not None for fqn in names) > len(names):
        return LayoutFits(adapters=_fit_adapter(names, candidates))
    scaled = find_scaled_weights(header)
    companions = {name for found in scaled.values() for name in found}
    if scaled:
        companions |= {fqn for fqn in names if OF_INPUTS.search(fqn)}
    names = [fqn for fqn in names if fqn not in companions]
    rough = _fit_kinds(names, candidates)
    chosen = [] if not rough else [each for each in rough if each.is_part]
    fits: list[LayoutFit] = []
    judged = 0
    for each in chosen:
        others = [fit for fit in fits if fit.fits and fit.root != each.root]
        if judged < MAX_JUDGED and not any(_overlaps(each.root, fit.root) for fit in others):
            judged += 1
            fits.append(_judge(each, header, names, companions))
    whole = _keep_best([fit for fit in fits if fit.fits])
    near = () if whole else tuple(_judge(each, header, names, companions) for each in rough[:MAX_NEAR])
    return LayoutFits(whole, near=near, scaled=tuple(scaled))


def _overlaps(one: str, other: str) -> bool:
    """Return whether one root lies inside another."""
    return not one or not other or f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _keep_best(fits: Sequence[LayoutFit]) -> tuple[LayoutFit, ...]:
    """Return for each root the layouts that fit best; of those in another size, the ones with most common names."""
    order = list(Verdict)
    best: dict[str, tuple[int, int]] = {}
    for fit in fits:
        rank = order.index(fit.verdict), fit.numbers
        best[fit.root] = min(best.get(fit.root, rank), rank)
    return tuple(fit for fit in fits if best[fit.root] == (order.index(fit.verdict), fit.numbers))


def _list_candidates() -> list[_Candidate]:
    """Return every manifest of every layout once, and the sources of packs that name none."""
    found = list_pack_layouts()
    layouts = list_layouts(found)
    candidates: dict[tuple[str, frozenset[str]], _Candidate] = {}
    for each in found:
        for side, is_source in ((each.source, True), (each.target, False)):
            layout = next((known for known in layouts if side.names and side.names[0] in _list_names(known)), None)
            if not side.kinds or (layout is None and not is_source):
                continue
            name = layout.name if layout is not None else f"the source of {each.pack}"
            readers = layout.read_by if layout is not None else (each.pack,)
            made = candidates.setdefault((name, side.kinds), _Candidate(name, readers, None, kinds=side.kinds))
            made.manifests.append((each, is_source))
            made.read_by = made.read_by or (each if is_source else None)
    return list(candidates.values())


def _list_names(layout: Layout) -> tuple[str, ...]:
    return (layout.name, *layout.aliases)


# ------------------------------------------------------------------------------------------------- rough, by kinds


@dataclass(frozen=True, slots=True)
class _Rough:
    candidate: _Candidate
    root: str
    keys: int
    foreign: int
    lacking: int

    @property
    def is_part(self) -> bool:
        return not self.foreign and 2 * self.lacking <= len(self.candidate.kinds)

    @property
    def rank(self) -> tuple[object, ...]:
        return (
            not self.is_part,
            self.foreign + self.lacking,
            self.root.count(".") + bool(self.root),
            self.root,
            self.candidate.layout,
        )


def _fit_kinds(names: Sequence[str], candidates: Sequence[_Candidate]) -> list[_Rough]:
    """Return each candidate under its best root, the best first; none of which less than half the keys are known.

    One that fits under several roots is returned for each of these.
    """
    kinds = Counter(map(mask_indices, names))
    if len(kinds) > MAX_KINDS:
        return []
    roots = ("", *(root.path for root in list_roots(names)[:MAX_ROOTS]))
    inside = {root: _cut_root(kinds, root) for root in roots}
    found = []
    for candidate in candidates:
        fits = [_compare(candidate, root, below) for root, below in inside.items() if below]
        parts = [fit for fit in fits if fit.is_part]
        best = parts or [min(fits, key=lambda fit: fit.rank)]
        found += [fit for fit in best if 2 * fit.foreign <= fit.keys and fit.foreign < fit.keys]
    return sorted(found, key=lambda fit: fit.rank)


def _cut_root(kinds: Mapping[str, int], root: str) -> dict[str, int]:
    prefix = f"{root}." if root else ""
    return {kind[len(prefix) :]: count for kind, count in kinds.items() if kind.startswith(prefix)}


def _compare(candidate: _Candidate, root: str, kinds: Mapping[str, int]) -> _Rough:
    foreign = sum(count for kind, count in kinds.items() if kind not in candidate.kinds)
    return _Rough(candidate, root, sum(kinds.values()), foreign, len(candidate.kinds.difference(kinds)))


# ------------------------------------------------------------------------------- exact, by manifests and languages


def _judge(rough: _Rough, header: StateDictSpec, names: Sequence[str], companions: Iterable[str]) -> LayoutFit:
    """Compare a candidate's manifests with the keys under its root; the nearest of them counts."""
    prefix = f"{rough.root}." if rough.root else ""
    inside = {fqn[len(prefix) :]: fqn for fqn in names if fqn.startswith(prefix)}
    scales = sum(fqn.startswith(prefix) for fqn in companions)
    judged = [_judge_manifest(rough, header, inside, known) for known in _read_manifests(rough.candidate)]
    order = list(Verdict)
    judged = judged or [_Judgement(Verdict.NEAR, len(inside), (), (), ())]  # its manifests were removed meanwhile
    best = min(judged, key=lambda one: (order.index(one.verdict), one.numbers, len(one.shapes)))
    return LayoutFit(
        rough.candidate.layout,
        rough.candidate.packs,
        rough.root,
        best.verdict,
        len(inside),
        len(header) - len(inside) - scales,
        best.missing,
        best.foreign,
        best.shapes,
        scales,
        best.numbers,
    )


@dataclass(frozen=True, slots=True)
class _Judgement:
    verdict: Verdict
    numbers: int
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    shapes: tuple[str, ...]


def _judge_manifest(
    rough: _Rough, header: StateDictSpec, inside: Mapping[str, str], known: StateDictSpec
) -> _Judgement:
    missing = tuple(fqn for fqn in known if fqn not in inside)
    foreign = tuple(fqn for fqn in inside if fqn not in known)
    shapes = tuple(fqn for fqn, spec in known.items() if fqn in inside and header[inside[fqn]].shape != spec.shape)
    numbers = len(missing) + len(foreign)
    if not numbers:
        return _Judgement(Verdict.OTHER_SIZE if shapes else Verdict.EXACT, 0, (), (), shapes)
    kinds = rough.candidate.kinds
    here = set(map(mask_indices, inside))
    lacking = tuple(sorted(kind for kind in kinds if kind not in here))
    strangers = tuple(fqn for fqn in foreign if mask_indices(fqn) not in kinds)
    strangers = strangers or tuple(_find_unspoken(rough.candidate, inside))
    if strangers or 2 * len(lacking) > len(kinds):
        return _Judgement(Verdict.NEAR, numbers, lacking, strangers, shapes)
    if not lacking and (foreign or shapes):
        return _Judgement(Verdict.OTHER_SIZE, numbers, (), (), shapes)
    return _Judgement(Verdict.PART, numbers, lacking if foreign or shapes else missing, (), shapes)


def _find_unspoken(candidate: _Candidate, fqns: Iterable[str]) -> list[str]:
    """Return the keys that no rule of a pack that reads the layout matches; none if no pack reads it."""
    if candidate.read_by is None:
        return []
    from remapkit.diagnostics.errors import RemapkitError
    from remapkit.registry.load import load_rules
    from remapkit.rules.counted import count_params

    keys = list(fqns)
    try:
        rules = count_params(load_rules(candidate.read_by.path), keys)
    except RemapkitError:
        return []
    return [fqn for fqn in keys if not rules.match(fqn) and rules.unmatched == "error"]


def _read_manifests(candidate: _Candidate) -> list[StateDictSpec]:
    """Return the different manifests of a candidate: those of one layout may be of several sizes."""
    from remapkit.diagnostics.errors import RemapkitError
    from remapkit.sources.declared import read_declared

    found: list[StateDictSpec] = []
    for pack, is_source in candidate.manifests:
        path = (pack.source if is_source else pack.target).manifest
        try:
            known = read_declared(path) if path is not None else None
        except RemapkitError:  # removed since the cache was made
            known = None
        if known is not None and not any(dict(known) == dict(other) for other in found):
            found.append(known)
    return found


# -------------------------------------------------------------------------------------------------------- adapters


def _fit_adapter(names: Iterable[str], candidates: Iterable[_Candidate]) -> tuple[AdapterFit, ...]:
    """Return the layouts that have most of an adapter's modules, in the form in which they are named."""
    modules = dict.fromkeys(module for fqn in names if (module := find_adapter_module(fqn)) is not None)
    found: dict[tuple[str, str], AdapterFit] = {}
    for candidate in candidates:
        bases = {kind.rpartition(".")[0] for kind in candidate.kinds}
        flat = {base.replace(".", "_") for base in bases}
        for form, prefix, is_flat in ADAPTER_FORMS:
            own = [module for module in modules if module.startswith(prefix)]
            known = sum(
                (_mask_flat(module[len(prefix) :]) in flat)
                if is_flat
                else mask_indices(module[len(prefix) :]) in bases
                for module in own
            )
            best = found.get((candidate.layout, form))
            if known and (best is None or known > best.known):
                found[candidate.layout, form] = AdapterFit(candidate.layout, form, len(modules), known)
    most = max((each.known for each in found.values()), default=0)
    return tuple(sorted((each for each in found.values() if each.known == most), key=lambda each: each.layout))


def _mask_flat(module: str) -> str:
    """Replace the numbers in a name whose dots are written as `_`.

    >>> _mask_flat("double_blocks_3_img_mlp_0")
    'double_blocks_*_img_mlp_*'
    """
    return re.sub(r"(?<![^_])\d+(?![^_])", "*", module)


def list_modules(names: Iterable[str]) -> Iterator[str]:
    """Yield the modules that an adapter's names belong to, each once."""
    yield from dict.fromkeys(module for fqn in names if (module := find_adapter_module(fqn)) is not None)
