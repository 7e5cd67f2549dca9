"""Safe time: steps are counted, never measured. No place of an expression is come to twice at one offset."""

from __future__ import annotations

import re
import re._constants as c  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matcher_kit import Twin, compiled, near, twins
from test_sets import matches_of, small

from remapkit.api.ruleset import RuleSet
from remapkit.patterns.automaton import build_automaton, is_unambiguous
from remapkit.patterns.matcher import PatternMatcher, Program, SetMatcher


class Backtracking:
    """A matcher like the one in `re`: it goes back to its last choice, and remembers nothing of where it has been.

    It reads the trees of Python's own parser, and shares nothing with remapkit.
    """

    def __init__(self, text: str) -> None:
        self.code: list[tuple[str, Any, Any]] = []
        self.sequence(parser.parse(text))
        self.code.append(("end", None, None))
        self.visits: Counter[tuple[int, int]] = Counter()

    def sequence(self, items: Any) -> None:
        for operator, argument in items:
            if operator is c.SUBPATTERN:
                self.sequence(argument[3])
            elif operator is c.BRANCH:
                self.branches(argument[1])
            elif operator is c.MAX_REPEAT:
                self.repeat(*argument)
            else:
                self.code.append(("char", operator, argument))

    def branches(self, branches: Any) -> None:
        ends = []
        for branch in branches[:-1]:
            split = len(self.code)
            self.code.append(("split", None, None))
            self.sequence(branch)
            ends.append(len(self.code))
            self.code.append(("jump", None, None))
            self.code[split] = ("split", split + 1, len(self.code))
        self.sequence(branches[-1])
        for end in ends:
            self.code[end] = ("jump", len(self.code), None)

    def repeat(self, low: int, high: Any, item: Any) -> None:
        for _ in range(low):
            self.sequence(item)
        splits = []
        for _ in range(1 if high is c.MAXREPEAT else high - low):
            splits.append(len(self.code))
            self.code.append(("split", None, None))
            self.sequence(item)
        if high is c.MAXREPEAT:
            self.code.append(("jump", splits[0], None))
        for split in splits:
            self.code[split] = ("split", split + 1, len(self.code))

    def matches(self, key: str, limit: int) -> bool:
        self.visits.clear()
        pending = [(0, 0)]
        while pending:
            here, offset = pending.pop()
            while True:
                self.visits[here, offset] += 1
                assert self.visits.total() <= limit, "too many steps"
                kind, one, other = self.code[here]
                if kind == "split":
                    pending.append((other, offset))
                    here = one
                elif kind == "jump":
                    here = one
                elif kind == "end":
                    if offset == len(key):
                        return True
                    break
                elif offset < len(key) and reads(one, other, ord(key[offset])):
                    here, offset = here + 1, offset + 1
                else:
                    break
        return False


def reads(operator: Any, argument: Any, code: int) -> bool:
    if operator is c.LITERAL:
        return bool(code == argument)
    if operator is c.NOT_LITERAL:
        return bool(code != argument)
    if operator is c.ANY:
        return code != 10
    assert operator is c.IN, operator
    negated = argument[0][0] is c.NEGATE
    inside = any(
        code == value if kind is c.LITERAL else value[0] <= code <= value[1] for kind, value in argument[negated:]
    )
    return inside != negated


def steps_are_linear(rules: RuleSet, keys: list[str]) -> None:
    """For every expression of the set: no place at no offset twice, hence at most places times offsets steps."""
    together, alone = rules.matcher.engines
    for each in together:
        machine = Backtracking(each.engine.pattern)
        for key in keys:
            found = machine.matches(key, len(machine.code) * (len(key) + 1))
            assert found == (each.engine.fullmatch(key) is not None)
            assert max(machine.visits.values()) == 1, (each.engine.pattern, key)
    for number in alone:
        program_is_linear(rules.matcher.readers[number], keys)


class Counted(list[Any]):
    """Instructions that count how often they are looked at."""

    looks = 0

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        return super().__getitem__(place)


def program_is_linear(reader: PatternMatcher, keys: list[str]) -> None:
    if is_unambiguous(build_automaton(reader.pattern.parts)):
        machine = Backtracking(re_text(reader))
        assert all(machine.matches(key, len(machine.code) * (len(key) + 1)) in (True, False) for key in keys)
        return
    program = Program(reader.pattern)
    for key in keys:
        counted = Counted(program.code)
        program.code = counted
        program.find_captures(key)
        assert counted.looks <= len(counted) * (len(key) + 1)


