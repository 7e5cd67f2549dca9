"""The messages of a proof about the targets of `add:`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.wording import join_words
from remapkit.proofs.concrete import has_target
from remapkit.proofs.edit_rules import write_words
from remapkit.proofs.finding_base import CLOSE_HELP, OPEN_TITLE, SHOWN, FindingBase
from remapkit.proofs.fixes import Edit, Fix
from remapkit.proofs.keymap import KeyMap, readings
from remapkit.proofs.witness import Witness
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.rules.pipeline import AddedTargets


@dataclass(frozen=True, slots=True)
class AddedClash:
    """A target of an entry of `add` that a key of a rule has as well; `key` is None if that is undecided."""

    added: AddedTargets
    target: str
    key_map: KeyMap
    key: str | None


class AddedFindingWriter(FindingBase):
    """Writes diagnostics about `add:`."""

    def write_added(
        self, witnesses: Iterable[Witness], undecided: Iterable[tuple[int, ...]]
    ) -> tuple[list[Diagnostic], list[Witness]]:
        """Return the findings about entries of `add`, and the witnesses that the real matcher confirms."""
        shown = [each for each in witnesses if self.is_replayed(each)]
        entries = {entry.id: entry for entry in self.rules.add}
        repeats, clashes, passing = list[tuple[AddedTargets, AddedTargets, str]](), list[AddedClash](), []
        for each in shown:
            one, other = self.key_maps[each.key_maps[0]], self.key_maps[each.key_maps[-1]]
            if each.fault == "open":
                passing.append(self.report_passing(entries[one.rule_id], each.targets[0]))
            elif not one.has_source and not other.has_source:
                repeats.append((entries[one.rule_id], entries[other.rule_id], each.targets[0]))
            else:
                clashes.append(self.make_clash(one, other, each.targets[0], each.keys[0]))
        for numbers in undecided:
            if len(numbers) == 2:
                one, other = (self.key_maps[number] for number in numbers)
                if one.has_source or other.has_source:
                    added = other if one.has_source else one
                    clashes.append(self.make_clash(one, other, entries[added.rule_id].targets[0], None))
        return [*self.report_repeats(repeats), *self.report_clashes(clashes), *passing], shown

    def make_clash(self, one: KeyMap, other: KeyMap, target: str, key: str | None) -> AddedClash:
        rule, added = (one, other) if one.has_source else (other, one)
        entry = next(entry for entry in self.rules.add if entry.id == added.rule_id)
        return AddedClash(entry, target, rule, key)

    def is_replayed(self, witness: Witness) -> bool:
        """Return whether the rules treat the keys as the witness claims."""
        if witness.fault == "open":
            return not self.rules.match(witness.targets[0])
        rules = [self.key_maps[number] for number in witness.key_maps if self.key_maps[number].has_source]
        return all(
            has_target(key_map, key, target)
            for key_map, key, target in zip(rules, witness.keys, witness.targets, strict=False)
        )

    def report_repeats(self, repeats: Iterable[tuple[AddedTargets, AddedTargets, str]]) -> list[Diagnostic]:
        """Report entries of `add` that add the same target."""
        findings = []
        for one, other, target in repeats:
            labels: tuple[Label, ...] = (
                Label(one.span, "first here", primary=False),
                Label(other.span, "again here"),
            )
            title = f"{one.id} and {other.id} add the same target {target}"
            if one is other:
                labels, title = (Label(one.span),), f"{one.id} adds the target {target} twice"
            values = {"rules": [one.id, other.id], "target": target}
            found = Diagnostic("RK207", title, labels, ("add it once",), values=values)
            places = [("add", _number(each)) for each in dict.fromkeys((one, other))]
            findings.append(self.offer_fixes(found, places, self.leave_out(other, frozenset(one.targets))))
        return self.try_fixes(findings)

    def report_clashes(self, clashes: Sequence[AddedClash]) -> list[Diagnostic]:
        """Report targets of `add` that keys of rules map to as well, or may map to."""
        groups: dict[tuple[str, str, bool], list[AddedClash]] = {}
        for clash in clashes:
            groups.setdefault((clash.added.id, clash.target, clash.key is None), []).append(clash)
        findings = [
            self._report_undecided(group) if is_undecided else self._report_group(group)
            for (*_, is_undecided), group in groups.items()
        ]
        return self.try_fixes(findings)

    def _label_group(self, group: Sequence[AddedClash]) -> tuple[Label, ...]:
        target = group[0].target
        return (
            Label(group[0].added.span, f"adds {target}", primary=False),
            *(
                Label(each.key_map.to or each.key_map.span, f"{each.key or 'a key?'} -> {target}")
                for each in group[:SHOWN]
            ),
        )

    def _report_undecided(self, group: Sequence[AddedClash]) -> Diagnostic:
        added, target = group[0].added, group[0].target
        ids = [each.key_map.rule_id for each in group]
        title = (
            f"undecided: whether a key of {join_words(ids, SHOWN, 'or')} can map to {target}, which {added.id} adds"
        )
        help = ("bound the captures of the rule more tightly", "or continue with --allow-undecided")
        values = {"rules": [added.id, *ids], "target": target, "keys": [each.key for each in group]}
        return Diagnostic("RK200", title, self._label_group(group), help, values=values)

    def _report_group(self, group: Sequence[AddedClash]) -> Diagnostic:
        added, target = group[0].added, group[0].target
        ids = [each.key_map.rule_id for each in group]
        title = f"a key of {ids[0]} maps to {target}, which {added.id} adds"
        if len(group) > 1:
            title = f"keys of {len(group)} rules map to {target}, which {added.id} adds"
        lines = [f"{each.key}  (by {each.key_map.rule_id})" for each in group[:SHOWN]]
        if len(group) > SHOWN:
            lines.append(f"and {len(group) - SHOWN} more")
        help = ("bound the captures of the rule, or do not add a target that a source provides",)
        values = {"rules": [added.id, *ids], "target": target, "keys": [each.key for each in group]}
        labels, notes = self._label_group(group), ("\n".join(lines),)
        found = Diagnostic("RK207", title, labels, help, notes, values=values)
        places = [self.proposer.find_entry(each.key_map) for each in group]
        return self.offer_fixes(found, [("add", _number(added)), *places], self._part(group))

    def _part(self, group: Sequence[AddedClash]) -> Iterator[Fix]:
        """Yield edits after which a rule and an entry of `add` have no target in common."""
        added, key_map, key = group[0].added, group[0].key_map, group[0].key
        targets = frozenset(added.targets)
        yield from self.leave_out(added, {group[0].target, *_vary(key_map, key or "")})
        if len(group) == 1 and key is not None:
            yield from self.proposer.exclude(key_map, key, lambda other: _target(key_map, other) in targets)

    def leave_out(self, added: AddedTargets, targets: Collection[str]) -> Iterator[Fix]:
        """Yield edits after which an entry of `add` no longer adds some targets."""
        place = "add", _number(added)
        written = self.rules.file.add[place[1]]
        if all(target in targets for target in added.targets):
            yield Fix(f"remove {added.id}", (Edit(place),))
            return
        if len(written.each) != 1 or added.template is None:
            return
        name = written.each[0].capture.value
        values = self.proposer.get_value((*place, "each", name))
        words = [str(word) for word in values] if isinstance(values, list) else _list_numbers(values)
        left = [word for word in words if added.template.render({name: word}) not in targets]
        if left and len(left) < len(words):
            value = write_words(left)
            yield Fix(
                f"write `each: {emit_flow({name: value})}` in {added.id}", (Edit((*place, "each", name), value),)
            )

    def report_passing(self, entry: AddedTargets, target: str) -> Diagnostic:
        """Report that an unmatched key may pass through onto a target of `add`."""
        span = self.rules.file.unmatched_span
        labels = (*((Label(span),) if span is not None else ()), Label(entry.span, f"adds {target}", primary=False))
        note = (
            f"{target}  would pass through unchanged, and collide with the one that {entry.id} adds\n"
            "every plan still checks the keys of its checkpoint"
        )
        values = {"rules": [entry.id], "keys": [target], "targets": [target]}
        found = Diagnostic("RK206", OPEN_TITLE, labels, (CLOSE_HELP,), (note,), Severity.NOTE, values=values)
        return self.try_fix(self.offer_fixes(found, [("add", _number(entry))], self.proposer.close()))


def _number(added: AddedTargets) -> int:
    return int(added.id.removeprefix("add[").removesuffix("]"))


def _target(key_map: KeyMap, key: str) -> str | None:
    captures = key_map.reader(key)
    return None if captures is None else key_map.target(key, captures)


def _vary(key_map: KeyMap, key: str) -> Iterator[str]:
    """Yield the targets of the keys that differ from a key in one bounded capture."""
    for cut in readings(key_map.pattern, key, 1):
        for number, part in enumerate(key_map.pattern.parts):
            for word in part.values or ():
                target = _target(key_map, "".join((*cut[:number], word, *cut[number + 1 :])))
                if target is not None:
                    yield target


def _list_numbers(written: str) -> list[str]:
    low, dots, high = str(written).partition("..")
    return list(map(str, range(int(low), int(high) + 1))) if dots and low.isdigit() and high.isdigit() else []
