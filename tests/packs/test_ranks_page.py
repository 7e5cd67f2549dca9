"""The worked examples of `docs/ranks.md`: their rule files and commands are run on ranks of a known model.

The parts are made here as the frameworks define them; the answer is the model that they were made of.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pack_kit import ROOT, State, differing
from safetensors.torch import load_file
from test_values import randomised

import remapkit
from remapkit.cli.app import main
from remapkit.proofs.model import Level

PAGE = (ROOT / "docs" / "ranks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = {found[1]: text for _, text in BLOCKS if (found := re.match(r"# (\w+\.yaml)\n", text))}
COMMANDS = [line[2:] for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
RANKS, LAYERS, STAGES, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, PADDED = 2, 8, (3, 5), 4, 2, 8, 61, 64


def nested(state: Mapping[str, Any]) -> dict[str, Any]:
    """As Megatron saves: a mapping for each module of the language model, whose own keys have dots."""
    made: dict[str, Any] = {}
    for fqn, value in state.items():
        first, _, rest = fqn.partition(".")
        *modules, leaf = [rest] if first == "encoder" else rest.split(".")
        place = made.setdefault(first, {})
        for module in modules:
            place = place.setdefault(module, {})
        place[leaf] = value
    return made


def save(path: Path, content: Mapping[str, Any]) -> None:
    """A file of a rank, with the rest of what trainers save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = {
        "args": argparse.Namespace(tensor_model_parallel_size=RANKS),
        "checkpoint_version": 3.0,
        "iteration": 1000,
        "optimizer": {"state": {0: {"exp_avg": torch.rand(3), "step": torch.tensor(1000.0)}}, "param_groups": []},
        "rng_state": [{"torch_rng_state": torch.get_rng_state()}],
    }
    torch.save({**rest, **content}, path)


# ------------------------------------------------------------------------------------------ Megatron-LM


def llama() -> State:
    """A Llama of transformers with the sizes of the page."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=24,
        vocab_size=VOCABULARY,
    )
    return dict(randomised(LlamaForCausalLM(config)).state_dict())


def megatron_layer(model: State, layer: int, rank: int) -> State:
    """What one tensor rank has of a layer."""
    own = {fqn.removeprefix(f"model.layers.{layer}."): value for fqn, value in model.items()}
    q, k, v = (own[f"self_attn.{part}_proj.weight"].reshape(-1, HEAD_DIM, HEADS * HEAD_DIM) for part in "qkv")
    groups = []
    for group in range(rank * KV_HEADS // RANKS, (rank + 1) * KV_HEADS // RANKS):
        width = HEADS // KV_HEADS
        groups += [*q[group * width : (group + 1) * width], k[group], v[group]]
    gate, up, down, out = (own[f"{name}_proj.weight"] for name in ("mlp.gate", "mlp.up", "mlp.down", "self_attn.o"))
    return {
        "self_attention.query_key_value.weight": torch.cat(groups),
        "self_attention.dense.weight": out.chunk(RANKS, 1)[rank],
        "mlp.dense_h_to_4h.weight": torch.cat([gate.chunk(RANKS)[rank], up.chunk(RANKS)[rank]]),
        "mlp.dense_4h_to_h.weight": down.chunk(RANKS, 1)[rank],
        "input_norm.weight": own["input_layernorm.weight"],
        "post_attention_norm.weight": own["post_attention_layernorm.weight"],
    }


def padded(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """A rank's part of a vocabulary that is padded with whatever was in memory."""
    return torch.cat([rows, torch.rand(PADDED - VOCABULARY, rows.shape[1])]).chunk(RANKS)[rank]


def save_megatron(folder: Path) -> State:
    model = llama()
    for rank in range(RANKS):
        first = 0
        for stage, count in enumerate(STAGES):
            state: State = {}
            for layer in range(count):
                parts = megatron_layer(model, first + layer, rank)
                state |= {f"encoder.layers.{layer}.{name}": part.clone() for name, part in parts.items()}
            first += count
            if stage == 0:
                state["embedding.word_embeddings.weight"] = padded(model["model.embed_tokens.weight"], rank).clone()
            else:
                state["encoder.final_norm.weight"] = model["model.norm.weight"].clone()
                state["output_layer.weight"] = padded(model["lm_head.weight"], rank).clone()
            path = folder / f"mp_rank_{rank:02d}_{stage:03d}" / "model_optim_rng.pt"
            save(path, {"model": {"language_model": nested(state)}})
    return model


# ------------------------------------------------------------------------------------------ experts, DeepSpeed


def save_experts(folder: Path) -> State:
    """Two ranks with four experts each, in three layers."""
    wanted: State = {}
    for layer in range(3):
        wanted[f"layers.{layer}.router.weight"] = torch.rand(8, 4)
        for expert in range(8):
            wanted[f"layers.{layer}.experts.{expert}.gate_up_proj.weight"] = torch.rand(6, 4)
            wanted[f"layers.{layer}.experts.{expert}.down_proj.weight"] = torch.rand(4, 3)
    names = {"gate_up_proj": "linear_fc1", "down_proj": "linear_fc2"}
    for rank in range(2):
        model = {}
        for fqn, value in wanted.items():
            _, at, kind, *rest = fqn.split(".")
            if kind == "router":
                model[f"decoder.layers.{at}.mlp.router.weight"] = value
            elif int(rest[0]) // 4 == rank:
                local = f"decoder.layers.{at}.mlp.experts.local_experts.{int(rest[0]) % 4}"
                model[f"{local}.{names[rest[1]]}.weight"] = value
        save(folder / f"mp_rank_00_000_{rank:03d}" / "model_optim_rng.pt", {"model": model})
    return wanted


