"""The one writer of YAML: whatever it writes is read back as the very same value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from remapkit.rulefile.yaml.scalars import classify_scalar

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", re.ASCII)
_ELSEWHERE = frozenset({"y", "n", "nan", "inf"})
"""Words that some readers of YAML 1.1 take for something other than text."""
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


def emit_flow(value: object) -> str:
    """Plain data as YAML in one line. A whole number in a text needs no quotes: rule files read it as that text.

    >>> emit_flow({"rope": {"to": "half", "heads": "2*n"}}), emit_flow([0, "1", "layers.{i}"])
    ("{rope: {to: half, heads: '2*n'}}", "[0, 1, 'layers.{i}']")
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{emit_flow(key)}: {emit_flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(emit_flow, value)) + "]"
    if isinstance(value, str):
        return value if classify_scalar(value) == "integer" else emit_scalar(value)
    written = json.dumps(value)
    # 1e+20 without a point is text to some readers of YAML.
    return written.replace("e", ".0e") if isinstance(value, float) and "." not in written else written


def emit_entry(key: str, value: object) -> str:
    """A line (or two) of a mapping below a section of the file.

    >>> emit_entry("a.b", ["c", "d"])
    '  a.b: [c, d]'
    """
    name, written = emit_flow(key), emit_flow(value)
    return f"  {name}: {written}" if len(name) < _LONGEST_KEY else f"  ? {name}\n  : {written}"
