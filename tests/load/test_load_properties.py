"""Random modules and random files: what is loaded is what torch loads, and no write reaches where it should not."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from load_kit import everything, on_meta, raw, refused
from safetensors.torch import save_file
from torch import nn

import remapkit
from remapkit.loading import prepare as job
from remapkit.loading import sources as values
from remapkit.loading import transfer as carry

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
NAMES = ("w", "a.w", "a.b", "a.c.w", "d.w", "d.b")


@dataclass(frozen=True)
class Held:
    """One tensor of a random module: where its bytes lie in a common storage, and how it is held."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    transposed: bool
    parameter: bool
    trained: bool
    tied_to: str | None = None


@st.composite
def bags(draw: st.DrawFn) -> tuple[Held, ...]:
    held: list[Held] = []
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True)):
        first = draw(st.sampled_from([None, *(each for each in held if each.tied_to is None)]))
        if first is not None and draw(st.booleans()):
            held.append(Held(name, first.shape, first.dtype, 0, False, first.parameter, first.trained, first.name))
            continue
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        dtype = draw(st.sampled_from(DTYPES))
        flags = [draw(st.booleans()) for _ in range(3)]
        trained = flags[2] and dtype.is_floating_point
        held.append(Held(name, shape, dtype, draw(st.integers(0, 3)), flags[0], flags[1], trained))
    return tuple(held)


def storages() -> dict[torch.dtype, torch.Tensor]:
    numbers = torch.arange(40, dtype=torch.float64)
    return {dtype: (numbers % 2 if dtype == torch.bool else numbers).to(dtype) for dtype in DTYPES}


def view(held: Held, storage: torch.Tensor) -> torch.Tensor:
    shape = held.shape[::-1] if held.transposed else held.shape
    size = torch.Size(shape).numel()
    found = storage[held.start : held.start + size].view(shape)
    return found.permute(tuple(reversed(range(found.ndim)))) if held.transposed else found


def build(bag: tuple[Held, ...]) -> nn.Module:
    """The module that holds what the bag says, on the device that is the default."""
    root = nn.Module()
    made: dict[str, torch.Tensor] = {}
    for each in bag:
        owner = root
        *path, leaf = each.name.split(".")
        for step in path:
            if not hasattr(owner, step):
                owner.add_module(step, nn.Module())
            owner = owner.get_submodule(step)
        tensor = made.get(each.tied_to or "")
        if tensor is None:
            tensor = torch.zeros(each.shape, dtype=each.dtype)
            tensor = nn.Parameter(tensor, requires_grad=each.trained) if each.parameter else tensor
        made[each.name] = tensor
        if each.parameter:
            owner.register_parameter(leaf, tensor)  # type: ignore[arg-type]
        else:
            owner.register_buffer(leaf, tensor)
    return root


def state_of(bag: tuple[Held, ...]) -> dict[str, torch.Tensor]:
    """Views of shared storages under every name."""
    common = storages()
    by_name = {each.name: each for each in bag}
    return {each.name: view(by_name[each.tied_to or each.name], common[each.dtype]) for each in bag}


