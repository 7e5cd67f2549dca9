"""Arithmetic on whole numbers: the numbers of operations, and the indices in target keys.

heads: 32            sizes: [hidden, hidden, 4*hidden]            to: 'blocks.{i*4+offset[j]}.weight'

Both use the same parser and evaluator; a `Dialect` defines what each may use. Operators mean the same as in Python:
`//` rounds the quotient down, and `%` is the remainder. Since a silently rounded size would be a different tensor, a
`//` that leaves a remainder is an error in `SIZES`. A param may be a list, of which an index selects one number.
`size(k)` is the size of dimension k of the tensor that an operation gets.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Span, Text
from remapkit.diagnostics.wording import count_noun, suggest_name

_Value = int | Fraction
ParamValue = int | tuple[int, ...]
"""A number, or a list of numbers."""
Values = Mapping[str, ParamValue | None]
"""The values of params and captures by name; None: no value."""
_OPERATORS: Mapping[str, tuple[int, Callable[[_Value, _Value], _Value]]] = {
    "+": (1, operator.add),
    "-": (1, operator.sub),
    "*": (2, operator.mul),
    "/": (2, lambda left, right: Fraction(left) / right),
    "//": (2, operator.floordiv),
    "%": (2, operator.mod),
}
"""The precedence and the function of each operator."""
_ROUNDING: Mapping[str, Callable[[_Value], int]] = {"floor(": math.floor, "ceil(": math.ceil}
SIZE = "size()"
"""The name under which `Values` have the shape of the tensor at hand; no param and no capture can have it."""
_SIZE_CALL = re.compile(r"size\s*\(\s*(-?\d{1,4})\s*\)", re.ASCII)
_TOKEN = re.compile(
    r"\s*(?:(\d+)|(size\s*\(\s*-?\d{1,4}\s*\)|(?!(?:floor|ceil|size)\s*\()[A-Za-z_]\w*(?!\w|\s*\[))"
    r"|((?:floor|ceil)\s*\(|[A-Za-z_]\w*\s*\[|\*\*|//|[-+*/%()\]])|(size\s*\(|\S))",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """The features that arithmetic may use in one context, its limits (None: none), and its message code and help.

    `exact`: a `//` that leaves a remainder is an error. `sized`: it has `size(k)`.
    """

    operators: frozenset[str]
    max_digits: int
    max_operators: int
    largest: int | None
    exact: bool
    code: str
    help: str
    sized: bool = False


SIZES = Dialect(
    frozenset({*_OPERATORS, *_ROUNDING}),
    max_digits=18,
    max_operators=10_000,
    largest=1 << 62,
    exact=True,
    code="RK161",
    help="a number may use integers, params, list[index], size(k), parentheses, + - * / // %, floor(...), ceil(...)",
    sized=True,
)
"""The numbers of operations, evaluated once per plan."""

INDICES = Dialect(
    frozenset({"+", "-", "*", "//", "%"}),
    max_digits=9,
    max_operators=100,
    largest=None,
    exact=False,
    code="RK150",
    help="a field is {name}, {name|table}, or + - * // % with parentheses on integer captures; // rounds down",
)
"""The indices in target keys; few operators, because they are evaluated for every combination of captures."""


class BadNumber(Exception):
    """An expression has no value; the message gives the reason."""


class NoValue(BadNumber):
    """An expression uses params that have no value."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        super().__init__(f"the param {names[0]!r} has no value")


@dataclass(frozen=True, slots=True)
class Name:
    """A param or a capture in an expression, and its position in the text."""

    name: str
    at: tuple[int, int] = field(compare=False)


@dataclass(frozen=True, slots=True)
class ListName(Name):
    """A list in an expression: an operator on the index before it."""


@dataclass(frozen=True, slots=True)
class SizeOf(Name):
    """`size(dim)` in an expression: the size of a dimension of the tensor at hand; -1 is the last one."""

    dim: int


