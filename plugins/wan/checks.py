"""Checks of a call before anything runs: weights, input shape, values. Every problem is reported at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .config import VIDEO_CHANNELS, VAEConfig

__all__ = ["WanInputError", "WanNotLoadedError", "check_input", "check_values", "find_placement"]

# Pictures in [-1, 1] stay far below this even if resampling overshoots; pictures in [0, 255] exceed it at once.
_FAR_OUT_OF_RANGE = 10.0

What = Literal["video", "latent"]


class WanInputError(ValueError):
    """The input cannot be coded; the message lists every reason."""


class WanNotLoadedError(RuntimeError):
    """Weights that the call needs have no data, or are not all on one device in one dtype."""


def find_placement(weights: Iterable[tuple[str, Tensor]], wanted: torch.device) -> tuple[torch.device, torch.dtype]:
    """Return the one device and compute dtype of the weights. Raises `WanNotLoadedError`.

    `wanted` is the device of the input: for an input on meta, weights may be on meta (only shapes are computed).
    """
    by_device: dict[str, list[str]] = {}
    by_dtype: dict[str, list[str]] = {}
    total = 0
    for fqn, weight in weights:
        total += 1
        device, dtype = weight.device, weight.dtype
        by_device.setdefault(str(device), []).append(fqn)
        # Norms compute in fp32 regardless of the dtype of gamma.
        if not fqn.endswith(".gamma"):
            by_dtype.setdefault(str(dtype), []).append(fqn)
            compute = dtype
    missing = by_device.get("meta", [])
    if missing and not (len(by_device) == 1 and wanted.type == "meta"):
        raise WanNotLoadedError(
            f"{len(missing)} of the {total} weights needed are on meta, without data: {_list_some(missing)}. "
            "Load a checkpoint first: from_checkpoint(path), or load_state_dict(..., strict=True, assign=True)"
        )
    for what, groups in (("devices", by_device), ("dtypes", by_dtype)):
        if len(groups) > 1:
            parts = "; ".join(f"{len(fqns)} on {place} ({_list_some(fqns, 1)})" for place, fqns in groups.items())
            raise WanNotLoadedError(f"the weights needed are spread over several {what}: {parts}. Use .to(...)")
    return device, compute


def check_input(what: What, x: Tensor, config: VAEConfig, device: torch.device, *, is_first: bool) -> None:
    """Check rank, channels, frames, size, dtype and device. Raises `WanInputError` with all problems at once."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} must be a torch.Tensor, got {type(x).__name__}")
    problems = _find_shape_problems(what, tuple(x.shape), config, is_first=is_first)
    if not x.is_floating_point():
        hint = "; convert bytes with x.float() / 127.5 - 1" if what == "video" else ""
        problems.append(f"its dtype must be floating, got {x.dtype}{hint}")
    if x.device != device:
        problems.append(f"it is on {x.device} but the model is on {device}: move one of them with .to(...)")
    if problems:
        raise WanInputError(f"this {what} of shape {list(x.shape)} cannot be coded: " + "; ".join(problems))


def _find_shape_problems(what: What, shape: tuple[int, ...], config: VAEConfig, *, is_first: bool) -> list[str]:
    if len(shape) != 5:
        return [f"it has {len(shape)} dimensions, expected 5: [batch, channels, frames, height, width]"]
    B, C, T, H, W = shape
    wanted_C = VIDEO_CHANNELS if what == "video" else config.z_dim
    problems = []
    if B == 0:
        problems.append("the batch is empty")
    if wanted_C != C:
        swapped = " (dimension 2 has: frames and channels look swapped)" if wanted_C == T else ""
        problems.append(f"it has {C} channels, expected {wanted_C}{swapped}")
    if what == "video":
        problems += _find_frame_problems(T, config.temporal_factor, is_first=is_first)
        problems += [
            f"{side} {length} is not a multiple of {config.spatial_factor} "
            f"(nearest: {_suggest_lengths(length, config)})"
            for side, length in (("height", H), ("width", W))
            if length == 0 or length % config.spatial_factor
        ]
    elif 0 in (T, H, W):
        problems.append("it has no frames" if T == 0 else "its frames are empty")
    return problems


def _find_frame_problems(T: int, factor: int, *, is_first: bool) -> list[str]:
    if T > 0 and T % factor == (1 % factor if is_first else 0):
        return []
    if is_first:
        return [f"{T} frames do not start a video: expected 1 + {factor}k (1, {1 + factor}, {1 + 2 * factor}, ...)"]
    return [
        f"{T} frames do not continue a video: after the first call expected {factor}k ({factor}, {2 * factor}, ...)"
    ]


def _suggest_lengths(length: int, config: VAEConfig) -> str:
    below = length // config.spatial_factor * config.spatial_factor
    return " or ".join(str(n) for n in (below, below + config.spatial_factor) if n)


def check_values(what: What, x: Tensor) -> None:
    """Refuse NaN, infinity, and a video with a range other than [-1, 1]. Raises `WanInputError`.

    Costs one pass over `x` and, on an accelerator, a synchronisation.
    """
    if x.is_meta:
        return
    low, high = torch.stack(torch.aminmax(x.detach())).tolist()  # NaN propagates
    if not (-float("inf") < low and high < float("inf")):
        bad = ~torch.isfinite(x.detach())
        first = bad.nonzero()[0].tolist()
        raise WanInputError(
            f"this {what} holds {int(bad.sum())} values that are NaN or infinite, the first at [b, c, t, h, w] = "
            f"{first}: attention and the cache would spread them over the whole frame and all later ones"
        )
    if what == "video" and max(-low, high) > _FAR_OUT_OF_RANGE:
        raise WanInputError(
            f"this video has values from {low:g} to {high:g}, expected [-1, 1]: convert bytes with x / 127.5 - 1"
        )


def _list_some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
