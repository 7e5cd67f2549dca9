"""Fixes of a finding: edits of the rule file that are offered only if the edited file is free of the finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.errors import InvalidRules
from remapkit.proofs.model import Proof
from remapkit.rulefile.read import read_text
from remapkit.rulefile.yaml.compose import compose
from remapkit.rulefile.yaml.emit import emit_flow, quote_text
from remapkit.rulefile.yaml.values import to_plain_value
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules, Match

Decide: TypeAlias = Callable[[CompiledRules, int | None, tuple[str, ...]], Proof]
"""Proves rules within a budget of steps, given the known source keys, without looking for fixes."""

Place: TypeAlias = tuple[str | int, ...]
"""A path of keys and indices into the data of a rule file."""

MAX_TRIES = 32
"""The most edited files that are proven for the findings of one proof."""

RULES_PER_TRY = 25
"""A try with more rules than this counts as several."""

MAX_FIXES = 2
"""The most fixes that are shown for one finding."""

MAX_SAMPLES = 1000
"""The most known keys that an edited file must map as before."""

Kinds: TypeAlias = Counter[tuple[str, Severity]]
"""The number of findings of each code and severity."""

_SECTIONS = ("rules", "keep", "drop", "add")


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of the data of a rule file: the value at a place is set, or removed if `value` is None."""

    at: Place
    value: object = None


@dataclass(frozen=True, slots=True)
class Fix:
    """What to change, in words and as edits.

    `narrows`: the rules match fewer keys, and are otherwise unchanged. `is_certain`: it cannot fail to work, so that
    it need not be tried.
    """

    words: str
    edits: tuple[Edit, ...]
    narrows: bool = False
    is_certain: bool = False

    def to_plain(self) -> dict[str, object]:
        """Return the fix as data, for programs that apply it."""
        return {"help": self.words, "edits": [{"at": list(each.at), "value": each.value} for each in self.edits]}


def apply_edits(data: Mapping[str, Any], edits: Iterable[Edit]) -> dict[str, Any]:
    """Return the data of a rule file with edits applied; places refer to the data before any edit.

    >>> apply_edits({"rules": [1, 2, 3]}, [Edit(("rules", 0)), Edit(("rules", 2), 4), Edit(("source", "keys"), "k")])
    {'rules': [2, 4], 'source': {'keys': 'k'}}
    """
    edited: dict[str, Any] = deepcopy(dict(data))
    given = list(edits)
    removals = [edit for edit in given if edit.value is None]
    # Of the entries of a list, the last is removed first: the numbers of the others stay the same until then.
    removals.sort(key=lambda edit: edit.at[-1] if isinstance(edit.at[-1], int) else -1, reverse=True)
    for edit in (*(edit for edit in given if edit.value is not None), *removals):
        _apply_edit(edited, edit)
    return edited


def _apply_edit(data: Any, edit: Edit) -> None:
    *steps, last = edit.at
    for step in steps:
        data = data.setdefault(step, {}) if isinstance(data, dict) else data[step]
    if edit.value is not None:
        data[last] = edit.value
    elif isinstance(data, dict):
        data.pop(last, None)
    else:
        del data[last]


def read_data(rules: CompiledRules) -> dict[str, Any]:
    """Return the content of a rule file as plain data."""
    root, _ = compose(rules.file.source)
    data = to_plain_value(root) if root is not None else None
    return data if isinstance(data, dict) else {}


def find_entries(rules: CompiledRules) -> dict[tuple[str, str], Place]:
    """Return the place of each rule, `keep`, `drop` and entry of `add`, by its kind and its name."""
    places: dict[tuple[str, str], Place] = {
        ("rule", rule.id.value): ("rules", number) for number, rule in enumerate(rules.file.rules)
    }
    for kind in ("keep", "drop", "add"):
        for number in range(len(getattr(rules.file, kind))):
            places[kind, f"{kind}[{number}]"] = kind, number
    return places


