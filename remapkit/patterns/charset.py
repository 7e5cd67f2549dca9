"""Sets of characters as sorted ranges of code points."""

from __future__ import annotations

from collections.abc import Iterable

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: sorted, disjoint, inclusive intervals of code points."""


LAST = 0x10FFFF
"""The last code point."""


def merge_ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Sort and merge intervals.

    >>> merge_ranges([(5, 9), (1, 2), (3, 3)])
    ((1, 3), (5, 9))
    """
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(chars: Ranges) -> Ranges:
    """Return all characters that are not in the set.

    >>> complement(((0, 9), (11, 0x10FFFF)))
    ((10, 10),)
    """
    found: list[tuple[int, int]] = []
    start = 0
    for low, high in chars:
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    if start <= LAST:
        found.append((start, LAST))
    return tuple(found)


def contains(chars: Ranges, character: str) -> bool:
    """Return whether a set contains a character."""
    code = ord(character)
    return any(low <= code <= high for low, high in chars)


def singleton(character: str) -> Ranges:
    """Return the set of one character."""
    return ((ord(character), ord(character)),)


DIGITS: Ranges = ((48, 57),)


WORD: Ranges = merge_ranges([(48, 57), (65, 90), (95, 95), (97, 122)])


SPACE: Ranges = ((9, 13), (32, 32))


NOT_NEWLINE: Ranges = complement(singleton("\n"))


NOT_DOT: Ranges = complement(singleton("."))
