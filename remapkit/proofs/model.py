"""A proof as data: its level, and what it found."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.proofs.witness import Witness


class Level(enum.Enum):
    """What is proven, and for which keys.

    `ALL`: for every possible key. `DOMAIN`: for the keys that the rule file declares, or for all keys that look like
    those of the declared source, whatever their indices. `KEYS`: only for the keys at hand, which a plan checks one
    by one. `REFUTED`: a witness shows a fault. `UNDECIDED`: a question took too long.
    """

    ALL = "proven for all keys"
    DOMAIN = "proven for a domain"
    KEYS = "holds for these keys only"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proven about a rule set.

    `findings` are messages with codes RK2xx, `witnesses` the same as data (their `key_maps` are numbers of the rules,
    keeps and drops of the rule set, in this order). `undecided` names the rules of each question that took too long.

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
        """Whether nothing was refuted and nothing is undecided."""
        return self.level not in (Level.REFUTED, Level.UNDECIDED)

    @property
    def verdict(self) -> str:
        """The level in words, with the domain where it is one."""
        return f"{self.level.value} ({self.domain})" if self.domain else self.level.value

    def blocking(self, *, allow_undecided: bool = False) -> tuple[Diagnostic, ...]:
        """The findings that refuse the rules."""
        return tuple(
            finding
            for finding in self.findings
            if finding.severity is Severity.ERROR and not (allow_undecided and finding.code == "RK200")
        )
