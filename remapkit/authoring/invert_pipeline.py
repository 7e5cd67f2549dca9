"""The inverse of a rule with operations: its joins, operations and splits reversed, or the reasons against it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from remapkit.authoring.invert_rule import InverseRule, Inverter, NoInverse, Tables, make_key_map, make_label
from remapkit.authoring.leaf_guard import build_guard_in
from remapkit.authoring.rename_numbers import rename_numbers
from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.wording import join_words
from remapkit.ops.calls import Call, list_params, to_plain_arg
from remapkit.proofs.correlated import find_correlated
from remapkit.rulefile.arithmetic import SIZE
from remapkit.rules.axes import Axis
from remapkit.rules.model import CompiledRules, Rule
from remapkit.rules.pipeline import Pipeline, SplitRule


@dataclass(frozen=True, slots=True)
class InversePipeline:
    """The inverse of a rule with operations: its joins, operations and splits as plain data for YAML.

    `merge` and `copy` are mappings with `by`, empty ones if the sources or targets are listed.
    """

    id: str
    sources: tuple[tuple[InverseRule, tuple[object, ...]], ...]
    targets: tuple[tuple[str, tuple[object, ...]], ...]
    ops: tuple[object, ...] = ()
    concat: Mapping[str, object] | None = None
    stack: Mapping[str, object] | None = None
    unstack: Mapping[str, object] | None = None
    split: Mapping[str, object] | None = None
    merge: Mapping[str, object] | None = None
    copy: Mapping[str, object] | None = None


def invert_pipeline(
    rule_set: CompiledRules, pipeline: Pipeline, tables: Tables, known: Mapping[str, Mapping[str, str]]
) -> InversePipeline:
    """Invert a rule with operations: sources and targets swap, operations are undone in reverse order."""
    rules = [
        replace(rule, pattern=build_guard_in(rule.pattern)) for rule in rule_set.rules if rule.pipeline is pipeline
    ]
    if problems := list_one_way(pipeline):
        raise NoInverse(*problems)
    inverters = [
        [
            _make_inverter(replace(rule, template=template), tables, known)
            for template in pipeline.templates[rule.branch]
        ]
        for rule in rules
    ]
    turned = [[each.invert(each.given.id) for each in row] for row in inverters]
    if not all(_is_consistent_row(row, turned[0]) for row in turned):
        title = f"the inverse of {pipeline.id} cannot be written: its sources bound the same capture differently"
        raise NoInverse(Diagnostic("RK213", title, (Label(pipeline.span),), ("bound it alike in each source",)))
    pipeline = _rename_captures(pipeline, inverters[0][0], pipeline.list_captures(rule_set.params))
    return InversePipeline(
        id=pipeline.id,
        sources=tuple((rule, _invert_calls(calls)) for rule, calls in zip(turned[0], pipeline.after, strict=True)),
        targets=tuple((row[0].to, _invert_calls(calls)) for row, calls in zip(turned, pipeline.before, strict=True)),
        ops=_invert_calls(pipeline.ops),
        concat=_dump_split(pipeline.split, pipeline.spread, "equal"),
        stack=_dump_axis(pipeline.unstack),
        unstack=_dump_axis(pipeline.stack),
        split=_dump_split(pipeline.concat, pipeline.family, None),
        merge=(_dump_axis(pipeline.spread) or {}) if pipeline.share is not None else None,
        copy=(_dump_axis(pipeline.family) or {}) if pipeline.merge else None,
    )


def invert_targets(
    rule_set: CompiledRules, pipeline: Pipeline, tables: Tables, known: Mapping[str, Mapping[str, str]]
) -> list[InverseRule]:
    """Return the patterns of the targets of a rule without an inverse, which the inverse of the others drops."""
    rule = next(rule for rule in rule_set.rules if rule.pipeline is pipeline)
    rule = replace(rule, pattern=build_guard_in(rule.pattern))
    return [
        _make_inverter(replace(rule, template=template), tables, known).read_target()
        for template in pipeline.templates[rule.branch]
    ]


def _is_consistent_row(row: Sequence[InverseRule], first: Sequence[InverseRule]) -> bool:
    """Whether all targets of one source recover the same key, with the patterns of the first source's targets."""
    same = all((one.pattern, one.leaf) == (other.pattern, other.leaf) for one, other in zip(row, first, strict=True))
    return same and all(each.to == row[0].to for each in row)


