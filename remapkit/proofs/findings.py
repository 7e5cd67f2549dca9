"""The messages of a proof: each witness is replayed with the real matcher, then reported with a fix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.patterns.automaton import Automaton, build_automaton
from remapkit.patterns.literals import literal_text
from remapkit.patterns.pattern import Part
from remapkit.patterns.tree import Chars, Seq, literal
from remapkit.proofs.added_findings import OPEN_TITLE, report_added
from remapkit.proofs.fixes import Decide
from remapkit.proofs.keymap import KeyMap, Made, readings
from remapkit.proofs.witness import Fault, Witness
from remapkit.rules.model import AMBIGUITY_HELP, CompiledRules, Rule

MAX_TOLD = 50
"""The most findings that are shown; the rest is only counted."""
_ASKED = {
    "ambiguous": "whether {} can match one key",
    "cut": "whether the target depends on how {} splits a key into captures",
    "within": "whether two keys of {} can map to one target",
    "across": "whether keys of {} can map to one target",
    "open": "whether an unmatched key that passes through can be a target of {}",
}


class FindingWriter:
    """A writer of diagnostics for witnesses; with `decide` they include fixes that were tried with it."""

    def __init__(
        self,
        rules: CompiledRules,
        key_maps: Sequence[KeyMap],
        keys: tuple[str, ...],
        budget: int = 0,
        decide: Decide | None = None,
    ) -> None:
        self.rules, self.key_maps, self.keys = rules, key_maps, keys
        self.budget, self.decide = budget, decide
        self.by_key_map: dict[tuple[str, str, int], Rule] = {
            (rule.kind, rule.id, rule.branch): rule for rule in rules.everything
        }

    def write_findings(
        self,
        witnesses: Iterable[Witness],
        undecided: Iterable[tuple[Fault, tuple[int, ...]]],
        dead: Iterable[int],
        level: str,
        unasked: int = 0,
    ) -> tuple[tuple[Diagnostic, ...], tuple[Witness, ...]]:
        """Return the findings, and the witnesses that the real matcher confirms."""
        findings: list[Diagnostic] = []
        shown: list[Witness] = []
        for each in witnesses:
            if self.is_replayed(each):
                shown.append(each)
                findings.append(self.finding(each, level))
            else:
                findings.append(self.disagreement(each))
        findings += [self.undecided(fault, numbers) for fault, numbers in undecided]
        findings += [self.dead(number) for number in dead]
        findings += self.describe_unread(dead)
        return tuple(findings[:MAX_TOLD] + self._more(findings[MAX_TOLD:]) + self._unasked(unasked)), tuple(shown)

    def _unasked(self, count: int) -> list[Diagnostic]:
        if not count:
            return []
        title = f"{count_noun(count, 'pair')} of rules not examined, because there are too many faults already"
        return [Diagnostic("RK209", title, help=("fix those above first",))]

    def _more(self, rest: Sequence[Diagnostic]) -> list[Diagnostic]:
        if not rest:
            return []
        worst = Severity.ERROR if any(each.severity is Severity.ERROR for each in rest) else Severity.WARNING
        title = f"{len(rest)} more findings of the proof"
        return [Diagnostic("RK209", title, help=("fix those above first",), severity=worst)]

    # -------------------------------------------------------------------------------------------- replaying

    def is_replayed(self, witness: Witness) -> bool:
        """Return whether the rules treat the keys as the witness claims."""
        key_maps = [self.key_maps[number] for number in witness.key_maps]
        if any(not key_map.has_source for key_map in key_maps):
            return self._is_added_replayed(key_maps, witness)
        if witness.fault == "ambiguous":
            return all(self.find_target(key_map, witness.keys[0]) is not None for key_map in key_maps)
        if witness.fault == "open":
            target = self.find_target(key_maps[0], witness.keys[0])
            return (
                target is not None and _can_meet(target, (witness.keys[1],)) and not self.rules.match(witness.keys[1])
            )
        if witness.fault == "cut":
            possible = readings(key_maps[0].pattern, witness.keys[0])
            cuts = [reading for reading in witness.readings if reading in possible]
            one, other = witness.targets
            return len(cuts) == 2 and one != other and self.find_target(key_maps[0], witness.keys[0]) is not None
        left, right = self.find_target(key_maps[0], witness.keys[0]), self.find_target(key_maps[-1], witness.keys[1])
        return left is not None and right is not None and _can_meet(left, right)

    def _is_added_replayed(self, key_maps: Sequence[KeyMap], witness: Witness) -> bool:
        """Return whether an entry of `add` has the target, and the rule maps the key to it, or no rule matches it."""
        target = witness.targets[-1]
        if witness.fault == "open":
            return not self.rules.match(target)
        rules = [key_map for key_map in key_maps if key_map.has_source]
        return all(
            (found := self.find_target(rule, key)) is not None and _can_meet(found, (target,))
            for rule, key in zip(rules, witness.keys, strict=True)
        )

    def find_target(self, key_map: KeyMap, key: str) -> TargetKey | None:
        """Return the target of a key if the real matcher matches it with the rule of the key map, else None."""
        match = self.by_key_map[key_map.kind, key_map.rule_id, key_map.branch].match(key)
        if match is None:
            return None
        items = [item for item in key_map.items or () if isinstance(item, Made)]
        return _split_target(key_map.target(key, match.captures) or "", items)

    def disagreement(self, witness: Witness) -> Diagnostic:
        ids = join_words(self.key_maps[number].rule_id for number in witness.key_maps)
        title = f"the proof and the matcher disagree about {ids}"
        note = "\n".join(map(repr, witness.keys))
        help = ("this is a bug in remapkit, not in the rules: please report it with these keys",)
        return Diagnostic("RK200", title, self.labels(witness.key_maps), help, (note,))

    # -------------------------------------------------------------------------------------------- findings

    def finding(self, witness: Witness, level: str) -> Diagnostic:
        """Return the message for one witness."""
        if any(not self.key_maps[number].has_source for number in witness.key_maps):
            return report_added(self.rules, self.key_maps, witness)
        return {
            "ambiguous": self.ambiguous,
            "cut": self.cut,
            "within": self.within,
            "across": self.across,
            "open": self.open,
        }[witness.fault](witness, level)

    def ambiguous(self, witness: Witness, level: str) -> Diagnostic:
        one, other = (self.key_maps[number] for number in witness.key_maps)
        key = witness.keys[0]
        title = f"{one.rule_id} and {other.rule_id} both match {key!r}; a key may match only one rule"
        if one.rule_id == other.rule_id:
            title = f"two sources of {one.rule_id} both match {key!r}; a key may match only one of them"
        labels = tuple(
            Label(key_map.pattern.text.span, f"{key_map.rule_id} -> {_becomes(target, key_map)}", primary=number > 0)
            for number, (key_map, target) in enumerate(zip((one, other), witness.targets, strict=True))
        )
        notes = ["this is the shortest such key"]
        for number in witness.covered:
            covered, by = (one, other) if number == witness.key_maps[0] else (other, one)
            notes.append(f"{by.rule_id} matches every key that {covered.rule_id} matches")
        return Diagnostic("RK201", title, labels, (AMBIGUITY_HELP,), tuple(notes), values=self.values(witness))

    def within(self, witness: Witness, level: str) -> Diagnostic:
        key_map = self.key_maps[witness.key_maps[0]]
        if len(witness.key_maps) == 2:
            return self.parts(witness, key_map.rule_id)
        target, note = witness.targets[0], _pair(witness)
        notes, help = [note], []
        labels = self.labels(witness.key_maps)
        if witness.lost is not None:
            part = key_map.pattern.parts[witness.lost]
            span = key_map.pattern.text.at(*_core(part)[0])
            what = f"the capture {part.name!r}" if part.name else f"what {span.text} matched"
            title = f"two keys map to one target: {key_map.rule_id} does not use {what}"
            if part.name is not None and part.name in key_map.folded:
                title = f"two keys map to one target: {key_map.rule_id} can spell one index {part.name!r} in two ways"
                return self.describe_two_spellings(witness, title, span, note)
            labels = (
                Label(span, "lost here"),
                *((Label(key_map.to, "not used here", primary=False),) if key_map.to else ()),
            )
            found = self.known_values(key_map, witness.lost)
            notes += found[0]
            help += found[1] or [self.not_shown(key_map, part)]
        elif witness.admitted:
            title = f"two keys map to one target: a lossy table of {key_map.rule_id} maps two entries to one value"
            help.append("give each entry its own value, or declare the keys that can occur with `source.domain`")
        else:
            title = f"two keys map to one target: the target of {key_map.rule_id} can be split in two ways"
            help.append(
                "separate the captures in the target by a dot, or by other text that none of them can contain"
            )
        severity = Severity.WARNING if witness.admitted else Severity.ERROR
        if witness.admitted:
            notes.append(f"the rule file declares that this is intended: no error, but at most '{level}'")
        values = {**self.values(witness), "target": target}
        return Diagnostic("RK202", title, labels, tuple(help), tuple(notes), severity, values=values)

    def not_shown(self, key_map: KeyMap, part: Part) -> str:
        if part.name is None:
            return "capture it and use it in `to:`, or replace it with the literal text"
        return f"use {{{part.name}}} in `to:`, or replace it with its only value"

    def describe_two_spellings(self, witness: Witness, title: str, span: Span, note: str) -> Diagnostic:
        """Report that 1 and 01 are the same index of a stack; the fix is to allow only one spelling."""
        key_map = self.key_maps[witness.key_maps[0]]
        assert witness.lost is not None
        part = key_map.pattern.parts[witness.lost]
        if self.has_guard(key_map, part):
            help = f"allow only one spelling of each index {part.name!r} in `where:`"
        else:
            is_path = key_map.pattern.surface == "path"
            written = f"{{{part.name}:int}}" if is_path else f"(?P<{part.name}>0|[1-9][0-9]*)"
            help = f"write {self.replaced(key_map, part, written)}"
        labels = (Label(span, "1 and 01 are the same index"),)
        values = {**self.values(witness), "target": witness.targets[0]}
        return Diagnostic("RK202", title, labels, (help,), (note,), values=values)

    def has_guard(self, key_map: KeyMap, part: Part) -> bool:
        """Return whether `where:` bounds a capture."""
        written = next(each for each in self.rules.file.rules if each.id.value == key_map.rule_id)
        pattern = written.pattern if written.pipeline is None else written.pipeline.sources[key_map.branch].pattern
        return any(guard.capture.value == part.name for guard in pattern.where)

    def across(self, witness: Witness, level: str) -> Diagnostic:
        one, other = (self.key_maps[number] for number in witness.key_maps)
        title = f"a key of {one.rule_id} and a key of {other.rule_id} map to one target, {witness.targets[0]}"
        help = (
            "change one of the targets, or narrow the pattern that matches more than intended",
            "if such keys never occur, declare those that can: `source: {domain: [...]}`",
        )
        return Diagnostic(
            "RK203", title, self.label_targets(witness), help, (_pair(witness),), values=self.values(witness)
        )

    def parts(self, witness: Witness, rule_id: str) -> Diagnostic:
        """Report two outputs of one rule with the same target."""
        title = f"two outputs of {rule_id} have one target, {witness.targets[0]}"
        help = ("give each output its own target",)
        return Diagnostic(
            "RK202", title, self.label_targets(witness), help, (_pair(witness),), values=self.values(witness)
        )

    def label_targets(self, witness: Witness) -> tuple[Label, ...]:
        """Return labels for the two templates with the same target."""
        spans = [self.key_maps[number].to or self.key_maps[number].span for number in witness.key_maps]
        return tuple(
            Label(span, f"{key} -> {witness.targets[0]}", primary=number > 0)
            for number, (span, key) in enumerate(zip(spans, witness.keys, strict=True))
        )

    def cut(self, witness: Witness, level: str) -> Diagnostic:
        key_map = self.key_maps[witness.key_maps[0]]
        title = f"{key_map.rule_id} can match {witness.keys[0]!r} in two ways, with different targets"
        lines = [
            f"{_describe_captures(key_map, reading)} -> {target}"
            for reading, target in zip(witness.readings, witness.targets, strict=True)
        ]
        first = key_map.pattern.text.span
        help = ("define where the first capture ends: with [^.]+ instead of .+, with a class, or with `where:`",)
        return Diagnostic("RK204", title, (Label(first),), help, ("\n".join(lines),), values=self.values(witness))

    def open(self, witness: Witness, level: str) -> Diagnostic:
        key_map = self.key_maps[witness.key_maps[0]]
        title = OPEN_TITLE
        note = (
            f"{witness.keys[0]}  (by {key_map.rule_id}) becomes {witness.keys[1]}\n"
            f"{witness.keys[1]}  would pass through unchanged, and collide\n"
            "every plan still checks the keys of its checkpoint"
        )
        span = self.rules.file.unmatched_span
        labels = (Label(span),) if span is not None else ()
        help = ("name these keys under `keep:` and remove `unmatched`, or declare `source: {domain: [...]}`",)
        return Diagnostic("RK206", title, labels, help, (note,), Severity.NOTE, values=self.values(witness))

    def undecided(self, fault: Fault, numbers: Sequence[int]) -> Diagnostic:
        ids = join_words(self.key_maps[number].rule_id for number in numbers) or "the rules"
        title = f"undecided: {_ASKED[fault].format(ids)}"
        help = ("simplify the patterns (fewer .*, shorter counted repeats)", "or continue with --allow-undecided")
        note = "the search stopped after its budget of steps; a plan still checks the keys of its checkpoint"
        return Diagnostic("RK200", title, self.labels(numbers), help, (note,), values={"rules": ids, "asked": fault})

    def dead(self, number: int) -> Diagnostic:
        key_map = self.key_maps[number]
        title = f"{key_map.rule_id} cannot match any key of the declared domain"
        help = ("remove it, or widen `source.domain`",)
        labels = (Label(key_map.pattern.text.span),)
        return Diagnostic("RK205", title, labels, help, (), Severity.WARNING, values={"rule": key_map.rule_id})

    def describe_unread(self, dead: Iterable[int]) -> list[Diagnostic]:
        """Return warnings for rules that match no key of the declared source."""
        if not self.keys:
            return []
        used = {match.rule.id for key in self.keys for match in self.rules.match(key)}
        unread = [
            key_map
            for number, key_map in enumerate(self.key_maps)
            if key_map.rule_id not in used and number not in dead
        ]
        return [
            Diagnostic(
                "RK205",
                f"{key_map.rule_id} matches none of the {len(self.keys)} keys of the declared source",
                (Label(key_map.pattern.text.span),),
                ("remove it, or run `remapkit explain` to see where it stops matching",),
                (),
                Severity.WARNING,
                values={"rule": key_map.rule_id},
            )
            for key_map in {key_map.rule_id: key_map for key_map in unread}.values()
        ]

    # -------------------------------------------------------------------------------------------- what is known

    def known_values(self, key_map: KeyMap, lost: int) -> tuple[list[str], list[str]]:
        """Return a note with the known values of the lost part, and a fix if there is only one, or one per case."""
        _, before, after = _core(key_map.pattern.parts[lost])
        found = [
            tuple(text[before : len(text) - after] if number == lost else text for number, text in enumerate(cuts[0]))
            for key in self.keys
            if (cuts := readings(key_map.pattern, key, 2))
        ]
        values = sorted({cut[lost] for cut in found}, key=lambda word: (len(word), word))
        known = f"in the {len(self.keys)} known keys ({len(found)} of them match this rule)"
        if not values:
            return [], []
        if len(values) == 1:
            return [f"{known} it is always {values[0]}"], [f"write {self.rewritten(key_map, lost, values[0])}"]
        for number, part in enumerate(key_map.pattern.parts):
            if part.name is None or number == lost or part.values is None or len(part.values) < 2:
                continue
            by_case = {cut[number]: cut[lost] for cut in found}
            if 1 < len(by_case) <= 4 and all(by_case[cut[number]] == cut[lost] for cut in found):
                cases = ", ".join(f"{value} where {part.name} is {case}" for case, value in by_case.items())
                return [f"{known} it is {cases}"], [
                    f"write one rule for each {part.name}, with that text in its place"
                ]
        return [f"{known} it is {join_words(values, 5, 'or')}"], []

    def rewritten(self, key_map: KeyMap, lost: int, value: str) -> str:
        """Return the pattern with one part replaced by a literal."""
        text, (start, end) = key_map.pattern.text.value, _core(key_map.pattern.parts[lost])[0]
        if key_map.pattern.surface == "path":
            escaped = literal_text(value)
        else:
            escaped = re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", value)
            opened = re.search(r"\(\?P<\w+>$", text[:start])
            if opened is not None and text[end : end + 1] == ")":
                start, end = opened.start(), end + 1
        return f"{key_map.pattern.surface}: {text[:start]}{escaped}{text[end:]}"

    def replaced(self, key_map: KeyMap, part: Part, written: str) -> str:
        """Return the pattern with a capture replaced by other text."""
        text, (start, end) = key_map.pattern.text.value, part.at
        return f"{key_map.pattern.surface}: {text[:start]}{written}{text[end:]}"

    # -------------------------------------------------------------------------------------------- pieces of messages

    def labels(self, numbers: Sequence[int]) -> tuple[Label, ...]:
        spans: list[tuple[Span, str]] = [
            (self.key_maps[number].pattern.text.span, self.key_maps[number].rule_id) for number in numbers
        ]
        several = len(spans) > 1
        return tuple(
            Label(span, rule if several else "", primary=number > 0 or not several)
            for number, (span, rule) in enumerate(spans)
        )

    def values(self, witness: Witness) -> dict[str, object]:
        values: dict[str, object] = {
            "rules": [self.key_maps[number].rule_id for number in witness.key_maps],
            "keys": list(witness.keys),
            "targets": list(witness.targets),
        }
        if witness.readings:
            values["readings"] = [list(reading) for reading in witness.readings]
        return values


def _core(part: Part) -> tuple[tuple[int, int], int, int]:
    """Return the position of a part without its fixed characters, and the numbers of those before and after it."""
    items = part.node.items if isinstance(part.node, Seq) else (part.node,)
    fixed = [isinstance(item, Chars) and item.chars[0][0] == item.chars[-1][1] for item in items]
    if part.name is not None or all(fixed):
        return part.at, 0, 0
    before, after = fixed.index(False), fixed[::-1].index(False)
    return (items[before].at[0], items[len(items) - 1 - after].at[1]), before, after


def _pair(witness: Witness) -> str:
    return f"{witness.keys[0]}\n{witness.keys[1]}\nboth become {witness.targets[0]}"


TargetKey = tuple["str | Made", ...]
"""A target key: text, and the indices that `unstack` makes."""


def _split_target(target: str, made: Sequence[Made]) -> TargetKey:
    """Split a target at each `{e}`, the placeholder for an index that the rule makes."""
    found: list[str | Made] = []
    for each in made:
        before, _, target = target.partition(f"{{{each.name}}}")
        found += [before, each]
    return (*found, target)


def _can_meet(one: TargetKey, other: TargetKey) -> bool:
    """Return whether two targets can be equal for some index of each: search the product of their automata.

    It ends because each pair of positions is visited once.
    """
    left, right = (_machine(each) for each in (one, other))
    if left.nullable and right.nullable:
        return True
    pending = [(a, b) for a in left.first for b in right.first]
    seen = set(pending)
    while pending:
        a, b = pending.pop()
        if not any(low <= top and bottom <= high for low, high in left.chars[a] for bottom, top in right.chars[b]):
            continue
        if a in left.last and b in right.last:
            return True
        following = {(c, d) for c in left.follow[a] for d in right.follow[b]} - seen
        seen |= following
        pending += following
    return False


def _machine(target: TargetKey) -> Automaton:
    return build_automaton([Part(None, literal(each) if isinstance(each, str) else each.node) for each in target])


def _becomes(target: str, key_map: KeyMap) -> str:
    return "dropped" if key_map.items is None else target


def _describe_captures(key_map: KeyMap, reading: Sequence[str]) -> str:
    named = [
        f"{part.name} = {text!r}"
        for part, text in zip(key_map.pattern.parts, reading, strict=True)
        if part.name is not None
    ]
    return ", ".join(named)
