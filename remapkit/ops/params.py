"""The params of a rule file and their values: from the caller, else from a model's config, else from the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules, UsageError
from remapkit.diagnostics.wording import join_words, suggest_name
from remapkit.rulefile.arithmetic import (
    BadNumber,
    Expr,
    NoValue,
    ParamValue,
    check_names,
    describe_value,
    parse_expression,
)
from remapkit.rulefile.syntax import WrittenParam
from remapkit.rulefile.yaml.nodes import ListNode, ScalarNode
from remapkit.tensors.families import is_canonical_integer


def resolve_params(
    written: Sequence[WrittenParam],
    given: Mapping[str, int | Sequence[int]] | None,
    config: Mapping[str, Any] | None,
    problems: list[Diagnostic],
    counts: Mapping[str, int] | None = None,
) -> dict[str, ParamValue | None]:
    """Return every param with its value, or None if it has none yet. Errors in the file are added to `problems`.

    `counts` are the values of params that were counted in a checkpoint; what is given and a config come first.

    Raises `UsageError` for a given param that the file does not have, and for a config that lacks one, or has two
    values for one.
    """
    names = {param.name.value: param for param in written}
    _check_given(given or {}, names)
    values: dict[str, ParamValue | None] = dict.fromkeys(names)
    waiting: dict[str, Expr] = {}
    for name, param in names.items():
        own = _read_own_value(param, names, problems)
        if given and name in given:
            number = given[name]
            values[name] = number if isinstance(number, int) else tuple(number)
        elif config is not None and (configured := look_up_config(config, param)) is not None:
            values[name] = configured
        elif counts and name in counts:
            values[name] = counts[name]
        elif isinstance(own, Expr):
            waiting[name] = own
        elif config is not None and param.config and param.count is None:
            raise _make_lacking_error(param, own)
        else:
            values[name] = own
    _evaluate_params(waiting, values, problems)
    return values


def _check_given(given: Mapping[str, int | Sequence[int]], names: Mapping[str, WrittenParam]) -> None:
    for name, value in given.items():
        if name not in names:
            listed = f"these rules have: {', '.join(names)}" if names else "these rules have no params"
            help = suggest_name(name, names, listed)
            raise UsageError(Diagnostic("RK640", f"there is no param {name!r}", help=(help,)))
        if _read_value(value) is None:
            title = f"the param {name!r} must be an integer, or a list of integers, got {value!r:.60}"
            raise UsageError(Diagnostic("RK640", title))


def _read_own_value(
    param: WrittenParam, names: Mapping[str, object], problems: list[Diagnostic]
) -> ParamValue | Expr | None:
    """Read the value in the file: a number, a list of numbers, or arithmetic on other params."""
    if param.value is None:
        return None
    if isinstance(param.value, ListNode):
        return tuple(int(item.value) for item in param.value.items if isinstance(item, ScalarNode))
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


def _evaluate_params(
    waiting: dict[str, Expr], values: dict[str, ParamValue | None], problems: list[Diagnostic]
) -> None:
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


def look_up_config(config: Mapping[str, Any], param: WrittenParam) -> ParamValue | None:
    """Return the value under the names of a param in a config, or None; raises `UsageError` if two of them differ."""
    found = {
        name.value: value for name in param.config if (value := _look_up_name(config, param, name.value)) is not None
    }
    if len(set(found.values())) > 1:
        shown = join_words(f"{name}: {describe_value(value)}" for name, value in found.items())
        title = f"the config has several values for the param {param.name.value!r}: {shown}"
        help = f"pass the right one: --param {param.name.value}={_write_option(next(iter(found.values())))}"
        raise UsageError(Diagnostic("RK641", title, help=(help,)))
    return next(iter(found.values()), None)


def _look_up_name(config: Mapping[str, Any], param: WrittenParam, name: str) -> ParamValue | None:
    """Return the number or the list under a dotted name in a config, or None."""
    found: Any = config
    for step in name.split("."):
        if isinstance(found, Mapping):
            found = found.get(step)
        elif isinstance(found, list) and is_canonical_integer(step) and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    if found is None:
        return None
    value = _read_value(found)
    if value is None:
        title = (
            f"the param {param.name.value!r} must be an integer, or a list of integers, "
            f"but the config has {name}: {found!r:.60}"
        )
        raise UsageError(Diagnostic("RK641", title, help=(f"pass --param {param.name.value}=NUMBER",)))
    return value


def _read_value(value: object) -> ParamValue | None:
    """Return an integer, or a list of integers as a tuple; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        return tuple(value)
    return None


def _make_lacking_error(param: WrittenParam, own: ParamValue | None) -> UsageError:
    name = param.name.value
    help = [f"pass --param {name}={_write_option(own) if own is not None else 'NUMBER'}"]
    if own is not None:
        shown = describe_value(own)
        help.append(f"the rule file's own value, {shown}, may be that of another model, so it is not used by default")
    names = join_words((each.value for each in param.config), conjunction="or")
    title = f"the config has no {names}, which the param {name!r} reads"
    return UsageError(Diagnostic("RK641", title, help=tuple(help)))


def _write_option(value: ParamValue) -> str:
    """Write a value as `--param` reads it."""
    return str(value) if isinstance(value, int) else ",".join(map(str, value)) + "," * (len(value) == 1)
