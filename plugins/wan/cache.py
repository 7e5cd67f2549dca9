"""The state kept between calls that code one video.

A causal convolution over time reads the last frames before its chunk. These frames, one small tensor per layer, are
the whole state: with them, a video can be coded a few frames at a time with the same result as all at once.

A `Stream` holds the state of some layers, for the whole picture or for one tile; a `Rollout` holds all streams of one
direction (encoding or decoding) and what they are bound to; a `WanCache` holds both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from .fast import PLAIN, Fast, choose_memory_format

__all__ = ["Rollout", "RolloutKey", "Stream", "WanCache", "WanCacheError", "choose_cache"]


class WanCacheError(ValueError):
    """The cache does not fit the call: another model, another size, or a previous call that failed partway."""


class Host(Protocol):
    """Fixed buffers that may hold a stream's frames for a while; see `graphs.Arena`."""

    stream: Stream
    lock: AbstractContextManager[Any]
    """Must be held to read the buffers, and to move a stream in or out."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Stream:
    """The frames that some layers remember, of the whole picture or of one tile.

    Invariant: without a host, `histories` holds the frames. With a host, they are in `host.stream`, and
    `histories` and `windows` of this stream are empty.
    """

    chunks: int = 0
    """Chunks coded so far. The first chunk is one frame; temporal resampling starts after it."""
    histories: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> its last input frames, [B, C, frames, H, W]."""
    windows: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> the buffer whose first frames are its history, [B, C, frames + T, H, W]."""
    fast: Fast = PLAIN
    """How the current chunk is computed."""
    host: Host | None = None
    """Where the frames are, if not in this object."""

    @property
    def is_first(self) -> bool:
        """Whether the current chunk is the first one."""
        return self.chunks == 0

    def extend(self, slot: str, x_BCTHW: Tensor, frames: int) -> Tensor:
        """Prepend the `frames` frames before `x`, and keep the last `frames` of the result under `slot`.

        Frames before the first one are zeros.

        >>> stream = Stream()
        >>> stream.extend("conv", torch.ones(1, 1, 1, 1, 1), 2).flatten().tolist()
        [0.0, 0.0, 1.0]
        >>> stream.extend("conv", torch.full((1, 1, 2, 1, 1), 5.0), 2).flatten().tolist()
        [0.0, 1.0, 5.0, 5.0]
        """
        history = self.histories.get(slot)
        if history is None:
            B, C, _, H, W = x_BCTHW.shape
            history = x_BCTHW.new_zeros(B, C, frames, H, W)
        joined_BCTHW = torch.cat((history, x_BCTHW), dim=2)
        # `clone`: a view would keep all of `joined` alive until the next chunk.
        self.histories[slot] = joined_BCTHW[:, :, -frames:].clone()
        self.windows.pop(slot, None)
        return joined_BCTHW

    def prepare_window(self, slot: str, x_BCTHW: Tensor, frames: int) -> Tensor:
        """Return the buffer of `slot` for a chunk like `x`: `frames` frames of history, then room for the chunk.

        Once the chunk has been written and used, `shift_window` makes it history. A buffer never shrinks.

        >>> stream, x = Stream(), torch.ones(1, 1, 1, 1, 1)
        >>> for value in (1.0, 5.0):
        ...     window = stream.prepare_window("conv", x, 2)
        ...     window[:, :, 2:] = value * x
        ...     print(window.flatten().tolist())
        ...     stream.shift_window(window, 2)
        [0.0, 0.0, 1.0]
        [0.0, 1.0, 5.0]
        """
        B, C, T, H, W = x_BCTHW.shape
        window = self.windows.get(slot)
        if window is None or window.shape[2] < frames + T:
            # Later calls write to it, possibly outside the inference mode of this one.
            with torch.inference_mode(False), torch.no_grad():
                layout = choose_memory_format(self.fast)
                window = torch.empty(
                    (B, C, frames + T, H, W), dtype=x_BCTHW.dtype, device=x_BCTHW.device, memory_format=layout
                )
                before = self.histories.get(slot)
                if before is None:
                    window[:, :, :frames].zero_()
                else:
                    window[:, :, :frames].copy_(before)
            self.windows[slot] = window
            self.histories[slot] = window[:, :, :frames]
        return window[:, :, : frames + T]

    @staticmethod
    def shift_window(window_BCTHW: Tensor, frames: int) -> None:
        """Move the last `frames` frames of a window to its front."""
        T = window_BCTHW.shape[2] - frames
        if frames <= T:
            window_BCTHW[:, :, :frames].copy_(window_BCTHW[:, :, T:])
            return
        # Source and destination overlap: copying frame by frame, front first, reads each frame before overwriting it.
        for i in range(frames):
            window_BCTHW[:, :, i].copy_(window_BCTHW[:, :, T + i])

    def find_holder(self) -> Stream:
        """Return the stream that holds the frames: this one, or its host's."""
        return self if self.host is None else self.host.stream

    def lock_frames(self) -> AbstractContextManager[Any]:
        """Return a lock that keeps the frames in place; without it another caller may evict them from the host."""
        host = self.host
        return nullcontext() if host is None else host.lock

    def leave_host(self) -> None:
        """Copy the frames out of the host into memory of this stream."""
        with self.lock_frames():
            if self.host is None:
                return
            # Another caller may run this, in an inference mode that the owner of the frames is not in.
            with torch.inference_mode(False), torch.no_grad():
                self.histories = {slot: history.clone() for slot, history in self.host.stream.histories.items()}
            # `host` last: from then on, readers look for the frames here.
            self.windows = {}
            self.host = None

    def detach(self) -> None:
        """Detach the frames from the autograd graph."""
        for slot, history in self.histories.items():
            if history.requires_grad:
                self.histories[slot] = history.detach()

    def change_histories(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every remembered tensor by the result of `change`."""
        self.leave_host()
        self.histories = {slot: change(history) for slot, history in self.histories.items()}
        self.windows = {}

    def clone(self) -> Stream:
        """An independent copy."""
        with self.lock_frames():
            return Stream(
                self.chunks, {slot: history.clone() for slot, history in self.find_holder().histories.items()}
            )

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory, buffers included."""
        with self.lock_frames():
            held = self.find_holder()
            tensors = [held.windows.get(slot, history) for slot, history in held.histories.items()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, slots=True)
class RolloutKey:
    """Identifies what the remembered frames belong to; a call with another key must not continue them."""

    model: object
    """Identity of the model instance; compared with `is`."""
    label: str
    """The model's name in messages."""
    batch: int
    height: int
    width: int
    dtype: torch.dtype
    tiles: tuple[tuple[int, int, int, int], ...]
    """The tiles: (top, bottom, left, right) of each, in latent cells."""
    whole_stages: int
    """Decoder stages that run on the whole frame, before it is cut into tiles."""
    autocast: torch.dtype | None = None
    """The dtype of autocast, which is then the dtype of the remembered frames; None if autocast is off."""

    def list_mismatches(self, other: RolloutKey) -> list[str]:
        """Return the reasons, as text, why `other` cannot continue a rollout of `self`."""
        problems = []
        if self.model is not other.model:
            problems.append(f"it was filled by another model instance ({self.label}), not by this {other.label}")
        if self.batch != other.batch:
            problems.append(f"it holds a batch of {self.batch}, this call has {other.batch}")
        if (self.height, self.width) != (other.height, other.width):
            problems.append(
                f"it holds frames of {self.height}x{self.width}, this call has {other.height}x{other.width}"
            )
        elif (self.tiles, self.whole_stages) != (other.tiles, other.whole_stages):
            problems.append(f"it was filled in {len(self.tiles)} tile(s), this call has another tiling")
        if self.dtype != other.dtype:
            problems.append(f"it was filled in {self.dtype}, the model computes in {other.dtype} now")
        if self.autocast != other.autocast:
            was, now = (
                f"under autocast to {x}" if x else "without autocast" for x in (self.autocast, other.autocast)
            )
            problems.append(f"it was filled {was}, this call is {now}")
        return problems


@dataclass(slots=True, eq=False)
class Rollout:
    """One direction (encoding or decoding) of one video: its key, its progress, its streams."""

    key: RolloutKey | None = None
    chunks: int = 0
    """Chunks coded so far, which is also the number of latent frames."""
    streams: dict[str, Stream] = field(default_factory=dict)
    """`frame` for the layers that run on whole frames, and one stream per tile."""
    is_torn: bool = False
    """A call failed within a chunk: some layers have advanced, others have not, so no call can continue."""

    def stream(self, part: str) -> Stream:
        """Return the stream of a part of the picture, created on first use."""
        return self.streams.setdefault(part, Stream())

    @contextmanager
    def advance(self, chunks: int) -> Iterator[None]:
        """Enclose the coding of some chunks with all their tiles. If that raises, the rollout stays torn."""
        self.is_torn = True
        yield
        self.chunks += chunks
        self.is_torn = False

    def bind_key(self, key: RolloutKey, device: torch.device) -> None:
        """Check that `key` may continue this rollout; the first call binds it. Raises `WanCacheError`."""
        problems = [] if self.key is None else self.key.list_mismatches(key)
        where = {str(history.device) for history in self.histories()} - {str(device)}
        if where:
            problems.append(
                f"it is on {', '.join(sorted(where))}, the model on {device}: move it with cache.to('{device}')"
            )
        if self.is_torn:
            problems.append("an earlier call failed half-way through a chunk")
        if problems:
            raise WanCacheError(
                "this cache cannot continue the rollout: "
                + "; ".join(problems)
                + ". To start a new video, pass a new WanCache() or call reset()"
            )
        self.key = key

    def histories(self) -> Iterator[Tensor]:
        """Yield every remembered tensor."""
        for stream in self.streams.values():
            with stream.lock_frames():
                histories = list(stream.find_holder().histories.values())
            yield from histories

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory."""
        return sum(stream.nbytes for stream in self.streams.values())

    def clone(self) -> Rollout:
        """An independent copy."""
        return replace(self, streams={part: stream.clone() for part, stream in self.streams.items()})

    def change_histories(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every remembered tensor by the result of `change`."""
        for stream in self.streams.values():
            stream.change_histories(change)

    def detach(self) -> None:
        """Detach the remembered frames from the autograd graph."""
        for stream in self.streams.values():
            stream.detach()


class WanCache:
    """The state of one video: pass the same object to `encode` or `decode` again to continue the video.

    Encoding and decoding have separate state, so one cache serves both. The first use binds a direction to that model
    instance, batch, frame size, dtype and tiling; any other use raises `WanCacheError`. Gradients do not reach into
    earlier calls: kept frames are detached.

    >>> from remapkit.plugins.wan.vae import WanVAE
    >>> vae, cache = WanVAE(dim=8, dec_dim=12), WanCache()
    >>> with torch.inference_mode():
    ...     first = vae.encode(torch.zeros(1, 3, 1, 32, 48), cache)
    ...     later = vae.encode(torch.zeros(1, 3, 8, 32, 48), cache)
    >>> first.shape[2], later.shape[2], cache.encoding.chunks
    (1, 2, 3)
    >>> cache.reset().encoding.chunks
    0
    """

    __slots__ = ("decoding", "encoding")

    encoding: Rollout
    decoding: Rollout

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> Self:
        """Forget everything, including the binding to a model: the next call starts a new video."""
        self.encoding, self.decoding = Rollout(), Rollout()
        return self

    def clone(self) -> WanCache:
        """An independent copy, for example to continue one video in two ways."""
        copy = WanCache()
        copy.encoding, copy.decoding = self.encoding.clone(), self.decoding.clone()
        return copy

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Move the state in place, as `nn.Module.to` does: to follow a model, or to keep a video on the CPU."""
        for rollout in (self.encoding, self.decoding):
            rollout.change_histories(lambda history: history.to(device, non_blocking=non_blocking))
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory that the cache holds."""
        return self.encoding.nbytes + self.decoding.nbytes

    def __repr__(self) -> str:
        chunks = f"encoding: {self.encoding.chunks} chunks, decoding: {self.decoding.chunks} chunks"
        return f"WanCache({chunks}, {self.nbytes / 2**20:.1f} MiB)"


def choose_cache(cache: WanCache | None) -> WanCache:
    """Return the caller's cache, or a new one for this call alone."""
    if cache is None:
        return WanCache()
    if not isinstance(cache, WanCache):
        raise TypeError(f"cache must be a WanCache or None, got {type(cache).__name__}")
    return cache
