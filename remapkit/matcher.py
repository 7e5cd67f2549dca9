r"""Reading keys: one pattern at a time, in time linear in the key whatever the pattern.

Where a pattern reads every key in at most one way, `re` does: a backtracking matcher then visits each pair of
position and offset at most once, because two different ways to the same pair would be two ways to read a whole key.
Where it does not, the same priorities are followed by a search that remembers the pairs it has been to (the idea of
the bit-state matcher of R. Cox's RE2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from remapkit.automaton import automaton, reads_one_way
from remapkit.pattern import Alt, Chars, Group, Node, Pattern, Repeat, contains, unparse


class Reader:
    """Reads a key by a pattern; compiled when first used."""

    __slots__ = ("_engine", "pattern")

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self._engine: re.Pattern[str] | Program | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Reader, (self.pattern,)

    def __call__(self, fqn: str) -> dict[str, str] | None:
        """The captures, or None where the whole key is not matched."""
        engine = self._engine
        if engine is None:
            engine = self._engine = self._compiled()
        captures = _by_re(engine, fqn) if isinstance(engine, re.Pattern) else engine.captures(fqn)
        if captures is None:
            return None
        leaf = self.pattern.leaf
        return captures if leaf is None or fqn.rpartition(".")[2] in leaf else None

    def _compiled(self) -> re.Pattern[str] | Program:
        if reads_one_way(automaton(self.pattern.parts)):
            return re.compile(regex_text(self.pattern))
        return Program(self.pattern)


def _by_re(engine: re.Pattern[str], fqn: str) -> dict[str, str] | None:
    found = engine.fullmatch(fqn)
    return None if found is None else found.groupdict()


def regex_text(pattern: Pattern) -> str:
    """A pattern with its `where` guards as one regular expression."""
    return "".join(
        unparse(part.node) if part.name is None else unparse(Group(part.name, part.node)) for part in pattern.parts
    )


_CHARS, _SPLIT, _JUMP, _SAVE, _MATCH = range(5)
_Instruction = tuple[int, Any, int]


class Program:
    """A pattern as instructions; a search through them that never goes to one place twice."""

    def __init__(self, pattern: Pattern) -> None:
        self.code: list[_Instruction] = []
        self.names: list[str] = []
        for part in pattern.parts:
            if part.name is None:
                self._emit(part.node)
                continue
            slot = 2 * len(self.names)
            self.names.append(part.name)
            self.code.append((_SAVE, slot, 0))
            self._emit(part.node)
            self.code.append((_SAVE, slot + 1, 0))
        self.code.append((_MATCH, None, 0))

    def _emit(self, node: Node) -> None:
        if isinstance(node, Chars):
            self.code.append((_CHARS, node.chars, 0))
        elif isinstance(node, Alt):
            self._alternatives(node.branches)
        elif isinstance(node, Repeat):
            self._repeat(node)
        elif isinstance(node, Group):
            self._emit(node.item)
        else:
            for item in node.items:
                self._emit(item)

    def _alternatives(self, branches: Sequence[Node]) -> None:
        ends = []
        for branch in branches[:-1]:
            split = len(self.code)
            self.code.append((_SPLIT, 0, 0))
            self._emit(branch)
            ends.append(len(self.code))
            self.code.append((_JUMP, 0, 0))
            self.code[split] = (_SPLIT, split + 1, len(self.code))
        self._emit(branches[-1])
        for end in ends:
            self.code[end] = (_JUMP, len(self.code), 0)

    def _repeat(self, node: Repeat) -> None:
        for _ in range(node.low):
            self._emit(node.item)
        if node.high is None:
            split = len(self.code)
            self.code.append((_SPLIT, 0, 0))
            self._emit(node.item)
            self.code.append((_JUMP, split, 0))
            self.code[split] = (_SPLIT, split + 1, len(self.code))
            return
        splits = []
        for _ in range(node.high - node.low):
            splits.append(len(self.code))
            self.code.append((_SPLIT, 0, 0))
            self._emit(node.item)
        for split in splits:
            self.code[split] = (_SPLIT, split + 1, len(self.code))

    def captures(self, key: str) -> dict[str, str] | None:
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
                if kind == _CHARS:
                    if offset == len(key) or not contains(argument, key[offset]):
                        break
                    place, offset = place + 1, offset + 1
                elif kind == _SPLIT:
                    pending.append((other, offset))
                    place = argument
                elif kind == _JUMP:
                    place = argument
                elif kind == _SAVE:
                    pending.append((-argument - 1, slots[argument]))
                    slots[argument] = offset
                    place += 1
                elif offset == len(key):
                    return {name: key[slots[2 * i] : slots[2 * i + 1]] for i, name in enumerate(self.names)}
                else:
                    break
        return None
