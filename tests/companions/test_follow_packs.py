"""Packs that know nothing of scales, on checkpoints of small models quantised as published ones are."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.api.ruleset import RuleSet
from remapkit.diagnostics.errors import FailedCheck
from tests.companions.scaled_kit import State, make_scale, make_weight, name_scale, values_of

HIDDEN = 16


def quantize(shapes: Mapping[str, Sequence[int]], leaf: str, form: str, block: Sequence[int] = (1, 1)) -> State:
    """A checkpoint of which every matrix has 8 bits and a scale, as `leaf` beside it; the rest is bfloat16."""
    rng = random.Random(0)
    state: State = {}
    for fqn, shape in shapes.items():
        if len(shape) < 2 or "norm" in fqn or "embed" in fqn:
            state[fqn] = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(1)).bfloat16()
            continue
        state[fqn] = make_weight(shape, rng)
        state[name_scale(fqn, leaf)] = make_scale(form, shape, block, rng)
    return state


def check_values(rules: RuleSet, state: State, leaf: str, block: Sequence[int] | None) -> State:
    """Rename a checkpoint, and compare the value of each weight with that of plain weights; return the result."""
    made = rules(state)
    wanted = rules(values_of(state, leaf, block))
    got = values_of(made, leaf, block)
    assert got.keys() == wanted.keys()
    assert [fqn for fqn in wanted if not torch.equal(got[fqn], wanted[fqn])] == []
    return made


def flux_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"img_in.weight": (HIDDEN, 8), "img_in.bias": (HIDDEN,)}
    for stream in ("img", "txt"):
        attention, mlp = f"double_blocks.0.{stream}_attn", f"double_blocks.0.{stream}_mlp"
        shapes |= {
            f"{attention}.qkv.weight": (3 * HIDDEN, HIDDEN),
            f"{attention}.qkv.bias": (3 * HIDDEN,),
            f"{attention}.norm.query_norm.scale": (8,),
            f"{attention}.proj.weight": (HIDDEN, HIDDEN),
            f"{mlp}.0.weight": (4 * HIDDEN, HIDDEN),
            f"{mlp}.2.weight": (HIDDEN, 4 * HIDDEN),
        }
    shapes["single_blocks.0.linear1.weight"] = (7 * HIDDEN, HIDDEN)
    shapes["single_blocks.0.linear2.weight"] = (HIDDEN, 5 * HIDDEN)
    shapes["final_layer.adaLN_modulation.1.weight"] = (2 * HIDDEN, HIDDEN)
    return shapes


def flux() -> State:
    """A FLUX file as ComfyUI scales it: a scale for each weight, one for its input, and the tensor that marks it."""
    state = quantize(flux_shapes(), "scale_weight", "tensor")
    scaled = [fqn for fqn in state if name_scale(fqn, "scale_weight") in state]
    return (
        state
        | {name_scale(fqn, "scale_input"): torch.tensor(1.5 + at) for at, fqn in enumerate(scaled)}
        | {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    )


def test_flux_with_the_scales_of_comfyui() -> None:
    rules, state = remapkit.load("flux_bfl", params={"hidden": HIDDEN}), flux()
    weights = {fqn: tensor for fqn, tensor in state.items() if "scale_input" not in fqn and fqn != "scaled_fp8"}
    check_values(rules, weights, "scale_weight", None)
    made = rules(state)
    assert made["scaled_fp8"] is state["scaled_fp8"]
    for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"):
        block = f"single_transformer_blocks.0.{part}"
        assert made[f"{block}.scale_input"].equal(state["single_blocks.0.linear1.scale_input"])
        assert made[f"{block}.scale_weight"].equal(state["single_blocks.0.linear1.scale_weight"])


def test_every_command_does_the_same(tmp_path: Path) -> None:
    rules, state = remapkit.load("flux_bfl", params={"hidden": HIDDEN}), flux()
    source, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(state, source)
    written = remapkit.apply(rules, source, output, partial=True, verify=True)
    out, made = load_file(output), rules(state)
    assert out.keys() == made.keys()
    assert all(out[fqn].reshape(-1).view(torch.uint8).equal(made[fqn].reshape(-1).view(torch.uint8)) for fqn in out)
    notes = [each.title for each in written.diagnostics if each.code == "RK746"]
    assert len(notes) == 3 and "12 keys `scale_weight`: they follow their weights" in notes[0]
    plain = {fqn: remapkit.TensorSpec("BF16", tuple(out[fqn].shape)) for fqn in out if "scale" not in fqn}
    report = remapkit.check(rules, source, target_keys=plain)
    assert report.ok and set(report.checks[0].companions) == {fqn for fqn in out if "scale" in fqn}
    assert "RK747" in {each.code for each in report.diagnostics}
    assert remapkit.diff(source, output, rules_a=rules).ok
    strict = remapkit.check(rules, source, target_keys=plain, strict_dtype=True)
    (dtype,) = [each for each in strict.diagnostics if each.code == "RK313"]
    assert not strict.ok and "dequantize" in dtype.help[0] and "; cast" not in dtype.help[0]


def test_scales_that_would_be_one_must_be_equal() -> None:
    """Unequal ones are found before anything is written, and both are named."""
    rules = remapkit.loads(
        "remapkit: 1\nname: t\nrules: [{id: j, concat: {dim: 0, from: [q.weight, k.weight]}, to: m.weight}]\n"
    )
    state = quantize({"q.weight": (4, 4), "k.weight": (2, 4)}, "weight_scale", "tensor")
    state["q.weight_scale"].fill_(0.5)
    state["k.weight_scale"].fill_(0.25)
    with pytest.raises(FailedCheck, match=r"k\.weight_scale differs from q\.weight_scale"):
        rules(state)
    state["k.weight_scale"].fill_(0.5)
    assert check_values(rules, state, "weight_scale", None)["m.weight_scale"].item() == 0.5


def test_a_module_without_scales_takes_no_scaled_weight() -> None:
    state = quantize({"a.weight": (4, 4)}, "weight_scale", "tensor")
    rules = remapkit.loads("remapkit: 1\nname: t\nrules: [{id: r, path: a.weight, to: weight}]\n")
    model = torch.nn.Linear(4, 4, bias=False)
    with pytest.raises(FailedCheck, match="RK320"):
        remapkit.load_into(model, state, rules)


def llama_shapes(head_dim: int) -> dict[str, tuple[int, ...]]:
    layer = "model.layers.0"
    return {
        "model.embed_tokens.weight": (10, HIDDEN),
        f"{layer}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        f"{layer}.self_attn.k_proj.weight": (2 * head_dim, HIDDEN),
        f"{layer}.self_attn.v_proj.weight": (2 * head_dim, HIDDEN),
        f"{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        f"{layer}.mlp.gate_proj.weight": (22, HIDDEN),
        f"{layer}.mlp.down_proj.weight": (HIDDEN, 22),
        f"{layer}.input_layernorm.weight": (HIDDEN,),
    }


def llama_config(head_dim: int, block: Sequence[int] | None) -> dict[str, Any]:
    sizes = {"num_attention_heads": HIDDEN // head_dim, "num_key_value_heads": 2, "hidden_size": HIDDEN}
    quantization = {"quant_method": "fp8", "weight_block_size": block and list(block)}
    return {**sizes, "head_dim": head_dim, "quantization_config": quantization}


@pytest.mark.parametrize(("head_dim", "block"), [(4, (4, 8)), (4, (8, 5)), (2, (4, 4))])
def test_llama_with_blocks_of_whole_heads(head_dim: int, block: tuple[int, int]) -> None:
    """Rows are reordered within heads, so the scale of a block of whole heads stays; the last blocks are ragged."""
    rules = remapkit.load("llama_hf", config=llama_config(head_dim, block))
    state = quantize(llama_shapes(head_dim), "weight_scale_inv", "blocks", block)
    made = check_values(rules, state, "weight_scale_inv", block)
    assert made["layers.0.feed_forward.w1.weight_scale_inv"].shape[0] == -(-22 // block[0])


def test_llama_with_blocks_inside_heads_is_refused_by_name() -> None:
    rules = remapkit.load("llama_hf", config=llama_config(8, (4, 4)))
    with pytest.raises(FailedCheck) as caught:
        rules(quantize(llama_shapes(8), "weight_scale_inv", "blocks", (4, 4)))
    assert [each.code for each in caught.value.diagnostics] == ["RK745", "RK745"]
    assert "attention.queries" in str(caught.value) and "elements of several blocks of 4" in str(caught.value)
    assert "q_proj.weight_scale_inv" in str(caught.value) and "v_proj" not in str(caught.value)


def test_llama_with_blocks_of_unknown_size_is_refused_by_name() -> None:
    rules = remapkit.load("llama_hf", config=llama_config(4, None))
    with pytest.raises(FailedCheck, match="size is not known") as caught:
        rules(quantize(llama_shapes(4), "weight_scale_inv", "blocks", (4, 4)))
    assert "quantization_config.weight_block_size" in str(caught.value)


def test_llama_with_a_scale_for_each_row() -> None:
    rules = remapkit.load("llama_hf", config=llama_config(8, None))
    check_values(rules, quantize(llama_shapes(8), "weight_scale", "rows"), "weight_scale", None)
    check_values(rules, quantize(llama_shapes(8), "weight_scale", "flat"), "weight_scale", None)


def mixtral_shapes(experts: int = 2) -> dict[str, tuple[int, ...]]:
    moe = "model.layers.0.block_sparse_moe"
    shapes: dict[str, tuple[int, ...]] = {f"{moe}.gate.weight": (experts, HIDDEN)}
    for expert in range(experts):
        shapes |= {f"{moe}.experts.{expert}.{leaf}.weight": (24, HIDDEN) for leaf in ("w1", "w3")}
        shapes[f"{moe}.experts.{expert}.w2.weight"] = (HIDDEN, 24)
    return shapes


def test_mixtral_experts_with_blocks_there_and_back() -> None:
    config = {"num_local_experts": 2, "quantization_config": {"weight_block_size": [8, 5]}}
    rules = remapkit.load("mixtral_per_expert", config=config)
    state = quantize(mixtral_shapes(), "weight_scale_inv", "blocks", (8, 5))
    made = check_values(rules, state, "weight_scale_inv", (8, 5))
    assert made["model.layers.0.mlp.experts.gate_up_proj_scale_inv"].shape == (2, 6, 4)
    back = check_values(remapkit.load("mixtral_fused", config=config), made, "weight_scale_inv", (8, 5))
    assert back.keys() == state.keys()
    assert all(back[fqn].view(torch.uint8).equal(state[fqn].view(torch.uint8)) for fqn in state)


def test_mixtral_experts_whose_last_blocks_are_ragged_are_refused() -> None:
    config = {"num_local_experts": 2, "quantization_config": {"weight_block_size": [16, 16]}}
    rules = remapkit.load("mixtral_per_expert", config=config)
    with pytest.raises(FailedCheck, match=r"w1.weight has 24 rows, and its last block of 16 would go on"):
        rules(quantize(mixtral_shapes(), "weight_scale_inv", "blocks", (16, 16)))


def test_mixtral_experts_with_one_scale_each_are_refused() -> None:
    rules = remapkit.load("mixtral_per_expert", params={"experts": 2})
    with pytest.raises(FailedCheck, match="a scale that is stacked too must have the dimensions of its weight"):
        rules(quantize(mixtral_shapes(), "weight_scale", "tensor"))
