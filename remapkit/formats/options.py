"""Options for reading a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for reading a checkpoint: where its state dict is, and what is allowed.

    `root` is empty for the top level, None if the user does not name one; `strip` are the segments to take out of
    every key.
    """

    root: str | None = None
    strict_pickle: bool = False
    allow_expand: bool = False
    follow_links: bool = False
    strip: tuple[str, ...] = ()


def clean_root(root: str) -> str:
    """Return a root as written by a user without spaces and without the last dot of a prefix; `""` for the top level.

    >>> clean_root(" model.diffusion_model. "), clean_root(".")
    ('model.diffusion_model', '')
    """
    return root.strip().rstrip(".")
