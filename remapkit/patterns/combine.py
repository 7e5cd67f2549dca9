r"""Combine patterns into one regular expression through a trie, and decide which patterns may be combined.

Patterns share their common prefixes, character by character and capture by capture, so that one walk reads a key for
all of them. The trie is also an automaton: an accepting run over a key is one reading of that key by one pattern. If
no key has two such runs, then no two patterns match the same key, their order does not matter, and a backtracking
matcher visits each node of the trie at each offset at most once (the lemma of `automaton.is_unambiguous`, for all
patterns at once). `group_patterns` finds groups of patterns with this property.

The search for keys with two runs walks through pairs of positions and counts its steps. If it exceeds a limit, it is
repeated from the ends of the keys, which separates patterns with different suffixes immediately. If that fails too,
the patterns that are not known to be unambiguous are matched one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from remapkit.patterns.automaton import MAX_EDGES, build_fragment, build_masks
from remapkit.patterns.charset import Ranges, singleton
from remapkit.patterns.pattern import Pattern
from remapkit.patterns.steps import Steps, TooMany
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat, Seq, count_positions
from remapkit.patterns.unparse import unparse, unparse_chars

MAX_STEPS = 400_000
"""The most pairs of positions that one search visits before it gives up (about a quarter of a second)."""

MAX_NESTING = 40
"""The deepest nesting of branches in one expression; patterns that diverge deeper do not share their prefixes."""


@dataclass(slots=True)
class Branch:
    """A node of the trie: its token, its children, and the patterns that end at it.

    `named`: the token is a capture; `below` counts the patterns that end at or below this node.
    """

    token: str = ""
    node: PatternNode | None = None
    named: bool = False
    children: dict[str, Branch] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    below: int = 0


_Token = tuple[str, PatternNode, bool]


def build_trie(patterns: Iterable[tuple[int, Pattern]], *, reverse: bool = False) -> Branch:
    """Build the trie of numbered patterns; with `reverse`, of the reversed patterns."""
    root = Branch()
    for number, pattern in patterns:
        here = root
        here.below += 1
        for token, node, named in _tokenize_reversed(pattern) if reverse else _tokenize_pattern(pattern):
            following = here.children.get(token)
            if following is None:
                following = here.children[token] = Branch(token, node, named)
            here = following
            here.below += 1
        here.ends.append(number)
    return root


def _tokenize_pattern(pattern: Pattern) -> Iterator[_Token]:
    """Yield the tokens of a pattern: single characters, captures, and other expressions.

    Tokens are equal iff their texts are equal. The parentheses distinguish a capture from the same expression without
    a capture: the two must not share a node.
    """
    for part in pattern.parts:
        if part.name is not None:
            yield f"({unparse(part.node)})", part.node, True
        elif part.is_constant and part.values is not None:
            yield from map(_tokenize_character, part.values[0])
        else:
            yield from _tokenize_node(part.node)


@lru_cache(maxsize=1024)
def _tokenize_character(character: str) -> _Token:
    node = Chars(singleton(character))
    return unparse_chars(node.chars), node, False


def _tokenize_node(node: PatternNode) -> Iterator[_Token]:
    if isinstance(node, Seq):
        for item in node.items:
            yield from _tokenize_node(item)
    else:
        yield unparse(node), node, False


def _tokenize_reversed(pattern: Pattern) -> Iterator[_Token]:
    for token, node, named in reversed(list(_tokenize_pattern(pattern))):
        yield token, node if isinstance(node, Chars) else _mirror_node(node), named


def _mirror_node(node: PatternNode) -> PatternNode:
    """Return the tree of the reversed language."""
    if isinstance(node, Seq):
        return Seq(tuple(_mirror_node(item) for item in reversed(node.items)))
    if isinstance(node, Alt):
        return Alt(tuple(_mirror_node(branch) for branch in node.branches))
    if isinstance(node, Repeat):
        return Repeat(_mirror_node(node.item), node.low, node.high)
    return _mirror_node(node.item) if isinstance(node, Group) else node


# ------------------------------------------------------------------------------------------------ which go together


@dataclass(frozen=True, slots=True)
class Groups:
    """Pattern numbers: each group in `together` can be matched at once, those in `alone` only one at a time."""

    together: tuple[tuple[int, ...], ...]
    alone: tuple[int, ...]


def group_patterns(patterns: Sequence[Pattern], limit: int = MAX_STEPS) -> Groups:
    """Find groups in which no key has two readings, neither by two patterns nor by the same one.

    A pattern that reads some key in several ways is alone. If no two patterns share a key, there is one group. The
    result is correct for every `limit`; a smaller one leaves more patterns alone.

    >>> from remapkit.patterns.path import parse_path
    >>> from remapkit.diagnostics.source import Text
    >>> def path(text):
    ...     text = Text.of(text)
    ...     return Pattern("path", text, text.span, parse_path(text, {}))
    >>> group_patterns([path("a.{x:int}"), path("a.{x:int}.{y}"), path("{all:**}"), path("b")])
    Groups(together=((0, 1, 3), (2,)), alone=())
    """
    together: list[tuple[int, ...]] = []
    alone: list[int] = []
    small: list[int] = []
    left = MAX_TOKENS
    for number, size in sorted(enumerate(map(_measure_size, patterns)), key=lambda each: each[1]):
        left -= size
        (small if left >= 0 and size <= MAX_SIZE else alone).append(number)
    for numbers in _group_decidable(patterns, sorted(small), limit, Steps(BUILD_STEPS), alone):
        together += numbers
    return Groups(tuple(together), tuple(sorted(alone)))


def _group_decidable(
    patterns: Sequence[Pattern], numbers: list[int], limit: int, steps: Steps, alone: list[int]
) -> Iterator[list[tuple[int, ...]]]:
    """Group patterns; if that takes too long, group those that begin with a literal separately.

    `steps` are those to build automata, `limit` those of each search.

    The recursion ends because both halves are smaller; patterns that cannot be divided further are alone.
    """
    if not numbers:
        return
    shared = _find_shared_keys(patterns, numbers, limit, steps)
    if shared is not None:
        alone += shared.several_ways
        yield _color_groups([number for number in numbers if number not in shared.several_ways], shared.pairs)
        return
    literal = [number for number in numbers if _has_literal_start(patterns[number])]
    if 0 < len(literal) < len(numbers):
        yield from _group_decidable(patterns, literal, limit, steps, alone)
        yield from _group_decidable(patterns, sorted(set(numbers) - set(literal)), limit, steps, alone)
    else:
        alone += numbers


MAX_SIZE = 1000
"""The most characters of a pattern with counted repeats expanded; longer ones are matched alone."""


MAX_TOKENS = 300_000
"""The most characters of all patterns in one trie, of which each takes some 300 bytes; the longest are left out."""


BUILD_STEPS = 2_000_000
"""The most steps to build the automata of the searches."""


def _measure_size(pattern: Pattern) -> int:
    """Return the number of characters of a pattern with counted repeats expanded; captured lists of words count 1."""
    return sum(
        count_positions(part.node) if part.values is None else 1 if part.name is not None else len(part.values[0])
        for part in pattern.parts
    )


def _has_literal_start(pattern: Pattern) -> bool:
    return bool(pattern.parts) and pattern.parts[0].name is None and pattern.parts[0].is_constant


def _color_groups(numbers: Sequence[int], pairs: set[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Assign each pattern to the first group in which it shares no key with another pattern (greedy colouring)."""
    foes: dict[int, set[int]] = {}
    for one, other in pairs:
        foes.setdefault(one, set()).add(other)
        foes.setdefault(other, set()).add(one)
    groups: list[list[int]] = []
    members: list[set[int]] = []
    for number in numbers:
        against = foes.get(number, set())
        place = next((place for place, each in enumerate(members) if not against & each), len(groups))
        if place == len(groups):
            groups.append([])
            members.append(set())
        groups[place].append(number)
        members[place].add(number)
    return [tuple(group) for group in groups]


