r"""Patterns as data: what both surfaces of the rule language (`match` and `path`) are parsed into.

A pattern is a linear sequence of parts. A part is a regular language, and either has a name (a capture) or not. No
capture stands inside a repetition, an option, a branch or another capture, so whatever matches has exactly one value
for each capture of a reading, and a whole rule can be reasoned about as a concatenation of languages.

The trees are built by `regex.py` and `pathpattern.py`, narrowed by `guards.py`, and read by `automaton.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from remapkit.diagnostics.source import Span, Text

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: sorted, disjoint, inclusive intervals of code points."""

LAST = 0x10FFFF
"""The last code point."""

MAX_WORDS = 10_000
"""A language with more words than this counts as unbounded."""

MAX_LETTERS = 1_000_000
"""A language with more characters than this in all its words counts as unbounded."""

MAX_NESTED = 60
"""Words longer than this are put side by side and do not share their prefixes."""

MAX_POSITIONS = 20_000
"""The most characters a pattern may have once its counted repeats are written out."""


def ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The sorted, merged form of intervals.

    >>> ranges([(5, 9), (1, 2), (3, 3)])
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
    """Every other character.

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
    """Whether a character belongs to a set."""
    code = ord(character)
    return any(low <= code <= high for low, high in chars)


def one(character: str) -> Ranges:
    """The set of one character."""
    return ((ord(character), ord(character)),)


DIGITS: Ranges = ((48, 57),)
WORD: Ranges = ranges([(48, 57), (65, 90), (95, 95), (97, 122)])
SPACE: Ranges = ((9, 13), (32, 32))
NOT_NEWLINE: Ranges = complement(one("\n"))
NOT_DOT: Ranges = complement(one("."))


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of a set."""

    chars: Ranges
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Seq:
    """One thing after the other; the empty word where there is none."""

    items: tuple[Node, ...]
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Alt:
    """One of several branches."""

    branches: tuple[Node, ...]
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Repeat:
    """`item`, at least `low` and at most `high` times (None: without an upper bound), as many as possible first."""

    item: Node
    low: int
    high: int | None
    at: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """A named capture; only the parsers see it: `linear` turns a tree with groups into parts."""

    name: str
    item: Node
    at: tuple[int, int] = field(default=(0, 0), compare=False)


Node = Chars | Seq | Alt | Repeat | Group

