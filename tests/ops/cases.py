"""Random operations that fit random tensors, and what each must give, said again with torch in other words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from remapkit.ops.call_reader import CallReader
from remapkit.ops.calls import Call
from remapkit.rulefile.read import read_text
from remapkit.rulefile.syntax import WrittenOp
from remapkit.tensors.from_torch import TORCH_DTYPES, get_dtype_name
from remapkit.tensors.spec import TensorSpec

LAYOUT_DTYPES = ("F32", "BF16", "F16", "F64", "F8_E4M3", "U8", "I8", "I16", "U16", "I32", "I64", "BOOL", "C64")
FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Case:
    """An operation as a rule file has it, a tensor that it fits, and the expected result."""

    written: Any
    tensor: torch.Tensor
    expected: torch.Tensor
    params: Mapping[str, int]

    @property
    def spec(self) -> TensorSpec:
        return spec_of(self.tensor)

    @property
    def call(self) -> Call:
        return call_of(self.written, tuple(self.params))


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(get_dtype_name(tensor.dtype), tuple(tensor.shape))


def call_of(written: Any, params: tuple[str, ...] = ()) -> Call:
    """What a rule file makes of an operation written like this."""
    import json

    text = f"remapkit: 1\nname: t\nrules:\n  - {{id: r, path: a, to: b, ops: [{json.dumps(written)}]}}\n"
    pipeline = read_text(text).rules[0].pipeline
    assert pipeline is not None
    problems: list[Any] = []
    (call,) = CallReader(dict.fromkeys(params), problems).calls(pipeline.ops)
    assert not problems, problems
    assert isinstance(pipeline.ops[0], WrittenOp)
    return call


def random_tensor(dtype: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random bytes as a tensor: every pattern of bits, NaN and infinities included."""
    generator = torch.Generator().manual_seed(seed)
    wanted = TORCH_DTYPES[dtype]
    count = TensorSpec(dtype, shape).nbytes
    raw = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    if dtype == "BOOL":
        raw = raw % 2
    return raw.view(wanted).reshape(shape) if count else torch.empty(shape, dtype=wanted)


def raw(tensor: torch.Tensor) -> bytes:
    """The tensor's bytes, row-major."""
    return bytes(opaque(tensor.detach()).numpy().tobytes())


def opaque(tensor: torch.Tensor) -> torch.Tensor:
    """As integers of the same width, which torch can move about whatever the dtype."""
    width = tensor.element_size()
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width])


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
seeds = st.integers(0, 1 << 30)
Draw = Callable[[Any], Any]


def _layout(
    draw: Draw,
    shape: tuple[int, ...],
    written: Any,
    oracle: Callable[[torch.Tensor], torch.Tensor],
    params: Mapping[str, int] | None = None,
) -> Case:
    tensor = random_tensor(draw(st.sampled_from(LAYOUT_DTYPES)), shape, draw(seeds))
    expected = oracle(opaque(tensor)).contiguous().view(tensor.dtype)
    return Case(written, tensor, expected, params or {})


def _dim(draw: Draw, rank: int) -> tuple[int, int]:
    """A dimension as written (maybe counted from the end), and counted from 0."""
    dim = draw(st.integers(0, rank - 1))
    return (dim - rank if draw(st.booleans()) else dim), dim


@st.composite
def transposes(draw: Draw) -> Case:
    if draw(st.booleans()):
        rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        return _layout(draw, (rows, columns), "transpose", lambda x: x.t())
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple))
    one, other = draw(st.permutations(range(len(shape))))[:2]
    return _layout(draw, shape, {"transpose": [one, other]}, lambda x: x.transpose(one, other))


@st.composite
def permutes(draw: Draw) -> Case:
    shape = draw(shapes)
    order = draw(st.permutations(range(len(shape))))
    return _layout(draw, shape, {"permute": order}, lambda x: x.permute(*order))


