"""Models built on the meta device, and the header of any module: names, dtypes and shapes, no memory.

A target is named `plugin.module:attr` (`wan.vae:WanVAE`), or `py:package.module:attr` for anything importable, class
or factory. Building a model runs its code: a model reference must be trusted like an import.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.models.isolation import isolate_guest


def build_on_meta(
    factory: Callable[..., Any],
    reference: str,
    args: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Call a model's class or factory under `torch.device("meta")`: no memory is allocated for its weights.

    With a `config` (a JSON object), a transformers class gets its own config object, a diffusers class is built by
    `from_config`, and anything else gets the entries as keywords. `args` are keyword arguments on top.

    >>> build_on_meta(nn.Linear, "py:torch.nn:Linear", {"in_features": 3, "out_features": 2}).weight.is_meta
    True
    """
    try:
        with torch.device("meta"), isolate_guest():
            module = call_factory(factory, dict(args or {}), config)
    except (Exception, SystemExit) as error:
        raise UsageError(_diagnose_failure(reference, error)) from error
    if not isinstance(module, nn.Module):
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        raise UsageError(
            Diagnostic(
                "RK606",
                f"{reference} returned a {kind}, not a torch.nn.Module",
                help=("name a class derived from torch.nn.Module, or a function that returns one",),
            )
        )
    return module


def call_factory(factory: Callable[..., Any], args: dict[str, Any], config: Mapping[str, Any] | None) -> Any:
    """Call a model's class or factory with keyword arguments, passing a config as its library expects it."""
    if config is None:
        return factory(**args)
    config_class = getattr(factory, "config_class", None)
    if config_class is not None and hasattr(config_class, "from_dict"):
        return factory(config_class.from_dict(copy.deepcopy(dict(config))), **args)
    from_config = getattr(factory, "from_config", None)
    if from_config is not None:
        return from_config({**config, **args})
    return factory(**{**config, **args})


def _diagnose_failure(reference: str, error: BaseException) -> Diagnostic:
    cause = f"{type(error).__name__}: {error}".strip()
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
            notes=(cause,),
            help=(
                "move what reads values out of the constructor, or check against a manifest: --target-keys FILE",
                "or against a checkpoint of the model: --target-keys model.safetensors",
            ),
        )
    return Diagnostic(
        "RK604",
        f"{reference} cannot be built",
        notes=(cause,),
        help=("give its arguments with --model-arg key=value or --model-config file.json",),
    )
