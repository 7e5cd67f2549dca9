"""Pairs that values alone leave open: constants, and tensors whose bytes occur under several keys.

Every pair settled here has equal bytes on both sides. It is likely but not certain to be the same weight, so such
pairs are reported.
"""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from remapkit.authoring.pair_by_value import Pairing
from remapkit.authoring.settle_parents import propose_by_parent
from remapkit.rules.model import CompiledRules


class By(enum.Enum):
    """The evidence for a pair that values leave open; completes the phrase "paired because ..."."""

    RULE = "the rules learned from other keys map them this way"
    MODULE = "the rest of their module was paired this way"
    PARENT = "all paired tensors around them went to one parent module, and nothing else there fits"
    NAME = "both sides use the same name"
    GIVEN = "the given pairs say so"
    GIVEN_ONLY = "the given pairs say so, although their values differ"
    NUMBER = "both sides hold the same single number, and no other key does"
    SIMPLEST = "an operation leaves them as they are, and renaming is simpler"


@dataclass(frozen=True, slots=True)
class Settled:
    """The target of a key whose values are constant or occur under several keys, and the evidence for it."""

    target: str
    by: By


Alike = Mapping[str, Collection[str]]


def settle_keys(
    rules: CompiledRules | None, pairs: Mapping[str, str], alike: Alike, pairing: Pairing
) -> dict[str, Settled]:
    """Return the keys of `alike` that the strongest evidence settles: rules, the rest of the module, names, numbers.

    `rules` is None if there are no pairs yet. For pairs written by hand only rules count: there are no values to
    support weaker evidence. One kind of evidence at a time: the new pairs may let the rules decide the rest.
    """
    found = _select_agreed(_propose_by_rules(rules, alike), pairs, alike) if rules is not None else {}
    if found or not pairing.by_value:
        return {fqn: Settled(other, By.RULE) for fqn, other in found.items()}
    proposals: tuple[tuple[By, Callable[[], dict[str, str]]], ...] = (
        (By.MODULE, lambda: _propose_by_module(pairs, alike)),
        (By.PARENT, lambda: propose_by_parent(pairs, alike, pairing.matrices)),
        (By.NAME, lambda: _drop_contradicted({fqn: fqn for fqn in alike}, pairs)),
        (By.NUMBER, lambda: _drop_contradicted(_propose_by_number(alike, pairing.numbers), pairs)),
    )
    for by, proposed in proposals:
        if found := _select_agreed(proposed(), pairs, alike):
            return {fqn: Settled(other, by) for fqn, other in found.items()}
    return {}


def _select_agreed(proposed: Mapping[str, str], pairs: Mapping[str, str], alike: Alike) -> dict[str, str]:
    """Return the proposed pairs with equal values whose target is free and proposed only once."""
    reached = set(pairs.values())
    found = {fqn: other for fqn, other in proposed.items() if other in alike[fqn] and other not in reached}
    twice = {other for other, count in Counter(found.values()).items() if count > 1}
    return {fqn: other for fqn, other in found.items() if other not in twice}


def _propose_by_rules(rules: CompiledRules, alike: Iterable[str]) -> dict[str, str]:
    """Propose the targets that the current rules give to keys that share their values with others."""
    found: dict[str, str] = {}
    for fqn in alike:
        targets = [match.target for match in rules.match(fqn)]
        if len(targets) == 1 and targets[0] is not None:
            found[fqn] = targets[0]
    return found


def _propose_by_module(pairs: Mapping[str, str], alike: Iterable[str]) -> dict[str, str]:
    """Pair the bias like its weight: if all paired leaves of a module kept their names and went to one module."""
    homes: defaultdict[str, set[str | None]] = defaultdict(set)
    for fqn, other in pairs.items():
        (module, _, leaf), (home, _, other_leaf) = fqn.rpartition("."), other.rpartition(".")
        homes[module].add(home if leaf == other_leaf else None)
    found: dict[str, str] = {}
    for fqn in alike:
        module, _, leaf = fqn.rpartition(".")
        known = [home for home in homes[module] if home is not None]
        if len(known) == len(homes[module]) == 1:
            found[fqn] = f"{known[0]}.{leaf}" if known[0] else leaf
    return found


def _propose_by_number(alike: Alike, numbers: Collection[str]) -> dict[str, str]:
    """Pair single-number tensors that occur under exactly one key on each side."""
    ones = {fqn: next(iter(others)) for fqn, others in alike.items() if fqn in numbers and len(others) == 1}
    holders = Counter(ones.values())
    return {fqn: other for fqn, other in ones.items() if holders[other] == 1}


def _drop_contradicted(proposed: Mapping[str, str], pairs: Mapping[str, str]) -> dict[str, str]:
    """Drop proposed pairs whose module went to another module, or whose target module came from another one."""
    to: defaultdict[str, set[str]] = defaultdict(set)
    came: defaultdict[str, set[str]] = defaultdict(set)
    for fqn, other in pairs.items():
        module, home = _strip_leaf(fqn), _strip_leaf(other)
        to[module].add(home)
        came[home].add(module)
    return {
        fqn: other
        for fqn, other in proposed.items()
        if _is_consistent(_strip_leaf(other), to.get(_strip_leaf(fqn)))
        and _is_consistent(_strip_leaf(fqn), came.get(_strip_leaf(other)))
    }


def _is_consistent(module: str, known: Collection[str] | None) -> bool:
    # Keys without a module have nothing else in common: no evidence either way.
    return known is None or not module or module in known


def _strip_leaf(fqn: str) -> str:
    return fqn.rpartition(".")[0]