@st.composite
def reshapes(draw: Draw) -> Case:
    shape, one, other = draw(shapes), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    old = (*shape, one * other)
    new = (one, *shape, other)
    left = draw(st.integers(0, len(new)))
    short = [-1 if n == left else size for n, size in enumerate(new)]
    written = {"reshape": short} if draw(st.booleans()) else {"reshape": {"from": list(old), "to": short}}
    return _layout(draw, old, written, lambda x: x.reshape(new))


@st.composite
def squeezes(draw: Draw) -> Case:
    shape = list(draw(shapes))
    at = draw(st.integers(0, len(shape)))
    long = (*shape[:at], 1, *shape[at:])
    if draw(st.booleans()):
        return _layout(draw, long, {"squeeze": at if draw(st.booleans()) else [at]}, lambda x: x.squeeze(at))
    return _layout(draw, tuple(shape), {"unsqueeze": at}, lambda x: x.unsqueeze(at))


@st.composite
def slices(draw: Draw) -> Case:
    shape = draw(shapes)
    dim, at = _dim(draw, len(shape))
    start = draw(st.integers(0, shape[at] - 1))
    stop = draw(st.integers(start + 1, shape[at]))
    written = {"slice": {"dim": dim, "start": start, "stop": stop}}
    return _layout(draw, shape, written, lambda x: x.narrow(at, start, stop - start))


@st.composite
def pads(draw: Draw) -> Case:
    shape = draw(shapes)
    dim, at = _dim(draw, len(shape))
    more = draw(st.integers(0, 3))
    dtype = draw(st.sampled_from(("F32", "BF16", "I32", "U8", "BOOL")))
    tensor = random_tensor(dtype, shape, draw(seeds))
    ends = [0, 0] * (len(shape) - 1 - at) + [0, more]
    expected = torch.nn.functional.pad(tensor, ends, value=1)
    return Case({"pad": {"dim": dim, "to": shape[at] + more, "value": 1}}, tensor, expected, {})


@st.composite
def flips(draw: Draw) -> Case:
    shape = list(draw(shapes))
    dim, at = _dim(draw, len(shape))
    shape[at] *= 2
    written: Any = {"flip_halves": {"dim": dim}}
    if at == 0 and draw(st.booleans()):
        written = "flip_halves"
    return _layout(draw, tuple(shape), written, lambda x: torch.cat(x.chunk(2, at)[::-1], at))


@st.composite
def nothings(draw: Draw) -> Case:
    return _layout(draw, draw(shapes), "zeros", torch.zeros_like)


