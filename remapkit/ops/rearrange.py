"""The operation `rearrange` in einops' notation: `(h two d) c -> (two h d) c`.

A pattern names every axis once on each side; parentheses make one dimension of several axes, `1` or `()` is a
dimension of size 1, and `...` stands for any number of further dimensions. All of it becomes the same steps as other
operations: an order along each dimension if axes only move within their dimension, else a reshape, a permutation and
a reshape.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from remapkit.diagnostics.wording import suggest_name
from remapkit.ops.base import Op, RefusedOp, count_dims, describe_size
from remapkit.ops.steps import OpStep, Permute, Pick, Reshape
from remapkit.tensors.spec import TensorSpec

Group = tuple[str, ...]
"""The axes of one dimension, the slowest first; none for a dimension of size 1."""
REST = "..."
MOST_AXES = 32
"""No array of numpy has more dimensions."""
MOST_RANGES = 1 << 14
"""The most ranges of an order along one dimension; beyond, a permutation is cheaper."""

_TOKEN = re.compile(r"(->)|(\.\.\.|…)|([()])|([A-Za-z](?:\w*[A-Za-z0-9])?(?!\w))|(1(?!\w))|(\w+|[^\w\s])", re.ASCII)


class BadPattern(Exception):
    """A pattern that cannot be read; `at` is the part of the text, `help` what to do."""

    def __init__(self, title: str, at: tuple[int, int], help: str) -> None:
        super().__init__(title)
        self.title, self.at, self.help = title, at, help


class UnknownAxis(BadPattern):
    """A size of an axis that the pattern does not have."""

    def __init__(self, name: str, help: str) -> None:
        super().__init__(f"the pattern has no axis {name!r}", (0, 0), help)
        self.name = name


@dataclass(frozen=True, slots=True)
class Pattern:
    """Both sides of a pattern: the axes of each dimension before and after."""

    left: tuple[Group, ...]
    right: tuple[Group, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """Return the names of all axes, without `...`."""
        return tuple(axis for group in self.left for axis in group if axis != REST)

    def find_open(self, given: Mapping[str, object], *, after: bool = False) -> Group:
        """Return the axes of the first dimension that has several without a size; those of the result with `after`.

        >>> parse_pattern("(h d) c -> h d c").find_open({}), parse_pattern("(h d) c -> h d c").find_open({"h": 2})
        (('h', 'd'), ())
        """
        for group in self.right if after else self.left:
            unknown = tuple(axis for axis in group if axis not in given)
            if len(unknown) > 1:
                return unknown
        return ()


def parse_pattern(text: str) -> Pattern:
    """Parse a pattern; raises `BadPattern`.

    >>> parse_pattern("(h two d) c -> (two h d) c").right
    (('two', 'h', 'd'), ('c',))
    >>> parse_pattern("... a 1 -> a ...").left
    (('...',), ('a',), ())
    """
    sides: list[list[Group]] = [[]]
    places: list[dict[str, tuple[int, int]]] = [{}]
    opened: tuple[list[str], tuple[int, int]] | None = None
    for found in _TOKEN.finditer(text):
        arrow, rest, bracket, axis, one, other = found.groups()
        if other:
            raise BadPattern(f"unexpected {other!r} in a pattern", found.span(), _advise(other))
        if arrow and (len(sides) == 2 or opened):
            break
        if arrow:
            sides.append([])
            places.append({})
        elif bracket == "(" and opened is None:
            opened = ([], found.span())
        elif bracket == ")" and opened is not None:
            sides[-1].append(tuple(opened[0]))
            opened = None
        elif bracket or (rest and opened):
            what = "`...` in parentheses" if rest else f"unexpected {bracket!r}"
            raise BadPattern(what + " in a pattern", found.span(), "parentheses hold names of axes, and no others")
        elif one:
            sides[-1] += [()] if opened is None else []
        else:
            name = REST if rest else axis
            if name in places[-1]:
                raise BadPattern(f"{name!r} is twice on one side", found.span(), "give each axis its own name")
            places[-1][name] = found.span()
            if opened is not None:
                opened[0].append(name)
            else:
                sides[-1].append((name,))
    if opened is not None:
        raise BadPattern("'(' is never closed", opened[1], "close it with )")
    if len(sides) != 2 or text.count("->") != 1:
        raise BadPattern("a pattern has one `->`", (0, len(text)), "for example '(h two d) c -> (two h d) c'")
    _check_sides(places)
    return Pattern(tuple(sides[0]), tuple(sides[1]))


def _advise(token: str) -> str:
    if token.isdigit():
        return f"name the axis and give its size: {{pattern: '...', n: {int(token)}}}"
    if token.replace("_", "").isalnum():
        return "an axis is letters, digits and _, with a letter first and no _ last"
    return "a pattern has names of axes, parentheses, 1, `...` and one `->`"


def _check_sides(places: Sequence[Mapping[str, tuple[int, int]]]) -> None:
    """Check that both sides have the same axes: nothing is lost and nothing repeated."""
    helps = (
        "rearrange drops nothing: to leave elements out, use `slice`",
        "rearrange repeats nothing: correct the name",
    )
    for here, there, side, help in zip(places, places[::-1], ("left", "right"), helps, strict=True):
        for axis, at in here.items():
            if axis not in there:
                raise BadPattern(f"{axis!r} is only on the {side} of `->`", at, help)
    if len(places[0]) > MOST_AXES:
        raise BadPattern(
            f"a pattern must have at most {MOST_AXES} axes, got {len(places[0])}",
            places[0][list(places[0])[MOST_AXES]],
            "join axes that stay together",
        )


def swap_sides(text: str) -> str:
    """Return the pattern of the inverse.

    >>> swap_sides("(h d) c -> h d c")
    'h d c -> (h d) c'
    """
    left, right = text.split("->")
    return f"{right.strip()} -> {left.strip()}"


def check_sizes(text: str, given: Mapping[str, object]) -> None:
    """Check that the given sizes determine all others; raises `BadPattern`, as `parse_pattern` does."""
    pattern = parse_pattern(text)
    for name in given:
        if name not in pattern.axes:
            known = f"its axes are {', '.join(pattern.axes)}" if pattern.axes else "it has no axes"
            raise UnknownAxis(name, suggest_name(name, pattern.axes, known))
    if unknown := pattern.find_open(given):
        title = f"the sizes of {' and '.join(map(repr, unknown))} are open, and they share a dimension"
        help = f"give all but one: {{pattern: '...', {unknown[0]}: NUMBER}}"
        place = re.search(rf"\b{unknown[1]}\b", text, re.ASCII)
        assert place is not None
        raise BadPattern(title, place.span(), help)


@dataclass(frozen=True, slots=True)
class Rearrange(Op):
    """Rename no element, lose none: split dimensions into axes, reorder the axes, and join them again."""

    pattern: str
    sizes: tuple[tuple[str, int], ...] = ()
    name: ClassVar[str] = "rearrange"

    def measure(self, spec: TensorSpec) -> tuple[Pattern, dict[str, int]]:
        """Return the pattern with an axis for each dimension of `...`, and the sizes of all axes."""
        pattern = _expand_rest(parse_pattern(self.pattern), spec)
        sizes = dict(self.sizes)
        for dim, group in enumerate(pattern.left):
            _measure_axes(group, dim, spec, sizes)
        return pattern, sizes

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return the fewest steps: reorderings within dimensions, or one permutation between two reshapes."""
        pattern, sizes = self.measure(spec)
        shape = tuple(math.prod(sizes[axis] for axis in group) for group in pattern.right)
        left, right = ([[axis for axis in group if sizes[axis] != 1] for group in side] for side in
                       (pattern.left, pattern.right))  # fmt: skip
        steps: list[OpStep] = []
        if spec.numel:
            steps = _order_within(left, right, sizes, spec) or _order_across(left, right, sizes, spec)
        before = spec.shape
        for step in steps:
            before = step.infer(TensorSpec(spec.dtype, before)).shape
        return (*steps, *([Reshape(shape)] if before != shape else []))


