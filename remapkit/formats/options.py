"""Options for reading a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for reading a checkpoint: the wrapper in a pickle, and what is allowed."""

    root: str | None = None
    strict_pickle: bool = False
    allow_expand: bool = False
    follow_links: bool = False
