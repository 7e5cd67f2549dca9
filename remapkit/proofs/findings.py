"""The messages of a proof: each witness is replayed with the real matcher, then reported with the fixes that work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.patterns.pattern import Part
from remapkit.proofs.concrete import bind_captures, identify_target
from remapkit.proofs.edit_rules import core_of
from remapkit.proofs.finding_base import CLOSE_HELP, OPEN_TITLE, SHOWN, FindingBase
from remapkit.proofs.keymap import KeyMap
from remapkit.proofs.replay import TargetKey, can_meet, is_reading, make_target
from remapkit.proofs.witness import Fault, Witness
from remapkit.rules.model import AMBIGUITY_HELP, Rule

MAX_TOLD = 50
"""The most findings that are shown; the rest is only counted."""


class FindingWriter(FindingBase):
    """Writes diagnostics for witnesses."""

    @cached_property
    def by_key_map(self) -> dict[tuple[str, str, int], Rule]:
        """The rule, `keep` or `drop` of each key map."""
        return {(rule.kind, rule.id, rule.branch): rule for rule in self.rules.everything}

    def write_findings(
        self,
        witnesses: Iterable[Witness],
        undecided: Iterable[tuple[Fault, tuple[int, ...]]],
        dead: Iterable[int],
        level: str,
        unasked: int = 0,
    ) -> tuple[tuple[Diagnostic, ...], tuple[Witness, ...]]:
        """Return the findings, and the witnesses that the real matcher confirms."""
        given = list(witnesses)
        shown = [each for each in given if self.is_replayed(each)]
        findings = [self.finding(group, level, is_complete=not unasked) for group in self.group(shown)]
        findings += [self.disagreement(each) for each in given if each not in shown]
        findings += self.undecided(undecided)
        findings += [self.dead(number) for number in dead]
        findings += self.describe_unread(dead)
        told = findings[:MAX_TOLD] + self._more(findings[MAX_TOLD:]) + self._unasked(unasked)
        if self.tester is not None:
            self.tester.expect_all(told)
        return tuple(self.try_fixes(told)), tuple(shown)

    def group(self, witnesses: Iterable[Witness]) -> list[list[Witness]]:
        """Group the witnesses of rules that match one key, and those of rules with one target."""
        groups: dict[object, list[Witness]] = {}
        for each in witnesses:
            kind: object = id(each)
            if each.fault == "ambiguous":
                owners = {self.key_maps[number].owner for number in each.key_maps}
                kind = each.fault, each.keys[0], len(owners) == 1 and owners.pop()
            elif len(each.key_maps) == 2 and each.fault in ("across", "within"):
                owner = self.key_maps[each.key_maps[0]].owner if each.fault == "within" else None
                kind = each.fault, each.targets[0], owner
            groups.setdefault(kind, []).append(each)
        return list(groups.values())

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
        if witness.fault == "ambiguous":
            return all(self.find_target(key_map, witness.keys[0]) is not None for key_map in key_maps)
        if witness.fault == "open":
            target = self.find_target(key_maps[0], witness.keys[0])
            return (
                target is not None and can_meet(target, (witness.keys[1],)) and not self.rules.match(witness.keys[1])
            )
        if witness.fault == "cut":
            key, key_map = witness.keys[0], key_maps[0]
            cuts = [each for each in witness.readings if is_reading(key_map.pattern, key, each)]
            ends = {identify_target(key_map, key, bind_captures(key_map, each)) for each in cuts}
            return len(cuts) == 2 and len(ends) == 2 and self.find_target(key_map, key) is not None
        left, right = self.find_target(key_maps[0], witness.keys[0]), self.find_target(key_maps[-1], witness.keys[1])
        return left is not None and right is not None and can_meet(left, right)

    def find_target(self, key_map: KeyMap, key: str) -> TargetKey | None:
        """Return the target of a key if the real matcher matches it with the rule of the key map, else None."""
        match = self.by_key_map[key_map.kind, key_map.rule_id, key_map.branch].match(key)
        return None if match is None else make_target(key_map, key, match.captures)

    def disagreement(self, witness: Witness) -> Diagnostic:
        ids = join_words(self.key_maps[number].rule_id for number in witness.key_maps)
        title = f"the proof and the matcher disagree about {ids}"
        note = "\n".join(map(repr, witness.keys))
        help = ("this is a bug in remapkit, not in the rules: please report it with these keys",)
        return Diagnostic("RK200", title, self.labels(witness.key_maps), help, (note,))

    # -------------------------------------------------------------------------------------------- findings

    def finding(self, group: Sequence[Witness], level: str, *, is_complete: bool) -> Diagnostic:
        """Return the message for one witness, or for several about one key or one target."""
        witness, proposer = group[0], self.proposer
        if witness.fault == "ambiguous":
            found = self.ambiguous(group)
        elif witness.fault == "across":
            found = self.across(group, is_complete=is_complete)
        elif witness.fault == "cut":
            found = self.cut(witness)
        elif witness.fault == "open":
            found = self.open(witness)
        elif len(witness.key_maps) == 2:
            found = self.outputs(group)
        else:
            return self.within(witness, level)
        if len(group) > 1:
            return found
        return self.offer_fixes(found, proposer.find_places(witness), proposer.list_fixes(witness))

    # -------------------------------------------------------------------------------------------- two patterns

    def ambiguous(self, group: Sequence[Witness]) -> Diagnostic:
        """Report rules that match one key, or sources of one rule."""
        witness, key = group[0], group[0].keys[0]
        one, other = (self.key_maps[number] for number in witness.key_maps)
        numbers = self.list_matching(group)
        notes = ["this is the shortest such key"]
        if one.owner == other.owner:
            count = "two" if len(numbers) == 2 else str(len(numbers))
            title = f"{count} sources of {one.rule_id} match {key!r}; a key may match only one of them"
        elif len(numbers) > 2:
            title = f"{len(numbers)} rules match {key!r}; a key may match only one rule"
        else:
            title = f"{one.rule_id} and {other.rule_id} both match {key!r}; a key may match only one rule"
        labels = tuple(
            Label(
                self.key_maps[number].pattern.text.span,
                f"{self.key_maps[number].rule_id} -> {self.describe_target(number, key)}",
                primary=place > 0,
            )
            for place, number in enumerate(numbers[:SHOWN])
        )
        if len(numbers) > SHOWN:
            rest = [self.key_maps[number].rule_id for number in numbers[SHOWN:]]
            notes.append(f"the others are {join_words(rest, SHOWN)}")
        for each in group[:SHOWN]:
            left, right = (self.key_maps[number] for number in each.key_maps)
            for number in each.covered:
                covered, by = (left, right) if number == each.key_maps[0] else (right, left)
                notes.append(f"{by.rule_id} matches every key that {covered.rule_id} matches")
        values = {**self.values_of(group), "rules": [self.key_maps[number].rule_id for number in numbers]}
        return Diagnostic("RK201", title, labels, (AMBIGUITY_HELP,), tuple(notes), values=values)

    def list_matching(self, group: Sequence[Witness]) -> list[int]:
        """Return one key map for each rule (or source of a rule) that matches the key of some witnesses."""
        if group[0].matching:
            return list(group[0].matching)
        first = [self.key_maps[number] for number in group[0].key_maps]
        numbers = list(dict.fromkeys(number for each in group for number in each.key_maps))
        if len(group) == 1:
            return numbers
        seen = {self.key_maps[number].source for number in numbers}
        for number, key_map in enumerate(self.key_maps):
            inside = first[0].owner != first[1].owner or key_map.owner == first[0].owner
            if inside and key_map.source not in seen and key_map.reader(group[0].keys[0]) is not None:
                seen.add(key_map.source)
                numbers.append(number)
        return sorted(numbers)

    def describe_target(self, number: int, key: str) -> str:
        key_map = self.key_maps[number]
        captures = key_map.reader(key)
        return "dropped" if key_map.items is None or captures is None else str(key_map.target(key, captures))

    def across(self, group: Sequence[Witness], *, is_complete: bool) -> Diagnostic:
        """Report rules whose keys have one target."""
        witness = group[0]
        one, other = (self.key_maps[number] for number in witness.key_maps)
        ids = list(dict.fromkeys(self.key_maps[number].rule_id for each in group for number in each.key_maps))
        title = f"a key of {one.rule_id} and a key of {other.rule_id} map to one target, {witness.targets[0]}"
        if len(ids) > 2:
            count = f"{len(ids)}" if is_complete else f"at least {len(ids)}"
            title = f"keys of {count} rules map to one target, {witness.targets[0]}"
        help = (
            "change one of the targets, or narrow the pattern that matches more than intended",
            "if such keys never occur, declare those that can: `source: {domain: [...]}`",
        )
        values = {**self.values_of(group), "rules": ids}
        return Diagnostic("RK203", title, self.label_targets(group), help, self.list_pairs(group), values=values)

    def outputs(self, group: Sequence[Witness]) -> Diagnostic:
        """Report outputs of one rule with the same target."""
        witness = group[0]
        rule_id = self.key_maps[witness.key_maps[0]].rule_id
        count = len({number for each in group for number in each.key_maps})
        title = f"{'two' if count == 2 else count} outputs of {rule_id} have one target, {witness.targets[0]}"
        help = ("give each output its own target",)
        labels, notes = self.label_targets(group), self.list_pairs(group)
        return Diagnostic("RK202", title, labels, help, notes, values=self.values_of(group))

    def list_pairs(self, group: Sequence[Witness]) -> tuple[str, ...]:
        """Return notes with the first few pairs of keys of a group."""
        keys = list(dict.fromkeys(key for each in group for key in each.keys))
        if len(group) == 1:
            return (_describe_pair(group[0]),)
        shown = [*keys[:SHOWN], *([f"and {len(keys) - SHOWN} more"] if len(keys) > SHOWN else [])]
        return ("\n".join([*shown, f"all become {group[0].targets[0]}"]),)

    def label_targets(self, group: Sequence[Witness]) -> tuple[Label, ...]:
        """Return labels for the first few templates with the same target."""
        keys = {number: key for each in group for number, key in zip(each.key_maps, each.keys, strict=True)}
        return tuple(
            Label(
                self.key_maps[number].to or self.key_maps[number].span,
                f"{key} -> {group[0].targets[0]}",
                primary=place > 0,
            )
            for place, (number, key) in enumerate(list(keys.items())[:SHOWN])
        )

    # -------------------------------------------------------------------------------------------- one pattern

    def within(self, witness: Witness, level: str) -> Diagnostic:
        """Report two keys of one rule with one target."""
        key_map = self.key_maps[witness.key_maps[0]]
        notes, always = [_describe_pair(witness)], list[str]()
        labels = self.labels(witness.key_maps)
        if witness.lost is not None:
            part = key_map.pattern.parts[witness.lost]
            span = key_map.pattern.text.at(*core_of(part)[0])
            known, always = self.proposer.describe_known_values(key_map, witness.lost)
            notes += known
            title, mark, help = self.describe_loss(key_map, part, span)
            labels = (
                Label(span, mark),
                *((Label(key_map.to, "not used here", primary=False),) if key_map.to and "lost" in mark else ()),
            )
        elif witness.admitted:
            title = f"two keys map to one target: a lossy table of {key_map.rule_id} maps two entries to one value"
            help = "give each entry its own value, or declare the keys that can occur with `source.domain`"
        else:
            title = f"two keys map to one target: the target of {key_map.rule_id} can be split in two ways"
            help = "separate the captures in the target by a dot, or by other text that none of them can contain"
        severity = Severity.WARNING if witness.admitted else Severity.ERROR
        if witness.admitted:
            notes.append(f"the rule file declares that this is intended: no error, but at most '{level}'")
        values_ = {**self.values(witness), "target": witness.targets[0]}
        helps = tuple(always) or (help,)
        found = Diagnostic("RK202", title, labels, helps, tuple(notes), severity, values=values_)
        fixes = self.proposer.list_fixes(witness)
        return self.offer_fixes(found, self.proposer.find_places(witness), fixes, always)

    def describe_loss(self, key_map: KeyMap, part: Part, span: Span) -> tuple[str, str, str]:
        """Return the title, the comment of a label, and general advice about a part that the target omits."""
        begin = "two keys map to one target: "
        if part.name is None:
            help = "capture it and use it in `to:`, or replace it with the literal text"
            return f"{begin}{key_map.rule_id} does not use what {span.text} matched", "lost here", help
        if part.name in key_map.folded:
            help = f"allow only one spelling of each index {part.name!r}"
            title = f"{begin}{key_map.rule_id} can spell one index {part.name!r} in two ways"
            return title, "1 and 01 are the same index", help
        help = f"use {{{part.name}}} in `to:`, or replace it with its only value"
        return f"{begin}{key_map.rule_id} does not use the capture {part.name!r}", "lost here", help

    def cut(self, witness: Witness) -> Diagnostic:
        """Report a key whose target depends on how it is split into captures."""
        key_map = self.key_maps[witness.key_maps[0]]
        what = "targets" if len(set(witness.targets)) > 1 else f"indices {join_words(key_map.folded)}"
        title = f"{key_map.rule_id} can match {witness.keys[0]!r} in two ways, with different {what}"
        lines = [
            f"{_describe_captures(key_map, reading)} -> {target}"
            for reading, target in zip(witness.readings, witness.targets, strict=True)
        ]
        help = ("define where the first capture ends: with [^.]+ instead of .+, with a class, or with `where:`",)
        labels = (Label(key_map.pattern.text.span),)
        return Diagnostic("RK204", title, labels, help, ("\n".join(lines),), values=self.values(witness))

    def open(self, witness: Witness) -> Diagnostic:
        """Report that an unmatched key may pass through onto a target."""
        key_map = self.key_maps[witness.key_maps[0]]
        note = (
            f"{witness.keys[0]}  (by {key_map.rule_id}) becomes {witness.keys[1]}\n"
            f"{witness.keys[1]}  would pass through unchanged, and collide\n"
            "every plan still checks the keys of its checkpoint"
        )
        span = self.rules.file.unmatched_span
        labels = (Label(span),) if span is not None else ()
        values = self.values(witness)
        return Diagnostic("RK206", OPEN_TITLE, labels, (CLOSE_HELP,), (note,), Severity.NOTE, values=values)


def _describe_pair(witness: Witness) -> str:
    return f"{witness.keys[0]}\n{witness.keys[1]}\nboth become {witness.targets[0]}"


def _describe_captures(key_map: KeyMap, reading: Sequence[str]) -> str:
    named = [
        f"{part.name} = {text!r}"
        for part, text in zip(key_map.pattern.parts, reading, strict=True)
        if part.name is not None
    ]
    return ", ".join(named)