EMPTY = Seq(())
CANONICAL = Alt((Chars(one("0")), Seq((Chars(((49, 57),)), Repeat(Chars(DIGITS), 0, None)))))
"""A canonical decimal: `0|[1-9][0-9]*`."""
SEGMENT = Repeat(Chars(NOT_DOT), 1, None)
"""The text between two dots: `[^.]+`."""
SEGMENTS = Seq((SEGMENT, Repeat(Seq((Chars(one(".")), SEGMENT)), 0, None)))
"""One segment or more."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a pattern: a capture where it has a name, else text that is only read.

    `values` are all the words it can be, sorted, where there are at most `MAX_WORDS` of them; `table` is the table
    whose keys it was bounded to; `written` is how the author wrote its type on the path surface (`int`, `0..47`).
    """

    name: str | None
    node: Node
    at: tuple[int, int] = field(default=(0, 0), compare=False)
    values: tuple[str, ...] | None = None
    table: str | None = None
    written: str | None = None

    @property
    def constant(self) -> bool:
        """Whether it can only be one word."""
        return self.values is not None and len(self.values) == 1

    def bounded(self, values: tuple[str, ...], *, table: str | None = None) -> Part:
        """The same part, restricted to some words."""
        ordered = tuple(sorted(set(values), key=lambda word: (len(word), word)))
        return replace(self, node=words_node(ordered), values=ordered, table=table or self.table, written=None)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern: its parts, in order, and the leaves its keys may end in (None: any)."""

    surface: str
    text: Text
    span: Span
    parts: tuple[Part, ...]
    leaf: tuple[str, ...] | None = None

    @property
    def captures(self) -> tuple[Part, ...]:
        """The parts that have a name."""
        return tuple(part for part in self.parts if part.name is not None)

    def capture(self, name: str) -> Part | None:
        """The capture of that name."""
        return next((part for part in self.parts if part.name == name), None)


def literal(text: str, start: int = 0) -> Seq:
    """The language of one word."""
    items = [Chars(_one(character), (here, here + 1)) for here, character in enumerate(text, start)]
    return Seq(tuple(items), (start, start + len(text)))


_one = lru_cache(maxsize=1024)(one)


# ------------------------------------------------------------------------------------------------ finite languages


def words(node: Node, limit: int = MAX_WORDS) -> tuple[str, ...] | None:
    """All words of a language, shortest first, or None where there are more than `limit`.

    >>> words(Alt((literal("a"), Seq((literal("b"), Repeat(Chars(((48, 49),)), 0, 1))))))
    ('a', 'b', 'b0', 'b1')
    """
    found = _words(node, limit)
    return None if found is None else tuple(sorted(found, key=lambda word: (len(word), word)))


def _words(node: Node, limit: int) -> set[str] | None:
    if isinstance(node, Chars):
        if sum(high - low + 1 for low, high in node.chars) > limit:
            return None
        return {chr(code) for low, high in node.chars for code in range(low, high + 1)}
    if isinstance(node, Seq):
        return _all_concatenations(node.items, limit)
    if isinstance(node, Alt):
        return _union((_words(branch, limit) for branch in node.branches), limit)
    if isinstance(node, Group):
        return _words(node.item, limit)
    return _repeated_words(node, limit)


def _all_concatenations(items: Iterable[Node], limit: int) -> set[str] | None:
    found, text, length = {""}, "", 0
    for item in items:
        if isinstance(item, Chars) and item.chars[0][0] == item.chars[-1][1]:
            text += chr(item.chars[0][0])
            continue
        following = _words(item, limit)
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


def _union(sets: Iterable[set[str] | None], limit: int) -> set[str] | None:
    found: set[str] = set()
    for each in sets:
        if each is None:
            return None
        found |= each
        if len(found) > limit:
            return None
    return found


def _repeated_words(node: Repeat, limit: int) -> set[str] | None:
    inner = _words(node.item, limit)
    if inner is None:
        return None
    if inner <= {""}:
        return inner if inner else ({""} if node.low == 0 else set())
    if node.high is None:
        return None
    if node.high > limit:
        return None
    found: set[str] | None = _all_concatenations((node.item,) * node.low, limit)
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
def words_node(values: tuple[str, ...]) -> Node:
    """A tree for a finite language that reads each word in one way: prefixes shared, equal continuations merged.

    >>> unparse(words_node(tuple(str(n) for n in range(48))))
    '(?:[05-9]|[1-3][0-9]?|4[0-7]?)'
    """
    if max(map(len, values), default=0) > MAX_NESTED:
        # A tree of their prefixes could be nested deeper than it can be walked.
        return Alt(tuple(map(literal, values))) if len(values) > 1 else literal(values[0])
    trie: dict[str, object] = {}
    for value in values:
        node = trie
        for character in value:
            node = node.setdefault(character, {})  # type: ignore[assignment]
        node[""] = True
    return _trie_node(trie, {})


def _trie_node(trie: dict[str, object], known: dict[tuple[object, ...], Node]) -> Node:
    by_rest: dict[Node, list[int]] = {}
    for character, rest in trie.items():
        if character:
            by_rest.setdefault(_trie_node(rest, known), []).append(ord(character))  # type: ignore[arg-type]
    key = (*((rest, tuple(codes)) for rest, codes in by_rest.items()), "" in trie)
    if key not in known:
        branches = [_after(Chars(ranges((code, code) for code in codes)), rest) for rest, codes in by_rest.items()]
        body: Node = EMPTY if not branches else branches[0] if len(branches) == 1 else Alt(tuple(branches))
        known[key] = Repeat(body, 0, 1) if "" in trie and branches else body
    return known[key]


def _after(head: Node, rest: Node) -> Node:
    if rest == EMPTY:
        return head
    return Seq((head, *rest.items)) if isinstance(rest, Seq) else Seq((head, rest))


# ------------------------------------------------------------------------------------------------ sizes and leaves


def size(node: Node) -> int:
    """How many characters the pattern has once counted repeats are written out."""
    if isinstance(node, Chars):
        return 1
    if isinstance(node, Seq):
        return sum(size(item) for item in node.items)
    if isinstance(node, Alt):
        return sum(size(branch) for branch in node.branches)
    if isinstance(node, Group):
        return size(node.item)
    return size(node.item) * max(1, node.low if node.high is None else node.high)


def groups(node: Node) -> Iterator[Group]:
    """Every named capture in a tree."""
    if isinstance(node, Group):
        yield node
        yield from groups(node.item)
    elif isinstance(node, Repeat):
        yield from groups(node.item)
    elif isinstance(node, Seq | Alt):
        for item in node.items if isinstance(node, Seq) else node.branches:
            yield from groups(item)


def linear(node: Node) -> tuple[Part, ...]:
    """The parts of a tree whose captures all stand at its top level."""
    parts: list[Part] = []
    pending: list[Node] = []

    def flush() -> None:
        if pending:
            whole = Seq(tuple(pending), (pending[0].at[0], pending[-1].at[1]))
            parts.append(Part(None, whole, whole.at, values=words(whole)))
            pending.clear()

    def walk(each: Node) -> None:
        if isinstance(each, Seq):
            for item in each.items:
                walk(item)
        elif isinstance(each, Group):
            flush()
            parts.append(Part(each.name, each.item, each.at, values=words(each.item)))
        elif isinstance(each, Alt) and len(each.branches) == 1:
            walk(each.branches[0])
        else:
            pending.append(each)

    walk(node)
    flush()
    return tuple(parts)


# ------------------------------------------------------------------------------------------------ back to text

_SPECIAL = frozenset(r"\.^$*+?{}[]|()")
_NAMED = {9: r"\t", 10: r"\n", 11: r"\v", 12: r"\f", 13: r"\r"}


def unparse(node: Node) -> str:
    r"""The tree as a regular expression, in the dialect it was parsed from; means the same to `re`, with any flags.

    >>> unparse(SEGMENTS)
    '[^.]+(?:\\.[^.]+)*'
    """
    if isinstance(node, Chars):
        return unparse_chars(node.chars)
    if isinstance(node, Seq):
        return "".join(unparse(item) for item in node.items)
    if isinstance(node, Alt):
        return f"(?:{'|'.join(unparse(branch) for branch in node.branches)})"
    if isinstance(node, Group):
        return f"(?P<{node.name}>{_unwrapped(node.item)})"
    return _atom(node.item) + _quantifier(node.low, node.high)


def _unwrapped(node: Node) -> str:
    if isinstance(node, Alt):
        return "|".join(unparse(branch) for branch in node.branches)
    return unparse(node)


def _atom(node: Node) -> str:
    if isinstance(node, Seq) and len(node.items) == 1:
        return _atom(node.items[0])
    return unparse(node) if isinstance(node, Chars | Alt) else f"(?:{unparse(node)})"


def _quantifier(low: int, high: int | None) -> str:
    short = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((low, high))
    if short is not None:
        return short
    if low == high:
        return f"{{{low}}}"
    return f"{{{low},{'' if high is None else high}}}"


def unparse_chars(chars: Ranges) -> str:
    """One character, or a class.

    >>> unparse_chars(DIGITS), unparse_chars(NOT_DOT), unparse_chars(one("."))
    ('[0-9]', '[^.]', '\\\\.')
    """
    if not chars:
        return r"[^\x00-\U0010ffff]"
    if len(chars) == 1 and chars[0][0] == chars[0][1]:
        return _character(chars[0][0], _SPECIAL)
    if chars[-1][1] == LAST and chars[0] != (0, LAST):
        return f"[^{_members(complement(chars))}]"
    return f"[{_members(chars)}]"


def _members(chars: Ranges) -> str:
    inner = frozenset("\\]^-[&~|")
    written = []
    for low, high in chars:
        if high - low < 2:
            written += [_character(code, inner) for code in range(low, high + 1)]
        else:
            written.append(f"{_character(low, inner)}-{_character(high, inner)}")
    return "".join(written)


def _character(code: int, special: frozenset[str]) -> str:
    character = chr(code)
    if character in special:
        return "\\" + character
    if code in _NAMED:
        return _NAMED[code]
    if character.isprintable():
        return character
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
