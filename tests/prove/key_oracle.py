r"""What is true of a rule file, found out key by key: it reads the plain data of the file and shares no code with remapkit.

A pattern is a sequence of captures and text, each a regular expression of Python's `re`. Every key up to a length is
read in every way: the words of each part are picked out of all strings by `re.fullmatch`, then put together. The
reading that counts is that of `re` for the whole pattern. Targets are rendered here, and expressions evaluated by
Python itself.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

Data = Mapping[str, Any]
"""The plain data of a rule file, as `yaml.safe_load` returns it."""
Tables = Mapping[str, Mapping[str, str]]
Captures = Mapping[str, str]

CANONICAL = "0|[1-9][0-9]*"
CANONICAL_GROUP = f"(?:{CANONICAL})"
TYPES = {"": r"[^.]+", "int": CANONICAL, "**": r"[^.]+(?:\.[^.]+)*"}
INDICES = ("0", "1", "10", "11", "100")
"""The indices that are tried for an `unstack` without a count; witnesses may have any."""

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
    return _compile(expression).fullmatch(text) is not None


@lru_cache(maxsize=20_000)
def _compile(expression: str) -> re.Pattern[str]:
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
        return Part(self.name, "|".join(map(re.escape, kept)), tuple(kept))


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
        found = _compile(self.whole).fullmatch(key) if self.has_leaf(key) else None
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
    low, high = text.split("..")
    return [str(number) for number in range(int(low), int(high) + 1)]


def _read_path(text: str, tables: Tables) -> list[Part]:
    parts = []
    for plain, field_text in list_tokens(text):
        if plain:
            parts.append(Part("", re.escape(plain)))
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

    def lookups(self) -> Iterator[tuple[str, str]]:
        """Yield each capture that is looked up, with its table."""
        yield from ((name, table) for _, each in self.items for name, bar, table in [each.partition("|")] if bar)


# ------------------------------------------------------------------------------------------------ rules


@dataclass(frozen=True)
class Made:
    """One target of one key: `rule` is an id; `source` and `output` are places within the rule.

    `index` is that of an `unstack`; `place` that of a `stack`, as a number.
    """

    rule: str
    source: int
    output: int
    key: str
    target: str
    place: int = 0
    index: str = ""
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
    stack: str = ""
    unstack: str = ""
    indices: tuple[str, ...] = ("",)

    def targets(self, source: int, key: str, captures: Captures) -> list[Made]:
        if self.outputs is None:
            return [Made(self.id, source, 0, key, key, captures=captures)] if self.kind == "keep" else []
        place = int(captures[self.stack]) if self.stack else 0
        return [
            Made(self.id, source, number, key, output.render({**captures, self.unstack: index}), place, index, captures)
            for number, output in enumerate(self.outputs)
            for index in self.indices
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

    def is_admitted(self, one: Made, other: Made) -> bool:
        """Return whether the author says that two keys never occur together."""
        return any(one.captures[name] != other.captures[name] for name in self.forget) or any(
            one.captures[name] != other.captures[name] and table[one.captures[name]] == table[other.captures[name]]
            for name, table in self.lossy_captures(one.output)
        )

    def lossy_captures(self, output: int) -> list[tuple[str, Mapping[str, str]]]:
        if self.outputs is None:
            return []
        template = self.outputs[output]
        found = [(name, table) for name, table in template.lookups() if table in self.lossy and name != self.unstack]
        return [(name, template.tables[table]) for name, table in found]

    def collide(self, one: Made, other: Made) -> bool:
        """Return whether two of its targets, which are equal, should not be.

        Sources of one `concat` share their targets on purpose, and so do the keys of one `stack`.
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
        return tuple(
            Pattern((Part("", r"\.".join(CANONICAL_GROUP if fits(CANONICAL, s) else re.escape(s) for s in key.split("."))),))
            for key in self.header
        )

    @cached_property
    def by_id(self) -> dict[str, Rule]:
        return {rule.id: rule for rule in self.rules}

    @lru_cache(maxsize=100_000)  # noqa: B019 -- a file lives as long as its questions
    def matching(self, key: str) -> tuple[tuple[str, int], ...]:
        """Return the ids and sources of all rules that match a key."""
        return tuple(
            (rule.id, number)
            for rule in self.rules
            for number, pattern in enumerate(rule.sources)
            if pattern.matches(key)
        )

    def has_in_domain(self, key: str) -> bool:
        return not self.domain or any(pattern.matches(key) for pattern in self.domain)

    def __hash__(self) -> int:
        return id(self)


