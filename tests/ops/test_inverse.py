"""Inverses of rules with operations: there and back by value, twice turned round the first mapping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

import remapkit
from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.authoring import invert_pipeline
from remapkit.diagnostics.errors import InvalidRules
from remapkit.registry.installed import find_home
from remapkit.rulefile.read import read_text
from tests.ops.cases import random_tensor, raw
from tests.ops.flows import Flowing, flowing

RULES = find_home("rules")
assert RULES is not None
PACKS = sorted(path.stem for path in RULES.glob("*.yaml"))


def compiled(text: str) -> RuleSet:
    return compile_rules(read_text(text))


@pytest.mark.parametrize("name", PACKS)
def test_the_inverse_of_a_pack_gives_the_same_header_back(name: str) -> None:
    rules = remapkit.load(name)
    assert rules.file.source_keys is not None and RULES is not None
    source = remapkit.header(RULES / rules.file.source_keys.value)
    there = rules.plan(source)
    assert there.ok, there.problems
    kept = {fqn: spec for fqn, spec in source.items() if fqn not in {each.fqn for each in there.dropped}}
    inverse = rules.inverse(partial=len(kept) < len(source))
    back = inverse.plan(there.target)
    assert back.ok, back.problems
    assert dict(back.target) == kept
    again = inverse.inverse().plan(kept)
    moves = lambda plan: {move.target: (move.sources, move.ops, move.spec) for move in plan.moves}  # noqa: E731
    assert moves(again) == moves(there)


@settings(max_examples=60)
@given(flowing())
def test_there_and_back_every_byte_is_the_same(case: Flowing) -> None:
    rules = compiled(case.text)
    inverse = rules.inverse()
    there = rules(case.state)
    back = inverse(there)
    assert {key: raw(value) for key, value in back.items()} == {key: raw(value) for key, value in case.state.items()}
    assert all(back[key].shape == value.shape for key, value in case.state.items())
    again = inverse.inverse()(case.state)
    assert {key: raw(value) for key, value in again.items()} == {key: raw(value) for key, value in there.items()}


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("path: 'a.{n:int}', ops: [{pad: {to: 9}}], to: 'b.{n}'", "how many elements there were before"),
        ("path: 'a.{n:int}', ops: [{cast: BF16}], to: 'b.{n}'", "does not say from which dtype"),
        ("path: 'a.{n:int}', ops: [{cast: {from: F32, to: BF16}}], to: 'b.{n}'", "so it cannot be undone"),
        ("path: 'a.{n:int}.{t:int}', merge: {by: t}, to: 'b.{n}'", "does not say how many t `merge` joins"),
        (
            "path: 'a.{n:int}.{t:int}', concat: {dim: 0, by: t, sizes: equal}, to: 'b.{n}'",
            "does not say how many t `concat` joins",
        ),
        (
            "path: 'a.{t:int}', concat: {dim: 0, by: t, count: 2}, to: b",
            "the sizes of its concat parts are not given",
        ),
        ("path: 'a.{r:int}.{e:int}', stack: {dim: 0, by: [r, e]}, to: b", "how many r and e `stack` joins"),
        (
            "concat: {dim: 0, from: ['a.{n:int}', 'd.{n:int}']}, to: 'b.{n}'",
            "the sizes of its concat parts are not given",
        ),
    ],
)
def test_what_has_no_inverse_is_named_with_its_rule_and_the_reason(rule: str, reason: str) -> None:
    rules = compiled(f"remapkit: 1\nname: t\nrules:\n  - {{id: the.rule, {rule}}}\n")
    with pytest.raises(InvalidRules) as caught:
        rules.inverse()
    (problem,) = caught.value.diagnostics
    assert (
        problem.code == "RK215" and problem.title.startswith("the.rule has no inverse: ") and reason in problem.title
    )
    assert problem.span is not None


def test_params_stay_params_and_what_add_makes_is_dropped(tmp_path: Path) -> None:
    text = """
remapkit: 1
name: t
params:
  heads: 2
  head_dim: {config: head_dim, value: 4 * heads}
rules:
  - {id: q, path: 'q.{n:int}', ops: [{rope: {to: half, heads: heads, head_dim: head_dim}}], to: 'query.{n}'}
add:
  - {to: 'ids', fill: arange, shape: [3], dtype: I64}
"""
    rules = compile_rules(read_text(text), {"heads": 3})
    state = {"q.0": random_tensor("F32", (36, 2), 0)}
    inverse = rules.inverse()
    assert inverse.params == {"heads": 3, "head_dim": 12}
    there = rules(state)
    assert torch.equal(there["ids"], torch.arange(3))
    assert {key: raw(value) for key, value in inverse(there).items()} == {key: raw(state[key]) for key in state}


def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations undone in the order in which they were done."""

    def forwards(calls: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(call.inverse.to_plain() for call in calls)  # type: ignore[attr-defined]

    text = """
remapkit: 1
name: t
rules:
  - {id: a, path: 'a.{n:int}', ops: [transpose, {rope: {to: half, heads: 2, head_dim: 4}}], to: 'b.{n}'}
"""
    state = {"a.0": random_tensor("F32", (8, 8), 1)}
    rules = compiled(text)
    assert raw(rules.inverse()(rules(state))["a.0"]) == raw(state["a.0"])
    monkeypatch.setattr(invert_pipeline, "_invert_calls", forwards)
    assert raw(rules.inverse()(rules(state))["a.0"]) != raw(state["a.0"])
