"""Where each character of a scalar stands in its text."""

from __future__ import annotations

import re

from remapkit.diagnostics.source import Span, Text


def locate_text(span: Span, style: str, value: str) -> Text:
    """The value with the place of each character; quotes are left out of its span."""
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
    """Where each character of a plain or quoted scalar begins, and where the last one ends.

    One line break within it is a space, n + 1 of them are n line breaks; the white space around them is nothing.
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
    """Where each character of a literal (`|`) or folded (`>`) scalar begins, and where the last one ends.

    The characters of a line are those of the value; only what a run of line ends becomes differs: nothing, a
    space, or line breaks.
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
    """How many line breaks the value has from `here` on, before anything else."""
    match = _NEWLINES.match(value, start)
    return len(match.group()) if match else 0


def _measure_indent(lines: list[str], value: str) -> int:
    """How far a block scalar is indented: its first line with content against the same line of the source."""
    content = value.lstrip("\n")
    blank = len(value) - len(content)
    if not content or blank >= len(lines):
        return max(map(len, lines), default=0)
    return count_leading_spaces(lines[blank]) - count_leading_spaces(content)


def count_leading_spaces(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
