"""Every pack there, and back by its derived inverse: the same header and bytes, on every key of its manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack_kit import CASES, Case
from safetensors.torch import save_file

import remapkit
from remapkit.cli.app import main
from remapkit.formats.detect import open_checkpoint
from remapkit.write.execute import write_checkpoint


@pytest.mark.parametrize("back", [False, True], ids=["there", "ways back"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_derived_inverse_gives_the_same_bytes_back(case: Case, back: bool) -> None:
    rules = remapkit.load(case.back if back else case.pack, params=case.params or None)
    state = case.source_state()
    if back:
        state = remapkit.load(case.pack, params=case.params or None)(state)
    there = rules(state)
    again = rules.inverse()(there)
    assert {fqn: tuple(value.shape) for fqn, value in again.items()} == {k: tuple(v.shape) for k, v in state.items()}
    assert all(torch.equal(again[fqn], value) for fqn, value in state.items())


@pytest.mark.parametrize("case", [case for case in CASES if case.pack in ("gpt2_hf", "mixtral_per_expert")], ids=str)
def test_apply_and_then_apply_of_the_inverse_file(case: Case, tmp_path: Path) -> None:
    """As files, with the rule file that `remapkit invert` writes."""
    state = case.source_state()
    save_file(state, tmp_path / "in.safetensors")
    inverse = tmp_path / "inverse.yaml"
    assert main(["invert", case.pack, "-o", str(inverse)]) == 0
    for rules, source, out in ((case.pack, "in", "there"), (inverse, "there", "back")):
        with open_checkpoint(tmp_path / f"{source}.safetensors") as reader:
            plan = remapkit.load(rules).plan(reader.header())
            plan.raise_for_problems()
            write_checkpoint(plan.moves, reader, tmp_path / f"{out}.safetensors", tied=plan.tied)
    assert main(["diff", str(tmp_path / "in.safetensors"), str(tmp_path / "back.safetensors")]) == 0
