"""Check a plan against a target header: missing keys, unexpected keys and mismatches.

The target is the header of a module built on the meta device, the header of another checkpoint, or a manifest: names,
dtypes and shapes, no data. A check therefore does not verify values; to make this limit visible, it counts the
targets that could be swapped unnoticed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from remapkit.companions.names import (
    can_be_scaled,
    can_have_companions,
    find_followers,
    find_scaled_weights,
    is_marker,
)
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import FailedCheck
from remapkit.diagnostics.wording import count_noun, find_close_name, list_names
from remapkit.ops.join import needs_values
from remapkit.plans.layers import find_layers, is_another_size, list_lacking
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.plans.recorded import add_recorded_moves
from remapkit.plans.roots import find_target_prefix, list_required
from remapkit.plans.shape_advice import advise_shapes
from remapkit.rules.model import CompiledRules
from remapkit.tensors.spec import StateDictSpec, TensorSpec, get_leaf


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A target whose shape or dtype differs: the plan produces `brought`, the target has `wanted`."""

    target: str
    source: str
    brought: TensorSpec
    wanted: TensorSpec


@dataclass(frozen=True, slots=True)
class Check:
    """The result of checking a plan against a target.

    `missing_keys` and `unexpected_keys` are relative to the target, as in torch. `satisfied_by_tie` maps a target
    that the plan does not produce to a tied name that it does produce. `interchangeable` counts the targets that
    share their leaf and shape with another target: swapping those passes every check of names and shapes.
    `through_operations` are the targets of operations that keep the shape (a square transpose, rope, equal parts):
    only a comparison of values can verify these. `companions` are the scales of 8-bit and packed weights that the
    target has as plain ones: they are not unexpected.
    """

    plan: ResolvedPlan
    target: StateDictSpec
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    shape_mismatches: tuple[Mismatch, ...]
    dtype_mismatches: tuple[Mismatch, ...]
    satisfied_by_tie: dict[str, str]
    interchangeable: int
    strict_dtype: bool = False
    through_operations: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()

    @property
    def matched(self) -> int:
        """The number of targets that the plan produces with the right shape."""
        wrong = len(self.shape_mismatches)
        return len(self.target) - len(self.missing_keys) - len(self.satisfied_by_tie) - wrong

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.problems

    @property
    def problems(self) -> tuple[Diagnostic, ...]:
        """All errors of the plan and of the check."""
        dtype = _report_dtype_mismatches(self, Severity.ERROR) if self.strict_dtype else []
        return (
            *self.plan.problems,
            *_report_missing_keys(self),
            *_report_unexpected_keys(self),
            *_report_shape_mismatches(self),
            *dtype,
        )

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """The warnings of the plan, for example about unused rules and table entries."""
        return self.plan.warnings

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """Information on tied weights, different dtypes and interchangeable targets."""
        dtype = [] if self.strict_dtype else _report_dtype_mismatches(self, Severity.NOTE)
        first = (*_report_ties(self), *dtype, *_report_companions(self))
        return (*first, *_report_interchangeable(self), *_report_operations(self))

    def raise_for_problems(self) -> None:
        """Raise `FailedCheck` with all problems, if there are any."""
        if self.problems:
            raise FailedCheck(self.problems)

    def __str__(self) -> str:
        verdict = "ok" if self.ok else count_noun(len(self.problems), "problem")
        return (
            f"{self.plan.name} against {self.target.name}: {self.matched} of {len(self.target)} targets, "
            f"{len(self.missing_keys)} missing, {len(self.unexpected_keys)} unexpected, "
            f"{len(self.shape_mismatches)} shape mismatches: {verdict}"
        )


