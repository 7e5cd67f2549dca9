"""Whole rule sets against an oracle that tries each rule alone with `re.fullmatch`, and what others get wrong."""

from __future__ import annotations

import pickle
import re
from collections import defaultdict

import pytest
from helpers import pattern, rule, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.api.ruleset import RuleSet
from remapkit.diagnostics.errors import InvalidRules
from remapkit.plans.make import make_plan
from remapkit.tensors.spec import StateDictSpec, TensorSpec

NOTHING = TensorSpec("U8", (0,))

# (path, the regular expression it stands for, template)
SHAPES = [
    (r"layers\.(?P<n>\d+)\.(?P<rest>.+)", "h.{n}.{rest}"),
    (r"layers\.(?P<n>0|[1-9]\d*)\.attn\.(?P<leaf>weight|bias)", "h.{n}.a.{leaf}"),
    (r"(?P<p>.*)\.q_proj\.(?P<leaf>\w+)", "{p}.k_proj.{leaf}"),
    (r"(?P<p>.*)\.k_proj\.(?P<leaf>\w+)", "{p}.q_proj.{leaf}"),
    (r"(?P<a>[a-z]+)\.(?P<b>\w+)", "{b}.{a}"),
    (r"norm\.(?P<leaf>weight|bias)", "layers.0.{leaf}"),
    (r"(?:enc|dec)\.norm\.weight", "norm.weight"),
    (r"emb(?P<x>_?)(?P<y>\d?)", "emb{y}{x}"),
]
shapes = st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5, unique=True)
KEYS = [st.from_regex(re.compile(match, re.ASCII), fullmatch=True) for match, _ in SHAPES]
"""The keys of each, made once: building these strategies took longer than drawing from them."""


@st.composite
def near_keys(draw: st.DrawFn) -> str:
    """A key of some rule, then mutated near it."""
    key: str = draw(KEYS[draw(st.integers(0, len(KEYS) - 1))])
    segments = key.split(".")
    at = draw(st.integers(0, len(segments) - 1))
    other = draw(st.integers(0, len(segments) - 1))
    match draw(st.integers(0, 11)):
        case 0:
            del segments[at]
        case 1:
            segments.insert(at, segments[at])
        case 2:
            segments[at], segments[other] = segments[other], segments[at]
        case 3:
            segments[at] += draw(st.sampled_from("0179"))
        case 4:
            segments[at] = "0" + segments[at]
        case 5:
            segments[-1] = draw(st.sampled_from(["weight", "bias", "gamma"]))
        case 6:
            segments[at] = draw(st.sampled_from(["٣", "٣4", "é"]))
        case 7:
            segments[at] = ""
        case 8:
            segments[-1] += "\n"
        case 9:
            segments[at] = segments[at].upper()
        case 10:
            segments = segments[: at + 1]
    return ".".join(segments)


def oracle(picked: list[tuple[str, str]], key: str) -> list[tuple[int, str]]:
    found = []
    for number, (match, to) in enumerate(picked):
        hit = re.fullmatch(match, key, re.ASCII)
        if hit is not None:
            found.append((number, to.format(**hit.groupdict())))
    return found


def compiled(picked: list[tuple[str, str]]) -> RuleSet:
    return rules(*(rule(f"r{i}", to, match=match) for i, (match, to) in enumerate(picked)))


@pytest.mark.slow
@settings(max_examples=800, deadline=None)
@given(shapes, st.lists(near_keys(), min_size=1, max_size=10, unique=True))
def test_same_mapping_same_ambiguities_same_collisions(picked: list[tuple[str, str]], keys: list[str]) -> None:
    found = compiled(picked)
    expected = {key: oracle(picked, key) for key in keys}
    for key in keys:
        assert [(int(each.rule.id[1:]), each.target) for each in found.match(key)] == expected[key]
    plan = make_plan(found, StateDictSpec(dict.fromkeys(keys, NOTHING)))
    assert {move.sources[0]: move.target for move in plan.moves} == {
        k: v[0][1] for k, v in expected.items() if len(v) == 1
    }
    by_code = defaultdict(list)
    for problem in plan.problems:
        by_code[problem.code].append(problem.values)
    assert {key for each in by_code["RK302"] for key in each["keys"]} == {
        k for k, v in expected.items() if len(v) > 1
    }
    targets = defaultdict(set)
    for key, hits in expected.items():
        if len(hits) == 1:
            targets[hits[0][1]].add(key)
    collisions = {t: set(sources) for each in by_code["RK303"] for t, sources in each["collisions"].items()}
    assert collisions == {t: sources for t, sources in targets.items() if len(sources) > 1}


