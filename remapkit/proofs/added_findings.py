"""The messages of a proof about the targets of `add:`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TypeAlias

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.wording import join_words
from remapkit.proofs.concrete import has_target, read_parts, read_target
from remapkit.proofs.edit_rules import write_words
from remapkit.proofs.finding_base import SHOWN, FindingBase, count_rest, mark
from remapkit.proofs.fixes import Edit, Fix, Place
from remapkit.proofs.keymap import KeyMap
from remapkit.proofs.witness import Witness
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.rules.pipeline import AddedTargets

Clash: TypeAlias = tuple[KeyMap, str | None]
"""A rule and its key that maps to a target of `add`; the key is None if it is undecided whether there is one."""


class AddedFindingWriter(FindingBase):
    """Writes diagnostics about `add:`."""

    @cached_property
    def entries(self) -> dict[str, AddedTargets]:
        """The entries of `add` by their ids."""
        return {entry.id: entry for entry in self.rules.add}

    def write_added(
        self, witnesses: Iterable[Witness], undecided: Iterable[tuple[int, ...]]
    ) -> tuple[list[Diagnostic], list[Witness]]:
        """Return the findings about entries of `add`, and the witnesses that the real matcher confirms."""
        shown = [each for each in witnesses if self.is_replayed(each)]
        passing, repeats = list[Diagnostic](), list[Diagnostic]()
        clashes: dict[tuple[str, str, bool], list[Clash]] = {}
        for each in shown:
            (added, *others), rules = self.divide(each.key_maps)
            target = each.targets[0]
            if each.fault == "open":
                passing.append(self.report_passing(added, target))
            elif rules:
                clashes.setdefault((added.id, target, False), []).append((rules[0], each.keys[0]))
            else:
                repeats.append(self.report_repeat(added, (others or [added])[0], target))
        for numbers in undecided:
            (added, *_), rules = self.divide(numbers)
            for rule in rules:
                clashes.setdefault((added.id, added.targets[0], True), []).append((rule, None))
        groups = [self.report_clash(self.entries[id], target, found) for (id, target, _), found in clashes.items()]
        passing = self.try_fixes(passing)
        return self.try_fixes([*repeats, *groups]) + passing, shown

    def divide(self, numbers: Iterable[int]) -> tuple[list[AddedTargets], list[KeyMap]]:
        """Divide key maps into entries of `add`, at least one, and rules."""
        key_maps = [self.key_maps[number] for number in numbers]
        added = [self.entries[each.rule_id] for each in key_maps if not each.has_source]
        return added, [each for each in key_maps if each.has_source]

    def find_place(self, added: AddedTargets) -> Place:
        return self.proposer.entries["add", added.id]

    def is_replayed(self, witness: Witness) -> bool:
        """Return whether the rules treat the keys as the witness claims."""
        if witness.fault == "open":
            return not self.rules.match(witness.targets[0])
        _, rules = self.divide(witness.key_maps)
        return all(map(has_target, rules, witness.keys, witness.targets))

    def report_repeat(self, one: AddedTargets, other: AddedTargets, target: str) -> Diagnostic:
        """Report entries of `add` that add the same target, or one that adds it twice."""
        title = f"{one.id} and {other.id} add the same target {target}"
        labels = mark([(one.span, "first here"), (other.span, "again here")])
        if one is other:
            title, labels = f"{one.id} adds the target {target} twice", (Label(one.span),)
        values = {"rules": [one.id, other.id], "target": target}
        found = Diagnostic("RK207", title, labels, ("add it once",), values=values)
        places = [self.find_place(each) for each in (one, other)]
        return self.offer_fixes(found, places, self.leave_out(other, frozenset(one.targets)))

    def report_clash(self, added: AddedTargets, target: str, clashes: Sequence[Clash]) -> Diagnostic:
        """Report that keys of rules map to a target of `add` as well, or may map to it."""
        ids, keys = [key_map.rule_id for key_map, _ in clashes], [key for _, key in clashes]
        others = [(each.to or each.span, f"{key or 'a key?'} -> {target}") for each, key in clashes[:SHOWN]]
        labels = mark([(added.span, f"adds {target}"), *others])
        values = {"rules": [added.id, *ids], "target": target, "keys": keys}
        if None in keys:
            rules = join_words(ids, SHOWN, "or")
            title = f"undecided: whether a key of {rules} can map to {target}, which {added.id} adds"
            help = ("bound the captures of the rule more tightly", "or continue with --allow-undecided")
            return Diagnostic("RK200", title, labels, help, values=values)
        subject = f"keys of {len(ids)} rules map" if len(ids) > 1 else f"a key of {ids[0]} maps"
        title = f"{subject} to {target}, which {added.id} adds"
        note = "\n".join(count_rest([f"{key}  (by {rule_id})" for rule_id, key in zip(ids, keys, strict=True)]))
        advice = ("bound the captures of the rule, or do not add a target that a source provides",)
        found = Diagnostic("RK207", title, labels, advice, (note,), values=values)
        places = [self.find_place(added), *(self.proposer.find_entry(key_map) for key_map, _ in clashes)]
        return self.offer_fixes(found, places, self.separate(added, target, clashes))

    def separate(self, added: AddedTargets, target: str, clashes: Sequence[Clash]) -> Iterator[Fix]:
        """Yield edits after which a rule and an entry of `add` have no target in common."""
        key_map, key = clashes[0]
        yield from self.leave_out(added, {target, *_vary(key_map, key or "")})
        if len(clashes) == 1 and key is not None:
            targets = frozenset(added.targets)
            yield from self.proposer.exclude(key_map, key, lambda other: read_target(key_map, other) in targets)

    def leave_out(self, added: AddedTargets, targets: Collection[str]) -> Iterator[Fix]:
        """Yield edits after which an entry of `add` no longer adds some targets."""
        place = self.find_place(added)
        if all(target in targets for target in added.targets):
            yield Fix(f"remove {added.id}", (Edit(place),))
            return
        each = self.proposer.get_value(place).get("each") or {}
        if len(each) != 1 or added.template is None:
            return
        ((name, values),) = each.items()
        words = [str(word) for word in values] if isinstance(values, list) else _list_numbers(values)
        left = [word for word in words if added.template.render({name: word}) not in targets]
        if left and len(left) < len(words):
            value = write_words(left)
            help = f"write `each: {emit_flow({name: value})}` in {added.id}"
            yield Fix(help, (Edit((*place, "each", name), value),))

    def report_passing(self, added: AddedTargets, target: str) -> Diagnostic:
        """Report that an unmatched key may pass through onto a target of `add`."""
        fact = f"{target}  would pass through unchanged, and collide with the one that {added.id} adds"
        values = {"rules": [added.id], "keys": [target], "targets": [target]}
        found = self.describe_open(fact, [Label(added.span, f"adds {target}", primary=False)], values)
        return self.offer_fixes(found, [self.find_place(added)], self.proposer.close())


def _vary(key_map: KeyMap, key: str) -> Iterator[str]:
    """Yield the targets of the keys that differ from a key in one bounded capture."""
    texts = read_parts(key_map, key) or ()
    for number, part in enumerate(key_map.pattern.parts[: len(texts)]):
        for word in part.values or ():
            target = read_target(key_map, "".join((*texts[:number], word, *texts[number + 1 :])))
            if target is not None:
                yield target


def _list_numbers(written: str) -> list[str]:
    low, dots, high = str(written).partition("..")
    return list(map(str, range(int(low), int(high) + 1))) if dots and low.isdigit() and high.isdigit() else []
