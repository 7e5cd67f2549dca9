"""Executes a load plan: all tensors are created, on their devices and in their dtypes, then assigned at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from remapkit.loading.counters import make_counters
from remapkit.loading.cuda_upload import CudaQueue, Upload
from remapkit.loading.module import LoadTarget, SuppliedValue, assign
from remapkit.loading.prepare import Assignment, LoadPlan, LoadRequest
from remapkit.loading.sources import TensorValues
from remapkit.tensors.from_torch import TORCH_DTYPES, get_dtype_name


@dataclass(slots=True)
class TransferReport:
    shared: int
    casts: Counter[tuple[str, str]]
    devices: tuple[str, ...]


def execute_load(
    plan: LoadPlan, values: TensorValues, request: LoadRequest, fills: Sequence[SuppliedValue]
) -> TransferReport:
    """Create all tensors, then assign them at once."""
    report = TransferReport(0, Counter(), ())
    tensors: dict[str, torch.Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        uploads = _Uploads(stack)
        for assignment in plan.assignments:
            made = _make_tensor(assignment, values, uploads, report)
            tensors.update(_spread_tensor(assignment, made, plan.target))
        tensors.update(_move_missing(plan, request.device))
        tensors.update(make_counters(plan.target, plan.counters, request.device))
        placed = [
            *_place_fills(fills, plan.target, request.device),
            *_move_other_buffers(plan.target, request.device),
        ]
    values.check_unchanged()
    report.devices = tuple(dict.fromkeys(str(assignment.device) for assignment in plan.assignments))
    staying = [fqn for assignment in plan.assignments if assignment.into for fqn in assignment.targets]
    assign(plan.target, tensors, placed, staying)
    if request.requires_grad is not None:
        for parameter in plan.target.module.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(request.requires_grad)
    return report


class _Uploads:
    """One upload per device, created on first use."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._made: dict[torch.device, Upload] = {}

    def __getitem__(self, device: torch.device) -> Upload:
        if device not in self._made:
            self._stack.enter_context(torch.cuda.device(device))
            self._made[device] = self._stack.enter_context(Upload(device, CudaQueue(device)))
        return self._made[device]


def _is_staged(device: torch.device) -> bool:
    """Return whether page-locked buffers make copies to the device faster."""
    return device.type == "cuda"


def _make_tensor(
    assignment: Assignment, values: TensorValues, uploads: _Uploads, report: TransferReport
) -> torch.Tensor:
    """Return the tensor on its device, in its dtype."""
    brought = TORCH_DTYPES[assignment.move.spec.dtype]
    extent = values.extent(assignment.move) if _is_staged(assignment.device) else None
    if assignment.dtype != brought:
        report.casts[assignment.move.spec.dtype, get_dtype_name(assignment.dtype)] += 1
    if extent is not None:
        return uploads[assignment.device].tensor(extent, assignment.move.spec).to(assignment.dtype)
    value = values.tensor(assignment.move, own=assignment.into and assignment.own)
    if value.shared and value.tensor.device == assignment.device and assignment.dtype == brought:
        report.shared += not (assignment.own or assignment.into)
        return values.tensor(assignment.move, own=True).tensor if assignment.own else value.tensor
    made = value.tensor.to(assignment.device).to(assignment.dtype)
    if made is not value.tensor:
        value.release()
    return made


def _spread_tensor(
    assignment: Assignment, made: torch.Tensor, target: LoadTarget
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensor under every name: names that shared an object still do; parameters stay parameters."""
    objects: dict[int, torch.Tensor] = {}
    for fqn in assignment.targets:
        held = target.slots[fqn].value
        if id(held) not in objects:
            objects[id(held)] = _wrap_as_held(held, made)
        yield fqn, objects[id(held)]


def _wrap_as_held(held: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    if not isinstance(held, nn.Parameter):
        return made
    parameter = nn.Parameter(made, requires_grad=held.requires_grad)
    vars(parameter).update(vars(held))  # attributes that libraries set on parameters: no weight decay, parallel ranks
    return parameter


def _move_missing(plan: LoadPlan, device: torch.device | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors that are not in the checkpoint, moved to the device; names that shared an object still do."""
    objects: dict[int, torch.Tensor] = {}
    for fqn in plan.kept:
        held = plan.target.slots[fqn].value
        if device is not None and held.device != device:
            if id(held) not in objects:
                objects[id(held)] = _wrap_as_held(held, held.detach().to(device))
            yield fqn, objects[id(held)]


def _place_fills(
    fills: Sequence[SuppliedValue], target: LoadTarget, device: torch.device | None
) -> Iterator[SuppliedValue]:
    """Yield the rebuilt values on the device of the rest of the module."""
    covered = target.covered_ids
    for fill in fills:
        yield SuppliedValue(fill.owner, fill.name, _move_value(fill.value, device or torch.device("cpu"), covered))


def _move_value(value: Any, device: torch.device, covered: frozenset[int]) -> Any:
    if isinstance(value, torch.Tensor):
        return value if id(value) in covered else value.to(device)
    if type(value) is dict:
        return {key: _move_value(item, device, covered) for key, item in value.items()}
    return (
        type(value)(_move_value(item, device, covered) for item in value) if type(value) in (list, tuple) else value
    )


def _move_other_buffers(target: LoadTarget, device: torch.device | None) -> Iterator[SuppliedValue]:
    """Yield buffers outside the state dict that have values on another device, moved to the requested one."""
    covered = target.covered_ids
    for owner, module in target.module.named_modules() if device is not None else ():
        for name, value in module._buffers.items():
            if value is not None and not value.is_meta and id(value) not in covered and value.device != device:
                yield SuppliedValue(owner, name, value.to(device))
