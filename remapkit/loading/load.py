"""`load_into`: plans, checks, then loads all tensors in one step that is undone if it fails."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from remapkit.compute.move_bytes import Run
from remapkit.diagnostics.arguments import check_arguments, describe_value
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.diagnostics.wording import count_noun, format_bytes, list_names, show_key
from remapkit.files.errors import FileFault, make_unreadable
from remapkit.formats.nested_memory import JoinedState, join_nested
from remapkit.formats.options import ReadOptions, clean_root
from remapkit.formats.reader import Reader
from remapkit.formats.renamed import rename_keys
from remapkit.loading.module import explain_tensor_refusal, make_target
from remapkit.loading.non_persistent import Factory, rebuild_lost_values
from remapkit.loading.prepare import DtypeArgument, LoadPlan, LoadRequest, plan_load
from remapkit.loading.sources import FileValues, MemoryValues, TensorValues
from remapkit.loading.transfer import TransferReport, execute_load
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.roots import RootFit, settle_root
from remapkit.registry.identify import hint_layout
from remapkit.registry.load import load_rules
from remapkit.rulefile.read import read_text
from remapkit.rulefile.syntax import RuleFile
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.sources.mounts import SourceLike, is_path_mapping
from remapkit.sources.open import complete_strip, open_source, show_below
from remapkit.tensors.dtypes import PLAIN_FLOATS, is_exact_cast
from remapkit.tensors.from_torch import TORCH_DTYPES, explain_no_tensors, get_shape, header_of
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of `load_into`; `print` it for one paragraph.

    `tensors` and `nbytes` count the tensors loaded from the checkpoint, in its dtypes, tied names once. `shared` of
    them use the source's memory (the mapped file, or the given state dict), the others were copied. `casts` counts
    tensors by (old, new) dtype. `dropped` are source keys that the rules drop, `unexpected` and `missing` the keys
    that `strict=False` ignored, `tied` the groups of names that are one tensor, `rebuilt` the values that no
    checkpoint contains and the module's constructor computed.
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
    devices: tuple[str, ...]
    rebuilt: tuple[str, ...] = ()
    seconds: float = 0.0
    notes: tuple[Diagnostic, ...] = ()

    @property
    def copied(self) -> int:
        """The number of tensors that were copied."""
        return self.tensors - self.shared

    @property
    def cast(self) -> int:
        """The number of tensors that were cast."""
        return sum(self.casts.values())

    @property
    def rounded(self) -> int:
        """The number of tensors that were cast to a dtype that cannot represent every value of the old one."""
        return sum(number for (old, new), number in self.casts.items() if not is_exact_cast(old, new))

    def __str__(self) -> str:
        parts = [f"{count_noun(self.tensors, 'tensor')} ({format_bytes(self.nbytes)})"]
        parts += [f"{self.shared} without a copy"] if self.shared else []
        parts += [f"{self.copied} copied"] if self.copied else []
        parts += [
            f"{number} cast {old} -> {new}{_describe_rounding(old, new)}" for (old, new), number in self.casts.items()
        ]
        parts += [f"{count_noun(len(self.dropped), 'key')} dropped"] if self.dropped else []
        parts += [f"{count_noun(len(self.unexpected), 'unexpected key')} ignored"] if self.unexpected else []
        parts += [f"{count_noun(len(self.missing), 'missing key')} kept unchanged"] if self.missing else []
        parts += [f"{count_noun(len(self.tied), 'tied group')}"] if self.tied else []
        parts += [f"{count_noun(len(self.rebuilt), 'value')} rebuilt"] if self.rebuilt else []
        where = f" on {', '.join(self.devices)}" if self.devices else ""
        head = f"{self.checkpoint} -> {self.model} by {self.rules}"
        return f"{head}: {', '.join(parts)}{where}, {self.seconds:.3f} s"


def _describe_rounding(old: str, new: str) -> str:
    return "" if is_exact_cast(old, new) else " (rounded)"


@check_arguments()
def load_into(
    model: nn.Module,
    ckpt: SourceLike | Reader | Mapping[str, Any],
    rules: CompiledRules | str | Path | None = None,
    *,
    device: torch.device | str | int | None = None,
    dtype: DtypeArgument = None,
    root: str | None = None,
    strip: Sequence[str] = (),
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
    """Load a checkpoint into a module, on the meta device or not. Every problem is raised before anything changes.

    `ckpt` is a path, several files (see `open_checkpoint`), an open `Reader`, or a state dict in memory. `rules` is a
    `RuleSet`, a pack's name, a path, or None if the checkpoint uses the model's names. `root` and `strip` say where
    the state dict is, and which segments are taken out of its keys, as in `open_checkpoint`; torch's private names
    are taken out by themselves.

    A tensor that has memory is kept, and values are copied into it: optimizers, `DistributedDataParallel` and
    averages of the weights keep the same object, memory, dtype, device and hooks. Tensors on meta are replaced by new
    ones; `assign=True` replaces everything by new parameters, so create the optimizer afterwards. `requires_grad` is
    unchanged unless `requires_grad=` is given, and names that were one tensor are one tensor again.

    New tensors on the CPU are not copied: they map the file copy-on-write. Training never writes to the file, but do
    not overwrite it in place while the model is in use (renaming, replacing and deleting it is fine), or pass
    `copy=True`. A state dict in memory is shared. All values for existing tensors are read into memory before they
    are copied. On CUDA, bytes go through two page-locked buffers.

    `device` is the device for the whole module; by default each tensor goes to the old one's device, from meta to the
    CPU. `dtype` casts the checkpoint's floating-point tensors (`"model"`: each to the model's dtype); by default new
    tensors keep the checkpoint's dtype. A kept tensor keeps its device and dtype, and it is an error if `device=` or
    `dtype=` request others. Floats, integers and bools are never cast into one another.

    Nothing stays on meta. Values that only the constructor can compute (non-persistent buffers, plain tensors) come
    from `buffers={fqn: tensor}` or from building the module again: by `factory()`, or from the config that models of
    transformers and diffusers have. `strict=False` ignores unexpected keys, and missing ones that are not on meta.
    `extra_state="keep"` leaves extra state unchanged, which checkpoints cannot contain. `train` sets the training
    mode. `run` replaces the function that computes operations on tensors of files.

    Returns `Loaded`, whose notes are logged too. Raises `TypeError` for arguments of wrong types, `FailedCheck` with
    every problem, `UnreadableCheckpoint`, `InvalidRules` or `UsageError`; the model is then unchanged.

    >>> with torch.device("meta"):
    ...     layer = nn.Linear(2, 1)
    >>> loaded = load_into(layer, {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.zeros(1)})
    >>> layer(torch.ones(1, 2)), loaded.tensors
    (tensor([[3.]], grad_fn=<AddmmBackward0>), 2)
    """
    started = time.monotonic()
    _check_types(model, ckpt, rules, factory, extra_state)
    request = LoadRequest(_resolve_device(device), _check_dtype(dtype), requires_grad, copy, assign)
    options = ReadOptions(None if root is None else clean_root(root), strip=tuple(strip))
    rule_set = _resolve_rules(rules)
    target = make_target(model, assign)
    _check_flags(model, requires_grad)
    with ExitStack() as stack:
        opened = _open_values(ckpt, options, run, stack, rule_set.file, target.header)

        def plan_opened(opened: _Opened) -> tuple[CompiledRules, ResolvedPlan]:
            return rule_set, make_plan(rule_set, opened[0])

        opened, planned = settle_root(root, rule_set, opened, opened[0], plan_opened, _take_root)
        _, plan = planned or plan_opened(opened)
        source, values, notes = opened
        versions = getattr(ckpt, "_metadata", None) or {}
        load_plan = plan_load(target, plan, values, request, strict, extra_state, versions)
        lost = target.find_meta_tensors()
        fills, unfilled = rebuild_lost_values(target, lost, factory, buffers or {})
        if problems := (*load_plan.problems, *unfilled):
            raise FailedCheck(hint_layout(problems, source, rule_set.name))
        report = execute_load(load_plan, values, request, fills)
    if train is not None:
        model.train(train)
    loaded = _summarize(plan, load_plan, report)
    rebuilt = tuple(value.fqn for value in lost)
    loaded = replace(loaded, rebuilt=rebuilt, notes=(*notes, *loaded.notes), seconds=time.monotonic() - started)
    log_diagnostics(loaded.notes)
    return loaded


def _summarize(plan: ResolvedPlan, load_plan: LoadPlan, report: TransferReport) -> Loaded:
    """Return the result, without the rebuilt values and the duration."""
    return Loaded(
        checkpoint=plan.source.name,
        model=load_plan.target.header.name,
        rules=plan.name,
        tensors=len(load_plan.assignments),
        nbytes=sum(assignment.move.spec.nbytes for assignment in load_plan.assignments),
        shared=report.shared,
        casts=report.casts,
        dropped=tuple(dropped.fqn for dropped in plan.dropped),
        unexpected=load_plan.check.unexpected_keys,
        missing=load_plan.check.missing_keys,
        tied=load_plan.target.header.tied,
        devices=report.devices,
        notes=(*load_plan.notes, *load_plan.check.warnings),
    )


def _check_flags(model: nn.Module, requires_grad: bool | None) -> None:
    """Raise if `requires_grad` would change under `DistributedDataParallel`, which waits for its known gradients."""
    if requires_grad is None or not any(
        isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()
    ):
        return
    title = f"requires_grad={requires_grad} would change the parameters that DistributedDataParallel was built with"
    raise FailedCheck(
        Diagnostic("RK334", title, help=("leave out requires_grad=, or set it before wrapping the model",))
    )


def _resolve_device(device: torch.device | str | int | None) -> torch.device | None:
    if device is None:
        return None
    try:
        resolved = torch.device(device)
        if resolved.type != "meta":
            torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(Diagnostic("RK630", f"device={device!r} cannot be used: {said}")) from None
    if resolved.type == "meta":
        raise UsageError(Diagnostic("RK630", "device='meta' has no memory to load into"))
    return torch.device(resolved.type, torch.cuda.current_device()) if str(resolved) == "cuda" else resolved


def _check_dtype(dtype: DtypeArgument) -> DtypeArgument:
    plain = [TORCH_DTYPES[name] for name in PLAIN_FLOATS]
    if dtype is None or dtype == "model" or dtype in plain:
        return dtype
    listed = ", ".join(map(str, plain))
    raise UsageError(
        Diagnostic(
            "RK631",
            f"dtype must be a floating-point dtype or 'model', got {dtype!r}",
            help=(f"use one of {listed}, or 'model' for the dtype that the model has",),
        )
    )


def _check_types(model: object, ckpt: object, rules: object, factory: object, extra_state: object) -> None:
    """Raise `TypeError` for swapped or wrong arguments before anything is opened."""
    call = "load_into(model, ckpt, rules)"
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}: build it first" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{call}: `model` must be a torch.nn.Module, got {got}")
    if not isinstance(ckpt, str | Path | Mapping | Sequence) and not hasattr(ckpt, "chunks"):
        hint = ": call `.state_dict()` on it first" if isinstance(ckpt, nn.Module) else ""
        raise TypeError(f"{call}: `ckpt` must be a path, a reader or a state dict, got {type(ckpt).__name__}{hint}")
    if rules is not None and not isinstance(rules, CompiledRules | str | Path):
        raise TypeError(f"{call}: `rules` must be a RuleSet, a name or a path, got {type(rules).__name__}")
    if extra_state not in ("refuse", "keep"):
        raise TypeError(f"{call}: `extra_state` must be 'refuse' or 'keep', got {describe_value(extra_state)}")
    if factory is not None and not callable(factory):
        raise TypeError(f"{call}: `factory` must be a function, got {describe_value(factory)}")


def _resolve_rules(rules: CompiledRules | str | Path | None) -> CompiledRules:
    if isinstance(rules, CompiledRules):
        return rules
    if rules is None:
        return compile_rules(read_text("remapkit: 1\nname: identity\nunmatched: keep\nrules: []\n"))

    return load_rules(rules)


_Opened = tuple[StateDictSpec, TensorValues, tuple[Diagnostic, ...]]
"""A checkpoint's header, its values, and what there is to say about it."""


