"""Every pack is proven for all keys, operations and all; and faults in them are refuted, each with a witness."""

from __future__ import annotations

from pathlib import Path

import pytest
from pack_kit import CASES, planted

import remapkit
from remapkit.api.ruleset import compile_rules
from remapkit.proofs.model import Level
from remapkit.rulefile.read import read_text

PACKS = [name for case in CASES for name in (case.pack, case.back)]


@pytest.mark.parametrize("name", PACKS)
def test_every_pack_is_proven_for_all_keys(name: str) -> None:
    proof = remapkit.load(name).prove()
    assert proof.level is Level.ALL, proof.findings


# pack, changes, and a piece of the witness
REFUTED = {
    "a stack that forgets its layer": (
        "mixtral_per_expert",
        [
            (
                "to: 'model.layers.{i}.mlp.experts.down_proj'",
                "to: 'model.layers.mlp.experts.down_proj'\n    forget: [i]",
            )
        ],
        "model.layers.mlp.experts.down_proj",
    ),
    "an expert that passes through onto one that is unstacked": (
        "mixtral_fused",
        [("keep:\n", "keep:\n  - 'model.layers.{i:int}.block_sparse_moe.experts.{e:int}.w2.weight'\n")],
        "model.layers.0.block_sparse_moe.experts.0.w2.weight",
    ),
    "a split that writes what another rule writes": (
        "vit_timm",
        [("attention.v_proj.{leaf}", "attention.o_proj.{leaf}")],
        "vit.layers.0.attention.o_proj.",
    ),
    "a split that writes one target twice, of some keys": (
        "vit_timm",
        [
            ("attention.v_proj.{leaf}", "attention.k_proj.{leaf|other}"),
            ("tables:\n", "tables:\n  other: {weight: weight, bias: no_bias}\n"),
        ],
        "vit.layers.0.attention.k_proj.",
    ),
    "a concatenation that writes what another rule writes": (
        "vit_hf",
        [("to: 'blocks.{i}.attn.proj.{leaf}'", "to: 'blocks.{i}.attn.qkv.{leaf}'")],
        "blocks.0.attn.qkv.",
    ),
    "a source of a concatenation that another rule reads too": (
        "flux_diffusers",
        [("{part:output}.{leaf:weight|bias}", "{part}.{leaf:weight|bias}"), ("{part|output}", "{part}")],
        "attn.to_",
    ),
}


@pytest.mark.parametrize("what", REFUTED)
def test_a_planted_fault_is_refuted(what: str, tmp_path: Path) -> None:
    pack, changes, piece = REFUTED[what]
    proof = remapkit.load(planted(pack, changes, tmp_path)).prove()
    words = [text for witness in proof.witnesses for text in (*witness.keys, *witness.targets)]
    assert any(piece in text for text in words), words
    assert all(finding.code in ("RK201", "RK202", "RK203") for finding in proof.findings)
    assert proof.level is not Level.ALL


def test_what_is_folded_and_made_does_not_collide_but_what_is_forgotten_does(tmp_path: Path) -> None:
    """Eight experts of one stack have one target on purpose; two layers do not."""
    changes = REFUTED["a stack that forgets its layer"][1]
    proof = remapkit.load(planted("mixtral_per_expert", changes, tmp_path)).prove()
    ((one, other),) = {witness.keys for witness in proof.witnesses}
    assert one.split(".")[2] != other.split(".")[2]
    assert one.split(".")[3:] == other.split(".")[3:]


def test_an_unstack_that_says_how_many_is_proven_for_so_many() -> None:
    """A target beyond the count is no collision; one below it is, and so it is where the count is left open."""

    def level(other: str, count: str = ", count: 2") -> str:
        text = (
            "remapkit: 1\nname: t\nrules:\n"
            f"  - {{id: a, path: 'd.{{i:int}}.w', unstack: {{dim: 0, by: e{count}}}, to: 'q.{{e}}.{{i}}'}}\n"
            f"  - {{id: b, path: x, to: '{other}'}}\n"
        )
        return compile_rules(read_text(text)).prove().level.name

    assert level("q.2.3") == "ALL"
    assert level("q.1.3") == level("q.2.3", "") == "REFUTED"
