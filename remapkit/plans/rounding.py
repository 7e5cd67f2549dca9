"""Lossy casts of a plan: values that are rounded or become infinite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun
from remapkit.ops.base import Op
from remapkit.ops.dtype import CastOp
from remapkit.ops.join import FillOp, Join, infer_join
from remapkit.plans.moves import Move
from remapkit.tensors.dtypes import is_exact_cast
from remapkit.tensors.spec import StateDictSpec


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
    ops = move.ops
    if not any(isinstance(op, CastOp | Join) for op in ops):
        return
    if isinstance(ops[0], FillOp):
        spec, rest = ops[0].spec, ops[1:]
    elif isinstance(ops[0], Join):
        specs = [source[fqn] for fqn in move.sources]
        for number, each in enumerate(specs):
            yield from _trace_casts(ops[0].branches[number % len(ops[0].branches)], each.dtype)
        spec, rest = infer_join(ops[0], specs, move.sources), ops[1:]
    else:
        spec, rest = source[move.sources[0]], ops
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
