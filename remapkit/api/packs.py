"""`remapkit.packs`: the installed packs, and what each of them is."""

from __future__ import annotations

from dataclasses import dataclass

from remapkit.api.ruleset import RuleSet, load
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import RemapkitError
from remapkit.models.target import find_declared_target
from remapkit.registry import installed
from remapkit.registry.verified import read_witness


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What a pack says of itself: a line, its declared target, and by what it was verified by value (`no`: nothing).

    `problems` are what `lint` would say of rules that cannot be compiled; the others are then empty.
    """

    summary: str = ""
    target: str = ""
    by_value: str = ""
    problems: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True, slots=True)
class Pack(installed.PackFile):
    """A rule pack: a rule file known by the name of its file, and who brought it."""

    def load(self) -> RuleSet:
        """Its rules; raises `InvalidRules`."""
        return load(self.path)

    def describe(self) -> PackSummary:
        """Its summary, target and verification; rules that cannot be compiled are no error here."""
        try:
            rules = self.load()
        except RemapkitError as error:
            return PackSummary(problems=error.diagnostics)
        witness = read_witness(self.path)
        target = find_declared_target(rules)
        return PackSummary(
            summary=rules.file.summary.value if rules.file.summary else "",
            target=str(target) if target else "",
            by_value=witness.describe_state(rules) if witness is not None else "no",
        )


def packs() -> tuple[Pack, ...]:
    """Every installed pack, sorted by name.

    Raises `UsageError` where two plugins have one name.

    >>> found = {pack.name: pack for pack in packs()}
    >>> found["wan22_pth"].describe().target
    'wan.vae:WanVAE'
    """
    return tuple(Pack(pack.name, pack.path, pack.origin) for pack in installed.packs())
