"""A plan: for one concrete header, every move, and everything that stands in its way.

Pure: no file is opened and no data is read. Shapes and dtypes of the targets are inferred from the header, and all
problems are collected before any is shown.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remapkit.diagnostics.diagnostic import Diagnostic, FailedCheck, Label, Severity, counted, listed, one_line
from remapkit.diagnostics.source import Span
from remapkit.ops.shape import Op
from remapkit.tensors.spec import DTYPE_BITS, StateDictSpec, TensorSpec, name_problem

if TYPE_CHECKING:
    from remapkit.plans.check import Check
    from remapkit.plans.groups import Gathered
    from remapkit.rules.compile import Match, Rule, RuleSet

SHOWN = 5
"""How many keys a message names before it only counts; JSON output always has them all."""


@dataclass(frozen=True, slots=True)
class RuleRef:
    """The rule that made a move: its id (`keep[0]` for the first `keep`) and its place in its file."""

    id: str
    span: Span | None = None

    def __str__(self) -> str:
        return self.id


UNMATCHED = RuleRef("unmatched")
"""Stands for `unmatched: keep` and `unmatched: drop` where no rule took the key."""


@dataclass(frozen=True, slots=True)
class Move:
    """One target tensor: where it comes from, what is done on the way, and what it will be.

    A move without `ops` has exactly one source and copies its bytes. Several sources are joined by the first
    operation; a move without a source makes its tensor (`add:`).
    """

    target: str
    sources: tuple[str, ...]
    ops: tuple[Op, ...]
    rule: RuleRef
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class Dropped:
    """A source key that is left behind, and the rule that says so."""

    fqn: str
    rule: RuleRef


@dataclass(frozen=True, slots=True)
class Plan:
    """Every move for one header, in the header's order, with what was dropped and what is wrong.

    `problems` are errors: a plan that has any is never executed. `warnings` ask for a look: rules and table entries
    that nothing used. `tied` holds the groups of targets whose sources share one storage. `recorded` are the moves of
    names that a safetensors file only records as tied and that no rule names, by those names: they are made where a
    target asks for them (`asked`).

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

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.problems

    @property
    def target(self) -> StateDictSpec:
        """The header that the moves produce."""
        tensors = {move.target: move.spec for move in self.moves}
        return StateDictSpec(tensors, self.tied, self.source.metadata, self.name, self.records())

    def asked(self, names: Container[str]) -> Plan:
        """The plan with the recorded names that a target has as moves of their own; `names` are the target's."""
        from remapkit.plans.recorded import asked

        return asked(self, names)

    def records(self) -> dict[str, str]:
        """The names that stay records, in new names: `other -> kept`."""
        from remapkit.plans.recorded import records

        return records(self)

    @property
    def renamed(self) -> int:
        """How many moves change the name."""
        return sum(move.sources != (move.target,) for move in self.moves)

    def check(self, target: object, *, strict_dtype: bool = False) -> Check:
        """Hold the plan against a target: a torch module (on meta or not), a path, a header, or a state dict.

        >>> import remapkit
        >>> spec = remapkit.TensorSpec("F32", (96,))
        >>> plan = remapkit.load("wan22_pth").plan({"conv1.bias": spec})
        >>> plan.check({"conv1.bias": spec, "conv2.bias": spec}).missing_keys
        ('conv2.bias',)
        """
        from remapkit.models.target import header
        from remapkit.plans.check import make_check

        return make_check(self, header(target), strict_dtype=strict_dtype)

    def raise_for_problems(self) -> None:
        """Raise `FailedCheck` with every problem, if there is any."""
        if self.problems:
            raise FailedCheck(self.problems)

    def __str__(self) -> str:
        kept = len(self.moves) - self.renamed
        parts = [
            counted(len(self.source), "key"),
            f"{self.renamed} renamed",
            f"{kept} kept",
            f"{len(self.dropped)} dropped",
        ]
        if self.problems:
            parts.append(counted(len(self.problems), "problem"))
        return f"{self.name}: {', '.join(parts)}"


