"""Checkpoints: readers and writers, opened by content, not by suffix."""

from __future__ import annotations

from remapkit.checkpoint.manifest import manifest_json, read_manifest, write_manifest
from remapkit.checkpoint.opening import SUFFIXES, open_checkpoint
from remapkit.checkpoint.reader import Extent, Reader, SourceFile

__all__ = [
    "SUFFIXES",
    "Extent",
    "Reader",
    "SourceFile",
    "manifest_json",
    "open_checkpoint",
    "read_manifest",
    "write_manifest",
]
