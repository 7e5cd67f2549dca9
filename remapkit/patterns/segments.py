"""Check the segments of a path that have several captures: every key must be split in one way only.

Two captures may share a segment if no key has two cuts, for example because the first one is bounded (`{a:int}`, a
range, a list of words) and ends where something begins that cannot continue it. This is decided, not guessed: two
runs of the segment's automaton over one text are followed together, shortest text first, so that a refusal shows the
shortest key and both of its cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Text
from remapkit.diagnostics.wording import join_words
from remapkit.patterns.automaton import READABLE, Automaton, build_alphabet, build_automaton
from remapkit.patterns.charset import complement, merge_ranges, singleton
from remapkit.patterns.literals import describe_sign
from remapkit.patterns.pattern import CANONICAL, SEGMENT, Part
from remapkit.patterns.steps import Steps, is_shown
from remapkit.patterns.tree import literal
from remapkit.patterns.unparse import unparse_chars
from remapkit.rulefile.yaml.compose import MAX_PROBLEMS

MAX_STEPS = 100_000
"""The most steps to find out whether a path that is about to be suggested or written splits every key in one way."""

Cut = tuple[str, ...]
"""The text of each part."""
_Pair = tuple[int, int, bool]
"""The positions of two runs over one text (-1: the start), and whether they have given a character to two parts."""


def check_segments(text: Text, parts: Sequence[Part], steps: Steps) -> list[Diagnostic]:
    """Return the problems (RK132) of segments whose captures can be cut in several ways; may raise `TooMany`."""
    if sum(part.name is not None for part in parts) < 2:
        return []
    pieces = list(_list_pieces(parts))
    dots = [place for place, piece in enumerate(pieces) if piece is None]
    problems = []
    for start, end in zip((0, *(place + 1 for place in dots)), (*dots, len(pieces)), strict=True):
        segment = [piece for piece in pieces[start:end] if piece is not None]
        if sum(piece.name is not None for piece in segment) < 2:
            continue
        cuts = find_two_cuts(segment, steps)
        if cuts is not None:
            context = (_write_shortest(pieces[:start]), _write_shortest(pieces[end:]))
            problems.append(_describe_cuts(text, segment, cuts, context))
            if len(problems) == MAX_PROBLEMS:
                break
    return problems


def reads_segments_one_way(parts: Sequence[Part]) -> bool:
    """Return whether it is shown, within `MAX_STEPS`, that no segment can be cut in several ways."""
    return is_shown(lambda within: not check_segments(Text.of(""), parts, within), MAX_STEPS, None)


def _list_pieces(parts: Sequence[Part]) -> Iterator[Part | None]:
    """Yield the parts of a path, its literal text cut at dots; None stands for a dot."""
    for part in parts:
        if part.name is not None or part.values is None:
            yield part
            continue
        for number, piece in enumerate(part.values[0].split(".")):
            yield from [None] if number else []
            yield from [replace(part, node=literal(piece), values=(piece,))] if piece else []


def _write_shortest(pieces: Sequence[Part | None]) -> str:
    """Return a shortest text that fits parts of a path."""
    return "".join("." if piece is None else _find_shortest(piece) for piece in pieces)


def _find_shortest(part: Part) -> str:
    if part.values is not None:
        return min(part.values, key=lambda word: (len(word), word), default="")
    return "0" if part.node == CANONICAL else "a"


def find_two_cuts(parts: Sequence[Part], steps: Steps) -> tuple[Cut, Cut] | None:
    """Return two cuts of the shortest text that these parts can cut in two ways, or None. May raise `TooMany`.

    >>> from remapkit.patterns.path import parse_path
    >>> def find(path):
    ...     return find_two_cuts(parse_path(Text.of(path), {}), Steps(10_000))
    >>> find("{a}_{b}")
    (('a', '_', '_a'), ('a_', '_', 'a'))
    >>> find("{i:int}_{b}"), find("{i:int}{j:int}")
    (None, (('1', '10'), ('11', '0')))
    """
    machine = build_automaton(parts, None, steps)
    alphabet = build_alphabet(machine.chars)
    steps.spend(len(machine.chars) * (1 + len(alphabet.samples) // 64))
    search = _TwoRuns(machine, [alphabet.masks[chars] for chars in machine.chars], alphabet.samples, steps)
    return search.find(len(parts))


class _TwoRuns:
    """A search, breadth first, for a text with two runs that give some character to two parts.

    Invariant: every pair is added once, when it is first reached, by a shortest text; there are at most twice as many
    pairs as pairs of positions, so the search ends. Each costs the product of its successors.
    """

    def __init__(self, machine: Automaton, masks: Sequence[int], samples: Sequence[str], steps: Steps) -> None:
        self.machine, self.masks, self.samples, self.steps = machine, masks, samples, steps
        self.reached: dict[_Pair, tuple[_Pair, str] | None] = {}
        self.pending: list[_Pair] = []
        self.letters: dict[int, str] = {}

    def find(self, count: int) -> tuple[Cut, Cut] | None:
        last = self.machine.last
        start = (-1, -1, False)
        self.reached[start] = None
        self.pending = [start]
        for pair in self.pending:  # grows while it is read
            if pair[2] and pair[0] in last and pair[1] in last:
                return self.read_cuts(pair, count)
            self.follow(pair)
        return None

    def follow(self, pair: _Pair) -> None:
        one, other, apart = pair
        following, label, masks = self.machine.follow, self.machine.part, self.masks
        left, right = (self.machine.first if here < 0 else following[here] for here in (one, other))
        if one == other and not apart and self.is_disjoint(left):
            for here in left:
                self.add((here, here, False), pair, masks[here])
            return
        self.steps.spend(1 + len(left) * len(right))
        for here in left:
            for there in right:
                both = masks[here] & masks[there]
                if both:
                    self.add((here, there, apart or label[here] != label[there]), pair, both)

    def is_disjoint(self, positions: Sequence[int]) -> bool:
        self.steps.spend(1 + len(positions))
        seen = 0
        for position in positions:
            if seen & self.masks[position]:
                return False
            seen |= self.masks[position]
        return True

    def add(self, pair: _Pair, before: _Pair, mask: int) -> None:
        if pair not in self.reached:
            self.reached[pair] = before, self.pick_letter(mask)
            self.pending.append(pair)

    def pick_letter(self, mask: int) -> str:
        """Return the most readable character of some classes."""
        if mask not in self.letters:
            signs = [each[0] for bit, each in enumerate(self.samples) if mask >> bit & 1]
            self.steps.spend(len(self.samples))
            self.letters[mask] = min(signs, key=lambda sign: (_ORDER.get(ord(sign), len(READABLE)), sign))
        return self.letters[mask]

    def read_cuts(self, pair: _Pair, count: int) -> tuple[Cut, Cut]:
        """Return the text of each part in both runs to a pair; the one whose first parts are shorter comes first."""
        cuts = ([""] * count, [""] * count)
        here: tuple[_Pair, str] | None = self.reached[pair]
        while here is not None:
            before, letter = here
            for cut, position in zip(cuts, pair, strict=False):
                part = self.machine.part[position]
                cut[part] = letter + cut[part]
            pair, here = before, self.reached[before]
        one, other = sorted(map(tuple, cuts), key=lambda cut: [len(text) for text in cut])
        return one, other


_ORDER = {code: place for place, code in reversed(list(enumerate(READABLE)))}


def _describe_cuts(text: Text, parts: Sequence[Part], cuts: tuple[Cut, Cut], context: tuple[str, str]) -> Diagnostic:
    one, other = cuts
    key = context[0] + "".join(one) + context[1]
    captures = [number for number, part in enumerate(parts) if part.name is not None]
    differing = [number for number in captures if one[number] != other[number]]
    title = f"the captures of one segment can split {key!r} in two ways"
    lines = (", ".join(f"{parts[number].name} = {cut[number]!r}" for number in differing) for cut in (one, other))
    labels = tuple(Label(text.at(*parts[number].at)) for number in differing)
    help = []
    if free := [parts[number] for number in differing if parts[number].values is None]:
        names = join_words((str(part.name) for part in free), conjunction="or")
        word = ":int, a range" if any(part.node == SEGMENT for part in free) else "a range"
        help.append(f"bound {names} with {word} (:0..9), words (:x|y) or a list under `where:`")
    for number in differing[:-1]:
        name, following = parts[number].name, parts[number + 1]
        if parts[number].node == SEGMENT and following.name is None and following.values is not None:
            sign = following.values[0][0]
            chars = unparse_chars(complement(merge_ranges([*singleton("."), *singleton(sign)])))
            help.append(f"if {name} never contains {describe_sign(sign)}, use `match:` with (?P<{name}>{chars}+)")
            break
    help.append("if they need not be told apart, use one capture for all of it")
    return Diagnostic("RK132", title, labels, tuple(help), ("\n".join(lines), "this is the shortest such key"))