def make_check(plan: ResolvedPlan, target: StateDictSpec, *, strict_dtype: bool = False) -> Check:
    """Check a plan against a target header.

    >>> from remapkit.plans.moves import Move, RuleRef
    >>> spec = TensorSpec("F32", (4,))
    >>> plan = ResolvedPlan("tiny", StateDictSpec({"a": spec}), (Move("b", ("a",), (), RuleRef("r"), spec),))
    >>> check = make_check(plan, StateDictSpec({"c": spec}, name="a model"))
    >>> check.missing_keys, check.unexpected_keys
    (('c',), ('b',))
    """
    plan = add_recorded_moves(plan, target)
    moves = {move.target: move for move in plan.moves}
    # A name that the target only records counts if the plan produces it, and is never missing.
    target = target.with_recorded(fqn for fqn in target.recorded if fqn in moves)
    tied = _find_ties(target, moves)
    shapes, dtypes = _find_mismatches(moves, target)
    companions = _find_target_companions(plan, target)
    return Check(
        plan=plan,
        target=target,
        missing_keys=tuple(fqn for fqn in target if fqn not in moves and fqn not in tied),
        unexpected_keys=tuple(fqn for fqn in moves if fqn not in target and fqn not in companions),
        shape_mismatches=shapes,
        dtype_mismatches=dtypes,
        satisfied_by_tie=tied,
        interchangeable=len(find_interchangeable(target)),
        strict_dtype=strict_dtype,
        through_operations=tuple(move.target for move in plan.moves if move.ops and _needs_values(move, plan.source)),
        companions=tuple(fqn for fqn in moves if fqn in companions),
    )


def _find_target_companions(plan: ResolvedPlan, target: StateDictSpec) -> frozenset[str]:
    """Return the scales that the plan puts beside weights which the target has without scales, as plain numbers."""
    if not can_have_companions(move.target for move in plan.moves):
        return frozenset()
    made = plan.target
    plain = {
        fqn: names
        for fqn, names in find_followers(made).items()
        if fqn in target and not can_be_scaled(fqn, target[fqn])
    }
    found = {name for names in plain.values() for name in names if name not in target}
    return frozenset(found | ({fqn for fqn in made if is_marker(fqn) and fqn not in target} if found else set()))


def _needs_values(move: Move, source: StateDictSpec) -> bool:
    return needs_values(move.ops, [source[fqn] for fqn in move.sources])


def _find_ties(target: StateDictSpec, moves: dict[str, Move]) -> dict[str, str]:
    """Map every tied name that the plan does not produce to the first of its other names that it does produce."""
    found = {}
    for group in target.tied:
        present = [fqn for fqn in group if fqn in moves]
        if present:
            found.update({fqn: present[0] for fqn in group if fqn not in moves})
    return found


def _find_mismatches(
    moves: dict[str, Move], target: StateDictSpec
) -> tuple[tuple[Mismatch, ...], tuple[Mismatch, ...]]:
    pairs = [
        Mismatch(fqn, ", ".join(moves[fqn].sources), moves[fqn].spec, wanted)
        for fqn, wanted in target.items()
        if fqn in moves
    ]
    return (
        tuple(pair for pair in pairs if pair.brought.shape != pair.wanted.shape),
        tuple(pair for pair in pairs if pair.brought.dtype != pair.wanted.dtype),
    )


def find_interchangeable(target: StateDictSpec) -> frozenset[str]:
    """Return the targets that share their leaf and shape with another target that is not tied to them.

    >>> spec = TensorSpec("F32", (4,))
    >>> sorted(find_interchangeable(StateDictSpec({"a.weight": spec, "b.weight": spec, "b.bias": spec})))
    ['a.weight', 'b.weight']
    """
    tie = {fqn: group[0] for group in target.tied for fqn in group}
    groups: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for fqn, spec in target.items():
        if tie.get(fqn, fqn) == fqn:
            groups[get_leaf(fqn), spec.shape].append(fqn)
    return frozenset(fqn for group in groups.values() if len(group) > 1 for fqn in group)


MAX_LACKING = 10_000
"""The most keys that are listed as lacking in a checkpoint of another size."""


