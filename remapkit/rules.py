r"""Rule sets: a rule file compiled. Every rule speaks about the original key; their order never matters.

`compile_rules` takes a `RuleFile` and gives a `RuleSet`, or raises `InvalidRules` with all problems of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from remapkit.automaton import automaton, read
from remapkit.diagnostic import Diagnostic, FailedCheck, InvalidRules, Label, Severity
from remapkit.guards import compile_pattern
from remapkit.matcher import Reader
from remapkit.pattern import DIGITS, NOT_DOT, NOT_NEWLINE, WORD, Pattern, Ranges, unparse_chars
from remapkit.rulefile import RuleFile, WrittenPattern, WrittenRule, WrittenTable, WrittenTest
from remapkit.source import Span, Text
from remapkit.template import Mapped, Table, Template, compile_template

if TYPE_CHECKING:
    from remapkit.plan import Plan
    from remapkit.prove import Proof

Kind = Literal["rule", "keep", "drop"]


@dataclass(frozen=True, slots=True)
class Match:
    """What one rule made of one key: its captures, and the target key (None: the key is dropped).

    `table_uses` are the entries of tables it went through, as (table, key).
    """

    rule: Rule
    captures: Mapping[str, str]
    target: str | None

    @property
    def table_uses(self) -> tuple[tuple[str, str], ...]:
        return tuple((table, self.captures[name]) for name, table in self.rule.tables)


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a rule stopped matching a key: after `offset` characters, and what it expected there."""

    offset: int
    expected: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule, `keep` or `drop`; `tables` pairs captures with the tables that they go through."""

    id: str
    kind: Kind
    pattern: Pattern
    template: Template | None
    span: Span
    tables: tuple[tuple[str, str], ...] = ()
    reader: Reader = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reader", Reader(self.pattern))

    def match(self, fqn: str) -> Match | None:
        """The match of a whole key, or None.

        >>> from remapkit.rulefile import read_text
        >>> text = "remapkit: 1\\nname: t\\nrules: [{id: r, path: 'layers.{n:int}.q', to: 'h.{n}.query'}]\\n"
        >>> rule, = compile_rules(read_text(text)).rules
        >>> rule.match("layers.3.q").target, rule.match("layers.03.q")
        ('h.3.query', None)
        """
        captures = self.reader(fqn)
        return None if captures is None else Match(self, captures, self.target(fqn, captures))

    def target(self, fqn: str, captures: Mapping[str, str]) -> str | None:
        """The target key for what was captured."""
        if self.kind == "drop":
            return None
        return fqn if self.template is None else self.template.render(captures)

    def stopped_at(self, fqn: str) -> Stop | None:
        """Where the key stopped being one of this rule's, or None where it is one."""
        machine = automaton(self.pattern.parts)
        reading = read(machine, fqn)
        if reading.accepted:
            return self._wrong_leaf(fqn)
        following = [q for p in reading.at for q in machine.follow[p]] if reading.length else list(machine.first)
        ends = any(p in machine.last for p in reading.at) if reading.length else machine.nullable
        expected = list(dict.fromkeys(_expected(q, machine.chars, machine.follow, machine.part) for q in following))
        if ends:
            expected.append("the end of the key")
        text = " or ".join(expected[:SHOWN]) + (" or ..." if len(expected) > SHOWN else "")
        rest = fqn[reading.length :]
        found = f"found {rest[:1]!r}" if rest else "the key ended"
        return Stop(reading.length, text, f"expected {text}, {found}")

    def _wrong_leaf(self, fqn: str) -> Stop | None:
        leaf = fqn.rpartition(".")[2]
        if self.pattern.leaf is None or leaf in self.pattern.leaf:
            return None
        listed = ", ".join(self.pattern.leaf)
        return Stop(len(fqn) - len(leaf), f"a leaf of {listed}", f"leaf {leaf!r} is not one of {listed}")


SHOWN = 4
_NAMES: Mapping[Ranges, str] = {
    DIGITS: "a digit",
    ((49, 57),): "a digit from 1 to 9",
    WORD: "a letter, a digit or _",
    NOT_DOT: "a character other than '.'",
    NOT_NEWLINE: "a character",
}


