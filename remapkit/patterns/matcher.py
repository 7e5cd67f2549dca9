r"""Reading keys: all patterns of a set at once, or one at a time; in time linear in the key, whatever the pattern.

Where a pattern reads every key in at most one way, `re` does: a backtracking matcher then visits each pair of
position and offset at most once, because two different ways to the same pair would be two ways to read a whole key.
Where it does not, the same priorities are followed by a search that remembers the pairs it has been to (the idea of
the bit-state matcher of R. Cox's RE2).

`SetMatcher` gives what a loop over the patterns would give, which is every one that matches. Patterns that share no
key are tried at once, as one expression (`factor.py`): at most one of them can match, so the first is the only one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from remapkit.patterns.automaton import MAX_EDGES, TooMany, build_automaton, is_unambiguous
from remapkit.patterns.charset import contains
from remapkit.patterns.combine import build_trie, group_patterns, write_expression
from remapkit.patterns.pattern import Pattern
from remapkit.patterns.template import CaptureItem, MapItem, Template
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat
from remapkit.patterns.unparse import unparse


class PatternMatcher:
    """Reads a key by a pattern; compiled when first used."""

    __slots__ = ("_engine", "pattern")

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self._engine: re.Pattern[str] | Program | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PatternMatcher, (self.pattern,)

    def __call__(self, fqn: str) -> dict[str, str] | None:
        """The captures, or None where the whole key is not matched."""
        engine = self._engine
        if engine is None:
            engine = self._engine = self._compile()
        captures = _match_by_re(engine, fqn) if isinstance(engine, re.Pattern) else engine.find_captures(fqn)
        if captures is None:
            return None
        leaf = self.pattern.leaf
        return captures if leaf is None or fqn.rpartition(".")[2] in leaf else None

    def _compile(self) -> re.Pattern[str] | Program:
        try:
            one_way = is_unambiguous(build_automaton(self.pattern.parts, MAX_EDGES))
        except TooMany:
            one_way = False
        return re.compile(regex_text(self.pattern)) if one_way else Program(self.pattern)


def _match_by_re(engine: re.Pattern[str], fqn: str) -> dict[str, str] | None:
    found = engine.fullmatch(fqn)
    return None if found is None else found.groupdict()


def regex_text(pattern: Pattern) -> str:
    """A pattern with its `where` guards as one regular expression."""
    return "".join(
        unparse(part.node) if part.name is None else unparse(Group(part.name, part.node)) for part in pattern.parts
    )


# ------------------------------------------------------------------------------------------------ whole sets

Captures = dict[str, str]
"""What the captures of a pattern read, by name, in the order of the pattern."""


@dataclass(frozen=True, slots=True)
class End:
    """A pattern as the end of an expression: its number, its captures and their groups, and its leaves if bounded."""

    number: int
    names: tuple[str, ...]
    groups: tuple[int, ...]
    leaf: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Together:
    """Patterns that share no key, as one expression; `ends` by the last group that took part in a match."""

    engine: re.Pattern[str]
    ends: dict[int, End]


class SetMatcher:
    """Reads a key by every pattern of a set; compiled when first used.

    >>> from remapkit.patterns.path import parse_path
    >>> from remapkit.diagnostics.source import Text
    >>> def path(text):
    ...     text = Text.of(text)
    ...     return Pattern("path", text, text.span, parse_path(text, {}))
    >>> matcher = SetMatcher([path("h.{n:int}.{leaf}"), path("h.{n:int}.w"), path("{all:**}")])
    >>> matcher.match("h.3.b")
    ((0, {'n': '3', 'leaf': 'b'}), (2, {'all': 'h.3.b'}))
    """

    __slots__ = ("_engines", "patterns", "readers")

    def __init__(self, patterns: Iterable[Pattern], readers: Sequence[PatternMatcher] | None = None) -> None:
        self.patterns = tuple(patterns)
        self.readers = tuple(readers) if readers is not None else tuple(map(PatternMatcher, self.patterns))
        self._engines: tuple[tuple[Together, ...], tuple[int, ...]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return SetMatcher, (self.patterns, self.readers)

    @property
    def engines(self) -> tuple[tuple[Together, ...], tuple[int, ...]]:
        """The expressions that are tried on a key, and the numbers of the patterns that are tried alone."""
        if self._engines is None:
            self._engines = self._compile()
        return self._engines

    def match(self, fqn: str) -> tuple[tuple[int, Captures], ...]:
        """The number and the captures of every pattern that matches the whole key, in the order of the patterns."""
        together, alone = self._engines or self.engines
        found: list[tuple[int, Captures]] = []
        for each in together:
            hit = each.engine.fullmatch(fqn)
            if hit is None:
                continue
            end = each.ends[hit.lastindex or 0]
            if end.leaf is not None and fqn.rpartition(".")[2] not in end.leaf:
                continue
            groups = end.groups
            read = hit.group(0, *groups) if groups else ()
            found.append((end.number, dict(zip(end.names, read[1:], strict=False))))
        for number in alone:
            captures = self.readers[number](fqn)
            if captures is not None:
                found.append((number, captures))
        if len(found) > 1:
            found.sort(key=lambda each: each[0])
        return tuple(found)

    def _compile(self) -> tuple[tuple[Together, ...], tuple[int, ...]]:
        if len(self.patterns) < 2:
            return (), tuple(range(len(self.patterns)))
        groups = group_patterns(self.patterns)
        together: list[Together] = []
        alone = list(groups.alone)
        for numbers in groups.together:
            try:
                together.append(self._compile_group(numbers))
            except (RecursionError, OverflowError):
                # Nested deeper than `re` can compile, though each pattern by itself is not.
                alone += numbers
        return tuple(together), tuple(sorted(alone))

    def _compile_group(self, numbers: Sequence[int]) -> Together:
        written = write_expression(build_trie((number, self.patterns[number]) for number in numbers))
        ends = {mark: self._make_end(number, groups) for mark, (number, groups) in written.ends.items()}
        return Together(re.compile(written.text), ends)

    def _make_end(self, number: int, groups: tuple[int, ...]) -> End:
        pattern = self.patterns[number]
        names = tuple(part.name for part in pattern.parts if part.name is not None)
        return End(number, names, groups, None if pattern.leaf is None else frozenset(pattern.leaf))


KeyOutcome = Template | Literal["keep", "drop", "plan"]
"""What becomes of a key that a pattern matches; `plan`: more than a new name, which only a plan can say."""

_Write = tuple[str, tuple[int, ...]]


class Renamer:
    """The targets of many keys, without a look at how they came about: what `match` says, in one tight loop."""

    __slots__ = ("_writes", "matcher", "outcomes")

    def __init__(self, matcher: SetMatcher, outcomes: Iterable[KeyOutcome]) -> None:
        self.matcher = matcher
        self.outcomes = tuple(outcomes)
        self._writes: list[_Write | None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Renamer, (self.matcher, self.outcomes)

    def rename_keys(self, fqns: Iterable[str], unmatched: str = "error") -> list[str | None] | None:
        """The target of each key, in order (None: the key is dropped).

        None for all where some key is matched twice, or by a pattern whose outcome is `plan`, or not at all and
        `unmatched` is not `keep` or `drop`: that is for a plan to say.
        """
        together, alone = self.matcher.engines
        writes = self._compile(together) if self._writes is None else self._writes
        if len(together) != 1 or alone:
            return self._rename_one_by_one(fqns, unmatched)
        read = together[0].engine.fullmatch
        targets: list[str | None] = []
        add = targets.append
        for fqn in fqns:
            found = read(fqn)
            write = None if found is None else writes[found.lastindex]  # type: ignore[index]
            if write is not None:
                add(write[0] % found.group(*write[1]))  # type: ignore[union-attr]
                continue
            rest = self._rename_one_by_one((fqn,), unmatched)
            if rest is None:
                return None
            targets += rest
        return targets

    def _rename_one_by_one(self, fqns: Iterable[str], unmatched: str) -> list[str | None] | None:
        targets: list[str | None] = []
        for fqn in fqns:
            found = self.matcher.match(fqn)
            if len(found) > 1 or (not found and unmatched == "error"):
                return None
            outcome = self.outcomes[found[0][0]] if found else unmatched
            if outcome == "plan":
                return None
            if isinstance(outcome, Template):
                targets.append(outcome.render(found[0][1]))
            else:
                targets.append(fqn if outcome == "keep" else None)
        return targets

    def _compile(self, together: Sequence[Together]) -> list[_Write | None]:
        """For each group that ends a match: the template for `%`, and the groups that it wants.

        None where it takes more than that: a table, a leaf to look at, a key that is kept or dropped.
        """
        writes: list[_Write | None] = []
        if len(together) == 1:
            writes = [None] * (together[0].engine.groups + 1)
            for mark, end in together[0].ends.items():
                outcome = self.outcomes[end.number]
                if isinstance(outcome, Template) and not outcome.maps and end.leaf is None:
                    writes[mark] = _compile_write(outcome, end)
        self._writes = writes
        return writes


def _compile_write(template: Template, end: End) -> _Write:
    groups = dict(zip(end.names, end.groups, strict=True))
    wanted = tuple(groups[item.name] for item in template.items if isinstance(item, CaptureItem))
    text = "".join(
        "%s" if isinstance(item, CaptureItem) else "" if isinstance(item, MapItem) else item.text.replace("%", "%%")
        for item in template.items
    )
    # A template without captures is given the whole key, and writes none of it.
    return (text, wanted) if wanted else (text + "%.0s", (0,))


# ------------------------------------------------------------------------------------------------ one pattern

CHARS, SPLIT, JUMP, SAVE, MATCH = range(5)
"""What an instruction does."""
_Instruction = tuple[int, Any, int]


class Program:
    """A pattern as instructions; a search through them that never goes to one place twice.

    `part[p]` is the part of the pattern that instruction `p` belongs to.
    """

    def __init__(self, pattern: Pattern) -> None:
        self.code: list[_Instruction] = []
        self.part: list[int] = []
        self.names: list[str] = []
        for number, part in enumerate(pattern.parts):
            slot = 2 * len(self.names)
            if part.name is not None:
                self.names.append(part.name)
                self.code.append((SAVE, slot, 0))
            self._emit(part.node)
            if part.name is not None:
                self.code.append((SAVE, slot + 1, 0))
            self.part += [number] * (len(self.code) - len(self.part))
        self.code.append((MATCH, None, 0))

    def _emit(self, node: PatternNode) -> None:
        if isinstance(node, Chars):
            self.code.append((CHARS, node.chars, 0))
        elif isinstance(node, Alt):
            self._emit_alternatives(node.branches)
        elif isinstance(node, Repeat):
            self._emit_repeat(node)
        elif isinstance(node, Group):
            self._emit(node.item)
        else:
            for item in node.items:
                self._emit(item)

    def _emit_alternatives(self, branches: Sequence[PatternNode]) -> None:
        ends = []
        for branch in branches[:-1]:
            split = len(self.code)
            self.code.append((SPLIT, 0, 0))
            self._emit(branch)
            ends.append(len(self.code))
            self.code.append((JUMP, 0, 0))
            self.code[split] = (SPLIT, split + 1, len(self.code))
        self._emit(branches[-1])
        for end in ends:
            self.code[end] = (JUMP, len(self.code), 0)

    def _emit_repeat(self, node: Repeat) -> None:
        for _ in range(node.low):
            self._emit(node.item)
        if node.high is None:
            split = len(self.code)
            self.code.append((SPLIT, 0, 0))
            self._emit(node.item)
            self.code.append((JUMP, split, 0))
            self.code[split] = (SPLIT, split + 1, len(self.code))
            return
        splits = []
        for _ in range(node.high - node.low):
            splits.append(len(self.code))
            self.code.append((SPLIT, 0, 0))
            self._emit(node.item)
        for split in splits:
            self.code[split] = (SPLIT, split + 1, len(self.code))

    def find_captures(self, key: str) -> dict[str, str] | None:
        """The captures of the first reading in the order of priorities, the one `re.fullmatch` finds."""
        visited: set[tuple[int, int]] = set()
        slots = [0] * (2 * len(self.names))
        # An entry is a place to go to, or (negative) a slot to be set back once all ways through it have failed.
        pending: list[tuple[int, int]] = [(0, 0)]
        while pending:
            place, offset = pending.pop()
            if place < 0:
                slots[-place - 1] = offset
                continue
            while (place, offset) not in visited:
                visited.add((place, offset))
                kind, argument, other = self.code[place]
                if kind == CHARS:
                    if offset == len(key) or not contains(argument, key[offset]):
                        break
                    place, offset = place + 1, offset + 1
                elif kind == SPLIT:
                    pending.append((other, offset))
                    place = argument
                elif kind == JUMP:
                    place = argument
                elif kind == SAVE:
                    pending.append((-argument - 1, slots[argument]))
                    slots[argument] = offset
                    place += 1
                elif offset == len(key):
                    return {name: key[slots[2 * i] : slots[2 * i + 1]] for i, name in enumerate(self.names)}
                else:
                    break
        return None
