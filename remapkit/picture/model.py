"""The data of a report: every source key and every target key once, with what became of it, as plain JSON data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.picture.describe_ops import Drawing, describe_ops
from remapkit.plans.check import Check, find_interchangeable
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.proofs.model import Proof
from remapkit.tensors.families import cut_key, format_ranges, join_key
from remapkit.tensors.spec import TensorSpec

MAX_WITNESSES = 50
"""The most witnesses that a page lists; it says how many there are."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the page: its name, and for each key its dtype, shape and state.

    `layout` is its name where the rules name it (`from:`, `to:`). `families` lists keys that differ only in numbers:
    a name with ranges, and the positions of its keys. `marks` are the positions of targets that names and shapes
    cannot tell apart (`interchangeable`) or of which only values can show that they are right (`values`).
    """

    name: str
    keys: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    families: tuple[tuple[str, tuple[int, ...]], ...] = ()
    marks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layout: str = ""


Pair = tuple[tuple[int, ...], int, int, int]


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that a page shows.

    `pairs` are `(sources, target, rule, operations)`: positions of keys, of the rule in `rules`, and of the drawings
    and the text in `operations`; `drops` are `(source, rule)`. The states of a source are `moved`, `dropped` and
    `undetermined` (no rule, or several, or a failed operation); those of a target `matched`, `missing`, `unexpected`,
    `mismatch`, `tied` and `absent` (only in the size that the target's manifest declares). `witnesses` are the first
    of `witness_count`.
    """

    name: str
    source: Side
    target: Side
    rules: tuple[str, ...] = ()
    operations: tuple[tuple[tuple[Drawing, ...], str], ...] = ()
    pairs: tuple[Pair, ...] = ()
    drops: tuple[tuple[int, int], ...] = ()
    verdict: str = ""
    proven: bool = False
    ok: bool = False
    checked: str = "no"
    witnesses: tuple[Mapping[str, Any], ...] = ()
    witness_count: int = 0
    problems: tuple[Mapping[str, Any], ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """The number of pairs, and of keys in each state and with each mark."""
        found = {"pairs": len(self.pairs), "source": len(self.source.keys), "target": len(self.target.keys)}
        for side, names in ((self.source, SOURCE_STATES), (self.target, TARGET_STATES)):
            found |= {name: side.states.count(name) for name in names}
        return found | {name: len(self.target.marks.get(name, ())) for name in MARKS}

    def to_json(self) -> dict[str, Any]:
        """Return the picture as JSON data, with its counts."""
        return {**asdict(self), "counts": self.counts}


SOURCE_STATES = ("moved", "dropped", "undetermined")
TARGET_STATES = ("matched", "missing", "unexpected", "mismatch", "tied", "absent")
MARKS = ("interchangeable", "values")


def make_picture(
    plan: ResolvedPlan | None,
    check: Check | None = None,
    proof: Proof | None = None,
    problems: Sequence[Diagnostic] = (),
    *,
    name: str,
    checked: str = "no",
    layouts: tuple[str, str] = ("", ""),
) -> Picture:
    """Return the picture of a plan and its check; without a plan, only the verdict and the problems.

    >>> from remapkit.plans.check import make_check
    >>> from remapkit.plans.moves import RuleRef
    >>> from remapkit.tensors.spec import StateDictSpec
    >>> spec = TensorSpec("F32", (4,))
    >>> plan = ResolvedPlan("tiny", StateDictSpec({"a": spec}), (Move("b", ("a",), (), RuleRef("r"), spec),))
    >>> picture = make_picture(plan, make_check(plan, StateDictSpec({"c": spec})), name="tiny")
    >>> picture.target.keys, picture.target.states
    (('c', 'b'), ('missing', 'unexpected'))
    """
    plan = check.plan if check is not None else plan
    witnesses = () if proof is None else _list_witnesses(proof)
    shown: dict[str, Any] = {
        "name": name,
        "verdict": proof.verdict if proof is not None else "not compiled",
        "proven": proof is not None and proof.ok,
        "ok": not any(each.severity.value == "error" for each in problems),
        "checked": checked,
        "witnesses": witnesses[:MAX_WITNESSES],
        "witness_count": len(witnesses),
        "problems": tuple(map(_dump_problem, problems)),
    }
    if plan is None:
        return Picture(source=Side(""), target=Side(""), **shown)
    source = replace(_make_source(plan), layout=layouts[0])
    target = replace(_make_target(plan, check), layout=layouts[1])
    rules = tuple(dict.fromkeys([*(move.rule.id for move in plan.moves), *(each.rule.id for each in plan.dropped)]))
    operations, pairs = _pair_keys(plan.moves, source, target, rules)
    source_at = {key: number for number, key in enumerate(source.keys)}
    rule_at = {rule: number for number, rule in enumerate(rules)}
    drops = tuple((source_at[each.fqn], rule_at[each.rule.id]) for each in plan.dropped)
    return Picture(
        source=source, target=target, rules=rules, operations=operations, pairs=pairs, drops=drops, **shown
    )


def _pair_keys(
    moves: Iterable[Move], source: Side, target: Side, rules: Sequence[str]
) -> tuple[tuple[tuple[tuple[Drawing, ...], str], ...], tuple[Pair, ...]]:
    source_at = {key: number for number, key in enumerate(source.keys)}
    target_at = {key: number for number, key in enumerate(target.keys)}
    rule_at = {rule: number for number, rule in enumerate(rules)}
    operation_at: dict[tuple[tuple[Drawing, ...], str], int] = {((), ""): 0}
    pairs = []
    for move in moves:
        number = operation_at.setdefault(describe_ops(move.ops, len(move.sources)), len(operation_at))
        sources = tuple(source_at[key] for key in move.sources)
        pairs.append((sources, target_at[move.target], rule_at[move.rule.id], number))
    return tuple(operation_at), tuple(pairs)


def _make_source(plan: ResolvedPlan) -> Side:
    moved = {key for move in plan.moves for key in move.sources}
    dropped = {each.fqn for each in plan.dropped}
    tensors = dict(plan.source.tensors)
    states = ["moved" if key in moved else "dropped" if key in dropped else "undetermined" for key in tensors]
    return _make_side(plan.source.name, tensors, states)


def _make_target(plan: ResolvedPlan, check: Check | None) -> Side:
    brought = {move.target: move.spec for move in plan.moves}
    if check is None:
        return _make_side("what the rules make", brought, ["matched"] * len(brought))
    tensors = {**check.target.tensors, **{key: spec for key, spec in brought.items() if key not in check.target}}
    states = dict.fromkeys(tensors, "matched")
    # A check of another size finds fewer names missing or unexpected than a comparison of the two would.
    states |= dict.fromkeys((key for key in tensors if key not in brought), "absent")
    states |= dict.fromkeys(check.unexpected_keys, "unexpected") | dict.fromkeys(check.missing_keys, "missing")
    states |= dict.fromkeys(check.satisfied_by_tie, "tied")
    states |= dict.fromkeys((each.target for each in check.shape_mismatches), "mismatch")
    side = _make_side(check.target.name, tensors, [states[key] for key in tensors])
    marked = {
        "interchangeable": find_interchangeable(check.target),
        "values": frozenset(check.through_operations),
    }
    marks = {
        mark: tuple(number for number, key in enumerate(side.keys) if key in names) for mark, names in marked.items()
    }
    return replace(side, marks=marks)


def _make_side(name: str, tensors: Mapping[str, TensorSpec], states: Sequence[str]) -> Side:
    return Side(
        name,
        tuple(tensors),
        tuple(spec.dtype for spec in tensors.values()),
        tuple("×".join(map(str, spec.shape)) or "scalar" for spec in tensors.values()),
        tuple(states),
        fold_families(tensors),
    )


def fold_families(keys: Iterable[str]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the keys' positions in families: keys that differ only in numbers, named with their ranges.

    >>> fold_families(["h.0.w", "h.1.w", "head", "h.2.w"])
    (('h.{0..2}.w', (0, 1, 3)), ('head', (2,)))
    >>> fold_families(["lora_h_0_q.alpha", "lora_h_1_q.alpha"])
    (('lora_h_{0,1}_q.alpha', (0, 1)),)
    """
    groups: defaultdict[object, list[tuple[int, str]]] = defaultdict(list)
    for number, key in enumerate(keys):
        separators, words = cut_key(key)
        groups[separators, *("*" if word.isdecimal() else word for word in words)].append((number, key))
    return tuple(
        (_name_family([key for _, key in group]), tuple(number for number, _ in group)) for group in groups.values()
    )


def _name_family(keys: Sequence[str]) -> str:
    if len(keys) == 1:
        return keys[0]
    columns = zip(*(cut_key(key)[1] for key in keys), strict=True)
    return join_key(cut_key(keys[0])[0], (_name_column(list(dict.fromkeys(words))) for words in columns))


def _name_column(words: Sequence[str]) -> str:
    if len(words) == 1:
        return words[0]
    return "{" + format_ranges(sorted({int(word) for word in words})) + "}"


def _list_witnesses(proof: Proof) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {"fault": each.fault, "keys": each.keys, "targets": each.targets, "rules": each.rules}
        for each in proof.witnesses
        if not each.admitted
    )


def _dump_problem(each: Diagnostic) -> Mapping[str, Any]:
    place = str(each.span) if each.span is not None else each.place
    return {
        "code": each.code,
        "severity": each.severity.value,
        "title": each.title,
        "place": place or "",
        "notes": each.notes,
        "help": each.help,
    }
