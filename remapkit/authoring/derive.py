"""The text of a learned rule file, and which lines belong to which generalised rule."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from remapkit.authoring.fold_relation import is_rename
from remapkit.authoring.generalize import Copied, Example, Fixed, LookedUp, SegmentItem, generalize, get_word
from remapkit.authoring.new import name_captures, write_bound
from remapkit.authoring.relation import Relation
from remapkit.authoring.split_keys import COUNTED, GLUE, MARK, join_words, list_sections, split_key
from remapkit.authoring.write_operations import Names, find_params, write_operations
from remapkit.authoring.write_rules import PatternText, write_rule, write_table, write_test
from remapkit.diagnostics.wording import count_noun, escape_line
from remapkit.diagnostics.wording import join_words as list_words
from remapkit.patterns.literals import literal_text
from remapkit.patterns.tree import literal
from remapkit.patterns.unparse import unparse
from remapkit.rulefile.names import choose_name
from remapkit.rulefile.yaml.emit import emit_entry
from remapkit.tensors.families import is_canonical_integer


class How(enum.Enum):
    """How a generalised rule is written, the widest first: with any index, with the indices seen, or key by key."""

    FREE = "any index"
    TIGHT = "these indices"
    LITERAL = "key by key"


@dataclass(frozen=True, slots=True)
class CountParam:
    """A param that counts the layers of a checkpoint: one more than the largest index after the words `prefix`."""

    name: str
    prefix: tuple[str, ...]
    depth: int

    def write(self) -> dict[str, object]:
        """Return the value of the param under `params:`."""
        return {"count": f"{literal_text('.'.join(self.prefix))}.{{i:int}}.{{rest:**}}", "value": self.depth}


@dataclass(frozen=True, slots=True)
class DraftRule:
    """A generalised rule, and how it is written: `counts` has bounds of source segments in terms of a param."""

    example: Example
    how: How = How.FREE
    counts: Mapping[int, tuple[str, CountParam]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draft:
    """A text; `owners` maps lines, `ids` maps rule ids to the number of the draft rule (-1 for none)."""

    text: str
    owners: tuple[int, ...]
    ids: Mapping[str, int]


def write_draft(
    parts: Sequence[DraftRule],
    head: Sequence[str],
    notes: Notes | None = None,
    params: Mapping[str, object] | None = None,
) -> Draft:
    """Write the rule file of these draft rules, after the lines of `head`; `params` are more that are counted."""
    rules, tables = _make_rules(parts, notes or Notes())
    counted = dict(params or {}) | {param.name: param.write() for part in parts for _, param in part.counts.values()}
    lines = [*((line, -1) for line in head), *_write_lines(rules, tables, counted)]
    text = "".join(f"{line}\n" for line, _ in lines)
    return Draft(text, tuple(owner for _, owner in lines), {rule.id: rule.part for rule in rules})


def write_patterns(fqns: Iterable[str]) -> Iterator[str]:
    """Yield patterns that read exactly these keys, as items of a list.

    >>> list(write_patterns([f"h.{n}.{leaf}" for n in range(3) for leaf in "wb"] + ["x"]))
    ["'h.{h:0..2}.{leaf:w|b}'", "'x'"]
    """
    parts = [DraftRule(example, How.TIGHT) for example in generalize({fqn: fqn for fqn in fqns})]
    yield from (rule.pattern.inline() for rule in _make_rules(parts, Notes())[0])


@dataclass(frozen=True, slots=True)
class Notes:
    """What the rules are written with besides the examples: the evidence for keys, and names that B only records."""

    settled: Mapping[str, str] = field(default_factory=dict)
    tied: Collection[str] = ()
    by_value: bool = True
    """Whether values were compared; if not, pairs were given."""


_Tables = dict[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule of the text; `part` is the number of its draft rule, `to` is None under `keep:`.

    With `names` it is a rule with operations, those of `relation`.
    """

    id: str
    part: int
    pattern: PatternText
    to: str | None
    test: tuple[str, Sequence[str]]
    seen: str = ""
    names: Names | None = None
    relation: Relation | None = None
    tied: bool = False


def _make_rules(parts: Sequence[DraftRule], notes: Notes) -> tuple[list[_Rule], _Tables]:
    tables: _Tables = {}
    ids: set[str] = set()
    rules: list[_Rule] = []
    keeps = 0
    for number, part in enumerate(parts):
        example = part.example
        is_move = is_rename(example.relations[0])
        if is_move and (part.how is How.LITERAL or any("" in words for words in example.words)):
            # A path has no empty segments: such a key is written as a regular expression.
            rules += [_make_literal_rule(each, number, ids, notes) for each in example.relations]
            continue
        rule = _make_rule(part, number, ids, tables, notes)
        if example.is_identity:
            rule = replace(rule, id=f"keep[{keeps}]", to=None)
            keeps += 1
        rules.append(rule)
    return rules, tables


