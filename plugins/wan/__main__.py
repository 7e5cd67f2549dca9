"""`python -m remapkit.plugins.wan roundtrip video.mp4 -o out.mp4 --checkpoint CKPT`: shows what the VAE loses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from remapkit import Diagnostic, RemapkitError, UsageError
from remapkit.plugin import show_error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 (the checkpoint does not fit), 2, 130 (interrupted)."""
    args = _make_parser().parse_args(arguments)
    try:
        return _run_roundtrip(args)
    except RemapkitError as error:
        return show_error(error)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130


def _run_roundtrip(args: argparse.Namespace) -> int:
    import torch

    from .roundtrip import Options, roundtrip

    options = Options(
        source=args.input,
        out=args.output,
        checkpoint=args.checkpoint,
        rules=args.rules,
        device=args.device,
        dtype=args.dtype,
        fast=args.fast,
        crop=args.crop,
        max_frames=args.max_frames,
        tile=args.tile,
    )
    try:
        done = roundtrip(options)
    except torch.OutOfMemoryError as error:
        help = ("decode in tiles with --tile 512, or save the memory of the buffers with --fast off",)
        said = str(error).splitlines()[0]
        raise UsageError(Diagnostic("RK654", f"the device is out of memory: {said}", help=help)) from None
    print(done)
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m remapkit.plugins.wan", description="Try the Wan video VAEs.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser("roundtrip", help="encode and decode a picture or a video, and report the PSNR")
    command.add_argument("input", type=Path, help="a picture or a video")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="the result: .png for a picture, .mp4, .mov or .mkv for a video",
    )
    command.add_argument("--checkpoint", type=Path, required=True, help="a Wan 2.1 or 2.2 VAE, in any known layout")
    command.add_argument("--rules", help="a pack or a rule file, for a layout that is not recognised")
    command.add_argument("--device", default="auto", help="auto (cuda if available), cpu, cuda, cuda:1")
    command.add_argument(
        "--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="auto: bf16 on cuda"
    )
    command.add_argument(
        "--fast", default="auto", choices=("auto", "off"), help="use the fast path (auto) or not (off, saves memory)"
    )
    command.add_argument(
        "--crop",
        action="store_true",
        help="crop frames to their middle, and drop frames at the end, where sizes do not fit",
    )
    command.add_argument("--max-frames", type=_parse_count, metavar="N", help="read only the first N frames")
    command.add_argument("--tile", type=_parse_count, metavar="PIXELS", help="decode in tiles of this size")
    return parser


def _parse_count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