def read_rules(data: Data) -> RuleFile:
    """Read the plain data of a rule file that remapkit accepts; `header` has known keys, which are no part of it."""
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


def _read_rule(written: Data, tables: Tables, lossy: tuple[str, ...], params: Data) -> Rule:
    sources = written["concat"]["from"] if "concat" in written else [written]
    outputs = (
        [written["to"]]
        if "to" in written
        else written.get("copy") or written.get("tie") or written["split"]["into"]
    )
    unstack = written.get("unstack") or {}
    indices: tuple[str, ...] = ("",)
    if unstack:
        count = unstack.get("count")
        count = params.get(count) if isinstance(count, str) else count
        indices = INDICES if count is None else tuple(map(str, range(count)))
    return Rule(
        written["id"],
        "rule",
        tuple(read_pattern(each, tables) for each in sources),
        tuple(Template.read(each if isinstance(each, str) else each["to"], tables) for each in outputs),
        tuple(written.get("forget") or ()),
        lossy,
        (written.get("stack") or {}).get("by", ""),
        unstack.get("by", ""),
        indices,
    )


def _list_added(written: Data, tables: Tables) -> tuple[str, ...]:
    each = {name: _list_words(guard, tables) for name, guard in (written.get("each") or {}).items()}
    template = Template.read(written["to"], tables)
    return tuple(template.render(dict(zip(each, values, strict=True))) for values in itertools.product(*each.values()))


# ------------------------------------------------------------------------------------------------ every key


@lru_cache(maxsize=64)
def all_strings(alphabet: str, length: int) -> tuple[tuple[str, ...], ...]:
    """Return all strings by length."""
    return tuple(tuple(map("".join, itertools.product(alphabet, repeat=size))) for size in range(length + 1))


@lru_cache(maxsize=20_000)
def _words(part: Part, alphabet: str, length: int) -> tuple[tuple[str, ...], ...]:
    """Return the words of a part by length."""
    if part.words is not None:
        return tuple(tuple(w for w in part.words if len(w) == size) for size in range(length + 1))
    match = _compile(part.expression).fullmatch
    return tuple(tuple(filter(match, strings)) for strings in all_strings(alphabet, length))


def all_readings(pattern: Pattern, alphabet: str, length: int) -> dict[str, set[tuple[str, ...]]]:
    """Return every key of a pattern up to a length, with every way to cut it into captures."""
    rows: list[tuple[str, tuple[str, ...]]] = [("", ())]
    for part in pattern.parts:
        by_size = _words(part, alphabet, length)
        sized = [*itertools.accumulate(by_size, lambda before, words: before + words)]
        named = bool(part.name)
        rows = [
            (key + word, (*cut, word) if named else cut)
            for key, cut in rows
            for word in sized[length - len(key)]
        ]
    found: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for key, cut in rows:
        found[key].add(cut)
    return {key: cuts for key, cuts in found.items() if pattern.has_leaf(key)}


def count_readings(pattern: Pattern, alphabet: str, length: int) -> list[int]:
    """Count the readings by the length of the key (guards on leaves not looked at)."""
    counts = [1] + [0] * length
    for part in pattern.parts:
        sizes = [len(words) for words in _words(part, alphabet, length)]
        counts = [sum(counts[size - more] * sizes[more] for more in range(size + 1)) for size in range(length + 1)]
    return counts


# ------------------------------------------------------------------------------------------------ the truth

Kind = str
"""ambiguous, cut, within, across, open, added: as in the witnesses of a proof."""


