"""Loads checkpoints directly into modules: planned and checked first, then all tensors in one step."""

from __future__ import annotations

from remapkit.loading.load import Loaded, load_into

__all__ = ["Loaded", "load_into"]
