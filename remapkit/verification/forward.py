"""Comparison of two models with the same values on the same input: whether and from which module on they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from remapkit.compute.torch_eager import run_plan
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.diagnostics.wording import list_names
from remapkit.models.isolation import isolate_guest
from remapkit.plans.check import make_check
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.registry.identify import hint_layout
from remapkit.rules.model import CompiledRules
from remapkit.tensors.from_torch import header_of
from remapkit.verification.models import find_constants, propose_inputs

TOLERANCE = 1e-4
"""The passing difference relative to the largest value: room for another order of sums in single precision."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a comparison: `by` what (`oracle`, or a method), with `other`, and the compared `tensors`."""

    by: str
    other: str
    tensors: tuple[str, ...]
    problems: tuple[Diagnostic, ...] = ()
    total: int = 0
    apart: float = 0.0
    input: tuple[int, ...] = ()
    constants: tuple[str, ...] = ()
    """Buffers of the source that the rules drop: assumed to have the values that the constructor gives them."""

    @property
    def ok(self) -> bool:
        """Whether the values are the same."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON data, for the witness."""
        written: dict[str, Any] = {"by": self.by, "against": self.other, "tensors": len(self.tensors)}
        if self.input:
            written |= {"of": self.total, "input": list(self.input), "relative_difference": self.apart}
        if self.constants:
            written |= {"constants": list(self.constants)}
        return written


