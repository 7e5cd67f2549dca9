"""Random rule sets over a tiny alphabet, and what is true of them by brute force: every key up to a length.

The oracle shares nothing with the proofs. Patterns are made as trees of its own, which it can write as the language's
text and read by itself: the readings of a key are enumerated from the tree, part by part, without `re` and without
automata.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.rulefile.read import read_text

ALPHABET = "ab.0"


# ------------------------------------------------------------------------------------------------ trees of patterns


@dataclass(frozen=True)
class Tree:
    """`kind` is chars (a text of alternatives), seq, alt or repeat (with bounds)."""

    kind: str
    items: tuple[Tree, ...] = ()
    chars: str = ""
    low: int = 0
    high: int | None = None

    @property
    def text(self) -> str:
        if self.kind == "chars":
            if len(self.chars) == 1:
                return "\\" + self.chars if self.chars == "." else self.chars
            return f"[{self.chars}]"
        if self.kind == "seq":
            return "".join(item.text for item in self.items)
        if self.kind == "alt":
            return f"(?:{'|'.join(item.text for item in self.items)})"
        inner = self.items[0]
        atom = inner.text if inner.kind == "chars" else f"(?:{inner.text})"
        bounds = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((self.low, self.high))
        return atom + (bounds or f"{{{self.low},{'' if self.high is None else self.high}}}")


# ------------------------------------------------------------------------------------------------ rule sets


@dataclass(frozen=True)
class MadeRule:
    """Parts are (name or None, tree); items are text, ("copy", name) or ("table", name, table)."""

    parts: tuple[tuple[str | None, Tree], ...]
    items: tuple[Any, ...] | None
    leaf: tuple[str, ...] | None = None
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: bool = False


@dataclass(frozen=True)
class MadeSet:
    rules: tuple[MadeRule, ...]
    tables: Mapping[str, Mapping[str, str]]
    domain: tuple[tuple[tuple[str | None, Tree], ...], ...] = ()
    unmatched: str = "error"

    @property
    def text(self) -> str:
        lines = ["remapkit: 1", "name: t", f"unmatched: {self.unmatched}"]
        if self.domain:
            patterns = ", ".join(f"{{match: '{_regex(parts)}'}}" for parts in self.domain)
            lines.append(f"source: {{domain: [{patterns}]}}")
        if self.tables:
            lines.append("tables:")
            for name, table in self.tables.items():
                entries = ", ".join(f"'{key}': '{value}'" for key, value in table.items())
                lines.append(f"  {name}: {{lossy: true, entries: {{{entries}}}}}")
        kinds: dict[str, list[str]] = {"rules": [], "keep": [], "drop": []}
        for number, rule in enumerate(self.rules):
            body = f"match: '{_regex(rule.parts)}'"
            if rule.leaf is not None:
                body += f", leaf: [{', '.join(map(repr, rule.leaf))}]"
            if rule.where:
                guards = ", ".join(f"{name}: [{', '.join(map(repr, values))}]" for name, values in rule.where.items())
                body += f", where: {{{guards}}}"
            if rule.keep or rule.items is None:
                kinds["keep" if rule.keep else "drop"].append(f"  - {{{body}}}")
                continue
            unused = [name for name, _ in rule.parts if name and name not in _used(rule)]
            forget = f", forget: [{', '.join(unused)}]" if unused else ""
            kinds["rules"].append(f"  - {{id: r{number}, {body}, to: '{_template(rule.items)}'{forget}}}")
        for kind, found in kinds.items():
            if found:
                lines += [f"{kind}:", *found]
        return "\n".join(lines) + "\n"

    def compiled(self) -> RuleSet:
        return compile_rules(read_text(self.text))

    def ordered(self) -> list[MadeRule]:
        """As the rule set orders them: rules, keeps, drops."""
        kinds = [[], [], []]  # type: list[list[MadeRule]]
        for rule in self.rules:
            kinds[1 if rule.keep else 2 if rule.items is None else 0].append(rule)
        return [*kinds[0], *kinds[1], *kinds[2]]


def _regex(parts: Sequence[tuple[str | None, Tree]]) -> str:
    return "".join(tree.text if name is None else f"(?P<{name}>{tree.text})" for name, tree in parts)


def _template(items: Sequence[Any]) -> str:
    return "".join(
        item if isinstance(item, str) else f"{{{item[1]}}}" if item[0] == "copy" else f"{{{item[1]}|{item[2]}}}"
        for item in items
    )


def _used(rule: MadeRule) -> set[str]:
    return {item[1] for item in rule.items or () if not isinstance(item, str)}


# ------------------------------------------------------------------------------------------------ brute force


def target(rule: MadeRule, tables: Mapping[str, Mapping[str, str]], key: str, reading: Sequence[str]) -> str | None:
    if rule.keep:
        return key
    if rule.items is None:
        return None
    values = {name: word for (name, _), word in zip(rule.parts, reading, strict=True) if name}
    return "".join(
        item if isinstance(item, str) else values[item[1]] if item[0] == "copy" else tables[item[2]][values[item[1]]]
        for item in rule.items
    )


@lru_cache(maxsize=100_000)
def words(tree: Tree, length: int) -> frozenset[str]:
    """Every word of a tree up to a length, built up from its parts."""
    if tree.kind == "chars":
        return frozenset(tree.chars) if length else frozenset()
    if tree.kind == "alt":
        return frozenset().union(*(words(item, length) for item in tree.items))
    if tree.kind == "seq":
        found = frozenset([""])
        for item in tree.items:
            found = _concatenated(found, words(item, length), length)
        return found
    inner = words(tree.items[0], length)
    found = frozenset([""])
    for _ in range(tree.low):
        found = _concatenated(found, inner, length)
    if tree.high is not None:
        for _ in range(tree.high - tree.low):
            found |= _concatenated(found, inner, length)
        return found
    new = found
    while new:
        new = _concatenated(new, inner, length) - found
        found |= new
    return found


def _concatenated(left: frozenset[str], right: frozenset[str], length: int) -> frozenset[str]:
    by_size: list[list[str]] = [[] for _ in range(length + 1)]
    for word in right:
        by_size[len(word)].append(word)
    return frozenset(one + other for one in left for size in range(length + 1 - len(one)) for other in by_size[size])


def all_readings(rule: MadeRule, length: int) -> dict[str, list[tuple[str, ...]]]:
    """Every key of a rule up to a length, with every way to cut it into the parts."""
    rows: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    for name, tree in rule.parts:
        allowed = rule.where.get(name) if name else None
        language = [word for word in words(tree, length) if allowed is None or word in allowed]
        rows = [
            (size + len(word), (*before, word))
            for size, before in rows
            for word in language
            if size + len(word) <= length
        ]
    found: dict[str, list[tuple[str, ...]]] = {}
    for _, reading in rows:
        key = "".join(reading)
        if rule.leaf is None or key.rpartition(".")[2] in rule.leaf:
            found.setdefault(key, []).append(reading)
    return found


@dataclass
class Truth:
    """What is true of the keys up to a length; smallest examples by size."""

    ambiguous: dict[tuple[int, int], int] = field(default_factory=dict)
    cut: dict[int, int] = field(default_factory=dict)
    within: dict[int, int] = field(default_factory=dict)
    across: dict[tuple[int, int], int] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)


def all_keys(length: int, alphabet: str = ALPHABET) -> tuple[str, ...]:
    return tuple("".join(each) for size in range(length + 1) for each in itertools.product(alphabet, repeat=size))


def brute(made: MadeSet, length: int) -> Truth:
    """Every key up to a length, against every rule."""
    truth = Truth()
    rules = made.ordered()
    inside: set[str] | None = None
    if made.domain:
        inside = set().union(*(all_readings(MadeRule(parts, None), length) for parts in made.domain))
    matched: dict[str, list[int]] = {}
    targets: dict[str, list[tuple[int, str]]] = {}
    for number, rule in enumerate(rules):
        for key, found in all_readings(rule, length).items():
            if inside is not None and key not in inside:
                continue
            matched.setdefault(key, []).append(number)
            images = {target(rule, made.tables, key, reading) for reading in found}
            if len(images) > 1:
                truth.cut[number] = min(len(key), truth.cut.get(number, 999))
            for image in images:
                if image is not None:
                    targets.setdefault(image, []).append((number, key))
    for key, hit in matched.items():
        for pair in itertools.combinations(hit, 2):
            truth.ambiguous[pair] = min(len(key), truth.ambiguous.get(pair, 999))
    for image, hits in targets.items():
        _collisions(hits, truth)
        passes = image not in matched and len(image) <= length and (inside is None or image in inside)
        for number, key in hits if passes and made.unmatched == "keep" else ():
            size = len(key) + len(image)
            truth.open[number] = min(size, truth.open.get(number, 999))
    return truth


def affordable(made: MadeSet, most: int = 7, readings: int = 12_000) -> int:
    """The greatest length up to which every key of a rule set can be tried in little time."""
    patterns = [*(rule.parts for rule in made.rules), *made.domain]
    for length in range(4, most):
        # Nothing grows by more than the alphabet, and by how much a word can be cut.
        if max(_count(parts, length) for parts in patterns) > readings / len(ALPHABET):
            return length
    return most


def _count(parts: Sequence[tuple[str | None, Tree]], length: int) -> int:
    """How many readings there are, without a look at guards."""
    counts = [1] + [0] * length
    for _, tree in parts:
        language = words(tree, length)
        sizes = [sum(len(word) == size for word in language) for size in range(length + 1)]
        counts = [sum(counts[a] * sizes[size - a] for a in range(size + 1)) for size in range(length + 1)]
    return sum(counts)


def _collisions(hits: Sequence[tuple[int, str]], truth: Truth) -> None:
    """The smallest pair of each two rules: only the two shortest keys of a rule can be in it."""
    by_rule: dict[int, list[str]] = {}
    for number, key in hits:
        by_rule.setdefault(number, []).append(key)
    for keys in by_rule.values():
        keys.sort(key=len)
    for number, keys in by_rule.items():
        if len(keys) > 1:
            size = len(keys[0]) + len(keys[1])
            truth.within[number] = min(size, truth.within.get(number, 999))
    for one, other in itertools.combinations(sorted(by_rule), 2):
        sizes = [len(a) + len(b) for a in by_rule[one][:2] for b in by_rule[other][:2] if a != b]
        if sizes:
            truth.across[one, other] = min(min(sizes), truth.across.get((one, other), 999))


# ------------------------------------------------------------------------------------------------ random sets


class Maker:
    """Makes rule sets from choices: `pick(n)` gives a number below n (random, or hypothesis's)."""

    def __init__(self, pick: Callable[[int], int]) -> None:
        self.pick = pick

    def of(self, choices: Sequence[Any]) -> Any:
        return choices[self.pick(len(choices))]

    def chance(self, one_in: int) -> bool:
        return self.pick(one_in) == 0

    def chars(self) -> Tree:
        return Tree("chars", chars=self.of(["a", "b", "a", ".", "0", "ab", "ab0", "a.", "ab.0"]))

    def tree(self, depth: int = 2) -> Tree:
        kind = self.pick(8) if depth else 0
        if kind < 4:
            return self.chars()
        if kind < 5:
            return Tree("seq", tuple(self.tree(depth - 1) for _ in range(1 + self.pick(2))))
        if kind < 6:
            return Tree("alt", tuple(self.tree(depth - 1) for _ in range(2)))
        low, high = self.of([(0, None), (1, None), (0, 1), (1, 2), (0, 2), (2, 2)])
        return Tree("repeat", (self.tree(depth - 1),), low=low, high=high)

    def word(self) -> str:
        return str(self.of(["a", "b", ".", "a.", "0", "ab", ""]))

    def rule(self, tables: Mapping[str, Mapping[str, str]]) -> MadeRule:
        parts: list[tuple[str | None, Tree]] = []
        where: dict[str, tuple[str, ...]] = {}
        items: list[Any] = []
        for number in range(1 + self.pick(3)):
            if self.chance(2):
                parts.append((None, _literal(self.of(["a", ".", "b", "a."]))))
            name = f"c{number}"
            if tables and self.chance(4):
                table = self.of(sorted(tables))
                keys = tuple(key for key in tables[table])
                parts.append((name, Tree("alt", tuple(_literal(key) for key in keys))))
                items.append(self.of([("copy", name), ("table", name, table), ("table", name, table)]))
                continue
            tree = self.tree()
            if self.chance(6):
                tree = self.of([Tree("repeat", (Tree("chars", chars="ab"),), low=0), Tree("chars", chars="ab")])
            parts.append((name, tree))
            if self.chance(8):
                inside = [word for word in ("a", "b", "ab", "aa", "0", "a.") if word in words(tree, 2)]
                if inside:
                    where[name] = tuple(inside[: 1 + self.pick(3)])
                    if len(where[name]) > 1 and self.chance(3):
                        items.append(("copy", name))
            if not self.chance(9):
                items.append(("copy", name))
        if self.chance(3):
            parts.append((None, self.tree(1)))
        if self.chance(3):
            self._shuffle(items)
        mixed: list[Any] = []
        for item in items:
            if self.chance(2):
                mixed.append(self.word())
            mixed.append(item)
        if self.chance(2) or not mixed:
            mixed.append(self.of(["a", "b", "."]))
        leaf = (
            tuple(dict.fromkeys(self.of(["a", "b", "ab", "0"]) for _ in range(1 + self.pick(2))))
            if self.chance(6)
            else None
        )
        kind = self.pick(8)
        return MadeRule(tuple(parts), None if kind == 0 else tuple(mixed), leaf, where, keep=kind == 1)

    def _shuffle(self, items: list[Any]) -> None:
        for number in range(len(items) - 1, 0, -1):
            other = self.pick(number + 1)
            items[number], items[other] = items[other], items[number]

    def rule_set(self) -> MadeSet:
        tables: dict[str, dict[str, str]] = {}
        if self.chance(3):
            keys = [("a", "b"), ("a", "ab", "b"), ("0", "a"), ("a", "aa")][self.pick(4)]
            tables["t"] = {key: str(self.of(["a", "b", "ab", "0", "a.", "b0"])) for key in keys}
        rules = tuple(self.rule(tables) for _ in range(1 + self.pick(3)))
        used = {
            item[2] for rule in rules for item in rule.items or () if not isinstance(item, str) and item[0] == "table"
        }
        domain: tuple[tuple[tuple[str | None, Tree], ...], ...] = ()
        if self.chance(6):
            domain = tuple(((None, self.tree(2)), (None, self.tree(2))) for _ in range(1 + self.pick(2)))
        unmatched = "keep" if self.chance(6) else "error"
        return MadeSet(rules, {name: table for name, table in tables.items() if name in used}, domain, unmatched)


def _literal(word: str) -> Tree:
    return Tree("seq", tuple(Tree("chars", chars=character) for character in word))


def seeded(seed: int) -> Maker:
    return Maker(random.Random(seed).randrange)


def sets(seed: int, count: int) -> Iterator[tuple[int, MadeSet]]:
    for number in range(seed, seed + count):
        yield number, seeded(number).rule_set()
