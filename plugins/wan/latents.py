"""The statistics that latents are normalised with."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import VAEConfig

__all__ = ["LatentStatistics"]


class LatentStatistics:
    """Mean and std of the latent channels, on every device used so far.

    They are made on first use rather than registered as buffers: no checkpoint has them, and a model built on meta
    must not be left with a buffer that has no values.
    """

    def __init__(self, config: VAEConfig) -> None:
        self._config = config
        self._by_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def on_device(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and std as [1, C, 1, 1, 1] in fp32."""
        if device not in self._by_device:
            # Outside inference mode: an inference tensor kept from the first call would break a later call under
            # autograd.
            with torch.inference_mode(False):
                mean, std = (
                    torch.tensor(values, dtype=torch.float32, device=device).reshape(1, -1, 1, 1, 1)
                    for values in (self._config.latents_mean, self._config.latents_std)
                )
            # `setdefault`: of two threads, the first pair stays, because a CUDA graph may have recorded its address.
            self._by_device.setdefault(device, (mean, std))
        return self._by_device[device]
