"""What all messages of a proof share: labels, values, fixes; and those about undecided questions and unused rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import join_words
from remapkit.proofs.fixes import Decide, Edit, Fix, FixTester, Place
from remapkit.proofs.keymap import KeyMap
from remapkit.proofs.propose import Proposer
from remapkit.proofs.witness import Fault, Witness
from remapkit.rules.model import CompiledRules

_CLOSE_HELP = "name these keys under `keep:` and remove `unmatched`, or declare `source: {domain: [...]}`"
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
    "open": ("whether an unmatched key that passes through can be a target of {}", _CLOSE_HELP),
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
        self.proposer = Proposer(rules, keys)
        self.offers: dict[int, tuple[Diagnostic, Sequence[Place], Iterable[Fix], Sequence[str]]] = {}

    def offer_fixes(
        self, finding: Diagnostic, places: Sequence[Place], fixes: Iterable[Fix], always: Sequence[str] = ()
    ) -> Diagnostic:
        """Note candidates for fixes of a finding, for `try_fixes`; `always` is advice that is kept beside them."""
        self.offers[id(finding)] = finding, places, fixes, always
        return finding

    def try_fixes(self, findings: Iterable[Diagnostic]) -> list[Diagnostic]:
        """Replace the general advice of findings with the fixes that work, where there are any."""
        return list(map(self._try_fixes_of, findings))

    def _try_fixes_of(self, finding: Diagnostic) -> Diagnostic:
        if self.tester is None or id(finding) not in self.offers:
            return finding
        _, places, fixes, always = self.offers[id(finding)]
        chosen = self.tester.choose(finding, places, fixes)
        if not chosen:
            return finding
        values = {**finding.values, "fixes": [fix.to_plain() for fix in chosen]}
        return replace(finding, help=(*(fix.words for fix in chosen), *always), values=values)

    def name_rules(self, numbers: Iterable[int]) -> list[str]:
        """Return the ids of the rules of key maps, each once."""
        return list(dict.fromkeys(self.key_maps[number].rule_id for number in numbers))

    def labels(self, numbers: Sequence[int]) -> tuple[Label, ...]:
        """Return labels for patterns, with the ids of their rules if they are several."""
        found = [(self.key_maps[number].pattern.text.span, self.key_maps[number].rule_id) for number in numbers]
        return mark(found) if len(found) > 1 else tuple(Label(span) for span, _ in found)

    def values(self, group: Sequence[Witness]) -> dict[str, object]:
        """Return the values of the first witness, and the keys of all if there are several."""
        witness = group[0]
        values: dict[str, object] = {
            "rules": [self.key_maps[number].rule_id for number in witness.key_maps],
            "keys": list(witness.keys),
            "targets": list(witness.targets),
        }
        if witness.readings:
            values["readings"] = [list(reading) for reading in witness.readings]
        if len(group) > 1:
            values["witnesses"] = [list(each.keys) for each in group]
        return values

    def describe_open(self, fact: str, labels: Sequence[Label], values: Mapping[str, object]) -> Diagnostic:
        """Report that an unmatched key may pass through onto a target."""
        span = self.rules.file.unmatched_span
        labels = (*([Label(span)] if span is not None else []), *labels)
        note = f"{fact}\nevery plan still checks the keys of its checkpoint"
        title = "unmatched keys pass through, so the proof does not cover all keys"
        return Diagnostic("RK206", title, labels, (_CLOSE_HELP,), (note,), Severity.NOTE, values=values)

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
        ids = self.name_rules(numbers)
        words = join_words(ids, SHOWN) or "any two rules"
        count = f" for {len(asked)} questions" if len(asked) > 1 else ""
        title = f"undecided{count}: {stage.format(words)}"
        note = (
            "neither a proof nor a counterexample was found within the budget of steps; a plan still checks its keys"
        )
        helps = (help, "or continue with --allow-undecided")
        values = {"rules": words if len(asked) == 1 else ids, "asked": fault}
        return Diagnostic("RK200", title, self.labels(numbers[:SHOWN]), helps, (note,), values=values)

    def dead(self, number: int) -> Diagnostic:
        """Report a rule, or one of its sources, that matches no key of the declared domain."""
        key_map = self.key_maps[number]
        several = any(each.owner == key_map.owner and each.source != key_map.source for each in self.key_maps)
        subject = f"{'a source of ' * several}{key_map.rule_id}"
        return self.describe_unused(
            key_map, f"{subject} cannot match any key of the declared domain", "widen `source.domain`"
        )

    def unread(self, dead: Iterable[int]) -> list[Diagnostic]:
        """Report rules that match no key of the declared source."""
        if not self.keys:
            return []
        used = {match.rule.id for key in self.keys for match in self.rules.match(key)}
        found = {
            key_map.rule_id: key_map
            for number, key_map in enumerate(self.key_maps)
            if key_map.has_source and key_map.rule_id not in used and number not in dead
        }
        fact = f"matches none of the {len(self.keys)} keys of the declared source"
        help = "run `remapkit explain` to see where it stops matching"
        return [self.describe_unused(key_map, f"{rule_id} {fact}", help) for rule_id, key_map in found.items()]

    def describe_unused(self, key_map: KeyMap, title: str, otherwise: str) -> Diagnostic:
        labels, place = (Label(key_map.pattern.text.span),), self.proposer.find_entry(key_map)
        help, values = (f"remove it, or {otherwise}",), {"rule": key_map.rule_id}
        found = Diagnostic("RK205", title, labels, help, severity=Severity.WARNING, values=values)
        fix = Fix(f"remove {key_map.rule_id}, or {otherwise}", (Edit(place),), is_certain=True)
        return self.offer_fixes(found, (place,), (fix,))


def mark(places: Iterable[tuple[Span, str]]) -> tuple[Label, ...]:
    """Return labels for several places, each with a comment; the first one is secondary."""
    return tuple(Label(span, text, primary=number > 0) for number, (span, text) in enumerate(places))


def count_rest(lines: Sequence[str]) -> list[str]:
    """Return the first few lines, and one with the number of the others."""
    return [*lines[:SHOWN], *([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])]
