"""The params of a rule file and their values: from the caller, else from a model's config, else from the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules, UsageError
from remapkit.diagnostics.wording import suggest_name
from remapkit.rulefile.arithmetic import BadNumber, Expr, NoValue, check_names, parse_expression
from remapkit.rulefile.syntax import WrittenParam
from remapkit.tensors.families import is_canonical_integer


def resolve_params(
    written: Sequence[WrittenParam],
    given: Mapping[str, int] | None,
    config: Mapping[str, Any] | None,
    problems: list[Diagnostic],
) -> dict[str, int | None]:
    """Return every param with its value, or None if it has none yet. Errors in the file are added to `problems`.

    Raises `UsageError` for a given param that the file does not have, and for a config that lacks one.
    """
    names = {param.name.value: param for param in written}
    _check_given(given or {}, names)
    values: dict[str, int | None] = dict.fromkeys(names)
    waiting: dict[str, Expr] = {}
    for name, param in names.items():
        own = _read_own_value(param, names, problems)
        if given and name in given:
            values[name] = given[name]
        elif (
            config is not None
            and param.config is not None
            and (configured := _look_up_config(config, param)) is not None
        ):
            values[name] = configured
        elif isinstance(own, Expr):
            waiting[name] = own
        elif config is not None and param.config is not None:
            raise _make_lacking_error(param, own)
        else:
            values[name] = own
    _evaluate_params(waiting, values, problems)
    return values


def _check_given(given: Mapping[str, int], names: Mapping[str, WrittenParam]) -> None:
    for name, value in given.items():
        if name not in names:
            listed = f"these rules have: {', '.join(names)}" if names else "these rules have no params"
            help = suggest_name(name, names, listed)
            raise UsageError(Diagnostic("RK640", f"there is no param {name!r}", help=(help,)))
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(Diagnostic("RK640", f"the param {name!r} must be an integer, got {value!r}"))


def _read_own_value(
    param: WrittenParam, names: Mapping[str, object], problems: list[Diagnostic]
) -> int | Expr | None:
    """Read the value in the file: a number, or arithmetic on other params."""
    if param.value is None:
        return None
    if param.value.kind == "integer":
        return int(param.value.value)
    try:
        expression = parse_expression(param.value.text)
    except InvalidRules as error:
        problems += error.diagnostics
        return None
    problem = check_names(expression, names)
    if problem is not None:
        problems.append(problem)
    return expression if problem is None else None


def _evaluate_params(waiting: dict[str, Expr], values: dict[str, int | None], problems: list[Diagnostic]) -> None:
    """Evaluate params in the order of their dependencies: each one once, when the last that it needs is known."""
    lacks = {name: sum(each in waiting for each in own.names) for name, own in waiting.items()}
    users: dict[str, list[str]] = {}
    for name, own in waiting.items():
        for each in own.names:
            users.setdefault(each, []).append(name)
    ready = [name for name, count in lacks.items() if not count]
    for name in ready:
        own = waiting.pop(name)
        try:
            values[name] = own.value(values)
        except NoValue:
            values[name] = None
        except BadNumber as error:
            labels = (Label(own.span),) if own.span else ()
            problems.append(Diagnostic("RK161", str(error), labels, ("correct the arithmetic, or the params",)))
        for user in users.get(name, ()):
            lacks[user] -= 1
            if not lacks[user]:
                ready.append(user)
    if waiting:
        name, own = next(iter(waiting.items()))
        labels = (Label(own.span),) if own.span else ()
        title = f"the param {name!r} depends on itself"
        problems.append(Diagnostic("RK162", title, labels, ("give one of them a number",)))


def _look_up_config(config: Mapping[str, Any], param: WrittenParam) -> int | None:
    """Return the number under a dotted name in a config, or None."""
    assert param.config is not None
    value: Any = config
    for step in param.config.value.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and is_canonical_integer(step) and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        title = (
            f"the param {param.name.value!r} must be an integer, but the config has {param.config.value}: {value!r}"
        )
        raise UsageError(Diagnostic("RK641", title, help=(f"pass --param {param.name.value}=NUMBER",)))
    return value


def _make_lacking_error(param: WrittenParam, own: int | None) -> UsageError:
    assert param.config is not None
    name = param.name.value
    help = [f"pass --param {name}={own if own is not None else 'NUMBER'}"]
    if own is not None:
        help.append(f"the rule file's own value, {own}, may be that of another model, so it is not used by default")
    return UsageError(
        Diagnostic(
            "RK641", f"the config has no {param.config.value}, which the param {name!r} reads", help=tuple(help)
        )
    )
