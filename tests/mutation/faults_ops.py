"""Faults in `remapkit/ops/`: patterns of `rearrange`, and orders along a dimension."""

from __future__ import annotations

from tests.mutation.fault import Fault

PATTERNS = ("tests/ops/test_rearrange.py", "tests/ops/test_ops.py")

FAULTS: tuple[Fault, ...] = (
    Fault(
        "axes of a dimension with the fastest first",
        "ops/rearrange.py",
        "sizes[inner] for inner in old[at + 1 :]",
        "sizes[inner] for inner in old[:at]",
        "the first name in parentheses is the slowest",
        PATTERNS,
    ),
    Fault(
        "axes merged whatever lies between them",
        "ops/rearrange.py",
        "if merged and merged[-1][1] == sizes[axis] * strides[axis]:",
        "if merged:",
        "only neighbours on both sides are one range",
        PATTERNS,
    ),
    Fault(
        "runs of axes in the order of the target",
        "ops/rearrange.py",
        "ordered = sorted(runs, key=lambda run: old.index(run[0]))",
        "ordered = sorted(runs, key=lambda run: new.index(run[0]))",
        "the reshape before the permutation has the order of the source",
        PATTERNS,
    ),
    Fault(
        "a size that does not divide",
        "ops/rearrange.py",
        "if size % product:",
        "if size < product:",
        "a size that does not divide its dimension is refused",
        PATTERNS,
    ),
    Fault(
        "given sizes that are not held against the tensor",
        "ops/rearrange.py",
        "        if product != size:",
        "        if product > size:",
        "a size that is given is the tensor's",
        PATTERNS,
    ),
    Fault(
        "further dimensions without `...`",
        "ops/rearrange.py",
        "if rank < named or (rank > named and (REST,) not in pattern.left):",
        "if rank < named:",
        "a pattern without `...` names every dimension",
        PATTERNS,
    ),
    Fault(
        "an axis on the right only",
        "ops/rearrange.py",
        "zip(places, places[::-1], ",
        "zip(places[:1] * 2, places[1:] * 2, ",
        "an axis on one side only is refused",
        PATTERNS,
    ),
    Fault(
        "two open sizes of one dimension of the result",
        "ops/calls.py",
        "find_open(call.sizes, after=True)",
        "find_open(call.sizes)",
        "what the inverse cannot know is said by the rule, not found out later",
        PATTERNS,
    ),
    Fault(
        "a list of ranges of any length",
        "ops/rearrange.py",
        "if len(ranges) > MOST_RANGES:",
        "if len(ranges) > 10 * MOST_RANGES:",
        "an order of many short ranges is a permutation",
        PATTERNS,
    ),
    Fault(
        "a roll to the wrong side",
        "ops/reorder.py",
        "first = -self.by % size",
        "first = self.by % size",
        "roll moves towards the end",
        PATTERNS,
    ),
    Fault(
        "a flip that keeps the first element",
        "ops/reorder.py",
        "range(spec.shape[dim] - 1, -1, -1)",
        "range(spec.shape[dim] - 1, 0, -1)",
        "flip keeps every element",
        PATTERNS,
    ),
    Fault(
        "an order of fewer elements than there are",
        "ops/reorder.py",
        "if is_permutation(self.order) and len(self.order) < size:",
        "if is_permutation(self.order) and len(self.order) > size:",
        "an order of the first elements does not lose the others in silence",
        PATTERNS,
    ),
    Fault(
        "the inverse of a selection",
        "ops/calls.py",
        "if len(places) < len(order) or set(places) != set(range(len(order))):",
        "if len(places) < len(order):",
        "a selection that loses has no inverse",
        PATTERNS,
    ),
    Fault(
        "an order as its own inverse",
        "ops/calls.py",
        "order=tuple(places[number] for number in range(len(order)))",
        "order=tuple(order)",
        "the inverse of an order is another order",
        ("tests/ops/test_ops.py",),
    ),
)
