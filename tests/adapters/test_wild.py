"""The commonest adapter files, rebuilt with small shapes from their published key formats, in both directions.

Formats: sd-scripts networks/lora_flux.py and sdxl_lora; musubi-tuner networks/lora_wan.py; ComfyUI comfy/lora.py and
comfy/weight_adapter; peft/utils/save_and_load.py; diffusers/loaders/lora_conversion_utils.py; ai-toolkit
toolkit/network_mixins.py.
"""

from __future__ import annotations

import pytest
import torch

import remapkit
from remapkit.adapters.alphas import PeftConfig
from remapkit.adapters.build import Options
from remapkit.tensors.spec import StateDictSpec, TensorSpec
from tests.adapters.wild_kit import (
    FLUX,
    KOHYA,
    PEFT,
    WAN,
    Model,
    assert_same_effect,
    dotted,
    find_updates,
    kohya,
    list_modules,
    load_small,
    make_file,
    run,
)

DEFAULT = ("lora_B.default.weight", "lora_A.default.weight")
DOTS = ("lora.up.weight", "lora.down.weight")


@pytest.fixture(scope="module")
def bfl() -> Model:
    return load_small("flux_bfl", "flux_bfl", FLUX)


@pytest.fixture(scope="module")
def flux() -> Model:
    return load_small("flux_diffusers", "flux_diffusers", FLUX)


@pytest.fixture(scope="module")
def wan() -> Model:
    return load_small("wan21_dit", "wan21_dit_upstream", WAN)


@pytest.fixture(scope="module")
def wan_diffusers() -> Model:
    return load_small("wan21_dit_diffusers", "wan21_dit_diffusers", WAN)


# ------------------------------------------------------------------------------------------------ FLUX


def test_kohya_flux_with_text_encoders_becomes_diffusers_and_back(bfl: Model, flux: Model) -> None:
    file = make_file(bfl.base, list_modules(bfl.base, "blocks"), kohya(), KOHYA, alpha=lambda module: 4.0)
    others = {
        f"{prefix}_{module}.{leaf}": torch.ones(2, 2)
        for prefix, module in (
            ("lora_te1", "text_model_encoder_layers_0_mlp_fc1"),
            ("lora_te3", "encoder_block_0_layer_0_SelfAttention_k"),
        )
        for leaf in KOHYA
    }
    whole = {**file, **others}
    assert "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight" in whole

    built = bfl.derive(whole, Options("diffusers"))
    made = run(built, whole)

    assert [each.code for each in built.diagnostics] == ["RK727", "RK727"]
    assert {name for each in built.diagnostics for name in str(each).split() if name in others} == set(others)
    assert not {fqn for fqn in made if not fqn.startswith("transformer.")}
    assert made["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"].shape == (8, 2)
    assert made["transformer.single_transformer_blocks.1.proj_mlp.lora_B.weight"].shape == (32, 2)
    assert_same_effect(bfl, file, made, kohya(), dotted("transformer."))

    back = flux.convert(made, "kohya")
    assert_same_effect(flux, made, back, dotted("transformer."), kohya())
    assert back["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"].shape == (24, 6)
    assert back["lora_unet_double_blocks_0_img_attn_qkv.alpha"].item() == 6  # readers of kohya's files require it


@pytest.mark.parametrize("leaves", [PEFT, DEFAULT, KOHYA, DOTS])
@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", ""])
def test_dotted_flux_files_are_joined_for_kohya(flux: Model, prefix: str, leaves: tuple[str, str]) -> None:
    """diffusers, ai-toolkit, and files without a prefix; q and v without k is the commonest file."""
    modules = list_modules(flux.base, r"to_q|to_v|add_k|proj_mlp|proj_out|norm1\.linear")
    file = make_file(flux.base, modules, dotted(prefix), leaves, rank=lambda module: 1 + len(module) % 3)
    for format, name in (("kohya", kohya()), ("comfy", dotted("diffusion_model.")), (None, dotted(prefix))):
        made = flux.convert(file, format)
        assert_same_effect(flux, file, made, dotted(prefix), name)
        if format is None:
            assert {fqn[fqn.rindex("lora") :] for fqn in made} == {leaf[leaf.rindex("lora") :] for leaf in leaves}


