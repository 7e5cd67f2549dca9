"""Which key is which where values leave it open: constants, and tensors that several keys hold with the same bytes.

Whatever is settled here has equal bytes on both sides; that it is the same weight is likely, and said, not certain.
"""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from remapkit.authoring.pair_by_value import Pairing
from remapkit.rules.model import CompiledRules


class By(enum.Enum):
    """What settled a pair that values leave open."""

    RULE = "the rules for other keys lead there"
    MODULE = "the rest of the module went there"
    NAME = "the key has the same name on both sides"
    NUMBER = "both hold the same single number, and no other key does"


@dataclass(frozen=True, slots=True)
class Settled:
    """Where a key goes whose values occur under several keys, or are a constant; and what says so."""

    target: str
    by: By


Alike = Mapping[str, Collection[str]]


def settle_keys(
    rules: CompiledRules | None, pairs: Mapping[str, str], alike: Alike, pairing: Pairing
) -> dict[str, Settled]:
    """The keys of `alike` that the strongest evidence settles: rules, the rest of the module, names, numbers.

    `rules` are None where there is no pair yet. Of hand-written pairs only what the rules say: there are no values
    that would back anything else.
    """
    found = _select_agreed(_propose_by_rules(rules, alike), pairs, alike) if rules is not None else {}
    if found or not pairing.by_value:
        return {fqn: Settled(other, By.RULE) for fqn, other in found.items()}
    proposals: tuple[tuple[By, Callable[[], dict[str, str]]], ...] = (
        (By.MODULE, lambda: _propose_by_module(pairs, alike)),
        (By.NAME, lambda: _drop_contradicted({fqn: fqn for fqn in alike}, pairs)),
        (By.NUMBER, lambda: _drop_contradicted(_propose_by_number(alike, pairing.numbers), pairs)),
    )
    for by, proposed in proposals:
        if found := _select_agreed(proposed(), pairs, alike):
            return {fqn: Settled(other, by) for fqn, other in found.items()}
    return {}


def _select_agreed(proposed: Mapping[str, str], pairs: Mapping[str, str], alike: Alike) -> dict[str, str]:
    """Those of the proposed pairs whose values are equal, and whose target is free and proposed once."""
    reached = set(pairs.values())
    found = {fqn: other for fqn, other in proposed.items() if other in alike[fqn] and other not in reached}
    twice = {other for other, count in Counter(found.values()).items() if count > 1}
    return {fqn: other for fqn, other in found.items() if other not in twice}


def _propose_by_rules(rules: CompiledRules, alike: Iterable[str]) -> dict[str, str]:
    """Where the rules so far lead keys that share their values with others."""
    found: dict[str, str] = {}
    for fqn in alike:
        targets = [match.target for match in rules.match(fqn)]
        if len(targets) == 1 and targets[0] is not None:
            found[fqn] = targets[0]
    return found


def _propose_by_module(pairs: Mapping[str, str], alike: Iterable[str]) -> dict[str, str]:
    """Where the rest of the module went, leaf by leaf under the same name: its bias goes there too."""
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
    """Single numbers that one key has on each side."""
    ones = {fqn: next(iter(others)) for fqn, others in alike.items() if fqn in numbers and len(others) == 1}
    holders = Counter(ones.values())
    return {fqn: other for fqn, other in ones.items() if holders[other] == 1}


def _drop_contradicted(proposed: Mapping[str, str], pairs: Mapping[str, str]) -> dict[str, str]:
    """The proposed pairs that no other pair of either module contradicts: it went, or came, elsewhere."""
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
    # What has no module stands beside whatever else has none: that says nothing.
    return known is None or not module or module in known


def _strip_leaf(fqn: str) -> str:
    return fqn.rpartition(".")[0]
