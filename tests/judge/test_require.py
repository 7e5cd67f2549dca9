"""What a rule file requires is refused where it is false, by every face, with the place and what was found.

Kinds: a count too low, too high, with a gap, of nothing; a shape that differs, of another rank, of no key; a param
with another value, or none; arithmetic on params; entries that cannot be read. The sweep holds counts of all small
sets of indices against their definition.
"""

# ruff: noqa: E501 (tables of rules read as tables)
from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from judge_kit import Header, codes, plan_of, rule_file, rules_of, safetensors

import remapkit
from remapkit.authoring.invert import invert
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck, InvalidRules
from remapkit.rules import requirements as require

KEEP = "keep: ['{all:**}']\n"
BLOCKS = "require: [{count: 'j.{i:int}.w', is: 3}]"


def blocks(*indices: int) -> Header:
    return {**{f"j.{index}.w": ("F32", [2, 4]) for index in indices}, "x": ("F32", [1])}


@pytest.mark.parametrize(
    ("row", "entry", "header", "words"),
    [
        ("A37", "{count: 'j.{i:int}.w', is: 3}", blocks(0, 1), "must count 3, got 2"),
        ("more", "{count: 'j.{i:int}.w', is: [2, 3]}", blocks(0, 1, 2, 3), "must count 2 or 3, got 4"),
        ("gap", "{count: 'j.{i:int}.w', is: 3}", blocks(0, 2), "without a gap, but i = 1 is missing (the last is 2)"),
        ("none", "{count: 'k.{i:int}.w', is: 3}", blocks(0), "got 0"),
        ("shape", "{shape: 'j.{i:int}.w', is: [2, 8]}", blocks(0, 1), "must have the shape [2, 8], got [2, 4], and 1 more key differs"),
        ("rank", "{shape: x, is: [1, any]}", blocks(0), "must have the shape [1, any], got [1]"),
        ("no key", "{shape: y, is: [1]}", blocks(0), "has no such key"),
        ("param", "{param: heads, is: [8, 16]}", blocks(0), "the param heads must be 8 or 16, got 4"),
        ("arithmetic", "{shape: x, is: [heads // 2]}", blocks(0), "must have the shape [2], got [1]"),
    ],
)  # fmt: skip
def test_a_false_requirement_is_refused(row: str, entry: str, header: Header, words: str) -> None:
    body = f"params: {{heads: 4}}\nrequire: [{entry}]\n{KEEP}"
    plan = plan_of(body, header)
    assert codes(plan) == ["RK370"]
    assert words in plan.problems[0].title
    assert str(plan.problems[0].span).startswith("<string>:4:")
    with pytest.raises(FailedCheck, match="RK370"):
        if "shape" not in entry or row == "no key":
            rules_of(body)(dict.fromkeys(header, 0))
        else:
            plan.raise_for_problems()  # of values without a shape nothing is known


@pytest.mark.parametrize(
    "entry",
    [
        "{count: 'j.{i:int}.w', is: 2}",
        "{count: 'j.{i:int}.{x}', by: i, is: heads // 2}",
        "{shape: 'j.{i:int}.w', is: [any, heads]}",
        "{param: heads, is: 4, note: said by the model card}",
    ],
)
def test_a_true_requirement_is_silent(entry: str) -> None:
    assert codes(plan_of(f"params: {{heads: 4}}\nrequire: [{entry}]\n{KEEP}", blocks(0, 1))) == []


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        ("{param: head, is: 4}", "RK371", "there is no param 'head'"),
        ("{count: 'j.w', is: 4}", "RK371", "captures no integer to count"),
        ("{count: '{a:int}.{b:int}', is: 4}", "RK371", "captures several integers, a and b; name the one to count"),
        ("{count: '{a:int}.{b}', by: b, is: 4}", "RK371", "'b' is not an integer capture"),
        ("{shape: w, is: 4}", "RK371", "must be a list, got one number"),
        ("{shape: w, is: [hidden]}", "RK162", "hidden"),
        ("{shape: w}", "RK021", "`shape` without `is`"),
        ("{is: 4}", "RK021", "requires nothing"),
        ("{shape: w, param: heads, is: [4]}", "RK024", "`shape` and `param`"),
        ("{param: heads, by: x, is: 4}", "RK021", "`by` without `count`"),
        ("{param: heads, is: []}", "RK026", "`is` is an empty list"),
        ("{parm: heads, is: 4}", "RK020", "parm"),
    ],
)
def test_a_requirement_that_cannot_be_read_is_named(entry: str, code: str, words: str) -> None:
    with pytest.raises(InvalidRules) as refused:
        rules_of(f"params: {{heads: 4}}\nrequire: [{entry}]\n{KEEP}")
    assert any(each.code == code and words in each.title for each in refused.value.diagnostics), refused.value


def test_the_command_line_refuses_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = rule_file(tmp_path / "t.yaml", KEEP + BLOCKS)
    file, out = safetensors(tmp_path / "a.safetensors", blocks(0, 1)), tmp_path / "o.safetensors"
    assert main(["apply", str(rules), str(file), "-o", str(out)]) == 1
    assert "t.yaml:4:11" in capsys.readouterr().err and not out.exists()
    assert main(["lint", str(rules)]) == 0


def test_the_inverse_requires_what_it_may() -> None:
    rules = rules_of(
        f"params: {{heads: 4}}\nrequire: [{{param: heads, is: [4, 8]}}, {{count: 'j.{{i:int}}.w', is: 2}}]\n{KEEP}"
    )
    back = invert(rules)
    assert "require:\n  - {param: heads, is: [4, 8]}" in back
    assert "# Not carried over, because it is about keys of the other side: j.{i:int}.w" in back


def wrong_counts() -> list[object]:
    found: list[object] = []
    for size in range(4):
        for indices in itertools.combinations(range(4), size):
            for wanted in range(4):
                refused = codes(
                    plan_of(f"require: [{{count: 'j.{{i:int}}.w', is: {wanted}}}]\n{KEEP}", blocks(*indices))
                )
                if (refused == []) != (list(indices) == list(range(wanted))):
                    found.append((indices, wanted))
    return found


def test_a_count_is_right_exactly_for_the_first_indices() -> None:
    assert wrong_counts() == []


def test_a_count_that_only_counts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: how many indices there are is not which ones."""

    def careless(each: require.Requirement, wanted: tuple[object, ...], source: object) -> list[object]:
        found = {fqn for fqn in source if each.reader(fqn)}  # type: ignore[attr-defined, misc]
        return [] if len(found) in wanted else [require._explain_unmet(each, "", "", source, 0)]  # type: ignore[arg-type]

    monkeypatch.setattr(require, "_check_count", careless)
    assert wrong_counts()


def test_an_index_that_no_computer_counts_to_is_a_gap() -> None:
    rules = rules_of("require: [{count: 'j.{i:int}.w', is: 3}]\nkeep: ['j.{i:int}.w']")
    for digits in (17, 18, 19, 5000):
        found = rules.plan({f"j.{i}.w": remapkit.TensorSpec("F32", (1,)) for i in ("0", "1", "1" * digits)}).problems
        assert [each.code for each in found] == ["RK370"] and "i = 2 is missing" in found[0].title
