"""The inverse of one rule: its pattern, tables and operations reversed.

The template becomes the pattern and the pattern becomes the template. How the template uses a capture decides how the
inverse recovers it: unchanged, through an inverted table, by arithmetic, or, if several captures share one number, by
enumerating their values.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from remapkit.authoring.invert_numbers import find_expression, find_mirror, find_scales, find_shift
from remapkit.authoring.leaf_guard import build_guard_in, starts_segment
from remapkit.authoring.rename_numbers import rename_numbers
from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Text
from remapkit.diagnostics.wording import join_words
from remapkit.ops.calls import Arg, Call, list_params, to_plain_arg
from remapkit.patterns.finite import MAX_WORDS
from remapkit.patterns.literals import literal_text
from remapkit.patterns.pattern import CANONICAL, Part
from remapkit.patterns.regex import parse_regex
from remapkit.patterns.template import CaptureItem, MapItem, TemplateItem, TextItem
from remapkit.proofs.correlated import find_correlated
from remapkit.proofs.keymap import KeyMap
from remapkit.rulefile.arithmetic import SIZE
from remapkit.rules.axes import Axis
from remapkit.rules.model import CompiledRules, Rule
from remapkit.rules.pipeline import Pipeline, SplitRule

if TYPE_CHECKING:
    from remapkit.diagnostics.source import Span


MAX_CASES = 64
"""The maximum of inverse rules per rule, one for each combination of captures that share a target segment."""


class NoInverse(Exception):
    """The reason why a rule has no inverse."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(diagnostics[0].title)
        self.diagnostics = diagnostics


@dataclass(frozen=True, slots=True)
class InverseCapture:
    """A capture of the inverse pattern; `values` are the words it can match (None: those of `part`).

    `regex` is the expression that the author wrote for exactly the language of `part`, if there is one.
    """

    name: str
    part: Part | None
    values: tuple[str, ...] | None = None
    table: str | None = None
    regex: str | None = None

    @property
    def words(self) -> tuple[str, ...] | None:
        """All words that it can match; None if there are too many to list."""
        return self.values if self.part is None else self.part.values


@dataclass(frozen=True, slots=True)
class InverseRule:
    """A rule of the inverse: the text and captures of its pattern, the text of its template, its leaf guard."""

    id: str
    pattern: tuple[str | InverseCapture, ...]
    to: str
    leaf: tuple[str, ...] | None = None
    path: bool = True


@dataclass(slots=True)
class Tables:
    """The tables of the inverse: those of the rule file inverted, and new ones."""

    found: dict[str, dict[str, str]] = field(default_factory=dict)
    lossy: set[str] = field(default_factory=set)

    def name_table(self, name: str, entries: Mapping[str, str], *, lossy: bool = False) -> str:
        """Return the name of a table with these entries: `name`, with a number if that is taken by another table."""
        for number in itertools.count(1):
            chosen = name if number == 1 else f"{name}_{number}"
            if self.found.setdefault(chosen, dict(entries)) == dict(entries):
                if lossy:
                    self.lossy.add(chosen)
                return chosen
        raise AssertionError


def invert_rule(rule: Rule, tables: Tables, known: Mapping[str, Mapping[str, str]]) -> list[InverseRule]:
    """Invert one rule: into one rule, or one per combination of the captures that share a target segment."""
    rule = replace(rule, pattern=build_guard_in(rule.pattern))
    assert rule.template is not None
    together = find_correlated(_make_key_map(rule))
    items = [item for item in rule.template.items if _has_capture(item, together)]
    if not together:
        return [_Inverter(rule, {}, tables, known).invert(rule.id)]
    if len(items) == 1 and isinstance(items[0], MapItem):
        return [_Inverter(rule, {}, tables, known, together=together).invert(rule.id)]
    if len(together) == 1:
        split = _Inverter(rule, {}, tables, known, together=together).split(rule.id)
        if split is not None:
            return [split]
    spaces = [part.values or () for part in rule.pattern.captures if part.name in together]
    names = [part.name for part in rule.pattern.captures if part.name in together]
    cases = list(itertools.islice(itertools.product(*spaces), MAX_CASES + 1))
    if len(cases) > MAX_CASES:
        title = (
            f"the inverse of {rule.id} cannot be written: {join_words(map(str, names))} have too many combinations"
        )
        help = (f"bound them to at most {MAX_CASES} combinations, or write one rule for each case",)
        raise NoInverse(Diagnostic("RK213", title, _make_label(rule), help))
    found = []
    for number, case in enumerate(cases):
        fixed = dict(zip(map(str, names), case, strict=True))
        found.append(_Inverter(rule, fixed, tables, known).invert(f"{rule.id}.{number}"))
    return found


