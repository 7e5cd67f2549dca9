"""Values that no checkpoint contains: non-persistent buffers and plain tensors that a constructor computes.

A module built on meta lacks them, and only its constructor can compute them. So it is built again on the CPU, with
every parameter moved to meta when it is registered, and the values are taken from this twin if its names and shapes
are those of the module.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck
from remapkit.diagnostics.wording import list_names
from remapkit.loading.module import LoadTarget, NonPersistent, SuppliedValue, make_target

Factory = Callable[[], nn.Module]


def rebuild_lost_values(
    target: LoadTarget, lost: Sequence[NonPersistent], factory: Factory | None, buffers: Mapping[str, torch.Tensor]
) -> tuple[list[SuppliedValue], list[Diagnostic]]:
    """Return a value in host memory for everything in `lost`, or a problem."""
    needed = {value.fqn for value in lost}
    if unknown := [fqn for fqn in buffers if fqn not in needed]:
        title = f"buffers= names {_count_values(unknown)} that {target.header.name} does not have on meta"
        return [], [_make_problem(title, unknown)]
    fills = [
        SuppliedValue(value.owner, value.name, buffers[value.fqn].detach()) for value in lost if value.fqn in buffers
    ]
    problems = [*_find_misfits(target, [value for value in lost if value.fqn in buffers], fills)]
    twins = _Twins(target, factory)
    without = []
    for value in lost:
        if value.fqn not in buffers:
            rebuilt = twins.value(value)
            if rebuilt is None:
                without.append(value)
            else:
                fills.append(SuppliedValue(value.owner, value.name, rebuilt))
    if without:
        problems.append(_diagnose_lost_values(target, without, twins.said))
    return fills, problems


def _count_values(fqns: Sequence[Any]) -> str:
    return "a value" if len(fqns) == 1 else f"{len(fqns)} values"


def _make_problem(title: str, fqns: Sequence[str], *help: str, said: Sequence[str] = ()) -> Diagnostic:
    return Diagnostic("RK323", title, notes=(list_names(fqns), *said), help=help, values={"names": list(fqns)})


def _diagnose_lost_values(target: LoadTarget, lost: Sequence[NonPersistent], said: Sequence[str]) -> Diagnostic:
    them = "it" if len(lost) == 1 else "them"
    return Diagnostic(
        "RK323",
        f"{_count_values(lost)} of {target.header.name} would stay on meta: no checkpoint has {them}",
        notes=(list_names([value.description for value in lost]), *said),
        help=(
            f"pass factory=lambda: {target.header.name}(...) to build the module again and take these values from it",
            "or pass buffers={fqn: tensor}, or register them as persistent buffers",
        ),
        values={"names": [value.fqn for value in lost]},
    )


def _find_misfits(
    target: LoadTarget, lost: Sequence[NonPersistent], fills: Sequence[SuppliedValue]
) -> Iterator[Diagnostic]:
    for value, fill in zip(lost, fills, strict=True):
        wanted = _read_value(target.module.get_submodule(value.owner), value.name)
        if not isinstance(wanted, torch.Tensor) or wanted.shape != fill.value.shape or fill.value.is_meta:
            shape = list(wanted.shape) if isinstance(wanted, torch.Tensor) else "no tensor"
            given = "on meta" if fill.value.is_meta else f"shape {list(fill.value.shape)}"
            yield _make_problem(f"buffers[{value.fqn!r}] is {given}, but the module has {shape}", [value.fqn])


def _read_value(module: nn.Module, name: str) -> Any:
    return module._buffers[name] if name in module._buffers else vars(module).get(name)


class _Twins:
    """Modules that were built again, each at most once, and the failures."""

    def __init__(self, target: LoadTarget, factory: Factory | None) -> None:
        self._module = target.module
        self._covered = target.covered_ids
        self._factory = factory
        self._built: dict[str, nn.Module | None] = {}
        self.said: list[str] = []

    def value(self, lost: NonPersistent) -> Any | None:
        """Return the value of `lost` in the twin of a module that contains it; None if no twin fits."""
        for fqn in _list_ancestors(lost.owner):
            twin = self._find_twin(fqn)
            if twin is not None:
                inside = lost.owner.removeprefix(fqn).removeprefix(".")
                owner = self._module.get_submodule(lost.owner)
                fitting = _find_fitting_value(owner, twin.get_submodule(inside), lost, self._covered)
                if fitting is not None:
                    return fitting
        return None

    def _find_twin(self, fqn: str) -> nn.Module | None:
        if fqn not in self._built:
            module = self._module.get_submodule(fqn)
            factory = self._factory if self._factory and not fqn else _find_factory(module)
            self._built[fqn] = self._build_twin(module, factory) if factory else None
        return self._built[fqn]

    def _build_twin(self, module: nn.Module, factory: Factory) -> nn.Module | None:
        name = type(module).__name__
        try:
            twin = build_without_parameters(factory)
        except Exception as error:
            self.said.append(f"building {name} again failed: {type(error).__name__}: {error}")
            return None
        difference = _describe_difference(module, twin)
        if difference:
            self.said.append(f"{name} built again is a different module: {difference}")
            return None
        return make_target(twin).module


def _list_ancestors(owner: str) -> Iterator[str]:
    """Yield the modules that contain an owner, outermost first, then the owner itself."""
    parts = owner.split(".") if owner else []
    for depth in range(len(parts) + 1):
        yield ".".join(parts[:depth])


def _find_factory(module: nn.Module) -> Factory | None:
    """Return a factory that builds a model of transformers or diffusers from its config, as their loaders do."""
    kind, config = type(module), getattr(module, "config", None)
    config_class = getattr(kind, "config_class", None)
    if isinstance(config_class, type) and isinstance(config, config_class):
        return lambda: kind(copy.deepcopy(config))
    from_config = getattr(kind, "from_config", None)
    if callable(from_config) and isinstance(config, Mapping) and hasattr(kind, "load_config"):
        return lambda: from_config(dict(config))
    return None


def build_without_parameters(factory: Factory) -> nn.Module:
    """Build a module on the CPU with all parameters on meta: at most one of them takes memory at a time.

    The state of the random number generator is restored.

    >>> twin = build_without_parameters(lambda: nn.BatchNorm1d(3))
    >>> twin.weight.is_meta, twin.running_var
    (True, tensor([1., 1., 1.]))
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _keep_parameters_on_meta():
        return factory()


