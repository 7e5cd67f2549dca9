"""Settings for how a model computes: the plain way, or faster ways with the same result.

`Fast` switches the parts one by one, so that each can be measured and compared with the plain way; "auto" picks them
for the device. With gradients, everything is computed the plain way.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = [
    "PLAIN",
    "Fast",
    "Setting",
    "WanFastError",
    "autotune_cudnn",
    "choose_fast",
    "choose_memory_format",
    "find_autocast_dtype",
    "lay_out_weights",
]

Setting = Literal["auto", "off"]


class WanFastError(RuntimeError):
    """A part of the fast path that was requested by name cannot run here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fast:
    """The parts of the fast path; without any of them, the plain way.

    Args:
        windows: each causal convolution keeps one buffer for the frames before the chunk and the chunk itself. The
            layer before writes into it, and afterwards its last frames move to the front: nothing is concatenated,
            padded or cloned. Bit for bit the plain result. Costs memory: a chunk per convolution.
        channels_last: weights and features with channels innermost, the fastest layout for CUDA's convolutions. The
            weights of the model change their memory layout at the first call.
        norm: RMS norm and SiLU as separate steps ("eager"), as one Triton kernel ("triton", with channels_last; eager
            steps where the layout does not fit), or through torch.compile ("compile").
        graphs: the steady chunk is recorded once as a CUDA graph, then replayed. Needs `windows`.
        autotune: cuDNN benchmarks its algorithms at the first chunk of a size (CUDA only).

    Raises `ValueError` for invalid combinations.

    >>> Fast(windows=True).norm
    'eager'
    """

    windows: bool = False
    channels_last: bool = False
    norm: Literal["eager", "triton", "compile"] = "eager"
    graphs: bool = False
    autotune: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{field.name} must be a bool, got {value!r}"
            for field in fields(self)
            if field.name != "norm" and not isinstance(value := getattr(self, field.name), bool)
        ]
        if self.norm not in ("eager", "triton", "compile"):
            problems.append(f"norm must be 'eager', 'triton' or 'compile', got {self.norm!r}")
        if self.graphs and not self.windows:
            problems.append("graphs=True needs windows=True: a graph replays on fixed addresses")
        if problems:
            raise ValueError("invalid settings for a fast path: " + "; ".join(problems))


PLAIN = Fast()


def choose_fast(
    setting: Setting | Fast, device: torch.device, dtype: torch.dtype, *, grads: bool, graphs_work: bool
) -> Fast:
    """Choose how to compute on a device. Raises `WanFastError` if a requested part cannot run there."""
    if grads or device.type == "meta" or setting == "off":
        return PLAIN
    if setting == "auto":
        return _choose_automatic(device, dtype)
    assert isinstance(setting, Fast)
    problems = []
    if setting.graphs and not graphs_work:
        problems.append(f"graphs=True needs CUDA, the model is on {device}")
    if setting.norm == "triton" and not has_triton():
        problems.append("norm='triton' needs the package triton, which is not installed")
    elif setting.norm == "triton" and device.type != "cuda" and not is_interpreted():
        problems.append(f"norm='triton' needs CUDA (or TRITON_INTERPRET=1), the model is on {device}")
    if problems:
        raise WanFastError(
            "this fast path cannot run here: " + "; ".join(problems) + ". optimize('auto') picks what can"
        )
    return setting


def _choose_automatic(device: torch.device, dtype: torch.dtype) -> Fast:
    if device.type != "cuda":
        # Measured: on top of the buffers, channels last about halves the time in 16 bits and gains nothing in fp32.
        return Fast(windows=True, channels_last=dtype in (torch.bfloat16, torch.float16) and device.type == "cpu")
    norm: Literal["triton", "eager"] = "triton" if has_triton() else "eager"
    return Fast(windows=True, channels_last=True, norm=norm, graphs=True, autotune=True)


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it is imported only to run a kernel."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def choose_memory_format(fast: Fast) -> torch.memory_format:
    """Return the memory format of a video's features."""
    return torch.channels_last_3d if fast.channels_last else torch.contiguous_format


def lay_out_weights(modules: list[nn.Module], *, channels_last: bool) -> None:
    """Give the weights of convolutions the memory format of the features; values, names and shapes do not change."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
    # Outside inference mode: an inference tensor could not be trained later.
    with torch.inference_mode(False), torch.no_grad():
        for module in modules:
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d | nn.Conv3d):
                    wanted = formats.get(layer.weight.dim(), torch.contiguous_format)
                    if not layer.weight.is_contiguous(memory_format=wanted):
                        layer.weight.data = layer.weight.data.contiguous(memory_format=wanted)


@contextmanager
def autotune_cudnn(fast: Fast, device: torch.device) -> Iterator[None]:
    """Switch cuDNN's benchmark mode on for the duration of a chunk."""
    if not fast.autotune or device.type != "cuda":
        yield
        return
    _BENCHMARK.enter()
    try:
        yield
    finally:
        _BENCHMARK.leave()


class _Benchmark:
    """The global `torch.backends.cudnn.benchmark`: set by the first thread to enter, restored by the last to leave.

    If every thread restored the value that it found, overlapping threads would leave it on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = False

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.backends.cudnn.benchmark
                torch.backends.cudnn.benchmark = True
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.backends.cudnn.benchmark = self._before


_BENCHMARK = _Benchmark()


def find_autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast on a device; None if it is off.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     find_autocast_dtype(torch.device("cpu"))
    torch.bfloat16
    """
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def compute_norm(x: Tensor, scale: Tensor, silu: bool) -> Tensor:
    """Compute RMS norm over dimension 1, then SiLU, in `scale`'s dtype: the reference for every fused version.

    >>> compute_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([5.0, 10.0]), False)
    tensor([[3., 8.]])
    """
    wide = x.to(scale.dtype)
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(1e-12)
    wide = wide / length * scale
    return nn.functional.silu(wide) if silu else wide


@cache
def compile_norm() -> object:
    """Return `compute_norm` compiled, once per process."""
    return torch.compile(compute_norm, dynamic=True)
