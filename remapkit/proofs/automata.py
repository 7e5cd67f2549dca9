"""Regular languages for the proofs: small automata over one shared partition of the alphabet.

A set of characters is a bit mask over the classes of that partition, so that "can both read the same character" is
one `&`. An `Nfa` is the language of one part of a key, with Glushkov's positions; `tagged.py` joins many of them into
one automaton.

Every search uses a `Budget` of elementary steps, not of states, because the cost of a state is not bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from remapkit.patterns.automaton import READABLE, TooMany, build_alphabet, build_automaton
from remapkit.patterns.charset import Ranges, contains, singleton
from remapkit.patterns.pattern import Part
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat, Seq
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.search import Move, find_cheapest

_RANK: dict[str, int] = {chr(code): number for number, code in reversed(list(enumerate(READABLE)))}


SEPARATOR = "\ud800"
"""A character that no key has: it separates the hidden outputs of a key map from its target."""

PIECE_EDGES = 200_000
"""A pattern with more edges between positions is not examined."""


class LetterClasses:
    """The shared partition: masks of sets and characters, and a readable character of each class."""

    def __init__(self, sets: Iterable[Ranges]) -> None:
        found = build_alphabet(sets)
        self.masks: Mapping[Ranges, int] = found.masks
        self.samples = found.samples
        self.all = (1 << len(found.samples)) - 1
        self.separator = 1 << len(found.samples)
        """The class of `SEPARATOR`."""
        self._known: dict[str, int] = {}
        two = [(1 << bit, sign) for bit, samples in enumerate(found.samples) for sign in samples[:2]]
        self._best = sorted(two, key=lambda each: self.rank(each[1]))

    @staticmethod
    def rank(character: str) -> int:
        """Return the readability of a character: lower is better."""
        return _RANK.get(character, len(_RANK))

    def character(self, character: str) -> int:
        """Return the mask of a character's class, which is only this character if the partition has it as a set."""
        mask = self._known.get(character)
        if mask is None:
            mask = self.masks.get(singleton(character))
            if mask is None:
                mask = self.all
                for chars, members in self.masks.items():
                    mask &= members if contains(chars, character) else ~members
            self._known[character] = mask
        return mask

    def mask(self, chars: Ranges) -> int:
        """Return the mask of a set that is in the partition, or of characters that are separate classes."""
        known = self.masks.get(chars)
        if known is not None:
            return known
        found = 0
        for low, high in chars:
            for code in range(low, high + 1):
                found |= self.character(chr(code))
        return found

    def pick(self, mask: int) -> str:
        """Return the most readable character of a mask; `SEPARATOR` for the class that no key has."""
        return next((sign for bit, sign in self._best if bit & mask), SEPARATOR)

    def some(self, mask: int) -> Iterator[str]:
        """Yield two characters of every class of a mask (one if it has only one), the most readable first.

        Two are enough: characters of one class are interchangeable in every automaton, so anything that can be shown
        with any number of them can be shown with two.
        """
        for bit, sign in self._best:
            if bit & mask:
                yield sign


def characters(node: PatternNode) -> Iterator[Ranges]:
    """Yield every set of characters in a tree."""
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
class Nfa:
    """An automaton without empty transitions: position `p` reads `masks[p]`; see `build_automaton.Automaton`.

    For a piece made of a table, `labels` has the number of the entry that ends at a position.
    """

    masks: list[int]
    first: list[int]
    follow: list[list[int]]
    last: list[int]
    nullable: bool
    labels: dict[int, int] = field(default_factory=dict)


