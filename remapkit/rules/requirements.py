"""`require:`: what a rule file assumes about a checkpoint and its params, and the check of these assumptions.

require:
  - {count: 'blocks.{i:int}.{rest:**}', is: 3}    # exactly the indices 0, 1 and 2
  - {shape: 'head.weight', is: [classes, any]}    # every matching key; at least one
  - {dtype: 'head.weight', is: [BF16, F16]}
  - {param: heads, is: [8, 16]}                   # one of these
  - {that: heads % kv_heads == 0}
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Span, Text
from remapkit.diagnostics.wording import count_noun, join_words, suggest_name
from remapkit.ops.call_reader import CallReader
from remapkit.ops.calls import Arg, evaluate_arg, list_params
from remapkit.patterns.matcher import PatternMatcher
from remapkit.patterns.pattern import Part, Pattern
from remapkit.rulefile.arithmetic import SIZE, BadNumber, Expr, Values, describe_value
from remapkit.rulefile.syntax import WrittenPattern, WrittenRequirement
from remapkit.rulefile.yaml.nodes import ListNode, Node, ScalarNode
from remapkit.rules.model import CompiledRules, Requirement
from remapkit.tensors.dtypes import DTYPES
from remapkit.tensors.families import MAX_DIGITS
from remapkit.tensors.spec import OPAQUE, StateDictSpec, TensorSpec

ANY = "any"
"""Any size."""
_OF_KEYS = ("count", "shape", "dtype")
"""The requirements whose names are patterns of keys."""

_ANOTHER = "these rules are for another model"
_INCOMPLETE = "the checkpoint is incomplete, or these rules are for another model"


def read_requirements(
    written: Sequence[WrittenRequirement],
    params: Values,
    compiled: Callable[[WrittenPattern], Pattern | None],
    calls: CallReader,
    is_integer: Callable[[Part], bool],
    problems: list[Diagnostic],
) -> Iterator[Requirement]:
    """Compile the entries of `require`; their problems (RK371, and those of patterns) go to `problems`."""
    for entry in written:
        before = len(problems)
        wanted = tuple(_read_condition(entry, calls) if entry.what == "that" else _read_wanted(entry, calls))
        reader, by = None, None
        if entry.what == "param" and entry.name.value not in params:
            help = suggest_name(entry.name.value, params, f"params of this file: {join_words(params) or 'none'}")
            problems.append(_explain_bad_entry(f"there is no param {entry.name.value!r}", entry.name.span, help))
        if entry.what in _OF_KEYS:
            pattern = compiled(WrittenPattern("path", entry.name, entry.name.span))
            reader = PatternMatcher(pattern) if pattern is not None else None
            if pattern is not None and entry.what == "count":
                by = find_counted_capture(entry.name, entry.by, pattern, is_integer, problems, "`require`")
        if entry.what != "param" and any(isinstance(each, tuple) for each in wanted):
            title = f"{entry.name.value} must be compared with numbers, got a list"
            problems.append(_explain_bad_entry(title, entry.wanted.span, "only a param can be a list"))
        if entry.what == "shape" and not isinstance(entry.wanted, ListNode):
            title = f"the shape of {entry.name.value} must be a list, got one number"
            problems.append(_explain_bad_entry(title, entry.wanted.span, "list its sizes: `is: [8, any]`"))
        if len(problems) == before:
            note = entry.note.value if entry.note is not None else None
            sign = _find_sign(entry.name) if entry.what == "that" else None
            yield Requirement(entry.what, entry.name.value, wanted, entry.span, reader, by, note, sign and sign[0])


def _read_wanted(entry: WrittenRequirement, calls: CallReader) -> Iterator[Arg]:
    for item in entry.wanted.items if isinstance(entry.wanted, ListNode) else (entry.wanted,):
        if entry.what == "dtype":
            yield _read_dtype(item, calls)
        elif entry.what == "shape" and isinstance(item, ScalarNode) and item.kind == "text" and item.value == ANY:
            yield None
        else:
            yield calls.read_arg(item, sized=entry.what == "shape")


def _read_dtype(node: Node, calls: CallReader) -> str | None:
    name = node.value if isinstance(node, ScalarNode) else ""
    if name not in DTYPES:
        help = suggest_name(name.upper(), DTYPES, f"dtypes: {', '.join(DTYPES)}")
        calls.problems.append(_explain_bad_entry(f"there is no dtype {name!r}", node.span, help))
    return name


_SIGNS: Mapping[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


def _find_sign(text: Text) -> tuple[str, int] | None:
    """Return the only sign that compares in a condition, and its position; None if there are none or several."""
    found = list(re.finditer("[=!<>]=|[<>]|=", text.value))
    return (found[0][0], found[0].start()) if len(found) == 1 and found[0][0] in _SIGNS else None


def _read_condition(entry: WrittenRequirement, calls: CallReader) -> Iterator[Arg]:
    """Yield both sides of a condition."""
    if not entry.wanted.span.start <= entry.name.span.start < entry.wanted.span.end:
        title = "a condition is complete, got another value under `is`"
        calls.problems.append(_explain_bad_entry(title, entry.wanted.span, "write it in one: `that: heads % 8 == 0`"))
    sign = _find_sign(entry.name)
    if sign is None:
        title = f"a condition must compare two numbers with one of {join_words(_SIGNS)}"
        help = "for example `that: heads % kv_heads == 0`; several conditions are several entries"
        calls.problems.append(_explain_bad_entry(title, entry.name.span, help))
        return
    for start, end in ((0, sign[1]), (sign[1] + len(sign[0]), len(entry.name.value))):
        yield calls.read_expression(entry.name, start, end)


def find_counted_capture(
    name: Text,
    by: Text | None,
    pattern: Pattern,
    is_integer: Callable[[Part], bool],
    problems: list[Diagnostic],
    where: str,
) -> str | None:
    """Return the capture to count: `by`, or the only integer; add a problem (RK371) if there is none."""
    numbers = [str(part.name) for part in pattern.captures if is_integer(part)]
    if by is not None:
        if by.value in numbers:
            return by.value
        title = f"{by.value!r} is not an integer capture of {name.value}"
        help = f"its integer captures: {join_words(numbers) or 'none'}"
        problems.append(_explain_bad_entry(title, by.span, help, where))
    elif len(numbers) == 1:
        return numbers[0]
    elif numbers:
        title = f"{name.value} captures several integers, {join_words(numbers)}; name the one to count"
        problems.append(_explain_bad_entry(title, name.span, f"add `by: {numbers[0]}`", where))
    else:
        title = f"{name.value} captures no integer to count"
        problems.append(_explain_bad_entry(title, name.span, "write {i:int} for the index", where))
    return None


def _explain_bad_entry(title: str, span: Span, help: str, where: str = "`require`") -> Diagnostic:
    return Diagnostic("RK371", f"{where}: {title}", (Label(span),), (help,))


def list_indices(reader: PatternMatcher, by: str, keys: Iterable[str]) -> list[int]:
    """Return the indices that a pattern captures in some keys, in order."""
    written = {found[by] for fqn in keys if (found := reader(fqn)) is not None}
    # No model has 10^18 layers, so a number this large is a gap whatever its exact value.
    return sorted({int(text) if len(text) <= MAX_DIGITS else 10**MAX_DIGITS for text in written})


def find_unmet_requirements(rules: CompiledRules, source: StateDictSpec) -> Iterator[Diagnostic]:
    """Yield every requirement that a header or the current params do not meet; unknown shapes are not checked."""
    for requirement in rules.require if source else ():
        try:
            if requirement.what == "count":
                yield from _check_count(requirement, _evaluate_all(requirement, rules.params), source)
            elif requirement.what == "shape":
                yield from _check_shape(requirement, rules.params, source)
            elif requirement.what == "dtype":
                yield from _check_dtype(requirement, source)
            elif requirement.what == "that":
                yield from _check_condition(requirement, rules.params, source)
            else:
                yield from _check_param(requirement, rules.params, source)
        except BadNumber as error:
            yield _explain_unmet(requirement, f"{error}", "pass --param NAME=NUMBER", source, None)


def _check_param(requirement: Requirement, params: Values, source: StateDictSpec) -> Iterator[Diagnostic]:
    found, wanted = params[requirement.name], _evaluate_all(requirement, params)
    if found not in wanted:
        words = "but has no value" if found is None else f"got {describe_value(found)}"
        title = f"the param {requirement.name} must be {_join_with_or(wanted)}, {words}"
        yield _explain_unmet(requirement, title, f"pass --param {requirement.name}=NUMBER", source, found)


def _check_condition(requirement: Requirement, params: Values, source: StateDictSpec) -> Iterator[Diagnostic]:
    left, right = _evaluate_all(requirement, params)
    assert isinstance(left, int) and isinstance(right, int) and requirement.sign is not None
    if _SIGNS[requirement.sign](left, right):
        return
    names = dict.fromkeys(name for arg in requirement.wanted for name in list_params(arg))
    sides = zip(requirement.wanted, (left, right), strict=True)
    values = {arg.text: str(value) for arg, value in sides if isinstance(arg, Expr)}
    values |= {name: describe_value(params[name]) for name in names}
    got = join_words(f"{text} is {value}" for text, value in values.items())
    title = f"{requirement.name} must hold, but {got}"
    help = "pass the model's own params, --param NAME=NUMBER or --config config.json, or use the rules for this model"
    yield _explain_unmet(requirement, title, help, source, [left, right])


def _evaluate_all(requirement: Requirement, params: Values) -> tuple[object, ...]:
    return tuple(evaluate_arg(arg, params) for arg in requirement.wanted)


def _check_count(requirement: Requirement, wanted: tuple[object, ...], source: StateDictSpec) -> Iterator[Diagnostic]:
    assert requirement.reader is not None and requirement.by is not None
    indices = list_indices(requirement.reader, requirement.by, source)
    number = indices[-1] + 1 if indices else 0
    if number in wanted and len(indices) == number:
        return
    help = _ANOTHER
    if len(indices) != number:
        help = "get the whole checkpoint"
        there = set(indices)
        first = next(index for index in itertools.count() if index not in there)
        gap = f"{requirement.by} = {first} is missing (the last is {number - 1})"
        title = f"{requirement.name} must count {_join_with_or(wanted)} without a gap, but {gap}"
    else:
        title = f"{requirement.name} must count {_join_with_or(wanted)}, got {number}"
        if any(isinstance(each, int) and each > number for each in wanted):
            help = _INCOMPLETE
    yield _explain_unmet(requirement, title, help, source, number)


def _check_shape(requirement: Requirement, params: Values, source: StateDictSpec) -> Iterator[Diagnostic]:
    shown = f"the shape [{', '.join(_show_size(size, params) for size in requirement.wanted)}]"

    def fits(spec: TensorSpec) -> bool:
        return _has_shape(spec, _evaluate_all(requirement, {**params, SIZE: spec.shape}))

    yield from _check_keys(requirement, shown, fits, lambda spec: list(spec.shape), source)


def _show_size(size: Arg, params: Values) -> str:
    if size is None:
        return ANY
    return str(size if SIZE in list_params(size) else evaluate_arg(size, params))


def _check_dtype(requirement: Requirement, source: StateDictSpec) -> Iterator[Diagnostic]:
    wanted = requirement.wanted
    shown = f"the dtype {_join_with_or(wanted)}"
    yield from _check_keys(requirement, shown, lambda spec: spec.dtype in wanted, lambda spec: spec.dtype, source)


def _check_keys(
    requirement: Requirement,
    shown: str,
    fits: Callable[[TensorSpec], bool],
    show: Callable[[TensorSpec], object],
    source: StateDictSpec,
) -> Iterator[Diagnostic]:
    """Check every key of a pattern, of which there must be one."""
    assert requirement.reader is not None
    keys = [fqn for fqn in source if requirement.reader(fqn) is not None]
    if not keys:
        title = f"{requirement.name} must have {shown}, but the checkpoint has no such key"
        yield _explain_unmet(requirement, title, _INCOMPLETE, source, None)
        return
    wrong = [fqn for fqn in keys if source[fqn] is not OPAQUE and not fits(source[fqn])]
    if wrong:
        found = show(source[wrong[0]])
        more = f", and {count_noun(len(wrong) - 1, 'more key differs', 'more keys differ')}" if len(wrong) > 1 else ""
        title = f"{wrong[0]} must have {shown}, got {found}{more}"
        yield _explain_unmet(requirement, title, _ANOTHER, source, found)


def _has_shape(spec: TensorSpec, wanted: tuple[object, ...]) -> bool:
    return len(spec.shape) == len(wanted) and all(
        size is None or size == found for size, found in zip(wanted, spec.shape, strict=True)
    )


def _join_with_or(wanted: Sequence[object]) -> str:
    *before, last = (describe_value(each) if isinstance(each, tuple) else str(each) for each in wanted)
    return f"{', '.join(before)} or {last}" if before else last


def _explain_unmet(
    requirement: Requirement, title: str, help: str, source: StateDictSpec, found: object
) -> Diagnostic:
    notes = (requirement.note,) if requirement.note is not None else ()
    values = {"require": requirement.what, "name": requirement.name, "found": found}
    return Diagnostic("RK370", title, (Label(requirement.span),), (help,), notes, place=source.name, values=values)
