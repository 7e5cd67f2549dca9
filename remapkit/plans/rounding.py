"""Lossy casts of a plan: values that are rounded or become infinite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun
from remapkit.ops.base import Op
from remapkit.ops.dtype import CastOp
from remapkit.ops.join import FillOp, Join, Nested, infer_inputs, infer_join
from remapkit.plans.moves import Move
from remapkit.tensors.dtypes import is_exact_cast
from remapkit.tensors.spec import StateDictSpec, TensorSpec


def report_roundings(moves: Iterable[Move], source: StateDictSpec) -> list[Diagnostic]:
    """Return one note per pair of dtypes for which a cast rounds values, with the number of tensors."""
    counts: Counter[tuple[str, str]] = Counter()
    names: dict[tuple[str, str], list[str]] = {}
    for move in moves:
        for pair in dict.fromkeys(_find_roundings(move, source)):
            counts[pair] += 1
            names.setdefault(pair, []).append(move.target)
    notes = []
    for (old, new), count in counts.items():
        verb, whose = ("is", "its") if count == 1 else ("are", "their")
        title = f"{count_noun(count, 'tensor')} {verb} cast from {old} to {new}, which rounds {whose} values"
        if new == "F16" and old != "F16":
            title += "; values beyond 65504 become infinite"
        values = {"from": old, "to": new, "count": count, "names": names[old, new]}
        notes.append(Diagnostic("RK345", title, severity=Severity.NOTE, place=source.name, values=values))
    return notes


def _find_roundings(move: Move, source: StateDictSpec) -> Iterator[tuple[str, str]]:
    if any(isinstance(op, CastOp | Join | Nested) for op in move.ops):
        yield from _trace_move(move.ops, [source[fqn] for fqn in move.sources], move.sources)


def _trace_move(ops: Sequence[Op], specs: Sequence[TensorSpec], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the casts that may round on the way from sources to their target."""
    first = ops[0] if ops else None
    if isinstance(first, Nested):
        for (inner, own), (_, called) in zip(first.divide(specs), first.divide(names), strict=True):
            yield from _trace_move(inner, own, called)
        specs, names = infer_inputs(first, specs, names)
        first = first.join
    if isinstance(first, FillOp):
        spec, rest = first.spec, ops[1:]
    elif isinstance(first, Join):
        for number, each in enumerate(specs):
            yield from _trace_casts(first.branches[number % len(first.branches)], each.dtype)
        spec, rest = infer_join(first, specs, names), ops[1:]
    else:
        spec, rest = specs[0], ops
    yield from _trace_casts(rest, spec.dtype)


def _trace_casts(ops: Iterable[Op], dtype: str) -> Iterator[tuple[str, str]]:
    """Yield the casts that may round: what calculates or fills gives any value, all else only moves values."""
    exact = dtype  # a dtype that has every value there is at this point: a cast from BF16 to F64 adds none
    for op in ops:
        if isinstance(op, CastOp):
            if not is_exact_cast(exact, op.dtype):
                yield dtype, op.dtype
                exact = op.dtype
            dtype = op.dtype
        elif op.name in ("scale", "add", "pad"):
            exact = dtype
