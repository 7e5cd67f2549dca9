"""The messages of a proof: each witness is replayed with the real matcher, then reported with the fixes that work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.patterns.pattern import Part
from remapkit.patterns.template import MapItem
from remapkit.proofs import concrete
from remapkit.proofs.edit_rules import find_core
from remapkit.proofs.finding_base import SHOWN, FindingBase, count_rest, mark
from remapkit.proofs.fixes import Fix
from remapkit.proofs.keymap import KeyMap
from remapkit.proofs.witness import Fault, Witness
from remapkit.rules.model import AMBIGUITY_HELP, Rule

MAX_TOLD = 50
"""The most findings that are shown; the rest is only counted."""


class FindingWriter(FindingBase):
    """Writes diagnostics for witnesses."""

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
        findings += self.unread(dead)
        told, rest = findings[:MAX_TOLD], findings[MAX_TOLD:]
        if rest:
            is_error = any(each.severity is Severity.ERROR for each in rest)
            severity = Severity.ERROR if is_error else Severity.WARNING
            told.append(_count_others(f"{len(rest)} more findings of the proof", severity))
        if unasked:
            pairs = count_noun(unasked, "pair")
            told.append(_count_others(f"{pairs} of rules not examined, because there are too many faults already"))
        if self.tester is not None:
            self.tester.expect_all(told)
        return tuple(self.try_fixes(told)), tuple(shown)

    def group(self, witnesses: Iterable[Witness]) -> list[list[Witness]]:
        """Group the witnesses of rules that match one key, and those of rules with one target."""
        groups: dict[object, list[Witness]] = {}
        for each in witnesses:
            owners = {self.key_maps[number].owner for number in each.key_maps}
            owner = owners.pop() if len(owners) == 1 else None
            kind: object = id(each)
            if each.fault == "ambiguous":
                kind = each.fault, each.keys[0], owner
            elif len(each.key_maps) == 2:
                kind = each.fault, each.targets[0], owner, each.admitted
            groups.setdefault(kind, []).append(each)
        return list(groups.values())

    # -------------------------------------------------------------------------------------------- replaying

    @cached_property
    def by_key_map(self) -> dict[tuple[str, str, int], Rule]:
        """The rule, `keep` or `drop` of each key map."""
        return {(rule.kind, rule.id, rule.branch): rule for rule in self.rules.everything}

    def is_replayed(self, witness: Witness) -> bool:
        """Return whether the rules treat the keys as the witness claims."""
        first, last = (self.key_maps[witness.key_maps[place]] for place in (0, -1))
        key, other_key = witness.keys[0], witness.keys[-1]
        target = self.find_target(first, key)
        if target is None:
            return False
        if witness.fault == "open":
            return concrete.can_meet(target, (other_key,)) and not self.rules.match(other_key)
        if witness.fault == "cut":
            cuts = [each for each in witness.readings if concrete.is_reading(first.pattern, key, each)]
            ends = {concrete.identify_target(first, key, concrete.bind_captures(first, each)) for each in cuts}
            return len(cuts) == 2 and len(ends) == 2
        other = self.find_target(last, other_key)
        return other is not None and (witness.fault == "ambiguous" or concrete.can_meet(target, other))

    def find_target(self, key_map: KeyMap, key: str) -> concrete.TargetKey | None:
        """Return the target of a key if the real matcher matches it with the rule of the key map, else None."""
        match = self.by_key_map[key_map.source].match(key)
        return None if match is None else concrete.make_target(key_map, key, match.captures)

    def disagreement(self, witness: Witness) -> Diagnostic:
        ids = join_words(self.name_rules(witness.key_maps))
        title = f"the proof and the matcher disagree about {ids}"
        note = "\n".join(map(repr, witness.keys))
        help = ("this is a bug in remapkit, not in the rules: please report it with these keys",)
        return Diagnostic("RK200", title, self.labels(witness.key_maps), help, (note,))

    # -------------------------------------------------------------------------------------------- findings

    def finding(self, group: Sequence[Witness], level: str, *, is_complete: bool) -> Diagnostic:
        """Return the message for one witness, or for several about one key or one target."""
        witness = group[0]
        if witness.fault == "ambiguous":
            return self.ambiguous(group)
        if witness.fault == "cut":
            return self.cut(witness)
        if witness.fault == "open":
            return self.open(witness)
        if len(witness.key_maps) == 2:
            return self.one_target(group, level, is_complete=is_complete)
        return self.within(witness, level)

    def offer(
        self, found: Diagnostic, group: Sequence[Witness], fixes: Iterable[Fix], always: Sequence[str] = ()
    ) -> Diagnostic:
        """Note candidates for fixes of a finding about one witness: none help against a group."""
        if len(group) > 1:
            return found
        places = [self.proposer.find_entry(self.key_maps[number]) for number in group[0].key_maps]
        return self.offer_fixes(found, places, fixes, always)

    # -------------------------------------------------------------------------------------------- two patterns

    def ambiguous(self, group: Sequence[Witness]) -> Diagnostic:
        """Report rules that match one key, or sources of one rule."""
        key, numbers = group[0].keys[0], self.list_matching(group)
        one, other = (self.key_maps[number] for number in group[0].key_maps)
        ids = [self.key_maps[number].rule_id for number in numbers]
        if one.owner == other.owner:
            count = "two" if len(numbers) == 2 else str(len(numbers))
            title = f"{count} sources of {one.rule_id} match {key!r}; a key may match only one of them"
        else:
            subject = f"{len(numbers)} rules" if len(numbers) > 2 else f"{one.rule_id} and {other.rule_id} both"
            title = f"{subject} match {key!r}; a key may match only one rule"
        labels = mark(
            (self.key_maps[number].pattern.text.span, f"{rule_id} -> {self.describe_target(number, key)}")
            for number, rule_id in list(zip(numbers, ids, strict=True))[:SHOWN]
        )
        notes = ["this is the shortest such key"]
        if len(numbers) > SHOWN:
            notes.append(f"the others are {join_words(ids[SHOWN:], SHOWN)}")
        for each in group[:SHOWN]:
            for covered, by in self.list_covered(each):
                notes.append(f"{by.rule_id} matches every key that {covered.rule_id} matches")
        values = {**self.values(group), "rules": ids}
        found = Diagnostic("RK201", title, labels, (AMBIGUITY_HELP,), tuple(notes), values=values)
        fixes = self.proposer.fix_ambiguous(group[0], one, other, self.list_covered(group[0]))
        return self.offer(found, group, fixes)

    def list_covered(self, witness: Witness) -> list[tuple[KeyMap, KeyMap]]:
        """Return the key maps of an ambiguity whose keys the other one matches too, each with that one."""
        one, other = (self.key_maps[number] for number in witness.key_maps)
        return [(one, other) if number == witness.key_maps[0] else (other, one) for number in witness.covered]

    def describe_target(self, number: int, key: str) -> str:
        target = concrete.read_target(self.key_maps[number], key)
        return "dropped" if target is None else target

    def list_matching(self, group: Sequence[Witness]) -> list[int]:
        """Return one key map for each rule (or source of a rule) that matches the key of some witnesses."""
        if group[0].matching:
            return list(group[0].matching)
        numbers = list(dict.fromkeys(number for each in group for number in each.key_maps))
        if len(group) == 1:
            return numbers
        one, other = (self.key_maps[number] for number in group[0].key_maps)
        seen = {self.key_maps[number].source for number in numbers}
        for number, key_map in enumerate(self.key_maps):
            inside = one.owner != other.owner or key_map.owner == one.owner
            if inside and key_map.source not in seen and key_map.reader(group[0].keys[0]) is not None:
                seen.add(key_map.source)
                numbers.append(number)
        return sorted(numbers)

    def one_target(self, group: Sequence[Witness], level: str, *, is_complete: bool) -> Diagnostic:
        """Report rules whose keys have one target, or outputs of one rule."""
        one, other = (self.key_maps[number] for number in group[0].key_maps)
        target, values, notes = group[0].targets[0], self.values(group), self.list_keys(group)
        keys = {number: key for each in group for number, key in zip(each.key_maps, each.keys, strict=True)}
        shown = [(self.key_maps[number], key) for number, key in list(keys.items())[:SHOWN]]
        labels = mark((key_map.to or key_map.span, f"{key} -> {target}") for key_map, key in shown)
        if one.owner == other.owner:
            title = f"{'two' if len(keys) == 2 else len(keys)} outputs of {one.rule_id} have one target, {target}"
            help: tuple[str, ...] = ("give each output its own target",)
            severity = Severity.ERROR
            if group[0].admitted:
                notes, severity = (*notes, describe_admission(level)), Severity.WARNING
            found = Diagnostic("RK202", title, labels, help, notes, severity, values=values)
            return self.offer(found, group, self.proposer.fix_outputs(other))
        values["rules"] = ids = self.name_rules(keys)
        subject = f"a key of {one.rule_id} and a key of {other.rule_id}"
        if len(ids) > 2:
            subject = f"keys of {'' if is_complete else 'at least '}{len(ids)} rules"
        help = (
            "change one of the targets, or narrow the pattern that matches more than intended",
            "if such keys never occur, declare those that can: `source: {domain: [...]}`",
        )
        title = f"{subject} map to one target, {target}"
        found = Diagnostic("RK203", title, labels, help, notes, values=values)
        return self.offer(found, group, self.proposer.fix_across(group[0], one, other))

    def list_keys(self, group: Sequence[Witness]) -> tuple[str, ...]:
        """Return a note with the keys of a witness, or the first few keys of several, and their target."""
        keys = dict.fromkeys(key for each in group for key in each.keys)
        if len(keys) == 1:  # two outputs of one rule
            return (f"{group[0].keys[0]} becomes {group[0].targets[0]} twice",)
        end = f"{'all' if len(group) > 1 else 'both'} become {group[0].targets[0]}"
        return ("\n".join([*count_rest(list(keys)), end]),)

    # -------------------------------------------------------------------------------------------- one pattern

    def within(self, witness: Witness, level: str) -> Diagnostic:
        """Report two keys of one rule with one target."""
        key_map = self.key_maps[witness.key_maps[0]]
        notes, always, labels = list(self.list_keys([witness])), list[str](), self.labels(witness.key_maps)
        if (item := concrete.find_lossy_arithmetic(key_map, witness.keys)) is not None:
            fact, help, labels = self.describe_arithmetic(key_map, item, witness)
            fixes = self.proposer.fix_numbers(key_map)
        elif witness.lost is not None:
            fact, help, labels = self.describe_loss(key_map, key_map.pattern.parts[witness.lost])
            known, always = self.proposer.describe_known_values(key_map, witness.lost)
            notes += known
            fixes = self.proposer.fix_lost(key_map, witness.lost)
        elif witness.admitted:
            fact = f"a lossy table of {key_map.rule_id} maps two entries to one value"
            help = "give each entry its own value, or declare the keys that can occur with `source.domain`"
            fixes = self.proposer.drop_lossy_words(key_map, witness)
        else:
            fact = f"the target of {key_map.rule_id} can be split in two ways"
            help = "separate the captures in the target by a dot, or by other text that none of them can contain"
            fixes = self.proposer.fix_split(key_map)
        if witness.admitted:
            notes.append(describe_admission(level))
        title, helps = f"two keys map to one target: {fact}", tuple(always) or (help,)
        severity = Severity.WARNING if witness.admitted else Severity.ERROR
        values = {**self.values([witness]), "target": witness.targets[0]}
        found = Diagnostic("RK202", title, labels, helps, tuple(notes), severity, values=values)
        return self.offer(found, [witness], fixes, always)

    def describe_arithmetic(
        self, key_map: KeyMap, item: MapItem, witness: Witness
    ) -> tuple[str, str, tuple[Label, ...]]:
        """Return a fact, general advice, and labels about arithmetic that gives two keys one number."""
        readings = [key_map.reader(key) or {} for key in witness.keys]
        number = item.mapping[tuple(readings[0][name] for name in item.names)]
        cases = (", ".join(f"{name} = {each[name]}" for name in item.names) for each in readings)
        fact = f"{item.written} of {key_map.rule_id} is {number} for {join_words(cases, conjunction='and for')}"
        names = join_words(item.names)
        help = f"use what it leaves out in another field, or restrict {names} to values that give different numbers"
        to = key_map.to
        assert to is not None
        at = to.source.text.find(item.written, to.start, to.end)
        label = Label(Span(to.source, at, at + len(item.written)) if at >= 0 else to, "lost here")
        captured = (key_map.pattern.capture(name) for name in item.names)
        labels = (Label(key_map.pattern.text.at(*part.at), primary=False) for part in captured if part is not None)
        return fact, help, (label, *labels)

    def describe_loss(self, key_map: KeyMap, part: Part) -> tuple[str, str, tuple[Label, ...]]:
        """Return a fact, general advice, and labels about a part that the target omits."""
        span = key_map.pattern.text.at(*find_core(part)[0])
        if part.name is not None and part.name in key_map.folded:
            fact = f"{key_map.rule_id} can spell one index {part.name!r} in two ways"
            help = f"allow only one spelling of each index {part.name!r}"
            return fact, help, (Label(span, "1 and 01 are the same index"),)
        if part.name is not None:
            unused = f"the capture {part.name!r}"
            help = f"use {{{part.name}}} in `to:`, or replace it with its only value"
        else:
            unused = f"what {span.text} matched"
            help = "capture it and use it in `to:`, or replace it with the literal text"
        targets = [Label(key_map.to, "not used here", primary=False)] if key_map.to is not None else []
        return f"{key_map.rule_id} does not use {unused}", help, (Label(span, "lost here"), *targets)

    def cut(self, witness: Witness) -> Diagnostic:
        """Report a key whose target depends on how it is split into captures."""
        key_map = self.key_maps[witness.key_maps[0]]
        what = "targets" if len(set(witness.targets)) > 1 else f"indices {join_words(key_map.folded)}"
        title = f"{key_map.rule_id} can match {witness.keys[0]!r} in two ways, with different {what}"
        lines = []
        for reading, target in zip(witness.readings, witness.targets, strict=True):
            captures = concrete.bind_captures(key_map, reading)
            lines.append(f"{', '.join(f'{name} = {text!r}' for name, text in captures.items())} -> {target}")
        help = ("define where the first capture ends: with [^.]+ instead of .+, with a class, or with `where:`",)
        labels = self.labels(witness.key_maps)
        found = Diagnostic("RK204", title, labels, help, ("\n".join(lines),), values=self.values([witness]))
        return self.offer(found, [witness], self.proposer.fix_cut(key_map, witness))

    def open(self, witness: Witness) -> Diagnostic:
        """Report that an unmatched key may pass through onto a target."""
        rule_id, (key, target) = self.key_maps[witness.key_maps[0]].rule_id, witness.keys
        fact = f"{key}  (by {rule_id}) becomes {target}\n{target}  would pass through unchanged, and collide"
        found = self.describe_open(fact, (), self.values([witness]))
        return self.offer(found, [witness], self.proposer.close())


def _count_others(title: str, severity: Severity = Severity.ERROR) -> Diagnostic:
    return Diagnostic("RK209", title, help=("fix those above first",), severity=severity)


def describe_admission(level: str) -> str:
    """Return a note about what `forget` or a lossy table admits, with the level that can be reached nonetheless."""
    return f"the rule file declares that this is intended: no error, but at most '{level}'"
