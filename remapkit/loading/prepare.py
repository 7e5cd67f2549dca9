"""Plans the loading of a checkpoint into a module: the target of each tensor, the copies, and all problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.loading.counters import find_old_counters, report_old_counters
from remapkit.loading.in_place import (
    find_shared_memory,
    has_overlap,
    has_shared_elements,
    locate_tensor,
    merge_memory_ranges,
)
from remapkit.loading.module import LoadTarget
from remapkit.loading.sources import TensorValues, find_overlapping_targets, holds_same_bytes
from remapkit.plans.check import Check, make_check
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.tensors.dtypes import DTYPES, PLAIN_FLOATS
from remapkit.tensors.from_torch import TORCH_DTYPES, get_dtype_name

DtypeArgument = torch.dtype | Literal["model"] | None


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """The caller's options."""

    device: torch.device | None
    dtype: DtypeArgument
    requires_grad: bool | None
    copy: bool
    assign: bool = False


@dataclass(frozen=True, slots=True)
class Assignment:
    """One tensor of the checkpoint and the slots that it fills: more than one if the model ties them."""

    move: Move
    targets: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    own: bool
    into: bool
    """Whether the values are copied into the module's own tensor; otherwise a new one replaces it."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    target: LoadTarget
    check: Check
    assignments: tuple[Assignment, ...]
    kept: tuple[str, ...]
    problems: tuple[Diagnostic, ...]
    counters: tuple[str, ...] = ()
    """Counters of batches that the checkpoint is too old to have; see `loading.counters`."""

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """The notes of the check, except those on dtypes that loading casts to the model's."""
        cast = {
            fqn
            for assignment in self.assignments
            if assignment.dtype == self.target.slots[assignment.move.target].value.dtype
            for fqn in assignment.targets
        }
        left = tuple(mismatch for mismatch in self.check.dtype_mismatches if mismatch.target not in cast)
        return (*replace(self.check, dtype_mismatches=left).notes, *report_old_counters(self.target, self.counters))


def plan_load(
    target: LoadTarget,
    plan: ResolvedPlan,
    values: TensorValues,
    request: LoadRequest,
    strict: bool,
    extra_state: str,
    versions: Mapping[str, object],
) -> LoadPlan:
    """Plan the assignments and collect all problems. Reads no data except that of tied or merged names.

    `versions` is the `_metadata` of a state dict in memory.
    """
    check = make_check(plan, target.header)
    counters = find_old_counters(target, check, versions)
    check = replace(check, missing_keys=tuple(fqn for fqn in check.missing_keys if fqn not in counters))
    problems = list(check.problems)
    if not strict:
        problems = [problem for problem in problems if problem.code not in ("RK310", "RK311")]
        problems += _diagnose_missing_on_meta(target, check)
    if extra_state != "keep":
        problems += _diagnose_extra_states(target)
    wrong = {mismatch.target for mismatch in check.shape_mismatches}
    moves = {m.target: m for m in check.plan.moves if m.target in target.header and m.target not in wrong}
    problems += _diagnose_dtypes(moves, target, request)
    problems += _diagnose_copies(moves, target, request)
    assignments: tuple[Assignment, ...] = ()
    if not problems:
        problems += values.find_unequal_merges(tuple(moves.values()))
        problems += _diagnose_torn_ties(moves, target, values)
        assignments = tuple(_make_assignments(moves, target, values, request))
    brought = {fqn for assignment in assignments for fqn in assignment.targets}
    kept = tuple(fqn for fqn in target.header if fqn not in brought)
    return LoadPlan(target, check, assignments, kept, tuple(problems), counters)


def _diagnose_missing_on_meta(target: LoadTarget, check: Check) -> list[Diagnostic]:
    lacking = [fqn for fqn in check.missing_keys if target.slots[fqn].value.is_meta]
    if not lacking:
        return []
    title = f"{count_noun(len(lacking), 'missing key')} would stay on meta, even with strict=False"
    help = "build the module on a real device, which gives them values"
    return [Diagnostic("RK310", title, (), (help,), (list_names(lacking),), values={"missing_keys": lacking})]


def _diagnose_extra_states(target: LoadTarget) -> list[Diagnostic]:
    if not target.extra:
        return []
    keep = "keeps" if len(target.extra) == 1 else "keep"
    title = f"{count_noun(len(target.extra), 'module')} {keep} extra state, which checkpoints do not contain"
    help = "pass extra_state='keep' to leave it unchanged, and set it yourself with set_extra_state"
    return [
        Diagnostic("RK325", title, (), (help,), (list_names(target.extra),), values={"names": list(target.extra)})
    ]


