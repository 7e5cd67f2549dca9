"""The `match` surface: what it accepts means what it means to `re`; what it refuses, it refuses at its column."""

from __future__ import annotations

import itertools
import re

import pytest
from helpers import pattern, rule, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Text
from remapkit.patterns.automaton import build_automaton, is_unambiguous, read_prefix
from remapkit.patterns.compile import compile_pattern
from remapkit.patterns.finite import list_words
from remapkit.patterns.matcher import PatternMatcher, Program, regex_text
from remapkit.patterns.pattern import Pattern, split_into_parts
from remapkit.patterns.regex import parse_regex
from remapkit.patterns.unparse import unparse

# Pieces that are or are not of the dialect, so that random patterns lie on both sides of its border.
ATOMS = [
    "a",
    "b",
    ".",
    r"\.",
    r"\d",
    r"\w",
    r"\s",
    r"\D",
    "[ab]",
    "[^a]",
    "[a-c.]",
    r"[\d_]",
    r"\n",
    r"\x61",
    "٣",
    "{",
    "]",
    "^",
]
SIGNS = ["*", "+", "?", "{2}", "{1,2}", "{0,1}", "{1,}", "{,2}", "*?", "++", "??"]


@st.composite
def regexes(draw: st.DrawFn, depth: int = 3) -> str:
    kind = draw(st.integers(0, 6 if depth else 1))
    if kind <= 1:
        return draw(st.sampled_from(ATOMS))
    if kind == 2:
        return "".join(draw(st.lists(regexes(depth=depth - 1), max_size=3)))
    if kind == 3:
        return "(?:" + "|".join(draw(st.lists(regexes(depth=depth - 1), min_size=1, max_size=3))) + ")"
    if kind == 4:
        return f"({draw(regexes(depth=depth - 1))})"
    return f"(?:{draw(regexes(depth=depth - 1))}){draw(st.sampled_from(SIGNS))}"


keys = st.text(st.sampled_from("aab.0_\n٣ c"), max_size=6)


def compiled(text: str) -> Pattern:
    return compile_pattern(pattern(match=text), {}).pattern


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(regexes(), st.lists(keys, min_size=1, max_size=8))
def test_what_is_accepted_means_what_re_says(text: str, found: list[str]) -> None:
    try:
        mine = compiled(text)
    except InvalidRules:
        return
    machine = build_automaton(mine.parts)
    reader, theirs = PatternMatcher(mine), re.compile(text, re.ASCII)
    program, printed = Program(mine), re.compile(regex_text(mine))
    for key in found:
        expected = theirs.fullmatch(key) is not None
        assert (reader(key) is not None) == expected
        assert (program.find_captures(key) is not None) == expected
        assert read_prefix(machine, key).accepted == expected
        assert (printed.fullmatch(key) is not None) == expected


captured = st.lists(
    st.sampled_from(["a", "b", ".", r"\d", "[ab]", "a*", "a?", "(?:a|ab)", "[ab]+", r"\w*", "."]),
    min_size=1,
    max_size=3,
)


@settings(max_examples=800, deadline=None)
@given(st.lists(st.tuples(st.booleans(), captured), min_size=1, max_size=4), st.lists(keys, min_size=1, max_size=8))
def test_captures_are_cut_as_re_cuts_them(parts: list[tuple[bool, list[str]]], found: list[str]) -> None:
    text = "".join(f"(?P<c{i}>{''.join(p)})" if named else "".join(p) for i, (named, p) in enumerate(parts))
    mine, theirs = compiled(text), re.compile(text, re.ASCII)
    for key in found:
        hit = theirs.fullmatch(key)
        expected = None if hit is None else hit.groupdict()
        assert PatternMatcher(mine)(key) == expected
        assert Program(mine).find_captures(key) == expected


