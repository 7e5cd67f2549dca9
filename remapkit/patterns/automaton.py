r"""Patterns as automata with one state per character of the pattern (Glushkov's construction).

Source: V. M. Glushkov, "The abstract theory of automata" (1961); A. Brüggemann-Klein, "Regular expressions into
finite automata" (1993), for strong unambiguity.

A state is a *position*: one occurrence of a character (or class) in the pattern. There are no empty transitions.
Every position is reachable and can reach an accepting one, because no class of a pattern is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from remapkit.patterns.charset import LAST, Ranges, contains, merge_ranges
from remapkit.patterns.pattern import Part, Pattern
from remapkit.patterns.steps import Steps, is_shown
from remapkit.patterns.steps import TooMany as TooMany
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat, Seq, measure_common_prefix


@dataclass(frozen=True, slots=True)
class Automaton:
    """The positions of a sequence of parts.

    Position `p` reads the characters `chars[p]` and belongs to part `part[p]`. `first` has the positions that can
    read the first character, `follow[p]` those that can read the character after `p`, and `last` those that can read
    the last character. `nullable`: the empty key is accepted. `strong`: no word has two derivations over the same
    positions, as in `(a*)*`.
    """

    chars: tuple[Ranges, ...]
    part: tuple[int, ...]
    first: tuple[int, ...]
    follow: tuple[tuple[int, ...], ...]
    last: frozenset[int]
    nullable: bool
    strong: bool


@dataclass(slots=True)
class _Fragment:
    """An automaton under construction: its ends, and the number of ways to derive the empty word (2: two or more)."""

    first: list[int]
    last: list[int]
    empty: int


MAX_EDGES = 1_000_000
"""The most edges between positions for automata that are only used to speed up matching."""


@dataclass(slots=True)
class _Builder:
    chars: list[Ranges] = field(default_factory=list)
    part: list[int] = field(default_factory=list)
    follow: list[list[int]] = field(default_factory=list)
    here: int = 0
    strong: bool = True
    base: int = 0
    edges: int = 0
    limit: int | None = None
    steps: Steps | None = None

    def spend(self, edges: int) -> None:
        self.edges += edges
        if self.limit is not None and self.edges > self.limit:
            raise TooMany
        if self.steps is not None:
            self.steps.spend(edges + 1)

    def build(self, node: PatternNode) -> _Fragment:
        if self.steps is not None:
            self.steps.spend(1)
        if isinstance(node, Chars):
            self.chars.append(node.chars)
            self.part.append(self.here)
            self.follow.append([])
            position = self.base + len(self.chars) - 1
            return _Fragment([position], [position], 0)
        if isinstance(node, Seq):
            whole = _Fragment([], [], 1)
            for item in node.items:
                whole = self.join(whole, self.build(item))
            return whole
        if isinstance(node, Alt):
            branches = [self.build(branch) for branch in node.branches]
            first = [position for each in branches for position in each.first]
            last = [position for each in branches for position in each.last]
            return _Fragment(first, last, self.count_ways(sum(each.empty for each in branches)))
        if isinstance(node, Group):
            return self.build(node.item)
        return self.repeat(node)

    def count_ways(self, count: int) -> int:
        if count > 1:
            self.strong = False
        return min(count, 2)

    def join(self, left: _Fragment, right: _Fragment) -> _Fragment:
        """Concatenate; the lists of both are used up, so that a long chain of options costs no copy for each."""
        self.spend(len(left.last) * len(right.first))
        for position in left.last:
            self.follow[position - self.base] += right.first
        if left.empty:
            left.first += right.first
        if right.empty:
            right.last += left.last
        return _Fragment(left.first, right.last, self.count_ways(left.empty * right.empty))

    def make_optional(self, inner: _Fragment) -> _Fragment:
        return _Fragment(inner.first, inner.last, self.count_ways(inner.empty + 1))

    def loop(self, inner: _Fragment) -> _Fragment:
        """Return `inner` repeated once or more."""
        if inner.empty:
            self.strong = False
        self.spend(len(inner.last) * len(inner.first))
        for position in inner.last:
            known = set(self.follow[position - self.base])
            new = [each for each in inner.first if each not in known]
            if len(new) < len(inner.first):
                self.strong = False
            self.follow[position - self.base] += new
        return inner

    def repeat(self, node: Repeat) -> _Fragment:
        if node.high is None:
            whole = _Fragment([], [], 1)
            for _ in range(node.low - 1):
                whole = self.join(whole, self.build(node.item))
            looped = self.loop(self.build(node.item))
            return self.join(whole, self.make_optional(looped) if node.low == 0 else looped)
        tail = _Fragment([], [], 1)
        for _ in range(node.high - node.low):
            # x{0,3} becomes (x(x(x)?)?)?, built from the inside out: unlike x?x?x?, it is unambiguous.
            tail = self.make_optional(self.join(self.build(node.item), tail))
        whole = _Fragment([], [], 1)
        for _ in range(node.low):
            whole = self.join(whole, self.build(node.item))
        return self.join(whole, tail)


def build_automaton(parts: Sequence[Part], limit: int | None = None, steps: Steps | None = None) -> Automaton:
    """Build the automaton of a sequence of parts.

    Raises `TooMany` if it needs more than `limit` edges, or more steps than are left.

    >>> from remapkit.patterns.pattern import SEGMENT

    >>> from remapkit.patterns.tree import literal
    >>> found = build_automaton([Part(None, literal("a.")), Part("x", SEGMENT)])
    >>> found.first, found.follow, found.last, found.part
    ((0,), ((1,), (2,), (2,)), frozenset({2}), (0, 0, 1))
    """
    builder = _Builder(limit=limit, steps=steps)
    whole = _Fragment([], [], 1)
    for number, part in enumerate(parts):
        builder.here = number
        whole = builder.join(whole, builder.build(part.node))
    return Automaton(
        tuple(builder.chars),
        tuple(builder.part),
        tuple(dict.fromkeys(whole.first)),
        tuple(tuple(dict.fromkeys(each)) for each in builder.follow),
        frozenset(whole.last),
        bool(whole.empty),
        builder.strong,
    )


@dataclass(frozen=True, slots=True)
class Fragment:
    """The positions of one tree, numbered from a base, to be joined with others by the caller."""

    chars: list[Ranges]
    follow: list[list[int]]
    first: list[int]
    last: list[int]
    nullable: bool
    strong: bool


def build_fragment(node: PatternNode, base: int, limit: int, steps: Steps | None = None) -> Fragment | None:
    """Build the positions of a tree; return None if there are more than `limit` edges, or no steps left."""
    builder = _Builder(base=base, limit=limit, steps=steps)
    try:
        whole = builder.build(node)
    except TooMany:
        return None
    return Fragment(builder.chars, builder.follow, whole.first, whole.last, bool(whole.empty), builder.strong)


# ------------------------------------------------------------------------------------------------ reading a key


@dataclass(frozen=True, slots=True)
class ReadPrefix:
    """The longest readable prefix of a key: its length, the positions that read its last character, and the match."""

    length: int
    at: tuple[int, ...]
    accepted: bool


def read_prefix(machine: Automaton, key: str) -> ReadPrefix:
    """Read the longest prefix of `key` that is also a prefix of some key of the language."""
    at: tuple[int, ...] = ()
    following: Iterable[int] = machine.first
    for offset, character in enumerate(key):
        found = tuple(position for position in following if contains(machine.chars[position], character))
        if not found:
            return ReadPrefix(offset, at, False)
        at = found
        following = dict.fromkeys(each for position in at for each in machine.follow[position])
    accepted = any(position in machine.last for position in at) if key else machine.nullable
    return ReadPrefix(len(key), at, accepted)


def find_possible_leaves(pattern: Pattern, steps: Steps) -> frozenset[str]:
    """Return the leaves that keys of the pattern can have; all leaves if the pattern is too large to decide.

    Raises `TooMany` if no steps are left. Leaves that end alike are read together, from their ends.
    """
    leaves = pattern.leaf or ()
    try:
        machine = build_automaton(pattern.parts, MAX_EDGES, Steps(min(steps.left, 2 * MAX_EDGES)))
    except TooMany:
        steps.spend(MAX_EDGES)
        return frozenset(leaves)
    before: list[list[int]] = [[] for _ in machine.chars]
    for position, following in enumerate(machine.follow):
        steps.spend(len(following) + 1)
        for each in following:
            before[each].append(position)
    first = frozenset(machine.first)
    found: list[str] = []
    behind: list[frozenset[int]] = [machine.last]
    """For each suffix of the last leaf, the positions that can come before it."""
    last = ""
    for leaf in sorted(leaves, key=lambda each: each[::-1]):
        del behind[1 + measure_common_prefix(leaf[::-1], last[::-1]) :]
        last = leaf
        reads: Sequence[int] = ()
        while len(behind) <= len(leaf):
            at, character = behind[-1], leaf[-len(behind)]
            reads = [position for position in at if contains(machine.chars[position], character)]
            steps.spend(len(at) + sum(len(before[position]) for position in reads) + 1)
            behind.append(frozenset(each for position in reads for each in before[position]))
        if not first.isdisjoint(reads) or any(contains(machine.chars[position], ".") for position in behind[-1]):
            found.append(leaf)
    return frozenset(found)


# ------------------------------------------------------------------------------------------------ alphabets


@dataclass(frozen=True, slots=True)
class Alphabet:
    """A partition of all characters into classes: no set in use contains only some characters of a class.

    A set of characters is a bit mask over the classes (`masks`); `samples[c]` has up to three characters of class
    `c`, the most readable first.
    """

    masks: dict[Ranges, int]
    samples: tuple[str, ...]


def build_alphabet(sets: Iterable[Ranges]) -> Alphabet:
    """Return the coarsest partition for the given sets of characters.

    >>> found = build_alphabet([((48, 57),), ((48, 48),)])
    >>> found.masks, found.samples
    ({((48, 57),): 6, ((48, 48),): 2}, ('abc', '0', '123'))
    """
    distinct = list(dict.fromkeys(sets))
    classes = _partition_characters(distinct)
    return Alphabet(_mask_sets(distinct, classes), tuple(_pick_samples(each) for each in classes.values()))


def build_masks(sets: Sequence[Ranges], steps: Steps | None = None) -> list[int]:
    """Return the mask of each set over the classes of their alphabet; sets share a character iff their masks do.

    Raises `TooMany` if no steps are left: each mask has one bit for every class.
    """
    distinct = list(dict.fromkeys(sets))
    if steps is not None:
        ranges = sum(map(len, distinct))
        steps.spend(len(sets) + ranges * (1 + len(distinct) // 512))
    classes = _partition_characters(distinct)
    if steps is not None:
        steps.spend(sum(signature.bit_count() * (1 + (len(distinct) + len(classes)) // 512) for signature in classes))
    known = _mask_sets(distinct, classes)
    return [known[chars] for chars in sets]


def _partition_characters(distinct: Sequence[Ranges]) -> dict[int, list[tuple[int, int]]]:
    """Return the intervals of each class, keyed by a mask of the sets in `distinct` that contain its characters."""
    changes: dict[int, int] = {0: 0}
    for number, chars in enumerate(distinct):
        for low, high in chars:
            changes[low] = changes.get(low, 0) ^ (1 << number)
            changes[high + 1] = changes.get(high + 1, 0) ^ (1 << number)
    classes: dict[int, list[tuple[int, int]]] = {}
    members, bounds = 0, sorted(changes)
    for low, following in zip(bounds, [*bounds[1:], LAST + 1], strict=True):
        members ^= changes[low]
        if low <= LAST:
            classes.setdefault(members, []).append((low, following - 1))
    return classes


def _mask_sets(distinct: Sequence[Ranges], classes: Iterable[int]) -> dict[Ranges, int]:
    found = dict.fromkeys(distinct, 0)
    for bit, signature in enumerate(classes):
        while signature:
            lowest = signature & -signature
            found[distinct[lowest.bit_length() - 1]] |= 1 << bit
            signature ^= lowest
    return found


READABLE = (*range(97, 123), *range(48, 58), 95, 45, *range(65, 91), 46, *range(32, 127))


def _pick_samples(intervals: Sequence[tuple[int, int]]) -> str:
    chars = merge_ranges(intervals)
    found: list[str] = []
    if len(chars) > 1 or chars[0][0] != chars[0][1]:
        found = [chr(code) for code in READABLE if any(low <= code <= high for low, high in chars)][:3]
    rest = (chr(code) for low, high in chars for code in range(low, min(high, low + 3) + 1))
    for character in rest:
        if len(found) == 3:
            break
        if character not in found:
            found.append(character)
    return "".join(found)


# ------------------------------------------------------------------------------------------------ one way or several


def is_unambiguous(machine: Automaton, steps: Steps | None = None) -> bool:
    """Return whether every key is read in at most one way, down to each repetition and branch.

    This makes a backtracking matcher linear: every position can reach an accepting one, so two ways to reach a
    position at the same offset would be two ways to read a whole key; hence there is at most one. Also returns False
    if `MAX_PAIRS` steps, or those that are left, do not decide it.
    """
    return machine.strong and is_shown(lambda within: _is_one_way(machine, within), MAX_PAIRS, steps)


def _is_one_way(machine: Automaton, steps: Steps) -> bool:
    mask = build_masks(machine.chars, steps)
    steps.spend(sum(map(len, machine.follow)))
    if _is_disjoint(machine.first, mask) and all(_is_disjoint(each, mask) for each in machine.follow):
        return True
    return not _has_two_runs(machine, mask, steps)


MAX_PAIRS = 1_000_000
"""The most steps through pairs of positions before a pattern counts as ambiguous (about a second)."""


def _is_disjoint(positions: Sequence[int], mask: Sequence[int]) -> bool:
    seen = 0
    for position in positions:
        if seen & mask[position]:
            return False
        seen |= mask[position]
    return True


def _has_two_runs(machine: Automaton, mask: Sequence[int], steps: Steps) -> bool:
    """Return whether two different runs accept the same word.

    Invariant: `seen` has the pairs of different positions that two runs over one word can be in. Every pair is
    expanded once, so the search ends; each costs the product of the numbers of successors. Two different runs that
    meet in one position are two readings, because every position can reach an accepting one.
    """
    pending: list[tuple[int, int]] = []
    seen: set[tuple[int, int]] = set()

    def part(positions: Sequence[int]) -> None:
        steps.spend(len(positions) * (len(positions) - 1) // 2)
        for number, one in enumerate(positions):
            for other in positions[number + 1 :]:
                if mask[one] & mask[other]:
                    add(one, other)

    def add(one: int, other: int) -> None:
        pair = (one, other) if one < other else (other, one)
        if pair not in seen:
            seen.add(pair)
            pending.append(pair)

    part(machine.first)
    for following in machine.follow:
        part(following)
    while pending:
        one, other = pending.pop()
        if one in machine.last and other in machine.last:
            return True
        steps.spend(1 + len(machine.follow[one]) * len(machine.follow[other]))
        for left in machine.follow[one]:
            for right in machine.follow[other]:
                if mask[left] & mask[right]:
                    if left == right:
                        return True
                    add(left, right)
    return False