def check_known_keys(rules: CompiledRules, plan: ResolvedPlan, known: StateDictSpec) -> list[Diagnostic]:
    """Report expected source keys that the checkpoint lacks; otherwise half a checkpoint would convert silently.

    Only names are compared, because the same layout exists in several sizes: one of another size may have another
    number of layers, each of which must be whole. If all shapes are the declared ones, fewer layers are a part of
    that size. A key that would be dropped may be missing.
    """
    required = list_required(known, rules)
    if not any(fqn in plan.source for fqn in known):
        return []  # no common names: a different layout, which the plan reports
    if other_size := is_another_size(plan.source, known):
        lacking = list_lacking(plan.source, required, find_layers(plan.source, known), MAX_LACKING)
    else:
        lacking = [fqn for fqn in required if fqn not in plan.source]
    if not lacking:
        return []
    help = [
        "get the whole checkpoint; if a partial checkpoint is intended, pass --partial",
        "or name the target to check against instead: --model M or --target-keys FILE",
    ]
    if (found := find_target_prefix(lacking, plan.source)) is not None and found[1]:
        root = found[1].removesuffix(".")
        them = "it is" if len(lacking) == 1 else f"all {len(lacking)} are"
        help.insert(0, f"{them} there under root {root!r}: --root {root}")
    title = f"the checkpoint lacks {len(lacking)} of the {len(known)} keys that {plan.name} expects"
    if other_size:
        what = count_noun(len(lacking), "key")
        title = f"the checkpoint, another size than {plan.name} declares, lacks {what} of that size"
    return [
        Diagnostic(
            "RK316",
            title,
            notes=(list_names(lacking),),
            help=tuple(help),
            place=plan.source.name,
            values={"lacking": lacking, "known": known.name},
        )
    ]


def _report_missing_keys(check: Check) -> list[Diagnostic]:
    if not check.missing_keys:
        return []
    advice = _advise_prefix(check)
    return [
        Diagnostic(
            "RK310",
            f"{_count_keys(check.missing_keys)} missing: no key of the checkpoint maps to "
            f"{'it' if len(check.missing_keys) == 1 else 'them'}",
            notes=(list_names(check.missing_keys), *(() if advice else _find_look_alikes(check))),
            help=(
                *advice,
                "add a rule for them, or run `remapkit explain RULES KEY` to see what the rules make of a key",
            ),
            place=check.target.name,
            values={"missing_keys": list(check.missing_keys)},
        )
    ]


def _advise_prefix(check: Check) -> list[str]:
    """Return what to do if the targets and the names of the model differ by one prefix, on one of the two sides."""
    produced, model = check.plan.target, check.target.name
    renames = any(move.sources != (move.target,) for move in check.plan.moves)
    remove, add = find_target_prefix(produced, check.target) or ("", "")
    number, what, several = len(produced), "key", "keys"
    if not remove and not add:
        # The checkpoint may have more than the model: then all names of the model are under the prefix.
        wanted = [fqn for fqn in check.target if fqn not in check.satisfied_by_tie]
        remove = (find_target_prefix(wanted, produced) or ("", ""))[1]
        number, what, several = len(wanted), f"name of {model}", f"names of {model}"
    root = remove.removesuffix(".")
    one = number == 1
    every = f"the only {what}" if one else f"all {number} {several}"
    if any(segment.isdecimal() for segment in add.split(".")):
        return []  # a layer, not the model
    if add:
        verb, be = ("is", "a name") if one else ("are", "names")
        change = "`remapkit new NAME --from CKPT --to M` writes rules that add it"
        change = "put it in front of each `to:` of the rules" if renames else change
        return [f"{every} {verb} {be} of {model} with {add!r} in front: {change}"]
    match = "matches" if one else "match"
    if root and renames:
        return [f"{every} {match} without {remove!r} in front: remove it from each `to:` of the rules"]
    below = ".".join(filter(None, (check.plan.root, root)))
    return [f"{every} {match} under root {root!r}: --root {below}"] if root else []


def _find_look_alikes(check: Check) -> list[str]:
    """Find the unexpected key most similar to the first missing key, including its shape."""
    first = check.missing_keys[0]
    produced = check.plan.target
    same = [fqn for fqn in check.unexpected_keys if produced[fqn].shape == check.target[first].shape]
    close = find_close_name(first, same[:2000])
    return [f"{first} has the shape of the unexpected key {close}"] if close is not None else []


def _report_unexpected_keys(check: Check) -> list[Diagnostic]:
    if not check.unexpected_keys:
        return []
    rules = sorted({move.rule.id for move in check.plan.moves if move.target not in check.target})
    return [
        Diagnostic(
            "RK311",
            f"{_count_keys(check.unexpected_keys)} unexpected: {check.target.name} has no such key",
            notes=(list_names(check.unexpected_keys), f"produced by {', '.join(rules)}"),
            help=(
                *(() if check.missing_keys else _advise_prefix(check)),
                "correct the template of that rule, or name the source keys under `drop:`",
            ),
            place=check.plan.source.name,
            values={"unexpected_keys": list(check.unexpected_keys)},
        )
    ]


