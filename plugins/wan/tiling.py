"""Large frames cut into overlapping tiles, and the weights that blend them again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Tile", "Tiling", "whole_frame"]


@dataclass(frozen=True, slots=True)
class Span:
    """One tile's part of an axis: cells `start` to `stop`, and how much each of its pixels counts."""

    start: int
    stop: int
    weights: tuple[float, ...]

    def pixels(self, factor: int) -> slice:
        return slice(self.start * factor, self.stop * factor)


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of latent cells, and its pixels."""

    rows: Span
    columns: Span

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) in latent cells."""
        return self.rows.start, self.rows.stop, self.columns.start, self.columns.stop

    def cells(self, latent_BCTHW: Tensor) -> Tensor:
        return latent_BCTHW[..., self.rows.start : self.rows.stop, self.columns.start : self.columns.stop]

    def add_to(self, video_BCTHW: Tensor, tile_BCTHW: Tensor, factor: int) -> None:
        """Add the decoded tile to its place in the frame, weighted. The weights of all tiles add up to one."""
        device = tile_BCTHW.device
        weights_HW = torch.outer(torch.tensor(self.rows.weights), torch.tensor(self.columns.weights)).to(device)
        part_BCTHW = video_BCTHW[..., self.rows.pixels(factor), self.columns.pixels(factor)]
        part_BCTHW += (tile_BCTHW * weights_HW).to(part_BCTHW.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Decode frames larger than `height` x `width` in tiles of that size, blended over at least `overlap` pixels.

    All three are pixels of the video and multiples of the model's spatial factor (16 for Wan 2.2, 8 for Wan 2.1). The
    tiles are spread evenly and blended linearly. Memory then follows the tile, not the frame.

    Tiles are an approximation: attention sees one tile only, and convolutions see zeros behind its border.
    """

    height: int = 512
    width: int = 512
    overlap: int = 128

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value!r} is not a whole number of pixels above zero"
            for name, value in (("height", self.height), ("width", self.width))
            if not isinstance(value, int) or value <= 0
        ]
        if not isinstance(self.overlap, int) or self.overlap < 0:
            problems.append(f"overlap={self.overlap!r} is not a whole number of pixels")
        elif not problems and 2 * self.overlap > min(self.height, self.width):
            problems.append(f"overlap={self.overlap} is more than half of a tile of {self.height}x{self.width}")
        if problems:
            raise ValueError("this tiling is not possible: " + "; ".join(problems))

    def tiles(self, height: int, width: int, factor: int) -> tuple[Tile, ...]:
        """The tiles of a latent frame of `height` x `width` cells, row by row.

        >>> [tile.box for tile in Tiling(height=64, width=64, overlap=16).tiles(4, 10, 16)]
        [(0, 4, 0, 4), (0, 4, 3, 7), (0, 4, 6, 10)]
        """
        odd = [
            f"{name}={value}"
            for name, value in (("height", self.height), ("width", self.width), ("overlap", self.overlap))
            if value % factor
        ]
        if odd:
            raise ValueError(f"this tiling does not fit the model: {', '.join(odd)} is not a multiple of {factor}")
        rows = _spans(height, self.height // factor, self.overlap // factor, factor)
        columns = _spans(width, self.width // factor, self.overlap // factor, factor)
        return tuple(Tile(row, column) for row in rows for column in columns)


def whole_frame(height: int, width: int) -> tuple[Tile, ...]:
    """A frame that is not cut: one tile, with nothing to blend."""
    return (Tile(Span(0, height, ()), Span(0, width, ())),)


def _spans(length: int, tile: int, overlap: int, factor: int) -> tuple[Span, ...]:
    """An axis of `length` cells as evenly spread tiles with at least `overlap` cells in common."""
    tile = min(tile, length)
    steps = math.ceil((length - tile) / (tile - overlap)) if length > tile else 0
    starts = [round(i * (length - tile) / steps) for i in range(steps)] + [length - tile]
    bounds = [(start, start + tile) for start in starts]
    ramps = [_ramp(bounds, i, factor) for i in range(len(bounds))]
    total = [0.0] * (length * factor)
    for start, ramp in zip(starts, ramps, strict=True):
        for offset, weight in enumerate(ramp, start * factor):
            total[offset] += weight
    return tuple(
        Span(start, stop, tuple(weight / total[offset] for offset, weight in enumerate(ramp, start * factor)))
        for (start, stop), ramp in zip(bounds, ramps, strict=True)
    )


def _ramp(bounds: list[tuple[int, int]], i: int, factor: int) -> list[float]:
    """Weights of tile `i`, pixel by pixel: one inside, falling linearly over what it shares with its neighbours."""
    start, stop = bounds[i]
    before = (bounds[i - 1][1] - start) * factor if i > 0 else 0
    after = (stop - bounds[i + 1][0]) * factor if i + 1 < len(bounds) else 0
    pixels = (stop - start) * factor
    rising = [(p + 0.5) / before if p < before else 1.0 for p in range(pixels)]
    falling = [(p + 0.5) / after if p < after else 1.0 for p in range(pixels)][::-1]
    return [min(pair) for pair in zip(rising, falling, strict=True)]
