"""Moves of rules with operations. Sources are grouped by their captures, and the target headers are inferred.

A group has one source for each pattern of the rule and each joined index, all with the same other captures. A missing
or duplicate source is an error that names the source. Without a `count`, a group may stack any number of indices; but
all groups of a rule must join or merge the same number, because nothing else shows that the last rank is missing.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import SHOWN, count_noun, join_words, list_names
from remapkit.ops.base import Op, RefusedOp, infer_ops, normalize_dim
from remapkit.ops.calls import Arg
from remapkit.ops.join import Join, SplitPart, TakeIndex, infer_move
from remapkit.patterns.pattern import Pattern
from remapkit.plans.moves import Move, RuleRef
from remapkit.rulefile.arithmetic import BadNumber, Expr, Name, NoValue
from remapkit.rulefile.syntax import RuleFile
from remapkit.rules.axes import describe_counts
from remapkit.rules.model import CompiledRules, Match
from remapkit.rules.pipeline import AddedTargets, Pipeline, Resolved
from remapkit.tensors.families import MAX_DIGITS
from remapkit.tensors.spec import StateDictSpec, TensorSpec

MAX_ABSENT = 1000
"""At least so many missing sources of a group are listed, if there are so many."""


@dataclass(slots=True)
class Gathered:
    """The result of pipelines for a header: moves with their position in its order, ties, and problems."""

    moves: list[tuple[int, Move]] = field(default_factory=list)
    tied: list[tuple[str, ...]] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)


_Position = tuple[int, ...]
"""The position of a source in its group: an index for each folded capture, then the number of its pattern."""


@dataclass(slots=True)
class _Group:
    """The sources of one group by position; `place` is the position of the first one in the header."""

    captures: Mapping[str, str]
    place: int
    found: defaultdict[_Position, list[str]] = field(default_factory=lambda: defaultdict(list))


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
        indices = [int(captures.pop(name)) for name in pipeline.folded]
        self.pipelines[id(pipeline)] = pipeline
        groups = self.groups.setdefault(id(pipeline), {})
        key = tuple(sorted(captures.items()))
        group = groups.setdefault(key, _Group(captures, place))
        group.found[*indices, match.rule.branch].append(fqn)

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
        failures: dict[tuple[str, int], _Failure] = {}
        wrong: list[tuple[BadNumber, str]] = []
        varying = pipeline.list_captures(self.rules.params)
        for numbers, members in _split_groups(varying, groups):
            try:
                resolved = pipeline.resolve({**self.rules.params, **numbers})
            except BadNumber as error:
                wrong += ((error, fqns[0]) for member in members for fqns in list(member.found.values())[:1])
                continue
            self._gather_groups(pipeline, resolved, members, gathered, failures)
        if wrong:
            keys = [key for _, key in wrong] if varying else []
            found = _report_bad_number(pipeline.id, pipeline.span, wrong[0][0], self.source.name, keys)
            gathered.problems.append(found)
        gathered.problems += (_report_failure(pipeline, each, self.source) for each in failures.values())

    def _gather_groups(
        self,
        pipeline: Pipeline,
        resolved: Resolved,
        groups: Sequence[_Group],
        gathered: Gathered,
        failures: dict[tuple[str, int], _Failure],
    ) -> None:
        family = _count_family(pipeline, resolved, groups)
        tops = [_count_positions(pipeline, resolved, group, family) for group in groups]
        broken = [_is_broken(group, top) for group, top in zip(groups, tops, strict=True)]
        whole = [group for group, is_broken in zip(groups, broken, strict=True) if not is_broken]
        holes = [pair for pair, is_broken in zip(zip(groups, tops, strict=True), broken, strict=True) if is_broken]
        recount = _advise_recount(pipeline, holes, self.rules.file) if holes and not whole else []
        gathered.problems += self._report_holes(pipeline, holes, recount)
        width = len(pipeline.order) if pipeline.family is None else math.prod(family)
        for group in whole:
            made = list(_make_moves(pipeline, resolved, group, width, self.source, failures))
            gathered.moves += ((group.place, move) for move in made)
            if pipeline.share == "tie" and len(made) > 1:
                gathered.tied += _list_ties(made, len(pipeline.templates[0]))

    def _make_added_moves(self, filled: AddedTargets, problems: list[Diagnostic]) -> Iterator[Move]:
        try:
            op = filled.op(self.rules.params)
        except BadNumber as error:
            problems.append(_report_bad_number(filled.id, filled.span, error, self.source.name))
            return
        for target in filled.targets:
            yield Move(target, (), (op,), RuleRef(filled.id, filled.span), op.spec)

    # -------------------------------------------------------------------------------------------- completeness

    def _report_holes(
        self, pipeline: Pipeline, groups: Sequence[tuple[_Group, _Position]], recount: Sequence[str]
    ) -> Iterator[Diagnostic]:
        twice, lacking, beyond = [], [], []
        for group, tops in groups:
            twice += [" and ".join(fqns) for fqns in group.found.values() if len(fqns) > 1]
            lacking += list(_list_missing(pipeline, group, tops))
            beyond += [fqns[0] for position, fqns in group.found.items() if not _is_inside(position, tops)]
        if twice:
            match = "matches" if len(twice) == 1 else "match"
            title = f"{pipeline.id}: {count_noun(len(twice), 'source')} {match} twice; only one of each could be kept"
            help = "the keys differ in text that the pattern does not capture: capture it, or narrow the pattern"
            yield self._make_problem(pipeline, "RK342", title, twice, (help,), "duplicates")
        if lacking:
            number = sum(each.number for each in lacking)
            title = (
                f"{pipeline.id}: {count_noun(number, 'source key')} missing for {count_noun(len(groups), 'target')}"
            )
            notes = [note for each in lacking for note in each.notes]
            verb = "merge" if pipeline.merge else "stack or concatenate"
            help = f"get the whole checkpoint; remapkit does not {verb} with entries missing"
            bounds = next((found for group, _ in groups if (found := _explain_bounds(pipeline, group))), None)
            yield self._make_problem(pipeline, "RK340", title, notes, (*recount, bounds or help), "missing")
        if beyond:
            counts = describe_counts(groups[0][1][:-1])
            title = f"{pipeline.id}: {count_noun(len(beyond), 'source key')} beyond the `count` of {counts}"
            help = "correct `count`, or the param it is computed from"
            yield self._make_problem(pipeline, "RK343", title, beyond, recount or (help,), "beyond")

    def _make_problem(
        self, pipeline: Pipeline, code: str, title: str, lines: Sequence[str], help: Sequence[str], what: str
    ) -> Diagnostic:
        return Diagnostic(
            code,
            title,
            labels=(Label(pipeline.span),),
            notes=(list_names(lines),),
            help=tuple(help),
            place=self.source.name,
            values={"rule": pipeline.id, what: list(lines)},
        )


def _count_family(pipeline: Pipeline, resolved: Resolved, groups: Sequence[_Group]) -> _Position:
    """Return the number of values of each capture of `concat` or `merge`, or the number of patterns."""
    if pipeline.family is None:
        return (len(pipeline.patterns),)
    if resolved.gathered is not None:
        return resolved.gathered
    width = len(pipeline.family.by)
    found = [position[-1 - width : -1] for group in groups for position in group.found]
    return tuple(max(column) + 1 for column in zip(*found, strict=True))


def _count_positions(pipeline: Pipeline, resolved: Resolved, group: _Group, family: _Position) -> _Position:
    """Return the number of values that each entry of a position must have in a group."""
    stacked: _Position = ()
    if pipeline.stack is not None:
        columns = zip(*group.found, strict=True)
        stacked = resolved.stacked or tuple(
            max(column) + 1 for _, column in zip(pipeline.stack.by, columns, strict=False)
        )
    return (*stacked, *family) if pipeline.family is None else (*stacked, *family, 1)


def _is_inside(position: _Position, tops: _Position) -> bool:
    return all(index < top for index, top in zip(position, tops, strict=True))


def _is_broken(group: _Group, tops: _Position) -> bool:
    """Return whether a source is missing, twice there, or beyond a `count`."""
    # A key like experts.4000000000 must not build a list of four billion: the numbers are compared first.
    if len(group.found) != math.prod(tops) or any(len(fqns) > 1 for fqns in group.found.values()):
        return True
    return not all(_is_inside(position, tops) for position in group.found)


def _list_missing(pipeline: Pipeline, group: _Group, tops: _Position) -> Iterator[_Lacking]:
    inside = [position for position in group.found if _is_inside(position, tops)]
    number = math.prod(tops) - len(inside)
    if not number:
        return
    # Render with the template of an existing source: another pattern may exclude what this one captured.
    here = min(branch for *_, branch in group.found)
    target = pipeline.templates[here][0].render({**group.captures, **dict.fromkeys(pipeline.made)})
    notes = []
    known = [sorted({position[place] for position in group.found}) for place in range(len(tops))]
    for place, name in enumerate(pipeline.folded):
        gaps = list(_find_gaps(known[place], tops[place]))
        if gaps:
            words = join_words((_write_range(start, stop) for start, stop in gaps), SHOWN)
            there = join_words(map(str, known[place]), SHOWN)
            first = (*(indices[0] for indices in known[:place]), gaps[0][0])
            key = _render_position(pipeline, group, (*first, *(indices[0] for indices in known[len(first) : -1]), 0))
            notes.append(f"{target}: {name} has {there} but not {words}; {key} is missing")
    seen = [[index for index in indices if index < top] for indices, top in zip(known, tops, strict=True)]
    # With several indices there may be far more positions than sources: only the first ones are looked through.
    grid = itertools.product(*seen[:-1], range(tops[-1]))
    absent = [
        each for each in itertools.islice(grid, (len(group.found) + MAX_ABSENT) * tops[-1]) if each not in group.found
    ]
    notes += [f"{_render_position(pipeline, group, position)} (for {target})" for position in absent]
    yield _Lacking(number, notes)


def _render_position(pipeline: Pipeline, group: _Group, position: _Position) -> str:
    """Return the key of a source that a group lacks."""
    indices = dict(zip(pipeline.folded, map(str, position), strict=False))
    return _render_source(pipeline.patterns[position[-1]], {**group.captures, **indices})


def _split_groups(
    names: Sequence[str], groups: Sequence[_Group]
) -> Iterator[tuple[Mapping[str, int], Sequence[_Group]]]:
    """Yield the groups in which some captures have the same values, with these values."""
    if not names:
        yield {}, groups
        return
    alike: defaultdict[tuple[str, ...], list[_Group]] = defaultdict(list)
    for group in groups:
        alike[tuple(group.captures[name] for name in names)].append(group)
    for words, members in alike.items():
        # No list and no tensor has 10^18 entries, so the exact value of a number this large does not matter.
        numbers = (int(word) if len(word) <= MAX_DIGITS else 10**MAX_DIGITS for word in words)
        yield dict(zip(names, numbers, strict=True)), members


def _advise_recount(pipeline: Pipeline, groups: Sequence[tuple[_Group, _Position]], file: RuleFile) -> list[str]:
    """Return the params with which all groups are whole: of another size, each is bound to another count.

    A smaller checkpoint lacks keys that the file declares. Its targets have other shapes than declared; those of a
    larger one may, if the declared source shows that it is of another size.
    """
    names = pipeline.folded
    axes = [axis for axis in (pipeline.stack, pipeline.family) if axis is not None]
    written = [arg for axis in axes for arg in axis.count or (None,) * len(axis.by)]
    tops = groups[0][1]
    found = tuple(max(column) + 1 for column in zip(*groups[0][0].found, strict=True))[: len(names)]
    if len(found) < len(names) or any(_is_broken(group, (*found, *tops[len(names) :])) for group, _ in groups):
        return []
    changed = [place for place, number in enumerate(found) if number != tops[place]]
    params = [_find_param(written[place]) for place in changed]
    if not changed or None in params:
        return []
    whole = join_words(f"{names[place]} goes from 0 to {found[place] - 1}" for place in changed)
    options = " ".join(f"--param {param}={found[place]}" for place, param in zip(changed, params, strict=True))
    fewer = any(found[place] < tops[place] for place in changed)
    if file.target is not None and (fewer or file.source_keys is None):
        options += " --no-target"
    if file.source_keys is not None and fewer:
        options += " --partial"
    return [f"if {whole} in the whole checkpoint, pass {options}"]


def _find_param(written: Arg | None) -> str | None:
    """Return the param that a number is, None if it is none, or is calculated."""
    name = written.postfix[0] if isinstance(written, Expr) and len(written.postfix) == 1 else None
    return name.name if type(name) is Name else None


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
    width: int,
    source: StateDictSpec,
    failures: dict[tuple[str, int], _Failure],
) -> Iterator[Move]:
    """Return the moves of one complete group, or a failure if its tensors do not fit."""
    sources = tuple(fqns[0] for _, fqns in sorted(group.found.items()))
    if pipeline.family is None:
        step = len(pipeline.patterns)
        sources = tuple(sources[at + number] for at in range(0, len(sources), step) for number in pipeline.order)
    specs = [source[fqn] for fqn in sources]
    ref = RuleRef(pipeline.id, pipeline.span)
    try:
        trunk = collect_shared_ops(pipeline, resolved, width)
        whole = infer_move(trunk, specs, sources)
        for place, tail in _list_unstack_ops(pipeline, resolved, whole):
            for index, output, part in _list_outputs(pipeline, resolved, infer_ops(tail, whole)):
                target = pipeline.templates[0][output].render({**group.captures, **place, **index})
                ops = (*trunk, *tail, *part)
                yield Move(target, sources, ops, ref, infer_ops((*tail, *part), whole))
    except RefusedOp as refused:
        at = resolved.spans.get(id(refused.op)) or _find_span(pipeline, refused.op)
        failure = failures.setdefault(
            (refused.title, at.start if at else 0),
            _Failure(refused.title, refused.help, refused.code, at, []),
        )
        target = pipeline.templates[0][0].render({**group.captures, **dict.fromkeys(pipeline.made)})
        failure.notes.append(f"{_describe_specs(sources, specs)} -> {target}")


def _describe_specs(sources: Sequence[str], specs: Sequence[TensorSpec]) -> str:
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{sources[0]} ({specs[0]}){more}"


def collect_shared_ops(pipeline: Pipeline, resolved: Resolved, width: int) -> tuple[Op, ...]:
    """Return the operations shared by all targets of a group; `width` tensors are concatenated or merged."""
    if width == 1 and pipeline.stack is None:
        return (*resolved.before[0], *resolved.ops)
    stack = pipeline.stack.dim if pipeline.stack is not None else None
    concat = pipeline.concat.dim if pipeline.concat is not None else None
    equal = pipeline.concat is not None and pipeline.concat.equal
    before = resolved.before if pipeline.family is None else resolved.before * width
    return (Join(before, concat, stack, resolved.joined, equal, pipeline.merge, resolved.combine), *resolved.ops)


def _list_unstack_ops(
    pipeline: Pipeline, resolved: Resolved, whole: TensorSpec
) -> Iterator[tuple[dict[str, str], tuple[Op, ...]]]:
    """Return the indices of each tensor that `unstack` makes, with the operation that selects it."""
    axis = pipeline.unstack
    if axis is None:
        yield {}, ()
        return
    assert axis.dim is not None
    size = whole.shape[normalize_dim(axis.dim, whole)]
    if not size:
        title = f"nothing to unstack: the dimension has 0 elements, in {list(whole.shape)}"
        raise RefusedOp(title, "if the key should have no target, name it under `drop:`")
    counts = resolved.unstacked or (size,)
    if math.prod(counts) != size:
        title = f"`count` is {describe_counts(counts)}, got {size} elements to unstack in {list(whole.shape)}"
        raise RefusedOp(title, "correct `count`, or the param it is computed from")
    for number, place in enumerate(itertools.product(*map(range, counts))):
        yield dict(zip(axis.by, map(str, place), strict=True)), (TakeIndex(axis.dim, number),)


def _list_outputs(
    pipeline: Pipeline, resolved: Resolved, spec: TensorSpec
) -> Iterator[tuple[dict[str, str], int, tuple[Op, ...]]]:
    """Return for each output the indices that `split` or `copy` counts, its template and its operations.

    `spec` is the header of the tensor that is split.
    """
    sizes = resolved.find_sizes(spec)
    if pipeline.spread is None:
        for output, branch in enumerate(resolved.after):
            yield {}, output, (*_make_split_op(pipeline, sizes, output, len(resolved.after)), *branch)
        return
    counts = resolved.spread or ()
    for number, place in enumerate(itertools.product(*map(range, counts))):
        indices = dict(zip(pipeline.spread.by, map(str, place), strict=True))
        yield indices, 0, (*_make_split_op(pipeline, sizes, number, math.prod(counts)), *resolved.after[0])


def _make_split_op(pipeline: Pipeline, sizes: tuple[int, ...] | None, output: int, count: int) -> tuple[Op, ...]:
    if pipeline.split is None:
        return ()
    return (SplitPart(pipeline.split.dim, output, count, sizes),)


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


def _report_bad_number(id: str, span: Span, error: BadNumber, place: str, keys: Sequence[str] = ()) -> Diagnostic:
    """Report that numbers have no value; `keys` are the sources concerned, if it depends on the source."""
    if isinstance(error, NoValue):
        title = f"{id} needs the param {error.names[0]!r}, which has no value"
        help = (f"pass --param {error.names[0]}=NUMBER, or --config config.json if the rules name its entry",)
        return Diagnostic("RK341", title, (Label(span),), help, place=place, values={"params": list(error.names)})
    notes = (list_names(keys),) if keys else ()
    return Diagnostic("RK341", f"{id}: {error}", (Label(span),), ("correct the params",), notes, place=place)
