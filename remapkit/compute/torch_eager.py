"""Runs operations on torch tensors in memory, one after the other; returns views where torch can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from remapkit.compute.merged import find_unequal_merges, has_merge
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck
from remapkit.ops.base import Op
from remapkit.ops.combine import Combine
from remapkit.ops.join import FillOp, Join, Nested, SplitPart, TakeIndex
from remapkit.ops.steps import Add, Cast, OpStep, Pad, Permute, Pick, Reshape, Scale
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.tensors.dtypes import DTYPES
from remapkit.tensors.from_torch import TORCH_DTYPES, get_dtype_name
from remapkit.tensors.spec import TensorSpec

_OPAQUE: Mapping[int, torch.dtype] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def run_plan(plan: ResolvedPlan, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Run every move of a plan. Names that the rules tie become one tensor; copies of a source are separate.

    Raises `FailedCheck` (RK347) if tensors to merge differ.
    """
    if problems := find_unequal_tensors(plan.moves, state_dict, plan.source.name):
        raise FailedCheck(problems)
    tie = {fqn: group[0] for group in plan.tied for fqn in group}
    made: dict[str, Any] = {}
    seen: set[str] = set()
    maker = Maker(state_dict)
    for move in plan.moves:
        first = tie.get(move.target, move.target)
        if first in made and (move.ops or move.sources[0] in seen):
            made[move.target] = made[first]
        elif move.ops:
            made[move.target] = maker.tensor(move)
        else:
            value = state_dict[move.sources[0]]
            copied = move.sources[0] in seen and isinstance(value, torch.Tensor)
            made[move.target] = value.detach().clone() if copied else value
            seen.add(move.sources[0])
    return made


def find_unequal_tensors(moves: Sequence[Move], state_dict: Mapping[str, Any], place: str) -> list[Diagnostic]:
    """Return a problem for each rule that merges tensors of a state dict that differ; on meta there are no values."""

    def read(names: Sequence[str], ops: Sequence[Op]) -> Iterator[memoryview]:
        made = run_ops(ops, [state_dict[fqn].detach() for fqn in names]).contiguous().cpu()
        raw: Any = made.view(-1).view(torch.uint8).numpy()
        yield memoryview(raw)

    merging = [move for move in moves if has_merge(move) and not any(state_dict[fqn].is_meta for fqn in move.sources)]
    specs = {
        fqn: TensorSpec(get_dtype_name(state_dict[fqn].dtype), tuple(state_dict[fqn].shape))
        for move in merging
        for fqn in move.sources
    }
    return find_unequal_merges(merging, specs, read, place)