def _expand_rest(pattern: Pattern, spec: TensorSpec) -> Pattern:
    """Replace `...` by one axis for each further dimension; raises `RefusedOp` if the dimensions do not fit."""
    rank, named = len(spec.shape), len(pattern.left) - ((REST,) in pattern.left)
    if rank < named or (rank > named and (REST,) not in pattern.left):
        least = "at least " if (REST,) in pattern.left else ""
        written = " ".join(map(_write_group, pattern.left))
        title = f"rearrange from '{written}' needs {least}{count_dims(named)}, but the tensor has {count_dims(rank)}"
        raise RefusedOp(f"{title}, {list(spec.shape)}", "name every dimension, or write `...` for the others")
    if rank - named + len(pattern.axes) > MOST_AXES:
        raise RefusedOp(f"rearrange makes more than {MOST_AXES} axes of {list(spec.shape)}")
    rest = [(f"{REST}{number}",) for number in range(rank - named)]
    left, right = (
        tuple(itertools.chain.from_iterable(rest if group == (REST,) else [group] for group in side))
        for side in (pattern.left, pattern.right)
    )
    return Pattern(left, right)


def _write_group(group: Group) -> str:
    return group[0] if len(group) == 1 else f"({' '.join(group)})" if group else "1"


def _measure_axes(group: Group, dim: int, spec: TensorSpec, sizes: dict[str, int]) -> None:
    """Add the size that follows from the others of a dimension; raises `RefusedOp` if they do not divide it."""
    size, there = spec.shape[dim], describe_size(dim, spec.shape[dim])
    known = [axis for axis in group if axis in sizes]
    product = math.prod(sizes[axis] for axis in known)
    written = " x ".join(f"{axis}={sizes[axis]}" for axis in known) or "1"
    help = "correct the sizes, or pass the model's own params: --param NAME=NUMBER, --config config.json"
    if len(known) == len(group):
        if product != size:
            of = f" = {product}" if len(known) > 1 else ""
            raise RefusedOp(f"rearrange: {written}{of} does not fit {there}, {list(spec.shape)}", help)
        return
    (unknown,) = (axis for axis in group if axis not in sizes)
    if size % product:
        title = f"rearrange: {there} cannot be divided by {written} to give {unknown} in {_write_group(group)}"
        raise RefusedOp(f"{title}, {list(spec.shape)}", help)
    sizes[unknown] = size // product


