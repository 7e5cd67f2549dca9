"""The layers of the Wan VAEs.

Variable names end in their shape: B batch, C channels, T frames, H and W cells of the current resolution, N = B*T.
Submodules have the names of the published checkpoints (`residual.0`, `resample.1`, ...), so that a state dict differs
from the published one only in how stages are grouped.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from .cache import Stream
from .fast import Fast, choose_memory_format, compile_norm, compute_norm

__all__ = [
    "AttentionBlock",
    "CausalConv3d",
    "Downsample",
    "RMSNorm",
    "ResidualBlock",
    "Upsample",
    "add",
    "add_duplicate",
    "average_down",
    "duplicate_up",
    "patchify",
    "unpatchify",
]


class RMSNorm(nn.Module):
    """Each cell's channel vector scaled to root mean square 1, times `gamma`; then SiLU, if `silu`.

    Computed in fp32 or wider and rounded once at the end: in bf16, every step would round to 8 bits.
    """

    def __init__(self, channels: int, *, cell_dims: int, silu: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * cell_dims))
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        return compute_norm(x, self._compute_scale(x), self.silu).to(x.dtype)

    def compute_into(self, out: Tensor, x: Tensor, fast: Fast) -> Tensor:
        """Like `forward`, but written to `out`, and without gradients."""
        if fast.norm == "triton":
            from . import kernel

            if kernel.is_channels_last(x, out):
                return kernel.norm_silu(x, self.gamma, out, silu=self.silu)
        if fast.norm == "compile":
            return out.copy_(compile_norm()(x, self._compute_scale(x), self.silu))
        # The steps of `compute_norm`, in place on one tensor: the same values with a quarter of the memory.
        scale = self._compute_scale(x)
        wide = x.to(scale.dtype)
        length = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min_(1e-12)
        wide = (wide / length if wide is x else wide.div_(length)).mul_(scale)
        return out.copy_(F.silu(wide, inplace=True) if self.silu else wide)

    def compute_fast(self, x: Tensor, fast: Fast) -> Tensor:
        """Like `forward`, computed as `fast` says."""
        return self(x) if fast.norm == "eager" else self.compute_into(torch.empty_like(x), x, fast)

    def _compute_scale(self, x: Tensor) -> Tensor:
        return self.gamma.to(torch.promote_types(x.dtype, torch.float32)) * self.gamma.shape[0] ** 0.5


class CausalConv3d(nn.Conv3d):
    """A 3D convolution that reads no later frames; the frames before the chunk come from the stream."""

    slot: str
    """The layer's name in the stream; set by the model, unique there."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], *, time_stride: int = 1
    ) -> None:
        kT, kH, kW = kernel
        spatial = (0, kH // 2, kW // 2)
        super().__init__(in_channels, out_channels, (kT, kH, kW), stride=(time_stride, 1, 1), padding=spatial)
        self.lookback = kT - time_stride

    def remember_frames(self, x_BCTHW: Tensor, stream: Stream) -> None:
        """Keep the chunk's last frames for the next chunk, without computing anything."""
        if stream.fast.windows:
            stream.shift_window(self._fill_window(x_BCTHW, stream, None), self.lookback)
        else:
            stream.extend(self.slot, x_BCTHW, self.lookback)

    def forward(  # type: ignore[override]
        self, x_BCTHW: Tensor, stream: Stream, norm: RMSNorm | None = None
    ) -> Tensor:
        """Compute the convolution of `norm(x)`, or of `x`."""
        if not stream.fast.windows:
            x_BCTHW = x_BCTHW if norm is None else norm.compute_fast(x_BCTHW, stream.fast)
            return super().forward(stream.extend(self.slot, x_BCTHW, self.lookback))
        window_BCTHW = self._fill_window(x_BCTHW, stream, norm)
        out_BCTHW = super().forward(window_BCTHW)
        stream.shift_window(window_BCTHW, self.lookback)
        return out_BCTHW

    def _fill_window(self, x_BCTHW: Tensor, stream: Stream, norm: RMSNorm | None) -> Tensor:
        """Return the layer's window with the chunk written into it."""
        window_BCTHW = stream.prepare_window(self.slot, x_BCTHW, self.lookback)
        place_BCTHW = window_BCTHW[:, :, self.lookback :]
        if norm is None:
            place_BCTHW.copy_(x_BCTHW)
        else:
            norm.compute_into(place_BCTHW, x_BCTHW, stream.fast)
        return window_BCTHW


class ResidualBlock(nn.Module):
    """(norm, SiLU, causal conv) twice, plus the input (through a 1x1x1 convolution where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": RMSNorm(in_channels, cell_dims=3, silu=True),
                "2": CausalConv3d(in_channels, out_channels, (3, 3, 3)),
                "3": RMSNorm(out_channels, cell_dims=3, silu=True),
                "6": CausalConv3d(out_channels, out_channels, (3, 3, 3)),
            }
        )
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        norm1, conv1, norm2, conv2 = self.residual.values()
        h_BCTHW: Tensor = conv1(x_BCTHW, stream, norm1)
        h_BCTHW = conv2(h_BCTHW, stream, norm2)
        return add(h_BCTHW, x_BCTHW if self.shortcut is None else self.shortcut(x_BCTHW), stream.fast)


class AttentionBlock(nn.Module):
    """Single-head self-attention within each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, cell_dims=2)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        return x_BCTHW + _apply_per_frame(lambda x_NCHW: self._attend(x_NCHW, stream.fast), x_BCTHW)

    def _attend(self, x_NCHW: Tensor, fast: Fast) -> Tensor:
        H, W = x_NCHW.shape[2:]
        qkv_NCL = self.to_qkv(self.norm.compute_fast(x_NCHW, fast)).flatten(2)
        # [N, 1 head, L = H*W, C]
        q, k, v = (part.transpose(1, 2).unsqueeze(1).contiguous() for part in qkv_NCL.chunk(3, dim=1))
        mixed_NLC: Tensor = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        out: Tensor = self.proj(torch.unflatten(mixed_NLC.transpose(1, 2), 2, (H, W)))
        return out


