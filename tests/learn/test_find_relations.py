"""Operations that are found by value: on the layouts of the packs, on random expressions, and never by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from exam import Memory

import remapkit
from remapkit.authoring.find_relations import Found, find_relations
from remapkit.authoring.pair_by_value import pair_by_value
from remapkit.formats.manifest import read_manifest
from remapkit.tensors.from_torch import header_of

PACKS = Path(__file__).parents[2] / "rules"


def to_memory(name: str, tensors: Mapping[str, torch.Tensor]) -> Memory:
    header = header_of(dict(tensors), name)
    return Memory(
        name,
        {
            fqn: (header[fqn], tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            for fqn, tensor in tensors.items()
        },
    )


def find(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> Found:
    one, other = to_memory("a", a), to_memory("b", b)
    pairing = pair_by_value(one, other)
    return find_relations(one, other, pairing.only_a, pairing.only_b, pairing.pairs)