@dataclass(frozen=True, slots=True)
class Expr:
    """An expression as written; `postfix` is the form to evaluate: operands first, then their operator.

    >>> parse_expression("2*heads + 1").value({"heads": 8})
    17
    >>> parse_expression("128 * ceil(vocab / 128)").value({"vocab": 300})
    384
    >>> parse_expression("64 * kv_heads[i+1]").value({"kv_heads": (1, 1, 2), "i": 1})
    128
    >>> parse_expression("size(0) // 2 + size(-1)").value({SIZE: (6, 4, 5)})
    8
    """

    text: str
    postfix: tuple[int | Name | str, ...] = field(repr=False)
    dialect: Dialect = field(default=SIZES, repr=False)
    span: Span | None = field(default=None, compare=False, repr=False)
    names: tuple[str, ...] = field(init=False, compare=False, repr=False)
    """The distinct params or captures that it uses, from left to right."""

    def __post_init__(self) -> None:
        found = sorted((item for item in self.postfix if isinstance(item, Name)), key=lambda name: name.at)
        names = tuple(dict.fromkeys(item.name for item in found))
        object.__setattr__(self, "names", names)

    def value(self, values: Values) -> int:
        """Evaluate it; raises `NoValue` if a name has no value, `BadNumber` if the arithmetic fails."""
        if None in map(values.get, self.names):
            raise NoValue(tuple(name for name in self.names if values.get(name) is None))
        stack: list[_Value] = []
        for item in self.postfix:
            if isinstance(item, int):
                stack.append(item)
            elif isinstance(item, ListName):
                stack.append(_select_number(item.name, values[item.name], stack.pop()))
            elif isinstance(item, SizeOf):
                stack.append(_select_size(item.dim, values[item.name]))
            elif isinstance(item, Name):
                stack.append(_require_number(item.name, values[item.name]))
            elif item in _ROUNDING:
                stack.append(_ROUNDING[item](stack.pop()))
            else:
                right, left = stack.pop(), stack.pop()
                stack.append(self._apply_operator(item, left, right))
        if stack[0].denominator != 1:
            fraction = float(stack[0])
            raise BadNumber(f"{self.text} is {fraction:g}, not a whole number; round it with floor(...) or ceil(...)")
        return int(stack[0])

    def _apply_operator(self, sign: str, left: _Value, right: _Value) -> _Value:
        if right == 0 and sign in ("/", "//", "%"):
            raise BadNumber(f"{self.text} divides by zero")
        if sign == "//" and self.dialect.exact and left % right:
            help = "round it with floor(a / b) or ceil(a / b)"
            raise BadNumber(f"{self.text}: {left} is not a multiple of {right}; {help}")
        value: _Value = _OPERATORS[sign][1](left, right)
        largest = self.dialect.largest
        if largest is not None and not (-largest < value < largest and value.denominator < largest):
            raise BadNumber(f"{self.text} is too large for a size")
        return value

    def __str__(self) -> str:
        return self.text


def describe_value(value: ParamValue | None) -> str:
    """Write the value of a param.

    >>> describe_value(8), describe_value((1, 1, 2))
    ('8', '[1, 1, 2]')
    """
    return str(list(value) if isinstance(value, tuple) else value)


def _require_number(name: str, value: ParamValue | None) -> int:
    if not isinstance(value, int):
        raise BadNumber(f"{name} is a list of {count_noun(len(value or ()), 'number')}, used without an index")
    return value


def _select_size(dim: int, shape: ParamValue | None) -> int:
    assert isinstance(shape, tuple)
    if not -len(shape) <= dim < len(shape):
        dims = count_noun(len(shape), "dimension")
        raise BadNumber(f"there is no size({dim}) in a tensor of {dims}, {list(shape)}")
    return shape[dim]


def _select_number(name: str, numbers: ParamValue | None, index: _Value) -> int:
    if not isinstance(numbers, tuple):
        raise BadNumber(f"{name} is the number {numbers}, used with an index")
    if index.denominator != 1 or not 0 <= index < len(numbers):
        raise BadNumber(f"{name} has {count_noun(len(numbers), 'number')}, so there is no {name}[{index}]")
    return numbers[int(index)]


def parse_expression(text: str | Text, dialect: Dialect = SIZES, start: int = 0, end: int | None = None) -> Expr:
    """Parse an expression, or the part of a text from `start` to `end`.

    Raises `InvalidRules` (RK161, or RK150 in a target key) if it is malformed.

    >>> parse_expression("i*4 + j", INDICES).postfix[1:3]
    (4, '*')
    """
    written = Text.of(text, "number") if isinstance(text, str) else text
    if end is None:
        end = len(written.value)
    postfix = tuple(_to_postfix(written, dialect, start, end))
    return Expr(written.value[start:end].strip(), postfix, dialect, written.span)


