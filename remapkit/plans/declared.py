"""The target that a rule file declares, and the one way in which every plan is held against it.

`apply`, `check`, `diff` and the state dict transform call `check_declared_target`. A target that the caller names
(`--model`, `--target-keys`, the module of `load_into`) takes its place.

A manifest is the header of one size of a model. Where the rule file declares its source as well, and the checkpoint
is another size of that source (other shapes, more layers), the manifest still says which names there are and how many
dimensions each has, with layers and experts uncounted: that much is held. Nothing is imported here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.diagnostics.source import Text
from remapkit.plans.check import Check, Mismatch, make_check
from remapkit.plans.model import ResolvedPlan
from remapkit.sources.declared import read_declared, resolve_declared_path
from remapkit.tensors.families import mask_indices
from remapkit.tensors.spec import OPAQUE, StateDictSpec, TensorSpec

if TYPE_CHECKING:
    from remapkit.rules.model import CompiledRules


@dataclass(frozen=True, slots=True)
class Held:
    """What came of holding a plan against the declared target.

    `check` is None where there is nothing to hold it against, and `notes` then say so and why; `how` is `exact`,
    `layout` (another size: names and numbers of dimensions) or `no`.
    """

    check: Check | None
    how: str
    notes: tuple[Diagnostic, ...] = ()

    @property
    def problems(self) -> tuple[Diagnostic, ...]:
        """Every error of the check; none where nothing was checked."""
        return () if self.check is None else self.check.problems

    def data(self) -> dict[str, Any]:
        """As JSON."""
        return {"checked": self.how, "against": None if self.check is None else self.check.target.name}


def check_declared_target(
    rules: CompiledRules, plan: ResolvedPlan, *, partial: bool = False, strict_dtype: bool = False
) -> Held:
    """Hold a plan against the target that its rules declare; of a `partial` checkpoint nothing is missing.

    Raises `UnreadableCheckpoint` for a declared manifest that cannot be read.

    >>> import remapkit
    >>> rules = remapkit.load("gpt2_hf")
    >>> plan = rules.plan({"transformer.wte.weight": remapkit.TensorSpec("F32", (50257, 768))})
    >>> check_declared_target(rules, plan).how
    'exact'
    """
    target = read_declared_target(rules)
    if target is None:
        return skip_target_check(rules)
    known = read_declared_source(rules)
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
    return Held(check, "layout" if other_size else "exact", (_report_other_size(plan, target),) if other_size else ())


def skip_target_check(rules: CompiledRules, *, unasked: bool = False) -> Held:
    """Nothing is checked, and the note that says so: none is declared, only a model is, or nobody wants it."""
    written = rules.file.target
    model = written.model.value if written is not None and written.model is not None else None
    why = f"{rules.name} declares none; --target-keys FILE names one"
    if unasked:
        why = "--no-target"
    elif model is not None:
        why = f"{rules.name} declares only the model {model}, which is not imported unasked; --model {model} does"
    title = f"the result is not checked against a target: {why}"
    return Held(None, "no", (Diagnostic("RK360", title, severity=Severity.NOTE),))


def read_declared_target(rules: CompiledRules) -> StateDictSpec | None:
    """The manifest that a rule file declares as its target, if it does.

    A model as it is built without arguments may have one too: `keys/wan.vae.WanVAE.json` beside the rule file, for
    `model: wan.vae:WanVAE`. So nothing needs to be imported.
    """
    written = rules.file.target
    if written is None:
        return None
    if written.keys is not None:
        return _read_manifest(rules, written.keys, "target")
    if written.model is None or written.model_args or rules.file.path is None:
        return None
    if "/" in written.model.value or "\\" in written.model.value:
        return None
    beside = replace(written.model, value=f"keys/{written.model.value.replace(':', '.')}.json")
    return _read_manifest(rules, beside, "target") if resolve_declared_path(rules.file, beside).is_file() else None


def read_declared_source(rules: CompiledRules) -> StateDictSpec | None:
    """The manifest that a rule file declares as its source, if it does."""
    written = rules.file.source_keys
    return None if written is None else _read_manifest(rules, written, "source")


def _read_manifest(rules: CompiledRules, written: Text, what: str) -> StateDictSpec:
    path = resolve_declared_path(rules.file, written)
    try:
        stamp = (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
        return read_declared(path) if stamp is None else _read_cached(path, *stamp)
    except UnreadableCheckpoint as error:
        raise UnreadableCheckpoint(
            [_place_problem(each, path, written, what) for each in error.diagnostics]
        ) from None


@lru_cache(maxsize=8)
def _read_cached(path: Path, _changed: int, _size: int) -> StateDictSpec:
    """A header that was read before, while its file is the same."""
    return read_declared(path)


def _place_problem(problem: Diagnostic, path: Path, written: Text, what: str) -> Diagnostic:
    """What is wrong with a declared manifest, at the place that declares it."""
    title = f"the declared {what}: {problem.title}"
    help = (*problem.help, f"the path is relative to the rule file; it was looked for in {path.parent}")
    return replace(problem, title=title, labels=(Label(written.span), *problem.labels), help=help)


# --------------------------------------------------------------------------------------------------- other sizes


def is_another_size(source: Mapping[str, TensorSpec], known: StateDictSpec) -> bool:
    """Whether a header is of the known layout in another size: another shape under a known name, or more layers."""
    if any(fqn in known and spec is not OPAQUE and known[fqn].shape != spec.shape for fqn, spec in source.items()):
        return True
    more = [fqn for fqn in source if fqn not in known]
    kinds = {mask_indices(fqn) for fqn in known} if more else set()
    return any(mask_indices(fqn) in kinds for fqn in more)


def _check_layout(plan: ResolvedPlan, target: StateDictSpec, known: StateDictSpec) -> Check:
    """A check of names with their numbers left open, and of how many dimensions the rules make of what is known."""
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


def _report_other_size(plan: ResolvedPlan, target: StateDictSpec) -> Diagnostic:
    title = (
        f"only names and numbers of dimensions are checked against {target.name}: "
        f"the checkpoint is of another size than {plan.name} is declared for"
    )
    help = "for sizes and numbers of layers, name the target: --model M, or --target-keys FILE"
    return Diagnostic("RK361", title, help=(help,), severity=Severity.NOTE, place=plan.source.name)
