"""Names that a file only records: keys if a rule names them, targets if the target has them, else records."""

from __future__ import annotations

import pytest

from remapkit.plans.check import make_check
from remapkit.plans.recorded import add_recorded_moves, is_specific_match
from tests.core.plan_kit import SMALL, Header, codes, compiled, header, planned, targets, warned

ALL = "rules: [{id: all, path: '{r:**}', to: 'm.{r}'}]"
HEAD: Header = {"embed.w": SMALL, "norm.w": SMALL}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("path: '{r:**}'", False),
        ("path: '{a}.{b}'", False),
        ("match: '(?P<r>.*)'", False),
        (r"match: '(?P<r>\w+\.\w+)'", False),
        ("path: '{a}.w'", True),
        ("path: 'head.{b}'", True),
        ("path: '{a:head|tail}.{b}'", True),
        ("path: '{a}.v'", False),
    ],
)
def test_a_rule_names_a_key_if_it_does_not_take_every_key_of_that_form(pattern: str, names: bool) -> None:
    captures = [name for name in "rab" if f"{{{name}" in pattern or f"<{name}>" in pattern]
    to = ".".join(["t", *(f"{{{name}}}" for name in captures)])
    (rule,) = compiled(f"rules: [{{id: x, {pattern}, to: '{to}'}}]").rules
    assert is_specific_match(rule, "head.w") == names


def test_a_record_is_added_where_the_target_has_its_name_and_the_plan_does_not() -> None:
    plan = planned(ALL, HEAD, recorded={"head.w": "embed.w", "author": "norm.w"})
    assert targets(plan) == ["m.embed.w", "m.norm.w"] and warned(plan) == ["RK420"]
    assert add_recorded_moves(plan, ()) is plan
    added = add_recorded_moves(plan, ("m.head.w",))
    assert targets(added) == ["m.embed.w", "m.norm.w", "m.head.w"]
    assert added.tied == (("m.embed.w", "m.head.w"),)
    assert set(added.recorded) == {"author"}
    (note,) = added.warnings
    assert note.code == "RK420" and note.values["recorded"] == {"author": "norm.w"}
    assert warned(add_recorded_moves(plan, ("m.head.w", "m.author"))) == []


def test_all_names_of_one_tensor_are_one_tie() -> None:
    recorded = {"head.w": "embed.w", "tail.w": "embed.w"}
    plan = add_recorded_moves(planned(ALL, HEAD, recorded=recorded), ("m.head.w", "m.tail.w"))
    assert plan.tied == (("m.embed.w", "m.head.w", "m.tail.w"),)
    tied = (("norm.w", "embed.w"),)
    plan = add_recorded_moves(planned(ALL, HEAD, recorded=recorded, tied=tied), ("m.head.w",))
    assert plan.tied == (("m.norm.w", "m.embed.w", "m.head.w"),)


def test_a_name_is_a_tensor_or_a_record() -> None:
    body = "rules: [{id: n, path: norm.w, to: head.w}]\nunmatched: keep"
    plan = planned(body, HEAD, recorded={"head.w": "embed.w"})
    assert codes(plan) == [] and targets(plan) == ["embed.w", "head.w"]
    assert plan.target.recorded == {}
    assert targets(add_recorded_moves(plan, ("head.w",))) == ["embed.w", "head.w"]


@pytest.mark.parametrize(
    ("body", "dangling"),
    [
        ("keep: [embed.w, norm.w]", False),
        ("rules: [{id: e, path: embed.w, to: e}]\nkeep: [norm.w]", True),
        ("rules: [{id: e, path: embed.w, ops: [transpose], to: embed.w}]\nkeep: [norm.w]", True),
        (ALL, False),
    ],
)
def test_a_record_whose_tensor_is_another_is_said_to_dangle(body: str, dangling: bool) -> None:
    plan = planned(body, HEAD, recorded={"head.w": "embed.w"})
    (note,) = [each for each in plan.warnings if each.code == "RK420"]
    assert ("although the output has no embed.w" in note.title) == dangling


def test_a_name_that_the_target_only_records_is_never_missing() -> None:
    target = header({"m.embed.w": SMALL, "m.norm.w": SMALL}, recorded={"m.head.w": "m.embed.w"})
    check = make_check(planned(ALL, HEAD), target)
    assert (check.ok, check.matched, len(check.target), check.satisfied_by_tie) == (True, 2, 2, {})
    check = make_check(planned(ALL, {**HEAD, "head.w": SMALL}), target)
    assert (check.ok, check.matched, len(check.target)) == (True, 3, 3)