@dataclass(slots=True)
class _Shared:
    """The result of a search: pairs of patterns that share a key, and patterns that read a key in several ways."""

    pairs: set[tuple[int, int]] = field(default_factory=set)
    several_ways: set[int] = field(default_factory=set)


def _find_shared_keys(
    patterns: Sequence[Pattern], numbers: Sequence[int], limit: int, steps: Steps
) -> _Shared | None:
    """Search from the beginnings of the keys, then from their ends; return None if both take too many steps."""
    for reverse in (False, True):
        positions = _Positions(build_trie(((number, patterns[number]) for number in numbers), reverse=reverse), steps)
        if not positions.too_many and (found := positions.search(limit)) is not None:
            return found
    return None


class _Positions:
    """The trie as an automaton of positions (Glushkov's construction), and the search through pairs of them.

    `follow[0]` has the initial positions, `ends[p]` the patterns whose keys may end after position `p`, and
    `branch[p]` the node of the trie that `p` belongs to.

    Invariant of the search: `seen` has only pairs of *different* positions that two runs over one text can be in.
    Every pair enters `pending` once, so there are at most as many iterations as pairs; each costs the product of the
    numbers of successors, which `steps` counts.
    """

    def __init__(self, root: Branch, steps: Steps | None = None) -> None:
        self.building = steps if steps is not None else Steps(BUILD_STEPS)
        self.chars: list[Ranges] = [()]
        self.follow: list[list[int]] = [[]]
        self.branch: list[Branch] = [root]
        self.ends: dict[int, list[int]] = {}
        self.found = _Shared()
        self.too_many = False
        try:
            self.add_trie(root)
        except TooMany:
            self.too_many = True

    def add_trie(self, root: Branch) -> None:
        pending: list[tuple[Branch, list[int]]] = [(root, [0])]
        while pending:
            here, last = pending.pop()
            if here.ends:
                for position in last:
                    self.ends[position] = self.ends.get(position, []) + here.ends
            for child in here.children.values():
                pending.append((child, self.add_token(child, last)))

    def add_token(self, child: Branch, before: list[int]) -> list[int]:
        """Add the positions of a token after `before`; return the positions that a key can be at after the token."""
        node = child.node
        if isinstance(node, Chars):
            first = last = [len(self.chars)]
            self.chars.append(node.chars)
            self.follow.append([])
            empty = False
        else:
            assert node is not None
            piece = build_fragment(node, len(self.chars), MAX_EDGES, self.building)
            if piece is None:
                raise TooMany
            self.chars += piece.chars
            self.follow += piece.follow
            first, last, empty = piece.first, piece.last, piece.nullable
            if not piece.strong:
                # One run derives a word in two ways, as in `(a*)*`; pairs of different positions cannot detect this.
                self.found.several_ways.update(_find_ends_below(child))
        self.branch += [child] * (len(self.chars) - len(self.branch))
        self.building.spend(len(before) * len(first) + 1)
        for position in before:
            self.follow[position] += first
        return last + before if empty else last

    def search(self, limit: int) -> _Shared | None:
        try:
            self.mask = build_masks(self.chars, self.building)
        except TooMany:
            return None
        self.steps, self.limit = 0, limit
        self.pending: list[tuple[int, int]] = []
        self.seen: set[tuple[int, int]] = set()
        # Patterns that end at the same position share every key that ends there.
        for numbers in self.ends.values():
            self.add_conflicts(numbers, numbers)
        # Two runs can diverge only after a position with two successors for the same character.
        for following in self.follow:
            self.split_run(following)
            if self.steps > limit:
                return None
        while self.pending and self.steps <= limit:
            one, other = self.pending.pop()
            if one in self.ends and other in self.ends:
                self.add_conflicts(self.ends[one], self.ends[other], apart=True)
            self.advance_runs(self.follow[one], self.follow[other])
        return self.found if self.steps <= limit else None

    def split_run(self, positions: list[int]) -> None:
        """Add the pairs of positions that one run can split into: pairs of successors that share a character."""
        taken = 0
        self.steps += len(positions) // 16
        for position in positions:
            if taken & self.mask[position]:
                break
            taken |= self.mask[position]
        else:
            return
        for number, position in enumerate(positions):
            self.steps += len(positions) - number
            if self.steps > self.limit:
                return
            for other in positions[number + 1 :]:
                if self.mask[position] & self.mask[other]:
                    self.add_pair(position, other)

    def advance_runs(self, left: list[int], right: list[int]) -> None:
        """Advance two runs by one character that both can read."""
        mask = self.mask
        self.steps += 1 + len(left) * len(right)
        if self.steps > self.limit:
            return
        for one in left:
            for other in right:
                if mask[one] & mask[other]:
                    self.add_pair(one, other)

    def add_pair(self, one: int, other: int) -> None:
        if one == other:
            # Two different runs have met: every pattern that ends at or below this node reads some key in two ways.
            self.found.several_ways.update(_find_ends_below(self.branch[one]))
            return
        pair = (one, other) if one < other else (other, one)
        if pair not in self.seen:
            self.seen.add(pair)
            self.pending.append(pair)

    def add_conflicts(self, left: Sequence[int], right: Sequence[int], *, apart: bool = False) -> None:
        """Record the patterns that end in two runs over the same key; `apart`: the runs are different."""
        for one in left:
            for other in right:
                self.steps += 1
                if one != other:
                    self.found.pairs.add((min(one, other), max(one, other)))
                elif apart:
                    self.found.several_ways.add(one)


