"""Families with members missing, put together under computed targets: a problem that names what is missing.

The kind: a message that renders the target of an absent source with the captures of a present one. The property
builds random families of two patterns with other bounds, leaves out some members, and asks for the plan.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import remapkit
from remapkit.api.ruleset import compile_rules
from remapkit.plans import groups as gather
from remapkit.rulefile.read import read_text

SPEC = remapkit.TensorSpec("F32", (2, 3))


def plan(lines: str, keys: dict[str, remapkit.TensorSpec]) -> remapkit.Plan:
    return compile_rules(read_text(f"remapkit: 1\nname: t\nrules:\n  - {lines}\n")).plan(keys)


def concat(last_a: int, last_b: int, target: str) -> str:
    return f"{{id: r, concat: {{dim: 0, from: ['a.{{i:0..{last_a}}}', 'b.{{i:0..{last_b}}}']}}, to: '{target}'}}"


def complete_or_named(last_a: int, last_b: int, target: str, present: list[tuple[str, int]]) -> None:
    keys = {f"{name}.{i}": SPEC for name, i in present}
    found = plan(concat(last_a, last_b, target), keys)
    halves: dict[int, set[str]] = {}
    for name, i in present:
        halves.setdefault(i, set()).add(name)
    whole = {i for i, names in halves.items() if names == {"a", "b"}}
    assert len(found.moves) == len(whole)
    said = "\n".join(map(str, found.problems))
    for i in halves.keys() - whole:
        (lacking,) = {"a", "b"} - halves[i]
        last = {"a": last_a, "b": last_b}[lacking]
        assert f"{lacking}.{i}" in said or (i > last and f"{lacking}.{{i:0..{last}}}" in said), said


@st.composite
def families(draw: st.DrawFn) -> tuple[int, int, str, list[tuple[str, int]]]:
    last_a, last_b = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    target = draw(st.sampled_from(["c.{i}", "c.{i+1}", "c.{2*i}.w", "c.{6-i}"]))
    every = [("a", i) for i in range(last_a + 1)] + [("b", i) for i in range(last_b + 1)]
    present = draw(st.lists(st.sampled_from(every), min_size=1, max_size=5, unique=True))
    return last_a, last_b, target, present


@given(families())
def test_a_group_is_whole_or_what_it_lacks_is_named(family: tuple[int, int, str, list[tuple[str, int]]]) -> None:
    complete_or_named(*family)


def test_a_target_with_arithmetic_and_a_bound_that_only_one_source_has() -> None:
    complete_or_named(11, 23, "c.{i+1}", [("a", 0), ("b", 0), ("b", 13)])


def test_the_first_sources_template_for_every_group_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "min", lambda branches: 0, raising=False)
    with pytest.raises(KeyError):
        complete_or_named(11, 23, "c.{i+1}", [("a", 0), ("b", 0), ("b", 13)])


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
@pytest.mark.parametrize(
    "rule",
    [
        "{id: r, concat: {dim: 0, from: [a, b]}, to: c}",
        "{id: r, path: '{n:a|b}', stack: {dim: 0, by: n}, to: c}",
        "{id: r, concat: {dim: 0, from: ['x.0', 'x.1']}, to: c}",
        "{id: r, path: 'x.{i:int}', stack: {dim: 0, by: i}, to: c}",
    ],
)
def test_elements_below_a_byte_are_not_joined(dtype: str, rule: str) -> None:
    names = ("x.0", "x.1") if "x." in rule else ("a", "b")
    try:
        found = plan(rule, {name: remapkit.TensorSpec(dtype, (2, 8)) for name in names})
    except remapkit.InvalidRules:
        assert "{n:a|b}" in rule  # a stack counts by a number
        return
    assert [problem.code for problem in found.problems] == ["RK352"]
    assert dtype in str(found.problems[0])
