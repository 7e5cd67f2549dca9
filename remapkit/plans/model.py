"""A plan as data: every move for one header, with problems and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck
from remapkit.diagnostics.wording import count_noun
from remapkit.plans.moves import Dropped, Move
from remapkit.plans.stale_metadata import CODES, rewrite_metadata
from remapkit.tensors.spec import StateDictSpec


def collect_records(plan: ResolvedPlan) -> dict[str, str]:
    """Return the names that remain records, as `other -> kept` in target names; omit those of dropped tensors."""
    if not plan.recorded:
        return {}
    kept: dict[object, str] = {}
    for move in plan.moves:
        kept.setdefault((move.sources, move.ops), move.target)
    targets = {move.target for move in plan.moves}
    return {
        move.target: kept[move.sources, move.ops]
        for move in plan.recorded.values()
        if (move.sources, move.ops) in kept and move.target not in targets
    }


@dataclass(frozen=True, slots=True)
class ResolvedPlan:
    """Every move for one header, in header order, with the dropped keys and the problems.

    `problems` are errors: a plan with problems is never executed. `warnings` should be reviewed, for example unused
    rules and table entries. `tied` holds the groups of targets whose sources share one storage. `recorded` maps names
    that a safetensors file only records as tied, and that no rule names, to their moves; `add_recorded_moves` adds
    those that a target has. `root` is where the header was found in its file. `entries` are those of the metadata
    that were written for this plan; all others follow from the moves.

    >>> import remapkit
    >>> plan = remapkit.load("wan22_pth").plan({"conv1.weight": remapkit.TensorSpec("F32", (96, 96, 1, 1, 1))})
    >>> [(move.sources, move.target) for move in plan.moves], plan.ok
    ([(('conv1.weight',), 'conv1.weight')], True)
    """

    name: str
    source: StateDictSpec
    moves: tuple[Move, ...]
    dropped: tuple[Dropped, ...] = ()
    problems: tuple[Diagnostic, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()
    recorded: Mapping[str, Move] = field(default_factory=dict)
    root: str = ""
    entries: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.problems

    @property
    def target(self) -> StateDictSpec:
        """The header that the moves produce."""
        tensors = {move.target: move.spec for move in self.moves}
        metadata = rewrite_metadata(self.source, self.moves, self.entries).metadata
        return StateDictSpec(tensors, self.tied, metadata, self.name, collect_records(self))

    def with_entries(self, entries: Mapping[str, str | None]) -> ResolvedPlan:
        """Return the plan with entries of the metadata that say more than its moves tell; None is no entry."""
        others = (each for each in self.warnings if each.code not in CODES or each.values["entry"] not in entries)
        return replace(self, entries={**self.entries, **entries}, warnings=tuple(others))

    @property
    def renamed(self) -> int:
        """The number of moves that change the name."""
        return sum(move.sources != (move.target,) for move in self.moves)

    def raise_for_problems(self) -> None:
        """Raise `FailedCheck` with all problems, if there are any."""
        if self.problems:
            raise FailedCheck(self.problems)

    def __str__(self) -> str:
        kept = len(self.moves) - self.renamed
        changed = sum(bool(move.ops) and move.sources == (move.target,) for move in self.moves)
        parts = [
            count_noun(len(self.source), "key"),
            f"{self.renamed} renamed",
            f"{kept} kept" + (f" ({changed} of them changed)" if changed else ""),
            f"{len(self.dropped)} dropped",
        ]
        if self.problems:
            parts.append(count_noun(len(self.problems), "problem"))
        return f"{self.name}: {', '.join(parts)}"