def _has_capture(item: TemplateItem, together: Sequence[str]) -> bool:
    if isinstance(item, TextItem):
        return False
    return not set((item.name,) if isinstance(item, CaptureItem) else item.names).isdisjoint(together)


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
    _refuse_one_way(pipeline)
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


def _is_consistent_row(row: Sequence[InverseRule], first: Sequence[InverseRule]) -> bool:
    """Whether all targets of one source recover the same key, with the patterns of the first source's targets."""
    same = all((one.pattern, one.leaf) == (other.pattern, other.leaf) for one, other in zip(row, first, strict=True))
    return same and all(each.to == row[0].to for each in row)


def _rename_captures(pipeline: Pipeline, inverter: _Inverter, used: Sequence[str]) -> Pipeline:
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


def _make_inverter(rule: Rule, tables: Tables, known: Mapping[str, Mapping[str, str]]) -> _Inverter:
    assert rule.template is not None
    together = find_correlated(_make_key_map(rule))
    if together:
        title = f"the inverse of {rule.id} cannot be written: its target mixes {join_words(together)}"
        help = ("use each capture once, or write one rule for each case",)
        raise NoInverse(Diagnostic("RK213", title, _make_label(rule), help))
    return _Inverter(rule, {}, tables, known)


def _make_key_map(rule: Rule) -> KeyMap:
    assert rule.template is not None
    return KeyMap(rule.id, rule.kind, rule.span, rule.pattern, rule.template.items)


def _refuse_one_way(pipeline: Pipeline) -> None:
    """Raise `NoInverse` with every part of a rule that cannot be undone."""
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
    if problems:
        raise NoInverse(*problems)


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


