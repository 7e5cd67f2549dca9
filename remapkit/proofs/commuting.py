"""Readings that only move characters between captures of one character: `(a*)(a*)` to `{second}{first}`.

A transducer writes the captures in the order in which it reads them, so it cannot decide a target that swaps them.
But if the parts of the target that depend on the reading stand together, and everything there is one character
repeated, the target depends on the reading only if their length does. And that is a sum over the characters read:
two runs over every key have the same sum iff each pair of positions has one difference, and the ends have none.
"""

from __future__ import annotations

from remapkit.proofs.budget import Budget
from remapkit.proofs.case import Case, Copy
from remapkit.proofs.product import BEGIN, Pair, PairGraph
from remapkit.proofs.tagged import TaggedNfa


def commutes(net: TaggedNfa, graph: PairGraph, budget: Budget) -> bool:
    """Return whether it is shown that all readings of a key have one target; False says nothing.

    `net` has the sources of one key map, a tag for each slot, and `graph` its pairs of runs.
    """
    pairs = [pair for pair in graph.left if pair != BEGIN]
    budget.spend(len(pairs) + 1)
    if not pairs or any(len(lines) > 1 for lines in net.nulls.values()):
        return False
    if any(net.line_of(one) != net.line_of(other) for one, other, _ in pairs):
        return False
    by_line: dict[int, set[int]] = {}
    for one, other, _ in pairs:
        if net.tags[one] != net.tags[other]:
            moved = by_line.setdefault(net.line_of(one), set())
            moved |= {_read_slot(net, one), _read_slot(net, other)}
    together = {line: _find_together(net.lines[line].case, moved) for line, moved in by_line.items()}
    if any(each is None for each in together.values()):
        return False
    slots = {line: each[0] for line, each in together.items() if each is not None}
    texts = {line: each[1] for line, each in together.items() if each is not None}
    return _repeat_one_character(net, graph, slots, texts) and _have_one_length(net, graph, slots)


def _read_slot(net: TaggedNfa, position: int) -> int:
    return net.parts[net.tags[position]]


def _find_together(case: Case, moved: set[int]) -> tuple[set[int], str] | None:
    """Return the slots and the text of the target from the first to the last slot that depends on the reading.

    The parts before and behind have the same text in every reading. None if anything else is in between.
    """
    depends = [
        number
        for number, part in enumerate(case.target)
        if not isinstance(part, str) and not (isinstance(part, Copy) and part.slot not in moved)
    ]
    between = case.target[min(depends) : max(depends) + 1] if depends else ()
    if any(not isinstance(part, str | Copy) for part in between):
        return None
    text = "".join(part for part in between if isinstance(part, str))
    return {part.slot for part in between if isinstance(part, Copy)}, text


def _repeat_one_character(
    net: TaggedNfa, graph: PairGraph, slots: dict[int, set[int]], texts: dict[int, str]
) -> bool:
    """Return whether, in each line, these slots and texts are one character repeated wherever runs differ."""
    read = dict.fromkeys(slots, 0)
    for following in graph.edges.values():
        for mask, (one, other, _) in following:
            line = net.line_of(one)
            if line in slots and not slots[line].isdisjoint((_read_slot(net, one), _read_slot(net, other))):
                read[line] |= mask
    samples = net.letters.samples
    for line, mask in read.items():
        bit = mask.bit_length() - 1
        if mask and (mask != 1 << bit or len(samples[bit]) > 1 or set(texts[line]) - set(samples[bit])):
            return False
    return True


def _have_one_length(net: TaggedNfa, graph: PairGraph, slots: dict[int, set[int]]) -> bool:
    """Return whether both runs of every pair of runs put equally many characters into these slots.

    Invariant: `ahead` has the one difference of each pair that was reached, and a pair is expanded once. Every pair
    can end, so a second difference means that some pair of runs ends with one that is not 0.
    """
    ahead: dict[Pair, int] = {BEGIN: 0}
    pending = [BEGIN]
    while pending:
        here = pending.pop()
        for _, to in graph.edges[here]:
            one, other, _ = to
            wanted = slots.get(net.line_of(one), set())
            difference = ahead[here] + (_read_slot(net, one) in wanted) - (_read_slot(net, other) in wanted)
            if to not in ahead:
                ahead[to] = difference
                pending.append(to)
            if ahead[to] != difference or (difference and graph.left[to] == 0):
                return False
    return True
