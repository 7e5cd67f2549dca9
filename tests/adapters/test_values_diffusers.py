"""diffusers' own converters: their output has the effect of ours on the same file, or a test shows what they lose."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import remapkit
from remapkit.adapters.build import Options
from tests.adapters import value_kit as kit
from tests.adapters.effect import find_effective
from tests.adapters.random_rules import Shape
from tests.adapters.test_values_packs import KEYS, Pack

utils: Any = import_module("diffusers.loaders.lora_conversion_utils")
CLOSE = 1e-6
"""Of the largest update: diffusers multiplies alpha into `down`, we into `up`, in F32."""
COLUMNS = dict.fromkeys((64, 256, 768, 3072, 4096, 12288, 15360), 2)
"""diffusers' converters cut at 3072: rows of FLUX stay as they are, columns are few."""
WAN = Pack("wan21_dit", "", "wan21_dit_upstream", "", {1536: 12, 8960: 20, 9216: 72, 4096: 10, 256: 6})


class Flux(Pack):
    """FLUX with all of its rows; all blocks if `is_whole`."""

    is_whole = False

    def read(self, manifest: str) -> dict[str, Shape]:
        entries = kit.read_shapes(KEYS / f"{manifest}.json", None if self.is_whole else 2)
        return {key: (*shape[:1], *(COLUMNS.get(size, size) for size in shape[1:])) for key, shape in entries.items()}


class WholeFlux(Flux):
    is_whole = True


FLUX, WHOLE_FLUX = (make("flux_bfl", "", "flux_bfl", "", {}) for make in (Flux, WholeFlux))


def name_kohya(module: str) -> str:
    return f"lora_unet_{module.replace('.', '_')}"


def make_file(
    shapes: Mapping[str, Shape], name: Callable[[str], str], leaves: tuple[str, str], *, with_alpha: bool
) -> dict[str, Tensor]:
    """Return a file with a LoRA for each of these weights; the LoRA ranks differ, and alphas are no ranks."""
    generator = torch.Generator().manual_seed(7)
    made = {}
    for at, (weight, shape) in enumerate(shapes.items()):
        module, rank = name(weight.removesuffix(".weight")), 2 + 2 * (at % 2)
        up, down = kit.make_matrices(shape, rank, generator, is_stack=False)
        made |= {f"{module}.{leaves[0]}.weight": up, f"{module}.{leaves[1]}.weight": down}
        if with_alpha:
            made[f"{module}.alpha"] = torch.tensor(1.0 + at % 5)
    return made


def take_linear(shapes: Mapping[str, Shape], *words: str) -> dict[str, Shape]:
    return {
        key: shape
        for key, shape in shapes.items()
        if len(shape) > 1 and key.endswith(".weight") and (not words or any(word in key for word in words))
    }