@st.composite
def repeats(draw: st.DrawFn, depth: int = 2) -> str:
    """Draw repeats of what may match nothing, in every order of its ways."""
    kind = draw(st.integers(0, 4 if depth else 0))
    if kind == 0:
        return draw(st.sampled_from(["a", "b", "a?", "", "ab"]))
    if kind == 1:
        return draw(repeats(depth=depth - 1)) + draw(repeats(depth=depth - 1))
    if kind == 2:
        return f"(?:{draw(repeats(depth=depth - 1))}|{draw(repeats(depth=depth - 1))})"
    sign = draw(st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,3}", "{2,}"]))
    return f"(?:{draw(repeats(depth=depth - 1))}){sign}"


WORDS = ["".join(letters) for length in range(5) for letters in itertools.product("ab", repeat=length)]


@settings(max_examples=250, deadline=None)
@given(repeats(), st.sampled_from(["*", "+", "{2,}", "{0,2}", "{1,3}"]), repeats(depth=1))
def test_repeats_of_what_may_be_nothing_are_cut_as_re_cuts_them(body: str, sign: str, rest: str) -> None:
    """Those that are refused come with another spelling, which has the same words."""
    text = f"(?P<x>(?:{body}){sign})(?P<y>{rest})(?P<z>[ab]*)"
    try:
        mine, theirs = compiled(text), re.compile(text)
    except InvalidRules as error:
        (problem,) = error.diagnostics
        assert problem.code == "RK110" and problem.span is not None
        written = problem.help[0].removeprefix("write ").rpartition(": it matches")[0]
        if not written:
            return
        one, other = re.compile(problem.span.text), re.compile(written)
        assert [word for word in WORDS if one.fullmatch(word)] == [word for word in WORDS if other.fullmatch(word)]
        compiled(written)
        return
    reader, program = PatternMatcher(mine), Program(mine)
    for word in WORDS:
        hit = theirs.fullmatch(word)
        expected = None if hit is None else hit.groupdict()
        assert reader(word) == expected
        assert program.find_captures(word) == expected


@settings(max_examples=300, deadline=None)
@given(regexes())
def test_a_printed_pattern_is_read_back_as_the_same_tree_of_text(text: str) -> None:
    try:
        once = unparse(parse_regex(Text.of(text)))
    except InvalidRules:
        return
    assert unparse(parse_regex(Text.of(once))) == once


@settings(max_examples=300, deadline=None)
@given(regexes(depth=2))
def test_all_words_of_a_finite_language_are_found(text: str) -> None:
    try:
        node = parse_regex(Text.of(text))
    except InvalidRules:
        return
    found = list_words(node, 500)
    if found is not None:
        mine = PatternMatcher(compiled(text))
        assert len(set(found)) == len(found)
        assert all(mine(word) is not None for word in found)
        near = {word + extra for word in found for extra in "ab.0"} | {word[:-1] for word in found if word}
        assert all((mine(word) is not None) == (word in set(found)) for word in near)


def test_every_character_class_is_the_one_of_re() -> None:
    everything = [chr(code) for code in (*range(0x250), 0x661, 0x663, 0x2028, 0xFF10, 0x10FFFF)]
    for text in (
        r"\d",
        r"\D",
        r"\w",
        r"\W",
        r"\s",
        r"\S",
        ".",
        r"[^.]",
        r"[\w.-]",
        r"[^\d\n]",
        r"[-a]",
        r"[a-]",
        r"[\]a]",
    ):
        mine, theirs = PatternMatcher(compiled(text)), re.compile(text, re.ASCII)
        wrong = [char for char in everything if (mine(char) is None) != (theirs.fullmatch(char) is None)]
        assert not wrong, (text, wrong)