class Downsample(nn.Module):
    """Halves height and width; with `temporal` also the frames, from the second chunk on."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), time_stride=2) if temporal else None

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        x_BCTHW = _apply_per_frame(self._halve, x_BCTHW)
        if self.time_conv is None:
            return x_BCTHW
        if stream.is_first:
            self.time_conv.remember_frames(x_BCTHW, stream)
            return x_BCTHW
        out_BCTHW: Tensor = self.time_conv(x_BCTHW, stream)
        return out_BCTHW

    def _halve(self, x_NCHW: Tensor) -> Tensor:
        # One zero row below and one zero column to the right, so that an even side is exactly halved.
        out: Tensor = self.resample["1"](F.pad(x_NCHW, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Doubles height and width; with `temporal` also the frames, from the second chunk on."""

    def __init__(self, in_channels: int, out_channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(in_channels, out_channels, 3, padding=1)})
        self.time_conv = CausalConv3d(in_channels, in_channels * 2, (3, 1, 1)) if temporal else None

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        # The first frame is neither doubled nor remembered: the second chunk starts from zeros.
        if self.time_conv is not None and not stream.is_first:
            x_BCTHW = _interleave_frames(self.time_conv(x_BCTHW, stream), stream.fast)
        return _apply_per_frame(self._double, x_BCTHW)

    def _double(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.resample["1"](F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest-exact"))
        return out


def _apply_per_frame(layer: Callable[[Tensor], Tensor], x_BCTHW: Tensor) -> Tensor:
    """Apply a 2D layer to each frame."""
    B, T = x_BCTHW.shape[0], x_BCTHW.shape[2]
    x_NCHW = x_BCTHW.transpose(1, 2).flatten(0, 1)
    return torch.unflatten(layer(x_NCHW), 0, (B, T)).transpose(1, 2)


def add(h_BCTHW: Tensor, x_BCTHW: Tensor, fast: Fast) -> Tensor:
    """Return `h + x`; on the fast path in the memory of `h`, which must not be used elsewhere."""
    return h_BCTHW.add_(x_BCTHW) if fast.windows else h_BCTHW + x_BCTHW


def add_duplicate(h_BCTHW: Tensor, x_BCTHW: Tensor, fast: Fast, *, time: int, space: int, is_first: bool) -> Tensor:
    """Return `h + duplicate_up(x)`; on the fast path by broadcasting, if duplicates repeat along whole axes."""
    channels, cells = h_BCTHW.shape[1], (time, space, space)
    parts, rest = divmod(x_BCTHW.shape[1], channels)
    # Broadcasting works if the parts are exactly the cells of the first axes: then source channels vary along these
    # axes only, and along the other ones the values repeat.
    axes = next((n for n in range(4) if math.prod(cells[:n]) == parts), None)
    if not fast.windows or rest or axes is None:
        return add(h_BCTHW, duplicate_up(x_BCTHW, channels, time=time, space=space, is_first=is_first), fast)
    split = [size if axis < axes else 1 for axis, size in enumerate(cells)]
    x = torch.unflatten(x_BCTHW, 1, (channels, *split)).permute(0, 1, 5, 2, 6, 3, 7, 4)  # [B, C, T, t, H, h, W, w]
    if is_first:
        x, time = x[:, :, :, -1:], 1
    h = h_BCTHW.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))
    h.add_(x)
    return h_BCTHW


