"""What all messages of a proof share: labels, values, fixes; and those about undecided questions and unused rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.wording import join_words
from remapkit.proofs.fixes import Decide, Edit, Fix, FixTester, Place
from remapkit.proofs.keymap import KeyMap
from remapkit.proofs.propose import Proposer
from remapkit.proofs.witness import Fault, Witness
from remapkit.rules.model import CompiledRules

OPEN_TITLE = "unmatched keys pass through, so the proof does not cover all keys"
CLOSE_HELP = "name these keys under `keep:` and remove `unmatched`, or declare `source: {domain: [...]}`"
SHOWN = 3
"""The most rules and keys that a finding about several shows; the rest is counted."""
_ASKED: dict[Fault, tuple[str, str]] = {
    "ambiguous": (
        "whether {} can match one key",
        "begin their patterns with different text, or use narrower ones: [^.]+ instead of .*",
    ),
    "cut": (
        "whether the target depends on how {} splits a key into captures",
        "define where each capture ends: [^.]+ or \\d+ instead of .*; or keep the captures in their order in `to:`",
    ),
    "within": (
        "whether two keys of {} can map to one target",
        "keep the captures in their order in `to:` with dots between them, or bound them with `where:`",
    ),
    "across": (
        "whether keys of {} can map to one target",
        "begin their targets with different text, or bound the captures that they use",
    ),
    "open": ("whether an unmatched key that passes through can be a target of {}", CLOSE_HELP),
}


class FindingBase:
    """Writes diagnostics; with `decide` they include fixes that were tried with it."""

    def __init__(
        self,
        rules: CompiledRules,
        key_maps: Sequence[KeyMap],
        keys: tuple[str, ...],
        budget: int = 0,
        decide: Decide | None = None,
    ) -> None:
        self.rules, self.key_maps, self.keys = rules, key_maps, keys
        self.tester = FixTester(rules, keys, budget, decide) if decide is not None else None
        self.proposer = Proposer(rules, key_maps, keys)
        self.offers: dict[int, tuple[Diagnostic, tuple[Place, ...], Iterable[Fix], tuple[str, ...]]] = {}

    def offer_fixes(
        self, finding: Diagnostic, places: Sequence[Place], fixes: Iterable[Fix], always: Sequence[str] = ()
    ) -> Diagnostic:
        """Note candidates for fixes of a finding, for `try_fixes`; `always` is advice that is kept beside them."""
        self.offers[id(finding)] = finding, tuple(places), fixes, tuple(always)
        return finding

    def try_fixes(self, findings: Sequence[Diagnostic]) -> list[Diagnostic]:
        """Replace the general advice of findings with the fixes that work, where there are any."""
        return [self.try_fix(each) if id(each) in self.offers else each for each in findings]

    def try_fix(self, finding: Diagnostic) -> Diagnostic:
        _, places, fixes, always = self.offers[id(finding)]
        chosen = self.tester.choose(finding, places, fixes) if self.tester is not None else []
        if not chosen:
            return finding
        values = {**finding.values, "fixes": [fix.to_plain() for fix in chosen]}
        return replace(finding, help=(*(fix.words for fix in chosen), *always), values=values)

    def labels(self, numbers: Sequence[int]) -> tuple[Label, ...]:
        several = len(numbers) > 1
        return tuple(
            Label(
                self.key_maps[number].pattern.text.span,
                self.key_maps[number].rule_id if several else "",
                primary=place > 0 or not several,
            )
            for place, number in enumerate(numbers)
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

    def values_of(self, group: Sequence[Witness]) -> dict[str, object]:
        """Return the values of the first witness, and the keys of all if there are several."""
        others = {"witnesses": [list(each.keys) for each in group]} if len(group) > 1 else {}
        return {**self.values(group[0]), **others}

    # -------------------------------------------------------------------------------------------- undecided, unused

    def undecided(self, questions: Iterable[tuple[Fault, tuple[int, ...]]]) -> list[Diagnostic]:
        """Report the questions that took too long; more than a few of one kind are one finding."""
        by_fault: dict[Fault, list[tuple[int, ...]]] = {}
        for fault, numbers in questions:
            by_fault.setdefault(fault, []).append(numbers)
        return [
            self.describe_undecided(fault, group)
            for fault, asked in by_fault.items()
            for group in ([asked] if len(asked) > SHOWN else [[each] for each in asked])
        ]

    def describe_undecided(self, fault: Fault, asked: Sequence[tuple[int, ...]]) -> Diagnostic:
        stage, help = _ASKED[fault]
        numbers = list(dict.fromkeys(number for each in asked for number in each))
        ids = list(dict.fromkeys(self.key_maps[number].rule_id for number in numbers))
        words = join_words(ids, SHOWN) or "any two rules"
        title = f"undecided: {stage.format(words)}"
        if len(asked) > 1:
            title = f"undecided for {len(asked)} questions: {stage.format(words)}"
        note = (
            "neither a proof nor a counterexample was found within the budget of steps; a plan still checks its keys"
        )
        values = {"rules": words if len(asked) == 1 else ids, "asked": fault}
        labels = self.labels(numbers[:SHOWN])
        return Diagnostic(
            "RK200", title, labels, (help, "or continue with --allow-undecided"), (note,), values=values
        )

    def dead(self, number: int) -> Diagnostic:
        key_map = self.key_maps[number]
        several = any(each.owner == key_map.owner and each.source != key_map.source for each in self.key_maps)
        title = f"{'a source of ' * several}{key_map.rule_id} cannot match any key of the declared domain"
        return self.describe_unused(key_map, title, "remove it, or widen `source.domain`")

    def describe_unused(self, key_map: KeyMap, title: str, help: str) -> Diagnostic:
        labels = (Label(key_map.pattern.text.span),)
        values = {"rule": key_map.rule_id}
        found = Diagnostic("RK205", title, labels, (help,), (), Severity.WARNING, values=values)
        place = self.proposer.find_entry(key_map)
        fix = Fix(help.replace("it", key_map.rule_id, 1), (Edit(place),), is_certain=True)
        return self.offer_fixes(found, (place,), (fix,))

    def describe_unread(self, dead: Iterable[int]) -> list[Diagnostic]:
        """Return warnings for rules that match no key of the declared source."""
        if not self.keys:
            return []
        used = {match.rule.id for key in self.keys for match in self.rules.match(key)}
        unread = {
            key_map.rule_id: key_map
            for number, key_map in enumerate(self.key_maps)
            if key_map.has_source and key_map.rule_id not in used and number not in dead
        }
        help = "remove it, or run `remapkit explain` to see where it stops matching"
        return [
            self.describe_unused(
                each, f"{each.rule_id} matches none of the {len(self.keys)} keys of the declared source", help
            )
            for each in unread.values()
        ]
