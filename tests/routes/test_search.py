"""The search for routes against brute force on random graphs, and its bounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.registry import routes
from remapkit.registry.layouts import Layout, PackLayouts, Side, list_layouts
from remapkit.registry.routes import Step, add_inverses, find_reachable, find_routes

NAMES = "abcde"


@st.composite
def make_steps(draw: st.DrawFn) -> list[Step]:
    pairs = draw(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=9))
    return [Step(f"p{number}", one, other) for number, (one, other) in enumerate(pairs) if one != other]


def search_by_brute_force(steps: list[Step], start: str, end: str, via: tuple[str, ...]) -> set[tuple[Step, ...]]:
    """Every sequence of steps that fits together and visits no layout twice."""
    found = set()
    for length in range(1, len(NAMES)):
        for path in itertools.permutations(steps, length):
            visited = [start, *(step.target for step in path)]
            joined = all(step.source == here for step, here in zip(path, visited, strict=False))
            if not joined or visited[-1] != end or len(set(visited)) < len(visited):
                continue
            words = [word for step in path for word in (step.pack, step.target)]
            places, at = [], -1
            for word in via:
                at = next((n for n in range(at + 1, len(words)) if words[n] == word), -2)
                places.append(at)
                if at == -2:
                    break
            if -2 not in places:
                found.add(path)
    return found


@settings(max_examples=120, deadline=None)
@given(
    steps=make_steps(), ends=st.permutations(NAMES), via=st.lists(st.sampled_from([*NAMES, "p0", "p1"]), max_size=2)
)
def test_all_routes_are_found_shortest_first(steps: list[Step], ends: list[str], via: list[str]) -> None:
    start, end = ends[:2]
    wanted = search_by_brute_force(steps, start, end, tuple(via))
    found = find_routes(steps, start, end, via)
    assert len(set(found.routes)) == len(found.routes)
    if found.complete:
        assert set(found.routes) == wanted
    else:
        assert set(found.routes) < wanted and len(found.routes) == routes.MAX_ROUTES
    assert [*map(len, found.routes)] == sorted(map(len, found.routes))
    assert find_routes(steps[::-1], start, end, via) == found
    assert (end in find_reachable(steps, start)) == bool(search_by_brute_force(steps, start, end, ()))


def test_packs_that_lead_back_lead_nowhere() -> None:
    """Each pack has its inverse beside it, as most do: no route goes round in circles."""
    there = [Step("p", "a", "b"), Step("q", "b", "c"), Step("r", "c", "d")]
    steps = [*there, *(Step(f"{step.pack}_back", step.target, step.source) for step in there), Step("s", "c", "c2")]
    assert find_routes(steps, "a", "d") == routes.Routes((tuple(there),))
    assert find_routes(steps, "b", "a").routes == ((Step("p_back", "b", "a"),),)


def test_a_search_is_bounded(work: Callable[[Callable[[], object]], int]) -> None:
    """Complete graphs have more paths than can be counted: steps are, from the first on."""
    many = [Step(f"{one}{other}", one, other) for one, other in itertools.permutations("abcdefghijklmnop", 2)]
    found = find_routes(many, "a", "p")
    assert not found.complete and len(found.routes) <= routes.MAX_ROUTES
    found = find_routes(many, "a", "p", ["nothing"])
    assert found == routes.Routes((), False)
    assert work(lambda: find_routes(many, "a", "p", ["nothing"])) < 20 * routes.MAX_STEPS


@settings(max_examples=60, deadline=None)
@given(steps=make_steps())
def test_an_inverse_is_added_where_no_pack_leads_back(steps: list[Step]) -> None:
    both = add_inverses(steps)
    assert list(both[: len(steps)]) == steps
    written = {(step.source, step.target) for step in steps}
    added = [step for step in both if step.inverted]
    assert all((step.source, step.target) not in written for step in added)
    pairs = {(step.source, step.target) for step in both}
    assert pairs == written | {(target, source) for source, target in written}


def make_pack(pack: str, source: list[str], target: list[str]) -> PackLayouts:
    return PackLayouts(pack, __import__("pathlib").Path(f"{pack}.yaml"), Side(tuple(source)), Side(tuple(target)))


def test_other_names_join_layouts() -> None:
    packs = [make_pack("p", ["a", "b"], ["x"]), make_pack("q", ["c"], ["y"]), make_pack("r", ["z"], ["b", "c"])]
    found = {layout.name: layout for layout in list_layouts(packs)}
    assert sorted(found) == ["a", "x", "y", "z"]
    assert found["a"] == Layout("a", ("b", "c"), ("p", "q"), ("r",))
    assert routes.list_steps(packs, list_layouts(packs)) == (
        Step("p", "a", "x"),
        Step("q", "a", "y"),
        Step("r", "z", "a"),
    )


@pytest.mark.parametrize("route", [(), (Step("p", "a", "b"),)])
def test_passing_nothing_is_always_true(route: tuple[Step, ...]) -> None:
    assert routes.passes(route, [])
