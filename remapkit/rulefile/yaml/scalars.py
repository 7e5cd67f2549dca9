"""Classify plain scalars, and find those that YAML versions read differently."""

from __future__ import annotations

import re

from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import show_key
from remapkit.rulefile.yaml.nodes import ScalarKind

READ_AS = {
    "text": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "a boolean",
    "null": "nothing (null)",
    "empty": "nothing",
}
"""The name of each kind of scalar in messages."""


_CANONICAL: tuple[tuple[ScalarKind, re.Pattern[str]], ...] = (
    ("empty", re.compile("")),
    # At most 15 digits: JSON and YAML readers that read numbers as floats read these exactly too.
    ("integer", re.compile(r"0|-?[1-9][0-9]{0,14}")),
    ("number", re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+][0-9]+)?")),
    ("boolean", re.compile("true|false")),
    ("null", re.compile("null|~")),
)


_SURPRISING: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("true or false", re.compile("(?i:yes|no|on|off|true|false)")),
    ("nothing (null)", re.compile("(?i:null)")),
    ("a merge or value key", re.compile("<<|=")),
    ("a date", re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?", re.DOTALL)),
    ("a number in base 60", re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")),
    ("a binary, octal or hexadecimal number", re.compile(r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|0[0-9_]+)")),
    ("a number", re.compile(r"[-+]?\.(?i:inf)|\.(?i:nan)")),
    ("a number", re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?")),
)


def classify_scalar(value: str) -> ScalarKind | None:
    """Return the kind of an unquoted scalar, or None if YAML parsers disagree about it.

    >>> [classify_scalar(text) for text in ("norm1", "0", "1.5", "true", "~", "")]
    ['text', 'integer', 'number', 'boolean', 'null', 'empty']
    >>> [classify_scalar(text) for text in ("no", "1:30", "012", "0x10", "1e3", ".5", "2024-01-31", "<<")]
    [None, None, None, None, None, None, None, None]
    """
    for kind, pattern in _CANONICAL:
        if pattern.fullmatch(value):
            return kind
    # Scalars that YAML does not read as text begin with one of these; this skips most scalars quickly.
    if value[0] not in "0123456789+-.<=yYnNtTfFoO":
        return "text"
    return None if any(pattern.fullmatch(value) for _, pattern in _SURPRISING) else "text"


def explain_ambiguous_scalar(value: str, span: Span, key: bool) -> tuple[str, Span, str]:
    what = next(what for what, pattern in _SURPRISING if pattern.fullmatch(value))
    value = show_key(value, 60)
    if key:
        help = f"quote it: '{value}'"
    elif what == "true or false":
        boolean = "true" if value.lower() in ("yes", "on", "true") else "false"
        help = f"quote it if it is text: '{value}'; else write {boolean}"
    else:
        help = f"quote it if it is text: '{value}'"
        help += "; else write it as a plain decimal number" if "number" in what else ""
    return f"some YAML parsers read {value} as {what}, others as text", span, help
