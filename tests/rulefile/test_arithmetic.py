"""Arithmetic, in sizes and in indices, against Python's own; and faults planted in it that the comparison finds."""

from __future__ import annotations

import math
import operator
import random
from fractions import Fraction
from typing import Any

import pytest

from remapkit.diagnostics.errors import InvalidRules
from remapkit.rulefile import arithmetic
from remapkit.rulefile.arithmetic import INDICES, SIZES, BadNumber, Dialect, parse_expression

NUMBERS = {"i": 7, "j": 2, "heads": 12}
VALUES: dict[str, int | tuple[int, ...]] = {**NUMBERS, "row": (3, 0, 5)}


class _Rounded(Exception):
    """A `//` that leaves a remainder."""


class _Number(Fraction):
    """A number whose operators are Python's, and whose `//` can be told to be exact."""

    exact = False

    def __new__(cls, value: Any) -> _Number:
        return super().__new__(cls, value)  # type: ignore[return-value]

    def __add__(self, other: Any) -> Any:
        return type(self)(Fraction(self) + Fraction(other))

    def __sub__(self, other: Any) -> Any:
        return type(self)(Fraction(self) - Fraction(other))

    def __mul__(self, other: Any) -> Any:
        return type(self)(Fraction(self) * Fraction(other))

    def __truediv__(self, other: Any) -> Any:
        return type(self)(Fraction(self) / Fraction(other))

    def __floordiv__(self, other: Any) -> Any:
        if self.exact and Fraction(self) % Fraction(other):
            raise _Rounded
        return type(self)(Fraction(self) // Fraction(other))

    def __mod__(self, other: Any) -> Any:
        return type(self)(Fraction(self) % Fraction(other))


class _Row:
    """The list, which takes whole indices from 0."""

    def __init__(self, number: type[_Number]) -> None:
        self.number = number

    def __getitem__(self, index: Any) -> Any:
        return self.number({Fraction(0): 3, Fraction(1): 0, Fraction(2): 5}[Fraction(index)])


class _Exact(_Number):
    exact = True


def expression(rng: random.Random, dialect: Dialect, depth: int = 0) -> str:
    """A random expression, blanks and parentheses included."""
    if depth > 3 or rng.random() < 0.25:
        return rng.choice([*NUMBERS, str(rng.randint(0, 20))])
    if rng.random() < 0.12:
        return f"row{rng.choice(['', ' '])}[{rng.choice(['0', '2', 'j-1', expression(rng, dialect, depth + 1)])}]"
    if dialect is SIZES and rng.random() < 0.15:
        return f"{rng.choice(['floor', 'ceil'])}{rng.choice(['', ' '])}({expression(rng, dialect, depth + 1)})"
    sign = rng.choice(sorted(each for each in dialect.operators if not each.endswith("(")))
    blank = rng.choice(["", " "])
    written = f"{expression(rng, dialect, depth + 1)}{blank}{sign}{blank}{expression(rng, dialect, depth + 1)}"
    return f"({written})" if rng.random() < 0.4 else written


def in_python(text: str, dialect: Dialect) -> int | None:
    """What Python makes of it: None where that is no whole number, or where it may not be rounded."""
    number = _Exact if dialect.exact else _Number
    names: dict[str, Any] = {name: number(value) for name, value in NUMBERS.items()}
    names["row"] = _Row(number)
    literals = "".join(f"n({each})" if each.isdigit() else each for each in _split(text))
    functions = {"n": number, "floor": lambda x: number(math.floor(x)), "ceil": lambda x: number(math.ceil(x))}
    try:
        value = Fraction(eval(literals, {"__builtins__": {}}, {**names, **functions}))
    except (ZeroDivisionError, KeyError, _Rounded):
        return None
    return int(value) if value.denominator == 1 else None


def _split(text: str) -> list[str]:
    words: list[str] = []
    for sign in text:
        if sign.isdigit() and words and words[-1].isdigit():
            words[-1] += sign
        else:
            words.append(sign)
    return words


def value(text: str, dialect: Dialect) -> int | None:
    try:
        return parse_expression(text, dialect).value(VALUES)
    except BadNumber:
        return None


def differences(dialect: Dialect, count: int = 1500) -> list[str]:
    rng = random.Random(20)
    texts = [expression(rng, dialect) for _ in range(count)]
    return [text for text in texts if value(text, dialect) != in_python(text, dialect)]


@pytest.mark.parametrize("dialect", [SIZES, INDICES], ids=["sizes", "indices"])
def test_arithmetic_is_python_s(dialect: Dialect) -> None:
    rng = random.Random(20)
    assert sum(in_python(expression(rng, dialect), dialect) is not None for _ in range(1500)) > 500
    assert differences(dialect) == []


PLANTED = {
    "quotient towards zero": ("//", (2, lambda left, right: math.trunc(Fraction(left) / right))),
    "remainder of the dividend's sign": (
        "%",
        (2, lambda left, right: left - right * int(Fraction(left) / right)),
    ),
    "minus before times": ("-", (3, operator.sub)),
    "plus as weak as it is, times as well": ("*", (1, operator.mul)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sign, planted = PLANTED[name]
    monkeypatch.setitem(arithmetic._OPERATORS, sign, planted)  # type: ignore[arg-type]
    assert differences(INDICES)


def test_only_a_size_must_divide_exactly() -> None:
    assert parse_expression("i // j", INDICES).value(VALUES) == 3
    with pytest.raises(BadNumber, match=r"^i // j: 7 is not a multiple of 2; round it with floor\(a / b\) or ceil"):
        parse_expression("i // j", SIZES).value(VALUES)


@pytest.mark.parametrize(
    ("text", "dialect", "title", "column"),
    [
        ("4 heads", SIZES, "unexpected 'heads'", 3),
        ("{heads}", SIZES, "unexpected '{'", 1),
        ("2 ** 3", SIZES, "unexpected '**'", 3),
        ("i / 2", INDICES, "unexpected '/'", 3),
        ("floor(i)", INDICES, "unexpected 'floor('", 1),
        ("-i", INDICES, "unexpected '-'", 1),
        ("i +", INDICES, "the expression ends too early", 4),
        ("", SIZES, "the expression ends too early", 1),
        ("(i + 1", INDICES, "'(' is never closed", 1),
        ("i) + 1", SIZES, "unmatched ')'", 2),
        ("(row[i) + 1", SIZES, "unmatched ')'", 7),
        ("(i] + 1", INDICES, "unmatched ']'", 3),
        ("row[i", INDICES, "'[' is never closed", 4),
        ("row[]", SIZES, "unexpected ']'", 5),
        ("row[0][1]", SIZES, "unexpected '['", 7),
        ("2[1]", INDICES, "unexpected '['", 2),
        ("9" * 10, INDICES, "a number must have at most 9 digits", 1),
        ("9" * 19, SIZES, "a number must have at most 18 digits", 1),
        ("+".join("i" * 102), INDICES, "an expression must have at most 100 operators", 1),
    ],
)
def test_what_cannot_be_read_is_refused_at_its_column(text: str, dialect: Dialect, title: str, column: int) -> None:
    with pytest.raises(InvalidRules) as caught:
        parse_expression(text, dialect)
    (problem,) = caught.value.diagnostics
    assert (problem.code, problem.title, problem.labels[0].span.start + 1) == (dialect.code, title, column)


def test_a_deep_or_a_long_expression_takes_no_stack() -> None:
    assert parse_expression("(" * 5000 + "i" + ")" * 5000, INDICES).value(VALUES) == 7
    assert parse_expression("+".join(["1"] * 5000)).value({}) == 5000