def save(state: dict[str, torch.Tensor], kind: str, folder: Path) -> Any:
    if kind == "memory":
        return state
    path = folder / f"m.{kind}"
    if kind == "safetensors":
        save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def check(bag: tuple[Held, ...], kind: str, where: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        given_state = state_of(bag)
        source = save(given_state, kind, Path(folder))
        wanted = build(bag)
        wanted.load_state_dict(given_state)
        model = on_meta(lambda: build(bag)) if where == "meta" else build(bag)
        loaded = remapkit.load_into(model, source)
        same(model, wanted)
        assert loaded.tensors == sum(each.tied_to is None for each in bag)
        for each in bag:
            if each.tied_to:
                assert held_by(model, each.name) is held_by(model, each.tied_to)
        writes_stay_apart(model, bag)


def same(model: nn.Module, wanted: nn.Module) -> None:
    ours, theirs = dict(everything(model)), dict(everything(wanted))
    assert sorted(ours) == sorted(theirs)
    for name, value in ours.items():
        other = theirs[name]
        assert (type(value), value.requires_grad, value.dtype) == (type(other), other.requires_grad, other.dtype)
        assert value.shape == other.shape
        assert not value.is_meta and raw(value) == raw(other), name


def held_by(model: nn.Module, fqn: str) -> torch.Tensor:
    owner, _, name = fqn.rpartition(".")
    found = getattr(model.get_submodule(owner), name)
    assert isinstance(found, torch.Tensor)
    return found


def writes_stay_apart(model: nn.Module, bag: tuple[Held, ...]) -> None:
    """Writing to one tensor changes the tensors that are tied to it, and no other."""
    single = [each.name for each in bag if each.tied_to is None]
    for name in single:
        others = {other: raw(held_by(model, other)) for other in single if other != name}
        tensor = held_by(model, name)
        with torch.no_grad():
            tensor.copy_(~tensor if tensor.dtype == torch.bool else 1 - tensor)
        assert others == {other: raw(held_by(model, other)) for other in others}, name


kinds = st.sampled_from(["safetensors", "pth", "memory"])
places = st.sampled_from(["meta", "cpu"])
many = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(bags(), kinds, places)
def test_what_is_loaded_is_what_torch_loads_and_writes_stay_apart(
    bag: tuple[Held, ...], kind: str, where: str
) -> None:
    check(bag, kind, where)


@many
@given(bags(), kinds, places, st.data())
def test_any_one_fault_is_refused_and_nothing_is_touched(
    bag: tuple[Held, ...], kind: str, where: str, data: st.DataObject
) -> None:
    """A planted fault in the file: a key gone, a stranger, another shape, another kind of number."""
    state = state_of(bag)
    ties = {each.tied_to for each in bag if each.tied_to}
    free = [each.name for each in bag if each.tied_to is None and each.name not in ties]
    faults: list[tuple[str, str, torch.Tensor | None]] = [("RK311", "stranger", torch.ones(1))]
    for name in free:
        shape, dtype = state[name].shape, state[name].dtype
        other = torch.zeros(shape, dtype=torch.int64 if dtype.is_floating_point else torch.float32)
        if len(state) > 1:
            faults.append(("RK310", name, None))
        faults.append(("RK312", name, torch.zeros(7, dtype=dtype)))
        faults.append(("RK320", name, other))
    code, name, planted = data.draw(st.sampled_from(faults))
    state.pop(name, None)
    if planted is not None:
        state[name] = planted
    with tempfile.TemporaryDirectory() as folder:
        model = on_meta(lambda: build(bag)) if where == "meta" else build(bag)
        text = refused(code, model, save(state, kind, Path(folder)))
    assert code in text


frombuffer = torch.frombuffer


def shifted(buffer: Any, *, offset: int, **options: Any) -> torch.Tensor:
    """Like `torch.frombuffer`, but four bytes early."""
    return frombuffer(buffer, offset=offset - 4, **options)


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "overlaps shared": (job, "find_overlapping_targets", lambda *_: frozenset()),
    "the file's pages taken for one another": (values.torch, "frombuffer", shifted),
    "ties forgotten": (job, "_list_tied_groups", lambda moves, target: ((fqn,) for fqn in moves)),
    "flags forgotten": (carry, "_wrap_as_held", lambda held, made: made),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_faults_are_killed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check, over the same kind of input, fails for each of these loaders."""
    where, name, planted = MUTANTS[mutant]
    monkeypatch.setattr(where, name, planted)
    first = Held("w", (2, 2), torch.float32, 0, False, True, False)
    bag = (
        first,
        Held("a.w", (2, 2), torch.float32, 1, False, True, True),
        Held("a.b", (2, 2), torch.float32, 0, False, True, False, "w"),
    )
    with pytest.raises((AssertionError, remapkit.RemapkitError)):
        check(bag, "pth", "meta")
    monkeypatch.undo()
    check(bag, "pth", "meta")