def write_data(value: object) -> str:
    """Write the data of a rule file as YAML on one line.

    >>> write_data({"to": "0", "fill": 0})
    "{'to': '0', 'fill': 0}"
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quote_text(str(key))}: {write_data(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_data, value)) + "]"
    return quote_text(value) if isinstance(value, str) else emit_flow(value)


class FixTester:
    """Applies fixes to copies of a rule file, and proves these.

    A fix that only narrows rules cannot make them collide with others; so in a large file only those that it concerns
    are proven. It ends because at most `MAX_TRIES` files are proven, each with a twentieth of the budget.
    """

    def __init__(self, rules: CompiledRules, keys: tuple[str, ...], budget: int, decide: Decide) -> None:
        self.rules, self.keys, self.budget, self.decide = rules, keys, budget // 20, decide
        self.left = MAX_TRIES
        self.entries = find_entries(rules)
        self.all_places = frozenset(self.entries.values())
        self.before: dict[frozenset[Place], Kinds] = {}
        self.tested = frozenset(test.source.value for test in rules.tests)
        self.samples = *keys[:: max(1, len(keys) // MAX_SAMPLES)], *sorted(self.tested)
        """The keys that an edited file must map as before."""

    def expect_all(self, findings: Iterable[Diagnostic]) -> None:
        """Note the findings of the whole file, unless those about `add:` are still to come."""
        if not self.rules.add:
            self.before[self.all_places] = _count_kinds(findings)

    @cached_property
    def data(self) -> dict[str, Any]:
        """The content of the rule file as plain data."""
        return read_data(self.rules)

    def choose(self, finding: Diagnostic, concerned: Iterable[Place], fixes: Iterable[Fix]) -> list[Fix]:
        """Return the first fixes after which a finding is gone and no error is new."""
        places, chosen = frozenset(concerned), list[Fix]()
        for fix in fixes if self.left > 0 else ():
            if len(chosen) == MAX_FIXES or self.left <= 0:
                break
            if all(fix.edits != other.edits for other in chosen) and self.works(fix, finding, places):
                chosen.append(fix)
        return chosen

    def works(self, fix: Fix, finding: Diagnostic, concerned: frozenset[Place]) -> bool:
        """Return whether a finding is gone after a fix, no error is new, and known keys are mapped as before.

        A large file that is valid is not proven again for a warning: it may be read every day.
        """
        if fix.is_certain:
            return self.leaves_tests(fix)
        is_large = len(self.all_places) > RULES_PER_TRY
        if is_large and finding.severity is not Severity.ERROR:
            return False
        # A rule whose targets depend on the split was not compared with the others yet; and of two collisions of two
        # rules the first may have hidden the second. So all rules are proven where that is cheap.
        is_local = is_large and fix.narrows and finding.code not in ("RK200", "RK204")
        places = concerned if is_local else self.all_places
        if places not in self.before:
            self.before[places] = self.count_findings(places) or Counter()
        before, after = self.before[places], self.count_findings(places, fix)
        if after is None:
            return False
        kind = (finding.code, finding.severity)
        errors = {each for each in (*before, *after) if each[1] is Severity.ERROR}
        return after[kind] < before[kind] and all(after[each] <= before[each] for each in errors)

    def leaves_tests(self, fix: Fix) -> bool:
        """Return whether a fix that removes something leaves a valid file, whose own tests are about the rest."""
        removed = {edit.at for edit in fix.edits}
        if removed >= self.all_places:
            return False
        matches = map(self.rules.match, self.tested)
        return all(found and removed.isdisjoint(map(self.find_place, found)) for found in matches)

    def count_findings(self, places: frozenset[Place], fix: Fix | None = None) -> Kinds | None:
        """Compile and prove the rules at some places, after a fix if one is given.

        Returns None if they do not compile, or do not map known keys as before the fix.
        """
        self.left -= 1 + len(places) // RULES_PER_TRY
        data = {name: value for name, value in self.data.items() if name != "tests"}
        for name in _SECTIONS:
            # Rules at other places become None, and are removed after the edits, which count them.
            entries = data.get(name) or ()
            data[name] = [each if (name, number) in places else None for number, each in enumerate(entries)]
        edited = apply_edits(data, fix.edits if fix is not None else ())
        for name in _SECTIONS:
            edited[name] = [each for each in edited[name] if each is not None]
        text = write_data({name: value for name, value in edited.items() if value != []})
        params = {name: value for name, value in self.rules.params.items() if value is not None}
        try:
            rules = compile_rules(read_text(text, self.rules.file.source.name), params)
        except InvalidRules:
            return None
        if fix is not None and not self.is_mapped_as_before(rules, places):
            return None
        findings = self.decide(rules, self.budget, self.keys).findings
        if any(each.code == "RK200" for each in findings):
            # A search that runs out of steps is the only expensive one.
            self.left -= 4
        return _count_kinds(findings)

    def is_mapped_as_before(self, edited: CompiledRules, concerned: frozenset[Place]) -> bool:
        """Return whether each known key still has one outcome, and each key of a test the same as before."""
        passed = self.rules.unmatched == "keep" and concerned == self.all_places
        for key in self.samples:
            before, after = self.rules.match(key), edited.match(key)
            if len(before) > 1 or not (self.find_place(before[0]) in concerned if before else passed):
                continue
            passes = not after and not before and edited.unmatched == "keep"
            if len(after) != 1 and not passes:
                return False
            targets, now = ([match.targets or None for match in found] or [(key,)] for found in (before, after))
            if (self.rules.file.target is not None or key in self.tested) and targets != now:
                return False
        return True

    def find_place(self, match: Match) -> Place:
        return self.entries[match.rule.kind, match.rule.id]


def _count_kinds(findings: Iterable[Diagnostic]) -> Kinds:
    return Counter((each.code, each.severity) for each in findings)
