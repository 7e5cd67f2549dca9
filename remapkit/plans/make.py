"""Make a plan: every move and every problem for one concrete header.

Pure: no file is opened and no data is read. Target shapes and dtypes are inferred from the header, and all problems
are collected before any is reported.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.plans.companions import judge_companions
from remapkit.plans.compose import compose_plans
from remapkit.plans.followed import Followed, follow_companions
from remapkit.plans.groups import Gathered, SourceGroups
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import UNMATCHED, Dropped, Move, RuleRef
from remapkit.plans.problems import (
    list_example_keys,
    report_ambiguous_matches,
    report_collisions,
    report_impossible_targets,
    report_no_tensors,
    report_unmatched_keys,
    report_unused_entries,
    report_unused_rules,
)
from remapkit.plans.recorded import replace_recorded_sources, report_recorded, sort_recorded
from remapkit.plans.rounding import report_roundings
from remapkit.plans.stale_metadata import report_metadata
from remapkit.rules.counted import count_params, report_counts
from remapkit.rules.model import CompiledRules, Match, Rule
from remapkit.rules.requirements import find_unmet_requirements
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import StateDictSpec, TensorSpec


def make_plan(rules: CompiledRules, header: StateDictSpec | Mapping[str, TensorSpec], root: str = "") -> ResolvedPlan:
    """Make the plan of `rules` for one header; errors are collected in its `problems`, never raised.

    `root` is where the header was found in its file; messages name it. The plans of a route become one: its moves
    read the header, and nothing between.
    """
    whole = header if isinstance(header, StateDictSpec) else StateDictSpec(dict(header))
    plan = _plan_part(rules, whole, root, rules)
    for part in rules.after:
        if plan.problems:
            break
        between = replace(plan.target, name=f"{plan.source.name}, after {plan.name}")
        plan = compose_plans(plan, _plan_part(part, between, "", rules))
    return replace(plan, name=rules.name)


def _plan_part(rules: CompiledRules, whole: StateDictSpec, root: str, route: CompiledRules) -> ResolvedPlan:
    """Make the plan of the rules of one file of a route, any of which may know the size of the blocks of scales."""
    try:
        rules = count_params(rules, whole)
    except InvalidRules as error:
        return ResolvedPlan(rules.name, whole, (), problems=error.diagnostics, root=root)
    source, renamed = sort_recorded(rules, whole) if whole.recorded else (whole, {})
    matches = {fqn: rules.match(fqn) for fqn in source}
    moves, dropped, unmatched, gathered = _decide_moves(rules, source, matches)
    followed = follow_companions(rules, route, source, matches, moves, dropped)
    moves, dropped, unmatched = _merge_followed(followed, source, moves, dropped, unmatched)
    judged = judge_companions(followed.follower, source, moves, dropped, rules.neutral, followed.refused)
    problems = [
        *report_no_tensors(source),
        *report_impossible_targets(source, moves),
        *_report_packed_elements(source, moves),
        *report_unmatched_keys(rules, source, unmatched, root),
        *report_ambiguous_matches(source, matches),
        *gathered.problems,
        *followed.problems,
        *report_collisions(source, moves),
        *judged.problems,
        *find_unmet_requirements(rules, source),
    ]
    if source and not moves and not problems:
        problems.append(_report_nothing_left(rules, source))
    used = Counter([match.rule.id for found in matches.values() for match in found])
    entries = {use for found in matches.values() for match in found if match.rule.tables for use in match.table_uses}
    replaced = tuple(replace_recorded_sources(moves, whole.recorded) if whole.recorded else moves)
    return ResolvedPlan(
        name=rules.name if not rules.after else rules.file.name.value,
        source=source,
        moves=replaced,
        dropped=tuple(dropped),
        problems=tuple(problems),
        warnings=(
            (
                *report_unused_rules(rules, used),
                *report_unused_entries(rules, used, entries),
                *report_roundings(moves, source),
                *judged.warnings,
                *followed.notes,
                *(report_metadata(source, replaced) if not problems else ()),
                *report_counts(rules, whole, whole.name),
            )
            if source
            else ()
        )
        + tuple(report_recorded(source, moves, renamed)),
        tied=(*_list_ties(source, moves), *gathered.tied),
        recorded=renamed,
        root=root,
    )


def _decide_moves(
    rules: CompiledRules, source: StateDictSpec, matches: Mapping[str, tuple[Match, ...]]
) -> tuple[list[Move], list[Dropped], list[str], Gathered]:

    moves: list[Move] = []
    places: list[int] = []
    dropped: list[Dropped] = []
    unmatched: list[str] = []
    gather = SourceGroups(rules, source)
    refs = {id(rule): _make_ref(rule) for rule in rules.everything}
    for place, (fqn, spec) in enumerate(source.items()):
        found = matches[fqn]
        if not found and rules.unmatched == "error":
            unmatched.append(fqn)
        elif not found and rules.unmatched == "keep":
            moves.append(Move(fqn, (fqn,), (), UNMATCHED, spec))
            places.append(place)
        elif not found:
            dropped.append(Dropped(fqn, UNMATCHED))
        elif len(found) == 1:
            match = found[0]
            if match.rule.pipeline is not None:
                gather.add_key(fqn, match, place)
            elif match.target is None:
                dropped.append(Dropped(fqn, refs[id(match.rule)]))
            else:
                moves.append(Move(match.target, (fqn,), (), refs[id(match.rule)], spec))
                places.append(place)
    gathered = gather.gather_moves()
    if gathered.moves:
        both = sorted([*zip(places, moves, strict=True), *gathered.moves], key=lambda pair: pair[0])
        moves = [move for _, move in both]
    return moves, dropped, unmatched, gathered


def _merge_followed(
    followed: Followed,
    source: StateDictSpec,
    moves: list[Move],
    dropped: list[Dropped],
    unmatched: list[str],
) -> tuple[list[Move], list[Dropped], list[str]]:
    """Return moves, drops and keys without a rule, with the companions that follow, in the header's order."""
    if not followed.taken:
        return moves, dropped, unmatched
    places = {fqn: number for number, fqn in enumerate(source)}
    others = [move for move in moves if move.rule is not UNMATCHED or move.target not in followed.taken]
    moves = sorted(
        [*others, *followed.moves], key=lambda move: min(map(places.__getitem__, move.sources), default=len(places))
    )
    return moves, [*dropped, *followed.dropped], [fqn for fqn in unmatched if fqn not in followed.taken]


