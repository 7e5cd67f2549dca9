"""The problems and warnings of a plan: unmatched keys, ambiguous rules, collisions, unused rules."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.errors import RemapkitError
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import SHOWN, count_noun, join_words, list_names, show_key
from remapkit.patterns.literals import read_word
from remapkit.plans.moves import Move, describe_sources
from remapkit.plans.roots import advise_roots
from remapkit.rules.model import AMBIGUITY_HELP, CompiledRules, Match
from remapkit.rules.near_miss import find_nearest_rule
from remapkit.sources.declared import read_declared_target
from remapkit.tensors.families import mask_indices
from remapkit.tensors.spec import StateDictSpec, find_name_problem


def report_no_tensors(source: StateDictSpec) -> list[Diagnostic]:
    if source:
        return []
    return [Diagnostic("RK300", "the checkpoint has no tensors", place=source.name)]


def report_impossible_targets(source: StateDictSpec, moves: Sequence[Move]) -> list[Diagnostic]:
    """Report targets whose names a reader of the file would reject."""
    found = {move.target: problem for move in moves if (problem := _find_name_problem(move.target))}
    if not found:
        return []
    join_words = [f"{fqn!r} {problem}" for fqn, problem in found.items()]
    return [
        Diagnostic(
            "RK306",
            f"{count_noun(len(found), 'target')} cannot be used as a tensor name",
            notes=(list_names(join_words),),
            help=("correct the template, or name the source keys under `drop:`",),
            place=source.name,
            values={"targets": list(found)},
        )
    ]


def _find_name_problem(fqn: str) -> str | None:
    if fqn == "__metadata__":
        return "is reserved for the metadata of safetensors files"
    return find_name_problem(fqn)


def _advise_converted(rules: CompiledRules, fqns: Sequence[str]) -> list[str]:
    """Say so if all keys, with their numbers left open, are names of the target that the rules declare."""
    try:
        target = read_declared_target(rules.last.file)
    except RemapkitError:  # whoever checks against the target reports it
        return []
    if target is None or not set(map(mask_indices, fqns)) <= set(map(mask_indices, target)):
        return []
    return [f"these keys are what {rules.name} writes: the checkpoint may be converted already"]


def report_unmatched_keys(
    rules: CompiledRules, source: StateDictSpec, fqns: Sequence[str], root: str
) -> list[Diagnostic]:
    if not fqns:
        return []
    help = ["add a rule for them, or name them under `keep:` or `drop:`"]
    if len(fqns) == len(source):
        none = f"none of {len(fqns)} keys is" if len(fqns) > 1 else "the only key is not"
        title = f"{none} matched by a rule of {rules.name}: is this another layout?"
        help = [f"these rules read keys like {key}" for key in list_example_keys(rules)[:1]] or help
        help = [*_advise_converted(rules, fqns), *help]
        if rules.file.source_files and not any(source.prefixes):
            mounts = join_words([show_key(text.value) for text in rules.file.source_files])
            help += [
                f"the rule file reads the files of a folder as {mounts}: name the folder as the source, or a mount"
            ]
    else:
        title = (
            f"{count_noun(len(fqns), 'key')} of {len(source)} {'is' if len(fqns) == 1 else 'are'} matched by no rule"
        )
    help = [*advise_roots(rules, source, fqns, root), *help]
    notes = [list_names(fqns)]
    notes += [near for fqn in fqns[:1] if (near := _describe_near_miss(rules, fqn))]
    return [
        Diagnostic(
            "RK301",
            title,
            notes=tuple(notes),
            help=tuple(help),
            place=source.name,
            values={"unmatched": list(fqns)},
        )
    ]


def list_example_keys(rules: CompiledRules) -> list[str]:
    return [test.source.value for test in rules.tests]


def _describe_near_miss(rules: CompiledRules, fqn: str) -> str | None:
    if (nearest := find_nearest_rule(rules.everything, fqn)) is None:
        return None
    rule, stop = nearest
    return f"nearest to {fqn} is {rule.id}, which stopped after {fqn[: stop.offset]!r}: expected {stop.expected}"


def report_ambiguous_matches(source: StateDictSpec, matches: Mapping[str, tuple[Match, ...]]) -> list[Diagnostic]:
    by_rules: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for fqn, found in matches.items():
        if len(found) > 1:
            by_rules[tuple(match.rule.id for match in found)].append(fqn)
    problems = []
    for ids, fqns in by_rules.items():
        found = matches[fqns[0]]
        labels = tuple(
            Label(match.rule.span, f"{match.rule.id} -> {match.target or 'dropped'}", primary=number > 0)
            for number, match in enumerate(found)
            if match.rule.span is not None
        )
        title = f"{count_noun(len(fqns), 'key')} matched by {join_words(ids)}; a key may match only one rule"
        problems.append(
            Diagnostic(
                "RK302",
                title,
                labels=labels,
                notes=(list_names(fqns),),
                help=(AMBIGUITY_HELP,),
                place=source.name,
                values={"rules": list(ids), "keys": fqns},
            )
        )
    return problems


def report_collisions(source: StateDictSpec, moves: Sequence[Move]) -> list[Diagnostic]:
    if len({move.target for move in moves}) == len(moves):
        return []
    by_target: defaultdict[str, list[Move]] = defaultdict(list)
    for move in moves:
        by_target[move.target].append(move)
    by_rules: defaultdict[tuple[str, ...], list[list[Move]]] = defaultdict(list)
    for group in by_target.values():
        if len(group) > 1:
            by_rules[tuple(dict.fromkeys(move.rule.id for move in group))].append(group)
    problems = []
    for groups in by_rules.values():
        sources = sum(len(move.sources) for group in groups for move in group)
        counts = Counter(move.rule.id for group in groups for move in group)
        spans = {move.rule.id: move.rule.span for move in groups[0]}
        labels = tuple(
            Label(span, f"{rule}: {counts[rule]} of them", number > 0)
            for number, (rule, span) in enumerate(spans.items())
            if span is not None
        )
        if len(labels) == 1:
            labels = (Label(labels[0].span, labels[0].text),)
        problems.append(
            Diagnostic(
                "RK303",
                f"{sources} source keys map to {count_noun(len(groups), 'target key')}; each must have one source",
                labels=labels,
                notes=tuple(_describe_collision(group) for group in groups[:SHOWN])
                + ((f"... and {len(groups) - SHOWN} more",) if len(groups) > SHOWN else ()),
                help=("use the capture that distinguishes them in the template, or drop all but one by name",),
                place=source.name,
                values={
                    "collisions": {
                        group[0].target: [fqn for move in group for fqn in move.sources] for group in groups
                    }
                },
            )
        )
    return problems


def _describe_collision(group: Sequence[Move]) -> str:
    sources = list_names([f"{describe_sources(move)}  (by {move.rule})" for move in group])
    return f"{sources}\n{'both' if len(group) == 2 else 'all'} become {group[0].target}"


def report_unused_rules(rules: CompiledRules, used: Mapping[str, int]) -> list[Diagnostic]:
    unused = [rule for rule in rules.everything if not used.get(rule.id) and not rule.branch]
    help = ("remove it, or run `remapkit explain` to see where it stops matching",)
    found = [
        _warn_unused("RK304", f"{rule.id} matched no key", rule.span, help, {"rule": rule.id})
        for rule in unused[:SHOWN]
    ]
    if more := [rule.id for rule in unused[SHOWN:]]:
        title = f"{count_noun(len(more), 'more rule')} matched no key"
        found.append(_warn_unused("RK304", title, None, (), {"rules": more}, list_names(more)))
    return found


def report_unused_entries(
    rules: CompiledRules, used: Mapping[str, int], entries: Iterable[tuple[str, str]]
) -> list[Diagnostic]:
    """Report unused entries of tables that were used at least once.

    An unused table belongs to rules that matched nothing, which are reported already.
    """
    seen = set(entries)
    tables = {name for name, _ in seen}
    unused = [
        (table.name.value, entry)
        for table in rules.file.tables
        if table.name.value in tables
        for entry in table.entries
        if (table.name.value, (read_word(entry.key, "key", []) or entry.key).value) not in seen
    ]
    help = ("remove it unless other checkpoints of this layout need it",)
    found = [
        _warn_unused(
            "RK305",
            f"no key uses the entry {entry.key.value!r} of the table {table!r}",
            entry.span,
            help,
            {"table": table, "key": entry.key.value},
        )
        for table, entry in unused[:SHOWN]
    ]
    if more := [f"{table}: {entry.key.value}" for table, entry in unused[SHOWN:]]:
        title = f"no key uses {count_noun(len(more), 'more entry', 'more entries')} of the tables"
        found.append(_warn_unused("RK305", title, None, (), {"entries": more}, list_names(more)))
    return found


def _warn_unused(
    code: str, title: str, span: Span | None, help: tuple[str, ...], values: Mapping[str, object], *notes: str
) -> Diagnostic:
    labels = (Label(span),) if span is not None else ()
    return Diagnostic(code, title, labels, help, notes, Severity.WARNING, values=dict(values))
