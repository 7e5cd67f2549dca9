"""A module as a target: its slots, the tensors that cannot be loaded, and the one step that fills it.

The module's own `load_state_dict(assign=True)` assigns the tensors, so that its hooks and overrides run as usual.
What torch does not do is added: ties are kept, nothing stays on meta, and a step that fails is undone.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.loading.in_place import copy_values, find_held_names, restore_tensors
from remapkit.tensors.from_torch import header_of
from remapkit.tensors.spec import StateDictSpec, get_leaf

_INTERNAL = frozenset(vars(nn.Module()))
_COMPILED = "_orig_mod"
_EXTRA = "_extra_state"


@dataclass(frozen=True, slots=True)
class ModuleSlot:
    """One target: its key in the module's own state dict, and its current tensor."""

    key: str
    value: torch.Tensor


@dataclass(frozen=True, slots=True)
class NonPersistent:
    """A value on meta that no checkpoint contains: `kind` is parameter, buffer or attribute."""

    fqn: str
    owner: str
    name: str
    kind: str

    @property
    def description(self) -> str:
        """The description for messages."""
        kinds = {"parameter": "a parameter outside the state dict", "buffer": "a non-persistent buffer"}
        return f"{self.fqn}  ({kinds.get(self.kind, 'a plain attribute')})"


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """A module without its wrappers, the header of its state dict, and a slot for every name in it."""

    module: nn.Module
    header: StateDictSpec
    slots: Mapping[str, ModuleSlot]
    extra: tuple[str, ...]
    is_being_built: bool
    """Whether some parameter is still on meta."""

    @property
    def covered_ids(self) -> frozenset[int]:
        """The ids of the tensors in the slots."""
        return frozenset(id(slot.value) for slot in self.slots.values())

    def find_meta_tensors(self) -> tuple[NonPersistent, ...]:
        """Return the values on meta that are not in the state dict."""
        return tuple(_find_meta_tensors(self.module, self.covered_ids))


def unwrap_module(model: nn.Module, assign: bool = False) -> nn.Module:
    """Return the module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`; loading it loads them.

    `DistributedDataParallel` keeps references to the original tensors, so with `assign` it is not unwrapped.

    >>> layer = nn.Linear(2, 2)
    >>> unwrap_module(nn.DataParallel(layer)) is layer
    True
    """
    while True:
        if _is_compiled(model):
            model = model._modules[_COMPILED] or model
        elif isinstance(model, nn.DataParallel) or (not assign and _is_distributed(model)):
            model = model.module  # type: ignore[assignment]
        else:
            return model


def _is_compiled(module: nn.Module) -> bool:
    # By name: importing torch._dynamo takes seconds.
    kind = type(module)
    return kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo")


def _is_distributed(module: nn.Module) -> bool:
    return isinstance(module, nn.parallel.DistributedDataParallel)


def make_target(model: nn.Module, assign: bool = False) -> LoadTarget:
    """Return the module as a target; raises `FailedCheck` (RK324) if its tensors are not plain ones.

    With `assign`, which replaces all tensors, raises also if something else keeps references to them.
    """
    module = unwrap_module(model, assign)
    if problems := list(_find_unsupported(module, assign)):
        raise FailedCheck(problems)
    state = module.state_dict(keep_vars=True)
    compiled = {f"{fqn}.{_COMPILED}." for fqn, submodule in module.named_modules() if fqn and _is_compiled(submodule)}
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    slots = {_remove_compiled_prefix(key, compiled): ModuleSlot(key, value) for key, value in tensors.items()}
    header = header_of({fqn: slot.value for fqn, slot in slots.items()}, name=type(module).__name__)
    others = [key for key in state if key not in tensors]
    packed = [key for key in others if get_leaf(key) != _EXTRA]
    if packed:
        title = (
            f"the state dict of {header.name} has {count_noun(len(packed), 'entry', 'entries')} without a tensor: "
            "packed values cannot be assigned"
        )
        raise FailedCheck(_diagnose_refusal(title, packed, "load it with its own load_state_dict"))
    is_being_built = any(parameter.is_meta for parameter in module.parameters())
    return LoadTarget(module, header, slots, tuple(others), is_being_built)


def _remove_compiled_prefix(key: str, compiled: set[str]) -> str:
    """Return the key without the prefixes that `torch.compile` adds for submodules."""
    for prefix in sorted(compiled, key=len, reverse=True):
        if key.startswith(prefix):
            key = prefix.removesuffix(f"{_COMPILED}.") + key.removeprefix(prefix)
    return key


