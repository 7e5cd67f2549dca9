"""Messages for texts that are not valid YAML."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable

import yaml

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Source, Span
from remapkit.rulefile.yaml.nodes import BRACED_TEXT, MAX_DEPTH
from remapkit.rulefile.yaml.positions import count_leading_spaces


def find_tab_problems(source: Source, protected: Iterable[tuple[int, int, bool]]) -> list[Diagnostic]:
    """Report the first tab outside quoted and block scalars and comments, where YAML readers disagree about tabs."""
    if "\t" not in source.text:
        return []
    kept = sorted(protected)
    starts = [start for start, _, _ in kept]

    def free(place: int, indents: bool) -> bool:
        before = bisect_right(starts, place) - 1
        if before < 0 or place >= kept[before][1]:
            return True
        return indents and kept[before][2]

    tabs: list[int] = []
    for line in re.finditer(r"[^\n]*\t[^\n]*", source.text):
        text = line.group()
        indent = count_leading_spaces(text)
        for sign in re.finditer(r"\t|(?<!\S)#", text):
            place = line.start() + sign.start()
            indents = sign.start() <= indent
            if sign.group() == "#" and free(place, False):
                break
            if sign.group() == "\t" and free(place, indents):
                tabs.append(place)
    return [_explain_tab(source, tabs[0], len(tabs))] if tabs else []


def _explain_tab(source: Source, place: int, count: int = 1) -> Diagnostic:
    label = Label(Span(source, place, place + 1), f"the first of {count}" if count > 1 else "")
    return Diagnostic("RK009", "a tab outside quotes", (label,), ("YAML is indented with spaces: replace it",))


def explain_syntax_error(source: Source, error: yaml.MarkedYAMLError) -> Diagnostic:
    """Make a message from the position of the error and the text there; the two parsers' own messages differ."""
    text = source.text
    marked = error.problem_mark or error.context_mark
    place = min(marked.index, len(text)) if marked else len(text)
    opened = error.context_mark.index if error.context_mark is not None else place
    opener = text[opened : opened + 1]
    tab = re.compile(r"[ ]*\t").match(text, text.rfind("\n", 0, place) + 1) or re.compile(r"\t").match(text, place)
    if tab:
        return _explain_tab(source, tab.end() - 1)
    if place > MAX_DEPTH and not text[place - MAX_DEPTH - 1 : place].strip("{["):
        return explain_depth_limit(source, place - 1)  # libyaml stops at 1,000
    if opener in ("'", '"') and opened != place:
        return _explain_quoted(source, opened, place)
    if opener and opener in "*&!":
        return _explain_sigil(source, opened)
    return _explain_unexpected(source, opened, place)


def explain_depth_limit(source: Source, place: int) -> Diagnostic:
    label = Label(Span(source, place, place + 1))
    help = "a rule file needs no more than 5 levels"
    return Diagnostic("RK013", f"nested more than {MAX_DEPTH} levels deep", (label,), (help,))


def _explain_quoted(source: Source, opened: int, end: int) -> Diagnostic:
    quote = source.text[opened]
    backslash = next((place for place in (end, end - 1, end - 2) if source.text[place : place + 1] == "\\"), None)
    if quote == '"' and end < len(source.text) and backslash is not None:
        written = source.text[backslash : backslash + 2]
        help = f"use single quotes, where a backslash is a backslash, or write \\{written} for one"
        label = Label(Span(source, backslash, backslash + 2))
        return Diagnostic("RK001", f"invalid escape {written} in double quotes", (label,), (help,))
    help = "close it on the same line" + ("; within single quotes, '' is one quote" if quote == "'" else "")
    return Diagnostic("RK001", "a quote that is never closed", (Label(Span(source, opened, opened + 1)),), (help,))


def _explain_sigil(source: Source, place: int) -> Diagnostic:
    sign = source.text[place]
    what, code = {"*": ("an alias", "RK003"), "&": ("an anchor", "RK003"), "!": ("a tag", "RK004")}[sign]
    title = f"a plain text cannot begin with {sign}, which begins {what}"
    return Diagnostic(code, title, (Label(Span(source, place, place + 1)),), (_quote_line(source, place),))


def _explain_unexpected(source: Source, opened: int, place: int) -> Diagnostic:
    """Return the first fitting message for an unexpected token at `place` in the construct opened at `opened`."""
    title, labels, help = (
        _explain_unquoted(source, place)
        or _explain_brackets(source, opened, place)
        or _explain_token(source, opened, place)
    )
    return Diagnostic("RK001", title, tuple(labels), (help,))


_Words = tuple[str, list[Label], str]
"""Title, labels and help of a message."""


