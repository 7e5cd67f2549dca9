"""Checks the arguments of a public function against its annotations, all at once and before anything happens.

The annotations of the public functions are the only statement of what they take; a type checker reads them, and so
does `check_arguments` at run time, for callers without one.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import BadArgument

P = ParamSpec("P")
R = TypeVar("R")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_path(value: object) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and value != "")


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


# What an annotation, or a part of a union, means: a test, and the words for it.
_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (_is_int, "a whole number"),
    "float": (lambda value: _is_number(value), "a number that is not negative"),
    "str": (lambda value: isinstance(value, str), "text"),
    "str | Path": (_is_path, "a path"),
    "None": (lambda value: value is None, "None"),
    "Mapping": (lambda value: isinstance(value, Mapping), "a mapping"),
    "Sequence": (_is_sequence, "a list"),
    "Callable": (callable, "a function"),
}


# Classes of lower floors, under the names that users know them by.
_PUBLIC_NAMES = {"CompiledRules": "RuleSet"}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def check_arguments(**aliases: str | type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function refuse arguments that its annotations exclude, with `BadArgument`, before its body runs.

    `aliases` gives the meaning of names in the annotations: another annotation, or a class. Names that are neither
    aliases nor known exclude nothing. A `float` must be finite and not negative, as every number of the API must.

    >>> @check_arguments()
    ... def shift(path: "str | Path", by: "int" = 0) -> None: ...
    >>> shift(None, by="x")
    Traceback (most recent call last):
        ...
    remapkit.diagnostics.errors.BadArgument: error[RK609]: shift: `path` must be a path, got None
    <BLANKLINE>
    error[RK609]: shift: `by` must be a whole number, got 'x'
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        checks = {
            name: _split(str(parameter.annotation).strip("'"), aliases)
            for name, parameter in signature.parameters.items()
            if parameter.annotation is not inspect.Parameter.empty
        }

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            problems = [
                _describe_problem(function.__name__, name, value, checks[name])
                for name, value in given.items()
                if name in checks and not _is_allowed(value, checks[name])
            ]
            if problems:
                raise BadArgument(problems)
            return function(*args, **kwargs)

        return checked

    return decorate


def _split(annotation: str, aliases: Mapping[str, str | type]) -> tuple[str | type, ...]:
    """The members of a union; `str | Path` is one of them, and what stands in brackets is left out."""
    plain = annotation
    while (shorter := re.sub(r"\[[^\[\]]*\]", "", plain)) != plain:
        plain = shorter
    members: list[str | type] = []
    for member in plain.replace("str | Path", "str/Path").split(" | "):
        name = member.replace("str/Path", "str | Path")
        alias = aliases.get(name, name)
        members += _split(alias, aliases) if isinstance(alias, str) and alias != name else [alias]
    return tuple(dict.fromkeys(members))


def _is_allowed(value: object, members: Iterable[str | type]) -> bool:
    return any(
        isinstance(value, member) if isinstance(member, type) else member not in _KINDS or _KINDS[member][0](value)
        for member in members
    )


def _describe_problem(function: str, name: str, value: object, members: Sequence[str | type]) -> Diagnostic:
    words = [
        f"a {_PUBLIC_NAMES.get(member.__name__, member.__name__)}" if isinstance(member, type) else _KINDS[member][1]
        for member in members
        if member != "None"
    ]
    allowed = " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    return Diagnostic("RK609", f"{function}: `{name}` must be {allowed}, got {describe_value(value)}")


def describe_value(value: object) -> str:
    """A value in a message: itself where it is short and plain, else its type.

    >>> describe_value(3), describe_value(None), describe_value([1]), describe_value(int)
    ('3', 'None', 'a list', 'the class int')
    """
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{'an' if type(value).__name__[:1] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"