class Pieces:
    """A factory of pieces over one partition; caches the pieces of equal trees, and pays for what it builds."""

    def __init__(self, letters: LetterClasses, budget: Budget) -> None:
        self.letters, self.budget = letters, budget
        self._known: dict[PatternNode, Nfa] = {}
        self._tables: dict[tuple[str, ...], Nfa] = {}

    def of(self, node: PatternNode) -> Nfa:
        """Return the language of a tree."""
        found = self._known.get(node)
        if found is None:
            found = self._known[node] = self._build(node)
        return found

    def _build(self, node: PatternNode) -> Nfa:
        try:
            machine = build_automaton((Part(None, node),), min(PIECE_EDGES, self.budget.rest))
        except TooMany:
            raise Exhausted from None
        follow = [list(each) for each in machine.follow]
        self.budget.spend(len(follow) + sum(map(len, follow)))
        masks = [self.letters.mask(chars) for chars in machine.chars]
        return Nfa(masks, list(machine.first), follow, sorted(machine.last), machine.nullable)

    def word(self, word: str) -> Nfa:
        """Return the language of one word."""
        self.budget.spend(len(word))
        masks = [self.letters.character(character) for character in word]
        follow = [[number + 1] for number in range(len(word) - 1)] + [[] for _ in word[:1]]
        return Nfa(masks, [0] if word else [], follow, [len(word) - 1] if word else [], not word)

    def table(self, words: tuple[str, ...]) -> Nfa:
        """Return a list of words as a trie in which each entry ends at a position of its own, labelled by its number.

        So two entries with one text are two readings of it. The empty word has no position, hence no label.
        """
        found = self._tables.get(words)
        if found is None:
            found = self._tables[words] = self._build_table(words)
        return found

    def _build_table(self, words: Iterable[str]) -> Nfa:
        piece = Nfa([], [], [], [], False)
        inner: dict[tuple[int, str], int] = {}
        for number, word in enumerate(words):
            self.budget.spend(len(word) + 1)
            if not word:
                piece.nullable = True
                continue
            before, here = piece.first, -1
            for character in word[:-1]:
                step = here, character
                if step not in inner:
                    inner[step] = self._add(piece, before, character)
                here = inner[step]
                before = piece.follow[here]
            end = self._add(piece, before, word[-1])
            piece.last.append(end)
            piece.labels[end] = number
        return piece

    def _add(self, piece: Nfa, before: list[int], character: str) -> int:
        piece.masks.append(self.letters.character(character))
        piece.follow.append([])
        before.append(len(piece.masks) - 1)
        return len(piece.masks) - 1


def concatenate(pieces: Sequence[Nfa]) -> Nfa:
    """Concatenate pieces."""
    whole = Nfa([], [], [], [], True)
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


def reads(piece: Nfa, word: str, letters: LetterClasses) -> bool:
    """Return whether a word belongs to the language; the partition must have been made for its characters."""
    if not word:
        return piece.nullable
    at: Iterable[int] = ()
    for number, character in enumerate(word):
        mask = letters.character(character)
        following = {q for p in at for q in piece.follow[p]} if number else piece.first
        at = [position for position in following if piece.masks[position] & mask]
    return not set(piece.last).isdisjoint(at)


def find_two_shortest(piece: Nfa, letters: LetterClasses, budget: Budget) -> list[str]:
    """Return the two shortest words, or the only one.

    The second one is the shortest word that leaves the first: a state is a position and how much of the first word
    was read so far, -1 once the reading has left it. So the cost is positions times length, not a count of words.
    """
    last = set(piece.last)

    def follow_any(position: int) -> Iterator[Move[int]]:
        for each in piece.follow[position] if position >= 0 else piece.first:
            yield 1, each, letters.pick(piece.masks[each])

    def is_end(position: int) -> bool:
        return position in last or (position < 0 and piece.nullable)

    shortest = find_cheapest([(0, -1, "")], follow_any, is_end, budget)
    if shortest is None:
        return []
    first = shortest[1]

    def follow_other(state: tuple[int, int]) -> Iterator[Move[tuple[int, int]]]:
        position, shared = state
        for each in piece.follow[position] if position >= 0 else piece.first:
            mask = piece.masks[each]
            same = first[shared] if 0 <= shared < len(first) else None
            if same is not None and letters.character(same) & mask:
                yield 1, (each, shared + 1), same
            if sign := next((sign for sign in letters.some(mask) if sign != same), ""):
                yield 1, (each, -1), sign

    def is_other(state: tuple[int, int]) -> bool:
        return is_end(state[0]) and state[1] != len(first)

    other = find_cheapest([(0, (-1, 0), "")], follow_other, is_other, budget)
    return [first] if other is None else [first, other[1]]