def make_plan(rules: RuleSet, header: StateDictSpec | Mapping[str, TensorSpec]) -> Plan:
    """The plan of `rules` for one header; never raises for what the header holds, but collects it in `problems`."""
    from remapkit.plans.cast import losses
    from remapkit.plans.companions import judge_companions
    from remapkit.plans.recorded import only_recorded, sort_out, with_data
    from remapkit.plans.stale_metadata import stale_names
    from remapkit.rules.requirements import unmet

    whole = header if isinstance(header, StateDictSpec) else StateDictSpec(dict(header))
    source, led = sort_out(rules, whole) if whole.recorded else (whole, {})
    matches = {fqn: rules.match(fqn) for fqn in source}
    moves, dropped, unmatched, gathered = _decide(rules, source, matches)
    judged = judge_companions(source, moves, dropped, rules.neutral)
    problems = [
        *_no_tensors(source),
        *_impossible(source, moves),
        *_below_a_byte(source, moves),
        *_unmatched(rules, source, unmatched),
        *_ambiguous(source, matches),
        *gathered.problems,
        *_collisions(source, moves),
        *judged.problems,
        *unmet(rules, source),
    ]
    if source and not moves and not problems:
        problems.append(_nothing_left(rules, source))
    used = Counter([match.rule.id for found in matches.values() for match in found])
    entries = {use for found in matches.values() for match in found if match.rule.tables for use in match.table_uses}
    return Plan(
        name=rules.name,
        source=source,
        moves=tuple(with_data(moves, whole.recorded) if whole.recorded else moves),
        dropped=tuple(dropped),
        problems=tuple(problems),
        warnings=(
            (
                *_unused_rules(rules, used),
                *_unused_entries(rules, used, entries),
                *losses(moves, source),
                *judged.warnings,
                *stale_names(source, moves),
            )
            if source
            else ()
        )
        + tuple(only_recorded(source, moves, led)),
        tied=(*_tied_targets(source, moves), *gathered.tied),
        recorded=led,
    )


def _decide(
    rules: RuleSet, source: StateDictSpec, matches: Mapping[str, tuple[Match, ...]]
) -> tuple[list[Move], list[Dropped], list[str], Gathered]:
    from remapkit.plans.groups import Gather

    moves: list[Move] = []
    places: list[int] = []
    dropped: list[Dropped] = []
    unmatched: list[str] = []
    gather = Gather(rules, source)
    refs = {id(rule): _ref(rule) for rule in rules.everything}
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
            if match.rule.flow is not None:
                gather.take(fqn, match, place)
            elif match.target is None:
                dropped.append(Dropped(fqn, refs[id(match.rule)]))
            else:
                moves.append(Move(match.target, (fqn,), (), refs[id(match.rule)], spec))
                places.append(place)
    gathered = gather.finish()
    if gathered.moves:
        both = sorted([*zip(places, moves, strict=True), *gathered.moves], key=lambda pair: pair[0])
        moves = [move for _, move in both]
    return moves, dropped, unmatched, gathered


def _ref(rule: Rule) -> RuleRef:
    return RuleRef(rule.id, rule.span)


def _no_tensors(source: StateDictSpec) -> list[Diagnostic]:
    if source:
        return []
    return [Diagnostic("RK300", "the checkpoint holds no tensors: there is nothing to map", place=source.name)]


def _nothing_left(rules: RuleSet, source: StateDictSpec) -> Diagnostic:
    number = counted(len(source), "key")
    title = f"nothing is left: {rules.name} drops all of the {number}: is this another layout?"
    if len(source) == 1:
        title = f"nothing is left: {rules.name} drops the only key: is this another layout?"
    help = [f"these rules read keys like {key}" for key in _examples(rules)[:1]]
    help += ["see `remapkit explain RULES KEY` for where a rule stops"]
    notes = (named(list(source)),)
    values = {"dropped": list(source)}
    return Diagnostic("RK368", title, help=tuple(help), notes=notes, place=source.name, values=values)


