r"""The reading of a key that the matcher takes, as an automaton: of all readings, it accepts only this one.

A pattern may read a key in several ways (`(a*)(a*)`); then the first way that the matcher's search finds counts. The
search tries the paths through `Program` in the order of its instructions. So all paths can be followed at once, as an
ordered list with the one that is tried first in front, and the first one that is left at the end of the key is the
matcher's. Of two paths at one instruction the later one is dropped: whatever follows, the earlier one is found first.
Source: R. Cox, "Regular expression matching: the virtual machine approach" (2009), whose lists of threads these are.

The automaton reads a key *with* the part of the pattern that each character belongs to, that is, a reading. A path
that puts a character into another part is kept, marked as astray: it only shows which readings are not the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remapkit.patterns.matcher import CHARS, JUMP, SAVE, SPLIT, Program
from remapkit.patterns.pattern import Pattern
from remapkit.proofs.automata import LetterClasses
from remapkit.proofs.budget import Budget
from remapkit.proofs.dfa import partition

_Paths = tuple[tuple[int, bool], ...]
"""The instructions that paths have reached, in the order of the search, and whether each path follows the reading."""


class PreferredReading:
    """The readings that the matcher takes; deterministic, and built during a walk.

    Invariant: the last path of a state follows the reading, for those behind it cannot change whether it is taken.
    The number of states is not polynomial in the pattern; every path of a state pays.
    """

    def __init__(self, pattern: Pattern, letters: LetterClasses, budget: Budget) -> None:
        self.letters, self.budget = letters, budget
        program = Program(pattern)
        budget.spend(len(program.code))
        self._code, self._part, self._end = program.code, program.part, len(program.code) - 1
        self._following: dict[int, tuple[int, ...]] = {}
        self._masks = {
            place: letters.mask(argument) for place, (kind, argument, _) in enumerate(self._code) if kind == CHARS
        }
        self._states: list[_Paths] = []
        self._numbers: dict[_Paths, int] = {}
        self._steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self.start = self._number(tuple((place, True) for place in self._follow(0)))

    def in_part(self, part: int) -> PartOfReading:
        """Return the automaton for the characters of one part of the pattern."""
        return PartOfReading(self, part)

    def steps(self, state: int, part: int) -> Sequence[tuple[int, int]]:
        """Return (mask, next state) pairs for a character of a part; see `Dfa.steps`."""
        found = self._steps.get((state, part))
        if found is None:
            paths = self._states[state]
            self.budget.spend(4 * len(paths) + 10)
            reading = [number for number, (place, _) in enumerate(paths) if place in self._masks]
            masks = [self._masks.get(place, 0) for place, _ in paths]
            found = []
            for mask, members in partition(reading, masks, self.letters.all):
                to = self._step([paths[number] for number in sorted(members)], part)
                if to:
                    found.append((mask, self._number(to)))
            self._steps[state, part] = found
        return found

    def accepts(self, state: int) -> bool:
        """Return whether the path that ends here follows the reading; only the first that came there is left."""
        return (self._end, True) in self._states[state]

    def _step(self, paths: Sequence[tuple[int, bool]], part: int) -> _Paths:
        """Return the paths after a character that each of these reads; none if no path follows the reading."""
        reached: dict[int, bool] = {}
        for place, follows in paths:
            here = follows and self._part[place] == part
            following = self._follow(place + 1)
            self.budget.spend(len(following) + 1)
            for each in following:
                reached.setdefault(each, here)
        ordered = list(reached.items())
        while ordered and not ordered[-1][1]:
            ordered.pop()
        return tuple(ordered)

    def _follow(self, place: int) -> tuple[int, ...]:
        """Return the instructions that read a character or end the key and are reached without reading, in order."""
        known = self._following.get(place)
        if known is not None:
            return known
        found: list[int] = []
        seen: set[int] = set()
        pending = [place]
        while pending:
            here = pending.pop()
            if here in seen:
                continue
            seen.add(here)
            kind, argument, other = self._code[here]
            if kind == SPLIT:
                pending += [other, argument]
            elif kind == JUMP:
                pending.append(argument)
            elif kind == SAVE:
                pending.append(here + 1)
            else:
                found.append(here)
        self.budget.spend(len(seen))
        self._following[place] = tuple(found)
        return self._following[place]

    def _number(self, paths: _Paths) -> int:
        if paths not in self._numbers:
            self._numbers[paths] = len(self._states)
            self._states.append(paths)
        return self._numbers[paths]


@dataclass(frozen=True, slots=True)
class PartOfReading:
    """A `PreferredReading` that reads characters of one part."""

    whole: PreferredReading
    part: int

    @property
    def start(self) -> int:
        """The state before the first character of the key."""
        return self.whole.start

    def steps(self, state: int) -> Sequence[tuple[int, int]]:
        """Return (mask, next state) pairs."""
        return self.whole.steps(state, self.part)

    def accepts(self, state: int) -> bool:
        """Return whether a key may end in this state."""
        return self.whole.accepts(state)
