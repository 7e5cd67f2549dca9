"""The messages of a proof about the targets of `add:`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.proofs.added_targets import AddedClash
from remapkit.proofs.findings import OPEN_TITLE
from remapkit.proofs.fixes import Decide
from remapkit.rules.model import CompiledRules
from remapkit.rules.pipeline import AddedTargets


class AddedFindingWriter:
    """A writer of diagnostics about `add:`; with `decide` they include fixes that were tried with it."""

    def __init__(
        self, rules: CompiledRules, keys: tuple[str, ...], budget: int, decide: Decide | None = None
    ) -> None:
        self.rules, self.keys, self.budget, self.decide = rules, keys, budget, decide

    def report_repeats(self, repeats: Iterable[tuple[AddedTargets, AddedTargets, str]]) -> list[Diagnostic]:
        """Report entries of `add` that add the same target."""
        return [
            Diagnostic(
                "RK207",
                f"{one.id} and {other.id} add the same target {target}",
                (Label(one.span, "first here", primary=False), Label(other.span, "again here")),
                ("add it once",),
            )
            for one, other, target in repeats
        ]

    def report_clashes(self, clashes: Sequence[tuple[AddedClash, bool]]) -> list[Diagnostic]:
        """Report targets of `add` that keys of a rule map to as well; True: it is undecided whether one does."""
        return [self._report_clash(clash, is_undecided=is_undecided) for clash, is_undecided in clashes]

    def _report_clash(self, meeting: AddedClash, *, is_undecided: bool) -> Diagnostic:
        added, key_map = meeting.added, meeting.key_map
        labels: tuple[Label, ...] = (
            Label(added.span, f"adds {meeting.target}", primary=False),
            Label(key_map.to or key_map.span, f"{meeting.key or 'a key?'} -> {meeting.target}"),
        )
        values = {"rules": [added.id, key_map.rule_id], "target": meeting.target, "keys": [meeting.key]}
        if is_undecided:
            title = (
                f"undecided: whether a key of {key_map.rule_id} can map to {meeting.target}, which {added.id} adds"
            )
            help = ("bound the captures of the rule more tightly", "or continue with --allow-undecided")
            return Diagnostic("RK200", title, labels, help, values=values)
        title = f"a key of {key_map.rule_id} maps to {meeting.target}, which {added.id} adds"
        advice = ("bound the captures of the rule, or do not add a target that a source provides",)
        return Diagnostic("RK207", title, labels, advice, (f"{meeting.key}  (by {key_map.rule_id})",), values=values)

    def report_passing(self, entry: AddedTargets, target: str) -> Diagnostic:
        """Report that an unmatched key may pass through onto a target of `add`."""
        span = self.rules.file.unmatched_span
        labels = (*((Label(span),) if span is not None else ()), Label(entry.span, f"adds {target}", primary=False))
        note = (
            f"{target}  would pass through unchanged, and collide with the one that {entry.id} adds\n"
            "every plan still checks the keys of its checkpoint"
        )
        help = ("name these keys under `keep:` and remove `unmatched`, or declare `source: {domain: [...]}`",)
        values = {"rules": [entry.id], "keys": [target], "targets": [target]}
        return Diagnostic("RK206", OPEN_TITLE, labels, help, (note,), Severity.NOTE, values=values)
