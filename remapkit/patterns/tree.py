"""Pattern trees: what both surfaces of the rule language (`match` and `path`) are parsed into.

A pattern is a sequence of parts. A part is a regular language, and either has a name (a capture) or not. No capture
is inside a repetition, an option, a branch or another capture, so that each reading gives every capture exactly one
value, and a whole rule can be reasoned about as a concatenation of languages.

The trees are built by `regex.py` and `path.py`, narrowed by `compile.py`, and read by `automaton.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from remapkit.patterns.charset import Ranges, singleton

MAX_LETTERS = 1_000_000
"""A language whose words have more characters than this in all counts as unbounded."""


MAX_NESTED = 60
"""Words longer than this are written as alternatives that do not share their prefixes."""


MAX_POSITIONS = 20_000
"""The most characters a pattern may have once its counted repeats are written out."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of a set."""

    chars: Ranges
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Seq:
    """One thing after the other; the empty word where there is none."""

    items: tuple[PatternNode, ...]
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Alt:
    """One of several branches."""

    branches: tuple[PatternNode, ...]
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Repeat:
    """`item`, at least `low` and at most `high` times (None: without an upper bound), as many as possible first."""

    item: PatternNode
    low: int
    high: int | None
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """A named capture; only parsers make it, and `split_into_parts` turns a tree with groups into parts."""

    name: str
    item: PatternNode
    at: tuple[int, int] = field(default=(0, 0), compare=False)


PatternNode = Chars | Seq | Alt | Repeat | Group


EMPTY = Seq(())


def literal(text: str, start: int = 0) -> Seq:
    """The language of one word."""
    items = [Chars(_one(character), (here, here + 1)) for here, character in enumerate(text, start)]
    return Seq(tuple(items), (start, start + len(text)))


_one = lru_cache(maxsize=1024)(singleton)


def count_positions(node: PatternNode) -> int:
    """How many characters the pattern has once counted repeats are written out."""
    if isinstance(node, Chars):
        return 1
    if isinstance(node, Seq):
        return sum(count_positions(item) for item in node.items)
    if isinstance(node, Alt):
        return sum(count_positions(branch) for branch in node.branches)
    if isinstance(node, Group):
        return count_positions(node.item)
    return count_positions(node.item) * max(1, node.low if node.high is None else node.high)
