"""`load_into`: plan, check, then every tensor straight to its place, in one step that is undone where it fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from remapkit.check import Check, make_check
from remapkit.checkpoint.faults import sized, unreadable
from remapkit.checkpoint.opening import open_checkpoint
from remapkit.checkpoint.reader import Reader
from remapkit.checkpoint.writing import Run
from remapkit.diagnostic import Diagnostic, FailedCheck, Severity, UsageError
from remapkit.loading.module import Fill, Target, assign, target_of, tensor_reason
from remapkit.loading.rebuild import Factory, rebuilt
from remapkit.loading.upload import CudaQueue, Upload
from remapkit.loading.values import DTYPES, FileValues, MemoryValues, Values, overlapping, same_bytes
from remapkit.meta import header_of
from remapkit.plan import Move, Plan, make_plan, named
from remapkit.rulefile import read_text
from remapkit.rules import RuleSet, compile_rules
from remapkit.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.source import Span

_PLAIN_FLOATS = ("F16", "BF16", "F32", "F64")
_EXACT: Mapping[str, tuple[str, ...]] = {"F16": ("F32", "F64"), "BF16": ("F32", "F64"), "F32": ("F64",)}
"""Casts that lose nothing."""

Dtype = torch.dtype | Literal["model"] | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load_into` did; `print` it for one paragraph.

    `tensors` and `nbytes` count what the checkpoint brought, as it lies there, tied names once. `shared` of them are
    the source's own bytes (the mapped file, or the given state dict), the others were copied. `casts` counts pairs of
    dtypes. `dropped` are source keys that the rules leave behind, `unexpected` and `missing` what `strict=False` let
    through, `tied` the groups of names that are one tensor, `rebuilt` the values that no checkpoint has and the
    module's constructor gave.
    """

    checkpoint: str
    model: str
    rules: str
    tensors: int
    nbytes: int
    shared: int
    casts: Mapping[tuple[str, str], int]
    dropped: tuple[str, ...]
    unexpected: tuple[str, ...]
    missing: tuple[str, ...]
    tied: tuple[tuple[str, ...], ...]
    rebuilt: tuple[str, ...]
    devices: tuple[str, ...]
    seconds: float
    notes: tuple[Diagnostic, ...] = ()

    @property
    def copied(self) -> int:
        """How many tensors were copied."""
        return self.tensors - self.shared

    @property
    def cast(self) -> int:
        """How many tensors were cast."""
        return sum(self.casts.values())

    @property
    def rounded(self) -> int:
        """How many tensors were cast to a dtype that cannot hold every value of the old one."""
        return sum(count for (old, new), count in self.casts.items() if new not in _EXACT.get(old, ()))

    def __str__(self) -> str:
        parts = [f"{_count(self.tensors, 'tensor')} ({sized(self.nbytes)})"]
        parts += [f"{self.shared} without a copy"] if self.shared else []
        parts += [f"{self.copied} copied"] if self.copied else []
        parts += [f"{number} cast {old} -> {new}{_loss(old, new)}" for (old, new), number in self.casts.items()]
        parts += [f"{_count(len(self.dropped), 'key')} dropped"] if self.dropped else []
        parts += [f"{_count(len(self.unexpected), 'unexpected key')} left out"] if self.unexpected else []
        parts += [f"{_count(len(self.missing), 'missing key')} kept as they were"] if self.missing else []
        parts += [f"{_count(len(self.tied), 'tied group')}"] if self.tied else []
        parts += [f"{_count(len(self.rebuilt), 'value')} rebuilt"] if self.rebuilt else []
        where = f" on {', '.join(self.devices)}" if self.devices else ""
        head = f"{self.checkpoint} -> {self.model} by {self.rules}"
        return f"{head}: {', '.join(parts)}{where}, {self.seconds:.3f} s"


