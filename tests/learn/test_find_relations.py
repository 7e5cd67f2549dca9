"""Operations that are found by value: on the layouts of the packs, on random expressions, and never by chance."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import pytest
import torch
from exam import Memory
from hypothesis import given
from hypothesis import strategies as st
from run_relation import run_ops, run_relation
from torch import Tensor

import remapkit
from remapkit.authoring import find_relations as find_relations_module
from remapkit.authoring.find_relations import SPENT, Found, find_relations
from remapkit.authoring.find_siblings import BY_WEIGHT
from remapkit.authoring.pair_by_value import pair_by_value
from remapkit.authoring.relation import OpText
from remapkit.sources.declared import read_declared_source
from remapkit.tensors.from_torch import header_of


class Stored(Memory):
    """A checkpoint in memory, read in pieces that are no whole number of rows."""

    def chunks(self, fqn: str, size: int = 65521) -> Iterator[memoryview]:
        return super().chunks(fqn, size)


def store(name: str, tensors: Mapping[str, Tensor]) -> Stored:
    header = header_of(dict(tensors), name)
    raw = {fqn: tensor.contiguous().reshape(-1).view(torch.uint8) for fqn, tensor in tensors.items()}
    return Stored(name, {fqn: (header[fqn], raw[fqn].numpy().tobytes()) for fqn in tensors})


def find(a: Mapping[str, Tensor], b: Mapping[str, Tensor], limit: int | None = None) -> Found:
    one, other = store("a", a), store("b", b)
    pairing = pair_by_value(one, other)
    return find_relations(one, other, pairing.only_a, pairing.only_b, pairing.pairs, limit, copies=pairing.copies)


def judge(found: Found, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> set[str]:
    """Return the keys of B that the relations give, after comparing each byte with what torch makes of A."""
    reached: list[str] = []
    for relation in found.relations:
        for fqn, tensor in run_relation(relation, a).items():
            assert tensor.dtype == b[fqn].dtype, relation
            assert torch.equal(tensor, b[fqn]), relation
            reached.append(fqn)
    assert len(reached) == len(set(reached))
    assert not set(reached) & {*found.open_b, *found.undetermined}
    return set(reached)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------- random expressions

sizes = st.integers(2, 9)
shapes = st.lists(sizes, min_size=1, max_size=4).map(tuple)


@st.composite
def orders(draw: st.DrawFn) -> tuple[int, OpText]:
    """A size, and an operation on a dimension of it; `dim` is to be filled in."""
    kind = draw(st.sampled_from(["flip", "flip_halves", "roll", "index", "rope", "ungroup_qkv", "group_qkv"]))
    if kind == "flip":
        return draw(sizes), {"flip": {}}
    if kind == "flip_halves":
        return 2 * draw(sizes), {"flip_halves": {}}
    if kind == "roll":
        size = draw(st.integers(3, 20))
        return size, {"roll": {"by": draw(st.integers(1, size - 1))}}
    if kind == "index":
        order = draw(st.permutations(range(draw(sizes))))
        return len(order), {"index": {"order": list(order)}}
    kv_heads, share, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(st.integers(1, 4))
    heads = kv_heads * share
    if kind == "rope":
        to = draw(st.sampled_from(["half", "interleaved"]))
        return heads * head_dim, {"rope": {"to": to, "heads": heads, "head_dim": head_dim}}
    return (heads + 2 * kv_heads) * head_dim, {kind: {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}}


def with_dim(op: OpText, dim: int) -> OpText:
    assert not isinstance(op, str)
    ((name, value),) = op.items()
    assert isinstance(value, dict)
    return {name: {**value, "dim": dim}}


@st.composite
def reordered(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One tensor, one dimension of it in another order, then all dimensions, then another shape or dtype."""
    shape = list(draw(shapes))
    size, op = draw(orders())
    dim = draw(st.integers(0, len(shape) - 1))
    shape[dim] = size
    a = random(*shape, seed=draw(st.integers(0, 99)))
    b = run_ops(a, [with_dim(op, dim)]) if draw(st.booleans()) else a
    b = b.permute(draw(st.permutations(range(len(shape)))))
    if draw(st.booleans()):
        b = b.unsqueeze(draw(st.integers(0, len(shape))))
    a, b = (b, a) if draw(st.booleans()) else (a, b)
    if draw(st.booleans()):
        wide, narrow = (torch.float32, torch.bfloat16) if draw(st.booleans()) else (torch.float16, torch.float32)
        a, b = a.to(wide), b.to(wide).to(narrow)
    return {"x": a.contiguous()}, {"y": b.contiguous()}