class Maker:
    """Computes the tensors of moves with operations; the common result of the parts of a split is computed once.

    The parts of a split are adjacent in a plan, so caching one result is enough.
    """

    def __init__(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        self._state = state_dict
        self._trunk: tuple[Any, torch.Tensor] | None = None

    def tensor(self, move: Move) -> torch.Tensor:
        """Return the tensor of one move, on the device of its sources; a view of them if possible."""
        with torch.no_grad():
            cut = next((n for n, op in enumerate(move.ops) if isinstance(op, SplitPart | TakeIndex)), 0)
            if not cut:
                return run_ops(move.ops, [self._state[fqn].detach() for fqn in move.sources])
            key = (move.sources, move.ops[:cut])
            if self._trunk is None or self._trunk[0] != key:
                sources = [self._state[fqn].detach() for fqn in move.sources]
                self._trunk = (key, run_ops(move.ops[:cut], sources))
            return run_ops(move.ops[cut:], [self._trunk[1]])


def run_ops(ops: Sequence[Op], sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """Run the operations of a move on its sources.

    >>> from remapkit.ops.attention import FlipHalves
    >>> run_ops((FlipHalves(),), [torch.tensor([1, 2, 3, 4])])
    tensor([3, 4, 1, 2])
    """
    first = ops[0] if ops else None
    if isinstance(first, FillOp):
        return chain_ops(ops[1:], fill_tensor(first))
    if isinstance(first, Join):
        return chain_ops(ops[1:], _join_sources(first, sources))
    if isinstance(first, Nested):
        inputs = [run_ops(each, own) for each, own in first.divide(sources)]
        return chain_ops(ops[1:], _join_sources(first.join, inputs))
    return chain_ops(ops, sources[0])


def _join_sources(join: Join, sources: Sequence[torch.Tensor]) -> torch.Tensor:
    width = len(join.branches)
    if join.merge:
        sources, width = sources[::width], 1
    made = [chain_ops(join.branches[n % width], source) for n, source in enumerate(sources)]
    if join.combine is not None:
        made = [_combine_pair(join.combine, made[at], made[at + 1]) for at in range(0, len(made), 2)]
    dtype = made[0].dtype
    made = [_view_opaque(tensor) for tensor in made]
    if join.concat is not None:
        made = [torch.cat(made[at : at + width], join.concat) for at in range(0, len(made), width)]
    whole = made[0] if join.stack is None else torch.stack(made, join.stack)
    return whole.view(dtype)


def _combine_pair(combine: Combine, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    one, other = (TensorSpec(get_dtype_name(each.dtype), tuple(each.shape)) for each in (first, second))
    widths, made = combine.find_widths(one, other), combine.infer(one, other)
    wide = TORCH_DTYPES[combine.find_precision(one, other)]
    if combine.kind == "fold_weight_norm":
        others = [dim for dim in range(first.dim()) if dim != combine.dim]
        # In double precision, as for files: sums in another order then give the same factors. (MPS has no doubles.)
        double = (first.cpu() if first.device.type == "mps" else first).double()
        norms = double.square().sum(others, keepdim=True).sqrt() if others else double.abs()
        second = second.to(norms.device).double().reshape(norms.shape) / norms
    spread = second.to(first.device, wide) / combine.find_over(one)
    if spread.dim() != first.dim():  # one element
        spread = spread.reshape((1,) * first.dim())
    for dim, (width, size) in enumerate(zip(widths, first.shape, strict=True)):
        if width > 1 and spread.shape[dim] > 1:
            spread = spread.repeat_interleave(width, dim).narrow(dim, 0, size)
    values = first.to(wide)
    values = values / spread if combine.kind == "divide" else values * spread
    return values.to(TORCH_DTYPES[made.dtype])


def chain_ops(ops: Sequence[Op], tensor: torch.Tensor) -> torch.Tensor:
    """Run operations on one tensor, one after the other."""
    for op in ops:
        for step in op.steps(TensorSpec(get_dtype_name(tensor.dtype), tuple(tensor.shape))):
            tensor = apply_step(step, tensor)
    return tensor


def apply_step(step: OpStep, tensor: torch.Tensor) -> torch.Tensor:
    """Run one step."""
    if isinstance(step, Permute):
        return tensor.permute(step.order)
    if isinstance(step, Reshape):
        return tensor.reshape(step.shape)
    if isinstance(step, Pick):
        return _pick_indices(step, tensor)
    if isinstance(step, Pad):
        shape = (*tensor.shape[: step.dim], step.after, *tensor.shape[step.dim + 1 :])
        more = torch.full(shape, step.value, dtype=torch.float64).to(tensor.device, tensor.dtype)
        return torch.cat([_view_opaque(tensor), _view_opaque(more)], step.dim).view(tensor.dtype)
    if isinstance(step, Cast):
        return _cast_tensor(tensor, TORCH_DTYPES[step.dtype])
    # In single precision: for some operations torch rounds the number itself to half precision, for others not.
    wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    if isinstance(step, Scale):
        return (wide * step.factor).to(tensor.dtype)
    assert isinstance(step, Add)
    return (wide + step.term).to(tensor.dtype)


def _cast_tensor(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.float8_e4m3fn != tensor.dtype:
        # Newer versions of torch saturate, older ones return NaN: clamped, all give the same result as for files.
        tensor = tensor.float().clamp(-DTYPES["F8_E4M3"].largest, DTYPES["F8_E4M3"].largest)
    return tensor.to(dtype)


def _pick_indices(step: Pick, tensor: torch.Tensor) -> torch.Tensor:
    if len(step.ranges) == 1 and step.ranges[0].step == 1:
        return tensor.narrow(step.dim, step.ranges[0].start, len(step.ranges[0]))
    indices = torch.cat([torch.arange(part.start, part.stop, part.step) for part in step.ranges])
    return _view_opaque(tensor).index_select(step.dim, indices.to(tensor.device)).view(tensor.dtype)


def _view_opaque(tensor: torch.Tensor) -> torch.Tensor:
    """View the same bytes as integers: torch does not implement indexing and joining for every dtype."""
    wanted = _OPAQUE.get(tensor.element_size())
    return tensor if wanted is None or tensor.dtype == torch.bool else tensor.view(wanted)


def fill_tensor(fill: FillOp) -> torch.Tensor:
    """Create the tensor that an entry of `add` describes."""
    shape, dtype = fill.spec.shape, TORCH_DTYPES[fill.spec.dtype]
    if fill.value == "zeros":
        return torch.zeros(shape, dtype=dtype)
    if fill.value == "ones":
        return torch.ones(shape, dtype=dtype)
    if fill.value == "arange":
        return torch.arange(fill.spec.numel).view(shape).to(dtype)
    if fill.value == "tril":
        return torch.ones(shape).tril().to(dtype)
    integral = isinstance(fill.value, int)
    return torch.full(shape, fill.value, dtype=torch.int64 if integral else torch.float64).to(dtype)  # type: ignore[arg-type]


__all__ = ["Maker", "apply_step", "chain_ops", "fill_tensor", "find_unequal_tensors", "run_ops", "run_plan"]