@dataclass(frozen=True)
class Fault:
    """Keys that show a fault of some rules; `admitted`: the author says that they never occur together."""

    kind: Kind
    rules: tuple[str, ...]
    keys: tuple[str, ...]
    target: str = ""
    admitted: bool = False

    @property
    def size(self) -> int:
        return sum(map(len, self.keys))

    def __str__(self) -> str:
        return f"{self.kind} {'/'.join(self.rules)} {self.keys} -> {self.target!r}"


class Truth:
    """All faults of a rule file among the keys up to a length: the smallest of each kind and each pair of rules."""

    def __init__(self, file: RuleFile, alphabet: str, length: int, domain: Sequence[Pattern] = ()) -> None:
        self.file, self.length, self.domain = file, length, domain
        self.smallest: dict[tuple[Kind, tuple[str, ...], bool], Fault] = {}
        self.matched: dict[str, set[str]] = {rule.id: set() for rule in file.rules}
        by_target: dict[str, list[Made]] = defaultdict(list)
        hits: dict[str, list[str]] = defaultdict(list)
        for rule in file.rules:
            for source, pattern in enumerate(rule.sources):
                for key, cuts in all_readings(pattern, alphabet, length).items():
                    if not self.covers(key):
                        continue
                    hits[key].append(rule.id)
                    self.matched[rule.id].add(key)
                    for made in self._make(rule, source, key, cuts):
                        by_target[made.target].append(made)
        for key, rules in hits.items():
            for one, other in itertools.combinations(rules, 2):
                self._note(Fault("ambiguous", (one, other), (key,)))
        for target, found in by_target.items():
            self._compare(target, found)
            if file.unmatched == "keep" and self.covers(target) and not file.matching(target):
                for made in found:
                    self._note(Fault("open", (made.rule,), (made.key, target), target))
        self._compare_added(by_target)

    def covers(self, key: str) -> bool:
        return not self.domain or any(pattern.matches(key) for pattern in self.domain)

    def _note(self, fault: Fault) -> None:
        name = fault.kind, tuple(sorted(fault.rules)), fault.admitted
        known = self.smallest.get(name)
        if known is None or fault.size < known.size:
            self.smallest[name] = fault

    def _make(self, rule: Rule, source: int, key: str, cuts: set[tuple[str, ...]]) -> list[Made]:
        """Return the targets of a key; note if they depend on how it is cut."""
        pattern = rule.sources[source]
        if len(cuts) == 1:
            (cut,) = cuts
            return rule.targets(source, key, dict(zip(pattern.names, cut, strict=True)))
        captures = pattern.captures(key)
        assert captures is not None
        found = rule.targets(source, key, captures)
        for cut in cuts:
            other = rule.targets(source, key, dict(zip(pattern.names, cut, strict=True)))
            if other != found:
                self._note(Fault("cut", (rule.id,), (key,)))
                break
        return found

    def _compare(self, target: str, found: list[Made]) -> None:
        """Note the smallest pairs with one target."""
        if len(found) == 1:
            return
        by_rule: dict[str, list[Made]] = defaultdict(list)
        for made in found:
            by_rule[made.rule].append(made)
        for members in by_rule.values():
            members.sort(key=lambda made: len(made.key))
        for rule, members in by_rule.items():
            if len(members) > 1 and self.file.by_id[rule].kind == "rule":
                self._compare_within(self.file.by_id[rule], members)
        for one, other in itertools.combinations(by_rule, 2):
            pairs = ((a, b) for a in _two_keys(by_rule[one]) for b in _two_keys(by_rule[other]) if a != b)
            best = min(pairs, key=lambda pair: sum(map(len, pair)), default=None)
            if best is not None:
                self._note(Fault("across", (one, other), best, target))

    def _compare_within(self, rule: Rule, members: Sequence[Made]) -> None:
        """Compare the targets of one rule: of those that agree in all that is declared lossy, two suffice."""
        alike: dict[object, list[Made]] = defaultdict(list)
        for made in members:
            declared = (*rule.forget, *(name for name, _ in rule.lossy_captures(made.output)))
            values = tuple(made.captures[name] for name in declared)
            same = alike[made.source, made.output, made.place, made.index if rule.unstack else "", values]
            if len(same) < 2:
                same.append(made)
        chosen = sorted(itertools.chain(*alike.values()), key=lambda made: len(made.key))[:60]
        for one, other in itertools.combinations(chosen, 2):
            if rule.collide(one, other):
                admitted = rule.is_admitted(one, other)
                self._note(Fault("within", (rule.id,), (one.key, other.key), one.target, admitted))

    def _compare_added(self, by_target: Mapping[str, Sequence[Made]]) -> None:
        seen: dict[str, str] = {}
        for entry, targets in self.file.added:
            for target in targets:
                if target in seen:
                    self._note(Fault("added", (seen[target], entry), (), target))
                seen.setdefault(target, entry)
                for made in by_target.get(target, ()):
                    self._note(Fault("added", (entry, made.rule), (made.key,), target))
                if self.file.unmatched == "keep" and self.covers(target) and not self.file.matching(target):
                    self._note(Fault("open", (entry,), (target,), target))

    def best(self, kind: Kind, rules: tuple[str, ...], *admitted: bool) -> Fault | None:
        """Return the smallest fault of a kind for some rules, declared ones included only as asked."""
        names = [(kind, tuple(sorted(rules)), each) for each in admitted or (False, True)]
        return min((self.smallest[name] for name in names if name in self.smallest), key=lambda f: f.size, default=None)


