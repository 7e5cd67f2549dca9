"""Rule files from what was found in examples: the text, and which of its lines say which example."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from remapkit.authoring.generalize import Copied, Example, Fixed, Looked, SegmentItem
from remapkit.authoring.scaffold import list_guards, name_captures, write_bound
from remapkit.diagnostics.wording import count_noun
from remapkit.patterns.literals import literal_text
from remapkit.patterns.tree import literal
from remapkit.patterns.unparse import unparse
from remapkit.rulefile.names import choose_name
from remapkit.rulefile.yaml.emit import emit_entry, emit_flow, emit_scalar, quote_text
from remapkit.tensors.families import is_canonical_integer


class How(enum.Enum):
    """How an example is written: with any index, with those that it was seen with, or key by key."""

    FREE = "any index"
    TIGHT = "these indices"
    LITERAL = "key by key"


@dataclass(frozen=True, slots=True)
class DraftRule:
    """An example, and how it is written."""

    example: Example
    how: How = How.FREE


@dataclass(frozen=True, slots=True)
class Draft:
    """A text, the part (by its number) that each line and each rule says; a line that says none has -1."""

    text: str
    owners: tuple[int, ...]
    ids: Mapping[str, int]


def write_draft(parts: Sequence[DraftRule], before: Sequence[str]) -> Draft:
    """The rule file of these parts, after the lines `before`."""
    written, tables = _make_rules(parts)
    lines = [*((line, -1) for line in before), *_write_lines(written, tables)]
    text = "".join(f"{line}\n" for line, _ in lines)
    return Draft(text, tuple(owner for _, owner in lines), {rule.id: rule.part for rule in written})


_Tables = dict[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule as it will be written; `part` is the number of the part that it says."""

    id: str
    part: int
    pattern: str
    to: str | None
    surface: str = "path"
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    count: int = 1
    first: tuple[str, str] = ("", "")


def _make_rules(parts: Sequence[DraftRule]) -> tuple[list[_Rule], _Tables]:
    tables: _Tables = {}
    ids: set[str] = set()
    written: list[_Rule] = []
    keeps = 0
    for number, part in enumerate(parts):
        if part.how is How.LITERAL or any("" in words for words in part.example.words):
            # A path has no empty segments: such a key is written out, as a regular expression.
            written += [_make_literal_rule(pair, number, ids) for pair in part.example.pairs]
            continue
        rule = _make_rule(part, number, ids, tables)
        if part.example.is_identity:
            rule = replace(rule, id=f"keep[{keeps}]", to=None)
            keeps += 1
        written.append(rule)
    return written, tables


def _make_literal_rule(pair: tuple[str, str], number: int, ids: set[str]) -> _Rule:
    id = choose_name(pair[0], ids, "-")
    return _Rule(id, number, unparse(literal(pair[0])), literal_text(pair[1]), surface="match", first=pair)


def _make_rule(part: DraftRule, number: int, ids: set[str], tables: _Tables) -> _Rule:
    example = part.example
    names = [name for name, _ in name_captures(example.words)]
    bounded = example.computed_places
    of_place = {
        item.place: _name_table(names[item.place], item.entries, tables)
        for item in reversed(example.items)
        if isinstance(item, Looked)
    }
    segments, where = [], {}
    for place, (name, words) in enumerate(zip(names, example.words, strict=True)):
        kind = _choose_bound(words, free=part.how is How.FREE and place not in bounded)
        if not name:
            segments.append(literal_text(words[0]))
        elif place in of_place:
            segments.append(f"{{{name}:{of_place[place]}}}")
        elif kind is not None:
            segments.append(f"{{{name}:{kind}}}")
        else:
            segments.append(f"{{{name}}}")
            where[name] = list_guards(words)
    to = ".".join(_write_target_segment(item, names, tables) for item in example.items)
    shared = [each[0] for each in example.words if len(each) == 1 and not is_canonical_integer(each[0])]
    id = choose_name(".".join(shared) or "all", ids, "-")
    return _Rule(id, number, ".".join(segments), to, "path", where, len(example.pairs), example.pairs[0])


def _choose_bound(words: Sequence[str], *, free: bool) -> str | None:
    return "int" if free and all(map(is_canonical_integer, words)) else write_bound(words)


def _write_target_segment(item: SegmentItem, names: Sequence[str], tables: _Tables) -> str:
    if isinstance(item, Fixed):
        return literal_text(item.word)
    if isinstance(item, Copied):
        return f"{{{names[item.place]}}}"
    if isinstance(item, Looked):
        return f"{{{names[item.place]}|{_name_table(names[item.place], item.entries, tables)}}}"
    return "{" + item.written.format(*(names[place] for place in item.places)) + "}"


def _name_table(name: str, entries: tuple[tuple[str, str], ...], tables: _Tables) -> str:
    """The name of the table with these entries, made where there is none yet."""
    known = next((each for each, found in tables.items() if sorted(found) == sorted(entries)), None)
    if known is not None:
        return known
    chosen = choose_name(name.rstrip("0123456789"), set(tables))
    tables[chosen] = entries
    return chosen


# ------------------------------------------------------------------------------------------------ YAML


def _write_lines(written: Sequence[_Rule], tables: _Tables) -> Iterator[tuple[str, int]]:
    if tables:
        yield "tables:", -1
        for name, entries in tables.items():
            table = {literal_text(key): literal_text(value) for key, value in entries}
            lossy = len(set(table.values())) < len(table)
            yield emit_entry(name, {"lossy": True, "entries": table} if lossy else table), -1
        yield "", -1
    rules = [rule for rule in written if rule.to is not None]
    if rules:
        yield "rules:", -1
    for rule in rules:
        yield from ((line, rule.part) for line in _write_rule(rule))
    keeps = [rule for rule in written if rule.to is None]
    if keeps:
        yield "keep:", -1
        for rule in keeps:
            guarded = {"path": rule.pattern, "where": rule.where}
            yield f"  - {emit_flow(guarded) if rule.where else quote_text(rule.pattern)}", rule.part
        yield "", -1
    yield "tests:", -1
    for rule in written:
        yield from ((line, rule.part) for line in emit_entry(*rule.first).split("\n"))


def _write_rule(rule: _Rule) -> Iterator[str]:
    yield f"  # {count_noun(rule.count, 'key')}"
    yield f"  - id: {emit_scalar(rule.id)}"
    yield f"    {rule.surface}: {quote_text(rule.pattern)}"
    if rule.where:
        yield f"    where: {emit_flow(rule.where)}"
    yield f"    to: {quote_text(rule.to or '')}"
    yield ""