def test_peft_flux_takes_its_alphas_from_the_config_and_gives_a_new_one(flux: Model) -> None:
    modules = list_modules(flux.base, "blocks")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"to_k": 8}, "target_modules": "x"}
    file = make_file(flux.base, modules, dotted("base_model.model."), PEFT)
    factors = {module: 4.0 if module.endswith("to_k") else 2.0 for module in modules}

    built = flux.derive(file, Options(config=PeftConfig.of(config, "adapter_config.json")))

    assert built.config is not None
    new = PeftConfig.of(dict(built.config), "new")
    after = {module: new.find_factor(module, rank) for module, rank in built.ranks.items()}
    made = run(built, file)
    assert_same_effect(flux, file, made, dotted("base_model.model."), dotted("base_model.model."), (factors, after))
    assert sorted(built.config["target_modules"]) == sorted(
        {fqn.removeprefix("base_model.model.").partition(".lora_")[0] for fqn in made}
    )


def test_control_lora_of_flux_has_biases_whole_norms_and_a_wider_input(bfl: Model, flux: Model) -> None:
    """Black Forest Labs' Depth and Canny: bare names, biases of lora_B, norms as they are, 128 inputs for 64."""
    modules = list_modules(bfl.base)
    file = make_file(bfl.base, modules, dotted(""), PEFT)
    file |= {f"{each}.lora_B.bias": torch.arange(bfl.base[f"{each}.weight"].shape[0]).float() for each in modules}
    norms = {fqn: torch.full((4,), 3.0) for fqn in bfl.base if fqn.endswith("_norm.scale")}
    wide = {"img_in.lora_A.weight": torch.ones(2, 12)}
    whole = {**file, **norms, **wide}

    built = bfl.derive(whole, Options("diffusers"))
    made = run(built, whole)

    assert [each.code for each in built.diagnostics] == ["RK738"]
    assert "img_in.weight: [8, 12], and the model has [8, 6]" in str(built.diagnostics[0])
    assert torch.equal(made["transformer.x_embedder.lora_A.weight"], wide["img_in.lora_A.weight"])
    assert torch.equal(made["transformer.transformer_blocks.0.attn.norm_added_k.weight"], torch.full((4,), 3.0))
    small = {fqn: each for fqn, each in file.items() if not fqn.startswith("img_in.lora_A")}
    small |= {"img_in.lora_A.weight": torch.ones(2, 6)}
    assert_same_effect(bfl, small, bfl.convert(small, "diffusers"), dotted(""), dotted("transformer."))

    back = flux.convert(made)
    assert_same_effect(flux, bfl.convert(small, "diffusers"), flux.convert(bfl.convert(small, "diffusers")), *BOTH)
    assert torch.equal(back["transformer.img_in.lora_A.weight"], wide["img_in.lora_A.weight"])
    assert {fqn.removeprefix("transformer.") for fqn in back} == set(whole)

    comfy = bfl.convert(whole, "comfy")  # ComfyUI's own names for the same things
    assert comfy["diffusion_model.transformer_blocks.0.attn.norm_q.set_weight"].shape == (4,)
    assert comfy["diffusion_model.transformer_blocks.0.attn.to_q.diff_b"].shape == (8,)


BOTH = (dotted("transformer."), dotted("transformer."))


# ------------------------------------------------------------------------------------------------ Wan


def test_musubi_wan_becomes_diffusers_and_back_with_every_byte(wan: Model, wan_diffusers: Model) -> None:
    modules = list_modules(wan.base, "blocks")
    file = make_file(wan.base, modules, kohya(), KOHYA, alpha=lambda module: 4.0)
    assert "lora_unet_blocks_0_self_attn_q.lora_down.weight" in file
    made = wan.convert(file, "diffusers")
    assert_same_effect(wan, file, made, kohya(), dotted("transformer."))
    assert "transformer.blocks.0.attn1.to_out.0.lora_A.weight" in made

    renamed = wan.convert(file)  # kohya's names stay
    assert renamed["lora_unet_blocks_0_attn1_to_out_0.alpha"].item() == 4
    back = wan_diffusers.convert(renamed)
    assert back.keys() == file.keys() and all(torch.equal(back[fqn], file[fqn]) for fqn in file)


