"""The oracle of adapters: what an adapter adds to each weight, computed from its definition in double precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch


def find_updates(adapter: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], names: Mapping[str, str], factors: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
    """Return up @ down * alpha / r for every weight; `names` is how the file calls the module of each weight.

    Written for each form by itself (linear, convolution, stack of matrices), with nothing of the code under test.
    """
    found = {}
    for weight, module in names.items():
        parts = {leaf: adapter[key].double() for key, leaf in _list_parts(adapter, module)}
        if "up" not in parts:
            continue
        up, down, shape = parts["up"], parts["down"], weights[weight].shape
        is_convolution = up.shape[0] == shape[0] and up.shape[1] == down.shape[0] and down.shape[1:] == shape[1:]
        is_convolution &= set(up.shape[2:]) <= {1}
        if len(shape) == 3 and up.ndim == down.ndim == 3 and not is_convolution:
            rank = up.shape[2]
            update = torch.stack([one @ other for one, other in zip(up, down, strict=True)])
        else:
            rank = up.shape[1]
            update = (up.reshape(up.shape[0], rank) @ down.reshape(rank, -1)).reshape(shape)
        alpha = parts["alpha"].item() if "alpha" in parts else rank
        factor = (factors or {}).get(module, alpha / rank)
        found[weight] = update * factor
    return found


LEAVES = {
    "lora_up.weight": "up", "lora_down.weight": "down", "lora_B.weight": "up", "lora_A.weight": "down", "alpha": "alpha",
}  # fmt: skip


def _list_parts(adapter: Iterable[str], module: str) -> list[tuple[str, str]]:
    return [(f"{module}.{leaf}", role) for leaf, role in LEAVES.items() if f"{module}.{leaf}" in adapter]
