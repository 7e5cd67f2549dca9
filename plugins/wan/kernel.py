"""RMS norm and SiLU in one pass over memory: the Triton kernel. Import this module only if Triton is installed.

Each cell's channels are read once, normalised, and written once, straight into the window of the next convolution.
`fast.compute_norm` computes the same in separate steps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["is_channels_last", "norm_silu"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ELEMENTS = 4096
"""Elements per program: 32 per thread with 4 warps."""


@triton.jit
def _norm_silu(
    x_ptr,
    gamma_ptr,
    out_ptr,
    rows,
    x_batch,
    out_batch,
    scale,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SILU: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    # 64-bit offsets: a large frame in fp32 has more than 2**31 bytes.
    at = row.to(tl.int64)[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + batch * x_batch + at, mask=mask, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32) * scale
    length = tl.maximum(tl.sqrt(tl.sum(x * x, axis=1)), 1e-12)
    y = x / length[:, None] * gamma[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(out_ptr + batch * out_batch + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def is_channels_last(x: Tensor, out: Tensor) -> bool:
    """Whether both are [B, C, ...] with channels innermost and no gaps between the cells of one batch element."""
    same = x.shape == out.shape and x.dtype == out.dtype and x.dtype in _DTYPES and x.device == out.device
    return same and _has_dense_rows(x) and _has_dense_rows(out)


def _has_dense_rows(x: Tensor) -> bool:
    wanted = x.shape[1]
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size > 1 and stride != wanted:
            return False
        wanted *= size
    return x.shape[1] == 1 or x.stride(1) == 1


def norm_silu(x: Tensor, gamma: Tensor, out: Tensor, *, silu: bool) -> Tensor:
    """Write the norm of `x` ([B, C, ...]) times `gamma` into `out`; with `silu`, apply SiLU."""
    B, C = x.shape[:2]
    rows = x[0, 0].numel()
    block_C = triton.next_power_of_2(C)
    block_R = max(1, _ELEMENTS // block_C)
    grid = (triton.cdiv(rows, block_R), B)
    with torch.cuda.device(x.device if x.is_cuda else -1):
        _norm_silu[grid](
            x,
            gamma,
            out,
            rows,
            x.stride(0),
            out.stride(0),
            C**0.5,
            C=C,
            BLOCK_C=block_C,
            BLOCK_R=block_R,
            SILU=silu,
            num_warps=4,
        )
    return out