def _loss(old: str, new: str) -> str:
    return "" if new in _EXACT.get(old, ()) else " (rounded)"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def load_into(
    model: nn.Module,
    ckpt: str | Path | Reader | Mapping[str, Any],
    rules: RuleSet | str | Path | None = None,
    *,
    device: torch.device | str | int | None = None,
    dtype: Dtype = None,
    root: str | None = None,
    strict: bool = True,
    requires_grad: bool | None = None,
    train: bool | None = None,
    copy: bool = False,
    factory: Factory | None = None,
    buffers: Mapping[str, torch.Tensor] | None = None,
    extra_state: Literal["refuse", "keep"] = "refuse",
    run: Run | None = None,
) -> Loaded:
    """Load a checkpoint into a module, on the meta device or not. All problems are raised before anything is touched.

    `ckpt` is a path, an open `Reader`, or a state dict in memory; `rules` a `RuleSet`, a pack's name, a path, or None
    where the names are the model's own. `root` names the wrapper to take where a pickle holds several.

    Tensors are assigned: every parameter is a new `nn.Parameter`, contiguous as the checkpoint brings it, with the
    `requires_grad` of the old one unless `requires_grad` says otherwise; names that were one tensor are one tensor
    again. Make the optimizer afterwards. On the CPU nothing is copied: tensors lie in the file, mapped copy on write,
    so training never writes to it, but the file must not be overwritten in place while the model lives (renaming,
    replacing and deleting it is fine); `copy=True` takes the bytes into memory. On CUDA, bytes go through two
    page-locked buffers. A state dict in memory is shared, not copied.

    `device` is where the whole module will be; without it a tensor goes where the old one was, from meta to the CPU.
    `dtype` casts floating tensors that the checkpoint brings, on their device (`"model"`: each to what the model
    holds); without it they keep the checkpoint's. Nothing is ever cast between floats, integers and bools.

    Nothing stays on meta. Values that only the constructor knows (non-persistent buffers, plain tensors) come from
    `buffers={fqn: tensor}` or from building the module again: with `factory()`, or from the config that models of
    transformers and diffusers carry. `strict=False` lets unexpected keys go, and keeps missing ones that are not on
    meta. `extra_state="keep"` leaves what modules keep as extra state; checkpoints cannot bring it. `run` gives the
    bytes of moves with operations.

    Returns `Loaded`. Raises `FailedCheck` with everything that is wrong, `UnreadableCheckpoint`, `InvalidRules` or
    `UsageError`; the model is then as it was before.

    >>> with torch.device("meta"):
    ...     layer = nn.Linear(2, 1)
    >>> loaded = load_into(layer, {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.zeros(1)})
    >>> layer(torch.ones(1, 2)), loaded.tensors
    (tensor([[3.]], grad_fn=<AddmmBackward0>), 2)
    """
    started = time.monotonic()
    wanted = _Wanted(_device(device), _dtype(dtype), requires_grad, copy)
    rule_set = _rules(rules)
    target = target_of(model)
    with ExitStack() as stack:
        source, values, notes = _open(ckpt, root, run, stack)
        plan = make_plan(rule_set, source)
        job = _prepare(target, plan, values, wanted, strict, extra_state, run)
        lost = target.lost()
        fills, unknown = rebuilt(target, lost, factory, buffers or {})
        if problems := (*job.problems, *unknown):
            raise FailedCheck(problems)
        report = _carry_out(job, values, wanted, fills)
    if train is not None:
        model.train(train)
    return Loaded(
        checkpoint=source.name,
        model=target.header.name,
        rules=plan.name,
        tensors=len(job.units),
        nbytes=sum(unit.move.spec.nbytes for unit in job.units),
        shared=report.shared,
        casts=report.casts,
        dropped=tuple(gone.fqn for gone in plan.dropped),
        unexpected=job.check.unexpected_keys,
        missing=job.check.missing_keys,
        tied=target.header.tied,
        rebuilt=tuple(each.fqn for each in lost),
        devices=report.devices,
        seconds=time.monotonic() - started,
        notes=(*notes, *job.check.notes, *job.check.warnings),
    )


