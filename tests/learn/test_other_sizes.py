"""Packs that were learned on one size, held against another: what the help says is done, and it works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_depth import learn_from
from test_find_relations import random
from torch import Tensor

import remapkit
from remapkit.cli.app import main

Sides = tuple[dict[str, Tensor], dict[str, Tensor]]


def stacked(n: int) -> Sides:
    a = {f"l.{i}.w": random(4, 3, seed=i) for i in range(n)} | {"x": random(5, seed=77)}
    return a, {"w": torch.stack([a[f"l.{i}.w"] for i in range(n)]), "y": a["x"]}


def first_and_last_differ(n: int) -> Sides:
    a = {f"l.{i}.w": random(4, 3, seed=i) for i in range(n)}
    b = {f"h.{i}.w": tensor for i, tensor in enumerate(a.values())}
    b[f"h.{n - 1}.w"] = a[f"l.{n - 1}.w"].flip(1)
    return a, b | {"h.0.w": a["l.0.w"].flip(0)}


def store(tensors: dict[str, Tensor], file: Path) -> str:
    save_file({fqn: tensor.contiguous().clone() for fqn, tensor in tensors.items()}, file)
    return str(file)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("declares", ["both", "source", "target", "nothing"])
def test_the_help_for_another_number_of_stacked_layers_works(
    declares: str, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = learn_from(stacked(4), tmp_path)
    for side in {"both": (), "source": ("target",), "target": ("source",)}.get(declares, ("source", "target")):
        pack.write_text(re.sub(f"(?m)^{side}: .*\n", "", pack.read_text()))
    a, b = stacked(number)
    command = ["apply", str(pack), store(a, tmp_path / "other.safetensors"), "-o", str(tmp_path / "out.safetensors")]
    capsys.readouterr()
    assert main(command) != 0
    found = re.search(r"help: if l goes from 0 to (\d+) in the whole checkpoint, pass (.*)", capsys.readouterr().err)
    assert found is not None and int(found[1]) == number - 1
    assert main([*command, *shlex.split(found[2])]) == 0, capsys.readouterr().err
    made = load_file(tmp_path / "out.safetensors")
    assert set(made) == set(b) and all(torch.equal(made[fqn], b[fqn]) for fqn in b)


def test_a_single_layer_has_rules_of_its_own(tmp_path: Path) -> None:
    """One layer is the first and the last: what four layers show of either does not hold, and learning does."""
    pack = learn_from(first_and_last_differ(4), tmp_path)
    a, b = first_and_last_differ(1)
    with pytest.raises(remapkit.RemapkitError, match=r"RK135(.|\n)*learn rules of its own: `remapkit learn A B`"):
        remapkit.load(pack)(a)
    made = remapkit.load(learn_from((a, b), tmp_path))(a)
    assert set(made) == set(b) and torch.equal(made["h.0.w"], b["h.0.w"])
