"""`remapkit.identify`: the layout of a checkpoint, from its header alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from remapkit.diagnostics.arguments import check_arguments
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.formats.options import make_read_options
from remapkit.registry.fit_adapters import AdapterFit
from remapkit.registry.fit_layouts import LayoutFit, LayoutFits, Verdict, fit_layouts
from remapkit.registry.layouts import find_targets
from remapkit.sources.mounts import SourceLike
from remapkit.sources.open import open_source
from remapkit.tensors.spec import StateDictSpec

checked = check_arguments(SourceLike="Sequence | Mapping | str | Path")

SHOWN = 4
"""The most names of a kind of difference that are shown."""


@dataclass(frozen=True, slots=True)
class Identification:
    """What the checkpoint `name` is, with its number of `tensors`.

    `layouts` are the layouts that fit, one, or one under each root of a combined file; `adapters` are the layouts
    whose modules an adapter has; `near` are the nearest layouts if none fits. `scaled` counts the quantised weights.
    """

    name: str
    tensors: int
    layouts: tuple[LayoutFit, ...] = ()
    adapters: tuple[AdapterFit, ...] = ()
    near: tuple[LayoutFit, ...] = ()
    scaled: int = 0
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a layout is known: one that fits, or one that has every module of the adapter."""
        return LayoutFits(self.layouts, self.adapters).known

    def __str__(self) -> str:
        return "\n".join(describe_layout(self))


@checked
def identify(
    checkpoint: SourceLike,
    *,
    root: str | None = None,
    strip: Sequence[str] = (),
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
) -> Identification:
    """Say which layout a checkpoint has: exactly, in another size, in part, or how far off, and under which root.

    The installed packs decide: the manifests that they declare, and the keys that their rules match. Adapters (LoRA),
    quantised variants and the models inside combined files are named as such. Only the header is read.

    Args:
        checkpoint: A `.pth`, `.safetensors`, an index of shards, a manifest, or a folder that holds one; or several
            files.
        root, strip, strict_pickle, allow_expand, follow_links: How it is read; see `open_checkpoint`.

    Returns:
        `Identification`. Its `diagnostics` are logged too (logger `remapkit`).

    Raises:
        UnreadableCheckpoint: A checkpoint that cannot be read.

    >>> import pathlib, tempfile, remapkit
    >>> tensors = remapkit.load("gpt2_hf").plan("rules/keys/gpt2_hf.json").target
    >>> manifest = pathlib.Path(tempfile.mkdtemp(), "keys.json")
    >>> entries = (f'"{fqn}": {{"dtype": "F32", "shape": {list(spec.shape)}}}' for fqn, spec in tensors.items())
    >>> _ = manifest.write_text("{" + ", ".join(entries) + "}")
    >>> found = identify(manifest)
    >>> found.layouts[0].layout, found.layouts[0].verdict.value
    ('gpt2/nanogpt', 'exactly')
    """
    options = make_read_options(root, strip, strict_pickle, allow_expand, follow_links)
    with open_source(checkpoint, options) as reader:
        header, notes = reader.header(), tuple(reader.notes)
    log_diagnostics(notes)
    return identify_header(header, notes)


def identify_header(
    header: StateDictSpec, notes: tuple[Diagnostic, ...] = (), *, layout: str | None = None
) -> Identification:
    """Say which layout a header has; if one is given, how it fits this one."""
    fits = fit_layouts(header, layout)
    broken = tuple(_report_broken(pack, problem) for pack, problem in fits.broken.items())
    log_diagnostics(broken)
    diagnostics = (*notes, *broken)
    return Identification(
        header.name, len(header), fits.fits, fits.adapters, fits.near, len(fits.scaled), diagnostics
    )


def _report_broken(pack: str, problem: Diagnostic) -> Diagnostic:
    """Report a pack that may read this layout, but whose rules cannot be compiled."""
    title = f"the pack {pack} was skipped: its rules cannot be compiled"
    cause = f"{problem.code}: {problem.title}"
    help = (f"`remapkit lint {pack}` shows every problem of it",)
    return Diagnostic("RK695", title, notes=(cause,), help=help, severity=Severity.WARNING, values={"pack": pack})


