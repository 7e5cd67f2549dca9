"""`remapkit.convert`: a checkpoint in another layout, by a route of packs that is found and written as one plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remapkit.api.apply import Written, apply
from remapkit.api.identify import Identification, describe_distance, identify_header
from remapkit.api.inputs import Keys
from remapkit.api.outputs import choose_outputs
from remapkit.api.ruleset import Config, RuleSet, checked, load
from remapkit.authoring.invert import list_lost
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import FailedCheck, InvalidRules, UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import count_noun, join_words, list_names, suggest_name
from remapkit.formats.options import ReadOptions, make_read_options
from remapkit.formats.renamed import rename_reader
from remapkit.ops.byte_ranges import find_byte_ranges
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.registry.fit_layouts import LayoutFit
from remapkit.registry.installed import find_rules
from remapkit.registry.layouts import Layout, find_layout, list_layouts, list_pack_layouts
from remapkit.registry.routes import (
    Route,
    Step,
    add_inverses,
    describe_route,
    find_reachable,
    find_routes,
    list_steps,
)
from remapkit.rulefile.read import read
from remapkit.sources.declared import find_model_manifest
from remapkit.sources.mounts import SourceLike
from remapkit.sources.open import open_source
from remapkit.sources.parts import find_only_path, list_parts
from remapkit.tensors.spec import StateDictSpec
from remapkit.write.beside import FilesBeside, list_beside
from remapkit.write.outputs import OutputsLike, read_outputs


@dataclass(frozen=True, slots=True)
class Converted:
    """What `convert` did: the layouts, the packs of the route in words, what `apply` says, and the copied files."""

    source: str
    target: str
    route: str
    written: Written
    beside: tuple[Path, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        return f"{self.route}: {self.written}"


@checked
def convert(
    source: SourceLike,
    target: str,
    output: OutputsLike | None = None,
    *,
    via: Sequence[str] = (),
    from_layout: str | None = None,
    to_format: str | None = None,
    dry_run: bool = False,
    dtype: str | None = None,
    shard_size: int | str | None = None,
    verify: bool = False,
    untie: bool = False,
    force: bool = False,
    partial: bool = False,
    allow_undecided: bool = False,
    with_files: bool = False,
    model: object = None,
    model_args: Mapping[str, Any] | None = None,
    model_config: Config | None = None,
    target_keys: Keys | None = None,
    strict_dtype: bool = False,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Config | None = None,
    root: str | None = None,
    strip: Sequence[str] = (),
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write a checkpoint in another layout: identify it, find the packs, prove, plan and check them, write once.

    The packs of a route become one plan (`RuleSet.then`): nothing between is written. Where no installed packs lead
    to the target, their exact inverses are used too. Several routes must make the same plan.

    Args:
        source: A checkpoint, or several files; see `open_checkpoint`.
        target: The layout to write: a name that installed packs give it, such as `wan22-vae/diffusers`.
        output: The file to write; see `apply`.
        via: Layouts or packs that the route must pass, in this order.
        from_layout: The layout of `source`, where names and shapes leave several open.
        partial: Accept a checkpoint that lacks known keys, and a route on which something is lost.
        with_files: Copy the files beside the weights of a folder (config, tokenizer), unchanged.
        params, config: Values for the params of the packs on the route; each takes those that it has.
        to_format, dry_run, dtype, shard_size, verify, untie, force, allow_undecided: How it is written; see `apply`.
        model, model_args, model_config, target_keys, strict_dtype: What the result is checked against; see `apply`.
            By default the manifest of the layout.
        root, strip, strict_pickle, allow_expand, follow_links: How `source` is read; see `open_checkpoint`.
        progress: Called repeatedly with the bytes done and the bytes in total.

    Returns:
        `Converted`. Its `diagnostics` are logged too (logger `remapkit`).

    Raises:
        UsageError: A layout that no pack names, a checkpoint whose layout is not known, is left open or is the
            target's, no route or several different ones.
        FailedCheck: A route that loses something, without `partial`; and what `apply` raises. Nothing was written.

    >>> import pathlib, tempfile, torch
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> tensors = load("wan22_pth").plan("rules/keys/wan22_vae_upstream.json").source
    >>> torch.save({fqn: torch.zeros([min(2, size) for size in spec.shape]) for fqn, spec in tensors.items()},
    ...            folder / "vae.pth")
    >>> converted = convert(folder / "vae.pth", "wan22-vae/diffusers", folder / "vae.safetensors")
    >>> converted.route
    'wan22-vae/upstream -> wan22-vae/diffusers (wan22_vae)'
    """
    options = make_read_options(root, strip, strict_pickle, allow_expand, follow_links)
    files = list_beside(source)
    graph = _Graph.read()
    end = graph.find_named(target)
    graph.check_via(via)
    start = _find_start(graph, source, options, end, from_layout)
    if start.fit.lost:
        output = output if output is not None or dry_run else str(choose_outputs(source, None, to_format)[0].file)
    fit, source, root, header = start.fit, start.source, start.root, start.header
    route, rules = _choose_route(graph.find_routes(fit.layout, end, via), header, params, config)
    notes = [*_note_root(fit), *_refuse_losses(rules, header, partial=partial)]
    copying = with_files and not dry_run
    with FilesBeside(files if copying else (), _find_folder(output), force=force) as copies:
        written = apply(
            rules,
            source,
            output,
            to_format=to_format,
            dry_run=dry_run,
            dtype=dtype,
            shard_size=shard_size,
            verify=verify,
            untie=untie,
            force=force,
            partial=partial,
            allow_undecided=allow_undecided,
            model=model,
            model_args=model_args,
            model_config=model_config,
            target_keys=target_keys,
            strict_dtype=strict_dtype,
            root=root,
            strip=strip,
            strict_pickle=strict_pickle,
            allow_expand=allow_expand,
            follow_links=follow_links,
            progress=progress,
        )
        copied = copies.commit()
    notes += [] if copying else _note_files(files)
    log_diagnostics(notes)
    return Converted(fit.layout, end, describe_route(route), written, copied, (*notes, *written.diagnostics))