def _make_literal_rule(relation: Relation, number: int, ids: set[str], notes: Notes) -> _Rule:
    fqn, other = relation.sources[0], relation.targets[0]
    pattern = PatternText(unparse(literal(fqn)), "match")
    seen = _describe_relations((relation,), notes)
    return _Rule(choose_name(fqn, ids, "-"), number, pattern, literal_text(other), (fqn, [other]), seen)


def _make_rule(part: DraftRule, number: int, ids: set[str], tables: _Tables, notes: Notes) -> _Rule:
    example = part.example
    relation = example.relations[0]
    sections = [example.items[start:end] for start, end in list_sections([get_word(item) for item in example.items])]
    names, joined, made = _name_places(part, sections)
    table_of = {
        item.place: _name_table(names[item.place], item.entries, tables)
        for item in reversed(example.items)
        if isinstance(item, LookedUp)
    }
    captures, where = _write_captures(part, names, table_of)
    source = _join_texts(
        (words[0], captures.get(place) or _write_word(words[0], joined, pattern=True))
        for place, words in enumerate(example.words)
    )
    targets = count_targets(relation, len(sections))
    written = [
        _join_texts((get_word(item), _write_pattern_item(item, captures, joined)) for item in section)
        for section in sections[:-targets]
    ]
    tos = [
        _join_texts((get_word(item), _write_target_item(item, names, tables, made)) for item in section)
        for section in sections[-targets:]
    ]
    shared = [words[0] for words in example.words if len(words) == 1 and re.search("[^0-9]", words[0])]
    id = choose_name(".".join(word for word in shared if not word.startswith(MARK)) or "all", ids, "-")
    test = (relation.sources[0], _list_test_targets(relation, tos, made))
    tied = any(fqn in notes.tied for each in example.relations for fqn in each.targets)
    rule = _Rule(
        id, number, PatternText(source, where=where), tos[0], test, describe_seen(part, names, notes), tied=tied
    )
    if is_rename(relation):
        return rule
    return replace(rule, names=Names([source, *written], tos, joined, made, where), relation=relation)


def count_targets(relation: Relation, sections: int) -> int:
    """Return how many of the names of a rule, from the last one, are targets; the others are patterns."""
    if relation.cut in ("split", "copy"):
        return len(relation.targets) // (relation.count or 1) if relation.cut == "split" else len(relation.targets)
    return 1


def _join_texts(pairs: Iterator[tuple[str, str]]) -> str:
    """Join written words; those between two words of one segment come without dots."""
    written, dot = "", ""
    for word, text in pairs:
        if word.startswith(GLUE):
            written, dot = written + literal_text(word[len(GLUE) :]), ""
        else:
            written, dot = f"{written}{dot}{text}", "."
    return written


def _name_places(part: DraftRule, sections: Sequence[Sequence[SegmentItem]]) -> tuple[dict[int, str], str, str]:
    """Return the names of the captures by place, and of the indices that `stack` and `unstack` count."""
    example = part.example
    places = [place for place, words in enumerate(example.words) if not words[0].startswith(GLUE)]
    columns = [
        ("0", "1") if place in part.counts or example.words[place][0].startswith(COUNTED) else example.words[place]
        for place in places
    ]
    names = {place: name for place, (name, _) in zip(places, name_captures(columns), strict=True)}
    joined = next((names.pop(place) for place in places if example.words[place][0].startswith(COUNTED)), "")
    target = next((each for each in sections[::-1] if any(get_word(item).startswith(COUNTED) for item in each)), None)
    if target is None or example.relations[0].cut not in ("unstack", "split"):
        return names, joined, ""
    words = [get_word(item) for item in target if not get_word(item).startswith(GLUE)]
    columns = [("0", "1") if word.startswith(COUNTED) else (word or "x",) for word in words]
    place = next(place for place, word in enumerate(words) if word.startswith(COUNTED))
    taken = {name for name in names.values() if name}
    return names, joined, choose_name(name_captures(columns)[place][0], taken)


def _write_captures(
    part: DraftRule, names: Mapping[int, str], table_of: Mapping[int, str]
) -> tuple[dict[int, str], dict[str, Sequence[str]]]:
    captures: dict[int, str] = {}
    where: dict[str, Sequence[str]] = {}
    for place, name in names.items():
        words = part.example.words[place]
        bound = _choose_bound(words, free=part.how is How.FREE and place not in part.example.computed_places)
        if place in part.counts:
            captures[place] = f"{{{name}:{part.counts[place][0]}}}"
        elif name and place in table_of:
            captures[place] = f"{{{name}:{table_of[place]}}}"
        elif name and bound is not None:
            captures[place] = f"{{{name}:{bound}}}"
        elif name:
            captures[place] = f"{{{name}}}"
            where[name] = words
    return captures, where


def _write_word(word: str, counted: str, *, pattern: bool = False) -> str:
    if not word.startswith(COUNTED):
        return literal_text(word)
    return f"{{{counted}:int}}" if pattern else "{" + word[len(COUNTED) :].format(counted) + "}"


