"""Arithmetic that makes the indices of one layout from those of another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from remapkit.tensors.families import is_canonical_integer

_FOLDS = range(2, 65)
"""The strides that are tried where a number is not a line through the first two values."""
_LARGEST = 1000
"""Arithmetic is enumerated when a rule is compiled: larger indices are only copied or looked up."""
ENOUGH = 3
"""The fewest different indices that show more than a shift."""

Found = tuple[tuple[int, ...], str]


def find_arithmetic(wanted: Sequence[int], columns: Sequence[Sequence[str]], varying: Sequence[int]) -> Found | None:
    """Return the places that the wanted indices follow from, and how; None if no expression gives all of them.

    A line (`n+2`, `3-n`, `n*3+1`), two indices in one (`i*4+j`), a quotient or a remainder (`(n-1)//3`), in this
    order. Two keys give a line, and each stride has one interval of offsets: nothing is searched.

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
    return next(_list_expressions(numbers, wanted), None)


def _list_expressions(numbers: Mapping[int, Sequence[int]], wanted: Sequence[int]) -> Iterator[Found]:
    for place, values in numbers.items():
        if written := _find_line(values, wanted):
            yield (place,), written
    for one, other in itertools.permutations(numbers, 2):
        if written := _find_sum(numbers[one], numbers[other], wanted):
            yield (one, other), written
    for place, values in numbers.items():
        if written := _find_fold(values, wanted):
            yield (place,), written


def _fit_line(values: Sequence[int], wanted: Sequence[int]) -> tuple[int, int] | None:
    """Return the slope and the offset that make all wanted numbers of the values, which are not all the same."""
    place = next((place for place, value in enumerate(values) if value != values[0]), None)
    if place is None:
        return None
    slope, rest = divmod(wanted[place] - wanted[0], values[place] - values[0])
    offset = wanted[0] - slope * values[0]
    fits = not rest and all(value * slope + offset == found for value, found in zip(values, wanted, strict=True))
    return (slope, offset) if fits else None


def _find_line(values: Sequence[int], wanted: Sequence[int]) -> str | None:
    slope, offset = _fit_line(values, wanted) or (0, 0)
    # Through two points there is always a line: anything but a shift needs a third to speak for it.
    if not slope or (slope != 1 and len(set(values)) < ENOUGH):
        return None
    if slope < 0:
        factor = "{0}" if slope == -1 else f"{{0}}*{-slope}"
        return f"{offset}-{factor}"
    factor = "{0}" if slope == 1 else f"{{0}}*{slope}"
    return factor + (f"{offset:+d}" if offset else "")


def _find_sum(large: Sequence[int], small: Sequence[int], wanted: Sequence[int]) -> str | None:
    """Return `i*k+j+c`; with a smaller stride than `j` has values, two pairs of indices could give one number."""
    stride, offset = _fit_line(large, [found - value for found, value in zip(wanted, small, strict=True)]) or (0, 0)
    if stride not in _FOLDS or stride <= max(small) - min(small) or abs(offset) > stride:
        return None
    return f"{{0}}*{stride}+{{1}}" + (f"{offset:+d}" if offset else "")


def _find_fold(values: Sequence[int], wanted: Sequence[int]) -> str | None:
    """Return the quotient or the remainder of the smallest stride, and of its smallest offset."""
    if len(set(values)) < ENOUGH:
        return None
    smallest, largest = min(values), max(values)
    for stride in (stride for stride in _FOLDS if stride <= largest):
        offsets = [(abs(offset), offset, "//") for offset in _list_quotients(values, wanted, stride)]
        offsets += [(abs(offset), offset, "%") for offset in _list_remainders(values, wanted, stride)]
        # An offset of a whole stride or more is another quotient plus a number; what is divided is never negative.
        possible = [each for each in offsets if each[0] < stride and smallest + each[1] >= 0]
        if possible:
            _, offset, operator = min(possible, key=lambda each: (each[0], each[1], each[2] == "%"))
            shifted = f"({{0}}{offset:+d})" if offset else "{0}"
            return f"{shifted}{operator}{stride}"
    return None


def _list_quotients(values: Sequence[int], wanted: Sequence[int], stride: int) -> range:
    """Return all `c` with `(value+c)//stride` as wanted: each pair of numbers allows `stride` of them in a row."""
    lowest = [found * stride - value for value, found in zip(values, wanted, strict=True)]
    return range(max(lowest), min(lowest) + stride)


def _list_remainders(values: Sequence[int], wanted: Sequence[int], stride: int) -> tuple[int, ...]:
    """Return the two smallest `c` with `(value+c)%stride` as wanted: each pair of numbers allows one in a stride."""
    offset = (wanted[0] - values[0]) % stride
    fits = all((value + offset) % stride == found for value, found in zip(values, wanted, strict=True))
    return (offset, offset - stride) if fits else ()
