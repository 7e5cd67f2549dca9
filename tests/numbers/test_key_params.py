"""Params in paths, guards and templates: the same as the numbers themselves, as Python calculates them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.diagnostics.errors import InvalidRules, RemapkitError
from remapkit.proofs.model import Level

HEAD = "remapkit: 1\nname: t\n"
BOUNDS = ("0", "1", "2", "p", "q", "p-1", "q-p", "p//2", "(p+q)%3", "p*2-q", "q - 2")
FIELDS = ("i", "i+p", "p*3-i", "q*4-1-i", "i//q", "i%(p+1)", "(i+q)*p", "p+40-i*2")


def calculate(text: str, **values: int) -> int:
    return int(eval(text, {"__builtins__": {}}, values))


def run(rules: remapkit.RuleSet, key: str) -> str | None:
    found = rules.match(key)
    return found[0].target if found else None


@settings(max_examples=300, deadline=None)
@given(
    low=st.sampled_from(BOUNDS),
    high=st.sampled_from(BOUNDS),
    field=st.sampled_from(FIELDS),
    p=st.integers(0, 5),
    q=st.integers(1, 6),
    place=st.sampled_from(("path", "match", "each")),
)
def test_a_range_and_a_field_with_params_are_those_of_python(
    low: str, high: str, field: str, p: int, q: int, place: str
) -> None:
    given = {
        "path": f"path: 'x.{{i:{low}..{high}}}'",
        "match": f"match: 'x\\.(?P<i>\\d+)', where: {{i: '{low}..{high}'}}",
    }
    if place == "each":
        each = f"{{to: 'y.{{{field}}}', each: {{i: '{low}..{high}'}}, fill: zeros, shape: [1], dtype: F32}}"
        text = f"add: [{each}]\nkeep: [x]\n"
    else:
        text = f"rules: [{{id: r, {given[place]}, to: 'y.{{{field}}}'}}]\n"
    first, last = calculate(low, p=p, q=q), calculate(high, p=p, q=q)
    wanted = {i: calculate(field, p=p, q=q, i=i) for i in range(first, last + 1)} if first >= 0 else {}
    has_params = re.search("[pq]", low + high)
    is_refused = first < 0 or first > last + bool(has_params) or any(value < 0 for value in wanted.values())
    try:
        rules = remapkit.loads(HEAD + "params: {p: {config: p}, q: 99}\n" + text, params={"q": q}, config={"p": p})
    except InvalidRules as error:
        assert is_refused, error
        assert {each.code for each in error.diagnostics} <= {"RK135", "RK155"}
        return
    assert not is_refused
    if place == "each":
        assert [target for filled in rules.add for target in filled.targets] == [
            f"y.{value}" for value in wanted.values()
        ]
        return
    for i in range(40):
        assert run(rules, f"x.{i}") == (f"y.{wanted[i]}" if i in wanted else None)


@settings(max_examples=200, deadline=None)
@given(bound=st.sampled_from(BOUNDS), field=st.sampled_from(FIELDS), p=st.integers(0, 4), q=st.integers(1, 5))
def test_a_proof_and_an_inverse_hold_for_the_values_in_force(bound: str, field: str, p: int, q: int) -> None:
    text = f"{HEAD}params: {{p: 1, q: 1}}\nrules: [{{id: r, path: 'x.{{i:0..{bound}}}', to: 'y.{{{field}}}'}}]\n"
    try:
        rules = remapkit.loads(text, params={"p": p, "q": q})
    except InvalidRules:
        return
    there = {f"x.{i}": run(rules, f"x.{i}") for i in range(40) if rules.match(f"x.{i}")}
    is_injective = len(set(there.values())) == len(there) and bool(there)
    assert (rules.prove().level is Level.ALL) == (is_injective or not there)
    if not is_injective:
        with pytest.raises(InvalidRules):
            rules.inverse()
        return
    inverse = rules.inverse()
    assert {run(inverse, target): target for target in there.values() if target} == there
    assert not any(inverse.match(f"y.{i}") for i in range(99) if f"y.{i}" not in there.values())


def test_one_file_serves_vaes_of_three_and_of_four_levels() -> None:
    text = HEAD + (
        "params: {levels: {config: n_levels, value: 4}}\n"
        "rules: [{id: up, path: 'decoder.up.{i:0..levels-1}.{r:**}', to: 'decoder.up_blocks.{levels-1-i}.{r}'}]\n"
    )
    for config, levels in ({"n_levels": 3}, 3), (None, 4):
        rules = remapkit.loads(text, config=config)
        keys = {f"decoder.up.{i}.block.w": i for i in range(levels)}
        assert rules(keys) == {f"decoder.up_blocks.{levels - 1 - i}.block.w": i for i in range(levels)}
        assert rules.prove().level is Level.ALL
        with pytest.raises(RemapkitError, match="not matched by a rule"):
            rules({f"decoder.up.{levels}.block.w": 0})
        assert rules.inverse()(rules(keys)) == keys


LAST = HEAD + (
    "params: {layers: {config: num_layers, value: 3}}\n"
    "rules:\n"
    "  - {id: blocks, path: 'j.{i:0..layers-2}.w', to: 'b.{i}.w'}\n"
    "  - {id: last, path: 'j.{i:layers-1}.w', ops: [flip_halves], to: 'b.{i}.w'}\n"
)


@pytest.mark.parametrize("layers", [1, 2, 3, 24])
def test_the_last_layer_is_another_at_every_depth(layers: int) -> None:
    """With one layer the range of the others is empty: there is no such rule, and the proof finds nothing wrong."""
    rules = remapkit.loads(LAST, params={"layers": layers})
    proof = rules.prove()
    assert proof.level is Level.ALL and not proof.findings
    header = {f"j.{i}.w": remapkit.TensorSpec("F32", (4,)) for i in range(layers)}
    plan = rules.plan(header)
    assert plan.ok and [bool(move.ops) for move in plan.moves] == [*[False] * (layers - 1), True]
    back = rules.inverse().plan(dict(plan.target))
    assert back.ok and dict(back.target) == header
    assert not rules.plan({f"j.{layers}.w": remapkit.TensorSpec("F32", (4,)), **header}).ok


def test_the_inverse_is_refused_for_other_values_than_its_own() -> None:
    text = remapkit.invert(remapkit.loads(LAST, params={"layers": 2})).text
    header = {f"b.{i}.w": remapkit.TensorSpec("F32", (4,)) for i in range(2)}
    assert remapkit.loads(text).plan(header).ok
    for other in {"params": {"layers": 3}}, {"config": {"num_layers": 24}}:
        assert "RK370" in {each.code for each in remapkit.loads(text, **other).plan(header).problems}  # type: ignore[arg-type]


def test_an_empty_range_takes_nothing_from_a_keep_a_guard_and_a_leaf() -> None:
    text = HEAD + (
        "params: {n: 0}\n"
        "keep: ['k.{i:0..n-1}', {match: 'm(?P<i>[0-9])', where: {i: '0..n-1'}}]\n"
        "rules:\n"
        "  - {id: r, path: 'x.{i:0..n-1}.{l}', leaf: [weight, bias], to: 'y.{i+1}.{l}'}\n"
        "  - {id: s, path: 's', to: 't'}\n"
    )
    rules = remapkit.loads(text)
    assert [rule.id for rule in rules.everything] == ["s"]
    assert [rule.id for rule in remapkit.loads(text, params={"n": 1}).everything] == ["r", "s", "keep[0]", "keep[1]"]


def test_a_param_without_a_value_is_reported_once_and_an_operation_waits_for_the_plan() -> None:
    text = HEAD + (
        "params: {n: {config: n}, m: {config: m}}\n"
        "rules:\n"
        "  - {id: a, path: 'a.{i:0..n-1}', to: 'b.{n-1-i}'}\n"
        "  - {id: b, path: 'b.{i:0..3}', to: 'c.{i+n}'}\n"
        "  - {id: c, path: 'c', ops: [{reshape: [m]}], to: 'd'}\n"
    )
    with pytest.raises(InvalidRules) as caught:
        remapkit.loads(text)
    (problem,) = caught.value.diagnostics
    assert (problem.code, problem.title) == ("RK341", "n-1 needs the param 'n', which has no value")
    assert str(problem.span) == "<string>:5:28"
    rules = remapkit.loads(text, params={"n": 2})
    assert rules.key_params == ("n",)
    assert run(rules, "a.0") == "b.1"


def test_a_capture_and_a_table_hide_a_param() -> None:
    """Files that had a param, a table and a capture of one name mean what they meant."""
    text = HEAD + (
        "params: {n: 5, t: 3}\ntables: {t: {a: b}}\n"
        "rules:\n"
        "  - {id: a, path: 'a.{n:0..3}', to: 'b.{n+1}'}\n"
        "  - {id: b, path: 't.{k:t}', to: 'u.{k|t}.{n}'}\n"
    )
    rules = remapkit.loads(text)
    assert run(rules, "a.2") == "b.3" and run(rules, "t.a") == "u.b.5" and rules.match("t.3") == ()
