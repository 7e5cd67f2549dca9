"""What the tests of the packs share: the packs in a table, their manifests made small, and random state dicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import oracles
import torch
from torch import Tensor

import remapkit

ROOT = Path(remapkit.__file__).parent.parent
KEYS = ROOT / "rules" / "keys"

Shape = tuple[int, ...]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A pack and its inverse, their manifests, the oracle, and how the shapes are made small.

    `sizes` replaces the sizes of dimensions; `rows` says that the first dimension stays as it is. `params` are the
    params that go with the small shapes.
    """

    pack: str
    back: str
    source: str
    target: str
    oracle: Callable[[Mapping[str, Tensor]], State]
    sizes: Mapping[int, int]
    rows: bool = False
    params: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.pack

    def small(self, manifest: str) -> dict[str, Shape]:
        """The header of a manifest with every key and small shapes."""
        return {fqn: self.shrunk(shape) for fqn, shape in shapes(manifest).items()}

    def shrunk(self, shape: Shape) -> Shape:
        """The small shape for a real one."""
        first = int(self.rows)
        return (*shape[:first], *(self.sizes.get(size, size) for size in shape[first:]))

    def source_state(self) -> State:
        """A random state dict with every key of the source manifest."""
        return random_state(self.small(self.source))


CASES = (
    Case(
        *("wan21_vae", "wan21_vae_diffusers", "wan21_vae_upstream", "wan21_vae_diffusers", oracles.wan21_vae),
        sizes={96: 4, 192: 8, 384: 16, 768: 32, 1152: 48},
    ),
    Case(
        *("wan21_dit", "wan21_dit_diffusers", "wan21_dit_upstream", "wan21_dit_diffusers", oracles.wan21_dit),
        sizes={1536: 12, 8960: 20, 9216: 72, 4096: 10, 256: 6},
    ),
)
BY_NAME = {case.pack: case for case in CASES}


def shapes(manifest: str) -> dict[str, Shape]:
    """The names and shapes of a manifest of `rules/keys/`."""
    entries = json.loads((KEYS / f"{manifest}.json").read_text(encoding="utf-8"))
    return {fqn: tuple(entry["shape"]) for fqn, entry in entries.items()}


def random_state(header: Mapping[str, Shape]) -> State:
    """Every tensor random, so that no two are alike and no row of one is like another row."""
    generator = torch.Generator().manual_seed(0)
    return {fqn: torch.randn(shape, generator=generator) for fqn, shape in header.items()}


def header_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The names and shapes of a state dict."""
    return {fqn: tuple(tensor.shape) for fqn, tensor in state.items()}


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """The keys that only one of two state dicts has, or whose dtype, shape or bits differ."""
    return sorted(fqn for fqn in {*one, *other} if fqn not in one or fqn not in other or not same(one[fqn], other[fqn]))


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are alike to the bit."""
    return one.dtype == other.dtype and one.shape == other.shape and bool((bits(one) == bits(other)).all())


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def planted(pack: str, changes: Sequence[tuple[str, str]], folder: Path) -> Path:
    """A rule file that differs from a pack by a planted fault."""
    text = (ROOT / "rules" / f"{pack}.yaml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, f"{pack} has no {old!r} to plant a fault in"
        text = text.replace(old, new)
    (folder / "keys").symlink_to(KEYS)
    path = folder / f"{pack}.yaml"
    path.write_text(text.partition("\ntests:")[0] + "\n", encoding="utf-8")
    return path