@dataclass(frozen=True, slots=True)
class _Start:
    """The part of the source that is converted: how its layout fits, the source and the root to read, the header."""

    fit: LayoutFit
    source: SourceLike
    root: str | None
    header: StateDictSpec


def _find_start(graph: _Graph, source: SourceLike, options: ReadOptions, end: str, from_layout: str | None) -> _Start:
    """Find the layout to convert; mount the source under the prefix that it lacks, or take the root it is under."""
    with open_source(source, options) as reader:
        fit = graph.choose_start(reader.header(), end, from_layout)
        if fit.lost:
            mounted = _mount(source, fit.lost)
            with open_source(mounted, options) as joined:
                return _Start(fit, mounted, options.root, joined.header())
        if fit.root:
            _refuse_mounted_root(source, fit)
            root = ".".join(part for part in (options.root or "", fit.root) if part not in ("", "."))
            return _Start(fit, source, root, rename_reader(reader, fit.root).header())
        return _Start(fit, source, options.root, reader.header())


def _find_folder(output: OutputsLike | None) -> Path:
    """Return the folder of the first output, where the files beside the weights are copied to."""
    outputs = read_outputs(output) if output is not None else ()
    return Path(str(outputs[0].file)).parent if outputs else Path()


def _mount(source: SourceLike, prefix: str) -> SourceLike:
    """Return the source with a prefix in front of its names; raises `UsageError` (RK663) if it is several files."""
    path = find_only_path(source)
    if path is None or "{" in str(path):
        title = f"the names of this layout begin with {prefix!r}, and those of the source do not"
        raise UsageError(Diagnostic("RK663", title, help=(f"put it before the name of the file, {prefix}=FILE",)))
    return {prefix: path}


def _refuse_mounted_root(source: SourceLike, fit: LayoutFit) -> None:
    """Raise `UsageError` (RK663) if the root of a layout is a prefix that the source was given: no file has it."""
    prefixes = [part.prefix for part in list_parts(source) if f"{fit.root}.".startswith(part.prefix) and part.prefix]
    if prefixes:
        title = f"{fit.layout} is under {fit.root!r}, where the source was mounted"
        help = (f"name that file alone, without {prefixes[0]!r} before it",)
        raise UsageError(Diagnostic("RK663", title, help=help))


