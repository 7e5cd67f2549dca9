"""The matcher of whole sets beside each rule alone: the same rules, the same captures, the same targets."""

from __future__ import annotations

import itertools
import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matcher_kit import MUTATIONS, Twin, compiled, keys_of, mutated, near, paths, twins

import remapkit
from remapkit.api.ruleset import RuleSet
from remapkit.compute import rename as renaming
from remapkit.diagnostics.errors import FailedCheck
from remapkit.patterns import combine as factor
from remapkit.patterns import matcher
from remapkit.patterns.tree import count_positions

KEYS = json.loads((Path(__file__).parent.parent / "data" / "checkpoint_keys.json").read_text(encoding="utf-8"))


def same_as_alone(rules: RuleSet, keys: Sequence[str]) -> None:
    """Engine equivalence: the set at once, each rule by itself, and the tight loop over many keys."""
    for key in keys:
        together = rules.match(key)
        alone = tuple(match for rule in rules.everything if (match := rule.match(key)) is not None)
        assert [(each.rule.id, dict(each.captures), each.target) for each in together] == [
            (each.rule.id, dict(each.captures), each.target) for each in alone
        ], key
        expected = [alone[0].target] if len(alone) == 1 else None
        assert rules.renamer.rename_keys([key]) == expected, key
        assert rules.renamer.rename_keys([key], "keep") == ([key] if not alone else expected), key


@settings(max_examples=500)
@given(st.data(), twins)
def test_every_rule_that_matches_and_no_other(data: st.DataObject, picked: list[Twin]) -> None:
    rules = compiled(picked)
    keys = data.draw(st.lists(near(picked), min_size=1, max_size=12))
    for key in keys:
        expected = [(number, target) for number, twin in enumerate(picked) if (target := twin.alone(key)) is not None]
        assert [(int(each.rule.id[1:]), each.target) for each in rules.match(key)] == expected, key
    same_as_alone(rules, keys)


@settings(max_examples=150)
@given(st.data(), paths() | paths())
def test_the_keys_of_a_rule_are_read_and_most_mutants_of_them_are_not(data: st.DataObject, twin: Twin) -> None:
    """Keys come from the rule itself: random segments match nothing, and would test nothing."""
    rules = compiled([twin])
    key = data.draw(keys_of(twin))
    assert twin.alone(key) is None or [each.target for each in rules.match(key)] == [twin.alone(key)]
    for how in MUTATIONS:
        other = mutated(key, how, data.draw(st.integers(0, 30)), data.draw(st.integers(0, 30)))
        assert [each.target for each in rules.match(other)] == [t for t in [twin.alone(other)] if t is not None]


@settings(max_examples=200)
@given(st.data(), st.lists(paths(), min_size=2, max_size=6))
def test_the_order_of_rules_does_not_matter(data: st.DataObject, picked: list[Twin]) -> None:
    shuffled = data.draw(st.permutations(range(len(picked))))
    here, there = compiled(picked), compiled([picked[number] for number in shuffled])
    for key in data.draw(st.lists(near(picked), min_size=1, max_size=8)):
        found = {(shuffled[int(each.rule.id[1:])], each.target) for each in there.match(key)}
        assert found == {(int(each.rule.id[1:]), each.target) for each in here.match(key)}


@settings(max_examples=200)
@given(st.data(), twins, st.sampled_from(["error", "keep", "drop"]))
def test_a_state_dict_is_renamed_as_its_plan_says(data: st.DataObject, picked: list[Twin], unmatched: str) -> None:
    rules = compiled(picked, unmatched=unmatched)
    state = {key: object() for key in data.draw(st.lists(near(picked), max_size=6))}
    found: dict[str, object] | None
    try:
        found = rules(state)
    except FailedCheck:
        found = None
    try:
        planned = renaming.remap_by_plan(rules, state)
    except FailedCheck:
        planned = None
    assert found == planned
    assert found is None or list(found) == list(planned or ())


# ------------------------------------------------------------------------------------------------ real sets