def convert(pack: Pack, file: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the model that both start from, converted, and our adapter of it in diffusers' names."""
    generator = torch.Generator().manual_seed(1)
    rules = remapkit.load(pack.name)
    weights = {key: torch.randn(shape, generator=generator) for key, shape in pack.read(pack.source).items()}
    _, made = kit.build(rules, weights, kit.LoRA(dict(file)), Options("diffusers"), prove=False)
    return rules(weights), made


def find_changes(adapter: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what an adapter in diffusers' names adds to each tensor of the model; only tensors that it changes."""
    names = {key: f"transformer.{key.removesuffix('.weight')}" for key in weights}
    known = {f"{name}.": key for key, name in names.items()}
    made = find_effective(adapter, weights, names)
    assert known
    changes = {key: made[key] - weights[key].double() for key in weights}
    return {key: change for key, change in changes.items() if change.any()}


def differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    """Return the tensors that two adapters change differently."""
    return {
        key
        for key in {*one, *other}
        if key not in one or key not in other or kit.compare(one[key], other[key]) > CLOSE
    }


# ------------------------------------------------------------------------------------------------ FLUX, kohya


def test_kohya_flux_blocks_have_the_same_effect() -> None:
    shapes = take_linear(FLUX.read("flux_bfl"), "_blocks.")
    file = make_file(shapes, name_kohya, ("lora_up", "lora_down"), with_alpha=True)
    weights, ours = convert(FLUX, file)
    theirs = utils._convert_kohya_flux_lora_to_diffusers(dict(file))
    assert set(theirs) == set(ours)
    mine = find_changes(ours, weights)
    assert differ(mine, find_changes(theirs, weights)) == set()
    assert len(mine) == 2 * (6 + 8) + 2 * (2 + 4)


def test_kohya_flux_matrices_of_zeros_and_blocks_have_the_same_effect() -> None:
    """Where up is block-diagonal (fused from q, k, v), diffusers takes it apart; the effect is the same."""
    shapes = take_linear(FLUX.read("flux_bfl"), "double_blocks.0.img_attn.qkv")
    up = torch.block_diag(*(torch.rand(3072, 2) for _ in range(3)))
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    file = {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": torch.rand(6, 2),
        f"{name}.alpha": torch.tensor(2.0),
    }
    weights, ours = convert(FLUX, file)
    theirs = utils._convert_kohya_flux_lora_to_diffusers(dict(file))
    assert len(shapes) == 1 and theirs["transformer.transformer_blocks.0.attn.to_k.lora_A.weight"].shape[0] == 2
    assert differ(find_changes(ours, weights), find_changes(theirs, weights)) == set()


def test_kohya_flux_outside_of_blocks_loses_names_and_alphas() -> None:
    shapes = take_linear(
        FLUX.read("flux_bfl"), "img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer"
    )
    file = make_file(shapes, name_kohya, ("lora_up", "lora_down"), with_alpha=True)
    weights, ours = convert(FLUX, file)
    mine = find_changes(ours, weights)
    theirs = utils._convert_kohya_flux_lora_to_diffusers(dict(file))
    # `load_lora_weights` takes what starts with `transformer.`: none of it.
    assert not any(key.startswith("transformer.") for key in theirs) and len(mine) == len(shapes) == 10
    named = {f"transformer.{key}": value for key, value in theirs.items()}
    assert differ(mine, find_changes(named, weights)) == {"norm_out.linear.weight", "proj_out.weight"}
    for key, module in (("proj_out", "final_layer_linear"), ("norm_out.linear", "final_layer_adaLN_modulation_1")):
        alpha, rank = file[f"lora_unet_{module}.alpha"], len(file[f"lora_unet_{module}.lora_down.weight"])
        change = find_changes(named, weights)[f"{key}.weight"] * (alpha / rank).double()  # it ignores alpha
        assert kit.compare(change, mine[f"{key}.weight"]) <= CLOSE


def test_kohya_flux_magnitudes_are_refused_there_and_written_here() -> None:
    shapes = take_linear(FLUX.read("flux_bfl"), "double_blocks.0.img_attn.qkv")
    file = make_file(shapes, name_kohya, ("lora_up", "lora_down"), with_alpha=True)
    file["lora_unet_double_blocks_0_img_attn_qkv.dora_scale"] = torch.rand(9216, 1) + 1
    with pytest.raises(ValueError, match="Incompatible keys detected"):
        utils._convert_kohya_flux_lora_to_diffusers(dict(file))
    _, ours = convert(FLUX, file)
    assert ours["transformer.transformer_blocks.0.attn.to_k.lora_magnitude_vector"].shape == (3072,)


# ------------------------------------------------------------------------------------------------ FLUX, other files


def test_the_bfl_control_lora_has_the_same_effect_but_for_one_module() -> None:
    """With biases of the layers of up, and norms of which the file has the whole."""
    shapes = WHOLE_FLUX.read("flux_bfl")
    file = make_file(take_linear(shapes), lambda module: module, ("lora_B", "lora_A"), with_alpha=False)
    generator = torch.Generator().manual_seed(2)
    for key, shape in shapes.items():
        if key.endswith(".bias"):
            file[f"{key.removesuffix('.bias')}.lora_B.bias"] = torch.randn(shape, generator=generator)
        elif key.endswith(".scale"):
            file[key] = torch.randn(shape, generator=generator)
    weights, ours = convert(WHOLE_FLUX, file)
    theirs = utils._convert_bfl_flux_control_lora_to_diffusers(dict(file))
    mine = find_changes(ours, weights)
    assert differ(mine, find_changes(theirs, weights)) == {"norm_out.linear.weight"}
    assert set(mine) == set(weights)
    # It swaps the halves of the rows of both matrices; those of `down` are the LoRA rank, and no scale and shift.
    down = "transformer.norm_out.linear.lora_A.weight"
    theirs[down] = utils.swap_scale_shift(theirs[down])
    assert differ(mine, find_changes(theirs, weights)) == set()


def test_xlabs_names_are_of_no_module_of_the_model() -> None:
    names = ("qkv_lora1", "proj_lora1")
    shapes = {f"double_blocks.0.processor.{name}": (9216 if "qkv" in name else 3072, 2) for name in names}
    file = {f"{key}.{leaf}.weight": torch.rand(shape) for key, (rows, columns) in shapes.items()
            for leaf, shape in (("up", (rows, 4)), ("down", (4, columns)))}  # fmt: skip
    assert len(utils._convert_xlabs_flux_lora_to_diffusers(dict(file))) == 8
    with pytest.raises(remapkit.RemapkitError, match=r"RK72[08]"):
        convert(FLUX, file)


# ------------------------------------------------------------------------------------------------ Wan


BLOCKS = ("self_attn.", "cross_attn.", "ffn.")


def copy(file: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return other tensors: some of them are multiplied by alpha / r in place."""
    return {key: value.clone() for key, value in file.items()}


def drop(file: Mapping[str, Tensor], word: str) -> dict[str, Tensor]:
    return {key: value for key, value in file.items() if word not in key}


def take_blocks() -> dict[str, Shape]:
    return {key: shape for key, shape in take_linear(WAN.read(WAN.source), *BLOCKS).items() if "norm" not in key}


def test_musubi_wan_has_the_same_effect() -> None:
    file = make_file(take_blocks(), name_kohya, ("lora_up", "lora_down"), with_alpha=True)
    weights, ours = convert(WAN, file)
    theirs = utils._convert_musubi_wan_lora_to_diffusers(copy(file))
    mine = find_changes(ours, weights)
    assert differ(mine, find_changes(theirs, weights)) == set() and len(mine) == 2 * 10


@pytest.mark.parametrize("lost", ["blocks_1_cross_attn_v", "blocks_0_ffn_2.alpha"])
def test_musubi_wan_needs_every_module_and_every_alpha(lost: str) -> None:
    file = drop(make_file(take_blocks(), name_kohya, ("lora_up", "lora_down"), with_alpha=True), lost)
    with pytest.raises(KeyError, match=lost):
        utils._convert_musubi_wan_lora_to_diffusers(copy(file))
    weights, ours = convert(WAN, file)
    assert len(find_changes(ours, weights)) == 20 - ("alpha" not in lost)


def test_musubi_wan_knows_no_module_outside_of_blocks() -> None:
    shapes = take_blocks() | take_linear(WAN.read(WAN.source), "head.head")
    file = make_file(shapes, name_kohya, ("lora_up", "lora_down"), with_alpha=True)
    with pytest.raises(IndexError):
        utils._convert_musubi_wan_lora_to_diffusers(copy(file))
    weights, ours = convert(WAN, file)
    assert "proj_out.weight" in find_changes(ours, weights)


@pytest.mark.parametrize(("leaves", "with_alpha"), [(("lora_up", "lora_down"), True), (("lora_B", "lora_A"), False)])
def test_comfyui_wan_has_the_same_effect(leaves: tuple[str, str], with_alpha: bool) -> None:
    """Differences of biases become the biases of the layers of up, whose alpha / r is then 1."""
    file = make_file(take_blocks(), lambda module: f"diffusion_model.{module}", leaves, with_alpha=with_alpha)
    if with_alpha:
        file |= {f"diffusion_model.{key.removesuffix('.weight')}.diff_b": torch.rand(shape[0])
                 for key, shape in take_blocks().items()}  # fmt: skip
    weights, ours = convert(WAN, file)
    theirs = utils._convert_non_diffusers_wan_lora_to_diffusers(copy(file))
    mine = find_changes(ours, weights)
    assert differ(mine, find_changes(theirs, weights)) == set() and len(mine) == (40 if with_alpha else 20)


def test_comfyui_wan_outside_of_blocks_has_the_same_effect_without_alphas() -> None:
    words = ("time_projection", "head.head", "text_embedding", "time_embedding")
    shapes = take_blocks() | take_linear(WAN.read(WAN.source), *words)
    file = make_file(shapes, lambda module: f"diffusion_model.{module}", ("lora_B", "lora_A"), with_alpha=False)
    weights, ours = convert(WAN, file)
    theirs = utils._convert_non_diffusers_wan_lora_to_diffusers(copy(file))
    mine = find_changes(ours, weights)
    assert differ(mine, find_changes(theirs, weights)) == set() and len(mine) == 26


@pytest.mark.parametrize("word", ["time_projection", "head.head", "text_embedding.0", "time_embedding.2"])
def test_comfyui_wan_outside_of_blocks_refuses_alphas(word: str) -> None:
    shapes = take_blocks() | take_linear(WAN.read(WAN.source), word)
    file = make_file(shapes, lambda module: f"diffusion_model.{module}", ("lora_up", "lora_down"), with_alpha=True)
    with pytest.raises(ValueError, match=re.escape(word)):
        utils._convert_non_diffusers_wan_lora_to_diffusers(copy(file))
    weights, ours = convert(WAN, file)
    assert len(find_changes(ours, weights)) == 21


def test_comfyui_wan_knows_no_patches() -> None:
    shapes = take_blocks() | take_linear(WAN.read(WAN.source), "patch_embedding")
    file = make_file(shapes, lambda module: f"diffusion_model.{module}", ("lora_up", "lora_down"), with_alpha=True)
    with pytest.raises(ValueError, match="patch_embedding"):
        utils._convert_non_diffusers_wan_lora_to_diffusers(copy(file))
    weights, ours = convert(WAN, file)
    assert "patch_embedding.weight" in find_changes(ours, weights)