def _report_shape_mismatches(check: Check) -> list[Diagnostic]:
    rows = ((each.target, each.brought.shape, each.wanted.shape) for each in check.shape_mismatches)
    advice, explained = advise_shapes(rows)
    return _report_mismatches(
        "RK312",
        "shape",
        [(each, str(list(each.brought.shape)), str(list(each.wanted.shape))) for each in check.shape_mismatches],
        check,
        Severity.ERROR,
        *advice,
        *(() if explained else ("the model is configured differently, or two tensors are swapped",)),
    )


def _report_dtype_mismatches(check: Check, severity: Severity) -> list[Diagnostic]:
    help = "the bytes are copied unchanged; cast the model or the checkpoint if that is not intended"
    if check.dtype_mismatches and find_scaled_weights(check.plan.target):
        help = "the bytes are copied unchanged; scaled weights are converted by `dequantize`, never by a cast"
    return _report_mismatches(
        "RK313",
        "dtype",
        [(each, each.brought.dtype, each.wanted.dtype) for each in check.dtype_mismatches],
        check,
        severity,
        help,
    )


def _report_mismatches(
    code: str,
    what: str,
    rows: Sequence[tuple[Mismatch, str, str]],
    check: Check,
    severity: Severity,
    *help: str,
) -> list[Diagnostic]:
    if not rows:
        return []
    lines = [
        f"{each.target}: the checkpoint has {brought}, {check.target.name} expects {wanted}"
        + (f"  (from {each.source})" if each.source != each.target else "")
        for each, brought, wanted in rows
    ]
    values = {each.target: {"brought": brought, "wanted": wanted} for each, brought, wanted in rows}
    return [
        Diagnostic(
            code,
            count_noun(len(rows), f"{what} mismatch", f"{what} mismatches"),
            notes=(list_names(lines),),
            help=help,
            severity=severity,
            place=check.plan.source.name,
            values={what: values},
        )
    ]


def _report_ties(check: Check) -> list[Diagnostic]:
    if not check.satisfied_by_tie:
        return []
    lines = [f"{fqn} is tied to {other}" for fqn, other in check.satisfied_by_tie.items()]
    return [
        Diagnostic(
            "RK315",
            f"{_count_keys(list(check.satisfied_by_tie))} provided under another name of the same tied weight",
            notes=(list_names(lines),),
            severity=Severity.NOTE,
            place=check.target.name,
            values={"tied": dict(check.satisfied_by_tie)},
        )
    ]


def _report_companions(check: Check) -> list[Diagnostic]:
    if not check.companions:
        return []
    return [
        Diagnostic(
            "RK747",
            f"{_count_keys(check.companions)} scaling weights that {check.target.name} has unscaled: "
            "names and shapes of these weights were checked, not their scales",
            notes=(list_names(check.companions),),
            help=("whoever loads the result must multiply by the scales; or `dequantize` the weights with them",),
            severity=Severity.NOTE,
            place=check.plan.source.name,
            values={"companions": list(check.companions)},
        )
    ]


def _report_interchangeable(check: Check) -> list[Diagnostic]:
    if not check.interchangeable:
        return []
    return [
        Diagnostic(
            "RK314",
            f"{check.interchangeable} of {len(check.target)} targets share leaf and shape with another one: "
            "names and shapes alone cannot detect a swap",
            help=("`remapkit verify` runs both models on one input; `remapkit diff` compares two converted files",),
            severity=Severity.NOTE,
            place=check.target.name,
            values={"interchangeable": check.interchangeable},
        )
    ]


def _report_operations(check: Check) -> list[Diagnostic]:
    if not check.through_operations:
        return []
    rules = sorted({move.rule.id for move in check.plan.moves if move.target in set(check.through_operations)})
    return [
        Diagnostic(
            "RK317",
            f"{len(check.through_operations)} of {len(check.target)} targets go through an operation that keeps the "
            "shape: only values can show that it is right",
            notes=(f"produced by {', '.join(rules)}",),
            help=("`remapkit verify` compares values, by running both models or an oracle",),
            severity=Severity.NOTE,
            place=check.target.name,
            values={"through_operations": list(check.through_operations)},
        )
    ]


def _count_keys(fqns: Sequence[str]) -> str:
    return count_noun(len(fqns), "key")
