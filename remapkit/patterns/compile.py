r"""Compile written patterns: parse the surface syntax and build the guards into the pattern.

A guard that was checked after a key had been split into captures would depend on how the key was split. So `where:`
restricts the language of a capture to the listed values that it can have, and `leaf:` restricts the keys themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Span, Text
from remapkit.diagnostics.wording import SHOWN, join_words, suggest_name
from remapkit.patterns.automaton import find_possible_leaves
from remapkit.patterns.literals import literal_text, read_word
from remapkit.patterns.matcher import Program, count_free_positions, make_engine, reads_one_way
from remapkit.patterns.path import parse_path
from remapkit.patterns.pattern import Part, Pattern, split_into_parts
from remapkit.patterns.ranges import NO_PARAMS, KeyParams, read_number, read_range
from remapkit.patterns.regex import parse_regex
from remapkit.patterns.segments import check_segments
from remapkit.patterns.steps import Steps
from remapkit.patterns.tree import count_nodes
from remapkit.rulefile.syntax import WrittenGuard, WrittenPattern
from remapkit.rulefile.yaml.compose import MAX_PROBLEMS
from remapkit.rulefile.yaml.emit import emit_flow

MAX_LETTERS = 200_000
"""The most characters in all words of one guard together."""


MAX_SEVERAL_WAYS = 1000
"""The most characters, with counted repeats expanded, of a pattern that may read a key in several ways."""


MAX_STEPS = 10_000_000
"""The most steps for one pattern, if the caller does not count them for a whole file."""


PATTERN_STEPS = 140
"""The least number of steps for a pattern."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A pattern, and the warnings about it."""

    pattern: Pattern
    warnings: tuple[Diagnostic, ...] = ()


