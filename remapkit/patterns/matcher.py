r"""Match keys against one pattern, or against a whole set of patterns at once, in time linear in the key.

A pattern that reads every key in at most one way is matched by `re`. A backtracking matcher then visits each pair of
position and offset at most once, because two ways to reach the same pair would be two ways to read a whole key. All
other patterns are matched by `Program`, which follows the same priorities but remembers the visited pairs, like the
bit-state matcher of R. Cox's RE2.

`SetMatcher` finds every pattern that matches, like a loop over all patterns. Patterns that share no key are combined
into one expression (`combine.py`): at most one of them can match, so the first match is the only one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from remapkit.patterns.automaton import MAX_EDGES, build_automaton, is_unambiguous
from remapkit.patterns.charset import contains
from remapkit.patterns.combine import build_trie, group_patterns, write_expression
from remapkit.patterns.pattern import Part, Pattern
from remapkit.patterns.steps import Steps, is_shown
from remapkit.patterns.template import CaptureItem, MapItem, Template
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat, count_positions
from remapkit.patterns.unparse import unparse


class PatternMatcher:
    """A matcher of keys against one pattern; compiled on first use, which takes at most `steps`."""

    __slots__ = ("_engine", "pattern", "steps")

    def __init__(self, pattern: Pattern, steps: Steps | None = None) -> None:
        self.pattern, self.steps = pattern, steps
        self._engine: re.Pattern[str] | Program | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PatternMatcher, (self.pattern,)

    def __call__(self, fqn: str) -> dict[str, str] | None:
        """Return the captures, or None if the pattern does not match the whole key."""
        engine = self._engine
        if engine is None:
            engine = self._engine = make_engine(self.pattern, self.steps)
        captures = _match_by_re(engine, fqn) if isinstance(engine, re.Pattern) else engine.find_captures(fqn)
        if captures is None:
            return None
        leaf = self.pattern.leaf
        return captures if leaf is None or fqn.rpartition(".")[2] in leaf else None


def make_engine(pattern: Pattern, steps: Steps | None = None) -> re.Pattern[str] | Program:
    """Return what matches a key safely: `re`, or `Program` where it is not shown that every key is read in one way.

    `re` may take exponential time unless the pattern is unambiguous. If that cannot be decided within limits, use the
    slower `Program`, whose time is bounded for every pattern.
    """
    return re.compile(regex_text(pattern)) if reads_one_way(pattern.parts, steps) else Program(pattern)


def reads_one_way(parts: Sequence[Part], steps: Steps | None = None) -> bool:
    """Return whether it is shown, within some steps, that every key is read in one way; then these are spent."""
    return is_shown(
        lambda within: is_unambiguous(build_automaton(parts, MAX_EDGES, within), within), MAX_STEPS, steps
    )


MAX_STEPS = 2_000_000
"""The most steps to find out whether one pattern reads every key in one way."""


ALL_STEPS = 4_000_000
"""The most steps to find this out for all patterns of a set; the others are matched by `Program`."""


def count_free_positions(parts: Iterable[Part]) -> int:
    """Return the number of characters of parts with counted repeats expanded; lists of words do not count."""
    return sum(count_positions(part.node) for part in parts if part.values is None)


def _match_by_re(engine: re.Pattern[str], fqn: str) -> dict[str, str] | None:
    found = engine.fullmatch(fqn)
    return None if found is None else found.groupdict()


def regex_text(pattern: Pattern) -> str:
    """Return a pattern with its `where` guards as one regular expression."""
    return "".join(
        unparse(part.node) if part.name is None else unparse(Group(part.name, part.node)) for part in pattern.parts
    )


# ------------------------------------------------------------------------------------------------ whole sets

Captures = dict[str, str]
"""The text of each capture by name, in the order of the pattern."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a pattern in a combined expression: pattern number, captures with their groups, and leaves."""

    number: int
    names: tuple[str, ...]
    groups: tuple[int, ...]
    leaf: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Together:
    """Patterns that share no key, as one expression; `ends` is keyed by the last group of a match (`lastindex`)."""

    engine: re.Pattern[str]
    ends: dict[int, End]


