"""The counters of batch norms, `num_batches_tracked`, which state dicts of torch before 0.4.1 do not have.

torch's `_NormBase._load_from_state_dict` takes the module's own counter where a state dict lacks one and is older
than version 2: 0 for a module on meta. Files hardly ever keep these versions (safetensors cannot), so a checkpoint
counts as old if it has no such counter at all, and no version in its `_metadata` says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.nn.modules.batchnorm import _NormBase

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.loading.module import LoadTarget
from remapkit.plans.check import Check
from remapkit.tensors.spec import get_leaf

_COUNTER = "num_batches_tracked"
_FIRST_VERSION = 2
"""The `_version` of `_NormBase` from which on state dicts have the counter."""


def find_old_counters(target: LoadTarget, check: Check, versions: Mapping[str, object]) -> tuple[str, ...]:
    """Return the missing keys that are counters of batch norms whose running mean an old checkpoint brings."""
    if any(get_leaf(fqn) == _COUNTER for fqn in check.plan.source):
        return ()
    sources = {move.target: move.sources for move in check.plan.moves}
    norms = {id(norm.num_batches_tracked) for norm in target.module.modules() if isinstance(norm, _NormBase)}
    return tuple(
        fqn
        for fqn in check.missing_keys
        if get_leaf(fqn) == _COUNTER and id(target.slots[fqn].value) in norms
        for mean in sources.get(f"{fqn.removesuffix(_COUNTER)}running_mean", ())[:1]
        if not _is_versioned(versions.get(mean.rpartition(".")[0]))
    )


def _is_versioned(entry: object) -> bool:
    version = entry.get("version") if isinstance(entry, Mapping) else None
    return isinstance(version, int) and version >= _FIRST_VERSION


def make_counters(
    target: LoadTarget, counters: Sequence[str], device: torch.device | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield 0 for each counter on meta; others keep their values."""
    for fqn in counters:
        if target.slots[fqn].value.is_meta:
            yield fqn, torch.tensor(0, dtype=torch.long, device=device or torch.device("cpu"))


def report_old_counters(target: LoadTarget, counters: Sequence[str]) -> Iterator[Diagnostic]:
    """Yield the note about counters that were left or set to 0."""
    if counters:
        number = count_noun(len(counters), f"{_COUNTER} is", f"{_COUNTER} are")
        title = f"{number} missing, as in every checkpoint of torch before 0.4.1: as in torch, {target.header.name} "
        title += f"keeps {'its own' if len(counters) == 1 else 'its own ones'}, or counts from 0 if it is on meta"
        yield Diagnostic(
            "RK310",
            title,
            notes=(list_names(counters),),
            severity=Severity.NOTE,
            values={"counters": list(counters)},
        )
