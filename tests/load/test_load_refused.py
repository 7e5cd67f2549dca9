"""Whatever is wrong is said, all of it, with names, before anything is touched; what fails later is undone."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from load_kit import Plain, Tiny, on_meta, refused, same_state, snapshot
from safetensors.torch import save_file
from torch import nn

import remapkit
from remapkit.loading import load as into
from remapkit.loading import module
from remapkit.loading import sources as values


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("where", ["meta", "cpu"])
def test_missing_unexpected_and_misshapen_are_said_together(where: str) -> None:
    state = state_of(Plain())
    state["stranger"] = state.pop("b.weight")
    state["a.bias"] = torch.zeros(9)
    model = on_meta(Plain) if where == "meta" else Plain()
    for code in ("RK310", "RK311", "RK312"):
        text = refused(code, model, state)
    assert all(word in text for word in ("b.weight", "stranger", "[9]", "[4]"))


def test_plans_with_problems_are_refused(tmp_path: Path) -> None:
    rules = tmp_path / "r.yaml"
    rules.write_text(
        "remapkit: 1\nname: r\nrules: [{id: a, path: 'a.{leaf:weight|bias}', to: 'a.weight', forget: [leaf]}]\n"
    )
    for code in ("RK301", "RK303"):
        refused(code, Plain(), state_of(Plain()), rules)


@pytest.mark.parametrize(
    ("brought", "held", "words"),
    [
        (torch.float32, torch.int64, "F32 (floats), Bag has I64 (integers)"),
        (torch.int32, torch.float32, "I32 (integers), Bag has F32 (floats)"),
        (torch.bool, torch.uint8, "BOOL (bools), Bag has U8 (integers)"),
        (torch.complex64, torch.float32, "C64 (complex numbers), Bag has F32 (floats)"),
        (torch.float8_e4m3fn, torch.float32, "F8_E4M3 (8-bit floats), Bag has F32 (floats)"),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.float32, "model"])
def test_nothing_is_cast_between_kinds_of_numbers(
    brought: torch.dtype, held: torch.dtype, words: str, dtype: Any
) -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("value", torch.ones(3).to(held))

    text = refused("RK320", Bag(), {"value": torch.ones(3).to(brought)}, dtype=dtype)
    assert words in text


def test_eight_bit_floats_are_not_cast_without_their_scales() -> None:
    model = nn.Module()
    model.register_buffer("w", torch.ones(3).to(torch.float8_e4m3fn))
    state = {"w": torch.ones(3).to(torch.float8_e4m3fn)}
    assert "dtype='model'" in refused("RK326", model, state, dtype=torch.bfloat16)
    assert remapkit.load_into(model, state, dtype="model").cast == 0


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e5m2, torch.complex64, "float32", 3])
def test_only_floating_dtypes_can_be_asked_for(dtype: Any) -> None:
    refused("RK631", Plain(), state_of(Plain()), dtype=dtype)


@pytest.mark.parametrize("device", ["meta", "cuda:99", "nonsense"])
def test_devices_that_cannot_hold_anything(device: str) -> None:
    refused("RK630", Plain(), state_of(Plain()), device=device)


def test_ties_that_the_checkpoint_tears_are_refused() -> None:
    state = state_of(Tiny())
    state["head.weight"] = state["head.weight"] + 1
    text = refused("RK322", Tiny(), state)
    assert "embed.weight and head.weight are one tensor in Tiny, but two in the checkpoint" in text
    state["head.weight"] = state["embed.weight"].clone()
    remapkit.load_into(Tiny(), state)


def test_values_that_no_checkpoint_has_are_named() -> None:
    text = refused("RK323", on_meta(Tiny), state_of(Tiny()))
    assert "scale  (a non-persistent buffer)" in text and "factory=" in text


def test_lost_values_and_wrong_keys_are_said_together() -> None:
    for code in ("RK310", "RK323"):
        refused(code, on_meta(Tiny), {"frozen": torch.ones(6)})


def test_not_strict_never_leaves_meta() -> None:
    state = state_of(Plain())
    del state["b.weight"]
    assert "b.weight" in refused("RK310", on_meta(Plain), state, strict=False)


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.LazyLinear(3)


class OddParameter(nn.Parameter):
    pass


def subclassed() -> nn.Module:
    model = Plain()
    model.a.weight = OddParameter(torch.ones(4, 4))
    return model


def hooked() -> nn.Module:
    model = Plain()
    model.a.weight.register_hook(lambda grad: grad)
    return model


def dispatched() -> nn.Module:
    model = Plain()
    model.a._hf_hook = object()  # type: ignore[assignment]
    return model


def sparse() -> nn.Module:
    model = nn.Module()
    model.register_buffer("w", torch.eye(3).to_sparse())
    return model


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lazy, "no shape yet"),
        (subclassed, "OddParameter"),
        (hooked, "hooks on a parameter"),
        (dispatched, "accelerate"),
        (sparse, "sparse"),
    ],
)
def test_modules_whose_tensors_are_not_plain(build: Any, word: str) -> None:
    model = build()
    with pytest.raises(remapkit.FailedCheck) as caught:
        remapkit.load_into(model, state_of(Plain()), assign=True)
    assert [each.code for each in caught.value.diagnostics] == ["RK324"]
    assert word in str(caught.value) and "help:" in str(caught.value)


def test_scripted_modules_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(remapkit.FailedCheck, match="TorchScript"):
        remapkit.load_into(scripted, state_of(nn.Linear(2, 2)))


def test_quantised_modules_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(Plain(), {nn.Linear})
    with pytest.raises(remapkit.FailedCheck) as caught:
        remapkit.load_into(model, state_of(Plain()))
    assert "RK324" in str(caught.value) and "_packed_params" in str(caught.value)


class WithExtra(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.extra: Any = {"scale": 3}

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_extra_state_is_refused_or_kept_as_asked() -> None:
    model, source = WithExtra(), Plain()
    assert "_extra_state" in refused("RK325", model, source.state_dict())
    loaded = remapkit.load_into(model, source.state_dict(), extra_state="keep")
    assert (loaded.tensors, model.extra) == (3, {"scale": 3})


def test_extra_state_that_is_a_tensor_is_loaded() -> None:
    model, source = WithExtra(), WithExtra()
    model.extra, source.extra = torch.zeros(2), torch.ones(2)
    remapkit.load_into(model, source.state_dict())
    assert torch.equal(model.extra, torch.ones(2))


def test_state_dicts_without_data_are_refused() -> None:
    refused("RK329", Plain(), on_meta(Plain).state_dict())
    refused("RK329", Plain(), {**Plain().state_dict(), "a.weight": torch.eye(4).to_sparse()})


def test_manifests_have_no_data(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"a.weight": {"dtype": "F32", "shape": [4, 4]}}')
    refused("RK408", Plain(), path)


def test_dtypes_that_torch_does_not_have(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    path = tmp_path / "f6.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0")
    model = nn.Module()
    model.register_buffer("w", torch.zeros(4))
    assert "F6_E2M3" in refused("RK321", model, path)


# ------------------------------------------------------------------------------------------ failures on the way


@pytest.mark.parametrize("where", ["meta", "cpu"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_disk_that_fails_midway_leaves_the_model_alone(
    where: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.safetensors"
    save_file(Plain().state_dict(), path)
    reads = 0
    preadv = values.os.preadv

    def failing(*args: Any) -> int:
        nonlocal reads
        reads += 1
        if reads > number:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(*args)

    monkeypatch.setattr(values.os, "preadv", failing)
    model = on_meta(Plain) if where == "meta" else Plain()
    assert "input/output error" in refused("RK400", model, path, copy=True)
    assert reads == number + 1


def test_a_file_that_shrinks_or_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.safetensors"
    save_file(Plain().state_dict(), path)
    whole = path.read_bytes()
    plan = into.make_plan

    def meddle(content: bytes) -> None:
        def planned(*args: Any) -> Any:
            path.write_bytes(content)
            return plan(*args)

        monkeypatch.setattr(into, "make_plan", planned)

    meddle(whole[:-1])
    refused("RK412", on_meta(Plain), path)
    path.write_bytes(whole)
    meddle(whole + b"x")
    refused("RK412", on_meta(Plain), path, copy=True)


class Refuses(Plain):
    """A module whose own loading fails after some of its tensors were taken."""

    def __init__(self) -> None:
        super().__init__()
        self.b.register_load_state_dict_post_hook(self.fail)

    @staticmethod
    def fail(*_: Any) -> None:
        raise ValueError("not today")


@pytest.mark.parametrize("where", ["meta", "cpu"])
def test_a_hook_that_fails_is_undone(where: str) -> None:
    model = on_meta(Refuses) if where == "meta" else Refuses()
    assert "ValueError: not today" in refused("RK327", model, state_of(Plain()))


def test_a_step_that_is_not_undone_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_copy_tables", lambda each: {})
    model = Refuses()
    before = snapshot(model)
    with pytest.raises(remapkit.FailedCheck):
        remapkit.load_into(model, state_of(Plain()))
    assert snapshot(model) != before


class Halves(Plain):
    """A module whose loading drops a tensor on the floor."""

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        state.pop(f"{prefix}b.weight", None)
        super()._load_from_state_dict(state, prefix, *rest)


def test_a_module_that_drops_a_tensor_itself_is_undone() -> None:
    assert "b.weight" in refused("RK327", on_meta(Halves), state_of(Plain()))


class Renames(Plain):
    """A module that keeps its layer under another name in state dicts, with torch's own hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(self.outwards)
        self.register_load_state_dict_pre_hook(self.inwards)

    @staticmethod
    def outwards(self: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        state[f"{prefix}old.weight"] = state.pop(f"{prefix}b.weight")

    @staticmethod
    def inwards(self: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        state[f"{prefix}b.weight"] = state.pop(f"{prefix}old.weight")


def test_hooks_of_a_module_run_as_torch_runs_them() -> None:
    source, model = Renames(), on_meta(Renames)
    assert "old.weight" in source.state_dict()
    remapkit.load_into(model, source.state_dict())
    same_state(model, source)
