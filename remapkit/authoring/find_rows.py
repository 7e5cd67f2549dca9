"""Where the rows of one tensor occur in others: a sorted index of all views, and the runs that continue in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from remapkit.authoring.fingerprint import WINDOW, Dims, Prints, hash_windows
from remapkit.tensors.elements import Array
from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Rows:
    """Where each row of a view comes from: the number of the place (a view of a tensor of A), and the index in it.

    `sure` are the rows that occur nowhere else; the others go on where those next to them are.
    """

    places: Array
    indices: Array
    sure: Array


class RowIndex:
    """All views of the tensors of A in one dtype, sorted by value: built once, looked up in logarithmic time."""

    def __init__(self, prints: Sequence[Prints]) -> None:
        self._totals: defaultdict[tuple[int, int], list[Prints]] = defaultdict(list)
        self._shifted: defaultdict[tuple[TensorSpec, bytes], list[tuple[Prints, int]]] = defaultdict(list)
        self.places: list[tuple[Prints, Dims]] = []
        rows: list[Array] = []
        windows: list[Array] = []
        for one in prints:
            self._totals[one.total, one.spec.numel].append(one)
            for term, digest in (one.plus or {}).items() if not one.is_constant else ():
                self._shifted[one.spec, digest].append((one, term))
            for dims, view in one.views.items():
                vector = bool(dims) and len(one.long_dims) < 2
                self.places.append((one, dims))
                rows.append(view)
                windows.append(hash_windows(view) if vector else np.empty(0, "<u8"))
        self._rows, self._windows = _Sorted(rows), _Sorted(windows)

    def find_total(self, target: Prints) -> Sequence[Prints]:
        """Return the tensors with the elements of another, in any order; they come in the order of A."""
        return self._totals.get((target.total, target.spec.numel), ())

    def find_shifted(self, target: Prints) -> Sequence[tuple[Prints, int]]:
        """Return the vectors that give another after adding a term, 1 or -1, each with the term."""
        return self._shifted.get((target.spec, target.digest), ())

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
            known = np.flatnonzero(found == 1)
            places[known], indices[known] = self._windows.locate(at[known])
        alone = np.flatnonzero((counts == 1) & (places < 0))
        places[alone], indices[alone] = self._rows.locate(first[alone])
        if (places < 0).all():
            return None
        sure = places >= 0
        if vector and len(view) >= WINDOW:
            sure[alone] = False
            for _ in range(WINDOW - 1):  # what a window covers; a row that is alone covers itself only
                sure[1:] |= sure[:-1].copy()
            sure[alone] = True
        rows = Rows(places, indices, sure)
        for step in (1, -1):
            self._continue_runs(view, rows, np.flatnonzero(places < 0)[::step].tolist(), step)
        return None if (places < 0).any() else rows

    def has_rows(self, target: Prints, dims: Dims) -> bool:
        """Return whether every row of a view is somewhere."""
        return bool(self._rows.find(target.views[dims])[0].all())

    def _continue_runs(self, view: Array, rows: Rows, missing: Iterable[int], step: int) -> None:
        for n in missing:
            if not 0 <= n - step < len(view) or rows.places[n - step] < 0:
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
