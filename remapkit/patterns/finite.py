"""List the words of finite patterns, and make patterns from lists of words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from remapkit.patterns.charset import merge_ranges
from remapkit.patterns.steps import Steps
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
    measure_common_prefix,
    one_character,
)

MAX_WORDS = 10_000
"""A language with more words than this counts as unbounded."""


MAX_STEPS = 10_000_000
"""The most steps for one list of words, if the caller does not count them."""


def list_words(node: PatternNode, limit: int = MAX_WORDS, steps: Steps | None = None) -> tuple[str, ...] | None:
    """Return all words of a language, shortest first, or None if there are more than `limit`.

    Raises `TooMany` if no steps are left.

    >>> list_words(Alt((literal("a"), Seq((literal("b"), Repeat(Chars(((48, 49),)), 0, 1))))))
    ('a', 'b', 'b0', 'b1')
    """
    if not _is_finite(node):
        return None
    found = _Collector(limit, steps if steps is not None else Steps(MAX_STEPS)).collect(node)
    return None if found is None else tuple(sorted(found, key=lambda word: (len(word), word)))


class _Collector:
    """A collector of the words of trees. Each method returns None if there are too many words or characters."""

    def __init__(self, limit: int, steps: Steps) -> None:
        self.limit, self.steps = limit, steps

    def collect(self, node: PatternNode) -> set[str] | None:
        self.steps.spend(1)
        if isinstance(node, Chars):
            if sum(high - low + 1 for low, high in node.chars) > self.limit:
                return None
            return {chr(code) for low, high in node.chars for code in range(low, high + 1)}
        if isinstance(node, Seq):
            return self.concatenate(map(self.collect, node.items))
        if isinstance(node, Alt):
            return self.unite(map(self.collect, node.branches))
        if isinstance(node, Group):
            return self.collect(node.item)
        return self.repeat(node)

    def concatenate(self, sets: Iterable[set[str] | None]) -> set[str] | None:
        """Return all concatenations of one word of each set; a run of single words is joined at once."""
        found, text, length = {""}, "", 0
        for following in sets:
            if following is None:
                return None
            if len(following) == 1:
                text += next(iter(following))
                continue
            count = len(found) * len(following)
            length += len(text) + max(map(len, following), default=0)
            if count > self.limit * 4 or length * count > MAX_LETTERS:
                return None
            self.steps.spend(count * (1 + length // 64))
            found = {word + text + tail for word in found for tail in following}
            text = ""
            if len(found) > self.limit:
                return None
        if (length + len(text)) * len(found) > MAX_LETTERS:
            return None
        self.steps.spend(len(text) // 64)
        return {word + text for word in found} if text else found

    def unite(self, sets: Iterable[set[str] | None]) -> set[str] | None:
        found: set[str] = set()
        for each in sets:
            if each is None:
                return None
            self.steps.spend(len(each))
            found |= each
            if len(found) > self.limit:
                return None
        return found

    def repeat(self, node: Repeat) -> set[str] | None:
        inner = self.collect(node.item)
        if inner is None:
            return None
        if inner <= {""}:
            return inner if inner else ({""} if node.low == 0 else set())
        if node.high is None or node.high > self.limit:
            return None
        found = self.concatenate([inner] * node.low)
        last = found
        letters = 0
        for _ in range(node.low, node.high):
            if found is None or last is None:
                return None
            letters += sum(map(len, last)) * len(inner)
            if letters > MAX_LETTERS or len(last) * len(inner) > self.limit * 4:
                return None
            self.steps.spend(len(last) * len(inner) + 1)
            last = {word + tail for word in last for tail in inner} - found
            found |= last
            if len(found) > self.limit:
                return None
        return found


def _is_finite(node: PatternNode) -> bool:
    """Return whether every repetition in a tree has an upper bound; otherwise its words are not collected at all."""
    pending = [node]
    while pending:
        each = pending.pop()
        if isinstance(each, Repeat):
            if each.high is None:
                return False
            pending.append(each.item)
        elif isinstance(each, Seq):
            pending += each.items
        elif isinstance(each, Alt):
            pending += each.branches
        elif isinstance(each, Group):
            pending.append(each.item)
    return True


@lru_cache(maxsize=256)
def order_words(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the distinct words, shortest first."""
    return tuple(sorted(set(values), key=lambda word: (len(word), word)))


