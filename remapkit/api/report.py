"""`remapkit.report`: one self-contained page that shows rules, a source and a target side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remapkit.api.adapter_options import AdapterOptions, open_below
from remapkit.api.follow import FollowedAdapter, follow_adapter
from remapkit.api.inputs import (
    Keys,
    NamedTarget,
    is_header,
    list_files_read,
    list_rule_files,
    prove_rules,
)
from remapkit.api.ruleset import Config, RuleSet, RulesLike, checked, resolve_rules
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import InvalidRules, UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.source import Text
from remapkit.files.text import write_texts
from remapkit.formats import Reader
from remapkit.formats.options import ReadOptions, make_read_options
from remapkit.models.target import find_declared_target, header, read_target_header
from remapkit.picture.model import Picture, make_picture
from remapkit.picture.page import make_page
from remapkit.plans.check import make_check
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.roots import settle_root, take_root
from remapkit.plans.target_check import TargetCheck, check_declared_target, skip_target_check
from remapkit.proofs.model import Proof
from remapkit.registry.identify import hint_layout
from remapkit.rules.counted import count_params
from remapkit.sources.declared import read_declared_source
from remapkit.sources.mounts import SourceLike
from remapkit.sources.open import open_source
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class Report:
    """A page: the text `html`, the file `output` that was written, and what it counts.

    `counts` has the number of `pairs`, of keys on each side (`source`, `target`), and of those in each state.
    `diagnostics` are the errors, warnings and notes that the page lists.
    """

    html: str
    rules: str
    output: Path | None
    ok: bool
    counts: Mapping[str, int]
    diagnostics: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        return self.html


@checked
def report(
    rules: RulesLike,
    ckpt: SourceLike | None = None,
    output: str | Path | None = None,
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
    force: bool = False,
    adapter_format: str | None = None,
    fold_alpha: bool = False,
    alpha: float | None = None,
    base: Keys | None = None,
) -> Report:
    """Make one self-contained page that shows which rule takes each key where, and everything that is wrong.

    Args:
        rules: A rule set, a pack's name or a path. Rules that cannot be compiled or proven give a page that says so.
        ckpt: The source: a checkpoint, or several files; see `open_checkpoint`. By default the manifest that the
            rules declare.
        output: The file to write; without it only the text is returned.
        keys: The source instead: a manifest or a header.
        allow_undecided: Accept a proof over all keys that is undecided.
        model: The target: `plugin.module:Class`, `py:package.module:Class` or a `torch.nn.Module`. By default the one
            that the rules declare, else what the rules make.
        model_args, model_config: Arguments and config of the model that `model` names.
        target_keys: The target instead: a manifest, a checkpoint or a header.
        strict_dtype: Make a dtype mismatch an error.
        params, config: Values for the params of the rules; see `load`.
        root, strip, strict_pickle, allow_expand, follow_links: How `ckpt` is read; see `open_checkpoint`.
        force: Replace the output if it exists.
        adapter_format, fold_alpha, alpha, base: How an adapter is read and named; see `apply`.

    Returns:
        `Report`, also where the rules are broken or a check fails: see its `ok`.

    Raises:
        InvalidRules: The rules are no text: a checkpoint, for example.
        UsageError: Rules that do not exist; arguments that do not fit together; no source; a model that cannot be
            built.
        UnreadableCheckpoint: A source or a target that cannot be read.
        UnwritableOutput: A file that cannot be written, or exists (`OutputExists`). Nothing was changed.

    >>> found = report("gpt2_hf")
    >>> found.html.startswith("<!doctype html>"), found.counts["missing"]
    (True, 0)
    """
    arguments = dict(locals())
    named = NamedTarget(model, model_args, model_config, target_keys)
    if ckpt is not None and keys is not None:
        raise UsageError(Diagnostic("RK609", "--ckpt and --keys are two sources", help=("pass only one of them",)))
    options = make_read_options(root, strip, strict_pickle, allow_expand, follow_links)
    adapters = AdapterOptions(base, adapter_format, fold_alpha, alpha)
    rule_files: list[Path] = []
    try:
        rule_set = resolve_rules(rules, params, config)
        rule_files = list_rule_files(rule_set)
        picture, found = _draw_rules(rule_set, ckpt, keys, named, options, adapters, allow_undecided, strict_dtype)
    except InvalidRules as error:
        if any(each.code == "RK007" for each in error.diagnostics):  # no text, but a checkpoint perhaps
            raise
        name = rules if isinstance(rules, str | Path) else rules.name
        found = error.diagnostics
        picture = make_picture(None, problems=found, name=Path(name).stem)
    html = make_page(picture)
    if output is not None:
        sources = [*list_files_read(arguments, but=("output",)), *rule_files]
        write_texts({Path(output): html}, force=force, sources=sources)
    log_diagnostics(found)
    return Report(html, picture.name, None if output is None else Path(output), picture.ok, picture.counts, found)


def _draw_rules(
    rules: RuleSet,
    ckpt: SourceLike | None,
    keys: Keys | SourceLike | None,
    named: NamedTarget,
    options: ReadOptions,
    adapters: AdapterOptions,
    allow_undecided: bool,
    strict_dtype: bool,
) -> tuple[Picture, tuple[Diagnostic, ...]]:
    """Return the picture of compiled rules, and all that it reports."""
    source, root, notes, adapter = _read_source(rules, keys if keys is not None else ckpt, options, adapters)
    counted = RuleSet.of(count_params(rules, source)) if source is not None and adapter is None else rules
    counted = adapter.rules if adapter is not None else counted
    proof = prove_rules(counted)
    blocking = proof.blocking(allow_undecided=allow_undecided)
    if source is None:
        if not blocking:
            raise _make_sourceless(rules)
        return make_picture(None, None, proof, proof.findings, name=rules.name), proof.findings
    plan = make_plan(counted, source, root)
    held = _check_target(counted, plan, named, strict_dtype, adapter)
    found = _list_diagnostics(plan, held, proof, blocking, notes)
    layouts = (_name_layout(rules.file.source_layout), _name_layout(rules.last.file.target_layout))
    picture = make_picture(plan, held.check, proof, found, name=rules.name, checked=held.how, layouts=layouts)
    return picture, found


def _read_source(
    rules: RuleSet, named: Keys | SourceLike | None, options: ReadOptions, adapters: AdapterOptions
) -> tuple[StateDictSpec | None, str, tuple[Diagnostic, ...], FollowedAdapter | None]:
    """Return the header of the source, the root where it was found, notes, and the adapter if it is one.

    There is no header if no source is named.
    """
    if named is None:
        return read_declared_source(rules.file), "", (), None
    if is_header(named):
        names = header(named)
        adapter = follow_adapter(rules, names, adapters, options)
        return names, "", adapter.notes if adapter is not None else (), adapter

    def plan(reader: Reader) -> tuple[RuleSet, ResolvedPlan]:
        return rules, make_plan(rules, reader.header())

    def open(root: str | None) -> Reader:
        own = replace(options, root=root)
        return stack.enter_context(open_source(named, own, rules=rules.file))  # type: ignore[arg-type]

    with ExitStack() as stack:
        opened, prefix = open_below(options.root, open)
        adapter = follow_adapter(rules, opened.header(), replace(adapters, prefix=prefix), options, opened)
        if adapter is not None:
            return opened.header(), opened.root, (*opened.notes, *adapter.notes), adapter
        reader, _ = settle_root(options.root, rules, opened, opened.header(), plan, take_root)
        return reader.header(), reader.root, tuple(reader.notes), None


def _check_target(
    rules: RuleSet, plan: ResolvedPlan, named: NamedTarget, strict_dtype: bool, adapter: FollowedAdapter | None
) -> TargetCheck:
    if adapter is not None:
        return adapter.check(plan, named.read(), lambda own, whole: check_declared_target(own, whole, partial=True))
    declared = None if named.option else find_declared_target(rules)
    if named.option is None and (declared is None or declared.model is None):
        return check_declared_target(rules, plan, strict_dtype=strict_dtype)
    target = read_target_header(declared) if declared is not None else named.read()
    if target is None:
        return skip_target_check(rules)
    return TargetCheck(make_check(plan, target, strict_dtype=strict_dtype), "exact")


def _list_diagnostics(
    plan: ResolvedPlan,
    held: TargetCheck,
    proof: Proof,
    blocking: Sequence[Diagnostic],
    notes: Sequence[Diagnostic],
) -> tuple[Diagnostic, ...]:
    check = held.check
    problems = plan.problems if check is None else check.problems
    found = [*blocking, *hint_layout(problems, plan.source, plan.name)]
    found += plan.warnings if check is None else (*check.warnings, *check.notes)
    # The plan reports dead rules in its warnings too; an undecided proof that is allowed is no error.
    rest = (each for each in proof.findings if each.code != "RK205" and each not in blocking)
    found += [each for each in rest if each.severity is not Severity.ERROR]
    found += [*held.notes, *notes]
    return tuple(each for number, each in enumerate(found) if each not in found[:number])


def _name_layout(names: Sequence[Text]) -> str:
    return names[0].value if names else ""


def _make_sourceless(rules: RuleSet) -> UsageError:
    title = f"which checkpoint should the report on {rules.name} show? It declares no source"
    help = ("name one with --ckpt C or --keys FILE, or declare `source:` in the rule file",)
    return UsageError(Diagnostic("RK609", title, help=help))
