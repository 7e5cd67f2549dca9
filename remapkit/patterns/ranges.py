"""The numbers of captures, `{i:0..47}`, `{i:0..layers-2}` and `{i:layers-1}`: params are put in when compiling.

So nothing that comes later (matching, proofs, inverses) knows of params: it sees ordinary ranges.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Span, Text
from remapkit.patterns.finite import MAX_WORDS
from remapkit.rulefile.arithmetic import (
    INDICES,
    BadNumber,
    Expr,
    Name,
    NoValue,
    Values,
    check_names,
    describe_value,
    parse_expression,
)
from remapkit.tensors.families import MAX_DIGITS, is_canonical_integer

_BOUNDS = replace(
    INDICES, code="RK135", help="a bound is a number, or + - * // % with parentheses on params; // rounds down"
)
_DIGITS = re.compile(r"[-\d\s]*")
_RANGE_HELP = "write {n:0..47}, both ends included"


@dataclass(frozen=True, slots=True)
class KeyParams:
    """The params of a file with their values, and those that patterns and templates have used so far."""

    values: Values = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def evaluate(self, expression: Expr, captures: Mapping[str, int] | None = None) -> int:
        """Evaluate an expression; captures hide params. Raises `BadNumber`, and `NoValue` without a value."""
        self.used.update(name for name in expression.names if name not in (captures or ()))
        return expression.value({**self.values, **(captures or {})})

    def describe(self, expression: Expr) -> str:
        """Describe the values of the params of an expression: `for layers = 24`."""
        values = (f"{name} = {describe_value(self.values[name])}" for name in expression.names if name in self.values)
        return ", ".join(values)


NO_PARAMS = KeyParams()
"""The params of a pattern that has none."""


def explain_no_value(error: NoValue, what: str, span: Span) -> Diagnostic:
    """Return the problem (RK341) of a pattern or template that needs a param without a value."""
    name = error.names[0]
    help = (
        f"pass --param {name}=NUMBER, or --config config.json if the rules name its entry",
        f"or give it a value that holds otherwise: `{name}: {{value: ...}}` under `params:`",
    )
    title = f"{what} needs the param {name!r}, which has no value"
    return Diagnostic("RK341", title, (Label(span),), help, values={"params": list(error.names)})


def read_range(text: Text, start: int, end: int, params: KeyParams = NO_PARAMS) -> tuple[str, ...]:
    """Return the canonical decimals of a range like `0..47`, at a place in a text; the bounds may use params.

    A range with params may be empty (`0..layers-2` for one layer); raises `InvalidRules` for others, and for bounds
    that are no indices.

    >>> params = KeyParams({"layers": 4})
    >>> read_range(Text.of("0..layers-2"), 0, 11, params)
    ('0', '1', '2')
    """
    written = text.value[start:end]
    low, _, high = written.partition("..")
    if max(len(low), len(high)) > MAX_DIGITS and _DIGITS.fullmatch(low + high):
        raise _refuse(text, start, end, f"a bound must have at most {MAX_DIGITS} digits", "write :int")
    sides = ((low, start), (high, start + len(low) + 2))
    if any(_DIGITS.fullmatch(side) and not is_canonical_integer(side) for side, _ in sides):
        raise _refuse(text, start, end, f"{written!r} is not a range of integers", _RANGE_HELP)
    has_params = not (is_canonical_integer(low) and is_canonical_integer(high))
    if has_params and not params.values:
        raise _refuse(text, start, end, f"{written!r} is not a range of integers", _RANGE_HELP)
    first, last = (
        int(side) if is_canonical_integer(side) else _evaluate_bound(text, at, at + len(side), params)
        for side, at in sides
    )
    shown = f" ({first}..{last})" if has_params else ""
    if first > last + has_params:
        title = f"the range {written}{shown} is empty"
        if not has_params:
            raise _refuse(text, start, end, title, f"write {high}..{low}")
        other = "for a checkpoint of this size, learn rules of its own: `remapkit learn A B`"
        raise _refuse(text, start, end, title, "correct the bounds, or the params", other)
    if last - first >= MAX_WORDS:
        title = f"the range {written}{shown} has more than {MAX_WORDS} values"
        raise _refuse(text, start, end, title, "write :int for any canonical integer")
    return _list_integers(first, last)


def read_number(text: Text, start: int, end: int, params: KeyParams) -> str | None:
    """Return the decimal of arithmetic on params (`layers-1`) at a place in a text; None if it is something else.

    Raises `InvalidRules` if it has no value, or none that is an index.
    """
    try:
        expression = parse_expression(text, _BOUNDS, start, end)
    except InvalidRules:
        return None
    if not any(name in params.values for name in expression.names):
        return None
    return str(_evaluate_bound(text, start, end, params))


def _evaluate_bound(text: Text, start: int, end: int, params: KeyParams) -> int:
    expression = parse_expression(text, _BOUNDS, start, end)
    place = text.at(start, end)
    problem = check_names(expression, params.values)
    if problem is not None:
        unknown = next(
            item for item in expression.postfix if isinstance(item, Name) and item.name not in params.values
        )
        raise InvalidRules(Diagnostic(problem.code, problem.title, (Label(text.at(*unknown.at)),), problem.help))
    try:
        value = params.evaluate(expression)
    except NoValue as error:
        raise InvalidRules(explain_no_value(error, f"{expression}", place)) from None
    except BadNumber as error:
        raise _refuse(text, start, end, str(error), "correct the arithmetic, or the params") from None
    if value < 0 and not (value == -1 and text.value[:start].endswith("..")):
        title = f"{expression} is {value} for {params.describe(expression)}; an index must be at least 0"
        raise _refuse(text, start, end, title, "correct the arithmetic, or the params")
    return value


def _refuse(text: Text, start: int, end: int, title: str, *help: str) -> InvalidRules:
    return InvalidRules(Diagnostic("RK135", title, (Label(text.at(start, end)),), help))


@lru_cache(maxsize=64)
def _list_integers(low: int, high: int) -> tuple[str, ...]:
    """Return the integers of a range as text; equal ranges of a file share them."""
    return tuple(map(str, range(low, high + 1)))
