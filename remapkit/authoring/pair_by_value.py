"""Pairing of the keys of two checkpoints by value: equal dtype, shape and bytes.

Tensors whose bytes occur under several keys cannot be paired by value, nor can constants (zeros, ones, one number),
which may be equal by chance. They are reported, never paired by position.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from remapkit.authoring.find_symmetric import Lines
from remapkit.authoring.relation import OpText
from remapkit.files.source_file import split_evenly
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import StateDictSpec, TensorSpec

_PIECE = 1 << 20
"""The approximate maximum of a tensor's bytes in memory at once."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """The result by value: `pairs` are certain; `alike` maps other keys of A to all keys of B with the same bytes.

    `alike` includes constants, even if there is one on each side; `numbers` are those of its keys that hold a single
    number with all its digits (0.0371.., not 0 or 1). `recorded_a` and `recorded_b` are names that the side only
    records as tied; they count as its keys. For pairs written by hand `by_value` is False: then nothing is known
    about the values of the other keys.
    """

    pairs: Mapping[str, str]
    alike: Mapping[str, tuple[str, ...]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    recorded_a: tuple[str, ...] = ()
    recorded_b: tuple[str, ...] = ()
    numbers: frozenset[str] = frozenset()
    by_value: bool = True
    matrices: frozenset[str] = frozenset()
    """Keys of `alike` with two dimensions and more: a constant does not show whether its elements moved."""
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    given: Mapping[str, bool] = field(default_factory=dict)
    """The sources of `pairs` that are there because the caller says so, and whether both have the same bytes."""
    images: Mapping[str, tuple[Ops, ...]] = field(default_factory=dict)
    """Keys of A with the operations that may leave them as they are: along their first elements, these do."""
    symmetric: frozenset[str] = frozenset()
    """Keys of A that an operation leaves as they are: their bytes do not show whether B has it."""


Ops = tuple[OpText, ...]


class PairableTensors(Protocol):
    """A source of tensors to pair: an open checkpoint."""

    def header(self) -> StateDictSpec:
        """Names, dtypes and shapes."""
        ...

    def chunks(self, fqn: str) -> Iterator[memoryview]:
        """The tensor's bytes, row-major and little-endian, in pieces."""
        ...


def pair_by_value(a: PairableTensors, b: PairableTensors) -> Pairing:
    """Pair two open checkpoints; both are read once, in bounded memory.

    Two keys are paired if no other key on either side has the same bytes, and these are not a constant. Bytes are
    compared by a digest of 160 bits. Raises `UnreadableCheckpoint` if data is missing (a manifest has none).
    """
    images: dict[str, tuple[Ops, ...]] = {}
    in_a, in_b = _group_by_content(a, images), _group_by_content(b)
    recorded_a, recorded_b = _add_recorded(in_a, in_b, a.header(), b.header())
    pairs: dict[str, str] = {}
    alike: dict[str, tuple[str, ...]] = {}
    copies: dict[str, tuple[str, ...]] = {}
    for content, fqns in in_a.items():
        others = in_b.get(content, [])
        if len(fqns) == len(others) == 1 and not content.is_constant:
            pairs[fqns[0]] = others[0]
        elif len(fqns) == len(others) == 2 and fqns[1] in recorded_a and others[1] in recorded_b:
            # One tensor under two names on both sides, and both record which name holds it.
            pairs |= zip(fqns, others, strict=True)
        elif len(fqns) == 1 and len(others) > 1 and not content.is_constant:
            copies[fqns[0]] = tuple(others)
        elif others:
            alike.update(dict.fromkeys(fqns, tuple(others)))
    return Pairing(
        {fqn: pairs[fqn] for fqn in (*a.header(), *recorded_a) if fqn in pairs},
        {fqn: alike[fqn] for fqn in (*a.header(), *recorded_a) if fqn in alike},
        tuple(fqn for content, fqns in in_a.items() if content not in in_b for fqn in fqns),
        tuple(fqn for content, fqns in in_b.items() if content not in in_a for fqn in fqns),
        recorded_a,
        recorded_b,
        frozenset(fqn for content, fqns in in_a.items() if content.is_number for fqn in fqns if fqn in alike),
        matrices=frozenset(fqn for fqn in alike if fqn in a.header() and len(a.header()[fqn].shape) > 1),
        copies={fqn: copies[fqn] for fqn in (*a.header(), *recorded_a) if fqn in copies},
        images={fqn: some for fqn, some in images.items() if fqn in pairs or fqn in copies},
    )


