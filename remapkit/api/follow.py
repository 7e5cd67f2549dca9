"""An adapter (LoRA) where rules for weights are applied: its rules are derived, and it is held against the model.

`apply`, `check`, `diff` and `report` ask `follow_adapter` once they have opened a checkpoint. What it returns has
ordinary rules; only the target differs: it is the part of a model that the adapter changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.api.adapter_options import AdapterOptions, follows_adapter
from remapkit.api.inputs import count_proven_params, refuse_unproven
from remapkit.api.ruleset import RuleSet, loads
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.diagnostics.wording import count_noun, join_words, list_names
from remapkit.formats import Reader
from remapkit.formats.options import ReadOptions
from remapkit.formats.quoted_names import LORA
from remapkit.plans.check import make_check
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.target_check import TargetCheck
from remapkit.registry.fit_adapters import is_adapter
from remapkit.tensors.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.adapters.build import AdapterRules
    from remapkit.adapters.fit import ModelFit

SHOWN = 4
"""The most families of modules without an adapter that are listed."""


@dataclass(frozen=True, slots=True)
class FollowedAdapter:
    """An adapter and the rules derived for it: `weights` are the rules that they follow from, `base` is its model.

    `notes` say that it is an adapter, and what becomes of tensors that are not converted. `texts` are the files that
    belong beside the result, by name; `read` are those beside the input.
    """

    rules: RuleSet
    weights: RuleSet
    base: StateDictSpec
    built: AdapterRules
    notes: tuple[Diagnostic, ...]
    texts: dict[str, str]
    read: tuple[Path, ...]

    def plan(self, names: StateDictSpec, root: str = "") -> ResolvedPlan:
        """Return the plan for the adapter's header; the config in diffusers' metadata is that of the result."""
        from remapkit.adapters.metadata import rewrite_lora_entry

        plan = make_plan(self.rules, names, root)
        text = names.metadata.get(LORA)
        if text is None or plan.problems:
            return plan
        before, after = self.built.adapter.style, self.built.style
        if after.format != "diffusers" or before.prefix != after.prefix:
            return plan.with_entries({LORA: None})  # no other format has it, and its names are of another model
        component = after.prefix.removesuffix(".")
        new = rewrite_lora_entry(text, component, self.built.renamed, self.built.factors, self.built.fields)
        return plan.with_entries({LORA: _leave_out(new, tuple(self.built.adapter.outside))})

    def check(
        self,
        plan: ResolvedPlan,
        target: StateDictSpec | None,
        check_declared: Callable[[RuleSet, ResolvedPlan], TargetCheck],
        *,
        variants: bool = False,
    ) -> TargetCheck:
        """Check that the model of the target has every module of the result, and that the shapes fit.

        With `variants`, shapes that were warned of (RK738) pass: what is only renamed may be for a variant of the
        declared model with other sizes.

        Without a `target`, it is the one that the rules declare, which is that of the weights: what these rules make
        of the model is checked against it by `check_declared`.
        """
        from remapkit.adapters.fit import fits_whole

        if plan.problems:
            return TargetCheck(make_check(plan, plan.target), "exact")
        if target is not None:
            return check_fit(plan, target, self.built.style.prefix)
        whole = make_plan(self.weights, self.base)
        held = check_declared(self.weights, whole)
        if held.check is None:
            return held
        if held.problems:
            raise FailedCheck(held.problems)
        lenient = variants and not fits_whole(self.built.adapter, self.base)
        target = held.check.target
        model = target if held.how == "exact" else replace(whole.target, name=target.name)
        found = check_fit(plan, model, self.built.style.prefix, lenient=lenient)
        return replace(found, how=held.how, notes=(*held.notes, *found.notes))


def _leave_out(entry: str, prefixes: tuple[str, ...]) -> str:
    """Return the metadata entry without the fields of models whose tensors are left out."""
    fields = json.loads(entry)
    kept = {name: value for name, value in fields.items() if not name.startswith(prefixes)} if prefixes else fields
    return entry if len(kept) == len(fields) else json.dumps(kept)


def follow_adapter(
    rules: RuleSet,
    names: StateDictSpec,
    options: AdapterOptions,
    reading: ReadOptions | None = None,
    reader: Reader | None = None,
    *,
    allow_undecided: bool = False,
) -> FollowedAdapter | None:
    """Return the rules of an adapter that rules for weights are applied to; None for any other checkpoint.

    Numbers in alphas are known if there is a `reader`. The model is read as `reading` says.

    Raises `UsageError` (RK609) for options of adapters with another checkpoint, and what `derive_rules` raises.
    """
    if not follows_adapter(rules, names, options):
        refuse_adapter_options(options, rules, names)
        return None
    from remapkit.adapters.alphas import CONFIG, write_config
    from remapkit.api.adapter import derive_rules, find_config, read_base

    base = read_base(rules, options, reading)
    weights = count_proven_params(rules, base, allow_undecided=allow_undecided)
    derived = derive_rules(weights, base, names, options, reader)
    own = RuleSet.of(derived.rules)
    refuse_unproven([own], allow_undecided=allow_undecided)
    built = derived.built
    config = None if reader is None else find_config(reader)
    return FollowedAdapter(
        rules=own,
        weights=weights,
        base=base,
        built=built,
        notes=(_describe_adapter(weights, built), *built.diagnostics, *_report_lost_config(built)),
        texts={} if built.config is None else {CONFIG: write_config(built.config)},
        read=() if config is None else (config,),
    )


def refuse_adapter_options(options: AdapterOptions, rules: RuleSet, names: StateDictSpec) -> None:
    """Raise `UsageError` (RK609) if options that only adapters have were given for another checkpoint."""
    if not options.given:
        return
    one = len(options.given) == 1
    title = f"{join_words(options.given)} {'is' if one else 'are'} for adapters (LoRA)"
    if is_adapter(names):
        title += f", and {rules.name} has rules for these tensors already: nothing is derived"
    else:
        title += ", and this is none: most of its tensors are no low-rank matrices"
    raise UsageError(Diagnostic("RK609", title, help=("leave out what is for adapters",), place=names.name))


def _describe_adapter(rules: RuleSet, built: AdapterRules) -> Diagnostic:
    named = rules.file.source_layout
    model = named[0].value if named else f"what {rules.name} reads"
    count = len(built.adapter.modules) + len(built.adapter.whole)
    read, written = built.adapter.style, built.style
    title = (
        f"the file is an adapter of {model} ({read.format}): {count_noun(count, 'module')}; "
        f"the rules were derived from those of {rules.name}"
    )
    title += f", and write the format {written.format}" if written.format != read.format else ""
    return Diagnostic("RK731", title, severity=Severity.NOTE, place=built.adapter.header.name)


def _report_lost_config(built: AdapterRules) -> Iterator[Diagnostic]:
    """Note that PEFT cannot load the result as it is, because its alphas are not known."""
    if built.style.format == "peft" and built.config is None and built.ranks:
        title = "adapter_config.json is not written, because the alphas of the adapter are not known"
        help = ("name the folder that has the adapter's own, or give the alpha of all modules: --alpha NUMBER",)
        yield Diagnostic("RK733", title, help=help, severity=Severity.NOTE, place=built.adapter.header.name)


def refuse_beside_adapter(given: Mapping[str, bool], place: str) -> None:
    """Raise `UsageError` (RK609) for options that an adapter cannot be written with; `given` says which there are."""
    reasons = {
        "in-place": "its matrices are cut and joined, not only renamed",
        "dtype": "it keeps the dtype that it has",
        "partial": "it has the modules that it changes, and none is missing",
    }
    for option, reason in reasons.items():
        if given[option]:
            title = f"--{option} cannot be used with an adapter (LoRA): {reason}"
            raise UsageError(Diagnostic("RK609", title, help=(f"leave out --{option}",), place=place))


# ------------------------------------------------------------------------------------------------ against a model


def check_fit(plan: ResolvedPlan, model: StateDictSpec, prefix: str | None, *, lenient: bool = False) -> TargetCheck:
    """Check the adapter that a plan makes against a model; the notes say what it does not change.

    Raises what `_fit` raises.
    """
    fit = _fit(plan.target, model, prefix, lenient=lenient)
    return TargetCheck(make_check(plan, fit.fitting), "exact", (_describe_fit(fit, model),))


def check_against_model(names: StateDictSpec, model: StateDictSpec, prefix: str | None) -> TargetCheck:
    """Check an adapter as it is against a model: the tensors of other models beside it are left out, with a warning.

    Raises what `_fit` raises.
    """
    fit = _fit(names, model, prefix, lenient=True)
    own = {fqn: spec for fqn, spec in names.items() if fqn in fit.fitting}
    plan = make_plan(loads(_KEEP), replace(names, tensors=own))
    plan = replace(plan, problems=(*_report_unknown(fit, model), *_report_misfits(fit, model)))
    notes = (*_report_outside(fit), _describe_fit(fit, model))
    return TargetCheck(make_check(plan, fit.fitting), "exact", notes)


def _report_misfits(fit: ModelFit, model: StateDictSpec) -> Iterator[Diagnostic]:
    if fit.misfits:
        title = f"the adapter does not fit the model: {count_noun(len(fit.misfits), 'tensor')}"
        help = ("check that the adapter is for this model and this size of it, and that the file is whole",)
        yield Diagnostic("RK735", title, notes=(list_names(fit.misfits),), help=help, place=model.name)


def _fit(names: StateDictSpec, model: StateDictSpec, prefix: str | None, *, lenient: bool = False) -> ModelFit:
    """Hold an adapter against a model.

    Raises `FailedCheck` (RK720) if it would change nothing, `UsageError` if it could be that of several modules.
    """
    from remapkit.adapters.fit import fit_to_model
    from remapkit.api.adapter import name_layout

    try:
        return fit_to_model(names, model, prefix, lenient=lenient)
    except UsageError as error:
        if error.diagnostics[0].code != "RK720":
            raise
        named = name_layout(error, names, option="--model M, or --target-keys FILE")
        raise FailedCheck(named.diagnostics) from None


_KEEP = "remapkit: 1\nname: adapter\nunmatched: keep\nrules: []\n"


def _report_unknown(fit: ModelFit, model: StateDictSpec) -> Iterator[Diagnostic]:
    if unknown := fit.adapter.unknown:
        title = f"{count_noun(len(unknown), 'tensor')} {_belong(unknown)} to no module of {model.name}"
        help = ("check that the adapter is for this model and this size of it",)
        yield Diagnostic("RK728", title, notes=(list_names(unknown),), help=help, place=fit.adapter.header.name)


def _report_outside(fit: ModelFit) -> Iterator[Diagnostic]:
    for prefix, fqns in fit.adapter.outside.items():
        verb = "is" if len(fqns) == 1 else "are"
        title = f"{count_noun(len(fqns), 'tensor')} under {prefix} {verb} for another model, and not checked"
        notes, place = (list_names(fqns),), fit.adapter.header.name
        yield Diagnostic("RK727", title, notes=notes, severity=Severity.WARNING, place=place)


def _belong(fqns: Sequence[str]) -> str:
    return "belongs" if len(fqns) == 1 else "belong"


def _describe_fit(fit: ModelFit, model: StateDictSpec) -> Diagnostic:
    families = fit.count_untouched()
    below = f" under root {fit.root!r}" if fit.root else ""
    title = f"the adapter changes {count_noun(fit.modules, 'module')} of {model.name}{below}"
    if not families:
        return Diagnostic("RK732", f"{title}, and no matrix of it is left as it is", severity=Severity.NOTE)
    title += f"; {count_noun(len(fit.untouched), 'matrix', 'matrices')} are left as they are"
    shown = [f"{name} ({count})" for name, count in families[:SHOWN]]
    shown += [f"and {count_noun(len(families) - SHOWN, 'other family', 'other families')}"] * (len(families) > SHOWN)
    return Diagnostic("RK732", title, notes=("\n".join(shown),), severity=Severity.NOTE)
