"""Encoder and decoder: stages of residual blocks with resampling between them, attention in the middle."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from .cache import Stream
from .config import VAEConfig
from .layers import (
    AttentionBlock,
    CausalConv3d,
    Downsample,
    ResidualBlock,
    RMSNorm,
    Upsample,
    add,
    add_duplicate,
    average_down,
)

__all__ = ["Decoder", "DownStage", "Encoder", "UpStage"]


class DownStage(nn.Module):
    """Residual blocks, then downsampling. `temporal` is None for the last stage, which keeps its size."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, *, temporal: bool | None, shortcut: bool
    ) -> None:
        super().__init__()
        widths = (in_channels, *[out_channels] * blocks)
        self.resnets = nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(widths))
        self.downsampler = None if temporal is None else Downsample(out_channels, temporal=temporal)
        self.out_channels = out_channels
        self.shortcut_factors = (2 if temporal else 1, 1 if temporal is None else 2) if shortcut else None

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        h_BCTHW = x_BCTHW
        for block in self.resnets:
            h_BCTHW = block(h_BCTHW, stream)
        if self.downsampler is not None:
            h_BCTHW = self.downsampler(h_BCTHW, stream)
        if self.shortcut_factors is None:
            return h_BCTHW
        time, space = self.shortcut_factors
        return add(h_BCTHW, average_down(x_BCTHW, self.out_channels, time=time, space=space), stream.fast)


class UpStage(nn.Module):
    """Residual blocks (one more than in the encoder), then upsampling. `temporal` is None for the last stage.

    Without the stage shortcut, the upsampler also halves the channels, as in Wan 2.1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, *, temporal: bool | None, shortcut: bool
    ) -> None:
        super().__init__()
        widths = (in_channels, *[out_channels] * (blocks + 1))
        self.resnets = nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(widths))
        self.out_channels = out_channels if shortcut or temporal is None else out_channels // 2
        self.upsampler = None if temporal is None else Upsample(out_channels, self.out_channels, temporal=temporal)
        self.shortcut_factors = (2 if temporal else 1, 2) if shortcut and temporal is not None else None

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        h_BCTHW = x_BCTHW
        for block in self.resnets:
            h_BCTHW = block(h_BCTHW, stream)
        if self.upsampler is not None:
            h_BCTHW = self.upsampler(h_BCTHW, stream)
        if self.shortcut_factors is None:
            return h_BCTHW
        time, space = self.shortcut_factors
        return add_duplicate(h_BCTHW, x_BCTHW, stream.fast, time=time, space=space, is_first=stream.is_first)


class Middle(nn.ModuleList):
    """A residual block, attention within each frame, a residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            [ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels)]
        )

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        before, attention, after = self
        out_BCTHW: Tensor = after(attention(before(x_BCTHW, stream), stream), stream)
        return out_BCTHW


class Head(nn.ModuleDict):
    """Norm, SiLU, causal convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            {
                "0": RMSNorm(in_channels, cell_dims=3, silu=True),
                "2": CausalConv3d(in_channels, out_channels, (3, 3, 3)),
            }
        )

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        out_BCTHW: Tensor = self["2"](x_BCTHW, stream, self["0"])
        return out_BCTHW


class Encoder(nn.Module):
    """One chunk of patches to one latent frame: mean and log-variance, before the model's `conv1`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.encoder_widths
        temporal = (*config.temporal_downsample, None)
        self.conv1 = CausalConv3d(config.patch_channels, widths[0], (3, 3, 3))
        self.downsamples = nn.ModuleList(
            DownStage(narrow, wide, config.num_res_blocks, temporal=halves, shortcut=config.stage_shortcuts)
            for (narrow, wide), halves in zip(pairwise(widths), temporal, strict=True)
        )
        self.middle = Middle(widths[-1])
        self.head = Head(widths[-1], config.z_dim * 2)

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        h_BCTHW = self.conv1(x_BCTHW, stream)
        for stage in self.downsamples:
            h_BCTHW = stage(h_BCTHW, stream)
        out_BCTHW: Tensor = self.head(self.middle(h_BCTHW, stream), stream)
        return out_BCTHW


class Decoder(nn.Module):
    """One latent frame to one chunk of patches: `begin` on the whole frame, then `finish` on it or on a part."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.decoder_widths
        temporal = (*config.temporal_upsample, None)
        self.conv1 = CausalConv3d(config.z_dim, widths[0], (3, 3, 3))
        self.middle = Middle(widths[0])
        self.upsamples = nn.ModuleList()
        channels = widths[0]
        for width, doubles in zip(widths[1:], temporal, strict=True):
            stage = UpStage(channels, width, config.num_res_blocks, temporal=doubles, shortcut=config.stage_shortcuts)
            self.upsamples.append(stage)
            channels = stage.out_channels
        self.head = Head(channels, config.patch_channels)

    def begin(self, x_BCTHW: Tensor, stages: int, stream: Stream) -> Tensor:
        """Run the part that needs the whole frame (attention), and the first `stages` stages."""
        h_BCTHW: Tensor = self.middle(self.conv1(x_BCTHW, stream), stream)
        for stage in list(self.upsamples)[:stages]:
            h_BCTHW = stage(h_BCTHW, stream)
        return h_BCTHW

    def finish(self, h_BCTHW: Tensor, stages: int, stream: Stream) -> Tensor:
        """Run the other stages on the whole frame or a tile: only convolutions, so tiles differ only near borders."""
        for stage in list(self.upsamples)[stages:]:
            h_BCTHW = stage(h_BCTHW, stream)
        out_BCTHW: Tensor = self.head(h_BCTHW, stream)
        return out_BCTHW