@settings(max_examples=300, deadline=None)
@given(shapes, near_keys())
def test_a_rule_says_where_it_stopped_exactly_when_it_does_not_match(picked: list[tuple[str, str]], key: str) -> None:
    for (match, _), each in zip(picked, compiled(picked).rules, strict=True):
        stop = each.find_stop(key)
        assert (stop is None) == (each.match(key) is not None)
        if stop is not None:
            assert 0 <= stop.offset <= len(key) and stop.expected and stop.reason
            # What was read is the beginning of some key of the rule: brute force over continuations.
            if stop.offset < len(key):
                longer = [each.find_stop(key[: stop.offset + 1] + tail) for tail in ("", ".weight", "1.x", "x.1")]
                assert all(found is not None and found.offset <= stop.offset for found in longer), match


@pytest.mark.parametrize(
    ("key", "offset", "expected"),
    [
        ("layerz.0.w", 5, "'s.'"),
        ("layers.x.w", 7, "a digit"),
        ("layers.3.q", 9, "'attn.'"),
        ("layers.3.attn.weigh", 19, "'t'"),
        ("layers.3.attn.weights", 20, "the end of the key"),
        ("", 0, "'layers.'"),
    ],
)
def test_where_a_rule_stopped_in_words(key: str, offset: int, expected: str) -> None:
    stop = compiled([(r"layers\.(?P<n>\d+)\.attn\.(?P<leaf>weight|bias)", "{n}.{leaf}")]).rules[0].find_stop(key)
    assert stop is not None
    assert (stop.offset, stop.expected) == (offset, expected)


@pytest.mark.parametrize(
    ("match", "key", "expected"),
    [
        ("(?:ab|cd|ef|gh)", "x", "'ab' or 'cd' or 'ef' or 'gh'"),
        ("(?:ab|cd|ef|gh|ij)", "x", "'ab' or 'cd' or 'ef' or 'gh' or ..."),
        ("(?:ab|cd|ef|gh)?", "x", "'ab' or 'cd' or 'ef' or 'gh' or ..."),
        ("(?:ab|cd|ef)?", "x", "'ab' or 'cd' or 'ef' or the end of the key"),
        ("xa(?:b|c)d", "y", "'xa'"),
        ("xab?", "y", "'xa'"),
        ("xab?c", "y", "'xa'"),
        ("(?:ab)+", "", "'ab'"),
        (r"ab\.(?P<n>cd)\.x", "ay", "'b.'"),
        (r"ab\.(?P<n>cd)\.x", "ab.y", "'cd'"),
        (r"ab\.(?P<n>cd)\.x", "ab.cd", "'.x'"),
        ("a{200}", "", repr("a" * 80)),
    ],
)
def test_what_was_expected_is_a_word_that_every_key_has_there(match: str, key: str, expected: str) -> None:
    names = "".join(f".{{{name}}}" for name in re.findall(r"\?P<(\w+)>", match))
    stop = compiled([(match, "t" + names)]).rules[0].find_stop(key)
    assert stop is not None and stop.expected == expected


def test_a_wrong_leaf_is_named() -> None:
    found = rules(keep=[pattern(path="{all:**}", leaf=["weight", "bias"])])
    stop = found.keep[0].find_stop("a.b.gamma")
    assert stop is not None
    assert (stop.offset, stop.expected, stop.reason) == (
        4,
        "a leaf of weight, bias",
        "leaf 'gamma' is not one of weight, bias",
    )