class _Inverter:
    """Inverts one rule: items of the template become the pattern, parts of the pattern become the template.

    `fixed` are captures with one known value; `together` are captures that share a target segment.
    """

    def __init__(
        self,
        rule: Rule,
        fixed: Mapping[str, str],
        tables: Tables,
        known: Mapping[str, Mapping[str, str]],
        together: Sequence[str] = (),
    ) -> None:
        self.given, self.tables, self.known, self.together = rule, tables, known, together
        constants = {
            part.name: part.values[0]
            for part in rule.pattern.captures
            if part.name and part.values and part.is_constant
        }
        self.fixed = {**constants, **fixed}
        self.back: dict[str, str] = {}
        """How each capture of the source is written in the template of the inverse."""
        self.names = {part.name for part in rule.pattern.captures}
        axes = (rule.pipeline.unstack, rule.pipeline.spread) if rule.pipeline is not None else ()
        self.made = {
            name: count
            for axis in axes
            if axis is not None
            for name, count in zip(axis.by, axis.count or (None,) * len(axis.by), strict=True)
        }
        """The indices that the rule counts, with the number of their values."""
        if rule.pipeline is not None:
            self.back.update({name: f"{{{name}}}" for name in rule.pipeline.folded})

    def invert(self, id: str) -> InverseRule:
        assert self.given.template is not None
        return self.finish_rule(id, [self.invert_item(item) for item in self.given.template.items])

    def finish_rule(self, id: str, pattern: Sequence[str | InverseCapture]) -> InverseRule:
        leaf = self.keep_leaf_guard(pattern)
        to = "".join(self.write_part(part) for part in self.given.pattern.parts)
        return InverseRule(id, tuple(_merge_text(pattern)), to, leaf, self.given.pattern.surface == "path")

    def write_part(self, part: Part) -> str:
        if part.name in self.back:
            return self.back[part.name]
        word = self.fixed.get(part.name) if part.name is not None else None
        if part.name is None and part.is_constant and part.values is not None:
            word = part.values[0]
        if word is None:
            raise self.unwritable(
                "part of the key is missing in the target, and only the `leaf:` guard or the domain determines it"
            )
        return literal_text(word)

    def invert_item(self, item: TemplateItem) -> str | InverseCapture:
        if isinstance(item, TextItem):
            return item.text
        if isinstance(item, CaptureItem):
            if item.name in self.fixed:
                return self.fixed[item.name]
            if item.name in self.made:
                if item.name in self.back:
                    raise self.unwritable(f"it uses {item.name!r}, which it counts, more than once")
                self.back[item.name] = ""
                return InverseCapture(item.name, _build_index(item.name, self.made[item.name]))
            self.back[item.name] = f"{{{item.name}}}"
            part = self.given.pattern.capture(item.name)
            assert part is not None
            return InverseCapture(item.name, part, regex=self.find_regex(part))
        if counted := [name for name in item.names if name in self.made]:
            raise self.unwritable(f"it does arithmetic on {counted[0]!r}, which it counts")
        names = [name for name in dict.fromkeys(item.names) if name not in self.fixed]
        words = [self.list_words(name) for name in item.names]
        rows = {
            tuple(values[item.names.index(name)] for name in names): text
            for values, text in item.mapping.items()
            if all(value in allowed for value, allowed in zip(values, words, strict=True))
        }
        if not names:
            return rows[()]
        if len(names) > 1 or names[0] in self.together:
            return self.separate_captures(names, rows)
        entries = {text: key for (key,), text in rows.items()}
        if len(entries) < len(rows):
            raise self.unwritable("two entries of a table have one value, and only the domain decides which occurs")
        return self.invert_map(names[0], item, entries)

    def list_words(self, name: str) -> Collection[str]:
        """Return the words that a capture of a table or of arithmetic can be."""
        part = self.given.pattern.capture(name)
        assert part is not None and part.values is not None
        return (self.fixed[name],) if name in self.fixed else frozenset(part.values)

    def find_regex(self, part: Part) -> str | None:
        """Return the expression between the parentheses of a capture, unless a guard restricts it further."""
        if self.given.pattern.surface != "match":
            return None
        inner = self.given.pattern.text.value[slice(*part.at)].removeprefix(f"(?P<{part.name}>").removesuffix(")")
        return inner if parse_regex(Text.of(f"(?:{inner})")) == part.node else None

    def invert_map(self, name: str, item: MapItem, entries: Mapping[str, str]) -> InverseCapture:
        """Invert a table, or arithmetic on one capture."""
        if item.table is None:
            shift = find_shift(entries)
            if shift is not None:
                self.back[name] = f"{{{name}}}" if not shift else f"{{{name}{shift:+d}}}"
                return InverseCapture(name, None, tuple(entries))
            mirror = find_mirror(entries)
            if mirror is not None:
                self.back[name] = f"{{{mirror}-{name}}}"
                return InverseCapture(name, None, tuple(entries))
        whole = {value: key for key, value in self.known.get(item.table or "", {}).items()}
        turned = whole if whole == entries else dict(entries)
        table = self.tables.name_table(item.table or f"{name}_back", turned)
        self.back[name] = f"{{{name}|{table}}}"
        return InverseCapture(name, None, tuple(entries), table)

    def separate_captures(self, names: Sequence[str], rows: Mapping[tuple[str, ...], str]) -> InverseCapture:
        """Recover captures from the number that they were combined into: `i*4+j` gives `n//4`, `n%4`."""
        number = next(name for name in ("n", "i", "index", "_".join(names)) if name not in self.names)
        self.names.add(number)
        for place, name in enumerate(names):
            column = {text: values[place] for values, text in rows.items()}
            expression = find_expression(number, column)
            if expression is None:
                table = self.tables.name_table(f"{name}_of_{number}", column, lossy=True)
                expression = f"{number}|{table}"
            self.back[name] = f"{{{expression}}}"
        return InverseCapture(number, None, tuple(rows.values()))

    def split(self, id: str) -> InverseRule | None:
        """Recover one capture from several numbers: `n//4`, `n%4` give `a*4+b`. None if it is not such a sum."""
        (name,) = self.together
        assert self.given.template is not None
        part = self.given.pattern.capture(name)
        assert part is not None
        items = [item for item in self.given.template.items if _has_capture(item, self.together)]
        rows = {
            value: tuple(_render_item(item, name, value, self.fixed) for item in items) for value in part.values or ()
        }
        scales = find_scales(rows)
        if scales is None:
            return None
        captures = []
        for number, (column, scale) in enumerate(zip(zip(*rows.values(), strict=True), scales, strict=True)):
            fresh = f"{name}_{number}"
            captures.append(
                (
                    InverseCapture(fresh, None, tuple(dict.fromkeys(column))),
                    f"{fresh}*{scale}" if scale > 1 else fresh,
                )
            )
        self.back[name] = f"{{{'+'.join(text for _, text in captures)}}}"
        left = iter(captures)
        pattern = [
            next(left)[0] if _has_capture(item, self.together) else self.invert_item(item)
            for item in self.given.template.items
        ]
        return self.finish_rule(id, pattern)

    # -------------------------------------------------------------------------------------------- leaves

    def keep_leaf_guard(self, pattern: Sequence[str | InverseCapture]) -> tuple[str, ...] | None:
        """Return the leaf guard of the source, which is also one of the target if both end in the same capture."""
        leaf, parts = self.given.pattern.leaf, self.given.pattern.parts
        if leaf is None:
            return None
        end, before = pattern[-1], pattern[-2] if len(pattern) > 1 else "."
        same = isinstance(end, InverseCapture) and end.part is parts[-1] and isinstance(before, str)
        if same and str(before).endswith(".") and starts_segment(parts[:-1]):
            return leaf
        raise self.unwritable("its `leaf:` guard bounds text that the target does not end with")

    def unwritable(self, why: str) -> NoInverse:
        title = f"the inverse of {self.given.id} cannot be written: {why}"
        help = ("bound the capture itself, with choices or `where:`",)
        return NoInverse(Diagnostic("RK213", title, _make_label(self.given), help))


def _build_index(name: str, count: Arg) -> Part:
    """Return the part that reads an index that the rule counts: below its count, if that is a number."""
    if not isinstance(count, int) or count > MAX_WORDS:
        return Part(name, CANONICAL, written="int")
    return Part(name, CANONICAL).restrict_to(tuple(map(str, range(count))))


def _merge_text(pattern: Iterable[str | InverseCapture]) -> Iterator[str | InverseCapture]:
    text = ""
    for each in pattern:
        if isinstance(each, str):
            text += each
            continue
        if text:
            yield text
        text = ""
        yield each
    if text:
        yield text


def _render_item(item: TemplateItem, name: str, value: str, fixed: Mapping[str, str]) -> str:
    """Render an item of the template that depends on one capture, for a value of that capture."""
    assert not isinstance(item, TextItem)
    if isinstance(item, CaptureItem):
        return value
    return item.mapping[tuple(value if each == name else fixed[each] for each in item.names)]


def _make_label(rule: Rule) -> tuple[Label, ...]:
    span: Span = rule.template.text.span if rule.template is not None else rule.span
    return (Label(span),)