def describe_layout(found: Identification) -> Iterator[str]:
    """Yield the lines that say what a checkpoint is."""
    for fit in found.layouts:
        yield _describe_fit(fit, found)
        yield from _describe_next(fit)
    for adapter in found.adapters:
        yield _describe_adapter(adapter, found)
    if found.layouts or found.adapters:
        return
    yield f"{found.name}: no installed pack knows this layout ({count_noun(found.tensors, 'tensor')})"
    for fit in found.near:
        under = f" under root {fit.root!r}" if fit.root else f" without the prefix {fit.lost!r}" if fit.lost else ""
        yield f"near: {fit.layout}{under}: {describe_distance(fit)}"


def _describe_fit(fit: LayoutFit, found: Identification) -> str:
    few = fit.verdict is Verdict.OTHER_SIZE and not fit.numbers and 2 * len(fit.shapes) < fit.keys
    few = few and len(fit.shapes) <= SHOWN
    how = {Verdict.EXACT: "exactly", Verdict.OTHER_SIZE: "in another size", Verdict.PART: "a part of it"}[fit.verdict]
    how = f"but for the shape{'s' if len(fit.shapes) > 1 else ''} of {join_words(fit.shapes)}" if few else how
    details = [count_noun(fit.keys, "key")]
    details += [describe_distance(fit)] if fit.verdict is Verdict.PART else []
    if fit.verdict is Verdict.OTHER_SIZE and fit.shapes and not few:
        details.append(f"{count_noun(len(fit.shapes), 'name')} with another shape")
    details += [f"under root {fit.root!r}"] if fit.root else []
    details += [f"without the prefix {fit.lost!r}"] if fit.lost else []
    details += [f"{count_noun(fit.outside, 'key')} outside it"] if fit.outside else []
    if fit.scales:
        details.append(f"quantised: {count_noun(found.scaled, 'weight')} with {count_noun(fit.scales, 'companion')}")
    return f"{found.name}: {fit.layout}, {how} ({', '.join(details)})"


def _describe_next(fit: LayoutFit) -> Iterator[str]:
    if fit.packs:
        yield f"read by {join_words(fit.packs)}"
    if targets := find_targets(fit.layout):
        scaled = ", if its scales can be taken along" if fit.scales else ""
        yield f"can become {join_words(targets)}{scaled}: remapkit convert CKPT --to LAYOUT"
    if fit.lost and fit.packs:
        yield f"for `apply`, put the prefix before the name of the file: {fit.lost}=FILE"


def _describe_adapter(adapter: AdapterFit, found: Identification) -> str:
    every = "all" if adapter.known == adapter.modules else f"{adapter.known} of"
    modules = f"{every} {count_noun(adapter.modules, 'module')} are its"
    named = "without a prefix" if adapter.form == "bare" else f"in the names of {adapter.form}"
    return f"{found.name}: an adapter (LoRA) of {adapter.layout}, {named} ({modules})"


def describe_distance(fit: LayoutFit) -> str:
    """Return how far off a layout is: how many names are missing, foreign, or have another shape, and some of them.

    >>> describe_distance(LayoutFit("x/y", (), "", Verdict.NEAR, 3, 0, ("a.w",), ("b.w", "c.w")))
    '1 name missing (a.w), 2 foreign keys (b.w and c.w)'
    """
    parts = []
    if fit.missing:
        parts.append(f"{count_noun(len(fit.missing), 'name')} missing ({join_words(fit.missing, SHOWN)})")
    if fit.foreign:
        parts.append(f"{count_noun(len(fit.foreign), 'foreign key')} ({join_words(fit.foreign, SHOWN)})")
    if fit.shapes:
        parts.append(f"{count_noun(len(fit.shapes), 'name')} with another shape ({join_words(fit.shapes, SHOWN)})")
    if fit.contradicts:
        parts.append(f"in no size {fit.contradicts[0]}")
    return ", ".join(parts) or "nothing differs but its numbers"


def dump_identification(found: Identification) -> dict[str, object]:
    """Return an identification as JSON data."""
    return {
        "layouts": [_dump_fit(fit) for fit in found.layouts],
        "adapters": [
            {"layout": each.layout, "form": each.form, "modules": each.modules, "known": each.known}
            for each in found.adapters
        ],
        "near": [_dump_fit(fit) for fit in found.near],
        "scaled": found.scaled,
    }


def _dump_fit(fit: LayoutFit) -> dict[str, object]:
    return {
        "layout": fit.layout,
        "verdict": fit.verdict.name.lower(),
        "root": fit.root,
        "lost": fit.lost,
        "keys": fit.keys,
        "outside": fit.outside,
        "missing": list(fit.missing),
        "foreign": list(fit.foreign),
        "shapes": list(fit.shapes),
        "scales": fit.scales,
        "packs": list(fit.packs),
    }
