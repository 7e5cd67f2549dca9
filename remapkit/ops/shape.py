"""What each operation does to a header, and the steps it comes down to. Shapes are checked, never read for a meaning.

Every operation has `steps(spec)`, which raises `Refused` with an exact sentence where the tensor does not fit, and so
`infer(spec)`: the header of the result.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from remapkit.ops.steps import Add, Cast, Pad, Permute, Pick, Reshape, Scale, Step, with_size
from remapkit.tensors.spec import DTYPE_BITS, TensorSpec

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
"""The dtypes that are cast into one another."""
_EXACT = {"BF16": ("F32", "F64"), "F16": ("F32", "F64"), "F32": ("F64",)}
_EXACT |= {name: ("F32", "F64", "BF16", "F16") for name in FLOATS if name in ("F8_E4M3", "F8_E5M2")}
_EXACT |= {name: ("F32", "F64", "BF16", "F16") for name in FLOATS if name.endswith("FNUZ")}
_INTEGERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")


def is_exact(old: str, new: str) -> bool:
    """Whether a cast keeps every value.

    >>> is_exact("BF16", "F32"), is_exact("F32", "BF16"), is_exact("I32", "I64")
    (True, False, True)
    """
    if old == new:
        return True
    if old in _INTEGERS and new in _INTEGERS:
        signed = old[0] == new[0] or new[0] == "I"
        return signed and DTYPE_BITS[new] > DTYPE_BITS[old]
    return new in _EXACT.get(old, ())


class Refused(Exception):
    """A tensor that an operation cannot be done on: a sentence with the numbers, and what to do."""

    def __init__(self, title: str, *help: str, code: str = "RK350") -> None:
        super().__init__(title)
        self.title, self.help, self.code = title, help, code
        self.op: Op | None = None


def dimension(dim: int, spec: TensorSpec) -> int:
    """The dimension counted from 0; raises `Refused` where the tensor has none such."""
    rank = len(spec.shape)
    if not -rank <= dim < rank:
        raise Refused(f"there is no dimension {dim} in a tensor of {_dims(rank)}, {list(spec.shape)}", code="RK351")
    return dim % rank


def _dims(rank: int) -> str:
    return "1 dimension" if rank == 1 else f"{rank} dimensions"


def rows(dim: int, size: int) -> str:
    """What lies along a dimension, in words.

    >>> rows(0, 84), rows(1, 3), rows(2, 5)
    ('84 rows', '3 columns', '5 elements of dimension 2')
    """
    noun = {0: "row", 1: "column"}.get(dim)
    if noun is None:
        return f"{size} elements of dimension {dim}"
    return f"{size} {noun}{'s' * (size != 1)}"


def infer(steps: Iterable[Step], spec: TensorSpec) -> TensorSpec:
    """The header after all steps."""
    for step in steps:
        spec = step.infer(spec)
    return spec


class Op:
    """One operation on one tensor."""

    __slots__ = ()
    name: ClassVar[str] = ""

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """The steps for a tensor of this header; raises `Refused` where it does not fit."""
        raise NotImplementedError

    def infer(self, spec: TensorSpec) -> TensorSpec:
        """The header of the result; raises `Refused`."""
        return infer(self.steps(spec), spec)

    def keeps_shape(self, spec: TensorSpec) -> bool:
        """Whether names and shapes could not tell if it was left out or done twice."""
        return self.infer(spec).shape == spec.shape


@dataclass(frozen=True, slots=True)
class Transpose(Op):
    """Two dimensions change places; without `dims`, the two of a matrix."""

    dims: tuple[int, int] | None = None
    name: ClassVar[str] = "transpose"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One permutation."""
        if self.dims is None and len(spec.shape) != 2:
            title = f"transpose alone is for matrices, and this has {_dims(len(spec.shape))}, {list(spec.shape)}"
            raise Refused(title, "name the two dimensions: transpose: [0, 1]")
        one, other = (dimension(dim, spec) for dim in self.dims or (0, 1))
        order = list(range(len(spec.shape)))
        order[one], order[other] = other, one
        return (Permute(tuple(order)),)