@lru_cache(maxsize=256)
def build_words_node(values: tuple[str, ...]) -> PatternNode:
    """Build an unambiguous tree for a finite language: prefixes are shared, equal continuations merged.

    >>> from remapkit.patterns.unparse import unparse
    >>> unparse(build_words_node(tuple(str(n) for n in range(48))))
    '(?:[05-9]|[1-3][0-9]?|4[0-7]?)'
    """
    return _share_prefixes(sorted(set(values)), 0, 0) if values else Chars(())


class _Unordered(Exception):
    """No tree takes the words in their order."""


def _share_prefixes(words: Sequence[str], start: int, depth: int, order: Mapping[str, int] = {}) -> PatternNode:
    """Build the tree of what follows `start` in sorted distinct words with the same beginning.

    Every level is a place where words part, so long words without branches cost no recursion. Below `MAX_NESTED`
    levels the words are written one by one. `order` is the order in which a matcher must try words, of which one
    begins with another; without it, the longer one is tried first.
    """
    end = measure_common_prefix(words[0], words[-1], start)
    if len(words) == 1 or depth >= MAX_NESTED:
        ordered = sorted(words, key=order.__getitem__) if order else words
        rests: list[PatternNode] = [literal(word[start:]) if word[start:] else EMPTY for word in ordered]
        return rests[0] if len(rests) == 1 else Alt(tuple(rests))
    by_first: dict[str, list[str]] = {}
    for word in words:
        by_first.setdefault(word[end : end + 1], []).append(word)
    has_end = by_first.pop("", None) is not None
    by_rest: dict[PatternNode, list[int]] = {}
    for character, members in by_first.items():
        by_rest.setdefault(_share_prefixes(members, end + 1, depth + 1, order), []).append(ord(character))
    branches = [
        _join_nodes(Chars(merge_ranges((code, code) for code in codes)), rest) for rest, codes in by_rest.items()
    ]
    body = branches[0] if len(branches) == 1 else Alt(tuple(branches))
    if has_end:
        shorter_first = {order[word] > order[words[0]] for word in words[1:]} if order else {False}
        if len(shorter_first) > 1:
            raise _Unordered
        body = Alt((EMPTY, body)) if True in shorter_first else Repeat(body, 0, 1)
    return Seq((*map(one_character, words[0][start:end]), *_list_items(body))) if end > start else body


def _join_nodes(head: PatternNode, rest: PatternNode) -> PatternNode:
    return head if rest == EMPTY else Seq((head, *_list_items(rest)))


def _list_items(node: PatternNode) -> tuple[PatternNode, ...]:
    return node.items if isinstance(node, Seq) else (node,)


def join_alternatives(branches: Sequence[PatternNode]) -> PatternNode | None:
    """Return an alternation of plain words as a tree with shared prefixes that a matcher reads in the same order.

    Return None for other alternations, and where no tree has that order.

    >>> from remapkit.patterns.unparse import unparse
    >>> unparse(join_alternatives([literal("w10x"), literal("w1x"), literal("w2x")]))
    'w(?:1(?:0x|x)|2x)'
    >>> unparse(join_alternatives([literal("w1"), literal("w10"), literal("w1")]))
    'w1(?:|0)'
    """
    order: dict[str, int] = {}
    for number, branch in enumerate(branches):
        word = _read_literal(branch)
        if word is None:
            return None
        order.setdefault(word, number)
    try:
        return _share_prefixes(sorted(order), 0, 0, order)
    except _Unordered:
        return None


def _read_literal(node: PatternNode) -> str | None:
    """Return the only word of a sequence of single characters, else None."""
    found = []
    for item in _list_items(node):
        if not isinstance(item, Chars) or item.chars[0][0] != item.chars[-1][1]:
            return None
        found.append(chr(item.chars[0][0]))
    return "".join(found)