Axes = Sequence[Sequence[str]]
"""The axes of each dimension, without those of size 1, which are anywhere."""


def _order_within(left: Axes, right: Axes, sizes: Mapping[str, int], spec: TensorSpec) -> list[OpStep] | None:
    """Return the steps if every dimension keeps its axes: no more than boxes are then read. None if it does not."""
    long = [dim for dim, group in enumerate(left) if group]
    homes = {frozenset(left[dim]): number for number, dim in enumerate(long)}
    groups = [group for group in right if group]
    if any(frozenset(group) not in homes for group in groups):
        return None
    steps: list[OpStep] = []
    for group in groups:
        dim = long[homes[frozenset(group)]]
        if list(group) == list(left[dim]):
            continue
        ranges = list(itertools.islice(_list_ranges(left[dim], group, sizes), MOST_RANGES + 1))
        if len(ranges) > MOST_RANGES:
            return None
        steps.append(Pick(dim, tuple(ranges)))
    order = tuple(homes[frozenset(group)] for group in groups)
    if order != tuple(sorted(order)):
        shape = tuple(spec.shape[dim] for dim in long)
        steps += [Reshape(shape)] if shape != spec.shape else []
        steps.append(Permute(order))
    return steps


def _list_ranges(old: Sequence[str], new: Sequence[str], sizes: Mapping[str, int]) -> Iterator[range]:
    """Yield the indices of one dimension in their new order: a range along the last of its merged axes each."""
    strides = {axis: math.prod(sizes[inner] for inner in old[at + 1 :]) for at, axis in enumerate(old)}
    merged: list[tuple[int, int]] = []
    for axis in new:
        if merged and merged[-1][1] == sizes[axis] * strides[axis]:
            merged[-1] = (merged[-1][0] * sizes[axis], strides[axis])
        else:
            merged.append((sizes[axis], strides[axis]))
    *outer, (count, stride) = merged
    for indices in itertools.product(*(range(0, size * step, step) for size, step in outer)):
        start = sum(indices)
        yield range(start, start + (count - 1) * stride + 1, stride)


def _order_across(left: Axes, right: Axes, sizes: Mapping[str, int], spec: TensorSpec) -> list[OpStep]:
    """Return a reshape to axes and their permutation; axes that stay together are one."""
    old, new = [axis for group in left for axis in group], [axis for group in right for axis in group]
    if old == new:
        return []
    follows = dict(itertools.pairwise(old))
    runs: list[list[str]] = []
    for axis in new:
        if runs and follows.get(runs[-1][-1]) == axis:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    ordered = sorted(runs, key=lambda run: old.index(run[0]))
    shape = tuple(math.prod(sizes[axis] for axis in run) for run in ordered)
    reshaped: list[OpStep] = [Reshape(shape)] if shape != spec.shape else []
    return [*reshaped, Permute(tuple(ordered.index(run) for run in runs))]
