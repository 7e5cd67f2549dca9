"""Whatever stands in a message, a table or a name: what is printed steers no terminal and no build service.

The kinds: control characters, characters that reorder text, lone surrogates, line ends that begin a forged line, and
the commands of workflows (`::error::`, `##[error]`), in every place that text can come to.
"""

# ruff: noqa: E501 - tables of values, one line each

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.cli import render as report
from remapkit.cli.render import CommandOutcome, TextTable, _align_table, _lay_out_table
from remapkit.diagnostics import diagnostic
from remapkit.diagnostics.diagnostic import Diagnostic, Label, render, to_github, to_json
from remapkit.diagnostics.source import Source, Span
from remapkit.diagnostics.wording import list_names

HOSTILE = (
    "\n", "\r", "\x1b[2J", "\x1b]0;x\x07", "\x00", "\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066", "\u200f", "\udcff", "\ud800",
    "::error::forged", "\n::error file=a::forged", "##[error]forged", "%0A::error::x", "%", ",", ":", "::", "é", "日", "\U000e0001", "[red]", "[/]", "\t",
)  # fmt: skip
texts = st.lists(st.sampled_from(HOSTILE) | st.text(st.characters(), max_size=6), max_size=5).map("".join)


@st.composite
def diagnostics(draw: st.DrawFn) -> Diagnostic:
    source = Source(draw(texts), draw(texts))
    end = draw(st.integers(0, len(source.text)))
    labels = (Label(Span(source, 0, end), draw(texts)),) if draw(st.booleans()) else ()
    # The lines of a note are the note's own: names are listed by `named`, which escapes theirs.
    note = list_names(draw(st.lists(texts, min_size=1, max_size=3)))
    place = draw(texts) or None
    return Diagnostic("RK000", draw(texts), labels, (draw(texts),), (note,), place=place, values={"x": draw(texts)})


def check_text(text: str) -> None:
    """No character but what can be seen, and no line that is a command."""
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)
        bare = line.strip()
        assert not (bare.startswith("::") and not bare.startswith(":::")), line
        assert "##[" not in line


def check_github(line: str) -> None:
    """One line, one command, and nothing of the text in its properties."""
    assert line.isprintable(), repr(line)
    command, _, message = line.removeprefix("::").partition("::")
    assert command.split(" ")[0] in ("error", "warning", "notice")
    properties = dict(each.split("=", 1) for each in command.split(" ", 1)[1].split(","))
    assert set(properties) <= {"file", "line", "col", "title"}
    assert not set("\r\n") & set(message)


@given(diagnostics())
def test_a_message_as_text(made: Diagnostic) -> None:
    check_text(render(made))


@given(diagnostics())
def test_a_message_as_an_annotation(made: Diagnostic) -> None:
    check_github(to_github(made))


@given(diagnostics(), st.sampled_from([None, "utf-8", "ascii", "latin-1", "no such encoding"]))
def test_a_message_as_json(made: Diagnostic, encoding: str | None) -> None:
    text = report.format_json(to_json(made), encoding)
    check_text(text)
    assert json.loads(text) == json.loads(json.dumps(to_json(made)))
    if encoding == "ascii":
        assert text.isascii()


@settings(max_examples=50)
@given(texts, texts, texts, st.lists(diagnostics(), max_size=2), st.sampled_from(["text", "github"]))
def test_all_that_a_command_shows(title: str, cell: str, line: str, found: list[Diagnostic], format: str) -> None:
    import contextlib
    import io

    outcome = CommandOutcome(
        {}, (line, TextTable(("a", ">b"), ((cell, line), (line, cell)), title)), tuple(found), findings=True
    )
    with contextlib.redirect_stdout(io.StringIO()) as out:
        report.show_outcome(outcome, format)
    lines = out.getvalue().split("\n")
    if format == "github":
        for annotation in lines[: len(found)]:
            check_github(annotation)
        lines = lines[len(found) :]
    check_text("\n".join(lines))


@pytest.mark.parametrize("fault", ["escape_line", "disarm_line"])
def test_a_place_that_is_not_escaped_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostic, fault, lambda text: text)
    with pytest.raises(AssertionError):
        for hostile in HOSTILE:
            check_text(render(Diagnostic("RK000", "x", notes=(hostile,))))
            check_github(to_github(Diagnostic("RK000", hostile, place=hostile)))


@given(st.lists(st.tuples(*[st.text("ab漢é.", max_size=9)] * 3), min_size=1, max_size=9), st.sampled_from(("", "T")))
def test_a_long_table_looks_like_a_short_one(rows: list[tuple[str, ...]], title: str) -> None:
    rows = [row for row in rows if any(row)]  # an empty row is not printed
    table = TextTable(("name", ">n", "漢字"), tuple(rows), title)
    laid, aligned = ([line.rstrip() for line in way(table)] for way in (_lay_out_table, _align_table))
    assert [line for line in laid if line] == [line for line in aligned if line]
