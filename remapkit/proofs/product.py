r"""The searches of the proofs through the product of a `UnionNfa` with itself.

Which key maps share a word (`candidates`, then `meets`)? Can a key map read a word in two different ways (`splits`)?
What is the cheapest such word (`find_shortest_shared_word`)?
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remapkit.patterns.automaton import MAX_EDGES, Automaton, TooMany, build_automaton
from remapkit.patterns.charset import Ranges, contains
from remapkit.patterns.pattern import Part
from remapkit.patterns.tree import PatternNode
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.dfa import Dfa, partition
from remapkit.proofs.union import UnionNfa

# ------------------------------------------------------------------------------------------------ which key maps meet


def candidates(net: UnionNfa, budget: Budget) -> set[tuple[int, int]]:
    """Return the pairs of key maps that may share a word; all other pairs share none.

    All key maps are walked at once, from the front and then from the back, while at least two can continue: two key
    maps that share a word are together in some set. If a walk takes too long, the rest of it counts as shared.
    """
    everyone = sorted(net.starts)
    shared = {
        (one, other) for one in everyone if net.nulls[one] for other in everyone if net.nulls[other] and one < other
    }
    owners = [net.lines[line].key_map for line in net.line]
    limit = 12 * len(net.masks) + 2000
    starts = [position for each in net.starts.values() for position in each]
    forward, complete = _walked(net.masks, net.follow, starts, net.ends, owners, net.letters.all, limit, budget)
    if complete or not forward:
        return shared | _in_one(forward, budget)
    before: list[list[int]] = [[] for _ in net.masks]
    for position, following in enumerate(net.follow):
        for each in following:
            before[each].append(position)
    back, _ = _walked(net.masks, before, sorted(net.ends), set(starts), owners, net.letters.all, limit, budget)
    # If one walk was stopped with all key maps together, it gives no information, and the other one is the answer.
    if frozenset(everyone) in forward:
        return shared | _in_one(back, budget)
    if frozenset(everyone) in back:
        return shared | _in_one(forward, budget)
    return shared | (_in_one(forward, budget) & _in_one(back, budget))


def _walked(
    masks: Sequence[int],
    follow: Sequence[Sequence[int]],
    starts: Iterable[int],
    ends: set[int],
    owners: Sequence[int],
    everything: int,
    limit: int,
    budget: Budget,
) -> tuple[set[frozenset[int]], bool]:
    """Return the sets of key maps that reach an end, or the limit, together; and whether the walk was completed."""
    found: set[frozenset[int]] = set()
    seen: set[frozenset[int]] = set()
    pending: list[Iterable[int]] = [starts]
    spent = 0
    while pending:
        following = pending.pop()
        if spent > limit:
            found.add(frozenset(owners[position] for position in following))
            budget.spend(len(pending) + 1)
            continue
        groups = partition(following, masks, everything)
        for _, group in groups:
            spent += len(group)
            if len(group) < 2:
                continue
            there = {owners[position] for position in group}
            if len(there) < 2:
                continue
            ended = {owners[position] for position in group if position in ends}
            if len(ended) > 1:
                found.add(frozenset(ended))
            key = frozenset(group)
            if key in seen:
                continue
            seen.add(key)
            pending.append({each for position in group for each in follow[position]})
    budget.spend(spent)
    return found, spent <= limit


def _in_one(sets: Iterable[frozenset[int]], budget: Budget) -> set[tuple[int, int]]:
    """Return the pairs that are together in any of the sets."""
    found: set[tuple[int, int]] = set()
    largest: list[frozenset[int]] = []
    for each in sorted(sets, key=len, reverse=True):
        if any(each <= other for other in largest[:20]):
            continue
        largest.append(each)
        budget.spend(len(each) * len(each) // 2)
        ordered = sorted(each)
        found.update((one, other) for number, one in enumerate(ordered) for other in ordered[number + 1 :])
    return found


def meets(net: UnionNfa, one: int, other: int, budget: Budget) -> bool:
    """Return whether two key maps share a word."""
    if net.nulls[one] and net.nulls[other]:
        return True
    masks, follow, ends = net.masks, net.follow, net.ends
    count = len(masks)
    seen: set[int] = set()
    pending: list[int] = []
    lefts, rights = net.starts[one], net.starts[other]
    while True:
        budget.spend(len(lefts) * len(rights) + 1)
        for left in lefts:
            mask = masks[left]
            for right in rights:
                if mask & masks[right]:
                    code = left * count + right
                    if code not in seen:
                        if left in ends and right in ends:
                            return True
                        seen.add(code)
                        pending.append(code)
        if not pending:
            return False
        one, other = divmod(pending.pop(), count)
        lefts, rights = follow[one], follow[other]


# ---------------------------------------------------------------------------------------------- one key map, two ways


def splits(net: UnionNfa, key_map: int, budget: Budget) -> bool:
    """Return whether some word of a key map has two readings with different tags.

    Searches from the positions where two runs diverge; ends immediately if no runs ever do.
    """
    if len(net.nulls[key_map]) > 1:
        return True
    masks, follow, ends, tags = net.masks, net.follow, net.ends, net.tags
    low, high = net.span[key_map]
    budget.spend(high - low + 1)
    seen: set[tuple[int, int, bool]] = set()
    pending: list[tuple[int, int, bool]] = []

    def go(left: int, right: int, different: bool) -> bool:
        different = different or tags[left] != tags[right]
        if left == right or (left in ends and right in ends):
            if different:
                return True
            if left == right:
                return False
        state = (left, right, different) if left < right else (right, left, different)
        if state not in seen:
            seen.add(state)
            pending.append(state)
        return False

    for following in (net.starts[key_map], *follow[low:high]):
        if len(following) > 1 and _overlapping(following, masks):
            budget.spend(len(following) ** 2)
            for number, left in enumerate(following):
                for right in following[number + 1 :]:
                    if masks[left] & masks[right] and go(left, right, False):
                        return True
    while pending:
        one, other, different = pending.pop()
        budget.spend(len(follow[one]) * len(follow[other]) + 1)
        for left in follow[one]:
            for right in follow[other]:
                if masks[left] & masks[right] and go(left, right, different):
                    return True
    return False


def _overlapping(positions: Iterable[int], masks: Sequence[int]) -> bool:
    seen = 0
    for position in positions:
        if seen & masks[position]:
            return True
        seen |= masks[position]
    return False


# ------------------------------------------------------------------------------------------------ the cheapest word


@dataclass(frozen=True, slots=True)
class SharedWord:
    """A word that two lines read, and the positions of both readings."""

    text: str
    cost: int
    lines: tuple[int, int]
    positions: tuple[tuple[int, ...], tuple[int, ...]]


def find_shortest_shared_word(net: UnionNfa, one: int, other: int, budget: Budget) -> SharedWord | None:
    """Find the cheapest word shared by two key maps; for one and itself, a word that it reads in two different ways.

    Dijkstra's algorithm over pairs of positions. The cost of a word is the sum of the costs of both readings.
    """
    best = _empty(net, one, other)
    masks, follow, costs = net.masks, net.follow, net.costs
    same = one == other
    heap: list[tuple[int, int, int, bool]] = []
    came: dict[tuple[int, int, bool], tuple[tuple[int, int, bool] | None, int]] = {}

    def offer(left: int, right: int, different: bool, before: tuple[int, int, bool] | None, cost: int) -> None:
        different = different or not same or net.tags[left] != net.tags[right]
        state, total = (left, right, different), cost + costs[left] + costs[right]
        if state not in came or came[state][1] > total:
            came[state] = (before, total)
            heapq.heappush(heap, (total, left, right, different))

    budget.spend(len(net.starts[one]) * len(net.starts[other]))
    for left in net.starts[one]:
        for right in net.starts[other]:
            if masks[left] & masks[right]:
                base = net.lines[net.line[left]].base + net.lines[net.line[right]].base
                offer(left, right, False, None, base)
    while heap:
        total, left, right, different = heapq.heappop(heap)
        state = (left, right, different)
        if came[state][1] < total:
            continue
        if best is not None and best.cost <= total:
            return best
        if different and left in net.ends and right in net.ends:
            return _traced(net, came, state, total)
        budget.spend(len(follow[left]) * len(follow[right]) + 1)
        for following in follow[left]:
            for also in follow[right]:
                if masks[following] & masks[also]:
                    offer(following, also, different, state, total)
    return best


def _empty(net: UnionNfa, one: int, other: int) -> SharedWord | None:
    pairs = [(left, right) for left in net.nulls[one] for right in net.nulls[other] if one != other or left < right]
    found = [SharedWord("", net.lines[a].base + net.lines[b].base, (a, b), ((), ())) for a, b in pairs]
    return min(found, key=lambda meeting: meeting.cost, default=None)


def _traced(
    net: UnionNfa,
    came: dict[tuple[int, int, bool], tuple[tuple[int, int, bool] | None, int]],
    state: tuple[int, int, bool],
    cost: int,
) -> SharedWord:
    states = []
    here: tuple[int, int, bool] | None = state
    while here is not None:
        states.append(here)
        here = came[here][0]
    states.reverse()
    text = "".join(net.letters.pick(net.masks[left] & net.masks[right]) for left, right, _ in states)
    left, right = tuple(each[0] for each in states), tuple(each[1] for each in states)
    return SharedWord(text, cost, (net.line[left[0]], net.line[right[0]]), (left, right))


def cheapest_of_line(net: UnionNfa, line: int, budget: Budget) -> tuple[int, str, tuple[int, ...]]:
    """Return the cheapest word of one line: its cost, the word and its positions."""
    key_map, base = net.lines[line].key_map, net.lines[line].base
    if line in net.nulls[key_map]:
        return base, "", ()
    heap = [(base + net.costs[each], each, -1) for each in net.starts[key_map] if net.line[each] == line]
    heapq.heapify(heap)
    came: dict[int, int] = {}
    while heap:
        total, here, before = heapq.heappop(heap)
        if here in came:
            continue
        came[here] = before
        if here in net.ends:
            path = [here]
            while came[path[-1]] >= 0:
                path.append(came[path[-1]])
            path.reverse()
            return total, "".join(net.letters.pick(net.masks[each]) for each in path), tuple(path)
        budget.spend(len(net.follow[here]) + 1)
        for each in net.follow[here]:
            if each not in came:
                heapq.heappush(heap, (total + net.costs[each], each, here))
    raise AssertionError("a line without words")


_Outside = tuple[int, int | None, int | None]
"""A position, the state of the matched keys (None if none can match any more), and the state of the domain."""


def cheapest_outside(
    net: UnionNfa, key_map: int, matched: Dfa, domain: Dfa | None, budget: Budget
) -> tuple[str, tuple[int, ...], int] | None:
    """Find the cheapest target of a key map that is a key of the domain and that no key map matches, or None.

    The cost includes the target and its source key. Return the target with its positions and its line.
    """
    for line in net.nulls[key_map]:
        if not matched.accepts(matched.start) and (domain is None or domain.accepts(domain.start)):
            return "", (), line
    heap: list[tuple[int, int, _Outside]] = []
    came: dict[_Outside, tuple[_Outside | None, int, int]] = {}

    def offer(position: int, before: _Outside | None, states: tuple[int | None, int | None], cost: int) -> None:
        mask = net.masks[position]
        for inside, to in _moves(domain, states[1], mask):
            for reads, then in _moves_or_none(matched, states[0], inside):
                budget.spend(1)
                state, total = (position, then, to), cost + net.costs[position] + 1
                if state not in came or came[state][1] > total:
                    came[state] = (before, total, reads)
                    heapq.heappush(heap, (total, len(came), state))

    begin = (matched.start, domain.start if domain is not None else None)
    for position in net.starts[key_map]:
        offer(position, None, begin, net.lines[net.line[position]].base)
    while heap:
        total, _, state = heapq.heappop(heap)
        if came[state][1] < total:
            continue
        position, taken, there = state
        unmatched = taken is None or not matched.accepts(taken)
        if position in net.ends and unmatched and (domain is None or (there is not None and domain.accepts(there))):
            states: list[_Outside] = []
            here: _Outside | None = state
            while here is not None:
                states.append(here)
                here = came[here][0]
            states.reverse()
            text = "".join(net.letters.pick(came[each][2]) for each in states)
            return text, tuple(each[0] for each in states), net.line[position]
        for each in net.follow[position]:
            offer(each, state, (taken, there), total)
    return None


def _moves(guide: Dfa | None, state: int | None, mask: int) -> list[tuple[int, int | None]]:
    if guide is None or state is None:
        return [(mask, None)]
    return [(step & mask, to) for step, to in guide.steps(state) if step & mask]


def _moves_or_none(guide: Dfa, state: int | None, mask: int) -> list[tuple[int, int | None]]:
    """Return the next states for the characters of a mask; None for those without one."""
    if state is None:
        return [(mask, None)]
    moves: list[tuple[int, int | None]] = [(step & mask, to) for step, to in guide.steps(state) if step & mask]
    rest = mask
    for step, _ in moves:
        rest &= ~step
    return [*moves, (rest, None)] if rest else moves


# ------------------------------------------------------------------------------------------------ numbers


def two_spellings(node: PatternNode, budget: Budget) -> tuple[str, str] | None:
    """Return the two shortest digit strings of a language for the same number, such as 1 and 01, or None.

    The longer one has additional leading zeros: one run first reads these alone, then both runs read the same text.

    >>> from remapkit.patterns.pattern import CANONICAL

    >>> from remapkit.patterns.charset import DIGITS

    >>> from remapkit.patterns.tree import Chars, Repeat
    >>> two_spellings(Repeat(Chars(DIGITS), 1, None), Budget(10_000)), two_spellings(CANONICAL, Budget(10_000))
    (('0', '00'), None)
    """
    try:
        machine = build_automaton((Part(None, node),), MAX_EDGES)
    except TooMany:
        raise Exhausted from None
    begun = _zeros(machine, budget)
    # A state is a position per run, -1 before the first character.
    pending: list[tuple[int, int, str, str]] = [(-1, place, "", zeros) for place, zeros in begun.items()]
    seen = {(one, other) for one, other, _, _ in pending}
    for one, other, word, longer in pending:
        for left in _after(machine, one):
            for right in _after(machine, other):
                budget.spend(1)
                both = _digits(machine.chars[left]) & _digits(machine.chars[right])
                if not both or (left, right) in seen:
                    continue
                seen.add((left, right))
                sign = str((both & -both).bit_length() - 1)
                if left in machine.last and right in machine.last:
                    return word + sign, longer + sign
                pending.append((left, right, word + sign, longer + sign))
    return None


def _zeros(machine: Automaton, budget: Budget) -> dict[int, str]:
    """Return the positions reachable by one or more zeros, with the fewest zeros."""
    found: dict[int, str] = {}
    layer, zeros = [-1], ""
    while layer:
        zeros += "0"
        layer = [each for place in layer for each in _after(machine, place) if _digits(machine.chars[each]) & 1]
        layer = [each for each in dict.fromkeys(layer) if each not in found]
        budget.spend(len(layer) + 1)
        found.update(dict.fromkeys(layer, zeros))
    return found


def _after(machine: Automaton, place: int) -> Sequence[int]:
    return machine.first if place < 0 else machine.follow[place]


def _digits(chars: Ranges) -> int:
    """Return the digits of a set as a mask."""
    return sum(1 << digit for digit in range(10) if contains(chars, str(digit)))
