"""Pattern trees: the parsed form of both pattern syntaxes of the rule language (`match` and `path`).

A pattern is a sequence of parts. A part is a regular language and may have a name (then it is a capture). No capture
is inside a repetition, an option, a branch or another capture. So each reading gives every capture exactly one value,
and a whole rule can be treated as a concatenation of languages.

The trees are built by `regex.py` and `path.py`, narrowed by `compile.py`, and read by `automaton.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from remapkit.patterns.charset import Ranges, singleton

MAX_LETTERS = 1_000_000
"""A language whose words have more characters in total counts as unbounded."""


MAX_NESTED = 60
"""Longer words are written as alternatives without shared prefixes."""


MAX_POSITIONS = 20_000
"""The most characters a pattern may have after its counted repeats are expanded."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character from a set."""

    chars: Ranges
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Seq:
    """A sequence of items; the empty word if there are none."""

    items: tuple[PatternNode, ...]
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Alt:
    """One of several branches."""

    branches: tuple[PatternNode, ...]
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Repeat:
    """`item`, at least `low` and at most `high` times (None: no upper bound); greedy."""

    item: PatternNode
    low: int
    high: int | None
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """A named capture; made only by parsers, and turned into parts by `split_into_parts`."""

    name: str
    item: PatternNode
    at: tuple[int, int] = field(default=(0, 0), compare=False)


PatternNode = Chars | Seq | Alt | Repeat | Group


EMPTY = Seq(())


def literal(text: str, start: int = 0) -> Seq:
    """Return the language of one word."""
    return Seq(tuple(map(one_character, text)), (start, start + len(text)))


@lru_cache(maxsize=1024)
def one_character(character: str) -> Chars:
    """Return the set of one character; literal text shares these, so a long one takes 8 bytes a character."""
    return Chars(singleton(character))


def count_positions(node: PatternNode) -> int:
    """Return the number of characters of a pattern after its counted repeats are expanded."""
    if isinstance(node, Chars):
        return 1
    if isinstance(node, Seq):
        return sum(count_positions(item) for item in node.items)
    if isinstance(node, Alt):
        return sum(count_positions(branch) for branch in node.branches)
    if isinstance(node, Group):
        return count_positions(node.item)
    return count_positions(node.item) * max(1, node.low if node.high is None else node.high)


def count_nodes(node: PatternNode) -> int:
    """Return the number of nodes of a tree after its counted repeats are expanded: what one walk through it costs."""
    if isinstance(node, Chars):
        return 1
    if isinstance(node, Seq):
        return 1 + sum(map(count_nodes, node.items))
    if isinstance(node, Alt):
        return 1 + sum(map(count_nodes, node.branches))
    if isinstance(node, Group):
        return 1 + count_nodes(node.item)
    return 1 + count_nodes(node.item) * max(1, node.low if node.high is None else node.high)


def measure_common_prefix(one: str, other: str, start: int = 0) -> int:
    """Return the number of characters with which both texts begin; they are known to agree before `start`."""
    most = min(len(one), len(other))
    return next((place for place in range(start, most) if one[place] != other[place]), most)