def _along(x: torch.Tensor, dim: int, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What `change` makes of the rows, done along another dimension."""
    moved = x.movedim(dim, 0).contiguous()
    return change(moved).reshape(moved.shape).movedim(0, dim)


@st.composite
def turns(draw: Draw) -> Case:
    shape = draw(shapes)
    dim, at = _dim(draw, len(shape))
    size = shape[at]
    kind = draw(st.sampled_from(("flip", "roll", "index")))
    if kind == "flip":
        written: Any = "flip" if at == 0 and draw(st.booleans()) else {"flip": {"dim": dim}}
        return _layout(draw, shape, written, lambda x: x.flip(at))
    if kind == "roll":
        by = draw(st.integers(-7, 7))
        number: Any = draw(st.sampled_from((by, "n", "n + 0")))
        return _layout(draw, shape, {"roll": {"dim": dim, "by": number}}, lambda x: x.roll(by, at), {"n": by})
    orders = st.permutations(range(size)) | st.lists(st.integers(0, size - 1), min_size=1, max_size=6)
    order = draw(orders)
    if sorted(order) == list(range(len(order))) and len(order) < size:  # which is refused: it looks like all of them
        order = [*order, size - 1]
    return _layout(draw, shape, {"index": {"dim": dim, "order": order}}, lambda x: x[(slice(None),) * at + (order,)])


def _in_groups(draw: Draw, axes: Sequence[str], rest: bool) -> list[tuple[str, ...]]:
    """Axes in parentheses or not, with dimensions of size 1 among them, and `...` somewhere."""
    groups: list[tuple[str, ...]] = []
    for axis in axes:
        if groups and draw(st.booleans()):
            groups[-1] = (*groups[-1], axis)
        else:
            groups.append((axis,))
    for extra in draw(st.sampled_from(((), (), ((),), ((), ())))):
        groups.insert(draw(st.integers(0, len(groups))), extra)
    if rest:
        groups.insert(draw(st.integers(0, len(groups))), ("...",))
    return groups


def _write_side(draw: Draw, groups: Sequence[tuple[str, ...]]) -> str:
    def write(group: tuple[str, ...]) -> str:
        if not group:
            return draw(st.sampled_from(("1", "()")))
        return group[0] if len(group) == 1 and draw(st.booleans() | st.just(True)) else f"({' '.join(group)})"

    return " ".join("..." if group == ("...",) else write(group) for group in groups)


@st.composite
def rearrangements(draw: Draw) -> Case:
    axes = draw(st.permutations(("a", "b", "head_2", "two", "Q")))[: draw(st.integers(1, 5))]
    sizes = {axis: draw(st.integers(1, 3)) for axis in axes}
    rest = draw(st.sampled_from((None, None, (), (2,), (1, 2))))
    left = _in_groups(draw, axes, rest is not None)
    same = draw(st.booleans())  # the same dimensions, their axes in another order
    groups = [tuple(draw(st.permutations(group))) for group in left]
    right = draw(st.permutations(groups)) if same else _in_groups(draw, draw(st.permutations(axes)), rest is not None)
    given = {axis: sizes[axis] for group in left for axis in (group[1:] if len(group) > 1 else ()) if axis != "..."}
    given.update({axis: sizes[axis] for axis in axes if axis not in given and draw(st.booleans())})
    numbers = {axis: f"n{at}" if at % 2 else size for at, (axis, size) in enumerate(given.items())}
    params = {f"n{at}": size for at, size in enumerate(given.values()) if at % 2}
    shape: tuple[int, ...] = ()
    for group in left:
        shape += rest or () if group == ("...",) else (math.prod(sizes[axis] for axis in group),)
    pattern = f"{_write_side(draw, left)} -> {_write_side(draw, right)}"
    written = {"pattern": pattern, **numbers} if numbers or draw(st.booleans()) else pattern
    sizes.update({f"...{at}": size for at, size in enumerate(rest or ())})
    sides = [_spell_out(side, len(rest or ())) for side in (left, right)]
    return _layout(draw, shape, {"rearrange": written}, lambda x: rearranged(x, sides[0], sides[1], sizes), params)


def _spell_out(groups: Sequence[tuple[str, ...]], rest: int) -> list[tuple[str, ...]]:
    """The groups with an axis for each dimension of `...`."""
    more = [(f"...{at}",) for at in range(rest)]
    return [each for group in groups for each in (more if group == ("...",) else [group])]


def rearranged(
    x: torch.Tensor, left: Sequence[tuple[str, ...]], right: Sequence[tuple[str, ...]], sizes: Mapping[str, int]
) -> torch.Tensor:
    """The definition of rearrange: every element by its index along each axis, one by one."""
    out = torch.empty([math.prod(sizes[axis] for axis in group) for group in right], dtype=x.dtype)
    for values in itertools.product(*(range(size) for size in sizes.values())):
        index = dict(zip(sizes, values, strict=True))
        there, here = (
            tuple(sum(index[axis] * math.prod(sizes[inner] for inner in group[at + 1 :])
                      for at, axis in enumerate(group)) for group in side)
            for side in (right, left)
        )  # fmt: skip
        out[there] = x[here]
    return out


@st.composite
def ropes(draw: Draw) -> Case:
    heads, half = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = list(draw(shapes))
    dim, at = _dim(draw, len(shape))
    shape[at] = heads * half * 2
    to = draw(st.sampled_from(("half", "interleaved")))
    # transformers' own words for Meta's checkpoints: view(heads, half, 2, ...).transpose(1, 2)
    split = (heads, half, 2, -1) if to == "half" else (heads, 2, half, -1)
    written = {"rope": {"to": to, "heads": "h", "head_dim": "2*half", "dim": dim}}
    change = lambda rows: rows.view(split).transpose(1, 2)  # noqa: E731
    return _layout(draw, tuple(shape), written, lambda x: _along(x, at, change), {"h": heads, "half": half})


@st.composite
def qkvs(draw: Draw) -> Case:
    kv, share, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = list(draw(shapes))
    dim, at = _dim(draw, len(shape))
    shape[at] = kv * (share + 2) * size

    def ungroup(rows: torch.Tensor) -> torch.Tensor:
        groups = rows.reshape(kv, share + 2, size, -1)
        return torch.cat(
            [groups[:, :share].flatten(0, 2), groups[:, share].flatten(0, 1), groups[:, -1].flatten(0, 1)]
        )

    def group(rows: torch.Tensor) -> torch.Tensor:
        q, k, v = rows.reshape(rows.shape[0], -1).split([kv * share * size, kv * size, kv * size])
        parts = (q.view(kv, share, size, -1), k.view(kv, 1, size, -1), v.view(kv, 1, size, -1))
        return torch.cat(parts, 1)

    numbers: dict[str, Any] = {"heads": "kv*share", "kv_heads": "kv", "head_dim": size, "dim": dim}
    if share == 1 and draw(st.booleans()):
        del numbers["kv_heads"]
    name, change = draw(st.sampled_from((("ungroup_qkv", ungroup), ("group_qkv", group))))
    params = {"kv": kv, "share": share}
    return _layout(draw, tuple(shape), {name: numbers}, lambda x: _along(x, at, change), params)


@st.composite
def casts(draw: Draw) -> Case:
    eights = ("F8_E4M3", "F8_E5M2")
    old, new = draw(st.sampled_from((*FLOATS, *eights))), draw(st.sampled_from((*FLOATS, *eights)))
    if draw(st.booleans()):
        old, new = draw(st.sampled_from((("I8", "I32"), ("U8", "I16"), ("U8", "U32"), ("I32", "I64"))))
    tensor = random_tensor(old, draw(shapes), draw(seeds))
    written = {"cast": new} if draw(st.booleans()) else {"cast": {"from": old, "to": new}}
    return Case(written, tensor, tensor.to(TORCH_DTYPES[new]), {})


@st.composite
def sums(draw: Draw) -> Case:
    tensor = random_tensor(draw(st.sampled_from(FLOATS)), draw(shapes), draw(seeds))
    number = draw(st.sampled_from((2, 0.5, -1, 3, 0.1, 1 / 3, 1, 1e-3)))
    # Double precision holds every product and sum of single ones; what is rounded twice comes to the same.
    single = tensor.dtype != torch.float64
    wide, constant = tensor.to(torch.float64), torch.tensor(number, dtype=torch.float32 if single else torch.float64)
    if draw(st.booleans()):
        made = wide * constant.double()
        return Case({"scale": number}, tensor, (made.float() if single else made).to(tensor.dtype), {})
    made = wide + constant.double()
    return Case({"add": number}, tensor, (made.float() if single else made).to(tensor.dtype), {})


LAYOUTS = {
    "transpose": transposes(),
    "permute": permutes(),
    "reshape": reshapes(),
    "squeeze": squeezes(),
    "slice": slices(),
    "pad": pads(),
    "flip_halves": flips(),
    "turns": turns(),
    "zeros": nothings(),
    "rearrange": rearrangements(),
    "rope": ropes(),
    "qkv": qkvs(),
}
CALCULATIONS = {"cast": casts(), "sums": sums()}
EVERY = {**LAYOUTS, **CALCULATIONS}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, but for the payloads of NaN."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if raw(one) == raw(other):
        return True
    if not one.dtype.is_floating_point:
        return False
    wide, wider = one.to(torch.float64), other.to(torch.float64)
    signs = wide.signbit() == wider.signbit()
    return bool((wide.isnan() & wider.isnan() | (wide == wider) & signs).all())
