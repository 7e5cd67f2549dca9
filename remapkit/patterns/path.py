r"""Parse the `path` surface syntax (literal segments and captures) into the parts of `pattern.py`.

    encoder.down_blocks.{stage:int}.resnets.{block:0..2}.{layer:layer}.{rest:**}

`{name}` is one segment (or, next to other text, any part of one), `{name:int}` a canonical decimal, `{name:0..47}` a
number in a range, `{name:a|b}` one of several words, `{name:slots}` a key of the table `slots`, `{name:**}` one or
more segments. A segment may have several captures if every key is split in one way (`segments.py`). `{{` and `}}` are
literal braces, and `{'...'}` is a literal with any characters (`literals.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Text
from remapkit.diagnostics.wording import suggest_name
from remapkit.patterns.literals import (
    QUOTED,
    check_key_characters,
    check_literal_text,
    choice_text,
    describe_sign,
    is_plain,
    literal_text,
    read_quoted,
    unescape_quotes,
)
from remapkit.patterns.pattern import CANONICAL, SEGMENT, SEGMENTS, Part
from remapkit.patterns.ranges import NO_PARAMS, KeyParams, read_number, read_range
from remapkit.patterns.segments import reads_segments_one_way
from remapkit.patterns.tree import Seq, literal
from remapkit.rulefile.yaml.compose import MAX_PROBLEMS, explain_problem_limit
from remapkit.rulefile.yaml.emit import quote_text

_TYPES = ("int", "**")
_PLAIN = re.compile("[^{}.]+")
_CAPTURE = re.compile(r"\{(?:[^{}']|'[^']*')*\}")
"""A capture; quoted choices may contain anything."""
_PIECE = re.compile(r"(?:[^'|]|'[^']*'|'(?![^']*'))*")
"""A choice, up to the next `|` outside quotes."""
_CHOICE = re.compile(r"'((?:[^']|'')+)'")


@dataclass(frozen=True, slots=True)
class _Token:
    """A token of a path: `text` or `quoted` (both literal), `dot` or `capture`, from `start` to `end`."""

    kind: str
    value: str
    start: int
    end: int


class PathProblems:
    """The collected problems of one path."""

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
        if len(self.found) >= MAX_PROBLEMS:
            raise InvalidRules([*self.found, explain_problem_limit()])


def parse_path(text: Text, tables: Mapping[str, Sequence[str]], params: KeyParams = NO_PARAMS) -> tuple[Part, ...]:
    """Parse a path pattern into parts; raises `InvalidRules` with all of its problems.

    `tables` maps the names of the known tables to their keys; `params` are those that numbers may use.

    >>> [part.name for part in parse_path(Text.of("layers.{n:int}.{leaf}"), {})]
    [None, 'n', None, 'leaf']
    """
    problems = PathProblems(text)
    tokens = list(_tokenize_path(text, problems))
    parts: list[Part] = []
    names: dict[str, tuple[int, int]] = {}
    deep: tuple[int, int] | None = None
    for number, segment in enumerate(_split_segments(tokens, len(text.value))):
        if number:
            parts.append(_make_literal(".", segment.start - 1, segment.start))
        if not segment.tokens:
            help = (
                "remove the extra dot"
                if len(text.value)
                else "write a key, `{name}` for a segment, `{all:**}` for any key"
            )
            problems.add("RK130", "an empty segment", max(0, segment.start - 1), segment.end, help)
        for token in segment.tokens:
            if token.kind != "capture":
                parts.append(_make_literal(token.value, token.start, token.end))
                continue
            part = _read_capture(token, tables, params, problems)
            if part is None or part.name is None:
                continue
            if part.name in names:
                title, earlier = f"two captures are named {part.name!r}", names[part.name]
                problems.add("RK122", title, token.start, token.end, "give each its own name", earlier=earlier)
            names.setdefault(part.name, (token.start, token.end))
            if part.written == "**":
                if len(segment.tokens) > 1:
                    help = f"put dots around it, or write {{{part.name}}} for the rest of one segment"
                    problems.add("RK137", "`**` must be a whole segment", token.start, token.end, help)
                if deep is not None:
                    help = "a key could be split in several ways; bound one of them, or write the segments out"
                    problems.add("RK133", "two `**` in one path", token.start, token.end, help, earlier=deep)
                deep = deep or (token.start, token.end)
            parts.append(part)
    _check_literals(text, tokens, tables, params, problems)
    if problems.found:
        raise InvalidRules(problems.found)
    return _merge_literals(parts)


@dataclass(frozen=True, slots=True)
class _Segment:
    tokens: tuple[_Token, ...]
    start: int
    end: int


def _split_segments(tokens: list[_Token], length: int) -> Iterator[_Segment]:
    start, pending = 0, list[_Token]()
    for token in tokens:
        if token.kind == "dot":
            yield _Segment(tuple(pending), start, token.start)
            start, pending = token.end, []
        else:
            pending.append(token)
    yield _Segment(tuple(pending), start, length)


def _check_literals(
    text: Text,
    tokens: Sequence[_Token],
    tables: Mapping[str, Sequence[str]],
    params: KeyParams,
    problems: PathProblems,
) -> None:
    """Check the literal text of a path; its problem is reported once, before any others."""
    others = {(each.code, each.title) for each in problems.found}

    def works(value: str) -> bool:
        try:
            return reads_segments_one_way(parse_path(Text.of(value), tables, params))
        except InvalidRules as error:
            return {(each.code, each.title) for each in error.diagnostics} <= others

    literal = "".join(token.value for token in tokens if token.kind != "capture")
    found = check_key_characters(text, "a path", literal)
    if found is None and any(not is_plain(sign) for token in tokens if token.kind == "text" for sign in token.value):
        stretches: list[tuple[int, int]] = []
        for token in tokens:
            if token.kind not in ("text", "dot") or token.end - token.start > len(token.value):
                continue
            if stretches and stretches[-1][1] == token.start:
                stretches[-1] = (stretches[-1][0], token.end)
            else:
                stretches.append((token.start, token.end))
        found = check_literal_text(text, "a path", stretches, works, wildcards=True)
    problems.found[:0] = [found] if found is not None else []


def _tokenize_path(text: Text, problems: PathProblems) -> Iterator[_Token]:
    here, value = 0, text.value
    while here < len(value):
        sign = value[here]
        if value[here : here + 2] in ("{{", "}}"):
            yield _Token("text", sign, here, here + 2)
            here += 2
        elif value.startswith("{'", here):
            literal, end = read_quoted(text, here, problems.found)
            yield _Token("quoted", literal, here, end)
            here = end
        elif sign == "{":
            found = _CAPTURE.match(value, here)
            end = value.find("}", here) if found is None else found.end() - 1
            if end < 0 or "{" in value[here + 1 : end]:
                help = "close it with }, or write {{ for the character itself"
                problems.add("RK131", "'{' is never closed", here, here + 1, help)
                yield _Token("text", sign, here, here + 1)
                here += 1
            else:
                yield _Token("capture", value[here + 1 : end], here, end + 1)
                here = end + 1
        elif sign == "}":
            problems.add("RK131", "unmatched '}'", here, here + 1, "write }} for the character itself")
            yield _Token("text", sign, here, here + 1)
            here += 1
        elif sign == ".":
            yield _Token("dot", sign, here, here + 1)
            here += 1
        else:
            end = _PLAIN.match(value, here).end()  # type: ignore[union-attr]
            yield _Token("text", value[here:end], here, end)
            here = end


def _make_literal(text: str, start: int, end: int) -> Part:
    return Part(None, Seq(literal(text, start).items, (start, end)), (start, end), values=(text,))


def _read_capture(
    token: _Token, tables: Mapping[str, Sequence[str]], params: KeyParams, problems: PathProblems
) -> Part | None:
    name, colon, kind = token.value.partition(":")
    at = (token.start, token.end)
    if not (name.isascii() and name.isidentifier()):
        help = "write {name} or {name:type}; a name consists of letters, digits and _"
        problems.add("RK120", f"{name!r} is not a valid capture name", *at, help)
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
        part = blank.restrict_to(tuple(tables[kind]), table=kind)
        return replace(part, written=kind)
    values: tuple[str, ...] | None = None
    try:
        if ".." in kind and "'" not in kind:
            values = read_range(problems.text, start, start + len(kind), params)
        elif "|" in kind:
            values = _read_choices(kind, problems, start)
        elif (number := read_number(problems.text, start, start + len(kind), params)) is not None:
            values = (number,)
        else:
            _report_unknown_type(name, kind, [*tables], [*params.values], problems, start)
    except InvalidRules as error:
        problems.found += error.diagnostics
    return None if values is None else replace(blank.restrict_to(values), written=kind)


def _read_choices(kind: str, problems: PathProblems, start: int) -> tuple[str, ...] | None:
    written = _split_choices(kind)
    values = [unescape_quotes(found[1]) if (found := _CHOICE.fullmatch(each)) else each for each in written]
    here, good = start, True
    seen: set[str] = set()
    for number, value in enumerate(values):
        length = len(written[number])
        where = (max(start, here - 1), here + length + 1) if not value else (here, here + length)
        odd = None if value != written[number] else next((sign for sign in value if not is_plain(sign)), None)
        if not value:
            problems.add("RK136", "an empty choice", *where, "remove the extra |")
        elif "." in value:
            help = "choices are parts of one segment; use a table, whose keys may contain dots, or two rules"
            problems.add("RK136", f"a dot in the choice {value!r}", *where, help)
        elif value in seen:
            problems.add("RK136", f"duplicate choice {value!r}", *where, "remove one")
        elif odd is not None:
            read = "|".join(
                each if _CHOICE.fullmatch(each) else choice_text(word) if word else ""
                for word, each in zip(values, written, strict=True)
            )
            whole = problems.text.value
            literal = quote_text(whole[:start] + read + whole[start + len(kind) :])
            help = f"choices are words, not patterns; for these very characters write {literal}"
            problems.add("RK219", f"a choice must be plain text, got {describe_sign(odd)}", *where, help)
        elif (hidden_in := check_key_characters(problems.text, "a choice", value)) is not None:
            problems.found.append(hidden_in)
        else:
            seen.add(value)
            here += length + 1
            continue
        seen.add(value)
        good = False
        here += length + 1
    return tuple(values) if good else None


def _split_choices(kind: str) -> list[str]:
    """Split choices, as written; a quoted `|` does not separate them."""
    pieces, here = [], 0
    while here <= len(kind):
        found = _PIECE.match(kind, here)
        assert found is not None
        pieces.append(found.group())
        here = found.end() + 1
    return pieces


def _report_unknown_type(
    name: str, kind: str, tables: Sequence[str], params: Sequence[str], problems: PathProblems, start: int
) -> None:
    meant = "int" if re.fullmatch(r"(?:\\d|\[0-9\])[+*]?", kind) else kind
    kinds = "a type is int, a range (0..47), choices (a|b), ** or the name of a table"
    kinds = kinds.replace(" or the", f", arithmetic on params ({params[-1]}) or the") if params else kinds
    known = f": {', '.join(tables)}" if tables else "; this file has no tables"
    help = [*filter(None, [suggest_name(meant, [*_TYPES, *tables, *params])]), kinds + known]
    if kind and "." not in kind:
        found = QUOTED.fullmatch(f"{{{kind}}}")
        word = unescape_quotes(found[1]) if found is not None else kind
        written = literal_text(word)
        help.append(f"for the literal text {word!r} omit the braces" + (f": {written}" if written != word else ""))
    title = f"{kind!r} is neither a type nor a table" if kind else "a colon without a type"
    problems.add("RK134", title, start, start + max(1, len(kind)), *help)


def _merge_literals(parts: list[Part]) -> tuple[Part, ...]:
    """Merge adjacent literals."""
    merged: list[Part] = []
    for is_literal, group in groupby(parts, key=lambda part: part.name is None):
        run = list(group)
        if not is_literal or len(run) == 1:
            merged += run
            continue
        text = "".join(part.values[0] for part in run if part.values)
        at = (run[0].at[0], run[-1].at[1])
        merged.append(Part(None, Seq(literal(text).items, at), at, values=(text,)))
    return tuple(merged)
