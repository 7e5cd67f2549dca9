"""Pictures and videos as tensors, a few frames at a time, through PyAV (`pip install "remapkit[video]"`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from remapkit import Diagnostic, UnwritableOutput, UsageError

__all__ = ["Clip", "Writer", "open_clip", "open_writer"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")
_ENCODERS = (("libx264", {"crf": "14", "preset": "medium"}), ("mpeg4", {"qscale": "2"}))


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        title = f"PyAV, which reads and writes pictures and videos, cannot be imported: {error}"
        help = ('install it with `pip install "remapkit[video]"` (or `pip install av`)',)
        raise UsageError(Diagnostic("RK650", title, help=help)) from None
    module: ModuleType = av
    return module


@dataclass(frozen=True, slots=True)
class Clip:
    """A picture (one frame) or a video, as described by its file."""

    path: Path
    height: int
    width: int
    frames: int
    rate: Fraction
    has_sound: bool

    def read(self) -> Iterator[Tensor]:
        """Yield the frames, [H, W, 3] in uint8. Raises `UsageError` if the file is broken."""
        av = _import_av()
        with _translate_errors(av, self.path), av.open(str(self.path)) as container:
            for frame in container.decode(video=0):
                yield torch.from_numpy(frame.to_ndarray(format="rgb24"))


def open_clip(path: Path) -> Clip:
    """Open a file and count its frames; nothing is decoded. Raises `UsageError`."""
    av = _import_av()
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise UsageError(Diagnostic("RK651", f"{path} {what}: pass a picture or a video"))
    with _translate_errors(av, path), av.open(str(path)) as container:
        # FFmpeg reads plain text as terminal art ("tty").
        if not container.streams.video or container.format.name == "tty":
            help = ("pass a picture, or a file with a video stream",)
            raise UsageError(Diagnostic("RK651", "this file holds no pictures", help=help, place=str(path)))
        stream = container.streams.video[0]
        # Packets are counted, because the frame count of a container may be an estimate, or missing.
        frames = sum(packet.size > 0 for packet in container.demux(stream))
        rate = stream.average_rate or Fraction(25)
        return Clip(path, stream.height, stream.width, frames, rate, bool(container.streams.audio))


@contextmanager
def _translate_errors(av: ModuleType, path: Path) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        title = f"this file cannot be read as a picture or a video: {_describe_error(error)}"
        raise UsageError(Diagnostic("RK651", title, place=str(path))) from None


def _describe_error(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


class Writer:
    """Writes frames to a file."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream

    def write(self, frame_HWC: Tensor) -> None:
        """Write one frame, [H, W, 3] in uint8."""
        frame = _import_av().VideoFrame.from_ndarray(frame_HWC.contiguous().numpy(), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write the frames that the encoder has buffered."""
        self._container.mux(self._stream.encode(None))


@contextmanager
def open_writer(path: Path, clip: Clip, height: int, width: int) -> Iterator[Writer]:
    """Open a writer whose file appears only once it is complete. Raises `UnwritableOutput`."""
    av = _import_av()
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        container = av.open(str(part), "w", format="image2" if path.suffix == ".png" else None)
        with container:
            writer = Writer(container, _add_stream(av, container, path.suffix, clip.rate, height, width))
            yield writer
            writer.finish()
        part.replace(path)
    except (av.FFmpegError, OSError) as error:
        title = f"{path} cannot be written: {_describe_error(error)}"
        raise UnwritableOutput(Diagnostic("RK653", title, help=("nothing was written",))) from None
    finally:
        part.unlink(missing_ok=True)


def _add_stream(av: ModuleType, container: Any, suffix: str, rate: Fraction, height: int, width: int) -> Any:
    if suffix == ".png":
        stream = container.add_stream("png", rate=1)
        stream.pix_fmt = "rgb24"
    else:
        name, options = next(((n, o) for n, o in _ENCODERS if n in av.codecs_available), _ENCODERS[-1])
        stream = container.add_stream(name, rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
    stream.height, stream.width = height, width
    return stream
