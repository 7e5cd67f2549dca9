"""Parts of patterns by their definitions: sets of characters, words, limits at their very border, and columns."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from helpers import pattern, rule, rules, table
from hypothesis import given
from hypothesis import strategies as st

from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Text
from remapkit.patterns import automaton, compile
from remapkit.patterns.automaton import build_automaton, is_unambiguous, read_prefix
from remapkit.patterns.charset import LAST, Ranges, complement, contains, merge_ranges
from remapkit.patterns.compile import Compiled, compile_pattern
from remapkit.patterns.finite import MAX_WORDS, build_words_node, join_alternatives, list_words
from remapkit.patterns.literals import read_word
from remapkit.patterns.matcher import PatternMatcher, Program, regex_text
from remapkit.patterns.path import parse_path
from remapkit.patterns.pattern import Part
from remapkit.patterns.ranges import KeyParams, read_range
from remapkit.patterns.template import CaptureItem, MapItem, Template, TextItem
from remapkit.patterns.tree import Alt, literal
from remapkit.rulefile.syntax import WrittenGuard
from remapkit.tensors.families import MAX_DIGITS

KEYS = {"slots": ("norm1", "conv.1")}


def compiled(**written: Any) -> Compiled:
    return compile_pattern(pattern(**written), KEYS)


def codes(**written: Any) -> list[str]:
    try:
        compiled(**written)
    except InvalidRules as error:
        return [each.code for each in error.diagnostics]
    return []


# ------------------------------------------------------------------------------------------------ sets of characters

EDGES = [*range(8), *range(LAST - 7, LAST + 1)]
points = st.sampled_from(EDGES)
pairs = st.lists(st.tuples(points, points).map(lambda pair: (min(pair), max(pair))), max_size=5)


def is_canonical(ranges: Ranges) -> bool:
    """Sorted, not empty, and with a gap between each two: the one form of a set."""
    return all(low <= high for low, high in ranges) and all(
        one[1] + 1 < other[0] for one, other in itertools.pairwise(ranges)
    )


@given(pairs)
def test_a_set_of_characters_is_what_its_ranges_say(found: list[tuple[int, int]]) -> None:
    merged = merge_ranges(found)
    others = complement(merged)
    assert is_canonical(merged) and is_canonical(others)
    for code in EDGES:
        inside = any(low <= code <= high for low, high in found)
        assert contains(merged, chr(code)) == inside
        assert contains(others, chr(code)) != inside
    assert complement(others) == merged


# ------------------------------------------------------------------------------------------------ words

words = st.lists(st.text("ab0", max_size=4), min_size=1, max_size=8, unique=True)


@given(words)
def test_words_are_written_as_one_tree_and_read_back(found: list[str]) -> None:
    node = build_words_node(tuple(found))
    assert list_words(node) == tuple(sorted(found, key=lambda word: (len(word), word)))
    assert is_unambiguous(build_automaton([Part(None, node)]))


@pytest.mark.parametrize(("limit", "wanted"), [(5, ("a", "b", "c", "d", "e")), (4, None)])
def test_a_language_has_at_most_so_many_words(limit: int, wanted: tuple[str, ...] | None) -> None:
    assert list_words(Alt(tuple(map(literal, "abcde"))), limit) == wanted


def test_a_guard_on_a_capture_of_a_table_leaves_it_one() -> None:
    (part,) = compiled(path="{n:slots}", where={"n": ["norm1"]}).pattern.captures
    assert (part.values, part.table) == (("norm1",), "slots")
    found = rules(
        rule("r", "x.{n|slots}", path="{n:slots}", where={"n": ["norm1"]}),
        tables=[table("slots", {"norm1": "0", "conv.1": "2"})],
    )
    assert found.match("norm1")[0].table_uses == (("slots", "norm1"),)


@pytest.mark.parametrize(
    ("text", "one_way"),
    [
        ("(?:a+)+b", False),
        ("(?:a?)*b", False),
        ("(?:a?)+b", False),
        ("(?:a+b?)+", False),
        ("(?:|a?)b", False),
        ("(?:a?c?){2}b", False),
        ("(?:a?){2}b", True),  # read as a{0,2}
        ("(?:a+b)+", True),
        ("(?:|a)b", True),
        ("a{2,}b", True),
        ("(?:ab|ac)*d", True),
        ("(?:ab|cb)(?:de|df)", True),
    ],
)
def test_what_is_read_in_one_way(text: str, one_way: bool) -> None:
    assert is_unambiguous(build_automaton(compiled(match=text).pattern.parts)) == one_way


EVERY_SHORT_KEY = ["".join(signs) for length in range(5) for signs in itertools.product("ab.-", repeat=length)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a?b",
        "a{1,2}b",
        "a{2,}b?",
        "(?:a|ab)(?P<x>b?)",
        "(?P<x>a*)(?P<y>[ab]*)",
        "(?P<x>a?)(?:ab)?(?P<y>b?)",
        "(?P<x>(?:a|ab)*)b?",
        "(?:a+b)+",
        "(?:a*)*b",
        "(?:(?:a|b){2}){1,2}",
        "[^a]",
        "[a-]+",
        r"(?P<x>[\w-]+)\.(?P<y>.*)",
        r"(?P<x>.*)\.(?P<y>[^.]*)",
        r"[!\-a]+",
        r"[\d\D]a",
        r"[^\x01-a]",
    ],
)
def test_every_reader_reads_every_short_key_as_re_does(text: str) -> None:
    mine, theirs = compiled(match=text).pattern, re.compile(text, re.ASCII)
    machine, program, printed = build_automaton(mine.parts), Program(mine), re.compile(regex_text(mine))
    for key in EVERY_SHORT_KEY:
        found = theirs.fullmatch(key)
        wanted = None if found is None else found.groupdict()
        again = printed.fullmatch(key)
        assert read_prefix(machine, key).accepted == (wanted is not None)
        assert PatternMatcher(mine)(key) == program.find_captures(key) == wanted
        assert (None if again is None else again.groupdict()) == wanted


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 3), (7, 12), (98, 102)])
def test_a_range_has_both_ends(low: int, high: int) -> None:
    (part,) = compiled(path=f"{{n:{low}..{high}}}").pattern.parts
    assert part.values == tuple(map(str, range(low, high + 1))) == list_words(part.node)


def test_alternatives_that_no_tree_takes_in_their_order_are_left_alone() -> None:
    """`a` is tried before `ac`, but after `ab`, with which a tree would have to begin as well."""
    assert join_alternatives([literal("ab"), literal("a"), literal("ac")]) is None
    assert join_alternatives([literal("ab"), literal("ac"), literal("a")]) is not None


# ------------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ({"path": f"{{n:0..{MAX_WORDS - 1}}}"}, []),
        ({"path": f"{{n:0..{MAX_WORDS}}}"}, ["RK135"]),
        ({"path": f"{{n:{'1' * 5000}..2}}"}, ["RK135"]),
        ({"path": f"{{n:1..{'2' * 5000}}}"}, ["RK135"]),
        ({"match": "a{1000}"}, []),
        ({"match": "(" * 100 + ")" * 100}, []),
        ({"match": "(a)" * 101}, []),
        ({"match": "[a-a]"}, []),
        ({"match": "(?:ba{0,199}){0,100}"}, []),
        ({"match": "(?:ba{0,199}){0,101}"}, ["RK119"]),
        ({"match": "(?:b?a{0,9}){0,100}"}, []),
        ({"match": "(?:b?a{0,9}){0,101}"}, ["RK119"]),
        ({"match": "(?:a{100}|b{100}){100}"}, []),
        ({"match": "(?:a{100}|b{101}){100}"}, ["RK119"]),
        ({"match": r"a\.", "leaf": [""]}, ["RK143"]),  # the leaf of `a.`, but no name of a leaf
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_limit_holds_from_its_very_border_on(written: dict[str, Any], wanted: list[str]) -> None:
    assert codes(**written) == wanted


@pytest.mark.parametrize("bounds", [f"{'1' * 5000}..2", f"1..{'2' * 5000}"], ids=["lower", "upper"])
def test_a_bound_that_is_too_long_is_called_so(bounds: str) -> None:
    with pytest.raises(InvalidRules) as caught:
        compiled(path=f"{{n:{bounds}}}")
    assert [each.title for each in caught.value.diagnostics] == [f"a bound must have at most {MAX_DIGITS} digits"]


def test_the_characters_of_a_guard_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "MAX_LETTERS", 10)
    assert codes(path="{n}", where={"n": ["abcde", "fghij"]}) == []
    assert codes(path="{n}", where={"n": ["abcde", "fghijk"]}) == ["RK218"]


def test_two_guards_on_one_capture() -> None:
    guard = WrittenGuard(Text.of("n"), (Text.of("a"),), None)
    written = replace(pattern(path="{n}"), where=(guard, replace(guard, values=(Text.of("b"),))))
    with pytest.raises(InvalidRules) as caught:
        compile_pattern(written, {})
    assert [each.code for each in caught.value.diagnostics] == ["RK145"]


def test_a_guard_keeps_the_whole_values_that_the_capture_can_have() -> None:
    found = compiled(match=r"(?P<n>\d+)\w*", where={"n": ["12", "1x", "x1", "2"]})
    assert found.pattern.captures[0].values == ("2", "12")
    assert [(each.code, "'1x' or 'x1'" in each.title) for each in found.warnings] == [("RK142", True)]
    assert codes(match=r"(?P<n>\d+)\w*", where={"n": ["1x", "x1"]}) == ["RK141"]


def test_impossible_leaves_are_no_part_of_the_pattern() -> None:
    found = compiled(path="{n}.weight", leaf=["weight", "bias"])
    assert found.pattern.leaf == ("weight",)
    assert [each.code for each in found.warnings] == ["RK142"]
    assert compiled(path="{n:int}", leaf=["1", "10"]).pattern.leaf == ("1", "10")
    for path, leaf in (("w{n:int}", "1"), ("{n:int}", "x1")):  # the end of a key, and a leaf that ends in a key
        assert codes(path=path, leaf=[leaf]) == ["RK143"]


def test_what_takes_too_long_to_decide_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = build_automaton(compiled(match="[ab]*a[ab]{3}").pattern.parts)
    assert is_unambiguous(machine)
    monkeypatch.setattr(automaton, "MAX_PAIRS", 1)
    assert not is_unambiguous(machine)
    monkeypatch.setattr(automaton, "MAX_EDGES", 1)
    found = compiled(path="{n}.weight", leaf=["weight", "bias"])
    assert (found.pattern.leaf, found.warnings) == (("weight", "bias"), ())


# ------------------------------------------------------------------------------------------------ texts


def test_a_character_behind_a_quoted_literal_has_its_own_column() -> None:
    word = read_word(Text.of("w{'*b'}x{'it''s'}y"), "a word", [])
    assert word is not None and word.value == "w*bxit'sy"
    columns = [word.at(place, place + 1).column for place in range(len(word.value))]
    assert columns[:4] == [1, 4, 5, 8] and columns[-1] == 18
    assert columns == sorted(columns)


def test_a_template_shows_the_captures_that_are_known() -> None:
    doubled = MapItem(("n",), {("3",): "6"}, "{n*2}")
    template = Template(Text.of("..."), (TextItem("x%."), CaptureItem("n"), TextItem("."), CaptureItem("m"), doubled))
    assert template.render({"n": "3", "m": "a"}) == "x%.3.a6"
    assert template.render({"n": "3", "m": None}) == "x%.3.{m}6"
    assert template.render({"n": None, "m": "a"}) == "x%.{n}.a{n*2}"


def test_literals_side_by_side_read_as_they_are_written() -> None:
    (part,) = parse_path(Text.of("a.b{{c{'*d'}.e"), {})
    assert part.values == ("a.b{c*d.e",) == list_words(part.node)


@pytest.mark.parametrize("written", ["0..01", "01..2", "00..1"])
def test_a_bound_with_a_leading_zero_is_no_number(written: str) -> None:
    """Also where bounds may be arithmetic, which reads 01 as 1: keys have their numbers without zeros in front."""
    with pytest.raises(InvalidRules, match="is not a range of integers"):
        read_range(Text.of(written), 0, len(written), KeyParams({"layers": 4}))
