r"""Key maps with several readings of a key: does the target depend on the reading?

If the slots have the same order in source and target, a run that reads a key can write its target: a finite-state
transducer. Its states are the positions of a `TaggedNfa`, and what it writes between two positions depends on their
tags only. The reading does not matter iff it is a function, that is, if all runs over one key write the same.

Two runs over one word may write at different times; what one is ahead by is the *lag*. If the transducer is a
function, every pair of positions from which both runs can end with one word has only one lag: with two, the same end
would be right for one and wrong for the other. So the search stops at the second lag of such a pair, and is
polynomial. Source: M.-P. Béal, O. Carton, C. Prieur, J. Sakarovitch, "Squaring transducers: an efficient procedure
for deciding functionality and sequentiality" (2003).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from remapkit.proofs.automata import SEPARATOR
from remapkit.proofs.budget import Budget
from remapkit.proofs.case import Case, Copy, Hidden, Lookup
from remapkit.proofs.product import BEGIN, Pair, find_pairs, pick_signs
from remapkit.proofs.search import Move, find_cheapest
from remapkit.proofs.tagged import TaggedNfa

FREE = "\ud801"
"""A character that no key has: the index of an `unstack`, which is the same in both runs."""


@dataclass(frozen=True, slots=True)
class _Writing:
    """What one line writes: `before[k]` on entering part `k` of the side that is read, `own[k]` for its characters.

    `own[k]` is None where they are copied, "" where nothing is written, and a text for each entry of a table.
    `tail` is written at the end.
    """

    before: tuple[str, ...]
    own: tuple[str | tuple[str, ...] | None, ...]
    tail: str

    def between(self, one: int, other: int) -> str:
        """Return the text written between the parts `one` and `other`; those between them read nothing."""
        return "".join(self.before[one + 1 : other + 1])

    def finish(self, last: int) -> str:
        """Return the text written after the part `last` (-1: the whole text of a run that reads nothing)."""
        return "".join(self.before[last + 1 :]) + self.tail

    def list_characters(self) -> Iterator[str]:
        """Yield the characters that are written and not copied."""
        yield from itertools.chain(self.tail, *self.before, *(text for own in self.own for text in own or ()))


def _write_target(case: Case) -> _Writing:
    """Return what a run over the source writes: the target. The case must be in order."""
    before: list[str] = []
    own: list[str | tuple[str, ...] | None] = []
    target, used, pending = list(case.target), set(case.used), ""
    for number in range(len(case.slots)):
        if number not in used:
            before.append("")
            own.append("")
            continue
        while not isinstance(target[0], Copy | Lookup):
            pending += _get_text(target.pop(0))
        part = target.pop(0)
        before.append(pending)
        own.append(tuple(text for _, text in part.entries) if isinstance(part, Lookup) else None)
        pending = ""
    return _Writing(tuple(before), tuple(own), pending + "".join(map(_get_text, target)))


def _get_text(part: object) -> str:
    if isinstance(part, str):
        return part
    return SEPARATOR if isinstance(part, Hidden) else FREE


Lag = tuple[str, str] | None
"""What the left and the right run wrote beyond what both wrote; None: they differ for good."""

_State = tuple[Pair, Lag, bool]
"""The positions of two runs, their lag, and whether both have ended."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A word that two runs read, and the different texts that they write."""

    text: str
    written: tuple[str, str]


