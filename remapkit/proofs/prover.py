"""Prove for all keys that rules are unambiguous and lose nothing, or find the shortest counterexample.

This is decidable because patterns are regular and templates are concatenations of captures. `checks.py` finds the
witnesses and `findings.py` reports them; this module decides which of them matter, and what is proven if none do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from remapkit.diagnostics.source import Text
from remapkit.patterns.pattern import CANONICAL, Part, Pattern
from remapkit.patterns.tree import literal
from remapkit.proofs.budget import Budget
from remapkit.proofs.checks import Questions
from remapkit.proofs.keymap import KeyMap, key_maps
from remapkit.proofs.model import Level, Proof
from remapkit.proofs.witness import Answers
from remapkit.rules.model import CompiledRules
from remapkit.tensors.families import is_canonical_integer

if TYPE_CHECKING:
    from remapkit.proofs.fixes import Decide

BUDGET = 4_000_000
"""The most elementary steps that the proof of a small rule file may take: a few seconds."""

BUDGET_OF_KEY_MAP = 3_000
"""The further steps for each key map: large rule files may take longer."""


def prove(rule_set: CompiledRules, *, budget: int | None = None, header: Iterable[str] | None = None) -> Proof:
    """Decide for every possible key whether the rules are unambiguous and lose nothing.

    `header` has known source keys: a `StateDictSpec`, or names. They show which rules are dead, whether a literal
    would fix a fault, and for which shapes of keys the proof holds if it does not hold for all. Faults are returned,
    never raised; beyond `budget` elementary steps, questions remain undecided.
    """
    return _decide(rule_set, budget, tuple(header) if header is not None else (), _decide)


def _decide(
    rule_set: CompiledRules, budget: int | None, keys: tuple[str, ...], decide: Decide | None = None
) -> Proof:
    """Prove rules; with `decide`, the findings include fixes, which it tries on edited copies of the rules."""
    found = key_maps(rule_set)
    if budget is None:
        budget = BUDGET + BUDGET_OF_KEY_MAP * len(found)
    return _Prover(rule_set, found, budget, keys, decide).run()


ORDER = (Level.ALL, Level.DOMAIN, Level.KEYS, Level.UNDECIDED, Level.REFUTED)
"""What a proof covers, from the most to the least."""


def prove_parts(rule_set: CompiledRules) -> Proof:
    """Prove the parts of a route: what holds for each of them holds for the route, one after the other.

    The domain of a later part is one of keys that the earlier ones write: only the weakest level is the route's.
    """
    proofs = [prove(part) for part in rule_set.parts]
    return Proof(
        level=max((proof.level for proof in proofs), key=ORDER.index),
        findings=tuple(finding for proof in proofs for finding in proof.findings),
        undecided=tuple(names for proof in proofs for names in proof.undecided),
    )


class _Prover:
    def __init__(
        self,
        rule_set: CompiledRules,
        found: Sequence[KeyMap],
        budget: int,
        keys: tuple[str, ...],
        decide: Decide | None,
    ) -> None:
        self.rules, self.key_maps, self.budget, self.keys = rule_set, found, budget, keys
        self.decide = decide
        self.passes = rule_set.unmatched == "keep"

    def run(self) -> Proof:
        everywhere = self.answers(())
        if self.rules.domain:
            return self.in_domain(everywhere)
        if everywhere.clean:
            return self.write_proof(Level.ALL, everywhere)
        refuted = [each for each in everywhere.witnesses if not each.admitted and each.fault != "open"]
        if refuted or any(fault != "open" for fault, _ in everywhere.undecided):
            return self.write_proof(Level.REFUTED if refuted else Level.UNDECIDED, everywhere)
        shapes = _find_shapes(self.keys)
        within = self.answers(shapes) if shapes else everywhere
        if shapes and within.clean:
            return self.write_proof(Level.DOMAIN, everywhere, f"keys shaped like the {len(self.keys)} known ones")
        return self.write_proof(Level.KEYS, everywhere)

    def in_domain(self, everywhere: Answers) -> Proof:
        within = self.answers(self.rules.domain)
        if everywhere.clean:
            # Proven for all keys, but a rule that matches nothing in the domain is still dead.
            return self.write_proof(Level.ALL, replace(everywhere, dead=within.dead))
        refuted = [each for each in within.witnesses if not each.admitted and each.fault != "open"]
        if refuted:
            return self.write_proof(Level.REFUTED, within)
        if any(fault != "open" for fault, _ in within.undecided):
            return self.write_proof(Level.UNDECIDED, within)
        if within.clean:
            return self.write_proof(Level.DOMAIN, within, "source.domain")
        return self.write_proof(Level.KEYS, within)

    def answers(self, domain: Sequence[Pattern]) -> Answers:
        return Questions(self.key_maps, Budget(self.budget), domain, passes=self.passes).run()

    def write_proof(self, level: Level, answers: Answers, domain: str | None = None) -> Proof:
        if answers.clean and not answers.dead and not self.keys:
            return Proof(level, domain=domain)
        # Most runs have nothing to say; what writes and tries out fixes is a twentieth of the imports of `lint`.
        from remapkit.proofs.added_findings import AddedFindingWriter
        from remapkit.proofs.findings import FindingWriter

        claim = level.value if level in (Level.ALL, Level.DOMAIN) else Level.KEYS.value
        hard = [each for each in answers.undecided if each[0] != "open"]
        given = self.rules, self.key_maps, self.keys, self.budget, self.decide
        findings, shown = FindingWriter(*given).write_findings(
            [each for each in answers.witnesses if not self.is_added(each.key_maps)],
            [each for each in hard if not self.is_added(each[1])],
            answers.dead,
            claim,
            answers.unasked,
        )
        if self.rules.add:
            about_added, shown_added = AddedFindingWriter(*given).write_added(
                [each for each in answers.witnesses if self.is_added(each.key_maps)],
                [numbers for _, numbers in hard if self.is_added(numbers)],
            )
            findings, shown = (*findings, *about_added), (*shown, *shown_added)
        undecided = tuple(
            tuple(self.key_maps[number].rule_id for number in numbers) for _, numbers in answers.undecided
        )
        return Proof(level, findings, shown, undecided, domain)

    def is_added(self, numbers: Iterable[int]) -> bool:
        """Return whether an entry of `add` is among some key maps."""
        return any(not self.key_maps[number].has_source for number in numbers)


def _find_shapes(keys: Iterable[str]) -> tuple[Pattern, ...]:
    """Convert keys to distinct patterns, in which every index segment matches any index."""
    shapes = {
        tuple(None if is_canonical_integer(segment) else segment for segment in key.split(".")): None for key in keys
    }
    found = []
    for shape in shapes:
        parts: list[Part] = []
        for number, segment in enumerate(shape):
            if number:
                parts.append(Part(None, literal("."), values=(".",)))
            index = segment is None
            parts.append(
                Part(None, CANONICAL) if index else Part(None, literal(str(segment)), values=(str(segment),))
            )
        text = Text.of(".".join("{int}" if segment is None else segment for segment in shape))
        found.append(Pattern("path", text, text.span, tuple(parts)))
    return tuple(found)
