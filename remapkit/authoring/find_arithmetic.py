"""Arithmetic that makes the indices of one layout from those of another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from remapkit.tensors.families import is_canonical_integer

_FOLDS = range(2, 65)
"""The strides that are tried where a number is not a line through the first two values."""
_LARGEST = 1000
"""Arithmetic is enumerated when a rule is compiled: larger indices are only copied or looked up."""
ENOUGH = 3
"""The fewest different indices that show more than a shift."""

Row = Sequence[int]
Expression = tuple[tuple[int, ...], str, Callable[[Row], int]]


def find_arithmetic(
    wanted: Sequence[int], columns: Sequence[Sequence[str]], varying: Sequence[int]
) -> tuple[tuple[int, ...], str] | None:
    """Return the places that the wanted indices follow from, and how; None if no expression gives all of them.

    A line (`n+2`, `3-n`, `n*3+1`), two indices in one (`i*4+j`), a quotient or a remainder (`(n-1)//3`), in this
    order. Of up to 63 strides and twice as many offsets per index, nearly all fail within a few keys.

    >>> find_arithmetic([2, 5, 8], [["0", "1", "2"]], [0])
    ((0,), '{0}*3+2')
    >>> find_arithmetic([0, 0, 0, 1], [["1", "2", "3", "4"]], [0])
    ((0,), '({0}-1)//3')
    """
    numbers = {
        place: [int(word) for word in columns[place]]
        for place in varying
        if all(map(is_canonical_integer, columns[place])) and max(map(int, columns[place])) < _LARGEST
    }
    for places, written, value in _list_expressions(numbers, wanted):
        rows = zip(*(numbers[place] for place in places), strict=True)
        if all(value(row) == found for row, found in zip(rows, wanted, strict=True)):
            return places, written
    return None


def _list_expressions(numbers: Mapping[int, Sequence[int]], wanted: Sequence[int]) -> Iterator[Expression]:
    for place, values in numbers.items():
        yield from _list_lines(place, values, wanted)
    for one, other in itertools.permutations(numbers, 2):
        yield from _list_sums(one, other, numbers, wanted)
    for place, values in numbers.items():
        yield from _list_folds(place, values, wanted)


def _list_lines(place: int, values: Sequence[int], wanted: Sequence[int]) -> Iterator[Expression]:
    """Yield the line through the first two different values."""
    pairs = list(zip(values, wanted, strict=True))
    second = next((pair for pair in pairs if pair[0] != pairs[0][0]), None)
    if second is None:
        return
    slope, rest = divmod(second[1] - pairs[0][1], second[0] - pairs[0][0])
    offset = pairs[0][1] - slope * pairs[0][0]
    # Through two points there is always a line: anything but a shift needs a third to speak for it.
    if rest or not slope or (slope != 1 and len(set(values)) < ENOUGH):
        return
    if slope < 0:
        factor = "{0}" if slope == -1 else f"{{0}}*{-slope}"
        written = f"{offset}-{factor}"
    else:
        factor = "{0}" if slope == 1 else f"{{0}}*{slope}"
        written = factor + (f"{offset:+d}" if offset else "")
    yield (place,), written, lambda row: row[0] * slope + offset


def _list_sums(
    one: int, other: int, numbers: Mapping[int, Sequence[int]], wanted: Sequence[int]
) -> Iterator[Expression]:
    """Yield `i*k+j+c`; with a smaller stride than `j` has values, two pairs of indices could give one number."""
    large, small = numbers[one], numbers[other]
    width = max(small) - min(small)
    for stride in (stride for stride in _FOLDS if stride > width):
        offset = wanted[0] - large[0] * stride - small[0]
        if abs(offset) <= stride:
            written = f"{{0}}*{stride}+{{1}}" + (f"{offset:+d}" if offset else "")
            yield (one, other), written, lambda row, k=stride, c=offset: row[0] * k + row[1] + c  # type: ignore[misc]


def _list_folds(place: int, values: Sequence[int], wanted: Sequence[int]) -> Iterator[Expression]:
    if len(set(values)) < ENOUGH:
        return
    smallest, largest = min(values), max(values)
    for stride in (stride for stride in _FOLDS if stride <= largest):
        for offset in sorted(range(1 - stride, stride), key=lambda offset: (abs(offset), offset)):
            if smallest + offset < 0:
                continue
            shifted = f"({{0}}{offset:+d})" if offset else "{0}"
            yield (place,), f"{shifted}//{stride}", lambda row, k=stride, c=offset: (row[0] + c) // k  # type: ignore[misc]
            yield (place,), f"{shifted}%{stride}", lambda row, k=stride, c=offset: (row[0] + c) % k  # type: ignore[misc]
