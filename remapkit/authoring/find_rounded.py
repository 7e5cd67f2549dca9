"""Finds what is equal only after rounding: A in half precision, B with the values that A was rounded from.

The two are compared in the coarser dtype. A rule then gives B's dtype, but A's values: nothing on its way may round
again, so relations that calculate are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from remapkit.authoring.find_relations import find_relations
from remapkit.authoring.find_siblings import propose_siblings
from remapkit.authoring.pair_by_value import PairableTensors, Pairing, pair_by_value
from remapkit.authoring.relation import SIMPLEST, OpText, Relation
from remapkit.authoring.settle_operations import settle_operations
from remapkit.authoring.settle_symmetric import find_symmetric, turn_symmetric
from remapkit.authoring.verify_relation import Verifier, has_equal_bytes
from remapkit.compute.cast import cast_elements
from remapkit.files.source_file import split_evenly
from remapkit.tensors.dtypes import CASTABLE_FLOATS, DTYPE_BITS
from remapkit.tensors.elements import choose_word
from remapkit.tensors.spec import StateDictSpec, TensorSpec


def find_rounded(
    a: PairableTensors, b: PairableTensors, only_a: Sequence[str], only_b: Sequence[str]
) -> list[Relation]:
    """Find how keys of B follow from coarser floats of A, compared in A's dtype; each relation says so in `rounded`.

    Raises `UnreadableCheckpoint` if data is missing.
    """
    found: list[Relation] = []
    there = b.header()
    dtypes = dict.fromkeys(a.header()[fqn].dtype for fqn in only_a)
    for coarse, fine in itertools.product(dtypes, dict.fromkeys(there[fqn].dtype for fqn in only_b)):
        if not is_coarser(coarse, fine):
            continue
        reached = {fqn for relation in found for fqn in relation.targets}
        sources = [fqn for fqn in only_a if a.header()[fqn].dtype == coarse]
        targets = [fqn for fqn in only_b if there[fqn].dtype == fine and fqn not in reached]
        found += _find_in(_Some(a, sources, coarse), _Some(b, targets, coarse), fine)
    return found


def is_coarser(coarse: str, fine: str) -> bool:
    """Return whether values of one dtype of floats may be those of another, rounded.

    >>> is_coarser("BF16", "F32"), is_coarser("F32", "F16"), is_coarser("I8", "F32")
    (True, False, False)
    """
    both = coarse in CASTABLE_FLOATS and fine in CASTABLE_FLOATS
    return both and DTYPE_BITS[coarse] < DTYPE_BITS[fine]


def round_chunks(chunks: Iterator[memoryview], old: str, new: str) -> Iterator[memoryview]:
    """Yield the bytes of a tensor as cast to another dtype of floats."""
    word = choose_word(old)
    for piece in split_evenly(chunks, (1 << 20) // word.itemsize * word.itemsize):
        rounded = cast_elements(np.frombuffer(piece, word), old, new)
        yield np.ascontiguousarray(rounded).view("u1").data


@dataclass(frozen=True, slots=True)
class Operations:
    """All relations, and why no other target follows: the reason for each key of B that is left."""

    relations: tuple[Relation, ...]
    reasons: Mapping[str, str]
    symmetric: frozenset[str] = frozenset()
    """The paired keys that an operation leaves as they are."""

    @property
    def rounded(self) -> Mapping[str, str]:
        """The targets that are only equal after rounding, with the dtype."""
        return {fqn: each.rounded for each in self.relations if each.rounded for fqn in each.targets}


def find_operations(a: PairableTensors, b: PairableTensors, pairing: Pairing) -> Operations:
    """Find how the keys of B that have no equal follow from A: bit for bit, then after rounding.

    Raises `UnreadableCheckpoint` if data is missing.
    """
    found = find_relations(a, b, pairing.only_a, pairing.only_b, pairing.pairs, copies=pairing.copies)
    certain = [relation for relation in found.relations if relation.by != SIMPLEST]
    read = {fqn for relation in certain for fqn in relation.sources}
    open_b = [fqn for fqn in pairing.only_b if fqn in found.open_b]
    rounded = find_rounded(a, b, [fqn for fqn in pairing.only_a if fqn not in read], open_b)
    relations = [*certain, *rounded]
    verifier = Verifier(a, b)
    read.update((*pairing.pairs, *pairing.copies), (fqn for relation in rounded for fqn in relation.sources))
    for relation in propose_siblings(rounded, a.header(), b.header(), found.undetermined):
        # Constants have no digits to lose: these are compared bit for bit.
        exact = replace(relation, rounded="")
        if read.isdisjoint(exact.sources) and verifier.is_true(exact):
            relations.append(exact)
            read.update(exact.sources)
    reached = {fqn for relation in relations for fqn in relation.targets}
    left = {fqn: a.header()[fqn] for fqn in pairing.only_a if fqn not in read}
    open_b = [fqn for fqn in pairing.only_b if fqn not in reached]
    relations += settle_operations(relations, StateDictSpec(left, name=a.header().name), set(open_b), verifier)
    # The simplest of several orders counts for less than what other keys say.
    simplest = [relation for relation in found.relations if relation.by == SIMPLEST]
    relations = _add_free([*relations, *turn_symmetric(relations, simplest, pairing, verifier)], simplest)
    reached = {fqn for relation in relations for fqn in relation.targets}
    reasons = {**found.open_b, **{fqn: f"undetermined: {reason}" for fqn, reason in found.undetermined.items()}}
    left_open = {fqn: reason for fqn, reason in reasons.items() if fqn not in reached}
    return Operations(tuple(relations), left_open, find_symmetric(pairing, verifier))


def _add_free(relations: Sequence[Relation], others: Sequence[Relation]) -> list[Relation]:
    """Add those of the others of which no name is used."""
    used = {fqn for relation in relations for fqn in (*relation.sources, *relation.targets)}
    return [*relations, *(each for each in others if used.isdisjoint((*each.sources, *each.targets)))]


def has_equal_rounded(made: Iterator[memoryview], wanted: Iterator[memoryview], fine: str, coarse: str) -> bool:
    """Return whether two tensors of one dtype are equal after rounding to a coarser one."""
    return has_equal_bytes(round_chunks(made, fine, coarse), round_chunks(wanted, fine, coarse))


class _Some:
    """Some tensors of a checkpoint, in another dtype."""

    def __init__(self, whole: PairableTensors, fqns: Sequence[str], dtype: str) -> None:
        self._whole, self.dtype, self._old = whole, dtype, whole.header()
        specs = {fqn: TensorSpec(dtype, self._old[fqn].shape) for fqn in fqns}
        self._header = StateDictSpec(specs, name=self._old.name)

    def header(self) -> StateDictSpec:
        """Return names and shapes, with the new dtype."""
        return self._header

    def chunks(self, fqn: str) -> Iterator[memoryview]:
        """Yield the bytes of a tensor in the new dtype."""
        old = self._old[fqn].dtype
        chunks = self._whole.chunks(fqn)
        return chunks if old == self.dtype else round_chunks(chunks, old, self.dtype)


def _find_in(a: _Some, b: _Some, fine: str) -> Iterator[Relation]:
    pairing = pair_by_value(a, b)
    found = find_relations(a, b, pairing.only_a, pairing.only_b, pairing.pairs, copies=pairing.copies)
    read = {fqn for relation in found.relations for fqn in relation.sources}
    pairs = [Relation((fqn,), (other,)) for fqn, other in pairing.pairs.items() if fqn not in read]
    copies = [Relation((fqn,), others, cut="copy") for fqn, others in pairing.copies.items() if fqn not in read]
    for relation in (*pairs, *copies, *found.relations):
        if not any(_calculates(ops) for ops in (*relation.before, relation.ops, *relation.after)):
            yield _add_cast(relation, a.dtype, fine)


def _calculates(ops: Sequence[OpText]) -> bool:
    return any(isinstance(op, Mapping) and "add" in op for op in ops)


def _add_cast(relation: Relation, coarse: str, fine: str) -> Relation:
    cast: OpText = {"cast": fine}
    ops = (cast, *relation.ops) if relation.cut else (*relation.ops, cast)
    return replace(relation, ops=ops, rounded=coarse)
