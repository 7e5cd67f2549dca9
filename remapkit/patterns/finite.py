"""List the words of finite patterns, and make patterns from lists of words."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from remapkit.patterns.charset import merge_ranges
from remapkit.patterns.tree import (
    EMPTY,
    MAX_LETTERS,
    MAX_NESTED,
    Alt,
    Chars,
    Group,
    PatternNode,
    Repeat,
    Seq,
    literal,
)

MAX_WORDS = 10_000
"""A language with more words than this counts as unbounded."""


def list_words(node: PatternNode, limit: int = MAX_WORDS) -> tuple[str, ...] | None:
    """Return all words of a language, shortest first, or None if there are more than `limit`.

    >>> list_words(Alt((literal("a"), Seq((literal("b"), Repeat(Chars(((48, 49),)), 0, 1))))))
    ('a', 'b', 'b0', 'b1')
    """
    found = _collect_words(node, limit)
    return None if found is None else tuple(sorted(found, key=lambda word: (len(word), word)))


def _collect_words(node: PatternNode, limit: int) -> set[str] | None:
    if isinstance(node, Chars):
        if sum(high - low + 1 for low, high in node.chars) > limit:
            return None
        return {chr(code) for low, high in node.chars for code in range(low, high + 1)}
    if isinstance(node, Seq):
        return _concatenate_words(node.items, limit)
    if isinstance(node, Alt):
        return _unite_words((_collect_words(branch, limit) for branch in node.branches), limit)
    if isinstance(node, Group):
        return _collect_words(node.item, limit)
    return _repeat_words(node, limit)


def _concatenate_words(items: Iterable[PatternNode], limit: int) -> set[str] | None:
    found, text, length = {""}, "", 0
    for item in items:
        if isinstance(item, Chars) and item.chars[0][0] == item.chars[-1][1]:
            text += chr(item.chars[0][0])
            continue
        following = _collect_words(item, limit)
        if following is None:
            return None
        if len(found) * len(following) > limit * 4:
            return None
        length += len(text) + max(map(len, following), default=0)
        if length * len(found) * len(following) > MAX_LETTERS:
            return None
        found = {word + text + tail for word in found for tail in following}
        text = ""
        if len(found) > limit:
            return None
    if (length + len(text)) * len(found) > MAX_LETTERS:
        return None
    return {word + text for word in found} if text else found


def _unite_words(sets: Iterable[set[str] | None], limit: int) -> set[str] | None:
    found: set[str] = set()
    for each in sets:
        if each is None:
            return None
        found |= each
        if len(found) > limit:
            return None
    return found


def _repeat_words(node: Repeat, limit: int) -> set[str] | None:
    inner = _collect_words(node.item, limit)
    if inner is None:
        return None
    if inner <= {""}:
        return inner if inner else ({""} if node.low == 0 else set())
    if node.high is None:
        return None
    if node.high > limit:
        return None
    found: set[str] | None = _concatenate_words((node.item,) * node.low, limit)
    last = found
    letters = 0
    for _ in range(node.low, node.high):
        if found is None or last is None:
            return None
        letters += sum(map(len, last)) * len(inner)
        if letters > MAX_LETTERS:
            return None
        if len(last) * len(inner) > limit * 4:
            return None
        last = {word + tail for word in last for tail in inner} - found
        found |= last
        if len(found) > limit:
            return None
    return found


@lru_cache(maxsize=256)
def build_words_node(values: tuple[str, ...]) -> PatternNode:
    """Build an unambiguous tree for a finite language: prefixes are shared, equal continuations merged.

    >>> from remapkit.patterns.unparse import unparse
    >>> unparse(build_words_node(tuple(str(n) for n in range(48))))
    '(?:[05-9]|[1-3][0-9]?|4[0-7]?)'
    """
    if max(map(len, values), default=0) > MAX_NESTED:
        # A trie of words this long would be nested deeper than Python can recurse.
        return Alt(tuple(map(literal, values))) if len(values) > 1 else literal(values[0])
    trie: dict[str, object] = {}
    for value in values:
        node = trie
        for character in value:
            node = node.setdefault(character, {})  # type: ignore[assignment]
        node[""] = True
    return _build_trie_node(trie, {})


def _build_trie_node(trie: dict[str, object], known: dict[tuple[object, ...], PatternNode]) -> PatternNode:
    by_rest: dict[PatternNode, list[int]] = {}
    for character, rest in trie.items():
        if character:
            by_rest.setdefault(_build_trie_node(rest, known), []).append(ord(character))  # type: ignore[arg-type]
    key = (*((rest, tuple(codes)) for rest, codes in by_rest.items()), "" in trie)
    if key not in known:
        branches = [
            _join_nodes(Chars(merge_ranges((code, code) for code in codes)), rest) for rest, codes in by_rest.items()
        ]
        body: PatternNode = EMPTY if not branches else branches[0] if len(branches) == 1 else Alt(tuple(branches))
        known[key] = Repeat(body, 0, 1) if "" in trie and branches else body
    return known[key]


def _join_nodes(head: PatternNode, rest: PatternNode) -> PatternNode:
    if rest == EMPTY:
        return head
    return Seq((head, *rest.items)) if isinstance(rest, Seq) else Seq((head, rest))
