"""A module as something to load into: its slots, what it cannot be loaded with, and the one step that fills it.

The module's own `load_state_dict(assign=True)` does the assigning, so that its hooks and overrides run as they do
for everybody. What torch leaves to the caller is added: ties hold, nothing stays on meta, and a step that fails is
undone.
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
    """One target: its key in the module's own state dict, and the tensor that is there now."""

    key: str
    value: torch.Tensor


@dataclass(frozen=True, slots=True)
class NonPersistent:
    """A value that is on meta and that no checkpoint has: `kind` is parameter, buffer or attribute."""

    fqn: str
    owner: str
    name: str
    kind: str

    @property
    def description(self) -> str:
        """For messages."""
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
    """Whether some parameter is on meta still."""

    @property
    def covered_ids(self) -> frozenset[int]:
        """The identities of the tensors that the slots hold."""
        return frozenset(id(slot.value) for slot in self.slots.values())

    def find_meta_tensors(self) -> tuple[NonPersistent, ...]:
        """What is on meta beside the slots."""
        return tuple(_find_meta_tensors(self.module, self.covered_ids))


def unwrap_module(model: nn.Module, assign: bool = False) -> nn.Module:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`; loading it is loading them.

    The last one holds on to the tensors that it was built with: it is left where these are to be replaced.

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
    """The module as a target; raises `FailedCheck` (RK324) for one whose tensors are not plain ones.

    With `assign`, also for one that something holds on to: every tensor of it will be replaced.
    """
    module = unwrap_module(model, assign)
    if problems := list(_find_unsupported(module, assign)):
        raise FailedCheck(problems)
    state = module.state_dict(keep_vars=True)
    compiled = {f"{fqn}.{_COMPILED}." for fqn, each in module.named_modules() if fqn and _is_compiled(each)}
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
    """The key without what `torch.compile` puts into it for a submodule."""
    for prefix in sorted(compiled, key=len, reverse=True):
        if key.startswith(prefix):
            key = prefix.removesuffix(f"{_COMPILED}.") + key.removeprefix(prefix)
    return key


# ---------------------------------------------------------------------------------------------- what is refused


def _find_unsupported(module: nn.Module, assign: bool) -> Iterator[Diagnostic]:
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for fqn, each in module.named_modules():
        if reason := _explain_module_refusal(each, assign):
            found[reason].append(fqn or type(each).__name__)
        for name, value in (*each._parameters.items(), *each._buffers.items()):
            if value is not None and (
                reason := explain_tensor_refusal(value) or _explain_hooks_refusal(value, assign)
            ):
                found[reason].append(f"{fqn}.{name}" if fqn else name)
    for (title, help), fqns in found.items():
        yield _diagnose_refusal(title, fqns, help)


def _diagnose_refusal(title: str, fqns: Sequence[str], help: str) -> Diagnostic:
    return Diagnostic("RK324", title, notes=(list_names(fqns),), help=(help,), values={"names": list(fqns)})


def _explain_module_refusal(module: nn.Module, assign: bool) -> tuple[str, str] | None:
    kind = type(module)
    if assign and _is_distributed(module):
        help = "load first, wrap then; or leave assign=True out, and the values are copied into them"
        return "DistributedDataParallel holds on to the parameters it was built with", help
    if kind.__module__.startswith(("torch.distributed.fsdp", "torch.distributed._composable")):
        return f"{kind.__name__} holds shards, not whole tensors", "load first, shard then"
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module keeps its tensors outside Python", "load the module that it was made from"
    if hasattr(module, "_hf_hook"):
        return "accelerate's hooks keep this module's weights elsewhere", "load first, dispatch then"
    return None


def explain_tensor_refusal(value: torch.Tensor) -> tuple[str, str] | None:
    kind = type(value)
    if nn.parameter.is_lazy(value):
        return "lazy parameters have no shape yet", "run the module once on a batch, then load"
    if kind not in (torch.Tensor, nn.Parameter):
        name = f"{kind.__module__}.{kind.__qualname__}"
        return f"a {name} is not the plain bytes that a checkpoint brings", "load first, quantise or shard then"
    if value.is_quantized or value.layout != torch.strided:
        what = "quantised" if value.is_quantized else str(value.layout).removeprefix("torch.")
        return f"{what} tensors are more than their bytes", "load it with its own load_state_dict"
    return None


def _explain_hooks_refusal(value: torch.Tensor, assign: bool) -> tuple[str, str] | None:
    hooks = value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None)
    if hooks and (assign or value.is_meta):
        return "hooks on a parameter would be lost with it", "load first, register hooks then"
    return None


# ------------------------------------------------------------------------------------------- what would be left


def _find_meta_tensors(module: nn.Module, covered: frozenset[int]) -> Iterator[NonPersistent]:
    for owner, each in module.named_modules():
        prefix = f"{owner}." if owner else ""
        for name, value in _list_values(each):
            if _has_meta_tensors(value, covered):
                kind = "parameter" if name in each._parameters else "buffer" if name in each._buffers else "attribute"
                yield NonPersistent(prefix + name, owner, name, kind)


def _list_values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything of one module that can hold tensors: parameters, buffers, and what it keeps as plain attributes."""
    computed = {hook.name for hook in _find_reparametrizations(module)}
    yield from module._parameters.items()
    yield from module._buffers.items()
    for name, value in vars(module).items():
        if name not in _INTERNAL and name not in computed:
            yield name, value


def find_tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of an attribute: itself, or what a list, tuple or dict holds."""
    if isinstance(value, torch.Tensor):
        yield value
    elif type(value) in (list, tuple):
        yield from (each for each in value if isinstance(each, torch.Tensor))
    elif type(value) is dict:
        yield from (each for each in value.values() if isinstance(each, torch.Tensor))


def _has_meta_tensors(value: Any, covered: frozenset[int]) -> bool:
    return any(each.is_meta and id(each) not in covered for each in find_tensors(value))


def _find_reparametrizations(module: nn.Module) -> list[Any]:
    """The old weight_norm and spectral_norm: hooks that compute a plain attribute before every forward."""
    kinds = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")
    return [hook for hook in module._forward_pre_hooks.values() if type(hook).__module__ in kinds]


# ------------------------------------------------------------------------------------------------ the one step


@dataclass(frozen=True, slots=True)
class SuppliedValue:
    """A value for what no checkpoint brings: a buffer or an attribute of a submodule."""

    owner: str
    name: str
    value: Any


def assign(
    target: LoadTarget,
    tensors: Mapping[str, torch.Tensor],
    fills: Sequence[SuppliedValue],
    staying: Collection[str] = (),
) -> None:
    """Put every tensor into its slot. Whatever fails, the module is then as it was before.

    The names of `staying` keep the tensors that they have, which take the values. That comes last and cannot fail by
    what is known beforehand: until then every tensor is assigned, so that the module's own loading has had its say.

    Raises `FailedCheck` (RK327) with what the module's own loading said, or with what it left on meta.
    """
    with _undo_on_error(target.module), _disable_swapping():
        places = find_held_names(target.module, [target.slots[fqn].value for fqn in staying])
        try:
            _load_state(target, tensors)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            title = f"{target.header.name} refused its state dict; it is as it was before"
            raise FailedCheck(Diagnostic("RK327", title, notes=(said,))) from error
        for fill in fills:
            owner = target.module.get_submodule(fill.owner)
            held = owner._buffers if fill.name in owner._buffers else vars(owner)
            held[fill.name] = fill.value
        _retie_tensors(target.module, {id(target.slots[fqn].value): tensor for fqn, tensor in tensors.items()})
        _recompute_weights(target.module)
        if left := tuple(_find_meta_tensors(target.module, frozenset())):
            title = f"the hooks of {target.header.name} left tensors on meta; it is as it was before"
            raise FailedCheck(Diagnostic("RK327", title, notes=(list_names([each.description for each in left]),)))
        pairs = restore_tensors(places)
        _retie_tensors(target.module, {id(new): old for old, new in pairs})
        copy_values(pairs)


def _load_state(target: LoadTarget, tensors: Mapping[str, torch.Tensor]) -> None:
    state: OrderedDict[str, torch.Tensor] = OrderedDict(
        (target.slots[fqn].key, tensor) for fqn, tensor in tensors.items()
    )
    # The keys are those of the module as it is now: its version, so that nothing is migrated from an older one.
    state._metadata = getattr(target.module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    left_out = {slot.key for fqn, slot in target.slots.items() if fqn not in tensors} | set(target.extra)
    found = target.module.load_state_dict(state, strict=False, assign=True)
    wrong = [*found.unexpected_keys, *(key for key in found.missing_keys if key not in left_out)]
    if wrong:
        raise RuntimeError(f"not taken: {', '.join(wrong)}")


def _retie_tensors(root: nn.Module, now: Mapping[int, torch.Tensor]) -> None:
    """Names outside the state dict, and plain attributes, that were the same tensor go on being the same tensor."""
    for module in root.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if id(value) in now:
                    held[name] = now[id(value)]  # type: ignore[assignment]
        for name, value in list(vars(module).items()):
            if name not in _INTERNAL and any(id(each) in now for each in find_tensors(value)):
                _replace_value(module, name, value, now)


def _replace_value(module: nn.Module, name: str, value: Any, now: Mapping[int, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        vars(module)[name] = now[id(value)]
    elif isinstance(value, list):
        value[:] = [now.get(id(each), each) for each in value]
    elif isinstance(value, tuple):
        vars(module)[name] = tuple(now.get(id(each), each) for each in value)
    else:
        value.update({key: now.get(id(each), each) for key, each in value.items()})


def _recompute_weights(module: nn.Module) -> None:
    """What the old weight_norm and spectral_norm compute from their parameters before a forward, computed now."""
    with torch.no_grad():
        for each in module.modules():
            for hook in _find_reparametrizations(each):
                power = {"do_power_iteration": False} if "spectral" in type(hook).__module__ else {}
                setattr(each, hook.name, hook.compute_weight(each, **power))


@contextmanager
def _undo_on_error(module: nn.Module) -> Iterator[None]:
    before = [(each, dict(vars(each)), _copy_tables(each)) for each in module.modules()]
    try:
        yield
    except BaseException:
        for each, attributes, copies in before:
            vars(each).clear()
            vars(each).update(attributes)
            for name, held in copies.items():
                container = attributes[name]
                if isinstance(container, list):
                    container[:] = held
                else:
                    container.clear()
                    container.update(held)
        raise


def _copy_tables(module: nn.Module) -> dict[str, Any]:
    """What is changed in place: the tables of parameters and buffers, and lists and dicts of tensors."""
    return {
        name: value.copy()
        for name, value in vars(module).items()
        if name in ("_parameters", "_buffers")
        or (name not in _INTERNAL and type(value) in (list, dict) and next(find_tensors(value), None) is not None)
    }


@contextmanager
def _disable_swapping() -> Iterator[None]:
    """Without swapping: a tensor under two names would be swapped twice, back to what it was."""
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(False)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
