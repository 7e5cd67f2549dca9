"""Compiled rules as data: patterns, templates and tables, and how they match a key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.source import Span, Text
from remapkit.ops.calls import Arg
from remapkit.patterns.matcher import KeyOutcome, PatternMatcher, Renamer, SetMatcher
from remapkit.patterns.pattern import Pattern
from remapkit.patterns.stopping import Stop, find_stop
from remapkit.patterns.template import Template
from remapkit.rulefile.arithmetic import Values
from remapkit.rulefile.syntax import RequirementKind, RuleFile, WrittenTest
from remapkit.rules.pipeline import AddedTargets, Pipeline


@dataclass(frozen=True, slots=True)
class Requirement:
    """One entry of `require`. `name` is the pattern, the param or the condition as written.

    `wanted` holds the sizes of a shape (None: any size), the allowed dtypes or numbers, or the two sides of a
    condition, which `sign` compares. `by` is the capture to count.
    """

    what: RequirementKind
    name: str
    wanted: tuple[Arg, ...]
    span: Span
    reader: PatternMatcher | None = None
    by: str | None = None
    note: str | None = None
    sign: str | None = None


@dataclass(frozen=True, slots=True)
class CountedParam:
    """A param that is counted in the header of a checkpoint: one more than the largest index `by` of a pattern."""

    name: str
    text: Text
    reader: PatternMatcher
    by: str


RuleKind = Literal["rule", "keep", "drop"]

AMBIGUITY_HELP = (
    "narrow one of the patterns, or guard it with `where:` or `leaf:`; rule order is never used as a tie-breaker"
)
"""Help text for a key that several rules match, reported by lint, plans and tests."""


@dataclass(frozen=True, slots=True)
class Match:
    """A key matched by a rule, with its captures and its target key (None: the key is dropped).

    If the rule writes several targets, `target` is the first and `targets` has all of them; `{e}` in a target is a
    placeholder for an index that `unstack`, `split` or `copy` counts. `table_uses` lists the table entries used, as
    (table, key).
    """

    rule: Rule
    captures: Mapping[str, str]
    target: str | None

    @property
    def targets(self) -> tuple[str, ...]:
        """All target keys; empty if the key is dropped."""
        if self.rule.pipeline is None:
            return () if self.target is None else (self.target,)
        made = dict.fromkeys(self.rule.pipeline.made)
        return tuple(
            each.render({**self.captures, **made}) for each in self.rule.pipeline.templates[self.rule.branch]
        )

    @property
    def table_uses(self) -> tuple[tuple[str, str], ...]:
        return tuple((table, self.captures[name]) for name, table in self.rule.tables)


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule, `keep` or `drop`; `tables` pairs captures with the tables used to look them up.

    A rule with several patterns becomes one `Rule` per pattern, numbered by `branch`, all with the same `pipeline`.
    """

    id: str
    kind: RuleKind
    pattern: Pattern
    template: Template | None
    span: Span
    tables: tuple[tuple[str, str], ...] = ()
    pipeline: Pipeline | None = None
    branch: int = 0
    reader: PatternMatcher = field(init=False, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"Rule({self.id!r})"

    def __post_init__(self) -> None:
        object.__setattr__(self, "reader", PatternMatcher(self.pattern))

    def match(self, fqn: str) -> Match | None:
        """Match a whole key; return None if it does not match.

        >>> from remapkit.rulefile.read import read_text
        >>> from remapkit.rules.compile import compile_rules
        >>> text = "remapkit: 1\\nname: t\\nrules: [{id: r, path: 'layers.{n:int}.q', to: 'h.{n}.query'}]\\n"
        >>> rule, = compile_rules(read_text(text)).rules
        >>> rule.match("layers.3.q").target, rule.match("layers.03.q")
        ('h.3.query', None)
        """
        captures = self.reader(fqn)
        return None if captures is None else Match(self, captures, self.target(fqn, captures))

    def target(self, fqn: str, captures: Mapping[str, str | None]) -> str | None:
        """Return the target key for the given captures (the first one if the rule writes several)."""
        if self.kind == "drop":
            return None
        if self.pipeline is not None and self.pipeline.made:
            captures = {**captures, **dict.fromkeys(self.pipeline.made)}
        return fqn if self.template is None else self.template.render(captures)

    def find_stop(self, fqn: str) -> Stop | None:
        """Return where the pattern stopped matching a key, or None if it matches."""
        return find_stop(self.pattern, fqn)


@dataclass(frozen=True, slots=True)
class CompiledRules:
    """A compiled rule file as data. `remapkit.RuleSet` is the public class around it.

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
    add: tuple[AddedTargets, ...] = ()
    params: Values = field(default_factory=dict, hash=False)
    require: tuple[Requirement, ...] = ()
    key_params: tuple[str, ...] = ()
    """The params that patterns and templates use: with other values, these are other rules."""
    counted: tuple[CountedParam, ...] = ()
    """The params whose values a checkpoint has: neither given nor in a config. `rules/counted.py` puts them in."""
    inputs: tuple[Mapping[str, int | Sequence[int]] | None, Mapping[str, Any] | None] = field(
        default=(None, None), hash=False, compare=False, repr=False
    )
    """The params and the config that these rules were compiled with."""
    after: tuple[CompiledRules, ...] = ()
    """The rules that are applied to the result, one after the other, for a route: `RuleSet.then`."""
    everything: tuple[Rule, ...] = field(init=False, compare=False, repr=False)
    """All rules, `keep`s and `drop`s."""
    matcher: SetMatcher = field(init=False, compare=False, repr=False)
    renamer: Renamer = field(init=False, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __post_init__(self) -> None:
        everything = (*self.rules, *self.keep, *self.drop)
        object.__setattr__(self, "everything", everything)
        matcher = SetMatcher([rule.pattern for rule in everything], [rule.reader for rule in everything])
        object.__setattr__(self, "matcher", matcher)
        object.__setattr__(self, "renamer", Renamer(matcher, map(_decide_outcome, everything)))

    @property
    def last(self) -> CompiledRules:
        """The rules that write the target: these, unless others follow."""
        return self.after[-1] if self.after else self

    @property
    def unmatched(self) -> Literal["error", "keep", "drop"]:
        """What happens to a key that no rule matches."""
        return self.file.unmatched

    @property
    def neutral(self) -> frozenset[str]:
        """The ids of the drops that the author declares to have no effect."""
        return frozenset(f"drop[{number}]" for number, each in enumerate(self.file.drop) if each.neutral)

    @property
    def digest(self) -> str:
        """`sha256:` and the hex digest of the rules, without comments and tests."""
        if not self.after:
            return self.file.digest
        digests = "\n".join(part.file.digest for part in self.parts)
        return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"

    @property
    def parts(self) -> tuple[CompiledRules, ...]:
        """The rules of each file, several for a route: the first reads the source, the last writes the target."""
        return (replace(self, name=self.file.name.value, after=()), *self.after) if self.after else (self,)

    @property
    def tests(self) -> tuple[WrittenTest, ...]:
        """The rule file's own tests."""
        return self.file.tests

    def match(self, fqn: str) -> tuple[Match, ...]:
        """Return the match of every rule, `keep` and `drop` that matches the whole key."""
        found = []
        for number, captures in self.matcher.match(fqn):
            rule = self.everything[number]
            found.append(Match(rule, captures, rule.target(fqn, captures)))
        return tuple(found)

    @property
    def has_operations(self) -> bool:
        """Whether any rule does more than rename."""
        own = bool(self.add) or any(rule.pipeline is not None for rule in self.rules)
        return own or any(part.has_operations for part in self.after)


def _decide_outcome(rule: Rule) -> KeyOutcome:
    """Return what happens to the keys that a rule matches."""
    if rule.kind != "rule":
        return rule.kind
    return "plan" if rule.pipeline is not None or rule.template is None else rule.template


@dataclass(frozen=True, slots=True)
class Table:
    """A compiled table; `at` is the position of its name."""

    name: str
    entries: Mapping[str, str] = field(hash=False)
    lossy: bool
    at: Span
