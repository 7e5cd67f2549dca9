"""Adapters of every pack whose model diffusers or transformers has: the same effective weights of all modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

import remapkit
from remapkit.adapters.build import Options
from tests.adapters import random_rules
from tests.adapters import value_kit as kit
from tests.adapters.random_rules import Shape

KEYS = Path(remapkit.__file__).parent.parent / "rules" / "keys"
CLOSE = 1e-6
"""Of the largest weight: factors are rounded to the adapter's F32."""


@dataclass(frozen=True)
class Pack:
    """A pack and its inverse, and the manifests of both layouts, of which two blocks are kept and made small."""

    name: str
    back: str
    source: str
    target: str
    sizes: Mapping[int, int]
    params: Mapping[str, int] = field(default_factory=dict)

    def read(self, manifest: str) -> dict[str, Shape]:
        few = kit.read_shapes(KEYS / f"{manifest}.json", blocks=2)
        return {key: tuple(self.sizes.get(size, size) for size in shape) for key, shape in few.items()}


LLAMA = {4096: 256, 1024: 64, 14336: 48, 32000: 40}
PACKS = (
    Pack(
        *("flux_bfl", "flux_diffusers", "flux_bfl", "flux_diffusers"),
        {3072: 8, 9216: 24, 18432: 48, 12288: 32, 21504: 56, 15360: 40, 6144: 16, 64: 6, 256: 10, 768: 12, 4096: 14},
        {"hidden": 8},
    ),
    Pack(
        *("wan21_dit", "wan21_dit_diffusers", "wan21_dit_upstream", "wan21_dit_diffusers"),
        {1536: 12, 8960: 20, 9216: 72, 4096: 10, 256: 6},
    ),
    Pack("llama_meta", "llama_hf", "llama_meta", "llama_hf", LLAMA, {"head_dim": 8}),
    Pack("gpt2_hf", "gpt2_nanogpt", "gpt2_hf", "gpt2_nanogpt", {768: 12, 2304: 36, 3072: 48, 50257: 31, 1024: 9}),
    Pack(
        *("mixtral_per_expert", "mixtral_fused", "mixtral_per_expert", "mixtral_fused"),
        {4096: 16, 1024: 8, 14336: 24, 28672: 48, 32000: 40},
    ),
    Pack("vit_timm", "vit_hf", "vit_timm", "vit_hf", {768: 12, 2304: 36, 3072: 48, 1000: 7, 197: 5, 16: 4}),
    Pack(
        *("wan21_vae", "wan21_vae_diffusers", "wan21_vae_upstream", "wan21_vae_diffusers"),
        {96: 4, 192: 8, 384: 16, 768: 32, 1152: 48},
    ),
    Pack(
        *("wan22_vae", "wan22_vae_diffusers", "wan22_vae_upstream", "wan22_vae_diffusers"),
        {160: 4, 256: 6, 320: 8, 512: 12, 640: 16, 1024: 24, 1920: 48, 3072: 72, 2048: 32},
    ),
)


def make_lora(shapes: Mapping[str, Shape], style: str, share: float) -> kit.LoRA:
    """An adapter of a random share of all matrices, convolutions and stacks of experts, with alphas where it can."""
    generator = torch.Generator().manual_seed(5)
    made = kit.LoRA({})
    up, down = random_rules.LEAVES.get(style, ("lora_B", "lora_A"))
    for at, (key, shape) in enumerate(shapes.items()):
        is_stack = ".experts." in key and len(shape) == 3
        if len(shape) < 2 or not (key.endswith(".weight") or is_stack) or torch.rand((), generator=generator) > share:
            continue
        rank = made.ranks[key] = 1 + at % 3
        name = kit.name_module(style, key)
        matrices = kit.make_matrices(shape, rank, generator, is_stack=is_stack)
        made.tensors |= {f"{name}.{leaf}.weight": each for leaf, each in zip((up, down), matrices, strict=True)}
        if style in random_rules.LEAVES and at % 4:
            made.tensors[f"{name}.alpha"] = torch.tensor(float(at % 4))
    if style == "peft":
        # `^`: the pattern `conv1` would be for `encoder.conv1` too.
        ranks = {f"^{re.escape(key.removesuffix('.weight'))}": rank for key, rank in made.ranks.items()}
        alphas = dict.fromkeys(list(ranks)[::5], 3)
        made.config = {"r": 1, "lora_alpha": 2, "rank_pattern": ranks, "alpha_pattern": alphas}
    return made


