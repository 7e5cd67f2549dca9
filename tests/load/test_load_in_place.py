"""Loading into a module that is in use: what others hold goes on being what the module computes with.

The kinds: who holds on to tensors (an optimizer, an average of the weights, `DistributedDataParallel`, flattened RNN
weights, hooks, tied names, plain attributes), what has memory and what is on meta in one module, and what a tensor
that stays cannot take (another device, another dtype, memory that its elements share). The property: for random
modules with a random part on meta, every tensor that had memory is the same object in the same memory afterwards,
with the checkpoint's bytes. A loader that assigns all of them is seen to fail it.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from load_kit import Plain, Tiny, on_meta, raw, refused, same_state, snapshot
from safetensors.torch import save_file
from torch import nn

import remapkit
from remapkit.api.ruleset import compile_rules
from remapkit.diagnostics.errors import FailedCheck
from remapkit.loading import in_place as inplace
from remapkit.loading import module
from remapkit.loading import prepare as job
from remapkit.loading.sources import MemoryValues
from remapkit.plans.make import make_plan
from remapkit.rulefile.read import read_text
from remapkit.tensors.from_torch import header_of


def file(state: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "m.safetensors"
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    return path


class Mixed(nn.Module):
    """Layers of several kinds, one buffer beside them; any part of it may be on meta."""

    def __init__(self, on_meta_too: tuple[bool, ...] = (False,) * 4) -> None:
        super().__init__()
        makers = (lambda: nn.Linear(4, 4), lambda: nn.BatchNorm1d(4), lambda: nn.LSTM(4, 4), lambda: nn.Linear(4, 4))
        made = []
        for maker, meta in zip(makers, on_meta_too, strict=True):
            with torch.device("meta" if meta else "cpu"):
                made.append(maker())
        self.first, self.norm, self.lstm, self.last = made
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.lstm(self.norm(self.first(x)))[0]) * self.scale
        return out


def check_kept(parts: tuple[bool, ...], kind: str, folder: Path) -> None:
    """All that is promised of a module that an optimizer and an average of its weights hold on to."""
    model, source = Mixed(parts).eval(), Mixed()
    before = {name: (value, value.data_ptr()) for name, value in model.state_dict(keep_vars=True).items()}
    real = {name for name, (value, _) in before.items() if not value.is_meta}
    trained = [before[name][0] for name in real if isinstance(before[name][0], nn.Parameter)]
    optimizer = torch.optim.SGD(trained, lr=0.5) if trained else None
    average = torch.optim.swa_utils.AveragedModel(model) if len(real) == len(before) else None
    state = source.state_dict()
    loaded = remapkit.load_into(model, state if kind == "memory" else file(state, folder))
    after = model.state_dict(keep_vars=True)
    for name, (value, pointer) in before.items():
        assert raw(after[name]) == raw(state[name]), name
        if name in real:
            assert after[name] is value and value.data_ptr() == pointer, name
    assert loaded.shared == len(before) - len(real)
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    if optimizer is not None:
        first = model(x)
        first.square().sum().backward()
        optimizer.step()
        assert bool((model(x) - first).abs().max() > 1e-6), "the optimizer moves other tensors"
    if average is not None:
        average.update_parameters(model)
        assert raw(average.module.last.weight) == raw(model.last.weight)
    assert [raw(value) for value in state.values()] == [raw(v) for v in source.state_dict().values()]


parts = st.tuples(*[st.booleans()] * 4)


@settings(max_examples=40)
@given(parts, st.sampled_from(["file", "memory"]))
def test_whatever_has_memory_stays__A26(tmp_path_factory: Any, which: tuple[bool, ...], kind: str) -> None:
    check_kept(which, kind, tmp_path_factory.mktemp("kept"))


def test_a_loader_that_assigns_all_would_be_seen__A26(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "is_filled_in_place", lambda *_: False)
    with pytest.raises(AssertionError):
        check_kept((False,) * 4, "file", tmp_path)
    with pytest.raises(AssertionError):
        check_kept((True, False, True, True), "memory", tmp_path)


def test_assign_replaces_every_tensor(tmp_path: Path) -> None:
    model, source = Plain(), Plain()
    before = [id(each) for each in model.parameters()]
    loaded = remapkit.load_into(model, file(source.state_dict(), tmp_path), assign=True)
    assert loaded.shared == 3 and not set(before) & {id(each) for each in model.parameters()}
    same_state(model, source)


def test_nothing_of_the_file_stays_mapped(tmp_path: Path) -> None:
    path = file(Plain().state_dict(), tmp_path)
    remapkit.load_into(model := Plain(), path)
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()
    before = snapshot(model)
    path.write_bytes(b"")
    assert snapshot(model) == before


# ------------------------------------------------------------------------------------------- who holds on to tensors


@pytest.mark.parametrize("inner", [False, True], ids=["wrapper", "module"])
def test_distributed_data_parallel_goes_on(inner: bool, tmp_path: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        source, wrapped = Tiny(), nn.parallel.DistributedDataParallel(Tiny())
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5)
        remapkit.load_into(wrapped.module if inner else wrapped, source.state_dict())
        same_state(wrapped.module, source)
        wrapped(torch.arange(5)).square().sum().backward()
        assert wrapped.module.embed.weight.grad is not None
        optimizer.step()
        assert raw(wrapped.module.embed.weight) != raw(source.embed.weight)
        text = refused("RK324", wrapped, source.state_dict(), assign=True)
        assert "copied into" in text
        refused("RK334", wrapped, source.state_dict(), requires_grad=False)
    finally:
        dist.destroy_process_group()


def test_hooks_on_parameters_stay() -> None:
    model, source, seen = Plain(), Plain(), []
    model.a.weight.register_hook(lambda grad: seen.append(1))
    remapkit.load_into(model, source.state_dict())
    model(torch.ones(1, 4)).sum().backward()
    assert seen == [1]
    same_state(model, source)


def test_attributes_and_gradients_stay() -> None:
    model, source = Plain(), Plain()
    model.alias, model.several = model.a.weight.data, [model.b.weight]
    model.b.weight.grad = torch.ones(4, 4)
    marked = weakref.ref(model.b.weight)
    remapkit.load_into(model, source.state_dict())
    assert model.several[0] is model.b.weight is marked() and model.b.weight.grad is not None
    assert raw(model.alias) == raw(source.a.weight)


def test_layouts_stay() -> None:
    model, source = Plain(), Plain()
    model.a.weight = nn.Parameter(torch.zeros(4, 4).t())
    model.b.weight = nn.Parameter(torch.zeros(4, 9)[:, 1:9:2])
    strides = [each.stride() for each in model.parameters()]
    remapkit.load_into(model, source.state_dict())
    assert [each.stride() for each in model.parameters()] == strides
    same_state(model, source)


def test_the_modules_own_tensors_change_places() -> None:
    """A state dict of the module itself, by rules that swap: nothing is read after it was written."""
    text = "remapkit: 1\nname: swap\nrules:\n  - {id: ab, path: a.weight, to: b.weight}\n"
    text += "  - {id: ba, path: b.weight, to: a.weight}\n  - {id: bias, path: a.bias, to: a.bias}\n"
    model = Plain()
    one, other = raw(model.a.weight), raw(model.b.weight)
    remapkit.load_into(model, model.state_dict(), compile_rules(read_text(text)))
    assert (raw(model.a.weight), raw(model.b.weight)) == (other, one)


def test_a_copy_from_what_was_written_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "has_overlap", lambda *_: False)
    with pytest.raises(AssertionError):
        test_the_modules_own_tensors_change_places()


def preparing(layers: int, kind: type[nn.Module]) -> Callable[[], object]:
    """What comes before the module's own loading, whose work torch makes grow with children times keys."""
    model, source = (nn.Sequential(*(kind(2, 2) for _ in range(layers))) for _ in range(2))
    state = source.state_dict()
    identity = compile_rules(read_text("remapkit: 1\nname: i\nunmatched: keep\nrules: []\n"))
    wanted = job.LoadRequest(None, None, None, False)

    def prepare() -> None:
        plan = make_plan(identity, header_of(state, "a state dict"))
        found = job.plan_load(module.make_target(model), plan, MemoryValues(state), wanted, True, "refuse", {})
        assert len(found.assignments) == len(state) and not found.problems

    return prepare


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.Linear], ids=["buffers", "parameters"])
def test_twice_the_keys_are_twice_the_work(
    work: Callable[[Callable[[], object]], int], kind: type[nn.Module]
) -> None:
    preparing(2, kind)()  # what is made at the first use
    one, two = (work(preparing(layers, kind)) for layers in (100, 200))
    assert two <= 2.2 * one + 1000


