"""Several names for one param in a config: the first that is there, and an error if two differ."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.cli.arguments import parse_params
from remapkit.diagnostics.errors import InvalidRules, UsageError

NAMES = ("num_experts", "num_local_experts", "text.n")
TEXT = f"remapkit: 1\nname: t\nparams: {{n: {{config: [{', '.join(NAMES)}], value: 7}}}}\nkeep: ['{{a:**}}']\n"


@settings(max_examples=200, deadline=None)
@given(
    found=st.lists(
        st.none() | st.integers(1, 3) | st.lists(st.integers(1, 2), min_size=1, max_size=2), min_size=3, max_size=3
    ),
    given=st.none() | st.integers(0, 9),
)
def test_the_first_name_that_is_there_counts_and_two_must_agree(found: list[object], given: int | None) -> None:
    config: dict[str, object] = {"num_experts": found[0], "num_local_experts": found[1], "text": {"n": found[2]}}
    values = [tuple(each) if isinstance(each, list) else each for each in found if each is not None]
    if given is not None:
        assert remapkit.loads(TEXT, params={"n": given}, config=config).params == {"n": given}
    elif len(set(values)) == 1:
        assert remapkit.loads(TEXT, config=config).params == {"n": values[0]}
    else:
        with pytest.raises(UsageError, match="RK641") as caught:
            remapkit.loads(TEXT, config=config)
        (problem,) = caught.value.diagnostics
        named = [name for name, each in zip(NAMES, found, strict=True) if each is not None] if values else NAMES
        assert all(name in problem.title for name in named)


def test_what_is_said_of_a_config_with_two_numbers_or_none() -> None:
    said = []
    for config in {"num_experts": 64, "num_local_experts": 128}, {}, {"num_experts": "many"}:
        with pytest.raises(UsageError) as caught:
            remapkit.loads(TEXT, config=config)
        (problem,) = caught.value.diagnostics
        said.append((problem.title, *problem.help))
    assert said == [
        (
            "the config has several values for the param 'n': num_experts: 64 and num_local_experts: 128",
            "pass the right one: --param n=64",
        ),
        (
            "the config has no num_experts, num_local_experts or text.n, which the param 'n' reads",
            "pass --param n=7",
            "the rule file's own value, 7, may be that of another model, so it is not used by default",
        ),
        (
            "the param 'n' must be an integer, or a list of integers, but the config has num_experts: 'many'",
            "pass --param n=NUMBER",
        ),
    ]


def test_the_inverse_keeps_the_names_and_the_lists() -> None:
    text = (
        "remapkit: 1\nname: t\nparams:\n  size: {config: [a, b], value: 4}\n  k: {config: c, value: [1, 2]}\n"
        "rules: [{id: r, path: 'x', ops: [{reshape: {from: [size], to: ['k[1]', -1]}}], to: 'y'}]\n"
    )
    written = remapkit.invert(remapkit.loads(text)).text
    assert "size: {config: [a, b], value: 4}" in written and "k: {config: c, value: [1, 2]}" in written
    assert remapkit.loads(written, config={"b": 6, "c": [5]}).params == {"size": 6, "k": (5,)}


@pytest.mark.parametrize(
    ("written", "value"),
    [("n=3", 3), ("n=-3", -3), ("n=1,2", (1, 2)), ("n=8,", (8,)), ("n=1, 2", (1, 2))],
)
def test_a_param_of_the_command_line(written: str, value: object) -> None:
    assert parse_params([written]) == {"n": value}


@pytest.mark.parametrize("written", ["n", "n=", "n=x", "n=1,,2", "n=1,x", "n=,", "=1", "n=1.5"])
def test_a_param_that_is_no_number_is_refused(written: str) -> None:
    with pytest.raises(UsageError, match="RK640"):
        parse_params([written])


@pytest.mark.parametrize("value", [True, "3", 1.0, [], [1, "x"], [True], {}, None])
def test_a_given_param_must_be_a_number_or_a_list_of_numbers(value: object) -> None:
    with pytest.raises(UsageError, match=re.escape("must be an integer, or a list of integers")):
        remapkit.loads(TEXT, params={"n": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("written", ["[]", "[1, x]", "[1, [2]]", "{config: []}", "{config: [a, 1]}", "{value: [p]}"])
def test_a_list_in_the_file_holds_whole_numbers(written: str) -> None:
    with pytest.raises(InvalidRules):
        remapkit.loads(f"remapkit: 1\nname: t\nparams: {{n: {written}}}\nkeep: [a]\n")


def test_a_requirement_on_a_list() -> None:
    text = "remapkit: 1\nname: t\nparams: {n: [1, 2]}\nrequire: [{param: n, is: IS}]\nkeep: [a]\n"
    header = {"a": remapkit.TensorSpec("F32", (1,))}
    for allowed, value in itertools.product(((1, 2),), ((1, 2), (2, 1), 1)):
        rules = remapkit.loads(text.replace("IS", f"[{list(allowed)}, 5]"), params={"n": value})
        titles = [each.title for each in rules.plan(header).problems]
        shown = list(value) if isinstance(value, tuple) else value
        assert titles == ([] if value == allowed else [f"the param n must be [1, 2] or 5, got {shown}"])
    with pytest.raises(InvalidRules, match="must be compared with numbers, got a list"):
        remapkit.loads(text.replace("{param: n, is: IS}", "{count: 'a.{i:int}', is: [[1]]}"))
