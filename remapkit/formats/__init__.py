"""Readers and writers of checkpoint formats; files are recognized by content, not by suffix."""

from __future__ import annotations

from remapkit.files.source_file import Extent, SourceFile
from remapkit.formats.detect import SUFFIXES, open_checkpoint
from remapkit.formats.manifest import manifest_json, read_manifest, write_manifest
from remapkit.formats.reader import Reader

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
