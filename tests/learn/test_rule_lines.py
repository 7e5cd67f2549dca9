"""Files learned from values are as short as the packs in `rules/`, within a factor of 1.5, both ways; and why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.torch import save_file
from test_find_relations import make_sides, random
from test_learn import learned, said

import remapkit
from remapkit.authoring.generalize import generalize

PACKS = (
    *("flux_bfl", "flux_diffusers", "llama_hf", "llama_meta", "mixtral_fused", "mixtral_per_expert"),
    *("gpt2_hf", "gpt2_nanogpt", "vit_hf", "vit_timm", "wan21_dit", "wan21_dit_diffusers", "wan21_vae"),
    *("wan21_vae_diffusers", "wan21_diffusers", "wan21_pth", "wan22_diffusers", "wan22_pth", "wan22_vae"),
    "wan22_vae_diffusers",
)


def count_lines(text: str) -> int:
    """Return the number of lines under `params:`, `tables:`, `rules:`, `keep:` and `drop:`, but comments."""
    found = 0
    counts = False
    for line in text.splitlines():
        if re.match(r"[a-z]", line):
            counts = line.partition(":")[0] in ("params", "tables", "rules", "keep", "drop")
        found += counts and bool(line.strip()) and not line.strip().startswith("#")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKS)
def test_a_learned_file_is_as_short_as_the_pack(name: str, tmp_path: Path) -> None:
    sides = make_sides(name, lambda shape, n: random(*shape, seed=n))
    for side, file in zip(sides, ("a", "b"), strict=True):
        save_file(
            {fqn: tensor.contiguous().clone() for fqn, tensor in side.items()}, tmp_path / f"{file}.safetensors"
        )
    report = remapkit.learn(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "t.yaml")
    assert (
        str(report) == f"rules that map {len(sides[0])} of {len(sides[0])} keys to {len(sides[1])} of {len(sides[1])}"
    )
    text = remapkit.load(name).file.source.text
    assert count_lines(report.text) <= 1.5 * count_lines(text), report.text


def test_lines_are_counted_without_comments() -> None:
    assert (
        count_lines("name: t\n\nrules:\n  # seen\n  - id: a\n    path: b\n\nkeep:\n  - c  # d\n\ntests:\n  c: c\n")
        == 5
    )


# ---------------------------------------------------------------------------------------------- what is joined

BLOCK = {
    f"{n}.{layer}.{leaf}": f"b.{n}.{name}.{leaf}"
    for n in range(3)
    for layer, name, leaves in (
        ("conv1", "residual.2", ("weight", "bias")),
        ("norm1", "residual.0", ("gamma",)),
        ("skip.0", "shortcut", ("weight", "bias")),
    )
    for leaf in leaves
}


def test_words_of_which_not_every_combination_occurs_are_joined() -> None:
    rules = learned(BLOCK)
    assert said(rules, BLOCK) == {fqn: [other] for fqn, other in BLOCK.items()}
    assert len(rules.rules) == 1 and len(generalize(BLOCK)) == 3
    assert rules.tables["part"] == {"conv1": "residual.2", "norm1": "residual.0", "skip.0": "shortcut"}


def test_a_rule_that_would_take_another_key_is_not_joined() -> None:
    rules = learned(BLOCK, ("1.conv1.gamma",))
    assert said(rules, BLOCK) == {fqn: [other] for fqn, other in BLOCK.items()}
    assert said(rules, ["1.conv1.gamma"]) == {"1.conv1.gamma": []}
    other = {"1.conv1.gamma": "elsewhere"}
    rules = learned(BLOCK | other)
    assert said(rules, BLOCK | other) == {fqn: [to] for fqn, to in (BLOCK | other).items()}


def test_numbers_that_count_stay_numbers() -> None:
    pairs = {f"a.{n}.{leaf}": f"b.{n}.{leaf}" for n in range(4) for leaf in ("w", "bias")}
    rules = learned(pairs | {"a.final.w": "b.last.w", "a.final.bias": "b.last.bias"})
    assert said(rules, ["a.9.w"]) == {"a.9.w": ["b.9.w"]}


def test_words_whose_combinations_hardly_occur_stay_apart() -> None:
    pairs = {f"a.{word}.{word}_leaf": f"b.{word}.{word}_leaf2" for word in ("x", "y", "z", "v", "w")}
    assert said(learned(pairs), ["a.x.y_leaf"]) == {"a.x.y_leaf": []}


def test_no_arithmetic_comes_from_a_join() -> None:
    pairs = {"i.4.skip.w": "d.1.r.w", "i.3.op.w": "d.0.s.w", "i.6.op.w": "d.1.s.w", "i.9.to.w": "d.2.t.w"}
    rules = learned(pairs)
    assert said(rules, pairs) == {fqn: [other] for fqn, other in pairs.items()}
    assert not [line for line in rules.file.source.text.splitlines() if "to:" in line and "//" in line]


def test_an_index_that_counts_from_zero_is_no_word() -> None:
    pairs = {f"a.layer.{n}.{leaf}": f"b.l.{n}.{leaf}" for n in range(2) for leaf in ("w", "bias")}
    rules = learned(pairs | {"a.skip.w": "b.last.w", "a.skip.bias": "b.last.bias"})
    assert said(rules, ["a.layer.9.w"]) == {"a.layer.9.w": ["b.l.9.w"]}, rules.file.source.text


def test_a_join_that_takes_another_key_leaves_the_other_joins() -> None:
    rules = learned(BLOCK | {"1.conv1.gamma": "elsewhere"})
    assert len(rules.rules) == 3, rules.file.source.text


def test_a_join_that_cannot_be_proven_narrows_no_other_rule() -> None:
    # `{conv1|norm1}.{weight|gamma}` would make `b.0.residual.2.gamma` of `0.conv1.gamma`, which A does not have.
    rules = learned(BLOCK | {f"{n}.extra": f"b.{n}.residual.2.gamma" for n in range(3)})
    assert said(rules, ["9.extra"]) == {"9.extra": ["b.9.residual.2.gamma"]}, rules.file.source.text
