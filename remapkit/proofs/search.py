"""One best-first search, on which every search for a smallest witness stands."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from remapkit.proofs.budget import Budget

State = TypeVar("State", bound=Hashable)

MOVE = 8
"""The steps that a move pays: it takes about as long as that many looks at a pair of positions."""

Move = tuple[int, State, str]
"""A step: what it costs, where it leads, and the text that is read on the way."""


def find_cheapest(
    starts: Iterable[Move[State]],
    follow: Callable[[State], Iterable[Move[State]]],
    is_goal: Callable[[State], bool],
    budget: Budget,
) -> tuple[int, str, list[State]] | None:
    """Return the cheapest way to a goal: its cost, the text read, and the states passed; None if there is none.

    Dijkstra's algorithm. Invariant: a state is expanded once, at its final cost, because costs are not negative; so
    the search ends when the reachable states are used up. Of equal costs the first one found wins, so that the
    answer does not depend on hashes. Every move pays `MOVE` steps.

    >>> moves = {"s": [(1, "a", "x"), (3, "b", "y")], "a": [(1, "b", "z")], "b": []}
    >>> find_cheapest([(0, "s", "")], moves.__getitem__, "b".__eq__, Budget(100))
    (2, 'xz', ['s', 'a', 'b'])
    """
    order = itertools.count()
    best: dict[State, tuple[int, State | None, str]] = {}
    heap: list[tuple[int, int, State]] = []
    done: set[State] = set()

    def offer(moves: Iterable[Move[State]], cost: int, before: State | None) -> None:
        for step, state, text in moves:
            budget.spend(MOVE)
            total = cost + step
            if state not in best or best[state][0] > total:
                best[state] = (total, before, text)
                heapq.heappush(heap, (total, next(order), state))

    offer(starts, 0, None)
    while heap:
        cost, _, state = heapq.heappop(heap)
        if state in done:
            continue
        done.add(state)
        if is_goal(state):
            return _trace(best, state, cost)
        offer(follow(state), cost, state)
    return None


def _trace(best: dict[State, tuple[int, State | None, str]], goal: State, cost: int) -> tuple[int, str, list[State]]:
    states: list[State] = []
    texts: list[str] = []
    here: State | None = goal
    while here is not None:
        _, before, text = best[here]
        states.append(here)
        texts.append(text)
        here = before
    return cost, "".join(reversed(texts)), states[::-1]
