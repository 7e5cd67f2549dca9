"""`explain` of a tensor of an adapter: by its name alone it says what the rules make of it in a file."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.cli.app import main
from remapkit.plans.model import ResolvedPlan
from remapkit.sources.declared import read_declared_source
from remapkit.tensors.spec import StateDictSpec, TensorSpec

PACKS = ("flux_bfl", "flux_diffusers", "llama_meta", "llama_hf", "gpt2_hf", "gpt2_nanogpt", "mixtral_per_expert")
FORMS = {
    "kohya": ("lora_unet_", "_", "lora_up.weight", "lora_down.weight"),
    "comfy": ("diffusion_model.", ".", "lora_up.weight", "lora_down.weight"),
    "diffusers": ("transformer.", ".", "lora_B.weight", "lora_A.weight"),
    "peft": ("base_model.model.", ".", "lora_B.weight", "lora_A.weight"),
    "peft, saved by hand": ("base_model.model.", ".", "lora_B.default.weight", "lora_A.default.weight"),
}
RANK = 3
QKV = "lora_unet_double_blocks_0_img_attn_qkv"
TO_QKV = "lora_unet_transformer_blocks_0_attn_to_{q|k|v}"


@cache
def plan_a_file(pack: str, form: str) -> ResolvedPlan:
    """The plan of a real adapter: one with all linear layers of the model."""
    rules = remapkit.load(pack)
    base = read_declared_source(rules.file)
    assert base is not None
    prefix, dot, up, down = FORMS[form]
    tensors = {}
    for key, spec in base.items():
        # PEFT has no matrices for the stacks that experts become.
        if key.endswith(".weight") and len(spec.shape) == 2 and not (form.startswith("peft") and ".experts." in key):
            name = prefix + key.removesuffix(".weight").replace(".", dot)
            tensors[f"{name}.{up}"] = TensorSpec("F32", (spec.shape[0], RANK))
            tensors[f"{name}.{down}"] = TensorSpec("F32", (RANK, spec.shape[1]))
    header = StateDictSpec(tensors)
    return rules.adapter(header, alpha=float(RANK) if form.startswith("peft") else None).plan(header)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PACKS), st.sampled_from(sorted(FORMS)), st.data())
def test_what_is_said_is_what_is_done_with_a_file(pack: str, form: str, data: st.DataObject) -> None:
    """The tensor becomes, with the others named, what the plan of a whole file says, whatever the LoRA rank is."""
    plan = plan_a_file(pack, form)
    key = data.draw(st.sampled_from(sorted(plan.source)))
    (found,) = remapkit.explain(pack, key)
    assert found.adapter is not None and found.ok
    moves = [move for move in plan.moves if key in move.sources]
    assert set(found.adapter.targets) == {move.target for move in moves}
    assert set(found.adapter.others) == {fqn for move in moves for fqn in move.sources} - {key}
    assert found.adapter.format == form.partition(",")[0]


def test_a_down_matrix_in_five_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "flux_bfl", f"{QKV}.lora_down.weight"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{QKV}.lora_down.weight",
        "  the down matrix [r, IN] of double_blocks.0.img_attn.qkv.weight, in the names of kohya",
        "  rule double.image.qkv: the weight becomes transformer_blocks.0.attn.to_{q|k|v}.weight",
        f"  it is copied to 3 tensors: {TO_QKV}.lora_down.weight",
        f"  its alpha, {QKV}.alpha, is copied likewise; without it, alpha is r",
    ]


PROJ, TO_OUT = "double_blocks.0.img_attn.proj", "transformer_blocks.0.attn.to_out.0"
LINEAR, TO_LINEAR = "double_blocks.1.img_mlp.0", "transformer_blocks.1.ff.net.0.proj"


@pytest.mark.parametrize(
    ("pack", "key", "role", "line"),
    [
        (
            "flux_bfl",
            f"{QKV}.lora_up.weight",
            "the up matrix",
            f"it is split into 3 tensors: {TO_QKV}.lora_up.weight",
        ),
        ("flux_bfl", f"{QKV}.alpha", "the alpha", f"it is copied to 3 tensors: {TO_QKV}.alpha"),
        ("flux_bfl", f"{QKV}.dora_scale", "the magnitude", f"{TO_QKV}.dora_scale"),
        (
            "flux_bfl",
            f"base_model.model.{LINEAR}.lora_A.default.weight",
            "the down matrix",
            f"it becomes base_model.model.{TO_LINEAR}.lora_A.default.weight",
        ),
        (
            "flux_bfl",
            f"transformer.{LINEAR}.lora_magnitude_vector",
            "the magnitude",
            f"it becomes transformer.{TO_LINEAR}.lora_magnitude_vector",
        ),
        (
            "flux_bfl",
            f"diffusion_model.{LINEAR}.diff",
            "the difference",
            f"it becomes diffusion_model.{TO_LINEAR}.diff",
        ),
        (
            "flux_bfl",
            f"diffusion_model.{LINEAR}.diff_b",
            "the difference of the bias",
            f"it becomes diffusion_model.{TO_LINEAR}.diff_b",
        ),
        ("flux_bfl", f"diffusion_model.{PROJ}.lokr_w1", "a part of LoKr", f"diffusion_model.{TO_OUT}.lokr_w1"),
        ("flux_bfl", f"{QKV}.hada_w1_a", "a part of LoHa", "it cannot follow: LoHa follows renames"),
        (
            "flux_bfl",
            "diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale.lora_up.weight",
            "the up matrix",
            "it cannot follow: a LoRA is of matrices",
        ),
        (
            "flux_diffusers",
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
            "the down matrix",
            "it is joined with transformer.transformer_blocks.0.attn.to_{k|v}.lora_A.weight, where the file has "
            "them, into transformer.double_blocks.0.img_attn.qkv.lora_A.weight",
        ),
        (
            "gpt2_hf",
            "diffusion_model.transformer.h.0.attn.c_attn.lora_A.weight",
            "the down matrix",
            "it becomes diffusion_model.transformer.h.0.attn.c_attn.lora_B.weight, by transpose",
        ),
        # PEFT's matrices are those of the layer, whether it stores its weight as [OUT, IN] or as [IN, OUT].
        (
            "gpt2_hf",
            "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight",
            "the down matrix",
            "it keeps its name",
        ),
    ],
)
def test_every_role_and_format(pack: str, key: str, role: str, line: str) -> None:
    (found,) = remapkit.explain(pack, key)
    first, *lines = str(found).splitlines()
    assert first == key and len(lines) in (3, 4)
    assert lines[0].startswith(f"  {role}")
    assert line in lines[2]
    assert found.ok == ("cannot follow" not in line)


@pytest.mark.parametrize(
    ("key", "alpha"),
    [
        (f"{QKV}.lora_up.weight", f"its alpha, {QKV}.alpha, is copied likewise; without it, alpha is r"),
        (f"transformer.{LINEAR}.lora_A.weight", "no alpha: it is r, so the factor alpha / r is 1"),
        (f"base_model.model.{LINEAR}.lora_A.weight", "its alpha is in adapter_config.json"),
        (
            f"diffusion_model.{LINEAR}.lora_up.weight",
            f"its alpha, diffusion_model.{LINEAR}.alpha, becomes diffusion_model.{TO_LINEAR}.alpha; ",
        ),
    ],
)
def test_where_alpha_is(key: str, alpha: str) -> None:
    (found,) = remapkit.explain("flux_bfl", key)
    assert found.adapter is not None and found.adapter.alpha.startswith(alpha)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lora_unet_double_blocks_99_img_attn_qkv.lora_up.weight", "double_blocks.9.img_attn.qkv"),
        ("diffusion_model.double_blocks.0.img_attn_qkv.lora_up.weight", "double_blocks.0.img_attn.qkv"),
        ("double_blocks.0.image_attn.qkv.lora_A.weight", "double_blocks.0.img_attn.qkv"),
    ],
)
def test_a_tensor_of_no_module_gets_the_nearest(key: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "flux_bfl", key]) == 1
    text = capsys.readouterr().out
    assert "of no module that the rules read" in text and nearest in text
    (found,) = remapkit.explain("flux_bfl", key)
    assert found.adapter is not None and found.adapter.nearest[0] == nearest and not found.ok


def test_other_keys_are_explained_as_before() -> None:
    for key in ("double_blocks.0.img_attn.qkv.weight", "no.such.weight", "beta.alpha"):
        (found,) = remapkit.explain("flux_bfl", key)
        assert found.adapter is None
    rules = remapkit.loads("remapkit: 1\nname: t\nrules:\n  - {id: a, path: 'a.{r:**}', to: 'b.{r}'}\n")
    found, other = remapkit.explain(rules, ["a.0.lora_up.weight", "c.0.lora_up.weight"])
    assert found.matches and found.adapter is None
    assert other.adapter is None, "without a manifest the modules of the model are not known"


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "flux_bfl", f"{QKV}.lora_down.weight", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["keys"]
    assert found["adapter"]["weight"] == "double_blocks.0.img_attn.qkv.weight"
    assert found["adapter"]["rules"] == ["double.image.qkv"]
    assert found["adapter"]["targets"] == [f"{TO_QKV.replace('{q|k|v}', part)}.lora_down.weight" for part in "qkv"]
