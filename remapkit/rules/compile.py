"""Compile a rule file. Every rule applies to the original key, so the order of rules does not matter.

`compile_rules` turns a `RuleFile` into `CompiledRules`, or raises `InvalidRules` with every problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Span, Text
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.ops.base import RefusedOp
from remapkit.ops.params import look_up_config, resolve_params
from remapkit.patterns.compile import compile_pattern, read_guard_values
from remapkit.patterns.literals import read_word
from remapkit.patterns.matcher import PatternMatcher
from remapkit.patterns.pattern import SEGMENT, Part, Pattern
from remapkit.patterns.ranges import KeyParams
from remapkit.patterns.steps import TooMany
from remapkit.patterns.template import MapItem, Template
from remapkit.rulefile.arithmetic import BadNumber, NoValue
from remapkit.rulefile.syntax import (
    RuleFile,
    WrittenEntry,
    WrittenFill,
    WrittenPattern,
    WrittenRule,
    WrittenTable,
)
from remapkit.rulefile.yaml.compose import MAX_PROBLEMS, explain_problem_limit
from remapkit.rulefile.yaml.nodes import MapNode
from remapkit.rules.compile_template import Tabulations, compile_template, find_syntax_problems
from remapkit.rules.costs import CompileCosts
from remapkit.rules.model import CompiledRules, CountedParam, Requirement, Rule, RuleKind, Table
from remapkit.rules.pipeline import AddedTargets, Pipeline
from remapkit.rules.pipeline_reader import (
    PipelineReader,
    is_integer_capture,
    list_fill_targets,
    make_fill_pattern,
    make_template_pattern,
)
from remapkit.rules.requirements import find_counted_capture, read_requirements

MAX_ADDED = 100_000
"""The most tensors that one entry of `add` may create."""

MAX_STEPS = 3_000_000
"""The most steps that compiling a file may take: about three seconds."""

TARGET_STEPS = 8
"""The steps for one target of `add`."""


def compile_rules(
    rule_file: RuleFile,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Mapping[str, Any] | None = None,
    counts: Mapping[str, int] | None = None,
) -> CompiledRules:
    """Compile a rule file; raises `InvalidRules` with all of its problems.

    `params` gives values for its params; any others are looked up in `config`, a model's config.json, then in
    `counts`, those that were counted in a checkpoint.

    >>> from remapkit.rulefile.read import read_text
    >>> rules = compile_rules(read_text("remapkit: 1\\nname: t\\nkeep: ['{all:**}']\\n"))
    >>> [rule.id for rule in rules.keep]
    ['keep[0]']
    """
    compiler = _Compiler(rule_file, params, config, counts)
    try:
        rules = tuple(rule for written in rule_file.rules for rule in compiler.compile_rule(written))
        keep = compiler.compile_named("keep", rule_file.keep)
        drop = compiler.compile_named("drop", rule_file.drop)
        domain = compiler.compile_domain()
        require = compiler.compile_requirements()
        counted = tuple(compiler.compile_counts())
        add = tuple(filter(None, (compiler.compile_fill(number, each) for number, each in enumerate(rule_file.add))))
    except TooMany:
        raise InvalidRules([*compiler.problems, compiler.costs.explain()]) from None
    compiler.check_ids()
    compiler.check_unused_tables()
    compiler.raise_problems()
    tables = {name: table.entries for name, table in compiler.tables.items()}
    warnings = tuple(compiler.warnings)
    return CompiledRules(
        rule_file.name.value,
        rule_file,
        rules,
        keep,
        drop,
        tables,
        domain,
        warnings,
        add,
        compiler.params,
        require,
        tuple(name for name in compiler.params if name in compiler.key_params.used),
        counted,
        (params, config),
    )


class _Compiler:
    def __init__(
        self,
        rule_file: RuleFile,
        params: Mapping[str, int | Sequence[int]] | None,
        config: Mapping[str, Any] | None,
        counts: Mapping[str, int] | None,
    ) -> None:
        self.file = rule_file
        self.problems: list[Diagnostic] = []
        self.params = resolve_params(rule_file.params, params, config, self.problems, counts)
        self.given, self.config = params or {}, config
        self.key_params = KeyParams(self.params)
        self.pipelines = PipelineReader(self.params, self.problems)
        self.warnings: list[Diagnostic] = []
        self.tables = {table.name.value: self.compile_table(table) for table in rule_file.tables}
        self.keys = {name: tuple(table.entries) for name, table in self.tables.items()}
        self.used: set[str] = set()
        self.costs = CompileCosts(MAX_STEPS)
        self.tabulations: Tabulations = {}

    def begin(self, name: str, span: Span) -> None:
        """Begin to compile an entry; raises `InvalidRules` if there are more problems than are shown."""
        if len(self.problems) > MAX_PROBLEMS:
            self.raise_problems()
        self.costs.begin(name, span)

    def raise_problems(self) -> None:
        """Raise `InvalidRules` if there are problems, with at most `MAX_PROBLEMS` of them."""
        self.problems = list(_list_first_no_values(self.problems))
        more = [explain_problem_limit()] if len(self.problems) > MAX_PROBLEMS else []
        if self.problems:
            raise InvalidRules([*self.problems[:MAX_PROBLEMS], *more])

    def collect_problems(self, build: Callable[[], Any]) -> Any:
        try:
            return build()
        except InvalidRules as error:
            self.problems += error.diagnostics
            return None

    def compile_table(self, written: WrittenTable) -> Table:
        entries: dict[str, str] = {}
        by_value: dict[str, WrittenEntry] = {}
        equal: list[tuple[WrittenEntry, WrittenEntry, str]] = []
        for entry in written.entries:
            key, value = (
                self.compile_word(entry.key, "a key of a table"),
                self.compile_word(entry.value, "a value of a table"),
            )
            if key in entries:
                title = f"the table {written.name.value!r} has the key {key!r} twice, once as a quoted literal"
                self.problems.append(Diagnostic("RK221", title, (Label(entry.key.span),), ("remove one",)))
                continue
            if value in by_value and not written.lossy:
                equal.append((by_value[value], entry, value))
            by_value.setdefault(value, entry)
            entries[key] = value
        if equal:
            self.problems.append(_explain_equal_values(written.name.value, equal))
        return Table(written.name.value, entries, written.lossy, written.name.span)

    def compile_word(self, text: Text, what: str) -> str:
        """Read a word of a table; return it as written if it has a problem, so that no further problem follows."""
        read = read_word(text, what, self.problems)
        return text.value if read is None else read.value

    def compile_key_pattern(self, written: WrittenPattern) -> Pattern | None:
        compiled = self.collect_problems(
            lambda: compile_pattern(written, self.keys, self.costs.steps, self.key_params)
        )
        self.used |= {guard.named.value for guard in written.where if guard.named is not None}
        if compiled is None:
            self.used |= _list_names(written.text.value, ":") & self.tables.keys()
            return None
        self.warnings += compiled.warnings
        pattern: Pattern = compiled.pattern
        self.used |= {part.table for part in pattern.parts if part.table is not None}
        return pattern

    def note_lookups(self, to: Text) -> None:
        """Mark the tables that a template names as used, even if the template has problems."""
        self.used |= _list_names(to.value.replace(" ", ""), "|") & self.tables.keys()

    def compile_target(self, to: Text, forget: tuple[Text, ...], pattern: Pattern) -> Template | None:
        self.note_lookups(to)
        template: Template | None = self.collect_problems(
            lambda: compile_template(
                to, forget, pattern, self.tables, self.costs.steps, self.tabulations, self.key_params
            )
        )
        return template

    def compile_rule(self, written: WrittenRule) -> tuple[Rule, ...]:
        self.begin(written.id.value, written.span)
        if written.pipeline is not None:
            return self.compile_pipeline_rules(written)
        pattern = self.compile_key_pattern(written.pattern)
        if pattern is None:
            # Without a pattern, check only the template's syntax, so that its errors are reported in the same run.
            self.problems += find_syntax_problems(written.to)
            self.note_lookups(written.to)
            return ()
        template = self.compile_target(written.to, written.forget, pattern)
        if template is None or pattern.is_empty:
            return ()
        uses = _list_table_uses(pattern, template)
        return (Rule(written.id.value, "rule", pattern, template, written.span, uses),)

    def compile_pipeline_rules(self, written: WrittenRule) -> tuple[Rule, ...]:
        """Compile a rule with operations into one `Rule` per pattern."""
        assert written.pipeline is not None
        before = len(self.problems)
        numbers = written.pipeline.order
        distinct = [written.pipeline.sources[numbers.index(number)].pattern for number in range(max(numbers) + 1)]
        found = [self.compile_key_pattern(pattern) for pattern in distinct]
        patterns = [pattern for pattern in found if pattern is not None]
        pipeline = self.compile_pipeline(written, patterns) if len(patterns) == len(found) else None
        if pipeline is None or len(self.problems) > before or any(pattern.is_empty for pattern in patterns):
            return ()
        return tuple(
            Rule(
                pipeline.id,
                "rule",
                pattern,
                templates[0],
                written.span,
                _list_all_table_uses(pattern, templates),
                pipeline,
                number,
            )
            for number, (pattern, templates) in enumerate(zip(pipeline.patterns, pipeline.templates, strict=True))
        )

    def compile_pipeline(self, written: WrittenRule, patterns: list[Pattern]) -> Pipeline | None:
        pipeline, read = written.pipeline, self.pipelines
        assert pipeline is not None
        before = len(self.problems)
        read.check_single_join(pipeline)
        read.check_captures(pipeline, patterns)
        if len(self.problems) > before:
            return None
        forget = written.forget
        templates = []
        concat, split = pipeline.concat, pipeline.split
        read.admit_captures(pipeline, patterns)
        made = Pipeline(
            id=written.id.value,
            span=written.span,
            patterns=tuple(patterns),
            templates=(),
            before=tuple(read.calls.calls(each.ops) for each in pipeline.sources),
            after=tuple(read.calls.calls(each.ops) for each in pipeline.outputs),
            ops=read.calls.calls(pipeline.ops),
            concat=read.read_split(concat, None if _has_family(concat) else len(pipeline.sources)),
            stack=read.read_axis("stack", pipeline.stack),
            unstack=read.read_axis("unstack", pipeline.unstack),
            split=read.read_split(split, None if _has_family(split) else len(pipeline.outputs), sized=True),
            share=pipeline.share,
            merge=pipeline.merge is not None,
            family=read.read_axis("concat", concat) or read.read_axis("merge", pipeline.merge),
            spread=read.read_axis("split", split) or read.read_axis("copy", pipeline.copy),
            order=pipeline.order,
            combine=read.read_combine(pipeline),
        )
        counts = made.find_made_counts(self.params)
        for pattern in patterns:
            seen = len(self.problems)
            against = make_template_pattern(pattern, pipeline, counts)
            row = [self.compile_target(each.to, forget, against) for each in pipeline.outputs]
            if len(self.problems) > seen:
                break
            templates.append(tuple(each for each in row if each is not None))
        made = replace(made, templates=tuple(templates))
        read.admit_captures(None, [])
        return made if len(self.problems) == before else None

    def compile_fill(self, number: int, written: WrittenFill) -> AddedTargets | None:
        """Compile one entry of `add`."""
        self.begin(f"add[{number}]", written.node.span)
        before = len(self.problems)
        parts = []
        for guard in written.each:
            values = read_guard_values(guard, self.keys, self.problems, self.key_params)
            if values is not None:
                words = tuple(text.value for text in values)
                self.costs.steps.spend(len(words))
                at = (0, len(written.to.value))
                parts.append(Part(guard.capture.value, SEGMENT, at).restrict_to(words))
            if guard.named is not None:
                self.used.add(guard.named.value)
        if len(self.problems) > before:
            self.problems += find_syntax_problems(written.to)
            return None
        count = math.prod(len(part.values or ()) for part in parts)
        if count > MAX_ADDED:
            title = f"add[{number}] must create at most {MAX_ADDED:,} tensors, got {count:,}"
            help = ("bound `each` more tightly",)
            self.problems.append(Diagnostic("RK217", title, (Label(written.to.span),), help))
            return None
        self.costs.steps.spend(TARGET_STEPS * count)
        pattern = make_fill_pattern(written, tuple(parts))
        template = self.compile_target(written.to, (), pattern)
        if template is None or len(self.problems) > before:
            return None
        fields = {key.value: node for key, node in written.node.entries}
        shape = self.pipelines.calls.read_arg(fields["shape"])
        fill = fields["fill"]
        value = fill.value if fill.kind == "text" else self.pipelines.calls.read_arg(fill)  # type: ignore[union-attr]
        dtype = fields["dtype"].value  # type: ignore[union-attr]
        filled = AddedTargets(
            f"add[{number}]",
            written.node.span,
            tuple(list_fill_targets(template, tuple(parts))),
            value,  # type: ignore[arg-type]
            shape,  # type: ignore[arg-type]
            dtype,
            template,
        )
        try:
            filled.op(self.params)
        except NoValue:
            pass  # reported when a plan needs it
        except (BadNumber, RefusedOp) as error:
            self.problems.append(Diagnostic("RK163", str(error), (Label(written.node.span),), ("correct it",)))
        return filled if len(self.problems) == before else None

    def compile_named(self, kind: RuleKind, written: Iterable[WrittenPattern]) -> tuple[Rule, ...]:
        rules = []
        for number, each in enumerate(written):
            self.begin(f"{kind}[{number}]", each.span)
            pattern = self.compile_key_pattern(each)
            if pattern is not None and not pattern.is_empty:
                rules.append(
                    Rule(f"{kind}[{number}]", kind, pattern, None, each.span, _list_table_uses(pattern, None))
                )
        return tuple(rules)

    def compile_domain(self) -> tuple[Pattern, ...]:
        patterns = []
        for number, each in enumerate(self.file.source_domain):
            self.begin(f"source.domain[{number}]", each.span)
            patterns.append(self.compile_key_pattern(each))
        return tuple(pattern for pattern in patterns if pattern is not None)

    def compile_counts(self) -> Iterator[CountedParam]:
        """Yield the params that a checkpoint decides; the patterns of others are checked too."""
        for param in self.file.params:
            if param.count is None:
                continue
            self.begin(f"params.{param.name.value}", param.count.span)
            name = param.name.value
            written = WrittenPattern("path", param.count, param.count.span)
            # Without params: no count depends on another.
            found = self.collect_problems(lambda: compile_pattern(written, self.keys, self.costs.steps))  # noqa: B023
            if found is None:
                continue
            where = f"the param {name!r}"
            by = find_counted_capture(param.count, param.by, found.pattern, is_integer_capture, self.problems, where)
            if by is None or name in self.given:
                continue
            if self.config is None or look_up_config(self.config, param) is None:
                yield CountedParam(name, param.count, PatternMatcher(found.pattern), by)

    def compile_requirements(self) -> tuple[Requirement, ...]:
        calls, written = self.pipelines.calls, self.file.require
        return tuple(
            read_requirements(
                written, self.params, self.compile_key_pattern, calls, is_integer_capture, self.problems
            )
        )

    def check_ids(self) -> None:
        seen: dict[str, Text] = {}
        for rule in self.file.rules:
            first = seen.setdefault(rule.id.value, rule.id)
            if first is not rule.id:
                labels = (Label(first.span, "first here", primary=False), Label(rule.id.span, "again here"))
                title = f"two rules have the id {rule.id.value!r}"
                self.problems.append(Diagnostic("RK160", title, labels, ("give each rule its own id",)))

    def check_unused_tables(self) -> None:
        for name, table in self.tables.items():
            if name not in self.used:
                title = f"the table {name!r} is not used by any rule"
                help = (
                    f"look a capture up with {{name|{name}}}, bound one with {{name:{name}}}, or remove the table",
                )
                warning = Diagnostic("RK104", title, (Label(table.at),), help, severity=Severity.WARNING)
                self.warnings.append(warning)


def _explain_equal_values(table: str, equal: Sequence[tuple[WrittenEntry, WrittenEntry, str]]) -> Diagnostic:
    """Report the keys of a table whose value an earlier key has: the first at its place, all others in a note."""
    first, entry, value = equal[0]
    labels = (
        Label(first.span, f"{first.key.value} -> {value}", primary=False),
        Label(entry.span, f"{entry.key.value} -> {value}"),
    )
    title = f"the table {table!r} is not injective: two keys map to {value!r}"
    others = [f"{each.key.value} -> {value}, as {one.key.value}" for one, each, value in equal[1:]]
    if others:
        title += f", and {count_noun(len(others), 'more key has', 'more keys have')} the value of another"
    help = (
        f"keys that differ only in {first.key.value} and {entry.key.value} would map to one target",
        "give each its own value, or add `lossy: true` if both never occur together",
    )
    return Diagnostic("RK101", title, labels, help, (list_names(others),) if others else ())


def _list_first_no_values(problems: Iterable[Diagnostic]) -> Iterator[Diagnostic]:
    """Yield the problems, but of those that lack the same param only the first: one value settles them all."""
    lacking: set[str] = set()
    for problem in problems:
        names = set(problem.values.get("params", ())) if problem.code == "RK341" else set()
        if not names or names - lacking:
            yield problem
        lacking |= names


def _has_family(node: MapNode | None) -> bool:
    return node is not None and node.get("by") is not None


def _list_names(text: str, before: str) -> set[str]:
    """Return the texts between a sign and the next closing brace."""
    return {piece.partition("}")[0] for piece in text.split(before)[1:]}


def _list_all_table_uses(pattern: Pattern, templates: Iterable[Template]) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys(use for template in templates for use in _list_table_uses(pattern, template)))


def _list_table_uses(pattern: Pattern, template: Template | None) -> tuple[tuple[str, str], ...]:
    uses = [(part.name, part.table) for part in pattern.captures if part.name and part.table]
    if template is not None:
        uses += [(item.names[0], item.table) for item in template.items if isinstance(item, MapItem) and item.table]
    return tuple(dict.fromkeys(uses))
