"""Arithmetic that undoes arithmetic: shifts, sums, quotients and remainders, found from all values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from remapkit.tensors.families import is_canonical_integer


def find_scales(rows: Mapping[str, tuple[str, ...]]) -> tuple[int, ...] | None:
    """Return the factor of each number of a row, so that the products sum to the row's key; None if there are none.

    Every combination of the numbers must occur, zeros included: then the key of the row with a 1 in one place and 0
    in the others is the factor of that place, and one pass over the rows confirms all factors.
    """
    if not (has_only_integers(rows) and all(has_only_integers(row) for row in rows.values())):
        return None
    columns = [sorted({int(text) for text in column}) for column in zip(*rows.values(), strict=True)]
    whole = 1
    for column in columns:
        whole *= len(column)
    by_row = {tuple(map(int, row)): int(key) for key, row in rows.items()}
    if whole != len(by_row) or any(column[0] for column in columns) or by_row.get((0,) * len(columns)) != 0:
        return None
    units = [tuple(int(other == number) for other in range(len(columns))) for number in range(len(columns))]
    if any(unit not in by_row for unit in units):
        return None
    scales = tuple(by_row[unit] for unit in units)
    fits = all(sum(a * b for a, b in zip(row, scales, strict=True)) == key for row, key in by_row.items())
    return scales if fits and all(scales) else None


def has_only_integers(values: Iterable[str]) -> bool:
    return all(map(is_canonical_integer, values))


def find_shift(entries: Mapping[str, str]) -> int | None:
    """Return the difference of value and key, if it is the same for all entries."""
    if not (has_only_integers(entries) and has_only_integers(entries.values())):
        return None
    shifts = {int(value) - int(key) for key, value in entries.items()}
    return shifts.pop() if len(shifts) == 1 else None


def find_mirror(entries: Mapping[str, str]) -> int | None:
    """Return the sum of value and key, if it is the same for all entries."""
    if not (has_only_integers(entries) and has_only_integers(entries.values())):
        return None
    sums = {int(value) + int(key) for key, value in entries.items()}
    return sums.pop() if len(sums) == 1 else None


def find_expression(name: str, column: Mapping[str, str]) -> str | None:
    """Return the `n//step`, `n%most` or `n//step%most` that maps every key to its value; None if none does.

    `most` is one more than the largest value, which is right if every remainder occurs. So only steps are searched:
    at most 256 passes over the column.
    """
    if not (has_only_integers(column) and has_only_integers(column.values())):
        return None
    pairs = [(int(key), int(value)) for key, value in column.items()]
    most = max(value for _, value in pairs) + 1
    for step in range(1, 257):
        quotients = [(key // step, value) for key, value in pairs]
        if all(quotient == value for quotient, value in quotients):
            return name if step == 1 else f"{name}//{step}"
        if all(quotient % most == value for quotient, value in quotients):
            return f"{name}%{most}" if step == 1 else f"{name}//{step}%{most}"
    return None