@pytest.mark.parametrize("leaves", [PEFT, KOHYA])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_comfy_wan_with_differences(wan: Model, leaves: tuple[str, str], has_alpha: bool) -> None:
    modules = list_modules(wan.base, "blocks")
    file = make_file(
        wan.base, modules, dotted("diffusion_model."), leaves, alpha=lambda _: 4.0 if has_alpha else None
    )
    biases = {f"diffusion_model.{each}.diff_b": torch.ones(wan.base[f"{each}.bias"].shape) for each in modules}
    diffs = {f"diffusion_model.blocks.0.self_attn.{norm}.diff": torch.ones(8) for norm in ("norm_q", "norm_k")}
    patch = {"diffusion_model.patch_embedding.diff": torch.ones(wan.base["patch_embedding.weight"].shape)}
    whole = {**file, **biases, **diffs, **patch}
    assert "diffusion_model.blocks.0.self_attn.q." + leaves[1] in whole

    made = wan.convert(whole)
    assert_same_effect(wan, whole, made, dotted("diffusion_model."), dotted("diffusion_model."))
    assert len(made) == len(whole) and "diffusion_model.blocks.0.attn1.to_q." + leaves[0] in made

    without = {**file, **biases}
    converted = wan.convert(without, "diffusers")  # diff_b becomes the bias of lora_B, with alpha multiplied in
    assert_same_effect(wan, without, converted, dotted("diffusion_model."), dotted("transformer."))
    assert converted["transformer.blocks.0.attn1.to_q.lora_B.bias"].eq(1).all()

    with pytest.raises(remapkit.FailedCheck, match="diffusers files have no `diff`") as caught:
        wan.convert(whole, "diffusers")
    assert "--adapter-format kohya or comfy" in caught.value.diagnostics[0].help[0]


def test_biases_without_matrices_have_no_place_in_diffusers_files(wan: Model) -> None:
    """AccVideo's file has `time_projection.1.diff_b` alone; diffusers drops it in silence."""
    file = make_file(wan.base, ["blocks.0.ffn.0"], dotted("diffusion_model."), PEFT)
    file["diffusion_model.time_projection.1.diff_b"] = torch.ones(48)
    with pytest.raises(remapkit.FailedCheck, match="no `diff_bias`"):
        wan.convert(file, "diffusers")
    assert wan.convert(file)["diffusion_model.condition_embedder.time_proj.diff_b"].shape == (48,)


def test_two_experts_in_one_file_are_chosen_by_prefix(wan_diffusers: Model) -> None:
    modules = list_modules(wan_diffusers.base, "blocks.0.attn1")
    parts = [
        make_file(wan_diffusers.base, modules, dotted(prefix), PEFT, seed=seed)
        for seed, prefix in enumerate(("transformer.", "transformer_2."))
    ]
    file = parts[0] | parts[1]
    with pytest.raises(remapkit.UsageError, match="RK722") as caught:
        wan_diffusers.convert(file)
    assert "--root transformer or --root transformer_2" in caught.value.diagnostics[0].help[0]
    for prefix, part in zip(("transformer.", "transformer_2"), parts, strict=True):
        built = wan_diffusers.derive(file, Options("comfy", prefix=prefix))
        made = run(built, file)
        assert [each.code for each in built.diagnostics] == ["RK727"]
        named = dotted(prefix.rstrip(".") + ".")
        assert_same_effect(wan_diffusers, part, made, named, dotted("diffusion_model."))


# ------------------------------------------------------------------------------------------------ SDXL

SGM = """
remapkit: 1
name: sdxl_blocks
rules:
  - {id: down.4, path: 'input_blocks.4.1.{rest:**}', to: 'down_blocks.1.attentions.0.{rest}'}
  - {id: down.5, path: 'input_blocks.5.1.{rest:**}', to: 'down_blocks.1.attentions.1.{rest}'}
  - {id: resnet, path: 'input_blocks.4.0.in_layers.2.{leaf:weight|bias}', to: 'down_blocks.1.resnets.0.conv1.{leaf}'}
"""
DIFFUSERS = """
remapkit: 1
name: sdxl_blocks_back
rules:
  - {id: down.4, path: 'down_blocks.1.attentions.0.{rest:**}', to: 'input_blocks.4.1.{rest}'}
  - {id: down.5, path: 'down_blocks.1.attentions.1.{rest:**}', to: 'input_blocks.5.1.{rest}'}
  - {id: resnet, path: 'down_blocks.1.resnets.0.conv1.{leaf:weight|bias}', to: 'input_blocks.4.0.in_layers.2.{leaf}'}
"""
LAYERS = [*(f"transformer_blocks.0.attn1.to_{each}" for each in ("q", "k", "v", "out.0")), "proj_in"]
ATTENTION = {f"{layer}.weight": (8, 8) for layer in LAYERS} | {
    "transformer_blocks.0.ff.net.0.proj.weight": (16, 8),
    "transformer_blocks.0.norm1.weight": (8,),
}
BLOCKS = {f"input_blocks.{block}.1.{name}": shape for block in (4, 5) for name, shape in ATTENTION.items()}
UNET = {**BLOCKS, "input_blocks.4.0.in_layers.2.weight": (8, 4, 3, 3), "input_blocks.4.0.in_layers.2.bias": (8,)}
TEXT = {
    f"text_model.encoder.layers.0.{name}.weight": (8, 8)
    for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
}