def _interleave_frames(x_BCTHW: Tensor, fast: Fast) -> Tensor:
    """[B, 2*C, T, H, W] -> [B, C, 2*T, H, W]: the first half of the channels are the even frames."""
    if fast.channels_last:
        B, C, T, H, W = x_BCTHW.shape
        # As below, but in the layout of the next layer.
        out = torch.empty(
            (B, C // 2, T * 2, H, W),
            dtype=x_BCTHW.dtype,
            device=x_BCTHW.device,
            memory_format=choose_memory_format(fast),
        )
        out[:, :, ::2], out[:, :, 1::2] = x_BCTHW.chunk(2, dim=1)
        return out
    return torch.unflatten(x_BCTHW, 1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def average_down(x_BCTHW: Tensor, channels: int, *, time: int, space: int) -> Tensor:
    """Fold `time` x `space` x `space` cells into channels, then average neighbouring channels down to `channels`.

    A chunk with too few frames (the first one) gets zero frames in front.

    >>> average_down(torch.ones(1, 2, 1, 4, 6), 4, time=2, space=2)[0, :, 0, 0, 0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    x_BCTHW = F.pad(x_BCTHW, (0, 0, 0, 0, -x_BCTHW.shape[2] % time, 0))
    B, C, T, H, W = x_BCTHW.shape
    cells = x_BCTHW.reshape(B, C, T // time, time, H // space, space, W // space, space)
    folded_BCTHW = cells.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
    return torch.unflatten(folded_BCTHW, 1, (channels, -1)).mean(dim=2)


def duplicate_up(x_BCTHW: Tensor, channels: int, *, time: int, space: int, is_first: bool) -> Tensor:
    """Repeat channels, then unfold them into `time` x `space` x `space` cells: the counterpart of `average_down`.

    The first chunk of a video stays one frame: the frames before it are cut off.

    >>> duplicate_up(torch.ones(1, 4, 1, 2, 3), 2, time=2, space=2, is_first=False).shape
    torch.Size([1, 2, 2, 4, 6])
    """
    repeats = channels * time * space * space // x_BCTHW.shape[1]
    cells = torch.unflatten(x_BCTHW.repeat_interleave(repeats, dim=1), 1, (channels, time, space, space))
    x_BCTHW = cells.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return x_BCTHW[:, :, time - 1 :] if is_first else x_BCTHW


def patchify(x_BCTHW: Tensor, size: int) -> Tensor:
    """Fold `size` x `size` pixels into channels, in the order (channel, offset in W, offset in H).

    W before H is the order that the weights were trained with. The other order would show only as a checkerboard.

    >>> x = torch.arange(8.0).reshape(1, 1, 1, 2, 4)
    >>> patchify(x, 2)[0, :, 0, 0, 0].tolist()
    [0.0, 4.0, 1.0, 5.0]
    >>> torch.equal(unpatchify(patchify(x, 2), 2), x)
    True
    """
    B, C, T, H, W = x_BCTHW.shape
    cells = x_BCTHW.reshape(B, C, T, H // size, size, W // size, size)
    return cells.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x_BCTHW: Tensor, size: int) -> Tensor:
    """The inverse of `patchify`."""
    cells = torch.unflatten(x_BCTHW, 1, (-1, size, size))  # [B, C, w, h, T, H, W]
    return cells.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
