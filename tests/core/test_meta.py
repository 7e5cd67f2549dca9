"""Headers of modules, and modules built on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from remapkit.diagnostics.errors import UsageError
from remapkit.models.build import build_on_meta
from remapkit.models.reference import resolve_reference
from remapkit.models.target import TargetRef, read_target_header
from remapkit.tensors.from_torch import header_of
from remapkit.tensors.spec import TensorSpec


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, 3))
        self.register_buffer("kept", torch.zeros(4, dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(5), persistent=False)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


class ReadsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.linspace(0, 1, 4).max().item()


class Huge(nn.Module):
    """2 TB: only the meta device has room for it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1 << 20, 1 << 19))


class Failing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        raise ValueError(f"width {width} is odd")


def test_parameters_and_persistent_buffers_only() -> None:
    header = header_of(Buffers())
    assert dict(header) == {"weight": TensorSpec("F32", (2, 3)), "kept": TensorSpec("I64", (4,))}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_are_one_group(device: str) -> None:
    with torch.device(device):
        module = Tied()
    assert header_of(module).tied == (("embed.weight", "head.weight"),)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_equal_but_separate_weights_are_not_tied(device: str) -> None:
    with torch.device(device):
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert header_of(module).tied == ()


def test_a_view_of_the_same_storage_is_tied_only_if_it_is_the_same_tensor() -> None:
    base = torch.zeros(6)
    state = {"whole": base, "same": base.view(6), "half": base[:3]}
    assert header_of(state).tied == (("whole", "same"),)


def test_a_model_that_does_not_fit_in_memory() -> None:
    module = build_on_meta(Huge, "py:huge")
    assert header_of(module)["weight"].nbytes == 1 << 41


@pytest.mark.parametrize(
    ("factory", "args", "code", "words"),
    [
        (ReadsValues, {}, "RK605", "meta device"),
        (Failing, {"width": 3}, "RK604", "width 3 is odd"),
        (Failing, {}, "RK607", "width"),
        (dict, {}, "RK606", "not a torch.nn.Module"),
    ],
)
def test_refusals_say_what_to_do(factory: object, args: dict[str, object], code: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_on_meta(factory, "py:tests:factory", args)  # type: ignore[arg-type]
    assert caught.value.diagnostics[0].code == code
    assert words in str(caught.value)


def test_a_diffusers_class_is_built_from_its_config() -> None:
    config = {"base_dim": 8, "z_dim": 4}
    module = build_on_meta(
        resolve_reference("py:diffusers:AutoencoderKLWan"), "py:diffusers:AutoencoderKLWan", config=config
    )
    assert module.encoder.conv_in.weight.shape[0] == 8
    assert module.encoder.conv_in.weight.is_meta


def test_a_transformers_class_is_built_from_its_config_with_tied_weights() -> None:
    config = {"n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 11, "n_positions": 4}
    module = build_on_meta(
        resolve_reference("py:transformers:GPT2LMHeadModel"), "py:transformers:GPT2LMHeadModel", config=config
    )
    assert ("transformer.wte.weight", "lm_head.weight") in header_of(module).tied


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("wan.vae:WanVEA", "RK603", "did you mean 'WanVAE'"),
        ("wan.vaee:WanVAE", "RK603", "no module"),
        ("wann.vae:WanVAE", "RK603", "did you mean 'wan'"),
        ("nothing", "RK603", "plugin.module:Class"),
        ("py:nothing", "RK603", "plugin.module:Class"),
        ("py:no_such_package:Thing", "RK603", "no module no_such_package"),
        ("py:collections:abc", "RK606", "cannot be called"),
        ("torch.nn:Linear", "RK603", "py:torch.nn:Linear"),
        ("py:string:digits", "RK606", "cannot be called"),
    ],
)
def test_names_that_lead_nowhere(reference: str, code: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_reference(reference)
    assert caught.value.diagnostics[0].code == code
    assert words in str(caught.value)


def test_the_full_size_wan_vae_on_meta() -> None:
    header = read_target_header(TargetRef(model="wan.vae:WanVAE"))
    assert len(header) == 196
    assert sum(spec.numel for spec in header.values()) == 704_688_668
