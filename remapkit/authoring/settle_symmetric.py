"""Pairs of equal bytes that an operation would give too: symmetric matrices, palindromes, rows that repeat.

Their values do not show whether B has them as they are. Keys whose names differ in numbers only are of one rule:
where the others are turned and the bytes agree, so are these. Where no other key tells, renaming is the simplest.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from remapkit.authoring.pair_by_value import Pairing
from remapkit.authoring.relation import Relation
from remapkit.authoring.settle import By, Settled
from remapkit.authoring.verify_relation import Verifier, signature

Family = tuple[str, ...]


def turn_symmetric(
    relations: Sequence[Relation], others: Sequence[Relation], pairing: Pairing, verifier: Verifier
) -> Iterator[Relation]:
    """Yield relations of paired keys whose bytes the operations on all other keys of their family give too.

    `others` are relations that are open like these pairs.

    Cost: each pair of a family with operations is run once.
    """
    turned: defaultdict[Family, list[Relation]] = defaultdict(list)
    for each in relations:
        turned[_mask_names(each)].append(each)
    read = {fqn for each in relations for fqn in each.sources}
    families: defaultdict[Family, list[Relation]] = defaultdict(list)
    for pair in (*_list_pairs(pairing), *others):
        if pair.sources[0] not in read and (family := _mask_names(pair)) in turned:
            families[family].append(pair)
    for family, members in families.items():
        sure = [each for each in turned[family] if not each.by]
        if len(set(map(signature, sure))) != 1:
            continue
        made = [replace(sure[0], sources=one.sources, targets=one.targets, by=By.RULE.value) for one in members]
        # A pair that is certain says that the numbers make a difference, and nobody knows where.
        if all(map(verifier.is_true, made)):
            yield from made


def find_symmetric(pairing: Pairing, verifier: Verifier) -> frozenset[str]:
    """Return the paired keys that an operation leaves as they are, bit for bit."""
    pairs = {each.sources[0]: each for each in _list_pairs(pairing)}
    return frozenset(
        fqn
        for fqn, images in pairing.images.items()
        if fqn in pairs and any(verifier.is_true(Relation((fqn,), pairs[fqn].targets[:1], ops=ops)) for ops in images)
    )


def settle_renames(pairs: Mapping[str, str], pairing: Pairing) -> dict[str, Settled]:
    """Return what settled the pairs of symmetric tensors: the others of their family that are certain, or nothing."""
    families = {fqn: _mask_names(Relation((fqn,), (other,))) for fqn, other in pairs.items()}
    certain = {families[fqn] for fqn in pairs if fqn not in pairing.symmetric}
    return {
        fqn: Settled(other, By.RULE if families[fqn] in certain else By.SIMPLEST)
        for fqn, other in pairs.items()
        if fqn in pairing.symmetric
    }


def _list_pairs(pairing: Pairing) -> Iterator[Relation]:
    recorded = {*pairing.recorded_a, *pairing.recorded_b}
    for fqn, other in pairing.pairs.items():
        if recorded.isdisjoint((fqn, other)):  # no file holds these
            yield Relation((fqn,), (other,))
    for fqn, others in pairing.copies.items():
        if recorded.isdisjoint((fqn, *others)):
            yield Relation((fqn,), others, cut="copy")


def _mask_names(relation: Relation) -> Family:
    """Return the names with # for numbers."""
    return tuple(re.sub("[0-9]+", "#", fqn) for fqn in ("source", *relation.sources, "target", *relation.targets))
