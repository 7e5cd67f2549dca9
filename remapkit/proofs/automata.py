"""Regular languages for the proofs: small automata over one shared partition of the alphabet.

A set of characters is a bit mask over the classes of that partition, so that "can both read the same character" is
one `&`. An `Nfa` is the language of one part of a key; a `Dfa` is an automaton that whole keys must also satisfy (a
`leaf:` guard, a declared domain), and `Product` combines it with an `Nfa`.

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

_RANK: dict[str, int] = {chr(code): number for number, code in reversed(list(enumerate(READABLE)))}


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
        """A separate class that no key has: it separates a target from the captures that count as part of it."""
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
        """Return the most readable character of a mask."""
        return next((sign for bit, sign in self._best if bit & mask), "|")

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

    For a piece made of a finite list, `labels` has the label of the entry that ends at a position.
    """

    masks: list[int]
    first: list[int]
    follow: list[list[int]]
    last: list[int]
    nullable: bool
    labels: dict[int, str] = field(default_factory=dict)


class Pieces:
    """A factory of pieces over one partition; caches the pieces of equal trees."""

    def __init__(self, letters: LetterClasses) -> None:
        self.letters = letters
        self._known: dict[PatternNode, Nfa] = {}

    def of(self, node: PatternNode) -> Nfa:
        """Return the language of a tree."""
        found = self._known.get(node)
        if found is None:
            found = self._known[node] = self._made(node)
        return found

    def _made(self, node: PatternNode) -> Nfa:
        try:
            machine = build_automaton((Part(None, node),), PIECE_EDGES)
        except TooMany:
            raise Exhausted from None
        masks = [self.letters.mask(chars) for chars in machine.chars]
        follow = [list(each) for each in machine.follow]
        return Nfa(masks, list(machine.first), follow, sorted(machine.last), machine.nullable)

    def word(self, word: str) -> Nfa:
        """Return the language of one word."""
        masks = [self.letters.character(character) for character in word]
        follow = [[number + 1] for number in range(len(word) - 1)] + [[] for _ in word[:1]]
        return Nfa(masks, [0] if word else [], follow, [len(word) - 1] if word else [], not word)

    def build_words(self, entries: Iterable[tuple[str, str]]) -> Nfa:
        """Build a finite language as a trie; each entry is a word and a label, and ends at a separate position."""
        piece = Nfa([], [], [], [], False)
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

    def _position(self, piece: Nfa, before: list[int], character: str) -> int:
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


def shortest_words(piece: Nfa, letters: LetterClasses, count: int, budget: Budget) -> list[str]:
    """Return the `count` shortest words, or all if there are fewer."""
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
        # Keep at most `count` words per set of positions: their continuations are the same.
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
