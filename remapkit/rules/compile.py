r"""Rule sets: a rule file compiled. Every rule speaks about the original key; their order never matters.

`compile_rules` takes a `RuleFile` and gives a `RuleSet`, or raises `InvalidRules` with all problems of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from remapkit.diagnostics.diagnostic import Diagnostic, InvalidRules, Label, Severity
from remapkit.diagnostics.source import Span, Text
from remapkit.ops.params import param_values
from remapkit.ops.shape import Refused
from remapkit.patterns.compile import allowed, compile_pattern
from remapkit.patterns.literals import read_word
from remapkit.patterns.matcher import Outcome, Reader, Renamer, SetMatcher
from remapkit.patterns.stopping import Stop, stopped_at
from remapkit.patterns.template import Mapped, Table, Template, compile_template, syntax_problems
from remapkit.patterns.tree import SEGMENT, Part, Pattern
from remapkit.rulefile.arithmetic import BadNumber, NoValue
from remapkit.rulefile.read import RuleFile, WrittenFill, WrittenPattern, WrittenRule, WrittenTable, WrittenTest
from remapkit.rules.pipeline import Filled, Flow, FlowReader, fill_pattern, fill_targets, is_integer, template_pattern
from remapkit.rules.requirements import Requirement, read_requirements

if TYPE_CHECKING:
    from remapkit.plans.make import Plan
    from remapkit.proofs.prover import Proof

Kind = Literal["rule", "keep", "drop"]


@dataclass(frozen=True, slots=True)
class Match:
    """What one rule made of one key: its captures, and the target key (None: the key is dropped).

    Where a rule writes several targets, `target` is the first one and `targets` has all; `{e}` stands in them for an
    index that the rule makes. `table_uses` are the entries of tables it went through, as (table, key).
    """

    rule: Rule
    captures: Mapping[str, str]
    target: str | None

    @property
    def targets(self) -> tuple[str, ...]:
        """Every target key; none for a key that is dropped."""
        if self.rule.flow is None:
            return () if self.target is None else (self.target,)
        made = {} if self.rule.flow.unstack is None else {self.rule.flow.unstack.by: None}
        return tuple(each.render({**self.captures, **made}) for each in self.rule.flow.templates[self.rule.branch])

    @property
    def table_uses(self) -> tuple[tuple[str, str], ...]:
        return tuple((table, self.captures[name]) for name, table in self.rule.tables)


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule, `keep` or `drop`; `tables` pairs captures with the tables that they go through.

    A rule that reads several patterns is several of these, one a pattern (`branch` counts them), with one `flow`.
    """

    id: str
    kind: Kind
    pattern: Pattern
    template: Template | None
    span: Span
    tables: tuple[tuple[str, str], ...] = ()
    flow: Flow | None = None
    branch: int = 0
    reader: Reader = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reader", Reader(self.pattern))

    def match(self, fqn: str) -> Match | None:
        """The match of a whole key, or None.

        >>> from remapkit.rulefile.read import read_text
        >>> text = "remapkit: 1\\nname: t\\nrules: [{id: r, path: 'layers.{n:int}.q', to: 'h.{n}.query'}]\\n"
        >>> rule, = compile_rules(read_text(text)).rules
        >>> rule.match("layers.3.q").target, rule.match("layers.03.q")
        ('h.3.query', None)
        """
        captures = self.reader(fqn)
        return None if captures is None else Match(self, captures, self.target(fqn, captures))

    def target(self, fqn: str, captures: Mapping[str, str | None]) -> str | None:
        """The target key for what was captured (of a rule that writes several, the first)."""
        if self.kind == "drop":
            return None
        if self.flow is not None and self.flow.unstack is not None:
            captures = {**captures, self.flow.unstack.by: None}
        return fqn if self.template is None else self.template.render(captures)

    def stopped_at(self, fqn: str) -> Stop | None:
        """Where the key stopped being one of this rule's, or None where it is one."""
        return stopped_at(self.pattern, fqn)


