"""The lemmas of docs/proofs.md, each against every key up to a length."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from remapkit.api.ruleset import compile_rules
from remapkit.patterns.unparse import unparse
from remapkit.proofs.automata import reads
from remapkit.proofs.budget import Budget
from remapkit.proofs.case import Case
from remapkit.proofs.cases import ProofContext, build_cases, merge_slots, read_slot
from remapkit.proofs.commuting import commutes
from remapkit.proofs.keymap import KeyMap, key_maps, readings
from remapkit.proofs.preferred import PreferredReading
from remapkit.proofs.product import find_pairs, splits
from remapkit.proofs.single_map import SingleMap
from remapkit.proofs.tagged import TaggedNfa
from remapkit.proofs.transducer import Transducer
from remapkit.rulefile.read import read_text

PIECES = ["a", "b", "a*", "b*", "a?", "[ab]", "[ab]*", "(?:ab)*", "a{1,2}", "(?:a|ab)"]
UNARY = ["a*", "a", "a?", "a+", "b", "b?", "a{1,2}", "[ab]", "(?:aa)*", "b*"]
KEYS = ["".join(word) for length in range(7) for word in itertools.product("ab", repeat=length)]


def make(pieces: list[str], target: str, more: str = "") -> tuple[KeyMap, ProofContext]:
    pattern = "".join(f"(?P<c{number}>{piece})" for number, piece in enumerate(pieces))
    rule = f"  - {{id: r, match: '{pattern}', to: '{target}'{more}}}\n"
    (key_map,) = key_maps(compile_rules(read_text(f"remapkit: 1\nname: t\nrules:\n{rule}")))
    return key_map, ProofContext.for_key_maps([key_map], (), Budget(10_000_000))


def build_net(cases: tuple[Case, ...], context: ProofContext, *, source: bool) -> TaggedNfa:
    net = TaggedNfa(context.letters)
    (net.add_sources if source else net.add_targets)(0, cases, context)
    return net


def find_targets(key_map: KeyMap) -> dict[str, set[str]]:
    """Return all targets of every key, by all of its readings."""
    names = [part.name for part in key_map.pattern.parts]
    return {
        key: {str(key_map.target(key, dict(zip(names, each, strict=True)))) for each in found}  # type: ignore[arg-type]
        for key in KEYS
        if (found := readings(key_map.pattern, key))
    }


linear = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).flatmap(
    lambda pieces: st.tuples(
        st.just(pieces),
        st.permutations([f"{{c{number}}}" for number in range(len(pieces))]),
        st.lists(st.sampled_from(["", "a", "b", "ab"]), min_size=len(pieces) + 1, max_size=len(pieces) + 1),
    )
)


@settings(max_examples=300, deadline=None)
@given(linear)
def test_with_one_reading_a_map_is_injective_iff_its_tagged_targets_are_unambiguous(
    given_: tuple[list[str], list[str], list[str]],
) -> None:
    pieces, captures, texts = given_
    target = "k" + texts[0] + "".join(capture + text for capture, text in zip(captures, texts[1:], strict=True))
    key_map, context = make(pieces, target)
    cases = build_cases(key_map, context)
    assume(not splits(build_net(cases, context, source=True), 0, context.budget))
    targets = find_targets(key_map)
    assert all(len(each) == 1 for each in targets.values()), "a key has two readings, and the tags do not say so"
    ambiguous = splits(build_net(cases, context, source=False), 0, context.budget)
    shared = len(set.union(set(), *targets.values())) < len(targets)
    # Short keys may not show what long ones do, so only one direction can be told from them alone.
    assert not shared or ambiguous
    if ambiguous:
        (found,) = SingleMap(key_map, context).find_collisions()
        one, other = (key_map.reader(key) for key in found.keys)
        assert one is not None and other is not None and found.keys[0] != found.keys[1]
        assert key_map.target(found.keys[0], one) == key_map.target(found.keys[1], other)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), min_size=2, max_size=3), st.lists(st.sampled_from(["", "a", "b"]), min_size=4)
)
def test_readings_in_order_have_one_target_iff_the_transducer_is_a_function(
    pieces: list[str], texts: list[str]
) -> None:
    target = "k" + "".join(f"{{c{number}}}{texts[number]}" for number in range(len(pieces)))
    key_map, context = make(pieces, target)
    cases = build_cases(key_map, context)
    conflict = Transducer(build_net(cases, context, source=True), 0, context.budget).find_conflict()
    targets = find_targets(key_map)
    wrong = [key for key, found in targets.items() if len(found) > 1]
    if conflict is None:
        assert wrong == []
    else:
        assert conflict.written[0] != conflict.written[1]
        assert len(conflict.text) == min(map(len, wrong), default=len(conflict.text))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4))
def test_of_all_readings_the_preferred_one_is_the_matchers(pieces: list[str]) -> None:
    """`re` takes the first reading that its search finds; every key that it matches has exactly one case with it."""
    key_map, context = make(pieces, "k", f", forget: [{', '.join(f'c{number}' for number in range(len(pieces)))}]")
    pattern = "".join(f"({piece})" for piece in pieces)
    reading = PreferredReading(key_map.pattern, context.letters, context.budget)
    cases = build_cases(key_map, context, reading=reading)
    for key in KEYS:
        found = re.fullmatch(pattern, key)
        taken = [
            each for each in readings(key_map.pattern, key) for case in cases if has_reading(case, each, context)
        ]
        assert taken == ([] if found is None else [found.groups()]), key


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(UNARY), min_size=2, max_size=4), st.data())
def test_readings_that_commute_have_one_target(pieces: list[str], data: st.DataObject) -> None:
    captures = data.draw(st.permutations([f"{{c{number}}}" for number in range(len(pieces))]))
    used = captures[: data.draw(st.integers(1, len(captures)))]
    texts = data.draw(st.lists(st.sampled_from(["", "a", "b"]), min_size=len(used) + 1, max_size=len(used) + 1))
    target = "k" + texts[0] + "".join(capture + text for capture, text in zip(used, texts[1:], strict=True))
    unused = [capture[1:-1] for capture in captures if capture not in used]
    key_map, context = make(pieces, target, f", forget: [{', '.join(unused)}]" if unused else "")
    net = build_net(build_cases(key_map, context), context, source=True)
    graph = find_pairs(net, 0, context.budget)
    event(shown := f"commutes: {commutes(net, graph, context.budget)}")
    if shown == "commutes: True":
        assert all(len(found) == 1 for found in find_targets(key_map).values())


@pytest.mark.parametrize(
    ("pieces", "target"), [(["a+", "(?:aa)*", "a+", "a"], "k{c3}{c0}a"), (["a+", "(?:aa)*", "a+", "a+"], "k{c0}")]
)
def test_readings_of_one_length_on_one_way_and_two_on_another_do_not_commute(pieces: list[str], target: str) -> None:
    unused = [f"c{number}" for number in range(len(pieces)) if f"{{c{number}}}" not in target]
    key_map, context = make(pieces, target, f", forget: [{', '.join(unused)}]")
    net = build_net(build_cases(key_map, context), context, source=True)
    assert not commutes(net, find_pairs(net, 0, context.budget), context.budget)
    assert any(len(found) > 1 for found in find_targets(key_map).values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(PIECES[2:]), min_size=2, max_size=3))
def test_merging_changes_neither_keys_nor_targets(pieces: list[str]) -> None:
    key_map, context = make(pieces, "".join(f"{{c{number}}}" for number in range(len(pieces))) + "k")
    (case,) = build_cases(key_map, context)
    merged = merge_slots(case, context)
    assert [slot.word for slot in merged.slots] == [None]
    (whole,) = merged.slots
    for key in KEYS:
        assert reads(read_slot(whole, context), key, context.letters) == bool(readings(key_map.pattern, key))
    assert not splits(build_net((merged,), context, source=True), 0, context.budget)


@pytest.mark.parametrize("leaf", [["ab"], ["a", "ba"], ["b", "bb", "aab"]])
@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.sampled_from([*PIECES, "[ab.]*"]), min_size=1, max_size=2))
def test_no_reading_belongs_to_two_cases_of_a_guard(leaf: list[str], pieces: list[str]) -> None:
    pieces = [*pieces, "[ab.]*"]
    target = "".join(f"{{c{number}}}k" for number in range(len(pieces)))
    key_map, context = make(pieces, target, f", leaf: {leaf}")
    cases = build_cases(key_map, context)
    for key in KEYS:
        for reading in readings(key_map.pattern, key):
            owners = [case for case in cases if has_reading(case, reading, context)]
            assert len(owners) == 1, (key, reading)


def has_reading(case: Case, reading: tuple[str, ...], context: ProofContext) -> bool:
    return all(
        reads(read_slot(slot, context), text, context.letters) for slot, text in zip(case.slots, reading, strict=True)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3), st.integers(3, 40))
def test_two_letters_of_a_class_are_enough(pieces: list[str], size: int) -> None:
    """A class of two characters gives the same answers as one of forty."""
    verdicts = []
    for last in (1, size):
        letters = f"\u4e00-{chr(0x4E00 + last)}"
        classes = [piece.replace("a", f"[{letters}]").replace("[[", "[").replace("]b]", "b]") for piece in pieces]
        key_map, context = make(classes, "k" + "".join(f"{{c{number}}}" for number in reversed(range(len(pieces)))))
        single = SingleMap(key_map, context)
        several = splits(build_net(single.cases, context, source=True), 0, context.budget)
        found = list(single.find_collisions()) if not several else []
        verdicts.append((several, [list(map(len, each.keys)) for each in found]))
    assert verdicts[0] == verdicts[1]


def test_the_pieces_of_the_properties_are_what_they_seem() -> None:
    """`readings` is the oracle above; here it is held against `re`."""
    for piece in PIECES:
        key_map, _ = make([piece], "k{c0}")
        text = unparse(key_map.pattern.parts[0].node)
        for key in KEYS:
            assert (
                bool(readings(key_map.pattern, key))
                == bool(re.fullmatch(text, key))
                == bool(re.fullmatch(piece, key))
            )