def _rename_captures(pipeline: Pipeline, inverter: Inverter, used: Sequence[str]) -> Pipeline:
    """Return a pipeline whose numbers use the captures of the inverse: `kv_heads[i]` becomes `kv_heads[(i-1)]`."""
    names: dict[str, str] = {}
    for name in used:
        written = inverter.back[name][1:-1] if name in inverter.back else inverter.fixed.get(name, "|")
        if "|" in written or "//" in written or "%" in written:
            title = f"the inverse of {pipeline.id} cannot be written: its numbers use {name!r}, which targets encode"
            raise NoInverse(
                Diagnostic("RK213", title, (Label(pipeline.span),), (f"write {{{name}}} in the targets",))
            )
        names[name] = written
    if all(name == written for name, written in names.items()):
        return pipeline

    return rename_numbers(pipeline, names)


def _make_inverter(rule: Rule, tables: Tables, known: Mapping[str, Mapping[str, str]]) -> Inverter:
    assert rule.template is not None
    together = find_correlated(make_key_map(rule))
    if together:
        title = f"the inverse of {rule.id} cannot be written: its target mixes {join_words(together)}"
        help = ("use each capture once, or write one rule for each case",)
        raise NoInverse(Diagnostic("RK213", title, make_label(rule), help))
    return Inverter(rule, {}, tables, known)


def list_one_way(pipeline: Pipeline) -> list[Diagnostic]:
    """Return a problem for every part of a rule that cannot be undone."""
    problems = []
    for call in (*itertools.chain(*pipeline.before), *pipeline.ops, *itertools.chain(*pipeline.after)):
        if isinstance(reason := call.inverse, str):
            label = Label(call.span if call.span is not None else pipeline.span)
            problems.append(Diagnostic("RK215", f"{pipeline.id} has no inverse: {reason}", (label,), (_ONE_WAY,)))
    if len(set(pipeline.order)) < len(pipeline.order):
        title = f"{pipeline.id} has no inverse: it reads one source several times"
        problems.append(Diagnostic("RK215", title, (Label(pipeline.span),), (_ONE_WAY,)))
    elif pipeline.concat is not None and pipeline.concat.sizes is None and not pipeline.concat.equal:
        title = f"{pipeline.id} has no inverse: the sizes of its concat parts are not given"
        help = "write `sizes: equal`, or the size of each: `sizes: [hidden, hidden, 4*hidden]`"
        problems.append(Diagnostic("RK215", title, (Label(pipeline.concat.span or pipeline.span),), (help,)))
    several = pipeline.stack if pipeline.stack is not None and len(pipeline.stack.by) > 1 else None
    for axis in (each for each in (several, pipeline.family) if each is not None and each.count is None):
        title = f"{pipeline.id} has no inverse: it does not say how many {join_words(axis.by)} `{axis.word}` joins"
        help = "add `count: 8`, with your own number"
        if len(axis.by) > 1:
            help = "add `count: [2, 4]`, with your own numbers"
        problems.append(Diagnostic("RK215", title, (Label(axis.span or pipeline.span),), (help,)))
    if pipeline.combine is not None:
        title = f"{pipeline.id} has no inverse: {pipeline.combine.kind} rounds, and what it read is not kept"
        problems.append(Diagnostic("RK215", title, (Label(pipeline.combine.span or pipeline.span),), (_ONE_WAY,)))
    return problems


_ONE_WAY = "write the inverse yourself, as a separate rule file"


def _invert_calls(calls: Sequence[Call]) -> tuple[object, ...]:
    inverses = [call.inverse for call in reversed(calls)]
    return tuple(each.to_plain() for each in inverses if not isinstance(each, str))


def _dump_split(split: SplitRule | None, axis: Axis | None, otherwise: str | None) -> Mapping[str, object] | None:
    if split is None:
        return None
    sized = any(SIZE in list_params(size) for size in split.sizes or ())  # the inverse joins parts of any size
    sizes = None if sized else to_plain_arg(split.sizes) if split.sizes is not None else otherwise
    numbers = dict(_dump_axis(axis) or {})
    if isinstance(sizes, list | tuple) and axis is not None and len(axis.by) == 1:
        numbers.pop("count")  # the number of sizes
    return {"dim": split.dim, **numbers, **({"sizes": sizes} if sizes is not None else {})}


def _dump_axis(axis: Axis | None) -> Mapping[str, object] | None:
    if axis is None:
        return None
    dim = {"dim": axis.dim} if axis.dim is not None else {}
    count = {"count": _dump_list(tuple(map(to_plain_arg, axis.count)))} if axis.count is not None else {}
    return {**dim, "by": _dump_list(axis.by), **count}


def _dump_list(values: Sequence[object]) -> object:
    return values[0] if len(values) == 1 else list(values)
