"""Moves of rules with operations. Sources are grouped by their captures, and the target headers are inferred.

A group has one source for each pattern of the rule and each stacked index, all with the same other captures. A
missing or duplicate source is an error that names the source.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import SHOWN, count_noun, join_words, list_names
from remapkit.ops.base import Op, RefusedOp, infer_ops, normalize_dim
from remapkit.ops.join import Join, SplitPart, TakeIndex, infer_move
from remapkit.patterns.pattern import Pattern
from remapkit.plans.moves import Move, RuleRef
from remapkit.rulefile.arithmetic import BadNumber, NoValue
from remapkit.rules.model import CompiledRules, Match
from remapkit.rules.pipeline import AddedTargets, Pipeline, Resolved
from remapkit.tensors.spec import StateDictSpec, TensorSpec


@dataclass(slots=True)
class Gathered:
    """The result of pipelines for a header: moves with their position in its order, ties, and problems."""

    moves: list[tuple[int, Move]] = field(default_factory=list)
    tied: list[tuple[str, ...]] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)


@dataclass(slots=True)
class _Group:
    """The sources of one group by (index, branch); `place` is the position of the first one in the header."""

    captures: Mapping[str, str]
    place: int
    found: defaultdict[tuple[int, int], list[str]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class _Failure:
    title: str
    help: tuple[str, ...]
    code: str
    span: Span | None
    notes: list[str]


class SourceGroups:
    """A collector of the keys that rules with operations match; turns them into moves at the end."""

    def __init__(self, rules: CompiledRules, source: StateDictSpec) -> None:
        self.rules, self.source = rules, source
        self.groups: dict[int, dict[tuple[tuple[str, str], ...], _Group]] = {}
        self.pipelines: dict[int, Pipeline] = {}

    def add_key(self, fqn: str, match: Match, place: int) -> None:
        """Add one source key; `place` is its position in the header."""
        pipeline = match.rule.pipeline
        assert pipeline is not None
        captures = dict(match.captures)
        index = int(captures.pop(pipeline.stack.by)) if pipeline.stack is not None else 0
        self.pipelines[id(pipeline)] = pipeline
        groups = self.groups.setdefault(id(pipeline), {})
        key = tuple(sorted(captures.items()))
        group = groups.setdefault(key, _Group(captures, place))
        group.found[index, match.rule.branch].append(fqn)

    def gather_moves(self) -> Gathered:
        """Return every move and every problem."""
        gathered = Gathered()
        for number, groups in self.groups.items():
            self._gather_pipeline(self.pipelines[number], list(groups.values()), gathered)
        end = len(self.source)
        for filled in self.rules.add:
            gathered.moves += ((end, move) for move in self._make_added_moves(filled, gathered.problems))
        return gathered

    def _gather_pipeline(self, pipeline: Pipeline, groups: Sequence[_Group], gathered: Gathered) -> None:
        resolved = self._resolve_pipeline(pipeline, gathered.problems)
        if resolved is None:
            return
        whole = [group for group in groups if not self._is_incomplete(pipeline, resolved, group)]
        gathered.problems += self._report_holes(pipeline, resolved, [group for group in groups if group not in whole])
        failures: dict[tuple[str, int], _Failure] = {}
        for group in whole:
            made = list(_make_moves(pipeline, resolved, group, self.source, failures))
            gathered.moves += ((group.place, move) for move in made)
            if pipeline.share == "tie" and len(made) > 1:
                gathered.tied += _list_ties(made, len(pipeline.templates[0]))
        gathered.problems += (_report_failure(pipeline, each, self.source) for each in failures.values())

    def _resolve_pipeline(self, pipeline: Pipeline, problems: list[Diagnostic]) -> Resolved | None:
        try:
            return pipeline.resolve(self.rules.params)
        except BadNumber as error:
            problems.append(_report_bad_number(pipeline.id, pipeline.span, error, self.source.name))
            return None

    def _make_added_moves(self, filled: AddedTargets, problems: list[Diagnostic]) -> Iterator[Move]:
        try:
            op = filled.op(self.rules.params)
        except BadNumber as error:
            problems.append(_report_bad_number(filled.id, filled.span, error, self.source.name))
            return
        for target in filled.targets:
            yield Move(target, (), (op,), RuleRef(filled.id, filled.span), op.spec)

    # -------------------------------------------------------------------------------------------- completeness

    def _list_wanted(self, pipeline: Pipeline, resolved: Resolved, group: _Group) -> list[tuple[int, int]]:
        """Return every index and branch that a group must have."""
        largest = max(index for index, _ in group.found) + 1
        count = largest if resolved.stacked is None else resolved.stacked
        return [(index, branch) for index in range(count) for branch in range(len(pipeline.patterns))]

    def _is_incomplete(self, pipeline: Pipeline, resolved: Resolved, group: _Group) -> bool:
        # A key like experts.4000000000 must not build a list of four billion: compare the numbers of indices first.
        indices = {index for index, _ in group.found}
        if len(indices) != max(indices) + 1 or any(len(fqns) > 1 for fqns in group.found.values()):
            return True
        if resolved.stacked is not None and len(indices) != resolved.stacked:
            return True
        return sorted(group.found) != self._list_wanted(pipeline, resolved, group)

    def _report_holes(self, pipeline: Pipeline, resolved: Resolved, groups: Sequence[_Group]) -> Iterator[Diagnostic]:
        twice, lacking, beyond = [], [], []
        for group in groups:
            twice += [" and ".join(fqns) for fqns in group.found.values() if len(fqns) > 1]
            lacking += list(self._list_missing(pipeline, resolved, group))
            if resolved.stacked is not None:
                beyond += [fqns[0] for (index, _), fqns in group.found.items() if index >= resolved.stacked]
        if twice:
            match = "matches" if len(twice) == 1 else "match"
            title = f"{pipeline.id}: {count_noun(len(twice), 'source')} {match} twice; only one of each could be kept"
            help = "the keys differ in text that the pattern does not capture: capture it, or narrow the pattern"
            yield self._make_problem(pipeline, "RK342", title, twice, help, "duplicates")
        if lacking:
            number = sum(each.number for each in lacking)
            title = (
                f"{pipeline.id}: {count_noun(number, 'source key')} missing for {count_noun(len(groups), 'target')}"
            )
            notes = [note for each in lacking for note in each.notes]
            help = "get the whole checkpoint; remapkit does not stack or concatenate with entries missing"
            bounds = next((found for group in groups if (found := _explain_bounds(pipeline, group))), None)
            yield self._make_problem(pipeline, "RK340", title, notes, bounds or help, "missing")
        if beyond:
            title = f"{pipeline.id}: {count_noun(len(beyond), 'source key')} beyond the `count` of {resolved.stacked}"
            yield self._make_problem(
                pipeline, "RK343", title, beyond, "correct `count`, or the param it is computed from", "beyond"
            )

    def _make_problem(
        self, pipeline: Pipeline, code: str, title: str, lines: Sequence[str], help: str, what: str
    ) -> Diagnostic:
        return Diagnostic(
            code,
            title,
            labels=(Label(pipeline.span),),
            notes=(list_names(lines),),
            help=(help,),
            place=self.source.name,
            values={"rule": pipeline.id, what: list(lines)},
        )

    def _list_missing(self, pipeline: Pipeline, resolved: Resolved, group: _Group) -> Iterator[_Lacking]:
        indices = sorted({index for index, _ in group.found})
        top = indices[-1] + 1 if resolved.stacked is None else resolved.stacked
        # Render with the template of an existing source: another pattern may exclude what this one captured.
        here = min(branch for _, branch in group.found)
        target = pipeline.templates[here][0].render(_add_unstack_index(pipeline, group.captures))
        if pipeline.stack is not None:
            gaps = list(_find_gaps(indices, top))
            if gaps:
                words = join_words((_write_range(start, stop) for start, stop in gaps), SHOWN)
                there = join_words(map(str, indices), SHOWN)
                number = sum(stop - start for start, stop in gaps) * len(pipeline.patterns)
                first = _render_source(pipeline.patterns[0], {**group.captures, pipeline.stack.by: str(gaps[0][0])})
                note = f"{target}: {pipeline.stack.by} has {there} but not {words}; {first} is missing"
                yield _Lacking(number, [note])
        absent = [
            (index, branch)
            for index in indices
            for branch in range(len(pipeline.patterns))
            if (index, branch) not in group.found and index < top
        ]
        if absent:
            by = pipeline.folded
            keys = [
                _render_source(
                    pipeline.patterns[branch], {**group.captures, **({by: str(index)} if by is not None else {})}
                )
                for index, branch in absent
            ]
            yield _Lacking(len(absent), [f"{key} (for {target})" for key in keys])


def _explain_bounds(pipeline: Pipeline, group: _Group) -> str | None:
    """Return the help for a source that can never exist because its pattern excludes another source's captures."""
    for pattern in pipeline.patterns:
        for name, value in group.captures.items():
            part = pattern.capture(name)
            if part is not None and part.values is not None and value not in part.values:
                bound = f"{name} = {value}, which {pattern.text} excludes"
                return f"another source has {bound}; bound {name!r} in the same way in all sources of the rule"
    return None