def test_keep_and_drop_are_rules_with_names_of_their_own() -> None:
    found = rules(
        rule("r", "b", match="a"), keep=[pattern(path="k.{x}")], drop=[pattern(path="d.{x}"), pattern(match="a")]
    )
    assert [
        (each.rule.id, each.rule.kind, each.target) for key in ("a", "k.1", "d.1") for each in found.match(key)
    ] == [
        ("r", "rule", "b"),
        ("drop[1]", "drop", None),
        ("keep[0]", "keep", "k.1"),
        ("drop[0]", "drop", None),
    ]


def test_two_rules_with_one_id() -> None:
    with pytest.raises(InvalidRules) as caught:
        rules(rule("r", "b", match="a"), rule("r", "c", match="b"))
    assert [each.code for each in caught.value.diagnostics] == ["RK160"]


def test_table_entries_that_a_match_went_through() -> None:
    found = rules(
        rule("r", "{s|slot}.{t}", path="{s:slot}.{t:kind}"), tables={"slot": {"q": "0", "k": "1"}, "kind": {"a": "b"}}
    )
    assert found.match("q.a")[0].table_uses == (("slot", "q"), ("kind", "a"))


def test_a_rule_set_is_plain_data() -> None:
    found = rules(rule("r", "{s|slot}", path="{s:slot}"), tables={"slot": {"q": "0", "k": "1"}})
    again = pickle.loads(pickle.dumps(found))
    assert again.match("k")[0].target == "1"
    assert isinstance(hash(found), int)


# Each row is something a peer does wrong: the rules, the key, and the one right answer.
PEERS = [
    # the first occurrence of the text is replaced, not the match
    ([(r"(?P<p>attn\.norm)\.norm\.(?P<leaf>\w+)", "{p}.ln.{leaf}")], "attn.norm.norm.weight", "attn.norm.ln.weight"),
    # a literal \2 stays in the key
    ([(r"(?P<a>\w+)\.x\.(?P<b>\w+)", "{a}.y.{b}")], "q.x.w", "q.y.w"),
    # the empty match at the end is substituted too
    ([(r"(?P<all>.*)", "model.{all}")], "layers.0.k.weight", "model.layers.0.k.weight"),
    # q and k cannot be swapped without a temporary name, or the swap does nothing
    ([(r"(?P<p>.*)\.q", "{p}.k"), (r"(?P<p>.*)\.k", "{p}.q")], "l.0.q", "l.0.k"),
    ([(r"(?P<p>.*)\.q", "{p}.k"), (r"(?P<p>.*)\.k", "{p}.q")], "l.0.k", "l.0.q"),
    # a rule fires inside a longer name
    ([(r"layer\.(?P<n>\d+)\.weight", "block.{n}.weight")], "sublayer.0.weight", None),
    # a -> b -> c: the chain moves once
    ([("a", "b"), ("b", "c")], "a", "b"),
    # the reverse of an unanchored renaming
    ([(r"(?P<rest>(?:x\.)*)y", "encoder.{rest}y")], "x.x.y", "encoder.x.x.y"),
    # layer number and leaf change places
    (
        [(r"decoder\.layers\.(?P<n>\d+)\.mixer\.(?P<r>.+)", "d.{n}.m.{r}")],
        "decoder.layers.3.mixer.in.w",
        "d.3.m.in.w",
    ),
]


@pytest.mark.parametrize(("picked", "key", "target"), PEERS)
def test_what_others_get_wrong(picked: list[tuple[str, str]], key: str, target: str | None) -> None:
    found = compiled(picked).match(key)
    assert [each.target for each in found] == ([] if target is None else [target])


def test_one_and_two_are_three() -> None:
    assert rules(rule("r", "{n+nn}", path="{n:0..3}.{nn:0..3}")).match("1.2")[0].target == "3"


def test_two_rules_on_one_key_are_both_said() -> None:
    found = compiled([(r"(?P<x>\w+)", "a.{x}"), (r"(?P<x>[ab])", "b.{x}")])
    assert [each.rule.id for each in found.match("a")] == ["r0", "r1"]
