"""Finds by value how the keys of B follow from those of A: slices, joins, orders, casts, stacks and copies.

Both checkpoints are read once for fingerprints; what these suggest is then run by the engine on the real bytes, each
target once, and only what gives exactly B's bytes is returned. Values that are equal by chance (constants, bytes that
several keys have) suggest nothing: only the weights of their modules can settle them, and the relation says so.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from remapkit.authoring.build_cut import build_copies, build_cut
from remapkit.authoring.build_relation import Segment, Selection, build_join, describe_whole
from remapkit.authoring.find_order import MOST_DIMS, has_distinct
from remapkit.authoring.find_rows import RowIndex, Rows
from remapkit.authoring.find_siblings import propose_siblings
from remapkit.authoring.fingerprint import Dims, Prints, take_prints
from remapkit.authoring.pair_by_value import PairableTensors
from remapkit.authoring.relation import TIED, UNSETTLED, Relation
from remapkit.authoring.verify_relation import Verifier
from remapkit.diagnostics.wording import join_words
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import StateDictSpec

MOST_PARTS = 4096
"""The most parts of one target: more runs of rows are an order that nobody could write down."""
MOST_ALIKE = 64
"""The most tensors with the same elements of which each is compared with a target."""
ROWS_PER_STEP = 1 << 18
"""The rows of a view that are looked up in one step."""

NOWHERE = "no operation on tensors of A gives these values"
UNNAMED = "its values are in A, but in an order that the rule language has no operation for"
FAILED = "its rows are in A, but the operations that they suggest give other bytes"
AMBIGUOUS = "its rows are in A at several places, and nothing tells which are meant"
SPENT = "the search was stopped: it took too many steps"


@dataclass(frozen=True, slots=True)
class Found:
    """The relations, and what is left: keys of B and of A, each with the reason.

    `undetermined` are keys of B whose values are in A, but at several places or by chance, so that nothing tells
    which is meant.
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
    *,
    copies: Mapping[str, Sequence[str]] | None = None,
) -> Found:
    """Find how the keys `only_b` follow from A; `paired` are keys whose bytes are equal.

    `copies` are keys of A whose bytes several keys of B have. A relation that reads a paired or copied key has all
    keys of B with its bytes among its targets.

    Other keys of A than `only_a` may be sources too: those with equal bytes under several keys, and paired ones,
    whose relation then has several targets. A relation with `by` may have targets beside `only_b`, whose bytes occur
    under several keys. `limit` is the number of steps, by default in proportion to the keys.

    Raises `UnreadableCheckpoint` if data is missing.
    """
    equals: dict[str, tuple[str, ...]] = {fqn: (other,) for fqn, other in paired.items()}
    equals |= {fqn: tuple(others) for fqn, others in (copies or {}).items()}
    search = _Search(a, b, only_b, equals, paired.keys(), limit)
    free = set(only_a)
    search.tied = {fqn: group for group in a.header().tied if free.issuperset(group) for fqn in group}
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

    A step is a view that is looked up (one more for each `ROWS_PER_STEP` of its rows), a run of rows in it, an order
    of dimensions, or a relation that is run. All other work of a target takes no longer than its steps.
    """

    def __init__(
        self,
        a: PairableTensors,
        b: PairableTensors,
        only_b: Sequence[str],
        equals: Mapping[str, tuple[str, ...]],
        paired: Collection[str],
        limit: int | None,
    ) -> None:
        self.relations: list[Relation] = []
        self.reasons: dict[str, str] = {}
        self.undetermined: dict[str, str] = {}
        self.steps = 0
        self.tied: Mapping[str, tuple[str, ...]] = {}
        self._a, self._b, self._equals, self._paired = a, b, equals, paired
        self._limit = 128 * (len(a.header()) + len(only_b)) + 10_000 if limit is None else limit
        self._verifier = Verifier(a, b)
        self._tried: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
        self._used: dict[str, str] = {}
        self._reached: set[str] = set()
        self._targets = {fqn: one for fqn in only_b for one in take_prints(b, fqn).values()}
        self._index: dict[str, RowIndex] = {}
        self._dtypes = list(dict.fromkeys(prints.spec.dtype for prints in self._targets.values()))
        self._free: dict[str, Mapping[str, Prints]] = {}
        self._certain: dict[str, Prints] = {}
        self._words: dict[tuple[int, int], str] = {}

    def run(self) -> None:
        """Search the keys that are not paired first; the paired ones are read only if some of B are still open.

        At the end each key of `only_b` is reached, undetermined, or open, with a reason or `NOWHERE`.
        """
        self._free = self._take_prints(lambda fqn: fqn not in self._paired)
        self._search_among(self._free)
        if self._paired and any(fqn not in self.undetermined for fqn in self._names_open()):
            both = self._free | self._take_prints(lambda fqn: fqn in self._paired)
            self._search_among({fqn: both[fqn] for fqn in self._a.header()})

    def _take_prints(self, is_wanted: Callable[[str], bool]) -> dict[str, Mapping[str, Prints]]:
        return {fqn: take_prints(self._a, fqn, self._dtypes) for fqn in self._a.header() if is_wanted(fqn)}

    def _search_among(self, taken: Mapping[str, Mapping[str, Prints]]) -> None:
        self._index = {
            dtype: RowIndex([one[dtype] for one in taken.values() if dtype in one]) for dtype in self._dtypes
        }
        self._certain = _list_certain(taken, self._a.header())
        for of_matrices in (True, False):
            self._search_targets(taken, of_matrices=of_matrices)
            self._search_siblings()

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

    def _search_targets(self, taken: Mapping[str, Mapping[str, Prints]], *, of_matrices: bool) -> None:
        """Search what comes from matrices, or the rest: a vector's weights tell more than its own elements."""
        by_source: defaultdict[str, list[Selection]] = defaultdict(list)
        for target in self._open():
            found = self._locate(target)
            is_vector = len(target.long_dims) < 2
            if of_matrices and is_vector and (isinstance(found, Relation) or not _is_of_matrix(found)):
                continue
            if isinstance(found, Relation):
                self._accept(found)
            elif found is not None:
                source, selection = found
                by_source[source.fqn].append(selection)
        for fqn, selections in by_source.items():
            self._cut(taken[fqn], selections)

    def _cut(self, sources: Mapping[str, Prints], selections: Sequence[Selection]) -> None:
        """Accept one relation of all targets of a source; if there is none, of those that have one each."""
        one = next(iter(sources.values()))
        if not self._spend(len(selections) * math.factorial(min(len(one.long_dims), MOST_DIMS))):
            self.reasons.update({each.target.fqn: SPENT for each in selections})
            return
        header = self._b.header()
        equal = [Selection(Prints(fqn, header[fqn], {}), ops=()) for fqn in self._equals.get(one.fqn, ())]
        relation = build_cut(sources, [*equal, *selections], self._a.header())
        if relation is not None and one.fqn in self.tied:
            relation = replace(relation, by=relation.by or TIED)
        if relation is not None and (self._accept(relation) or self._record_blocked(relation)):
            return
        if len(selections) == 1:
            if relation is None:
                self.reasons[selections[0].target.fqn] = UNNAMED
            return
        true = [each for each in selections if self._try_alone(sources, each)]
        relation = build_copies(sources, [*equal, *true], self._a.header()) if true else None
        if relation is not None:
            self._accept(relation)

    def _try_alone(self, sources: Mapping[str, Prints], selection: Selection) -> bool:
        """Return whether a target alone has a true relation, and record the reason if it has none."""
        relation = build_cut(sources, [selection], self._a.header())
        reason = UNNAMED if relation is None else SPENT if not self._spend() else ""
        if relation is not None and not reason and relation.by == UNSETTLED:
            self.undetermined[selection.target.fqn] = UNSETTLED
            return False
        if relation is not None and not reason:
            reason = "" if self._verifier.is_true(relation) else FAILED
        if reason:
            self.reasons[selection.target.fqn] = reason
        return not reason

    def _locate(self, target: Prints) -> Relation | tuple[Prints, Selection] | None:
        """Return the source of a target and its rows in it, or a join of several sources."""
        if target.is_constant:
            self.undetermined[target.fqn] = "all of its elements are equal"
            return None
        if not self._spend():
            self.reasons[target.fqn] = SPENT
            return None
        index = self._index[target.spec.dtype]
        whole = self._compare_rows(target, index.find_total(target))
        if len(whole) > 1 and not {one.fqn for one in whole} <= set(self.tied.get(whole[0].fqn, ())):
            self.undetermined[target.fqn] = self._name_twins(whole)
            return None
        if whole:
            return whole[0], Selection(target)
        shifted = index.find_shifted(target)
        if len(shifted) == 1:
            return shifted[0][0], Selection(target, ops=({"add": shifted[0][1]},))
        for dims, view in target.views.items():
            if not self._spend(1 + len(view) // ROWS_PER_STEP):
                self.reasons[target.fqn] = SPENT
                return None
            rows = index.find_rows(target, dims)
            if rows is not None:
                found = self._follow_rows(target, dims, _list_segments(index, rows))
                if found is not None or self.reasons.get(target.fqn) == SPENT:
                    return found
                self.reasons[target.fqn] = UNNAMED
            elif dims and index.has_rows(target, dims):
                self.reasons[target.fqn] = AMBIGUOUS
        return None

    def _compare_rows(self, target: Prints, whole: Sequence[Prints]) -> Sequence[Prints]:
        """Return those of some tensors with the elements of another of which an operation may make it; else all.

        Of few bits an element, many tensors have the same elements, in other rows and columns.
        """
        is_short = DTYPE_BITS[target.spec.dtype] <= 8 and 1 < len(whole) <= MOST_ALIKE
        if not is_short or not self._spend(len(whole)):
            return whole
        return [one for one in whole if describe_whole(one, target) is not None] or whole

    def _follow_rows(
        self, target: Prints, dims: Dims, segments: Sequence[Segment] | None
    ) -> Relation | tuple[Prints, Selection] | None:
        """Return the one source of the rows and which they are in it, or the join of their sources."""
        if segments is None:
            return None
        owners = {segment.prints.fqn for segment in segments}
        if len(owners) == 1 and len(segments) == 1:
            return segments[0].prints, Selection(target, dims, segments[0])
        has_join = len(owners) > 1 and 0 < len(dims) < 3
        orders = math.factorial(min(len(target.long_dims), MOST_DIMS)) if has_join else 0
        if not self._spend(len(segments) + orders):
            self.reasons[target.fqn] = SPENT
            return None
        return build_join(target, dims, segments, self._a.header()) if has_join else None

    def _name_twins(self, whole: Sequence[Prints]) -> str:
        # Thousands of targets may share these names: they are joined once.
        place = (whole[0].total, len(whole))
        if place not in self._words:
            self._words[place] = f"{join_words([one.fqn for one in whole], 2)} have the same values"
        return self._words[place]

    # --------------------------------------------------------------------------------------------- by the module

    def _search_siblings(self) -> None:
        """Try on the biases what was found for their weights; also on keys whose bytes several keys of A have."""
        header = self._b.header()
        reached = self._reached.union(*self._equals.values())
        free = {fqn for fqn in header if fqn not in reached}
        for relation in propose_siblings(self.relations, self._a.header(), header, free):
            self._accept(replace(relation, by="") if self._is_certain(relation) else relation)

    def _is_certain(self, relation: Relation) -> bool:
        """Return whether the values alone could tell what the sources of some vectors become."""
        ops = [op for some in (*relation.before, relation.ops, *relation.after) for op in some]
        is_moved = any("cast" not in op for op in ops)
        return all(
            fqn in self._certain and (not is_moved or has_distinct(self._certain[fqn].views[(0,)]))
            for fqn in relation.sources
        )

    def _accept(self, relation: Relation) -> bool:
        """Run a relation, and keep it if it gives B's bytes; each set of keys is run once."""
        names = (relation.sources, relation.targets)
        if any(fqn in self._reached for fqn in relation.targets) or self._record_blocked(relation):
            return False
        if relation.by == UNSETTLED:
            self.undetermined.update(dict.fromkeys(relation.targets, UNSETTLED))
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

    def _record_blocked(self, relation: Relation) -> bool:
        """Return whether a source becomes something else already, and record that as the reason.

        A pair is certain, and so are copies: a relation that reads their key must make their targets too.
        """
        kept = [self._used[fqn] for fqn in relation.sources if fqn in self._used]
        for fqn in relation.sources:
            if relation.join or not set(self._equals.get(fqn, ())) <= set(relation.targets):
                kept += self._equals.get(fqn, ())
        if kept and not self._reached.issuperset(relation.targets):
            reason = f"a source of it already becomes {kept[0]}, and no rule can do both"
            self.reasons.update(dict.fromkeys(relation.targets, reason))
        return bool(kept)


def _list_certain(taken: Mapping[str, Mapping[str, Prints]], header: StateDictSpec) -> dict[str, Prints]:
    """Return the vectors whose values tell them from all other tensors: no constants, and none that A has twice."""
    own = [prints[header[fqn].dtype] for fqn, prints in taken.items() if header[fqn].dtype in prints]
    counts = Counter((one.spec.dtype, one.digest) for one in own)
    alone = [one for one in own if not one.is_constant and counts[one.spec.dtype, one.digest] == 1]
    return {one.fqn: one for one in alone if len(one.long_dims) == 1 and (0,) in one.views}


def _is_of_matrix(found: tuple[Prints, Selection] | None) -> bool:
    return found is not None and len(found[0].long_dims) > 1


def _list_segments(index: RowIndex, rows: Rows) -> list[Segment] | None:
    """Return the rows in runs of one place; None if there are too many."""
    segments: list[Segment] = []
    for start, stop in _list_spans(rows):
        if len(segments) == MOST_PARTS:
            return None
        prints, dims = index.places[int(rows.places[start])]
        segments.append(Segment(prints, dims, rows.indices[start:stop], bool(rows.sure[start:stop].all())))
    return segments


def _list_spans(rows: Rows) -> Iterator[tuple[int, int]]:
    changes = (rows.places[1:] != rows.places[:-1]).nonzero()[0] + 1
    ends = [0, *changes.tolist(), len(rows.places)]
    return pairwise(ends)
