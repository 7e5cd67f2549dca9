"""A check: a plan against a target header. Missing keys, unexpected keys, mismatches, and what names cannot tell.

The target is the header of a module built on the meta device, of another checkpoint, or a manifest: names, dtypes and
shapes, no data. A check therefore says nothing about values; it counts the targets whose name and shape would fit
another tensor as well, so that nobody takes it for more than it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import FailedCheck
from remapkit.diagnostics.wording import count_noun, find_close_name, list_names
from remapkit.ops.join import needs_values
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.plans.recorded import add_recorded_moves
from remapkit.tensors.spec import StateDictSpec, TensorSpec, get_leaf


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One target whose shape or dtype is not what the plan brings."""

    target: str
    source: str
    brought: TensorSpec
    wanted: TensorSpec


@dataclass(frozen=True, slots=True)
class Check:
    """The verdict on a plan and a target.

    `missing_keys` and `unexpected_keys` have torch's meaning: of the target. `satisfied_by_tie` maps a target that
    the plan does not bring to the tied name that brings it. `interchangeable` counts the targets that share their
    leaf and their shape with another target: a swap of those passes every check of names and shapes.
    `through_operations` are the targets that go through an operation which keeps the shape (a square transpose, rope,
    equal parts): that it was done right shows only in values.
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

    @property
    def matched(self) -> int:
        """How many targets are brought with the right shape."""
        wrong = len(self.shape_mismatches)
        return len(self.target) - len(self.missing_keys) - len(self.satisfied_by_tie) - wrong

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.problems

    @property
    def problems(self) -> tuple[Diagnostic, ...]:
        """Every error: the plan's and the check's."""
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
        """What asks for a look: unused rules and table entries."""
        return self.plan.warnings

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """What is only said: tied weights, dtypes that differ, interchangeable targets."""
        dtype = [] if self.strict_dtype else _report_dtype_mismatches(self, Severity.NOTE)
        return (*_report_ties(self), *dtype, *_report_interchangeable(self), *_report_operations(self))

    def raise_for_problems(self) -> None:
        """Raise `FailedCheck` with every problem, if there is any."""
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
    """Hold a plan against a target header.

    >>> from remapkit.plans.moves import Move, RuleRef
    >>> spec = TensorSpec("F32", (4,))
    >>> plan = ResolvedPlan("tiny", StateDictSpec({"a": spec}), (Move("b", ("a",), (), RuleRef("r"), spec),))
    >>> check = make_check(plan, StateDictSpec({"c": spec}, name="a model"))
    >>> check.missing_keys, check.unexpected_keys
    (('c',), ('b',))
    """
    plan = add_recorded_moves(plan, target)
    brought = {move.target: move for move in plan.moves}
    # What the target only records counts where it is brought, and is never missing.
    target = target.with_recorded(fqn for fqn in target.recorded if fqn in brought)
    tied = _find_ties(target, brought)
    shapes, dtypes = _find_mismatches(brought, target)
    return Check(
        plan=plan,
        target=target,
        missing_keys=tuple(fqn for fqn in target if fqn not in brought and fqn not in tied),
        unexpected_keys=tuple(fqn for fqn in brought if fqn not in target),
        shape_mismatches=shapes,
        dtype_mismatches=dtypes,
        satisfied_by_tie=tied,
        interchangeable=count_interchangeable(target),
        strict_dtype=strict_dtype,
        through_operations=tuple(move.target for move in plan.moves if move.ops and _needs_values(move, plan.source)),
    )


def _needs_values(move: Move, source: StateDictSpec) -> bool:
    return needs_values(move.ops, [source[fqn] for fqn in move.sources])


def _find_ties(target: StateDictSpec, brought: dict[str, Move]) -> dict[str, str]:
    """For every tied name that is not brought: the first of its other names that is."""
    found = {}
    for group in target.tied:
        present = [fqn for fqn in group if fqn in brought]
        if present:
            found.update({fqn: present[0] for fqn in group if fqn not in brought})
    return found


def _find_mismatches(
    brought: dict[str, Move], target: StateDictSpec
) -> tuple[tuple[Mismatch, ...], tuple[Mismatch, ...]]:
    pairs = [
        Mismatch(fqn, ", ".join(brought[fqn].sources), brought[fqn].spec, wanted)
        for fqn, wanted in target.items()
        if fqn in brought
    ]
    return (
        tuple(pair for pair in pairs if pair.brought.shape != pair.wanted.shape),
        tuple(pair for pair in pairs if pair.brought.dtype != pair.wanted.dtype),
    )


def count_interchangeable(target: StateDictSpec) -> int:
    """How many targets share their leaf and shape with another one that is not tied to them.

    >>> spec = TensorSpec("F32", (4,))
    >>> count_interchangeable(StateDictSpec({"a.weight": spec, "b.weight": spec, "b.bias": spec}))
    2
    """
    tie = {fqn: group[0] for group in target.tied for fqn in group}
    groups: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for fqn, spec in target.items():
        if tie.get(fqn, fqn) == fqn:
            groups[get_leaf(fqn), spec.shape].append(fqn)
    return sum(len(group) for group in groups.values() if len(group) > 1)


def check_known_keys(plan: ResolvedPlan, known: StateDictSpec) -> list[Diagnostic]:
    """Whether the source lacks keys that the rules are known to read: a half checkpoint converts without a word.

    Only names are compared: the same layout comes in several widths.
    """
    lacking = [fqn for fqn in known if fqn not in plan.source]
    if not lacking or len(lacking) == len(known):
        return []  # where no name is the same, it is another layout, and the plan says so
    return [
        Diagnostic(
            "RK316",
            f"{_count_keys(lacking)} of the {len(known)} that {plan.name} is known to read "
            f"{'is' if len(lacking) == 1 else 'are'} not in the checkpoint",
            notes=(list_names(lacking),),
            help=(
                "get the whole checkpoint; if it is meant to be smaller (fewer layers, one half), say --partial",
                "with --model M or --target-keys F, the target decides instead",
            ),
            place=plan.source.name,
            values={"lacking": lacking, "known": known.name},
        )
    ]


def _report_missing_keys(check: Check) -> list[Diagnostic]:
    if not check.missing_keys:
        return []
    notes = [list_names(check.missing_keys)]
    notes += _find_look_alikes(check)
    return [
        Diagnostic(
            "RK310",
            f"{_count_keys(check.missing_keys)} missing: nothing in the checkpoint becomes "
            f"{'it' if len(check.missing_keys) == 1 else 'them'}",
            notes=tuple(notes),
            help=("add a rule that leads there, or see `remapkit explain RULES KEY` for what a rule made of a key",),
            place=check.target.name,
            values={"missing_keys": list(check.missing_keys)},
        )
    ]


def _find_look_alikes(check: Check) -> list[str]:
    """For the first missing key: the unexpected key that looks most like it, shape included."""
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
            f"{_count_keys(check.unexpected_keys)} unexpected: {check.target.name} has no such name",
            notes=(list_names(check.unexpected_keys), f"made by {', '.join(rules)}"),
            help=("correct the template of that rule, or name the source keys under `drop:`",),
            place=check.plan.source.name,
            values={"unexpected_keys": list(check.unexpected_keys)},
        )
    ]


def _report_shape_mismatches(check: Check) -> list[Diagnostic]:
    return _report_mismatches(
        "RK312",
        "shape",
        [(each, str(list(each.brought.shape)), str(list(each.wanted.shape))) for each in check.shape_mismatches],
        check,
        Severity.ERROR,
        "the model is configured differently, or two tensors are swapped",
    )


def _report_dtype_mismatches(check: Check, severity: Severity) -> list[Diagnostic]:
    return _report_mismatches(
        "RK313",
        "dtype",
        [(each, each.brought.dtype, each.wanted.dtype) for each in check.dtype_mismatches],
        check,
        severity,
        "the bytes are copied as they are; cast the model or the checkpoint if that is not what you want",
    )


def _report_mismatches(
    code: str,
    what: str,
    rows: Sequence[tuple[Mismatch, str, str]],
    check: Check,
    severity: Severity,
    help: str,
) -> list[Diagnostic]:
    if not rows:
        return []
    lines = [
        f"{each.target}: the checkpoint brings {brought}, {check.target.name} wants {wanted}"
        + (f"  (from {each.source})" if each.source != each.target else "")
        for each, brought, wanted in rows
    ]
    values = {each.target: {"brought": brought, "wanted": wanted} for each, brought, wanted in rows}
    return [
        Diagnostic(
            code,
            count_noun(len(rows), f"{what} mismatch", f"{what} mismatches"),
            notes=(list_names(lines),),
            help=(help,),
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
            f"{_count_keys(list(check.satisfied_by_tie))} brought under another name of the same tied weight",
            notes=(list_names(lines),),
            severity=Severity.NOTE,
            place=check.target.name,
            values={"tied": dict(check.satisfied_by_tie)},
        )
    ]


def _report_interchangeable(check: Check) -> list[Diagnostic]:
    if not check.interchangeable:
        return []
    return [
        Diagnostic(
            "RK314",
            f"{check.interchangeable} of {len(check.target)} targets share leaf and shape with another one: "
            "names and shapes alone cannot tell a swap of those",
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
            "shape: that it was done right shows only in values",
            notes=(f"made by {', '.join(rules)}",),
            help=("`remapkit verify` compares values: against both models, or an oracle",),
            severity=Severity.NOTE,
            place=check.target.name,
            values={"through_operations": list(check.through_operations)},
        )
    ]


def _count_keys(fqns: Sequence[str]) -> str:
    return count_noun(len(fqns), "key")
