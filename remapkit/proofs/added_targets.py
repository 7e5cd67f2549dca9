"""Targets that no source brings (`add:`) held against what the rules make: may a key, any key, become one of them?

A constant is one word, so the question is whether that word is in the image of an arrow: the template is read
backwards, every reading gives captures, and these give a source key that is tried out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remapkit.patterns.automaton import MAX_EDGES, TooMany, automaton, read
from remapkit.patterns.finite import words_node
from remapkit.patterns.matcher import Reader
from remapkit.patterns.pattern import Part, Pattern
from remapkit.patterns.template import Copy, Literal, Mapped
from remapkit.patterns.tree import Alt, Chars, Group, Node, Repeat, literal
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.keymap import Arrow, Made, readings
from remapkit.rules.pipeline import Filled

if TYPE_CHECKING:
    from remapkit.rules.model import CompiledRules


@dataclass(frozen=True, slots=True)
class Meeting:
    """A constant target that a rule may make too: from `key`, or, where no such key was found in time, from None."""

    added: Filled
    target: str
    arrow: Arrow
    key: str | None


class Meetings:
    """Every entry of `add` with every arrow that may lead to one of its targets.

    All targets of all entries and the images of all arrows are looked at under one budget; an arrow that it does not
    suffice for is reported with a key of None.
    """

    def __init__(self, added: Sequence[Filled], found: Sequence[Arrow], budget: Budget) -> None:
        self.added, self.arrows, self.budget = added, found, budget

    def found(self) -> Iterator[Meeting]:
        """The first target of each pair."""
        for entry in self.added:
            for arrow in self.arrows:
                if arrow.items is not None:
                    meeting = self._first(entry, arrow)
                    if meeting is not None:
                        yield meeting

    def _first(self, entry: Filled, arrow: Arrow) -> Meeting | None:
        self.budget.ask()
        try:
            image = _Image(arrow, self.budget)
            for target in entry.targets:
                meeting = image.meeting(entry, target)
                if meeting is not None:
                    return meeting
        except (Exhausted, TooMany):
            return Meeting(entry, entry.targets[0], arrow, None)
        return None

    def passing(self, rule_set: CompiledRules, shapes: Sequence[Pattern]) -> tuple[Filled, str] | None:
        """A target of `add` that would pass through as a key, matched by nothing; within `shapes`, if any."""
        if rule_set.unmatched != "keep":
            return None
        readers = [Reader(pattern) for pattern in shapes]
        for entry in self.added:
            for target in entry.targets:
                if readers and not any(reader(target) is not None for reader in readers):
                    continue
                if not rule_set.match(target):
                    return entry, target
        return None


def twice(added: Sequence[Filled]) -> Iterator[tuple[Filled, Filled, str]]:
    """Two entries of `add` with one target."""
    seen: dict[str, Filled] = {}
    for entry in added:
        for target in entry.targets:
            if target in seen:
                yield seen[target], entry, target
                break
            seen[target] = entry


class _Image:
    """What the targets of an arrow look like, as an automaton that words are held against."""

    def __init__(self, arrow: Arrow, budget: Budget) -> None:
        self.arrow, self.budget = arrow, budget
        self.pattern = arrow.pattern if arrow.identity else _image(arrow)
        self.machine = automaton(self.pattern.parts, MAX_EDGES)
        words = [part.values[0] if part.values is not None and part.constant else None for part in self.pattern.parts]
        self.begins = _before_first_gap(words)
        budget.spend(len(self.machine.chars))

    def meeting(self, entry: Filled, target: str) -> Meeting | None:
        self.budget.spend(1)
        if not target.startswith(self.begins):
            return None
        arrow = self.arrow
        if arrow.identity:
            self.budget.spend(len(target) * 10)
            return Meeting(entry, target, arrow, target) if arrow.reader(target) is not None else None
        self.budget.spend(len(target) * 20)
        if not read(self.machine, target).accepted:
            return None
        for cut in readings(self.pattern, target):
            for captures in _captures(arrow, cut):
                self.budget.spend(50)
                key = _key(arrow, captures)
                given = arrow.reader(key)
                if given is not None and _makes(arrow, key, given, target):
                    return Meeting(entry, target, arrow, key)
        return Meeting(entry, target, arrow, None)


def _before_first_gap(words: Sequence[str | None]) -> str:
    """The text that every target begins with."""
    return "".join(itertools.takewhile(lambda word: word is not None, words))  # type: ignore[arg-type]


def _makes(arrow: Arrow, key: str, captures: Mapping[str, str], target: str) -> bool:
    made = arrow.target(key, captures)
    index = next((item.name for item in arrow.items or () if isinstance(item, Made)), None)
    if made is None or index is None:
        return made == target
    before, _, after = made.partition(f"{{{index}}}")
    middle = target.removeprefix(before).removesuffix(after)
    return target == f"{before}{middle}{after}" and middle.isdecimal()


def _image(arrow: Arrow) -> Pattern:
    """What the targets of an arrow look like: one part for each item of its template."""
    parts = []
    for item in arrow.items or ():
        if isinstance(item, Literal):
            parts.append(Part(None, literal(item.text), values=(item.text,)))
        elif isinstance(item, Made):
            parts.append(Part(None, item.node))
        elif isinstance(item, Copy):
            part = arrow.pattern.capture(item.name)
            assert part is not None
            parts.append(Part(None, part.node))
        else:
            parts.append(Part(None, words_node(tuple(sorted(set(item.mapping.values()))))))
    return Pattern(arrow.pattern.surface, arrow.pattern.text, arrow.pattern.span, tuple(parts))


def _captures(arrow: Arrow, cut: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """The captures that a cut of the target stands for; several where a table or a formula has several."""
    ways: list[list[dict[str, str]]] = []
    for item, text in zip(arrow.items or (), cut, strict=True):
        if isinstance(item, Copy):
            ways.append([{item.name: text}])
        elif isinstance(item, Mapped):
            given = [values for values, value in item.mapping.items() if value == text]
            ways.append([dict(zip(item.names, values, strict=True)) for values in given[:50]])
    for combination in itertools.islice(itertools.product(*ways), 1000):
        captures: dict[str, str] = {}
        if all(captures.setdefault(name, value) == value for each in combination for name, value in each.items()):
            yield captures


def _key(arrow: Arrow, captures: Mapping[str, str]) -> str:
    """A source key with these captures; what they leave open is as short as it can be."""
    parts = arrow.pattern.parts
    return "".join(
        captures.get(part.name, _shortest(part.node)) if part.name else _shortest(part.node) for part in parts
    )


def _shortest(node: Node) -> str:
    if isinstance(node, Chars):
        low, high = node.chars[0]
        return next((sign for sign in "a0_" if any(a <= ord(sign) <= b for a, b in node.chars)), chr(min(low, high)))
    if isinstance(node, Alt):
        return min(map(_shortest, node.branches), key=len)
    if isinstance(node, Repeat):
        return _shortest(node.item) * node.low
    if isinstance(node, Group):
        return _shortest(node.item)
    return "".join(map(_shortest, node.items))