def _two_keys(members: Sequence[Made]) -> list[str]:
    """Return the two shortest keys, which are all that the smallest pair can have."""
    return list(dict.fromkeys(made.key for made in members))[:2]


# ------------------------------------------------------------------------------------------------ witnesses


def can_meet(one: Made, other: Made, rules: Mapping[str, Rule]) -> bool:
    """Return whether two targets are equal for some index of each that has no bound."""
    return bool(_common(one, rules[one.rule], other, rules[other.rule]))


def can_be(made: Made, text: str, rules: Mapping[str, Rule]) -> bool:
    """Return whether a target is a text, or is shown by it with the name of the index in braces."""
    rule = rules[made.rule]
    shown = f"{{{rule.unstack}}}"
    if rule.outputs is not None and shown in text:
        template = rule.outputs[made.output]
        fields = [written for _, written in template.items if re.search(rf"\b{rule.unstack}\b", written)]
        return fields == [rule.unstack] and text == template.render({**made.captures, rule.unstack: shown})
    return _reads(text, _around(made, rule))


def find_unbounded(rule: Rule) -> bool:
    """Return whether the rule makes targets with any index."""
    return bool(rule.unstack) and rule.indices is INDICES


def _common(one: Made, left: Rule, other: Made, right: Rule) -> bool:
    texts = [_around(one, left), _around(other, right)]
    lengths = sum(len(text) for text in itertools.chain(*texts))
    for size in range(lengths + 2):
        word = _overlay(texts, size)
        if word is not None and all(_reads(word, text) for text in texts):
            return True
    return False


def _around(made: Made, rule: Rule) -> tuple[str, ...]:
    """Return a target as one text, or as the text before and after its index."""
    if not find_unbounded(rule) or rule.outputs is None:
        return (made.target,)
    before, _, after = rule.outputs[made.output].render({**made.captures, rule.unstack: "\0"}).partition("\0")
    return before, after


def _overlay(texts: Sequence[tuple[str, ...]], size: int) -> str | None:
    """Return a word of a length that begins and ends as the texts do; free characters are 1."""
    signs: list[str] = [""] * size
    for text in texts:
        if size < sum(map(len, text)) + len(text) - 1 or (len(text) == 1 and size != len(text[0])):
            return None
        ends = [(number, sign) for number, sign in enumerate(text[0])]
        ends += [(size - len(text[-1]) + number, sign) for number, sign in enumerate(text[-1])] if text[1:] else []
        for number, sign in ends:
            if signs[number] not in ("", sign):
                return None
            signs[number] = sign
    return "".join(sign or "1" for sign in signs)


def _reads(word: str, text: tuple[str, ...]) -> bool:
    if len(text) == 1:
        return word == text[0]
    before, after = text
    return word.startswith(before) and fits(CANONICAL, word[len(before) : len(word) - len(after)]) and word.endswith(after)
