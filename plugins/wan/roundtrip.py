"""`roundtrip`: encodes and decodes a video chunk by chunk, to show what the VAE loses."""

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

__all__ = ["Options", "Report", "load_model", "roundtrip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options. `crop` allows cropping frames to their middle, and dropping the last frames."""

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
    """The result. `psnr` is over all frames, in 8-bit values, before the output's own compression."""

    model: str
    device: str
    dtype: str
    frames: int
    height: int
    width: int
    latent: tuple[int, ...]
    psnr: float
    worst: tuple[float, int]
    """The lowest PSNR of a frame, and the number of the frame."""
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


def roundtrip(options: Options) -> Report:
    """Read, encode, decode, write, with one chunk of frames in memory at a time. Raises `remapkit.RemapkitError`.

    Input, output and checkpoint are checked before the first frame is coded.
    """
    clip = open_clip(options.source)
    _check_output(options, clip)
    vae = load_model(options).optimize(options.fast)
    config = vae.config
    cut, notes = _cut_clip(clip, config, options)
    tiling = None
    if options.tile is not None:
        tiling = _make_tiling(options.tile, config)
    started, error = time.monotonic(), _Error()
    with (
        open_writer(options.out, clip, cut.height, cut.width) as writer,
        _show_progress(f"{clip.path.name} -> {options.out.name}", cut.frames) as advance,
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


def load_model(options: Options) -> WanVAE:
    """Load the model of the checkpoint's generation. Raises `remapkit.RemapkitError`."""
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtypes["auto"] = torch.bfloat16 if device.startswith("cuda") else torch.float32
    try:
        return WanVAE.from_checkpoint(options.checkpoint, options.rules, device=device, dtype=dtypes[options.dtype])
    except UsageError as error:
        # Try Wan 2.1 only if the message suggests it; for any other checkpoint keep the message about 2.2.
        if not any("Wan21VAE" in text for each in error.diagnostics for text in each.help):
            raise
    return Wan21VAE.from_checkpoint(options.checkpoint, options.rules, device=device, dtype=dtypes[options.dtype])


def _check_output(options: Options, clip: Clip) -> None:
    out, problem = options.out, None
    if out.suffix not in (".png", *VIDEO_SUFFIXES):
        problem = f"it must end in .png (a picture) or {', '.join(VIDEO_SUFFIXES)}, got {out.suffix or 'no suffix'}"
    elif out.suffix == ".png" and clip.frames > 1 and options.max_frames != 1:
        problem = f"the input has {clip.frames} frames, a picture has one: write a video, or pass --max-frames 1"
    elif not out.parent.is_dir():
        problem = f"the folder {out.parent} does not exist"
    elif out.exists() and out.samefile(options.source):
        problem = "it is the input file"
    if problem:
        raise UsageError(Diagnostic("RK653", f"{out} cannot be the output: {problem}"))


def _cut_clip(clip: Clip, config: VAEConfig, options: Options) -> tuple[Clip, list[str]]:
    """Return the part of the clip that the model can code; without `crop` that must be the whole clip."""
    factor, step = config.spatial_factor, config.temporal_factor
    frames = clip.frames if options.max_frames is None else min(clip.frames, options.max_frames)
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
        broken.append(f"{clip.height}x{clip.width} pixels: height and width must be multiples of {factor}")
    if frames >= 1 and cut.frames != frames:
        broken.append(f"{frames} frames: must be 1 + {step}k (one, then {step} per latent frame)")
    fits = cut.height > 0 and cut.width > 0 and frames >= 1
    if broken and (not options.crop or not fits):
        kept = "frame" if cut.frames == 1 else f"{cut.frames} frames"
        offer = f"pass --crop to code the middle {cut.height}x{cut.width} of the first {kept}"
        help = (offer,) if fits else (f"at least {factor}x{factor} pixels are needed",)
        title = "this input cannot be coded as it is: " + "; ".join(broken)
        raise UsageError(Diagnostic("RK652", title, help=help, place=str(clip.path)))
    notes = []
    if broken:
        whole = f"{frames} frames of {clip.height}x{clip.width}"
        notes.append(f"cropped from {whole} to {cut.frames} of {cut.height}x{cut.width}")
    if clip.has_sound:
        notes.append("the sound was dropped")
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
                Diagnostic(
                    "RK651", "the frames are of another size than the file's header says", place=str(clip.path)
                )
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
        title = f"the file ends after {done} of {cut.frames} frames"
        raise UsageError(Diagnostic("RK651", title, place=str(clip.path), help=(f"--max-frames {max(done, 1)}",)))
    return (vae.config.z_dim, latent_frames, *shape)


def _split_chunks(frames: Iterator[Tensor], step: int) -> Iterator[Tensor]:
    """Yield one frame, then `step` at a time, as [T, H, W, 3]; an incomplete chunk at the end is dropped."""
    size = 1
    while len(chunk := list(islice(frames, size))) == size:
        yield torch.stack(chunk)
        size = step


class _Error:
    """Mean squared differences, frame by frame."""

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
    """Show a progress bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=frames)
        yield lambda count: bar.advance(task, count)
