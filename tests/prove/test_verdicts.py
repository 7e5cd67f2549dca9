"""Verdicts on small files: what is admitted hides nothing, and what is huge is answered with a word.

Kinds: losses that the author admits beside others; sources that match one key; constants beside keys that pass
through; indices as numbers; an index that the rule makes; inputs that are dear to look into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from cProfile import Profile
from pathlib import Path
from typing import TypeVar

import pytest
from fuzz import judge, without_fixes
from rule_maker import files

from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.authoring.invert import invert
from remapkit.cli.app import main
from remapkit.diagnostics.errors import InvalidRules
from remapkit.patterns.automaton import TooMany, build_automaton
from remapkit.patterns.charset import singleton
from remapkit.patterns.pattern import Part
from remapkit.patterns.tree import Chars, Repeat
from remapkit.proofs import checks as questions
from remapkit.proofs.automata import PIECE_EDGES
from remapkit.proofs.model import Level, Proof
from remapkit.proofs.prover import prove
from remapkit.proofs.single_map import SingleMap
from remapkit.rulefile.arithmetic import BadNumber, parse_expression
from remapkit.rulefile.read import read_text
from remapkit.tensors.spec import StateDictSpec, TensorSpec

T = TypeVar("T")


def compiled(body: str) -> RuleSet:
    return compile_rules(read_text(f"remapkit: 1\nname: t\n{body}\n"))


def rule(fields: str) -> str:
    return f"rules: [{{id: r, {fields}}}]"


def hard(proof: Proof) -> set[tuple[str, ...]]:
    """The pairs of the findings that refuse."""
    return {tuple(sorted(each.keys)) for each in proof.witnesses if not each.admitted and each.fault != "open"}


FORGOTTEN = {
    "A14": (rule("match: '(?P<u>a*)(?P<f>x?)(?P<v>a*)', to: 'k.{u}{v}', forget: [f]"), {("ax", "xa")}),
    "A15": (
        rule(
            "match: '(?P<x>a|b)(?P<y>[de]*)c(?P<z>[de]*)', "
            "leaf: [adce, bdce, addce, adcde], to: '{y}{z}', forget: [x]"
        ),
        {("adcde", "addce")},
    ),
    "A16": (
        "source: {domain: ['a.p.{y}.{z}', 'a.q.{y}.{z}']}\n"
        + rule("path: 'a.{x:p|q}.{y}.{z}', to: '{y}{z}', forget: [x]"),
        {("a.q.a.aa", "a.q.aa.a")},
    ),
    "A17": (rule(r"match: 'a\.(?P<e>\d+)', stack: {dim: 0, by: e}, to: b"), {("a.0", "a.00")}),
    "A20": (rule(r"match: '(?P<n>\d+)\w*', to: b, forget: [n]"), {("0", "0a")}),
    "A23": (rule("path: 'w{c}', unstack: {dim: 0, by: k}, to: '{k}{c}'"), {("w0a", "wa")}),
}


@pytest.mark.parametrize("name", FORGOTTEN)
def test_refuted_with_its_witness(name: str) -> None:
    body, expected = FORGOTTEN[name]
    proof = prove(compiled(body))
    assert proof.level is Level.REFUTED
    assert hard(proof) == expected
    assert not [each.title for each in proof.findings if "disagree" in each.title]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(rule("concat: {dim: 0, from: ['a.{i:int}', 'a.{i:int}']}, to: 'b.{i}'"), id="A13"),
        pytest.param(rule("concat: {dim: 0, from: [x, x]}, to: b"), id="A13-literal"),
    ],
)
def test_two_sources_of_one_rule_cannot_be_one_key(body: str) -> None:
    proof = prove(compiled(body))
    assert proof.level is Level.REFUTED
    (finding,) = proof.findings
    assert finding.code == "RK201"
    assert "two sources of r" in finding.title


def test_a_rule_that_is_named_as_a_keep_is_another_one() -> None:
    """A key of the second pattern becomes one that is kept; rules are not told apart by their names alone."""
    concat = "concat: {dim: 0, from: ['x.{n:1|2}', 'y.{n:int}']}, to: 'b.{n}'"
    proof = prove(compiled(f"rules: [{{id: 'keep[0]', {concat}}}]\nkeep: [b.3]"))
    assert [(each.fault, each.keys) for each in proof.witnesses] == [("across", ("y.3", "b.3"))]


def test_a_rule_with_several_targets_is_ambiguous_once() -> None:
    rules = "[{id: r, path: 'a.{n}', split: {dim: 0, into: ['b.{n}', 'c.{n}', 'd.{n}']}}, {id: s, path: a.w, to: x}]"
    findings = [each for each in prove(compiled(f"rules: {rules}")).findings if each.code == "RK201"]
    assert len(findings) == 1


@pytest.mark.parametrize(
    ("head", "level", "keys"),
    [
        pytest.param("unmatched: keep\ndrop: ['a.{r:**}']", Level.KEYS, ("x",), id="A12"),
        pytest.param("unmatched: keep\ndrop: [x]", Level.ALL, None, id="A12-dropped"),
        pytest.param("drop: ['a.{r:**}']", Level.ALL, None, id="A12-error"),
        pytest.param(
            "unmatched: keep\nsource: {domain: ['a.{r:**}']}\ndrop: ['a.{r:**}']", Level.DOMAIN, None, id="A12-domain"
        ),
    ],
)
def test_a_constant_beside_keys_that_pass_through(head: str, level: Level, keys: Sequence[str] | None) -> None:
    proof = prove(compiled(head + "\nadd: [{to: x, fill: zeros, shape: [1], dtype: F32}]"))
    assert proof.level is level
    assert [each.keys for each in proof.witnesses] == ([keys] if keys else [])
    assert [each.code for each in proof.findings] == (["RK206"] if keys else [])


def test_a_group_without_a_part_is_named_whatever_its_index_A21() -> None:
    body = rule("concat: {dim: 0, from: ['a.{i:0..11}', 'b.{i:0..23}']}, to: 'c.{i+1}'")
    spec = TensorSpec("F32", (2,))
    header = StateDictSpec(dict.fromkeys(("a.0", "b.0", "b.13"), spec))
    problems = compiled(body).plan(header).problems
    assert [(each.code, "c.14" in str(each.notes)) for each in problems] == [("RK340", True)]


@pytest.mark.parametrize(
    ("body", "level"),
    [
        pytest.param(rule("path: a, unstack: {dim: 0, by: n, count: 6}, to: 'g.{n//2}.{n%2}'"), Level.ALL, id="A41"),
        pytest.param(
            rule("path: a, unstack: {dim: 0, by: n, count: 6}, to: 'g.{n//2}'"), Level.REFUTED, id="A41-lost"
        ),
        pytest.param(rule("path: 'a.{i:0..9999}', to: 'b.{i}.x{i}'"), Level.ALL, id="A32"),
        pytest.param(rule(f"path: 'a.{{c}}', where: {{c: [{'x' * 3000}]}}, to: 'b.{{c}}'"), Level.ALL, id="A22"),
        pytest.param(rule(f"path: 'a.{{c}}', leaf: [{'x' * 3000}], to: 'b.{{c}}'"), Level.ALL, id="A22-leaf"),
    ],
)
def test_the_level(body: str, level: Level) -> None:
    assert prove(compiled(body)).level is level


def test_an_index_beyond_its_count_is_written_by_a_plan_A41() -> None:
    rules = compiled(rule("path: a, unstack: {dim: 0, by: n, count: 4}, to: 'g.{n//2}.{n%2}'"))
    moves = rules.plan({"a": TensorSpec("F32", (4, 2))}).moves
    assert [move.target for move in moves] == ["g.0.0", "g.0.1", "g.1.0", "g.1.1"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param("path: a, split: {dim: 0, sizes: [-1, 2], into: [b, c]}", "RK216", id="A32-size"),
        pytest.param("path: a, split: {dim: 0, sizes: [0, 2], into: [b, c]}", "RK216", id="A32-zero"),
        pytest.param("path: a, ops: [{slice: {dim: 0, start: 3, stop: 1}}], to: b", "RK216", id="A32-slice"),
        pytest.param("path: a, ops: [{slice: {dim: 0, start: 3, stop: 3}}], to: b", "RK216", id="A32-empty"),
        pytest.param("path: a, unstack: {dim: 0, by: n, count: 0}, to: 'b.{n}'", "RK216", id="A41-count"),
        pytest.param(f"path: 'a.{{n:0..{'9' * 5000}}}', to: 'b.{{n}}'", "RK135", id="D12-range"),
        pytest.param(f"path: 'a.{{n}}', where: {{n: '0..{'9' * 5000}'}}, to: 'b.{{n}}'", "RK135", id="D12-guard"),
        pytest.param(f"path: 'a.{{n:0..1}}', to: 'b.{{{'*'.join('n' * 5000)}}}'", "RK150", id="D12-product"),
    ],
)
def test_refused_at_the_value(fields: str, code: str) -> None:
    with pytest.raises(InvalidRules) as caught:
        compiled(rule(fields))
    assert code in [each.code for each in caught.value.diagnostics]


@pytest.mark.parametrize("each", ["{i: 0..999, j: 0..999}", "{i: 0..9999, j: 0..9999, k: 0..9999}"])
def test_too_many_constants_are_refused(each: str) -> None:
    names = [field.split(":")[0].strip("{ ") for field in each.split(",")]
    to = "x." + ".".join(f"{{{name}}}" for name in names)
    with pytest.raises(InvalidRules) as caught:
        compiled(f"add: [{{to: '{to}', each: {each}, fill: zeros, shape: [1], dtype: F32}}]")
    assert [each.code for each in caught.value.diagnostics] == ["RK217"]


def test_a_guard_that_the_target_does_not_show_has_a_verdict_A20() -> None:
    rules = compiled(rule("path: 'a.{c}', leaf: [w], to: x, forget: [c]"))
    assert prove(rules).level is Level.ALL
    assert "to: 'a.w'" in invert(rules)


SPELT_TWICE = {
    "A17-match": (r"match: 'a\.(?P<e>\d+)'", "to: b"),
    "A17-between": (r"match: 'a\.(?P<e>[0-9]{1,2})\.(?P<n>x|y)'", "to: 'b.{n}'"),
    "A17-choices": (r"match: 'a\.(?P<e>\d|0[01])'", "to: b"),
    "A17-path": ("path: 'a.{e:0|00|1}.w'", "to: b"),
}


@pytest.mark.parametrize("name", SPELT_TWICE)
def test_the_help_for_an_index_in_two_spellings_works(name: str) -> None:
    pattern, to = SPELT_TWICE[name]
    stacked = "stack: {dim: 0, by: e}, " + to
    (finding,) = prove(compiled(rule(f"{pattern}, {stacked}"))).findings
    assert "can spell one index 'e' in two ways" in finding.title
    surface, _, text = finding.help[0].removeprefix("write ").partition(": ")
    proof = prove(compiled(rule(f"{surface}: '{text}', {stacked}")))
    assert (proof.level, proof.findings) == (Level.ALL, ())


def test_the_help_for_an_index_in_two_spellings_of_a_guard_works() -> None:
    body = rule("path: 'a.{e}', where: {e: ['0', '00', 1]}, stack: {dim: 0, by: e}, to: b")
    (finding,) = prove(compiled(body)).findings
    assert finding.help == ("change `where: {e: 0..1}` in r",)
    assert prove(compiled(body.replace("'00', ", ""))).findings == ()


# ------------------------------------------------------------------------------------------------ budgets


def many(count: int, line: str) -> str:
    return "rules:\n" + "".join(f"  - {{id: r{n}, {line.replace('#', str(n))}}}\n" for n in range(count))


NASTY = {
    "nested": (rule("match: '(?:(?:a?b?){25}){20}', to: b"), Level.UNDECIDED),
    "optional": (rule("match: '(?P<a>(?:a?){1000})', to: 'b.{a}'"), Level.ALL),
    "long": (rule(rf"match: '(?P<a>\d{{3}}{'ab' * 2000})', to: 'b.{{a}}'"), Level.ALL),
    "longer": (rule(rf"match: '(?P<a>\d{{3}}{'ab' * 7500})', to: 'b.{{a}}'"), Level.ALL),
    "one key": (many(60, "match: '(?P<a>.*)x.*', to: 'b#.{a}'"), Level.REFUTED),
    "last words": (many(300, "match: '(?P<a>.*)name#', to: 'b.{a}.other#'"), Level.ALL),
    "last segments": (many(300, "path: '{p:**}.name#', to: '{p}.other#'"), Level.ALL),
    "grids": (many(60, "path: 'm#.{i:0..63}.{j:0..63}.w', to: 'n#.{i*64+j}.w'"), Level.ALL),
    "overlapping": (many(60, "path: 'a.{x:**}', to: 'b#.{x}'"), Level.REFUTED),
    "literals": ("keep: [" + ", ".join(f"k{n}.x" for n in range(8000)) + "]", Level.ALL),
    "in the middle, many": (many(300, "match: '(?P<a>.*)x#x(?P<b>.*)', to: 'b#.{a}.{b}'"), Level.REFUTED),
    "in the middle": (many(40, "match: '(?P<a>.*)x#x(?P<b>.*)', to: 'b#.{a}.{b}'"), Level.REFUTED),
}


def calls(question: Callable[[], T]) -> tuple[int, T]:
    """How many calls of Python functions an answer takes, counted and not timed; and the answer."""
    with Profile(builtins=False, subcalls=False) as profile:
        answer = question()
    return sum(each.callcount for each in profile.getstats()), answer


@pytest.mark.parametrize("name", NASTY)
def test_hostile_files_are_answered_within_a_number_of_calls(name: str) -> None:
    body, level = NASTY[name]
    taken, found = calls(lambda: prove(compiled(body)).level)
    assert found is level
    assert taken < 4_000_000, f"{taken:,} calls"


LARGE = {
    "optional": ("(?:a?){1000}", "a" * 40, "x", 40),
    "nested": ("(?:(?:a?b?){25}){20}", "a" * 40, "x", 40),
    "the key ends": ("(?:a?){1000}y", "a" * 60, "", 60),
    "in several ways": ("(?:[ab]{0,200}c?[ab]{0,200}){2}x", "abc" * 12, "y", 8),
}


@pytest.mark.parametrize("name", LARGE)
def test_where_a_large_pattern_stopped_is_said_within_a_number_of_calls(name: str) -> None:
    pattern, begun, rest, offset = LARGE[name]
    (only,) = compiled(rule(f"match: '{pattern}', to: b")).rules
    taken, stop = calls(lambda: only.find_stop(begun + rest))
    assert stop is not None and stop.offset == offset
    assert taken < 1_000_000, f"{taken:,} calls"


def test_explain_shows_how_a_guard_cuts_a_key_A40(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    for where, cut in (("", "a = 'xxx', b = ''"), ("where: {a: [x]}, ", "a = 'x', b = 'xx'")):
        fields = f"match: '(?P<a>x+)(?P<b>x*)', {where}to: '{{a}}.{{b}}'"
        file.write_text(f"remapkit: 1\nname: t\n{rule(fields)}\n")
        assert main(["explain", str(file), "xxx"]) == 0
        assert cut in capsys.readouterr().out


def test_past_enough_faults_pairs_are_counted() -> None:
    ring = "".join(
        f"  - {{id: a{n}, path: '{{x}}.{n}.y', to: 'a{n}.{{x}}'}}\n"
        f"  - {{id: b{n}, path: 'z.{n}.{{x}}', to: 'b{n}.{{x}}'}}\n"
        for n in range(60)
    )
    proof = prove(compiled(f"rules:\n{ring}"))
    assert [each.code for each in proof.findings].count("RK201") <= questions.MAX_FAULTS
    assert "pairs of rules not examined" in proof.findings[-1].title


def test_an_automaton_is_given_up_while_it_is_built() -> None:
    many_optional = Repeat(Repeat(Chars(singleton("a")), 0, 1), 1000, 1000)

    def build() -> None:
        with pytest.raises(TooMany):
            build_automaton([Part(None, many_optional)], PIECE_EDGES)

    taken, _ = calls(build)
    assert taken < 100_000, f"{taken:,} calls"


# ------------------------------------------------------------------------------------------------ the sweep


def nothing(*given: object, **named: object) -> None:
    return None


PLANTED = {
    "no key is read in two ways": (SingleMap, "find_two_readings", nothing),
    "no pair of one rule is found": (SingleMap, "_find_collision", nothing),
    "sources of one rule are one": (
        questions.Questions,
        "_find_first_of_each_source",
        lambda self: {number for number, each in enumerate(self.key_maps) if each.branch == 0},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_sweep_finds_planted_faults(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, fault = PLANTED[name]
    monkeypatch.setattr(owner, attribute, fault)
    with without_fixes():
        assert any(judge(data).wrong for _, data in files(190, 120))


# ------------------------------------------------------------------------------------------------ division


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("x / 7", 1, id="A25-exact"),
        pytest.param("x // 7", 1, id="A25-whole"),
        pytest.param("floor(x / 2)", 3, id="A25-down"),
        pytest.param("ceil(x / 2)", 4, id="A25-up"),
        pytest.param("128 * floor((x + 127) / 128)", 128, id="A25-multiple"),
        pytest.param("x / 2 * 2", 7, id="A25-exact-inside"),
        pytest.param("x // 2", None, id="A25-inexact"),
        pytest.param("x / 2", None, id="A25-no-whole-number"),
        pytest.param("x / 0", None, id="A25-zero"),
    ],
)
def test_a_size_is_rounded_only_where_it_says_so(text: str, value: int | None) -> None:
    if value is not None:
        assert parse_expression(text).value({"x": 7}) == value
        return
    with pytest.raises(BadNumber):
        parse_expression(text).value({"x": 7})
