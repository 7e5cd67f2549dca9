"""Headers of torch modules and state dicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.tensors.dtypes import BY_TORCH_NAME
from remapkit.tensors.spec import StateDictSpec, TensorSpec

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, torch_name) for torch_name, name in BY_TORCH_NAME.items() if hasattr(torch, torch_name)
}
"""The torch dtype for each dtype name in a header; floats of less than a byte have none."""


def get_dtype_name(dtype: torch.dtype) -> str:
    """Return the safetensors name of a torch dtype.

    >>> get_dtype_name(torch.bfloat16)
    'BF16'
    """
    name = BY_TORCH_NAME.get(str(dtype).removeprefix("torch."))
    if name is None:
        title = f"safetensors has no name for {dtype}"
        raise UsageError(Diagnostic("RK608", title, help=("cast the tensor to a plain dtype first",)))
    return name


def get_shape(value: object) -> tuple[str, tuple[int, ...]] | None:
    """Return the dtype and the shape of a tensor, None for other values. A dtype that has no name counts as U8.

    >>> get_shape(torch.zeros(2, 3)), get_shape("text")
    (('F32', (2, 3)), None)
    """
    if not isinstance(value, torch.Tensor):
        return None
    return BY_TORCH_NAME.get(str(value.dtype).removeprefix("torch."), "U8"), tuple(value.shape)


def header_of(module: nn.Module | Mapping[str, Any], name: str | None = None) -> StateDictSpec:
    """Return the header of a module (or of a state dict in memory): parameters and persistent buffers, in its order.

    FQNs that share one tensor are reported as tied. Extra state that is not a tensor is omitted.

    >>> header = header_of(nn.Linear(3, 2, device="meta"))
    >>> header["weight"], header["bias"]
    (TensorSpec(dtype='F32', shape=(2, 3)), TensorSpec(dtype='F32', shape=(2,)))
    """
    if isinstance(module, nn.Module):
        name = name or type(module).__name__
        state: Mapping[str, Any] = module.state_dict(keep_vars=True)
    else:
        state = module
    tensors = {fqn: value for fqn, value in state.items() if isinstance(value, torch.Tensor)}
    lazy = [fqn for fqn, value in tensors.items() if nn.parameter.is_lazy(value)]
    if lazy:
        title = f"{lazy[0]!r} has no shape yet: lazy modules get theirs from their first input"
        raise UsageError(Diagnostic("RK608", title, help=("run the model on an input once, then check it",)))
    specs = {fqn: TensorSpec(get_dtype_name(value.dtype), tuple(value.shape)) for fqn, value in tensors.items()}
    return StateDictSpec(specs, tied=_group_tied(tensors), name=name or "a state dict in memory")


def explain_no_tensors(state: Mapping[Any, Any]) -> Diagnostic:
    """Explain why a mapping is not a state dict: for example because it has arrays."""
    kinds = sorted({type(value).__name__ for value in state.values()})
    help = ("turn the arrays into tensors first: torch.from_numpy",) if "ndarray" in kinds else ()
    title = "the state dict holds no tensors"
    return Diagnostic("RK329", title, notes=(f"its values are of the type {', '.join(kinds)}",), help=help)


def _group_tied(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    groups: defaultdict[object, list[str]] = defaultdict(list)
    for fqn, tensor in tensors.items():
        groups[_identify_storage(tensor)].append(fqn)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _identify_storage(tensor: torch.Tensor) -> object:
    """Return a value that only tied tensors share: on meta (no storage to compare) and if empty, the object's id."""
    if tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    storage = tensor.untyped_storage().data_ptr()
    return (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