class Transducer:
    """The runs over the sources of a key map that write its targets.

    `net` has only this key map, and its cases are in order.
    """

    def __init__(self, net: TaggedNfa, key_map: int, budget: Budget) -> None:
        self.net, self.key_map, self.budget = net, key_map, budget
        self.writings = [_write_target(line.case) for line in net.lines]
        self.graph = find_pairs(net, key_map, budget)
        written = {sign for writing in self.writings for sign in writing.list_characters()} - {SEPARATOR, FREE}
        masks = [*net.masks, *map(net.letters.character, sorted(written))]
        self.signs = [*pick_signs(masks, net), (net.letters.separator, SEPARATOR)]

    def find_conflict(self) -> Conflict | None:
        """Return the shortest conflict, or None if the transducer is a function."""
        nulls = sorted({self.writings[line].finish(-1) for line in self.net.nulls[self.key_map]}, key=len)
        if len(nulls) > 1:
            return Conflict("", (nulls[0], nulls[1]))
        return None if self._is_function() else self._find_smallest()

    def _is_function(self) -> bool:
        """Return whether no two runs over one word write different texts; see the docstring of this module.

        Invariant: `lags` has the one lag of each pair that was reached, and a pair is expanded once. Every pair can
        end, so a second lag, or texts that differ for good, decide the question.
        """
        lags: dict[Pair, Lag] = {}
        pending: list[tuple[Pair, Lag]] = [(BEGIN, ("", ""))] if BEGIN in self.graph.left else []
        while pending:
            here, ahead = pending.pop()
            for pair, _, lag in self._move(here, ahead):
                if lag is None or lags.get(pair, lag) != lag:
                    return False
                if pair not in lags:
                    if self.graph.left[pair] == 0 and not self._ends_equal(pair, lag):
                        return False
                    lags[pair] = lag
                    pending.append((pair, lag))
        return True

    def _find_smallest(self) -> Conflict | None:
        """Search all lags, cheapest first: there is a conflict, so the search ends at the smallest one."""

        # A step costs its character and what it adds to the distance to an end, which no step shortens by more than
        # its character. So costs are not negative and order the words by length, and what leads on comes first (A*).
        left = self.graph.left

        def follow(state: _State) -> Iterator[Move[_State]]:
            pair, ahead, _ = state
            for to, sign, lag in self._move(pair, ahead):
                yield 1 + left[to] - left[pair], (to, lag, False), sign
            if pair != BEGIN and self.graph.left[pair] == 0 and not self._ends_equal(pair, ahead):
                yield 0, (pair, ahead, True), ""

        def is_goal(state: _State) -> bool:
            return state[2]

        start: Move[_State] = (0, (BEGIN, ("", ""), False), "")
        found = find_cheapest([start], follow, is_goal, self.budget)
        if found is None:
            return None
        _, text, states = found
        pairs = [pair for pair, _, _ in states[1:-1]]
        return Conflict(text, (self._write(text, pairs, 0), self._write(text, pairs, 1)))

    def _move(self, here: Pair, ahead: Lag) -> Iterator[tuple[Pair, str, Lag]]:
        """Yield the next pair, the character that is read, and the next lag."""
        for mask, to in self.graph.edges[here]:
            for bit, sign in self.signs:
                self.budget.spend(1 if ahead is None else 1 + len(ahead[0]) + len(ahead[1]))
                if bit & mask:
                    one, other = self._step(here[0], to[0], sign), self._step(here[1], to[1], sign)
                    yield to, sign, _advance(ahead, one, other)

    def _step(self, before: int, position: int, sign: str) -> str:
        """Return what a run writes on its way from one position (-1: none yet) to another, which reads `sign`."""
        net = self.net
        writing = self.writings[net.line_of(position)]
        part = net.parts[net.tags[position]]
        text = writing.between(net.parts[net.tags[before]] if before >= 0 else -1, part)
        own = writing.own[part]
        if own is None:
            return text + sign
        return text + own[net.labels[position]] if own and position in net.labels else text

    def _finish(self, position: int) -> str:
        return self.writings[self.net.line_of(position)].finish(self.net.parts[self.net.tags[position]])

    def _ends_equal(self, pair: Pair, ahead: Lag) -> bool:
        return ahead is not None and ahead[0] + self._finish(pair[0]) == ahead[1] + self._finish(pair[1])

    def _write(self, text: str, pairs: Sequence[Pair], side: int) -> str:
        positions = [-1, *(pair[side] for pair in pairs)]
        steps = zip(positions, positions[1:], text, strict=False)
        return "".join(self._step(*step) for step in steps) + self._finish(positions[-1])


def _advance(ahead: Lag, one: str, other: str) -> Lag:
    """Return the lag after both runs wrote; None if they wrote different characters at the same place."""
    if ahead is None:
        return None
    left, right = ahead[0] + one, ahead[1] + other
    if left.startswith(right):
        return left[len(right) :], ""
    if right.startswith(left):
        return "", right[len(left) :]
    return None