def add_given(pairing: Pairing, given: Mapping[str, str]) -> Pairing:
    """Return a pairing by value with pairs that the caller gave; they must not contradict it."""
    new = {fqn: other for fqn, other in given.items() if fqn not in pairing.pairs and fqn not in pairing.copies}
    made = set(new.values())
    return replace(
        pairing,
        pairs={**pairing.pairs, **new},
        alike={fqn: others for fqn, others in pairing.alike.items() if fqn not in new},
        only_a=tuple(fqn for fqn in pairing.only_a if fqn not in new),
        only_b=tuple(fqn for fqn in pairing.only_b if fqn not in made),
        given={fqn: other in pairing.alike.get(fqn, ()) for fqn, other in new.items()},
    )


def find_contradictions(pairing: Pairing, given: Mapping[str, str]) -> list[str]:
    """Return what values say against given pairs, each with both pairs.

    >>> find_contradictions(Pairing({"a": "x", "b": "y"}, {}, (), ()), {"a": "x", "b": "z", "c": "x"})
    ['b -> z: by value it is b -> y', 'c -> x: by value it is a -> x']
    """
    certain = {**{fqn: (other,) for fqn, other in pairing.pairs.items()}, **pairing.copies}
    makers = {other: fqn for fqn, others in certain.items() for other in others}
    found = []
    for fqn, other in given.items():
        if fqn in certain and other not in certain[fqn]:
            found.append(f"{fqn} -> {other}: by value it is {fqn} -> {' and '.join(certain[fqn])}")
        elif makers.get(other, fqn) != fqn:
            found.append(f"{fqn} -> {other}: by value it is {makers[other]} -> {other}")
    return found


class _Content(NamedTuple):
    """Equal for equal tensors.

    `is_constant`: all elements are equal. `is_number`: there is one element, with all its digits.
    """

    spec: TensorSpec
    digest: bytes
    is_constant: bool
    is_number: bool


def _add_recorded(
    in_a: Mapping[_Content, list[str]], in_b: Mapping[_Content, list[str]], a: StateDictSpec, b: StateDictSpec
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Add recorded names to a side if the other side has more names of that tensor.

    A record alone is not evidence, since metadata may contain any pairs; nor is a name that both sides record.
    """
    candidates = [
        {fqn: kept for fqn, kept in one.recorded.items() if fqn not in other.recorded}
        for one, other in ((a, b), (b, a))
    ]
    added: tuple[list[str], list[str]] = ([], [])
    for content in in_a:
        if content not in in_b:
            continue
        sides = [in_a[content], in_b[content]]
        names = [
            [fqn for fqn, kept in each.items() if kept in side] for each, side in zip(candidates, sides, strict=True)
        ]
        real = [len(side) for side in sides]
        for here, there in ((0, 1), (1, 0)):
            if real[there] + len(names[there]) > real[here]:
                sides[here] += names[here]
                added[here].extend(names[here])
    return tuple(added[0]), tuple(added[1])


def _group_by_content(
    values: PairableTensors, images: dict[str, tuple[Ops, ...]] | None = None
) -> Mapping[_Content, list[str]]:
    """Return the keys by what they hold; `images` takes the operations that may leave them as they are."""
    found: defaultdict[_Content, list[str]] = defaultdict(list)
    for fqn, spec in values.header().items():
        lines = None if images is None else Lines(spec)
        content = _digest_tensor(values, fqn, spec, lines)
        found[content].append(fqn)
        if images is not None and lines is not None and not content.is_constant:
            images |= {fqn: some} if (some := tuple(lines.list_images())) else {}
    return found


def _digest_tensor(values: PairableTensors, fqn: str, spec: TensorSpec, lines: Lines | None) -> _Content:
    """Compute the digest of a tensor's bytes, and whether they only repeat its first element; `lines` takes them."""
    width = math.lcm(DTYPE_BITS[spec.dtype], 8) // 8
    digest, first, is_constant = hashlib.blake2b(digest_size=20), b"", True
    for piece in split_evenly(values.chunks(fqn), width * (_PIECE // width)):
        digest.update(piece)
        if lines is not None:
            lines.add_piece(piece)
        first = first or bytes(piece[:width])
        # The second element decides for most tensors; only for the others the whole piece is compared.
        is_constant = is_constant and piece[width : 2 * width] in (first, b"")
        is_constant = is_constant and piece == first * (len(piece) // width)
    # The low half of a float is zero in 0, 1, 0.5 and other values that parameters are initialised with.
    is_number = spec.numel == 1 and spec.dtype in ("F32", "F64") and any(first[: width // 2])
    return _Content(spec, digest.digest(), is_constant, is_number)
