"""Names in a file's `__metadata__`: rewritten as their tensors are renamed, split or dropped, or reported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from remapkit.companions.names import find_adapter_module
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import list_names, show_key
from remapkit.formats.name_map import NameMap
from remapkit.formats.quoted_names import (
    LORA,
    QUANTIZATION,
    Entry,
    may_quote,
    read_layers,
    report_entry,
    rewrite_entries,
)
from remapkit.ops.base import Op
from remapkit.ops.combine import Combine
from remapkit.ops.dtype import AddOp, ScaleOp
from remapkit.ops.join import Join, Nested
from remapkit.plans.moves import Move
from remapkit.tensors.spec import StateDictSpec

CODES = ("RK369", "RK740", "RK741")
"""What is said of metadata, always of the whole way from the source to the result."""

_DOWN = re.compile(r"[._](?:lora(?:_linear_layer)?[._](?:down|A)|lora_A)(?:\.|$)")


@dataclass(frozen=True, slots=True)
class RewrittenMetadata:
    """The metadata of the result, the entries that quote names, and adapters' entries whose numbers do not hold."""

    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    outdated: Mapping[str, Sequence[str]]


def rewrite_metadata(
    source: StateDictSpec, moves: Iterable[Move], settled: Mapping[str, str | None] | None = None
) -> RewrittenMetadata:
    """Return the metadata of the result of some moves; an entry that cannot be rewritten stays as it is.

    `settled` are entries that whoever knows more than the moves has written; None is no entry.

    >>> from remapkit.plans.moves import Move, RuleRef
    >>> from remapkit.tensors.spec import TensorSpec
    >>> spec, quoted = TensorSpec("F32", (1,)), {"_quantization_metadata": '{"layers": {"a": {}}}'}
    >>> header = StateDictSpec({"a.weight": spec}, metadata=quoted)
    >>> dict(rewrite_metadata(header, [Move("b.weight", ("a.weight",), (), RuleRef("r"), spec)]).metadata)
    {'_quantization_metadata': '{"layers": {"b": {}}}'}
    """
    settled = settled or {}
    quoting = {name: text for name, text in source.metadata.items() if name not in settled and may_quote(text)}
    if not quoting:
        return RewrittenMetadata(_settle(source.metadata, settled), {}, {})
    moves = tuple(moves)
    entries = rewrite_entries(quoting, NameMap(_list_targets(source, moves), find_adapter_module))
    outdated: dict[str, Sequence[str]] = {}
    if QUANTIZATION in quoting and (other := _find_other_dtypes(source, moves, quoting[QUANTIZATION])):
        entries[QUANTIZATION] = Entry(quoting[QUANTIZATION], {}, other)
    if LORA in quoting and (changed := list(_find_other_numbers(source, moves))):
        entries.pop(LORA, None)
        outdated[LORA] = changed
    texts = {name: entry.text for name, entry in entries.items()}
    return RewrittenMetadata(_settle({**source.metadata, **texts}, settled), entries, outdated)


def _settle(metadata: Mapping[str, str], settled: Mapping[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in {**metadata, **settled}.items() if text is not None}


def _list_targets(source: StateDictSpec, moves: Sequence[Move]) -> dict[str, list[str]]:
    """Return the targets that each tensor is in; one that was only recorded has those of the name with its data."""
    targets: dict[str, list[str]] = {fqn: [] for fqn in source}
    for move in moves:
        for fqn in move.sources:
            targets.setdefault(fqn, []).append(move.target)
    for group in source.tied:
        kept = next((targets[fqn] for fqn in group if targets.get(fqn)), [])
        for fqn in group:
            if source.metadata.get(fqn) in group and not targets[fqn]:
                targets[fqn] = kept
    return targets


def _find_other_dtypes(source: StateDictSpec, moves: Sequence[Move], text: str) -> dict[str, str]:
    """Return the modules of `_quantization_metadata` whose weights get another dtype, which it says nothing of."""
    found: dict[str, str] = {}
    for move in moves:
        for fqn in move.sources:
            if fqn.endswith(".weight") and fqn in source and source[fqn].dtype != move.spec.dtype:
                said = f"its weight is {source[fqn].dtype} and becomes {move.spec.dtype}"
                found[fqn.removesuffix(".weight")] = said
    layers = read_layers(text) if found else {}
    return {module: said for module, said in found.items() if module in layers}


def _find_other_numbers(source: StateDictSpec, moves: Sequence[Move]) -> Iterator[str]:
    """Yield the targets of an adapter whose LoRA rank changes, or whose numbers do, as if its alpha did."""
    for move in moves:
        if find_adapter_module(move.target) is None:
            continue
        ranks = {source[fqn].shape[0] for fqn in move.sources if fqn in source and _is_down(fqn, source)}
        if _is_down(move.target, {move.target: move.spec}) and ranks - {move.spec.shape[0]}:
            yield f"{show_key(move.target)} has LoRA rank {move.spec.shape[0]}, from {min(ranks)}"
        elif any(map(_changes_numbers, move.ops)):
            yield f"{show_key(move.target)} is multiplied"


def _is_down(fqn: str, header: Mapping[str, object]) -> bool:
    return _DOWN.search(fqn) is not None and bool(getattr(header[fqn], "shape", ()))


def _changes_numbers(op: object) -> bool:
    if isinstance(op, Nested):
        return _changes_numbers(op.join) or any(map(_changes_numbers, _flatten(op.inputs)))
    if isinstance(op, Join):
        return op.combine is not None or any(map(_changes_numbers, _flatten(op.branches)))
    return isinstance(op, ScaleOp | AddOp | Combine)


def _flatten(groups: Iterable[Iterable[Op]]) -> Iterator[Op]:
    return (op for group in groups for op in group)


# ------------------------------------------------------------------------------------------------ messages


def report_metadata(
    source: StateDictSpec, moves: Iterable[Move], settled: Mapping[str, str | None] | None = None
) -> list[Diagnostic]:
    """Return a note on each entry that is rewritten, and a warning for each that should be, but cannot.

    >>> from remapkit.plans.moves import Move, RuleRef
    >>> from remapkit.tensors.spec import TensorSpec
    >>> spec, quoted = TensorSpec("F32", (1,)), {"_quantization_metadata": '{"layers": {"a": {}}}'}
    >>> header = StateDictSpec({"a.weight": spec}, metadata=quoted)
    >>> report_metadata(header, [Move("b.weight", ("a.weight",), (), RuleRef("r"), spec)])[0].values["names"]
    {'a': ['b']}
    """
    found = rewrite_metadata(source, moves, settled)
    said = [report_entry(name, entry, source.name) for name, entry in found.entries.items()]
    return [*said, *(_report_outdated(name, each, source.name) for name, each in found.outdated.items())]


def _report_outdated(name: str, changed: Sequence[str], place: str) -> Diagnostic:
    title = f"the metadata entry `{show_key(name)}` has LoRA ranks and alphas that the rules change; "
    title += "it is copied unchanged"
    help = "correct `r`, `lora_alpha` and the names in the written file, or remove the entry"
    values = {"entry": name, "targets": len(changed)}
    return Diagnostic("RK741", title, (), (help,), (list_names(changed),), Severity.WARNING, place, values)
