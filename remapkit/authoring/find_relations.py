"""Finds by value how the keys of B follow from those of A: slices, joins, orders, casts, stacks and copies.

Both checkpoints are read once for fingerprints; what these suggest is then run by the engine on the real bytes, each
target once, and only what gives exactly B's bytes is returned. Values that are equal by chance (constants, bytes that
several keys have) suggest nothing: only the weights of their modules can settle them, and the relation says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from remapkit.authoring.build_cut import build_cut
from remapkit.authoring.build_relation import Segment, Selection, build_join
from remapkit.authoring.find_order import MOST_DIMS
from remapkit.authoring.find_rows import RowIndex, Rows
from remapkit.authoring.find_siblings import propose_siblings
from remapkit.authoring.fingerprint import Prints, take_prints
from remapkit.authoring.pair_by_value import PairableTensors
from remapkit.authoring.relation import Relation
from remapkit.authoring.verify_relation import Verifier
from remapkit.diagnostics.wording import join_words

MOST_PARTS = 4096
"""The most parts of one target: more runs of rows are an order that nobody could write down."""

NOWHERE = "no operation on tensors of A gives these values"
UNNAMED = "its values are in A, but in an order that the rule language has no operation for"
FAILED = "its rows are in A, but the operations that they suggest give other bytes"
AMBIGUOUS = "its rows are in A at several places, and nothing tells which are meant"
SPENT = "the search was stopped: it took too many steps"


@dataclass(frozen=True, slots=True)
class Found:
    """The relations, and what is left: keys of B and of A, each with the reason.

    `undetermined` are keys of B whose values are in A, but at several places or by chance, so that nothing tells
    which is meant. A relation of a key that is paired has that pair's target among its own.
    """

    relations: tuple[Relation, ...]
    open_b: Mapping[str, str]
    unused_a: Mapping[str, str]
    undetermined: Mapping[str, str]
    steps: int


def find_relations(
    a: PairableTensors,
    b: PairableTensors,
    only_a: Sequence[str],
    only_b: Sequence[str],
    paired: Mapping[str, str],
    limit: int | None = None,
) -> Found:
    """Find how the keys `only_b` follow from A; `paired` are keys whose bytes are equal.

    Other keys of A than `only_a` may be sources too: those with equal bytes under several keys, and paired ones,
    whose relation then has several targets. A relation with `by` may have targets beside `only_b`, whose bytes occur
    under several keys. `limit` is the number of steps, by default in proportion to the keys.

    Raises `UnreadableCheckpoint` if data is missing.
    """
    search = _Search(a, b, only_b, paired, limit)
    search.run()
    used = {fqn for relation in search.relations for fqn in relation.sources}
    reached = {fqn for relation in search.relations for fqn in relation.targets}
    return Found(
        tuple(search.relations),
        {fqn: search.reasons.get(fqn, NOWHERE) for fqn in only_b if fqn not in reached | search.undetermined.keys()},
        {fqn: "no relation reads it" for fqn in only_a if fqn not in used},
        {fqn: search.undetermined[fqn] for fqn in only_b if fqn in search.undetermined and fqn not in reached},
        search.steps,
    )


class _Search:
    """One search; each key of B is run once a rule.

    A step is a view that is looked up, a run of rows in it, an order of dimensions, or a relation that is run.
    """

    def __init__(
        self,
        a: PairableTensors,
        b: PairableTensors,
        only_b: Sequence[str],
        paired: Mapping[str, str],
        limit: int | None,
    ) -> None:
        self.relations: list[Relation] = []
        self.reasons: dict[str, str] = {}
        self.undetermined: dict[str, str] = {}
        self.steps = 0
        self._a, self._b, self._paired = a, b, paired
        self._limit = 128 * (len(a.header()) + len(only_b)) + 10_000 if limit is None else limit
        self._verifier = Verifier(a, b)
        self._tried: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
        self._used: dict[str, str] = {}
        self._reached: set[str] = set()
        self._targets = {fqn: one for fqn in only_b for one in take_prints(b, fqn).values()}
        self._index: dict[str, RowIndex] = {}
        self._paired_targets: dict[str, Prints] = {}

    def run(self) -> None:
        """Search the keys that are not paired first; the paired ones are read only if some of B are still open."""
        header = self._a.header()
        dtypes = list(dict.fromkeys(prints.spec.dtype for prints in self._targets.values()))
        free = {fqn: take_prints(self._a, fqn, dtypes) for fqn in header if fqn not in self._paired}
        rounds = [free]
        for taken in rounds:
            self._index = {
                dtype: RowIndex([one[dtype] for one in taken.values() if dtype in one]) for dtype in dtypes
            }
            self._search_targets(of_matrices=True)
            self._search_siblings()
            self._search_targets(of_matrices=False)
            self._search_siblings()
            if taken is free and self._paired and any(fqn not in self.undetermined for fqn in self._names_open()):
                paired = {fqn: take_prints(self._a, fqn, dtypes) for fqn in header if fqn in self._paired}
                both = free | paired
                rounds.append({fqn: both[fqn] for fqn in header})

    def _open(self) -> list[Prints]:
        return [self._targets[fqn] for fqn in self._names_open()]

    def _names_open(self) -> list[str]:
        return [fqn for fqn in self._targets if fqn not in self._reached]

    def _spend(self, count: int = 1) -> bool:
        """Take steps if the limit allows them; return whether it does."""
        if self.steps + count > self._limit:
            return False
        self.steps += count
        return True

    # ------------------------------------------------------------------------------------------------- by value

    def _search_targets(self, *, of_matrices: bool) -> None:
        """Search what comes from matrices, or the rest: a vector's weights tell more than its own elements."""
        by_source: dict[tuple[str, str], list[Selection]] = {}
        sources: dict[tuple[str, str], Prints] = {}
        for target in self._open():
            found = self._locate(target)
            is_vector = len(target.long_dims) < 2
            if of_matrices and is_vector and (isinstance(found, Relation) or not _is_of_matrix(found)):
                continue
            if isinstance(found, Relation):
                self._accept(found)
            elif found is not None:
                source, selection = found
                place = (source.fqn, target.spec.dtype)
                sources[place] = source
                by_source.setdefault(place, []).append(selection)
        for place, selections in by_source.items():
            self._cut(sources[place], selections)

    def _cut(self, source: Prints, selections: list[Selection]) -> None:
        """Accept the relation of all targets of a source, or one for its first targets if that is all there is."""
        if source.fqn in self._paired:
            (other,) = take_prints(self._b, self._paired[source.fqn]).values()
            selections = [Selection(other), *selections] if other.spec.dtype == source.spec.dtype else []
        orders = math.factorial(min(len(source.long_dims), MOST_DIMS))
        if not selections or not self._spend(orders):
            self.reasons.update({one.target.fqn: SPENT for one in selections})
            return
        relation = build_cut(source, selections, self._a.header())
        if relation is not None:
            self._accept(relation)
        else:
            self.reasons.update({one.target.fqn: UNNAMED for one in selections})

    def _locate(self, target: Prints) -> Relation | tuple[Prints, Selection] | None:
        """Return the source of a target and its rows in it, or a join of several sources."""
        if target.is_constant:
            self.undetermined[target.fqn] = "all of its elements are equal"
            return None
        if not self._spend():
            self.reasons[target.fqn] = SPENT
            return None
        index = self._index[target.spec.dtype]
        whole = [one for one in index.find_total(target.total) if one.spec.numel == target.spec.numel]
        if len(whole) > 1:
            names = join_words([one.fqn for one in whole], 2)
            self.undetermined[target.fqn] = f"{names} have the same values"
            return None
        if whole:
            return whole[0], Selection(target)
        if (shifted := self._find_shifted(index, target)) is not None:
            return shifted
        for dims in target.views:
            rows = index.find_rows(target, dims)
            if rows is None:
                if dims and index.has_rows(target, dims):
                    self.reasons[target.fqn] = AMBIGUOUS
                continue
            segments = _list_segments(index, rows)
            if segments is None:
                self.reasons[target.fqn] = UNNAMED
                continue
            if not self._spend(len(segments)):
                self.reasons[target.fqn] = SPENT
                return None
            owners = {segment.prints.fqn for segment in segments}
            if len(owners) == 1 and len(segments) == 1:
                return segments[0].prints, Selection(target, dims, segments[0])
            if len(owners) > 1 and dims and len(dims) < 3:
                if not self._spend(math.factorial(min(len(target.long_dims), MOST_DIMS))):
                    self.reasons[target.fqn] = SPENT
                    return None
                relation = build_join(target, dims, segments, self._a.header())
                if relation is not None:
                    return relation
            self.reasons[target.fqn] = UNNAMED
        return None

    def _find_shifted(self, index: RowIndex, target: Prints) -> Relation | None:
        """Return the vector of which the target is one more or less: norms that store their difference to 1."""
        if target.plus is None:
            return None
        found = [
            (one.fqn, term)
            for one in index.prints
            for term, digest in (one.plus or {}).items()
            if digest == target.digest and one.spec == target.spec and not one.is_constant
        ]
        if len(found) != 1:
            return None
        ((fqn, term),) = found
        casts = () if self._a.header()[fqn].dtype == target.spec.dtype else ({"cast": target.spec.dtype},)
        return Relation((fqn,), (target.fqn,), ops=(*casts, {"add": term}))

    # --------------------------------------------------------------------------------------------- by the module

    def _search_siblings(self) -> None:
        """Try on the biases what was found for their weights; also on keys whose bytes several keys of A have."""
        header, reached = self._b.header(), self._reached | set(self._paired.values())
        free = [fqn for fqn in header if fqn not in reached]
        for relation in propose_siblings(self.relations, self._a.header(), header, set(free)):
            alone = all(self._is_certain(fqn) for fqn in relation.targets)
            self._accept(replace(relation, by="") if alone else relation)

    def _is_certain(self, fqn: str) -> bool:
        """Return whether the values alone could tell where a target comes from."""
        target = self._targets.get(fqn)
        if target is None or target.is_constant:
            return False
        return len(self._index[target.spec.dtype].find_total(target.total)) < 2

    def _accept(self, relation: Relation) -> bool:
        """Run a relation, and keep it if it gives B's bytes; each set of keys is run once."""
        names = (relation.sources, relation.targets)
        if any(fqn in self._reached for fqn in relation.targets):
            return False
        other = next((self._used[fqn] for fqn in relation.sources if fqn in self._used), None)
        # A pair is certain: a relation that reads its key must make its target too.
        lost = [fqn for fqn in relation.sources if self._paired.get(fqn) not in (None, *relation.targets)]
        if other is not None or lost or (relation.join and any(fqn in self._paired for fqn in relation.sources)):
            kept = other or next(self._paired[fqn] for fqn in relation.sources if fqn in self._paired)
            reason = f"a source of it already becomes {kept}, and no rule can do both"
            self.reasons.update(dict.fromkeys(relation.targets, reason))
            return False
        if names in self._tried or not self._spend():
            self.reasons.update({fqn: SPENT for fqn in relation.targets if names not in self._tried})
            return False
        self._tried.add(names)
        if not self._verifier.is_true(relation):
            self.reasons.update(dict.fromkeys(relation.targets, FAILED))
            return False
        self.relations.append(relation)
        self._reached.update(relation.targets)
        self._used.update(dict.fromkeys(relation.sources, relation.targets[0]))
        return True


def _is_of_matrix(found: tuple[Prints, Selection] | None) -> bool:
    return found is not None and len(found[0].long_dims) > 1


def _list_segments(index: RowIndex, rows: Rows) -> list[Segment] | None:
    """Return the rows in runs of one place; None if there are too many."""
    segments: list[Segment] = []
    for start, stop in _list_spans(rows):
        if len(segments) == MOST_PARTS:
            return None
        prints, dims = index.places[int(rows.places[start])]
        segments.append(Segment(prints, dims, rows.indices[start:stop]))
    return segments


def _list_spans(rows: Rows) -> Iterator[tuple[int, int]]:
    changes = (rows.places[1:] != rows.places[:-1]).nonzero()[0] + 1
    ends = [0, *changes.tolist(), len(rows.places)]
    return pairwise(ends)
