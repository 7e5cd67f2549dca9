"""The text of a learned rule file, and which lines belong to which generalised rule."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from remapkit.authoring.generalize import Copied, Example, Fixed, LookedUp, SegmentItem
from remapkit.authoring.new import name_captures, write_bound
from remapkit.authoring.write_rules import PatternText, write_rule, write_table, write_test
from remapkit.diagnostics.wording import count_noun
from remapkit.patterns.literals import literal_text
from remapkit.patterns.tree import literal
from remapkit.patterns.unparse import unparse
from remapkit.rulefile.names import choose_name
from remapkit.tensors.families import is_canonical_integer


class How(enum.Enum):
    """How a generalised rule is written, the widest first: with any index, with the indices seen, or key by key."""

    FREE = "any index"
    TIGHT = "these indices"
    LITERAL = "key by key"


@dataclass(frozen=True, slots=True)
class DraftRule:
    """A generalised rule, and how it is written."""

    example: Example
    how: How = How.FREE


@dataclass(frozen=True, slots=True)
class Draft:
    """A text; `owners` maps lines, `ids` maps rule ids to the number of the draft rule (-1 for none)."""

    text: str
    owners: tuple[int, ...]
    ids: Mapping[str, int]


def write_draft(parts: Sequence[DraftRule], head: Sequence[str]) -> Draft:
    """Write the rule file of these draft rules, after the lines of `head`."""
    rules, tables = _make_rules(parts)
    lines = [*((line, -1) for line in head), *_write_lines(rules, tables)]
    text = "".join(f"{line}\n" for line, _ in lines)
    return Draft(text, tuple(owner for _, owner in lines), {rule.id: rule.part for rule in rules})


_Tables = dict[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule of the text; `part` is the number of its draft rule, `to` is None under `keep:`."""

    id: str
    part: int
    pattern: PatternText
    to: str | None
    test: tuple[str, str]
    count: int = 1


def _make_rules(parts: Sequence[DraftRule]) -> tuple[list[_Rule], _Tables]:
    tables: _Tables = {}
    ids: set[str] = set()
    rules: list[_Rule] = []
    keeps = 0
    for number, part in enumerate(parts):
        if part.how is How.LITERAL or any("" in words for words in part.example.words):
            # A path has no empty segments: such a key is written as a regular expression.
            rules += [_make_literal_rule(pair, number, ids) for pair in part.example.pairs]
            continue
        rule = _make_rule(part, number, ids, tables)
        if part.example.is_identity:
            rule = replace(rule, id=f"keep[{keeps}]", to=None)
            keeps += 1
        rules.append(rule)
    return rules, tables


def _make_literal_rule(pair: tuple[str, str], number: int, ids: set[str]) -> _Rule:
    pattern = PatternText(unparse(literal(pair[0])), "match")
    return _Rule(choose_name(pair[0], ids, "-"), number, pattern, literal_text(pair[1]), pair)


def _make_rule(part: DraftRule, number: int, ids: set[str], tables: _Tables) -> _Rule:
    example = part.example
    names = [name for name, _ in name_captures(example.words)]
    bounded = example.computed_places
    table_of = {
        item.place: _name_table(names[item.place], item.entries, tables)
        for item in reversed(example.items)
        if isinstance(item, LookedUp)
    }
    segments, where = [], {}
    for place, (name, words) in enumerate(zip(names, example.words, strict=True)):
        bound = _choose_bound(words, free=part.how is How.FREE and place not in bounded)
        if not name:
            segments.append(literal_text(words[0]))
        elif place in table_of:
            segments.append(f"{{{name}:{table_of[place]}}}")
        elif bound is not None:
            segments.append(f"{{{name}:{bound}}}")
        else:
            segments.append(f"{{{name}}}")
            where[name] = words
    to = ".".join(_write_target_segment(item, names, tables) for item in example.items)
    shared = [words[0] for words in example.words if len(words) == 1 and not is_canonical_integer(words[0])]
    id = choose_name(".".join(shared) or "all", ids, "-")
    pattern = PatternText(".".join(segments), where=where)
    return _Rule(id, number, pattern, to, example.pairs[0], len(example.pairs))


def _choose_bound(words: Sequence[str], *, free: bool) -> str | None:
    return "int" if free and all(map(is_canonical_integer, words)) else write_bound(words)


def _write_target_segment(item: SegmentItem, names: Sequence[str], tables: _Tables) -> str:
    if isinstance(item, Fixed):
        return literal_text(item.word)
    if isinstance(item, Copied):
        return f"{{{names[item.place]}}}"
    if isinstance(item, LookedUp):
        return f"{{{names[item.place]}|{_name_table(names[item.place], item.entries, tables)}}}"
    return "{" + item.written.format(*(names[place] for place in item.places)) + "}"


def _name_table(name: str, entries: tuple[tuple[str, str], ...], tables: _Tables) -> str:
    """Return the name of the table with these entries; add the table if it does not exist yet."""
    known = next((each for each, found in tables.items() if sorted(found) == sorted(entries)), None)
    if known is not None:
        return known
    chosen = choose_name(name.rstrip("0123456789"), set(tables))
    tables[chosen] = entries
    return chosen


# ------------------------------------------------------------------------------------------------ lines


def _write_lines(rules: Sequence[_Rule], tables: _Tables) -> Iterator[tuple[str, int]]:
    """Yield every line, with the number of its draft rule."""
    if tables:
        yield "tables:", -1
        for name, entries in tables.items():
            yield write_table(name, entries, lossy=len({value for _, value in entries}) < len(entries)), -1
        yield "", -1
    if any(rule.to is not None for rule in rules):
        yield "rules:", -1
    for rule in rules:
        if rule.to is not None:
            lines = (f"# {count_noun(rule.count, 'key')}", *write_rule(rule.id, rule.pattern, rule.to))
            yield from ((f"  {line}", rule.part) for line in lines)
            yield "", rule.part
    if any(rule.to is None for rule in rules):
        yield "keep:", -1
        yield from ((f"  - {rule.pattern.inline()}", rule.part) for rule in rules if rule.to is None)
        yield "", -1
    yield "tests:", -1
    for rule in rules:
        yield from ((line, rule.part) for line in write_test(rule.test[0], [rule.test[1]]))
