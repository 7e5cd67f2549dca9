"""Runs operations on tensors, a box at a time."""

from __future__ import annotations
