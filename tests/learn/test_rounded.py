"""A in half precision against a B that has all digits: found, compared in the coarser, and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_find_relations import random, store
from torch import Tensor

import remapkit
from remapkit.authoring.find_rounded import find_operations
from remapkit.authoring.pair_by_value import pair_by_value
from remapkit.cli.app import main

Sides = tuple[dict[str, Tensor], dict[str, Tensor]]


def half(dtype: torch.dtype, n: int = 3) -> Sides:
    """B has all digits, A is B rounded, under other names, turned and fused."""
    b: dict[str, Tensor] = {}
    a: dict[str, Tensor] = {}
    for i in range(n):
        for k, part in enumerate("qkvow"):
            b[f"h.{i}.{part}.weight"] = random(4, 6, seed=10 * i + k)
            b[f"h.{i}.{part}.bias"] = torch.zeros(4)
        rounded = {fqn: tensor.to(dtype) for fqn, tensor in b.items()}
        a[f"l.{i}.qkv.weight"] = torch.cat([rounded[f"h.{i}.{part}.weight"] for part in "qkv"])
        a[f"l.{i}.qkv.bias"] = torch.zeros(12, dtype=dtype)
        a[f"l.{i}.out.weight"], a[f"l.{i}.w"] = rounded[f"h.{i}.o.weight"], rounded[f"h.{i}.w.weight"].T
        a[f"l.{i}.out.bias"] = rounded[f"h.{i}.o.bias"]
        del b[f"h.{i}.w.bias"]
    return a, b


def save(sides: Sides, folder: Path) -> tuple[Path, Path]:
    files = folder / "a.safetensors", folder / "b.safetensors"
    for side, file in zip(sides, files, strict=True):
        save_file({fqn: tensor.contiguous().clone() for fqn, tensor in side.items()}, file)
    return files


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_teaches_the_rules_of_full_precision(
    dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = half(dtype)
    one, other = save((a, b), tmp_path)
    pack = tmp_path / "t.yaml"
    assert main(["learn", str(one), str(other), "-o", str(pack), "--format", "json"]) == 0
    word = {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    printed = json.loads(capsys.readouterr().out)
    rounded = {fqn for each in printed["relations"] if each["rounded"] for fqn in each["targets"]}
    assert rounded == {fqn for fqn in b if fqn.endswith("weight")}
    (said,) = [each for each in printed["diagnostics"] if each["code"] == "RK685"]
    assert f"equal A only after rounding to {word}" in said["title"]
    text = pack.read_text()
    assert f"# Equal only after rounding to {word}." in text and f"equal after rounding to {word}" in text
    assert main(["lint", str(pack)]) == main(["test", str(pack)]) == 0
    assert main(["apply", str(pack), str(one), "-o", str(tmp_path / "out.safetensors")]) == 0
    made = load_file(tmp_path / "out.safetensors")
    assert set(made) == set(b)
    assert all(torch.equal(tensor, b[fqn].to(dtype).float()) for fqn, tensor in made.items())
    assert not torch.equal(made["h.0.q.weight"], b["h.0.q.weight"])


def test_full_precision_against_half_is_bit_for_bit(tmp_path: Path) -> None:
    b, a = half(torch.float16)
    report = remapkit.learn(*save(({fqn: t for fqn, t in a.items() if "weight" in fqn}, b), tmp_path))
    assert not any(each.rounded for each in report.learned.relations)
    assert {fqn for fqn in b if not fqn.endswith("bias")} <= {
        fqn for each in report.learned.relations for fqn in each.targets
    }


@given(st.integers(0, 99), st.sampled_from(["h.1.q.weight", "h.2.w.weight", "h.0.o.weight"]), st.integers(0, 23))
@settings(max_examples=20)
def test_a_changed_element_is_not_taken_for_rounding(seed: int, changed: str, place: int) -> None:
    a, b = half(torch.float16)
    flat = b[changed].clone().reshape(-1)
    flat[place] = flat[place] * 1.01 + seed + 1
    b[changed] = flat.reshape(b[changed].shape)
    one, other = store("a", a), store("b", b)
    found = find_operations(one, other, pair_by_value(one, other))
    assert changed not in {fqn for each in found.relations for fqn in each.targets}
    assert found.reasons[changed]


def test_integers_and_sums_are_never_rounded() -> None:
    b = {"n": torch.arange(9.0) + 0.25, "norm": torch.arange(8) / 8 + 1.5 + 2**-16, "m": torch.arange(5) * 300}
    a = {"n": torch.arange(9, dtype=torch.int8), "norm": b["norm"].half() - 1, "m": b["m"].to(torch.int8)}
    assert torch.equal(a["norm"] + 1, b["norm"].half())
    one, other = store("a", a), store("b", b)
    found = find_operations(one, other, pair_by_value(one, other))
    assert not found.relations and set(found.reasons) == set(b)


def test_values_that_round_to_the_same_are_left_open() -> None:
    twin = random(4, 3)
    b = {"x": twin, "y": twin * (1 + 2**-20)}
    a = {"p": twin.half(), "q": twin.half()}
    one, other = store("a", a), store("b", b)
    assert not find_operations(one, other, pair_by_value(one, other)).relations
