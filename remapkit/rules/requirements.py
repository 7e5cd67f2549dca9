"""What a rule file assumes of a checkpoint and of its params, and where that is false.

require:
  - {count: 'blocks.{i:int}.{rest:**}', is: 3}    # indices 0, 1, 2: all there, and no other
  - {shape: 'head.weight', is: [classes, any]}    # every key of the pattern, and there is one
  - {param: heads, is: [8, 16]}                   # one of these
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.ops.calls import Arg, CallReader, evaluate_arg
from remapkit.patterns.matcher import PatternMatcher
from remapkit.patterns.pattern import Part, Pattern
from remapkit.rulefile.arithmetic import BadNumber
from remapkit.rulefile.syntax import WrittenPattern, WrittenRequirement
from remapkit.rulefile.yaml.nodes import ListNode, ScalarNode
from remapkit.rules.model import Requirement
from remapkit.tensors.families import MAX_DIGITS
from remapkit.tensors.spec import OPAQUE, StateDictSpec, TensorSpec

if TYPE_CHECKING:
    from remapkit.rules.model import CompiledRules


ANY = "any"
"""A size that is not required to be anything."""


def read_requirements(
    written: Sequence[WrittenRequirement],
    params: Mapping[str, int | None],
    compiled: Callable[[WrittenPattern], Pattern | None],
    calls: CallReader,
    is_integer: Callable[[Part], bool],
    problems: list[Diagnostic],
) -> Iterator[Requirement]:
    """The entries of `require`, compiled; what is wrong with them goes to `problems` (RK371, and of patterns)."""
    for each in written:
        before = len(problems)
        wanted = _read_wanted(each, calls)
        reader, by = None, None
        if each.what == "param" and each.name.value not in params:
            known = join_words(params) or "none"
            problems.append(
                _explain_bad_entry(
                    f"there is no param {each.name.value!r}", each.name.span, f"the params are: {known}"
                )
            )
        if each.what != "param":
            pattern = compiled(WrittenPattern("path", each.name, each.name.span))
            reader = PatternMatcher(pattern) if pattern is not None else None
            if pattern is not None and each.what == "count":
                by = _find_counted_capture(each, pattern, is_integer, problems)
        if each.what == "shape" and not isinstance(each.wanted, ListNode):
            title = f"the shape of {each.name.value} is required to be one number"
            problems.append(_explain_bad_entry(title, each.wanted.span, "a shape is a list of sizes: `is: [8, any]`"))
        if len(problems) == before:
            note = each.note.value if each.note is not None else None
            yield Requirement(each.what, each.name.value, wanted, each.span, reader, by, note)


def _read_wanted(each: WrittenRequirement, calls: CallReader) -> tuple[Arg, ...]:
    if not isinstance(each.wanted, ListNode):
        assert isinstance(each.wanted, ScalarNode)
        return (calls.read_number(each.wanted),)
    items = [item for item in each.wanted.items if isinstance(item, ScalarNode)]
    return tuple(
        None if each.what == "shape" and item.kind == "text" and item.value == ANY else calls.read_number(item)
        for item in items
    )


def _find_counted_capture(
    each: WrittenRequirement, pattern: Pattern, is_integer: Callable[[Part], bool], problems: list[Diagnostic]
) -> str | None:
    numbers = [str(part.name) for part in pattern.captures if is_integer(part)]
    if each.by is not None:
        if each.by.value in numbers:
            return each.by.value
        title = f"{each.by.value!r} is no integer that {each.name.value} captures"
        problems.append(
            _explain_bad_entry(title, each.by.span, f"captured integers are: {join_words(numbers) or 'none'}")
        )
    elif len(numbers) == 1:
        return numbers[0]
    elif numbers:
        title = f"which of {join_words(numbers)} is to be counted?"
        problems.append(_explain_bad_entry(title, each.name.span, f"say it: by: {numbers[0]}"))
    else:
        title = f"{each.name.value} captures no integer to count"
        problems.append(_explain_bad_entry(title, each.name.span, "write {i:int} where the index stands"))
    return None


def _explain_bad_entry(title: str, span: Span, help: str) -> Diagnostic:
    return Diagnostic("RK371", f"`require`: {title}", (Label(span),), (help,))


def find_unmet_requirements(rules: CompiledRules, source: StateDictSpec) -> Iterator[Diagnostic]:
    """Every requirement that is false for a header and the params in force; unknown shapes are not looked at."""
    for each in rules.require if source else ():
        try:
            wanted = tuple(evaluate_arg(arg, rules.params) for arg in each.wanted)
        except BadNumber as error:
            yield _explain_unmet(each, f"{error}", "give it: --param NAME=NUMBER", source, None)
            continue
        if each.what == "param":
            found = rules.params[each.name]
            if found not in wanted:
                words = "has no value" if found is None else f"is {found}"
                title = f"the param {each.name} must be {_join_with_or(wanted)}, and {words}"
                yield _explain_unmet(each, title, f"give it: --param {each.name}=NUMBER", source, found)
        elif each.what == "count":
            yield from _check_count(each, wanted, source)
        else:
            yield from _check_shape(each, wanted, source)


def _check_count(each: Requirement, wanted: tuple[object, ...], source: StateDictSpec) -> Iterator[Diagnostic]:
    assert each.reader is not None and each.by is not None
    written = {found[each.by] for fqn in source if (found := each.reader(fqn)) is not None}
    # No model has 10^18 layers: such a number is a gap whatever it is.
    indices = sorted({int(text) if len(text) <= MAX_DIGITS else 10**MAX_DIGITS for text in written})
    number = indices[-1] + 1 if indices else 0
    if number in wanted and len(indices) == number:
        return
    if len(indices) != number:
        there = set(indices)
        first = next(index for index in itertools.count() if index not in there)
        gap = f"{each.by} goes to {number - 1} without {first}"
        title = f"{each.name} must count {_join_with_or(wanted)} without a gap, and {gap}"
    else:
        title = f"{each.name} must count {_join_with_or(wanted)}, and the checkpoint has {number}"
    yield _explain_unmet(each, title, "these rules are for another model than this one", source, number)


def _check_shape(each: Requirement, wanted: tuple[object, ...], source: StateDictSpec) -> Iterator[Diagnostic]:
    assert each.reader is not None
    keys = [fqn for fqn in source if each.reader(fqn) is not None]
    shown = f"[{', '.join(ANY if size is None else str(size) for size in wanted)}]"
    if not keys:
        title = f"{each.name} must have the shape {shown}, and the checkpoint has no such key"
        yield _explain_unmet(each, title, "these rules are for another model than this one", source, None)
        return
    wrong = [fqn for fqn in keys if source[fqn] is not OPAQUE and not _has_shape(source[fqn], wanted)]
    if wrong:
        found = list(source[wrong[0]].shape)
        more = f", and {count_noun(len(wrong) - 1, 'more key differs', 'more keys differ')}" if len(wrong) > 1 else ""
        title = f"{wrong[0]} must have the shape {shown}, and has {found}{more}"
        yield _explain_unmet(each, title, "these rules are for another model than this one", source, found)


def _has_shape(spec: TensorSpec, wanted: tuple[object, ...]) -> bool:
    return len(spec.shape) == len(wanted) and all(
        size is None or size == found for size, found in zip(wanted, spec.shape, strict=True)
    )


def _join_with_or(wanted: Sequence[object]) -> str:
    *before, last = map(str, wanted)
    return f"{', '.join(before)} or {last}" if before else last


def _explain_unmet(each: Requirement, title: str, help: str, source: StateDictSpec, found: object) -> Diagnostic:
    notes = (each.note,) if each.note is not None else ()
    values = {"require": each.what, "name": each.name, "found": found}
    return Diagnostic("RK370", title, (Label(each.span),), (help,), notes, place=source.name, values=values)