def _to_postfix(text: Text, dialect: Dialect, start: int, end: int) -> Iterator[int | Name | str]:
    """Convert to postfix with Dijkstra's shunting-yard: operands are output at once, operators by precedence.

    Every token is moved once, so the cost is linear in the text, and nested parentheses need no recursion.
    """
    waiting: list[tuple[str, int]] = []
    """The stack of operators and opening parentheses not yet output, with their positions."""
    needs_operand, operators = True, 0
    for found in _TOKEN.finditer(text.value, start, start + len(text.value[start:end].rstrip())):
        number, name, sign, other = found.groups()
        at = found.span(found.lastindex or 0)
        opens = sign is not None and sign.endswith(("(", "["))
        token = "".join(sign.split()) if sign is not None else ""
        known = dialect.sized if name and name.endswith(")") else _is_known(token, dialect)
        if other or needs_operand == (sign is not None and not opens) or not known:
            help = "write params without braces" if other in ("{", "}") else dialect.help
            if other and other.startswith("size"):
                help = "size(k) is the size of dimension k, a plain number: size(0), size(1), size(-1) for the last"
            raise _refuse(text, dialect, f"unexpected {found[found.lastindex or 0]!r}", at, help)
        if number and len(number) > dialect.max_digits:
            raise _refuse(text, dialect, f"a number must have at most {dialect.max_digits} digits", at)
        if sign is None:
            called = _SIZE_CALL.fullmatch(name or "")
            yield int(number) if number else SizeOf(SIZE, at, int(called[1])) if called else Name(name, at)
            needs_operand = False
        elif opens:
            waiting.append((token, at[0]))
        elif sign in (")", "]"):
            yield from _close_parenthesis(text, dialect, waiting, at)
        else:
            operators += 1
            if operators > dialect.max_operators:
                title = f"an expression must have at most {dialect.max_operators} operators"
                raise _refuse(text, dialect, title, (start, end), "write it shorter")
            # Operators of equal precedence are left-associative: 8 - 2 - 1 is (8 - 2) - 1.
            while waiting and waiting[-1][0] in _OPERATORS and _OPERATORS[waiting[-1][0]][0] >= _OPERATORS[sign][0]:
                yield waiting.pop()[0]
            waiting.append((sign, at[0]))
            needs_operand = True
    if needs_operand:
        raise _refuse(text, dialect, "the expression ends too early", (end, end + 1))
    for sign, place in reversed(waiting):
        if sign.endswith(("(", "[")):
            end = place + len(sign)
            close = ")" if sign.endswith("(") else "]"
            raise _refuse(text, dialect, f"{sign[-1]!r} is never closed", (end - 1, end), f"close it with {close}")
        yield sign


def _is_known(token: str, dialect: Dialect) -> bool:
    """Return whether a dialect has a token; every dialect has operands, parentheses and indices of lists."""
    return token in ("", "(", ")", "]") or token.endswith("[") or token in dialect.operators


def _close_parenthesis(
    text: Text, dialect: Dialect, waiting: list[tuple[str, int]], at: tuple[int, int]
) -> Iterator[str | Name]:
    """Return the operators stacked since the opening parenthesis, and the function or list that it belongs to."""
    while waiting and not waiting[-1][0].endswith(("(", "[")):
        yield waiting.pop()[0]
    closing = text.value[slice(*at)]
    if not waiting or waiting[-1][0].endswith("[") != (closing == "]"):
        raise _refuse(text, dialect, f"unmatched {closing!r}", at)
    opened, start = waiting.pop()
    if opened in _ROUNDING:
        yield opened
    elif opened.endswith("["):
        yield ListName(opened[:-1], (start, start + len(opened) - 1))


def _refuse(text: Text, dialect: Dialect, title: str, at: tuple[int, int], help: str | None = None) -> InvalidRules:
    return InvalidRules(Diagnostic(dialect.code, title, (Label(text.at(*at)),), (help or dialect.help,)))


def check_names(
    expression: Expr, known: Mapping[str, object], captures: Sequence[str] = (), *, sized: bool = False
) -> Diagnostic | None:
    """Return the problem (RK162) if an expression uses a name that is not known, else None.

    `sized`: it may use `size(k)`, because there is a tensor.
    """
    for name in expression.names:
        if name == SIZE and sized:
            continue
        if name == SIZE:
            title = "there is no tensor here whose sizes size(k) could be"
            help = "size(k) works in the numbers of `ops` and in the `sizes` of `split`; elsewhere use params"
            return Diagnostic("RK162", title, (Label(expression.span),) if expression.span else (), (help,))
        if name not in known and name not in captures:
            listed = f"params of this file: {', '.join(known)}" if known else f"add `params: {{{name}: ...}}`"
            listed += f"; integer captures: {', '.join(captures)}" if captures else ""
            help = suggest_name(name, [*known, *captures], listed)
            labels = (Label(expression.span),) if expression.span else ()
            return Diagnostic("RK162", f"there is no param {name!r}", labels, (help,))
    return None