def compile_pattern(
    written: WrittenPattern,
    tables: Mapping[str, Sequence[str]],
    steps: Steps | None = None,
    params: KeyParams = NO_PARAMS,
) -> Compiled:
    """Compile the pattern of a rule with its guards; numbers in them may use `params`.

    Raises `InvalidRules` with all of its problems, and `TooMany` if it takes more steps than are left.
    """
    steps = steps if steps is not None else Steps(MAX_STEPS)
    steps.spend(PATTERN_STEPS + len(written.text.value) // 4)
    try:
        if written.surface == "path":
            parts = parse_path(written.text, tables, params)
            # Equal lists of words share their tree, so the words themselves are cheap.
            steps.spend(sum(len(part.values or ()) for part in parts) // 2)
        else:
            node = parse_regex(written.text)
            steps.spend(count_nodes(node))
            parts = split_into_parts(node, steps)
            _refuse_slow_pattern(written, parts, steps)
    except InvalidRules as error:
        raise InvalidRules([*error.diagnostics, *_check_words(written)]) from None
    problems: list[Diagnostic] = []
    warnings: list[Diagnostic] = []
    guarded: dict[str, Span] = {}
    for guard in written.where:
        name = guard.capture.value
        if name in guarded:
            labels = (Label(guarded[name], "first here", primary=False), Label(guard.capture.span, "again here"))
            problems.append(Diagnostic("RK145", f"two guards on the capture {name!r}", labels, ("merge them",)))
            continue
        guarded[name] = guard.capture.span
        steps.spend(len(parts))
        if len(problems) >= MAX_PROBLEMS:
            break
        parts = _apply_guard(parts, guard, written, tables, params, problems, warnings, steps)
    if written.surface == "path" and not problems:
        problems += check_segments(written.text, parts, steps)
    leaf = _read_leaves(written, problems)
    pattern = Pattern(written.surface, written.text, written.span, parts, leaf)
    if leaf is not None and not problems and not pattern.is_empty:
        pattern = _drop_impossible_leaves(pattern, written, problems, warnings, steps)
    if problems:
        raise InvalidRules(problems)
    return Compiled(pattern, tuple(warnings))


def _refuse_slow_pattern(written: WrittenPattern, parts: Sequence[Part], steps: Steps) -> None:
    """Refuse a long pattern that is not shown to read every key in one way: matching would take too long."""
    if count_free_positions(parts) <= MAX_SEVERAL_WAYS or reads_one_way(parts, steps):
        return
    count = count_free_positions(parts)
    title = (
        f"the pattern has {count:,} characters with its counted repeats written out and may read keys in several ways"
    )
    help = (
        f"at most {MAX_SEVERAL_WAYS:,} can be matched then: use + or * if the exact count does not matter, "
        "or let the repeated parts begin differently from what follows them"
    )
    raise InvalidRules(Diagnostic("RK119", title, (Label(written.text.at(0, len(written.text.value))),), (help,)))


def _check_words(written: WrittenPattern) -> list[Diagnostic]:
    """Return the problems of the words in guards; these do not depend on the pattern."""
    problems: list[Diagnostic] = []
    for guard in written.where:
        for text in guard.values or ():
            read_word(text, "a word of a guard", problems)
    for text in written.leaf or ():
        read_word(text, "a leaf", problems)
    return problems


def _apply_guard(
    parts: tuple[Part, ...],
    guard: WrittenGuard,
    written: WrittenPattern,
    tables: Mapping[str, Sequence[str]],
    params: KeyParams,
    problems: list[Diagnostic],
    warnings: list[Diagnostic],
    steps: Steps,
) -> tuple[Part, ...]:
    name = guard.capture.value
    part = next((part for part in parts if part.name == name), None)
    if part is None:
        names = [each.name for each in parts if each.name]
        problems.append(_describe_unknown_capture(guard.capture, names, "RK140", "guards"))
        return parts
    values = read_guard_values(guard, tables, problems, params)
    if values is None:
        return parts
    if not values or part.values == ():  # a range that is empty for the params in force
        return tuple(each.restrict_to(()) if each is part else each for each in parts)
    steps.spend(2 * len(values))
    engine = make_engine(Pattern("match", written.text, written.span, (part,)), steps)
    inside: list[str] = []
    outside: list[Text] = []
    for text in values:
        if _fits(engine, text.value, steps):
            inside.append(text.value)
        else:
            outside.append(text)
    if outside:
        report = problems if not inside else warnings
        report.append(_describe_outside_values(part, guard, outside, written, contradicts=not inside))
    if not inside:
        return parts
    letters = sum(map(len, inside))
    steps.spend(letters // 8)
    if letters > MAX_LETTERS:
        place = guard.named.span if guard.named is not None else guard.capture.span
        title = f"the guard on {name!r} must have at most {MAX_LETTERS:,} characters in all"
        problems.append(Diagnostic("RK218", title, (Label(place),), ("list fewer words",)))
        return parts
    table = guard.named.value if guard.named is not None and guard.named.value in tables else None
    return tuple(each.restrict_to(tuple(inside), table=table) if each is part else each for each in parts)


def _fits(engine: re.Pattern[str] | Program, word: str, steps: Steps) -> bool:
    """Return whether a word belongs to the language of a capture."""
    if isinstance(engine, re.Pattern):
        return engine.fullmatch(word) is not None
    steps.spend(len(engine.code) * (len(word) + 1) // 4)
    return engine.find_captures(word) is not None


def _describe_unknown_capture(name: Text, names: Sequence[str | None], code: str, what: str) -> Diagnostic:
    known = [each for each in names if each]
    help = suggest_name(name.value, known, f"the pattern captures {', '.join(known) or 'nothing'}")
    title = f"`where` {what} {name.value!r}, which the pattern does not capture"
    return Diagnostic(code, title, (Label(name.span),), (help,))


def read_guard_values(
    guard: WrittenGuard,
    tables: Mapping[str, Sequence[str]],
    problems: list[Diagnostic],
    params: KeyParams = NO_PARAMS,
) -> tuple[Text, ...] | None:
    """Return the values that a guard allows (listed, a range, or the keys of a table); None if it has a problem."""
    if guard.values is not None:
        if not guard.values:
            title = f"the guard on {guard.capture.value!r} allows nothing"
            problems.append(Diagnostic("RK141", title, (Label(guard.capture.span),), ("list the values",)))
            return None
        read: list[Text] = []
        for text in guard.values:
            word = read_word(text, "a word of a guard", problems)
            if word is not None:
                read.append(word)
            elif len(problems) >= MAX_PROBLEMS:
                return None
        return tuple(read) if len(read) == len(guard.values) else None
    assert guard.named is not None
    named = guard.named
    if named.value in tables:
        return tuple(Text(key, named.span) for key in tables[named.value])
    try:
        if ".." in named.value:
            return tuple(Text(value, named.span) for value in read_range(named, 0, len(named.value), params))
        if (number := read_number(named, 0, len(named.value), params)) is not None:
            return (Text(number, named.span),)
    except InvalidRules as error:
        problems += error.diagnostics
        return None
    how = f"write a list, {emit_flow([named.value])}, a range, 0..47, or the name of a table"
    help = filter(None, [suggest_name(named.value, [*tables, *params.values]), how])
    title = f"{named.value!r} is neither a range nor a table"
    problems.append(Diagnostic("RK144", title, (Label(named.span),), tuple(help)))
    return None


def _describe_outside_values(
    part: Part, guard: WrittenGuard, outside: Sequence[Text], written: WrittenPattern, *, contradicts: bool
) -> Diagnostic:
    values = join_words((repr(text.value) for text in outside), SHOWN, "or")
    place = guard.named.span if guard.named is not None else outside[0].span
    labels = (Label(written.text.at(*part.at), "captured here", primary=False), Label(place))
    if contradicts:
        title = f"the guard contradicts the pattern: {part.name!r} cannot be {values}"
        return Diagnostic("RK141", title, labels, ("no key would match; change the guard or the capture",))
    title = f"{part.name!r} cannot be {values}"
    help = ("remove it from the guard, or widen the capture",)
    return Diagnostic("RK142", title, labels, help, severity=Severity.WARNING)


def _read_leaves(written: WrittenPattern, problems: list[Diagnostic]) -> tuple[str, ...] | None:
    if written.leaf is None:
        return None
    if not written.leaf:
        problems.append(
            Diagnostic("RK143", "the leaf guard allows nothing", (Label(written.span),), ("list leaves",))
        )
    leaves = [read_word(text, "a leaf", problems) for text in written.leaf]
    for text in filter(None, leaves):
        if "." in text.value or not text.value:
            help = f"write {literal_text(text.value.rpartition('.')[2]) or 'a name'}"
            title = f"{text.value!r} is not a leaf name: a leaf contains no dot"
            problems.append(Diagnostic("RK143", title, (Label(text.span),), (help,)))
    return tuple(dict.fromkeys(text.value for text in leaves if text is not None))


def _drop_impossible_leaves(
    pattern: Pattern,
    written: WrittenPattern,
    problems: list[Diagnostic],
    warnings: list[Diagnostic],
    steps: Steps,
) -> Pattern:
    """Remove and report the leaves that no key of the pattern can have."""

    assert written.leaf is not None and pattern.leaf is not None
    possible = find_possible_leaves(pattern, steps)
    read = ((text, read_word(text, "a leaf", [])) for text in written.leaf)
    never = [text for text, word in read if word is None or word.value not in possible]
    if never:
        named = join_words((repr(text.value) for text in never), SHOWN, "or")
        labels = (Label(written.text.span, "no key of this pattern has it", primary=False), Label(never[0].span))
        if not possible:
            title = f"the guard contradicts the pattern: no key can have the leaf {named}"
            problems.append(Diagnostic("RK143", title, labels, ("change the guard or the pattern",)))
        else:
            title = f"no key of the pattern can have the leaf {named}"
            help = ("remove it from the guard, or widen the pattern",)
            warnings.append(Diagnostic("RK142", title, labels, help, severity=Severity.WARNING))
    return replace(pattern, leaf=tuple(value for value in pattern.leaf if value in possible))
