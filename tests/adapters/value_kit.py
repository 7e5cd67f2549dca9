"""Random adapters of models, and both ways: rules on the weights, rules on the adapter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import remapkit
from remapkit.adapters.alphas import PeftConfig
from remapkit.adapters.build import AdapterRules, Options, build_adapter
from remapkit.tensors.spec import StateDictSpec, TensorSpec
from tests.adapters.effect import find_effective, find_magnitude_shape, find_peft_factors, find_transposed, multiply
from tests.adapters.random_rules import LEAVES, STARTS, Case, Draw, Shape

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}
BLOCK = re.compile(r"(?:blocks|layers|\.h)\.(\d+)\.")


def read_shapes(manifest: Path, blocks: int | None) -> dict[str, Shape]:
    """Return the header of a manifest, with the first blocks or layers of the model."""
    entries = json.loads(manifest.read_text(encoding="utf-8"))
    return {
        key: tuple(entry["shape"])
        for key, entry in entries.items()
        if blocks is None or all(int(at) < blocks for at in BLOCK.findall(key))
    }


def name_module(style: str, weight: str) -> str:
    module = weight.removesuffix(".weight")
    return STARTS[style] + (module.replace(".", "_") if style == "kohya" else module)


# ------------------------------------------------------------------------------------------------ adapters


@dataclass
class LoRA:
    """An adapter: its tensors, and the alphas that are in its config."""

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    """The LoRA rank of each weight."""

    def read_config(self) -> PeftConfig | None:
        return None if self.config is None else PeftConfig.of(self.config, "adapter_config.json")


def make_matrices(shape: Shape, rank: int, generator: torch.Generator, *, is_stack: bool) -> tuple[Tensor, Tensor]:
    """Return up and down of a linear layer or a convolution, or of each matrix of a stack."""

    def noise(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    if is_stack:
        return noise(*shape[:2], rank), noise(shape[0], rank, shape[2])
    return noise(shape[0], rank, *(1,) * (len(shape) - 2)), noise(rank, *shape[1:])


@st.composite
def adapters(draw: st.DrawFn, case: Case) -> LoRA:
    """The adapter of a case: random matrices, alphas where its style has them, other parts that the case names."""
    own = Draw(draw)
    ranks = {weight: own.number(1, 3) for weight in case.parts}
    has_alphas = case.style in LEAVES
    alphas = {weight: own.pick([1, 2, rank, 4]) for weight, rank in ranks.items() if has_alphas and own.flag(0.7)}
    made = make_adapter(case, ranks, alphas, own.number(0, 99))
    if case.style == "peft":
        made.config = draw(configs(made.ranks))
    return made


def make_adapter(case: Case, ranks: Mapping[str, int], alphas: Mapping[str, float], seed: int = 0) -> LoRA:
    """Return the parts that a case names, with random values."""
    made, generator = LoRA({}), torch.Generator().manual_seed(seed)
    up, down = LEAVES.get(case.style, ("lora_B", "lora_A"))
    for weight, parts in case.parts.items():
        name, shape = name_module(case.style, weight), case.weights[weight]
        if "lora" in parts:
            rank = made.ranks[weight] = ranks[weight]
            matrices = make_matrices(shape, rank, generator, is_stack=len(shape) == 3 == shape[0])
            made.tensors |= {f"{name}.{leaf}.weight": each for leaf, each in zip((up, down), matrices, strict=True)}
            if weight in alphas:
                made.tensors[f"{name}.alpha"] = torch.tensor(float(alphas[weight]))
        if "magnitude" in parts:
            leaf = f"{name}.{'dora_scale' if case.style in LEAVES else 'lora_magnitude_vector'}"
            sizes = find_magnitude_shape(name, torch.Size(shape), [leaf])
            made.tensors[leaf] = torch.rand(sizes, generator=generator) + 1
        others = {"diff": shape, "diff_b": shape[:1], f"{up}.bias": shape[:1]}
        made.tensors |= {
            f"{name}.{part}": torch.randn(others[part], generator=generator) for part in parts if part in others
        }
        if "whole" in parts:
            key = f"{STARTS[case.style]}{weight.removesuffix('.weight')}.bias"
            made.tensors[key] = torch.randn(shape[:1], generator=generator)
    return made


@st.composite
def configs(draw: st.DrawFn, ranks: Mapping[str, int]) -> dict[str, Any] | None:
    """The `adapter_config.json` of these modules; None if the file is not there."""
    own = Draw(draw)
    if own.flag(0.2):
        return None
    modules = {weight.removesuffix(".weight"): rank for weight, rank in ranks.items()}
    return {
        "peft_type": "LORA",
        "r": 7,
        "lora_alpha": own.pick([1, 2, 4]),
        "use_rslora": own.flag(0.2),
        "rank_pattern": modules,
        "alpha_pattern": {module: own.pick([1, 8]) for module in modules if own.flag(0.3)},
    }


def spec_of(state: Mapping[str, Tensor]) -> StateDictSpec:
    return StateDictSpec({key: TensorSpec(DTYPES[value.dtype], tuple(value.shape)) for key, value in state.items()})


def build(
    rules: remapkit.RuleSet,
    weights: Mapping[str, Tensor],
    lora: LoRA,
    options: Options,
    *,
    known: bool = True,
    prove: bool = True,
) -> tuple[AdapterRules, dict[str, Tensor]]:
    """Return the rules of an adapter, and the adapter that they make; `known`: alphas are read."""

    def read(key: str) -> float | None:
        return lora.tensors[key].item() if known else None

    built = build_adapter(rules, spec_of(weights), spec_of(lora.tensors), options, read)
    made = dict(lora.tensors)
    for text in built.texts:
        own = remapkit.loads(text)
        assert not prove or own.prove().level.value.startswith("proven"), text
        made = own(made)
    return built, made


def find_error(
    rules: remapkit.RuleSet,
    weights: Mapping[str, Tensor],
    lora: LoRA,
    built: AdapterRules,
    made: Mapping[str, Tensor],
) -> float:
    """Return the largest difference of the two ways, relative to the largest element of each tensor."""
    style = built.adapter.style
    names = {module.weight: module.name for module in built.adapter.modules}
    assert all(style.prefix in name for name in names.values())
    factors = None
    if lora.config is not None:
        ranks = {weight.removesuffix(".weight"): rank for weight, rank in lora.ranks.items()}
        found = find_peft_factors(lora.config, ranks)
        factors = {names[weight]: found[weight.removesuffix(".weight")] for weight in lora.ranks}
    exact = {key: value.double() for key, value in weights.items()}
    turned = find_transposed(lora.tensors, exact, names, lora.config) if style.format == "peft" else ()
    wanted = rules(find_effective(lora.tensors, exact, names, factors, turned))
    plain = rules(exact)
    after = {key: name_after(built, key) for key in plain}
    new = None
    if built.config is not None:
        ranks = {key.removesuffix(".weight"): rank for key, rank in find_ranks(made, plain, after).items()}
        found = find_peft_factors(built.config, ranks)
        new = {
            after[key]: found[key.removesuffix(".weight")] for key in plain if key.removesuffix(".weight") in found
        }
    turned = find_transposed(made, plain, after, built.config) if built.style.format == "peft" else ()
    got = find_effective(made, plain, after, new, turned)
    ups = {key: made.get(f"{name}.lora_up.weight", made.get(f"{name}.lora_B.weight")) for key, name in after.items()}
    assert all(up is None or up.ndim == plain[key].ndim for key, up in ups.items())
    assert {*wanted} == {*got}
    return max(compare(got[key], wanted[key]) for key in wanted)


def find_ranks(
    adapter: Mapping[str, Tensor], weights: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, int]:
    """Return the LoRA rank of each weight that has one."""
    found = {}
    for weight, name in names.items():
        if (up := adapter.get(f"{name}.lora_B.weight")) is not None:
            down, shape = adapter[f"{name}.lora_A.weight"], weights[weight].shape
            shape = shape[::-1] if len(shape) == 2 and len(up) != shape[0] else shape
            found[weight] = multiply(up, down, shape)[1]
    return found


def name_after(built: AdapterRules, weight: str) -> str:
    style, module = built.style, weight.removesuffix(".weight")
    return style.prefix + (module.replace(".", "_") if style.is_flat else module)


def compare(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or one.isnan().any():
        return math.inf
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30)) if one.numel() else 0.0


def needs_refusal(rules: remapkit.RuleSet, weights: Mapping[str, Tensor], lora: LoRA) -> bool:
    """Return whether no adapter of the joined LoRA ranks says what the rules make of the weights' updates.

    A target whose update has a higher rank needs it, as do one that is no matrix and one that is left as it is.
    """
    style = next(style for style, start in STARTS.items() if next(iter(lora.tensors)).startswith(start))
    exact = {key: value.double() for key, value in weights.items()}
    names = {key: name_module(style, key) for key in lora.ranks}
    updated = rules(find_effective(lora.tensors, exact, names))
    updates = {key: updated[key] - value for key, value in rules(exact).items()}
    if any(update.ndim < 2 for update in updates.values()) or not any(update.any() for update in updates.values()):
        return True
    return any(is_full(update.flatten(1), sum(lora.ranks.values())) for update in updates.values())


def is_full(matrix: Tensor, most: int) -> bool:
    """Return whether a matrix has a higher rank, or the highest that its size allows."""
    return int(torch.linalg.matrix_rank(matrix)) > min(most, *(size - 1 for size in matrix.shape))