# ---------------------------------------------------------------------------------------------- what is refused


def _find_unsupported(module: nn.Module, assign: bool) -> Iterator[Diagnostic]:
    refused: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for fqn, submodule in module.named_modules():
        if reason := _explain_module_refusal(submodule, assign):
            refused[reason].append(fqn or type(submodule).__name__)
        for name, value in (*submodule._parameters.items(), *submodule._buffers.items()):
            if value is not None and (
                reason := explain_tensor_refusal(value) or _explain_hooks_refusal(value, assign)
            ):
                refused[reason].append(f"{fqn}.{name}" if fqn else name)
    for (title, help), fqns in refused.items():
        yield _diagnose_refusal(title, fqns, help)


def _diagnose_refusal(title: str, fqns: Sequence[str], help: str) -> Diagnostic:
    return Diagnostic("RK324", title, notes=(list_names(fqns),), help=(help,), values={"names": list(fqns)})


def _explain_module_refusal(module: nn.Module, assign: bool) -> tuple[str, str] | None:
    kind = type(module)
    if assign and _is_distributed(module):
        help = "load the weights before wrapping the model; without assign=True values are copied into its parameters"
        return "DistributedDataParallel keeps the parameters that it was built with", help
    if kind.__module__.startswith(("torch.distributed.fsdp", "torch.distributed._composable")):
        return f"{kind.__name__} holds shards, not whole tensors", "load before sharding"
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module keeps its tensors outside Python", "load the module that it was made from"
    if hasattr(module, "_hf_hook"):
        return "accelerate's hooks keep this module's weights elsewhere", "load before dispatching"
    return None


def explain_tensor_refusal(value: torch.Tensor) -> tuple[str, str] | None:
    kind = type(value)
    if nn.parameter.is_lazy(value):
        return "lazy parameters have no shape yet", "run the module once on a batch, then load"
    if kind not in (torch.Tensor, nn.Parameter):
        name = f"{kind.__module__}.{kind.__qualname__}"
        return f"a {name} is not a plain tensor", "load before quantizing or sharding"
    if value.is_quantized or value.layout != torch.strided:
        what = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
        return f"{what} tensors cannot be loaded from plain bytes", "load it with its own load_state_dict"
    return None


def _explain_hooks_refusal(value: torch.Tensor, assign: bool) -> tuple[str, str] | None:
    hooks = value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None)
    if hooks and (assign or value.is_meta):
        return "hooks on a parameter would be lost when it is replaced", "load before registering hooks"
    return None


# ------------------------------------------------------------------------------------------- what would be left


def _find_meta_tensors(module: nn.Module, covered: frozenset[int]) -> Iterator[NonPersistent]:
    for owner, submodule in module.named_modules():
        prefix = f"{owner}." if owner else ""
        for name, value in _list_values(submodule):
            if _has_meta_tensors(value, covered):
                kind = (
                    "parameter"
                    if name in submodule._parameters
                    else "buffer"
                    if name in submodule._buffers
                    else "attribute"
                )
                yield NonPersistent(prefix + name, owner, name, kind)


def _list_values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield everything in one module that can contain tensors: parameters, buffers, and plain attributes."""
    computed = {hook.name for hook in _find_reparametrizations(module)}
    yield from module._parameters.items()
    yield from module._buffers.items()
    for name, value in vars(module).items():
        if name not in _INTERNAL and name not in computed:
            yield name, value


def find_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of an attribute: itself, or those in a list, tuple or dict."""
    if isinstance(value, torch.Tensor):
        yield value
    elif type(value) in (list, tuple):
        yield from (item for item in value if isinstance(item, torch.Tensor))
    elif type(value) is dict:
        yield from (item for item in value.values() if isinstance(item, torch.Tensor))


def _has_meta_tensors(value: Any, covered: frozenset[int]) -> bool:
    return any(tensor.is_meta and id(tensor) not in covered for tensor in find_tensors(value))


def _find_reparametrizations(module: nn.Module) -> list[Any]:
    """Return the hooks of the old weight_norm and spectral_norm: they compute an attribute before every forward."""
    kinds = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")
    return [hook for hook in module._forward_pre_hooks.values() if type(hook).__module__ in kinds]


# ------------------------------------------------------------------------------------------------ the one step


@dataclass(frozen=True, slots=True)
class SuppliedValue:
    """A value that no checkpoint contains: a buffer or an attribute of a submodule."""

    owner: str
    name: str
    value: Any


