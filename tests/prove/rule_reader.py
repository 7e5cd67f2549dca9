r"""Reads the plain data of a rule file with nothing of remapkit: `re` for patterns, Python itself for arithmetic.

A pattern is a sequence of captures and text, each a regular expression. The reading of a key that counts is that of
`re` for the whole pattern; all readings are found by cutting the key at every place.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

Data = Mapping[str, Any]
"""The plain data of a rule file, as `yaml.safe_load` returns it."""
Tables = Mapping[str, Mapping[str, str]]
Captures = Mapping[str, str]

CANONICAL = "0|[1-9][0-9]*"
TYPES = {"": r"[^.]+", "int": CANONICAL, "**": r"[^.]+(?:\.[^.]+)*"}
INDICES = ("0", "1", "10", "11", "100")
"""The indices that are tried for an `unstack` without a count; a witness may have any."""

TOKEN = re.compile(r"(\{\{|\}\}|\{'(?:[^']|'')+'\}|[^{}]+)|\{([^{}]*)\}")
"""Plain text, perhaps as a quoted literal or a doubled brace; or the content of braces."""


def list_tokens(text: str) -> list[tuple[str, str]]:
    """Cut a path or a template into plain text and the content of braces; one of the two is empty."""
    return [(read_literal(plain), written) for plain, written in TOKEN.findall(text)]


def read_literal(text: str) -> str:
    if text in ("{{", "}}"):
        return text[0]
    return text[2:-2].replace("''", "'") if text.startswith("{'") else text


# ------------------------------------------------------------------------------------------------ patterns


@lru_cache(maxsize=200_000)
def fits(expression: str, text: str) -> bool:
    """Return whether a regular expression matches a whole text."""
    return compiled(expression).fullmatch(text) is not None


@lru_cache(maxsize=20_000)
def compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.ASCII)


@dataclass(frozen=True)
class Part:
    """A capture (or text, if `name` is empty); `words` are those that a guard, a table or choices allow."""

    name: str
    expression: str
    words: tuple[str, ...] | None = None

    def restrict_to(self, words: Iterable[str]) -> Part:
        # Longest first, as everything else that has a choice is greedy.
        kept = sorted({word for word in words if fits(self.expression, word)}, key=lambda word: (-len(word), word))
        return Part(self.name, "|".join(map(re.escape, kept)) if kept else "(?!)", tuple(kept))


@dataclass(frozen=True)
class Pattern:
    """The parts of a `path` or `match` with its guards, and the leaves that its keys may have."""

    parts: tuple[Part, ...]
    leaf: tuple[str, ...] | None = None

    @cached_property
    def whole(self) -> str:
        return "".join(
            f"(?P<{part.name}>{part.expression})" if part.name else f"(?:{part.expression})" for part in self.parts
        )

    def has_leaf(self, key: str) -> bool:
        return self.leaf is None or key.rpartition(".")[2] in self.leaf

    def matches(self, key: str) -> bool:
        return self.has_leaf(key) and fits(self.whole, key)

    def captures(self, key: str) -> Captures | None:
        """Return the reading that counts."""
        found = compiled(self.whole).fullmatch(key) if self.has_leaf(key) else None
        return None if found is None else found.groupdict()

    def readings(self, key: str) -> list[tuple[str, ...]]:
        """Return every way to cut a key into captures, in the order of `names`."""
        return list(dict.fromkeys(_cuts(self.parts, key))) if self.has_leaf(key) else []

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts if part.name)


def _cuts(parts: Sequence[Part], key: str) -> Iterator[tuple[str, ...]]:
    if not parts:
        if not key:
            yield ()
        return
    part, rest = parts[0], parts[1:]
    for end in range(len(key) + 1):
        if fits(part.expression, key[:end]):
            for following in _cuts(rest, key[end:]):
                yield (key[:end], *following) if part.name else following


def covers(domain: Sequence[Pattern], key: str) -> bool:
    """Return whether a key is in a domain; without patterns, every key is."""
    return not domain or any(pattern.matches(key) for pattern in domain)


def read_pattern(written: str | Data, tables: Tables) -> Pattern:
    """Read a pattern: a path, or a mapping with `path` or `match` and guards."""
    fields: Data = {"path": written} if isinstance(written, str) else written
    parts = _read_path(fields["path"], tables) if "path" in fields else _read_match(fields["match"])
    where = {name: _list_words(guard, tables) for name, guard in (fields.get("where") or {}).items()}
    leaf = fields.get("leaf")
    return Pattern(
        tuple(part.restrict_to(where[part.name]) if part.name in where else part for part in parts),
        None if leaf is None else tuple(map(str, leaf)),
    )


def _list_words(guard: object, tables: Tables) -> list[str]:
    """List the words of a guard: a list, a table, or a range."""
    if isinstance(guard, list):
        return list(map(str, guard))
    name = str(guard)
    return list(tables[name]) if name in tables else _list_range(name)


def _list_range(text: str) -> list[str]:
    low, _, high = text.partition("..")
    return [str(number) for number in range(_calculate(low), _calculate(high or low) + 1)]


def _calculate(text: str) -> int:
    return int(eval(text, {"__builtins__": {}}, {}))


def put_in_params(value: Any, params: Data) -> Any:
    """Write the params into the braces and ranges of plain data, as Python writes them."""
    if isinstance(value, dict):
        return {name: put_in_params(each, params) for name, each in value.items()}
    if isinstance(value, list):
        return [put_in_params(each, params) for each in value]
    if not isinstance(value, str) or not params:
        return value
    name = re.compile(rf"\b(?:{'|'.join(params)})\b")

    def write(found: re.Match[str]) -> str:
        return name.sub(lambda each: f"({params[each[0]]})", found[0])

    return re.sub(r"^[^{}]*\.\.[^{}]*$|\{[^{}']*\}", write, value)


def _read_path(text: str, tables: Tables) -> list[Part]:
    parts = []
    for plain, field_text in list_tokens(text):
        if plain:
            parts.append(Part("", re.escape(plain), (plain,)))
            continue
        name, _, kind = field_text.partition(":")
        part = Part(name, TYPES.get(kind, ".*"))
        if kind not in TYPES:
            words = list(tables[kind]) if kind in tables else kind.split("|") if "|" in kind else _list_range(kind)
            part = part.restrict_to(words)
        parts.append(part)
    return parts


def _read_match(text: str) -> list[Part]:
    """Cut an expression at its named groups, which are all at its top level."""
    parts, here = [], 0
    while here < len(text):
        named = re.compile(r"\(\?P<(\w+)>").match(text, here)
        start = named.end() if named else here
        end = _find_end(text, start, is_group=named is not None)
        parts.append(Part(named[1] if named else "", text[start:end]))
        here = end + (named is not None)
    return parts


def _find_end(text: str, start: int, *, is_group: bool) -> int:
    """Return where a group closes, or where the next named group opens at the top level."""
    here, depth, in_class = start, 0, False
    while here < len(text):
        sign = text[here]
        if not in_class and not depth and (sign == ")" if is_group else text.startswith("(?P<", here)):
            return here
        depth += 0 if in_class else (sign == "(") - (sign == ")")
        in_class = sign != "]" if in_class else sign == "["
        here += 2 if sign == "\\" else 1
    return here


# ------------------------------------------------------------------------------------------------ templates


@dataclass(frozen=True)
class Template:
    """Text, and fields: a capture, `capture|table`, or arithmetic."""

    items: tuple[tuple[str, str], ...]
    tables: Tables = field(compare=False)

    @classmethod
    def read(cls, text: str, tables: Tables) -> Template:
        return cls(tuple(list_tokens(text)), tables)

    def render(self, captures: Captures) -> str:
        return "".join(plain or self._fill(written, captures) for plain, written in self.items)

    def _fill(self, written: str, captures: Captures) -> str:
        name, bar, table = written.partition("|")
        if bar:
            return self.tables[table][captures[name]]
        if written in captures:
            return captures[written]
        numbers = {each: int(captures[each]) for each in re.findall(r"[A-Za-z_]\w*", written)}
        return str(eval(written, {"__builtins__": {}}, numbers))

    @property
    def signs(self) -> set[str]:
        """Return the characters that it writes besides those of captures; a number may have any digit."""
        words = [word for _, table in self.lookups() for word in self.tables[table].values()]
        numbers = ["01" for _, written in self.items if re.search("[-+*/%]", written)]
        return set("".join([*(plain for plain, _ in self.items), *words, *numbers]))

    def lookups(self) -> Iterator[tuple[str, str]]:
        """Yield each capture that is looked up, with its table."""
        yield from ((name, table) for _, each in self.items for name, bar, table in [each.partition("|")] if bar)


# ------------------------------------------------------------------------------------------------ rules


@dataclass(frozen=True)
class Made:
    """One target of one key: `rule` is an id; `source` and `output` are places within the rule.

    `index` has the indices of `unstack`, `split` and `copy`; `place` those of `stack`, `concat`, `merge`, as numbers.
    """

    rule: str
    source: int
    output: int
    key: str
    target: str
    place: tuple[int, ...] = ()
    index: tuple[str, ...] = ()
    captures: Captures = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Rule:
    """A rule, `keep` or `drop`; `outputs` are None if a key is kept or dropped."""

    id: str
    kind: str
    sources: tuple[Pattern, ...]
    outputs: tuple[Template, ...] | None = None
    forget: tuple[str, ...] = ()
    lossy: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    unstack: str = ""
    made: tuple[str, ...] = ()
    indices: tuple[tuple[str, ...], ...] = ((),)
    has_any_index: bool = False
    """Whether an `unstack` without a count makes its targets."""

    def targets(self, source: int, key: str, captures: Captures) -> list[Made]:
        if self.outputs is None:
            return [Made(self.id, source, 0, key, key, captures=captures)] if self.kind == "keep" else []
        place = tuple(int(captures[name]) for name in self.folded)
        return [
            Made(self.id, source, number, key, output.render({**captures, **counted}), place, index, captures)
            for number, output in enumerate(self.outputs)
            for index in self.indices
            for counted in [dict(zip(self.made, index, strict=True))]
        ]

    def matches(self, key: str) -> bool:
        return any(pattern.matches(key) for pattern in self.sources)

    def is_alive(self, keys: Iterable[str]) -> bool:
        """Return whether each source matches one of the keys."""
        dead = list(self.sources)
        for key in keys:
            dead = [pattern for pattern in dead if not pattern.matches(key)]
        return not dead

    def make(self, key: str) -> list[Made]:
        """Return every target of a key, by the readings that count."""
        return [
            made
            for source, pattern in enumerate(self.sources)
            if (captures := pattern.captures(key)) is not None
            for made in self.targets(source, key, captures)
        ]

    def is_admitted(self, one: Made, other: Made, outputs: Collection[int] | None = None) -> bool:
        """Return whether the author says that two keys never occur together.

        They differ in a capture under `forget`, or in one that a lossy table maps to one value; the tables are those
        of some outputs, or of all.
        """
        return any(one.captures[name] != other.captures[name] for name in self.forget) or any(
            one.captures[name] != other.captures[name] and table[one.captures[name]] == table[other.captures[name]]
            for output in outputs or range(len(self.outputs or ()))
            for name, table in self.lossy_captures(output)
        )

    def lossy_captures(self, output: int) -> list[tuple[str, Mapping[str, str]]]:
        if self.outputs is None:
            return []
        template = self.outputs[output]
        found = [(name, table) for name, table in template.lookups() if table in self.lossy and name not in self.made]
        return [(name, template.tables[table]) for name, table in found]

    def collide(self, one: Made, other: Made) -> bool:
        """Return whether two of its targets, which are equal, should not be.

        Sources of one `concat` share their targets on purpose, and so do the keys that are joined by an index.
        """
        if one.source != other.source:
            return False
        if one.output != other.output:
            return True
        return one.place == other.place and (one.key, one.index) != (other.key, other.index)


@dataclass(frozen=True)
class RuleFile:
    """The rules, and what they are asked about; `added` are the targets of `add`, by entry."""

    rules: tuple[Rule, ...]
    domain: tuple[Pattern, ...] = ()
    unmatched: str = "error"
    added: tuple[tuple[str, tuple[str, ...]], ...] = ()
    header: tuple[str, ...] = ()

    @cached_property
    def shapes(self) -> tuple[Pattern, ...]:
        """Return patterns for the keys like those of the header, with any indices."""
        return tuple(Pattern((Part("", r"\.".join(map(_read_known, key.split(".")))),)) for key in self.header)

    @cached_property
    def by_id(self) -> dict[str, Rule]:
        return {rule.id: rule for rule in self.rules}

    def matches(self, key: str) -> bool:
        return any(rule.matches(key) for rule in self.rules)


def read_rules(data: Data) -> RuleFile:
    """Read the plain data of a rule file that remapkit accepts; `header` has known keys, which are no part of it."""
    data = {**put_in_params({**data, "params": None}, data.get("params") or {}), "params": data.get("params")}
    written_tables = data.get("tables") or {}
    tables: dict[str, dict[str, str]] = {}
    for name, table in written_tables.items():
        entries = table["entries"] if isinstance(table.get("entries"), dict) else table
        tables[name] = {str(key): str(value) for key, value in entries.items()}
    lossy = tuple(name for name, table in written_tables.items() if table.get("lossy") is True)
    rules = [_read_rule(each, tables, lossy, data.get("params") or {}) for each in data.get("rules") or ()]
    for kind in ("keep", "drop"):
        rules += [
            Rule(f"{kind}[{number}]", kind, (read_pattern(each, tables),))
            for number, each in enumerate(data.get(kind) or ())
        ]
    domain = (data.get("source") or {}).get("domain") or ()
    return RuleFile(
        tuple(rules),
        tuple(read_pattern(each, tables) for each in domain),
        data.get("unmatched", "error"),
        tuple((f"add[{number}]", _list_added(each, tables)) for number, each in enumerate(data.get("add") or ())),
        tuple(data.get("header") or ()),
    )


def _read_known(segment: str) -> str:
    return f"(?:{CANONICAL})" if fits(CANONICAL, segment) else re.escape(segment)


def _read_rule(written: Data, tables: Tables, lossy: tuple[str, ...], params: Data) -> Rule:
    sources = [written]
    if isinstance(written.get("merge"), list):
        sources = written["merge"]
    elif "from" in (written.get("concat") or {}):
        sources = written["concat"]["from"]
    sources = [{"path": each} if isinstance(each, str) else each for each in sources]
    distinct: dict[str, Data] = {}
    for number, each in enumerate(sources):
        pattern = repr({name: value for name, value in each.items() if name != "ops"})
        again = sources[:number].count(each)  # the same with the same operations: matches what the first one matches
        distinct.setdefault(f"{pattern} {again}", each)
    outputs = (
        [written["to"]] if "to" in written else written.get("copy") or written.get("tie") or written["split"]["into"]
    )
    unstack = written.get("unstack") or {}
    spaces, any_index = [], False
    for name, count in _list_indices(written, ("unstack", "split", "copy")):
        count = params.get(count) if isinstance(count, str) else count
        any_index |= count is None
        spaces.append((name, INDICES if count is None else tuple(map(str, range(count)))))
    return Rule(
        written["id"],
        "rule",
        tuple(read_pattern(each, tables) for each in distinct.values()),
        tuple(Template.read(each if isinstance(each, str) else each["to"], tables) for each in outputs),
        tuple(written.get("forget") or ()),
        lossy,
        tuple(name for name, _ in _list_indices(written, ("stack", "concat", "merge"))),
        unstack.get("by", ""),
        tuple(name for name, _ in spaces),
        tuple(itertools.product(*(values for _, values in spaces))),
        any_index,
    )


def _list_indices(written: Data, fields: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the captures of `by` of some operations, with the count of each (None where there is none)."""
    for each in (written.get(name) for name in fields):
        if isinstance(each, dict) and "by" in each:
            by, count = each["by"], each.get("count")
            names, counts = ([by], [count]) if isinstance(by, str) else (by, count or [None] * len(by))
            yield from zip(names, counts, strict=True)


def _list_added(written: Data, tables: Tables) -> tuple[str, ...]:
    each = {name: _list_words(guard, tables) for name, guard in (written.get("each") or {}).items()}
    template = Template.read(written["to"], tables)
    return tuple(
        template.render(dict(zip(each, values, strict=True))) for values in itertools.product(*each.values())
    )
