"""Texts as YAML: whatever a rule file that this program writes says, it is read back as the very same text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from remapkit.rulefile.yaml.scalars import classify_scalar

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", re.ASCII)
_ELSEWHERE = frozenset({"y", "n", "nan", "inf"})
"""Words that some readers of YAML 1.1 take for something else than text."""
_LONGEST_KEY = 1000
"""YAML reads a key of more than 1,024 characters only after a question mark."""


def emit_scalar(text: str) -> str:
    r"""A text as a YAML scalar that every reader takes for that text, plain where nothing could be mistaken.

    >>> print(*map(emit_scalar, ("conv1.weight", "no", "y", "it's", "a\tb", "1")))
    conv1.weight 'no' 'y' "it's" "a\tb" '1'
    """
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _ELSEWHERE and classify_scalar(text) == "text"
    return text if is_plain else quote_text(text)


def quote_text(text: str) -> str:
    """A text in single quotes, or in double quotes where it has what cannot be seen, or single quotes of its own.

    >>> print(quote_text("{a}"), quote_text("tag\\U000e0001"))
    '{a}' "tag\\U000e0001"
    """
    if text.isprintable() and ("'" not in text or '"' in text or "\\" in text):
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(map(_escape_character, text)) + '"'


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escape_character(sign: str) -> str:
    if sign in _ESCAPES:
        return _ESCAPES[sign]
    if sign.isprintable():
        return sign
    return f"\\u{ord(sign):04x}" if ord(sign) < 0x10000 else f"\\U{ord(sign):08x}"


def entry(key: str, value: str) -> str:
    """A line (or two) of a mapping: a key and a value, both already written as YAML.

    >>> entry("a.b", "[c, d]")
    '  a.b: [c, d]'
    """
    return f"  {key}: {value}" if len(key) < _LONGEST_KEY else f"  ? {key}\n  : {value}"


_INDEX = re.compile(r"0|[1-9][0-9]*")


def emit_flow(value: object) -> str:
    """Plain data as YAML in one line.

    >>> emit_flow({"rope": {"to": "half", "heads": "2*n"}}), emit_flow([0, "layers.{i}"])
    ("{rope: {to: half, heads: '2*n'}}", "[0, 'layers.{i}']")
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {emit_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(emit_flow, value)) + "]"
    return emit_flow_scalar(value) if isinstance(value, str) else json.dumps(value)


def emit_flow_scalar(text: str) -> str:
    """A text without quotes where every reader takes it for that text; this program's own reads an index as text."""
    return text if _INDEX.fullmatch(text) else emit_scalar(text)


def emit_example(value: Any) -> str:
    """A value as YAML in one line, for an example."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{emit_example(key)}: {emit_example(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(emit_example, value)) + "]"
    if value is None or isinstance(value, int | float):
        return json.dumps(value)
    safe = (
        classify_scalar(value) == "text"
        and value[0].isalnum()
        and not set(value) & set("{}[],#'\"\\*")
        and ": " not in value
    )
    return str(value) if safe else f"'{value}'"
