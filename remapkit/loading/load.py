"""`load_into`: plan, check, then every tensor straight to its place, in one step that is undone where it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from remapkit.compute.move_bytes import Run
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.diagnostics.wording import count_noun, format_bytes, list_names
from remapkit.files.errors import make_unreadable
from remapkit.formats.detect import open_checkpoint
from remapkit.formats.reader import Reader
from remapkit.loading.module import explain_tensor_refusal, make_target
from remapkit.loading.non_persistent import Factory, rebuilt
from remapkit.loading.prepare import PLAIN_FLOATS, Dtype, LoadRequest, plan_load
from remapkit.loading.sources import FileValues, MemoryValues, TensorValues
from remapkit.loading.transfer import execute_load
from remapkit.plans.make import make_plan
from remapkit.registry.load import load_rules
from remapkit.rulefile.read import read_text
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.tensors.from_torch import DTYPES, explain_no_tensors, header_of
from remapkit.tensors.spec import StateDictSpec

_EXACT: Mapping[str, tuple[str, ...]] = {"F16": ("F32", "F64"), "BF16": ("F32", "F64"), "F32": ("F64",)}
"""Casts that lose nothing."""


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
        return sum(number for (old, new), number in self.casts.items() if new not in _EXACT.get(old, ()))

    def __str__(self) -> str:
        parts = [f"{count_noun(self.tensors, 'tensor')} ({format_bytes(self.nbytes)})"]
        parts += [f"{self.shared} without a copy"] if self.shared else []
        parts += [f"{self.copied} copied"] if self.copied else []
        parts += [
            f"{number} cast {old} -> {new}{_describe_rounding(old, new)}" for (old, new), number in self.casts.items()
        ]
        parts += [f"{count_noun(len(self.dropped), 'key')} dropped"] if self.dropped else []
        parts += [f"{count_noun(len(self.unexpected), 'unexpected key')} left out"] if self.unexpected else []
        parts += [f"{count_noun(len(self.missing), 'missing key')} kept as they were"] if self.missing else []
        parts += [f"{count_noun(len(self.tied), 'tied group')}"] if self.tied else []
        parts += [f"{count_noun(len(self.rebuilt), 'value')} rebuilt"] if self.rebuilt else []
        where = f" on {', '.join(self.devices)}" if self.devices else ""
        head = f"{self.checkpoint} -> {self.model} by {self.rules}"
        return f"{head}: {', '.join(parts)}{where}, {self.seconds:.3f} s"


def _describe_rounding(old: str, new: str) -> str:
    return "" if new in _EXACT.get(old, ()) else " (rounded)"


def load_into(
    model: nn.Module,
    ckpt: str | Path | Reader | Mapping[str, Any],
    rules: CompiledRules | str | Path | None = None,
    *,
    device: torch.device | str | int | None = None,
    dtype: Dtype = None,
    root: str | None = None,
    strict: bool = True,
    requires_grad: bool | None = None,
    train: bool | None = None,
    copy: bool = False,
    assign: bool = False,
    factory: Factory | None = None,
    buffers: Mapping[str, torch.Tensor] | None = None,
    extra_state: Literal["refuse", "keep"] = "refuse",
    run: Run | None = None,
) -> Loaded:
    """Load a checkpoint into a module, on the meta device or not. All problems are raised before anything is touched.

    `ckpt` is a path, an open `Reader`, or a state dict in memory; `rules` a `RuleSet`, a pack's name, a path, or None
    where the names are the model's own. `root` names the wrapper to take where a pickle holds several.

    What has memory stays and is copied into, so that an optimizer, a `DistributedDataParallel`, an average of the
    weights go on with the same tensors: object, memory, dtype, device and hooks are as before. What is on meta is
    replaced by new tensors, and with `assign=True` all of it is: every parameter is a new `nn.Parameter`, contiguous
    as the checkpoint brings it; make the optimizer afterwards. Either way `requires_grad` stays unless
    `requires_grad=` says otherwise, and names that were one tensor are one tensor again.

    New tensors on the CPU are not copied: they lie in the file, mapped copy on write, so training never writes to it,
    but the file must not be overwritten in place while the model lives (renaming, replacing and deleting it is fine);
    `copy=True` takes the bytes into memory. On CUDA, bytes go through two page-locked buffers. A state dict in memory
    is shared. What is copied into the module's own tensors is read into memory first, all of it.

    `device` is where the whole module will be; without it a tensor goes where the old one was, from meta to the CPU.
    `dtype` casts floating tensors that the checkpoint brings, on their device (`"model"`: each to what the model
    holds); without it new tensors keep the checkpoint's. A tensor that stays casts what it is given to its own dtype,
    and is refused where `device=` or `dtype=` ask for another. Nothing is cast between floats, integers and bools.

    Nothing stays on meta. Values that only the constructor knows (non-persistent buffers, plain tensors) come from
    `buffers={fqn: tensor}` or from building the module again: with `factory()`, or from the config that models of
    transformers and diffusers carry. `strict=False` lets unexpected keys go, and keeps missing ones that are not on
    meta. `extra_state="keep"` leaves what modules keep as extra state; checkpoints cannot bring it. `run` makes
    what operations make of a file, in another way than the usual one.

    Returns `Loaded`. Raises `TypeError` for arguments of another kind, `FailedCheck` with everything that is wrong,
    `UnreadableCheckpoint`, `InvalidRules` or `UsageError`; the model is then as it was before.

    >>> with torch.device("meta"):
    ...     layer = nn.Linear(2, 1)
    >>> loaded = load_into(layer, {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.zeros(1)})
    >>> layer(torch.ones(1, 2)), loaded.tensors
    (tensor([[3.]], grad_fn=<AddmmBackward0>), 2)
    """
    started = time.monotonic()
    _check_types(model, ckpt, rules)
    wanted = LoadRequest(_resolve_device(device), _check_dtype(dtype), requires_grad, copy, assign)
    rule_set = _resolve_rules(rules)
    target = make_target(model, assign)
    _check_flags(model, requires_grad)
    with ExitStack() as stack:
        source, values, notes = _open_source(ckpt, root, run, stack)
        plan = make_plan(rule_set, source)
        job = plan_load(target, plan, values, wanted, strict, extra_state)
        lost = target.find_meta_tensors()
        fills, unknown = rebuilt(target, lost, factory, buffers or {})
        if problems := (*job.problems, *unknown):
            raise FailedCheck(problems)
        report = execute_load(job, values, wanted, fills)
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
        notes=(*notes, *job.notes, *job.check.warnings),
    )


def _check_flags(model: nn.Module, requires_grad: bool | None) -> None:
    """Which parameters are trained is what `DistributedDataParallel` waits for, as it was when it was built."""
    if requires_grad is None or not any(isinstance(e, nn.parallel.DistributedDataParallel) for e in model.modules()):
        return
    title = f"requires_grad={requires_grad} would change what DistributedDataParallel was built with"
    raise FailedCheck(Diagnostic("RK334", title, help=("leave requires_grad= out, or set it first and wrap then",)))


def _resolve_device(device: torch.device | str | int | None) -> torch.device | None:
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


def _check_dtype(dtype: Dtype) -> Dtype:
    plain = [DTYPES[name] for name in PLAIN_FLOATS]
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


def _check_types(model: object, ckpt: object, rules: object) -> None:
    """Say at once what was mixed up: the arguments change places easily."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}: build it first" if isinstance(model, type) else _describe_type(model)
        raise TypeError(f"load_into(model, ckpt, rules): `model` is a torch.nn.Module, not {what}")
    if not isinstance(ckpt, str | Path | Mapping) and not hasattr(ckpt, "chunks"):
        what = (
            f"{_describe_type(ckpt)}: call `.state_dict()` on it first"
            if isinstance(ckpt, nn.Module)
            else _describe_type(ckpt)
        )
        raise TypeError(f"load_into(model, ckpt, rules): `ckpt` is a path, a reader or a state dict, not {what}")
    if rules is not None and not isinstance(rules, CompiledRules | str | Path):
        raise TypeError(
            f"load_into(model, ckpt, rules): `rules` is a RuleSet, a name or a path, not {_describe_type(rules)}"
        )


