"""Groups of sources: whole ones in their order, and of every other exactly what is wrong, where it is wrong."""

from __future__ import annotations

import pytest

from tests.core.plan_kit import SMALL, codes, planned, targets

STACK = "rules: [{id: r, path: 'e.{e:int}.w', stack: {dim: 0, by: e%s}, to: x}]"
HALVES = "rules: [{id: r, concat: {dim: 0, from: ['a.{i:int}', 'b.{i:int}']}, stack: {dim: 0, by: i%s}, to: c}]"


def experts(*numbers: str | int) -> dict[str, tuple[str, list[int]]]:
    return {f"e.{number}.w": SMALL for number in numbers}


def test_sources_are_stacked_by_their_number_not_by_their_place() -> None:
    (move,) = planned(STACK % "", experts(10, 2, 0, 1, *range(3, 10))).moves
    assert move.sources == tuple(f"e.{number}.w" for number in range(11))


@pytest.mark.parametrize(
    ("count", "numbers", "code", "notes"),
    [
        ("", (0, 2), "RK340", "x: e has 0 and 2 but not 1; e.1.w is missing"),
        ("", (3,), "RK340", "x: e has 3 but not 0 to 2; e.0.w is missing"),
        ("", (0, 4), "RK340", "x: e has 0 and 4 but not 1 to 3; e.1.w is missing"),
        (", count: 3", (0,), "RK340", "x: e has 0 but not 1 to 2; e.1.w is missing"),
        (", count: 2", (0, 1, 2), "RK343", "e.2.w"),
        (", count: 1", (0, 1), "RK343", "e.1.w"),
    ],
)
def test_what_is_missing_or_beyond_is_named(count: str, numbers: tuple[int, ...], code: str, notes: str) -> None:
    plan = planned(STACK % count, experts(*numbers))
    assert (codes(plan), plan.moves) == ([code], ())
    assert plan.problems[0].notes == (notes,)


def test_of_two_sources_for_one_place_none_is_taken() -> None:
    body = r"rules: [{id: r, match: 'e\.(?P<e>\d)\.(?:w|v)', stack: {dim: 0, by: e}, to: x}]"
    plan = planned(body, {"e.0.w": SMALL, "e.0.v": SMALL, "e.1.w": SMALL})
    assert (codes(plan), plan.moves) == (["RK342"], ())
    assert plan.problems[0].notes == ("e.0.w and e.0.v",)


def test_beyond_the_count_nothing_is_missing() -> None:
    header = dict.fromkeys(("a.0", "b.0", "a.1", "b.1", "a.2"), SMALL)
    plan = planned(HALVES % ", count: 2", header)
    assert codes(plan) == ["RK343"] and plan.problems[0].notes == ("a.2",)
    del header["b.1"], header["a.2"]
    plan = planned(HALVES % ", count: 2", header)
    assert codes(plan) == ["RK340"] and plan.problems[0].notes == ("b.1 (for c)",)


def test_beyond_one_of_two_counts_nothing_is_missing() -> None:
    """`w.3.1` is not there either, but would be beyond the count as `w.3.0` is."""
    body = "rules: [{id: s, path: 'w.{a:int}.{b:int}', stack: {dim: 0, by: [a, b], count: [2, 2]}, to: x}]"
    plan = planned(body, dict.fromkeys(("w.0.0", "w.0.1", "w.3.0"), SMALL))
    missing, beyond = plan.problems
    assert (missing.code, missing.notes) == ("RK340", ("x: a has 0 and 3 but not 1; w.1.0 is missing",))
    assert (beyond.code, beyond.notes) == ("RK343", ("w.3.0",))


def test_the_bound_that_excludes_a_source_is_named() -> None:
    body = "rules: [{id: r, concat: {dim: 0, from: ['a.{i:int}', 'b.{i:0..1}']}, to: 'c.{i}'}]"
    within, without = planned(body, {"a.1": SMALL}), planned(body, {"a.7": SMALL})
    assert codes(within) == codes(without) == ["RK340"]
    assert within.problems[0].help[0].startswith("get the whole checkpoint")
    assert "i = 7, which b.{i:0..1} excludes" in without.problems[0].help[0]


def test_each_place_that_fails_is_pointed_at_and_each_target_counted() -> None:
    body = (
        "rules:\n  - id: r\n    concat:\n      dim: 0\n      from:\n"
        "        - {path: 'a.{i:int}', ops: [{reshape: [7]}]}\n"
        "        - {path: 'b.{i:int}', ops: [{reshape: [7]}]}\n"
        "    to: 'c.{i}'\n"
    )
    seven = ("F32", [7])
    plan = planned(body, {"a.0": SMALL, "b.0": seven, "a.1": seven, "b.1": SMALL, "a.2": SMALL, "b.2": seven})
    assert [(each.code, each.span.line) for each in plan.problems if each.span] == [("RK350", 8), ("RK350", 9)]
    assert [each.title.endswith(" (2 times)") for each in plan.problems] == [True, False]


@pytest.mark.parametrize(("size", "wanted"), [(1, ["RK350"]), (2, []), (3, ["RK350"]), (0, ["RK350"])])
def test_an_unstack_makes_as_many_as_its_count(size: int, wanted: list[str]) -> None:
    plan = planned(
        "rules: [{id: r, path: x, unstack: {dim: 0, by: n, count: 2}, to: 'y.{n}'}]", {"x": ("F32", [size, 4])}
    )
    assert (codes(plan), targets(plan)) == (wanted, [] if wanted else ["y.0", "y.1"])


@pytest.mark.parametrize("share", ["tie", "copy"])
def test_the_names_of_each_element_are_a_tie(share: str) -> None:
    plan = planned(
        f"rules: [{{id: r, path: x, unstack: {{dim: 0, by: n}}, {share}: ['y.{{n}}', 'z.{{n}}']}}]", {"x": SMALL}
    )
    assert targets(plan) == ["y.0", "z.0", "y.1", "z.1"]
    assert plan.tied == ((("y.0", "z.0"), ("y.1", "z.1")) if share == "tie" else ())
