"""How a checkpoint is to be read: its root, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a checkpoint is to be read: which wrapper of a pickle, and what is allowed."""

    root: str | None = None
    strict_pickle: bool = False
    allow_expand: bool = False
    follow_links: bool = False
