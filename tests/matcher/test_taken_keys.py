"""What the cache keeps of a pack's patterns takes the keys that the compiled rules take, and no others."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matcher_kit import Twin, compiled, near, twins

from remapkit.patterns.matcher import make_engine
from remapkit.registry.taken_keys import TakenKeys, find_taken
from remapkit.rulefile.read import read_text


@settings(max_examples=200, deadline=None)
@given(st.data(), twins)
def test_the_expressions_take_what_the_rules_take(data: st.DataObject, picked: list[Twin]) -> None:
    rules = compiled(picked)
    keys = data.draw(st.lists(near(picked), min_size=1, max_size=12))
    taken = find_taken(rules.file)
    safe = all(isinstance(make_engine(rule.pattern), re.Pattern) for rule in rules.everything)
    assert (taken is not None) == safe, "`re` may take exponential time for the others"
    if taken is not None:
        again = TakenKeys.read(json.loads(json.dumps(taken.dump())))
        assert again == taken
        assert again.select(keys) == {key for key in keys if any(twin.alone(key) is not None for twin in picked)}


HEAD = "remapkit: 1\nname: t\n"
COUNTED = "params: {n: {count: 'h.{i:int}.w', value: 2}}\n"


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        ("keep: ['h.{i:0..1}.w']\n", {"h.0.w"}),
        ("keep: ['h.{i:int}.w']\n" + COUNTED, {"h.0.w", "h.7.w"}),
        ("keep: ['h.{i:0..n-1}.w']\n" + COUNTED, None),
        ("params: {n: 2}\nkeep: ['h.{i:0..n-1}.w']\n", {"h.0.w"}),
        ("keep: ['h.{i:int}.w']\nunmatched: drop\n", {"h.0.w", "h.7.w", "x"}),
        ("drop: ['{all:**}']\n", {"h.0.w", "h.7.w", "x"}),
        ("keep: ['h.{i:{']\n", None),
        ("keep: ['h.{i:{']\nunmatched: keep\n", None),
        ("params: {n: {config: layers}}\nkeep: ['h.{i:0..n-1}.w']\n", None),
    ],
)
def test_what_depends_on_a_checkpoint_or_is_broken_is_left_to_the_rules(body: str, taken: set[str] | None) -> None:
    found = find_taken(read_text(HEAD + body))
    assert (None if found is None else found.select(["h.0.w", "h.7.w", "x"])) == taken


@pytest.mark.parametrize("entry", [{}, {"everything": False}, {"everything": False, "patterns": [3]}])
def test_other_data_is_refused(entry: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        TakenKeys.read(entry)