@st.composite
def divided(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One tensor and its parts along a dimension, all of them turned or none, some of them put in another order."""
    shape = list(draw(st.lists(sizes, min_size=1, max_size=3)))
    dim = draw(st.integers(0, len(shape) - 1))
    # A vector of one element is a constant, which tells nothing.
    lengths = draw(st.lists(st.integers(1 if len(shape) > 1 else 2, 12), min_size=2, max_size=4))
    shape[dim] = sum(lengths)
    whole = random(*shape, seed=draw(st.integers(0, 99)))
    parts = list(whole.split(lengths, dim))
    if len(shape) > 1:
        place = draw(st.integers(0, len(parts) - 1))
        if lengths[place] % 2 == 0:
            parts[place] = parts[place].roll(lengths[place] // 2, dim)
        if draw(st.booleans()):
            order = draw(st.permutations(range(len(shape))))
            parts = [part.permute(order) for part in parts]
    return {"whole": whole}, {f"part.{n}": part.contiguous() for n, part in enumerate(parts)}


@st.composite
def stacked(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Experts stacked, of one matrix or several concatenated ones, turned or not."""
    count, width = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    shape = draw(st.tuples(sizes, sizes))
    parts = {f"{e}.w{n}": random(*shape, seed=100 * e + n) for e in range(count) for n in range(width)}
    dim = draw(st.integers(0, 1))
    groups = [torch.cat([parts[f"{e}.w{n}"] for n in range(width)], dim) for e in range(count)]
    whole = torch.stack(groups, 0)
    if draw(st.booleans()):
        whole = whole.transpose(1, 2)
    return {"whole": whole.contiguous()}, parts


expressions = st.one_of(
    reordered(),
    st.tuples(st.booleans(), st.one_of(divided(), stacked())).map(lambda one: one[1] if one[0] else one[1][::-1]),
)
Sides = tuple[dict[str, Tensor], dict[str, Tensor]]


@given(expressions)
def test_what_is_made_by_an_expression_is_found(sides: Sides) -> None:
    a, b = sides
    found = find(a, b)
    pairs = pair_by_value(store("a", a), store("b", b)).pairs
    assert judge(found, a, b) | set(pairs.values()) == set(b), found


@given(expressions, st.integers(0, 10**6))
def test_a_changed_element_is_never_covered(sides: Sides, place: int) -> None:
    a, b = sides
    changed = sorted(b)[place % len(b)]
    flat = b[changed].clone().reshape(-1)
    flat[place % len(flat)] += 64
    b = {**b, changed: flat.reshape(b[changed].shape)}
    found = find(a, b)
    assert changed not in judge(found, a, b)
    assert changed in found.open_b


@given(expressions, st.sampled_from([0.0, 1.0, 0.5]))
def test_constants_are_never_claimed(sides: Sides, value: float) -> None:
    a, b = ({fqn: torch.full_like(tensor, value) for fqn, tensor in side.items()} for side in sides)
    found = find(a, b)
    assert not found.relations
    assert not found.open_b


# ------------------------------------------------------------------------------------------------ the packs' layouts

PARAMS = {"llama_hf": 256, "llama_meta": 256, "flux_bfl": 192, "flux_diffusers": 192}
LAYOUTS = (
    *("flux_bfl", "flux_diffusers", "llama_hf", "llama_meta", "mixtral_fused", "mixtral_per_expert"),
    *("gpt2_hf", "gpt2_nanogpt", "vit_hf", "vit_timm", "wan21_dit", "wan21_dit_diffusers"),
    *("wan21_vae", "wan21_vae_diffusers", "wan22_pth", "wan22_diffusers"),
)


def make_sides(name: str, fill: Callable[[tuple[int, ...], int], Tensor]) -> Sides:
    """The first two blocks of a layout at a sixteenth of its sizes, and what its pack makes of them."""
    hidden = PARAMS.get(name)
    rules = remapkit.load(name, params=None if hidden is None else {"hidden": hidden})
    keys = read_declared_source(rules.file)
    assert keys is not None
    a = {}
    for fqn, spec in keys.items():
        number = next((int(part) for part in fqn.split(".") if part.isdigit()), 0)
        if number < 2 or "vae" in name or name.startswith("wan22"):
            shape = tuple(size // 16 if size >= 64 else size for size in spec.shape)
            a[fqn] = fill(shape, len(a))
    return a, {fqn: tensor.contiguous() for fqn, tensor in rules(a).items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_target_of_a_layout_is_found(name: str) -> None:
    a, b = make_sides(name, lambda shape, n: random(*shape, seed=n))
    pairs = pair_by_value(store("a", a), store("b", b)).pairs
    found = find(a, b)
    assert judge(found, a, b) | set(pairs.values()) == set(b)
    assert not any(relation.by for relation in found.relations)


@pytest.mark.parametrize("name", ["flux_bfl", "flux_diffusers", "vit_hf", "vit_timm"])
def test_biases_of_zeros_go_with_their_weights_and_it_is_said(name: str) -> None:
    a, b = make_sides(name, lambda shape, n: random(*shape, seed=n) if len(shape) > 1 else torch.zeros(shape))
    found = find(a, b)
    judge(found, a, b)
    joined = {fqn for relation in found.relations if not relation.by for fqn in relation.targets}
    by_weight = {fqn for relation in found.relations if relation.by == BY_WEIGHT for fqn in relation.targets}
    assert by_weight == {fqn.removesuffix("weight") + "bias" for fqn in joined}


@pytest.mark.parametrize("name", ["llama_hf", "mixtral_per_expert", "vit_timm"])
def test_half_precision_is_found_too(name: str) -> None:
    a, b = make_sides(name, lambda shape, n: random(*shape, seed=n).bfloat16())
    pairs = pair_by_value(store("a", a), store("b", b)).pairs
    assert judge(find(a, b), a, b) | set(pairs.values()) == set(b)


# --------------------------------------------------------------------------------------------------- single cases


def test_a_norm_that_stores_its_difference_to_one() -> None:
    a, b = {"norm": random(8), "back": random(8, seed=1)}, {}
    b = {"n": a["norm"] + 1, "m": a["back"] - 1}
    found = find(a, b)
    assert judge(found, a, b) == {"n", "m"}
    assert [relation.ops for relation in found.relations] == [({"add": 1},), ({"add": -1},)]


def test_a_convolution_becomes_a_matrix() -> None:
    a = {"patch": random(6, 3, 2, 4), "turned": random(6, 3, 2, 4, seed=1)}
    b = {"p": a["patch"].reshape(6, 24), "t": a["turned"].permute(0, 2, 3, 1).reshape(6, 24)}
    for one, other in ((a, b), (b, a)):
        assert judge(find(one, other), one, other) == set(other)


def test_a_paired_key_with_another_target_becomes_a_copy() -> None:
    a = {"embed": random(4, 5)}
    b = {"embed": a["embed"], "head": a["embed"].T.contiguous()}
    found = find(a, b)
    assert judge(found, a, b) == {"embed", "head"}
    assert found.relations[0].cut == "copy"


def test_two_halves_without_what_lies_between_become_slices() -> None:
    a = {"x": random(10, 4)}
    b = {"low": a["x"][:3].clone(), "high": a["x"][5:9].T.contiguous()}
    assert judge(find(a, b), a, b) == {"low", "high"}


def test_equal_parts_are_undetermined() -> None:
    twin = random(3, 4)
    a = {"q": twin, "k": twin.clone(), "v": random(3, 4, seed=1)}
    found = find(a, {"turned": twin.T.contiguous()})
    assert not found.relations
    assert found.undetermined == {"turned": "q and k have the same values"}


def test_a_long_list_of_indices_is_refused() -> None:
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    found = find({"x": random(100, 4)}, {"y": random(100, 4)[order]})
    assert not found.relations
    assert "no operation for" in found.open_b["y"]


def test_the_number_of_steps_is_bounded() -> None:
    a = {f"x.{n}": random(3, 4, seed=n) for n in range(20)}
    b = {f"y.{n}": random(3, 4, seed=n).T.contiguous() for n in range(20)}
    found = find(a, b, limit=10)
    assert found.steps <= 10
    assert "too many steps" in found.open_b["y.19"]
    assert judge(find(a, b), a, b) == set(b)


def test_the_steps_grow_with_the_keys_not_with_their_pairs() -> None:
    def count(number: int) -> int:
        a = {f"x.{n}": random(3, 4, seed=n) for n in range(number)}
        return find(a, {f"y.{n}": tensor.T.contiguous() for n, tensor in enumerate(a.values())}).steps

    assert count(40) == 2 * count(20)


@contextmanager
def count_instructions() -> Iterator[list[int]]:
    """Count the instructions of the interpreter: all work in Python, whoever does it."""
    counted = [0]

    def trace(frame: FrameType, event: str, _: object) -> object:
        frame.f_trace_opcodes = True
        counted[0] += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield counted
    finally:
        sys.settrace(before)


def make_open_vectors(n: int) -> Sides:
    x, y = ({f"{side}.{i}": random(3, seed=2 * i + place) for i in range(n)} for place, side in enumerate("xy"))
    return x, y


def make_twins(n: int) -> Sides:
    a = {f"x.{i}": torch.tensor([[1.0, 2], [3, 4]]) for i in range(n)}
    return a, {f"y.{i}": tensor.T.contiguous() for i, tensor in enumerate(a.values())}


def make_norms(n: int) -> Sides:
    a = {f"x.{i}": random(3, seed=i) for i in range(n)}
    return a, {f"y.{i}": tensor + 1 for i, tensor in enumerate(a.values())}


@pytest.mark.parametrize("make", [make_open_vectors, make_twins, make_norms])
def test_the_work_grows_with_the_keys_whether_it_is_a_step_or_not(make: Callable[[int], Sides]) -> None:
    def count(number: int) -> int:
        a, b = make(number)
        find(a, b)  # what is made once only
        with count_instructions() as counted:
            find(a, b)
        return counted[0]

    assert count(60) < 2.3 * count(30)


def test_large_views_cost_more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_relations_module, "ROWS_PER_STEP", 64)
    a = {"x": random(1024, 3)}
    b = {"low": a["x"][:512].clone(), "open": random(1024, seed=1)}
    assert find(a, b).steps >= 8 + 16
    assert find(a, b, limit=8).open_b == {"low": SPENT, "open": SPENT}


def test_equal_sums_in_every_row_and_column_are_not_enough() -> None:
    a, b = torch.zeros(600, 600), torch.zeros(600, 600)
    a[-3:, -3:] = torch.tensor([[1.0, 2, 3], [2, 3, 1], [3, 1, 2]])
    b[-3:, -3:] = torch.tensor([[1.0, 3, 2], [3, 2, 1], [2, 1, 3]])
    found = find({"x": a}, {"y": b})
    assert not found.relations
    assert found.open_b == {"y": "its rows are in A, but the operations that they suggest give other bytes"}


@given(st.integers(2, 4), st.integers(2, 4), st.lists(st.integers(1, 4), min_size=1, max_size=2))
def test_what_two_numbers_count_is_stacked_and_unstacked(layers: int, experts: int, shape: list[int]) -> None:
    keys = [(i, e) for i in range(layers) for e in range(experts)]
    each = {f"l.{i}.e.{e}.w": random(*shape, 3, seed=9 * i + e) for i, e in keys}
    whole = {"w": torch.stack(list(each.values())).reshape(layers, experts, *shape, 3)}
    assert judge(find(each, whole), each, whole) == {"w"}
    assert judge(find(whole, each), whole, each) == set(each)


@given(st.integers(2, 8), st.integers(0, 999))
def test_masks_with_as_many_ones_are_told_apart_by_their_rows(count: int, seed: int) -> None:
    ones = torch.zeros(12 * 17, dtype=torch.bool)
    ones[:100] = True
    generator = torch.Generator().manual_seed(seed)
    a = {f"l.{n}.m": ones[torch.randperm(len(ones), generator=generator)].reshape(12, 17) for n in range(count)}
    b = {f"h.{n}.m": mask.T.contiguous() for n, mask in enumerate(a.values())}
    found = find(a, b)
    assert judge(found, a, b) == set(b)
    assert {each.sources[0]: each.targets[0] for each in found.relations} == dict(zip(a, b, strict=True))


def test_a_row_that_occurs_twice_is_taken_where_the_next_one_is() -> None:
    row, q = random(4, seed=9), random(3, 4)
    a = {"q": q, "k": torch.stack([row, random(4, seed=1)]), "v": torch.stack([row, random(4, seed=2)])}
    b = {"qk": torch.cat([a["q"][:1], a["k"]])}
    found = find(a, b)
    assert judge(found, a, b) == {"qk"}
    assert found.relations[0].sources == ("q", "k")


@pytest.mark.parametrize(
    "op",
    [
        {"rope": {"to": "half", "heads": 3, "head_dim": 10, "dim": 0}},
        {"rope": {"to": "interleaved", "heads": 3, "head_dim": 10, "dim": 0}},
        {"group_qkv": {"heads": 6, "kv_heads": 3, "head_dim": 4, "dim": 0}},
        {"ungroup_qkv": {"heads": 6, "kv_heads": 3, "head_dim": 4, "dim": 0}},
        {"flip": {"dim": 0}},
        {"flip_halves": {"dim": 0}},
        {"roll": {"dim": 0, "by": 3}},
        {"rearrange": {"pattern": "(a b c) ... -> (b c a) ...", "b": 3, "c": 5}},
        {"index": {"dim": 0, "order": [3, 1, 2, 0]}},
    ],
    ids=str,
)
def test_an_order_gets_its_own_name(op: OpText) -> None:
    assert not isinstance(op, str)
    sizes = {"rope": 30, "group_qkv": 48, "ungroup_qkv": 48, "index": 4}
    a = {"x": random(sizes.get(next(iter(op)), 60), 3)}
    b = {"y": run_ops(a["x"], [op]).contiguous()}
    (relation,) = find(a, b).relations
    if "rearrange" in op:  # which axes are named is free: neighbours that stay together are one
        assert judge(find(a, b), a, b) == {"y"}
        assert "rearrange" in relation.ops[0]
    else:
        assert relation.ops == (op,)
