"""`remapkit.check`: checks rules against a source header and a target; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

from remapkit.api.adapter_options import AdapterOptions, find_prefix, open_below
from remapkit.api.follow import FollowedAdapter, check_against_model, follow_adapter, refuse_adapter_options
from remapkit.api.inputs import (
    Keys,
    NamedTarget,
    count_proven_params,
    is_header,
    list_rules,
    refuse_unproven,
)
from remapkit.api.ruleset import Config, RuleSet, RulesLike, checked, load, resolve_rules
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import count_noun, join_words, suggest_name
from remapkit.formats import Reader
from remapkit.formats.options import ReadOptions, make_read_options
from remapkit.models.target import find_declared_target, header, read_target_header
from remapkit.plans.check import Check, make_check
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.roots import settle_root, take_root
from remapkit.plans.target_check import TargetCheck, check_declared_target
from remapkit.registry.fit_adapters import is_adapter
from remapkit.registry.identify import describe_layouts, hint_layout
from remapkit.registry.installed import packs
from remapkit.sources.declared import read_declared_source
from remapkit.sources.mounts import SourceLike
from remapkit.sources.open import open_source
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found: one `Check` per rule set, and `checked`, how each rule set was compared with its target.

    `exact`, or `layout` where only names and numbers of dimensions could be compared (another size of the model).
    `diagnostics` are errors, warnings and notes of all checks, each once.
    """

    checks: tuple[Check, ...]
    checked: tuple[str, ...]
    diagnostics: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))

    @property
    def ok(self) -> bool:
        """Whether every check passes."""
        return all(check.ok for check in self.checks)

    def raise_for_problems(self) -> None:
        """Raise `FailedCheck` with every problem of every check, if there is any."""
        if not self.ok:
            raise FailedCheck([each for each in self.diagnostics if each.severity is Severity.ERROR])


@checked
def check(
    rules: RulesLike | Sequence[RulesLike] = (),
    ckpt: SourceLike | None = None,
    *,
    keys: Keys | SourceLike | None = None,
    allow_undecided: bool = False,
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
    adapter_format: str | None = None,
    fold_alpha: bool = False,
    alpha: float | None = None,
    base: Keys | None = None,
) -> CheckReport:
    """Check rules against a source header and a target; nothing is written.

    If the source is an adapter (LoRA), its rules are derived, and its modules and shapes are checked against those of
    the target. Without rules, it is checked against the target as it is.

    Args:
        rules: A rule set, a pack's name or a path, or several. Default: every installed pack whose target is `model`;
            with a source, the only one of them that fits it.
        ckpt: The source: a checkpoint, or several files; see `open_checkpoint`. By default the manifest that the
            rules declare.
        keys: The source instead: a manifest or a header.
        allow_undecided: Continue even if a proof over all keys is undecided.
        model: The target: `plugin.module:Class`, `py:package.module:Class` or a `torch.nn.Module`. By default the one
            that the rules declare.
        model_args, model_config: Arguments and config of the model that `model` names.
        target_keys: The target instead: a manifest, a checkpoint or a header.
        strict_dtype: Make a dtype mismatch an error.
        params, config: Values for the params of the rules; see `load`.
        root, strip, strict_pickle, allow_expand, follow_links: How `ckpt` is read; see `open_checkpoint`.
        adapter_format, fold_alpha, alpha, base: How an adapter is read and named; see `apply`.

    Returns:
        `CheckReport`, also where a check fails: see its `ok`, or call `raise_for_problems`.

    Raises:
        UsageError: Arguments that do not fit together; no source or no target; a model that cannot be built; several
            packs that fit.
        FailedCheck: No rules are given, and none of the packs for `model` fits the source.
        InvalidRules: Rules that cannot be compiled or proven.
        UnreadableCheckpoint: A source or a target that cannot be read.

    >>> from remapkit import TensorSpec
    >>> spec = TensorSpec("F32", (96,))
    >>> report = check("wan22_pth", keys={"conv1.bias": spec}, target_keys={"conv1.bias": spec, "conv2.bias": spec})
    >>> report.ok, report.checks[0].missing_keys
    (False, ('conv2.bias',))
    """
    named = NamedTarget(model, model_args, model_config, target_keys)
    options = make_read_options(root, strip, strict_pickle, allow_expand, follow_links)
    adapters = AdapterOptions(base, adapter_format, fold_alpha, alpha)
    source = _Source(ckpt, keys, options, adapters, allow_undecided)
    rule_sets = [resolve_rules(each, params, config) for each in list_rules(rules)]
    choose = not rule_sets and source.is_named
    if choose and named.option and (adapter := source.read_adapter()) is not None:
        return _check_adapter(adapter, named, source)
    if not rule_sets:
        rule_sets = _find_packs(model, has_source=choose)
    findings = refuse_unproven(rule_sets, allow_undecided=allow_undecided)
    held = [_check_rules(each, source, named, strict_dtype) for each in rule_sets]
    notes = source.notes
    if choose:
        number, note = _choose_fitting(held, str(model))
        held, notes = [held[number]], [note, *notes]
        findings = refuse_unproven([rule_sets[number]], allow_undecided=allow_undecided)
    report = _make_report(held, (*findings, *notes))
    log_diagnostics(report.diagnostics)
    return report