def make_model(text: str, shapes: dict[str, tuple[int, ...]]) -> Model:
    base = StateDictSpec({fqn: TensorSpec("F32", shape) for fqn, shape in shapes.items()})
    return Model(remapkit.loads(text), base)


@pytest.fixture(scope="module")
def sgm() -> Model:
    return make_model(SGM, UNET)


@pytest.fixture(scope="module")
def unet(sgm: Model) -> Model:
    return make_model(DIFFUSERS, {fqn: spec.shape for fqn, spec in sgm.rules.plan(sgm.base).target.items()})


@pytest.fixture(scope="module")
def text_encoder() -> Model:
    return make_model("remapkit: 1\nname: text_encoder\nkeep: ['{all:**}']\n", TEXT)


def make_sdxl() -> dict[str, torch.Tensor]:
    base = {fqn: TensorSpec("F32", shape) for fqn, shape in (UNET | TEXT).items()}
    modules = [*list_modules(base, "blocks.*(attn|proj)"), "input_blocks.4.0.in_layers.2"]
    file = make_file(base, modules, kohya(), KOHYA, alpha=lambda module: 1.0)
    for seed, prefix in enumerate(("lora_te1_", "lora_te2_"), 1):
        file |= make_file(base, list_modules(base, "text"), kohya(prefix), KOHYA, alpha=lambda module: 2.0, seed=seed)
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in file
    assert file["lora_unet_input_blocks_4_0_in_layers_2.lora_up.weight"].shape == (8, 2, 1, 1)
    return file


def test_kohya_sdxl_unet_and_text_encoders(sgm: Model, unet: Model, text_encoder: Model) -> None:
    file = make_sdxl()
    made = run(sgm.derive(file, Options("diffusers")), file)
    assert_same_effect(sgm, file, made, kohya(), dotted("unet."))
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight" in made
    assert_same_effect(unet, made, unet.convert(made, "kohya"), dotted("unet."), kohya())

    for source, target, prefix in (
        ("lora_te1_", "text_encoder.", "lora_te1"),
        ("lora_te2_", "text_encoder_2.", "lora_te2_"),
    ):
        built = text_encoder.derive(file, Options("diffusers", prefix=prefix))
        assert sorted(each.code for each in built.diagnostics) == ["RK727", "RK727"]
        assert_same_effect(text_encoder, file, run(built, file), kohya(source), dotted(target))

    with pytest.raises(remapkit.UsageError, match="'lora_te1_' and 'lora_te2_'"):
        text_encoder.derive(file)


def test_every_format_of_a_unet_becomes_every_other(sgm: Model) -> None:
    names = {"kohya": kohya(), "comfy": dotted("diffusion_model."), "diffusers": dotted("unet.")}
    leaves = {"kohya": KOHYA, "comfy": KOHYA, "diffusers": PEFT}
    modules = list_modules(sgm.base, "blocks.*(attn|proj)")
    for format, name in names.items():
        file = make_file(sgm.base, modules, name, leaves[format])
        for other in names:
            assert_same_effect(sgm, file, sgm.convert(file, other), name, names[other])


def test_attention_processors_of_old_diffusers(unet: Model, text_encoder: Model) -> None:
    """`attn1.processor.to_q_lora.up.weight`; `to_out_lora` is for `to_out.0`, in a text encoder for `out_proj`."""
    own = list_modules(unet.base, "attn1")
    file = make_file(unet.base, own, dotted("unet."), DOTS)
    old = {
        fqn.replace("attn1.to_", "attn1.processor.to_")
        .replace("to_out.0", "to_out")
        .replace(".lora.", "_lora."): each
        for fqn, each in file.items()
    }
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight" in old
    for format, name in ((None, "unet."), ("diffusers", "unet."), ("comfy", "diffusion_model.")):
        assert_same_effect(unet, file, unet.convert(old, format), dotted("unet."), dotted(name))

    layer = "text_encoder.text_model.encoder.layers.0.self_attn"
    of_text = {
        f"{layer}.processor.to_{name}_lora.{side}.weight": torch.ones(8, 8)
        for name in ("q", "out")
        for side in ("up", "down")
    }
    made = text_encoder.convert(of_text, "kohya")
    assert {fqn.partition(".")[0].rpartition("attn_")[2] for fqn in made} == {"q_proj", "out_proj"}


