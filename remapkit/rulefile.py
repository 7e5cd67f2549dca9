"""A rule file as its author wrote it: every value with its line and column, nothing compiled yet.

`read` parses YAML into located nodes, validates them against the JSON Schema (the one truth of the structure) and
returns a `RuleFile`, or raises `InvalidRules` with all problems of the file. `rules.compile_rules` takes it from
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remapkit.source import Source, Span, Text


@dataclass(frozen=True, slots=True)
class WrittenGuard:
    """One entry of `where`: the values a capture may have, listed, or named.

    `values` are the listed ones (integers in their canonical decimal form); `named` is the other form, a string that
    is a range (`0..47`) or the name of a table (its keys). Exactly one of the two is set.
    """

    capture: Text
    values: tuple[Text, ...] | None
    named: Text | None


@dataclass(frozen=True, slots=True)
class WrittenPattern:
    """A pattern with its guards: `match` (a regular expression) or `path` (a path pattern)."""

    surface: Literal["match", "path"]
    text: Text
    span: Span
    where: tuple[WrittenGuard, ...] = ()
    leaf: tuple[Text, ...] | None = None


@dataclass(frozen=True, slots=True)
class WrittenRule:
    """One rule: pattern, guards, template and the captures it may forget."""

    id: Text
    pattern: WrittenPattern
    to: Text
    span: Span
    forget: tuple[Text, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenEntry:
    """One entry of a table; a number as key or value is kept in its canonical decimal form."""

    key: Text
    value: Text

    @property
    def span(self) -> Span:
        """From the key's first to the value's last character."""
        return Span(self.key.span.source, self.key.span.start, self.value.span.end)


@dataclass(frozen=True, slots=True)
class WrittenTable:
    """A table: `name: {key: value, ...}`, or `name: {lossy: true, entries: {key: value, ...}}`."""

    name: Text
    entries: tuple[WrittenEntry, ...]
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class WrittenTest:
    """One test: a source key and the target key it must become, or None where it must be dropped."""

    source: Text
    target: Text | None


@dataclass(frozen=True, slots=True)
class WrittenTarget:
    """What the rules lead to: a model (with keyword arguments for its constructor), a manifest, or both."""

    model: Text | None
    model_args: tuple[tuple[str, object], ...]
    keys: Text | None


@dataclass(frozen=True, slots=True)
class RuleFile:
    """What the author wrote. `path` is None for a text that was not read from a file.

    `digest` is `sha256:` and the hex digest of the file's bytes.
    """

    source: Source
    path: Path | None
    name: Text
    summary: Text | None
    digest: str
    rules: tuple[WrittenRule, ...]
    keep: tuple[WrittenPattern, ...]
    drop: tuple[WrittenPattern, ...]
    tables: tuple[WrittenTable, ...]
    unmatched: Literal["error", "keep", "drop"]
    unmatched_span: Span | None
    tests: tuple[WrittenTest, ...]
    source_keys: Text | None
    source_domain: tuple[WrittenPattern, ...]
    target: WrittenTarget | None
