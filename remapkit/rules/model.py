"""Compiled rules as data: patterns, templates, tables, and what becomes of each key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.source import Span
from remapkit.patterns.matcher import Outcome, Reader, Renamer, SetMatcher
from remapkit.patterns.pattern import Pattern
from remapkit.patterns.stopping import Stop, stopped_at
from remapkit.patterns.template import Template
from remapkit.rulefile.syntax import RuleFile, WrittenTest
from remapkit.rules.compile import compile_rules
from remapkit.rules.pipeline import Filled, Flow

if TYPE_CHECKING:
    from remapkit.plans.model import Plan
    from remapkit.proofs.model import Proof


from remapkit.ops.calls import Arg


@dataclass(frozen=True, slots=True)
class Requirement:
    """One entry of `require`: `what` is `count`, `shape` or `param`, `name` the pattern or the param as written.

    `wanted` has the sizes of a shape (None: any), else the numbers of which one has to be found. `by` is the capture
    that is counted.
    """

    what: str
    name: str
    wanted: tuple[Arg, ...]
    span: Span
    reader: Reader | None = None
    by: str | None = None
    note: str | None = None


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
        from remapkit.rulefile.read import read_text
        from remapkit.sources.declared import home_folder

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


@dataclass(frozen=True, slots=True)
class Table:
    """A compiled table; `at` is the place of its name."""

    name: str
    entries: Mapping[str, str] = field(hash=False)
    lossy: bool
    at: Span
