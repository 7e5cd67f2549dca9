"""`remapkit.packs`: the installed packs and their descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from remapkit.api.graph import Graph, make_graph
from remapkit.api.ruleset import RuleSet, checked, load
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import RemapkitError, UsageError
from remapkit.diagnostics.source import Text
from remapkit.models.target import find_declared_target
from remapkit.registry import installed
from remapkit.registry.verified import read_witness


@dataclass(frozen=True, slots=True)
class PackSummary:
    """The description of a pack: a line, its layouts, its target, how it was verified by value (`no`: not at all).

    `problems` are the findings of `lint` for rules that cannot be compiled; the other fields are then empty.
    """

    summary: str = ""
    source_layout: str = ""
    target_layout: str = ""
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
            source_layout=_name_layout(rules.file.source_layout),
            target_layout=_name_layout(rules.file.target_layout),
            target=str(target) if target else "",
            by_value=witness.describe_state(rules) if witness is not None else "no",
        )


def _name_layout(names: Sequence[Text]) -> str:
    """Return the name of a layout, with its other names."""
    return ", ".join(name.value for name in names)


@overload
def packs() -> tuple[Pack, ...]: ...
@overload
def packs(*, graph: Literal[False], output: str | Path | None = None, force: bool = False) -> tuple[Pack, ...]: ...
@overload
def packs(*, graph: Literal[True], output: str | Path | None = None, force: bool = False) -> Graph: ...
@checked
def packs(*, graph: bool = False, output: str | Path | None = None, force: bool = False) -> tuple[Pack, ...] | Graph:
    """Return every installed pack, sorted by name.

    Args:
        graph: Return the layouts that the packs read and write, and which pack leads from which to which.
        output: Write that as a picture: an `.svg`, or an `.html`.
        force: Replace the picture if it exists.

    Raises:
        UsageError: Two plugins with the same name; a picture without `graph`, or with another suffix.
        UnwritableOutput: A picture that cannot be written, or exists (`OutputExists`).

    >>> found = {pack.name: pack for pack in packs()}
    >>> found["wan22_pth"].describe().target
    'wan.vae:WanVAE'
    >>> [str(step) for step in packs(graph=True).steps if step.source == "flux/bfl"]
    ['flux_bfl']
    """
    if graph:
        if force and output is None:
            help = ("name the picture with -o packs.svg or -o packs.html",)
            raise UsageError(Diagnostic("RK609", "--force replaces a picture, and none is named", help=help))
        return make_graph(output, force=force)
    if output is not None:
        raise UsageError(Diagnostic("RK609", "-o names the picture of --graph", help=("pass --graph too",)))
    if force:
        raise UsageError(Diagnostic("RK609", "--force replaces the picture of --graph", help=("pass --graph too",)))
    return tuple(Pack(pack.name, pack.path, pack.origin) for pack in installed.packs())