@dataclass(slots=True)
class _Lacking:
    number: int
    notes: list[str]


def _find_gaps(indices: Sequence[int], top: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of missing indices below `top`."""
    expected = 0
    for index in [*(each for each in indices if each < top), top]:
        if index > expected:
            yield expected, index
        expected = index + 1


def _write_range(start: int, stop: int) -> str:
    return str(start) if stop == start + 1 else f"{start} to {stop - 1}"


def _render_source(pattern: Pattern, captures: Mapping[str, str]) -> str:
    """Return the source key for the given captures, with `...` for parts that they do not determine."""
    words = []
    for part in pattern.parts:
        if part.name is not None:
            words.append(captures.get(part.name, "..."))
        else:
            words.append(part.values[0] if part.values and len(part.values) == 1 else "...")
    return "".join(words)


# ------------------------------------------------------------------------------------------------------- moves


def _make_moves(
    pipeline: Pipeline,
    resolved: Resolved,
    group: _Group,
    source: StateDictSpec,
    failures: dict[tuple[str, int], _Failure],
) -> Iterator[Move]:
    """Return the moves of one complete group, or a failure if its tensors do not fit."""
    sources = tuple(fqns[0] for _, fqns in sorted(group.found.items()))
    specs = [source[fqn] for fqn in sources]
    ref = RuleRef(pipeline.id, pipeline.span)
    try:
        trunk = collect_shared_ops(pipeline, resolved)
        whole = infer_move(trunk, specs, sources)
        for number, tail in _list_unstack_ops(pipeline, resolved, whole):
            captures = dict(group.captures)
            if pipeline.unstack is not None:
                captures[pipeline.unstack.by] = str(number)
            for output, branch in enumerate(resolved.after):
                target = pipeline.templates[0][output].render(captures)
                part = _make_split_op(pipeline, resolved, output)
                ops = (*trunk, *tail, *part, *branch)
                spec = infer_ops((*tail, *part, *branch), whole)
                yield Move(target, sources, ops, ref, spec)
    except RefusedOp as refused:
        place = resolved.spans.get(id(refused.op)) or _find_span(pipeline, refused.op)
        failure = failures.setdefault(
            (refused.title, place.start if place else 0),
            _Failure(refused.title, refused.help, refused.code, place, []),
        )
        target = pipeline.templates[0][0].render(_add_unstack_index(pipeline, group.captures))
        failure.notes.append(f"{_describe_specs(sources, specs)} -> {target}")


def _describe_specs(sources: Sequence[str], specs: Sequence[TensorSpec]) -> str:
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{sources[0]} ({specs[0]}){more}"


def collect_shared_ops(pipeline: Pipeline, resolved: Resolved) -> tuple[Op, ...]:
    """Return the operations shared by all targets of a group."""
    if len(resolved.before) == 1 and pipeline.stack is None:
        return (*resolved.before[0], *resolved.ops)
    stack = pipeline.stack.dim if pipeline.stack is not None else None
    concat = pipeline.concat.dim if pipeline.concat is not None else None
    equal = pipeline.concat is not None and pipeline.concat.equal
    return (Join(resolved.before, concat, stack, resolved.joined, equal, resolved.combine), *resolved.ops)


def _list_unstack_ops(
    pipeline: Pipeline, resolved: Resolved, whole: TensorSpec
) -> Iterator[tuple[int, tuple[Op, ...]]]:
    """Return each index that `unstack` makes, with the operation that selects it."""
    if pipeline.unstack is None:
        yield 0, ()
        return
    size = whole.shape[normalize_dim(pipeline.unstack.dim, whole)]
    if not size:
        title = f"nothing to unstack: the dimension has 0 elements, in {list(whole.shape)}"
        raise RefusedOp(title, "if the key should have no target, name it under `drop:`")
    if resolved.unstacked is not None and size != resolved.unstacked:
        title = f"`count` is {resolved.unstacked}, got {size} elements to unstack in {list(whole.shape)}"
        raise RefusedOp(title, "correct `count`, or the param it is computed from")
    for index in range(size):
        yield index, (TakeIndex(pipeline.unstack.dim, index),)


def _make_split_op(pipeline: Pipeline, resolved: Resolved, output: int) -> tuple[Op, ...]:
    if pipeline.split is None:
        return ()
    return (SplitPart(pipeline.split.dim, output, len(resolved.after), resolved.sizes),)


def _add_unstack_index(pipeline: Pipeline, captures: Mapping[str, str]) -> dict[str, str | None]:
    return {**captures, **({pipeline.unstack.by: None} if pipeline.unstack is not None else {})}


def _find_span(pipeline: Pipeline, op: Op | None) -> Span | None:
    if isinstance(op, SplitPart) and pipeline.split is not None:
        return pipeline.split.span
    if isinstance(op, TakeIndex) and pipeline.unstack is not None:
        return pipeline.unstack.span
    if op is None and pipeline.combine is not None:
        return pipeline.combine.span
    return pipeline.span


def _list_ties(moves: Sequence[Move], outputs: int) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(moves), outputs):
        yield tuple(move.target for move in moves[start : start + outputs])


# ---------------------------------------------------------------------------------------------------- problems


def _report_failure(pipeline: Pipeline, failure: _Failure, source: StateDictSpec) -> Diagnostic:
    more = "" if len(failure.notes) == 1 else f" ({count_noun(len(failure.notes), 'time')})"
    return Diagnostic(
        failure.code,
        f"{pipeline.id}: {failure.title}{more}",
        labels=(Label(failure.span),) if failure.span is not None else (),
        notes=(list_names(failure.notes),),
        help=failure.help,
        place=source.name,
        values={"rule": pipeline.id, "at": failure.notes},
    )


def _report_bad_number(id: str, span: Span, error: BadNumber, place: str) -> Diagnostic:
    if isinstance(error, NoValue):
        title = f"{id} needs the param {error.names[0]!r}, which has no value"
        help = (f"pass --param {error.names[0]}=NUMBER, or --config config.json if the rules name its entry",)
        return Diagnostic("RK341", title, (Label(span),), help, place=place, values={"params": list(error.names)})
    return Diagnostic("RK341", f"{id}: {error}", (Label(span),), ("correct the params",), place=place)
