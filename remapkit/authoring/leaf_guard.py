"""A leaf guard as a bound on the one part of a pattern that it is about, which any target can then use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from remapkit.patterns.automaton import build_automaton
from remapkit.patterns.charset import contains
from remapkit.patterns.matcher import PatternMatcher
from remapkit.patterns.pattern import Part, Pattern


def build_guard_in(pattern: Pattern) -> Pattern:
    """Return a pattern that reads the same keys in the same ways, without a leaf guard if that bounds only one part.

    It does if all else in the last segment is fixed text: then the leaf decides the text of that part, however the
    key is read before it.
    """
    if pattern.leaf is None:
        return pattern
    parts, suffix = pattern.parts, ""
    place = len(parts) - 1
    while place >= 0 and (word := _find_constant(parts[place])) is not None:
        _, dot, last = word.rpartition(".")
        suffix = last + suffix
        place = -1 if dot else place - 1
    if place < 0:
        return replace(pattern, leaf=None) if suffix in pattern.leaf else pattern
    prefix = _find_leaf_text(parts[:place])
    words = _list_words(pattern, parts[place], prefix, suffix)
    if not words:
        return pattern
    return replace(pattern, parts=(*parts[:place], parts[place].restrict_to(words), *parts[place + 1 :]), leaf=None)


def starts_segment(before: Sequence[Part]) -> bool:
    """Return whether what follows some parts of a pattern begins a segment in every key."""
    return not before or all(word.endswith(".") for word in before[-1].values or ("",))


def _find_constant(part: Part) -> str | None:
    return part.values[0] if part.values is not None and part.is_constant else None


def _find_leaf_text(parts: Sequence[Part]) -> str | None:
    """Return what follows the last dot in the text of some parts; None if that is not the same in all keys."""
    text = ""
    for part in reversed(parts):
        ends = {value.rpartition(".")[1:] for value in part.values or ()}
        if len(ends) != 1:
            return None
        ((dot, last),) = ends
        text = last + text
        if dot:
            break
    return text


def _list_words(pattern: Pattern, part: Part, prefix: str | None, suffix: str) -> tuple[str, ...] | None:
    """Return the words of a part that the leaf guard allows; None if it may bound more than this part.

    `prefix` is the text before the part in its segment, and `suffix` what follows it in the last one.
    """
    leaves = frozenset(pattern.leaf or ())
    if part.values is not None:
        if prefix is None and not all("." in word for word in part.values):
            return None
        return tuple(
            word
            for word in part.values
            if (word.rpartition(".")[2] if "." in word else f"{prefix}{word}") + suffix in leaves
        )
    if prefix is None or any(contains(chars, ".") for chars in build_automaton((part,)).chars):
        return None
    fits = PatternMatcher(replace(pattern, parts=(part,), leaf=None))
    inside = (leaf[len(prefix) :].removesuffix(suffix) for leaf in leaves if leaf.startswith(prefix))
    return tuple(word for word in inside if f"{prefix}{word}{suffix}" in leaves and fits(word) is not None)