# ---------------------------------------------------------------------------------------------------- arguments


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the caller asked for."""

    device: torch.device | None
    dtype: Dtype
    requires_grad: bool | None
    copy: bool


def _device(device: torch.device | str | int | None) -> torch.device | None:
    if device is None:
        return None
    try:
        found = torch.device(device)
        if found.type != "meta":
            torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(Diagnostic("RK630", f"device={device!r} cannot be used: {said}")) from None
    if found.type == "meta":
        raise UsageError(Diagnostic("RK630", "device='meta' has no memory to load into"))
    return torch.device(found.type, torch.cuda.current_device()) if str(found) == "cuda" else found


def _dtype(dtype: Dtype) -> Dtype:
    plain = [DTYPES[name] for name in _PLAIN_FLOATS]
    if dtype is None or dtype == "model" or dtype in plain:
        return dtype
    listed = ", ".join(map(str, plain))
    raise UsageError(
        Diagnostic(
            "RK631",
            f"dtype={dtype!r}: only casts between floating dtypes are done",
            help=(f"one of {listed}, or 'model' for what the model holds",),
        )
    )


def _rules(rules: RuleSet | str | Path | None) -> RuleSet:
    if isinstance(rules, RuleSet):
        return rules
    if rules is None:
        return compile_rules(read_text("remapkit: 1\nname: identity\nunmatched: keep\nrules: []\n"))
    from remapkit.library import load  # a row below: a name is a convenience

    return load(rules)


def _open(
    ckpt: str | Path | Reader | Mapping[str, Any], root: str | None, run: Run | None, stack: ExitStack
) -> tuple[StateDictSpec, Values, tuple[Diagnostic, ...]]:
    if isinstance(ckpt, Mapping):
        if root not in (None, "", "."):
            raise UsageError(Diagnostic("RK632", f"root={root!r}: a state dict in memory has no wrappers"))
        tensors = {fqn: value for fqn, value in ckpt.items() if isinstance(value, torch.Tensor)}
        _check_plain(tensors)
        return header_of(tensors, "a state dict in memory"), MemoryValues(tensors), tuple(_ignored(ckpt, tensors))
    if isinstance(ckpt, str | Path):
        reader = stack.enter_context(open_checkpoint(ckpt, root=root))
    else:
        reader = ckpt
        if root not in (None, reader.root):
            raise UsageError(Diagnostic("RK632", f"root={root!r}: the reader was opened under {reader.root!r}"))
    if reader.format == "manifest":
        title = "a manifest has no data to load, only names, dtypes and shapes"
        raise unreadable("RK408", title, reader.path)
    return reader.header(), FileValues(reader, run), reader.notes


def _check_plain(state: Mapping[str, torch.Tensor]) -> None:
    on_meta = [fqn for fqn, value in state.items() if value.is_meta]
    odd = {fqn: reason[0] for fqn, value in state.items() if (reason := tensor_reason(value))}
    problems = []
    if on_meta:
        title = f"{_count(len(on_meta), 'tensor')} of the state dict on meta: there is no data to load"
        problems.append(Diagnostic("RK329", title, notes=(named(on_meta),), values={"names": on_meta}))
    if odd:
        title = f"{_count(len(odd), 'tensor')} of the state dict not plain"
        lines = [f"{fqn}: {reason}" for fqn, reason in odd.items()]
        problems.append(Diagnostic("RK329", title, notes=(named(lines),), values={"names": list(odd)}))
    if problems:
        raise FailedCheck(problems)


def _ignored(state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Iterator[Diagnostic]:
    others = [str(key) for key in state if key not in tensors]
    if others:
        title = f"{_count(len(others), 'entry').replace('entrys', 'entries')} beside the tensors ignored"
        yield Diagnostic("RK413", title, notes=(named(others),), severity=Severity.NOTE)


# ------------------------------------------------------------------------------------------------- what to do


@dataclass(frozen=True, slots=True)
class _Unit:
    """One tensor of the checkpoint and every slot that it fills: more than one where the model ties them."""

    move: Move
    targets: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    own: bool


@dataclass(frozen=True, slots=True)
class _Job:
    target: Target
    check: Check
    units: tuple[_Unit, ...]
    kept: tuple[str, ...]
    problems: tuple[Diagnostic, ...]


def _prepare(
    target: Target, plan: Plan, values: Values, wanted: _Wanted, strict: bool, extra_state: str, run: Run | None
) -> _Job:
    """What is to be done, and everything that speaks against it. Reads no data but that of tied names."""
    check = make_check(plan, target.header)
    problems = list(check.problems)
    if not strict:
        problems = [each for each in problems if each.code not in ("RK310", "RK311")]
        problems += _missing_on_meta(target, check)
    if extra_state != "keep":
        problems += _extra_states(target)
    wrong = {each.target for each in check.shape_mismatches}
    moves = {m.target: m for m in plan.moves if m.target in target.header and m.target not in wrong}
    problems += _dtype_problems(moves, target, wanted)
    problems += _operations(moves, run)
    units: tuple[_Unit, ...] = ()
    if not problems:
        problems += _torn_ties(moves, target, values)
        units = tuple(_units(moves, target, values, wanted))
    brought = {fqn for unit in units for fqn in unit.targets}
    kept = tuple(fqn for fqn in target.header if fqn not in brought)
    return _Job(target, check, units, kept, tuple(problems))


def _missing_on_meta(target: Target, check: Check) -> list[Diagnostic]:
    lacking = [fqn for fqn in check.missing_keys if target.slots[fqn].value.is_meta]
    if not lacking:
        return []
    title = f"{_count(len(lacking), 'missing key')} would be left on meta, strict=False or not"
    help = "build the module on a real device if these are to be initialised by it"
    return [Diagnostic("RK310", title, (), (help,), (named(lacking),), values={"missing_keys": lacking})]


def _extra_states(target: Target) -> list[Diagnostic]:
    if not target.extra:
        return []
    count = len(target.extra)
    title = f"{_count(count, 'module')} {'keeps' if count == 1 else 'keep'} extra state, which no checkpoint brings"
    help = "extra_state='keep' leaves it as it is; set it yourself with set_extra_state"
    return [Diagnostic("RK325", title, (), (help,), (named(target.extra),), values={"names": list(target.extra)})]


def _kind(dtype: str) -> str:
    if dtype in _PLAIN_FLOATS:
        return "floats"
    if dtype.startswith("F"):
        return "8-bit floats" if dtype.startswith("F8") else "floats of less than a byte"
    return "bools" if dtype == "BOOL" else "complex numbers" if dtype.startswith("C") else "integers"


def _dtype_problems(moves: Mapping[str, Move], target: Target, wanted: _Wanted) -> Iterator[Diagnostic]:
    unknown = [fqn for fqn, move in moves.items() if move.spec.dtype not in DTYPES]
    if unknown:
        names = ", ".join(sorted({moves[fqn].spec.dtype for fqn in unknown}))
        title = f"torch has no dtype for {names}: {_count(len(unknown), 'tensor')} cannot be loaded"
        yield Diagnostic("RK321", title, notes=(named(unknown),), values={"names": unknown})
    pairs = {fqn: (move.spec.dtype, target.header[fqn].dtype) for fqn, move in moves.items() if fqn not in unknown}
    crossed = {fqn: pair for fqn, pair in pairs.items() if _kind(pair[0]) != _kind(pair[1])}
    if crossed:
        lines = [
            f"{fqn}: the checkpoint brings {old} ({_kind(old)}), {target.header.name} holds {new} ({_kind(new)})"
            for fqn, (old, new) in crossed.items()
        ]
        title = f"{_count(len(crossed), 'tensor')} of another kind of number than the model holds: that is no cast"
        help = "convert the checkpoint on purpose, or correct the rule that leads there"
        yield Diagnostic("RK320", title, (), (help,), (named(lines),), values={"names": list(crossed)})
    small = [fqn for fqn, (old, _) in pairs.items() if old.startswith("F8") and fqn not in crossed]
    if small and isinstance(wanted.dtype, torch.dtype):
        title = f"dtype={wanted.dtype} would cast {_count(len(small), 'tensor')} of 8-bit floats without their scales"
        help = "dtype='model' leaves them as they are"
        yield Diagnostic("RK326", title, (), (help,), (named(small),), values={"names": small})


def _operations(moves: Mapping[str, Move], run: Run | None) -> Iterator[Diagnostic]:
    with_ops = [fqn for fqn, move in moves.items() if move.ops]
    if with_ops and run is None:
        title = f"{_count(len(with_ops), 'tensor')} made by operations, but nothing was given to run them"
        yield Diagnostic("RK328", title, (), ("give run=",), (named(with_ops),), values={"names": with_ops})


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
            spans = [move.rule.span for move in (first, other)]
            yield _torn(first, other, target.header.name, spans)
            break


def _torn(first: Move, other: Move, model: str, spans: Sequence[Span | None]) -> Diagnostic:
    title = f"{first.target} and {other.target} are one tensor in {model}, but two in the checkpoint"
    lines = [f"{move.target} is {move.spec} from {', '.join(move.sources)}" for move in (first, other)]
    help = ("build the model untied, or drop one of the two keys by name",)
    return Diagnostic("RK322", title, (), help, ("\n".join(lines),), values={"names": [first.target, other.target]})


def _units(moves: Mapping[str, Move], target: Target, values: Values, wanted: _Wanted) -> Iterator[_Unit]:
    groups = list(_groups(moves, target))
    firsts = [next(moves[fqn] for fqn in group if fqn in moves) for group in groups]
    apart = overlapping(firsts, values)
    for move, group in zip(firsts, groups, strict=True):
        held = target.slots[move.target].value
        device = wanted.device or (torch.device("cpu") if held.is_meta else held.device)
        yield _Unit(move, group, device, _cast_to(move, held, wanted.dtype), wanted.copy or move.target in apart)


def _cast_to(move: Move, held: torch.Tensor, dtype: Dtype) -> torch.dtype:
    brought = DTYPES[move.spec.dtype]
    if dtype is None or move.spec.dtype not in _PLAIN_FLOATS:
        return brought
    return held.dtype if dtype == "model" else dtype


# ------------------------------------------------------------------------------------------------- doing it


@dataclass(slots=True)
class _Report:
    shared: int
    casts: Counter[tuple[str, str]]
    devices: tuple[str, ...]


def _carry_out(job: _Job, values: Values, wanted: _Wanted, fills: Sequence[Fill]) -> _Report:
    """Make every tensor, then assign all of them at once."""
    report = _Report(0, Counter(), ())
    tensors: dict[str, torch.Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        lifts = _Lifts(stack)
        for unit in job.units:
            made = _make(unit, values, lifts, report)
            tensors.update(_into_slots(unit, made, job.target))
        for fqn in job.kept:
            held = job.target.slots[fqn].value
            tensors |= {fqn: _moved(held, wanted.device)} if wanted.device not in (None, held.device) else {}
        placed = [*_placed(fills, job.target, wanted.device), *_others(job.target, wanted.device)]
    values.check_unchanged()
    report.devices = tuple(dict.fromkeys(str(unit.device) for unit in job.units))
    assign(job.target, tensors, placed)
    if wanted.requires_grad is not None:
        for parameter in job.target.module.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(wanted.requires_grad)
    return report


class _Lifts:
    """One upload for each device, made when it is first needed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._made: dict[torch.device, Upload] = {}

    def __getitem__(self, device: torch.device) -> Upload:
        if device not in self._made:
            self._stack.enter_context(torch.cuda.device(device))
            self._made[device] = self._stack.enter_context(Upload(device, CudaQueue(device)))
        return self._made[device]