def test_looking_at_every_stretch_for_every_tensor_would_be_seen(
    work: Callable[[Callable[[], object]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "has_overlap", lambda one, others: any(meets(one, other) for other in others))
    with pytest.raises(AssertionError):
        test_twice_the_keys_are_twice_the_work(work, nn.Linear)


def meets(one: inplace.MemoryRange, other: inplace.MemoryRange) -> bool:
    return one[0] == other[0] and max(one[1], other[1]) < min(one[2], other[2])


ends = st.tuples(st.integers(0, 30), st.integers(0, 6))
stretches = st.builds(lambda where, ends: (where, ends[0], sum(ends)), st.sampled_from(["cpu", "cuda:0"]), ends)


@given(stretches.filter(lambda one: one[1] < one[2]), st.lists(stretches, max_size=8))
def test_overlaps_are_those_of_each_with_each(one: inplace.MemoryRange, others: list[inplace.MemoryRange]) -> None:
    assert inplace.has_overlap(one, inplace.merge_memory_ranges(others)) == any(meets(one, other) for other in others)


def test_inference_tensors_and_inference_mode() -> None:
    source = Plain()
    with torch.inference_mode():
        built = Plain()
    remapkit.load_into(built, source.state_dict())
    same_state(built, source)
    model = Plain()
    with torch.inference_mode():
        remapkit.load_into(model, source.state_dict())
    model(torch.ones(1, 4)).sum().backward()
    assert model.a.weight.grad is not None


# ------------------------------------------------------------------------------------------------- dtypes and devices


def test_a_tensor_that_stays_casts_to_its_own_dtype(tmp_path: Path) -> None:
    model, source = Plain().bfloat16(), Plain()
    loaded = remapkit.load_into(model, file(source.state_dict(), tmp_path))
    assert dict(loaded.casts) == {("F32", "BF16"): 3} and loaded.rounded == 3
    assert "RK313" not in [note.code for note in loaded.notes]
    same_state(model, copy.deepcopy(source).bfloat16())


def test_what_a_tensor_that_stays_cannot_be_is_refused(tmp_path: Path) -> None:
    state = Plain().state_dict()
    assert "model.to(torch.bfloat16)" in refused("RK330", Plain(), state, dtype=torch.bfloat16)
    remapkit.load_into(Plain(), state, dtype=torch.float32)
    model = Plain()
    model.a.bias = nn.Parameter(torch.zeros(1).expand(4))
    assert "a.bias" in refused("RK332", model, state)
    remapkit.load_into(model, state, assign=True)
    norm = nn.BatchNorm1d(3)
    odd = {**nn.BatchNorm1d(3).state_dict(), "num_batches_tracked": torch.tensor(3, dtype=torch.int32)}
    assert "I32" in refused("RK333", norm, odd)


def test_another_device_is_refused_and_buffers_of_a_module_that_is_being_built_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Plain()
    target, wanted = module.make_target(model), job.LoadRequest(torch.device("cuda", 0), None, None, False)
    assert set(job._find_misplaced(target, wanted)) == {"a.weight", "a.bias", "b.weight"}
    built = on_meta(Tiny)
    built.norm.running_mean = torch.zeros(6)
    target = module.make_target(built)
    assert not job._find_misplaced(target, wanted) and not job.is_filled_in_place(
        built.norm.running_mean, target, wanted
    )


# -------------------------------------------------------------------------------------------------- failures, undone


def test_a_disk_that_fails_leaves_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain call, without `copy=True`: what is copied into the module is read before the first copy."""
    from remapkit.loading import sources as values

    path = file(Plain().state_dict(), tmp_path)
    preadv, reads = values.os.preadv, []

    def failing(*arguments: Any) -> int:
        reads.append(1)
        if len(reads) > 2:
            raise OSError(5, "Input/output error")
        return preadv(*arguments)

    monkeypatch.setattr(values.os, "preadv", failing)
    refused("RK400", Plain(), path)
    assert len(reads) == 3


class Refuses(Plain):
    """A module whose own loading fails after some of its tensors were taken."""

    def __init__(self) -> None:
        super().__init__()
        self.b.register_load_state_dict_post_hook(self.fail)

    @staticmethod
    def fail(*_: Any) -> None:
        raise ValueError("not today")


def test_a_module_that_refuses_has_its_bytes() -> None:
    refused("RK327", Refuses(), Plain().state_dict())


class Doubles(Plain):
    """A module that changes what it loads, as torch lets it."""

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        state[f"{prefix}a.weight"] = state[f"{prefix}a.weight"].flip(0)
        super()._load_from_state_dict(state, prefix, *rest)


def test_a_module_that_changes_what_it_loads() -> None:
    source, model = Plain(), Doubles()
    held, given_bytes = model.a.weight, raw(source.a.weight)
    remapkit.load_into(model, source.state_dict())
    assert model.a.weight is held and raw(held) == raw(source.a.weight.flip(0))
    assert raw(source.a.weight) == given_bytes


@pytest.mark.parametrize("view", ["transposed", "sliced"])
def test_parameters_that_share_some_of_their_memory_are_refused(view: str) -> None:
    """One copy would undo another; columns of one matrix that have no element in common are told from them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tok = nn.Embedding(16, 8)
            data = self.tok.weight.data
            self.out = nn.Parameter(data.t() if view == "transposed" else data[8:])

    model = Net()
    before = model.tok.weight.clone()
    state = {"tok.weight": torch.ones(16, 8), "out": torch.full(model.out.shape, 2.0)}
    with pytest.raises(FailedCheck) as error:
        remapkit.load_into(model, state)
    assert [each.code for each in error.value.diagnostics] == ["RK332"]
    assert "tok.weight" in str(error.value) and torch.equal(model.tok.weight, before)
    remapkit.load_into(model, state, assign=True)
    assert model.tok.weight.eq(1).all() and model.out.eq(2).all()
    whole = torch.zeros(4, 4)
    halves = nn.ParameterDict({"a": nn.Parameter(whole[:, :2]), "b": nn.Parameter(whole[:, 2:])})
    remapkit.load_into(halves, {"a": torch.ones(4, 2), "b": torch.full((4, 2), 2.0)})
    assert whole.sum() == 24