def _explain_unquoted(source: Source, place: int) -> _Words | None:
    """Explain a value that begins like a flow collection or quoted text and continues after its end."""
    text, value = source.text, _find_value_start(source, place)
    if value is None or value >= place:
        return None
    follows = text[place : place + 1] not in ("", "\n", " ")
    if text[value] in "{[" and text[place - 1] in "}]" and follows:
        label = Label(Span(source, value, find_line_end(source, value)))
        return f"a text that begins with {text[value]} must be quoted", [label], _quote_line(source, value)
    if text[value] in "'\"" and text[value + 1 : place].rstrip().endswith(text[value]):
        one = "within single quotes, '' is one quote" if text[value] == "'" else 'within double quotes, \\" is one'
        return "text after a closing quote", [Label(_locate_token(source, place))], one
    return None


def _explain_brackets(source: Source, opened: int, place: int) -> _Words | None:
    """Explain an error within an open `{` or `[`."""
    text = source.text
    opener = text[opened : opened + 1]
    if opener not in ("{", "[") or opened >= place:
        return None
    braced = BRACED_TEXT.search(text, opened, find_line_end(source, place))
    if braced:
        label = Label(Span(source, *braced.span(1)))
        return "unquoted text with braces inside braces", [label], f"quote it: '{braced[1]}'"
    closer = "}" if opener == "{" else "]"
    ended = place >= len(text)
    labels = [Label(Span(source, opened, opened + 1), "opened here", primary=ended)]
    labels += [] if ended else [Label(_locate_token(source, place))]
    title = f"a {opener} that is never closed" if ended else f"missing , or {closer}"
    return title, labels, f"close it with {closer}; a text that begins with {opener} must be quoted"


def _explain_token(source: Source, opened: int, place: int) -> _Words:
    opener, sign = source.text[opened : opened + 1], source.text[place : place + 1]
    label = Label(_locate_token(source, place))
    if sign == ":":
        return _explain_colon(source, place)
    if sign == "-" and _find_value_start(source, place) == place:
        return "a list must begin on a new line", [label], "begin a new line, or quote it if it is text"
    if sign in tuple("@`%?,]}"):
        return f"a plain text cannot begin with {sign}", [label], _quote_line(source, place)
    if opener in ("|", ">"):
        return f"a plain text cannot begin with {opener}", [label], _quote_line(source, opened)
    if _has_no_colon(source, opened):
        line = Label(Span(source, opened, find_line_end(source, opened)))
        return "a line without a colon", [line], "write `key: value`"
    if opened < place:
        around = Label(_locate_token(source, opened), "inside what begins here", primary=False)
        help = "indent it like its neighbours, with spaces"
        return "this line does not fit the block around it", [around, label], help
    return "this is not valid YAML", [label], "check the indentation and the quotes"


def _explain_colon(source: Source, place: int) -> _Words:
    begin = source.text.rfind("\n", 0, place) + 1
    before = source.text[begin:place]
    key = begin + count_leading_spaces(before)
    if not before.strip():
        return "a colon without a key before it", [Label(Span(source, place, place + 1))], "write the key"
    if re.search(r"[:{\[]", before):
        help = "quote the whole value, or begin a new line"
        return "a second colon in one line: YAML would read a key here", [Label(Span(source, place, place + 1))], help
    help = "put the colon that is missing above, or indent this line like its neighbours"
    return "this key is read as part of the value above it", [Label(Span(source, key, place + 1))], help


def _locate_token(source: Source, place: int) -> Span:
    """Return the token at a position, up to white space; at the end of the text, the end of its last line."""
    if place >= len(source.text):
        place = len(source.text.rstrip())
    match = re.compile(r"[^\s,\[\]{}:]+|\S").match(source.text, place)
    return Span(source, place, match.end() if match else place)


def find_line_end(source: Source, place: int) -> int:
    end = source.text.find("\n", place)
    return len(source.text[: end if end >= 0 else None].rstrip())


def _find_value_start(source: Source, place: int) -> int | None:
    """Return where the value around a position begins, after `key:` or `-`; None if there is none in its line."""
    begin = source.text.rfind("\n", 0, place) + 1
    match = re.compile(r"[ ]*(?:- +)*(?:[\w.-]+: +)?(?=\S)").match(source.text, begin)
    return match.end() if match and begin < match.end() <= place else None


def _quote_line(source: Source, place: int) -> str:
    written = source.text[place : find_line_end(source, place)]
    return f"quote it: '{written}'" if len(written) <= 100 and "'" not in written else "quote it"


def _has_no_colon(source: Source, place: int) -> bool:
    line = source.text[place : find_line_end(source, place)]
    return bool(line) and ":" not in line and line[0] not in "{[-|>"
