"""Compiled patterns: sequences of parts; the named parts are captures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from remapkit.diagnostics.source import Span, Text
from remapkit.patterns.charset import DIGITS, NOT_DOT, singleton
from remapkit.patterns.finite import build_words_node, list_words, order_words
from remapkit.patterns.steps import Steps
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat, Seq

CANONICAL = Alt((Chars(singleton("0")), Seq((Chars(((49, 57),)), Repeat(Chars(DIGITS), 0, None)))))
"""A canonical decimal, `0|[1-9][0-9]*`, without a limit (unlike `is_canonical_integer`)."""


SEGMENT = Repeat(Chars(NOT_DOT), 1, None)
"""The text between two dots: `[^.]+`."""


SEGMENTS = Seq((SEGMENT, Repeat(Seq((Chars(singleton(".")), SEGMENT)), 0, None)))
"""One or more segments."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a pattern: a capture if it has a name, else text that is only matched.

    `values` has all words that it can match, sorted, if there are at most `MAX_WORDS`; `table` is the table whose
    keys bound it; `written` is its type as written on the path surface (`int`, `0..47`).
    """

    name: str | None
    node: PatternNode
    at: tuple[int, int] = field(default=(0, 0), compare=False)
    values: tuple[str, ...] | None = None
    table: str | None = None
    written: str | None = None

    @property
    def is_constant(self) -> bool:
        """Whether it can match only one word."""
        return self.values is not None and len(self.values) == 1

    def restrict_to(self, values: tuple[str, ...], *, table: str | None = None) -> Part:
        """Return the part restricted to the given words."""
        ordered = order_words(values)
        return replace(self, node=build_words_node(ordered), values=ordered, table=table or self.table, written=None)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern: its parts, in order, and the leaves that its keys may have (None: any)."""

    surface: str
    text: Text
    span: Span
    parts: tuple[Part, ...]
    leaf: tuple[str, ...] | None = None

    @property
    def captures(self) -> tuple[Part, ...]:
        """The parts that have a name."""
        return tuple(part for part in self.parts if part.name is not None)

    @property
    def is_empty(self) -> bool:
        """Whether it matches no key, because a range is empty for the params in force."""
        return any(part.values == () for part in self.parts)

    def capture(self, name: str) -> Part | None:
        """Return the capture with the given name."""
        return next((part for part in self.parts if part.name == name), None)


def split_into_parts(node: PatternNode, steps: Steps | None = None) -> tuple[Part, ...]:
    """Split a tree into parts; its captures must be at the top level. Raises `TooMany` if no steps are left."""
    parts: list[Part] = []
    pending: list[PatternNode] = []

    def flush() -> None:
        if pending:
            whole = Seq(tuple(pending), (pending[0].at[0], pending[-1].at[1]))
            parts.append(Part(None, whole, whole.at, values=list_words(whole, steps=steps)))
            pending.clear()

    def walk(each: PatternNode) -> None:
        if isinstance(each, Seq):
            for item in each.items:
                walk(item)
        elif isinstance(each, Group):
            flush()
            parts.append(Part(each.name, each.item, each.at, values=list_words(each.item, steps=steps)))
        elif isinstance(each, Alt) and len(each.branches) == 1:
            walk(each.branches[0])
        else:
            pending.append(each)

    walk(node)
    flush()
    return tuple(parts)