class SetMatcher:
    """A matcher of keys against every pattern of a set; compiled on first use.

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
        steps = Steps(ALL_STEPS)
        for reader in self.readers:
            reader.steps = steps

    def __reduce__(self) -> tuple[Any, ...]:
        return SetMatcher, (self.patterns, self.readers)

    @property
    def engines(self) -> tuple[tuple[Together, ...], tuple[int, ...]]:
        """The combined expressions, and the numbers of the patterns that are matched one at a time."""
        if self._engines is None:
            self._engines = self._compile()
        return self._engines

    def match(self, fqn: str) -> tuple[tuple[int, Captures], ...]:
        """Return the number and captures of every pattern that matches the whole key, in pattern order."""
        together, alone = self._engines or self.engines
        found: list[tuple[int, Captures]] = []
        for each in together:
            hit = each.engine.fullmatch(fqn)
            if hit is None:
                continue
            end = each.ends[hit.lastindex or 0]
            # No other pattern of the group can match instead: they share no key even without their leaf guards.
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
                # Combined, they are nested deeper than `re` can compile; each pattern separately is not.
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
"""The outcome for a key that a pattern matches; `plan`: more than a rename, so only a plan can decide it."""

_Write = tuple[str, tuple[int, ...]]


class Renamer:
    """A renamer of many keys: same targets as `match`, in one tight loop that creates no `Match` objects."""

    __slots__ = ("_writes", "matcher", "outcomes")

    def __init__(self, matcher: SetMatcher, outcomes: Iterable[KeyOutcome]) -> None:
        self.matcher = matcher
        self.outcomes = tuple(outcomes)
        self._writes: list[_Write | None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Renamer, (self.matcher, self.outcomes)

    def rename_keys(self, fqns: Iterable[str], unmatched: str = "error") -> list[str | None] | None:
        """Return the target of each key, in order (None: the key is dropped).

        Return None instead of a list if a key is matched twice, matched by a pattern whose outcome is `plan`, or
        unmatched while `unmatched` is `error`: only a plan can handle those.
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
        """Return, for each group that ends a match, the template for `%` and the groups that it needs.

        The entry is None for a pattern that needs more: a table, a leaf guard, or a key that is kept or dropped.
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
    # `%` needs an argument: a template without captures gets the whole key, and `%.0s` writes none of it.
    return (text, wanted) if wanted else (text + "%.0s", (0,))


# ------------------------------------------------------------------------------------------------ one pattern

CHARS, SPLIT, JUMP, SAVE, MATCH = range(5)
"""Instructions: read a character in a set; try `argument`, then `other`; jump; save the offset; end."""
_Instruction = tuple[int, Any, int]


class Program:
    """A pattern as instructions, with a search that never visits a pair of instruction and offset twice.

    `part[p]` is the part of the pattern that instruction `p` belongs to. The number of instructions is bounded by
    `MAX_POSITIONS` of `tree.py`, because counted repeats are expanded.
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
        """Return the captures of the reading with the highest priority, the one that `re.fullmatch` finds.

        Depth first: a visited pair of instruction and offset has failed or is in progress, regardless of the
        captures, so it is not tried again. Hence there are at most (instructions x (length + 1)) steps, and the
        search ends even if a repeat reads nothing, because its second iteration reaches a visited pair.
        """
        visited: set[int] = set()
        width = len(key) + 1
        slots = [0] * (2 * len(self.names))
        # An entry is an instruction to try, or (if negative) a slot to restore after all paths through it failed.
        pending: list[tuple[int, int]] = [(0, 0)]
        while pending:
            place, offset = pending.pop()
            if place < 0:
                slots[-place - 1] = offset
                continue
            while (pair := place * width + offset) not in visited:
                visited.add(pair)
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
