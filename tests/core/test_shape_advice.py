"""What a shape mismatch proposes gives the shape, and grids of positions are not taken for padding."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remapkit.plans.check import make_check
from remapkit.plans.shape_advice import find_grids
from tests.core.plan_kit import compiled, header

RULES = "rules: [{{id: r, path: 'a.{{x:**}}', {ops}to: 'b.{{x}}'}}]"


def advise(brought: dict[str, list[int]], wanted: dict[str, list[int]], ops: str = "") -> tuple[str, ...]:
    source = header({f"a.{fqn}": ("F32", shape) for fqn, shape in brought.items()})
    target = header({f"b.{fqn}": ("F32", shape) for fqn, shape in wanted.items()}, name="the model")
    problems = make_check(compiled(RULES.format(ops=ops)).plan(source), target).problems
    assert [each.code for each in problems] in ([], ["RK312"])
    return problems[0].help if problems else ()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1), st.booleans())
def test_the_operation_that_is_proposed_gives_the_shape(old: int, new: int, dim: int, twice: bool) -> None:
    """The oracle is the proposal itself: put into the rules, it leaves no problem."""
    shapes = [[size, 6] if dim == 0 else [6, size] for size in (old, new)]
    names = ["embed.w", "head.w"][: 1 + twice]
    brought, wanted = dict.fromkeys(names, shapes[0]), dict.fromkeys(names, shapes[1])
    proposed = [found[0] for line in advise(brought, wanted) if (found := re.search(r"ops: \[.*\]$", line))]
    assert len(proposed) == (old != new and max(old, new) < 2 * min(old, new))
    for ops in proposed:
        assert advise(brought, wanted, f"{ops}, ") == ()


def test_no_operation_is_proposed_for_a_model_of_another_width() -> None:
    general = "the model is configured differently, or two tensors are swapped"
    assert advise({"x": [12, 12]}, {"x": [8, 8]}) == (general,)
    assert advise({"x": [12, 4], "y": [10, 4]}, {"x": [8, 4], "y": [8, 4]}) == (general,)
    assert advise({"x": [10, 4], "y": [4, 4]}, {"x": [8, 4], "y": [2, 2]}) == (general,)
    assert advise({"x": [10, 4]}, {"x": [8, 4, 1]}) == (general,)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_grids_of_positions_need_interpolation(old: int, new: int, tokens: int) -> None:
    found = find_grids((1, old * old + tokens, 8), (1, new * new + tokens, 8))
    if old == new:
        assert found is None
        return
    assert found is not None  # perhaps with fewer tokens: 1 + 4 is 4 + 1
    assert found[0] ** 2 + found[2] == old * old + tokens and found[1] ** 2 + found[2] == new * new + tokens


@pytest.mark.parametrize(("name", "grid"), [("pos_embed", True), ("position_embeddings", True), ("embed.w", False)])
def test_only_positions_are_grids(name: str, grid: bool) -> None:
    (first, *_) = advise({name: [1, 17, 8]}, {name: [1, 26, 8]})
    assert ("interpolation is not a remap" in first) == grid
    assert ("pad:" in first) != grid


def test_the_message_says_both_grids() -> None:
    assert advise({"pos_embed": [1, 17, 8]}, {"pos_embed": [1, 50, 8]}) == (
        "b.pos_embed has a positional grid of 4×4 (+1), the model has 7×7: interpolation is not a remap; build the "
        "model for 4×4, or interpolate the tensor before (F.interpolate)",
    )
