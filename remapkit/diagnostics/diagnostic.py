"""Messages: what is wrong, where, with which values, and what to do next.

A `Diagnostic` is plain data. `render` formats it as text with an excerpt, `to_json` as data, `to_github` as an
annotation. Errors that a user can cause are subclasses of `RemapkitError`; they hold all collected diagnostics and
the exit code of the command line.

Code ranges: RK0 rule files as text (YAML, schema), RK1 patterns, templates, tables, RK2 proofs over all keys, RK3
plans and checks, RK4 reading checkpoints, RK5 writing, RK6 models, plugins and usage, RK7 tests of packs.
`docs/diagnostics.md` lists all codes.
"""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from remapkit.diagnostics.keywords import name_keywords
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import escape_line

Style = Callable[[str, str], str]
"""`style(role, text)` returns the styled text; roles are error, warning, note, help, frame and place."""


_MARGIN = 6


_WIDTH = 160


class Severity(enum.Enum):
    """The severity of a diagnostic: an error stops the command, a warning needs attention, a note informs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Label:
    """An underlined position in a text with a short comment; primary labels use `^^^`, others `---`."""

    span: Span
    text: str = ""
    primary: bool = True


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One message.

    `place` names the location if there is no text to show (`model.pth: encoder.conv1.weight`); `values` has the facts
    of the message for programs that read JSON.

    >>> print(Diagnostic("RK310", "2 missing keys", place="model.pth", help=("add a rule",)))
    error[RK310]: 2 missing keys
      --> model.pth
          = help: add a rule
    """

    code: str
    title: str
    labels: tuple[Label, ...] = ()
    help: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    severity: Severity = Severity.ERROR
    place: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def span(self) -> Span | None:
        """The position of the first primary label."""
        return next((label.span for label in self.labels if label.primary), None)

    def __str__(self) -> str:
        """Return the text for Python: with keywords in the place of options."""
        help = tuple(map(name_keywords, self.help))
        return render(replace(self, title=name_keywords(self.title), help=help))


def disarm_line(line: str) -> str:
    r"""Escape everything in a printed line that a build service would interpret as a workflow command.

    Source: GitHub's runner interprets `::` at the beginning of a line (after spaces) and `##[` anywhere.

    >>> disarm_line("  ::error::forged"), disarm_line("##[error]forged")
    ('  \\x3a:error::forged', '#\\x23[error]forged')
    """
    bare = line.lstrip()
    if bare.startswith("::"):
        line = line[: len(line) - len(bare)] + "\\x3a" + bare[1:]
    return line.replace("##[", "#\\x23[")


def plain(role: str, text: str) -> str:
    """Return the text unchanged: the style without color."""
    return text


def render(diagnostic: Diagnostic, style: Style = plain) -> str:
    """Format a diagnostic as text: title, position, excerpt with underlines, notes, help."""
    severity = diagnostic.severity.value
    head = style(severity, f"{severity}[{diagnostic.code}]") + style(
        "title", f": {disarm_line(escape_line(diagnostic.title))}"
    )
    lines = [head]
    span = diagnostic.span
    if span is not None or diagnostic.place is not None:
        lines.append(style("frame", "  --> ") + style("place", _format_place(span or diagnostic.place)))
    lines.extend(_render_excerpts(diagnostic.labels, style))
    for word, texts in (("note", diagnostic.notes), ("help", diagnostic.help)):
        for text in texts:
            lines.append(_render_remark(style, word, text))
    return "\n".join(lines)


def _render_remark(style: Style, word: str, text: str) -> str:
    hang = "\n" + " " * (_MARGIN + len(f"= {word}: "))
    lines = hang.join(disarm_line(escape_line(line)) for line in text.split("\n"))
    return " " * _MARGIN + style("frame", "= ") + style("help", word + ": ") + lines


def _format_place(place: object) -> str:
    return disarm_line(escape_line(str(place)))


def _render_excerpts(labels: Sequence[Label], style: Style) -> list[str]:
    lines: list[str] = []
    by_place: dict[tuple[int, int], list[Label]] = {}
    sources = {id(label.span.source): label.span.source for label in labels}
    order = {key: number for number, key in enumerate(sources)}
    for label in labels:
        by_place.setdefault((order[id(label.span.source)], label.span.line), []).append(label)
    shown = -1
    for (source_number, line_number), group in sorted(by_place.items(), key=lambda item: item[0]):
        source = group[0].span.source
        if shown != -1 and shown != source_number:
            lines.append(style("frame", "  ::: ") + style("place", _format_place(group[0].span)))
        if shown != source_number:
            lines.append(_render_bar(style))
        shown = source_number
        text, cut = _cut_window(source.line(line_number), group)
        lines.append(f"{style('frame', f'{line_number:>{_MARGIN - 1}} |')} {disarm_line(text)}")
        for label in sorted(group, key=lambda label_: label_.span.column):
            lines.append(_render_underline(label, text, cut, style))
    return lines