def check(rules: remapkit.RuleSet, shapes: Mapping[str, Shape], style: str, options: Options, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    lora = make_lora(shapes, style, share)
    options = replace(options, config=lora.read_config())
    built, made = kit.build(rules, weights, lora, options, prove=False)
    assert len({module.weight for module in built.adapter.modules}) == len(lora.ranks)
    assert kit.find_error(rules, weights, lora, built, made) <= CLOSE
    plain, ones = rules(weights), {key: torch.zeros_like(weight) for key, weight in weights.items()}
    changed = rules(ones | {key: torch.ones_like(weights[key]) for key in lora.ranks})
    wanted = {key for key, value in changed.items() if value.any()}
    up = ".lora_up.weight" if built.style.leaves == "kohya" else ".lora_B.weight"
    assert {key for key in plain if f"{kit.name_after(built, key)}{up}" in made} == wanted
    assert len([key for key in made if key.endswith(up)]) == len(wanted) > 0


FORMATS = (("kohya", None), ("kohya", "diffusers"), ("diffusers", "comfy"), ("peft", "kohya"), ("diffusers", None))
CHANGING = ("flux_bfl", "gpt2_hf", "mixtral_per_expert", "llama_meta")
"""Packs that do more than rename and split: they are converted in all formats."""
WAYS = [
    pytest.param(pack, *formats, id=f"{pack.name}-{formats[0]}-{formats[1] or 'same'}")
    for number, pack in enumerate(PACKS)
    for formats in (FORMATS if pack.name in CHANGING else (FORMATS[1 + number % 3],))
]


@pytest.mark.parametrize(("pack", "style", "format"), WAYS)
def test_every_module_has_the_same_effective_weight(pack: Pack, style: str, format: str | None) -> None:
    check(remapkit.load(pack.name, params=pack.params), pack.read(pack.source), style, Options(format), 1)


@pytest.mark.parametrize(("pack", "style", "format"), WAYS)
def test_and_back_with_parts_that_have_no_adapter(pack: Pack, style: str, format: str | None) -> None:
    check(remapkit.load(pack.back, params=pack.params), pack.read(pack.target), style, Options(format), 0.6)


@pytest.mark.parametrize("pack", ["llama2_ranks", "llama3_ranks"])
@pytest.mark.parametrize("style", random_rules.STYLES)
def test_the_parts_of_ranks_become_one_adapter(pack: str, style: str) -> None:
    params = {"heads": 4, "kv_heads": 4 if pack == "llama2_ranks" else 2, "hidden": 32, "head_dim": 8, "ranks": 2}
    kv, size = params["kv_heads"] * 8, (20, 16) if pack == "llama2_ranks" else (10, 32)
    layer = {
        "attention.wq": (16, 32), "attention.wk": (kv // 2, 32), "attention.wv": (kv // 2, 32),
        "attention.wo": (32, 16),
        "feed_forward.w1": (12, 32), "feed_forward.w2": (32, 12), "feed_forward.w3": (12, 32),
    }  # fmt: skip
    shapes: dict[str, Shape] = {"tok_embeddings.weight": size, "output.weight": (10, 32), "norm.weight": (32,)}
    shapes |= {f"layers.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {f"layers.0.{name}.weight": (32,) for name in ("attention_norm", "ffn_norm")}
    shapes = {f"tp{rank}.{key}": shape for rank in range(2) for key, shape in shapes.items()}
    weights = {key: torch.randn(shape) for key, shape in shapes.items()}
    weights |= {f"tp1.{key}": weights[f"tp0.{key}"] for key in (k[4:] for k in weights) if "norm" in key}
    rules = remapkit.load(pack, params=params)
    lora = make_lora(shapes, style, 0.8)
    built, made = kit.build(rules, weights, lora, Options(config=lora.read_config()))
    assert kit.find_error(rules, weights, lora, built, made) <= CLOSE