def _write_pattern_item(item: SegmentItem, captures: Mapping[int, str], joined: str) -> str:
    if isinstance(item, Copied):
        return captures[item.place]
    assert isinstance(item, Fixed)
    return _write_word(item.word, joined, pattern=True)


def _list_test_targets(relation: Relation, tos: Sequence[str], made: str) -> list[str]:
    """Return the targets of a test: with the index that is made in braces, if there is one."""
    if not made:
        return list(relation.targets)
    width = len(tos)
    count = len(relation.targets) // width
    split = [[split_key(fqn, "all numbers") for fqn in relation.targets[place::width]] for place in range(width)]
    assert count
    return [
        join_words(
            column[0] if len(set(column)) == 1 and count > 1 else f"{{{made}}}" for column in zip(*names, strict=True)
        )
        for names in split
    ]


def _choose_bound(words: Sequence[str], *, free: bool) -> str | None:
    numbers = sum(map(is_canonical_integer, words))
    if 0 < numbers < len(words):
        return None
    return "int" if free and numbers else write_bound(words)


def _write_target_item(item: SegmentItem, names: Mapping[int, str], tables: _Tables, made: str) -> str:
    if isinstance(item, Fixed):
        return _write_word(item.word, made)
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


# ------------------------------------------------------------------------------------------------ what it was seen on


def describe_seen(part: DraftRule, names: Mapping[int, str], notes: Notes) -> str:
    """Return what a rule was seen on: how many keys, which indices and words, and by what evidence.

    >>> from remapkit.authoring.generalize import generalize
    >>> example, = generalize({f"l.{n}.{p}.w": f"h.{n}.{p}.w" for n in range(3) for p in "qk"})
    >>> describe_seen(DraftRule(example), {1: "l", 2: "part"}, Notes())
    '6 keys: l 0-2, part q and k; by value'
    """
    seen = [
        f"{name} {_describe_words(part.example.words[place])}"
        for place, name in names.items()
        if name and len(part.example.words[place]) > 1
    ]
    counted = _describe_relations(part.example.relations, notes)
    count, _, evidence = counted.partition("; ")
    return escape_line(f"{count}{': ' if seen else ''}{', '.join(seen)}; {evidence}")


def _describe_words(words: Sequence[str]) -> str:
    if all(map(is_canonical_integer, words)):
        numbers = [int(word) for word in words]
        if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{numbers[0]}-{numbers[-1]}"
    return list_words(words, 4)


def _describe_relations(relations: Sequence[Relation], notes: Notes) -> str:
    """Return how many keys, and how their targets are known: the kinds of evidence with their numbers."""
    keys = len({fqn for relation in relations for fqn in relation.sources})
    by_hand = "by value" if notes.by_value else "by the given pairs"
    plain = by_hand if is_rename(relations[0]) else "operation found by value"
    kinds = Counter(
        f"equal after rounding to {relation.rounded}"
        if relation.rounded
        else f"because {reason}"
        if (reason := relation.by or notes.settled.get(relation.sources[0], ""))
        else plain
        for relation in relations
    )
    if len(kinds) == 1:
        return f"{count_noun(keys, 'key')}; {next(iter(kinds))}"
    return f"{count_noun(keys, 'key')}; {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"


# ------------------------------------------------------------------------------------------------ lines


def _write_lines(rules: Sequence[_Rule], tables: _Tables, layers: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """Yield every line, with the number of its draft rule; `layers` are the params that are counted."""
    counted = [
        (rule.relation, rule.names.joined or rule.names.made) for rule in rules if rule.relation and rule.names
    ]
    params = {name: value for name, value in find_params(counted).items() if name not in layers}
    if params or layers:
        yield "params:", -1
        for name, value in {**params, **layers}.items():
            yield emit_entry(name, value), -1
        yield "", -1
    if tables:
        yield "tables:", -1
        for name, entries in tables.items():
            yield write_table(name, entries, lossy=len({value for _, value in entries}) < len(entries)), -1
        yield "", -1
    if any(rule.to is not None for rule in rules):
        yield "rules:", -1
    for rule in rules:
        if rule.to is not None:
            yield f"  # {rule.seen}", rule.part
            yield from ((f"  {line}", rule.part) for line in _write_rule_lines(rule, params))
            yield "", rule.part
    if any(rule.to is None for rule in rules):
        yield "keep:", -1
        yield from ((f"  - {rule.pattern.inline()}  # {rule.seen}", rule.part) for rule in rules if rule.to is None)
        yield "", -1
    yield "tests:", -1
    for rule in rules:
        yield from ((line, rule.part) for line in write_test(rule.test[0], rule.test[1]))


def _write_rule_lines(rule: _Rule, params: Mapping[str, int]) -> Iterator[str]:
    if rule.names is None or rule.relation is None:
        return write_rule(rule.id, rule.pattern, rule.to or "")
    return iter(write_operations(rule.id, rule.names, rule.relation, params, tied=rule.tied))
