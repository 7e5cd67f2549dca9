r"""Nets: the sources, or the targets, of many arrows as one automaton; `searches.py` asks the questions.

A position of a target costs as many characters as it stands for in the source, so that the cheapest target that two
arrows share is that of the smallest pair of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from remapkit.patterns.finite import words_node
from remapkit.proofs.automata import Letters, Piece, shortest_words
from remapkit.proofs.linear import Beyond, Index, Loose, Same, Slot, Table, Tools, Variant, lost


@dataclass(slots=True)
class Net:
    """A union of automata, one for each variant ("line") of each arrow.

    Position `p` reads `masks[p]`, costs `costs[p]`, and is tagged with the stretch it belongs to (`tags[p]`, unique
    in the net). `starts[a]` are the first positions of arrow `a`, `nulls[a]` its lines that accept the empty word.
    """

    letters: Letters
    masks: list[int] = field(default_factory=list)
    follow: list[list[int]] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    costs: list[int] = field(default_factory=list)
    line: list[int] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    ends: set[int] = field(default_factory=set)
    lines: list[Line] = field(default_factory=list)
    stretches: list[int] = field(default_factory=list)
    starts: dict[int, list[int]] = field(default_factory=dict)
    nulls: dict[int, list[int]] = field(default_factory=dict)
    span: dict[int, tuple[int, int]] = field(default_factory=dict)
    shortest: dict[tuple[int, int], str] = field(default_factory=dict)

    def source(self, line: int, positions: Sequence[int], text: str) -> str:
        """The shortest source key of a target that a line reads by these positions."""
        variant = self.lines[line].variant
        words = [slot.word if slot.word is not None else "" for slot in variant.slots]
        for slot in variant.unused:
            words[variant.slots.index(slot)] = self.shortest[line, slot.part]
        for position, character in zip(positions, text, strict=True):
            stretch = variant.target[self.stretches[self.tags[position]]]
            if isinstance(stretch, Same):
                words[stretch.slot] += character
            elif isinstance(stretch, Table) and position in self.labels:
                words[stretch.slot] = self.labels[position]
        return "".join(words)


@dataclass(frozen=True, slots=True)
class Line:
    """One variant in a net: whose it is, what it costs before its first character, and what its target loses."""

    arrow: int
    variant: Variant
    base: int
    losses: tuple[tuple[int, str, str], ...] = ()


class NetBuilder:
    """Puts arrows into a net, one after the other."""

    def __init__(self, tools: Tools, *, admitted: bool = False) -> None:
        self.tools = tools
        self.admitted = admitted
        """Whether what tables that say so lose is left out."""
        self.net = Net(tools.letters)

    def sources(self, arrow: int, found: Iterable[Variant]) -> None:
        """The source keys of an arrow."""
        begin = len(self.net.masks)
        for variant in found:
            self._line(Line(arrow, variant, 0))
            self._sequence([(slot.part, *self._read(slot)) for slot in variant.slots])
        self.net.span[arrow] = (begin, len(self.net.masks))

    def _read(self, slot: Slot) -> tuple[Piece, list[int] | int]:
        piece = slot.piece
        return (self.tools.pieces.word(slot.word or "") if piece is None else piece), 1

    def targets(self, arrow: int, found: Iterable[Variant]) -> None:
        """The target keys of an arrow."""
        begin = len(self.net.masks)
        for variant in found:
            losses = tuple(lost(variant, self.tools))
            constant = sum(len(slot.word) for slot in variant.slots if slot.word is not None)
            dropped = 0
            for slot in variant.unused:
                word = self._shortest(slot)
                self.net.shortest[len(self.net.lines), slot.part] = word
                dropped += len(word)
            self._line(Line(arrow, variant, constant + dropped, losses))
            stretches = [(number, *self._written(each, variant)) for number, each in enumerate(variant.target)]
            self._sequence(stretches)
        self.net.span[arrow] = (begin, len(self.net.masks))

    def _shortest(self, slot: Slot) -> str:
        assert slot.piece is not None
        return shortest_words(slot.piece, self.tools.letters, 1, self.tools.budget)[0]

    def _written(self, stretch: object, variant: Variant) -> tuple[Piece, list[int] | int]:
        pieces = self.tools.pieces
        if isinstance(stretch, str):
            return pieces.word(stretch), 0
        if isinstance(stretch, Same):
            return self._read(variant.slots[stretch.slot])
        if isinstance(stretch, Loose):
            return pieces.of(words_node(stretch.words)), 0
        if isinstance(stretch, Index):
            return pieces.of(stretch.made.node), 0
        if isinstance(stretch, Beyond):
            return Piece([self.tools.letters.separator], [0], [[]], [0], False), 0
        assert isinstance(stretch, Table)
        piece = pieces.spelt(_some_of_each(stretch.entries, 1 if self.admitted and stretch.lossy else 2))
        return piece, [len(piece.labels.get(position, "")) for position in range(len(piece.masks))]

    def _line(self, line: Line) -> None:
        self.net.lines.append(line)
        self.net.starts.setdefault(line.arrow, [])
        self.net.nulls.setdefault(line.arrow, [])

    def _sequence(self, stretches: Sequence[tuple[int, Piece, list[int] | int]]) -> None:
        net, number = self.net, len(self.net.lines) - 1
        starts = net.starts[net.lines[number].arrow]
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
            net.nulls[net.lines[number].arrow].append(number)

    def _tagged(self, piece: Piece, stretch: int) -> list[int]:
        """A tag for the stretch, and another one for entries of a table that share their text with another."""
        net = self.net
        tag = len(net.stretches)
        net.stretches.append(stretch)
        tags = [tag] * len(piece.masks)
        if not piece.labels:
            return tags
        # Two entries of one value end at two positions after the same prefix, reading the same character.
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
    """(value, key) of a table, for each value with its shortest keys."""
    by_value: dict[str, list[str]] = {}
    for key, value in entries:
        by_value.setdefault(value, []).append(key)
    for value, keys in by_value.items():
        for key in sorted(keys, key=lambda each: (len(each), each))[:count]:
            yield value, key