def _note_root(fit: LayoutFit) -> list[Diagnostic]:
    if fit.lost:
        title = f"{count_noun(fit.keys, 'key')} are those of {fit.layout} with {fit.lost!r} in front: it was added"
        return [Diagnostic("RK414", title, severity=Severity.NOTE)]
    if not fit.root:
        return []
    title = f"{count_noun(fit.keys, 'key')} of {fit.layout} were found under root {fit.root!r}: it was taken"
    return [Diagnostic("RK414", title, severity=Severity.NOTE)]


def _note_files(files: Sequence[Path]) -> list[Diagnostic]:
    if not files:
        return []
    title = f"{count_noun(len(files), 'file')} beside the weights {'was' if len(files) == 1 else 'were'} not copied"
    help = ("--with-files copies them as they are; a config may describe the layout that was converted",)
    names = list_names([path.name for path in files])
    return [Diagnostic("RK667", title, help=help, notes=(names,), severity=Severity.NOTE)]


# ------------------------------------------------------------------------------------------------------- the route


@dataclass(frozen=True, slots=True)
class _Graph:
    """The layouts that the installed packs name, and what each pack makes of which."""

    layouts: tuple[Layout, ...]
    steps: tuple[Step, ...]

    @classmethod
    def read(cls) -> _Graph:
        packs = list_pack_layouts()
        layouts = list_layouts(packs)
        return cls(layouts, list_steps(packs, layouts))

    def find_named(self, name: str) -> str:
        """Return the name of a layout; raises `UsageError` (RK660) with the nearest name."""
        if (layout := find_layout(name, self.layouts)) is not None:
            return layout.name
        names = [each for layout in self.layouts for each in (layout.name, *layout.aliases)]
        same = [each for each in names if each.split("/")[0] == name.split("/")[0]]
        help = suggest_name(name, names, f"layouts of installed packs: {', '.join(same or names) or 'none'}")
        raise UsageError(Diagnostic("RK660", f"no installed pack names a layout {name!r}", help=(help,)))

    def check_via(self, via: Sequence[str]) -> None:
        """Raise `UsageError` (RK660) for what is neither a layout nor a pack."""
        packs = [step.pack for step in self.steps]
        for word in via:
            if find_layout(word, self.layouts) is None and word not in packs:
                names = [*(layout.name for layout in self.layouts), *packs]
                help = suggest_name(word, names, "see `remapkit packs --graph`")
                raise UsageError(
                    Diagnostic("RK660", f"--via {word}: no layout and no pack has this name", help=(help,))
                )

    def choose_start(self, header: StateDictSpec, end: str, named: str | None) -> LayoutFit:
        """Return the layout to convert, under its root: the `named` one, else the only one that it can be.

        Raises `UsageError`: RK663 or RK664 if that is not one to convert, RK674 if names and shapes leave several.
        """
        start = None if named is None else self.find_named(named)
        if start == end:
            raise UsageError(Diagnostic("RK664", f"--from-layout {named} and --to {end} are one layout"))
        found = identify_header(header, layout=start)
        place = header.name
        if not found.layouts:
            raise UsageError(_report_unknown(found, start))
        reaching = [fit for fit in found.layouts if fit.layout != end and self.reaches(fit.layout, end)]
        for fit in reaching:
            open_ = [other.layout for other in found.layouts if other.root == fit.root]
            if len(open_) > 1:
                raise UsageError(_report_open(place, open_, fit.root))
        if len(reaching) == 1:
            if start is not None and reaching[0].contradicts:
                raise UsageError(_report_contradicted(place, reaching[0]))
            return reaching[0]
        places = tuple(f"{fit.layout}{f' under root {fit.root!r}' if fit.root else ''}" for fit in found.layouts)
        if len(reaching) > 1:
            title = f"{place} has several layouts that lead to {end}"
            help = ("name the part to convert with --root, or the rules: remapkit apply RULES CKPT",)
            raise UsageError(Diagnostic("RK663", title, help=help, notes=("\n".join(places),)))
        if any(fit.layout == end for fit in found.layouts):
            title = f"{place} is in the layout {end} already: there is nothing to convert"
            raise UsageError(Diagnostic("RK664", title))
        others = sorted(
            {each for fit in found.layouts for each in find_reachable(add_inverses(self.steps), fit.layout)}
        )
        known = join_words(fit.layout for fit in found.layouts)
        title = f"no route leads from {known}, the layout of {place}, to {end}"
        help = (
            f"it can become {join_words(others)}" if others else "no pack reads it: see `remapkit packs --graph`",
        )
        raise UsageError(Diagnostic("RK661", title, help=help))

    def reaches(self, start: str, end: str) -> bool:
        return end in find_reachable(add_inverses(self.steps), start)

    def find_routes(self, start: str, end: str, via: Sequence[str]) -> tuple[Route, ...]:
        """Return the routes of installed packs, or with their inverses where there is none of these.

        Raises `UsageError`: RK661 if there is none, RK662 if there are too many to compare.
        """
        named = [(find_layout(word, self.layouts), word) for word in via]
        words = [layout.name if layout is not None else word for layout, word in named]
        for steps in (self.steps, add_inverses(self.steps)):
            found = find_routes(steps, start, end, words)
            if found.routes and found.complete:
                return found.routes
            if not found.complete:
                title = f"too many routes lead from {start} to {end} to compare them all"
                shown = "\n".join(map(describe_route, found.routes[:3]))
                raise UsageError(
                    Diagnostic("RK662", title, help=("choose with --via LAYOUT or --via PACK",), notes=(shown,))
                )
        title = f"no route leads from {start} to {end}{f' via {join_words(via)}' if via else ''}"
        raise UsageError(Diagnostic("RK661", title, help=("see `remapkit packs --graph`",)))