def families(names: Sequence[str]) -> list[Twin]:
    """One rule for each shape of key: its numbers left free."""
    found = {}
    for name in names:
        segments = name.split(".")
        path = ".".join(f"{{i{n}:int}}" if part.isdigit() else part for n, part in enumerate(segments))
        expression = r"\.".join(
            rf"(?P<i{n}>0|[1-9][0-9]*)" if part.isdigit() else re.escape(part) for n, part in enumerate(segments)
        )
        found[path] = Twin(
            "path", path, expression, f"new.{'.'.join(re.findall('{[^}]*', path))}".replace(":int", "}")
        )
    return list(found.values())


@pytest.mark.parametrize("name", sorted(KEYS))
def test_rules_for_the_families_of_real_checkpoints(name: str) -> None:
    picked = families(KEYS[name])
    rules = compiled([Twin(t.surface, t.text, t.expression, spread(t)) for t in picked])
    together, alone = rules.matcher.engines
    assert (len(together), alone) == (1, ())
    keys = KEYS[name]
    for key in keys:
        (match,) = rules.match(key)
        assert re.fullmatch(picked[int(match.rule.id[1:])].expression, key)
    step = max(1, len(keys) // 40)
    same_as_alone(rules, [mutated(key, how, 5 * n, 3 * n) for n, key in enumerate(keys[::step]) for how in MUTATIONS])


def spread(twin: Twin) -> str:
    """A target that uses every capture."""
    return ".".join(["t", *(f"{{{name}}}" for name in re.findall(r"\?P<(\w+)>", twin.expression))])


def test_all_of_them_in_one_set() -> None:
    """Over a thousand rules, many of them for the same keys: three groups of rules, and the right answers."""
    picked = [twin for name in sorted(KEYS) for twin in families(KEYS[name])]
    rules = compiled([Twin(t.surface, t.text, t.expression, spread(t)) for t in picked])
    together, alone = rules.matcher.engines
    assert len(together) <= 6 and not alone
    expressions = [re.compile(twin.expression) for twin in picked]  # more than `re` keeps
    for names in KEYS.values():
        for key in names[:: max(1, len(names) // 6)]:
            assert len(rules.match(key)) == sum(each.fullmatch(key) is not None for each in expressions)


@pytest.mark.parametrize("name", ["wan22_pth", "wan22_diffusers"])
def test_the_packs(name: str) -> None:
    rules = remapkit.load(name)
    together, alone = rules.matcher.engines
    assert (len(together), alone) == (1, ())
    keys = [test.source.value for test in rules.tests] + KEYS["wan22_vae_upstream"] + KEYS["wan22_vae_diffusers"]
    assert any(rules.match(key) for key in keys) and not all(rules.match(key) for key in keys)
    same_as_alone(rules, keys)
    same_as_alone(rules, [mutated(key, how, n, 2 * n) for n, key in enumerate(keys[::9]) for how in MUTATIONS])


# ------------------------------------------------------------------------------------------------ single cases


def paths_of(*rows: tuple[str, str] | tuple[str, str, tuple[str, ...]]) -> RuleSet:
    return compiled([Twin("path", row[0], "", row[1], row[2] if len(row) > 2 else None) for row in rows])  # type: ignore[misc]


def matches_of(*rows: tuple[str, str]) -> RuleSet:
    return compiled([Twin("match", text, text, to) for text, to in rows])


def test_two_rules_for_one_key_are_both_found() -> None:
    rules = paths_of(("a.{x:int}", "t.{x}"), ("a.{y}", "u.{y}"), ("{all:**}", "v.{all}"))
    assert [each.target for each in rules.match("a.1")] == ["t.1", "u.1", "v.a.1"]
    assert [each.target for each in rules.match("a.b")] == ["u.b", "v.a.b"]
    same_as_alone(rules, ["a.1", "a.b", "a", "a.1.2", "a.01", ""])


def test_the_same_pattern_twice() -> None:
    rules = paths_of(("a.{x:int}", "t.{x}"), ("a.{y:int}", "u.{y}"))
    assert [each.target for each in rules.match("a.7")] == ["t.7", "u.7"]


def test_one_rule_ends_where_another_goes_on() -> None:
    rules = matches_of(("a(?P<x>b*)", "t{x}"), ("a", "u"), ("abc", "v"))
    assert [[each.target for each in rules.match(key)] for key in ("a", "ab", "abc", "")] == [
        ["t", "u"],
        ["tb"],
        ["v"],
        [],
    ]
    same_as_alone(rules, ["a", "ab", "abc", "", "abb", "b"])


def test_captures_of_different_languages_are_not_one() -> None:
    rules = paths_of(("l.{n:int}.q", "t.{n}"), ("l.{n:a|b}.q", "u.{n}"), ("l.{n:a|b}.k", "v.{n}"))
    same_as_alone(rules, [f"l.{n}.{end}" for n in ("0", "12", "a", "b", "c") for end in "qkx"])
    assert rules.match("l.12.k") == ()


def test_a_capture_is_not_shared_with_the_same_text_uncaptured() -> None:
    rules = matches_of((r"l\.(?P<n>\d+)\.q", "t.{n}"), (r"l\.\d+\.k", "u"), (r"l\.(?P<n>\d+)\.(?P<m>\d+)", "{m}.{n}"))
    same_as_alone(rules, ["l.1.q", "l.1.k", "l.12.345", "l.1", "l.q"])
    assert rules.match("l.12.345")[0].captures == {"n": "12", "m": "345"}


def test_a_shared_capture_marks_no_end() -> None:
    rules = paths_of(("l.{n:int}", "t.{n}"), ("l.{n:int}.q", "u.{n}"), ("l.{n:int}.k", "v.{n}"), ("{x:a|b}", "w.{x}"))
    same_as_alone(rules, ["l.1", "l.1.q", "l.22.k", "a", "b", "l.1.x"])


def test_a_rule_does_not_fire_within_a_longer_key() -> None:
    rules = paths_of(("layer.{n:int}.w", "t.{n}"), ("layer.{n:int}.b", "u.{n}"))
    same_as_alone(rules, ["sublayer.0.w", "layer.0.weight", "layer.0.w\n", "layer.0.w", "x.layer.0.w", "layer.0.b"])


def test_a_dot_is_a_dot() -> None:
    rules = matches_of((r"a\.b", "t"), (r"a\+b", "u"), (r"a\[b", "v"), (r"a\|b", "w"), (r"a\\b", "x"))
    same_as_alone(rules, ["a.b", "a+b", "axb", "aab", "a", "b", "a[b", "a|b", "a\\b"])


def test_leaves_are_looked_at() -> None:
    rules = paths_of(("a.{x}", "t.{x}", ("w",)), ("a.{x}", "u.{x}", ("b", "g")), ("b.{x}", "v.{x}", ("w",)))
    same_as_alone(rules, ["a.w", "a.b", "a.g", "a.x", "b.w", "b.b"])
    apart = paths_of(("a.{x}", "t.{x}", ("w",)), ("b.{x}", "v.{x}", ("b", "w")))
    assert len(apart.matcher.engines[0]) == 1
    same_as_alone(apart, ["a.w", "a.b", "a.xw", "b.w", "b.b", "b.w.w"])


def test_tables_are_looked_up() -> None:
    rules = compiled(
        [Twin("path", "a.{x:t}", "", "%s.{x|t}"), Twin("path", "b.{x:t}.{n:0..3}", "", "v.{x|t}.{n+1}%%")],
        tables={"t": {"q": "query", "k": "key"}},
    )
    assert len(rules.matcher.engines[0]) == 1
    same_as_alone(rules, ["a.q", "a.k", "a.v", "b.q.0", "b.k.3", "b.k.4"])
    assert rules({"a.q": 0, "b.k.3": 1}) == {"%s.query": 0, "v.key.4%%": 1}


def test_swapped_targets() -> None:
    rules = paths_of(("l.{n:int}.q", "l.{n}.k"), ("l.{n:int}.k", "l.{n}.q"))
    assert rules({"l.0.q": 1, "l.0.k": 2}) == {"l.0.k": 1, "l.0.q": 2}


def test_percent_signs_and_braces_in_templates() -> None:
    rules = compiled([Twin("path", "a.{x}", "", "50%.%s.%{'(x)'}s.{{{x}}}"), Twin("path", "b", "", "%d{{}}")])
    assert rules.match("b")[0].target == "%d{}" and rules({"b": 0}) == {"%d{}": 0}
    assert rules.match("a.1")[0].target == "50%.%s.%(x)s.{1}" and rules({"a.1": 0}) == {"50%.%s.%(x)s.{1}": 0}


def test_rules_that_begin_with_ever_longer_keys() -> None:
    """Deeper than `re` could nest alternations: beyond some depth the rest is written out unshared."""
    rows = ((f"{'a' * n}(?P<x>[0-9])(?:b(?:c))?(?P<y>[d-f])", f"t{n}.{{x}}.{{y}}") for n in range(1, 200))
    rules = matches_of(*rows)
    together, alone = rules.matcher.engines
    assert (len(together), alone) == (1, ())
    depths = itertools.accumulate((sign == "(") - (sign == ")") for sign in together[0].engine.pattern)
    assert max(depths) <= factor.MAX_NESTING + 2
    same_as_alone(
        rules, ["a" * n + end for n in (0, 1, 39, 40, 41, 42, 120, 199, 200) for end in ("3d", "4bcf", "", "3")]
    )
    assert rules.match("a" * 120 + "4bcf")[0].captures == {"x": "4", "y": "f"}


def test_captures_of_long_tables_are_in_the_expression() -> None:
    words = [f"{n * 7919 % 99991:05d}" for n in range(600)]  # nothing for their tree to share
    rules = paths_of(*((f"l.{{n:{'|'.join(words)}}}.{end}", f"{end}.{{n}}") for end in "qk"))
    assert count_positions(rules.rules[0].pattern.captures[0].node) > factor.MAX_SIZE
    together, alone = rules.matcher.engines
    assert (len(together), alone) == (1, ())
    same_as_alone(rules, [f"l.{words[1]}.q", f"l.{words[599]}.k", "l.99999.k"])


@pytest.mark.parametrize("error", [RecursionError, OverflowError])
def test_what_cannot_be_combined_is_matched_one_at_a_time(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: matcher.SetMatcher, numbers: Sequence[int]) -> matcher.Together:
        raise error

    monkeypatch.setattr(matcher.SetMatcher, "_compile_group", refuse)
    rules = paths_of(("a.{x:int}", "t.{x}"), ("a.{y}", "u.{y}"), ("b", "c"))
    assert rules.matcher.engines == ((), (0, 1, 2))
    same_as_alone(rules, ["a.1", "a.b", "b", "c"])


def test_a_set_is_plain_data() -> None:
    rules = paths_of(("l.{n:int}.q", "l.{n}.k"), ("l.{n:int}.k", "l.{n}.q"))
    assert rules.match("l.0.q")
    again = pickle.loads(pickle.dumps(rules))
    assert again.match("l.0.q")[0].target == "l.0.k" and again({"l.1.k": 0}) == {"l.1.q": 0}


# ------------------------------------------------------------------------------------------------ which go together


def short_keys(length: int) -> list[str]:
    keys = [""]
    for key in keys:
        if len(key) < length:
            keys += [key + sign for sign in "ab."]
    return keys


SMALL = ["a", "b", r"\.", "[ab]", "a?", "b*", "(?P<x@>[ab]+)", "(?P<x@>a|ab)", "(?:a|b|ab)", r"(?P<x@>[^.]*)"]
small = st.lists(st.sampled_from(SMALL), min_size=1, max_size=4).map(
    lambda found: "".join(piece.replace("@", str(number)) for number, piece in enumerate(found))
)
EVERY_SHORT_KEY = short_keys(5)


@settings(max_examples=200)
@given(st.lists(small, min_size=2, max_size=4))
def test_no_key_is_shared_within_a_group(texts: list[str]) -> None:
    """Soundness by brute force, and that the groups are as few as they need to be: two for two that share a key."""
    patterns = [rule.pattern for rule in compiled([Twin("match", t, t, names(t)) for t in texts]).rules]
    groups = factor.group_patterns(patterns)
    assert sorted([number for group in groups.together for number in group] + list(groups.alone)) == list(
        range(len(texts))
    )
    hits = [{key for key in EVERY_SHORT_KEY if re.fullmatch(text, key)} for text in texts]
    for group in groups.together:
        for place, one in enumerate(group):
            for other in group[place + 1 :]:
                assert not hits[one] & hits[other], (texts[one], texts[other])
    if len(texts) == 2 and len(groups.together) == 2:
        assert hits[0] & hits[1], "apart without a reason"


def names(text: str) -> str:
    return "t" + "".join(f".{{{name}}}" for name in re.findall(r"\?P<(\w+)>", text))


def both_ways(texts: list[str]) -> list[factor._Shared | None]:
    patterns = [rule.pattern for rule in compiled([Twin("match", t, t, names(t)) for t in texts]).rules]
    return [
        factor._Positions(factor.build_trie(enumerate(patterns), reverse=reverse)).search(10**6)
        for reverse in (False, True)
    ]


@settings(max_examples=200)
@given(st.lists(small, min_size=1, max_size=4))
def test_forwards_and_backwards_find_the_same(texts: list[str]) -> None:
    forwards, backwards = both_ways(texts)
    assert forwards is not None and backwards is not None
    assert forwards.several_ways == backwards.several_ways
    sure = set(range(len(texts))) - forwards.several_ways
    assert {pair for pair in forwards.pairs if sure >= set(pair)} == {
        pair for pair in backwards.pairs if sure >= set(pair)
    }


def test_backwards_a_piece_is_read_backwards() -> None:
    forwards, backwards = both_ways(["(?P<x>ab|b)(?P<y>a|ca)", "(?P<x>ab)a", "bca", "(?:ab)?c", "abc", "b?abc"])
    assert forwards == backwards == factor._Shared({(0, 1), (0, 2), (3, 4), (3, 5), (4, 5)}, set())


@pytest.mark.parametrize("limit", [0, 10, 100, 1000])
def test_with_any_limit_the_answer_is_the_same(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that gives up costs time, never an answer."""
    picked = [
        ("l.{n:int}.{x}", "t.{n}.{x}"),
        ("l.{n}.w", "u.{n}"),
        ("{n:int}.l", "v.{n}"),
        ("{n}.{x}.w", "w.{n}.{x}"),
    ]
    monkeypatch.setattr(factor.group_patterns, "__defaults__", (limit,))
    rules = paths_of(*picked)
    same_as_alone(rules, ["l.1.w", "l.1.x", "l.x.w", "1.l", "x.1.w", "l.l.w", "", "1.1.w"])


def test_suffix_rules_are_told_apart_from_the_end() -> None:
    texts = [rf"(?P<p>.*)\.leaf_{n}\.(?P<x>[^.]+)" for n in range(60)]
    rules = matches_of(*((text, "{p}.t.{x}") for text in texts))
    patterns = [rule.pattern for rule in rules.rules]
    assert factor._Positions(factor.build_trie(enumerate(patterns))).search(10_000) is None
    assert factor.group_patterns(patterns, 10_000) == factor.Groups((tuple(range(60)),), ())
    same_as_alone(rules, ["a.b.leaf_7.w", "leaf_7.w", ".leaf_7.w", "a.leaf_7.leaf_8.w", "a.leaf_60.w"])


def test_what_only_a_plan_can_say_is_left_to_it() -> None:
    rules = paths_of(("a.{x}", "t.{x}"), ("b.{x}", "u.{x}"))
    outcomes = [rules.rules[0].template, "plan"]
    renamer = matcher.Renamer(rules.matcher, outcomes)  # type: ignore[arg-type]
    assert renamer.rename_keys(["a.1", "a.2"]) == ["t.1", "t.2"]
    assert renamer.rename_keys(["a.1", "b.1"]) is None