def assign(
    target: LoadTarget,
    tensors: Mapping[str, torch.Tensor],
    fills: Sequence[SuppliedValue],
    staying: Collection[str] = (),
) -> None:
    """Put every tensor into its slot. If anything fails, the module is unchanged.

    The names in `staying` keep their tensors, into which the values are copied. That happens last, and has no known
    reason to fail: before it, every tensor is assigned, so that the module's own loading runs as usual.

    Raises `FailedCheck` (RK327) with the error of the module's own loading, or with the values it left on meta.
    """
    with _undo_on_error(target.module), _disable_swapping():
        places = find_held_names(target.module, [target.slots[fqn].value for fqn in staying])
        try:
            _load_state(target, tensors)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            title = f"{target.header.name} refused its state dict; nothing was changed"
            raise FailedCheck(Diagnostic("RK327", title, notes=(said,))) from error
        for fill in fills:
            owner = target.module.get_submodule(fill.owner)
            held = owner._buffers if fill.name in owner._buffers else vars(owner)
            held[fill.name] = fill.value
        _retie_tensors(target.module, {id(target.slots[fqn].value): tensor for fqn, tensor in tensors.items()})
        _recompute_weights(target.module)
        if left := tuple(_find_meta_tensors(target.module, frozenset())):
            title = f"the hooks of {target.header.name} left tensors on meta; nothing was changed"
            raise FailedCheck(Diagnostic("RK327", title, notes=(list_names([value.description for value in left]),)))
        pairs = restore_tensors(places)
        _retie_tensors(target.module, {id(new): old for old, new in pairs})
        copy_values(pairs)


def _load_state(target: LoadTarget, tensors: Mapping[str, torch.Tensor]) -> None:
    state: OrderedDict[str, torch.Tensor] = OrderedDict(
        (target.slots[fqn].key, tensor) for fqn, tensor in tensors.items()
    )
    # The keys are those of the current module, so its current version is set: nothing is migrated from an older one.
    state._metadata = getattr(target.module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    left_out = {slot.key for fqn, slot in target.slots.items() if fqn not in tensors} | set(target.extra)
    result = target.module.load_state_dict(state, strict=False, assign=True)
    wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if key not in left_out)]
    if wrong:
        raise RuntimeError(f"keys that it did not take: {', '.join(wrong)}")


def _retie_tensors(root: nn.Module, now: Mapping[int, torch.Tensor]) -> None:
    """Restore ties: names outside the state dict, and plain attributes, that were the same tensor stay the same."""
    for module in root.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if id(value) in now:
                    held[name] = now[id(value)]  # type: ignore[assignment]
        for name, value in list(vars(module).items()):
            if name not in _INTERNAL and any(id(tensor) in now for tensor in find_tensors(value)):
                _replace_value(module, name, value, now)


def _replace_value(module: nn.Module, name: str, value: Any, now: Mapping[int, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        vars(module)[name] = now[id(value)]
    elif isinstance(value, list):
        value[:] = [now.get(id(item), item) for item in value]
    elif isinstance(value, tuple):
        vars(module)[name] = tuple(now.get(id(item), item) for item in value)
    else:
        value.update({key: now.get(id(item), item) for key, item in value.items()})


def _recompute_weights(module: nn.Module) -> None:
    """Compute now what the old weight_norm and spectral_norm compute from their parameters before each forward."""
    with torch.no_grad():
        for submodule in module.modules():
            for hook in _find_reparametrizations(submodule):
                power = {"do_power_iteration": False} if "spectral" in type(hook).__module__ else {}
                setattr(submodule, hook.name, hook.compute_weight(submodule, **power))


@contextmanager
def _undo_on_error(module: nn.Module) -> Iterator[None]:
    before = [(submodule, dict(vars(submodule)), _copy_tables(submodule)) for submodule in module.modules()]
    try:
        yield
    except BaseException:
        for submodule, attributes, copies in before:
            vars(submodule).clear()
            vars(submodule).update(attributes)
            for name, held in copies.items():
                container = attributes[name]
                if isinstance(container, list):
                    container[:] = held
                else:
                    container.clear()
                    container.update(held)
        raise


def _copy_tables(module: nn.Module) -> dict[str, Any]:
    """Copy what is changed in place: the dicts of parameters and buffers, and lists and dicts of tensors."""
    return {
        name: value.copy()
        for name, value in vars(module).items()
        if name in ("_parameters", "_buffers")
        or (name not in _INTERNAL and type(value) in (list, dict) and next(find_tensors(value), None) is not None)
    }


@contextmanager
def _disable_swapping() -> Iterator[None]:
    """Disable swapping while the block runs: a tensor with two names would be swapped twice, which restores it."""
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(False)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
