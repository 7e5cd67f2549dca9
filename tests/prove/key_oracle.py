"""What is true of a rule file among all keys up to a length, found out key by key without any code of remapkit.

The words of each part of a pattern are picked out of all strings by `re.fullmatch`, then put together: that gives
every key with every reading. Targets that are equal are compared in pairs.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from rule_reader import CANONICAL, Made, Part, Pattern, Rule, RuleFile, compiled, covers, fits, read_rules

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
    match = compiled(part.expression).fullmatch
    return tuple(tuple(filter(match, strings)) for strings in all_strings(alphabet, length))


def all_readings(pattern: Pattern, alphabet: str, length: int) -> dict[str, set[tuple[str, ...]]]:
    """Return every key of a pattern up to a length, with every way to cut it into captures."""
    rows: list[tuple[str, tuple[str, ...]]] = [("", ())]
    for part in pattern.parts:
        by_size = _words(part, alphabet, length)
        sized = [*itertools.accumulate(by_size, lambda before, words: before + words)]
        named = bool(part.name)
        rows = [
            (key + word, (*cut, word) if named else cut) for key, cut in rows for word in sized[length - len(key)]
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


MAX_LENGTH = 9
SIGNS = "ab.012xqy"
"""All characters of random patterns."""


def choose_size(file: RuleFile, keys: int) -> tuple[str, int]:
    """Choose the characters that matter, and the greatest length up to which every key can soon be tried."""
    signs = set("a.")
    wild = False
    for part in (part for pattern in (*_list_patterns(file), *file.domain) for part in pattern.parts):
        text = "".join(part.words or ()) or re.sub(r"\\[dwsDWS]|\{[\d,]+\}|0-9|1-9", "", part.expression)
        signs |= set(text) & set(SIGNS)
        signs |= set("01") if "\\d" in part.expression or "0-9" in part.expression else set()
        wild |= part.words is None and re.search(r"(?<!\\)\.|\[\^|\\[wSDW]", part.expression) is not None
    if wild:
        signs |= {sign for rule in file.rules for output in rule.outputs or () for sign in output.signs} & set(SIGNS)
        signs |= set("01") if any(rule.made for rule in file.rules) else set()
        signs |= {sign for _, targets in file.added for target in targets for sign in target} & set(SIGNS)
    alphabet = "".join(sorted(signs))
    length = MAX_LENGTH
    while length > 3 and len(alphabet) ** length > keys:
        length -= 1
    while length > 3 and sum(_count(pattern, alphabet, length) for pattern in _list_patterns(file)) > keys:
        length -= 1
    return alphabet, length


def _list_patterns(file: RuleFile) -> Iterator[Pattern]:
    for rule in file.rules:
        yield from rule.sources


def _count(pattern: Pattern, alphabet: str, length: int) -> int:
    return sum(count_readings(pattern, alphabet, length))


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
            if file.unmatched == "keep" and self.covers(target) and not file.matches(target):
                for made in found:
                    self._note(Fault("open", (made.rule,), (made.key, target), target))
        self._compare_added(by_target)

    def covers(self, key: str) -> bool:
        return covers(self.domain, key)

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
        lossy = {name for output in range(len(rule.outputs or ())) for name, _ in rule.lossy_captures(output)}
        declared = (*rule.forget, *sorted(lossy))
        for made in members:
            values = tuple(made.captures[name] for name in declared)
            same = alike[made.source, made.output, made.place, made.index, values]
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
                if self.file.unmatched == "keep" and self.covers(target) and not self.file.matches(target):
                    self._note(Fault("open", (entry,), (target,), target))

    def best(self, kind: Kind, rules: tuple[str, ...], *admitted: bool) -> Fault | None:
        """Return the smallest fault of a kind for some rules, declared ones included only as asked."""
        names = [(kind, tuple(sorted(rules)), each) for each in admitted or (False, True)]
        return min(
            (self.smallest[name] for name in names if name in self.smallest), key=lambda f: f.size, default=None
        )


def _two_keys(members: Sequence[Made]) -> list[str]:
    """Return the two shortest keys, which are all that the smallest pair can have."""
    return list(dict.fromkeys(made.key for made in members))[:2]


class Truths:
    """What is true of a file for all keys, for its domain, and for keys like the known ones, each found out once."""

    def __init__(self, data: Mapping[str, object], keys: int) -> None:
        self.file = read_rules(data)
        self.size = choose_size(self.file, keys)

    @cached_property
    def everywhere(self) -> Truth:
        return Truth(self.file, *self.size)

    @cached_property
    def in_domain(self) -> Truth:
        return Truth(self.file, *self.size, self.file.domain) if self.file.domain else self.everywhere

    @cached_property
    def of_known_shapes(self) -> Truth:
        return Truth(self.file, *self.size, self.file.shapes)


# ------------------------------------------------------------------------------------------------ witnesses


def can_meet(one: Made, other: Made, rules: Mapping[str, Rule]) -> bool:
    """Return whether two targets are equal for some index of each that has no bound.

    The shortest common word has no more than one character besides those that the texts have: the length is bounded.
    """
    texts = [_around(one, rules[one.rule]), _around(other, rules[other.rule])]
    lengths = sum(len(text) for text in itertools.chain(*texts))
    words = (_overlay(texts, size) for size in range(lengths + 2))
    return any(word is not None and all(_reads(word, text) for text in texts) for word in words)


def can_be(made: Made, text: str, rules: Mapping[str, Rule]) -> bool:
    """Return whether a target is a text, or is shown by it with the names of the indices in braces.

    An index that the target uses once, as it is, is shown by its name.
    """
    rule = rules[made.rule]
    if rule.outputs is not None:
        template = rule.outputs[made.output]
        counted = dict(zip(rule.made, made.index, strict=True))
        for name in rule.made:
            if [written for _, written in template.items if re.search(rf"\b{name}\b", written)] == [name]:
                counted[name] = f"{{{name}}}"
        if any(f"{{{name}}}" in text for name in rule.made):
            return text == template.render({**made.captures, **counted})
    return _reads(text, _around(made, rule))


def _around(made: Made, rule: Rule) -> tuple[str, ...]:
    """Return a target as one text, or as the text before and after its index."""
    if rule.outputs is None or not rule.has_any_index:
        return (made.target,)
    counted = {**dict(zip(rule.made, made.index, strict=True)), rule.unstack: "\0"}
    before, _, after = rule.outputs[made.output].render({**made.captures, **counted}).partition("\0")
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
    return (
        word.startswith(before)
        and fits(CANONICAL, word[len(before) : len(word) - len(after)])
        and word.endswith(after)
    )