MAX_ADDED = 100_000
"""So many tensors one entry of `add` may bring."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A compiled rule file.

    Call it on a state dict to get the renamed one; ask `plan` for every move of a checkpoint before anything moves.

    >>> import remapkit
    >>> rules = remapkit.load("wan22_pth")
    >>> rules.match("encoder.downsamples.0.downsamples.2.resample.1.bias")[0].target
    'encoder.downsamples.0.downsampler.resample.1.bias'
    """

    name: str
    file: RuleFile
    rules: tuple[Rule, ...]
    keep: tuple[Rule, ...]
    drop: tuple[Rule, ...]
    tables: Mapping[str, Mapping[str, str]] = field(hash=False)
    domain: tuple[Pattern, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    add: tuple[Filled, ...] = ()
    params: Mapping[str, int | None] = field(default_factory=dict, hash=False)
    require: tuple[Requirement, ...] = ()
    everything: tuple[Rule, ...] = field(init=False, compare=False, repr=False)
    """Rules, keeps and drops."""
    matcher: SetMatcher = field(init=False, compare=False, repr=False)
    renamer: Renamer = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        everything = (*self.rules, *self.keep, *self.drop)
        object.__setattr__(self, "everything", everything)
        matcher = SetMatcher([rule.pattern for rule in everything], [rule.reader for rule in everything])
        object.__setattr__(self, "matcher", matcher)
        object.__setattr__(self, "renamer", Renamer(matcher, map(_outcome, everything)))

    @property
    def unmatched(self) -> Literal["error", "keep", "drop"]:
        """What becomes of a key that no rule matches."""
        return self.file.unmatched

    @property
    def neutral(self) -> frozenset[str]:
        """The ids of the drops whose author says that what they drop changes nothing."""
        return frozenset(f"drop[{number}]" for number, each in enumerate(self.file.drop) if each.neutral)

    @property
    def digest(self) -> str:
        """`sha256:` and the hex digest of the rule file's bytes."""
        return self.file.digest

    @property
    def tests(self) -> tuple[WrittenTest, ...]:
        """The rule file's own tests."""
        return self.file.tests

    def match(self, fqn: str) -> tuple[Match, ...]:
        """Every rule, `keep` and `drop` that matches the whole key."""
        found = []
        for number, captures in self.matcher.match(fqn):
            rule = self.everything[number]
            found.append(Match(rule, captures, rule.target(fqn, captures)))
        return tuple(found)

    def plan(self, source: object) -> Plan:
        """Every move for a checkpoint: a path, a header, a mapping of `TensorSpec`s or a state dict of tensors.

        >>> import remapkit
        >>> print(remapkit.load("wan22_pth").plan({"conv1.bias": remapkit.TensorSpec("F32", (96,))}))
        wan22_pth: 1 key, 0 renamed, 1 kept, 0 dropped
        """
        from remapkit.models.target import header
        from remapkit.plans.make import make_plan

        return make_plan(self, header(source))

    def prove(self, *, header: Iterable[str] | None = None) -> Proof:
        """Decide for every possible key whether these rules are unambiguous and lose nothing.

        `header` are known source keys; see `Proof`.

        >>> import remapkit
        >>> remapkit.load("wan22_diffusers").prove().level.value
        'proven for all keys'
        """
        from remapkit.proofs.prover import prove

        return prove(self, header=header)

    def inverse(self) -> RuleSet:
        """The rule set that leads every target back to its source.

        Raises `InvalidRules`, with the rule and the reason, where there is none.

        >>> import remapkit
        >>> back = remapkit.load("wan22_pth").inverse()
        >>> back.match("encoder.downsamples.0.downsampler.resample.1.bias")[0].target
        'encoder.downsamples.0.downsamples.2.resample.1.bias'
        """
        from remapkit.authoring.invert import given_params, invert
        from remapkit.models.target import home_folder
        from remapkit.rulefile.read import read_text

        file = read_text(invert(self), f"the inverse of {self.name}")
        return compile_rules(replace(file, folder=home_folder(self)), given_params(self))

    def __call__(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The state dict under its new keys; values are passed through as they are, so renames share storage.

        The result is held against the manifest that the rule file declares as its target, except that a state dict
        which lacks keys of the declared source (or where none is declared) may be a part: nothing is missing then.

        Raises `FailedCheck` with everything that is wrong: keys that no rule or two match, collisions, scales that
        would be lost, names that the target does not have; `TypeError` where it is no mapping of names.

        >>> import remapkit
        >>> remapkit.load("wan22_pth")({"decoder.upsamples.0.upsamples.3.time_conv.bias": "any value"})
        {'decoder.upsamples.0.upsampler.time_conv.bias': 'any value'}
        """
        _check_state_dict(state_dict)
        if not self.has_operations and self.file.target is None and not self.require:
            targets = self.renamer.targets(state_dict, self.unmatched)
            if targets is not None and (renamed := self._distinct(targets, state_dict)) is not None:
                return renamed
        from remapkit.compute.rename import remapped

        return remapped(self, state_dict)

    def _distinct(self, targets: list[str | None], state_dict: Mapping[str, Any]) -> dict[str, Any] | None:
        """The values under their new keys; None where a plan has to say what is wrong, or to look closer."""
        from remapkit.companions.names import may_have_companions

        renamed = dict(zip(targets, state_dict.values(), strict=True))
        dropped = targets.count(None)
        if len(renamed) != len(targets) - dropped + bool(dropped) or may_have_companions(state_dict):
            return None
        renamed.pop(None, None)
        return cast(dict[str, Any], renamed) if renamed or not state_dict else None

    @property
    def has_operations(self) -> bool:
        """Whether any rule does more than to rename."""
        return bool(self.add) or any(rule.flow is not None for rule in self.rules)


def _check_state_dict(state_dict: object) -> None:
    if not isinstance(state_dict, Mapping):
        hint = ": call `.state_dict()` on it first" if hasattr(state_dict, "state_dict") else ""
        hint = ": use `rules.plan(path)`, or read the file first" if isinstance(state_dict, str) else hint
        raise TypeError(f"a state dict is a mapping of names to values, not a {type(state_dict).__name__}{hint}")
    wrong = next((key for key in state_dict if not isinstance(key, str)), None)
    if wrong is not None:
        raise TypeError(f"the keys of a state dict are strings, and {wrong!r} is a {type(wrong).__name__}")


def _outcome(rule: Rule) -> Outcome:
    """What becomes of the keys of a rule."""
    if rule.kind != "rule":
        return rule.kind
    return "plan" if rule.flow is not None or rule.template is None else rule.template


# ------------------------------------------------------------------------------------------------ compilation


def compile_rules(
    rule_file: RuleFile, params: Mapping[str, int] | None = None, config: Mapping[str, Any] | None = None
) -> RuleSet:
    """Compile a rule file; raises `InvalidRules` with all of its problems.

    `params` are values for its params, `config` a model's config.json, where others are looked up by name.

    >>> from remapkit.rulefile.read import read_text
    >>> rules = compile_rules(read_text("remapkit: 1\\nname: t\\nkeep: ['{all:**}']\\n"))
    >>> [rule.id for rule in rules.keep]
    ['keep[0]']
    """
    compiler = _Compiler(rule_file, params, config)
    rules = tuple(rule for written in rule_file.rules for rule in compiler.rule(written))
    keep = compiler.named("keep", rule_file.keep)
    drop = compiler.named("drop", rule_file.drop)
    domain = compiler.domain()
    require = compiler.requirements()
    add = tuple(filter(None, (compiler.fill(number, each) for number, each in enumerate(rule_file.add))))
    compiler.check_ids()
    compiler.check_unused_tables()
    if compiler.problems:
        raise InvalidRules(compiler.problems)
    tables = {name: table.entries for name, table in compiler.tables.items()}
    warnings = tuple(compiler.warnings)
    return RuleSet(
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
    )


class _Compiler:
    def __init__(
        self, rule_file: RuleFile, params: Mapping[str, int] | None, config: Mapping[str, Any] | None
    ) -> None:
        self.file = rule_file
        self.problems: list[Diagnostic] = []
        self.params = param_values(rule_file.params, params, config, self.problems)
        self.flows = FlowReader(self.params, self.problems)
        self.warnings: list[Diagnostic] = []
        self.tables = {table.name.value: self.table(table) for table in rule_file.tables}
        self.keys = {name: tuple(table.entries) for name, table in self.tables.items()}
        self.used: set[str] = set()

    def collect(self, build: Callable[[], Any]) -> Any:
        try:
            return build()
        except InvalidRules as error:
            self.problems += error.diagnostics
            return None

    def table(self, written: WrittenTable) -> Table:
        entries: dict[str, str] = {}
        by_value: dict[str, Any] = {}
        for entry in written.entries:
            key, value = self.word(entry.key, "a key of a table"), self.word(entry.value, "a value of a table")
            if key in entries:
                title = f"the table {written.name.value!r} has the key {key!r} twice, once as a quoted literal"
                self.problems.append(Diagnostic("RK221", title, (Label(entry.key.span),), ("remove one",)))
                continue
            if value in by_value and not written.lossy:
                first = by_value[value]
                labels = (
                    Label(first.span, f"{first.key.value} -> {value}", primary=False),
                    Label(entry.span, f"{key} -> {value}"),
                )
                title = f"the table {written.name.value!r} is not injective: two keys become {value!r}"
                help = (
                    f"keys that differ only in {first.key.value} and {key} would become one",
                    "give each its own value, or say `lossy: true` if both never occur together",
                )
                self.problems.append(Diagnostic("RK101", title, labels, help))
            by_value.setdefault(value, entry)
            entries[key] = value
        return Table(written.name.value, entries, written.lossy, written.name.span)

    def word(self, text: Text, what: str) -> str:
        """What a word of a table says; one that has a problem stays as it is, so that no other follows from it."""
        read = read_word(text, what, self.problems)
        return text.value if read is None else read.value

    def pattern(self, written: WrittenPattern) -> Pattern | None:
        compiled = self.collect(lambda: compile_pattern(written, self.keys))
        self.used |= {guard.named.value for guard in written.where if guard.named is not None}
        if compiled is None:
            self.used |= {name for name in self.tables if f":{name}}}" in written.text.value}
            return None
        self.warnings += compiled.warnings
        pattern: Pattern = compiled.pattern
        self.used |= {part.table for part in pattern.parts if part.table is not None}
        return pattern

    def template(self, to: Text, forget: tuple[Text, ...], pattern: Pattern) -> Template | None:
        self.used |= {name for name in self.tables if f"|{name}}}" in to.value.replace(" ", "")}
        template: Template | None = self.collect(lambda: compile_template(to, forget, pattern, self.tables))
        return template

    def rule(self, written: WrittenRule) -> tuple[Rule, ...]:
        if written.flow is not None:
            return self.flowing(written)
        pattern = self.pattern(written.pattern)
        if pattern is None:
            # What can be said of a template without its pattern is said now, not in the next round.
            self.problems += syntax_problems(written.to)
            self.used |= {name for name in self.tables if f"|{name}}}" in written.to.value.replace(" ", "")}
            return ()
        template = self.template(written.to, written.forget, pattern)
        if template is None:
            return ()
        uses = _table_uses(pattern, template)
        return (Rule(written.id.value, "rule", pattern, template, written.span, uses),)

    def flowing(self, written: WrittenRule) -> tuple[Rule, ...]:
        """A rule with operations: one `Rule` for each pattern that it reads."""
        assert written.flow is not None
        before = len(self.problems)
        found = [self.pattern(source.pattern) for source in written.flow.sources]
        patterns = [pattern for pattern in found if pattern is not None]
        flow = self.flow(written, patterns) if len(patterns) == len(found) else None
        if flow is None or len(self.problems) > before:
            return ()
        return tuple(
            Rule(flow.id, "rule", pattern, templates[0], written.span, _all_uses(pattern, templates), flow, number)
            for number, (pattern, templates) in enumerate(zip(flow.patterns, flow.templates, strict=True))
        )

    def flow(self, written: WrittenRule, patterns: list[Pattern]) -> Flow | None:
        flow, read = written.flow, self.flows
        assert flow is not None
        before = len(self.problems)
        read.check_captures(flow, patterns)
        if len(self.problems) > before:
            return None
        forget = written.forget
        templates = []
        unstack = read.axis(flow.unstack)
        count = unstack.known_count(self.params) if unstack is not None else None
        for pattern in patterns:
            seen = len(self.problems)
            against = template_pattern(pattern, flow, count)
            row = [self.template(each.to, forget, against) for each in flow.outputs]
            if len(self.problems) > seen:
                break
            templates.append(tuple(each for each in row if each is not None))
        made = Flow(
            id=written.id.value,
            span=written.span,
            patterns=tuple(patterns),
            templates=tuple(templates),
            before=tuple(read.calls.calls(each.ops) for each in flow.sources),
            after=tuple(read.calls.calls(each.ops) for each in flow.outputs),
            ops=read.calls.calls(flow.ops),
            concat=read.split(flow.concat, len(flow.sources)),
            stack=read.axis(flow.stack),
            unstack=unstack,
            split=read.split(flow.split, len(flow.outputs)),
            share=flow.share,
        )
        return made if len(self.problems) == before else None

    def fill(self, number: int, written: WrittenFill) -> Filled | None:
        """One entry of `add`."""
        before = len(self.problems)
        parts = []
        for guard in written.each:
            values = allowed(guard, self.keys, self.problems)
            if values is not None:
                words = tuple(text.value for text in values)
                at = (0, len(written.to.value))
                parts.append(Part(guard.capture.value, SEGMENT, at).bounded(words))
            if guard.named is not None:
                self.used.add(guard.named.value)
        if len(self.problems) > before:
            self.problems += syntax_problems(written.to)
            return None
        count = math.prod(len(part.values or ()) for part in parts)
        if count > MAX_ADDED:
            title = f"add[{number}] would bring {count:,} tensors: at most {MAX_ADDED:,} can be added by one entry"
            help = ("bound `each` more tightly",)
            self.problems.append(Diagnostic("RK217", title, (Label(written.to.span),), help))
            return None
        pattern = fill_pattern(written, tuple(parts))
        template = self.template(written.to, (), pattern)
        if template is None or len(self.problems) > before:
            return None
        fields = {key.value: node for key, node in written.node.entries}
        shape = self.flows.calls.arg(fields["shape"])
        value = self.flows.calls.arg(fields["fill"]) if fields["fill"].kind != "text" else fields["fill"].value  # type: ignore[union-attr]
        dtype = fields["dtype"].value  # type: ignore[union-attr]
        filled = Filled(
            f"add[{number}]",
            written.node.span,
            tuple(fill_targets(template, tuple(parts))),
            value,  # type: ignore[arg-type]
            shape,  # type: ignore[arg-type]
            dtype,
            template,
        )
        try:
            filled.op(self.params)
        except NoValue:
            pass  # said when a plan needs it
        except (BadNumber, Refused) as error:
            self.problems.append(Diagnostic("RK163", str(error), (Label(written.node.span),), ("correct it",)))
        return filled if len(self.problems) == before else None

    def named(self, kind: Kind, written: Iterable[WrittenPattern]) -> tuple[Rule, ...]:
        rules = []
        for number, each in enumerate(written):
            pattern = self.pattern(each)
            if pattern is not None:
                rules.append(Rule(f"{kind}[{number}]", kind, pattern, None, each.span, _table_uses(pattern, None)))
        return tuple(rules)

    def domain(self) -> tuple[Pattern, ...]:
        return tuple(filter(None, (self.pattern(each) for each in self.file.source_domain)))

    def requirements(self) -> tuple[Requirement, ...]:
        calls, written = self.flows.calls, self.file.require
        return tuple(read_requirements(written, self.params, self.pattern, calls, is_integer, self.problems))

    def check_ids(self) -> None:
        seen: dict[str, Text] = {}
        for rule in self.file.rules:
            first = seen.setdefault(rule.id.value, rule.id)
            if first is not rule.id:
                labels = (Label(first.span, "first here", primary=False), Label(rule.id.span, "again here"))
                title = f"two rules have the id {rule.id.value!r}"
                self.problems.append(Diagnostic("RK160", title, labels, ("every message names a rule by its id",)))

    def check_unused_tables(self) -> None:
        for name, table in self.tables.items():
            if name not in self.used:
                title = f"no rule uses the table {name!r}"
                help = (
                    f"look a capture up with {{name|{name}}}, bound one with {{name:{name}}}, or remove the table",
                )
                warning = Diagnostic("RK104", title, (Label(table.at),), help, severity=Severity.WARNING)
                self.warnings.append(warning)


def _all_uses(pattern: Pattern, templates: Iterable[Template]) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys(use for template in templates for use in _table_uses(pattern, template)))


def _table_uses(pattern: Pattern, template: Template | None) -> tuple[tuple[str, str], ...]:
    uses = [(part.name, part.table) for part in pattern.captures if part.name and part.table]
    if template is not None:
        uses += [(item.names[0], item.table) for item in template.items if isinstance(item, Mapped) and item.table]
    return tuple(dict.fromkeys(uses))
