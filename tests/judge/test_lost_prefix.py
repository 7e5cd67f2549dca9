"""A prefix that keys lack is not proposed where it would give a key that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import remapkit
from remapkit.plans.roots import advise_roots, find_lost_prefix
from tests.core.plan_kit import compiled


def test_a_prefix_gives_no_key_that_is_there() -> None:
    rules = compiled("rules: [{id: r, path: 'net.{i:int}.w', to: 'h.{i}'}]")
    assert find_lost_prefix(rules, ["0.w", "net.1.w"], ["0.w"]) == "net."
    assert find_lost_prefix(rules, ["0.w", "net.0.w"], ["0.w"]) is None


def test_a_prefix_that_the_root_took_is_given_back_by_an_outer_root(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2), "c": torch.zeros(2)}
    torch.save({"state_dict": {"a": tensors}, "epoch": 1}, tmp_path / "m.pth")
    rules = compiled("rules: [{id: r, path: 'a.{r}', to: 'x.{r}'}]")
    with pytest.raises(remapkit.FailedCheck) as caught:
        remapkit.apply(rules, tmp_path / "m.pth", tmp_path / "o.safetensors")
    help = caught.value.diagnostics[0].help[0]
    assert help == "all 2 keys match under root 'state_dict': --root state_dict"
    written = remapkit.apply(rules, tmp_path / "m.pth", tmp_path / "o.safetensors", root="state_dict")
    assert [move.target for move in written.moves] == ["x.b", "x.c"]
    assert advise_roots(rules, ["b"], ["b"], "na") == []  # a root that only ends with these letters took nothing


def test_a_prefix_that_the_root_took_stands_behind_that_of_a_mount(tmp_path: Path) -> None:
    for rank in range(2):
        nested = {"model": {"net": {"encoder": {"w": torch.ones(2), "b": torch.ones(2)}}}, "optimizer": {}}
        torch.save(nested, tmp_path / f"{rank}.pth")
    rules = compiled("rules: [{id: r, path: 'tp{t:int}.encoder.{r}', to: 'x.{t}.{r}'}]")
    with pytest.raises(remapkit.FailedCheck) as caught:
        remapkit.apply(rules, f"tp{{t}}.={tmp_path}/{{t}}.pth", tmp_path / "o.safetensors")
    help = caught.value.diagnostics[0].help[0]
    assert help == "all 4 keys match under root 'model.net': --root model.net"
    remapkit.apply(rules, f"tp{{t}}.={tmp_path}/{{t}}.pth", tmp_path / "o.safetensors", root="model.net")