def _describe_type(thing: object) -> str:
    return f"a {type(thing).__name__}"


def _resolve_rules(rules: CompiledRules | str | Path | None) -> CompiledRules:
    if isinstance(rules, CompiledRules):
        return rules
    if rules is None:
        return compile_rules(read_text("remapkit: 1\nname: identity\nunmatched: keep\nrules: []\n"))

    return load_rules(rules)


def _open_source(
    ckpt: str | Path | Reader | Mapping[str, Any], root: str | None, run: Run | None, stack: ExitStack
) -> tuple[StateDictSpec, TensorValues, tuple[Diagnostic, ...]]:
    if isinstance(ckpt, Mapping):
        if root not in (None, "", "."):
            raise UsageError(Diagnostic("RK632", f"root={root!r}: a state dict in memory has no wrappers"))
        tensors = {fqn: value for fqn, value in ckpt.items() if isinstance(value, torch.Tensor)}
        _check_plain_tensors(tensors)
        if ckpt and not tensors:
            raise FailedCheck(explain_no_tensors(ckpt))
        return (
            header_of(tensors, "a state dict in memory"),
            MemoryValues(tensors),
            tuple(_note_ignored(ckpt, tensors)),
        )
    if isinstance(ckpt, str | Path):
        reader = stack.enter_context(open_checkpoint(ckpt, root=root))
    else:
        reader = ckpt
        if root not in (None, reader.root):
            raise UsageError(Diagnostic("RK632", f"root={root!r}: the reader was opened under {reader.root!r}"))
    if reader.format == "manifest":
        title = "a manifest has no data to load, only names, dtypes and shapes"
        raise make_unreadable("RK408", title, reader.path)
    return reader.header(), FileValues(reader, run), reader.notes


def _check_plain_tensors(state: Mapping[str, torch.Tensor]) -> None:
    on_meta = [fqn for fqn, value in state.items() if value.is_meta]
    odd = {fqn: reason[0] for fqn, value in state.items() if (reason := explain_tensor_refusal(value))}
    problems = []
    if on_meta:
        title = f"{count_noun(len(on_meta), 'tensor')} of the state dict on meta: there is no data to load"
        problems.append(Diagnostic("RK329", title, notes=(list_names(on_meta),), values={"names": on_meta}))
    if odd:
        title = f"{count_noun(len(odd), 'tensor')} of the state dict not plain"
        lines = [f"{fqn}: {reason}" for fqn, reason in odd.items()]
        problems.append(Diagnostic("RK329", title, notes=(list_names(lines),), values={"names": list(odd)}))
    if problems:
        raise FailedCheck(problems)


def _note_ignored(state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Iterator[Diagnostic]:
    others = [str(key) for key in state if key not in tensors]
    if others:
        title = f"{count_noun(len(others), 'entry').replace('entrys', 'entries')} beside the tensors ignored"
        yield Diagnostic("RK413", title, notes=(list_names(others),), severity=Severity.NOTE)