def _expected(
    position: int, chars: tuple[Ranges, ...], follow: tuple[tuple[int, ...], ...], part: tuple[int, ...]
) -> str:
    """What a position wants to read: the whole word from there on, where there is only one."""
    word = ""
    here: int | None = position
    while here is not None and part[here] == part[position] and chars[here][0][0] == chars[here][-1][1]:
        word += chr(chars[here][0][0])
        here = follow[here][0] if len(follow[here]) == 1 and len(word) < 80 else None
    if word:
        return repr(word)
    wanted = chars[position]
    return _NAMES.get(wanted) or f"one of {unparse_chars(wanted)}"


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

    @property
    def unmatched(self) -> Literal["error", "keep", "drop"]:
        """What becomes of a key that no rule matches."""
        return self.file.unmatched

    @property
    def digest(self) -> str:
        """`sha256:` and the hex digest of the rule file's bytes."""
        return self.file.digest

    @property
    def tests(self) -> tuple[WrittenTest, ...]:
        """The rule file's own tests."""
        return self.file.tests

    @property
    def everything(self) -> tuple[Rule, ...]:
        """Rules, keeps and drops."""
        return (*self.rules, *self.keep, *self.drop)

    def match(self, fqn: str) -> tuple[Match, ...]:
        """Every rule, `keep` and `drop` that matches the whole key."""
        return tuple(match for rule in self.everything if (match := rule.match(fqn)) is not None)

    def plan(self, source: object) -> Plan:
        """Every move for a checkpoint: a path, a header, a mapping of `TensorSpec`s or a state dict of tensors.

        >>> import remapkit
        >>> print(remapkit.load("wan22_pth").plan({"conv1.bias": remapkit.TensorSpec("F32", (96,))}))
        wan22_pth: 1 keys, 0 renamed, 1 kept, 0 dropped
        """
        from remapkit.plan import make_plan
        from remapkit.targets import header

        return make_plan(self, header(source))

    def prove(self, *, header: Iterable[str] | None = None) -> Proof:
        """Decide for every possible key whether these rules are unambiguous and lose nothing.

        `header` are known source keys; see `Proof`.

        >>> import remapkit
        >>> remapkit.load("wan22_diffusers").prove().level.value
        'proven for all keys'
        """
        from remapkit.prove import prove

        return prove(self, header=header)

    def inverse(self) -> RuleSet:
        """The rule set that leads every target back to its source; raises `InvalidRules` where there is none.

        >>> import remapkit
        >>> back = remapkit.load("wan22_pth").inverse()
        >>> back.match("encoder.downsamples.0.downsampler.resample.1.bias")[0].target
        'encoder.downsamples.0.downsamples.2.resample.1.bias'
        """
        from remapkit.invert import invert
        from remapkit.rulefile import read_text

        return compile_rules(read_text(invert(self), f"the inverse of {self.name}"))

    def __call__(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The state dict under its new keys; values are passed through as they are, so renames share storage.

        Raises `FailedCheck` with every key that is matched by no rule or by two, and every collision.

        >>> import remapkit
        >>> remapkit.load("wan22_pth")({"decoder.upsamples.0.upsamples.3.time_conv.bias": "any value"})
        {'decoder.upsamples.0.upsampler.time_conv.bias': 'any value'}
        """
        from remapkit.plan import make_plan
        from remapkit.spec import StateDictSpec, TensorSpec

        nothing = TensorSpec("U8", (0,))
        plan = make_plan(self, StateDictSpec(dict.fromkeys(state_dict, nothing), name="the state dict"))
        problems = [problem for problem in plan.problems if problem.code != "RK300"]
        if problems:
            raise FailedCheck(problems)
        return {move.target: state_dict[move.sources[0]] for move in plan.moves}


# ------------------------------------------------------------------------------------------------ compilation


def compile_rules(rule_file: RuleFile) -> RuleSet:
    """Compile a rule file; raises `InvalidRules` with all of its problems.

    >>> from remapkit.rulefile import read_text
    >>> rules = compile_rules(read_text("remapkit: 1\\nname: t\\nkeep: ['{all:**}']\\n"))
    >>> [rule.id for rule in rules.keep]
    ['keep[0]']
    """
    compiler = _Compiler(rule_file)
    rules = tuple(filter(None, (compiler.rule(written) for written in rule_file.rules)))
    keep = compiler.named("keep", rule_file.keep)
    drop = compiler.named("drop", rule_file.drop)
    domain = compiler.domain()
    compiler.check_ids()
    compiler.check_unused_tables()
    if compiler.problems:
        raise InvalidRules(compiler.problems)
    tables = {name: table.entries for name, table in compiler.tables.items()}
    return RuleSet(rule_file.name.value, rule_file, rules, keep, drop, tables, domain, tuple(compiler.warnings))


class _Compiler:
    def __init__(self, rule_file: RuleFile) -> None:
        self.file = rule_file
        self.problems: list[Diagnostic] = []
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
            key, value = entry.key.value, entry.value.value
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

    def rule(self, written: WrittenRule) -> Rule | None:
        pattern = self.pattern(written.pattern)
        self.used |= {name for name in self.tables if f"|{name}}}" in written.to.value.replace(" ", "")}
        if pattern is None:
            return None
        template: Template | None = self.collect(
            lambda: compile_template(written.to, written.forget, pattern, self.tables)
        )
        if template is None:
            return None
        return Rule(written.id.value, "rule", pattern, template, written.span, _table_uses(pattern, template))

    def named(self, kind: Kind, written: Iterable[WrittenPattern]) -> tuple[Rule, ...]:
        rules = []
        for number, each in enumerate(written):
            pattern = self.pattern(each)
            if pattern is not None:
                rules.append(Rule(f"{kind}[{number}]", kind, pattern, None, each.span, _table_uses(pattern, None)))
        return tuple(rules)

    def domain(self) -> tuple[Pattern, ...]:
        return tuple(filter(None, (self.pattern(each) for each in self.file.source_domain)))

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


def _table_uses(pattern: Pattern, template: Template | None) -> tuple[tuple[str, str], ...]:
    uses = [(part.name, part.table) for part in pattern.captures if part.name and part.table]
    if template is not None:
        uses += [(item.names[0], item.table) for item in template.items if isinstance(item, Mapped) and item.table]
    return tuple(dict.fromkeys(uses))
