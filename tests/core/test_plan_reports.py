"""What a plan says beside its moves: each fault once, counted by what it is about, and nothing that is none."""

from __future__ import annotations

import pytest

from remapkit.diagnostics.wording import SHOWN
from tests.core.plan_kit import SMALL, Header, codes, planned, targets, warned

PACKED: tuple[str, list[int]] = ("F4", [2, 4])


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("drop: [a, b]", ["RK368"]),
        ("rules: [{id: r, path: x, to: y}]\nunmatched: drop", ["RK368"]),
        ("rules: [{id: r, path: x, to: y}]", ["RK301"]),
        ("drop: [a, '{all:**}']", ["RK302"]),
    ],
)
def test_a_checkpoint_of_which_nothing_is_left_is_explained_once(body: str, wanted: list[str]) -> None:
    assert codes(planned(body, {"a": SMALL, "b": SMALL}))[:2] == wanted


def test_of_an_empty_checkpoint_only_that_is_said() -> None:
    plan = planned("rules: [{id: r, path: a, to: b}]", {})
    assert (codes(plan), warned(plan)) == (["RK300"], [])


def test_rules_that_used_nothing_are_reported_where_nothing_is_moved() -> None:
    plan = planned("rules: [{id: r, path: a, to: b}]\ndrop: [c]", {"c": SMALL})
    assert (codes(plan), warned(plan)) == (["RK368"], ["RK304"])


def test_elements_below_a_byte_are_renamed_but_not_computed() -> None:
    assert planned("rules: [{id: r, path: a, to: b}]", {"a": PACKED}).ok
    plan = planned("rules: [{id: r, path: 'a.{i:int}', copy: ['b.{i}', 'c.{i}']}]", {"a.0": PACKED})
    assert (codes(plan), targets(plan)) == ([], ["b.0", "c.0"])


def test_only_what_is_renamed_keeps_a_tie() -> None:
    header: Header = {"o.a": SMALL, "o.b": SMALL, "o.c": SMALL}
    tied = (("o.a", "o.b", "o.c"),)
    plan = planned("rules: [{id: r, path: 'o.{k:a|b}', to: 'n.{k}'}]\nkeep: [o.c]", header, tied=tied)
    assert plan.tied == (("n.a", "n.b", "o.c"),)
    body = "rules: [{id: r, path: o.a, ops: [transpose], to: n.a}]\nkeep: ['o.{x}']"
    plan = planned(body.replace("'o.{x}'", "o.b, o.c"), header, tied=tied)
    assert plan.tied == (("o.b", "o.c"),)
    assert planned("keep: [o.a]\ndrop: [o.b, o.c]", header, tied=tied).tied == ()


def test_moves_are_in_the_order_of_the_header_and_additions_at_its_end() -> None:
    body = (
        "add: [{to: z, fill: zeros, shape: [1], dtype: F32}]\nrules:\n"
        "  - {id: t, path: b, ops: [transpose], to: b2}\n"
        "  - {id: s, path: d, split: {dim: 0, sizes: equal, into: [d1, d2]}}\nkeep: [a, c, e]"
    )
    plan = planned(body, dict.fromkeys("abcde", SMALL))
    assert targets(plan) == ["a", "b2", "c", "d1", "d2", "e", "z"]


# ------------------------------------------------------------------------------------------------ problems


@pytest.mark.parametrize("name", ["__metadata__", "a\nb"])
def test_a_target_that_no_file_can_hold(name: str) -> None:
    plan = planned("unmatched: keep", {name: SMALL, "a": SMALL})
    assert codes(plan) == ["RK306"] and plan.problems[0].values["targets"] == [name]


@pytest.mark.parametrize(
    ("keys", "named"),
    [(("module.a.x", "module.a.y"), True), (("module.a.x", "b.y"), True), (("module.a.x", "module.b.y"), False)],
)
def test_a_root_is_named_only_if_most_keys_under_it_would_match(keys: tuple[str, ...], named: bool) -> None:
    plan = planned("rules: [{id: r, path: 'a.{k}', to: 'b.{k}'}]", dict.fromkeys(keys, SMALL))
    assert codes(plan) == ["RK301"]
    assert ("--root module" in " ".join(plan.problems[0].help)) == named


@pytest.mark.parametrize("groups", [1, SHOWN, SHOWN + 1])
def test_a_collision_counts_sources_and_targets_and_shows_some(groups: int) -> None:
    body = "rules: [{id: r, path: 'x.{n:int}.{k:a|b|c}', to: 'y.{n}', forget: [k]}]"
    plan = planned(body, {f"x.{n}.{k}": SMALL for n in range(groups) for k in "abc"})
    (problem,) = plan.problems
    noun = "target key" if groups == 1 else "target keys"
    assert problem.title.startswith(f"{3 * groups} source keys map to {groups} {noun}")
    assert len(problem.notes) == min(groups, SHOWN) + (groups > SHOWN)
    assert any("more" in note.splitlines()[-1] for note in problem.notes) == (groups > SHOWN)


def test_a_rule_of_several_sources_is_unused_once() -> None:
    body = "rules: [{id: r, concat: {dim: 0, from: ['a.{i:int}', 'b.{i:int}']}, to: 'c.{i}'}]\nkeep: [z]"
    assert warned(planned(body, {"z": SMALL})) == ["RK304"]


def test_unused_entries_are_those_of_tables_in_use() -> None:
    body = (
        "tables:\n  used: {q: query, k: key}\n  other: {q: queue, v: value}\nrules:\n"
        "  - {id: a, path: 'l.{s:used}', to: 'l.{s|used}'}\n"
        "  - {id: b, path: 'm.{s:other}', to: 'm.{s|other}'}\n"
    )

    def unused(*keys: str) -> list[tuple[str, str]]:
        plan = planned(body, dict.fromkeys(keys, SMALL))
        return [(each.values["table"], each.values["key"]) for each in plan.warnings if each.code == "RK305"]

    assert unused("l.q") == [("used", "k")]
    assert unused("l.q", "m.v") == [("used", "k"), ("other", "q")]
    assert unused("l.k", "l.q", "m.q") == [("other", "v")]


def test_many_unused_rules_and_entries_are_five_and_a_number() -> None:
    rules = "".join(f"  - {{id: r{n}, path: 'x{n}', to: 'y{n}'}}\n" for n in range(40))
    entries = ", ".join(f"k{n}: v{n}" for n in range(40))
    body = f"tables: {{t: {{{entries}}}}}\nrules:\n{rules}  - {{id: u, path: 'u.{{s:t}}', to: 'u.{{s|t}}'}}\n"
    warnings = planned(body, {"u.k0": SMALL}).warnings
    named = [each for each in warnings if each.labels]
    assert [each.values.get("rule", each.values.get("key")) for each in named] == [
        *(f"r{n}" for n in range(5)),
        *(f"k{n}" for n in range(1, 6)),
    ]
    assert [each.title for each in warnings if not each.labels] == [
        "35 more rules matched no key",
        "no key uses 34 more entries of the tables",
    ]
    assert warnings[5].values["rules"] == [f"r{n}" for n in range(5, 40)]
    assert planned(body, {"u.k0": SMALL, **{f"x{n}": SMALL for n in range(5, 40)}}).warnings[4].values == {
        "rule": "r4"
    }