def verify_forward(
    rules: CompiledRules,
    source: nn.Module,
    target: nn.Module,
    method: str,
    *,
    written: str | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> Verdict:
    """Load the target with the result of the rules for the source, and call the same method of both.

    Raises `FailedCheck` if the result does not fit the target, `UsageError` if no input fits both.
    """
    state = {fqn: value for fqn, value in source.state_dict().items() if isinstance(value, torch.Tensor)}
    plan = make_plan(rules, header_of(source))
    check = make_check(plan, header_of(target))
    if not check.ok:
        raise FailedCheck(hint_layout(check.problems, plan.source, rules.name))
    target.load_state_dict(run_plan(plan, state), strict=not check.satisfied_by_tie)
    calls = (_find_method(source, method), _find_method(target, method))
    theirs = _Watched(source)
    ours = _Watched(target)
    x, expected, actual = _run_both(source, target, calls, theirs, ours, method, written, seed)
    name = f"{type(source).__name__}.{method}"
    apart = max((_measure_difference(a, b) for a, b in zip(expected, actual, strict=True)), default=float("inf"))
    used = _find_used_tensors(target, actual)
    total = len(header_of(target))
    problems = []
    if not apart <= tolerance:
        problems.append(_diagnose_difference(name, apart, tolerance, plan, theirs, ours))
    elif not used:
        title = f"the output of {name} does not depend on the weights: nothing was verified"
        problems.append(Diagnostic("RK716", title, help=("name another method: --forward NAME",)))
    kept = find_constants(source, {gone.fqn for gone in plan.dropped})
    return Verdict(method, name, used, tuple(problems), total, apart, tuple(x.shape), kept)


def _find_method(model: nn.Module, name: str) -> Callable[..., Any]:
    attribute = getattr(model, name, None)
    if not callable(attribute):
        known = [method for method in ("forward", "encode", "decode") if callable(getattr(model, method, None))]
        title = f"{type(model).__name__} has no method {name!r}"
        raise UsageError(Diagnostic("RK713", title, help=(f"it has {', '.join(known)}",)))
    return attribute  # type: ignore[no-any-return]


class _Watched:
    """The inputs and outputs of every module of a model at its first call, in the order of the calls."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.inputs: dict[str, list[torch.Tensor]] = {}
        self.outputs: dict[str, torch.Tensor] = {}

    def call(self, function: Callable[[], Any]) -> Any:
        self.outputs.clear()
        self.inputs.clear()
        named_modules = list(self.model.named_modules())
        handles = [module.register_forward_hook(self._make_output_hook(name)) for name, module in named_modules]
        handles += [module.register_forward_pre_hook(self._make_input_hook(name)) for name, module in named_modules]
        try:
            return function()
        finally:
            for handle in handles:
                handle.remove()

    def _make_input_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any) -> None:
            if name not in self.inputs:
                self.inputs[name] = [value.detach().clone() for value in given if isinstance(value, torch.Tensor)]

        return hook

    def _make_output_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and name not in self.outputs:
                self.outputs[name] = output.detach().clone()  # later modules may write into it

        return hook


def _run_both(
    source: nn.Module,
    target: nn.Module,
    calls: tuple[Callable[..., Any], Callable[..., Any]],
    theirs: _Watched,
    ours: _Watched,
    method: str,
    written: str | None,
    seed: int,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Find the first input that both models accept, and return their outputs for it."""
    refused = []
    for x in propose_inputs((target, source), method, written, seed):
        try:
            with isolate_guest():
                expected = theirs.call(partial(_compute_expected, source, target, calls[0], method, x))
                actual = ours.call(partial(_compute_actual, target, calls[1], method, x))
        except (Exception, SystemExit) as error:
            refused.append(f"{list(x.shape)}: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
            continue
        shapes = [[list(tensor.shape) for tensor in side] for side in (expected, actual)]
        if shapes[0] == shapes[1] and actual:
            return x, expected, actual
        refused.append(f"{list(x.shape)}: {shapes[0]} from {type(source).__name__}, {shapes[1]} from the target")
    title = f"found no input that {method} of both models accepts with outputs of the same shapes"
    help = "pass the shape: --input 1,3,32,32, or --input 2,7:1000 for integers below 1000"
    raise UsageError(Diagnostic("RK713", title, notes=(list_names(refused) or "none was tried",), help=(help,)))


def _compute_expected(
    source: nn.Module, target: nn.Module, call: Callable[..., Any], method: str, x: Any
) -> list[torch.Tensor]:
    """Return the output of the source, or the target's `reference_output` for it."""
    translate = getattr(target, "reference_output", None)
    given = translate(source, method, x) if callable(translate) else NotImplemented
    return list(collect_tensors(call(x) if given is NotImplemented else given))


def _compute_actual(target: nn.Module, call: Callable[..., Any], method: str, x: Any) -> list[torch.Tensor]:
    """Return the output of the target, or its `comparable_output`."""
    comparable = getattr(target, "comparable_output", None)
    given = comparable(method, x) if callable(comparable) else NotImplemented
    return list(collect_tensors(call(x) if given is NotImplemented else given))


def collect_tensors(output: Any) -> Iterator[torch.Tensor]:
    """Yield every floating tensor in a model's output: in lists, mappings, output classes and distributions."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from collect_tensors(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from collect_tensors(value)
    elif isinstance(mean := getattr(output, "mean", None), torch.Tensor):
        yield mean
    elif output is not None and hasattr(output, "__dict__"):
        for value in vars(output).values():
            if isinstance(value, torch.Tensor | Mapping | list | tuple):
                yield from collect_tensors(value)


def _measure_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value; infinite if a value is not finite."""
    if not (one.isfinite().all() and other.isfinite().all()):
        return float("inf")
    scale = max(one.abs().max().item(), 1e-30) if one.numel() else 1.0
    return float((one - other).abs().max().item() / scale) if one.numel() else 0.0


def _find_used_tensors(target: nn.Module, outputs: Sequence[torch.Tensor]) -> tuple[str, ...]:
    """Return the tensors that the outputs depend on, by gradient; a verdict covers no others."""
    parameters = {
        fqn: tensor for fqn, tensor in target.named_parameters(remove_duplicate=False) if tensor.requires_grad
    }
    outputs = [tensor for tensor in outputs if tensor.requires_grad]
    if not outputs or not parameters:
        return ()
    # Different factors: with equal ones, the gradients of inputs to a norm would sum to zero.
    total = sum((output * torch.rand_like(output)).square().sum() for output in outputs)
    assert isinstance(total, torch.Tensor)
    grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return tuple(fqn for fqn, grad in zip(parameters, grads, strict=True) if grad is not None and bool(grad.any()))


# ---------------------------------------------------------------------------------------------- where they diverge


def _diagnose_difference(
    name: str, apart: float, tolerance: float, plan: ResolvedPlan, theirs: _Watched, ours: _Watched
) -> Diagnostic:
    title = f"{name} gives different values: they differ by {apart:.3g} (relative; the tolerance is {tolerance:g})"
    place, is_rule = find_first_difference(plan, theirs, ours, tolerance)
    help = "check the rules that write there; a swap or a wrong operation before it shows in the first such module"
    if not is_rule:
        help = "compare what the two models compute there, and the buffers and constants that no rule carries over"
        help += "; an earlier rule that writes the right shape may still be wrong"
    return Diagnostic("RK715", title, (), (help,), (place,), values={"relative_difference": apart})


def find_first_difference(plan: ResolvedPlan, theirs: _Watched, ours: _Watched, tolerance: float) -> tuple[str, bool]:
    """The first module, in the order of calls, whose output differs from that of the module its tensors come from.

    Also returned: whether a rule is to blame, which holds only if the module had the same inputs as in the source.
    Inputs that already differ were computed between the modules, by code that no rule writes to.
    """
    origin: dict[str, dict[str, str]] = {}
    for move in plan.moves:
        owner = move.target.rpartition(".")[0]
        for fqn in move.sources:
            origin.setdefault(owner, {})[fqn.rpartition(".")[0]] = move.rule.id
    before = None
    for owner, output in ours.outputs.items():
        sources = origin.get(owner, {})
        if len(sources) != 1:
            continue
        ((source, rule),) = sources.items()
        expected = theirs.outputs.get(source)
        if expected is None or expected.shape != output.shape:
            continue
        if not _measure_difference(expected, output) <= tolerance:
            after = f", after {before}" if before is not None else ""
            name = owner or "the end"
            if _has_same_inputs(theirs.inputs, ours.inputs.get(owner, []), tolerance):
                return f"they diverge at {name} (from {source or 'the model itself'}, by {rule}){after}", True
            between = f"between {before} and {name}" if before is not None else f"before {name}"
            why = "its input differs already, so no rule that writes there is at fault"
            return f"they diverge {between}: {why}", False
        before = owner or "the end"
    if before is not None:
        return (
            f"they diverge after {before}: every module before that can be compared gives the same values",
            False,
        )
    return "no module whose tensors come from a single module gives different values", False


def _has_same_inputs(
    theirs: Mapping[str, Sequence[torch.Tensor]], ours: Sequence[torch.Tensor], tolerance: float
) -> bool:
    """Whether any module of the source had the same inputs: if two are swapped, it is not the counterpart."""
    given = [tensor for inputs in theirs.values() for tensor in inputs]
    return all(
        any(
            tensor.shape == other.shape and _measure_difference(other.float(), tensor.float()) <= tolerance
            for other in given
        )
        for tensor in ours
    )


__all__ = ["TOLERANCE", "Verdict", "collect_tensors", "find_first_difference", "verify_forward"]
