"""References for upstream's layouts of the Wan VAEs, of which no library has a model: by way of diffusers' layout.

To diffusers' layout by a converter that is none of ours, or by hand; from there by the pack that two models verified.
"""

from __future__ import annotations

from collections.abc import Mapping

import oracles
from pack_kit import State
from torch import Tensor

import remapkit


def wan21_pth(state: Mapping[str, Tensor]) -> State:
    """diffusers' converter, then `wan21_diffusers`."""
    return dict(remapkit.load("wan21_diffusers")(oracles.wan21_vae(state)))


def wan22_pth(state: Mapping[str, Tensor]) -> State:
    """Renamed by hand (diffusers' converter loses tensors of 2.2), then `wan22_diffusers`."""
    return dict(remapkit.load("wan22_diffusers")(oracles.wan22_vae(state)))
