r"""The sources or targets of many key maps as one automaton whose positions say what they stand for.

The positions are Glushkov's (V. M. Glushkov, "The abstract theory of automata", 1961): one for each character of a
pattern, and a run is the sequence of positions that read a word. Each position has a *tag*: its case and part, and
for a table also its entry. So a run says how its word is cut into parts, and two runs with the same tags give every
part the same text.

The cost of a target position is the number of source characters that it stands for, so that the cheapest target
shared by two runs belongs to the smallest pair of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from remapkit.proofs.automata import LetterClasses, Nfa, find_two_shortest
from remapkit.proofs.case import Case, Copy, Free, Lookup, TargetPart
from remapkit.proofs.cases import ProofContext, read_slot


@dataclass(frozen=True, slots=True)
class Line:
    """One case of one key map in an automaton, and its cost before the first character.

    `unused` has the shortest word of each slot that the target does not use.
    """

    key_map: int
    case: Case
    base: int = 0
    unused: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class TaggedNfa:
    """A union of automata, one line for each case of each key map.

    Position `p` reads `masks[p]`, is followed by `follow[p]`, costs `costs[p]`, and has the tag `tags[p]`; tag `t`
    belongs to part `parts[t]` of line `lines_of[t]`, and is entry `entries[t]` of a table or -1. `starts[a]` are the
    first positions of key map `a`, `nulls[a]` its lines that accept the empty word, `span[a]` the range of its
    positions.
    """

    letters: LetterClasses
    masks: list[int] = field(default_factory=list)
    follow: list[list[int]] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    costs: list[int] = field(default_factory=list)
    ends: set[int] = field(default_factory=set)
    labels: dict[int, int] = field(default_factory=dict)
    parts: list[int] = field(default_factory=list)
    lines_of: list[int] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    starts: dict[int, list[int]] = field(default_factory=dict)
    nulls: dict[int, list[int]] = field(default_factory=dict)
    span: dict[int, tuple[int, int]] = field(default_factory=dict)

    def line_of(self, position: int) -> int:
        """Return the line of a position."""
        return self.lines_of[self.tags[position]]

    def owner(self, position: int) -> int:
        """Return the key map of a position."""
        return self.lines[self.line_of(position)].key_map

    def read_source(self, line: int, positions: Sequence[int], text: str) -> str:
        """Return the shortest source key of a target that a line reads with these positions."""
        case = self.lines[line].case
        words = [""] * len(case.slots)
        for slot, word in self.lines[line].unused.items():
            words[slot] = word
        for position, character in zip(positions, text, strict=True):
            part = case.target[self.parts[self.tags[position]]]
            if isinstance(part, Copy):
                words[part.slot] += character
            elif isinstance(part, Lookup) and position in self.labels:
                for slot, word in zip(part.slots, part.entries[self.labels[position]][0], strict=True):
                    words[slot] = word
        return case.key(words)

    def add_sources(
        self, key_map: int, cases: Iterable[Case], context: ProofContext, *, entries: bool = False
    ) -> None:
        """Add the source keys of a key map; a tag's part is the slot. `entries` labels the words of tables."""
        begin = len(self.masks)
        for case in cases:
            self._add_line(Line(key_map, case))
            tables = {part.slots[0]: part for part in case.target if entries and isinstance(part, Lookup)}
            pieces = [
                context.pieces.table(tuple(words[0] for words, _ in tables[number].entries))
                if number in tables
                else read_slot(slot, context)
                for number, slot in enumerate(case.slots)
            ]
            self._add_parts([(number, piece, 1) for number, piece in enumerate(pieces)], context)
        self.span[key_map] = (begin, len(self.masks))

    def add_targets(self, key_map: int, cases: Iterable[Case], context: ProofContext) -> None:
        """Add the target keys of a key map; a tag's part is the part of the case's target."""
        begin = len(self.masks)
        for case in cases:
            unused = _find_unused(case, context)
            constant = sum(len(slot.word) for slot in case.slots if slot.word is not None)
            base = constant + sum(map(len, unused.values()))
            self._add_line(Line(key_map, case, base, unused))
            parts = [(number, *_read_part(part, case, context)) for number, part in enumerate(case.target)]
            self._add_parts(parts, context)
        self.span[key_map] = (begin, len(self.masks))

    def _add_line(self, line: Line) -> None:
        self.lines.append(line)
        self.starts.setdefault(line.key_map, [])
        self.nulls.setdefault(line.key_map, [])

    def _add_parts(self, parts: Sequence[tuple[int, Nfa, int | list[int]]], context: ProofContext) -> None:
        """Concatenate the parts of a new line. Every position and edge pays one step."""
        line = len(self.lines) - 1
        key_map = self.lines[line].key_map
        open_ends: list[int] = []
        empty = True
        for part, piece, costs in parts:
            here, count = len(self.masks), len(piece.masks)
            context.budget.spend(count + 1 + len(open_ends) * len(piece.first))
            self.masks += piece.masks
            self.follow += [[here + position for position in each] for each in piece.follow]
            self.costs += [costs] * count if isinstance(costs, int) else costs
            self._add_tags(piece, part, line)
            first = [here + position for position in piece.first]
            for position in open_ends:
                self.follow[position] += first
            if empty:
                self.starts[key_map] += first
            last = [here + position for position in piece.last]
            open_ends = open_ends + last if piece.nullable else last
            empty = empty and piece.nullable
        self.ends.update(open_ends)
        if empty:
            self.nulls[key_map].append(line)

    def _add_tags(self, piece: Nfa, part: int, line: int) -> None:
        """Tag the positions of a part; entries of a table that share their text get different tags.

        Two entries with one text end at two positions that follow the same one and read the same character.
        """
        here = len(self.tags)
        self.tags += [self._new_tag(part, line)] * len(piece.masks)
        if not piece.labels:
            return
        for before in (piece.first, *piece.follow):
            seen: set[int] = set()
            for position in before:
                if position in piece.labels:
                    self.labels[here + position] = piece.labels[position]
                    if piece.masks[position] in seen:
                        self.tags[here + position] = self._new_tag(part, line)
                    seen.add(piece.masks[position])

    def _new_tag(self, part: int, line: int) -> int:
        self.parts.append(part)
        self.lines_of.append(line)
        return len(self.parts) - 1


def _read_part(part: TargetPart, case: Case, context: ProofContext) -> tuple[Nfa, int | list[int]]:
    """Return the language of a part of the target, and the source characters that its positions stand for."""
    pieces = context.pieces
    if isinstance(part, str):
        return pieces.word(part), 0
    if isinstance(part, Copy):
        return read_slot(case.slots[part.slot], context), 1
    if isinstance(part, Free):
        return part.piece, 0
    if isinstance(part, Lookup):
        piece = pieces.table(tuple(text for _, text in part.entries))
        costs = [0] * len(piece.masks)
        for position, number in piece.labels.items():
            costs[position] = sum(map(len, part.entries[number][0]))
        return piece, costs
    return Nfa([context.letters.separator], [0], [[]], [0], False), 0


def _find_unused(case: Case, context: ProofContext) -> dict[int, str]:
    """Return the shortest word of each slot that the target does not use."""
    return {
        number: find_two_shortest(read_slot(case.slots[number], context), context.letters, context.budget)[0]
        for number in case.unused
    }