REFUSED = [
    # the pattern, its code, the column
    (r"a*?", "RK110", 3),
    (r"a??", "RK110", 3),
    (r"a{2}?", "RK110", 5),
    (r"a++", "RK110", 3),
    (r"b(?:|a)*", "RK110", 2),
    (r"b(?:|a){0,2}", "RK110", 2),
    (r"(?:a?|b)+", "RK110", 1),
    (r"(?:a?(?:|b)){2,}", "RK110", 1),
    (r"b(?:c(?:a*|b)*)*", "RK110", 6),
    (r"(?:(?:|a)?b?)*", "RK110", 1),
    (r"(?:|a)?(?:|a){2}(?:a|){0,2}(?:a|b|)*(?:a*b*)*(?:(?:)|a{0})*(?:b(?:|a))*", "", 0),
    (r"(?P<x>a)\1", "RK111", 9),
    (r"(?P<x>a)(?P=x)", "RK111", 9),
    (r"a(?=b)", "RK112", 2),
    (r"a(?!b)", "RK112", 2),
    (r"(?<=a)b", "RK112", 1),
    (r"(?<!attn\.)norm", "RK112", 1),
    (r"(?i)a", "RK113", 1),
    (r"(?i:a)", "RK113", 1),
    (r"(?-i:a)", "RK113", 1),
    (r"(?>a)", "RK113", 1),
    (r"(?#no)", "RK113", 1),
    (r"(a)(?(1)b)", "RK113", 4),
    (r"(?P>x)", "RK113", 1),
    (r"(?", "RK113", 1),
    (r"^a", "RK114", 1),
    (r"a$", "RK114", 2),
    (r"\Aa", "RK114", 1),
    (r"a\Z", "RK114", 2),
    (r"a\b", "RK114", 2),
    (r"a\q", "RK115", 2),
    (r"a\p{L}", "RK115", 2),
    (r"\N{DIGIT ONE}", "RK115", 1),
    ("a\\", "RK115", 2),
    (r"\0", "RK115", 1),
    (r"[\1]", "RK115", 2),
    (r"\x6", "RK115", 1),
    (r"\u00g0", "RK115", 1),
    (r"\U0001f60", "RK115", 1),
    (r"a\U00110000", "RK115", 2),
    (r"[\b]", "RK115", 2),
    (r"a(b", "RK116", 2),
    (r"a)", "RK116", 2),
    (r"a]", "RK116", 2),
    (r"[ab", "RK116", 1),
    (r"[a-", "RK116", 1),
    (r"[]", "RK117", 1),
    (r"[]a]", "RK117", 1),
    (r"[^]", "RK117", 1),
    (r"[b-a]", "RK117", 2),
    (r"[a-\d]", "RK117", 2),
    (r"[\w-z]", "RK117", 2),
    (r"[[a]", "RK117", 2),
    (r"[a&&b]", "RK117", 3),
    (r"[a--b]", "RK117", 2),
    (r"[\d\D]", "", 0),
    (r"[^\d\D]", "RK117", 1),
    (r"*a", "RK118", 1),
    (r"a|+", "RK118", 3),
    (r"(*a)", "RK118", 2),
    (r"a**", "RK118", 3),
    (r"a{2}{3}", "RK118", 5),
    (r"a{2,1}", "RK118", 2),
    (r"a{,2}", "RK118", 2),
    (r"a{x}", "RK118", 2),
    (r"a{", "RK118", 2),
    (r"a}", "RK116", 2),
    (r"{n}", "RK118", 1),
    (r"a{1001}", "RK119", 2),
    (r"a{99999999999999999999}", "RK119", 2),
    (r"(?:(?:a{200}){200}){200}", "RK119", 1),
    ("(" * 101 + ")" * 101, "RK119", 101),
    (r"(?<x>a)", "RK120", 1),
    (r"(?P<1x>a)", "RK120", 1),
    (r"(?P<x", "RK120", 1),
    (r"(?P<é>a)", "RK120", 1),
    (r"(?P<x>a)(?P<x>b)", "RK122", 13),
    (r"(?P<x>a)?", "RK121", 1),
    (r"(?P<x>a){2}", "RK121", 1),
    (r"(?:b(?P<x>a))*", "RK121", 5),
    (r"(?:(?P<x>a)|b)", "RK121", 4),
    (r"(?P<x>a)|b", "RK121", 1),
    (r"(?P<x>a(?P<y>b))", "RK121", 8),
]


@pytest.mark.parametrize(("text", "code", "column"), REFUSED, ids=[repr(row[0])[:30] for row in REFUSED])
def test_what_is_no_regular_pattern_is_refused_at_its_column(text: str, code: str, column: int) -> None:
    try:
        compiled(text)
    except InvalidRules as error:
        problem = error.diagnostics[0]
        assert problem.span is not None
        primary = [label.span for label in problem.labels if label.primary]
        assert (problem.code, primary[-1].column) == (code, column)
        assert problem.help, "says what to write instead"
    else:
        assert not code