def _find_ends_below(branch: Branch) -> Iterator[int]:
    pending = [branch]
    while pending:
        here = pending.pop()
        yield from here.ends
        pending += here.children.values()


# ------------------------------------------------------------------------------------------------ one expression


@dataclass(frozen=True, slots=True)
class CombinedRegex:
    """One regular expression for several patterns.

    After a match, `ends[found.lastindex]` gives the number of the matched pattern and the groups of its captures, in
    order.
    """

    text: str
    ends: dict[int, tuple[int, tuple[int, ...]]]


def write_expression(root: Branch) -> CombinedRegex:
    r"""Write the trie as one expression: an alternation where patterns diverge, and a group that marks each end.

    `re` reports the last group of a match. So the last capture on the path to an end marks that end if no other
    pattern uses the capture; otherwise an empty group after it marks the end.

    >>> from remapkit.patterns.path import parse_path
    >>> from remapkit.diagnostics.source import Text
    >>> def path(text):
    ...     text = Text.of(text)
    ...     return Pattern("path", text, text.span, parse_path(text, {}))
    >>> patterns = [path("ab.{x:int}"), path("ab.{n:int}.w.{y:q|k}"), path("ac")]
    >>> written = write_expression(build_trie(enumerate(patterns)))
    >>> written.text
    'a(?:b\\.((?:0|[1-9][0-9]*))(?:()|\\.w\\.([kq]))|c())'
    >>> written.ends
    {2: (0, (1,)), 3: (1, (1, 3)), 4: (2, ())}
    """
    return _Writer().write(root)


