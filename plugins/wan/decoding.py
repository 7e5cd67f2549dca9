"""A checked call of `decode`: latent frames into a video, whole or in tiles, all at once or chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .cache import Rollout, Stream
from .config import VIDEO_CHANNELS, VAEConfig
from .fast import Fast
from .tiling import Tile

__all__ = ["Decoding", "RunStep", "StepName"]

StepName = Literal["encode", "begin", "finish"]
RunStep = Callable[[StepName, Tensor, int, Stream, Fast], Tensor]
"""Runs one chunk through a part of the model. Arguments: step, input, whole stages, stream, fast setting."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoding:
    """One checked call of `decode`: `run` gives one video, iterating gives it chunk by chunk."""

    run_step: RunStep
    config: VAEConfig
    latent_BCTHW: Tensor  # noqa: N815 (shape suffix)
    rollout: Rollout
    tiles: tuple[Tile, ...]
    whole_stages: int
    clamp: bool
    fast: Fast

    def run(self, *, keep: bool) -> Tensor:
        """Return the whole video. Without `keep` it cannot be continued: each tile's stream is dropped once done."""
        start, chunks = self.rollout.chunks, self.latent_BCTHW.shape[2]
        video_BCTHW = self._make_canvas(self.config.locate_frames(start, start + chunks - 1).stop)
        parts = [video_BCTHW[:, :, self.config.locate_frames(start, start + t)] for t in range(chunks)]
        with self.rollout.advance(chunks):
            if keep or len(self.tiles) == 1:
                for t, part_BCTHW in enumerate(parts):
                    self._paint_chunk(part_BCTHW, t)
            else:
                self._paint_by_tile(parts)
        return video_BCTHW.clamp_(-1, 1) if self.clamp else video_BCTHW

    def __iter__(self) -> Iterator[Tensor]:
        for t in range(self.latent_BCTHW.shape[2]):
            chunk_BCTHW = self._make_canvas(self.config.locate_frames(self.rollout.chunks, self.rollout.chunks).stop)
            with self.rollout.advance(1):
                self._paint_chunk(chunk_BCTHW, t)
            self.rollout.detach()
            yield chunk_BCTHW.clamp_(-1, 1) if self.clamp else chunk_BCTHW

    def _make_canvas(self, frames: int) -> Tensor:
        """Allocate the video; filled with zeros if there are several tiles, since tiles are added up."""
        B, _, _, H, W = self.latent_BCTHW.shape
        factor = self.config.spatial_factor
        empty = self.latent_BCTHW.new_empty if len(self.tiles) == 1 else self.latent_BCTHW.new_zeros
        return empty(B, VIDEO_CHANNELS, frames, H * factor, W * factor)

    def _paint_chunk(self, part_BCTHW: Tensor, t: int) -> None:
        """Decode latent frame `t`, all tiles of it. The streams of all tiles are in memory at once."""
        shared_BCTHW = self._begin_frame(t)
        for index, tile in enumerate(self.tiles):
            self._finish_tile(part_BCTHW, shared_BCTHW, index, tile)

    def _paint_by_tile(self, parts: list[Tensor]) -> None:
        """Decode tile by tile: one tile's stream is in memory at a time, plus all shared features."""
        shared = [self._begin_frame(t) for t in range(len(parts))]
        for index, tile in enumerate(self.tiles):
            for part_BCTHW, shared_BCTHW in zip(parts, shared, strict=True):
                self._finish_tile(part_BCTHW, shared_BCTHW, index, tile)
            del self.rollout.streams[f"tile {index}"]

    def _begin_frame(self, t: int) -> Tensor:
        """Compute the features of latent frame `t` before it is cut; all tiles share them."""
        latent_BCTHW = self.latent_BCTHW[:, :, t : t + 1]
        return self.run_step("begin", latent_BCTHW, self.whole_stages, self.rollout.stream("frame"), self.fast)

    def _finish_tile(self, part_BCTHW: Tensor, shared_BCTHW: Tensor, index: int, tile: Tile) -> None:
        """Decode one tile of one frame and blend it in: over all tiles, the weights of a pixel add up to one."""
        stream = self.rollout.stream(f"tile {index}")
        cut_BCTHW = tile.cut_frame(shared_BCTHW, 2**self.whole_stages)
        decoded_BCTHW = self.run_step("finish", cut_BCTHW, self.whole_stages, stream, self.fast)
        place_BCTHW = tile.cut_frame(part_BCTHW, self.config.spatial_factor)
        if len(self.tiles) == 1:
            place_BCTHW.copy_(decoded_BCTHW)
        else:
            place_BCTHW += (decoded_BCTHW * tile.weights(decoded_BCTHW.device)).to(place_BCTHW.dtype)
