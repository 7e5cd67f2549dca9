"""Modules built on the meta device, and the header of any module: names, dtypes and shapes, no memory.

A target is named `plugin.module:attr` (`wan.vae:WanVAE`), or `py:package.module:attr` for anything importable, class
or factory. Building a model runs its code: a model reference is trusted the way an import is.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from remapkit.diagnostics.diagnostic import Diagnostic, UsageError
from remapkit.models.isolation import guest
from remapkit.tensors.spec import StateDictSpec, TensorSpec

_NAMES: Mapping[torch.dtype, str] = {
    getattr(torch, name): spec_name
    for name, spec_name in {
        "bool": "BOOL",
        "uint8": "U8",
        "int8": "I8",
        "uint16": "U16",
        "int16": "I16",
        "uint32": "U32",
        "int32": "I32",
        "uint64": "U64",
        "int64": "I64",
        "float16": "F16",
        "bfloat16": "BF16",
        "float32": "F32",
        "float64": "F64",
        "complex64": "C64",
        "complex128": "C128",
        "float8_e5m2": "F8_E5M2",
        "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2fnuz": "F8_E5M2FNUZ",
        "float8_e4m3fnuz": "F8_E4M3FNUZ",
        "float8_e8m0fnu": "F8_E8M0",
    }.items()
    if hasattr(torch, name)
}

DTYPES: Mapping[str, torch.dtype] = {name: dtype for dtype, name in _NAMES.items()}
"""torch's dtype for each name of a header; the floats of less than a byte have none."""


def dtype_name(dtype: torch.dtype) -> str:
    """safetensors' name of a torch dtype.

    >>> dtype_name(torch.bfloat16)
    'BF16'
    """
    try:
        return _NAMES[dtype]
    except KeyError:
        raise UsageError(
            Diagnostic("RK608", f"{dtype} has no name in a header", help=("cast the tensor to a plain dtype first",))
        ) from None


def header_of(module: nn.Module | Mapping[str, Any], name: str | None = None) -> StateDictSpec:
    """The header of a module (or of a state dict in memory): parameters and persistent buffers, in its order.

    Weights that are one tensor under several FQNs are reported as tied. What a module keeps as non-tensor extra
    state is no tensor, and left out.

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
    specs = {fqn: TensorSpec(dtype_name(value.dtype), tuple(value.shape)) for fqn, value in tensors.items()}
    return StateDictSpec(specs, tied=_tied(tensors), name=name or "a state dict in memory")


def no_tensors(state: Mapping[Any, Any]) -> Diagnostic:
    """Why a mapping that was given as a state dict is none: it wraps one, or holds arrays."""
    wrapped = [
        str(key)
        for key, value in state.items()
        if isinstance(value, Mapping) and any(isinstance(each, torch.Tensor) for each in value.values())
    ]
    kinds = sorted({type(value).__name__ for value in state.values()})
    help = [f"it wraps a state dict: give the value under {key!r}" for key in wrapped[:3]]
    if "ndarray" in kinds:
        help.append("turn the arrays into tensors first: torch.from_numpy")
    title = "the state dict holds no tensors"
    return Diagnostic("RK329", title, notes=(f"its values are of the type {', '.join(kinds)}",), help=tuple(help))


def _tied(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    groups: defaultdict[object, list[str]] = defaultdict(list)
    for fqn, tensor in tensors.items():
        groups[_identity(tensor)].append(fqn)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _identity(tensor: torch.Tensor) -> object:
    """What two tied tensors share: on meta (no storage to compare) and when empty, the tensor object itself."""
    if tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    storage = tensor.untyped_storage().data_ptr()
    return (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def build(
    factory: Callable[..., Any],
    reference: str,
    args: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Call a model's class or factory under `torch.device("meta")`: no memory is taken for its weights.

    With a `config` (a JSON object), a transformers class gets its own config object, a diffusers class is built by
    `from_config`, and anything else gets the entries as keywords. `args` are keyword arguments on top.

    >>> build(nn.Linear, "py:torch.nn:Linear", {"in_features": 3, "out_features": 2}).weight.is_meta
    True
    """
    try:
        with torch.device("meta"), guest():
            module = call_factory(factory, dict(args or {}), config)
    except (Exception, SystemExit) as error:
        raise UsageError(_refusal(reference, error)) from error
    if not isinstance(module, nn.Module):
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        raise UsageError(
            Diagnostic(
                "RK606",
                f"{reference} gave a {kind}, not a torch module",
                help=("name a class derived from torch.nn.Module, or a function that returns one",),
            )
        )
    return module


def call_factory(factory: Callable[..., Any], args: dict[str, Any], config: Mapping[str, Any] | None) -> Any:
    """Call a model's class or factory with keyword arguments, and a config in the way its library wants it."""
    if config is None:
        return factory(**args)
    config_class = getattr(factory, "config_class", None)
    if config_class is not None and hasattr(config_class, "from_dict"):
        return factory(config_class.from_dict(copy.deepcopy(dict(config))), **args)
    from_config = getattr(factory, "from_config", None)
    if from_config is not None:
        return from_config({**config, **args})
    return factory(**{**config, **args})


def _refusal(reference: str, error: BaseException) -> Diagnostic:
    said = f"{type(error).__name__}: {error}".strip()
    message = str(error)
    if isinstance(error, TypeError) and "argument" in message:
        return Diagnostic(
            "RK607",
            f"{reference} cannot be called like this: {message}",
            help=("give its arguments with --model-arg key=value, or a config with --model-config file.json",),
        )
    if "meta" in message.lower() or isinstance(error, NotImplementedError):
        return Diagnostic(
            "RK605",
            f"{reference} cannot be built on the meta device: its constructor needs real values",
            notes=(said,),
            help=(
                "move what reads values out of the constructor, or check against a manifest: --target-keys FILE",
                "a checkpoint of the model serves as well: --target-keys model.safetensors",
            ),
        )
    return Diagnostic(
        "RK604",
        f"{reference} cannot be built",
        notes=(said,),
        help=("its arguments are given with --model-arg key=value or --model-config file.json",),
    )