def _report_unknown(found: Identification, start: str | None) -> Diagnostic:
    """Report a checkpoint that is an adapter, or of which no layout is known, or that is not in the one named."""
    if found.adapters:
        what = join_words(each.layout for each in found.adapters)
        title = f"{found.name} is an adapter (LoRA) of {what}: packs convert the weights of models"
        return Diagnostic("RK663", title, help=("`apply` derives its rules: remapkit apply PACK LORA",))
    near = tuple(f"{fit.layout}: {describe_distance(fit)}" for fit in found.near)
    near += tuple(f"{each.title} ({join_words(each.notes)})" for each in found.diagnostics)
    if start is not None:
        title = f"{found.name} does not have the names of {start}"
        return Diagnostic("RK663", title, help=("`remapkit identify` says what it is",), notes=near)
    title = f"no installed pack knows the layout of {found.name}"
    help = (
        "`remapkit new` starts a rule file for it",
        "or name the rules yourself: remapkit apply RULES CKPT",
    )
    return Diagnostic("RK663", title, help=help, notes=near)


def _report_contradicted(place: str, fit: LayoutFit) -> Diagnostic:
    """Report a named layout that the shapes exclude."""
    title = f"{place} has shapes that {fit.layout} has in no size"
    help = ("`remapkit identify` says what it is", "to use rules all the same, name them: remapkit apply RULES CKPT")
    return Diagnostic("RK663", title, help=help, notes=(list_names([str(each) for each in fit.contradicts]),))


def _report_open(place: str, layouts: Sequence[str], root: str) -> Diagnostic:
    """Report that names and shapes are those of several layouts: the values may differ, so that none is guessed."""
    under = f" under root {root!r}" if root else ""
    title = f"{place} can be {join_words(layouts, 4, 'or')}{under}: names and shapes do not say which"
    return Diagnostic("RK674", title, help=("if you know which, say it: --from-layout LAYOUT",))


def _choose_route(
    routes: Sequence[Route],
    header: StateDictSpec,
    params: Mapping[str, int | Sequence[int]] | None,
    config: Config | None,
) -> tuple[Route, RuleSet]:
    """Return the shortest route, and its rules, if all routes make the same plan.

    Raises `UsageError` (RK662) if they do not, `InvalidRules` if no route has the inverses that it needs.
    """
    loader = _Loader(params or {}, config)
    usable: list[tuple[Route, RuleSet]] = []
    failure: InvalidRules | None = None
    for route in routes:
        try:
            usable.append((route, loader.chain(route)))
        except InvalidRules as error:
            if not any(step.inverted for step in route):
                raise
            failure = failure or error
    loader.refuse_unknown_params()
    if not usable:
        assert failure is not None
        raise failure
    plans = [_list_origins(make_plan(rules, header)) for _, rules in usable] if len(usable) > 1 else []
    different = [route for (route, _), plan in zip(usable, plans, strict=False) if plan != plans[0]]
    if different:
        title = f"{len(usable)} routes lead to {usable[0][0][-1].target}, and not all do the same"
        shown = "\n".join(describe_route(route) for route, _ in usable)
        help = ("choose with --via LAYOUT or --via PACK",)
        raise UsageError(Diagnostic("RK662", title, help=help, notes=(shown,), place=header.name))
    return usable[0]


