"""Values that no checkpoint has: non-persistent buffers and plain tensors that a module's constructor computes.

A module built on meta has lost them, and only its constructor knows them. So it is built once more on the CPU, with
every parameter sent to meta as it is registered, and the values are taken from there. What the twin is like is
compared with the module first: names, shapes, dtypes.
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


def rebuilt(
    target: LoadTarget, lost: Sequence[NonPersistent], factory: Factory | None, buffers: Mapping[str, torch.Tensor]
) -> tuple[list[SuppliedValue], list[Diagnostic]]:
    """A value for everything that was lost, in host memory, and a problem where there is none."""
    needed = {each.fqn for each in lost}
    if unknown := [fqn for fqn in buffers if fqn not in needed]:
        title = f"{target.header.name} does not need {_count_values(unknown)}: no such value is on meta"
        return [], [_make_problem(title, unknown)]
    fills = [SuppliedValue(each.owner, each.name, buffers[each.fqn].detach()) for each in lost if each.fqn in buffers]
    problems = [*_find_misfits(target, [each for each in lost if each.fqn in buffers], fills)]
    twins = _Twins(target, factory)
    without = []
    for each in lost:
        if each.fqn not in buffers:
            found = twins.value(each)
            if found is None:
                without.append(each)
            else:
                fills.append(SuppliedValue(each.owner, each.name, found))
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
        f"{_count_values(lost)} of {target.header.name} would be left on meta: no checkpoint has {them}",
        notes=(list_names([each.description for each in lost]), *said),
        help=(
            f"factory=lambda: {target.header.name}(...) builds the module as you did, and takes just these from it",
            "or give them: buffers={fqn: tensor}; or register them as persistent buffers",
        ),
        values={"names": [each.fqn for each in lost]},
    )


def _find_misfits(
    target: LoadTarget, lost: Sequence[NonPersistent], fills: Sequence[SuppliedValue]
) -> Iterator[Diagnostic]:
    for each, fill in zip(lost, fills, strict=True):
        wanted = _read_value(target.module.get_submodule(each.owner), each.name)
        if not isinstance(wanted, torch.Tensor) or wanted.shape != fill.value.shape or fill.value.is_meta:
            shape = list(wanted.shape) if isinstance(wanted, torch.Tensor) else "no tensor"
            given = "on meta" if fill.value.is_meta else f"shape {list(fill.value.shape)}"
            yield _make_problem(f"buffers[{each.fqn!r}] is {given}, the module has {shape}", [each.fqn])


def _read_value(module: nn.Module, name: str) -> Any:
    return module._buffers[name] if name in module._buffers else vars(module).get(name)


class _Twins:
    """Modules built once more, each at most once, and what was said where that failed."""

    def __init__(self, target: LoadTarget, factory: Factory | None) -> None:
        self._module = target.module
        self._covered = target.covered_ids
        self._factory = factory
        self._built: dict[str, nn.Module | None] = {}
        self.said: list[str] = []

    def value(self, lost: NonPersistent) -> Any | None:
        """What the twin of a module around `lost` has in its place; None where no twin fits."""
        for fqn in _list_ancestors(lost.owner):
            twin = self._find_twin(fqn)
            if twin is not None:
                inside = lost.owner.removeprefix(fqn).removeprefix(".")
                owner = self._module.get_submodule(lost.owner)
                found = _find_fitting_value(owner, twin.get_submodule(inside), lost, self._covered)
                if found is not None:
                    return found
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
            self.said.append(f"building {name} once more failed: {type(error).__name__}: {error}")
            return None
        difference = _describe_difference(module, twin)
        if difference:
            self.said.append(f"{name} built once more is another module: {difference}")
            return None
        return make_target(twin).module


def _list_ancestors(owner: str) -> Iterator[str]:
    """The modules around an owner, outermost first, and the owner itself."""
    parts = owner.split(".") if owner else []
    for depth in range(len(parts) + 1):
        yield ".".join(parts[:depth])


def _find_factory(module: nn.Module) -> Factory | None:
    """How transformers and diffusers build a model from the config that it carries: as their own loading does."""
    kind, config = type(module), getattr(module, "config", None)
    config_class = getattr(kind, "config_class", None)
    if isinstance(config_class, type) and isinstance(config, config_class):
        return lambda: kind(copy.deepcopy(config))
    from_config = getattr(kind, "from_config", None)
    if callable(from_config) and isinstance(config, Mapping) and hasattr(kind, "load_config"):
        return lambda: from_config(dict(config))
    return None


def build_without_parameters(factory: Factory) -> nn.Module:
    """What the factory builds on the CPU, with every parameter on meta: no more than one of them ever takes memory.

    The state of the random number generator is as before.

    >>> twin = build_without_parameters(lambda: nn.BatchNorm1d(3))
    >>> twin.weight.is_meta, twin.running_var
    (True, tensor([1., 1., 1.]))
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _keep_parameters_on_meta():
        return factory()


@contextmanager
def _keep_parameters_on_meta() -> Iterator[None]:
    here = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        # The hook is global: modules that another thread builds meanwhile are none of its business.
        if threading.get_ident() != here or type(parameter) is not nn.Parameter or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _describe_difference(module: nn.Module, twin: Any) -> str:
    if not isinstance(twin, nn.Module):
        return f"the factory gave a {type(twin).__name__}"
    try:
        wanted, found = make_target(module).header, make_target(twin).header
    except FailedCheck as error:
        return error.diagnostics[0].title
    for fqn in dict.fromkeys((*wanted, *found)):
        if fqn not in found or fqn not in wanted:
            return f"{fqn} is only in {'this one' if fqn in wanted else 'that one'}"
        if wanted[fqn].shape != found[fqn].shape:
            return f"{fqn} is {list(found[fqn].shape)} instead of {list(wanted[fqn].shape)}"
    return ""


def _find_fitting_value(
    module: nn.Module, twin: nn.Module, lost: NonPersistent, covered: frozenset[int]
) -> Any | None:
    """The twin's value, in the dtype that the module was built with; None where it does not fit or is no value."""
    wanted, found = _read_value(module, lost.name), _read_value(twin, lost.name)
    if lost.kind == "parameter" or type(wanted) is not type(found):
        return None
    try:
        if isinstance(wanted, dict):
            return {key: _take_value(each, found[key], covered) for key, each in wanted.items()}
        if isinstance(wanted, list | tuple):
            return type(wanted)(_take_value(*pair, covered) for pair in zip(wanted, found, strict=True))
        return _take_value(wanted, found, covered)
    except (KeyError, ValueError):
        return None


def _take_value(ours: Any, theirs: Any, covered: frozenset[int]) -> Any:
    """The twin's tensor where ours has no data and no checkpoint brings it; `ValueError` where it is unlike."""
    if not isinstance(ours, torch.Tensor) or not ours.is_meta or id(ours) in covered:
        return ours
    if not isinstance(theirs, torch.Tensor) or theirs.is_meta or theirs.shape != ours.shape:
        raise ValueError
    return theirs.detach().to(ours.dtype)