@contextmanager
def _keep_parameters_on_meta() -> Iterator[None]:
    this_thread = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        # The hook is global: modules that other threads build at the same time must not be changed.
        if threading.get_ident() != this_thread or type(parameter) is not nn.Parameter or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _describe_difference(module: nn.Module, twin: Any) -> str:
    if not isinstance(twin, nn.Module):
        return f"the factory returned a {type(twin).__name__}"
    try:
        given, built = make_target(module).header, make_target(twin).header
    except FailedCheck as error:
        return error.diagnostics[0].title
    for fqn in dict.fromkeys((*given, *built)):
        if fqn not in built or fqn not in given:
            return f"{fqn} is only in {'the given one' if fqn in given else 'the new one'}"
        if given[fqn].shape != built[fqn].shape:
            return f"{fqn} is {list(built[fqn].shape)} instead of {list(given[fqn].shape)}"
    return ""


def _find_fitting_value(
    module: nn.Module, twin: nn.Module, lost: NonPersistent, covered: frozenset[int]
) -> Any | None:
    """Return the twin's value, in the module's dtype; None if it does not fit or is not a value."""
    ours, theirs = _read_value(module, lost.name), _read_value(twin, lost.name)
    if lost.kind == "parameter" or type(ours) is not type(theirs):
        return None
    try:
        if isinstance(ours, dict):
            return {key: _take_value(value, theirs[key], covered) for key, value in ours.items()}
        if isinstance(ours, list | tuple):
            return type(ours)(_take_value(*pair, covered) for pair in zip(ours, theirs, strict=True))
        return _take_value(ours, theirs, covered)
    except (KeyError, ValueError):
        return None


def _take_value(ours: Any, theirs: Any, covered: frozenset[int]) -> Any:
    """Return the twin's tensor if ours is on meta and in no checkpoint; raises `ValueError` if they do not match."""
    if not isinstance(ours, torch.Tensor) or not ours.is_meta or id(ours) in covered:
        return ours
    if not isinstance(theirs, torch.Tensor) or theirs.is_meta or theirs.shape != ours.shape:
        raise ValueError
    return theirs.detach().to(ours.dtype)
