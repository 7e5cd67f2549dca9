"""The oracle of adapters: what one makes of each tensor of its model, from its definition, in double precision.

Nothing of the code under test is used here: each form (linear, convolution, stack of matrices) is written by itself.
Sources: peft/tuners/lora/layer.py and dora.py; ComfyUI comfy/weight_adapter/lora.py and base.py, comfy/lora.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def find_updates(
    adapter: State, weights: State, names: Mapping[str, str], factors: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Return up @ down * alpha / r for every weight; `names` is how the file calls the module of each weight.

    `factors` has alpha / r of the modules whose alpha is nowhere in the file.
    """
    found = {}
    for weight, module in names.items():
        parts = {leaf: adapter[key].double() for key, leaf in _list_parts(adapter, module)}
        if "up" not in parts:
            continue
        update, rank = multiply(parts["up"], parts["down"], weights[weight].shape)
        found[weight] = update * _find_factor(parts, module, rank, factors)
    return found


def multiply(up: Tensor, down: Tensor, shape: torch.Size) -> tuple[Tensor, int]:
    """Return up @ down in the shape of the weight, and the LoRA rank."""
    is_convolution = up.shape[0] == shape[0] and up.shape[1] == down.shape[0] and down.shape[1:] == shape[1:]
    is_convolution &= set(up.shape[2:]) <= {1}
    if len(shape) == 3 and up.ndim == down.ndim == 3 and not is_convolution:
        return torch.stack([one @ other for one, other in zip(up, down, strict=True)]), up.shape[2]
    rank = up.shape[1]
    assert down.shape[0] == rank
    return (up.reshape(up.shape[0], rank) @ down.reshape(rank, -1)).reshape(shape), rank


def find_effective(
    adapter: State,
    weights: State,
    names: Mapping[str, str],
    factors: Mapping[str, float] | None = None,
    transposed: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return all tensors of the model with the adapter applied; `transposed` are weights that are stored [IN, OUT].

    W + update and what is stored as a difference; with a magnitude m, each row of that times m / its norm; a bias
    with `diff_b`, and with `lora_B.bias` times the factor of its module. A tensor that the adapter has whole takes
    the place of the model's: it has its name, after what `names` have before the module (PEFT: the layer within).
    """
    weights = {key: weight.T if key in transposed else weight for key, weight in weights.items()}
    whole = {
        key.removeprefix(start).replace(".base_layer.", "."): key for key in adapter for start in _find_starts(names)
    }
    made = {key: adapter[whole.get(key, "")].double() if key in whole else weights[key].double() for key in weights}
    updates = find_updates(adapter, weights, names, factors)
    for weight, module in names.items():
        parts = {leaf: adapter[key].double() for key, leaf in _list_parts(adapter, module)}
        made[weight] = made[weight] + updates.get(weight, 0) + parts.get("diff", 0)
        if "magnitude" in parts:
            assert parts["magnitude"].shape == find_magnitude_shape(module, weights[weight].shape, adapter)
            rows = made[weight].flatten(1)
            made[weight] = (rows * (parts["magnitude"].reshape(-1, 1) / rows.norm(dim=1, keepdim=True))).reshape(
                made[weight].shape
            )
        bias = weight.removesuffix(".weight") + ".bias"
        if "diff_bias" in parts:
            made[bias] = made[bias] + parts["diff_bias"]
        if "up_bias" in parts:
            rank = multiply(parts["up"], parts["down"], weights[weight].shape)[1]
            made[bias] = made[bias] + parts["up_bias"] * _find_factor(parts, module, rank, factors)
    return {key: value.T if key in transposed else value for key, value in made.items()}


def find_magnitude_shape(module: str, weight: torch.Size, adapter: Iterable[str]) -> tuple[int, ...]:
    """Return the shape that a program wants: PEFT [OUT] and [1, OUT, 1, ...], ComfyUI [OUT, 1, ...].

    ComfyUI takes a magnitude whose first size is not that of the weight for one of columns.
    """
    ones = (1,) * (len(weight) - 2)
    if f"{module}.dora_scale" in adapter:
        return (weight[0], 1, *ones)
    return (1, weight[0], *ones) if ones else (weight[0],)


def find_transposed(
    adapter: State, weights: State, names: Mapping[str, str], config: Mapping[str, Any] | None
) -> set[str]:
    """Return the weights whose matrices are PEFT's of a Conv1D: by their shapes; square ones are like the others.

    Where all are square, `fan_in_fan_out` of the config says it.
    """
    fits: dict[tuple[bool, bool], set[str]] = {}
    for weight, name in names.items():
        if (up := adapter.get(f"{name}.lora_B.weight")) is not None and weights[weight].ndim == 2:
            both = len(up), adapter[f"{name}.lora_A.weight"].shape[1]
            shape = tuple(weights[weight].shape)
            fits.setdefault((both == shape, both == shape[::-1]), set()).add(weight)
    turned, square = fits.get((False, True), set()), fits.get((True, True), set())
    is_flagged = config is not None and config.get("fan_in_fan_out") is True
    assert config is None or is_flagged or not turned
    return turned | square if turned or (is_flagged and (True, False) not in fits) else set()


def find_peft_factors(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """Return the factor of each module as PEFT finds it in `adapter_config.json`; checks the LoRA ranks there."""
    found = {}
    for module, rank in ranks.items():
        own = {
            field: next(
                (v for k, v in (config.get(f"{field}_pattern") or {}).items() if re.match(rf"(.*\.)?({k})$", module)),
                config["r" if field == "rank" else "lora_alpha"],
            )
            for field in ("rank", "alpha")
        }
        assert own["rank"] == rank, (module, own, rank)
        found[module] = own["alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return found


LEAVES = {
    "lora_up.weight": "up", "lora_down.weight": "down", "lora_B.weight": "up", "lora_A.weight": "down",
    "lora_B": "up", "lora_A": "down", "alpha": "alpha", "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude", "diff": "diff", "diff_b": "diff_bias",
    "lora_B.bias": "up_bias", "lora_up.bias": "up_bias",
}  # fmt: skip


def _list_parts(adapter: Iterable[str], module: str) -> list[tuple[str, str]]:
    return [(f"{module}.{leaf}", role) for leaf, role in LEAVES.items() if f"{module}.{leaf}" in adapter]


def _find_factor(parts: State, module: str, rank: int, factors: Mapping[str, float] | None) -> float:
    if "alpha" in parts:
        return parts["alpha"].item() / rank
    return (factors or {}).get(module, 1.0)


def _find_starts(names: Mapping[str, str]) -> set[str]:
    """Return what stands before the names of modules, and nothing."""
    starts = {name.removesuffix(weight.removesuffix(".weight")) for weight, name in names.items()}
    return {"", *(start for start in starts if start.endswith("."))}
