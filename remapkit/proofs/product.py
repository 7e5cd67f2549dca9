r"""The product of a `TaggedNfa` with itself: pairs of runs over one word.

Which key maps share a word (`find_candidates`, then `meets`)? Does a word have two runs with different tags
(`splits`)? And the cheapest such word (`find_shortest_shared_word`), and the cheapest one that no key map matches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from remapkit.proofs.budget import Budget
from remapkit.proofs.dfa import Dfa, partition
from remapkit.proofs.search import Move, find_cheapest
from remapkit.proofs.tagged import TaggedNfa

# ------------------------------------------------------------------------------------------------ which key maps meet


def find_candidates(net: TaggedNfa, budget: Budget) -> set[tuple[int, int]]:
    """Return the pairs of key maps that may share a word; all other pairs share none.

    All key maps are walked at once, from the front and then from the back, while at least two can continue.
    Invariant: two key maps that share a word are together in some set of a complete walk, and in one of the sets
    where an incomplete walk was stopped. The walk costs a few steps for each position where the key maps soon part,
    as rules of one file do; it is stopped at 12 for each position, and what is left counts as shared.
    """
    everyone = sorted(net.starts)
    empty = [number for number in everyone if net.nulls[number]]
    shared = {(one, other) for place, one in enumerate(empty) for other in empty[place + 1 :]}
    starts = [position for each in net.starts.values() for position in each]
    limit = 12 * len(net.masks) + 2000
    forward, complete = _walk_together(net, net.follow, starts, net.ends, limit, budget)
    if complete or not forward:
        return shared | _list_pairs(forward, budget)
    before: list[list[int]] = [[] for _ in net.masks]
    for position, following in enumerate(net.follow):
        budget.spend(len(following))
        for each in following:
            before[each].append(position)
    back, _ = _walk_together(net, before, sorted(net.ends), set(starts), limit, budget)
    # A walk that was stopped with all key maps together says nothing; then the other one is the answer.
    if frozenset(everyone) in forward:
        return shared | _list_pairs(back, budget)
    if frozenset(everyone) in back:
        return shared | _list_pairs(forward, budget)
    return shared | (_list_pairs(forward, budget) & _list_pairs(back, budget))


def _walk_together(
    net: TaggedNfa,
    follow: Sequence[Sequence[int]],
    starts: Iterable[int],
    ends: set[int],
    limit: int,
    budget: Budget,
) -> tuple[set[frozenset[int]], bool]:
    """Return the sets of key maps that reach an end, or the limit, together; and whether the walk was completed."""
    owners = [net.owner(position) for position in range(len(net.masks))]
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
        for _, group in partition(following, net.masks, net.letters.all):
            spent += len(group)
            if len(group) < 2 or len({owners[position] for position in group}) < 2:
                continue
            ended = {owners[position] for position in group if position in ends}
            if len(ended) > 1:
                found.add(frozenset(ended))
            key = frozenset(group)
            if key not in seen:
                seen.add(key)
                pending.append({each for position in group for each in follow[position]})
    budget.spend(spent)
    return found, spent <= limit


def _list_pairs(sets: Iterable[frozenset[int]], budget: Budget) -> set[tuple[int, int]]:
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


# ------------------------------------------------------------------------------------------------ pairs of runs


def meets(net: TaggedNfa, one: int, other: int, budget: Budget) -> bool:
    """Return whether two key maps share a word."""
    if net.nulls[one] and net.nulls[other]:
        return True
    return _reaches_an_end(net, [(net.starts[one], net.starts[other], True)], budget)


def splits(net: TaggedNfa, key_map: int, budget: Budget) -> bool:
    """Return whether some word of a key map has two runs with different tags.

    The search begins where two runs diverge, so it ends at once if no runs ever do.
    """
    if len(net.nulls[key_map]) > 1:
        return True
    low, high = net.span[key_map]
    budget.spend(high - low + 1)
    seeds = [
        (following, following, False)
        for following in (net.starts[key_map], *net.follow[low:high])
        if len(following) > 1 and _overlap(following, net.masks)
    ]
    return _reaches_an_end(net, seeds, budget)


def _overlap(positions: Iterable[int], masks: Sequence[int]) -> bool:
    seen = 0
    for position in positions:
        if seen & masks[position]:
            return True
        seen |= masks[position]
    return False


def _reaches_an_end(
    net: TaggedNfa, seeds: Iterable[tuple[Sequence[int], Sequence[int], bool]], budget: Budget
) -> bool:
    """Return whether two runs from a seed read one word to the end, and are (or were from the start) different.

    Invariant: `seen` has the pairs of positions that two runs over one word can be in, with whether their tags
    differ so far; each is expanded once, and costs the product of its successors. Runs that meet in one position
    share every end from there (each position can reach one), so they are decided there and then. The members of a
    seed are two different positions: from one position on both sides, two runs have not diverged.
    """
    masks, follow, ends, tags, count = net.masks, net.follow, net.ends, net.tags, len(net.masks)
    seen: set[int] = set()
    pending: list[int] = []

    def enter(lefts: Sequence[int], rights: Sequence[int], apart: bool, seed: bool) -> bool:
        budget.spend(len(lefts) * len(rights) + 1)
        for left in lefts:
            mask, tag = masks[left], tags[left]
            for right in rights:
                if not mask & masks[right]:
                    continue
                different = apart or tag != tags[right]
                if left == right or (left in ends and right in ends):
                    if different and not (seed and left == right):
                        return True
                    if left == right:
                        continue
                code = 2 * (left * count + right if left < right else right * count + left) + different
                if code not in seen:
                    seen.add(code)
                    pending.append(code)
        return False

    if any(enter(lefts, rights, different, True) for lefts, rights, different in seeds):
        return True
    while pending:
        pair, different = divmod(pending.pop(), 2)
        one, other = divmod(pair, count)
        if enter(follow[one], follow[other], bool(different), False):
            return True
    return False


Pair = tuple[int, int, bool]
"""The positions of two runs over one word, and whether their tags differ so far."""

BEGIN: Pair = (-1, -1, False)
"""Two runs before their first character."""


@dataclass(frozen=True, slots=True)
class PairGraph:
    """The pairs from which two different runs over one word of a key map can end, and the masks between them.

    `left[pair]` is the fewest characters from the pair to an end; it is 0 for the ends.
    """

    edges: dict[Pair, list[tuple[int, Pair]]]
    left: dict[Pair, int]


def find_pairs(net: TaggedNfa, key_map: int, budget: Budget) -> PairGraph:
    """Return the pairs of different runs of one key map; each pair costs the product of its successors."""
    masks, follow, tags = net.masks, net.follow, net.tags
    edges: dict[Pair, list[tuple[int, Pair]]] = {BEGIN: []}
    before: dict[Pair, list[Pair]] = {}
    pending = [BEGIN]
    while pending:
        here = pending.pop()
        one, other, apart = here
        lefts, rights = (follow[one], follow[other]) if one >= 0 else (net.starts[key_map], net.starts[key_map])
        budget.spend(len(lefts) * len(rights) + 1)
        for left in lefts:
            for right in rights:
                mask = masks[left] & masks[right]
                if not mask:
                    continue
                to = (left, right, apart or tags[left] != tags[right])
                edges[here].append((mask, to))
                before.setdefault(to, []).append(here)
                if to not in edges:
                    edges[to] = []
                    pending.append(to)
    layer = [pair for pair in edges if pair[2] and pair[0] in net.ends and pair[1] in net.ends]
    left_over = dict.fromkeys(layer, 0)
    for pair in layer:
        for each in before.get(pair, ()):
            if each not in left_over:
                left_over[each] = left_over[pair] + 1
                layer.append(each)
    alive = {
        pair: [(mask, to) for mask, to in following if to in left_over]
        for pair, following in edges.items()
        if pair in left_over
    }
    return PairGraph(alive, left_over)


def list_ambiguous_words(
    net: TaggedNfa, key_map: int, graph: PairGraph, signs: Sequence[tuple[int, str]], budget: Budget
) -> Iterator[str]:
    """Yield words of a key map with two different runs, shortest first, until the budget is spent.

    A word of a length is followed only where a word of that length still ends, so every word kept is yielded.
    """
    if len(net.nulls[key_map]) > 1:
        yield ""
    if BEGIN not in graph.left:
        return
    for length in range(max(1, graph.left[BEGIN]), graph.left[BEGIN] + len(graph.edges) + 1):
        layer: dict[str, set[Pair]] = {"": {BEGIN}}
        for depth in range(1, length + 1):
            following: dict[str, set[Pair]] = {}
            for word, pairs in layer.items():
                for mask, to in (edge for pair in sorted(pairs) for edge in graph.edges[pair]):
                    budget.spend(1)
                    if graph.left[to] > length - depth:
                        continue
                    for bit, sign in signs:
                        budget.spend(1)
                        if bit & mask:
                            following.setdefault(word + sign, set()).add(to)
            layer = following
        yield from (word for word, pairs in layer.items() if any(graph.left[pair] == 0 for pair in pairs))


def pick_signs(masks: Iterable[int], net: TaggedNfa) -> list[tuple[int, str]]:
    """Return the two most readable characters of each class that these masks distinguish, with the class.

    Two are enough: characters that no mask tells apart can be exchanged in every run, and a difference between two
    runs is one between two characters, so what any number of them can show, two can.
    """
    letters = net.letters
    distinct = list(dict.fromkeys(masks))
    groups: dict[tuple[bool, ...], list[tuple[int, str]]] = {}
    for bit in range(len(letters.samples)):
        signature = tuple(bool(mask >> bit & 1) for mask in distinct)
        groups.setdefault(signature, []).extend((1 << bit, sign) for sign in letters.some(1 << bit))
    return [
        member
        for signature, members in groups.items()
        if any(signature)
        for member in sorted(members, key=lambda member: letters.rank(member[1]))[:2]
    ]


# ------------------------------------------------------------------------------------------------ the cheapest word


@dataclass(frozen=True, slots=True)
class SharedWord:
    """A word that two lines read, and the positions of both runs."""

    text: str
    lines: tuple[int, int]
    positions: tuple[tuple[int, ...], tuple[int, ...]]

    def read_keys(self, net: TaggedNfa) -> tuple[str, str]:
        """Return the source keys of both runs."""
        one, other = (
            net.read_source(line, positions, self.text)
            for line, positions in zip(self.lines, self.positions, strict=True)
        )
        return one, other


_Pair = tuple[int, int, bool]


def find_shortest_shared_word(
    net: TaggedNfa,
    one: int,
    other: int,
    budget: Budget,
    leave_out: Callable[[int, int], bool] | None = None,
) -> SharedWord | None:
    """Find the cheapest word shared by two key maps; for one and itself, a word with two runs with different tags.

    The cost of a word is the sum of the costs of both runs. `leave_out` says which pairs of lines do not count.
    """
    masks, costs, tags, same = net.masks, net.costs, net.tags, one == other

    def pair(lefts: Iterable[int], rights: Sequence[int], different: bool, base: bool) -> Iterator[Move[_Pair]]:
        for left in lefts:
            mask = masks[left]
            budget.spend(len(rights))
            for right in rights:
                both = mask & masks[right]
                # A run never leaves its line, so what the first positions say holds for whole runs.
                if base and both and leave_out and leave_out(net.line_of(left), net.line_of(right)):
                    continue
                if both:
                    cost = costs[left] + costs[right]
                    if base:
                        cost += net.lines[net.line_of(left)].base + net.lines[net.line_of(right)].base
                    state = (left, right, different or not same or tags[left] != tags[right])
                    yield cost, state, net.letters.pick(both)

    def follow(state: _Pair) -> Iterator[Move[_Pair]]:
        return pair(net.follow[state[0]], net.follow[state[1]], state[2], base=False)

    def is_goal(state: _Pair) -> bool:
        return state[2] and state[0] in net.ends and state[1] in net.ends

    found = find_cheapest(pair(net.starts[one], net.starts[other], False, base=True), follow, is_goal, budget)
    empty = _find_empty(net, one, other, leave_out)
    if empty is not None and (found is None or empty[0] <= found[0]):
        return SharedWord("", empty[1], ((), ()))
    if found is None:
        return None
    _, text, states = found
    left, right = tuple(state[0] for state in states), tuple(state[1] for state in states)
    return SharedWord(text, (net.line_of(left[0]), net.line_of(right[0])), (left, right))


def _find_empty(
    net: TaggedNfa, one: int, other: int, leave_out: Callable[[int, int], bool] | None
) -> tuple[int, tuple[int, int]] | None:
    """Return the cheapest pair of lines that both accept the empty word."""
    pairs = [
        (left, right)
        for left in net.nulls[one]
        for right in net.nulls[other]
        if (one != other or left < right) and not (leave_out and leave_out(left, right))
    ]
    return min(((net.lines[a].base + net.lines[b].base, (a, b)) for a, b in pairs), default=None)


# ------------------------------------------------------------------------------------------------ unmatched words


_Outside = tuple[int, int | None, int | None]
"""A position, the state of the matched keys (None if none can match any more), and the state of the domain."""


def find_cheapest_outside(
    net: TaggedNfa, key_map: int, matched: Dfa, domain: Dfa | None, budget: Budget
) -> tuple[str, tuple[int, ...], int] | None:
    """Find the cheapest target of a key map that is a key of the domain and that no key map matches, or None.

    The cost includes the target and its source key. Return the target with its positions and its line.
    """
    for line in net.nulls[key_map]:
        if not matched.accepts(matched.start) and (domain is None or domain.accepts(domain.start)):
            return "", (), line

    def enter(
        positions: Iterable[int], taken: int | None, there: int | None, base: bool = False
    ) -> Iterator[Move[_Outside]]:
        for position in positions:
            cost = net.costs[position] + 1 + (net.lines[net.line_of(position)].base if base else 0)
            for inside, to in _move(domain, there, net.masks[position]):
                for reads, then in _move_or_leave(matched, taken, inside):
                    yield cost, (position, then, to), net.letters.pick(reads)

    def is_goal(state: _Outside) -> bool:
        position, taken, there = state
        if position not in net.ends or (taken is not None and matched.accepts(taken)):
            return False
        return domain is None or (there is not None and domain.accepts(there))

    starts = enter(net.starts[key_map], matched.start, domain.start if domain is not None else None, base=True)
    found = find_cheapest(starts, lambda state: enter(net.follow[state[0]], *state[1:]), is_goal, budget)
    if found is None:
        return None
    _, text, states = found
    return text, tuple(state[0] for state in states), net.line_of(states[0][0])


def _move(guide: Dfa | None, state: int | None, mask: int) -> list[tuple[int, int | None]]:
    if guide is None or state is None:
        return [(mask, None)]
    return [(step & mask, to) for step, to in guide.steps(state) if step & mask]


def _move_or_leave(guide: Dfa, state: int | None, mask: int) -> list[tuple[int, int | None]]:
    """Return the next states for the characters of a mask; None for those without one."""
    if state is None:
        return [(mask, None)]
    moves: list[tuple[int, int | None]] = [(step & mask, to) for step, to in guide.steps(state) if step & mask]
    rest = mask
    for step, _ in moves:
        rest &= ~step
    return [*moves, (rest, None)] if rest else moves
