"""Every argument of every public function refuses a value that its annotation excludes, before anything happens.

The sweep gives each parameter of each function something that is never right; what is right for the others is never
opened, because all arguments are checked first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import remapkit
from remapkit.diagnostics.arguments import check_arguments

FUNCTIONS = (
    *(
        "apply",
        "check",
        "diff",
        "explain",
        "inspect",
        "invert",
        "learn",
        "learn_through",
        "lint",
        "load",
        "loads",
        "new",
        "recover",
    ),
    *("report", "test", "verify", "open_checkpoint", "convert", "identify", "packs"),
)
ANYTHING = {"model", "source of verify", "target of verify", "oracle"}
"""Parameters that take an object of any class: a model, or a function."""


class Stranger:
    """Right for no parameter."""


def parameters() -> Iterator[tuple[str, str]]:
    for function in FUNCTIONS:
        for name in inspect.signature(getattr(remapkit, function)).parameters:
            if not {name, f"{name} of {function}"} & ANYTHING:
                yield function, name


def call_with(function: Callable[..., Any], wrong: str, value: object) -> Any:
    required = [
        name
        for name, each in inspect.signature(function).parameters.items()
        if each.default is inspect.Parameter.empty
    ]
    return function(**{**dict.fromkeys(required, "nowhere"), wrong: value})


@pytest.mark.parametrize(("function", "name"), parameters())
def test_a_wrong_argument_is_named(function: str, name: str) -> None:
    with pytest.raises(remapkit.UsageError) as caught:
        call_with(getattr(remapkit, function), name, Stranger())
    assert isinstance(caught.value, TypeError)
    assert f"{function}: `{name}` must be " in str(caught.value) and ", got a Stranger" in str(caught.value)


def test_a_function_that_checks_nothing_would_be_seen() -> None:
    with pytest.raises(BaseException) as caught:
        call_with(inspect.unwrap(remapkit.load), "name_or_path", Stranger())
    assert not isinstance(caught.value, remapkit.RemapkitError)


def test_every_function_of_the_surface_is_in_the_sweep() -> None:
    others = {"header", "load_into", "packs", "plugins", "schema"}  # no arguments, or any object
    public = {name for name in remapkit.__all__ if inspect.isfunction(getattr(remapkit, name))}
    assert public <= {*FUNCTIONS, *others}


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("bool", [True], [1, "no", None]),
        ("int", [3, -1], [True, 1.5, "3"]),
        ("float", [0, 0.5], [-1, float("nan"), float("inf"), "x", True]),
        ("str | Path | None", ["x", None], ["", 3, b"x"]),
        ("Mapping[str, int] | None", [{}, None], [[("a", 1)], "a"]),
        ("str | Sequence[str]", ["", ["a"], ()], [3, {"a"}]),
        ("Callable[[int, int], None] | None", [print, None], [3, "print"]),
        ("Whatever | int", [3, "x", None], []),
    ],
)
def test_what_an_annotation_excludes(annotation: str, right: list[object], wrong: list[object]) -> None:
    def take(value: object) -> object:
        return value

    take.__annotations__["value"] = annotation
    checked = check_arguments()(take)
    for value in right:
        assert checked(value) is value
    for value in wrong:
        with pytest.raises(TypeError, match="take: `value` must be "):
            checked(value)


def test_all_wrong_arguments_are_said_at_once() -> None:
    with pytest.raises(remapkit.UsageError) as caught:
        remapkit.apply(None, 3, dry_run="no")  # type: ignore[arg-type]
    assert [each.title.split("`")[1] for each in caught.value.diagnostics] == ["rules", "source", "dry_run"]