def test_other_prefixes_are_read(unet: Model) -> None:
    modules = list_modules(unet.base, "attn1")
    models = {"lycoris_": "unet.", "lora_transformer_": "transformer.", "lora_prior_unet_": "unet."}
    for prefix, start in models.items():
        file = make_file(unet.base, modules, kohya(prefix), KOHYA, alpha=lambda module: 4.0)
        assert_same_effect(unet, file, unet.convert(file), kohya(prefix), kohya(prefix))
        assert_same_effect(unet, file, unet.convert(file, "diffusers"), kohya(prefix), dotted(start))
    for prefix in ("model.diffusion_model.", "base_model.model.diffusion_model.", "unet.base_model.model."):
        file = make_file(unet.base, modules, dotted(prefix), PEFT)
        assert_same_effect(unet, file, unet.convert(file), dotted(prefix), dotted(prefix))


def test_convolutions_with_a_middle_matrix_are_renamed_with_all_they_have(sgm: Model) -> None:
    """LoCon with Tucker decomposition: up and down are 1 x 1, `lora_mid` has the kernel, alpha stays beside it."""
    name = "lora_unet_input_blocks_4_0_in_layers_2"
    shapes = {"lora_up": (8, 2, 1, 1), "lora_down": (2, 4, 1, 1), "lora_mid": (2, 2, 3, 3)}
    file = {f"{name}.{leaf}.weight": torch.ones(shape) for leaf, shape in shapes.items()}
    file[f"{name}.alpha"] = torch.tensor(1.0)
    made = sgm.convert(file)
    assert set(made) == {fqn.replace("input_blocks_4_0_in_layers_2", "down_blocks_1_resnets_0_conv1") for fqn in file}
    with pytest.raises(remapkit.FailedCheck, match="a LoRA with a `mid` matrix, and diffusers files have no"):
        sgm.convert(file, "diffusers")


def test_whole_tensors_of_comfy_are_those_of_diffusers(bfl: Model, flux: Model) -> None:
    """`set_weight` in ComfyUI's files is the tensor itself in others: the norms of a control LoRA."""
    file = make_file(bfl.base, ["double_blocks.0.img_attn.qkv"], dotted("diffusion_model."), KOHYA)
    file["diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale.set_weight"] = torch.full((4,), 3.0)
    made = bfl.convert(file, "diffusers")
    assert made["transformer.transformer_blocks.0.attn.norm_k.weight"].tolist() == [3.0] * 4
    back = flux.convert(made, "comfy")
    assert back["diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale.set_weight"].tolist() == [3.0] * 4
    with pytest.raises(remapkit.FailedCheck, match="kohya files have no whole tensors besides weights"):
        flux.convert(made, "kohya")


def test_lycoris_files_are_renamed_with_their_alphas(unet: Model) -> None:
    name = "lycoris_down_blocks_1_attentions_0_proj_in"
    leaves = ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha")
    file = {f"{name}.{leaf}": torch.full((2, 2) if leaf != "alpha" else (), 3.0) for leaf in leaves}
    made = unet.convert(file)
    assert set(made) == {f"lycoris_input_blocks_4_1_proj_in.{leaf}" for leaf in leaves}
    assert set(unet.convert(file, "comfy")) == {f"diffusion_model.input_blocks.4.1.proj_in.{leaf}" for leaf in leaves}
    with pytest.raises(remapkit.FailedCheck, match="it is LoKr, and diffusers files have no `alpha` for it"):
        unet.convert(file, "diffusers")


def test_updates_of_the_kit_are_those_of_the_definition() -> None:
    """The oracle of this file: 2 x 3 update of rank 1 with alpha 4, and a bias."""
    base = {"m.weight": TensorSpec("F32", (2, 3)), "m.bias": TensorSpec("F32", (2,))}
    file = {
        "lora_unet_m.lora_up.weight": torch.tensor([[1.0], [2.0]]),
        "lora_unet_m.lora_down.weight": torch.tensor([[1.0, 0.0, -1.0]]),
        "lora_unet_m.alpha": torch.tensor(4.0),
        "lora_unet_m.diff_b": torch.ones(2),
    }
    found = find_updates(file, base, kohya())
    assert found["m.weight"].tolist() == [[4.0, 0.0, -4.0], [8.0, 0.0, -8.0]] and found["m.bias"].tolist() == [1, 1]