def _take_root(opened: _Opened, fit: RootFit) -> _Opened:
    header, values, more = opened[1].take_root(fit)
    return header, values, (*opened[2], *more)


def _open_values(
    ckpt: SourceLike | Reader | Mapping[str, Any],
    options: ReadOptions,
    run: Run | None,
    stack: ExitStack,
    rules: RuleFile,
    known: Iterable[str],
) -> _Opened:
    """Return the checkpoint's header and values; torch's private names stay where `known` names have them."""
    if isinstance(ckpt, Mapping) and not is_path_mapping(ckpt):
        joined = join_nested(ckpt, get_shape, options.root)
        if joined is not None:
            options, ckpt = replace(options, root=""), joined.tensors
        tensors = {fqn: value for fqn, value in ckpt.items() if isinstance(value, torch.Tensor)}
        _check_plain_tensors(tensors)
        if ckpt and not tensors:
            raise FailedCheck(explain_no_tensors(ckpt))
        notes = (*_note_joined(joined), *_note_ignored(ckpt, tensors))
        tensors = _rename_state(tensors, complete_strip(options, rules, known))
        return header_of(tensors, "a state dict in memory"), MemoryValues(tensors), notes
    if isinstance(ckpt, str | Path | Sequence | Mapping):
        reader = stack.enter_context(open_source(ckpt, options, rules=rules, spoken=known))
    else:
        reader = show_below(ckpt, options, rules=rules, spoken=known)
    if reader.format == "manifest":
        title = "a manifest has no data to load, only names, dtypes and shapes"
        raise make_unreadable("RK408", title, reader.path)
    return reader.header(), FileValues(reader, run), reader.notes


