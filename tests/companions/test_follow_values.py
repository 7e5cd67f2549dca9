"""Scales follow their weights: the value of the result is what the rules make of the value of the source.

The rules are for plain weights and know of no scale. Each draw either keeps every value, compared in float64, where
all products are exact, or is refused by name. What a scaled weight means is written down in `scaled_kit`.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.diagnostics.errors import FailedCheck, InvalidRules
from tests.companions.scaled_kit import F8, State, make_scale, name_scale, rand_rule, values_of

FORMS = ("tensor", "one", "flat", "rows", "blocks", "unknown")
LEAVES = ("weight_scale", "weight_scale_inv", "scale_weight")


def run(rng: random.Random, form: str) -> str:
    """Draw rules and scaled weights; return `kept`, `refused`, or `invalid` if the rules do not fit plain weights."""
    rule, shapes = rand_rule(rng)
    block = rng.choice([(2, 2), (4, 2), (3, 3)])
    leaf, equal = rng.choice(LEAVES), rng.random() < 0.5
    config = {"quantization_config": {"weight_block_size": list(block)}} if form == "blocks" else {}
    try:
        rules = remapkit.loads(f"remapkit: 1\nname: t\nrules:\n  - {{id: a, {rule}}}\n", config=config)
        rules({fqn: torch.zeros(shape) for fqn, shape in shapes.items()})
    except (InvalidRules, FailedCheck):
        return "invalid"
    state: State = {}
    for fqn, shape in shapes.items():
        state[fqn] = (
            torch.tensor([rng.uniform(-3, 3) for _ in range(torch.Size(shape).numel())]).reshape(shape).to(F8)
        )
        state[name_scale(fqn, leaf)] = make_scale(form, shape, block, rng)
        if equal:
            state[name_scale(fqn, leaf)].fill_(0.7)
        state[name_scale(fqn, "input_scale")] = torch.tensor(0.9 if equal else rng.choice([0.9, 1.7]))
    try:
        made = rules(state)
    except FailedCheck as refused:
        # `scale` and `add` take no 8-bit floats, with or without scales.
        arithmetic = {"RK352"} if "{scale:" in rule or "{add:" in rule else set()
        assert {each.code for each in refused.diagnostics} <= {"RK745", "RK347"} | arithmetic
        assert any(fqn in str(refused) for fqn in shapes), "the refusal names a weight"
        return "refused"
    read = block if form in ("blocks", "unknown") else None
    weights = {fqn: tensor for fqn, tensor in state.items() if not fqn.endswith("input_scale")}
    wanted = rules(values_of(weights, leaf, read))
    inputs = {fqn: tensor for fqn, tensor in made.items() if fqn.endswith("input_scale")}
    got = values_of({fqn: tensor for fqn, tensor in made.items() if fqn not in inputs}, leaf, read)
    assert got.keys() == wanted.keys()
    for fqn in wanted:
        assert torch.equal(got[fqn], wanted[fqn]), (fqn, rule, form)
        assert made[fqn].dtype == F8
        assert inputs[name_scale(fqn, "input_scale")].item() in {
            tensor.item() for own, tensor in state.items() if own.endswith("input_scale")
        }
    return "kept"


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(FORMS))
def test_every_value_is_kept_or_the_weight_is_refused(rng: random.Random, form: str) -> None:
    run(rng, form)


@pytest.mark.parametrize("form", FORMS)
def test_many_of_the_draws_are_kept(form: str) -> None:
    """The property would hold too if everything were refused."""
    counts = Counter(run(random.Random(f"{form} {seed}"), form) for seed in range(150))
    assert counts["kept"] >= (10 if form == "unknown" else 25), counts
    assert counts["refused"] >= 5, counts
