"""Opens one file; the format is detected from its first bytes, not from its suffix."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.diagnostics.wording import format_bytes
from remapkit.files.atomic import journal_path
from remapkit.files.errors import FileFault
from remapkit.files.source_file import SourceFile
from remapkit.formats.options import ReadOptions
from remapkit.formats.safetensors import MAX_HEADER, SafetensorsReader

if TYPE_CHECKING:
    from remapkit.formats.torch_file import PthReader

_UNSUPPORTED: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file it points to", "run `git lfs pull`"),
    (b"GGUF", "a GGUF file, which is not supported", "convert it to safetensors first"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it with unxz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!", "a rar archive", "unpack it"),
    (b"\x89HDF", "an HDF5 file (Keras?), which is not supported", "convert it to safetensors first"),
    (b"\x93NUMPY", "a NumPy array, not a state dict", "save a state dict of tensors"),
    (b"\x08\x07\x12", "an ONNX model, which is not supported", "save `model.state_dict()` instead"),
    (b"PK\x05\x06", "an empty zip archive", "fetch it again"),
    (b"\0" * 64, "full of zeros: an incomplete download?", "fetch it again"),
)


def is_true_safely(ask: Callable[[], bool]) -> bool:
    """Return the result of `ask`, or False if the file name is too long; opening the file reports that error."""
    try:
        return ask()
    except (OSError, ValueError):
        return False


def open_tensors(source: SourceFile, options: ReadOptions) -> SafetensorsReader | PthReader | None:
    """Return a reader for a file that contains tensors; None for what looks like JSON: an index or a manifest."""
    _check_journal(source.path)
    head = source.read(0, min(source.size, 512))
    if not head:
        raise FileFault("RK401", "the file is empty", help=("fetch it again",))
    # Checked before zip: a header length of 0x04034b50 equals a zip signature, and safetensors loaders read only it.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return SafetensorsReader(source)
    zipped = head[:4] == b"PK\x03\x04"
    if zipped or head[:1] == b"\x80" or head.startswith(b"L1195470371460388"):
        from remapkit.formats.torch_file import PthReader

        return PthReader(source, "pth" if zipped else "legacy pth", options)
    if head.lstrip()[:1] == b"{":
        return None
    raise _make_unsupported_fault(source, head)


def _check_journal(path: Path) -> None:
    """Raise `FileFault` (RK415) if a rename in place of the file, or of the link's target, was interrupted."""
    if is_true_safely(journal_path(Path(os.path.realpath(path))).exists):
        title = f"a rename in place of {path.name} was interrupted: its header may be half old and half new"
        raise FileFault("RK415", title, help=(f"restore it with `remapkit recover {path}`",))


def _make_unsupported_fault(source: SourceFile, head: bytes) -> FileFault:
    for magic, words, help in _UNSUPPORTED:
        if head.startswith(magic):
            return FileFault("RK401", words, help=(help,))
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return FileFault(
            "RK401", "an HTML page, not a checkpoint: the download failed?", help=("open it to see why",)
        )
    if head[257:262] == b"ustar":
        title = "a tar archive (torch before 0.1.10, or a packed folder), which is not supported"
        return FileFault("RK409", title, help=("unpack it, or load it with that torch and save it again",))
    length = int.from_bytes(head[:8], "little")
    if source.path.suffix == ".safetensors" or head[8:9] == b"{":
        if len(head) < 8 or length > MAX_HEADER:
            limit = format_bytes(MAX_HEADER)
            title = f"the header would be {length} bytes ({format_bytes(length)}); the format allows {limit}"
        else:
            title = "the header is not a JSON object: it must start with '{'"
        return FileFault("RK402", title, help=("is this a safetensors file?",))
    title = f"not a checkpoint: it starts with {head[:8]!r}"
    return FileFault("RK401", title, help=("supported are safetensors, files of torch.save, pickles of arrays",))
