r"""Key maps with several splits of a key: does the target depend on the split, and can two keys share a target?

If the variables have the same order in source and target, a finite-state transducer processes both in parallel. Two
runs over one key may write at different times; the text that one is ahead by is the *delay*. All runs over one key
write the same text iff no pair of them ends with a delay; then every pair of states has only one delay. Source: M.-P.
Béal, O. Carton, C. Prieur, J. Sakarovitch, "Squaring transducers" (2003).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from remapkit.proofs.automata import LetterClasses, Nfa, shortest_words
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.linear import ProofContext
from remapkit.proofs.linear_map import Index, LinearMap, Separator, TableRef, VariableRef
from remapkit.proofs.union import UnionNfa

SEPARATOR = "\ud800"
"""A character that no key has: the end of a target, before the captures that count as part of it."""

Edge = tuple[int, str]
"""A position, and the text written on the way to it."""


@dataclass(slots=True)
class Transducer:
    """Positions that read a character and copy it (`writes[p]` is None) or write a word instead."""

    masks: list[int] = field(default_factory=list)
    writes: list[str | None] = field(default_factory=list)
    starts: list[Edge] = field(default_factory=list)
    follow: list[list[Edge]] = field(default_factory=list)
    ends: dict[int, str] = field(default_factory=dict)
    nulls: list[str] = field(default_factory=list)
    written: set[str] = field(default_factory=set)


def transducer(found: Iterable[LinearMap], tools: ProofContext, *, backwards: bool = False) -> Transducer:
    """Build a transducer from source to target, or target to source; the variants of the key map must be in order."""
    machine = Transducer()
    for variant in found:
        _Line(machine, tools, backwards).read(variant)
    return machine


class _Line:
    def __init__(self, machine: Transducer, tools: ProofContext, backwards: bool) -> None:
        self.machine, self.tools, self.backwards = machine, tools, backwards
        self.open: list[Edge] = []
        self.null: str | None = ""

    def read(self, variant: LinearMap) -> None:
        targets = list(variant.target)
        if any(isinstance(each, Index) for each in targets):
            # It may write one of many words, which this transducer cannot; reached only if a key has several splits.
            raise Exhausted
        for number, slot in enumerate(variant.slots):
            if slot.word is not None:
                self.source(slot.word)
                continue
            while targets and isinstance(targets[0], str | Separator):
                each = targets.pop(0)
                self.beyond() if isinstance(each, Separator) else self.target(str(each))
            assert slot.piece is not None
            if targets and isinstance(targets[0], VariableRef) and targets[0].slot == number:
                targets.pop(0)
                self.piece(slot.piece, [None] * len(slot.piece.masks))
            elif targets and isinstance(targets[0], TableRef) and targets[0].slot == number:
                self.table(targets.pop(0))
            elif self.backwards:
                # Not in the target, so a guard leaves it only one word; otherwise this code is not reached.
                self.wrote(shortest_words(slot.piece, self.tools.letters, 1, self.tools.budget)[0])
            else:
                self.piece(slot.piece, [""] * len(slot.piece.masks))
        for each in targets:
            self.beyond() if isinstance(each, Separator) else self.target(str(each))
        self.machine.ends.update(self.open)
        if self.null is not None:
            self.machine.nulls.append(self.null)

    def source(self, word: str) -> None:
        self.wrote(word) if self.backwards else self.word(word)

    def target(self, word: str) -> None:
        self.word(word) if self.backwards else self.wrote(word)

    def beyond(self) -> None:
        if self.backwards:
            self.piece(Nfa([self.tools.letters.separator], [0], [[]], [0], False), [""])
        else:
            self.wrote(SEPARATOR)

    def wrote(self, word: str) -> None:
        self.open = [(position, out + word) for position, out in self.open]
        self.null = None if self.null is None else self.null + word
        self.machine.written.update(word.replace(SEPARATOR, ""))

    def word(self, word: str) -> None:
        self.piece(self.tools.pieces.word(word), [""] * len(word))

    def table(self, table: object) -> None:
        assert isinstance(table, TableRef)
        pairs = [(value, key) if self.backwards else (key, value) for key, value in table.entries]
        piece = self.tools.pieces.build_words(pairs)
        for _, written in pairs:
            self.machine.written.update(written)
        self.piece(piece, [piece.labels.get(position, "") for position in range(len(piece.masks))])

    def piece(self, piece: Nfa, writes: Sequence[str | None]) -> None:
        machine = self.machine
        here = len(machine.masks)
        machine.masks += piece.masks
        machine.writes += writes
        machine.follow += [[(here + position, "") for position in each] for each in piece.follow]
        for position, out in self.open:
            machine.follow[position] += [(here + each, out) for each in piece.first]
        if self.null is not None:
            machine.starts += [(here + each, self.null) for each in piece.first]
        last = [(here + each, "") for each in piece.last]
        self.open = self.open + last if piece.nullable else last
        self.null = self.null if piece.nullable else None


@dataclass(frozen=True, slots=True)
class Conflict:
    """A word that two runs read, and the different texts that they write."""

    text: str
    written: tuple[str, str]


_Delay = tuple[str, str] | None
_State = tuple[int, int, _Delay]


def find_conflict(
    machine: Transducer, letters: LetterClasses, budget: Budget, *, by_written: bool = False
) -> Conflict | None:
    """Find the shortest word for which two runs write different texts, or None.

    `by_written` counts the written text instead of the read text.
    """
    return _Search(machine, letters, budget, by_written).run()


class _Search:
    def __init__(self, machine: Transducer, letters: LetterClasses, budget: Budget, by_written: bool) -> None:
        self.machine, self.budget, self.by_written = machine, budget, by_written
        self.signs = [*_signs(machine, letters), (letters.separator, SEPARATOR)]
        self.alive = _alive(machine, budget)
        self.came: dict[_State, tuple[_State | None, str, int]] = {}
        self.heap: list[tuple[int, int, _State, bool]] = []
        self.order = itertools.count()

    def run(self) -> Conflict | None:
        nulls = sorted(self.machine.nulls, key=len)
        for written in nulls:
            if written != nulls[0]:
                return Conflict("", (nulls[0], written))
        self.enter(None, self.machine.starts, self.machine.starts, ("", ""), 0)
        while self.heap:
            cost, _, state, ended = heapq.heappop(self.heap)
            if ended:
                return self.traced(state)
            if self.came[state][2] < cost:
                continue
            left, right, delay = state
            ends = self.machine.ends
            if left in ends and right in ends and (delay is None or delay[0] + ends[left] != delay[1] + ends[right]):
                # The text written after the last character counts too, so a later word may still be cheaper.
                total = cost + (len(ends[left]) + len(ends[right]) if self.by_written else 0)
                heapq.heappush(self.heap, (total, next(self.order), state, True))
            self.enter(state, self.machine.follow[left], self.machine.follow[right], delay, cost)
        return None

    def enter(
        self, before: _State | None, lefts: Sequence[Edge], rights: Sequence[Edge], delay: _Delay, cost: int
    ) -> None:
        masks, writes = self.machine.masks, self.machine.writes
        for left, out in lefts:
            for right, also in rights:
                self.budget.spend(1)
                mask = masks[left] & masks[right]
                if not mask or (left, right) not in self.alive:
                    continue
                for bit, sign in self.signs:
                    if not bit & mask:
                        continue
                    # A long delay is expensive to store.
                    self.budget.spend(1 if delay is None else 1 + len(delay[0]) + len(delay[1]))
                    one = out + (sign if writes[left] is None else str(writes[left]))
                    other = also + (sign if writes[right] is None else str(writes[right]))
                    step = len(one) + len(other) if self.by_written else 1
                    state = (left, right, _delayed(delay, one, other))
                    total = cost + step
                    if state not in self.came or self.came[state][2] > total:
                        self.came[state] = (before, sign, total)
                        heapq.heappush(self.heap, (total, next(self.order), state, False))

    def traced(self, state: _State) -> Conflict:
        states, text = [], ""
        here: _State | None = state
        while here is not None:
            before, sign, _ = self.came[here]
            states.append(here)
            text = sign + text
            here = before
        states.reverse()
        return Conflict(text, (self.written(states, text, 0), self.written(states, text, 1)))

    def written(self, states: Sequence[_State], text: str, side: int) -> str:
        machine, found, edges = self.machine, "", self.machine.starts
        for state, sign in zip(states, text, strict=True):
            position = state[1] if side else state[0]
            out = next(out for each, out in edges if each == position)
            written = machine.writes[position]
            found += out + (sign if written is None else written)
            edges = machine.follow[position]
        return found + machine.ends[states[-1][1] if side else states[-1][0]]


def _delayed(delay: _Delay, one: str, other: str) -> _Delay:
    """Return the delay after both runs wrote; None if they wrote different characters at the same position."""
    if delay is None:
        return None
    left, right = delay[0] + one, delay[1] + other
    if left.startswith(right):
        return left[len(right) :], ""
    if right.startswith(left):
        return "", right[len(left) :]
    return None


def _signs(machine: Transducer, letters: LetterClasses) -> Iterator[tuple[int, str]]:
    """Yield enough characters to show every difference: two of each class that this machine distinguishes."""
    masks = [*machine.masks, *(letters.character(character) for character in machine.written)]
    return _two_of_each(list(dict.fromkeys(masks)), letters)


def _alive(machine: Transducer, budget: Budget) -> set[tuple[int, int]]:
    """Return the pairs of positions that two runs can reach together and end from together."""
    masks, follow = machine.masks, machine.follow
    before: dict[tuple[int, int], list[tuple[int, int]]] = {}
    pending = [
        (left, right) for left, _ in machine.starts for right, _ in machine.starts if masks[left] & masks[right]
    ]
    seen = set(pending)
    while pending:
        pair = pending.pop()
        budget.spend(len(follow[pair[0]]) * len(follow[pair[1]]) + 1)
        for left, _ in follow[pair[0]]:
            for right, _ in follow[pair[1]]:
                if masks[left] & masks[right]:
                    before.setdefault((left, right), []).append(pair)
                    if (left, right) not in seen:
                        seen.add((left, right))
                        pending.append((left, right))
    alive = {(left, right) for left, right in seen if left in machine.ends and right in machine.ends}
    pending = list(alive)
    while pending:
        for pair in before.get(pending.pop(), ()):
            if pair not in alive:
                alive.add(pair)
                pending.append(pair)
    return alive


_Pair = tuple[int, int, bool]


def words_cut_twice(net: UnionNfa, key_map: int, budget: Budget) -> Iterator[str]:
    """Yield keys that a key map can split in several ways, shortest first, until the budget is spent."""
    if len(net.nulls[key_map]) > 1:
        yield ""
    edges, ends = _pairs(net, key_map, budget)
    left = _distances(edges, ends)
    signs = list(_net_signs(net, key_map))
    begin = (-1, -1, False)
    # Search for keys of a length only where a key of that length is still reachable.
    for length in range(left.get(begin, 0), left.get(begin, -1) + len(edges) + 1):
        layer: dict[str, set[_Pair]] = {"": {begin}}
        for depth in range(1, length + 1):
            following: dict[str, set[_Pair]] = {}
            for word, pairs in layer.items():
                for mask, to in (edge for pair in pairs for edge in edges[pair]):
                    budget.spend(1)
                    if left.get(to, length) > length - depth:
                        continue
                    for bit, sign in signs:
                        budget.spend(1)
                        if bit & mask:
                            following.setdefault(word + sign, set()).add(to)
            layer = following
        yield from (word for word, pairs in layer.items() if not pairs.isdisjoint(ends))


def _pairs(net: UnionNfa, key_map: int, budget: Budget) -> tuple[dict[_Pair, list[tuple[int, _Pair]]], set[_Pair]]:
    """Return the pairs of positions reachable by one key, and whether the runs differ; and the possible end pairs."""
    masks, follow, tags = net.masks, net.follow, net.tags
    begin = (-1, -1, False)
    edges: dict[_Pair, list[tuple[int, _Pair]]] = {begin: []}
    ends: set[_Pair] = set()
    pending = [begin]
    while pending:
        pair = pending.pop()
        one, other, different = pair
        lefts, rights = (follow[one], follow[other]) if one >= 0 else (net.starts[key_map], net.starts[key_map])
        budget.spend(len(lefts) * len(rights) + 1)
        for left in lefts:
            for right in rights:
                mask = masks[left] & masks[right]
                if not mask:
                    continue
                to = (left, right, different or tags[left] != tags[right])
                edges[pair].append((mask, to))
                if to not in edges:
                    edges[to] = []
                    pending.append(to)
                    if to[2] and left in net.ends and right in net.ends:
                        ends.add(to)
    return edges, ends


def _distances(edges: dict[_Pair, list[tuple[int, _Pair]]], ends: set[_Pair]) -> dict[_Pair, int]:
    """Return the fewest characters from each pair to an end; pairs that cannot reach an end are omitted."""
    before: dict[_Pair, list[_Pair]] = {}
    for pair, following in edges.items():
        for _, to in following:
            before.setdefault(to, []).append(pair)
    found = dict.fromkeys(ends, 0)
    layer = list(ends)
    while layer:
        following_layer = []
        for pair in layer:
            for each in before.get(pair, ()):
                if each not in found:
                    found[each] = found[pair] + 1
                    following_layer.append(each)
        layer = following_layer
    return found


def _net_signs(net: UnionNfa, key_map: int) -> Iterator[tuple[int, str]]:
    low, high = net.span[key_map]
    return _two_of_each(list(dict.fromkeys(net.masks[low:high])), net.letters)


def _two_of_each(masks: Sequence[int], letters: LetterClasses) -> Iterator[tuple[int, str]]:
    """Yield the two most readable characters of each class that these masks distinguish."""
    groups: dict[tuple[bool, ...], list[tuple[int, str]]] = {}
    for bit in range(len(letters.samples)):
        signature = tuple(bool(mask >> bit & 1) for mask in masks)
        groups.setdefault(signature, []).extend((1 << bit, sign) for sign in letters.some(1 << bit))
    for signature, members in groups.items():
        if any(signature):
            yield from sorted(members, key=lambda member: letters.rank(member[1]))[:2]