def _make_ref(rule: Rule) -> RuleRef:
    return RuleRef(rule.id, rule.span)


def _report_nothing_left(rules: CompiledRules, source: StateDictSpec) -> Diagnostic:
    number = count_noun(len(source), "key")
    title = f"{rules.name} drops all {number} and leaves nothing: is this another layout?"
    if len(source) == 1:
        title = f"{rules.name} drops the only key and leaves nothing: is this another layout?"
    help = [f"these rules read keys like {key}" for key in list_example_keys(rules)[:1]]
    help += ["see `remapkit explain RULES KEY` for where a rule stops"]
    notes = (list_names(list(source)),)
    values = {"dropped": list(source)}
    return Diagnostic("RK368", title, help=tuple(help), notes=notes, place=source.name, values=values)


def _report_packed_elements(source: StateDictSpec, moves: Sequence[Move]) -> list[Diagnostic]:
    """Report operations on elements smaller than a byte: a slice or transpose would split bytes."""
    found = {
        move.target: spec.dtype
        for move in moves
        if move.ops
        for fqn in move.sources
        if (spec := source.tensors.get(fqn)) is not None and DTYPE_BITS[spec.dtype] % 8
    }
    if not found:
        return []
    names = ", ".join(sorted(set(found.values())))
    return [
        Diagnostic(
            "RK425",
            f"{count_noun(len(found), 'target')} would be computed from {names}, "
            "whose elements are smaller than a byte",
            notes=(list_names(list(found)),),
            help=("rename such tensors, or convert them to a wider dtype first",),
            place=source.name,
            values={"targets": list(found)},
        )
    ]


def _list_ties(source: StateDictSpec, moves: Sequence[Move]) -> tuple[tuple[str, ...], ...]:
    if not source.tied:
        return ()
    targets: defaultdict[str, list[str]] = defaultdict(list)
    for move in moves:
        if not move.ops:
            targets[move.sources[0]].append(move.target)
    groups = (tuple(target for fqn in group for target in targets.get(fqn, ())) for group in source.tied)
    return tuple(group for group in groups if len(group) > 1)
