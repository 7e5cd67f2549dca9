"""Comparison of a plan with an oracle: a function from state dict to state dict that is known to be correct."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from remapkit.compute.rename import remap
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.models.isolation import isolate_guest
from remapkit.rules.model import CompiledRules
from remapkit.tensors.spec import TensorSpec
from remapkit.verification.forward import Verdict


def verify_oracle(
    rules: CompiledRules, oracle: Callable[[Any], Any], state: Mapping[str, torch.Tensor], name: str
) -> Verdict:
    """Apply the rules and the oracle to the same state dict, and compare every tensor bit for bit."""
    copies = {fqn: value.detach().clone() for fqn, value in state.items()}
    try:
        with isolate_guest():
            theirs = oracle(copies)
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}".strip()
        title = f"the oracle {name} failed on this state dict"
        problem = Diagnostic("RK714", title, notes=(said,), help=("try it on a state dict of the layout it reads",))
        return Verdict("oracle", name, (), (problem,))
    if not isinstance(theirs, Mapping):
        title = f"the oracle {name} returned a {type(theirs).__name__}, not a state dict"
        return Verdict("oracle", name, (), (Diagnostic("RK714", title, help=("name a function that returns one",)),))
    ours = remap(rules, dict(state))
    problems = [*_diagnose_names(ours, theirs, name), *_diagnose_values(ours, theirs, name)]
    return Verdict("oracle", name, tuple(fqn for fqn in ours if fqn in theirs), tuple(problems))


def _diagnose_names(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> list[Diagnostic]:
    lacking = [fqn for fqn in theirs if fqn not in ours]
    beyond = [fqn for fqn in ours if fqn not in theirs]
    if not lacking and not beyond:
        return []
    title = f"the names differ: {len(lacking)} only from {name}, {len(beyond)} only from the rules"
    lines = [f"only {name}: {fqn}" for fqn in lacking] + [f"only the rules: {fqn}" for fqn in beyond]
    values = {"missing_keys": lacking, "unexpected_keys": beyond}
    return [Diagnostic("RK710", title, (), ("correct the templates",), (list_names(lines),), values=values)]


def _diagnose_values(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> list[Diagnostic]:
    lines, wrong = [], []
    for fqn, value in ours.items():
        if fqn in theirs and (said := describe_difference(value, theirs[fqn])) is not None:
            wrong.append(fqn)
            lines.append(f"{fqn}: {said}")
    if not wrong:
        return []
    title = f"{count_noun(len(wrong), 'tensor')} of {len(ours)} differ from those of {name}"
    help = "look at the operations of the rule that makes them: `remapkit explain`, `remapkit apply --dry-run`"
    return [Diagnostic("RK711", title, (), (help,), (list_names(lines),), values={"names": wrong})]


def describe_difference(one: Any, other: Any) -> str | None:
    """Describe how two tensors differ; None if they are equal bit for bit."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return None if one is other or one == other else "one of them is not a tensor"
    if one.shape != other.shape or one.dtype != other.dtype:
        specs = [TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for tensor in (one, other)]
        return f"{specs[0]} here, {specs[1]} there"
    if torch.equal(one, other):
        return None
    if one.shape == other.shape and one.dim() == 2 and one.shape[0] == one.shape[1] and torch.equal(one.t(), other):
        return "transposed"
    if torch.equal(one.flatten().sort().values, other.flatten().sort().values):
        return "the same values in another order"
    return f"max |difference| {(one.double() - other.double()).abs().max().item():.3g}"
