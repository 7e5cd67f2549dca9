"""What is to be done to load a plan into a module, and everything that speaks against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from remapkit.check import Check, make_check
from remapkit.diagnostic import Diagnostic, counted
from remapkit.loading.module import Target
from remapkit.loading.values import Values, overlapping, same_bytes
from remapkit.meta import DTYPES
from remapkit.plan import Move, Plan, named

PLAIN_FLOATS = ("F16", "BF16", "F32", "F64")
"""The dtypes that are cast into one another when asked."""

Dtype = torch.dtype | Literal["model"] | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller asked for."""

    device: torch.device | None
    dtype: Dtype
    requires_grad: bool | None
    copy: bool


@dataclass(frozen=True, slots=True)
class Unit:
    """One tensor of the checkpoint and every slot that it fills: more than one where the model ties them."""

    move: Move
    targets: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    own: bool


@dataclass(frozen=True, slots=True)
class Job:
    target: Target
    check: Check
    units: tuple[Unit, ...]
    kept: tuple[str, ...]
    problems: tuple[Diagnostic, ...]


def prepare(target: Target, plan: Plan, values: Values, wanted: Wanted, strict: bool, extra_state: str) -> Job:
    """What is to be done, and everything that speaks against it. Reads no data but that of tied names."""
    check = make_check(plan, target.header)
    problems = list(check.problems)
    if not strict:
        problems = [each for each in problems if each.code not in ("RK310", "RK311")]
        problems += _missing_on_meta(target, check)
    if extra_state != "keep":
        problems += _extra_states(target)
    wrong = {each.target for each in check.shape_mismatches}
    moves = {m.target: m for m in check.plan.moves if m.target in target.header and m.target not in wrong}
    problems += _dtype_problems(moves, target, wanted)
    units: tuple[Unit, ...] = ()
    if not problems:
        problems += _torn_ties(moves, target, values)
        units = tuple(_units(moves, target, values, wanted))
    brought = {fqn for unit in units for fqn in unit.targets}
    kept = tuple(fqn for fqn in target.header if fqn not in brought)
    return Job(target, check, units, kept, tuple(problems))


def _missing_on_meta(target: Target, check: Check) -> list[Diagnostic]:
    lacking = [fqn for fqn in check.missing_keys if target.slots[fqn].value.is_meta]
    if not lacking:
        return []
    title = f"{counted(len(lacking), 'missing key')} would be left on meta, strict=False or not"
    help = "build the module on a real device if these are to be initialised by it"
    return [Diagnostic("RK310", title, (), (help,), (named(lacking),), values={"missing_keys": lacking})]


def _extra_states(target: Target) -> list[Diagnostic]:
    if not target.extra:
        return []
    keep = "keeps" if len(target.extra) == 1 else "keep"
    title = f"{counted(len(target.extra), 'module')} {keep} extra state, which no checkpoint brings"
    help = "extra_state='keep' leaves it as it is; set it yourself with set_extra_state"
    return [Diagnostic("RK325", title, (), (help,), (named(target.extra),), values={"names": list(target.extra)})]


def _kind(dtype: str) -> str:
    if dtype in PLAIN_FLOATS:
        return "floats"
    if dtype.startswith("F"):
        return "8-bit floats" if dtype.startswith("F8") else "floats of less than a byte"
    return "bools" if dtype == "BOOL" else "complex numbers" if dtype.startswith("C") else "integers"


def _dtype_problems(moves: Mapping[str, Move], target: Target, wanted: Wanted) -> Iterator[Diagnostic]:
    unknown = [fqn for fqn, move in moves.items() if move.spec.dtype not in DTYPES]
    if unknown:
        names = ", ".join(sorted({moves[fqn].spec.dtype for fqn in unknown}))
        title = f"torch has no dtype for {names}: {counted(len(unknown), 'tensor')} cannot be loaded"
        yield Diagnostic("RK321", title, notes=(named(unknown),), values={"names": unknown})
    pairs = {fqn: (move.spec.dtype, target.header[fqn].dtype) for fqn, move in moves.items() if fqn not in unknown}
    crossed = {fqn: pair for fqn, pair in pairs.items() if _kind(pair[0]) != _kind(pair[1])}
    if crossed:
        lines = [
            f"{fqn}: the checkpoint brings {old} ({_kind(old)}), {target.header.name} holds {new} ({_kind(new)})"
            for fqn, (old, new) in crossed.items()
        ]
        title = f"{counted(len(crossed), 'tensor')} of another kind of number than the model holds: that is no cast"
        help = "convert the checkpoint on purpose, or correct the rule that leads there"
        yield Diagnostic("RK320", title, (), (help,), (named(lines),), values={"names": list(crossed)})
    small = [fqn for fqn, (old, _) in pairs.items() if old.startswith("F8") and fqn not in crossed]
    if small and isinstance(wanted.dtype, torch.dtype):
        title = (
            f"dtype={wanted.dtype} would cast {counted(len(small), 'tensor')} of 8-bit floats without their scales"
        )
        help = "dtype='model' leaves them as they are"
        yield Diagnostic("RK326", title, (), (help,), (named(small),), values={"names": small})


def _groups(moves: Mapping[str, Move], target: Target) -> Iterator[tuple[str, ...]]:
    """The names of the model that are one tensor, wherever the checkpoint brings one of them."""
    tied = {fqn: group for group in target.header.tied for fqn in group}
    for fqn in moves:
        group = tied.get(fqn, (fqn,))
        if fqn == next(name for name in group if name in moves):
            yield group


def _torn_ties(moves: Mapping[str, Move], target: Target, values: Values) -> Iterator[Diagnostic]:
    """Names that the model holds as one tensor, and that the checkpoint brings with different values."""
    for group in _groups(moves, target):
        first, *others = (moves[fqn] for fqn in group if fqn in moves)
        for other in others:
            if values.place(first) is not None and values.place(first) == values.place(other):
                continue
            if same_bytes(values.tensor(first).tensor, values.tensor(other).tensor):
                continue
            yield _torn(first, other, target.header.name)
            break


def _torn(first: Move, other: Move, model: str) -> Diagnostic:
    title = f"{first.target} and {other.target} are one tensor in {model}, but two in the checkpoint"
    lines = [f"{move.target} is {move.spec} from {', '.join(move.sources)}" for move in (first, other)]
    help = ("build the model untied, or drop one of the two keys by name",)
    return Diagnostic("RK322", title, (), help, ("\n".join(lines),), values={"names": [first.target, other.target]})


def _units(moves: Mapping[str, Move], target: Target, values: Values, wanted: Wanted) -> Iterator[Unit]:
    groups = list(_groups(moves, target))
    firsts = [next(moves[fqn] for fqn in group if fqn in moves) for group in groups]
    apart = overlapping(firsts, values)
    for move, group in zip(firsts, groups, strict=True):
        held = target.slots[move.target].value
        device = wanted.device or (torch.device("cpu") if held.is_meta else held.device)
        yield Unit(move, group, device, _cast_to(move, held, wanted.dtype), wanted.copy or move.target in apart)


def _cast_to(move: Move, held: torch.Tensor, dtype: Dtype) -> torch.dtype:
    brought = DTYPES[move.spec.dtype]
    if dtype is None or move.spec.dtype not in PLAIN_FLOATS:
        return brought
    return held.dtype if dtype == "model" else dtype