def _name_kind(dtype: str) -> str:
    row = DTYPES[dtype]
    if row.kind != "float":
        return {"bool": "bools", "complex": "complex numbers"}.get(row.kind, "integers")
    return "floats" if row.bits > 8 else "8-bit floats" if row.bits == 8 else "floats of less than a byte"


def _diagnose_dtypes(moves: Mapping[str, Move], target: LoadTarget, request: LoadRequest) -> Iterator[Diagnostic]:
    unknown = [fqn for fqn, move in moves.items() if move.spec.dtype not in TORCH_DTYPES]
    if unknown:
        names = ", ".join(sorted({moves[fqn].spec.dtype for fqn in unknown}))
        title = f"torch has no dtype for {names}: {count_noun(len(unknown), 'tensor')} cannot be loaded"
        yield Diagnostic("RK321", title, notes=(list_names(unknown),), values={"names": unknown})
    pairs = {fqn: (move.spec.dtype, target.header[fqn].dtype) for fqn, move in moves.items() if fqn not in unknown}
    crossed = {fqn: pair for fqn, pair in pairs.items() if _name_kind(pair[0]) != _name_kind(pair[1])}
    if crossed:
        lines = [
            f"{fqn}: the checkpoint has {old} ({_name_kind(old)}), {target.header.name} has {new} ({_name_kind(new)})"
            for fqn, (old, new) in crossed.items()
        ]
        title = (
            f"{count_noun(len(crossed), 'tensor')} of another kind of number than the model has, which is never cast"
        )
        help = "convert the checkpoint first, or correct the rule that maps it there"
        yield Diagnostic("RK320", title, (), (help,), (list_names(lines),), values={"names": list(crossed)})
    small = [fqn for fqn, (old, _) in pairs.items() if old.startswith("F8") and fqn not in crossed]
    if small and isinstance(request.dtype, torch.dtype):
        count = count_noun(len(small), "tensor")
        title = f"dtype={request.dtype} would cast {count} of 8-bit floats without their scales"
        help = "pass dtype='model' to leave them unchanged"
        yield Diagnostic("RK326", title, (), (help,), (list_names(small),), values={"names": small})


def _list_tied_groups(moves: Mapping[str, Move], target: LoadTarget) -> Iterator[tuple[str, ...]]:
    """Yield the groups of the model's names that are one tensor, if the checkpoint contains one of them."""
    tied = {fqn: group for group in target.header.tied for fqn in group}
    for fqn in moves:
        group = tied.get(fqn, (fqn,))
        if fqn == next(name for name in group if name in moves):
            yield group


def _diagnose_torn_ties(moves: Mapping[str, Move], target: LoadTarget, values: TensorValues) -> Iterator[Diagnostic]:
    """Report names that are one tensor in the model, but have different values in the checkpoint."""
    for group in _list_tied_groups(moves, target):
        first, *others = (moves[fqn] for fqn in group if fqn in moves)
        for other in others:
            if values.place(first) is not None and values.place(first) == values.place(other):
                continue
            if holds_same_bytes(values.tensor(first).tensor, values.tensor(other).tensor):
                continue
            yield _describe_torn_tie(first, other, target.header.name)
            break


def _describe_torn_tie(first: Move, other: Move, model: str) -> Diagnostic:
    title = f"{first.target} and {other.target} are one tensor in {model}, but two in the checkpoint"
    lines = [f"{move.target} is {move.spec} from {', '.join(move.sources)}" for move in (first, other)]
    help = ("build the model untied, or drop one of the two keys by name",)
    return Diagnostic("RK322", title, (), help, ("\n".join(lines),), values={"names": [first.target, other.target]})


# ------------------------------------------------------------------------------------- tensors that the module keeps


def is_filled_in_place(held: torch.Tensor, target: LoadTarget, request: LoadRequest) -> bool:
    """Return whether the values are copied into this tensor of the module; otherwise a new one replaces it.

    Parameters with memory are filled in place: optimizers and others keep references to them. Buffers are too, but in
    a module that is being built (some parameter is still on meta) a buffer follows `device=` and `dtype=` like
    `Module.to`.
    """
    if request.assign or held.is_meta:
        return False
    if isinstance(held, nn.Parameter) or not target.is_being_built:
        return True
    elsewhere = request.device is not None and held.device != request.device
    recast = isinstance(request.dtype, torch.dtype) and held.dtype != request.dtype
    return not elsewhere and not (recast and get_dtype_name(held.dtype) in PLAIN_FLOATS)