def perceptrons(*, norms: bool) -> State:
    made: State = {}
    for layer in range(2):
        made[f"h.{layer}.fc_in.weight"], made[f"h.{layer}.fc_in.bias"] = torch.rand(6, 4), torch.rand(6)
        made[f"h.{layer}.fc_out.weight"] = torch.rand(4, 6)
        if norms:
            for name in ("fc_out.bias", "ln.weight", "ln.bias"):
                made[f"h.{layer}.{name}"] = torch.rand(4)
    return made


def part_of(fqn: str, value: torch.Tensor, rank: int) -> torch.Tensor:
    """`fc_in` makes a part of the inner layer on each rank, `fc_out` reads it; all else is the same."""
    if "fc_in" in fqn:
        return value.chunk(2)[rank].clone()
    return value.chunk(2, 1)[rank].clone() if fqn.endswith("fc_out.weight") else value


def save_deepspeed(folder: Path) -> State:
    wanted = perceptrons(norms=True)
    for rank in range(2):
        module = {fqn: part_of(fqn, value, rank) for fqn, value in wanted.items()}
        save(folder / f"mp_rank_{rank:02d}_model_states.pt", {"module": module, "dp_world_size": 1})
    return wanted


def save_neox(folder: Path) -> State:
    """A file for each layer and rank; the first two entries are the embedding and a function, which has no file."""
    folder.mkdir()
    wanted = perceptrons(norms=False)
    for rank in range(2):
        for layer in range(2):
            names = {"fc_in": "dense_h_to_4h", "fc_out": "dense_4h_to_h"}
            own = {fqn: value for fqn, value in wanted.items() if fqn.startswith(f"h.{layer}.")}
            state = {
                f"mlp.{names[fqn.split('.')[2]]}.{fqn.split('.')[3]}": part_of(fqn, value, rank)
                for fqn, value in own.items()
            }
            torch.save(state, folder / f"layer_{layer + 2:02d}-model_{rank:02d}-model_states.pt")
    return wanted


SAVED: dict[str, tuple[Callable[[Path], State], str]] = {
    "iter_0001000": (save_megatron, "model"),
    "moe": (save_experts, "experts"),
    "global_step1000": (save_deepspeed, "deepspeed"),
    "global_step2000": (save_neox, "neox"),
}
"""The folders that commands of the page read, and what they write."""


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_commands_of_the_page_make_the_models_that_the_ranks_are_of(pages: Path) -> None:
    wanted = {out: make(pages / folder) for folder, (make, out) in SAVED.items()}
    assert len(COMMANDS) == 5 and set(FILES) == {"megatron.yaml", "experts.yaml", "deepspeed.yaml", "neox.yaml"}
    for command in COMMANDS:
        program, *words = shlex.split(command)
        assert program == "remapkit" and main(words) == 0, command
    for out, state in wanted.items():
        assert differing(load_file(pages / f"{out}.safetensors"), state) == [], out


def test_a_stage_that_has_one_layer_less_and_a_rank_that_disagrees_are_refused(
    pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_megatron(pages / "iter_0001000")
    words = ["apply", "megatron.yaml", "iter_0001000", "-o", "model.safetensors"]
    path = pages / "iter_0001000" / "mp_rank_01_001" / "model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    encoder = content["model"]["language_model"]["encoder"]
    encoder["layers.4.input_norm.weight"] = encoder["layers.4.input_norm.weight"] + 1
    torch.save(content, path)
    assert main(words) == 1
    norm = "pp1.encoder.layers.4.input_norm.weight"
    said = capsys.readouterr().err
    assert f"tp1.{norm} (" in said and f"differs from tp0.{norm} (" in said and "in 32 of 32 elements" in said
    assert "iter_0001000/mp_rank_01_001/model_optim_rng.pt" in said
    del encoder["layers.4.input_norm.weight"]
    torch.save(content, path)
    assert main(words) == 1
    assert f"tp1.{norm} is missing" in capsys.readouterr().err
    assert not (pages / "model.safetensors").exists()


FAULTS = {
    "gate and up of a rank stay": "rearrange: {pattern: '(rank two f) c -> (two rank f) c', rank: ranks, two: 2}",
    "queries, keys and values stay": "ungroup_qkv: {heads: heads, kv_heads: kv_heads, head_dim: head_dim}",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_names_and_shapes_do_not_show_is_seen_by_value(fault: str, pages: Path) -> None:
    operation = f"    ops: [{{{FAULTS[fault]}}}]\n"
    assert FILES["megatron.yaml"].count(operation) == 1
    (pages / "megatron.yaml").write_text(FILES["megatron.yaml"].replace(operation, ""))
    model = save_megatron(pages / "iter_0001000")
    assert main(["apply", "megatron.yaml", "iter_0001000", "-o", "model.safetensors"]) == 0
    assert differing(load_file(pages / "model.safetensors"), model)


def test_a_wrong_offset_is_refuted(pages: Path) -> None:
    """Two stages that begin one layer apart from where they do would write one layer twice, or leave one out."""
    assert remapkit.load("megatron.yaml").prove().level is Level.DOMAIN
    text = FILES["megatron.yaml"].replace("{i:0..offset[1]-1}", "{i:0..3}")
    (pages / "wrong.yaml").write_text(text)
    proof = remapkit.load("wrong.yaml").prove()
    assert proof.level is Level.REFUTED
    assert {"model.layers.3.input_layernorm.weight"} & {target for each in proof.witnesses for target in each.targets}
