"""Where the rows of one tensor occur in others: a sorted index of all views, and the runs that continue in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from remapkit.authoring.fingerprint import WINDOW, Dims, Prints, hash_windows
from remapkit.tensors.elements import Array


@dataclass(frozen=True, slots=True)
class Rows:
    """Where each row of a view comes from: the number of the place (a view of a tensor of A), and the index in it."""

    places: Array
    indices: Array


class RowIndex:
    """All views of the tensors of A in one dtype, sorted by value: built once, looked up in logarithmic time."""

    def __init__(self, prints: Sequence[Prints]) -> None:
        self.prints = prints
        self.places: list[tuple[Prints, Dims]] = []
        rows: list[Array] = []
        windows: list[Array] = []
        for one in prints:
            for dims, view in one.views.items():
                vector = bool(dims) and len(one.long_dims) < 2
                self.places.append((one, dims))
                rows.append(view)
                windows.append(hash_windows(view) if vector else np.empty(0, "<u8"))
        self._rows, self._windows = _Sorted(rows), _Sorted(windows)

    def find_total(self, total: int) -> list[Prints]:
        """Return the tensors whose elements add up to a number, in the order of A."""
        places = self._rows.find_all(total)
        return [self.places[place][0] for place, _ in places if self.places[place][1] == ()]

    def find_rows(self, target: Prints, dims: Dims) -> Rows | None:
        """Return where the rows of a view come from, None if one of them is nowhere, or nothing is certain.

        A row that occurs at several places is taken where the row before it (or after it) goes on.
        """
        view = target.views[dims]
        vector = bool(dims) and len(target.long_dims) < 2
        counts, first = self._rows.find(view)
        if not counts.all():
            return None
        places, indices = np.full(len(view), -1), np.full(len(view), -1)
        if vector and len(view) >= WINDOW:
            found, at = self._windows.find(hash_windows(view))
            sure = np.flatnonzero(found == 1)
            places[sure], indices[sure] = self._windows.locate(at[sure])
        alone = np.flatnonzero((counts == 1) & (places < 0))
        places[alone], indices[alone] = self._rows.locate(first[alone])
        if (places < 0).all():
            return None
        numbers = range(len(view))
        for step, order in ((1, numbers), (-1, numbers[::-1])):
            self._continue_runs(view, Rows(places, indices), order, step)
        return None if (places < 0).any() else Rows(places, indices)

    def has_rows(self, target: Prints, dims: Dims) -> bool:
        """Return whether every row of a view is somewhere."""
        return bool(self._rows.find(target.views[dims])[0].all())

    def _continue_runs(self, view: Array, rows: Rows, order: Iterable[int], step: int) -> None:
        missing = set(np.flatnonzero(rows.places < 0).tolist())
        for n in order:
            if n not in missing or not 0 <= n - step < len(view) or rows.places[n - step] < 0:
                continue
            place, index = rows.places[n - step], rows.indices[n - step] + step
            there = self.places[place][0].views[self.places[place][1]]
            if 0 <= index < len(there) and there[index] == view[n]:
                rows.places[n], rows.indices[n] = place, index


class _Sorted:
    """Numbers of several arrays, sorted, each with its array and its index in it."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._starts = np.cumsum([0, *map(len, arrays)])
        values = np.concatenate(arrays) if arrays else np.empty(0, "<u8")
        self._order = np.argsort(values, kind="stable")
        self._values = values[self._order]

    def find(self, wanted: Array) -> tuple[Array, Array]:
        """Return how often each number occurs, and its first position in the sorted row."""
        first = np.searchsorted(self._values, wanted, "left")
        return np.searchsorted(self._values, wanted, "right") - first, first

    def locate(self, positions: Array) -> tuple[Array, Array]:
        """Return the array and the index in it for positions in the sorted row."""
        flat = self._order[positions]
        arrays = np.searchsorted(self._starts, flat, "right") - 1
        return arrays, flat - self._starts[arrays]

    def find_all(self, value: int, most: int = 64) -> list[tuple[int, int]]:
        """Return the array and index of every occurrence of a number, at most `most`."""
        counts, first = self.find(np.array([value], "<u8"))
        positions = np.arange(int(first[0]), int(first[0]) + min(most, int(counts[0])))
        arrays, indices = self.locate(positions)
        return list(zip(arrays.tolist(), indices.tolist(), strict=True))
