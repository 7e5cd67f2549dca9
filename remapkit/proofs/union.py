r"""The sources or targets of many key maps as one automaton, which `product.py` searches.

The cost of a target position is the number of source characters that it represents, so that the cheapest target
shared by two key maps belongs to the smallest pair of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from remapkit.patterns.finite import build_words_node
from remapkit.proofs.automata import LetterClasses, Nfa, shortest_words
from remapkit.proofs.linear import ProofContext, find_losses
from remapkit.proofs.linear_map import AnyWord, Index, LinearMap, Separator, TableRef, Variable, VariableRef


@dataclass(slots=True)
class UnionNfa:
    """A union of automata, one for each variant ("line") of each key map.

    Position `p` reads `masks[p]`, costs `costs[p]`, and has the tag of the part it belongs to (`tags[p]`, unique in
    the net). `starts[a]` are the first positions of key map `a`, `nulls[a]` its lines that accept the empty word.
    """

    letters: LetterClasses
    masks: list[int] = field(default_factory=list)
    follow: list[list[int]] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    costs: list[int] = field(default_factory=list)
    line: list[int] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    ends: set[int] = field(default_factory=set)
    lines: list[Member] = field(default_factory=list)
    stretches: list[int] = field(default_factory=list)
    starts: dict[int, list[int]] = field(default_factory=dict)
    nulls: dict[int, list[int]] = field(default_factory=dict)
    span: dict[int, tuple[int, int]] = field(default_factory=dict)
    shortest: dict[tuple[int, int], str] = field(default_factory=dict)

    def source(self, line: int, positions: Sequence[int], text: str) -> str:
        """Return the shortest source key of a target that a line reads with these positions."""
        variant = self.lines[line].variant
        words = [slot.word if slot.word is not None else "" for slot in variant.slots]
        for slot in variant.unused:
            words[variant.slots.index(slot)] = self.shortest[line, slot.part]
        for position, character in zip(positions, text, strict=True):
            stretch = variant.target[self.stretches[self.tags[position]]]
            if isinstance(stretch, VariableRef):
                words[stretch.slot] += character
            elif isinstance(stretch, TableRef) and position in self.labels:
                words[stretch.slot] = self.labels[position]
        return "".join(words)


@dataclass(frozen=True, slots=True)
class Member:
    """One variant in a net: its key map, its cost before the first character, and the losses of its target."""

    key_map: int
    variant: LinearMap
    base: int
    losses: tuple[tuple[int, str, str], ...] = ()


class NetBuilder:
    """A builder of a net from key maps."""

    def __init__(self, tools: ProofContext, *, admitted: bool = False) -> None:
        self.tools = tools
        self.admitted = admitted
        """Whether the losses of tables declared lossy are ignored."""
        self.net = UnionNfa(tools.letters)

    def sources(self, key_map: int, found: Iterable[LinearMap]) -> None:
        """Add the source keys of a key map."""
        begin = len(self.net.masks)
        for variant in found:
            self._line(Member(key_map, variant, 0))
            self._sequence([(slot.part, *self._read(slot)) for slot in variant.slots])
        self.net.span[key_map] = (begin, len(self.net.masks))

    def _read(self, slot: Variable) -> tuple[Nfa, list[int] | int]:
        piece = slot.piece
        return (self.tools.pieces.word(slot.word or "") if piece is None else piece), 1

    def targets(self, key_map: int, found: Iterable[LinearMap]) -> None:
        """Add the target keys of a key map."""
        begin = len(self.net.masks)
        for variant in found:
            losses = tuple(find_losses(variant, self.tools))
            constant = sum(len(slot.word) for slot in variant.slots if slot.word is not None)
            dropped = 0
            for slot in variant.unused:
                word = self._shortest(slot)
                self.net.shortest[len(self.net.lines), slot.part] = word
                dropped += len(word)
            self._line(Member(key_map, variant, constant + dropped, losses))
            stretches = [(number, *self._written(each, variant)) for number, each in enumerate(variant.target)]
            self._sequence(stretches)
        self.net.span[key_map] = (begin, len(self.net.masks))

    def _shortest(self, slot: Variable) -> str:
        assert slot.piece is not None
        return shortest_words(slot.piece, self.tools.letters, 1, self.tools.budget)[0]

    def _written(self, stretch: object, variant: LinearMap) -> tuple[Nfa, list[int] | int]:
        pieces = self.tools.pieces
        if isinstance(stretch, str):
            return pieces.word(stretch), 0
        if isinstance(stretch, VariableRef):
            return self._read(variant.slots[stretch.slot])
        if isinstance(stretch, AnyWord):
            return pieces.of(build_words_node(stretch.words)), 0
        if isinstance(stretch, Index):
            return pieces.of(stretch.made.node), 0
        if isinstance(stretch, Separator):
            return Nfa([self.tools.letters.separator], [0], [[]], [0], False), 0
        assert isinstance(stretch, TableRef)
        piece = pieces.build_words(_some_of_each(stretch.entries, 1 if self.admitted and stretch.lossy else 2))
        return piece, [len(piece.labels.get(position, "")) for position in range(len(piece.masks))]

    def _line(self, line: Member) -> None:
        self.net.lines.append(line)
        self.net.starts.setdefault(line.key_map, [])
        self.net.nulls.setdefault(line.key_map, [])

    def _sequence(self, stretches: Sequence[tuple[int, Nfa, list[int] | int]]) -> None:
        net, number = self.net, len(self.net.lines) - 1
        starts = net.starts[net.lines[number].key_map]
        self.tools.budget.spend(sum(len(piece.masks) for _, piece, _ in stretches))
        open_ends: list[int] = []
        empty = True
        for stretch, piece, costs in stretches:
            here = len(net.masks)
            count = len(piece.masks)
            net.masks += piece.masks
            net.follow += [[here + position for position in each] for each in piece.follow]
            net.costs += [costs] * count if isinstance(costs, int) else costs
            net.line += [number] * count
            net.tags += self._tagged(piece, stretch)
            first = [here + position for position in piece.first]
            for position in open_ends:
                net.follow[position] += first
            if empty:
                starts += first
            last = [here + position for position in piece.last]
            open_ends = open_ends + last if piece.nullable else last
            empty = empty and piece.nullable
            for position, label in piece.labels.items():
                net.labels[here + position] = label
        net.ends.update(open_ends)
        if empty:
            net.nulls[net.lines[number].key_map].append(number)

    def _tagged(self, piece: Nfa, stretch: int) -> list[int]:
        """Return a tag for the part, and separate tags for table entries that share their text with another."""
        net = self.net
        tag = len(net.stretches)
        net.stretches.append(stretch)
        tags = [tag] * len(piece.masks)
        if not piece.labels:
            return tags
        # Two entries with the same value end at two positions after the same prefix and read the same character.
        for before in (piece.first, *piece.follow):
            here: set[int] = set()
            for position in before:
                if position in piece.labels:
                    if piece.masks[position] in here:
                        tags[position] = len(net.stretches)
                        net.stretches.append(stretch)
                    here.add(piece.masks[position])
        return tags


def _some_of_each(entries: Iterable[tuple[str, str]], count: int) -> Iterator[tuple[str, str]]:
    """Yield (value, key) pairs of a table: each value with its shortest keys."""
    by_value: dict[str, list[str]] = {}
    for key, value in entries:
        by_value.setdefault(value, []).append(key)
    for value, keys in by_value.items():
        for key in sorted(keys, key=lambda each: (len(each), each))[:count]:
            yield value, key
