"""Options for reading a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import escape_line


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


def make_read_options(
    root: str | None,
    strip: Sequence[str],
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
) -> ReadOptions:
    """Return the options for reading a checkpoint; raises `UsageError` (RK609) for a `strip` that is no segment."""
    wrong = [segment for segment in strip if not isinstance(segment, str) or not segment or "." in segment]
    if wrong:
        title = f"--strip {wrong[0]} must be one segment of a key, without dots"
        raise UsageError(Diagnostic("RK609", escape_line(title), help=("pass each segment with its own --strip",)))
    return ReadOptions(root, strict_pickle, allow_expand, follow_links, tuple(strip))