def re_text(reader: PatternMatcher) -> str:
    from remapkit.patterns.matcher import regex_text

    return regex_text(reader.pattern)


LONG = ["a" * 24 + "!", "ab" * 12, "a." * 12 + "b", "." * 20, "qk" * 12, "layers." * 5 + "w", "1" * 20 + ".x"]


@settings(max_examples=60)
@given(st.data(), twins)
def test_no_place_is_come_to_twice(data: st.DataObject, picked: list[Twin]) -> None:
    steps_are_linear(compiled(picked), [*LONG, *data.draw(st.lists(near(picked), max_size=4))])


@settings(max_examples=80)
@given(st.lists(small, min_size=1, max_size=5))
def test_nor_in_sets_that_share_keys(texts: list[str]) -> None:
    steps_are_linear(
        matches_of(*((t, "t" + "".join(f"{{{n}}}" for n in re.findall(r"\?P<(\w+)>", t))) for t in texts)), LONG
    )


@settings(max_examples=80)
@given(small)
def test_the_counting_matcher_knows_what_is_not_linear(text: str) -> None:
    """The lemma the other way round: where a pattern is not read in one way, some place can be come to twice."""
    (rule,) = matches_of((text, "t" + "".join(f"{{x{n}}}" for n in range(9) if f"<x{n}>" in text))).rules
    one_way = is_unambiguous(build_automaton(rule.pattern.parts))
    machine = Backtracking(re_text(rule.reader))
    twice = False
    for key in ("aaaa", "abab", "a.a.b", "bbbb", "b!", "aab!", "....", "ab.!"):
        machine.matches(key + "!", 10**6)
        twice = twice or max(machine.visits.values()) > 1
    assume(twice)
    assert not one_way


EVIL = [
    r"(?:a*)*b",
    r"(?:a|a)*b",
    r"(?:a|aa)+b",
    r"(?:[ab]*a){10}c",
    r"(?P<x>.*)(?P<y>.*)(?P<z>.*)x",
    r"(?P<x>(?:\w+\.?)+)x",
    r"(?P<x>.*)\.(?P<y>.*)\.(?P<z>.*)",
    r"(?:(?:a?b?){20}a{20})b",
    r"(?P<x>a*)(?P<y>a*)b",
]


@pytest.mark.parametrize("text", EVIL)
def test_steps_grow_as_the_key_does(text: str) -> None:
    """`re` alone would take longer than anybody waits; here it is four times the steps for four times the key."""
    rows = [(text, "t" + "".join(f"{{{n}}}" for n in re.findall(r"\?P<(\w+)>", text))), ("other", "o"), ("b", "p")]
    rules = matches_of(*rows)
    assert rules.matcher.engines[1] == (0,)
    program = Program(rules.rules[0].pattern)
    counts = []
    for length in (40, 160, 640):
        program.code = counted = Counted(program.code)
        counted.looks = 0
        program.find_captures("a" * length + "!")
        counts.append(counted.looks)
    assert counts[1] <= 4.5 * counts[0] and counts[2] <= 4.5 * counts[1]
    assert rules.match("a" * 2000 + "!") == ()


def test_a_search_that_is_too_large_is_given_up() -> None:
    """Millions of pairs are never walked: such a pattern is read by the search that is linear anyway."""
    rules = matches_of((r"(?:[ab]{0,249}c?[ab]{0,249}){2}x", "t"), (r"(?:(?:a?b?){50}){9}", "u"), ("c", "v"))
    together, alone = rules.matcher.engines
    assert (len(together), alone) == (1, (0, 1))
    assert [each.target for each in rules.match("abcx")] == ["t"]
    assert [each.target for each in rules.match("c")] == ["v"]
    stop = rules.rules[1].find_stop("aax")
    assert stop is not None and stop.offset == 2 and rules.rules[1].find_stop("aab") is None


def test_one_set_compiles_once() -> None:
    rules = matches_of(("a", "b"), ("c", "d"))
    assert rules.matcher.engines is rules.matcher.engines
    assert isinstance(rules.matcher, SetMatcher)
