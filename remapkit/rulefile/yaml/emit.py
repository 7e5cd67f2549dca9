"""Write YAML; all of it is read back as exactly the same value. All YAML is written here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from remapkit.rulefile.yaml.scalars import classify_scalar

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", re.ASCII)
_ELSEWHERE = frozenset({"y", "n", "nan", "inf"})
"""Words that some YAML 1.1 readers do not read as text."""
_LONGEST_KEY = 1000
"""YAML requires a question mark before a key of more than 1,024 characters."""


def emit_scalar(text: str) -> str:
    r"""Write a text as a YAML scalar that every reader reads as that text, unquoted if this is unambiguous.

    >>> print(*map(emit_scalar, ("conv1.weight", "no", "y", "it's", "a\tb", "1")))
    conv1.weight 'no' 'y' "it's" "a\tb" '1'
    """
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _ELSEWHERE and classify_scalar(text) == "text"
    return text if is_plain else quote_text(text)


def quote_text(text: str) -> str:
    """Quote a text: in single quotes, or in double quotes if it contains invisible characters or single quotes.

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
    """Write plain data as YAML on one line. A text that is a whole number is unquoted: rule files read it as text.

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
    # Some YAML readers read 1e+20, without a point, as text.
    return written.replace("e", ".0e") if isinstance(value, float) and "." not in written else written


def emit_entry(key: str, value: object) -> str:
    """Write one or two lines of a mapping below a section of the file.

    >>> emit_entry("a.b", ["c", "d"])
    '  a.b: [c, d]'
    """
    name, written = emit_flow(key), emit_flow(value)
    return f"  {name}: {written}" if len(name) < _LONGEST_KEY else f"  ? {name}\n  : {written}"