def _is_staged(device: torch.device) -> bool:
    """Whether page-locked buffers make copies to the device faster."""
    return device.type == "cuda"


def _make(unit: _Unit, values: Values, lifts: _Lifts, report: _Report) -> torch.Tensor:
    """The tensor on its device, in its dtype."""
    brought = DTYPES[unit.move.spec.dtype]
    extent = values.extent(unit.move) if _is_staged(unit.device) else None
    if unit.dtype != brought:
        report.casts[unit.move.spec.dtype, _name(unit.dtype)] += 1
    if extent is not None:
        return lifts[unit.device].tensor(extent, unit.move.spec).to(unit.dtype)
    value = values.tensor(unit.move)
    if value.shared and value.tensor.device == unit.device and unit.dtype == brought:
        report.shared += not unit.own
        return values.tensor(unit.move, own=True).tensor if unit.own else value.tensor
    made = value.tensor.to(unit.device).to(unit.dtype)
    if made is not value.tensor:
        value.release()
    return made


def _name(dtype: torch.dtype) -> str:
    return next(name for name, each in DTYPES.items() if each == dtype)


def _into_slots(unit: _Unit, made: torch.Tensor, target: Target) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensor under every name: one object for names that were one object, a parameter where one was."""
    objects: dict[int, torch.Tensor] = {}
    for fqn in unit.targets:
        held = target.slots[fqn].value
        if id(held) not in objects:
            objects[id(held)] = _like(held, made)
        yield fqn, objects[id(held)]


def _like(held: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    if not isinstance(held, nn.Parameter):
        return made
    parameter = nn.Parameter(made, requires_grad=held.requires_grad)
    vars(parameter).update(vars(held))  # marks that libraries put on parameters: no weight decay, parallel ranks
    return parameter


def _moved(held: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    moved = held.detach().to(device)
    return _like(held, moved)


def _placed(fills: Sequence[Fill], target: Target, device: torch.device | None) -> Iterator[Fill]:
    """The rebuilt values where the rest of the module will be."""
    covered = target.covered
    for fill in fills:
        yield Fill(fill.owner, fill.name, _onto(fill.value, device or torch.device("cpu"), covered))


def _onto(value: Any, device: torch.device, covered: frozenset[int]) -> Any:
    if isinstance(value, torch.Tensor):
        return value if id(value) in covered else value.to(device)
    if type(value) is dict:
        return {key: _onto(each, device, covered) for key, each in value.items()}
    return type(value)(_onto(each, device, covered) for each in value) if type(value) in (list, tuple) else value


def _others(target: Target, device: torch.device | None) -> Iterator[Fill]:
    """Buffers outside the state dict that hold values, but on another device than the one asked for."""
    covered = target.covered
    for owner, module in target.module.named_modules() if device is not None else ():
        for name, value in module._buffers.items():
            if value is not None and not value.is_meta and id(value) not in covered and value.device != device:
                yield Fill(owner, name, value.to(device))
