"""Every operation on every dtype and on the shapes at the edge (no dimension, none of its elements, one), by the book.

The expected tensors are made element by element with numpy from the definitions in docs/operations.md, of opaque
bytes: nothing of the library runs there, and no dtype needs a number type of its own.
"""

# ruff: noqa: E501 - tables of values, one line each

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import TensorSpec

SHAPES: tuple[tuple[int, ...], ...] = (
    (), (0,), (1,), (2,), (4,), (0, 1), (1, 0), (0, 0), (1, 1), (2, 1), (1, 2), (2, 3), (4, 2), (1, 1, 1), (2, 0, 3), (2, 1, 2), (1, 2, 1, 2),
)  # fmt: skip
WHOLE = tuple(name for name, bits in DTYPE_BITS.items() if bits >= 8 and name != "C128")  # which safetensors lacks
NARROW = tuple(name for name, bits in DTYPE_BITS.items() if bits < 8)

Make = Callable[..., Any]


class Unfit(Exception):
    """By the definition, the operation cannot be done on this tensor."""


@dataclass(frozen=True)
class Edge:
    """A rule over tensors `in.{k}...`, how many sources each group has, and what its targets are by definition."""

    name: str
    rule: Mapping[str, Any]
    make: Make
    sources: tuple[str, ...] = ("x",)
    dtypes: tuple[str, ...] = WHOLE
    targets: tuple[str, ...] = ("out.{k}",)
    made: Callable[[str], str] = lambda dtype: dtype

    @property
    def text(self) -> str:
        return "remapkit: 1\nname: t\nrules:\n  - " + json.dumps({"id": "r", **self.rule}) + "\n"


def one(name: str, op: Any, make: Make, **more: Any) -> Edge:
    return Edge(name, {"path": "in.{k:int}.x", "ops": [op], "to": "out.{k}"}, lambda x: [make(x)], **more)


def need(condition: bool) -> None:
    if not condition:
        raise Unfit


def dim_of(dim: int, rank: int) -> int:
    need(-rank <= dim < rank)
    return dim % rank


def chosen(x: Any, dim: int, indices: Sequence[int]) -> Any:
    """Elements along a dimension, one by one."""
    shape = (*x.shape[:dim], len(indices), *x.shape[dim + 1 :])
    out = np.empty(shape, x.dtype)
    for place, index in enumerate(indices):
        out[(slice(None),) * dim + (place,)] = x[(slice(None),) * dim + (index,)]
    return out


def moved(x: Any, order: Sequence[int]) -> Any:
    need(len(order) == x.ndim)
    out = np.empty(tuple(x.shape[dim] for dim in order), x.dtype)
    for index in np.ndindex(*out.shape):
        source = [0] * x.ndim
        for place, dim in enumerate(order):
            source[dim] = index[place]
        out[index] = x[tuple(source)]
    return out


def transposed(x: Any) -> Any:
    need(x.ndim == 2)
    return moved(x, (1, 0))


