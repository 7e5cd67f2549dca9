"""`remapkit.packs`: the installed packs and their descriptions."""

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
    """The description of a pack: a line, its declared target, and how it was verified by value (`no`: not at all).

    `problems` are the findings of `lint` for rules that cannot be compiled; the other fields are then empty.
    """

    summary: str = ""
    target: str = ""
    by_value: str = ""
    problems: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True, slots=True)
class Pack(installed.PackFile):
    """A rule pack: a rule file, named after the file, and where it comes from."""

    def load(self) -> RuleSet:
        """Load its rules; raises `InvalidRules`."""
        return load(self.path)

    def describe(self) -> PackSummary:
        """Return its summary, target and verification; rules that cannot be compiled are not an error here."""
        try:
            rules = self.load()
            target = find_declared_target(rules)
        except RemapkitError as error:
            return PackSummary(problems=error.diagnostics)
        witness = read_witness(self.path)
        return PackSummary(
            summary=rules.file.summary.value if rules.file.summary else "",
            target=str(target) if target else "",
            by_value=witness.describe_state(rules) if witness is not None else "no",
        )


def packs() -> tuple[Pack, ...]:
    """Return every installed pack, sorted by name.

    Raises `UsageError` if two plugins have the same name.

    >>> found = {pack.name: pack for pack in packs()}
    >>> found["wan22_pth"].describe().target
    'wan.vae:WanVAE'
    """
    return tuple(Pack(pack.name, pack.path, pack.origin) for pack in installed.packs())