class _Writer:
    def __init__(self) -> None:
        self.text: list[str] = []
        self.count = 0
        self.ends: dict[int, tuple[int, tuple[int, ...]]] = {}

    def write(self, root: Branch) -> CombinedRegex:
        self.write_branch(root, (), False, 0)
        return CombinedRegex("".join(self.text), self.ends)

    def write_branch(self, here: Branch, groups: tuple[int, ...], own: bool, depth: int) -> None:
        """Write the trie below a node; `own`: the last group belongs to only one pattern."""
        # Chains of single children are written in a loop: a key of a thousand characters must not recurse that deep.
        while len(here.children) == 1 and not here.ends:
            (here,) = here.children.values()
            groups, own = self.write_token(here, groups, own)
        several = len(here.children) + bool(here.ends) > 1
        if several and depth >= MAX_NESTING:
            self.write_unshared(here, groups)
            return
        if several:
            self.text.append("(?:")
        for number in here.ends:
            if not own:
                self.count += 1
                self.text.append("()")
            self.ends[groups[-1] if own else self.count] = (number, groups)
        for position, child in enumerate(here.children.values()):
            if position or here.ends:
                self.text.append("|")
            self.write_branch(child, *self.write_token(child, groups, own), depth + 1)
        if several:
            self.text.append(")")

    def write_token(self, child: Branch, groups: tuple[int, ...], own: bool) -> tuple[tuple[int, ...], bool]:
        self.text.append(child.token)
        if not child.named:
            return groups, own
        self.count += 1
        return (*groups, self.count), child.below == 1

    def write_unshared(self, here: Branch, groups: tuple[int, ...]) -> None:
        """Write every pattern below a node separately, in one flat alternation."""
        self.text.append("(?:")
        pending: list[tuple[Branch, tuple[Branch, ...]]] = [(here, ())]
        first = True
        while pending:
            place, way = pending.pop()
            for number in place.ends:
                self.text.append("" if first else "|")
                first = False
                found = groups
                for each in way:
                    found, _ = self.write_token(each, found, False)
                self.count += 1
                self.text.append("()")
                self.ends[self.count] = (number, found)
            pending += [(child, (*way, child)) for child in place.children.values()]
        self.text.append(")")
