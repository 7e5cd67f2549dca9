"""The work of `remapkit verify`: build and run both models, or call a converter, and record library versions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch
from torch import nn

from remapkit.compute.merged import get_merge
from remapkit.diagnostics.version import VERSION
from remapkit.models.build import call_factory
from remapkit.plans.make import make_plan
from remapkit.registry.load import read_config
from remapkit.rules.counted import count_params
from remapkit.rules.model import CompiledRules
from remapkit.tensors.from_torch import header_of
from remapkit.tensors.spec import StateDictSpec
from remapkit.verification.forward import Verdict, verify_forward
from remapkit.verification.models import build_random_model, make_random_state
from remapkit.verification.oracle import verify_oracle


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model not built yet: the class or factory, its name in messages, its arguments and its config."""

    factory: Callable[..., Any]
    name: str
    args: Mapping[str, Any]
    config: str | Path | Mapping[str, Any] | None = None

    def build(self, seed: int, rules: CompiledRules | None = None) -> nn.Module:
        """Build the model with random values; see `build_random_model`."""
        return build_random_model(
            lambda: call_factory(self.factory, dict(self.args), read_config(self.config)), self.name, seed, rules
        )


def verify_by_oracle(
    rules: CompiledRules,
    oracle: Callable[[Any], Any],
    name: str,
    origin: ModelRef | StateDictSpec,
    seed: int,
) -> Verdict:
    """Compare rules and oracle on one random state dict: that of a model, or one with the tensors of a header."""
    if isinstance(origin, ModelRef):
        model = origin.build(seed)
        state = {fqn: value for fqn, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    else:
        state = equalize_merged(rules, make_random_state(origin, seed))
    return verify_oracle(rules, oracle, state, name)


def equalize_merged(rules: CompiledRules, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict with equal values for tensors that `merge` requires to be equal: random ones differ.

    Sources with different operations of their own are left as they are.
    """
    header = header_of(state, "the random state dict")
    equal = dict(state)
    for move in make_plan(count_params(rules, header), header).moves:
        if (join := get_merge(move)) is None:
            continue
        width = len(join.branches)
        for number, fqn in enumerate(move.sources):
            first = move.sources[number - number % width]
            if fqn != first and join.branches[number % width] == join.branches[0]:
                equal[fqn] = equal[first].clone()
    return equal


def verify_by_forward(
    rules: CompiledRules,
    source: ModelRef,
    target: ModelRef,
    methods: Sequence[str],
    *,
    written: str | None,
    seed: int,
    tolerance: float,
) -> tuple[Verdict, ...]:
    """Run both models on one input, once per method; their initial random values differ."""
    theirs, ours = source.build(seed, rules), target.build(seed + 1)
    return tuple(
        verify_forward(rules, theirs, ours, method, written=written, seed=seed, tolerance=tolerance)
        for method in methods
    )


def list_versions() -> dict[str, str]:
    """Return the versions of remapkit, torch, and the imported libraries that build or convert models."""
    found = {"remapkit": VERSION}
    for name in ("torch", "diffusers", "transformers", "timm"):
        if name in sys.modules:
            try:
                found[name] = installed(name)
            except PackageNotFoundError:
                continue
    return found
