"""What other tools do to whole checkpoints in silence, on the real header of the Wan 2.2 VAE: right, or refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import remapkit
from remapkit.api.ruleset import compile_rules
from remapkit.diagnostics.errors import FailedCheck
from remapkit.rulefile.read import read_text
from remapkit.tensors.spec import StateDictSpec

ROOT = Path(remapkit.__file__).parent.parent
UPSTREAM = remapkit.header(ROOT / "rules" / "keys" / "wan22_vae_upstream.json")

# Block indices are forgotten, as a substitution of `downsamples\.\d+` by `resnets` does it.
FORGETFUL = r"""
remapkit: 1
name: forgetful
rules:
  - id: encoder
    path: 'encoder.downsamples.{stage:int}.downsamples.{block:int}.{rest:**}'
    to: 'encoder.down_blocks.{stage}.resnets.{rest}'
    forget: [block]
  - id: decoder
    path: 'decoder.upsamples.{stage:int}.upsamples.{block:int}.{rest:**}'
    to: 'decoder.up_blocks.{stage}.resnets.{rest}'
    forget: [block]
keep:
  - '{conv:conv1|conv2}.{leaf:weight|bias}'
  - '{side:encoder|decoder}.{part:conv1|middle|head}.{rest:**}'
"""


def forgetful_loop(fqns: list[str]) -> dict[str, str]:
    """The same by hand, the way it is written today: the last one wins and nobody is told."""
    import re

    found = {}
    for fqn in fqns:
        new = re.sub(r"encoder\.downsamples\.(\d+)\.downsamples\.\d+", r"encoder.down_blocks.\1.resnets", fqn)
        found[re.sub(r"decoder\.upsamples\.(\d+)\.upsamples\.\d+", r"decoder.up_blocks.\1.resnets", new)] = fqn
    return found


def test_tensors_that_overwrite_one_another_are_refused_and_counted() -> None:
    """diffusers' single-file loader makes 160 of the 196: 36 are gone and it says nothing."""
    plan = compile_rules(read_text(FORGETFUL, "forgetful.yaml")).plan(UPSTREAM)
    left = forgetful_loop(list(UPSTREAM))
    lost = len(UPSTREAM) - len(left)
    assert lost > 36
    collisions = [problem for problem in plan.problems if problem.code == "RK303"]
    named = {fqn: sources for each in collisions for fqn, sources in each.values["collisions"].items()}
    assert sum(len(sources) - 1 for sources in named.values()) == lost
    assert set(named) <= set(left) and all(left[fqn] == sources[-1] for fqn, sources in named.items())
    with pytest.raises(FailedCheck, match="48 source keys map to 24 target keys"):
        plan.raise_for_problems()


def test_one_missing_tensor_is_named() -> None:
    """Elsewhere it is "cannot copy out of meta tensor", or a random weight and no word."""
    gone = "decoder.middle.1.proj.bias"
    source = StateDictSpec({fqn: spec for fqn, spec in UPSTREAM.items() if fqn != gone})
    check = remapkit.load("wan22_pth").plan(source).check(UPSTREAM_AS_TARGET)
    assert check.missing_keys == (gone,)
    with pytest.raises(FailedCheck, match=gone):
        check.raise_for_problems()


def test_a_stray_key_never_fills_a_missing_one() -> None:
    """A match by suffix would give `decoder.head.0.gamma` the stray `gamma`."""
    gone = "decoder.head.0.gamma"
    tensors = {fqn: spec for fqn, spec in UPSTREAM.items() if fqn != gone} | {"gamma": UPSTREAM[gone]}
    plan = remapkit.load("wan22_pth").plan(StateDictSpec(tensors))
    assert [problem.code for problem in plan.problems] == ["RK301"]
    assert plan.problems[0].values["unmatched"] == ["gamma"]
    assert gone in plan.check(UPSTREAM_AS_TARGET).missing_keys


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_a_checkpoint_never_matters(seed: int) -> None:
    """Keys that are paired by position change places when q and k are saved in another order."""
    fqns = list(UPSTREAM)
    random.Random(seed).shuffle(fqns)
    rules = remapkit.load("wan22_pth")
    shuffled = rules.plan(StateDictSpec({fqn: UPSTREAM[fqn] for fqn in fqns}))
    assert {(move.sources, move.target) for move in shuffled.moves} == {
        (move.sources, move.target) for move in rules.plan(UPSTREAM).moves
    }


UPSTREAM_AS_TARGET = remapkit.load("wan22_pth").plan(UPSTREAM).target