def _diagnose_copies(moves: Mapping[str, Move], target: LoadTarget, request: LoadRequest) -> Iterator[Diagnostic]:
    """Report tensors that are kept but cannot take the given values."""
    staying = {fqn: held for fqn in moves if is_filled_in_place(held := target.slots[fqn].value, target, request)}
    brought = {fqn: moves[fqn].spec.dtype for fqn in staying if moves[fqn].spec.dtype in TORCH_DTYPES}
    asked = request.dtype
    recast = [
        fqn
        for fqn, dtype in brought.items()
        if isinstance(asked, torch.dtype) and dtype in PLAIN_FLOATS and staying[fqn].dtype != asked
    ]
    name = target.header.name
    if recast:
        lines = [f"{fqn} is {staying[fqn].dtype}" for fqn in recast]
        title = f"dtype={asked}, but {name} has {count_noun(len(recast), 'tensor')} of another dtype"
        help = f"call model.to({asked}) first, leave out dtype= to cast to what the model has, or pass assign=True"
        yield Diagnostic("RK330", title, (), (help,), (list_names(lines),), values={"names": recast})
    if elsewhere := _find_misplaced(target, request):
        lines = [f"{fqn} is on {device}" for fqn, device in elsewhere.items()]
        title = f"device={str(request.device)!r}, but {name} has {count_noun(len(elsewhere), 'tensor')} elsewhere"
        help = f"call model.to({str(request.device)!r}) first, leave out device=, or pass assign=True"
        yield Diagnostic("RK331", title, (), (help,), (list_names(lines),), values={"names": list(elsewhere)})
    if expanded := [fqn for fqn, held in staying.items() if has_shared_elements(held)]:
        title = f"{count_noun(len(expanded), 'tensor')} of {name} cannot be copied into: elements share their memory"
        help = "pass assign=True to replace them, or give each its own memory with clone()"
        yield Diagnostic("RK332", title, (), (help,), (list_names(expanded),), values={"names": expanded})
    elif torn := find_shared_memory(staying):
        pairs = [list(pair) for pair in torn]
        title = (
            f"{count_noun(len(pairs), 'pair')} of tensors of {name} share memory: one copy would overwrite another"
        )
        lines = [" and ".join(pair) for pair in pairs]
        help = "pass assign=True to replace them, or give each its own memory with clone()"
        yield Diagnostic("RK332", title, (), (help,), (list_names(lines),), values={"names": pairs})
    wide = {fqn: (dtype, target.header[fqn].dtype) for fqn, dtype in brought.items() if dtype not in PLAIN_FLOATS}
    widths = {
        fqn: pair for fqn, pair in wide.items() if pair[0] != pair[1] and _name_kind(pair[0]) == _name_kind(pair[1])
    }
    if widths:
        lines = [f"{fqn}: the checkpoint has {old}, {name} has {new}" for fqn, (old, new) in widths.items()]
        title = f"{count_noun(len(widths), 'tensor')} of another width than {name} has; only floats are cast"
        help = "pass assign=True to take the checkpoint's dtype, or convert one of the two first"
        yield Diagnostic("RK333", title, (), (help,), (list_names(lines),), values={"names": list(widths)})


def _find_misplaced(target: LoadTarget, request: LoadRequest) -> dict[str, str]:
    """Return the tensors that are not moved, although another device was requested."""
    if request.device is None or request.assign:
        return {}
    parts: list[dict[str, torch.Tensor]] = [{**dict(target.module.named_parameters())}]
    if not target.is_being_built:
        parts.append(dict(target.module.named_buffers()))
    return {
        fqn: str(value.device)
        for part in parts
        for fqn, value in part.items()
        if not value.is_meta and value.device != request.device
    }


def _make_assignments(
    moves: Mapping[str, Move], target: LoadTarget, values: TensorValues, request: LoadRequest
) -> Iterator[Assignment]:
    groups = list(_list_tied_groups(moves, target))
    firsts = [next(moves[fqn] for fqn in group if fqn in moves) for group in groups]
    apart = find_overlapping_targets(firsts, values)
    helds = [target.slots[move.target].value for move in firsts]
    # Values must not share memory that the copies write to: a state dict may contain the module's own tensors.
    written = merge_memory_ranges(locate_tensor(held) for held in helds if is_filled_in_place(held, target, request))
    for move, group, held in zip(firsts, groups, helds, strict=True):
        into = is_filled_in_place(held, target, request)
        place = values.place(move)
        device = request.device or (torch.device("cpu") if held.is_meta else held.device)
        dtype = held.dtype if into else _choose_dtype(move, held, request.dtype)
        lent = into and place is not None and (values.is_mapped or has_overlap(place, written))
        own = request.copy or move.target in apart or lent
        yield Assignment(move, group, held.device if into else device, dtype, own, into)


def _choose_dtype(move: Move, held: torch.Tensor, dtype: DtypeArgument) -> torch.dtype:
    brought = TORCH_DTYPES[move.spec.dtype]
    if dtype is None or move.spec.dtype not in PLAIN_FLOATS:
        return brought
    return held.dtype if dtype == "model" else dtype