def _impossible(source: StateDictSpec, moves: Sequence[Move]) -> list[Diagnostic]:
    """Targets that no checkpoint can hold: their names would be refused by whoever reads the file."""
    found = {move.target: problem for move in moves if (problem := _name_problem(move.target))}
    if not found:
        return []
    listed = [f"{fqn!r} {problem}" for fqn, problem in found.items()]
    return [
        Diagnostic(
            "RK306",
            f"{counted(len(found), 'target')} cannot be the name of a tensor",
            notes=(named(listed),),
            help=("correct the template, or name the source keys under `drop:`",),
            place=source.name,
            values={"targets": list(found)},
        )
    ]


def _below_a_byte(source: StateDictSpec, moves: Sequence[Move]) -> list[Diagnostic]:
    """Operations on elements that share bytes with their neighbours: where one begins depends on its place."""
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
            f"{counted(len(found), 'target')} would be computed from {names}, whose elements take no whole bytes",
            notes=(named(list(found)),),
            help=("rename such tensors, or convert them to a wider dtype first",),
            place=source.name,
            values={"targets": list(found)},
        )
    ]


def _name_problem(fqn: str) -> str | None:
    if fqn == "__metadata__":
        return "is where safetensors files keep their metadata"
    return name_problem(fqn)


def _unmatched(rules: RuleSet, source: StateDictSpec, fqns: Sequence[str]) -> list[Diagnostic]:
    if not fqns:
        return []
    help = ["add a rule for them, or name them under `keep:` or `drop:`"]
    if len(fqns) == len(source):
        none = f"none of {len(fqns)} keys is" if len(fqns) > 1 else "the only key is not"
        title = f"{none} matched by a rule of {rules.name}: is this another layout?"
        help = [f"these rules read keys like {key}" for key in _examples(rules)[:1]] or help
        prefix = _wrapper_prefix(rules, fqns)
        if prefix:
            help.insert(0, f"without the prefix {prefix!r} they would match: strip it when the checkpoint is saved")
    else:
        title = f"{counted(len(fqns), 'key')} of {len(source)} {'is' if len(fqns) == 1 else 'are'} matched by no rule"
    notes = [named(fqns)]
    notes += [near for fqn in fqns[:1] if (near := _near_miss(rules, fqn))]
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


def _examples(rules: RuleSet) -> list[str]:
    return [test.source.value for test in rules.tests]


WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "_fsdp_wrapped_module.", "_forward_module.")
"""What DDP, torch.compile, Lightning, FSDP and DeepSpeed put before every key."""


def _wrapper_prefix(rules: RuleSet, fqns: Sequence[str]) -> str | None:
    for prefix in WRAPPER_PREFIXES:
        if all(fqn.startswith(prefix) and rules.match(fqn.removeprefix(prefix)) for fqn in fqns):
            return prefix
    return None


def _near_miss(rules: RuleSet, fqn: str) -> str | None:
    """Which rule read furthest into the key, and where it stopped."""
    stops = [(rule, stop) for rule in (*rules.rules, *rules.keep, *rules.drop) if (stop := rule.stopped_at(fqn))]
    if not stops:
        return None
    rule, stop = max(stops, key=lambda pair: pair[1].offset)
    if stop.offset == 0:
        return None
    return f"nearest to {fqn} is {rule.id}, which stopped after {fqn[: stop.offset]!r}: expected {stop.expected}"


def _ambiguous(source: StateDictSpec, matches: Mapping[str, tuple[Match, ...]]) -> list[Diagnostic]:
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
        title = f"{counted(len(fqns), 'key')} matched by {listed(ids)}: one key, one rule"
        problems.append(
            Diagnostic(
                "RK302",
                title,
                labels=labels,
                notes=(named(fqns),),
                help=("narrow one of the patterns, or guard it with `where:` or `leaf:`; order never decides",),
                place=source.name,
                values={"rules": list(ids), "keys": fqns},
            )
        )
    return problems


