"""Stacks and unstacks whose keys no index counts become a concat or a split; what no rule can express is said so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_find_relations import random
from test_learn import header
from torch import Tensor

import remapkit
from remapkit.authoring.learn import learn
from remapkit.authoring.pair_by_value import Pairing
from remapkit.authoring.relation import Relation
from remapkit.diagnostics.errors import UsageError

Side = dict[str, Tensor]


def make(names: tuple[str, ...], *shape: int) -> Side:
    return {fqn: random(*shape, seed=n) for n, fqn in enumerate(names)}


def stack(names: tuple[str, ...], dim: int) -> tuple[Side, Side]:
    a = make(names, 4, 3)
    return a, {"b.all": torch.stack(list(a.values()), dim)}


def stack_layers(dim: int) -> tuple[Side, Side]:
    a = make(tuple(f"l.{n}.{part}" for n in range(3) for part in "qkv"), 4, 3)
    return a, {f"b.{n}.qkv": torch.stack([a[f"l.{n}.{part}"] for part in "qkv"], dim) for n in range(3)}


def stack_some() -> tuple[Side, Side]:
    a = make(("e.0.w", "e.1.w", "e.2.w"), 4, 3)
    return a, {"b.two": torch.stack([a["e.0.w"], a["e.1.w"]]), "b.shared": a["e.2.w"]}


def stack_fused(dim: int) -> tuple[Side, Side]:
    a = make(tuple(f"{expert}.{part}" for expert in ("x", "y") for part in ("gate", "up")), 4, 3)
    return a, {"b.all": torch.stack([torch.cat([a[f"{e}.gate"], a[f"{e}.up"]], dim) for e in ("x", "y")])}


CASES = {
    **{f"qkv along {dim}": stack(("l.q", "l.k", "l.v"), dim) for dim in range(3)},
    "qkv of three layers": stack_layers(0),
    "two indices": stack(tuple(f"e.{e}.w{e + 1}" for e in range(3)), 0),
    "0, 1, 10": stack(("t.0.w", "t.1.w", "t.10.w"), 0),
    "0, 1 and not 2": stack_some(),
    "gate and up": stack_fused(0),
    "gate and up along 1": stack_fused(1),
}


@pytest.mark.parametrize("is_reversed", [False, True], ids=["joined", "cut"])
@pytest.mark.parametrize("name", CASES)
def test_what_no_index_counts_is_learned(name: str, is_reversed: bool, tmp_path: Path) -> None:
    a, b = CASES[name][::-1] if is_reversed else CASES[name]
    for side, file in ((a, "a"), (b, "b")):
        save_file({fqn: tensor.contiguous() for fqn, tensor in side.items()}, tmp_path / f"{file}.safetensors")
    report = remapkit.learn(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "t.yaml")
    assert not report.diagnostics, report.text
    made = remapkit.load(tmp_path / "t.yaml")(a)
    assert set(made) == set(b) and all(torch.equal(made[fqn], b[fqn]) for fqn in b), report.text
    assert report.text.count("- id: ") <= 1 + (name == "0, 1 and not 2"), report.text


def test_what_no_rule_can_express_is_said_so() -> None:
    relation = Relation(("e.0", "e.1"), ("b",), "stack")
    with pytest.raises(UsageError) as raised:
        learn(
            *("t", header(relation.sources), header(relation.targets), Pairing({}, {}, (), ("b",))),
            relations=[relation],
            replay=lambda move: False,
        )
    (found,) = raised.value.diagnostics
    assert found.code == "RK656" and found.title == "no rule can express the 1 pair; nothing was written"
    assert "e.0 + e.1 -> b" in found.notes[0] and "by hand" in found.help[0]
