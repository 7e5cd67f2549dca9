"""Find the routes from one layout to another: packs one after the other, no layout twice.

The search is a walk over all paths without a repeated layout, shortest first; it ends because each step visits a new
layout, and gives up after `MAX_STEPS` steps or `MAX_ROUTES` routes: its cost is bounded whatever is installed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from remapkit.diagnostics.wording import show_key
from remapkit.registry.layouts import Layout, PackLayouts

MAX_STEPS = 20_000
"""The most steps of a search, each of them one pack at the end of one path."""
MAX_ROUTES = 16
"""The most routes that are looked at; beyond that `--via` has to choose."""


@dataclass(frozen=True, slots=True)
class Step:
    """One pack of a route, or its inverse, and the layouts that it reads and writes."""

    pack: str
    source: str
    target: str
    inverted: bool = False

    def __str__(self) -> str:
        return f"the inverse of {self.pack}" if self.inverted else self.pack


Route = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Routes:
    """The routes that were found, and whether these are all of them."""

    routes: tuple[Route, ...]
    complete: bool = True


def list_steps(packs: Iterable[PackLayouts], layouts: Sequence[Layout]) -> tuple[Step, ...]:
    """Return a step for every pack that names both of its layouts."""
    names = {each: layout.name for layout in layouts for each in (layout.name, *layout.aliases)}
    return tuple(
        Step(each.pack, names[each.source.names[0]], names[each.target.names[0]])
        for each in packs
        if each.source.names and each.target.names and names[each.source.names[0]] != names[each.target.names[0]]
    )


def add_inverses(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the steps, and the inverse of each that no pack is written for.

    >>> [str(step) for step in add_inverses([Step("p", "a", "b"), Step("q", "b", "a"), Step("r", "b", "c")])]
    ['p', 'q', 'r', 'the inverse of r']
    """
    written = {(step.source, step.target) for step in steps}
    back = (Step(each.pack, each.target, each.source, True) for each in steps)
    return (*steps, *(step for step in back if (step.source, step.target) not in written))


def find_routes(steps: Sequence[Step], start: str, end: str, via: Sequence[str] = ()) -> Routes:
    """Return the routes from one layout to another, the shortest first, and in the order of their packs' names.

    `via` names layouts and packs that a route must pass, in this order.

    >>> steps = [Step("p", "a", "b"), Step("q", "b", "c"), Step("r", "a", "c")]
    >>> [describe_route(route) for route in find_routes(steps, "a", "c").routes]
    ['a -> c (r)', 'a -> b (p) -> c (q)']
    >>> [describe_route(route) for route in find_routes(steps, "a", "c", ["b"]).routes]
    ['a -> b (p) -> c (q)']
    """
    out: defaultdict[str, list[Step]] = defaultdict(list)
    for step in sorted(steps, key=lambda step: (step.target, step.inverted, step.pack)):
        out[step.source].append(step)
    useful = _find_reaching(steps, end)
    found: list[Route] = []
    paths: list[Route] = [()]
    count = 0
    while paths:
        longer: list[Route] = []
        for path in paths:
            here = path[-1].target if path else start
            for step in out[here] if here != end else ():
                count += 1
                if count > MAX_STEPS:
                    return Routes(tuple(found), False)
                if step.target in useful and step.target != start and all(step.target != one.source for one in path):
                    longer.append((*path, step))
        for path in longer:
            if path[-1].target == end and passes(path, via):
                if len(found) == MAX_ROUTES:
                    return Routes(tuple(found), False)
                found.append(path)
        paths = longer
    return Routes(tuple(found))


def _find_reaching(steps: Iterable[Step], end: str) -> set[str]:
    """Return the layouts from which the end can be reached: no path goes anywhere else."""
    into: defaultdict[str, list[str]] = defaultdict(list)
    for step in steps:
        into[step.target].append(step.source)
    found, new = {end}, [end]
    while new:
        new = [source for target in new for source in into[target] if source not in found]
        new = list(dict.fromkeys(new))
        found.update(new)
    return found


def passes(route: Route, via: Sequence[str]) -> bool:
    """Return whether a route passes layouts and packs in their order.

    >>> passes((Step("p", "a", "b"), Step("q", "b", "c")), ["b", "q"]), passes((Step("p", "a", "b"),), ["q"])
    (True, False)
    """
    places = iter([word for step in route for word in (step.pack, step.target)])
    return all(any(word == place for place in places) for word in via)


def describe_route(route: Route) -> str:
    """Return a route in words: the layouts, each with the pack that makes it."""
    return route[0].source + "".join(f" -> {step.target} ({step})" for step in route)


def find_reachable(steps: Iterable[Step], start: str) -> tuple[str, ...]:
    """Return the layouts that some route makes of one.

    >>> find_reachable([Step("p", "a", "b"), Step("q", "b", "c"), Step("r", "x", "a")], "a")
    ('b', 'c')
    """
    turned = [Step(step.pack, step.target, step.source) for step in steps]
    return tuple(sorted(_find_reaching(turned, start) - {start}))


def draw_text(layouts: Sequence[Layout], steps: Sequence[Step]) -> Iterator[str]:
    """Yield the lines of a graph: each layout, and below it what each pack makes of it.

    >>> list(draw_text([Layout("a", ("z",), ("p",), ()), Layout("b", (), (), ("p",))], [Step("p", "a", "b")]))
    ['a (also z)', '  p -> b', 'b']
    """
    by_source: Mapping[str, list[Step]] = {
        layout.name: [step for step in steps if step.source == layout.name] for layout in layouts
    }
    for layout in layouts:
        also = f" (also {', '.join(map(show_key, layout.aliases))})" if layout.aliases else ""
        yield show_key(layout.name) + also
        yield from (f"  {step.pack} -> {step.target}" for step in by_source[layout.name])
