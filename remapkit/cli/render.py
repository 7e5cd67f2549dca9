"""The output of commands: text for people, JSON for programs, annotations for GitHub.

A command returns a `CommandOutcome`, plain data; only this module prints. Results go to stdout; warnings, notes and
errors that prevent a result go to stderr. Colour is used only on a terminal, and never with `NO_COLOR` set.

Text may be untrusted: names of keys and files, metadata, rule files. It is escaped only here and in
`diagnostic.render`, where it is printed.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from remapkit.diagnostics.diagnostic import (
    Diagnostic,
    Severity,
    Style,
    disarm_line,
    plain,
    render,
    to_github,
    to_json,
)
from remapkit.diagnostics.wording import escape_line

_COLORS = {
    "error": "1;31",
    "warning": "1;33",
    "note": "1;36",
    "help": "1;32",
    "frame": "34",
    "title": "1",
    "ok": "1;32",
    "fails": "1;31",
    "dim": "2",
}


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of strings. Columns whose name begins with `>` are aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """The result of a command: data for JSON, text and tables for people, messages for both."""

    data: dict[str, Any]
    text: tuple[str | TextTable, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    failed: bool = False
    raw: str | None = None
    """Text that is the result itself (a rule file, a schema): printed as it is, in JSON too where `data` is empty."""
    findings: bool = field(default=False)
    """Whether the diagnostics are the result (lint, check, test) and so belong on stdout."""

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


def choose_style(stream: TextIO) -> Style:
    """Return a style with colours if the stream is a terminal and colours are not disabled, else without."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return plain
    return lambda role, text: f"\x1b[{_COLORS[role]}m{text}\x1b[0m" if role in _COLORS else text


def show_outcome(outcome: CommandOutcome, format: str = "text") -> None:
    """Print an outcome."""
    if outcome.raw is not None and not (format == "json" and outcome.data):
        _write_raw(outcome.raw)
    elif format == "json":
        data = {**outcome.data, "ok": not outcome.failed, "diagnostics": [to_json(d) for d in outcome.diagnostics]}
        print(format_json(data, sys.stdout.encoding))
    elif format == "github":
        for diagnostic in outcome.diagnostics:
            print(to_github(diagnostic))
        _print_text(outcome.text)
    else:
        if outcome.findings:
            show_diagnostics(outcome.diagnostics, sys.stdout)
            _print_text(outcome.text)
        else:
            _print_text(outcome.text)
            sys.stdout.flush()
            show_diagnostics(outcome.diagnostics, sys.stderr)


def show_error(diagnostics: Sequence[Diagnostic], format: str, exit_code: int) -> None:
    """Print the errors that prevented a result: to stderr, or as the JSON document that programs expect on stdout."""
    if format == "json":
        data = {"ok": False, "exit_code": exit_code, "diagnostics": [to_json(d) for d in diagnostics]}
        print(format_json(data, sys.stdout.encoding))
    elif format == "github":
        for diagnostic in diagnostics:
            print(to_github(diagnostic))
    else:
        show_diagnostics(diagnostics, sys.stderr)
        errors = sum(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics)
        if errors > 1:
            print(f"\n{errors} errors", file=sys.stderr)


def show_diagnostics(diagnostics: Iterable[Diagnostic], stream: TextIO) -> None:
    """Print diagnostics as text, separated by empty lines."""
    style = choose_style(stream)
    for number, diagnostic in enumerate(diagnostics):
        if number:
            print(file=stream)
        print(render(diagnostic, style), file=stream)


def _print_text(parts: Iterable[str | TextTable]) -> None:
    style = choose_style(sys.stdout)
    for part in parts:
        if isinstance(part, TextTable):
            _print_table(part)
        else:
            print(_color_verdict(disarm_line(escape_line(part)), style))


_SPECIAL = re.compile(r"[^\n -~]|##\[")


def format_json(data: object, encoding: str | None = None) -> str:
    r"""Return JSON to print, with the same escapes as text, and with characters outside the encoding escaped.

    >>> print(format_json({"a\x1b": "\u202e"}))
    {
      "a\u001b": "\u202e"
    }
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, default=str)
    try:
        plain = encoding is None or text.encode(encoding, "surrogatepass") is not None
    except (UnicodeError, LookupError):
        plain = False
    return _SPECIAL.sub(lambda found: _escape_json(found.group(), plain), text)


def _escape_json(text: str, plain: bool) -> str:
    if text == "##[":
        return "#\\u0023["  # "##[" starts a command to build services
    return text if plain and text.isprintable() else json.dumps(text)[1:-1] if text != "\x7f" else "\\u007f"


def _write_raw(text: str) -> None:
    """Print the text of a file as UTF-8, regardless of the terminal's encoding."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    buffer.write(text.encode("utf-8", "backslashreplace"))
    buffer.flush()


def _color_verdict(text: str, style: Style) -> str:
    """Colour the verdict that a line begins with."""
    for word in ("ok", "fails"):
        if text == word or text.startswith((f"{word} ", f"{word}:")):
            return style(word, word) + text[len(word) :]
    return text


_LONG_TABLE = 500
"""The rows above which a table is only aligned: laying out 50,000 rows for a width would take half a minute."""


def _print_table(table: TextTable) -> None:
    for line in _align_table(table) if len(table.rows) > _LONG_TABLE else _lay_out_table(table):
        if line := line.rstrip():
            print(disarm_line(line))


def _align_table(table: TextTable) -> Iterator[str]:
    """Yield the lines of a table in columns that are as wide as their longest cell."""
    from rich.cells import cell_len

    heads = [column.removeprefix(">") for column in table.columns]
    rows = [[escape_line(cell) for cell in row] for row in table.rows]
    widths = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
    if table.title:
        yield escape_line(table.title)
    rule = ["─" * (sum(widths) + 3 * (len(widths) - 1))]
    for number, row in enumerate([heads, *rows]):
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = zip(table.columns, row, spaces, strict=True)
        yield "   ".join(
            f"{space}{cell}" if name.startswith(">") else f"{cell}{space}" for name, cell, space in cells
        )
        yield from rule if not number else ()


def _lay_out_table(table: TextTable) -> Iterable[str]:
    """Return the lines of a table that fits the terminal: cells that are too wide are folded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        title=Text(escape_line(table.title)) if table.title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for column in table.columns:
        right = column.startswith(">")
        drawn.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(escape_line(cell)) for cell in row))
    # A pipe has no width: output for a program must not be wrapped at 80 columns.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 400)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get().splitlines()
