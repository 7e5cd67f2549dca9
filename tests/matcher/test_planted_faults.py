"""Planted faults of the matcher of sets, each with the test that notices it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import test_safe_time
import test_sets

from remapkit.patterns import combine as factor
from remapkit.patterns import matcher
from remapkit.patterns.pattern import Pattern
from remapkit.patterns.tree import Chars, Group
from remapkit.patterns.unparse import unparse

Patch = Callable[[pytest.MonkeyPatch], None]


def first_wins(patch: pytest.MonkeyPatch) -> None:
    """All patterns in one expression, whether they share keys or not."""
    everything = lambda patterns: factor.Groups((tuple(range(len(patterns))),), ())  # noqa: E731
    patch.setattr(matcher, "group_patterns", everything)


def identical_patterns_unnoticed(patch: pytest.MonkeyPatch) -> None:
    """Patterns that end at one place are not compared."""
    original = factor._Positions.add_conflicts

    def add_conflicts(self: Any, left: Any, right: Any, *, apart: bool = False) -> None:
        if apart:
            original(self, left, right, apart=True)

    patch.setattr(factor._Positions, "add_conflicts", add_conflicts)


def pairs_at_the_start_only(patch: pytest.MonkeyPatch) -> None:
    """Runs that part are not followed."""
    patch.setattr(factor._Positions, "advance_runs", lambda self, left, right: None)


def _tokens_by(text: Callable[[Any], str]) -> Callable[[Pattern], Iterator[tuple[str, Any, bool]]]:
    original = factor._tokenize_pattern

    def tokens(pattern: Pattern) -> Iterator[tuple[str, Any, bool]]:
        parts = iter(part for part in pattern.parts if part.name is not None)
        for token, node, named in original(pattern):
            yield (text(next(parts)), node, True) if named else (token, node, False)

    return tokens


def any_capture_is_shared(patch: pytest.MonkeyPatch) -> None:
    """Captures at one place are taken for one, whatever they read."""

    class Same(str):
        def __hash__(self) -> int:
            return 0

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Same)

    patch.setattr(factor, "_tokenize_pattern", _tokens_by(lambda part: Same(f"({unparse(part.node)})")))


def shared_across_a_capture(patch: pytest.MonkeyPatch) -> None:
    """What is captured and what is only read are taken for one where their text is the same."""

    class Loose(str):
        def __hash__(self) -> int:
            return hash(self.strip("()"))

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self.strip("()") == other.strip("()")

    original = factor._tokenize_pattern

    def tokens(pattern: Pattern) -> Iterator[tuple[str, Any, bool]]:
        for token, node, named in original(pattern):
            yield Loose(token), node, named

    patch.setattr(factor, "_tokenize_pattern", tokens)


def wrong_group(patch: pytest.MonkeyPatch) -> None:
    """A capture is read from the group before it."""
    original = matcher.SetMatcher._make_end

    def end(self: Any, number: int, groups: tuple[int, ...]) -> Any:
        return original(self, number, tuple(max(1, group - 1) for group in groups))

    patch.setattr(matcher.SetMatcher, "_make_end", end)


def last_capture_always_marks(patch: pytest.MonkeyPatch) -> None:
    """The last capture marks an end even where several patterns use it."""
    original = factor._Writer.write_token

    def write_token(self: Any, child: Any, groups: tuple[int, ...], own: bool) -> tuple[tuple[int, ...], bool]:
        found, _ = original(self, child, groups, own)
        return found, bool(found)

    patch.setattr(factor._Writer, "write_token", write_token)


class _Unanchored:
    def __init__(self, engine: re.Pattern[str], method: str) -> None:
        self.pattern, self.groups = engine.pattern, engine.groups
        self.fullmatch = getattr(engine, method)


def _anchored_by(method: str) -> Patch:
    def plant(patch: pytest.MonkeyPatch) -> None:
        original = matcher.SetMatcher._compile_group

        def together(self: Any, numbers: Any) -> Any:
            found = original(self, numbers)
            return matcher.Together(_Unanchored(found.engine, method), found.ends)  # type: ignore[arg-type]

        patch.setattr(matcher.SetMatcher, "_compile_group", together)

    return plant


def dots_unescaped(patch: pytest.MonkeyPatch) -> None:
    """A dot of a key stands in the expression as it is."""
    original = factor._tokenize_character.__wrapped__
    bare = lambda token: (token[0].replace("\\.", "."), *token[1:])  # noqa: E731
    patch.setattr(factor, "_tokenize_character", lambda character: bare(original(character)))
    pieces = factor._tokenize_node
    patch.setattr(factor, "_tokenize_node", lambda node: map(bare, pieces(node)))


def leaves_ignored(patch: pytest.MonkeyPatch) -> None:
    """Guards on the leaf are not looked at."""
    original = matcher.SetMatcher._make_end

    def end(self: Any, number: int, groups: tuple[int, ...]) -> Any:
        found = original(self, number, groups)
        return matcher.End(found.number, found.names, found.groups, None)

    patch.setattr(matcher.SetMatcher, "_make_end", end)


def several_ways_together(patch: pytest.MonkeyPatch) -> None:
    """Patterns that read a key in several ways are handed to `re` with the others."""
    patch.setattr(factor._Shared, "__init__", _forgetful)


def _forgetful(self: Any) -> None:
    class Forgets(set[int]):
        def add(self, _: int) -> None: ...
        def update(self, *_: Any) -> None: ...

    self.pairs, self.several_ways = set(), Forgets()


def backwards_as_forwards(patch: pytest.MonkeyPatch) -> None:
    """From the end of the keys, each piece is still read forwards."""
    patch.setattr(factor, "_mirror_node", lambda node: node.item if isinstance(node, Group) else node)


def gave_up_means_disjoint(patch: pytest.MonkeyPatch) -> None:
    """A search that gave up is taken for one that found nothing."""
    original = factor._find_shared_keys
    patch.setattr(factor, "_find_shared_keys", lambda *args: original(*args) or factor._Shared())


def percent_unescaped(patch: pytest.MonkeyPatch) -> None:
    """A % in a template is one for the operator %."""
    original = matcher._compile_write
    patch.setattr(
        matcher, "_compile_write", lambda *args: (original(*args)[0].replace("%%", "%"), original(*args)[1])
    )


def characters_are_one_class(patch: pytest.MonkeyPatch) -> None:
    """Sets of characters meet only where they are equal."""
    patch.setattr(factor, "build_masks", lambda sets: [1 << list(dict.fromkeys(sets)).index(each) for each in sets])


FAULTS: dict[str, tuple[Patch, Callable[[], None]]] = {
    "first wins": (first_wins, test_sets.test_two_rules_for_one_key_are_both_found),
    "identical patterns": (identical_patterns_unnoticed, test_sets.test_the_same_pattern_twice),
    "an end on the way of another": (
        identical_patterns_unnoticed,
        test_sets.test_one_rule_ends_where_another_goes_on,
    ),
    "pairs at the start only": (pairs_at_the_start_only, test_sets.test_two_rules_for_one_key_are_both_found),
    "any capture is shared": (any_capture_is_shared, test_sets.test_captures_of_different_languages_are_not_one),
    "shared across a capture boundary": (
        shared_across_a_capture,
        test_sets.test_a_capture_is_not_shared_with_the_same_text_uncaptured,
    ),
    "the wrong group": (wrong_group, test_sets.test_a_capture_is_not_shared_with_the_same_text_uncaptured),
    "the last capture always marks": (last_capture_always_marks, test_sets.test_a_shared_capture_marks_no_end),
    "no anchor at the end": (_anchored_by("match"), test_sets.test_a_rule_does_not_fire_within_a_longer_key),
    "no anchor at all": (_anchored_by("search"), test_sets.test_a_rule_does_not_fire_within_a_longer_key),
    "dots unescaped": (dots_unescaped, test_sets.test_a_dot_is_a_dot),
    "leaves ignored": (leaves_ignored, test_sets.test_leaves_are_looked_at),
    "several ways together": (
        several_ways_together,
        lambda: test_safe_time.test_steps_grow_as_the_key_does(test_safe_time.EVIL[0]),
    ),
    "backwards as forwards": (backwards_as_forwards, test_sets.test_backwards_a_piece_is_read_backwards),
    "characters are one class": (characters_are_one_class, test_sets.test_two_rules_for_one_key_are_both_found),
    "percent unescaped": (percent_unescaped, test_sets.test_percent_signs_and_braces_in_templates),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_noticed_by_its_test(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, test = FAULTS[name]
    test()
    plant(monkeypatch)
    with pytest.raises((AssertionError, KeyError, TypeError, ValueError, IndexError, re.error)):
        test()


def test_a_search_that_gave_up_and_says_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    gave_up_means_disjoint(monkeypatch)
    with pytest.raises(AssertionError):
        test_sets.test_with_any_limit_the_answer_is_the_same(0, monkeypatch)


def test_the_order_of_matches_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        matcher, "group_patterns", lambda patterns: factor.Groups(tuple((n,) for n in range(len(patterns)))[::-1], ())
    )
    test_sets.test_two_rules_for_one_key_are_both_found()  # whatever the groups, the rules come in their order

    def unsorted(self: matcher.SetMatcher, fqn: str) -> Any:
        return original(self, fqn)[::-1]

    original = matcher.SetMatcher.match
    monkeypatch.setattr(matcher.SetMatcher, "match", unsorted)
    with pytest.raises(AssertionError):
        test_sets.test_two_rules_for_one_key_are_both_found()


def test_the_faults_are_planted_where_they_work() -> None:
    """What the patches replace is what the matcher uses."""
    assert factor._tokenize_character("a")[1] == Chars(((97, 97),))
    assert matcher.group_patterns is factor.group_patterns and matcher.write_expression is factor.write_expression
