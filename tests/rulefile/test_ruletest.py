"""The tests that rule files carry: what fails, where, and what was expected instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remapkit.api.ruleset import compile_rules
from remapkit.rulefile.read import read_text
from remapkit.rules.selftest import TestReport, run_tests

RULES = r"""
remapkit: 1
name: t
unmatched: {unmatched}
rules:
  - id: enc
    path: 'encoder.{{n:0..3}}.resnets.{{rest:**}}'
    to: 'enc.{{n}}.resnet.{{rest}}'
  - id: two
    path: 'encoder.0.resnets.{{leaf}}'
    to: 'x.{{leaf}}'
keep: ['same.{{leaf}}']
drop: ['gone.{{leaf}}']
tests:
  {test}
"""


def report(test: str, unmatched: str = "error") -> TestReport:
    return run_tests(compile_rules(read_text(RULES.format(test=test, unmatched=unmatched), "r.yaml")))


@pytest.mark.parametrize(
    ("test", "unmatched"),
    [
        ("encoder.1.resnets.b: enc.1.resnet.b", "error"),
        ("same.a: same.a", "error"),
        ("gone.a: null", "error"),
        ("other: other", "keep"),
        ("other: null", "drop"),
    ],
)
def test_what_holds(test: str, unmatched: str) -> None:
    assert report(test, unmatched) == TestReport(1, 1, ())


@pytest.mark.parametrize(
    ("test", "unmatched", "code", "place", "title"),
    [
        (
            "encoder.1.resnets.b: enc.1.resnets.b",
            "error",
            "RK700",
            "r.yaml:15:36",
            "becomes enc.1.resnet.b; expected: enc.1.resnets.b",
        ),
        (
            "encoder.1.resnets.b: null",
            "error",
            "RK700",
            "r.yaml:15:3",
            "becomes enc.1.resnet.b; expected: dropped",
        ),
        ("gone.a: gone.a", "error", "RK700", "r.yaml:15:11", "is dropped; expected: gone.a"),
        ("same.a: same.ab", "error", "RK700", "r.yaml:15:17", "becomes same.a; expected: same.ab"),
        ("other: null", "keep", "RK700", "r.yaml:15:3", "becomes other; expected: dropped"),
        ("other: other", "drop", "RK700", "r.yaml:15:10", "is dropped; expected: other"),
        ("encoder.0.resnets.a: x.a", "error", "RK701", "r.yaml:15:3", "is matched by 2 rules: enc, two"),
        ("encoder.4.resnets.a: x", "error", "RK702", "r.yaml:15:11", "is matched by no rule; expected: x"),
        ("encoder.1.resnets: x", "error", "RK702", "r.yaml:15:20", "is matched by no rule; expected: x"),
        ("zzz: null", "error", "RK702", "r.yaml:15:3", "is matched by no rule; expected: dropped"),
    ],
)
def test_what_fails_is_said_at_its_place(test: str, unmatched: str, code: str, place: str, title: str) -> None:
    result = report(test, unmatched)
    (problem,) = result.problems
    assert (result.total, result.passed, result.ok) == (1, 0, False)
    assert (problem.code, str(problem.span)) == (code, place)
    assert title in problem.title
    assert problem.help


def test_a_failure_names_the_rule_and_the_part_that_differs() -> None:
    (problem,) = report("encoder.1.resnets.b: enc.1.resnets.b").problems
    text = str(problem)
    assert "enc -> enc.1.resnet.b" in text and "to: 'enc.{n}.resnet.{rest}'" in text
    assert problem.values == {
        "source": "encoder.1.resnets.b",
        "expected": "enc.1.resnets.b",
        "got": "enc.1.resnet.b",
        "rule": "enc",
    }


parts = st.lists(st.sampled_from("abc"), max_size=6).map("".join)


@given(parts, parts)
def test_a_test_holds_exactly_if_it_says_what_the_rules_do(got: str, expected: str) -> None:
    text = f"remapkit: 1\nname: t\nrules: [{{id: r, path: 'k', to: 'x{got}'}}]\ntests: {{k: 'x{expected}'}}\n"
    result = run_tests(compile_rules(read_text(text, "r.yaml")))
    assert result.ok == (got == expected)
    for problem in result.problems:
        assert problem.span is not None
        here = text[problem.span.start : problem.span.end]
        assert here in f"x{expected}" and here
