"""The numbers of operations: integers, and whole-number arithmetic on the `params` of a rule file.

heads: 32            heads: n_heads            sizes: [hidden, hidden, 4*hidden]
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Span, Text
from remapkit.diagnostics.wording import suggest_name

LARGEST = 1 << 62
_TOKEN = re.compile(
    r"\s*(?:(\d+)|((?!(?:floor|ceil)\s*\()[A-Za-z_]\w*)|((?:floor|ceil)\s*\(|//|[-+*/%()])|(\S))", re.ASCII
)


class BadNumber(Exception):
    """An expression that has no value, with a sentence about why."""


class NoValue(BadNumber):
    """An expression of parameters that nobody gave a value."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        super().__init__(f"the param {names[0]!r} has no value")


@dataclass(frozen=True, slots=True)
class Expr:
    """Arithmetic on params, as written; `postfix` is what is evaluated: integers, names and signs.

    >>> parse_expression("2*heads + 1").value({"heads": 8})
    17
    >>> parse_expression("128 * ceil(vocab / 128)").value({"vocab": 300})
    384
    """

    text: str
    postfix: tuple[int | str, ...] = field(repr=False)
    span: Span | None = field(default=None, compare=False, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The params it speaks of."""
        return tuple(
            dict.fromkeys(
                each for each in self.postfix if isinstance(each, str) and each not in _SIGNS and each not in _ROUNDED
            )
        )

    def value(self, params: Mapping[str, int | None]) -> int:
        """Its value; raises `NoValue` where a param has none, `BadNumber` where the arithmetic fails."""
        lacking = tuple(name for name in self.names if params.get(name) is None)
        if lacking:
            raise NoValue(lacking)
        stack: list[int | Fraction] = []
        for each in self.postfix:
            if isinstance(each, int):
                stack.append(each)
            elif each in _ROUNDED:
                stack.append(_ROUNDED[each](stack.pop()))
            elif each in _SIGNS:
                right, left = stack.pop(), stack.pop()
                stack.append(self._apply_sign(each, left, right))
            else:
                value = params[each]
                assert value is not None
                stack.append(value)
        if stack[0] != int(stack[0]):
            whole = float(stack[0])
            raise BadNumber(f"{self.text} is {whole:g}, which is no whole number: say floor(...) or ceil(...)")
        return int(stack[0])

    def _apply_sign(self, sign: str, left: int | Fraction, right: int | Fraction) -> int | Fraction:
        if sign in ("/", "//", "%") and right == 0:
            raise BadNumber(f"{self.text} divides by zero")
        if sign == "//" and left % right:
            said = "say floor(a / b) or ceil(a / b) to round"
            raise BadNumber(f"{self.text}: {left} is not a multiple of {right}; {said}")
        made: dict[str, Callable[[], int | Fraction]] = {
            "+": lambda: left + right,
            "-": lambda: left - right,
            "*": lambda: left * right,
            "/": lambda: Fraction(left) / right,
            "//": lambda: left // right,
            "%": lambda: left % right,
        }
        value = made[sign]()
        if not -LARGEST < value < LARGEST:
            raise BadNumber(f"{self.text} is too large for a size")
        return value

    def __str__(self) -> str:
        return self.text


_SIGNS = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2}
"""The signs with how strongly they bind."""
_ROUNDED: Mapping[str, Callable[[int | Fraction], int]] = {"floor(": math.floor, "ceil(": math.ceil}
"""What rounds: down, and up."""


def parse_expression(text: str | Text) -> Expr:
    """Parse an expression; raises `InvalidRules` (RK161) where it cannot be read."""
    written = Text.of(text, "number") if isinstance(text, str) else text
    return Expr(written.value.strip(), tuple(_to_postfix(written)), written.span)


def _refuse_number(text: Text, title: str, start: int, end: int) -> InvalidRules:
    help = (
        "a number is an integer, a param, or their sums and products: + - * / // % with parentheses, "
        "floor(...) and ceil(...)"
    )
    return InvalidRules(Diagnostic("RK161", title, (Label(text.at(start, max(end, start + 1))),), (help,)))


def _to_postfix(text: Text) -> Iterator[int | str]:
    """Shunting-yard: operands as they come, signs once what binds more strongly is done."""
    waiting: list[tuple[str, int]] = []
    operand = True
    for found in _TOKEN.finditer(text.value.rstrip()):
        number, name, sign, other = found.groups()
        start = found.start(found.lastindex or 0)
        opens = sign is not None and sign.endswith("(")
        if other or operand == (sign is not None and not opens):
            if other in ("{", "}"):
                raise _refuse_number(text, f"{other!r} in a number: write params without braces", start, found.end())
            raise _refuse_number(text, f"{found.group().strip()!r} cannot stand here", start, found.end())
        if number and len(number) > 18:
            raise _refuse_number(text, "a number of more than 18 digits", start, found.end())
        if sign is None:
            yield int(number) if number else name
            operand = False
        elif opens:
            waiting.append(("".join(sign.split()), start))
        elif sign == ")":
            while waiting and not waiting[-1][0].endswith("("):
                yield waiting.pop()[0]
            if not waiting:
                raise _refuse_number(text, "a parenthesis that closes nothing", start, found.end())
            opened = waiting.pop()[0]
            if opened in _ROUNDED:
                yield opened
        else:
            while waiting and _SIGNS.get(waiting[-1][0], 0) >= _SIGNS[sign]:
                yield waiting.pop()[0]
            waiting.append((sign, start))
            operand = True
    if operand:
        raise _refuse_number(text, "a number that ends too early", len(text.value), len(text.value) + 1)
    for sign, start in reversed(waiting):
        if sign.endswith("("):
            raise _refuse_number(text, "a parenthesis that is never closed", start, start + 1)
        yield sign


def check_names(expression: Expr, known: Mapping[str, object]) -> Diagnostic | None:
    """Whether every name of an expression is a param of the file."""
    for name in expression.names:
        if name not in known:
            listed = f"params of this file: {', '.join(known)}" if known else f"add `params: {{{name}: ...}}`"
            help = suggest_name(name, known, listed)
            labels = (Label(expression.span),) if expression.span else ()
            return Diagnostic("RK162", f"there is no param {name!r}", labels, (help,))
    return None
