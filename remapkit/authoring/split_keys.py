"""Names as words: segments, numbers inside segments, and the places of an index that a rule counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from remapkit.tensors.families import is_canonical_integer

Segments = tuple[str, ...]
MARK = "\0"
"""Checkpoints have no names with this character, so a word that begins with it is ours."""
NEXT = f"{MARK}|"
"""Between the names of one relation."""
COUNTED = f"{MARK}#"
"""The index that `stack` or `unstack` counts; a number may follow: `\\0#+2`."""
GLUE = f"{MARK}="
"""What stands between two words of one segment instead of a dot, after this mark: `\\0=_`, or `\\0=` alone."""

Cut = Literal["segments", "numbers after a separator", "all numbers"]
CUTS: tuple[Cut, ...] = ("segments", "numbers after a separator", "all numbers")
_PARTS = {
    "numbers after a separator": re.compile(r"([_/-]?)(?<=[_/-])(0|[1-9][0-9]*)(?![0-9A-Za-z])([_/-]?)"),
    "all numbers": re.compile(r"([_/-]?)(?<![0-9])(0|[1-9][0-9]*)(?![0-9])([_/-]?)"),
}


def split_key(fqn: str, cut: Cut) -> Segments:
    """Split a name at its dots and slashes and, as `cut` says, around numbers inside its segments.

    >>> [word.replace(MARK, "") for word in split_key("net.layer_3-model_00.w2", "numbers after a separator")]
    ['net', 'layer', '=_', '3', '=-', 'model_00', 'w2']
    >>> [word.replace(MARK, "") for word in split_key("a/resblocks3", "all numbers")]
    ['a', '=/', 'resblocks', '=', '3']
    """
    words: list[str] = []
    for segment in fqn.split("."):
        for place, piece in enumerate(_split_slashes(segment)):
            if place:
                words.append(f"{GLUE}/")
            words += [piece] if cut == "segments" else _split_segment(piece, cut)
    return tuple(words)


def _split_slashes(segment: str) -> list[str]:
    return segment.split("/") if "/" in segment.strip("/") and "//" not in segment else [segment]


@lru_cache(maxsize=10_000)
def _split_segment(segment: str, cut: Cut) -> Sequence[str]:
    if is_canonical_integer(segment):
        return [segment]
    words: list[str] = []
    start = 0
    for found in _PARTS[cut].finditer(segment):
        before, number, after = found.groups()
        if segment[start : found.start()]:
            words += [segment[start : found.start()], f"{GLUE}{before}"]
        elif before:
            return [segment]
        words.append(number)
        start = found.end()
        if start < len(segment):
            words.append(f"{GLUE}{after}")
        elif after:
            return [segment]
    rest = segment[start:]
    return [*words, rest] if rest else words or [segment]


def join_words(words: Iterable[str]) -> str:
    """Join the words of a name, each written as it must be.

    >>> join_words(split_key("a/layer_3.w", "all numbers"))
    'a/layer_3.w'
    """
    written = ""
    dot = ""
    for word in words:
        if word.startswith(GLUE):
            written, dot = written + word[len(GLUE) :], ""
        else:
            written, dot = f"{written}{dot}{word}", "."
    return written


def has_numbers_inside(fqns: Iterable[str], cut: Cut) -> bool:
    """Return whether `cut` splits any of these names further than segments are."""
    segments = {segment for fqn in fqns for segment in fqn.split(".")}
    return any(len(_split_segment(piece, cut)) > 1 for segment in segments for piece in _split_slashes(segment))


def list_sections(words: Sequence[object]) -> list[tuple[int, int]]:
    """Return where each name of a relation begins and ends among the words that `NEXT` joins.

    >>> list_sections(["a", "b", NEXT, "c"])
    [(0, 2), (3, 4)]
    """
    ends = [place for place, word in enumerate(words) if word == NEXT]
    return list(zip([0, *(end + 1 for end in ends)], [*ends, len(words)], strict=True))
