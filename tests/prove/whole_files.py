"""Random rule files with everything that a proof must look at, and their verdicts held against Python's `re`.

`prove_kit` asks which witnesses there are; this asks what is *claimed*. Nothing here comes from the project but the
verdict: keys are enumerated, cut by recursion over `re.fullmatch` of each part, the cut that counts is that of `re`
itself, and targets are put together from the captures. It covers what the author admits to lose (`forget`, tables
that say they are lossy, captures bounded or not), domains of several lines, guards on leaves, `concat` and `stack`
with a pattern twice, indices as numbers, `unstack`, `add`, `keep`, `drop` and keys that pass through.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from remapkit.api.ruleset import compile_rules
from remapkit.proofs.model import Level, Proof
from remapkit.proofs.prover import prove
from remapkit.rulefile.read import read_text

Parts = tuple[tuple[str | None, str], ...]
"""Captures and text between them, each with a regular expression."""
Item = str | tuple[str, str]
"""Text, or a capture with the name of a table ("" where it is copied)."""
TABLE = {"a": "b", "b": "b", "0": "a"}
COUNTED = 12
"""So many indices of an `unstack` are tried."""


@dataclass(frozen=True)
class Written:
    """One rule, `keep` or `drop`: its sources, and its target (None: kept or dropped)."""

    kind: str
    sources: tuple[Parts, ...]
    items: tuple[Item, ...] = ()
    leaf: tuple[str, ...] = ()
    stack: str = ""
    unstack: str = ""

    @property
    def forget(self) -> tuple[str, ...]:
        used = {item[0] for item in self.items if not isinstance(item, str)}
        return tuple(n for n, _ in self.sources[0] if n and n not in used and n != self.stack)

    @property
    def lossy(self) -> tuple[str, ...]:
        return tuple(item[0] for item in self.items if not isinstance(item, str) and item[1])


@dataclass(frozen=True)
class File:
    """A rule file; `domain` are its lines, `added` the target of an `add`."""

    rules: tuple[Written, ...]
    domain: tuple[Parts, ...] = ()
    added: str = ""
    passes: bool = False
    alphabet: str = "ab.0"

    @property
    def text(self) -> str:
        lines = ["remapkit: 1", "name: t"]
        if self.passes:
            lines.append("unmatched: keep")
        if self.domain:
            lines.append(f"source: {{domain: [{', '.join(f'{{match: {_quoted(each)}}}' for each in self.domain)}]}}")
        if any(rule.lossy for rule in self.rules):
            entries = ", ".join(f"'{key}': '{value}'" for key, value in TABLE.items())
            lines.append(f"tables: {{t: {{lossy: true, entries: {{{entries}}}}}}}")
        kinds: dict[str, list[str]] = {"rule": [], "keep": [], "drop": []}
        for number, rule in enumerate(self.rules):
            kinds[rule.kind].append(f"  - {{{_rule_text(number, rule)}}}")
        for kind, found in kinds.items():
            lines += [f"{'rules' if kind == 'rule' else kind}:", *found] if found else []
        if self.added:
            lines.append(f"add: [{{to: '{self.added}', fill: zeros, shape: [1], dtype: F32}}]")
        return "\n".join(lines) + "\n"


def _quoted(parts: Parts) -> str:
    return "'" + "".join(text if name is None else f"(?P<{name}>{text})" for name, text in parts) + "'"


def _rule_text(number: int, rule: Written) -> str:
    fields = []
    guard = f", leaf: [{', '.join(map(repr, rule.leaf))}]" if rule.leaf else ""
    if len(rule.sources) > 1:
        sources = ", ".join(f"{{match: {_quoted(each)}{guard}}}" for each in rule.sources)
        fields.append(f"concat: {{dim: 0, from: [{sources}]}}")
    else:
        fields.append(f"match: {_quoted(rule.sources[0])}{guard}")
    if rule.kind != "rule":
        return ", ".join(fields)
    fields.insert(0, f"id: r{number}")
    fields += [f"stack: {{dim: 0, by: {rule.stack}}}"] if rule.stack else []
    fields += [f"unstack: {{dim: 0, by: {rule.unstack}}}"] if rule.unstack else []
    to = "".join(i if isinstance(i, str) else f"{{{i[0]}|{i[1]}}}" if i[1] else f"{{{i[0]}}}" for i in rule.items)
    fields.append(f"to: '{to}'")
    fields += [f"forget: [{', '.join(rule.forget)}]"] if rule.forget else []
    return ", ".join(fields)


# ------------------------------------------------------------------------------------------------ what is true


@lru_cache(maxsize=200_000)
def _full(text: str, word: str) -> bool:
    return re.fullmatch(text, word) is not None


def cuts(parts: Parts, key: str) -> Iterator[dict[str, str]]:
    """Every way in which a key is cut, as captures."""
    if not parts:
        if not key:
            yield {}
        return
    (name, text), rest = parts[0], parts[1:]
    for end in range(len(key) + 1):
        if _full(text, key[:end]):
            for following in cuts(rest, key[end:]):
                yield {**({name: key[:end]} if name else {}), **following}


@dataclass(frozen=True)
class Made:
    """What one source of one rule makes of a key; `place` is where it goes within its target."""

    rule: int
    key: str
    captures: Mapping[str, str]
    target: str | None
    place: tuple[int, int] = (0, 0)


def reads(rule: Written, parts: Parts, key: str) -> Mapping[str, str] | None:
    """The captures that count."""
    if rule.leaf and key.rpartition(".")[2] not in rule.leaf:
        return None
    found = re.fullmatch(_quoted(parts)[1:-1], key)
    return None if found is None else found.groupdict()


def targets(rule: Written, key: str, captures: Mapping[str, str]) -> list[str | None]:
    if rule.kind != "rule":
        return [key if rule.kind == "keep" else None]
    counted = range(COUNTED) if rule.unstack else range(1)
    found: list[str | None] = []
    for index in counted:
        values = {**captures, rule.unstack: str(index)}
        found.append(
            "".join(i if isinstance(i, str) else TABLE[values[i[0]]] if i[1] else values[i[0]] for i in rule.items)
        )
    return found


def made(number: int, rule: Written, key: str) -> list[Made]:
    """Everything that a rule makes of a key."""
    found = []
    for branch, parts in enumerate(rule.sources):
        captures = reads(rule, parts, key)
        if captures is not None:
            place = (branch, int(captures[rule.stack]) if rule.stack else 0)
            found += [Made(number, key, captures, each, place) for each in targets(rule, key, captures)]
    return found


def admitted(rule: Written, one: Made, other: Made) -> bool:
    """Whether the author says that two keys of one rule never occur together."""
    if any(one.captures[name] != other.captures[name] for name in rule.forget):
        return True
    return any(
        one.captures[n] != other.captures[n] and TABLE[one.captures[n]] == TABLE[other.captures[n]]
        for n in rule.lossy
    )


@dataclass
class Truth:
    """What is true of the keys that were tried: faults, what is lost as the author says, what passes through."""

    faults: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    passing: list[str] = field(default_factory=list)


def truth_of(file: File, length: int) -> Truth:
    """Every key up to a length, against every rule."""
    truth = Truth()
    matched: set[str] = set()
    inside: set[str] = set()
    by_target: dict[str, list[Made]] = {}
    for size in range(length + 1):
        for signs in itertools.product(file.alphabet, repeat=size):
            key = "".join(signs)
            if file.domain and not any(_full(_quoted(parts)[1:-1], key) for parts in file.domain):
                continue
            inside.add(key)
            found = _judged_key(file, key, truth)
            if found:
                matched.add(key)
            for each in found:
                if each.target is not None:
                    by_target.setdefault(each.target, []).append(each)
    for target, found in by_target.items():
        _judged_target(file, target, found, truth)
        if file.passes and target in inside and target not in matched:
            truth.passing.append(target)
    if file.passes and file.added in inside and file.added and file.added not in matched:
        truth.passing.append(file.added)
    return truth


def _judged_key(file: File, key: str, truth: Truth) -> list[Made]:
    found: list[Made] = []
    sources = 0
    for number, rule in enumerate(file.rules):
        mine = made(number, rule, key)
        found += mine
        for parts in rule.sources:
            captures = reads(rule, parts, key)
            if captures is None:
                continue
            sources += 1
            seen = {
                (tuple(targets(rule, key, cut)), cut.get(rule.stack) if rule.stack else "")
                for cut in cuts(parts, key)
            }
            if len(seen) > 1:
                truth.faults.append(f"cut {key!r} by {number}")
    if sources > 1:
        truth.faults.append(f"ambiguous {key!r}")
        return found[:1]
    return found


def _judged_target(file: File, target: str, found: Sequence[Made], truth: Truth) -> None:
    if file.added and target == file.added:
        truth.faults.append(f"added {target!r} is also of {found[0].key!r}")
    for one, other in itertools.combinations(found[:40], 2):
        if one.rule == other.rule:
            if one.place != other.place:
                continue
            loss = admitted(file.rules[one.rule], one, other)
            (truth.losses if loss else truth.faults).append(f"{one.key!r} and {other.key!r} become {target!r}")
        else:
            truth.faults.append(f"{one.key!r} and {other.key!r} become {target!r}")


# ------------------------------------------------------------------------------------------------ held against it


def verdict(file: File) -> Proof:
    """What the project says."""
    return prove(compile_rules(read_text(file.text)), budget=2_000_000)


def differences(file: File, proof: Proof, length: int) -> list[str]:
    """Where a verdict and the truth disagree."""
    truth, level = truth_of(file, length), proof.level
    wrong = [f"it blames itself: {each.title}" for each in proof.findings if "disagree" in each.title]
    if truth.faults and level not in (Level.REFUTED, Level.UNDECIDED):
        wrong.append(f"{level.value}: {truth.faults[0]}")
    if (truth.losses or truth.passing) and level in (Level.ALL, Level.DOMAIN):
        wrong.append(f"{level.value}: {(truth.losses + truth.passing)[0]}")
    errors = [each for each in proof.findings if each.code in ("RK201", "RK202", "RK203", "RK204", "RK207")]
    hard = [each for each in errors if each.severity.name == "ERROR"]
    if level is Level.REFUTED and not hard:
        wrong.append("refuted without a finding")
    if level is Level.KEYS and not (truth.losses or truth.passing or proof.witnesses):
        wrong.append("a weaker level without a witness")
    for each in hard:
        wrong += _unborne(file, each.code, dict(each.values or {}))
    return wrong


def _unborne(file: File, code: str, values: Mapping[str, object]) -> list[str]:
    """What a finding says with keys of any length that is not so."""
    keys = [key for key in values.get("keys", ()) if key is not None]  # type: ignore[attr-defined]
    if not keys:
        return []
    found = [[each for number, rule in enumerate(file.rules) for each in made(number, rule, key)] for key in keys]
    if code == "RK201":
        sources = sum(reads(r, parts, keys[0]) is not None for r in file.rules for parts in r.sources)
        return [] if sources > 1 else [f"not ambiguous: {keys}"]
    if code == "RK204":
        return [] if any(len(list(cuts(p, keys[0]))) > 1 for r in file.rules for p in r.sources) else ["not cut"]
    if code == "RK207":
        return [] if any(each.target == file.added for each in found[0]) else [f"not added: {keys}"]
    target = values["targets"][0]  # type: ignore[index]
    pairs = [(a, b) for a in found[0] for b in found[-1] if a.target == b.target and a != b]
    if not pairs and "{" not in str(target):
        # An index beyond those that are tried.
        return [] if any(rule.unstack for rule in file.rules) else [f"no collision: {keys}"]
    if pairs and all(a.rule == b.rule and admitted(file.rules[a.rule], a, b) for a, b in pairs):
        return [f"admitted, and still an error: {keys}"]
    return []


# ------------------------------------------------------------------------------------------------ random files

CAPTURED = ("a", "a*", "b?", "a|b", "[ab]", "[ab]*", "[ab.]*", "[^.]+", "aa?", "a*b?", "[ab]{2}", "(?:a|b0)*", "0|a")
BETWEEN = ("a", "b", r"\.", r"a\.", "0", "")
INDEX = ("[01]+", r"\d", r"[01]{1,2}", "0|1[01]*", "0?1")


class Maker:
    """Makes rule files from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def chance(self, one_in: int) -> bool:
        return self.random.randrange(one_in) == 0

    def parts(self, prefix: str, count: int) -> Parts:
        found: list[tuple[str | None, str]] = []
        for number in range(count):
            if self.chance(2) and (text := self.random.choice(BETWEEN)):
                found.append((None, text))
            table = self.chance(5)
            found.append((f"{prefix}{number}", "a|b|0" if table else self.random.choice(CAPTURED)))
        if self.chance(3):
            found.append((None, self.random.choice(("a", "b", r"\.", "a*", "[ab]"))))
        return tuple(found)

    def rule(self) -> Written:
        kind = self.random.choice(("rule",) * 6 + ("keep", "drop"))
        parts = self.parts("c", 1 + self.random.randrange(3))
        leaf = tuple(self.random.sample(("a", "b", "ab", "ba", "0", "aab", "aba"), 3)) if self.chance(6) else ()
        if kind != "rule":
            return Written(kind, (parts,), leaf=leaf)
        stack = unstack = ""
        if self.chance(5):
            parts, stack = (*parts, (None, r"\."), ("e", self.random.choice(INDEX))), "e"
        sources = (parts,)
        if self.chance(6):
            tail: tuple[str | None, str] = (None, self.random.choice(("", "a", "b", "0")))
            sources = (parts, (*parts, tail) if tail[1] else parts)
        items: list[Item] = []
        for name, text in parts:
            if name and name != stack and not self.chance(4):
                items.append((name, "t" if text == "a|b|0" and not self.chance(3) else ""))
        if self.chance(7):
            unstack = "k"
            items.insert(self.random.randrange(len(items) + 1), ("k", ""))
        if self.chance(4):
            self.random.shuffle(items)
        mixed: list[Item] = []
        for item in items:
            if self.chance(3):
                mixed.append(self.random.choice(("a", "b", ".", "0")))
            mixed.append(item)
        if not mixed or self.chance(3):
            mixed.append(self.random.choice(("a", "b", ".", "0.")))
        return Written(kind, sources, tuple(mixed), leaf, stack, unstack)

    def file(self) -> File:
        rules = tuple(self.rule() for _ in range(1 + self.random.randrange(2)))
        domain: tuple[Parts, ...] = ()
        if self.chance(4):
            domain = tuple(
                tuple((None, t) for _, t in self.parts("d", 2)) for _ in range(1 + self.random.randrange(3))
            )
        added = self.random.choice(("a", "b", "a.", "ab", "0")) if self.chance(5) else ""
        indexed = any(rule.stack for rule in rules)
        return File(rules, domain, added, self.chance(5), "ab.01" if indexed else "ab.0")


def files(seed: int, count: int) -> Iterator[tuple[int, File]]:
    """Random rule files."""
    for number in range(seed, seed + count):
        yield number, Maker(number).file()
