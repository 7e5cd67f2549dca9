"""What is wrong with a written pack is named once, target by target."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from remapkit.authoring.random_tensors import StateTensors
from remapkit.authoring.verify_pack import find_wrong_targets
from remapkit.formats.options import ReadOptions
from remapkit.sources.open import open_source

TEXT = "remapkit: 1\nname: p\nrules: [{id: r, path: '{k}', to: 'm.{k}'}]\n"


def test_a_target_is_wrong_once(tmp_path: Path) -> None:
    a = {name: torch.full((2,), float(number)) for number, name in enumerate("abcd")}
    b = {"m.a": a["a"], "m.b": a["b"] + 1, "m.c": a["c"] + 1, "m.d": a["d"], "m.e": a["a"] + 5}
    save_file(a, tmp_path / "a.safetensors")
    claimed = {"m.a", "m.b", "m.e"}
    with open_source(tmp_path / "a.safetensors", ReadOptions(None)) as one:
        found = list(find_wrong_targets(TEXT, one, StateTensors(b, "b"), claimed))
    # b has other values; c is not claimed and has other values; d is not claimed; e is claimed and not made
    assert sorted(found) == ["m.b", "m.c", "m.d", "m.e"]
