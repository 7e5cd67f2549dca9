"""Deterministic automata built lazily, their intersections, and walks over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from remapkit.proofs.automata import LetterClasses, Nfa
from remapkit.proofs.budget import Budget


class Dfa(Protocol):
    """A deterministic automaton, built lazily during a walk."""

    @property
    def start(self) -> int:
        """The state before the first character."""

    def steps(self, state: int) -> Sequence[tuple[int, int]]:
        """Return (mask, next state) pairs; the masks are disjoint, and characters in none of them are rejected."""

    def accepts(self, state: int) -> bool:
        """Return whether a key may end in this state."""


class LeafDfa:
    """Keys whose last segment is one of the given words: a trie of the words, restarted after each dot."""

    def __init__(self, leaves: Iterable[str], letters: LetterClasses, budget: Budget) -> None:
        dot = letters.character(".")
        self.start, self._lost = 0, 1
        edges: list[dict[str, int]] = [{}, {}]
        self._ends = set[int]()
        for leaf in leaves:
            budget.spend(len(leaf) + 1)
            here = self.start
            for character in leaf:
                if character not in edges[here]:
                    edges[here][character] = len(edges)
                    edges.append({})
                here = edges[here][character]
            self._ends.add(here)
        self._steps = []
        for each in edges:
            steps = [(dot, self.start), *((letters.character(char), to) for char, to in each.items())]
            rest = letters.all & ~sum(mask for mask, _ in steps)
            self._steps.append([*steps, (rest, self._lost)] if rest else steps)

    def steps(self, state: int) -> Sequence[tuple[int, int]]:
        return self._steps[state]

    def accepts(self, state: int) -> bool:
        return state in self._ends


class SubsetDfa:
    """The union of several pieces, by the subset construction: states are sets of reachable positions."""

    def __init__(self, pieces: Sequence[Nfa], letters: LetterClasses, budget: Budget) -> None:
        self.letters, self.budget = letters, budget
        self.masks: list[int] = []
        self.follow: list[list[int]] = []
        self.ends = set[int]()
        first: list[int] = []
        for piece in pieces:
            here = len(self.masks)
            budget.spend(len(piece.masks))
            self.masks += piece.masks
            self.follow += [[here + position for position in each] for each in piece.follow]
            first += [here + position for position in piece.first]
            self.ends |= {here + position for position in piece.last}
        self._first = first
        self._nullable = any(piece.nullable for piece in pieces)
        self._sets: list[frozenset[int]] = [frozenset()]
        self._numbers: dict[frozenset[int], int] = {}
        self._steps: dict[int, list[tuple[int, int]]] = {}
        self.start = 0

    def steps(self, state: int) -> Sequence[tuple[int, int]]:
        if state not in self._steps:
            following = self._first if state == 0 else {q for p in self._sets[state] for q in self.follow[p]}
            self.budget.spend(4 * len(following) + 10)
            regions = partition(following, self.masks, self.letters.all)
            self._steps[state] = [(mask, self._number(frozenset(each))) for mask, each in regions]
        return self._steps[state]

    def _number(self, positions: frozenset[int]) -> int:
        if positions not in self._numbers:
            self._numbers[positions] = len(self._sets)
            self._sets.append(positions)
        return self._numbers[positions]

    def accepts(self, state: int) -> bool:
        return self._nullable if state == 0 else not self._sets[state].isdisjoint(self.ends)


class IntersectionDfa:
    """The keys that both of two guides accept."""

    def __init__(self, one: Dfa, other: Dfa, budget: Budget) -> None:
        self.one, self.other, self.budget = one, other, budget
        self._pairs: list[tuple[int, int]] = []
        self._numbers: dict[tuple[int, int], int] = {}
        self.start = self._number((one.start, other.start))

    def _number(self, pair: tuple[int, int]) -> int:
        if pair not in self._numbers:
            self._numbers[pair] = len(self._pairs)
            self._pairs.append(pair)
        return self._numbers[pair]

    def steps(self, state: int) -> Sequence[tuple[int, int]]:
        left, right = self._pairs[state]
        ones, others = self.one.steps(left), self.other.steps(right)
        self.budget.spend(len(ones) * len(others))
        return [
            (mask & other, self._number((to, also))) for mask, to in ones for other, also in others if mask & other
        ]

    def accepts(self, state: int) -> bool:
        left, right = self._pairs[state]
        return self.one.accepts(left) and self.other.accepts(right)


def partition(positions: Iterable[int], masks: Sequence[int], everything: int) -> list[tuple[int, list[int]]]:
    """Group positions by the characters that they read: (mask, positions that read all of it), masks disjoint."""
    narrow: dict[int, list[int]] = {}
    wide: dict[int, list[int]] = {}
    for position in positions:
        mask = masks[position]
        (wide if mask & (mask - 1) else narrow).setdefault(mask, []).append(position)
    if not wide:
        return list(narrow.items())
    left = everything
    for bit, members in narrow.items():
        left &= ~bit
        for mask, others in wide.items():
            if mask & bit:
                members += others
    regions: list[tuple[int, list[int]]] = [(left, [])]
    for mask, others in wide.items():
        refined = []
        for region, members in regions:
            if region & mask:
                refined.append((region & mask, members + others))
            if region & ~mask:
                refined.append((region & ~mask, members))
        regions = refined
    return [*narrow.items(), *((mask, members) for mask, members in regions if members)]


def walk(guide: Dfa, state: int, word: str, letters: LetterClasses) -> int | None:
    """Return the state after a word, or None."""
    here: int | None = state
    for character in word:
        mask = letters.character(character)
        here = next((to for step, to in guide.steps(here) if step & mask), None) if here is not None else None
    return here


class GuidedPiece:
    """A piece walked in parallel with a guide from one of its states: the reachable guide states and their words.

    A node is (position, mask, state): `position` read a character of `mask`, after which the guide is in `state`.
    """

    def __init__(self, piece: Nfa, guide: Dfa, start: int, budget: Budget) -> None:
        self._piece, self._guide, self._start, self._budget = piece, guide, start, budget
        self._nodes: dict[tuple[int, int, int], int] = {}
        self._keys: list[tuple[int, int, int]] = []
        self._first = self._entered(piece.first, start)
        self._edges: list[list[int]] = []
        while len(self._edges) < len(self._keys):
            position, _, state = self._keys[len(self._edges)]
            self._edges.append(self._entered(piece.follow[position], state))
        last = set(piece.last)
        self._at_end = [number for number, key in enumerate(self._keys) if key[0] in last]
        self.ends = {self._keys[number][2] for number in self._at_end} | ({start} if piece.nullable else set())

    def _entered(self, positions: Iterable[int], state: int) -> list[int]:
        steps = self._guide.steps(state)
        entered = []
        for position in positions:
            reads = self._piece.masks[position]
            by_state: dict[int, int] = {}
            self._budget.spend(len(steps) + 1)
            for mask, to in steps:
                if mask & reads:
                    by_state[to] = by_state.get(to, 0) | (mask & reads)
            for to, mask in by_state.items():
                key = (position, mask, to)
                if key not in self._nodes:
                    self._nodes[key] = len(self._keys)
                    self._keys.append(key)
                entered.append(self._nodes[key])
        return entered

    def ending_in(self, ends: set[int]) -> Nfa:
        """Return the words that take the guide from the start to one of these states."""
        last = [number for number in self._at_end if self._keys[number][2] in ends]
        before: list[list[int]] = [[] for _ in self._keys]
        for number, following in enumerate(self._edges):
            for each in following:
                before[each].append(number)
        alive, pending = set(last), list(last)
        while pending:
            for each in before[pending.pop()]:
                if each not in alive:
                    alive.add(each)
                    pending.append(each)
        new = {number: place for place, number in enumerate(sorted(alive))}
        return Nfa(
            [self._keys[number][1] for number in sorted(alive)],
            [new[number] for number in self._first if number in alive],
            [[new[each] for each in self._edges[number] if each in alive] for number in sorted(alive)],
            [new[number] for number in last],
            self._piece.nullable and self._start in ends,
        )