def _render_bar(style: Style) -> str:
    return " " * _MARGIN + style("frame", "|")


def _cut_window(line: str, labels: Sequence[Label]) -> tuple[str, int]:
    """Return the part of a long line that contains its labels, and the number of characters cut before it."""
    if len(line) <= _WIDTH:
        return _blank_unprintable(line), 0
    first = min(label.span.column for label in labels) - 1
    cut = max(0, min(first - _WIDTH // 3, len(line) - _WIDTH))
    text = _blank_unprintable(line[cut : cut + _WIDTH])
    if cut:
        text = "…" + text[1:]
    return (text[:-1] + "…" if cut + _WIDTH < len(line) else text), cut


def _blank_unprintable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _render_underline(label: Label, text: str, cut: int, style: Style) -> str:
    start = max(0, label.span.column - 1 - cut)
    first_line_end = label.span.text.split("\n")[0]
    length = max(1, min(len(first_line_end), max(1, len(text) - start)))
    role = "error" if label.primary else "note"
    mark = ("^" if label.primary else "-") * _count_columns(text[start : start + length], length)
    drawn = style(role, f"{mark} {disarm_line(escape_line(label.text))}".rstrip())
    return f"{_render_bar(style)} {' ' * _count_columns(text[:start], start)}{drawn}"


def _count_columns(text: str, count: int) -> int:
    """Return the terminal columns of the first `count` characters: wide ones take two, combining marks none."""
    if text.isascii():
        return count
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return max(1 if count else 0, count + wide - sum(unicodedata.combining(character) > 0 for character in text))


def to_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """Return a diagnostic as data, as `--format json` prints it."""
    data: dict[str, Any] = {
        "code": diagnostic.code,
        "severity": diagnostic.severity.value,
        "title": diagnostic.title,
    }
    if diagnostic.place is not None:
        data["place"] = diagnostic.place
    if diagnostic.labels:
        data["labels"] = [_label_to_json(label) for label in diagnostic.labels]
    if diagnostic.notes:
        data["notes"] = list(diagnostic.notes)
    if diagnostic.help:
        data["help"] = list(diagnostic.help)
    if diagnostic.values:
        data["values"] = dict(diagnostic.values)
    return data


def _label_to_json(label: Label) -> dict[str, Any]:
    end_line, end_column = label.span.source.find_position(label.span.end)
    return {
        "file": label.span.source.name,
        "line": label.span.line,
        "column": label.span.column,
        "end_line": end_line,
        "end_column": end_column,
        "text": label.text,
        "primary": label.primary,
    }


def to_github(diagnostic: Diagnostic) -> str:
    """Format a diagnostic as a workflow command, which GitHub shows next to the line.

    Source: "Workflow commands for GitHub Actions": `%`, CR and LF are escaped everywhere, `:` and `,` also in
    properties.

    >>> to_github(Diagnostic("RK310", "2 missing keys", severity=Severity.NOTE))
    '::notice title=RK310::2 missing keys'
    """
    command = {"error": "error", "warning": "warning", "note": "notice"}[diagnostic.severity.value]
    properties = []
    span = diagnostic.span
    if span is not None:
        properties += [f"file={_escape_property(span.source.name)}", f"line={span.line}", f"col={span.column}"]
    properties.append(f"title={_escape_property(diagnostic.code)}")
    parts = [diagnostic.title if span or not diagnostic.place else f"{diagnostic.place}: {diagnostic.title}"]
    parts += [label.text for label in diagnostic.labels if label.text]
    # Notes and help texts keep their line breaks; everything else is one line.
    lines = list(map(escape_line, parts))
    for word, texts in (("note", diagnostic.notes), ("help", diagnostic.help)):
        lines += [escape_line(line) for text in texts for line in f"{word}: {text}".split("\n")]
    message = _escape_message("\n".join(lines))
    return f"::{command} {','.join(properties)}::{message}"


def _escape_message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_message(escape_line(text)).replace(":", "%3A").replace(",", "%2C")