def _collisions(source: StateDictSpec, moves: Sequence[Move]) -> list[Diagnostic]:
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
                f"{sources} source keys land on {counted(len(groups), 'target key')}: the mapping is not injective",
                labels=labels,
                notes=tuple(_collision_note(group) for group in groups[:SHOWN])
                + ((f"... and {len(groups) - SHOWN} more",) if len(groups) > SHOWN else ()),
                help=("use the capture that tells them apart in the template, or drop all but one of them by name",),
                place=source.name,
                values={
                    "collisions": {
                        group[0].target: [fqn for move in group for fqn in move.sources] for group in groups
                    }
                },
            )
        )
    return problems


def _collision_note(group: Sequence[Move]) -> str:
    sources = "\n".join(f"{from_where(move)}  (by {move.rule})" for move in group[:SHOWN])
    more = f"\n... and {len(group) - SHOWN} more" if len(group) > SHOWN else ""
    return f"{sources}{more}\n{'both' if len(group) == 2 else 'all'} become {group[0].target}"


def from_where(move: Move) -> str:
    """The sources of a move in a few words.

    >>> from_where(Move("t", ("a", "b", "c"), (), RuleRef("r"), TensorSpec("F32", (1,))))
    'a and 2 more'
    """
    if not move.sources:
        return "(no source)"
    more = f" and {len(move.sources) - 1} more" if len(move.sources) > 1 else ""
    return move.sources[0] + more


def _unused_rules(rules: RuleSet, used: Mapping[str, int]) -> list[Diagnostic]:
    return [
        Diagnostic(
            "RK304",
            f"{rule.id} matched no key",
            labels=(Label(rule.span),) if rule.span else (),
            help=("remove it, or see `remapkit explain` for where it stops matching",),
            severity=Severity.WARNING,
            values={"rule": rule.id},
        )
        for rule in (*rules.rules, *rules.keep, *rules.drop)
        if not used.get(rule.id) and not rule.branch
    ]


def _unused_entries(rules: RuleSet, used: Mapping[str, int], entries: Iterable[tuple[str, str]]) -> list[Diagnostic]:
    """Entries of tables that some key went through, but that no key needed.

    A table that no key went through at all belongs to rules that matched nothing, which is said already.
    """
    seen = set(entries)
    tables = {name for name, _ in seen}
    return [
        Diagnostic(
            "RK305",
            f"no key uses the entry {entry.key.value!r} of the table {table.name.value!r}",
            labels=(Label(entry.span),),
            help=("remove it if it is not meant for other checkpoints of this layout",),
            severity=Severity.WARNING,
            values={"table": table.name.value, "key": entry.key.value},
        )
        for table in rules.file.tables
        if table.name.value in tables
        for entry in table.entries
        if (table.name.value, entry.key.value) not in seen
    ]


def _tied_targets(source: StateDictSpec, moves: Sequence[Move]) -> tuple[tuple[str, ...], ...]:
    if not source.tied:
        return ()
    targets: defaultdict[str, list[str]] = defaultdict(list)
    for move in moves:
        if not move.ops:
            targets[move.sources[0]].append(move.target)
    groups = (tuple(target for fqn in group for target in targets.get(fqn, ())) for group in source.tied)
    return tuple(group for group in groups if len(group) > 1)


def named(fqns: Sequence[str], shown: int = SHOWN) -> str:
    """The first few keys, one a line, and how many more there are.

    >>> print(named(["a", "b", "c"], shown=2))
    a
    b
    ... and 1 more
    """
    lines = list(map(one_line, fqns[:shown]))
    if len(fqns) > shown:
        lines.append(f"... and {len(fqns) - shown} more")
    return "\n".join(lines)