def _note_joined(joined: JoinedState | None) -> Iterator[Diagnostic]:
    if joined is not None and joined.root:
        title = f"the state dict was found under {joined.root!r}"
        yield Diagnostic("RK414", title, severity=Severity.NOTE)
    for title in joined.ignored if joined is not None else ():
        yield Diagnostic("RK413", title, severity=Severity.NOTE)


def _rename_state(state: dict[str, torch.Tensor], options: ReadOptions) -> dict[str, torch.Tensor]:
    """Return the tensors below the root, without the segments to strip; raises `UsageError` (RK416, RK417)."""
    try:
        names = rename_keys(map(str, state), options.root or "", options.strip).names
    except FileFault as fault:
        key = "" if fault.key is None else f"{show_key(fault.key)}: "
        raise UsageError(Diagnostic(fault.code, f"{key}{fault.title}", help=fault.help, notes=fault.notes)) from None
    return {name: state[fqn] for name, fqn in names.items()}


def _check_plain_tensors(state: Mapping[str, torch.Tensor]) -> None:
    on_meta = [fqn for fqn, value in state.items() if value.is_meta]
    odd = {fqn: reason[0] for fqn, value in state.items() if (reason := explain_tensor_refusal(value))}
    problems = []
    if on_meta:
        title = f"{count_noun(len(on_meta), 'tensor')} of the state dict without data, on meta"
        problems.append(Diagnostic("RK329", title, notes=(list_names(on_meta),), values={"names": on_meta}))
    if odd:
        title = f"{count_noun(len(odd), 'value')} of the state dict cannot be loaded from"
        lines = [f"{fqn}: {reason}" for fqn, reason in odd.items()]
        problems.append(Diagnostic("RK329", title, notes=(list_names(lines),), values={"names": list(odd)}))
    if problems:
        raise FailedCheck(problems)


def _note_ignored(state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Iterator[Diagnostic]:
    others = [str(key) for key in state if key not in tensors]
    if others:
        title = f"{count_noun(len(others), 'value')} of the state dict ignored: not tensors"
        yield Diagnostic("RK413", title, notes=(list_names(others),), severity=Severity.NOTE)
