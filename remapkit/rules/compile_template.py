"""Target templates compiled against a pattern: every field must be a capture, a table or arithmetic of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Text
from remapkit.diagnostics.wording import suggest_name
from remapkit.patterns.literals import check_literal_text, read_quoted
from remapkit.patterns.pattern import Part, Pattern
from remapkit.patterns.template import PLAIN_TEXT, CaptureItem, MapItem, Template, TemplateItem, TextItem
from remapkit.rules.model import Table
from remapkit.tensors.families import is_canonical_integer
from remapkit.tensors.spec import find_name_problem

_REFERENCE = re.compile(r"\\(?:[0-9]|g<)[^.{}]*", re.ASCII)
"""How `re.sub` is told of a group."""


MAX_OPERATIONS = 100
"""The most signs that one arithmetic expression may have."""


MAX_COMBINATIONS = 4096
"""The most combinations of captures that one arithmetic expression may have."""


@dataclass(frozen=True, slots=True)
class _Number:
    value: int


@dataclass(frozen=True, slots=True)
class _Name:
    name: str
    at: tuple[int, int] = field(compare=False)


@dataclass(frozen=True, slots=True)
class _Operation:
    sign: str
    left: _Expression
    right: _Expression


_Expression = _Number | _Name | _Operation


def _list_names(expression: _Expression) -> Iterator[_Name]:
    if isinstance(expression, _Name):
        yield expression
    elif isinstance(expression, _Operation):
        yield from _list_names(expression.left)
        yield from _list_names(expression.right)


def _evaluate_expression(expression: _Expression, values: Mapping[str, int]) -> int:
    if isinstance(expression, _Number):
        return expression.value
    if isinstance(expression, _Name):
        return values[expression.name]
    left, right = _evaluate_expression(expression.left, values), _evaluate_expression(expression.right, values)
    if expression.sign == "+":
        return left + right
    if expression.sign == "-":
        return left - right
    if expression.sign == "*":
        return left * right
    return left // right if expression.sign == "//" else left % right


@lru_cache(maxsize=64)
def _tabulate_expression(
    expression: _Expression, names: tuple[str, ...], spaces: tuple[tuple[str, ...], ...]
) -> tuple[Mapping[tuple[str, ...], str], tuple[str, ...] | None]:
    """What an expression is for each combination; the first one, if any, for which it is no index."""
    mapping: dict[tuple[str, ...], str] = {}
    for values in itertools.product(*spaces):
        try:
            result = _evaluate_expression(expression, dict(zip(names, map(int, values), strict=True)))
        except ZeroDivisionError:
            return mapping, values
        if result < 0:
            return mapping, values
        mapping[values] = str(result)
    return mapping, None


class _Refused(Exception):
    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.title)
        self.diagnostic = diagnostic


@dataclass(frozen=True, slots=True)
class _Field:
    """What stands between braces: an expression, or a capture with a table."""

    expression: _Expression
    table: str | None
    at: tuple[int, int]
    table_at: tuple[int, int]


class _FieldParser:
    """`name`, `name|table`, or sums and products in the usual precedence, with parentheses."""

    def __init__(self, text: Text, start: int, end: int) -> None:
        self.text, self.start, self.end, self.here, self.depth = text, start, end, start, 0
        self.operations = 0

    def refuse(self, title: str, start: int, end: int, help: str) -> _Refused:
        return _Refused(Diagnostic("RK150", title, (Label(self.text.at(start, max(end, start + 1))),), (help,)))

    def skip_spaces(self) -> str:
        while self.here < self.end and self.text.value[self.here] == " ":
            self.here += 1
        return self.text.value[self.here] if self.here < self.end else ""

    def parse_field(self) -> _Field:
        at = (self.start - 1, self.end + 1)
        if not self.skip_spaces():
            raise self.refuse("empty braces", *at, "name a capture, or write {{}} for the characters themselves")
        expression = self.parse_sum()
        if self.skip_spaces() == "|":
            return self.parse_table(expression, at)
        if self.here < self.end:
            rest = self.text.value[self.here : self.end]
            help = "known are {name}, {name|table}, and + - * // % with parentheses on integer captures"
            raise self.refuse(f"{rest!r} cannot be read here", self.here, self.end, help)
        return _Field(expression, None, at, at)

    def parse_table(self, expression: _Expression, at: tuple[int, int]) -> _Field:
        self.here += 1
        self.skip_spaces()
        begin = self.here
        table = self.text.value[begin : self.end].strip()
        if not isinstance(expression, _Name):
            raise self.refuse("a table of an expression", begin - 1, self.end, "look a capture up: {name|table}")
        if not table:
            raise self.refuse("a | without a table", begin - 1, self.end, "write {name|table}")
        return _Field(expression, table, at, (begin, begin + len(table)))

    def parse_sum(self) -> _Expression:
        left = self.product()
        while (sign := self.skip_spaces()) and sign in "+-":
            self.here += 1
            left = self.make_operation(sign, left, self.product())
        return left

    def make_operation(self, sign: str, left: _Expression, right: _Expression) -> _Operation:
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            title = f"an expression of more than {MAX_OPERATIONS} signs"
            raise self.refuse(title, self.start - 1, self.end + 1, "write it shorter")
        return _Operation(sign, left, right)

    def product(self) -> _Expression:
        left = self.parse_term()
        while (sign := self.skip_spaces()) and sign in "*/%":
            if sign == "/" and self.text.value[self.here : self.here + 2] != "//":
                raise self.refuse("a single /", self.here, self.here + 1, "write // : integers only")
            if self.text.value[self.here : self.here + 2] == "**":
                raise self.refuse("a power", self.here, self.here + 2, "known are + - * // %")
            sign = "//" if sign == "/" else sign
            self.here += len(sign)
            left = self.make_operation(sign, left, self.parse_term())
        return left

    def parse_term(self) -> _Expression:
        sign = self.skip_spaces()
        begin = self.here
        if sign == "(":
            return self.parse_parenthesis()
        while self.here < self.end and (self.text.value[self.here].isalnum() or self.text.value[self.here] == "_"):
            self.here += 1
        word = self.text.value[begin : self.here]
        if word.isascii() and word.isdigit():
            if len(word) > 9:
                raise self.refuse("a number of more than 9 digits", begin, self.here, "no key has that many layers")
            return _Number(int(word))
        if not (word.isascii() and word.isidentifier()):
            what = repr(word or sign) if word or sign else "nothing"
            help = "name a capture; {{ and }} are the braces themselves"
            raise self.refuse(
                f"{what} where a capture or an integer is wanted", begin, max(self.here, begin + 1), help
            )
        return _Name(word, (begin, self.here))

    def parse_parenthesis(self) -> _Expression:
        begin = self.here
        self.here += 1
        self.depth += 1
        if self.depth > 50:
            raise self.refuse("parentheses nested more than 50 deep", begin, begin + 1, "simplify it")
        inner = self.parse_sum()
        if self.skip_spaces() != ")":
            raise self.refuse("a parenthesis that is never closed", begin, begin + 1, "close it with )")
        self.here += 1
        self.depth -= 1
        return inner


def _parse_fields(text: Text) -> Iterator[str | _Field | Diagnostic]:
    value, here = text.value, 0
    pending = ""
    plain: list[tuple[int, int]] = []
    while here < len(value):
        sign = value[here]
        if value[here : here + 2] in ("{{", "}}"):
            pending, here = pending + sign, here + 2
        elif value.startswith("{'", here):
            problems: list[Diagnostic] = []
            literal, here = read_quoted(text, here, problems)
            pending += literal
            yield from problems
        elif sign not in "{}":
            start, here = here, PLAIN_TEXT.match(value, here).end()  # type: ignore[union-attr]
            pending += value[start:here]
            plain.append((start, here))
        else:
            end = value.find("}", here)
            if sign == "}" or end < 0 or "{" in value[here + 1 : end]:
                what = "closes nothing" if sign == "}" else "is never closed"
                help = (f"write {sign * 2} for the character itself",)
                yield Diagnostic("RK150", f"a brace that {what}", (Label(text.at(here)),), help)
                here += 1
                continue
            if pending:
                yield pending
            pending = ""
            try:
                yield _FieldParser(text, here + 1, end).parse_field()
            except _Refused as refused:
                yield refused.diagnostic
            here = end + 1
    if pending:
        yield pending
    wrong = _judge_plain_text(text, plain)
    if wrong is not None:
        yield wrong


def _judge_plain_text(text: Text, plain: list[tuple[int, int]]) -> Diagnostic | None:
    """What is wrong with the literal text, but for what RK158 says better: references, and what no key may have."""
    if find_name_problem(text.value) is not None or any(_REFERENCE.search(text.value, *each) for each in plain):
        return None
    return check_literal_text(
        text, "a template", plain, lambda value: bool(value) and not find_syntax_problems(Text.of(value))
    )


def compile_template(text: Text, forget: tuple[Text, ...], pattern: Pattern, tables: Mapping[str, Table]) -> Template:
    """The template of a rule; raises `InvalidRules` with everything that is wrong with it."""
    compiler = _Compiler(text, pattern, tables)
    items = compiler.items()
    compiler.check_uses(forget)
    if compiler.problems:
        raise InvalidRules(compiler.problems)
    return Template(text, items, tuple(name.value for name in forget))


def find_syntax_problems(text: Text) -> list[Diagnostic]:
    """What is wrong with a template whatever its pattern captures."""
    return [each for each in _parse_fields(text) if isinstance(each, Diagnostic)]


class _Compiler:
    def __init__(self, text: Text, pattern: Pattern, tables: Mapping[str, Table]) -> None:
        self.text, self.pattern, self.tables = text, pattern, tables
        self.problems: list[Diagnostic] = []
        self.used: dict[str, tuple[int, int]] = {}
        self.twice: dict[str, tuple[int, int]] = {}

    def add_problem(self, code: str, title: str, at: tuple[int, int], *help: str, about: Part | None = None) -> None:
        labels = [Label(self.text.at(*at))]
        if about is not None:
            labels.append(Label(self.pattern.text.at(*about.at), "captured here", primary=False))
        self.problems.append(Diagnostic(code, title, tuple(labels), help))

    def items(self) -> tuple[TemplateItem, ...]:
        items: list[TemplateItem] = []
        for each in _parse_fields(self.text):
            if isinstance(each, Diagnostic):
                self.problems.append(each)
            elif isinstance(each, str):
                self.check_literal(each)
                items.append(TextItem(each))
            else:
                item = self.compile_field(each)
                if item is not None:
                    items.append(item)
        return tuple(items)

    def check_literal(self, text: str) -> None:
        problem = find_name_problem(text)
        reference = _REFERENCE.search(self.text.value)
        if reference is not None and reference.group() in text:
            title = f"{reference.group()} would stand in the target as it is"
            help = "write {name} for a capture: (?P<name>...) in the pattern"
            self.add_problem("RK158", title, reference.span(), help)
        elif problem is not None:
            help = "write the template on one line, in single quotes"
            self.add_problem("RK158", f"the target {problem}", (0, len(self.text.value)), help)

    def compile_field(self, written: _Field) -> TemplateItem | None:
        parts = [self.find_capture(name) for name in _list_names(written.expression)]
        if any(part is None for part in parts):
            return None
        for name in dict.fromkeys(name.name for name in _list_names(written.expression)):
            (self.twice if name in self.used else self.used)[name] = written.at
        expression = written.expression
        if isinstance(expression, _Number):
            title = f"{self.text.value[slice(*written.at)]} is a number, the same for every key, and not a capture"
            help = "name a capture, as (?P<name>...) or {name}; a constant is written without braces"
            self.add_problem("RK159", title, written.at, help)
            return None
        if written.table is not None:
            assert parts[0] is not None
            return self.compile_lookup(parts[0], written)
        if isinstance(expression, _Name):
            return CaptureItem(expression.name)
        return self.compile_arithmetic(expression, written)

    def find_capture(self, name: _Name) -> Part | None:
        part = self.pattern.capture(name.name)
        if part is None:
            known = [each.name for each in self.pattern.captures if each.name]
            help = suggest_name(name.name, known, f"the pattern captures {', '.join(known) or 'nothing'}")
            self.add_problem("RK151", f"{name.name!r} is not captured by the pattern", name.at, help)
        return part

    def compile_lookup(self, part: Part, written: _Field) -> MapItem | None:
        assert written.table is not None and part.name is not None
        table = self.tables.get(written.table)
        if table is None:
            help = suggest_name(written.table, self.tables, f"known tables: {', '.join(self.tables) or 'none'}")
            self.add_problem("RK103", f"there is no table {written.table!r}", written.table_at, help)
            return None
        bound = self._suggest_bound(part, table.name)
        if part.values is None:
            title = f"{part.name!r} is not bounded, and the table {table.name!r} knows {len(table.entries)} values"
            self.add_problem("RK105", title, written.at, bound, about=part)
            return None
        lacking = [value for value in part.values if value not in table.entries]
        if lacking:
            title = f"the table {table.name!r} lacks {lacking[0]!r}, which {part.name!r} can be"
            if len(lacking) > 1:
                title += f" ({len(lacking)} values in all)"
            self.add_problem(
                "RK102", title, written.at, "add it to the table, or bound the capture: " + bound, about=part
            )
            return None
        mapping: dict[tuple[str, ...], str] = {(value,): table.entries[value] for value in part.values}
        return MapItem((part.name,), mapping, self.text.value[slice(*written.at)], table.name)

    def _suggest_bound(self, part: Part, table: str) -> str:
        if self.pattern.surface == "path":
            return f"write {{{part.name}:{table}}}"
        return f"add `where: {{{part.name}: {table}}}`"

    def compile_arithmetic(self, expression: _Expression, written: _Field) -> TemplateItem | None:
        names = tuple(dict.fromkeys(name.name for name in _list_names(expression)))
        parts = [self.pattern.capture(name) for name in names]
        spaces: list[tuple[str, ...]] = []
        for part in parts:
            assert part is not None
            values = self.list_integers(part, written)
            if values is None:
                return None
            spaces.append(values)
        count = 1
        for space in spaces:
            count *= len(space)
        if count > MAX_COMBINATIONS:
            title = f"{count} combinations of {' and '.join(names)}: more than {MAX_COMBINATIONS}"
            self.add_problem("RK156", title, written.at, "bound the captures more tightly, or write one rule a case")
            return None
        mapping, failing = _tabulate_expression(expression, names, tuple(spaces))
        if failing is not None:
            self.report_no_index(expression, dict(zip(names, map(int, failing), strict=True)), written)
            return None
        if not names:
            return TextItem(mapping[()])
        return MapItem(names, mapping, self.text.value[slice(*written.at)])

    def list_integers(self, part: Part, written: _Field) -> tuple[str, ...] | None:
        path = self.pattern.surface == "path"
        bound = f"write {{{part.name}:0..47}}" if path else f"add `where: {{{part.name}: 0..47}}`"
        if part.values is None:
            title = f"arithmetic wants a bounded integer, and {part.name!r} is not bounded"
            self.add_problem("RK154", title, written.at, bound + " with your own bounds", about=part)
            return None
        for value in part.values:
            if not is_canonical_integer(value):
                title = f"arithmetic wants a bounded integer, and {part.name!r} can be {value!r}"
                self.add_problem("RK154", title, written.at, bound + " with your own bounds", about=part)
                return None
        return part.values

    def report_no_index(self, expression: _Expression, values: dict[str, int], written: _Field) -> None:
        """Says for which values an expression gives no index."""
        try:
            result: int | None = _evaluate_expression(expression, values)
        except ZeroDivisionError:
            result = None
        given = ", ".join(f"{name} = {value}" for name, value in values.items())
        source = self.text.value[slice(*written.at)]
        if result is None:
            self.add_problem("RK155", f"{source} divides by zero for {given}", written.at, "bound the captures")
        else:
            title = f"{source} is {result} for {given}: no index is negative"
            self.add_problem("RK155", title, written.at, "bound the captures, or change the expression")

    def check_uses(self, forget: tuple[Text, ...]) -> None:
        forgotten = {name.value for name in forget}
        for name in forget:
            self.check_forgotten(name)
        for part in self.pattern.captures:
            assert part.name is not None
            if part.name in self.twice and part.values is None:
                title = f"{part.name!r} is used twice but not bounded"
                help = "bound it ({n:0..47}, choices or `where:`), so that it can be proven that no two keys collide"
                self.add_problem("RK157", title, self.twice[part.name], help, about=part)
            if (
                part.name not in self.used
                and part.name not in forgotten
                and not part.is_constant
                and not self.problems
            ):
                self.report_unused(part)

    def report_unused(self, part: Part) -> None:
        title = f"the template does not use {part.name!r}: keys that differ only there would become one"
        labels = (Label(self.pattern.text.at(*part.at)), Label(self.text.span, "not used here", primary=False))
        help = (
            f"use {{{part.name}}} in the template, or bound it to the one value it has",
            f"or say `forget: [{part.name}]`, if only one value of it ever occurs",
        )
        self.problems.append(Diagnostic("RK152", title, labels, help))

    def check_forgotten(self, name: Text) -> None:
        known = [part.name for part in self.pattern.captures if part.name]
        if name.value not in known:
            help = suggest_name(name.value, known, f"the pattern captures {', '.join(known) or 'nothing'}")
            title = f"`forget` names {name.value!r}, which the pattern does not capture"
            self.problems.append(Diagnostic("RK153", title, (Label(name.span),), (help,)))
        elif name.value in self.used:
            labels = (Label(self.text.at(*self.used[name.value]), "used here", primary=False), Label(name.span))
            title = f"`forget` names {name.value!r}, which the template uses"
            self.problems.append(Diagnostic("RK153", title, labels, ("remove it from `forget`",)))
