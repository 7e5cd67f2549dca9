"""Tied names in the metadata of safetensors files: which become keys, and how the rest are handled.

The format has no aliases. Writers keep one name of a tied tensor and add `other: kept` to the metadata, which may
also hold unrelated pairs: in a file with a tensor `w`, `{"author": "w"}` has the same form. So a record is only a
candidate. It counts as a key if a rule names it or the target has it; otherwise it remains a record: it never creates
a tensor that was not requested, and is never an error.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun, join_words, list_names
from remapkit.patterns.literals import literal_text
from remapkit.plans.model import ResolvedPlan, collect_records
from remapkit.plans.moves import UNMATCHED, Move, RuleRef
from remapkit.rules.model import CompiledRules, Match, Rule
from remapkit.tensors.spec import StateDictSpec

_NOBODYS = "zqxjkv"
"""A segment that no checkpoint contains: a pattern that accepts it accepts any key of that form."""


def is_specific_match(rule: Rule, fqn: str) -> bool:
    """Return whether a rule names a key: it matches this key but not every key with that many segments.

    >>> from remapkit.rulefile.read import read_text
    >>> from remapkit.rules.compile import compile_rules
    >>> text = "remapkit: 1\\nname: t\\nrules:\\n"
    >>> text += "  - {id: all, path: '{r:**}', to: 'm.{r}'}\\n  - {id: head, path: '{m}.weight', to: '{m}.w'}\\n"
    >>> [is_specific_match(rule, "head.weight") for rule in compile_rules(read_text(text)).rules]
    [False, True]
    """
    anything = ".".join(_NOBODYS for _ in fqn.split("."))
    return rule.match(fqn) is not None and rule.match(anything) is None


def sort_recorded(rules: CompiledRules, header: StateDictSpec) -> tuple[StateDictSpec, dict[str, Move]]:
    """Return the header plus the recorded names that a rule names, and the moves of those that catch-alls rename."""
    taken: list[str] = []
    renamed: dict[str, Move] = {}
    for fqn, kept in header.recorded.items():
        found = rules.match(fqn)
        if any(is_specific_match(match.rule, fqn) for match in found):
            taken.append(fqn)
        elif (to := _find_new_name(rules, fqn, found)) is not None:
            renamed[fqn] = Move(to[0], (kept,), (), to[1], header[kept])
    return header.with_recorded(taken), renamed


def _find_new_name(rules: CompiledRules, fqn: str, found: Sequence[Match]) -> tuple[str, RuleRef] | None:
    """Return the new name and its rule if exactly one rule renames the key and does nothing else."""
    if not found and rules.unmatched == "keep":
        return fqn, UNMATCHED
    if len(found) != 1 or found[0].target is None or found[0].rule.pipeline is not None:
        return None
    return found[0].target, RuleRef(found[0].rule.id, found[0].rule.span)


def replace_recorded_sources(moves: Iterable[Move], recorded: Mapping[str, str]) -> list[Move]:
    """Return the moves with recorded source names replaced by the names that hold the data."""
    return [
        replace(move, sources=tuple(recorded.get(fqn, fqn) for fqn in move.sources))
        if any(fqn in recorded for fqn in move.sources)
        else move
        for move in moves
    ]


def add_recorded_moves(plan: ResolvedPlan, names: Container[str]) -> ResolvedPlan:
    """Return the plan with an added move for each recorded name whose target is in `names`."""
    targets = {move.target for move in plan.moves}
    taken = {fqn: move for fqn, move in plan.recorded.items() if move.target in names and move.target not in targets}
    if not taken:
        return plan
    again = collect_records(plan)
    groups = {group[0]: list(group) for group in plan.tied}
    first = {fqn: group[0] for group in plan.tied for fqn in group}
    for move in taken.values():
        if move.target in again:
            kept = again[move.target]
            groups.setdefault(first.get(kept, kept), [kept]).append(move.target)
    source = plan.source.with_recorded(taken)
    left = {fqn: move for fqn, move in plan.recorded.items() if fqn not in taken}
    others = [each for each in plan.warnings if each.code != "RK420"]
    return replace(
        plan,
        source=source,
        moves=(*plan.moves, *taken.values()),
        tied=tuple(map(tuple, groups.values())),
        recorded=left,
        warnings=(*others, *report_recorded(source, plan.moves, left)),
    )


def report_recorded(source: StateDictSpec, moves: Sequence[Move], renamed: Mapping[str, Move]) -> list[Diagnostic]:
    """Report names that remain records, and names whose tensor is not in the output under its old name.

    `renamed` are the names that catch-all rules rename; they are recorded under their new names.
    """
    if not source.recorded:
        return []
    kept = {move.target for move in moves if not move.ops and move.sources == (move.target,)}
    dangling = [other for other, tensor in source.recorded.items() if tensor not in kept and other not in renamed]
    one = len(source.recorded) == 1
    title = (
        f"{count_noun(len(source.recorded), 'name is', 'names are')} only recorded as another name of a tensor"
        f"; {'it is kept' if one else 'they are kept'} in the metadata only"
    )
    if dangling:
        gone = join_words(dict.fromkeys(source.recorded[other] for other in dangling))
        title += f", although the output has no {gone}"
    first = next(iter(dangling or source.recorded))
    return [
        Diagnostic(
            "RK420",
            title,
            notes=(list_names([f"{other} = {kept}" for other, kept in source.recorded.items()]),),
            help=(f"to write a tied name as a tensor, add a rule for it: {{path: {literal_text(first)}, to: ...}}",),
            place=source.name,
            severity=Severity.NOTE,
            values={"recorded": dict(source.recorded)},
        )
    ]