@dataclass(frozen=True, slots=True)
class _Source:
    """The source that is named, if one is; it is read for each rule set, whose part of it may have its own root."""

    ckpt: SourceLike | None
    keys: Keys | SourceLike | None
    options: ReadOptions
    adapters: AdapterOptions
    allow_undecided: bool
    notes: list[Diagnostic] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise `UsageError` (RK609) for two sources."""
        if self.ckpt is not None and self.keys is not None:
            help = ("pass only one of them",)
            raise UsageError(Diagnostic("RK609", "--ckpt and --keys are two sources", help=help))

    @property
    def is_named(self) -> bool:
        return self.ckpt is not None or self.keys is not None

    def read(self, rules: RuleSet) -> _Read:
        """Return the header of the source, and the rules with the params that are counted in it."""
        if is_header(self.keys):
            names = header(self.keys)
            adapter = self._follow(rules, names, find_prefix(self.options.root))
            return self._count(rules, names) if adapter is None else self._take(adapter, names)
        path = cast("SourceLike | None", self.keys or self.ckpt)
        if path is None:
            refuse_adapter_options(self.adapters, rules, names := _read_declared_source(rules))
            return self._count(rules, names)

        def plan(reader: Reader) -> tuple[RuleSet, ResolvedPlan]:
            return rules, make_plan(rules, reader.header())

        with ExitStack() as stack:
            opened, prefix = self._open(stack, path, rules)
            if (adapter := self._follow(rules, opened.header(), prefix, opened)) is not None:
                self._note(opened.notes)
                return self._take(adapter, opened.header(), opened.root)
            reader, _ = settle_root(self.options.root, rules, opened, opened.header(), plan, take_root)
            self._note(reader.notes)
            return self._count(rules, reader.header(), reader.root)

    def _take(self, adapter: FollowedAdapter, names: StateDictSpec, root: str = "") -> _Read:
        self._note(adapter.notes)
        return _Read(adapter.rules, names, root, adapter)

    def _count(self, rules: RuleSet, names: StateDictSpec, root: str = "") -> _Read:
        return _Read(count_proven_params(rules, names, allow_undecided=self.allow_undecided), names, root)

    def _follow(
        self, rules: RuleSet, names: StateDictSpec, prefix: str | None = None, reader: Reader | None = None
    ) -> FollowedAdapter | None:
        own = replace(self.adapters, prefix=prefix)
        return follow_adapter(rules, names, own, self.options, reader, allow_undecided=self.allow_undecided)

    def read_adapter(self) -> tuple[StateDictSpec, str | None] | None:
        """Return the header of the source and the prefix of its modules, if it is an adapter."""
        if is_header(self.keys):
            return (header(self.keys), find_prefix(self.options.root)) if is_adapter(self.keys) else None
        with ExitStack() as stack:
            reader, prefix = self._open(stack, cast("SourceLike", self.keys or self.ckpt), None)
            self._note(reader.notes)
            return (reader.header(), prefix) if is_adapter(reader.header()) else None

    def _open(self, stack: ExitStack, path: SourceLike, rules: RuleSet | None) -> tuple[Reader, str | None]:
        file = None if rules is None else rules.file
        return open_below(
            self.options.root,
            lambda root: stack.enter_context(open_source(path, replace(self.options, root=root), rules=file)),
        )

    def _note(self, notes: Iterable[Diagnostic]) -> None:
        self.notes.extend(note for note in notes if note not in self.notes)


@dataclass(frozen=True, slots=True)
class _Read:
    """A source as rules read it: the rules for it, its header and its root; and the adapter, if it is one."""

    rules: RuleSet
    header: StateDictSpec
    root: str
    adapter: FollowedAdapter | None = None


def _check_adapter(adapter: tuple[StateDictSpec, str | None], named: NamedTarget, source: _Source) -> CheckReport:
    """Check an adapter as it is against the model or the checkpoint that is named."""
    if given := source.adapters.given:
        title = f"{join_words(given)} needs rules: without them, an adapter is checked as it is"
        raise UsageError(Diagnostic("RK609", title, help=("name the rules: `remapkit check RULES --ckpt LORA`",)))
    model, (names, prefix) = named.read(), adapter
    assert model is not None
    report = _make_report([check_against_model(names, model, prefix)], source.notes)
    log_diagnostics(report.diagnostics)
    return report


def _make_report(held: Sequence[TargetCheck], findings: Sequence[Diagnostic]) -> CheckReport:
    pairs = [(each.check, each.how) for each in held if each.check is not None]
    found: list[Diagnostic] = []
    for check, _ in pairs:
        found += hint_layout(check.problems, check.plan.source, check.plan.name)
        found += (*check.warnings, *check.notes)
    found += [note for each in held for note in each.notes]
    # The plan reports dead rules in its warnings too.
    found += [finding for finding in findings if finding.code != "RK205"]
    # Two packs for the same model report the same diagnostics about that model.
    diagnostics = tuple(each for number, each in enumerate(found) if each not in found[:number])
    return CheckReport(tuple(check for check, _ in pairs), tuple(how for _, how in pairs), diagnostics)


def _find_packs(model: object, *, has_source: bool) -> list[RuleSet]:
    """Return the installed packs whose declared target is `model` (every pack with a target if none is named).

    Without a source, only packs that declare one.
    """
    if has_source and not isinstance(model, str):
        help = ("name them: RULES; or the model whose packs should be tried: --model plugin.module:Class",)
        raise UsageError(Diagnostic("RK609", "which rules should be checked against this source?", help=help))
    rule_sets = [load(pack.path) for pack in packs()]
    with_target = [rules for rules in rule_sets if find_declared_target(rules) is not None]
    if model is None:
        return [rules for rules in with_target if rules.file.source_keys]
    found = [rules for rules in with_target if _find_model(rules) == model]
    with_source = [rules for rules in found if rules.file.source_keys]
    if with_source or (found and has_source):
        return found if has_source else with_source
    if found:
        names = join_words([rules.name for rules in found])
        title = f"on which checkpoint should {names} for {model} be checked? `source: {{keys: FILE}}` is not declared"
        help = ("name the checkpoint: --ckpt C, or its manifest: --keys FILE",)
        raise UsageError(Diagnostic("RK609", title, help=help))
    known = sorted({reference for rules in with_target if (reference := _find_model(rules))})
    raise UsageError(
        Diagnostic(
            "RK610",
            f"no installed pack has the target {model}",
            help=(
                suggest_name(str(model), known, f"targets of installed packs: {', '.join(known) or 'no model'}"),
                "name the rules: remapkit check RULES ...",
            ),
        )
    )


def _choose_fitting(held: Sequence[TargetCheck], model: str) -> tuple[int, Diagnostic]:
    """Return the only check that passes, and a note that says so; else raise, and say how far off each pack is."""
    checks = [each.check for each in held if each.check is not None]
    fitting = [number for number, check in enumerate(checks) if check.ok]
    names = [checks[number].plan.name for number in fitting]
    source = checks[0].plan.source.name
    if len(fitting) == 1:
        title = f"{names[0]} is the only one of {count_noun(len(held), 'pack')} for {model} that fits"
        return fitting[0], Diagnostic("RK614", title, severity=Severity.NOTE, place=source)
    if fitting:
        title = f"{len(fitting)} packs for {model} fit: {join_words(names)}"
        help = ("name the one that you mean: RULES",)
        raise UsageError(Diagnostic("RK615", title, help=help, place=source))
    notes = tuple(f"{check.plan.name}: {_describe_distance(check)}" for check in checks)
    keys = checks[0].plan.source
    own = set(keys) <= set(checks[0].target)
    hints = [f"its keys are names of {model}: there is nothing to convert" if own else "pass other rules: RULES"]
    if (layout := describe_layouts(keys)) is not None:
        hints.insert(0, layout)
    title = f"no pack for {model} fits"
    raise FailedCheck(Diagnostic("RK615", title, notes=notes, help=tuple(hints), place=source))


def _describe_distance(check: Check) -> str:
    """Return how far a pack is from fitting: `3 of 20 keys matched by no rule, 2 keys missing`."""
    unmatched = sum(len(each.values["unmatched"]) for each in check.plan.problems if each.code == "RK301")
    others = [each.title for each in check.plan.problems if each.code != "RK301"]
    counts = (
        (unmatched, f"of {len(check.plan.source)} keys matched by no rule"),
        (len(check.missing_keys), f"of {len(check.target)} names of the model missing"),
        (len(check.unexpected_keys), "unexpected"),
        (len(check.shape_mismatches), "with another shape"),
    )
    return "; ".join([", ".join(f"{number} {what}" for number, what in counts if number), *others[:1]])


def _find_model(rules: RuleSet) -> str | None:
    target = find_declared_target(rules)
    return target.model if target is not None else None


def _check_rules(rules: RuleSet, source: _Source, named: NamedTarget, strict_dtype: bool) -> TargetCheck:
    declared = None if named.option else find_declared_target(rules)
    if named.option is None and declared is None:
        raise UsageError(
            Diagnostic(
                "RK609",
                f"what should {rules.name} be checked against? It declares no target",
                help=("name it with --model M or --target-keys FILE, or declare `target:` in the rule file",),
            )
        )
    read = source.read(rules)
    plan = make_plan(read.rules, read.header, read.root)
    is_manifest = declared is not None and declared.model is None
    target = None if is_manifest else read_target_header(declared) if declared is not None else named.read()
    if read.adapter is not None:
        return read.adapter.check(plan, target, lambda own, whole: check_declared_target(own, whole, partial=True))
    if target is None:
        return check_declared_target(read.rules, plan, strict_dtype=strict_dtype)
    return TargetCheck(make_check(plan, target, strict_dtype=strict_dtype), "exact")


def _read_declared_source(rules: RuleSet) -> StateDictSpec:
    source = read_declared_source(rules.file)
    if source is None:
        raise UsageError(
            Diagnostic(
                "RK609",
                f"which checkpoint should {rules.name} be checked on? It declares no source",
                help=("name one with --ckpt C or --keys FILE, or declare `source:` in the rule file",),
            )
        )
    return source
