"""What the tests of the packs share: the packs in a table, their manifests made small, and random state dicts."""

from __future__ import annotations

import json
import shutil
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
ROPE = "{{rope: {{to: half, heads: {}, head_dim: head_dim}}}}"


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
        *("wan22_vae", "wan22_vae_diffusers", "wan22_vae_upstream", "wan22_vae_diffusers", oracles.wan22_vae),
        sizes={160: 4, 256: 6, 320: 8, 512: 12, 640: 16, 1024: 24, 1920: 48, 3072: 72, 2048: 32},
    ),
    Case(
        *("wan21_dit", "wan21_dit_diffusers", "wan21_dit_upstream", "wan21_dit_diffusers", oracles.wan21_dit),
        sizes={1536: 12, 8960: 20, 9216: 72, 4096: 10, 256: 6},
    ),
    Case(  # diffusers' converter cuts `linear1` at 3072: rows stay as they are, columns are few.
        *("flux_bfl", "flux_diffusers", "flux_bfl", "flux_diffusers", oracles.flux_bfl),
        sizes=dict.fromkeys((64, 256, 768, 3072, 4096, 12288, 15360), 2),
        rows=True,
    ),
    # 32 heads of 8, which share 8 heads of keys; queries are square. With heads of 4 the rotary order would be its
    # own inverse, and its direction no matter.
    Case(
        *("llama_meta", "llama_hf", "llama_meta", "llama_hf", oracles.llama_meta),
        sizes={4096: 256, 1024: 64, 14336: 48, 32000: 40},
        params={"head_dim": 8},
    ),
    Case(
        *("mixtral_per_expert", "mixtral_fused", "mixtral_per_expert", "mixtral_fused", oracles.mixtral_per_expert),
        sizes={4096: 16, 1024: 8, 14336: 24, 28672: 48, 32000: 40},
    ),
    Case(
        *("gpt2_hf", "gpt2_nanogpt", "gpt2_hf", "gpt2_nanogpt", oracles.gpt2_hf),
        sizes={768: 12, 2304: 36, 3072: 48, 50257: 31, 1024: 9},
    ),
    Case(
        *("vit_timm", "vit_hf", "vit_timm", "vit_hf", oracles.vit_timm),
        sizes={768: 12, 2304: 36, 3072: 48, 1000: 7, 197: 5, 16: 4},
    ),
)
BY_NAME = {case.pack: case for case in CASES}


@dataclass(frozen=True)
class Fault:
    """Something that is easy to get wrong in a pack, as changes of its text. Names and shapes come out right."""

    pack: str
    what: str
    changes: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.pack}: {self.what}"


def swap(one: str, other: str, around: str = "{}") -> tuple[tuple[str, str], ...]:
    """The changes that let two texts change places; `around` holds them where they also stand elsewhere."""
    one, other = around.format(one), around.format(other)
    return ((one, "@@"), (other, one), ("@@", other))


def reversed_table(text: str) -> tuple[tuple[str, str], ...]:
    """The change that lets the two values of `a: x, b: y` change places."""
    (a, x), (b, y) = (entry.split(": ") for entry in text.split(", "))
    return ((text, f"{a}: {y}, {b}: {x}"),)


FAULTS = (
    Fault("wan21_vae", "the blocks around the middle attention", (("{0: 0, 2: 1}", "{0: 1, 2: 0}"),)),
    Fault("wan22_vae", "the blocks around the middle attention", (("{0: 0, 2: 1}", "{0: 1, 2: 0}"),)),
    Fault("wan21_dit", "self and cross attention", swap("attn1", "attn2")),
    Fault("wan21_dit", "queries and keys", reversed_table("q: to_q, k: to_k")),
    Fault("flux_bfl", "queries and keys of images", swap("to_q", "to_k", "- 'transformer_blocks.{{i}}.attn.{}.")),
    Fault("flux_bfl", "keys and values of text", swap("attn.add_k_proj", "attn.add_v_proj")),
    Fault(
        "flux_bfl",
        "keys and values of single blocks",
        swap("to_k", "to_v", "- 'single_transformer_blocks.{{i}}.attn.{}."),
    ),
    Fault("flux_bfl", "scale and shift", (("    ops: [{flip_halves: {dim: 0}}]\n", ""),)),
    Fault("flux_bfl", "the norms of text", reversed_table("query_norm: norm_added_q, key_norm: norm_added_k")),
    Fault("llama_meta", "the direction of the rotary order", (("to: half", "to: interleaved"),)),
    Fault("llama_meta", "no rotary order of keys", ((f"    ops: [{ROPE.format('kv_heads')}]\n", ""),)),
    Fault("llama_meta", "no rotary order of queries", ((f"    ops: [{ROPE.format('heads')}]\n", ""),)),
    Fault("llama_meta", "gate and up", swap("gate_proj", "up_proj")),
    Fault("mixtral_per_expert", "gate and up", swap("{e:int}.w1.weight", "{e:int}.w3.weight")),
    Fault(
        "gpt2_hf",
        "the square matrix as it is",
        (
            ("attn.{layer:c_attn|c_proj}.weight'\n    ops", "attn.c_attn.weight'\n    ops"),
            ("attn.{layer}.weight", "attn.c_attn.weight"),
            ("keep:\n", "keep:\n  - 'transformer.h.{i:int}.attn.c_proj.weight'\n"),
        ),
    ),
    Fault("vit_timm", "queries and keys", swap("attention.q_proj", "attention.k_proj")),
    Fault("vit_timm", "the two norms", reversed_table("norm1: layernorm_before, norm2: layernorm_after")),
)


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
    return sorted(
        fqn for fqn in {*one, *other} if fqn not in one or fqn not in other or not same(one[fqn], other[fqn])
    )


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
    shutil.copytree(KEYS, folder / "keys", dirs_exist_ok=True)  # a rule file names what is below its own folder
    path = folder / f"{pack}.yaml"
    path.write_text(text.partition("\ntests:")[0] + "\n", encoding="utf-8")
    return path
