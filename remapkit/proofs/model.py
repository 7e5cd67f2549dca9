"""A proof as data: its level and its findings."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.proofs.witness import Witness


class Level(enum.Enum):
    """The result of a proof, and the keys that it covers.

    `ALL`: for every possible key. `DOMAIN`: for the keys that the rule file declares, or for all keys that look like
    those of the declared source, with any indices. `KEYS`: only for the given keys, which a plan checks one by one.
    `REFUTED`: a witness shows a fault. `UNDECIDED`: a question took too long.
    """

    ALL = "proven for all keys"
    DOMAIN = "proven for a domain"
    KEYS = "holds for these keys only"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Proof:
    """The proof of a rule set.

    `findings` are messages with codes RK2xx, `witnesses` the same findings as data (their `key_maps` are indices into
    the rules, keeps and drops of the rule set, in this order). `undecided` names the rules of each question that took
    too long.

    >>> import remapkit
    >>> proof = remapkit.load("wan22_pth").prove()
    >>> proof.level.value, proof.ok, proof.witnesses
    ('proven for all keys', True, ())
    """

    level: Level
    findings: tuple[Diagnostic, ...] = ()
    witnesses: tuple[Witness, ...] = ()
    undecided: tuple[tuple[str, ...], ...] = ()
    domain: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is refuted or undecided."""
        return self.level not in (Level.REFUTED, Level.UNDECIDED)

    @property
    def verdict(self) -> str:
        """The level in words, with the domain if there is one."""
        return f"{self.level.value} ({self.domain})" if self.domain else self.level.value

    def blocking(self, *, allow_undecided: bool = False) -> tuple[Diagnostic, ...]:
        """Return the findings that make the rules invalid."""
        return tuple(
            finding
            for finding in self.findings
            if finding.severity is Severity.ERROR and not (allow_undecided and finding.code == "RK200")
        )
