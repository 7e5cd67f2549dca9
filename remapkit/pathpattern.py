r"""The `path` surface: literal segments and captures, parsed into the parts of `pattern.py`.

    encoder.down_blocks.{stage:int}.resnets.{block:0..2}.{layer:layer}.{rest:**}

`{name}` is one segment (or, beside literal text, the rest of one), `{name:int}` a canonical decimal, `{name:0..47}`
one of a range, `{name:a|b}` one of several words, `{name:slots}` a key of the table `slots`, `{name:**}` one segment
or more. `{{` and `}}` are the braces themselves.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from remapkit.diagnostic import Diagnostic, InvalidRules, Label
from remapkit.pattern import CANONICAL, MAX_WORDS, SEGMENT, SEGMENTS, Part, Seq, literal
from remapkit.source import Text

MAX_DIGITS = 18
_TYPES = ("int", "**")
_PLAIN = re.compile("[^{}.]+")


@dataclass(frozen=True, slots=True)
class _Token:
    """A stretch of a path: `text` (literal), `dot` or `capture`, at `start` to `end`."""

    kind: str
    value: str
    start: int
    end: int


class Problems:
    """Collects what is wrong with one path."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.found: list[Diagnostic] = []

    def add(
        self, code: str, title: str, start: int, end: int, *help: str, earlier: tuple[int, int] | None = None
    ) -> None:
        labels = [Label(self.text.at(start, end))]
        if earlier is not None:
            labels.insert(0, Label(self.text.at(*earlier), "the first one", primary=False))
        self.found.append(Diagnostic(code, title, tuple(labels), help))


def parse_path(text: Text, tables: Mapping[str, Sequence[str]]) -> tuple[Part, ...]:
    """The parts of a path pattern; raises `InvalidRules` with everything that is wrong with it.

    `tables` are the known tables, by name, with their keys.

    >>> [part.name for part in parse_path(Text.of("layers.{n:int}.{leaf}"), {})]
    [None, 'n', None, 'leaf']
    """
    problems = Problems(text)
    parts: list[Part] = []
    names: dict[str, tuple[int, int]] = {}
    deep: tuple[int, int] | None = None
    for number, segment in enumerate(_segments(list(_tokens(text.value, problems)), len(text.value))):
        if number:
            parts.append(_literal(".", segment.start - 1))
        if not segment.tokens:
            help = (
                "remove the extra dot"
                if len(text.value)
                else "write a key, `{name}` for a segment, `{all:**}` for any key"
            )
            problems.add("RK130", "an empty segment", max(0, segment.start - 1), segment.end, help)
        captures = [token for token in segment.tokens if token.kind == "capture"]
        if len(captures) > 1:
            _two_captures(captures, problems)
        for token in segment.tokens:
            if token.kind == "text":
                parts.append(_literal(token.value, token.start))
                continue
            part = _capture(token, tables, problems)
            if part is None or part.name is None:
                continue
            if part.name in names:
                title, earlier = f"two captures are named {part.name!r}", names[part.name]
                problems.add("RK122", title, token.start, token.end, "give each its own name", earlier=earlier)
            names.setdefault(part.name, (token.start, token.end))
            if part.written == "**":
                if len(segment.tokens) > 1:
                    help = f"put dots around it, or write {{{part.name}}} for the rest of one segment"
                    problems.add("RK137", "`**` stands for whole segments", token.start, token.end, help)
                if deep is not None:
                    help = "a key could be cut in several ways; bound one of them, or write the segments out"
                    problems.add("RK133", "two `**` in one path", token.start, token.end, help, earlier=deep)
                deep = deep or (token.start, token.end)
            parts.append(part)
    if problems.found:
        raise InvalidRules(problems.found)
    return _merged(parts)


@dataclass(frozen=True, slots=True)
class _Segment:
    tokens: tuple[_Token, ...]
    start: int
    end: int


def _segments(tokens: list[_Token], length: int) -> Iterator[_Segment]:
    start, pending = 0, list[_Token]()
    for token in tokens:
        if token.kind == "dot":
            yield _Segment(tuple(pending), start, token.start)
            start, pending = token.end, []
        else:
            pending.append(token)
    yield _Segment(tuple(pending), start, length)


def _tokens(value: str, problems: Problems) -> Iterator[_Token]:
    here = 0
    while here < len(value):
        sign = value[here]
        if value[here : here + 2] in ("{{", "}}"):
            yield _Token("text", sign, here, here + 2)
            here += 2
        elif sign == "{":
            end = value.find("}", here)
            if end < 0 or "{" in value[here + 1 : end]:
                help = "close it with }, or write {{ for the character itself"
                problems.add("RK131", "a brace that is never closed", here, here + 1, help)
                yield _Token("text", sign, here, here + 1)
                here += 1
            else:
                yield _Token("capture", value[here + 1 : end], here, end + 1)
                here = end + 1
        elif sign == "}":
            problems.add("RK131", "a brace that closes nothing", here, here + 1, "write }} for the character itself")
            yield _Token("text", sign, here, here + 1)
            here += 1
        elif sign == ".":
            yield _Token("dot", sign, here, here + 1)
            here += 1
        else:
            end = _PLAIN.match(value, here).end()  # type: ignore[union-attr]
            yield _Token("text", value[here:end], here, end)
            here = end


