"""Tensors that an operation leaves as they are: other keys of their rule decide, or it is said that nothing does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_find_relations import random, store
from test_learn_ops import judge
from torch import Tensor

from remapkit.authoring.find_rounded import find_operations
from remapkit.authoring.find_symmetric import Lines
from remapkit.authoring.pair_by_value import pair_by_value
from remapkit.authoring.settle import By
from remapkit.tensors.spec import TensorSpec

Turn = Callable[[Tensor], Tensor]
TURNS: dict[str, Turn] = {
    "transpose": lambda tensor: tensor.T,
    "flip": lambda tensor: tensor.flip(0),
    "flip of columns": lambda tensor: tensor.flip(1),
    "halves": lambda tensor: tensor.roll(2, 0),
    "both": lambda tensor: tensor.T.flip(0),
}


def layers(turn: Turn, symmetric: set[int], n: int = 4) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Layers that B has turned; some are their own image."""
    a = {f"l.{i}.w": random(4, 4, seed=i) for i in range(n)}
    for i in symmetric:
        image, total = turn(a[f"l.{i}.w"]), a[f"l.{i}.w"]
        while not torch.equal(image, a[f"l.{i}.w"]):  # all images of the first, once each
            total, image = total + image, turn(image)
        a[f"l.{i}.w"] = total.contiguous()
    # Sums of floats depend on their order.
    a = {fqn: tensor.mul(8).round().add(seed) for seed, (fqn, tensor) in enumerate(a.items())}
    return a, {fqn.replace("l.", "h."): turn(tensor).contiguous() for fqn, tensor in a.items()}


def to_numpy(side: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {fqn: tensor.numpy() for fqn, tensor in side.items()}


@given(st.sampled_from(sorted(TURNS)), st.sets(st.integers(0, 4), max_size=4))
def test_the_other_keys_of_a_rule_decide(turn: str, symmetric: set[int]) -> None:
    a, b = layers(TURNS[turn], symmetric, 5)
    same = {i for i in range(5) if torch.equal(a[f"l.{i}.w"], b[f"h.{i}.w"])}
    one, other = store("a", a), store("b", b)
    found = find_operations(one, other, pair_by_value(one, other))
    if len(same) < 5:
        assert {each.sources for each in found.relations} == {(fqn,) for fqn in a} and not found.reasons
        assert all(each.ops == found.relations[0].ops for each in found.relations)
        assert {int(each.sources[0][2]) for each in found.relations if each.by == By.RULE.value} >= same


@pytest.mark.parametrize("turn", sorted(TURNS))
def test_one_rule_for_all_and_it_is_said(turn: str, tmp_path: Path) -> None:
    a, b = map(to_numpy, layers(TURNS[turn], {0, 1, 2}))
    report, made = judge(tmp_path, a, b)
    assert made == set(b) and report.text.count("- id:") == 1
    assert [(each.code, each.notes) for each in report.diagnostics] == [("RK628", ("h.0.w\nh.1.w\nh.2.w",))]


@pytest.mark.parametrize("turn", sorted(set(TURNS) - {"both"}))
def test_where_nothing_decides_a_rename_is_said_to_be_the_simplest(turn: str, tmp_path: Path) -> None:
    a, b = map(to_numpy, layers(TURNS[turn], {0, 1, 2, 3}))
    report, made = judge(tmp_path, a, b)
    assert made == set(b) and "ops:" not in report.text
    assert {fqn: each.by for fqn, each in report.learned.settled.items()} == dict.fromkeys(a, By.SIMPLEST)
    (said,) = report.diagnostics
    assert said.code == "RK628" and said.title.endswith(By.SIMPLEST.value) and "symmetric values" in report.text


def test_keys_that_are_certainly_renamed_decide_as_well(tmp_path: Path) -> None:
    a, _ = layers(TURNS["transpose"], {0, 1})
    report, made = judge(tmp_path, to_numpy(a), to_numpy({f"h.{n}.w": a[f"l.{n}.w"] for n in range(4)}))
    assert len(made) == 4 and "ops:" not in report.text
    assert {fqn: each.by for fqn, each in report.learned.settled.items()} == {f"l.{n}.w": By.RULE for n in (0, 1)}


def test_keys_that_disagree_decide_nothing(tmp_path: Path) -> None:
    a, b = layers(TURNS["transpose"], {1})
    b |= {"h.0.w": a["l.0.w"], "h.3.w": a["l.3.w"]}
    report, made = judge(tmp_path, to_numpy(a), to_numpy(b))
    assert made == set(b) and {*report.learned.settled} == {"l.1.w"}


def test_a_symmetric_tensor_under_several_names_is_said(tmp_path: Path) -> None:
    w = random(4, 4)
    a = {"w": w + w.T, "x": random(3)}
    report, made = judge(tmp_path, to_numpy(a), to_numpy({"u": a["w"], "v": a["w"].clone(), "y": a["x"]}))
    assert made == {"u", "v", "y"} and [each.by for each in report.learned.relations] == [By.SIMPLEST.value]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 7), st.integers(0, 99))
def test_the_lines_are_those_through_the_first_element(shape: list[int], step: int, seed: int) -> None:
    """Whatever leaves a tensor as it is leaves its lines as they are, however its bytes are cut."""
    values = np.random.default_rng(seed).integers(0, 2, shape, "u1")
    lines = Lines(TensorSpec("U8", tuple(shape)))
    raw = memoryview(values.tobytes())
    for start in range(0, len(raw), step):
        lines.add_piece(raw[start : start + step])
    found = [*lines.list_images()]
    for dim, size in enumerate(shape):
        if size > 1 and np.array_equal(np.flip(values, dim), values):
            flips = [{"flip": {"dim": dim}}, {"flip_halves": {"dim": dim}}]
            assert any((flip,) in found for flip in flips)
    if len(shape) == 2 and shape[0] == shape[1] > 1 and np.array_equal(values.T, values):
        assert ("transpose",) in found
