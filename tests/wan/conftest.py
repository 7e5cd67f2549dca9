"""The Wan plugin under its import name, its golden data, and the renamings that the tests spell out by hand."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # `wan_kit`

try:
    import remapkit.plugins  # noqa: F401
except ModuleNotFoundError:
    # The same by hand: `remapkit.plugins.wan` is plugins/wan, and no package named `wan` is put on sys.path.
    package = ModuleType("remapkit.plugins")
    package.__path__ = [str(REPO / "plugins")]
    sys.modules["remapkit.plugins"] = package

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _no_gradients_unless_asked() -> object:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def golden() -> State:
    """Videos, and what upstream's own code made of them with the weights of `golden_state`."""
    return load_file(REPO / "tests/data/wan22_vae_tiny/golden.safetensors")


@pytest.fixture(scope="session")
def golden_state() -> State:
    """Upstream's small checkpoint (dim 8, decoder dim 12), keys as in `WanVAE`."""
    path = REPO / "tests/data/wan22_vae_tiny/upstream.pth"
    return {upstream22_key(key): tensor for key, tensor in torch.load(path, weights_only=True).items()}


@pytest.fixture(scope="session")
def published_keys() -> Callable[[str], dict[str, list[int]]]:
    """Keys and shapes of a published checkpoint, by the name of its file in keys/."""

    def read(name: str) -> dict[str, list[int]]:
        manifest = json.loads((Path(__file__).parent / "keys" / f"{name}.json").read_text())
        return {key: spec["shape"] for key, spec in manifest.items()}

    return read


@pytest.fixture(scope="session")
def key_map() -> Mapping[str, Callable[[str], str]]:
    """Foreign key -> key of `WanVAE` / `Wan21VAE`."""
    return {
        "upstream22": upstream22_key,
        "upstream21": upstream21_key,
        "diffusers22": diffusers_key,
        "diffusers21": diffusers21_key,
    }


def upstream22_key(key: str) -> str:
    parts = key.split(".")
    if len(parts) > 4 and parts[1] in ("downsamples", "upsamples"):
        side, stages, stage, _, slot, *rest = parts
        group = ["resnets", slot] if rest[0] in ("residual", "shortcut") else [stages.replace("samples", "sampler")]
        parts = [side, stages, stage, *group, *rest]
    return ".".join(parts)


def upstream21_key(key: str) -> str:
    parts = key.split(".")
    if parts[1] in ("downsamples", "upsamples"):
        side, stages, slot, *rest = parts
        stage, block = divmod(int(slot), 3 if side == "encoder" else 4)
        group = ["resnets", str(block)]
        if rest[0] not in ("residual", "shortcut"):
            group = [stages.replace("samples", "sampler")]
        parts = [side, stages, str(stage), *group, *rest]
    return ".".join(parts)


SLOTS = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
SLOTS |= {"conv_shortcut": "shortcut", "conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
SLOTS |= {"quant_conv": "conv1", "post_quant_conv": "conv2"}


def diffusers_key(key: str) -> str:
    for old, new in (
        ("mid_block.resnets.0", "middle.0"),
        ("mid_block.attentions.0", "middle.1"),
        ("mid_block.resnets.1", "middle.2"),
        ("down_blocks", "downsamples"),
        ("up_blocks", "upsamples"),
    ):
        key = key.replace(f"{old}.", f"{new}.")
    return ".".join(SLOTS.get(part, part) for part in key.split("."))


def diffusers21_key(key: str) -> str:
    key = diffusers_key(key).replace(".upsamplers.0.", ".upsampler.")
    return upstream21_key(key) if key.startswith("encoder.downsamples.") else key


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module, int], nn.Module]:
    """Fill every tensor of a module at random: gammas and biases too, so that a swap of any two shows."""

    def fill(module: nn.Module, seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in module.named_parameters():
                noise = torch.randn(tensor.shape, generator=generator)
                if name.endswith("gamma"):
                    tensor.copy_(1 + 0.3 * noise)
                elif name.endswith("bias"):
                    tensor.copy_(0.2 * noise)
                else:
                    tensor.copy_(noise / math.sqrt(tensor[0].numel()))
        return module.eval().requires_grad_(False)

    return fill


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """||out - ref|| / ||ref||"""

    def error(out: Tensor, ref: Tensor) -> float:
        assert out.shape == ref.shape
        difference = (out.double() - ref.double()).norm() / ref.double().norm()
        return float(difference)

    return error
