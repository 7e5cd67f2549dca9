"""Compile target templates against a pattern. A field is a capture, a table lookup, or arithmetic on captures."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Text
from remapkit.diagnostics.wording import suggest_name
from remapkit.patterns.literals import check_literal_text, read_quoted
from remapkit.patterns.pattern import Part, Pattern
from remapkit.patterns.ranges import NO_PARAMS, KeyParams, explain_no_value
from remapkit.patterns.steps import Steps
from remapkit.patterns.template import PLAIN_TEXT, CaptureItem, MapItem, Template, TemplateItem, TextItem
from remapkit.rulefile.arithmetic import INDICES, BadNumber, Expr, ListName, Name, NoValue, parse_expression
from remapkit.rulefile.yaml.compose import MAX_PROBLEMS, explain_problem_limit
from remapkit.rules.model import Table
from remapkit.tensors.families import is_canonical_integer
from remapkit.tensors.spec import find_name_problem

_REFERENCE = re.compile(r"\\(?:[0-9]|g<)[^.{}]*", re.ASCII)
"""A group reference in the syntax of `re.sub`."""
_QUOTED = re.compile(r"\{'(?:[^']|'')*'\}")
"""A quoted literal: what looks like a reference there is meant as it stands."""


MAX_COMBINATIONS = 4096
"""The most combinations of captures that one arithmetic expression may have."""


Tabulations = dict[tuple[Expr, tuple[str, ...], tuple[tuple[str, ...], ...]], Mapping[tuple[str, ...], str]]
"""The indices of each expression that a file has used, for each space of captures; params are those of the file."""


TEMPLATE_STEPS = 30
"""The least number of steps for a template."""


def _tabulate_expression(
    expression: Expr, names: Sequence[str], spaces: Sequence[tuple[str, ...]], params: KeyParams
) -> Mapping[tuple[str, ...], str]:
    """Return the index for each combination of captures; raises `BadNumber` for the first without a valid index."""
    mapping: dict[tuple[str, ...], str] = {}
    for values in itertools.product(*spaces):
        captures = dict(zip(names, map(int, values), strict=True))
        try:
            index = params.evaluate(expression, captures)
        except NoValue:
            raise
        except BadNumber as error:
            raise BadNumber(f"{error}{_describe_values(expression, captures, params)}") from None
        if index < 0:
            where = _describe_values(expression, captures, params)
            raise BadNumber(f"{expression} is {index}{where}; an index must be at least 0")
        mapping[values] = str(index)
    return mapping


def _describe_values(expression: Expr, captures: Mapping[str, int], params: KeyParams) -> str:
    numbers = [f"{name} = {value}" for name, value in captures.items()]
    numbers += [
        f"{name} = {params.values[name]}"
        for name in expression.names
        if name not in captures and isinstance(params.values[name], int)
    ]
    return f" for {', '.join(numbers)}" if numbers else ""


@dataclass(frozen=True, slots=True)
class _Field:
    """The content of a pair of braces: an expression, or a capture with a table."""

    expression: Expr
    table: str | None
    at: tuple[int, int]
    table_at: tuple[int, int]


def _parse_field(text: Text, start: int, end: int) -> _Field:
    """Parse the field between the braces at `start - 1` and `end`; raises `InvalidRules` if it is malformed."""
    at = (start - 1, end + 1)
    written = text.value[start:end]
    if not written.strip():
        raise _refuse_field(text, "empty braces", at, "name a capture, or write {{}} for the characters themselves")
    bar = start + len(written.partition("|")[0])
    expression = parse_expression(text, INDICES, start, bar)
    if bar == end:
        return _Field(expression, None, at, at)
    after = text.value[bar + 1 : end]
    table = after.strip()
    if not isinstance(expression.postfix[-1], Name):  # a lone operand; otherwise the last item is an operator
        raise _refuse_field(text, "a table needs a capture, got an expression", (bar, end), "write {name|table}")
    if not table:
        raise _refuse_field(text, "'|' without a table", (bar, end), "write {name|table}")
    begin = bar + 1 + len(after) - len(after.lstrip())
    return _Field(expression, table, at, (begin, begin + len(table)))


def _refuse_field(text: Text, title: str, at: tuple[int, int], help: str) -> InvalidRules:
    return InvalidRules(Diagnostic("RK150", title, (Label(text.at(*at)),), (help,)))


def _parse_fields(text: Text) -> Iterator[str | _Field | Diagnostic]:
    value, here = text.value, 0
    pending = ""
    plain: list[tuple[int, int]] = []
    unmatched = 0
    while here < len(value) and unmatched < MAX_PROBLEMS:
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
                title = "unmatched '}'" if sign == "}" else "'{' is never closed"
                help = (f"write {sign * 2} for the character itself",)
                unmatched += 1
                yield Diagnostic("RK150", title, (Label(text.at(here)),), help)
                here += 1
                continue
            if pending:
                yield pending
            pending = ""
            try:
                yield _parse_field(text, here + 1, end)
            except InvalidRules as error:
                yield from error.diagnostics
            here = end + 1
    if pending:
        yield pending
    wrong = _judge_plain_text(text, plain)
    if wrong is not None:
        yield wrong


def _judge_plain_text(text: Text, plain: list[tuple[int, int]]) -> Diagnostic | None:
    """Return the problem of the literal text; None if RK158 fits better (group references, control characters)."""
    if find_name_problem(text.value) is not None or any(_REFERENCE.search(text.value, *each) for each in plain):
        return None
    return check_literal_text(
        text, "a template", plain, lambda value: bool(value) and not find_syntax_problems(Text.of(value))
    )


def compile_template(
    text: Text,
    forget: tuple[Text, ...],
    pattern: Pattern,
    tables: Mapping[str, Table],
    steps: Steps,
    tabulations: Tabulations,
    params: KeyParams = NO_PARAMS,
) -> Template:
    """Compile the template of a rule; `tabulations` are those of the file so far, `params` its params.

    Raises `InvalidRules` with all of its problems, and `TooMany` if it takes more steps than are left.
    """
    steps.spend(TEMPLATE_STEPS + len(text.value) // 4)
    compiler = _Compiler(text, pattern, tables, steps, tabulations, params)
    items = compiler.items()
    compiler.check_uses(forget, items)
    if compiler.problems:
        raise InvalidRules(compiler.problems)
    return Template(text, items, tuple(name.value for name in forget))


def find_syntax_problems(text: Text) -> list[Diagnostic]:
    """Return the problems of a template that do not depend on its pattern."""
    return [each for each in _parse_fields(text) if isinstance(each, Diagnostic)]


class _Compiler:
    def __init__(
        self,
        text: Text,
        pattern: Pattern,
        tables: Mapping[str, Table],
        steps: Steps,
        tabulations: Tabulations,
        params: KeyParams,
    ) -> None:
        self.text, self.pattern, self.tables, self.params = text, pattern, tables, params
        self.steps, self.tabulations = steps, tabulations
        self.captures = {part.name: part for part in pattern.captures}
        self.problems: list[Diagnostic] = []
        self.used: dict[str, tuple[int, int]] = {}
        self.twice: dict[str, tuple[int, int]] = {}

    def add_problem(self, code: str, title: str, at: tuple[int, int], *help: str, about: Part | None = None) -> None:
        labels = [Label(self.text.at(*at))]
        if about is not None:
            labels.append(Label(self.pattern.text.at(*about.at), "captured here", primary=False))
        self.problems.append(Diagnostic(code, title, tuple(labels), help))
        if len(self.problems) >= MAX_PROBLEMS:
            raise InvalidRules([*self.problems, explain_problem_limit()])

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
        unquoted = _QUOTED.sub(lambda found: "{" * len(found[0]), self.text.value)
        reference = _REFERENCE.search(unquoted)
        if reference is not None and reference.group() in text:
            title = f"{reference.group()} would be copied into the target literally"
            help = "write {name} for a capture: (?P<name>...) in the pattern"
            self.add_problem("RK158", title, reference.span(), help)
        elif problem is not None:
            help = "write the template on one line, in single quotes"
            self.add_problem("RK158", f"the target {problem}", (0, len(self.text.value)), help)

    def compile_field(self, written: _Field) -> TemplateItem | None:
        expression = written.expression
        names = [item for item in expression.postfix if isinstance(item, Name)]
        known = [self.is_known(name) for name in names]
        if not all(known):
            return None
        for name in expression.names:
            if name in self.captures:
                (self.twice if name in self.used else self.used)[name] = written.at
        part = self.captures.get(names[0].name) if list(expression.postfix) == names[:1] else None
        if written.table is not None and part is None:
            title = f"a table needs a capture, got the param {expression.text!r}"
            self.add_problem("RK150", title, written.at, "write {name|table}")
            return None
        if part is not None:
            return self.compile_lookup(part, written) if written.table else CaptureItem(expression.names[0])
        if not names and len(expression.postfix) == 1:
            title = f"{self.text.value[slice(*written.at)]} is a number, the same for every key, not a capture"
            help = "name a capture, (?P<name>...) or {name}; write a constant without braces"
            self.add_problem("RK159", title, written.at, help)
            return None
        return self.compile_arithmetic(expression, written)

    def is_known(self, name: Name) -> bool:
        """Return whether a name is a capture or else a param; a list is a param. Add a problem if it is not."""
        if isinstance(name, ListName) and name.name in self.captures:
            title = f"{name.name!r} is a capture, so it has no index"
            self.add_problem("RK151", title, name.at, "an index selects a number of a list under `params:`")
            return False
        if name.name in self.captures or name.name in self.params.values:
            return True
        known = [each for each in self.captures if each]
        self.steps.spend(len(known))
        captured = f"the pattern captures {', '.join(known) or 'nothing'}"
        help = suggest_name(name.name, [*known, *self.params.values], captured)
        nor = (
            "is neither a capture of the pattern nor a param"
            if self.params.values
            else "is not captured by the pattern"
        )
        self.add_problem("RK151", f"{name.name!r} {nor}", name.at, help)
        return False

    def compile_lookup(self, part: Part, written: _Field) -> MapItem | None:
        assert written.table is not None and part.name is not None
        table = self.tables.get(written.table)
        if table is None:
            help = suggest_name(written.table, self.tables, f"known tables: {', '.join(self.tables) or 'none'}")
            self.add_problem("RK103", f"there is no table {written.table!r}", written.table_at, help)
            return None
        bound = self._suggest_bound(part, table.name)
        if part.values is None:
            title = f"{part.name!r} is not bounded, but the table {table.name!r} has only {len(table.entries)} keys"
            self.add_problem("RK105", title, written.at, bound, about=part)
            return None
        lacking = [value for value in part.values if value not in table.entries]
        if lacking:
            title = f"the table {table.name!r} lacks {lacking[0]!r}, which is a value of {part.name!r}"
            if len(lacking) > 1:
                title += f" ({len(lacking)} values in all)"
            self.add_problem(
                "RK102", title, written.at, "add it to the table, or bound the capture: " + bound, about=part
            )
            return None
        self.steps.spend(len(part.values))
        mapping: dict[tuple[str, ...], str] = {(value,): table.entries[value] for value in part.values}
        return MapItem((part.name,), mapping, self.text.value[slice(*written.at)], table.name)

    def _suggest_bound(self, part: Part, table: str) -> str:
        if self.pattern.surface == "path":
            return f"write {{{part.name}:{table}}}"
        return f"add `where: {{{part.name}: {table}}}`"

    def compile_arithmetic(self, expression: Expr, written: _Field) -> TemplateItem | None:
        names = tuple(name for name in expression.names if name in self.captures)
        spaces: list[tuple[str, ...]] = []
        for name in names:
            values = self.list_integers(self.captures[name], written)
            if values is None:
                return None
            spaces.append(values)
        count = 1
        for space in spaces:
            count *= len(space)
        if count > MAX_COMBINATIONS:
            title = f"{' and '.join(names)} must have at most {MAX_COMBINATIONS} combinations, got {count}"
            self.add_problem(
                "RK156", title, written.at, "bound the captures more tightly, or write one rule for each case"
            )
            return None
        try:
            mapping = self.tabulations.get((expression, names, tuple(spaces)))
            if mapping is None:
                self.steps.spend(count * (3 + len(expression.postfix) // 2))
                mapping = _tabulate_expression(expression, names, spaces, self.params)
                self.tabulations[expression, names, tuple(spaces)] = mapping
        except NoValue as error:
            what = self.text.value[slice(*written.at)]
            self.problems.append(explain_no_value(error, what, self.text.at(*written.at)))
            return None
        except BadNumber as error:
            self.add_problem("RK155", str(error), written.at, "bound the captures, or change the expression")
            return None
        if not names:
            return TextItem(mapping[()])
        return MapItem(names, mapping, self.text.value[slice(*written.at)])

    def list_integers(self, part: Part, written: _Field) -> tuple[str, ...] | None:
        path = self.pattern.surface == "path"
        bound = f"write {{{part.name}:0..47}}" if path else f"add `where: {{{part.name}: 0..47}}`"
        if part.values is None:
            title = f"arithmetic needs a bounded integer, but {part.name!r} is not bounded"
            self.add_problem("RK154", title, written.at, bound + " with your own bounds", about=part)
            return None
        for value in part.values:
            if not is_canonical_integer(value):
                title = f"arithmetic needs a bounded integer, but {part.name!r} can be {value!r}"
                self.add_problem("RK154", title, written.at, bound + " with your own bounds", about=part)
                return None
        return part.values

    def check_uses(self, forget: tuple[Text, ...], items: Sequence[TemplateItem]) -> None:
        forgotten = {name.value for name in forget}
        for name in forget:
            self.check_forgotten(name, items)
        for part in self.pattern.captures:
            assert part.name is not None
            if part.name in self.twice and part.values is None:
                title = f"{part.name!r} is used twice but not bounded"
                help = "bound it ({n:0..47}, choices or `where:`), so that a proof can exclude collisions"
                self.add_problem("RK157", title, self.twice[part.name], help, about=part)
            if (
                part.name not in self.used
                and part.name not in forgotten
                and not part.is_constant
                and not self.problems
            ):
                self.report_unused(part)

    def report_unused(self, part: Part) -> None:
        title = f"the template does not use {part.name!r}; keys that differ only there would map to one target"
        labels = (Label(self.pattern.text.at(*part.at)), Label(self.text.span, "not used here", primary=False))
        help = (
            f"use {{{part.name}}} in the template, or bound it to its only value",
            f"or add `forget: [{part.name}]` if it only ever has one value",
        )
        self.problems.append(Diagnostic("RK152", title, labels, help))

    def check_forgotten(self, name: Text, items: Sequence[TemplateItem]) -> None:
        known = [each for each in self.captures if each]
        self.steps.spend(1 + len(known) // 8)
        if name.value not in known:
            help = suggest_name(name.value, known, f"the pattern captures {', '.join(known) or 'nothing'}")
            title = f"`forget` names {name.value!r}, which the pattern does not capture"
            self.problems.append(Diagnostic("RK153", title, (Label(name.span),), (help,)))
        elif name.value in self.used and not _loses(items, name.value):
            labels = (Label(self.text.at(*self.used[name.value]), "used here", primary=False), Label(name.span))
            title = f"`forget` names {name.value!r}, which the template uses"
            self.problems.append(Diagnostic("RK153", title, labels, ("remove it from `forget`",)))


def _loses(items: Sequence[TemplateItem], name: str) -> bool:
    """Return whether a template uses a capture only in arithmetic that gives several values one number."""
    if any(isinstance(item, CaptureItem) and item.name == name for item in items):
        return False
    maps = [item for item in items if isinstance(item, MapItem) and name in item.names]
    return all(item.table is None and len(set(item.mapping.values())) < len(item.mapping) for item in maps)
