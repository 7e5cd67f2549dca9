"""Random pairs of checkpoints: what is claimed is true, equal keys are never lost, each key is accounted for."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from hypothesis import given
from hypothesis import strategies as st
from run_relation import DTYPES, run_relation
from test_find_relations import store
from torch import Tensor

from remapkit.authoring.find_rounded import find_operations
from remapkit.authoring.pair_by_value import pair_by_value

Side = dict[str, Tensor]


def make_value(rng: random.Random, shape: tuple[int, ...]) -> Tensor:
    """Random values mostly; few different ones, or one."""
    values = torch.Generator().manual_seed(rng.randrange(10**6))
    kind = rng.choice(["random"] * 5 + ["few", "zeros", "ones"])
    if kind == "random":
        made = torch.randn(shape, generator=values)
    elif kind == "few":
        made = torch.randint(0, 3, shape, generator=values).float()
    else:
        made = torch.full(shape, float(kind == "ones"))
    return made.to(rng.choice([torch.float32] * 4 + [torch.float16, torch.bfloat16]))


def apply_step(rng: random.Random, x: Tensor) -> Tensor:
    kind = rng.choice(
        ["same", "same", "permute", "flip", "slice", "rows", "add", "cast", "roll", "flat", "unsqueeze"]
    )
    if kind == "permute":
        return x.permute(rng.sample(range(x.dim()), x.dim()))
    if kind == "add":
        return x + rng.choice([1, -1])
    if kind == "cast":
        return x.to(rng.choice([torch.float32, torch.float16, torch.bfloat16]))
    if kind == "flat":
        return x.reshape(-1)
    if kind == "unsqueeze":
        return x.unsqueeze(rng.randint(0, x.dim()))
    if not x.dim() or x.shape[0] < 2:
        return x
    if kind == "flip":
        return x.flip(rng.randrange(x.dim()))
    if kind == "slice":
        start = rng.randrange(x.shape[0])
        return x[start : rng.randrange(start, x.shape[0]) + 1]
    if kind == "rows":
        return x[[rng.randrange(x.shape[0]) for _ in range(x.shape[0])]]
    return x.roll(rng.randrange(1, 4), 0) if kind == "roll" else x


def make_pair(seed: int) -> tuple[Side, Side]:
    """A, with twins and constants, and B: several targets of most keys, and joins of some."""
    rng = random.Random(seed)
    a: Side = {}
    lengths = [rng.choice([0, 1, 1, 2, 2, 3, 4]) for _ in range(2)]
    shapes = [tuple(rng.choice([1, 2, 3, 4, 6]) for _ in range(length)) for length in lengths]
    for module in rng.sample("qkvone", rng.randint(1, 5)):
        shape = rng.choice(shapes)
        a[f"{module}.weight"] = make_value(rng, shape)
        if rng.random() < 0.4:
            a[f"{module}.bias"] = make_value(rng, shape[:1])
    for fqn in a:
        if rng.random() < 0.12:
            a[fqn] = a[rng.choice(list(a))]
    b: Side = {}
    for fqn, tensor in a.items():
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            b[f"t{len(b)}.{fqn.partition('.')[2]}"] = apply_step(rng, tensor)
    first = rng.choice(list(a.values()))
    parts = [each for each in a.values() if (each.shape, each.dtype) == (first.shape, first.dtype)]
    if len(parts) > 1 and first.dim():
        b["joined"] = torch.cat(parts) if rng.random() < 0.5 else torch.stack(parts)
    return pack(a), pack(b)


def pack(side: Mapping[str, Tensor]) -> Side:
    """Copy the tensors to memory of their own; `contiguous` leaves odd strides where a size is 1."""
    return {fqn: tensor.reshape(-1).clone().reshape(tensor.shape) for fqn, tensor in side.items()}


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Compare bit for bit, NaN and the sign of zero included."""
    raw = [x.contiguous().reshape(-1).view(torch.uint8) for x in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*raw)


@given(st.integers(0, 10**9))
def test_what_is_claimed_is_true_and_no_equal_key_is_lost(seed: int) -> None:
    a, b = make_pair(seed)
    one, other = store("a", a), store("b", b)
    pairing = pair_by_value(one, other)
    found = find_operations(one, other, pairing)
    read = [fqn for each in found.relations for fqn in dict.fromkeys(each.sources)]
    reached = [fqn for each in found.relations for fqn in each.targets]
    assert len(read) == len(set(read)) and len(reached) == len(set(reached))
    for each in found.relations:
        for fqn, made in run_relation(each, a).items():
            wanted = b[fqn]
            if each.rounded:
                made, wanted = made.to(DTYPES[each.rounded]), wanted.to(DTYPES[each.rounded])
            assert is_equal(made, wanted), each
    equals = {fqn: (target,) for fqn, target in pairing.pairs.items()} | dict(pairing.copies)
    for each in found.relations:
        for fqn in each.sources:
            assert set(equals.get(fqn, ())) <= set(each.targets), each
    assert set(found.reasons) == set(pairing.only_b) - set(reached)
