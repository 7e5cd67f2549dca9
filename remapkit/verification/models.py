"""Models with random values: every tensor different, values small enough that a deep model does not overflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.models.isolation import isolate_guest
from remapkit.plans.make import make_plan
from remapkit.rules.model import CompiledRules
from remapkit.tensors.from_torch import TORCH_DTYPES, header_of
from remapkit.tensors.spec import StateDictSpec, TensorSpec, get_leaf

MOST_BYTES = 8_000_000_000
"""Larger models are refused: a small config proves the same."""


def build_random_model(
    make: Callable[[], Any], reference: str, seed: int, rules: CompiledRules | None = None
) -> nn.Module:
    """Build a model on the CPU in single precision, in evaluation mode, every tensor filled with random values.

    Constants that `rules` drop keep their values: see `find_constants`. `make` may build it on the meta device;
    tensors on meta get memory first.
    """
    try:
        torch.manual_seed(seed)
        with isolate_guest():
            model = make()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}".strip()
        help = "give its arguments or a config: --source-arg key=value, --source-config FILE, or those of the target"
        raise UsageError(Diagnostic("RK604", f"{reference} cannot be built", notes=(said,), help=(help,))) from error
    if not isinstance(model, nn.Module):
        title = f"{reference} returned a {type(model).__name__}, not a torch module"
        raise UsageError(Diagnostic("RK606", title, help=("name a class derived from torch.nn.Module",)))
    header = header_of(model, reference)
    if header.nbytes > MOST_BYTES:
        title = f"{reference} has {header.nbytes / 1e9:.1f} GB of weights: too many to try values on"
        help = "verify a small one of the same kind: --source-config FILE or --source-arg key=value"
        raise UsageError(Diagnostic("RK712", title, help=(help,)))
    model = model.float().eval()
    dropped = {gone.fqn for gone in make_plan(rules, header).dropped} if rules is not None else ()
    randomize_model(model, seed, dropped)
    return model


def randomize_model(model: nn.Module, seed: int, dropped: Collection[str] = ()) -> None:
    """Fill every floating tensor of a model's state dict with random values, except dropped constants."""
    generator = torch.Generator().manual_seed(seed)
    constant = find_constants(model, dropped)
    with torch.no_grad():
        for fqn, tensor in model.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                values = _make_values(fqn, tensor.shape, generator)
                if fqn not in constant:
                    tensor.copy_(values)


def find_constants(model: nn.Module, dropped: Collection[str]) -> tuple[str, ...]:
    """Return the buffers among these names that a constructor computes: masks, positions, frequencies.

    Rules drop them if the other model computes its own. Parameters and the statistics of norms are learned: a
    dropped one is missing, whatever its initial value, and random values reveal that.

    >>> find_constants(nn.BatchNorm1d(2), ["weight", "running_mean", "num_batches_tracked"])
    ('num_batches_tracked',)
    """
    learned = {
        f"{owner}.{name}" if owner else name
        for owner, module in model.named_modules()
        for name in ("running_mean", "running_var")
        if isinstance(module, nn.modules.batchnorm._NormBase)
    }
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return tuple(fqn for fqn in buffers if fqn in dropped and fqn not in learned)


def _make_values(fqn: str, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Return random values: weights of unit gain; scales and variances around 1, all positive; small biases."""
    if len(shape) >= 2 and math.prod(shape[1:]) > 1:
        return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
    if get_leaf(fqn) == "bias":
        return torch.randn(shape, generator=generator) / 10
    return torch.rand(shape, generator=generator) + 0.5


def make_random_state(header: StateDictSpec, seed: int) -> dict[str, torch.Tensor]:
    """Return a state dict with this header and random values; tied names share a tensor."""
    if header.nbytes > MOST_BYTES:
        title = f"{header.name} has {header.nbytes / 1e9:.1f} GB: too many to try values on"
        help = "name a small model (--source M --source-config FILE), or a manifest with smaller shapes (--keys FILE)"
        raise UsageError(Diagnostic("RK712", title, help=(help,)))
    generator = torch.Generator().manual_seed(seed)
    tie = {fqn: group[0] for group in header.tied for fqn in group}
    made: dict[str, torch.Tensor] = {}
    for fqn, spec in header.items():
        first = tie.get(fqn, fqn)
        made[fqn] = made[first] if first in made else _make_random_tensor(fqn, spec, generator)
    return made


def _make_random_tensor(fqn: str, spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    dtype = TORCH_DTYPES[spec.dtype]
    if dtype.is_floating_point:
        return _make_values(fqn, spec.shape, generator).to(dtype)
    if dtype == torch.bool:
        return torch.rand(spec.shape, generator=generator) < 0.5
    return torch.randint(0, 100, spec.shape, generator=generator).to(dtype)


# ------------------------------------------------------------------------------------------------------ inputs


def propose_inputs(
    models: Sequence[nn.Module], method: str, written: str | None, seed: int
) -> Iterator[torch.Tensor]:
    """Yield inputs to try a method on: the given shape, else inputs that the models suggest.

    A model may have `example_input(method)`, or `dummy_inputs` as transformers models do; else the channels are
    those of its first convolution, embedding or linear layer.
    """
    generator = torch.Generator().manual_seed(seed)
    if written is not None:
        yield _parse_input(written, generator)
        return
    for model in models:
        example = getattr(model, "example_input", None)
        if callable(example):
            yield example(method)
    for model in models:
        dummies = getattr(model, "dummy_inputs", None)
        if isinstance(dummies, Mapping) and isinstance(tokens := dummies.get("input_ids"), torch.Tensor):
            yield tokens
    for shape in dict.fromkeys(shape for model in models for shape in _list_input_shapes(model)):
        yield torch.rand(shape, generator=generator) * 2 - 1
    for model in models:
        embedding = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
        if embedding is not None:
            yield torch.randint(0, embedding.num_embeddings, (2, 7), generator=generator)


def _parse_input(text: str, generator: torch.Generator) -> torch.Tensor:
    """Parse an input: `1,3,32,32` is a tensor in [-1, 1); `2,7:1000` holds integers below 1000."""
    shape, _, below = text.partition(":")
    try:
        sizes = tuple(map(int, shape.split(",")))
        if below:
            return torch.randint(0, int(below), sizes, generator=generator)
        return torch.rand(sizes, generator=generator) * 2 - 1
    except (ValueError, RuntimeError):
        help = "write the shape, as in --input 1,3,32,32, or --input 2,7:1000 for integers below 1000"
        raise UsageError(Diagnostic("RK713", f"--input {text} is not a valid input", help=(help,))) from None


def _list_input_shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            yield from ((1, channels, 5, 32, 32) for channels in (module.in_channels, 3))
        elif isinstance(module, nn.Conv2d):
            yield from ((1, channels, size, size) for channels in (module.in_channels, 3) for size in (32, 224))
        elif isinstance(module, nn.Conv1d):
            yield (1, module.in_channels, 64)
        elif isinstance(module, nn.Linear):
            yield from ((3, module.in_features), (2, 5, module.in_features))
        else:
            continue
        return
