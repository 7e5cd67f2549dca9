"""Helpers of `remapkit.apply`: the order of moves, the default output, the provenance in the metadata."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.version import VERSION
from remapkit.diagnostics.wording import escape_line
from remapkit.files.index_names import is_first_shard, is_index
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.tensors.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.rules.model import CompiledRules


@contextmanager
def pause_collection() -> Iterator[None]:
    """Disable garbage collection: a plan of 50,000 moves has no cycles, and scanning it takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def sort_by_target(plan: ResolvedPlan, target: StateDictSpec | None) -> tuple[Move, ...]:
    """Sort the moves by the order of the target's names if the target is known, else keep the source's order."""
    if target is None:
        return plan.moves
    order = {fqn: number for number, fqn in enumerate(target)}
    return tuple(sorted(plan.moves, key=lambda move: order.get(move.target, len(order))))


def default_output(source: Path, suffix: str = ".safetensors") -> Path:
    """Return the default output: `ckpt.pth` -> `ckpt.safetensors`; raises `UsageError` for shards and folders."""
    if source.is_dir() or is_index(source.name) or is_first_shard(source.name):
        raise UsageError(
            Diagnostic("RK609", f"where should the result for {source} go?", help=("name a file with -o OUT",))
        )
    return source.with_suffix(suffix)


def make_provenance(rules: CompiledRules, source: str) -> dict[str, str]:
    """Return the metadata on the origin of a file. It contains no time: the same input gives the same bytes."""
    return {
        "remapkit.rules": rules.name,
        "remapkit.digest": rules.digest,
        "remapkit.source": escape_line(source),
        "remapkit.version": VERSION,
    }