@dataclass(frozen=True, slots=True)
class PermuteOp(Op):
    """Dimensions in another order: `order[n]` becomes dimension n."""

    order: tuple[int, ...]
    name: ClassVar[str] = "permute"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One permutation."""
        if len(self.order) != len(spec.shape):
            title = (
                f"permute orders {_dims(len(self.order))}, and the tensor has {len(spec.shape)}, {list(spec.shape)}"
            )
            raise Refused(title, "name every dimension once")
        return (Permute(self.order),)


@dataclass(frozen=True, slots=True)
class ReshapeOp(Op):
    """Another shape for the same elements; one size may be -1, what is left. `old` is what it must have had."""

    shape: tuple[int, ...]
    old: tuple[int, ...] | None = None
    name: ClassVar[str] = "reshape"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One reshape."""
        if self.old is not None and tuple(_filled(self.old, spec)) != spec.shape:
            raise Refused(f"reshape is from {list(self.old)}, and the tensor is {list(spec.shape)}")
        return (Reshape(_filled(self.shape, spec)),)


def _filled(shape: Sequence[int], spec: TensorSpec) -> tuple[int, ...]:
    known = math.prod(size for size in shape if size != -1)
    if -1 not in shape:
        if known != spec.numel:
            title = f"the {spec.numel} elements of {list(spec.shape)} do not fill {list(shape)}, which has {known}"
            raise Refused(title)
        return tuple(shape)
    if known == 0 or spec.numel % known:
        raise Refused(f"the {spec.numel} elements of {list(spec.shape)} do not fill {list(shape)}")
    return tuple(spec.numel // known if size == -1 else size for size in shape)


@dataclass(frozen=True, slots=True)
class Squeeze(Op):
    """Dimensions of size 1 are taken away; they count in the tensor as it comes."""

    dims: tuple[int, ...]
    name: ClassVar[str] = "squeeze"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One reshape."""
        gone = {dimension(dim, spec) for dim in self.dims}
        for dim in sorted(gone):
            if spec.shape[dim] != 1:
                title = (
                    f"squeeze takes dimension {dim} away, which has {spec.shape[dim]} elements, {list(spec.shape)}"
                )
                raise Refused(title)
        return (Reshape(tuple(size for dim, size in enumerate(spec.shape) if dim not in gone)),)


@dataclass(frozen=True, slots=True)
class Unsqueeze(Op):
    """New dimensions of size 1; they count in the result."""

    dims: tuple[int, ...]
    name: ClassVar[str] = "unsqueeze"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One reshape."""
        rank = len(spec.shape) + len(self.dims)
        new = {dimension(dim, TensorSpec(spec.dtype, (1,) * rank)) for dim in self.dims}
        if len(new) != len(self.dims):
            raise Refused(f"unsqueeze names one dimension twice: {list(self.dims)} of {rank}")
        sizes = iter(spec.shape)
        return (Reshape(tuple(1 if dim in new else next(sizes) for dim in range(rank))),)


@dataclass(frozen=True, slots=True)
class Slice(Op):
    """Elements `start` to `stop` (excluded) along a dimension; where `stop` is None, all from `start` on, if any."""

    dim: int
    start: int
    stop: int | None
    name: ClassVar[str] = "slice"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One choice."""
        dim = dimension(self.dim, spec)
        size = spec.shape[dim]
        stop = size if self.stop is None else self.stop
        if not self.start <= stop <= size or self.start == self.stop:
            raise Refused(f"slice {self.start} to {stop} of {rows(dim, size)}, {list(spec.shape)}")
        return (Pick(dim, (range(self.start, stop),)),)


@dataclass(frozen=True, slots=True)
class PadOp(Op):
    """Filled up at the end of a dimension to the size `to`."""

    dim: int
    to: int
    value: float = 0
    name: ClassVar[str] = "pad"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One pad."""
        dim = dimension(self.dim, spec)
        size = spec.shape[dim]
        if self.to < size:
            raise Refused(f"pad to {self.to}, and there are {rows(dim, size)} already, {list(spec.shape)}")
        check_holds(self.value, spec.dtype)
        return (Pad(dim, self.to - size, self.value),)


def check_holds(value: float, dtype: str) -> None:
    """Refuse a value that a dtype has no number for."""
    if dtype in FLOATS:
        if abs(value) > _LARGEST[dtype]:
            raise Refused(f"{value} is beyond the largest {dtype}, {_LARGEST[dtype]:g}")
        return
    low, high = integer_range(dtype)
    if value != int(value) or not low <= value <= high:
        raise Refused(f"{value} is no {dtype}")


_LARGEST = {
    "F64": sys.float_info.max,
    "F32": float((2 - 2**-23) * 2.0**127),
    "F16": 65504.0,
    "BF16": float((2 - 2**-7) * 2.0**127),
    "F8_E4M3": 448.0,
    "F8_E5M2": 57344.0,
    "F8_E4M3FNUZ": 240.0,
    "F8_E5M2FNUZ": 57344.0,
}
"""The largest finite value of each float."""


def integer_range(dtype: str) -> tuple[int, int]:
    """The smallest and the largest value of an integer dtype (of BOOL: 0 and 1)."""
    if dtype == "BOOL":
        return 0, 1
    if dtype not in _INTEGERS:
        raise Refused(f"there are no plain numbers of {dtype}")
    bits = DTYPE_BITS[dtype]
    return (0, (1 << bits) - 1) if dtype[0] == "U" else (-(1 << bits - 1), (1 << bits - 1) - 1)


@dataclass(frozen=True, slots=True)
class FlipHalves(Op):
    """The two halves of a dimension change places: shift, scale -> scale, shift."""

    dim: int = 0
    name: ClassVar[str] = "flip_halves"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One reordering."""
        dim = dimension(self.dim, spec)
        size = spec.shape[dim]
        if size % 2:
            raise Refused(f"{rows(dim, size)} have no two halves, {list(spec.shape)}")
        return (Pick(dim, (range(size // 2, size), range(size // 2))),)


def _heads(dim: int, spec: TensorSpec, wanted: int, written: str) -> int:
    """The dimension, which must hold exactly so many elements."""
    dim = dimension(dim, spec)
    if spec.shape[dim] != wanted:
        title = f"{written} make {wanted}, and there are {rows(dim, spec.shape[dim])}, {list(spec.shape)}"
        raise Refused(title, "correct the params, or give the model's own: --param name=number, --config config.json")
    return dim


@dataclass(frozen=True, slots=True)
class Rope(Op):
    """The order of rotary pairs within each head: neighbours (`interleaved`), or one from each half (`half`)."""

    to: str
    heads: int
    head_dim: int
    dim: int = 0
    name: ClassVar[str] = "rope"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One reordering."""
        written = f"{self.heads} heads of {self.head_dim}"
        dim = _heads(self.dim, spec, self.heads * self.head_dim, written)
        if self.head_dim % 2:
            raise Refused(f"a head of {self.head_dim} has no pairs to rotate")
        return (Pick(dim, tuple(self._ranges())),)

    def _ranges(self) -> Iterable[range]:
        half = self.head_dim // 2
        for start in range(0, self.heads * self.head_dim, self.head_dim):
            stop = start + self.head_dim
            if self.to == "half":
                yield range(start, stop, 2)
                yield range(start + 1, stop, 2)
            else:
                yield from (range(start + pair, stop, half) for pair in range(half))


@dataclass(frozen=True, slots=True)
class UngroupQkv(Op):
    """Fused q, k and v of grouped-query attention, group by group (q..., k, v) -> all q, all k, all v."""

    heads: int
    kv_heads: int
    head_dim: int
    dim: int = 0
    name: ClassVar[str] = "ungroup_qkv"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One reordering."""
        dim = _grouped(self, spec)
        share, size = self.heads // self.kv_heads, self.head_dim
        group = (share + 2) * size
        starts = range(0, self.kv_heads * group, group)
        q = [range(start, start + share * size) for start in starts]
        k = [range(start + share * size, start + (share + 1) * size) for start in starts]
        v = [range(start + (share + 1) * size, start + group) for start in starts]
        return (Pick(dim, (*q, *k, *v)),)


@dataclass(frozen=True, slots=True)
class GroupQkv(Op):
    """All q, all k, all v -> group by group of grouped-query attention: its queries, its key, its value."""

    heads: int
    kv_heads: int
    head_dim: int
    dim: int = 0
    name: ClassVar[str] = "group_qkv"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One reordering."""
        dim = _grouped(self, spec)
        share, size = self.heads // self.kv_heads, self.head_dim
        k0, v0 = self.heads * size, (self.heads + self.kv_heads) * size
        parts = []
        for group in range(self.kv_heads):
            parts.append(range(group * share * size, (group + 1) * share * size))
            parts.append(range(k0 + group * size, k0 + (group + 1) * size))
            parts.append(range(v0 + group * size, v0 + (group + 1) * size))
        return (Pick(dim, tuple(parts)),)


def _grouped(op: UngroupQkv | GroupQkv, spec: TensorSpec) -> int:
    if op.kv_heads < 1 or op.heads % op.kv_heads:
        raise Refused(f"{op.heads} heads do not share {op.kv_heads} kv heads equally")
    written = f"{op.heads} + 2 x {op.kv_heads} heads of {op.head_dim}"
    return _heads(op.dim, spec, (op.heads + 2 * op.kv_heads) * op.head_dim, written)


@dataclass(frozen=True, slots=True)
class CastOp(Op):
    """Another dtype, between floats; integers only into wider ones. `old` is the dtype that it must have had."""

    dtype: str
    old: str | None = None
    name: ClassVar[str] = "cast"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One cast."""
        if self.old is not None and spec.dtype != self.old:
            raise Refused(f"cast is from {self.old}, and the tensor is {spec.dtype}", code="RK352")
        both_floats = spec.dtype in FLOATS and self.dtype in FLOATS
        if not both_floats and not is_exact(spec.dtype, self.dtype):
            title = f"{spec.dtype} -> {self.dtype} is no cast: values would be lost"
            raise Refused(title, "casts go between floats, and from integers to wider integers", code="RK352")
        return (Cast(self.dtype),)

    def keeps_shape(self, spec: TensorSpec) -> bool:
        """A cast shows in the dtype."""
        return False


@dataclass(frozen=True, slots=True)
class ScaleOp(Op):
    """Every element times a number, rounded to the tensor's dtype."""

    factor: float
    name: ClassVar[str] = "scale"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One multiplication."""
        _plain_float(self.name, spec)
        return (Scale(self.factor),)


@dataclass(frozen=True, slots=True)
class AddOp(Op):
    """Every element plus a number, rounded to the tensor's dtype."""

    term: float
    name: ClassVar[str] = "add"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One addition."""
        _plain_float(self.name, spec)
        return (Add(self.term),)


def _plain_float(name: str, spec: TensorSpec) -> None:
    if spec.dtype not in FLOATS[:4]:
        raise Refused(f"{name} is for {', '.join(FLOATS[:4])}, and the tensor is {spec.dtype}", code="RK352")


# ------------------------------------------------------------------------------------------- several to one, and back


@dataclass(frozen=True, slots=True)
class Join(Op):
    """Several tensors become one: each through its branch's operations, then concatenated, then stacked.

    The tensors come index by index, and for each index branch by branch. `concat` and `stack` are dimensions, None
    where there is only one branch or one index. `sizes` are those that the branches must have, or `equal` ones.
    """

    branches: tuple[tuple[Op, ...], ...]
    concat: int | None
    stack: int | None
    sizes: tuple[int, ...] | None = None
    equal: bool = False
    name: ClassVar[str] = "join"


@dataclass(frozen=True, slots=True)
class Part(Op):
    """Part `index` of a split along `dim` into `count` equal ones, or into ones of `sizes`."""

    dim: int
    index: int
    count: int
    sizes: tuple[int, ...] | None = None
    name: ClassVar[str] = "split"

    @property
    def has_equals(self) -> bool:
        """Whether another part has the same size: the two could be swapped."""
        return self.count > 1 and (self.sizes is None or self.sizes.count(self.sizes[self.index]) > 1)

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One slice."""
        dim = dimension(self.dim, spec)
        size = spec.shape[dim]
        if self.sizes is None:
            if size % self.count:
                raise Refused(f"{rows(dim, size)} do not split into {self.count} equal parts", "give `sizes`")
            start, length = self.index * (size // self.count), size // self.count
        else:
            if sum(self.sizes) != size:
                written = " + ".join(map(str, self.sizes))
                title = f"{rows(dim, size)} do not split into {written} = {sum(self.sizes)}"
                raise Refused(title, "the sizes of the parts must add up to the whole")
            start, length = sum(self.sizes[: self.index]), self.sizes[self.index]
        return (Pick(dim, (range(start, start + length),)),)


@dataclass(frozen=True, slots=True)
class At(Op):
    """One element of a dimension, which goes away."""

    dim: int
    index: int
    name: ClassVar[str] = "unstack"

    def steps(self, spec: TensorSpec) -> tuple[Step, ...]:
        """One slice, and one reshape."""
        dim = dimension(self.dim, spec)
        pick = Pick(dim, (range(self.index, self.index + 1),))
        return pick, Reshape((*spec.shape[:dim], *spec.shape[dim + 1 :]))


@dataclass(frozen=True, slots=True)
class Fill(Op):
    """A tensor without a source: `zeros`, `ones`, `arange` (row-major, from 0), `tril`, or one number everywhere."""

    value: str | float
    spec: TensorSpec
    name: ClassVar[str] = "add"


def concat_spec(specs: Sequence[TensorSpec], dim: int, names: Sequence[str]) -> TensorSpec:
    """The header of tensors one after the other along `dim`; `names` are what messages call them."""
    first = specs[0]
    at = dimension(dim, first)
    for spec, name in zip(specs, names, strict=True):
        _same_dtype(first, spec, names[0], name)
        if len(spec.shape) != len(first.shape) or with_size(spec.shape, at, 0) != with_size(first.shape, at, 0):
            title = f"{name} is {list(spec.shape)} and {names[0]} is {list(first.shape)}"
            raise Refused(f"{title}: they do not fit along dimension {at}", code="RK353")
    return TensorSpec(first.dtype, with_size(first.shape, at, sum(spec.shape[at] for spec in specs)))


def _check_sizes(join: Join, specs: Sequence[TensorSpec], names: Sequence[str]) -> None:
    assert join.concat is not None
    sizes = [spec.shape[dimension(join.concat, spec)] for spec in specs]
    wanted = list(join.sizes) if join.sizes is not None else [sizes[0]] * len(sizes) if join.equal else sizes
    for name, size, expected in zip(names, sizes, wanted, strict=True):
        if size != expected:
            what = "`sizes` says" if join.sizes is not None else f"{names[0]} has"
            raise Refused(
                f"{name} has {size} elements along dimension {join.concat}, and {what} {expected}", code="RK353"
            )


def stack_spec(specs: Sequence[TensorSpec], dim: int, names: Sequence[str]) -> TensorSpec:
    """The header of tensors of one shape as the elements of a new dimension `dim`."""
    first = specs[0]
    rank = len(first.shape) + 1
    at = dimension(dim, TensorSpec(first.dtype, (1,) * rank))
    for spec, name in zip(specs, names, strict=True):
        _same_dtype(first, spec, names[0], name)
        if spec.shape != first.shape:
            title = f"{name} is {list(spec.shape)} and {names[0]} is {list(first.shape)}: only equal ones are stacked"
            raise Refused(title, code="RK353")
    return TensorSpec(first.dtype, (*first.shape[:at], len(specs), *first.shape[at:]))


def _same_dtype(first: TensorSpec, spec: TensorSpec, one: str, other: str) -> None:
    for name, each in ((one, first), (other, spec)):
        if DTYPE_BITS[each.dtype] < 8:  # two elements share a byte: no byte range is one element's
            raise Refused(
                f"{name} is {each.dtype}, whose elements are less than a byte; it can only be renamed", code="RK352"
            )
    if spec.dtype != first.dtype:
        title = f"{other} is {spec.dtype} and {one} is {first.dtype}: nothing is cast unasked"
        raise Refused(title, "cast one of them first, in its entry: {path: ..., ops: [{cast: F32}]}", code="RK353")


def join_spec(join: Join, specs: Sequence[TensorSpec], names: Sequence[str]) -> TensorSpec:
    """The header of what `join` makes of sources with these headers."""
    made = [after(join.branches[n % len(join.branches)], spec) for n, spec in enumerate(specs)]
    if join.concat is not None:
        width = len(join.branches)
        groups = [slice(at, at + width) for at in range(0, len(made), width)]
        firsts = [names[group][0] for group in groups]
        for group in groups:
            _check_sizes(join, made[group], names[group])
        made = [concat_spec(made[group], join.concat, names[group]) for group in groups]
        names = firsts
    return made[0] if join.stack is None else stack_spec(made, join.stack, names)


def after(ops: Iterable[Op], spec: TensorSpec) -> TensorSpec:
    """The header after several operations on one tensor; raises `Refused`."""
    for op in ops:
        if DTYPE_BITS[spec.dtype] < 8:
            raise Refused(f"{op.name} on {spec.dtype}, whose elements are less than a byte", code="RK352")
        try:
            spec = op.infer(spec)
        except Refused as refused:
            refused.op = op
            raise
    return spec


def result(ops: Sequence[Op], specs: Sequence[TensorSpec], names: Sequence[str]) -> TensorSpec:
    """The header of a move: its operations on its sources' headers. Raises `Refused`."""
    if ops and isinstance(ops[0], Fill):
        return after(ops[1:], ops[0].spec)
    if ops and isinstance(ops[0], Join):
        return after(ops[1:], join_spec(ops[0], specs, names))
    return after(ops, specs[0])


def needs_values(ops: Sequence[Op], specs: Sequence[TensorSpec]) -> bool:
    """Whether names and shapes could not tell if an operation was left out, done twice, or done in another order.

    >>> spec = TensorSpec("F32", (6, 6))
    >>> needs_values((Transpose(),), [spec]), needs_values((Transpose(),), [TensorSpec("F32", (6, 4))])
    (True, False)
    >>> needs_values((Part(0, 1, 3),), [spec]), needs_values((Part(0, 1, 2, (2, 4)),), [spec])
    (True, False)
    """
    rest = ops
    if ops and isinstance(ops[0], Fill):
        return False
    if ops and isinstance(ops[0], Join):
        made = [after(ops[0].branches[n % len(ops[0].branches)], spec) for n, spec in enumerate(specs)]
        branches = zip(itertools.cycle(ops[0].branches), specs, strict=False)
        if len(set(made)) < len(made) or any(needs_values(branch, [spec]) for branch, spec in branches):
            return True
        spec, rest = join_spec(ops[0], specs, [""] * len(specs)), ops[1:]
    else:
        spec = specs[0]
    for op in rest:
        alike = isinstance(op, At) or (isinstance(op, Part) and op.has_equals)
        if alike or (not isinstance(op, Part) and op.keeps_shape(spec)):
            return True
        spec = op.infer(spec)
    return False
