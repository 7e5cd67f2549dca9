"""Operations that reorder the rows of attention weights: rope, grouped qkv, flipped halves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from remapkit.ops.base import Op, RefusedOp, describe_size, normalize_dim
from remapkit.ops.steps import OpStep, Pick
from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class FlipHalves(Op):
    """Swap the two halves of a dimension: shift, scale -> scale, shift."""

    dim: int = 0
    name: ClassVar[str] = "flip_halves"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one reordering."""
        dim = normalize_dim(self.dim, spec)
        size = spec.shape[dim]
        if size % 2:
            raise RefusedOp(f"flip_halves needs an even size, got {describe_size(dim, size)}, {list(spec.shape)}")
        return (Pick(dim, (range(size // 2, size), range(size // 2))),)


def _check_heads(dim: int, spec: TensorSpec, wanted: int, written: str) -> int:
    """Return the dimension; raises `RefusedOp` unless it has exactly `wanted` elements."""
    dim = normalize_dim(dim, spec)
    if spec.shape[dim] != wanted:
        title = f"{written} make {wanted}, but there are {describe_size(dim, spec.shape[dim])}, {list(spec.shape)}"
        raise RefusedOp(
            title, "correct the params, or pass the model's own: --param NAME=NUMBER, --config config.json"
        )
    return dim


@dataclass(frozen=True, slots=True)
class Rope(Op):
    """Convert the order of rotary pairs in each head: adjacent (`interleaved`), or one from each half (`half`)."""

    to: str
    heads: int
    head_dim: int
    dim: int = 0
    name: ClassVar[str] = "rope"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one reordering."""
        written = f"{self.heads} heads of {self.head_dim}"
        dim = _check_heads(self.dim, spec, self.heads * self.head_dim, written)
        if self.head_dim % 2:
            raise RefusedOp(f"rope needs an even head_dim, got {self.head_dim}")
        return (Pick(dim, tuple(self._list_ranges())),)

    def _list_ranges(self) -> Iterable[range]:
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
    """Convert fused q, k, v of grouped-query attention: group by group (q..., k, v) -> all q, all k, all v."""

    heads: int
    kv_heads: int
    head_dim: int
    dim: int = 0
    name: ClassVar[str] = "ungroup_qkv"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one reordering."""
        dim = _check_groups(self, spec)
        share, size = self.heads // self.kv_heads, self.head_dim
        group = (share + 2) * size
        starts = range(0, self.kv_heads * group, group)
        q = [range(start, start + share * size) for start in starts]
        k = [range(start + share * size, start + (share + 1) * size) for start in starts]
        v = [range(start + (share + 1) * size, start + group) for start in starts]
        return (Pick(dim, (*q, *k, *v)),)


@dataclass(frozen=True, slots=True)
class GroupQkv(Op):
    """Convert fused q, k, v of grouped-query attention: all q, all k, all v -> group by group (q..., k, v)."""

    heads: int
    kv_heads: int
    head_dim: int
    dim: int = 0
    name: ClassVar[str] = "group_qkv"

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return one reordering."""
        dim = _check_groups(self, spec)
        share, size = self.heads // self.kv_heads, self.head_dim
        k0, v0 = self.heads * size, (self.heads + self.kv_heads) * size
        parts = []
        for group in range(self.kv_heads):
            parts.append(range(group * share * size, (group + 1) * share * size))
            parts.append(range(k0 + group * size, k0 + (group + 1) * size))
            parts.append(range(v0 + group * size, v0 + (group + 1) * size))
        return (Pick(dim, tuple(parts)),)


def _check_groups(op: UngroupQkv | GroupQkv, spec: TensorSpec) -> int:
    if op.kv_heads < 1 or op.heads % op.kv_heads:
        raise RefusedOp(f"`heads` must be a multiple of `kv_heads`, got {op.heads} and {op.kv_heads}")
    written = f"{op.heads} + 2 x {op.kv_heads} heads of {op.head_dim}"
    return _check_heads(op.dim, spec, (op.heads + 2 * op.kv_heads) * op.head_dim, written)
