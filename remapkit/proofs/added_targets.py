"""Compare the targets of `add:` with those of the rules: does any key map to one of them?

An added target is one word, so the question is whether that word is in the image of a key map. The template is
matched against the word; every reading yields captures, and these yield a source key, which is then tested.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from remapkit.patterns.automaton import MAX_EDGES, TooMany, build_automaton, read_prefix
from remapkit.patterns.finite import build_words_node
from remapkit.patterns.matcher import PatternMatcher
from remapkit.patterns.pattern import Part, Pattern
from remapkit.patterns.template import CaptureItem, MapItem, TextItem
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat, literal
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.keymap import KeyMap, Made, readings
from remapkit.rules.model import CompiledRules
from remapkit.rules.pipeline import AddedTargets
from remapkit.tensors.families import is_canonical_integer


@dataclass(frozen=True, slots=True)
class AddedClash:
    """An added target that a rule also produces, from `key`; None if no key was found within the budget."""

    added: AddedTargets
    target: str
    key_map: KeyMap
    key: str | None


class Meetings:
    """A search for key maps that may produce a target of an entry of `add`.

    All entries and key maps share one budget; if it runs out for a pair, the pair is reported with a key of None.
    """

    def __init__(self, added: Sequence[AddedTargets], found: Sequence[KeyMap], budget: Budget) -> None:
        self.added, self.key_maps, self.budget = added, found, budget

    def found(self) -> Iterator[AddedClash]:
        """Yield the first shared target of each pair."""
        for entry in self.added:
            for key_map in self.key_maps:
                if key_map.items is not None:
                    meeting = self._first(entry, key_map)
                    if meeting is not None:
                        yield meeting

    def _first(self, entry: AddedTargets, key_map: KeyMap) -> AddedClash | None:
        self.budget.ask()
        try:
            image = _Image(key_map, self.budget)
            for target in entry.targets:
                meeting = image.meeting(entry, target)
                if meeting is not None:
                    return meeting
        except (Exhausted, TooMany):
            return AddedClash(entry, entry.targets[0], key_map, None)
        return None

    def passing(self, rule_set: CompiledRules, shapes: Sequence[Pattern]) -> tuple[AddedTargets, str] | None:
        """Find a target of `add` that an unmatched key could pass through to, within `shapes` if there are any."""
        if rule_set.unmatched != "keep":
            return None
        readers = [PatternMatcher(pattern) for pattern in shapes]
        for entry in self.added:
            for target in entry.targets:
                if readers and not any(reader(target) is not None for reader in readers):
                    continue
                if not rule_set.match(target):
                    return entry, target
        return None


def find_repeats(added: Sequence[AddedTargets]) -> Iterator[tuple[AddedTargets, AddedTargets, str]]:
    """Yield pairs of entries of `add` with the same target."""
    seen: dict[str, AddedTargets] = {}
    for entry in added:
        for target in entry.targets:
            if target in seen:
                yield seen[target], entry, target
                break
            seen[target] = entry


class _Image:
    """The targets of a key map as an automaton, for comparison with words."""

    def __init__(self, key_map: KeyMap, budget: Budget) -> None:
        self.key_map, self.budget = key_map, budget
        self.pattern = key_map.pattern if key_map.identity else _build_image(key_map)
        self.machine = build_automaton(self.pattern.parts, MAX_EDGES)
        words = [
            part.values[0] if part.values is not None and part.is_constant else None for part in self.pattern.parts
        ]
        self.begins = _before_first_gap(words)
        budget.spend(len(self.machine.chars))

    def meeting(self, entry: AddedTargets, target: str) -> AddedClash | None:
        self.budget.spend(1)
        if not target.startswith(self.begins):
            return None
        key_map = self.key_map
        if key_map.identity:
            self.budget.spend(len(target) * 10)
            return AddedClash(entry, target, key_map, target) if key_map.reader(target) is not None else None
        self.budget.spend(len(target) * 20)
        if not read_prefix(self.machine, target).accepted:
            return None
        for cut in readings(self.pattern, target):
            for captures in _captures(key_map, cut):
                self.budget.spend(50)
                key = _key(key_map, captures)
                given = key_map.reader(key)
                if given is not None and _can_make(key_map, key, given, target):
                    return AddedClash(entry, target, key_map, key)
        return AddedClash(entry, target, key_map, None)


def _before_first_gap(words: Sequence[str | None]) -> str:
    """Return the text that every target begins with."""
    return "".join(itertools.takewhile(lambda word: word is not None, words))  # type: ignore[arg-type]


def _can_make(key_map: KeyMap, key: str, captures: Mapping[str, str], target: str) -> bool:
    made = key_map.target(key, captures)
    index = next((item.name for item in key_map.items or () if isinstance(item, Made)), None)
    if made is None or index is None:
        return made == target
    before, _, after = made.partition(f"{{{index}}}")
    middle = target.removeprefix(before).removesuffix(after)
    return target == f"{before}{middle}{after}" and is_canonical_integer(middle)


def _build_image(key_map: KeyMap) -> Pattern:
    """Build a pattern for the targets of a key map: one part per item of its template."""
    parts = []
    for item in key_map.items or ():
        if isinstance(item, TextItem):
            parts.append(Part(None, literal(item.text), values=(item.text,)))
        elif isinstance(item, Made):
            parts.append(Part(None, item.node))
        elif isinstance(item, CaptureItem):
            part = key_map.pattern.capture(item.name)
            assert part is not None
            parts.append(Part(None, part.node))
        else:
            parts.append(Part(None, build_words_node(tuple(sorted(set(item.mapping.values()))))))
    return Pattern(key_map.pattern.surface, key_map.pattern.text, key_map.pattern.span, tuple(parts))


def _captures(key_map: KeyMap, cut: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Yield the captures that produce a target with a given split; several if a map is not injective."""
    ways: list[list[dict[str, str]]] = []
    for item, text in zip(key_map.items or (), cut, strict=True):
        if isinstance(item, CaptureItem):
            ways.append([{item.name: text}])
        elif isinstance(item, MapItem):
            given = [values for values, value in item.mapping.items() if value == text]
            ways.append([dict(zip(item.names, values, strict=True)) for values in given[:50]])
    for combination in itertools.islice(itertools.product(*ways), 1000):
        captures: dict[str, str] = {}
        if all(captures.setdefault(name, value) == value for each in combination for name, value in each.items()):
            yield captures


def _key(key_map: KeyMap, captures: Mapping[str, str]) -> str:
    """Return a source key with these captures that is otherwise as short as possible."""
    parts = key_map.pattern.parts
    return "".join(
        captures.get(part.name, _shortest(part.node)) if part.name else _shortest(part.node) for part in parts
    )


def _shortest(node: PatternNode) -> str:
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
