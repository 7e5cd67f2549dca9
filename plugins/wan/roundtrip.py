"""A video through the VAE and back, chunk by chunk: what a person looks at to see what is lost."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from remapkit import Diagnostic, UsageError
from remapkit.plugin import count_noun

from .cache import WanCache
from .config import VAEConfig
from .fast import Setting
from .media import VIDEO_SUFFIXES, Clip, Writer, open_clip, open_writer
from .tiling import Tiling
from .vae import Wan21VAE, WanVAE

__all__ = ["Report", "Wanted", "load_model", "roundtrip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be done. `crop` allows cutting the middle out of odd frames, and the last frames off."""

    source: Path
    out: Path
    checkpoint: Path
    rules: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    fast: Setting = "auto"
    crop: bool = False
    max_frames: int | None = None
    tile: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it. `psnr` is that of all frames together, in bytes, before the output's own compression."""

    model: str
    device: str
    dtype: str
    frames: int
    height: int
    width: int
    latent: tuple[int, ...]
    psnr: float
    worst: tuple[float, int]
    """The lowest PSNR of a frame, and which frame."""
    seconds: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        size = f"{count_noun(self.frames, 'frame')} of {self.height}x{self.width}"
        worst = f", worst {_format_decibels(self.worst[0])} in frame {self.worst[1]}"
        lines = [
            f"{size} -> latent {list(self.latent)} -> back, by {self.model} in {self.dtype} on {self.device}",
            f"PSNR {_format_decibels(self.psnr)}" + worst * (self.frames > 1),
            f"{self.seconds:.2f} s, {self.frames / max(self.seconds, 1e-9):.2f} frames/s",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def roundtrip(wanted: Wanted) -> Report:
    """Read, encode, decode, write, never more than a chunk of frames in memory. Raises `remapkit.RemapkitError`.

    All that can be wrong with the input, the output and the checkpoint is said before the first frame is coded.
    """
    clip = open_clip(wanted.source)
    _check_output(wanted, clip)
    vae = load_model(wanted).optimize(wanted.fast)
    config = vae.config
    cut, notes = _cut_clip(clip, config, wanted)
    tiling = None
    if wanted.tile is not None:
        tiling = _make_tiling(wanted.tile, config)
    started, error = time.monotonic(), _Error()
    with (
        open_writer(wanted.out, clip, cut.height, cut.width) as writer,
        _show_progress(f"{clip.path.name} -> {wanted.out.name}", cut.frames) as advance,
        torch.inference_mode(),
    ):
        latent = _code_clip(vae, clip, cut, tiling, writer, error, advance)
    seconds = time.monotonic() - started
    place = next(vae.parameters())
    return Report(
        model=type(vae).__name__,
        device=str(place.device),
        dtype=str(place.dtype).removeprefix("torch."),
        frames=cut.frames,
        height=cut.height,
        width=cut.width,
        latent=latent,
        psnr=error.psnr(),
        worst=error.worst(),
        seconds=seconds,
        notes=tuple(notes),
    )


def load_model(wanted: Wanted) -> WanVAE:
    """The model of the checkpoint's generation. Raises `remapkit.RemapkitError`."""
    device = wanted.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtypes["auto"] = torch.bfloat16 if device.startswith("cuda") else torch.float32
    try:
        return WanVAE.from_checkpoint(wanted.checkpoint, wanted.rules, device=device, dtype=dtypes[wanted.dtype])
    except UsageError as error:
        # Which generation a checkpoint is of shows in its keys; where it is neither, say what the newer one lacks.
        if not any("Wan21VAE" in text for each in error.diagnostics for text in each.help):
            raise
    return Wan21VAE.from_checkpoint(wanted.checkpoint, wanted.rules, device=device, dtype=dtypes[wanted.dtype])


def _check_output(wanted: Wanted, clip: Clip) -> None:
    out, problem = wanted.out, None
    if out.suffix not in (".png", *VIDEO_SUFFIXES):
        problem = f"it ends in {out.suffix or 'nothing'}; known are .png (a picture) and {', '.join(VIDEO_SUFFIXES)}"
    elif out.suffix == ".png" and clip.frames > 1 and wanted.max_frames != 1:
        problem = f"the input has {clip.frames} frames, a picture one: write a video, or take --max-frames 1"
    elif not out.parent.is_dir():
        problem = f"there is no folder {out.parent}"
    elif out.exists() and out.samefile(wanted.source):
        problem = "it is the input: nothing is overwritten that is still read"
    if problem:
        raise UsageError(Diagnostic("RK653", f"{out} cannot be the output: {problem}"))


def _cut_clip(clip: Clip, config: VAEConfig, wanted: Wanted) -> tuple[Clip, list[str]]:
    """The part of the clip that the model can code; without `crop` that must be all of it."""
    factor, step = config.spatial_factor, config.temporal_factor
    frames = clip.frames if wanted.max_frames is None else min(clip.frames, wanted.max_frames)
    cut = replace(
        clip,
        height=clip.height // factor * factor,
        width=clip.width // factor * factor,
        frames=(frames - 1) // step * step + 1,
    )
    broken = []
    if frames < 1:
        broken.append("it has no frames")
    if (cut.height, cut.width) != (clip.height, clip.width):
        broken.append(f"{clip.height}x{clip.width} pixels: both must be multiples of {factor}")
    if frames >= 1 and cut.frames != frames:
        broken.append(f"{frames} frames: expected 1 + {step}k (one, then {step} for each latent frame)")
    fits = cut.height > 0 and cut.width > 0 and frames >= 1
    if broken and (not wanted.crop or not fits):
        kept = "frame" if cut.frames == 1 else f"{cut.frames} frames"
        offer = f"--crop takes the middle {cut.height}x{cut.width} of the first {kept}"
        help = (offer,) if fits else (f"at least {factor}x{factor} pixels are needed",)
        title = "this input cannot be coded as it is: " + "; ".join(broken)
        raise UsageError(Diagnostic("RK652", title, help=help, place=str(clip.path)))
    notes = []
    if broken:
        whole = f"{frames} frames of {clip.height}x{clip.width}"
        notes.append(f"cropped from {whole} to {cut.frames} of {cut.height}x{cut.width}")
    if clip.has_sound:
        notes.append("the sound is left out")
    return cut, notes


def _make_tiling(tile: int, config: VAEConfig) -> Tiling:
    overlap = min(128, tile // 2 // config.spatial_factor * config.spatial_factor)
    try:
        tiling = Tiling(height=tile, width=tile, overlap=overlap)
        tiling.tiles(1, 1, config)
    except ValueError as error:
        raise UsageError(Diagnostic("RK652", f"--tile {tile}: {error}")) from None
    return tiling


def _code_clip(
    vae: WanVAE,
    clip: Clip,
    cut: Clip,
    tiling: Tiling | None,
    writer: Writer,
    error: _Error,
    advance: Callable[[int], None],
) -> tuple[int, ...]:
    cache, device = WanCache(), next(vae.parameters()).device
    top, left = (clip.height - cut.height) // 2, (clip.width - cut.width) // 2
    frames = (f[top : top + cut.height, left : left + cut.width] for f in islice(clip.read(), cut.frames))
    latent_frames, shape, done = 0, (0, 0), 0
    for chunk_THWC in _split_chunks(frames, vae.config.temporal_factor):
        if done == 0 and chunk_THWC.shape[1:3] != (cut.height, cut.width):
            raise UsageError(
                Diagnostic("RK651", "the frames have another size than the file says", place=str(clip.path))
            )
        video_BCTHW = (chunk_THWC.to(device).permute(3, 0, 1, 2).unsqueeze(0).float() / 127.5 - 1).contiguous()
        latent_BCTHW = vae.encode(video_BCTHW, cache, check_finite=False)
        decoded_BCTHW = vae.decode(latent_BCTHW, cache, clamp=True, tiling=tiling, check_finite=False)
        back_THWC = ((decoded_BCTHW[0].float() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).cpu()
        error.add(chunk_THWC, back_THWC)
        for frame_HWC in back_THWC:
            writer.write(frame_HWC)
        latent_frames += latent_BCTHW.shape[2]
        shape = tuple(latent_BCTHW.shape[3:])
        done += len(chunk_THWC)
        advance(len(chunk_THWC))
    if done != cut.frames:
        title = f"the file breaks off after {done} of {cut.frames} frames that could be coded"
        raise UsageError(Diagnostic("RK651", title, place=str(clip.path), help=(f"--max-frames {max(done, 1)}",)))
    return (vae.config.z_dim, latent_frames, *shape)


def _split_chunks(frames: Iterator[Tensor], step: int) -> Iterator[Tensor]:
    """One frame, then `step` at a time, as [T, H, W, 3]; what is left over at the end of a file is not given."""
    size = 1
    while len(chunk := list(islice(frames, size))) == size:
        yield torch.stack(chunk)
        size = step


class _Error:
    """Squared differences, frame by frame."""

    def __init__(self) -> None:
        self._squares: list[float] = []

    def add(self, one_THWC: Tensor, other_THWC: Tensor) -> None:
        squares = (one_THWC.float() - other_THWC.float()).square()
        self._squares += squares.mean(dim=(1, 2, 3)).tolist()

    def psnr(self) -> float:
        return _compute_psnr(sum(self._squares) / max(len(self._squares), 1))

    def worst(self) -> tuple[float, int]:
        worst = max(range(len(self._squares)), key=self._squares.__getitem__)
        return _compute_psnr(self._squares[worst]), worst


def _compute_psnr(square: float) -> float:
    return math.inf if square == 0 else 10 * math.log10(255**2 / square)


def _format_decibels(value: float) -> str:
    return "infinite (no difference)" if math.isinf(value) else f"{value:.2f} dB"


@contextmanager
def _show_progress(title: str, frames: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=frames)
        yield lambda count: bar.advance(task, count)