def _literal(text: str, start: int) -> Part:
    node = literal(text, start)
    return Part(None, node, node.at, values=(text,))


def _two_captures(captures: list[_Token], problems: Problems) -> None:
    help = "put a dot between them, or use `match:` with classes that say where the first one ends"
    earlier = (captures[0].start, captures[0].end)
    for token in captures[1:]:
        problems.add("RK132", "two captures in one segment", token.start, token.end, help, earlier=earlier)


def _capture(token: _Token, tables: Mapping[str, Sequence[str]], problems: Problems) -> Part | None:
    name, colon, kind = token.value.partition(":")
    at = (token.start, token.end)
    if not (name.isascii() and name.isidentifier()):
        help = "write {name} or {name:type}, the name of letters, digits and _"
        problems.add("RK120", f"{name!r} is no name for a capture", *at, help)
        return None
    if not colon:
        return Part(name, SEGMENT, at)
    if kind == "int":
        return Part(name, CANONICAL, at, written=kind)
    if kind == "**":
        return Part(name, SEGMENTS, at, written=kind)
    blank = Part(name, SEGMENT, at)
    start = token.start + 1 + len(name) + 1
    if kind in tables:
        part = blank.bounded(tuple(tables[kind]), table=kind)
        return replace(part, written=kind)
    values: tuple[str, ...] | None
    if ".." in kind:
        values = integer_range(kind, problems, start)
    elif "|" in kind:
        values = _choices(kind, problems, start)
    else:
        _unknown_type(name, kind, tables, problems, start)
        return None
    return None if values is None else replace(blank.bounded(values), written=kind)


def integer_range(kind: str, problems: Problems, start: int) -> tuple[str, ...] | None:
    """The canonical decimals of a range like `0..47`."""
    low, _, high = kind.partition("..")
    end = start + len(kind)
    if max(len(low), len(high)) > MAX_DIGITS:
        problems.add("RK135", f"a bound of more than {MAX_DIGITS} digits", start, end, "no key has such an index")
        return None
    if not all(side.isascii() and side.isdigit() and str(int(side)) == side for side in (low, high)):
        problems.add(
            "RK135", f"{kind!r} is no range of integers", start, end, "write it as in {n:0..47}, both ends included"
        )
        return None
    if int(low) > int(high):
        problems.add("RK135", f"the range {kind} is empty", start, end, f"write {high}..{low}")
        return None
    if int(high) - int(low) >= MAX_WORDS:
        title = f"the range {kind} has more than {MAX_WORDS} values"
        problems.add("RK135", title, start, end, "write :int for any canonical integer")
        return None
    return tuple(str(number) for number in range(int(low), int(high) + 1))


def _choices(kind: str, problems: Problems, start: int) -> tuple[str, ...] | None:
    values = kind.split("|")
    here, good = start, True
    for number, value in enumerate(values):
        where = (max(start, here - 1), here + len(value) + 1) if not value else (here, here + len(value))
        if not value:
            problems.add("RK136", "an empty choice", *where, "remove the extra |")
        elif "." in value:
            help = "choices are parts of one segment; write a table, whose keys may hold dots, or two rules"
            problems.add("RK136", f"a dot in the choice {value!r}", *where, help)
        elif value in values[:number]:
            problems.add("RK136", f"the choice {value!r} stands twice", *where, "remove one")
        else:
            here += len(value) + 1
            continue
        good = False
        here += len(value) + 1
    return tuple(values) if good else None


def _unknown_type(name: str, kind: str, tables: Mapping[str, Sequence[str]], problems: Problems, start: int) -> None:
    close = difflib.get_close_matches(kind, [*_TYPES, *tables], n=1)
    help = [f"did you mean {close[0]!r}?"] if close else []
    help.append(
        "a type is int, a range (0..47), choices (a|b), ** or the name of a table"
        + (f": {', '.join(tables)}" if tables else "; this file has no tables")
    )
    if kind and "." not in kind:
        help.append(f"for the one word {kind!r} write it without braces")
    title = f"{kind!r} is neither a type nor a table" if kind else "a colon without a type"
    problems.add("RK134", title, start, start + max(1, len(kind)), *help)


def _merged(parts: list[Part]) -> tuple[Part, ...]:
    """Adjacent literals as one."""
    merged: list[Part] = []
    for part in parts:
        if part.name is None and merged and merged[-1].name is None:
            before = merged[-1]
            assert isinstance(before.node, Seq) and isinstance(part.node, Seq)
            assert before.values is not None and part.values is not None
            at = (before.at[0], part.at[1])
            node = Seq(before.node.items + part.node.items, at)
            merged[-1] = Part(None, node, at, values=(before.values[0] + part.values[0],))
        else:
            merged.append(part)
    return tuple(merged)
