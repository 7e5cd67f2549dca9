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


@dataclass(frozen=True, slots=True)
class Pairing:
    """What values say: `pairs` for certain; `alike` are keys of A with all the keys of B that hold the same bytes."""

    pairs: Mapping[str, str]
    alike: Mapping[str, tuple[str, ...]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def pair_by_value(a: Reader, b: Reader) -> Pairing:
    """The pairing of two open checkpoints; each is read once, in bounded memory.

    Two keys are paired where no other key on either side holds the same bytes. Raises `UnreadableCheckpoint` where
    data is missing (a manifest has none).
    """
    in_a, in_b = _by_digest(a), _by_digest(b)
    pairs: dict[str, str] = {}
    alike: dict[str, tuple[str, ...]] = {}
    for digest, fqns in in_a.items():
        others = in_b.get(digest, [])
        if len(fqns) == len(others) == 1:
            pairs[fqns[0]] = others[0]
        elif others:
            alike.update(dict.fromkeys(fqns, tuple(others)))
    return Pairing(
        {fqn: pairs[fqn] for fqn in a.header() if fqn in pairs},
        alike,
        tuple(fqn for digest, fqns in in_a.items() if digest not in in_b for fqn in fqns),
        tuple(fqn for digest, fqns in in_b.items() if digest not in in_a for fqn in fqns),
    )


def _by_digest(reader: Reader) -> Mapping[object, list[str]]:
    found: defaultdict[object, list[str]] = defaultdict(list)
    for fqn, spec in reader.header().items():
        digest = hashlib.blake2b(digest_size=20)
        for chunk in reader.chunks(fqn):
            digest.update(chunk)
        found[spec, digest.digest()].append(fqn)
    return found
