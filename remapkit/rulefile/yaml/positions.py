"""Locate each character of a scalar in its source text."""

from __future__ import annotations

import re

from remapkit.diagnostics.source import Span, Text


def locate_text(span: Span, style: str, value: str) -> Text:
    """Return the value with the position of each character; its span excludes the quotes."""
    source, start, end = span.source, span.start, span.end
    if style in ("'", '"'):
        start, end = start + 1, end - 1
    inner = Span(source, start, end)
    if source.text.startswith(value, start) and start + len(value) == end:
        return Text(value, inner)
    raw = source.text[start:end]
    places = _locate_block(raw, value) if style in ("|", ">") else _locate_flow(raw, style)
    offsets = tuple(start + place for place in places)
    first, last = (offsets[0], offsets[-1]) if value else (start, end)
    return Text(value, Span(source, first, max(first, last)), offsets)


_BLANKS = r"(?P<blanks>[ \t]++(?!\r?\n))"


_FOLD = r"(?P<fold>[ \t]*+(?:\r?\n[ \t]*+)+)"


_FLOW_TOKENS = {
    "": re.compile(rf"{_BLANKS}|{_FOLD}|."),
    "'": re.compile(rf"{_BLANKS}|{_FOLD}|''|."),
    '"': re.compile(
        r"(?P<joined>\\\r?\n[ \t]*+(?:\r?\n[ \t]*+)*)"
        r"|\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)"
        rf"|{_BLANKS}|{_FOLD}|."
    ),
}


_BREAK = re.compile(r"\r?\n")


_NEWLINES = re.compile(r"\n*")


def _locate_flow(raw: str, style: str) -> list[int]:
    """Return where each character of a plain or quoted scalar begins, and where the last one ends.

    A single line break in it is a space, n + 1 line breaks are n; the white space around them is ignored.
    """
    places: list[int] = []
    for token in _FLOW_TOKENS[style].finditer(raw):
        if token.lastgroup is None:
            places.append(token.start())
        elif token.lastgroup == "blanks":
            places += range(*token.span())
        else:
            breaks = [newline.start() for newline in _BREAK.finditer(raw, *token.span())]
            places += breaks[1:] if len(breaks) > 1 or token.lastgroup == "joined" else breaks
    return [*places, len(raw)]


def _locate_block(raw: str, value: str) -> list[int]:
    """Return where each character of a literal (`|`) or folded (`>`) scalar begins, and where the last one ends.

    The characters within a line are those of the value; a run of line ends becomes nothing, a space, or line breaks.
    """
    lines = [(line.start(), line.group().rstrip("\r\n")) for line in re.finditer(r"[^\n]*\n|[^\n]+", raw)][1:]
    indent = _measure_indent([line for _, line in lines], value)
    places: list[int] = []
    breaks: list[int] = []
    for start, line in lines:
        if len(line) > indent and len(places) < len(value):
            run = _count_newlines(value, len(places))
            places += (
                breaks[len(breaks) - run :] if run else breaks[:1] if value[len(places)] == " " and breaks else []
            )
            places += range(start + indent, start + len(line))
            breaks = []
        breaks.append(start + len(line))
    places += breaks[: _count_newlines(value, len(places))]
    return [*places, places[-1] + 1 if places else len(raw)]


def _count_newlines(value: str, start: int) -> int:
    """Return the number of consecutive line breaks in the value from `start`."""
    match = _NEWLINES.match(value, start)
    return len(match.group()) if match else 0


def _measure_indent(lines: list[str], value: str) -> int:
    """Return the indentation of a block scalar: compare its first line with content with its source line."""
    content = value.lstrip("\n")
    blank = len(value) - len(content)
    if not content or blank >= len(lines):
        return max(map(len, lines), default=0)
    return count_leading_spaces(lines[blank]) - count_leading_spaces(content)


def count_leading_spaces(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
