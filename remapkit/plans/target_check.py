"""Check a plan against the target that its rule file declares.

`apply`, `check`, `diff` and the state dict transform call `check_declared_target`. A target given by the caller
(`--model`, `--target-keys`, the module of `load_into`) replaces the declared one.

A manifest is the header of one size of a model. If the rule file also declares its source, and the checkpoint is
another size of that source (other shapes, more layers), the manifest still determines the names, apart from layer and
expert numbers, and the number of dimensions of each tensor: only that is checked then. Nothing is imported.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from remapkit.companions.names import find_scaled_weights
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.plans.check import Check, Mismatch, make_check
from remapkit.plans.layers import find_layers, is_another_size
from remapkit.plans.model import ResolvedPlan
from remapkit.rules.model import CompiledRules
from remapkit.sources.declared import read_declared_source, read_declared_target
from remapkit.tensors.families import mask_indices
from remapkit.tensors.relations import Relations
from remapkit.tensors.spec import OPAQUE, StateDictSpec


@dataclass(frozen=True, slots=True)
class TargetCheck:
    """The check of a plan against a target, or the reason why it was skipped.

    `how` is `exact`, `layout` (another size: only names and numbers of dimensions) or `no`, in which case `check` is
    None and `notes` give the reason.
    """

    check: Check | None
    how: str
    notes: tuple[Diagnostic, ...] = ()

    @property
    def problems(self) -> tuple[Diagnostic, ...]:
        """All errors of the check; empty if nothing was checked."""
        return () if self.check is None else self.check.problems


def check_declared_target(
    rules: CompiledRules,
    plan: ResolvedPlan,
    *,
    target: StateDictSpec | None = None,
    partial: bool = False,
    strict_dtype: bool = False,
) -> TargetCheck:
    """Check a plan against the target that its rules declare; with `partial`, targets may be missing.

    `target` is the header of a declared model, which the caller built; by default the declared manifest is read.

    Raises `UnreadableCheckpoint` for a declared manifest that cannot be read.

    >>> import remapkit
    >>> rules = remapkit.load("gpt2_hf")
    >>> plan = rules.plan({"transformer.wte.weight": remapkit.TensorSpec("F32", (50257, 768))})
    >>> check_declared_target(rules, plan).how
    'exact'
    """
    target = target or read_declared_target(rules.last.file)
    if target is None:
        return skip_target_check(rules)
    known = read_declared_source(rules.file)
    other_size = known is not None and is_another_size(plan.source, known)
    check = (
        make_check(plan, target, strict_dtype=strict_dtype)
        if known is None or not other_size
        else _check_layout(plan, target, known)
    )
    opaque = {move.target for move in plan.moves if any(plan.source[fqn] is OPAQUE for fqn in move.sources)}
    if partial or opaque:
        check = replace(
            check,
            missing_keys=() if partial else check.missing_keys,
            shape_mismatches=tuple(each for each in check.shape_mismatches if each.target not in opaque),
        )
    notes = tuple(report_other_sizes(plan, known, target)) if known is not None and other_size else ()
    return TargetCheck(check, "layout" if other_size else "exact", notes)


def skip_target_check(rules: CompiledRules, why: str | None = None) -> TargetCheck:
    """Skip the check and note why; by default because no target is declared, or only a model."""
    written = rules.last.file.target
    if why is None and written is not None and written.config is not None and written.keys is None:
        config = written.config.value
        why = f"{rules.name} declares only the model of {config}; --model M --model-config FILE names it"
    elif why is None and written is not None and written.model is not None:
        model = written.model.value
        why = f"{rules.name} declares only the model {model}, which is imported only with --model {model}"
    why = why or f"{rules.name} declares none; --target-keys FILE names one"
    title = f"the result is not checked against a target: {why}"
    return TargetCheck(None, "no", (Diagnostic("RK360", title, severity=Severity.NOTE),))


# --------------------------------------------------------------------------------------------------- other sizes


def _check_layout(plan: ResolvedPlan, target: StateDictSpec, known: StateDictSpec) -> Check:
    """Check names apart from their numbers, and the number of dimensions that the rules produce for each."""
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    ranks: defaultdict[str, set[int]] = defaultdict(set)
    for fqn, spec in target.items():
        wanted[mask_indices(fqn)].append(fqn)
        ranks[mask_indices(fqn)].add(len(spec.shape))
    brought = {mask_indices(move.target) for move in plan.moves}
    exact = make_check(plan, target)
    flat = [
        Mismatch(move.target, ", ".join(move.sources), move.spec, target[wanted[kind][0]])
        for move in plan.moves
        if (kind := mask_indices(move.target)) in wanted
        and len(move.spec.shape) not in ranks[kind]
        and not any(fqn in known and len(known[fqn].shape) != len(plan.source[fqn].shape) for fqn in move.sources)
    ]
    tied = set(exact.satisfied_by_tie)
    lacking = [kind for kind, fqns in wanted.items() if kind not in brought and not tied.issuperset(fqns)]
    return replace(
        exact,
        missing_keys=tuple(fqn for kind in lacking for fqn in wanted[kind]),
        unexpected_keys=tuple(fqn for fqn in exact.unexpected_keys if mask_indices(fqn) not in wanted),
        shape_mismatches=tuple(flat),
    )


def report_other_sizes(plan: ResolvedPlan, known: StateDictSpec, target: StateDictSpec | None) -> list[Diagnostic]:
    """Return the note that a checkpoint is another size, and a warning if its shapes are those of no size."""
    return [*report_contradictions(plan, known), _report_other_size(plan, known, target)]


def report_contradictions(plan: ResolvedPlan, known: StateDictSpec) -> list[Diagnostic]:
    """Warn of shapes that no size of the declared source has: the names may be those of another layout."""
    source = plan.source
    packed = {fqn for fqn in find_scaled_weights(source) if not source[fqn].dtype.startswith("F8")}
    found = [str(each) for each in Relations(known).list_contradictions(source, packed)]
    if not found:
        return []
    has = "has a shape" if len(found) == 1 else "have shapes"
    title = (
        f"{count_noun(len(found), 'weight')} {has} that no size of what {plan.name} reads has: is it another layout?"
    )
    help = ("`remapkit identify` says which layouts the checkpoint can have",)
    notes = (list_names(found),)
    return [Diagnostic("RK675", title, notes=notes, help=help, severity=Severity.WARNING, place=source.name)]


def _report_other_size(plan: ResolvedPlan, known: StateDictSpec, target: StateDictSpec | None) -> Diagnostic:
    """Return the note that a checkpoint is another size than its rules declare, with the layers that it has."""
    declared = f"the checkpoint is another size than {plan.name} declares"
    title = f"only names and numbers of dimensions are checked against {target.name}: " if target is not None else ""
    help = "to check shapes and numbers of layers, name the target: --model M, or --target-keys FILE"
    layers = str(find_layers(plan.source, known))
    notes = (layers,) if layers else ()
    return Diagnostic(
        "RK361", title + declared, notes=notes, help=(help,), severity=Severity.NOTE, place=plan.source.name
    )
