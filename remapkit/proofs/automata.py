r"""Regular languages for the proofs: small automata over one shared partition of the alphabet.

A set of characters is a bit mask over the classes of that partition, so that "can both read one character" is one
`&`. A `Piece` is the language of one stretch of a key; a `Guide` is a deterministic automaton that the keys must also
satisfy (a `leaf:` guard, a declared domain), and `Product` makes it part of a piece.

Every search spends from a `Budget` of elementary steps: steps, not states, because one state can be arbitrarily dear.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from remapkit.patterns.automaton import READABLE, TooMany, alphabet, automaton
from remapkit.patterns.tree import Alt, Chars, Group, Node, Part, Ranges, Repeat, Seq, contains, one

_RANK: dict[str, int] = {chr(code): number for number, code in reversed(list(enumerate(READABLE)))}


PIECE_EDGES = 200_000
"""A pattern with more steps from one position to the next is not looked into."""


class Exhausted(Exception):
    """A question was not settled within its budget."""


class Budget:
    """Elementary steps that may still be spent, in all and on the question at hand.

    >>> budget = Budget(100)
    >>> budget.ask(10)
    >>> budget.spend(5), budget.left
    (None, 95)
    >>> budget.spend(6)
    Traceback (most recent call last):
        ...
    remapkit.languages.Exhausted
    """

    def __init__(self, total: int) -> None:
        self.total = self.left = total
        self.floor = 0

    def ask(self, limit: int | None = None) -> None:
        """A new question, which may spend `limit` steps (a tenth of all where none is given)."""
        self.floor = max(0, self.left - (self.total // 10 if limit is None else limit))

    def spend(self, steps: int) -> None:
        """Spend; raises `Exhausted` where nothing is left."""
        self.left -= steps
        if self.left < self.floor or self.left <= 0:
            raise Exhausted


class Letters:
    """The shared partition: masks of sets and characters, and a readable character of each class."""

    def __init__(self, sets: Iterable[Ranges]) -> None:
        found = alphabet(sets)
        self.masks: Mapping[Ranges, int] = found.masks
        self.samples = found.samples
        self.all = (1 << len(found.samples)) - 1
        self.separator = 1 << len(found.samples)
        """A class of its own that no key has: what stands between a target and what counts as part of it."""
        self._known: dict[str, int] = {}
        two = [(1 << bit, sign) for bit, samples in enumerate(found.samples) for sign in samples[:2]]
        self._best = sorted(two, key=lambda each: self.rank(each[1]))

    @staticmethod
    def rank(character: str) -> int:
        """How readable a character is: the lower the better."""
        return _RANK.get(character, len(_RANK))

    def character(self, character: str) -> int:
        """The mask of the class that a character belongs to: of it alone, where the partition has it as a set."""
        mask = self._known.get(character)
        if mask is None:
            mask = self.masks.get(one(character))
            if mask is None:
                mask = self.all
                for chars, members in self.masks.items():
                    mask &= members if contains(chars, character) else ~members
            self._known[character] = mask
        return mask

    def mask(self, chars: Ranges) -> int:
        """The mask of a set that the partition knows, or of characters that are classes of their own."""
        known = self.masks.get(chars)
        if known is not None:
            return known
        found = 0
        for low, high in chars:
            for code in range(low, high + 1):
                found |= self.character(chr(code))
        return found

    def pick(self, mask: int) -> str:
        """The most readable character of a mask."""
        return next((sign for bit, sign in self._best if bit & mask), "|")

    def some(self, mask: int) -> Iterator[str]:
        """Two characters of every class of a mask (one where it has one), the most readable first.

        Two are enough: characters of one class can be exchanged for one another in every automaton, so what can be
        shown with any number of them can be shown with two.
        """
        for bit, sign in self._best:
            if bit & mask:
                yield sign


def characters(node: Node) -> Iterator[Ranges]:
    """Every set of characters in a tree."""
    pending = [node]
    while pending:
        each = pending.pop()
        if isinstance(each, Chars):
            yield each.chars
        elif isinstance(each, Seq):
            pending += each.items
        elif isinstance(each, Alt):
            pending += each.branches
        elif isinstance(each, Repeat | Group):
            pending.append(each.item)


@dataclass(slots=True)
class Piece:
    """An automaton without empty steps: position `p` reads `masks[p]`; see `automaton.Automaton`.

    `labels` gives, for a piece that spells a finite list out, the label of the entry that ends at a position.
    """

    masks: list[int]
    first: list[int]
    follow: list[list[int]]
    last: list[int]
    nullable: bool
    labels: dict[int, str] = field(default_factory=dict)


class Pieces:
    """Makes pieces over one partition, and remembers those of equal trees."""

    def __init__(self, letters: Letters) -> None:
        self.letters = letters
        self._known: dict[Node, Piece] = {}

    def of(self, node: Node) -> Piece:
        """The language of a tree."""
        found = self._known.get(node)
        if found is None:
            found = self._known[node] = self._made(node)
        return found

    def _made(self, node: Node) -> Piece:
        try:
            machine = automaton((Part(None, node),), PIECE_EDGES)
        except TooMany:
            raise Exhausted from None
        masks = [self.letters.mask(chars) for chars in machine.chars]
        follow = [list(each) for each in machine.follow]
        return Piece(masks, list(machine.first), follow, sorted(machine.last), machine.nullable)

    def word(self, word: str) -> Piece:
        """The language of one word."""
        masks = [self.letters.character(character) for character in word]
        follow = [[number + 1] for number in range(len(word) - 1)] + [[] for _ in word[:1]]
        return Piece(masks, [0] if word else [], follow, [len(word) - 1] if word else [], not word)

    def spelt(self, entries: Iterable[tuple[str, str]]) -> Piece:
        """A finite language as a trie; each entry is a word and a label, and ends at a position of its own."""
        piece = Piece([], [], [], [], False)
        inner: dict[str, int] = {}
        for word, label in entries:
            if not word:
                piece.nullable = True
                continue
            before = piece.first
            for length in range(1, len(word)):
                prefix = word[:length]
                if prefix not in inner:
                    inner[prefix] = self._position(piece, before, word[length - 1])
                before = piece.follow[inner[prefix]]
            end = self._position(piece, before, word[-1])
            piece.last.append(end)
            piece.labels[end] = label
        return piece

    def _position(self, piece: Piece, before: list[int], character: str) -> int:
        piece.masks.append(self.letters.character(character))
        piece.follow.append([])
        before.append(len(piece.masks) - 1)
        return len(piece.masks) - 1


def joined(pieces: Sequence[Piece]) -> Piece:
    """One piece after the other."""
    whole = Piece([], [], [], [], True)
    for piece in pieces:
        here = len(whole.masks)
        first = [here + position for position in piece.first]
        whole.masks += piece.masks
        whole.follow += [[here + position for position in each] for each in piece.follow]
        for position in whole.last:
            whole.follow[position] += first
        if whole.nullable:
            whole.first += first
        last = [here + position for position in piece.last]
        whole.last = whole.last + last if piece.nullable else last
        whole.nullable = whole.nullable and piece.nullable
    return whole


def reads(piece: Piece, word: str, letters: Letters) -> bool:
    """Whether a word belongs to the language; its characters must be ones the partition was made for."""
    if not word:
        return piece.nullable
    at: Iterable[int] = ()
    for number, character in enumerate(word):
        mask = letters.character(character)
        following = {q for p in at for q in piece.follow[p]} if number else piece.first
        at = [position for position in following if piece.masks[position] & mask]
    return not set(piece.last).isdisjoint(at)


def shortest_words(piece: Piece, letters: Letters, count: int, budget: Budget) -> list[str]:
    """The `count` shortest words, or all where there are fewer."""
    found = [""] if piece.nullable else []
    last = set(piece.last)
    layer: dict[str, set[int]] = {"": set()}
    while layer and len(found) < count:
        following: dict[str, set[int]] = {}
        for word, at in layer.items():
            for position in {each for p in at for each in piece.follow[p]} if word else piece.first:
                for character in letters.some(piece.masks[position]):
                    budget.spend(1)
                    following.setdefault(word + character, set()).add(position)
        ended = [word for word, at in following.items() if at & last]
        found += ended
        # A word that only repeats what another one can do from here on is needed only for its own sake.
        layer = _enough(following, count)
    return found[:count]


def _enough(words: Mapping[str, set[int]], count: int) -> dict[str, set[int]]:
    kept: dict[str, set[int]] = {}
    seen: dict[frozenset[int], int] = {}
    for word, at in words.items():
        key = frozenset(at)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= count:
            kept[word] = at
    return kept


# ------------------------------------------------------------------------------------------------ guides


class Guide(Protocol):
    """A deterministic automaton, worked out as it is walked."""

    @property
    def start(self) -> int:
        """The state before the first character."""

    def steps(self, state: int) -> Sequence[tuple[int, int]]:
        """(mask, next state): the masks are disjoint; what is in none of them leads nowhere."""

    def accepts(self, state: int) -> bool:
        """Whether a key may end here."""


class LeafGuide:
    """Keys whose last segment is one of some words: a trie of them, begun anew after each dot."""

    def __init__(self, leaves: Iterable[str], letters: Letters) -> None:
        dot = letters.character(".")
        self.start, self._lost = 0, 1
        edges: list[dict[str, int]] = [{}, {}]
        self._ends = set[int]()
        for leaf in leaves:
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


class SetGuide:
    """The union of some pieces: the sets of positions that a key can have led to (the subset construction)."""

    def __init__(self, pieces: Sequence[Piece], letters: Letters, budget: Budget) -> None:
        self.letters, self.budget = letters, budget
        self.masks: list[int] = []
        self.follow: list[list[int]] = []
        self.ends = set[int]()
        first: list[int] = []
        for piece in pieces:
            here = len(self.masks)
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
            self.budget.spend(len(following) + 1)
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


class BothGuides:
    """What two guides accept."""

    def __init__(self, one: Guide, other: Guide) -> None:
        self.one, self.other = one, other
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
        return [
            (mask & other, self._number((to, also)))
            for mask, to in self.one.steps(left)
            for other, also in self.other.steps(right)
            if mask & other
        ]

    def accepts(self, state: int) -> bool:
        left, right = self._pairs[state]
        return self.one.accepts(left) and self.other.accepts(right)


def partition(positions: Iterable[int], masks: Sequence[int], everything: int) -> list[tuple[int, list[int]]]:
    """Positions grouped by what they read: (mask, those that read each character of it), the masks disjoint."""
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


def walk(guide: Guide, state: int, word: str, letters: Letters) -> int | None:
    """Where a word leads, or None."""
    here: int | None = state
    for character in word:
        mask = letters.character(character)
        here = next((to for step, to in guide.steps(here) if step & mask), None) if here is not None else None
    return here


class Product:
    """A piece walked beside a guide from one of its states: which states its words lead to, and by which words.

    A node is (position, mask, state): `position` read a character of `mask`, and the guide is in `state` after it.
    """

    def __init__(self, piece: Piece, guide: Guide, start: int, budget: Budget) -> None:
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

    def ending_in(self, ends: set[int]) -> Piece:
        """The words that lead from the start to one of these states."""
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
        return Piece(
            [self._keys[number][1] for number in sorted(alive)],
            [new[number] for number in self._first if number in alive],
            [[new[each] for each in self._edges[number] if each in alive] for number in sorted(alive)],
            [new[number] for number in last],
            self._piece.nullable and self._start in ends,
        )
