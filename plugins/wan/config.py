"""The widths and constants in which the Wan VAEs differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["VIDEO_CHANNELS", "WAN21_MEAN", "WAN21_STD", "WAN22_MEAN", "WAN22_STD", "VAEConfig"]

VIDEO_CHANNELS = 3

# Per-channel mean and standard deviation of the encoder's output over the training videos, published with the
# weights. No checkpoint contains them.
# fmt: off
WAN22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
WAN21_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
WAN21_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class VAEConfig:
    """The settings of a model. Raises `ValueError` with every problem at once.

    `dim` and `dec_dim` are the base widths of encoder and decoder; stage `i` is `dim_mult[i]` times as wide.
    `temporal_downsample[i]` says whether the resampling after stage `i` halves the frame rate too.
    `stage_shortcuts` are Wan 2.2's parameter-free paths around the stages (averaging down, duplicating up).

    >>> VAEConfig(dim=8, dec_dim=12, z_dim=48, dim_mult=(1, 2, 4, 4), num_res_blocks=2,
    ...           temporal_downsample=(False, True, True), patch_size=2, stage_shortcuts=True,
    ...           latents_mean=WAN22_MEAN, latents_std=WAN22_STD).encoder_widths
    (8, 8, 16, 32, 32)
    """

    dim: int
    dec_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    patch_size: int
    stage_shortcuts: bool
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    def __post_init__(self) -> None:
        problems = self._find_scalar_problems() or [*self._find_length_problems(), *self._find_shortcut_problems()]
        if problems:
            raise ValueError("invalid settings for a Wan VAE: " + "; ".join(problems))

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels before the first stage and after each."""
        return tuple(self.dim * mult for mult in (1, *self.dim_mult))

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels before the first stage and after each."""
        return tuple(self.dec_dim * mult for mult in (self.dim_mult[-1], *reversed(self.dim_mult)))

    @property
    def temporal_upsample(self) -> tuple[bool, ...]:
        return self.temporal_downsample[::-1]

    @property
    def spatial_factor(self) -> int:
        """Height and width of one latent cell, in pixels."""
        return int(self.patch_size * 2 ** (len(self.dim_mult) - 1))

    @property
    def temporal_factor(self) -> int:
        """Video frames per latent frame, except the first, which is one frame."""
        return int(2 ** sum(self.temporal_downsample))

    def locate_frames(self, start: int, chunk: int) -> slice:
        """Return the frames of chunk `chunk` in the video of a call that starts at chunk `start`.

        Chunk 0 is one frame, so chunk c > 0 begins at frame 1 + factor * (c - 1).
        """
        factor = self.temporal_factor
        first, last = (max(0, 1 + factor * (c - 1)) for c in (chunk, chunk + 1))
        offset = max(0, 1 + factor * (start - 1))
        return slice(first - offset, last - offset)

    @property
    def patch_channels(self) -> int:
        return VIDEO_CHANNELS * self.patch_size**2

    def _find_scalar_problems(self) -> list[str]:
        counts = {"dim": self.dim, "dec_dim": self.dec_dim, "z_dim": self.z_dim, "patch_size": self.patch_size}
        counts |= {"num_res_blocks": self.num_res_blocks}
        counts |= {f"dim_mult[{i}]": mult for i, mult in enumerate(self.dim_mult)}
        problems = [
            f"{name} must be a positive integer, got {value!r}"
            for name, value in counts.items()
            if not _is_count(value)
        ]
        if not self.dim_mult:
            problems.append("dim_mult must have at least one stage")
        return problems

    def _find_length_problems(self) -> list[str]:
        lengths = {
            "temporal_downsample": (
                len(self.temporal_downsample),
                len(self.dim_mult) - 1,
                "one fewer than the stages",
            ),
            "latents_mean": (len(self.latents_mean), self.z_dim, "z_dim"),
            "latents_std": (len(self.latents_std), self.z_dim, "z_dim"),
        }
        problems = [
            f"{name} has {found} values, expected {wanted} ({why})"
            for name, (found, wanted, why) in lengths.items()
            if found != wanted
        ]
        if not all(std > 0 and math.isfinite(std) for std in self.latents_std):
            problems.append("latents_std must be positive numbers")
        if not all(map(math.isfinite, self.latents_mean)):
            problems.append("latents_mean must be finite numbers")
        return problems

    def _find_shortcut_problems(self) -> list[str]:
        """List the problems: shortcuts need channels that divide evenly; otherwise each upsampling halves them."""
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            return []
        if not self.stage_shortcuts:
            return [
                f"decoder stage {i}: {width} channels cannot be halved"
                for i, width in enumerate(self.decoder_widths[1:-1])
                if width % 2
            ]
        problems = []
        down = zip(pairwise(self.encoder_widths), (*self.temporal_downsample, None), strict=True)
        for i, ((narrow, wide), temporal) in enumerate(down):
            if (narrow * _count_folded_cells(temporal)) % wide:
                problems.append(f"encoder stage {i}: {narrow} channels cannot be averaged down to {wide}")
        up = zip(pairwise(self.decoder_widths[:-1]), self.temporal_upsample, strict=True)
        for i, ((wide, narrow), temporal) in enumerate(up):
            if (narrow * _count_folded_cells(temporal)) % wide:
                problems.append(f"decoder stage {i}: {wide} channels cannot be duplicated up to {narrow}")
        return problems


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _count_folded_cells(temporal: bool | None) -> int:
    """Return how many cells a stage's resampling folds into one; `None` is the last stage, without resampling."""
    return 1 if temporal is None else 8 if temporal else 4
