"""Plans against an oracle that tries each rule alone, and the peers' mistakes as a table."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.api.ruleset import Plan, RuleSet, compile_rules
from remapkit.plans.make import make_plan
from remapkit.rulefile.read import read_text
from remapkit.tensors.spec import StateDictSpec, TensorSpec

SPEC = TensorSpec("F32", (2, 2))


def rules_of(*rules: tuple[str, str], unmatched: str = "error", extra: str = "") -> RuleSet:
    body = "".join(f"  - {{id: r{i}, match: '{match}', to: '{to}'}}\n" for i, (match, to) in enumerate(rules))
    text = f"remapkit: 1\nname: t\nunmatched: {unmatched}\nrules:\n{body or '  []'}\n{extra}"
    return compile_rules(read_text(text))


def plan_of(rules: RuleSet, *fqns: str, tied: tuple[tuple[str, ...], ...] = ()) -> Plan:
    return make_plan(rules, StateDictSpec(dict.fromkeys(fqns, SPEC), tied=tied, name="a.pth"))


def mapping(plan: Plan) -> dict[str, str]:
    return {move.sources[0]: move.target for move in plan.moves}


def codes(plan: Plan) -> list[str]:
    return [problem.code for problem in plan.problems]


# Patterns over a tiny alphabet, so that random keys hit, overlap and collide often.
PARTS = ["a", "b", "[ab]", "a?", "(?:a|ab)", r"\d", "a*"]
patterns = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("".join)


@st.composite
def simple_rules(draw: st.DrawFn) -> tuple[str, str]:
    prefix = draw(st.sampled_from(["", "x.", "y."]))
    template = draw(st.sampled_from(["{k}", "x.{k}", "t.{k}", "{k}.t"]))
    return f"{re.escape(prefix)}(?P<k>{draw(patterns)})", template


keys = st.lists(st.sampled_from(["a", "b", "x", "y", ".", "1", "\n", "٣"]), min_size=1, max_size=5).map("".join)


def oracle(rules: list[tuple[str, str]], fqns: list[str]) -> tuple[dict[str, str], set[str], dict[str, set[str]]]:
    """What `re` says of each rule alone: the mapping, the ambiguous keys, the collisions."""
    targets: dict[str, list[str]] = {}
    for fqn in fqns:
        found = [(re.compile(match, re.ASCII).fullmatch(fqn), to) for match, to in rules]
        targets[fqn] = [to.replace("{k}", hit["k"]) for hit, to in found if hit]
    sure = {fqn: hits[0] for fqn, hits in targets.items() if len(hits) == 1}
    by_target: defaultdict[str, set[str]] = defaultdict(set)
    for fqn, target in sure.items():
        by_target[target].add(fqn)
    ambiguous = {fqn for fqn, hits in targets.items() if len(hits) > 1}
    return sure, ambiguous, {target: found for target, found in by_target.items() if len(found) > 1}


@settings(max_examples=300, deadline=None)
@given(st.lists(simple_rules(), min_size=1, max_size=4), st.lists(keys, min_size=1, max_size=12, unique=True))
def test_the_plan_is_what_each_rule_alone_says(rules: list[tuple[str, str]], fqns: list[str]) -> None:
    plan = plan_of(rules_of(*rules), *fqns)
    sure, ambiguous, collisions = oracle(rules, fqns)
    values = defaultdict(list)
    for problem in plan.problems:
        values[problem.code].append(problem.values)
    assert mapping(plan) == sure
    assert {key for each in values["RK302"] for key in each["keys"]} == ambiguous
    found = {target: set(sources) for each in values["RK303"] for target, sources in each["collisions"].items()}
    assert found == collisions
    unmatched = {key for each in values["RK301"] for key in each["unmatched"]}
    assert unmatched == set(fqns) - set(sure) - ambiguous
    assert plan.ok == (not unmatched and not ambiguous and not collisions)


@settings(max_examples=100, deadline=None)
@given(st.lists(simple_rules(), min_size=2, max_size=4), st.lists(keys, max_size=8, unique=True), st.randoms())
def test_the_order_of_rules_never_matters(rules: list[tuple[str, str]], fqns: list[str], random: object) -> None:
    shuffled = list(rules)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = plan_of(rules_of(*rules), *fqns), plan_of(rules_of(*shuffled), *fqns)
    assert mapping(one) == mapping(other)
    assert sorted(codes(one)) == sorted(codes(other)) or not fqns


def test_a_planted_first_wins_would_be_seen() -> None:
    """The oracle's ambiguity is not empty by accident: first-wins gives another answer on this very input."""
    _, ambiguous, _ = oracle([("(?P<k>[ab])", "x.{k}"), ("(?P<k>a)", "y.{k}")], ["a"])
    assert ambiguous == {"a"}
    assert codes(plan_of(rules_of(("(?P<k>[ab])", "x.{k}"), ("(?P<k>a)", "y.{k}")), "a")) == ["RK302"]


