"""Checkpoints: readers and writers, opened by content, not by suffix."""

from __future__ import annotations
