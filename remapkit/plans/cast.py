"""Casts of a whole plan, and what is to be said about casts that lose something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from remapkit.companions.names import scaled_weights
from remapkit.diagnostics.diagnostic import Diagnostic, Severity, UsageError, counted
from remapkit.ops.shape import CastOp, Fill, Join, Op, is_exact, join_spec
from remapkit.plans.make import Move, Plan, named
from remapkit.tensors.spec import StateDictSpec

PLAIN = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp64": "F64"}
"""What `--dtype` takes, and the names of the same in headers."""


def with_dtype(plan: Plan, dtype: str) -> Plan:
    """The plan with every plain float cast to one dtype; integers, bools and what has it already stay as they are.

    Raises `UsageError` for a dtype that is none of those; 8-bit floats are a problem of the plan (RK346): a cast
    would drop what their scales mean.

    >>> from remapkit.plans.make import RuleRef
    >>> from remapkit.tensors.spec import TensorSpec
    >>> move = Move("a", ("a",), (), RuleRef("keep[0]"), TensorSpec("F32", (2,)))
    >>> cast = with_dtype(Plan("t", StateDictSpec({"a": move.spec}), (move,)), "bf16")
    >>> str(cast.moves[0].spec), cast.warnings[0].title
    ('BF16 [2]', '1 tensor is cast from F32 to BF16, which rounds its values')
    """
    new = PLAIN.get(dtype.lower(), dtype.upper())
    if new not in PLAIN.values():
        help = f"one of {', '.join(PLAIN)}: nothing is cast to integers or to 8-bit floats unasked"
        raise UsageError(Diagnostic("RK642", f"--dtype {dtype} is no cast that is done", help=(help,)))
    moves = tuple(_cast(move, new) for move in plan.moves)
    problems = [*plan.problems, *_small(plan)]
    said = [each for each in plan.warnings if each.code != "RK345"]
    notes = losses(moves, plan.source)
    recorded = {fqn: _cast(move, new) for fqn, move in plan.recorded.items()}
    return replace(plan, moves=moves, problems=tuple(problems), warnings=(*said, *notes), recorded=recorded)


def _small(plan: Plan) -> list[Diagnostic]:
    """Small floats, and whatever else has scales: those of a file are cast with it, or would be left alone."""
    scaled = scaled_weights(plan.source)
    small = [
        move.target
        for move in plan.moves
        if move.spec.dtype.startswith("F8") or any(fqn in scaled for fqn in move.sources)
    ]
    if not small:
        return []
    title = f"{counted(len(small), 'tensor')} of 8-bit floats would be cast without their scales"
    help = "leave --dtype out: scaled weights and their scales are converted together, or stay as they are"
    if not scaled:
        help = "leave --dtype out; the file has no scales for them: a rule may cast them, ops: [{cast: BF16}]"
    elif not any(move.spec.dtype.startswith("F8") for move in plan.moves):
        title = f"{counted(len(small), 'scaled weight')} would be kept while the scales are cast"
    return [Diagnostic("RK346", title, (), (help,), (named(small),), values={"names": small})]


def _cast(move: Move, new: str) -> Move:
    if move.spec.dtype not in PLAIN.values() or move.spec.dtype == new:
        return move
    return replace(move, ops=(*move.ops, CastOp(new)), spec=replace(move.spec, dtype=new))


def losses(moves: Iterable[Move], source: StateDictSpec) -> list[Diagnostic]:
    """One note for each pair of dtypes between which values are rounded, with the count of tensors."""
    counts: Counter[tuple[str, str]] = Counter()
    names: dict[tuple[str, str], list[str]] = {}
    for move in moves:
        for pair in dict.fromkeys(_roundings(move, source)):
            counts[pair] += 1
            names.setdefault(pair, []).append(move.target)
    notes = []
    for (old, new), count in counts.items():
        verb, whose = ("is", "its") if count == 1 else ("are", "their")
        title = f"{counted(count, 'tensor')} {verb} cast from {old} to {new}, which rounds {whose} values"
        if new == "F16" and old != "F16":
            title += "; what is beyond 65504 becomes infinite"
        values = {"from": old, "to": new, "count": count, "names": names[old, new]}
        notes.append(Diagnostic("RK345", title, severity=Severity.NOTE, place=source.name, values=values))
    return notes


def _roundings(move: Move, source: StateDictSpec) -> Iterator[tuple[str, str]]:
    ops = move.ops
    if not any(isinstance(op, CastOp | Join) for op in ops):
        return
    if isinstance(ops[0], Fill):
        spec, rest = ops[0].spec, ops[1:]
    elif isinstance(ops[0], Join):
        specs = [source[fqn] for fqn in move.sources]
        for number, each in enumerate(specs):
            yield from _along(ops[0].branches[number % len(ops[0].branches)], each.dtype)
        spec, rest = join_spec(ops[0], specs, move.sources), ops[1:]
    else:
        spec, rest = source[move.sources[0]], ops
    yield from _along(rest, spec.dtype)


def _along(ops: Iterable[Op], dtype: str) -> Iterator[tuple[str, str]]:
    for op in ops:
        if isinstance(op, CastOp):
            if not is_exact(dtype, op.dtype):
                yield dtype, op.dtype
            dtype = op.dtype