def test_a_swap_is_two_plain_rules() -> None:
    rules = rules_of((r"(?P<p>.*)\.q", "{p}.k"), (r"(?P<p>.*)\.k", "{p}.q"))
    assert mapping(plan_of(rules, "l.q", "l.k")) == {"l.q": "l.k", "l.k": "l.q"}


@pytest.mark.parametrize(
    ("match", "to", "key", "target"),
    [
        # the first occurrence of the text is replaced, not the match
        (r"attn\.norm\.norm\.(?P<leaf>\w+)", "attn.norm.ln.{leaf}", "attn.norm.norm.weight", "attn.norm.ln.weight"),
        # the empty match at the end is substituted too
        (r"(?P<all>.*)", "model.{all}", "layers.0.k.weight", "model.layers.0.k.weight"),
        # an unanchored rule fires inside a longer name
        (r"layer\.(?P<n>\d+)\.weight", "block.{n}.weight", "sublayer.0.weight", None),
        # two groups in one pattern leave a literal \2 behind
        (r"a\.(?P<x>\d)\.(?P<y>\w+)", "{y}.{x}", "a.1.w", "w.1"),
        # layer number and leaf change places
        (
            r"decoder\.layers\.(?P<n>\d+)\.mixer\.(?P<rest>.+)",
            "d.{n}.m.{rest}",
            "decoder.layers.3.mixer.in.w",
            "d.3.m.in.w",
        ),
    ],
)
def test_mistakes_others_make(match: str, to: str, key: str, target: str | None) -> None:
    plan = plan_of(rules_of((match, to)), key)
    assert mapping(plan) == ({key: target} if target else {})
    assert plan.ok == (target is not None)


def test_arithmetic_adds_numbers_not_digits() -> None:
    text = "remapkit: 1\nname: t\nrules:\n  - {id: r, path: 'l.{n:0..3}.{m:0..3}', to: 'l.{n*4+m}'}\n"
    assert mapping(plan_of(compile_rules(read_text(text)), "l.1.2")) == {"l.1.2": "l.6"}


def test_a_chain_of_names_moves_once() -> None:
    """a -> b and b -> c at once: a becomes b, never c."""
    assert mapping(plan_of(rules_of(("a", "b"), ("b", "c")), "a", "b")) == {"a": "b", "b": "c"}


def test_collisions_name_both_sources_the_target_and_both_rules() -> None:
    plan = plan_of(rules_of(("a", "t"), ("b", "t")), "a", "b")
    text = str(plan.problems[0])
    assert codes(plan) == ["RK303"]
    assert all(
        word in text for word in ("a  (by r0)", "b  (by r1)", "both become t", "2 source keys map to 1 target")
    )


def test_a_renamed_key_onto_a_kept_one_is_a_collision() -> None:
    plan = plan_of(rules_of(("a", "b"), unmatched="keep"), "a", "b")
    assert codes(plan) == ["RK303"]


@pytest.mark.parametrize(("unmatched", "kept", "dropped"), [("keep", ["z"], []), ("drop", [], ["z"])])
def test_unmatched_keys_go_where_the_file_says(unmatched: str, kept: list[str], dropped: list[str]) -> None:
    plan = plan_of(rules_of(("a", "b"), unmatched=unmatched), "a", "z")
    assert [move.target for move in plan.moves if move.rule.id == "unmatched"] == kept
    assert [gone.fqn for gone in plan.dropped] == dropped


def test_another_layout_is_said_once_and_short() -> None:
    plan = plan_of(rules_of((r"enc\.(?P<k>\w+)", "e.{k}")), *(f"model.layers.{i}.w" for i in range(300)))
    assert codes(plan) == ["RK301"]
    assert "none of 300 keys" in plan.problems[0].title
    assert len(str(plan.problems[0]).splitlines()) < 15


def test_a_wrapper_prefix_is_named() -> None:
    plan = plan_of(rules_of((r"enc\.(?P<k>\w+)", "e.{k}")), "module.enc.a", "module.enc.b")
    assert "all 2 keys match under root 'module': root='module'" in str(plan.problems[0])


def test_rules_and_table_entries_that_nothing_used_are_reported() -> None:
    text = (
        "remapkit: 1\nname: t\ntables:\n  slot: {q: query, k: key}\nrules:\n"
        "  - {id: used, path: 'l.{s:slot}', to: 'l.{s|slot}'}\n"
        "  - {id: unused, path: 'z.{n}', to: 'z.{n}'}\n"
    )
    plan = plan_of(compile_rules(read_text(text)), "l.q")
    assert [(warning.code, warning.values) for warning in plan.warnings] == [
        ("RK304", {"rule": "unused"}),
        ("RK305", {"table": "slot", "key": "k"}),
    ]


def test_tied_sources_are_tied_targets() -> None:
    plan = plan_of(rules_of((r"old\.(?P<k>\w+)", "new.{k}")), "old.a", "old.b", "old.c", tied=(("old.a", "old.c"),))
    assert plan.tied == (("new.a", "new.c"),)


def test_an_empty_checkpoint_is_refused() -> None:
    assert codes(plan_of(rules_of(("a", "b")))) == ["RK300"]