def _list_origins(plan: ResolvedPlan) -> object:
    """Return what a plan does, so that two that do the same are equal: the bytes of each target by their origin.

    Operations that calculate are compared as they are written: two ways of writing one calculation are different.
    """
    made: dict[str, object] = {}
    for move in plan.moves:
        ranges = None
        if move.ops and move.sources:
            ranges = find_byte_ranges(move.ops, [plan.source[fqn] for fqn in move.sources])
        elif move.sources:
            made[move.target] = (move.spec, ((move.sources[0], 0, move.spec.nbytes),))
            continue
        if ranges is None:
            made[move.target] = (move.spec, move.sources, move.ops)
        else:
            made[move.target] = (
                move.spec,
                tuple((move.sources[each.source], each.offset, each.length) for each in ranges),
            )
    codes = tuple(problem.code for problem in plan.problems)
    return made, frozenset(gone.fqn for gone in plan.dropped), codes


def _invert_pack(rules: RuleSet) -> RuleSet:
    """Return the inverse of a pack; the manifest of the model that the pack writes is its source."""
    back = rules.inverse()
    manifest = find_model_manifest(rules.file)
    if back.file.source_keys is not None or manifest is None:
        return back
    return replace(back, file=replace(back.file, source_keys=manifest))


class _Loader:
    """Loads the packs of routes, each once, with those of the params that it has."""

    def __init__(self, params: Mapping[str, int | Sequence[int]], config: Config | None) -> None:
        self._params, self._config = params, config
        self._loaded: dict[tuple[str, bool], RuleSet] = {}
        self._known: set[str] = set()

    def chain(self, route: Route) -> RuleSet:
        """Return the rules of a route; raises `InvalidRules` if a pack of it has no exact inverse."""
        first, *others = (self._load(step) for step in route)
        for other in others:
            first = first.then(other)
        return first

    def _load(self, step: Step) -> RuleSet:
        key = (step.pack, step.inverted)
        if key not in self._loaded:
            file = read(find_rules(step.pack))
            names = {param.name.value for param in file.params}
            self._known |= names
            own = {name: value for name, value in self._params.items() if name in names}
            rules = load(step.pack, params=own, config=self._config)
            self._loaded[key] = _invert_pack(rules) if step.inverted else rules
        return self._loaded[key]

    def refuse_unknown_params(self) -> None:
        """Raise `UsageError` (RK640) for a param that no pack of any route has."""
        unknown = [name for name in self._params if name not in self._known]
        if unknown:
            help = suggest_name(
                unknown[0], sorted(self._known), f"their params: {', '.join(sorted(self._known)) or 'none'}"
            )
            title = f"no pack of the route has a param {unknown[0]!r}"
            raise UsageError(Diagnostic("RK640", title, help=(help,)))


def _refuse_losses(rules: RuleSet, header: StateDictSpec, *, partial: bool) -> list[Diagnostic]:
    """Return a note about what a route loses; raises `FailedCheck` (RK665) without consent."""
    lost: list[str] = []
    here = header
    for part in rules.parts:
        plan = make_plan(part, here)
        neutral = part.neutral
        for each in list_lost(part, here):
            if each.keys and each.entry not in neutral:
                verb = "changes for good" if each.one_way else "drops"
                lost.append(f"{part.name} {verb} {count_noun(len(each.keys), 'key')}: {join_words(each.keys, 3)}")
        if plan.problems:
            break
        here = plan.target
    if not lost:
        return []
    title = f"something is lost on the way: {count_noun(len(lost), 'rule')} cannot be undone"
    notes = ("\n".join(lost),)
    if not partial:
        help = ("if that is intended, pass --partial",)
        raise FailedCheck(Diagnostic("RK665", title, help=help, notes=notes, place=header.name))
    return [Diagnostic("RK665", title, notes=notes, severity=Severity.NOTE, place=header.name)]