@pytest.mark.parametrize(
    "text", [r"(a)(b)", r"(?:)", "", "a|", r"(?:a|b|)c", r"\-\.\\", "[-a]", r"a{0}", r"\u0061\t", "((((a))))"]
)
def test_the_rest_is_accepted(text: str) -> None:
    compiled(text)


@pytest.mark.parametrize(
    ("text", "one_way"),
    [
        (r"(?P<a>[^.]+)\.(?P<b>.+)", True),
        (r"(?P<a>.*)\.(?P<b>[^.]*)", True),
        (r"(?P<a>.*)\.(?P<b>.*)", False),
        (r"(?:a*)*b", False),
        (r"(?:a|a)b", False),
        (r"(?:a?){3}", True),
        (r"(?:a?b?){3}", False),
        (r"a{0,5}a", True),
        (r"a{0,5}a?", False),
        (r"(?:a|ab)(?:c|bc)", False),
        (r"[ab]*a[ab]{3}", True),
    ],
)
def test_what_can_be_read_in_several_ways_is_known(text: str, one_way: bool) -> None:
    assert is_unambiguous(build_automaton(compiled(text).parts)) == one_way


@pytest.mark.parametrize(
    "text", [r"(?:a*)*b", r"(?:a|a)*b", r"(?:a|aa)+b", r"(?:[ab]*a){10}c", r"(?P<x>.*)(?P<y>.*)(?P<z>.*)x"]
)
def test_patterns_that_would_backtrack_for_ever_do_not(text: str) -> None:
    """Each takes `re` longer than the universe has left on this key."""
    assert PatternMatcher(compiled(text))("a" * 300 + "!") is None


@settings(max_examples=200, deadline=None)
@given(st.lists(captured, min_size=1, max_size=3))
def test_steps_are_linear_in_the_key(parts: list[list[str]]) -> None:
    """The lemma behind handing a pattern to `re`: read in one way means one visit a position and offset."""
    mine = compiled("".join(map("".join, parts)))
    machine = build_automaton(mine.parts)
    if not is_unambiguous(machine):
        return
    key = ("ab" * 20)[:39] + "!"
    runs = {position: 1 for position in machine.first if mine and _reads(machine, position, key[0])}
    for character in key[1:]:
        following: dict[int, int] = {}
        for position, count in runs.items():
            for each in machine.follow[position]:
                if _reads(machine, each, character):
                    following[each] = following.get(each, 0) + count
        runs = following
        assert all(count == 1 for count in runs.values())


def _reads(machine: object, position: int, character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in machine.chars[position])  # type: ignore[attr-defined]


def test_a_part_is_a_capture_or_literal() -> None:
    parts = split_into_parts(parse_regex(Text.of(r"a\.(?P<x>\d)(b|c)\.(?P<y>\w+)z")))
    assert [(part.name, unparse(part.node)) for part in parts] == [
        (None, r"a\."),
        ("x", "[0-9]"),
        (None, r"(?:b|c)\."),
        ("y", "[0-9A-Z_a-z]+"),
        (None, "z"),
    ]


def test_problems_of_all_patterns_are_reported_at_once() -> None:
    with pytest.raises(InvalidRules) as caught:
        rules(
            rule("a", "x", match="a*?"),
            rule("a", "x{q}", match="b"),
            rule("c", "x", path="a..b"),
            keep=[pattern(match="(")],
        )
    assert [each.code for each in caught.value.diagnostics] == ["RK110", "RK151", "RK130", "RK116", "RK160"]


@given(st.characters(exclude_categories=["Cs"]))
def test_a_character_is_read_by_its_eight_digits(sign: str) -> None:
    pattern = f"\\U{ord(sign):08x}"
    assert PatternMatcher(compiled(pattern))(sign) is not None and re.fullmatch(pattern, sign)
