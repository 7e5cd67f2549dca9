"""Which key of one checkpoint is which key of another, told by their values: equal dtype, shape and bytes.

Tensors that several keys hold with equal bytes (zeros, ones) cannot be told apart by their values; they are reported
as such, never paired by their place.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from remapkit.checkpoint import Reader
from remapkit.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class Pairing:
    """What values say: `pairs` for certain; `alike` are keys of A with all the keys of B that hold the same bytes.

    `recorded_a` and `recorded_b` are names that the side only records as tied, and that count as keys of it.
    """

    pairs: Mapping[str, str]
    alike: Mapping[str, tuple[str, ...]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    recorded_a: tuple[str, ...] = ()
    recorded_b: tuple[str, ...] = ()


def pair_by_value(a: Reader, b: Reader) -> Pairing:
    """The pairing of two open checkpoints; each is read once, in bounded memory.

    Two keys are paired where no other key on either side holds the same bytes. Raises `UnreadableCheckpoint` where
    data is missing (a manifest has none).
    """
    in_a, in_b = _by_digest(a), _by_digest(b)
    recorded_a, recorded_b = _with_recorded(in_a, in_b, a.header(), b.header())
    pairs: dict[str, str] = {}
    alike: dict[str, tuple[str, ...]] = {}
    for digest, fqns in in_a.items():
        others = in_b.get(digest, [])
        if len(fqns) == len(others) == 1:
            pairs[fqns[0]] = others[0]
        elif len(fqns) == len(others) == 2 and fqns[1] in recorded_a and others[1] in recorded_b:
            # One tensor under two names on both sides, and both say which of them holds it.
            pairs |= zip(fqns, others, strict=True)
        elif others:
            alike.update(dict.fromkeys(fqns, tuple(others)))
    return Pairing(
        {fqn: pairs[fqn] for fqn in (*a.header(), *recorded_a) if fqn in pairs},
        alike,
        tuple(fqn for digest, fqns in in_a.items() if digest not in in_b for fqn in fqns),
        tuple(fqn for digest, fqns in in_b.items() if digest not in in_a for fqn in fqns),
        recorded_a,
        recorded_b,
    )


def _with_recorded(
    in_a: Mapping[object, list[str]], in_b: Mapping[object, list[str]], a: StateDictSpec, b: StateDictSpec
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Add the recorded names of both sides where the other side has more names of that tensor than this one.

    A record alone is no evidence: the metadata holds pairs of any meaning. What both sides record alike says nothing.
    """
    candidates = [
        {fqn: kept for fqn, kept in one.recorded.items() if fqn not in other.recorded}
        for one, other in ((a, b), (b, a))
    ]
    added: tuple[list[str], list[str]] = ([], [])
    for digest in in_a.keys() & in_b.keys():
        sides = [in_a[digest], in_b[digest]]
        names = [
            [fqn for fqn, kept in each.items() if kept in side] for each, side in zip(candidates, sides, strict=True)
        ]
        real = [len(side) for side in sides]
        for here, there in ((0, 1), (1, 0)):
            if real[there] + len(names[there]) > real[here]:
                sides[here] += names[here]
                added[here].extend(names[here])
    return tuple(added[0]), tuple(added[1])


def _by_digest(reader: Reader) -> Mapping[object, list[str]]:
    found: defaultdict[object, list[str]] = defaultdict(list)
    for fqn, spec in reader.header().items():
        digest = hashlib.blake2b(digest_size=20)
        for chunk in reader.chunks(fqn):
            digest.update(chunk)
        found[spec, digest.digest()].append(fqn)
    return found
