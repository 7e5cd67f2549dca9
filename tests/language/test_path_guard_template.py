"""The `path` surface, guards and templates: what they mean, and each mistake with its code and column."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers import pattern, rule, rules, table
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import InvalidRules
from remapkit.patterns.compile import compile_pattern
from remapkit.patterns.matcher import PatternMatcher, regex_text

TABLES = {"slots": {"norm1": "residual.0", "conv.1": "residual.2"}, "digits": {"0": "1", "1": "0"}}
KEYS = {name: tuple(entries) for name, entries in TABLES.items()}


def read(key: str, **written: Any) -> dict[str, str] | None:
    return PatternMatcher(compile_pattern(pattern(**written), KEYS).pattern)(key)


SEGMENTS = [
    ("{a}", r"(?P<a>[^.]+)"),
    ("{b:int}", r"(?P<b>0|[1-9][0-9]*)"),
    ("x{c:int}", r"x(?P<c>0|[1-9][0-9]*)"),
    ("{d:0..12}", r"(?P<d>[0-9]|1[0-2])"),
    ("{e:q|k}_proj", r"(?P<e>q|k)_proj"),
    ("{f:slots}", r"(?P<f>norm1|conv\.1)"),
    ("{g:**}", r"(?P<g>[^.]+(?:\.[^.]+)*)"),
    ("lit{{}}", r"lit\{\}"),
    ("{'a*b?'}", r"a\*b\?"),
]
pieces = st.sampled_from(
    ["q", "k", "0", "7", "12", "13", "01", "x3", "q_proj", "norm1", "conv", "1", "lit{}", "a*b?", "", "٣", "\n"]
)
dotted = st.lists(pieces, min_size=1, max_size=5).map(".".join)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=4, unique=True), st.lists(dotted, max_size=6), st.data()
)
def test_a_path_is_the_regular_expression_it_stands_for(
    parts: list[tuple[str, str]], keys: list[str], data: st.DataObject
) -> None:
    path, text = ".".join(part for part, _ in parts), r"\.".join(regex for _, regex in parts)
    compiled = compile_pattern(pattern(path=path), KEYS).pattern
    theirs = re.compile(text, re.ASCII)
    keys = [*keys, data.draw(st.from_regex(theirs, fullmatch=True))]
    for key in keys:
        hit = theirs.fullmatch(key)
        assert PatternMatcher(compiled)(key) == (None if hit is None else hit.groupdict())


WRONG_PATHS = [
    ("", "RK130", 1),
    ("a..b", "RK130", 2),
    (".a", "RK130", 1),
    ("a.", "RK130", 2),
    ("a.{n", "RK131", 3),
    ("a}.b", "RK131", 2),
    ("{a{b}}", "RK131", 1),
    ("{a}{b}", "RK132", 1),
    ("{a}x{b}", "RK132", 1),
    ("{a:**}.{b:**}", "RK133", 8),
    ("{a:slot}", "RK134", 4),
    ("{a:}", "RK134", 4),
    ("{a:in}", "RK134", 4),
    ("{a:1..0}", "RK135", 4),
    ("{a:0..x}", "RK135", 4),
    ("{a:00..7}", "RK135", 4),
    ("{a:-1..7}", "RK135", 4),
    ("{a:0..99999999}", "RK135", 4),
    ("{a:b|}", "RK136", 5),
    ("{a:b|c.d}", "RK136", 6),
    ("{a:b|b}", "RK136", 6),
    ("{1}", "RK120", 1),
    ("{}", "RK120", 1),
    ("{a-b}", "RK120", 1),
    ("{a}.{a}", "RK122", 5),
    ("x{a:**}", "RK137", 2),
]


def found_in(build: Any) -> tuple[Diagnostic, ...]:
    with pytest.raises(InvalidRules) as caught:
        build()
    return caught.value.diagnostics


def column(problem: Diagnostic) -> int:
    return next(label.span.column for label in problem.labels if label.primary)


@pytest.mark.parametrize(("path", "code", "where"), WRONG_PATHS, ids=[row[0] or "empty" for row in WRONG_PATHS])
def test_a_wrong_path_is_refused_at_its_column(path: str, code: str, where: int) -> None:
    problem = found_in(lambda: compile_pattern(pattern(path=path), KEYS))[0]
    assert (problem.code, column(problem)) == (code, where)
    assert problem.help


def test_all_problems_of_a_path_are_reported_at_once() -> None:
    problems = found_in(lambda: compile_pattern(pattern(path="a..{n:nit}.{x:}.{"), KEYS))
    assert [each.code for each in problems] == ["RK131", "RK130", "RK134", "RK134"]


def test_did_you_mean() -> None:
    problem = found_in(lambda: compile_pattern(pattern(path="{a:slot}"), KEYS))[0]
    assert problem.help[0] == "did you mean 'slots'?"


# ------------------------------------------------------------------------------------------------ guards


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [
            r"(?P<x>\w+)\.(?P<y>.+)",
            r"(?P<x>\d+)(?P<y>.*)",
            r"(?P<y>.*)\.(?P<x>[^.]*)",
            r"(?P<x>.*)(?P<y>\..*)?".replace("(?P<y>\\..*)?", ""),
        ]
    ),
    st.lists(st.sampled_from(["q", "k", "0", "12", "a.b"]), min_size=1, max_size=3, unique=True),
    st.one_of(st.none(), st.lists(st.sampled_from(["w", "b", "q"]), min_size=1, max_size=2, unique=True)),
    st.lists(
        st.lists(st.sampled_from(["q", "k", "0", "12", "a", "b", "w"]), min_size=1, max_size=4).map(".".join),
        max_size=8,
    ),
)
def test_a_guard_means_a_listed_value_and_a_listed_leaf(
    text: str, values: list[str], leaf: list[str] | None, keys: list[str]
) -> None:
    try:
        mine = compile_pattern(pattern(match=text, where={"x": values}, leaf=leaf), {}).pattern
    except InvalidRules as error:
        assert {each.code for each in error.diagnostics} <= {"RK141", "RK143"}
        mine = None
    # The guard made part of the pattern by hand, as `re` would have it.
    part = re.search(r"\(\?P<x>([^)]*)\)", text)
    assert part is not None
    inside = [value for value in values if re.fullmatch(part[1], value, re.ASCII)]
    by_hand = text.replace(part[0], f"(?P<x>{'|'.join(map(re.escape, inside))})")
    for key in keys:
        expected = bool(inside) and re.fullmatch(by_hand, key, re.ASCII) is not None
        expected = expected and (leaf is None or key.rpartition(".")[2] in leaf)
        assert (mine is not None and PatternMatcher(mine)(key) is not None) == expected


def test_a_guard_looked_at_after_cutting_would_be_wrong() -> None:
    """Greedy cutting gives x = 'a.b'; only the guard inside the pattern finds x = 'a'."""
    assert read("a.b.c", match=r"(?P<x>.*)\.(?P<y>.*)", where={"x": ["a"]}) == {"x": "a", "y": "b.c"}


@pytest.mark.parametrize(
    ("guard", "key", "matches"),
    [
        ("0..3", "l.3", True),
        ("0..3", "l.4", False),
        ("digits", "l.1", True),
        ("digits", "l.2", False),
        (["2"], "l.2", True),
    ],
)
def test_a_guard_is_a_list_a_range_or_a_table(guard: Any, key: str, matches: bool) -> None:
    assert (read(key, match=r"l\.(?P<n>\d+)", where={"n": guard}) is not None) == matches


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ({"match": r"(?P<n>\d+)", "where": {"m": ["1"]}}, "RK140"),
        ({"match": r"(?P<n>\d+)", "where": {"n": ["a", "b"]}}, "RK141"),
        ({"match": r"(?P<n>\d+)", "where": {"n": []}}, "RK141"),
        ({"match": r"(?P<n>\d+)", "where": {"n": "digit"}}, "RK144"),
        ({"match": r"(?P<n>\d+)", "where": {"n": "3..1"}}, "RK135"),
        ({"match": r"a\.(?P<n>\d+)", "leaf": ["weight"]}, "RK143"),
        ({"path": "{n}.weight", "leaf": ["bias"]}, "RK143"),
        ({"path": "{n}", "leaf": ["a.b"]}, "RK143"),
        ({"path": "{n}", "leaf": []}, "RK143"),
    ],
)
def test_a_wrong_guard_is_refused(written: dict[str, Any], code: str) -> None:
    assert [each.code for each in found_in(lambda: compile_pattern(pattern(**written), KEYS))] == [code]


def test_a_guard_that_is_wrong_in_part_warns() -> None:
    compiled = compile_pattern(
        pattern(match=r"(?P<n>\d+)\.weight", where={"n": ["1", "x"]}, leaf=["weight", "bias"]), {}
    )
    assert [(each.code, each.severity) for each in compiled.warnings] == [("RK142", Severity.WARNING)] * 2
    assert regex_text(compiled.pattern) == r"(?P<n>1)\.weight"


# ------------------------------------------------------------------------------------------------ templates


def target(to: str, key: str, **written: Any) -> str | None:
    forget = written.pop("forget", ())
    found = rules(rule("r", to, forget=forget, **written), tables=TABLES).match(key)
    return found[0].target if found else None


@pytest.mark.parametrize(
    ("to", "path", "key", "expected"),
    [
        ("x.{n}", "l.{n}", "l.7", "x.7"),
        ("{n+1}", "l.{n:0..9}", "l.9", "10"),
        ("{i+j}", "{i:0..3}.{j:0..3}", "1.2", "3"),
        ("{i*4+j}", "{i:0..3}.{j:0..3}", "1.2", "6"),
        ("{(i+1)*(j+2)}", "{i:0..3}.{j:0..3}", "1.2", "8"),
        ("{n//4}.{n%4}", "{n:0..47}", "47", "11.3"),
        ("{9-n-1}", "{n:0..5}", "2", "6"),
        ("{ n + 1 }", "{n:0..5}", "2", "3"),
        ("{s|slots}.w", "{s:slots}", "conv.1", "residual.2.w"),
        ("{{{n}}}", "l.{n}", "l.7", "{7}"),
        ("{2*3}.{n}", "l.{n}", "l.7", "6.7"),
        ("{n}.{n}", "l.{n:0..9}", "l.7", "7.7"),
    ],
)
def test_templates(to: str, path: str, key: str, expected: str) -> None:
    assert target(to, key, path=path) == expected


WRONG_TEMPLATES = [
    ("{", "{n}", "RK150", 1),
    ("a}", "{n}", "RK150", 2),
    ("{}", "{n}", "RK150", 1),
    ("{n n}", "{n}", "RK150", 4),
    ("{n/2}", "{n:0..3}", "RK150", 3),
    ("{n**2}", "{n:0..3}", "RK150", 3),
    ("{(n+1}", "{n:0..3}", "RK150", 2),
    ("{n+}", "{n:0..3}", "RK150", 4),
    ("{-n}", "{n:0..3}", "RK150", 2),
    ("{n+1|slots}", "{n:0..3}", "RK150", 5),
    ("{n|}", "{n:0..3}", "RK150", 3),
    ("{n.x}", "{n}", "RK150", 3),
    ("{1000000000000}{n}", "{n}", "RK150", 2),
    ("{m}{n}", "{n}", "RK151", 2),
    ("{n|slot}", "{n:slots}", "RK103", 4),
    ("{n|slots}", "{n}", "RK105", 1),
    ("{n|digits}", "{n:0..2}", "RK102", 1),
    ("{n+1}", "{n:int}", "RK154", 1),
    ("{n+1}", "{n}", "RK154", 1),
    ("{n+1}", "{n:a|b}", "RK154", 1),
    ("{n-1}", "{n:0..3}", "RK155", 1),
    ("{4//n}", "{n:0..3}", "RK155", 1),
    ("{4%n}", "{n:0..3}", "RK155", 1),
    ("{a+b}", "{a:0..999}.{b:0..999}", "RK156", 1),
    ("{n}.{n}", "{n}", "RK157", 5),
    ("x", "l.{n}", "RK152", 3),
]


@pytest.mark.parametrize(("to", "path", "code", "where"), WRONG_TEMPLATES)
def test_a_wrong_template_is_refused_at_its_column(to: str, path: str, code: str, where: int) -> None:
    problems = found_in(lambda: rules(rule("r", to, path=path), tables=TABLES))
    errors = [each for each in problems if each.severity is Severity.ERROR]
    assert [(each.code, column(each)) for each in errors] == [(code, where)]
    assert errors[0].help


def test_a_message_names_the_value_that_goes_wrong() -> None:
    assert "n-1 is -1 for n = 0" in found_in(lambda: rules(rule("r", "{n-1}", path="{n:0..3}")))[0].title
    assert "lacks '2'" in found_in(lambda: rules(rule("r", "{n|digits}", path="{n:0..2}"), tables=TABLES))[0].title


@pytest.mark.parametrize(
    ("to", "path", "forget", "code"),
    [
        ("x", "l.{n}", ["n"], None),
        ("x", "l.{n:0..0}", [], None),
        ("x.{n}", "l.{n}", ["n"], "RK153"),
        ("x.{n}", "l.{n}", ["m"], "RK153"),
    ],
)
def test_forget(to: str, path: str, forget: list[str], code: str | None) -> None:
    if code is None:
        rules(rule("r", to, path=path, forget=forget))
    else:
        assert [each.code for each in found_in(lambda: rules(rule("r", to, path=path, forget=forget)))] == [code]


def test_a_table_that_is_not_injective() -> None:
    written = table("slot", {"0": "norm1", "2": "conv1", "3": "norm1"})
    problem = found_in(lambda: rules(rule("r", "{s|slot}", path="{s:slot}"), tables=[written]))[0]
    assert problem.code == "RK101"
    assert [(label.text, label.primary) for label in problem.labels] == [("0 -> norm1", False), ("3 -> norm1", True)]
    many = table("slot", {f"k{n}": f"v{n % 1000}" for n in range(2000)})
    (problem,) = found_in(lambda: rules(rule("r", "{s|slot}", path="{s:slot}"), tables=[many]))
    assert problem.title.endswith("two keys map to 'v0', and 999 more keys have the value of another")
    shown = [f"k{n + 1000} -> v{n}, as k{n}" for n in range(1, 6)]
    assert problem.notes == ("\n".join([*shown, "... and 994 more"]),)
    lossy = table("slot", {"0": "norm1", "3": "norm1"}, lossy=True)
    assert rules(rule("r", "{s|slot}", path="{s:slot}"), tables=[lossy]).match("3")[0].target == "norm1"


def test_a_table_that_nobody_uses_warns() -> None:
    found = rules(rule("r", "x", match="a"), tables=TABLES)
    assert [each.code for each in found.warnings] == ["RK104", "RK104"]
    assert not rules(rule("r", "{s|slots}.{d}", path="{s:slots}.{d:digits}"), tables=TABLES).warnings


arithmetic = st.recursive(
    st.one_of(st.sampled_from(["i", "j"]), st.integers(0, 9).map(str)),
    lambda inner: (
        st.builds("({}{}{})".format, inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner)
        | st.builds("{}{}{}".format, inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(arithmetic.filter(lambda expression: not expression.isdecimal()), st.integers(0, 3), st.integers(0, 3))
def test_arithmetic_is_python_s(expression: str, i: int, j: int) -> None:
    def python(i: int, j: int) -> int | None:
        try:
            return int(eval(expression, {"__builtins__": {}}, {"i": i, "j": j}))
        except ZeroDivisionError:
            return None

    values = [
        python(a, b)
        for a in (range(4) if "i" in expression else [0])
        for b in (range(4) if "j" in expression else [0])
    ]
    try:
        found = target(
            f"{{{expression}}}", f"{i}.{j}", path="{i:0..3}.{j:0..3}", forget=[n for n in "ij" if n not in expression]
        )
    except InvalidRules as error:
        assert {each.code for each in error.diagnostics} == {"RK155"}
        assert any(value is None or value < 0 for value in values)
    else:
        assert found == str(python(i, j))