def reshaped(shape: tuple[int, ...]) -> Make:
    def make(x: Any) -> Any:
        known = int(np.prod([size for size in shape if size != -1], dtype=int))
        need(x.size == known if -1 not in shape else known > 0 and x.size % known == 0)
        return x.ravel().reshape([x.size // known if size == -1 else size for size in shape])

    return make


def squeezed(x: Any) -> Any:
    dim = dim_of(0, x.ndim)
    need(x.shape[dim] == 1)
    return x.reshape(x.shape[1:])


def sliced(x: Any) -> Any:
    dim = dim_of(-1, x.ndim)
    need(x.shape[dim] >= 1)
    return chosen(x, dim, range(1, x.shape[dim]))


def whole(x: Any) -> Any:
    dim = dim_of(0, x.ndim)
    return chosen(x, dim, range(x.shape[dim]))


def from_two_on(x: Any) -> Any:
    dim = dim_of(0, x.ndim)
    need(x.shape[dim] >= 2)
    return chosen(x, dim, range(2, x.shape[dim]))


def padded(x: Any) -> Any:
    dim = dim_of(0, x.ndim)
    need(x.shape[dim] <= 4)
    more = np.zeros((4 - x.shape[dim], *x.shape[1:]), x.dtype)
    return np.concatenate([x, more])


def flipped(x: Any) -> Any:
    dim = dim_of(0, x.ndim)
    half, rest = divmod(x.shape[dim], 2)
    need(not rest)
    return chosen(x, dim, [*range(half, 2 * half), *range(half)])


def rolled(by: int) -> Make:
    def make(x: Any) -> Any:
        dim = dim_of(0, x.ndim)
        size = x.shape[dim]
        return chosen(x, dim, [(index - by) % size for index in range(size)])

    return make


def indexed(order: Sequence[int], dim: int = 0, *, whole: bool = False) -> Make:
    def make(x: Any) -> Any:
        at = dim_of(dim, x.ndim)
        need(x.shape[at] == len(order) if whole else x.shape[at] > max(order))
        return chosen(x, at, order)

    return make


def taken_apart(x: Any) -> Any:
    dim = dim_of(0, x.ndim)
    need(x.shape[dim] % 2 == 0)
    return chosen(x, dim, [*range(0, x.shape[dim], 2), *range(1, x.shape[dim], 2)])


def roped(x: Any) -> Any:
    dim = dim_of(0, x.ndim)
    need(x.shape[dim] == 4)
    return chosen(x, dim, [0, 2, 1, 3])


def grouped(order: Sequence[int]) -> Make:
    def make(x: Any) -> Any:
        need(x.ndim > 0 and x.shape[0] == 4)
        return chosen(x, 0, order)

    return make


def joined(dim: int) -> Make:
    def make(*given: Any) -> list[Any]:
        at = dim_of(dim, given[0].ndim)
        out = np.empty(
            tuple(n * (len(given) if d == at else 1) for d, n in enumerate(given[0].shape)), given[0].dtype
        )
        for index in np.ndindex(*out.shape):
            number, inner = divmod(index[at], given[0].shape[at])
            out[index] = given[number][(*index[:at], inner, *index[at + 1 :])]
        return [out]

    return make


def stacked(dim: int) -> Make:
    def make(*given: Any) -> list[Any]:
        at = dim_of(dim, given[0].ndim + 1)
        out = np.empty((*given[0].shape[:at], len(given), *given[0].shape[at:]), given[0].dtype)
        for number, each in enumerate(given):
            for index in np.ndindex(*each.shape):
                out[(*index[:at], number, *index[at:])] = each[index]
        return [out]

    return make


def halves(x: Any) -> list[Any]:
    dim = dim_of(0, x.ndim)
    half, rest = divmod(x.shape[dim], 2)
    need(not rest)
    return [chosen(x, dim, range(half)), chosen(x, dim, range(half, 2 * half))]


def pieces(x: Any) -> list[Any]:
    dim = dim_of(0, x.ndim)
    need(x.shape[dim] == 2)
    out = []
    for number in range(2):
        made = np.empty(x.shape[1:], x.dtype)
        for index in np.ndindex(*made.shape):
            made[index] = x[(number, *index)]
        out.append(made)
    return out


_TWO = ("out.{k}.0", "out.{k}.1")
_NATIVE = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_PLAIN = ("F64", "F32", "F16", "BF16")
_PADDED = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")  # fmt: skip
_INTEGERS = ("I8", "I16", "I32", "U8", "U16", "U32")


def negated(x: Any) -> Any:
    """Times -1 is another sign, whatever the float; that of a NaN is nobody's."""
    out = x.copy()
    sign = {2: 0x8000, 4: 0x80000000, 8: 1 << 63}[x.dtype.itemsize]
    return np.asarray(out ^ out.dtype.type(sign))


def widened(x: Any) -> Any:
    return np.asarray(x).astype("<u8")


def swapped_parts(x: Any, y: Any) -> list[Any]:
    return joined(0)(transposed(x), transposed(y))


EDGES: tuple[Edge, ...] = (
    Edge("rename", {"path": "in.{k:int}.x", "to": "out.{k}"}, lambda x: [x], dtypes=(*WHOLE, *NARROW)),
    Edge("copy", {"path": "in.{k:int}.x", "copy": list(_TWO)}, lambda x: [x, x], targets=_TWO, dtypes=(*WHOLE, *NARROW)),
    Edge("tie", {"path": "in.{k:int}.x", "tie": list(_TWO)}, lambda x: [x, x], targets=_TWO, dtypes=(*WHOLE, *NARROW)),
    one("transpose", "transpose", transposed),
    one("transpose two", {"transpose": [0, -1]}, lambda x: moved(x, _exchanged(x))),
    one("permute", {"permute": [1, 0]}, lambda x: moved(x, (1, 0))),
    one("permute one", {"permute": [0]}, lambda x: moved(x, (0,))),
    one("reshape to none", {"reshape": []}, reshaped(())),
    one("reshape flat", {"reshape": [-1]}, reshaped((-1,))),
    one("reshape of nothing", {"reshape": [0, 3]}, reshaped((0, 3))),
    one("reshape", {"reshape": [2, -1]}, reshaped((2, -1))),
    one("squeeze", {"squeeze": 0}, squeezed),
    one("unsqueeze", {"unsqueeze": 0}, lambda x: x.reshape((1, *x.shape))),
    one("unsqueeze last", {"unsqueeze": -1}, lambda x: x.reshape((*x.shape, 1))),
    one("slice", {"slice": {"dim": -1, "start": 1}}, sliced),
    one("slice of nothing", {"slice": {"dim": 0, "start": 0}}, whole),
    one("slice from two on", {"slice": {"dim": 0, "start": 2}}, from_two_on),
    one("pad", {"pad": {"dim": 0, "to": 4}}, padded, dtypes=_PADDED),
    one("flip_halves", "flip_halves", flipped),
    one("flip", "flip", lambda x: chosen(x, dim_of(0, x.ndim), range(x.shape[0])[::-1])),
    one("flip last", {"flip": {"dim": -1}}, lambda x: chosen(x, dim_of(-1, x.ndim), range(x.shape[-1])[::-1])),
    one("roll", {"roll": {"by": 1}}, rolled(1)),
    one("roll back", {"roll": {"dim": 0, "by": -5}}, rolled(-5)),
    one("index", {"index": {"order": [0, 2, 1, 3]}}, indexed([0, 2, 1, 3], whole=True)),
    one("index of some", {"index": {"dim": -1, "order": [1, 1]}}, indexed([1, 1], -1)),
    one("rearrange", {"rearrange": "a b -> b a"}, transposed),
    one("rearrange within", {"rearrange": {"pattern": "(a two) ... -> (two a) ...", "two": 2}}, taken_apart),
    one("rearrange to none", {"rearrange": "1 ... -> ..."}, squeezed),
    one("rearrange of nothing", {"rearrange": "... -> ... 1"}, lambda x: x.reshape((*x.shape, 1))),
    one("rope half", {"rope": {"to": "half", "heads": 1, "head_dim": 4}}, roped),
    one("rope interleaved", {"rope": {"to": "interleaved", "heads": 1, "head_dim": 4}}, roped),
    one("ungroup_qkv", {"ungroup_qkv": {"heads": 2, "kv_heads": 1, "head_dim": 1}}, grouped((0, 1, 2, 3))),
    one("group_qkv", {"group_qkv": {"heads": 2, "kv_heads": 1, "head_dim": 1}}, grouped((0, 1, 2, 3))),
    one("scale", {"scale": -1}, negated, dtypes=_PLAIN),
    one("add", {"add": 0}, lambda x: np.where(_is_negative_zero(x), x.dtype.type(0), x), dtypes=_PLAIN),
    Edge("concat", {"concat": {"dim": 0, "from": ["in.{k:int}.x", "in.{k:int}.y"]}, "to": "out.{k}"}, joined(0), ("x", "y")),
    Edge("concat last", {"concat": {"dim": -1, "from": ["in.{k:int}.x", "in.{k:int}.y"]}, "to": "out.{k}"}, joined(-1), ("x", "y")),
    Edge("concat after transpose", {"concat": {"dim": 0, "from": [{"path": f"in.{{k:int}}.{s}", "ops": ["transpose"]} for s in "xy"]}, "to": "out.{k}"}, swapped_parts, ("x", "y")),
    Edge("stack", {"path": "in.{k:int}.x.{e:int}", "stack": {"dim": 0, "by": "e"}, "to": "out.{k}"}, stacked(0), ("x.0", "x.1")),
    Edge("stack last", {"path": "in.{k:int}.x.{e:int}", "stack": {"dim": -1, "by": "e"}, "to": "out.{k}"}, stacked(-1), ("x.0", "x.1", "x.2")),
    Edge("stack of one", {"path": "in.{k:int}.x.{e:int}", "stack": {"dim": 0, "by": "e"}, "to": "out.{k}"}, stacked(0), ("x.0",)),
    Edge("stack negated", {"path": "in.{k:int}.x.{e:int}", "stack": {"dim": 0, "by": "e"}, "ops": [{"scale": -1}], "to": "out.{k}"}, lambda *x: [negated(stacked(0)(*x)[0])], ("x.0", "x.1"), dtypes=_PLAIN),
    Edge("stack reversed", {"path": "in.{k:int}.x.{e:int}", "stack": {"dim": 0, "by": "e"}, "ops": ["flip_halves"], "to": "out.{k}"}, lambda *x: [flipped(stacked(0)(*x)[0])], ("x.0", "x.1")),
    Edge("unstack", {"path": "in.{k:int}.x", "unstack": {"dim": 0, "by": "e", "count": 2}, "to": "out.{k}.{e}"}, pieces, targets=_TWO),
    Edge("unstack negated", {"path": "in.{k:int}.x", "ops": [{"scale": -1}], "unstack": {"dim": 0, "by": "e", "count": 2}, "to": "out.{k}.{e}"}, lambda x: [negated(each) for each in pieces(x)], targets=_TWO, dtypes=_PLAIN),
    Edge("split", {"path": "in.{k:int}.x", "split": {"dim": 0, "into": list(_TWO)}}, halves, targets=_TWO),
    Edge("split flipped", {"path": "in.{k:int}.x", "split": {"dim": 0, "into": [{"to": each, "ops": ["flip_halves"]} for each in _TWO]}}, lambda x: [flipped(each) for each in halves(x)], targets=_TWO),
)  # fmt: skip
CASTS: tuple[Edge, ...] = tuple(
    one(f"cast {old} to {new}", {"cast": new}, widened, dtypes=(old,), made=lambda _, new=new: new)
    for old, new in (("U8", "U64"), ("U16", "U64"), ("U32", "U64"), ("U8", "I64"), ("U32", "I64"), ("F32", "F32"))
    if old != new
)  # fmt: skip
ALL = (*EDGES, *CASTS)


def _exchanged(x: Any) -> list[int]:
    need(x.ndim > 0)
    order = list(range(x.ndim))
    order[0], order[-1] = order[-1], order[0]
    return order


def _is_negative_zero(x: Any) -> Any:
    return x == x.dtype.type({2: 0x8000, 4: 0x80000000, 8: 1 << 63}[x.dtype.itemsize])


@dataclass(frozen=True)
class Bundle:
    """Tensors as raw bytes with their headers, and the targets by definition; `unfit` is a tensor that must be refused."""

    given: dict[str, tuple[TensorSpec, bytes]]
    expected: dict[str, tuple[TensorSpec, bytes]]
    unfit: dict[str, dict[str, tuple[TensorSpec, bytes]]]


_BYTES = np.random.default_rng(7)


def raw_of(spec: TensorSpec) -> bytes:
    """Random bytes; of floats none that are not numbers, whose payloads nobody promises."""
    raw = _BYTES.integers(0, 2 if spec.dtype == "BOOL" else 256, spec.nbytes, "u1")
    if spec.dtype in _PLAIN and spec.nbytes:
        raw[DTYPE_BITS[spec.dtype] // 8 - 1 :: DTYPE_BITS[spec.dtype] // 8] &= 0xBF  # exponents below the largest
    return raw.tobytes()


def bundle(edge: Edge) -> Bundle:
    """The operation on every dtype and shape that it fits, one `k` each."""
    made = Bundle({}, {}, {})
    for k, (dtype, shape) in enumerate(itertools.product(edge.dtypes, SHAPES)):
        spec = TensorSpec(dtype, shape)
        if DTYPE_BITS[dtype] < 8 and spec.numel * DTYPE_BITS[dtype] % 8:
            continue
        given = {f"in.{k}.{source}": (spec, raw_of(spec)) for source in edge.sources}
        try:
            results = _results(edge, given)
        except Unfit:
            made.unfit[f"{dtype} {list(shape)}"] = given
            continue
        made.given.update(given)
        for target, (shape_made, raw) in zip(edge.targets, results, strict=True):
            made.expected[target.replace("{k}", str(k))] = (TensorSpec(edge.made(dtype), shape_made), raw)
    return made


def _results(edge: Edge, given: Mapping[str, tuple[TensorSpec, bytes]]) -> Iterator[tuple[tuple[int, ...], bytes]]:
    specs = [spec for spec, _ in given.values()]
    if DTYPE_BITS[specs[0].dtype] < 8:
        ((spec, raw),) = given.values()
        return iter([(spec.shape, raw)] * len(edge.targets))
    arrays = [
        np.frombuffer(raw, f"V{DTYPE_BITS[s.dtype] // 8}" if s.dtype[0] == "C" else f"<u{DTYPE_BITS[s.dtype] // 8}")
        for s, raw in given.values()
    ]
    found = edge.make(*(array.reshape(spec.shape) for array, spec in zip(arrays, specs, strict=True)))
    return iter([(np.asarray(each).shape, np.asarray(each).tobytes()) for each in found])


def write_safetensors(path: Path, tensors: Mapping[str, tuple[TensorSpec, bytes]]) -> None:
    """The file by its format: eight bytes of length, the header as JSON, the data."""
    header: dict[str, Any] = {}
    data = b""
    for fqn, (spec, raw) in sorted(tensors.items(), key=lambda item: -DTYPE_BITS[item[1][0].dtype]):
        header[fqn] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
