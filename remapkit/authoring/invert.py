r"""The inverse of a rule set: what was the target is matched, and becomes what was the source.

It exists exactly when nothing that can vary is lost, every target can be cut in one way, and no two rules share one:
what a proof says. `inverse_of` is the one place where a rule becomes its inverse; the rest writes it down, reads it
again, and proves the result.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.diagnostics.diagnostic import Diagnostic, InvalidRules, Label, listed
from remapkit.diagnostics.source import Text
from remapkit.ops.calls import Call, plain_arg
from remapkit.patterns.automaton import automaton
from remapkit.patterns.literals import choice_text, literal_text
from remapkit.patterns.matcher import regex_text
from remapkit.patterns.path import parse_path
from remapkit.patterns.template import Copy, Item, Literal, Mapped
from remapkit.patterns.tree import CANONICAL, SEGMENT, Part, contains, literal, unparse
from remapkit.proofs.keymap import Arrow, arrows
from remapkit.proofs.linear import hanging_together
from remapkit.proofs.prover import Level, prove
from remapkit.rulefile.read import WrittenPattern, read_text
from remapkit.rulefile.schema.validate import plain_value
from remapkit.rulefile.yaml.emit import entry, in_quotes, quoted
from remapkit.rules.compile import Rule, RuleSet, compile_rules
from remapkit.rules.pipeline import Axis, Flow, Split
from remapkit.tensors.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.diagnostics.source import Span

MAX_CASES = 64
"""Into so many rules a rule is spelt out at most, one for each combination of captures that hang together."""
_SUFFIX = "_inverse"
_INDEX = re.compile(r"0|[1-9][0-9]*")


class NoInverse(Exception):
    """Why a rule has no inverse."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(diagnostics[0].title)
        self.diagnostics = diagnostics


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture of the inverse pattern; `values` are the words it can be (None: those of `part`)."""

    name: str
    part: Part | None
    values: tuple[str, ...] | None = None
    table: str | None = None


@dataclass(frozen=True, slots=True)
class InverseRule:
    """A rule of the inverse: text and captures of its pattern, its template as written, its leaf guard."""

    id: str
    pattern: tuple[str | Capture, ...]
    to: str
    leaf: tuple[str, ...] | None = None
    path: bool = True


@dataclass(slots=True)
class Tables:
    """The tables of the inverse: those of the rule file turned round, and those that had to be made."""

    found: dict[str, dict[str, str]] = field(default_factory=dict)
    lossy: set[str] = field(default_factory=set)

    def named(self, name: str, entries: Mapping[str, str], *, lossy: bool = False) -> str:
        """The name of a table with these entries: `name`, or with a number where another one has it."""
        for number in itertools.count(1):
            chosen = name if number == 1 else f"{name}_{number}"
            if self.found.setdefault(chosen, dict(entries)) == dict(entries):
                if lossy:
                    self.lossy.add(chosen)
                return chosen
        raise AssertionError


# ------------------------------------------------------------------------------------------------ one rule


def inverse_of(rule: Rule, arrow: Arrow, tables: Tables, known: Mapping[str, Mapping[str, str]]) -> list[InverseRule]:
    """The inverse of one rule: one rule, or one for each combination of captures that cannot be told apart."""
    assert rule.template is not None
    together = hanging_together(arrow)
    items = [item for item in rule.template.items if _hangs(item, together)]
    if not together:
        return [_Inverter(rule, {}, tables, known).rule(rule.id)]
    if len(items) == 1 and isinstance(items[0], Mapped):
        return [_Inverter(rule, {}, tables, known, together=together).rule(rule.id)]
    if len(together) == 1:
        split = _Inverter(rule, {}, tables, known, together=together).split(rule.id)
        if split is not None:
            return [split]
    spaces = [part.values or () for part in rule.pattern.captures if part.name in together]
    names = [part.name for part in rule.pattern.captures if part.name in together]
    cases = list(itertools.islice(itertools.product(*spaces), MAX_CASES + 1))
    if len(cases) > MAX_CASES:
        title = (
            f"{rule.id} has no inverse that could be written: {listed(map(str, names))} have too many combinations"
        )
        help = (f"bound them to at most {MAX_CASES} combinations, or write one rule a case",)
        raise NoInverse(Diagnostic("RK213", title, _label(rule), help))
    found = []
    for number, case in enumerate(cases):
        fixed = dict(zip(map(str, names), case, strict=True))
        found.append(_Inverter(rule, fixed, tables, known).rule(f"{rule.id}.{number}"))
    return found


def _hangs(item: Item, together: Sequence[str]) -> bool:
    if isinstance(item, Literal):
        return False
    return not set((item.name,) if isinstance(item, Copy) else item.names).isdisjoint(together)


@dataclass(frozen=True, slots=True)
class InverseFlow:
    """A rule with operations turned round: what it joins, does and takes apart, each as plain data."""

    id: str
    sources: tuple[tuple[InverseRule, tuple[object, ...]], ...]
    targets: tuple[tuple[str, tuple[object, ...]], ...]
    ops: tuple[object, ...] = ()
    concat: Mapping[str, object] | None = None
    stack: Mapping[str, object] | None = None
    unstack: Mapping[str, object] | None = None
    split: Mapping[str, object] | None = None


def inverse_flow(
    rule_set: RuleSet, flow: Flow, tables: Tables, known: Mapping[str, Mapping[str, str]]
) -> InverseFlow:
    """The inverse of a rule with operations: sources and targets change places, everything is undone backwards."""
    rules = [rule for rule in rule_set.rules if rule.flow is flow]
    _refuse_one_way(flow)
    turned = [
        [_turned(replace(rule, template=template), tables, known) for template in flow.templates[rule.branch]]
        for rule in rules
    ]
    if not all(_alike(row, turned[0]) for row in turned):
        title = f"{flow.id} has no inverse that could be written: its sources do not bound their captures alike"
        raise NoInverse(Diagnostic("RK213", title, (Label(flow.span),), ("bound them alike",)))
    return InverseFlow(
        id=flow.id,
        sources=tuple((rule, _undone(calls)) for rule, calls in zip(turned[0], flow.after, strict=True)),
        targets=tuple((row[0].to, _undone(calls)) for row, calls in zip(turned, flow.before, strict=True)),
        ops=_undone(flow.ops),
        concat=_cut(flow.split, "equal"),
        stack=_axis(flow.unstack),
        unstack=_axis(flow.stack),
        split=_cut(flow.concat, None),
    )


def _alike(row: Sequence[InverseRule], first: Sequence[InverseRule]) -> bool:
    """Whether all targets of one source give back the same key, and are read like those of the first source."""
    same = all((one.pattern, one.leaf) == (other.pattern, other.leaf) for one, other in zip(row, first, strict=True))
    return same and all(each.to == row[0].to for each in row)


def _turned(rule: Rule, tables: Tables, known: Mapping[str, Mapping[str, str]]) -> InverseRule:
    assert rule.template is not None
    together = hanging_together(_arrow_of(rule))
    if together:
        title = f"{rule.id} has no inverse that could be written: {listed(together)} hang together in its target"
        help = ("use each capture once, or write one rule a case",)
        raise NoInverse(Diagnostic("RK213", title, _label(rule), help))
    return _Inverter(rule, {}, tables, known).rule(rule.id)


def _arrow_of(rule: Rule) -> Arrow:
    assert rule.template is not None
    return Arrow(rule.id, rule.kind, rule.span, rule.pattern, rule.template.items)


def _refuse_one_way(flow: Flow) -> None:
    """Raise with everything of a rule that nothing undoes."""
    problems = []
    for call in (*itertools.chain(*flow.before), *flow.ops, *itertools.chain(*flow.after)):
        if isinstance(reason := call.inverse, str):
            label = Label(call.span if call.span is not None else flow.span)
            problems.append(Diagnostic("RK215", f"{flow.id} has no inverse: {reason}", (label,), (_ONE_WAY,)))
    if flow.share is not None:
        title = f"{flow.id} has no inverse: it writes one tensor under {len(flow.after)} names"
        help = "which of them would be read is not said; write that rule yourself, and drop the others"
        problems.append(Diagnostic("RK215", title, (Label(flow.span),), (help,)))
    if flow.concat is not None and flow.concat.sizes is None and not flow.concat.equal:
        title = f"{flow.id} has no inverse: it does not say how long the parts of its concat are"
        help = "write `sizes: equal`, or the size of each: `sizes: [hidden, hidden, 4*hidden]`"
        problems.append(Diagnostic("RK215", title, (Label(flow.concat.span or flow.span),), (help,)))
    if problems:
        raise NoInverse(*problems)


_ONE_WAY = "write the way back yourself, as a rule file of its own"


def _undone(calls: Sequence[Call]) -> tuple[object, ...]:
    inverses = [call.inverse for call in reversed(calls)]
    return tuple(each.plain() for each in inverses if not isinstance(each, str))


def _cut(split: Split | None, otherwise: str | None) -> Mapping[str, object] | None:
    if split is None:
        return None
    sizes = plain_arg(split.sizes) if split.sizes is not None else otherwise
    return {"dim": split.dim, **({"sizes": sizes} if sizes is not None else {})}


def _axis(axis: Axis | None) -> Mapping[str, object] | None:
    if axis is None:
        return None
    count = {"count": plain_arg(axis.count)} if axis.count is not None else {}
    return {"dim": axis.dim, "by": axis.by, **count}


class _Inverter:
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
            part.name: part.values[0] for part in rule.pattern.captures if part.name and part.values and part.constant
        }
        self.fixed = {**constants, **fixed}
        self.back: dict[str, str] = {}
        """How each capture of the source is written in the template of the inverse."""
        self.names = {part.name for part in rule.pattern.captures}
        self.made = rule.flow.unstack.by if rule.flow is not None and rule.flow.unstack is not None else None
        if rule.flow is not None and rule.flow.folded is not None:
            self.back[rule.flow.folded] = f"{{{rule.flow.folded}}}"

    def rule(self, id: str) -> InverseRule:
        assert self.given.template is not None
        return self.finished(id, [self.element(item) for item in self.given.template.items])

    def finished(self, id: str, pattern: list[str | Capture]) -> InverseRule:
        pattern, leaf = self.with_leaf(pattern)
        to = "".join(self.written(part) for part in self.given.pattern.parts)
        return InverseRule(id, tuple(_joined(pattern)), to, leaf, self.given.pattern.surface == "path")

    def written(self, part: Part) -> str:
        if part.name in self.back:
            return self.back[part.name]
        word = self.fixed.get(part.name) if part.name is not None else None
        if part.name is None and part.constant and part.values is not None:
            word = part.values[0]
        if word is None:
            raise self.unwritable(
                "only its `leaf:` guard, or a domain, leaves one word to what the target does not show"
            )
        return literal_text(word)

    def element(self, item: Item) -> str | Capture:
        if isinstance(item, Literal):
            return item.text
        if isinstance(item, Copy):
            if item.name in self.fixed:
                return self.fixed[item.name]
            if item.name == self.made:
                return Capture(item.name, Part(item.name, CANONICAL, written="int"))
            self.back[item.name] = f"{{{item.name}}}"
            return Capture(item.name, self.given.pattern.capture(item.name))
        if self.made in item.names:
            raise self.unwritable("it reckons with the index that `unstack` counts")
        names = [name for name in dict.fromkeys(item.names) if name not in self.fixed]
        rows = {
            tuple(values[item.names.index(name)] for name in names): text
            for values, text in item.mapping.items()
            if all(self.fixed.get(name, value) == value for name, value in zip(item.names, values, strict=True))
        }
        if not names:
            return rows[()]
        if len(names) > 1 or names[0] in self.together:
            return self.several(names, rows)
        entries = {text: key for (key,), text in rows.items()}
        if len(entries) < len(rows):
            raise self.unwritable("two entries of a table have one value, and only the domain says which one occurs")
        return self.mapped(names[0], item, entries)

    def mapped(self, name: str, item: Mapped, entries: Mapping[str, str]) -> Capture:
        """A table turned round; arithmetic on one capture turned round."""
        if item.table is None:
            shift = _shift(entries)
            if shift is not None:
                self.back[name] = f"{{{name}}}" if not shift else f"{{{name}{shift:+d}}}"
                return Capture(name, None, tuple(entries))
        whole = {value: key for key, value in self.known.get(item.table or "", {}).items()}
        turned = (
            dict(entries)
            if len(whole) != len(entries)
            else {value: whole[value] for value in whole if value in entries}
        )
        table = self.tables.named(item.table or f"{name}_back", turned)
        self.back[name] = f"{{{name}|{table}}}"
        return Capture(name, None, tuple(entries), table)

    def several(self, names: Sequence[str], rows: Mapping[tuple[str, ...], str]) -> Capture:
        """Captures that are put into one number, taken out of it again."""
        number = next(name for name in ("n", "i", "index", "_".join(names)) if name not in self.names)
        self.names.add(number)
        for place, name in enumerate(names):
            column = {text: values[place] for values, text in rows.items()}
            expression = _expression(number, column)
            if expression is None:
                table = self.tables.named(f"{name}_of_{number}", column, lossy=True)
                expression = f"{number}|{table}"
            self.back[name] = f"{{{expression}}}"
        return Capture(number, None, tuple(rows.values()))

    def split(self, id: str) -> InverseRule | None:
        """One capture that was taken apart into several numbers, put together again; None where that is not a sum."""
        (name,) = self.together
        assert self.given.template is not None
        part = self.given.pattern.capture(name)
        assert part is not None
        items = [item for item in self.given.template.items if _hangs(item, self.together)]
        rows = {value: tuple(_text(item, name, value, self.fixed) for item in items) for value in part.values or ()}
        scales = _scales(rows)
        if scales is None:
            return None
        captures = []
        for number, (column, scale) in enumerate(zip(zip(*rows.values(), strict=True), scales, strict=True)):
            fresh = f"{name}_{number}"
            captures.append(
                (Capture(fresh, None, tuple(dict.fromkeys(column))), f"{fresh}*{scale}" if scale > 1 else fresh)
            )
        self.back[name] = f"{{{'+'.join(text for _, text in captures)}}}"
        left = iter(captures)
        pattern = [
            next(left)[0] if _hangs(item, self.together) else self.element(item) for item in self.given.template.items
        ]
        return self.finished(id, pattern)

    # -------------------------------------------------------------------------------------------- leaves

    def with_leaf(self, pattern: list[str | Capture]) -> tuple[list[str | Capture], tuple[str, ...] | None]:
        """The leaf guard of the source as a guard on what carries its last segment."""
        source = self.given.pattern
        if source.leaf is None:
            return pattern, None
        last, before = source.parts[-1], source.parts[-2] if len(source.parts) > 1 else None
        word = self.fixed.get(last.name or "") or (last.values[0] if last.values and len(last.values) == 1 else None)
        if word is not None and "." in word:
            return pattern, None
        alone = before is None or (before.values is not None and all(value.endswith(".") for value in before.values))
        if word is None and alone and last.name is not None and last.name not in self.together:
            return self.guarded(pattern, last, source.leaf)
        raise self.unwritable("its `leaf:` guard bounds text that the target does not end in")

    def guarded(
        self, pattern: list[str | Capture], last: Part, leaf: tuple[str, ...]
    ) -> tuple[list[str | Capture], tuple[str, ...] | None]:
        places = [n for n, each in enumerate(pattern) if isinstance(each, Capture) and each.name == last.name]
        if not places:
            raise self.unwritable("its `leaf:` guard bounds a capture that the target does not show")
        place = places[0]
        capture = pattern[place]
        assert isinstance(capture, Capture)
        if capture.part is None:
            raise self.unwritable("its `leaf:` guard bounds a capture that goes through a table")
        if last.values is not None:
            inside = tuple(value for value in last.values if value.rpartition(".")[2] in leaf)
            pattern[place] = replace(capture, part=last.bounded(inside))
            return pattern, None
        if not any(contains(chars, ".") for chars in automaton((last,)).chars):
            pattern[place] = replace(capture, part=last.bounded(leaf))
            return pattern, None
        text = pattern[place - 1] if place else "."
        if place == len(pattern) - 1 and isinstance(text, str) and text.endswith("."):
            return pattern, leaf
        raise self.unwritable("its `leaf:` guard bounds text that the target does not end in")

    def unwritable(self, why: str) -> NoInverse:
        title = f"{self.given.id} has no inverse that could be written: {why}"
        help = ("bound the capture itself, with choices or `where:`",)
        return NoInverse(Diagnostic("RK213", title, _label(self.given), help))


def _joined(pattern: Iterable[str | Capture]) -> Iterator[str | Capture]:
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


def _text(item: Item, name: str, value: str, fixed: Mapping[str, str]) -> str:
    """What an item that depends on one capture shows of a value of it."""
    assert not isinstance(item, Literal)
    if isinstance(item, Copy):
        return value
    return item.mapping[tuple(value if each == name else fixed[each] for each in item.names)]


def _scales(rows: Mapping[str, tuple[str, ...]]) -> tuple[int, ...] | None:
    """By what each number of a row is to be multiplied, so that the sum is the row's key; every row must be there."""
    if not (_integers(rows) and all(_integers(row) for row in rows.values())):
        return None
    columns = [sorted({int(text) for text in column}) for column in zip(*rows.values(), strict=True)]
    whole = 1
    for column in columns:
        whole *= len(column)
    by_row = {tuple(map(int, row)): int(key) for key, row in rows.items()}
    if whole != len(by_row) or any(column[0] for column in columns) or by_row.get((0,) * len(columns)) != 0:
        return None
    units = [tuple(int(other == number) for other in range(len(columns))) for number in range(len(columns))]
    if any(unit not in by_row for unit in units):
        return None
    scales = tuple(by_row[unit] for unit in units)
    fits = all(sum(a * b for a, b in zip(row, scales, strict=True)) == key for row, key in by_row.items())
    return scales if fits and all(scales) else None


def _integers(values: Iterable[str]) -> bool:
    return all(value.isascii() and value.isdigit() and str(int(value)) == value for value in values)


def _shift(entries: Mapping[str, str]) -> int | None:
    """The number that leads from each key to its value, where it is one for all."""
    if not (_integers(entries) and _integers(entries.values())):
        return None
    shifts = {int(value) - int(key) for key, value in entries.items()}
    return shifts.pop() if len(shifts) == 1 else None


def _expression(name: str, column: Mapping[str, str]) -> str | None:
    """Arithmetic that leads from each key to its value, where something simple does."""
    if not (_integers(column) and _integers(column.values())):
        return None
    pairs = [(int(key), int(value)) for key, value in column.items()]
    most = max(value for _, value in pairs) + 1
    for step in range(1, 257):
        quotients = [(key // step, value) for key, value in pairs]
        if all(quotient == value for quotient, value in quotients):
            return name if step == 1 else f"{name}//{step}"
        if all(quotient % most == value for quotient, value in quotients):
            return f"{name}%{most}" if step == 1 else f"{name}//{step}%{most}"
    return None


# ------------------------------------------------------------------------------------------------ the whole set


def placed(rules: RuleSet, path: str, folder: Path) -> str:
    """How a rule file in `folder` names a file that the given one names: `keys/NAME` where that lies outside.

    A rule file names what is below its own folder, so whoever writes the inverse elsewhere copies the manifest there.
    """
    given = rules.file.path
    if given is None:
        return path
    seen = Path(os.path.relpath(given.parent / path, folder))
    if ".." not in seen.parts and not seen.is_absolute():
        return seen.as_posix()
    declared = [rules.file.source_keys, rules.file.target.keys if rules.file.target is not None else None]
    same = {each.value for each in declared if each is not None and Path(each.value).name == seen.name}
    # Two manifests of one name, in two folders, would become one file: their folders tell them apart.
    name = seen.name if len(same) < 2 else "_".join(part for part in Path(path).parts if part not in ("..", "/"))
    return f"keys/{name}"


def invert(rule_set: RuleSet, *, header: Iterable[str] | None = None, beside: Path | None = None) -> str:
    """The inverse of a rule set as the text of a rule file.

    `header` are known source keys that are led there and back; `beside` is the folder that the text is meant for
    (paths in a rule file are relative to it; where it is None, they stay as they are). Raises `InvalidRules` with the
    reason, the rule and the witness where there is no inverse. The result is proven, and leads every test and every
    known key back to where it came from.

    >>> import remapkit
    >>> print(invert(remapkit.load("wan22_pth")).splitlines()[2])
    name: wan22_pth_inverse
    """
    keys = tuple(header) if header is not None else ()
    _refuse_unproven(rule_set, keys)
    _refuse_lossy(rule_set)
    tables = Tables()
    known = rule_set.tables
    problems: list[Diagnostic] = []
    found: list[InverseRule | InverseFlow] = []
    by_id = {arrow.rule_id: arrow for arrow in arrows(rule_set)}
    for rule in rule_set.rules:
        try:
            if rule.flow is None:
                found += inverse_of(rule, by_id[rule.id], tables, known)
            elif rule.branch == 0:
                found.append(inverse_flow(rule_set, rule.flow, tables, known))
        except NoInverse as none:
            problems += none.diagnostics
    if problems:
        raise InvalidRules(problems)
    text = _Writer(rule_set, found, tables, beside).text()
    inverse = _check(rule_set, text, keys)
    if isinstance(header, StateDictSpec) and rule_set.has_operations:
        _check_header(rule_set, inverse, header)
    return text


def _refuse_unproven(rule_set: RuleSet, keys: tuple[str, ...]) -> None:
    proof = prove(rule_set, header=keys)
    if proof.level is Level.ALL or (proof.level is Level.DOMAIN and not proof.witnesses):
        return
    reason = "a proof over all keys comes first" if proof.level is Level.UNDECIDED else "two keys become one"
    if proof.witnesses and proof.witnesses[0].fault in ("ambiguous", "cut"):
        reason = "a key has no target, or two"
    if proof.witnesses and all(witness.fault == "open" for witness in proof.witnesses):
        reason = "a key that passes through unmatched can be the target of another"
    title = f"{rule_set.name} has no inverse: {reason}"
    help = ("repair what is found below; an inverse exists where all keys are proven",)
    raise InvalidRules([Diagnostic("RK210", title, help=help, place=rule_set.file.source.name), *proof.findings])


def _refuse_lossy(rule_set: RuleSet) -> None:
    problems = []
    for rule in rule_set.drop:
        title = f"{rule_set.name} has no inverse: {rule.id} leaves tensors behind, and nothing could bring them back"
        help = ("without the `drop` there is one, for checkpoints that do not have these keys",)
        problems.append(Diagnostic("RK211", title, (Label(rule.pattern.text.span),), help))
    if rule_set.unmatched != "error":
        span = rule_set.file.unmatched_span
        what = "pass through" if rule_set.unmatched == "keep" else "are dropped"
        title = f"{rule_set.name} has no inverse: keys that no rule matches {what}"
        help = ("name those keys under `keep:` and leave `unmatched` out",)
        problems.append(Diagnostic("RK212", title, (Label(span),) if span is not None else (), help))
    if problems:
        raise InvalidRules(problems)


def _check(rule_set: RuleSet, text: str, keys: Sequence[str]) -> RuleSet:
    """The inverse, proven in its turn, which leads back."""
    name = f"the inverse of {rule_set.name}"
    try:
        inverse = compile_rules(read_text(text, name), given_params(rule_set))
        proof = prove(inverse)
        problems = list(proof.findings) if proof.level is not Level.ALL else []
    except InvalidRules as error:
        problems = list(error.diagnostics)
    if problems:
        title = f"{rule_set.name} has no inverse that could be proven for all keys"
        help = ("the inverse that was tried is in the messages below",)
        raise InvalidRules([Diagnostic("RK214", title, help=help, place=rule_set.file.source.name), *problems])
    for key in (*keys, *(test.source.value for test in rule_set.tests)):
        matches = rule_set.match(key)
        there = [match.target for match in matches]
        if any(match.rule.flow is not None for match in matches):
            continue  # one key alone says nothing here: `_check_header` leads all of them back
        back = [match.target for match in inverse.match(there[0])] if len(there) == 1 and there[0] else [key]
        if back != [key]:
            title = f"{rule_set.name} has no inverse that leads {key!r} back: {there} becomes {back}"
            raise InvalidRules(Diagnostic("RK214", title, help=("this is a bug in remapkit: please report it",)))
    return inverse


def _check_header(rule_set: RuleSet, inverse: RuleSet, header: StateDictSpec) -> None:
    """A known header goes there and back, shapes and dtypes included; one that the rules do not take says nothing."""
    there = rule_set.plan(header)
    if not there.ok:
        return
    back = inverse.plan(there.target)
    if dict(back.target) != dict(header) or not back.ok:
        title = f"{rule_set.name} has no inverse that gives {header.name} back"
        differing = sorted(set(header.items()) ^ set(back.target.items()), key=str)[:5]
        notes = ("\n".join(f"{fqn}: {spec}" for fqn, spec in differing),) if differing else ()
        help = ("the inverse that was tried is in the messages below",)
        raise InvalidRules([Diagnostic("RK214", title, notes=notes, help=help), *back.problems])


def given_params(rule_set: RuleSet) -> dict[str, int]:
    """The params of a rule set that have values."""
    return {name: value for name, value in rule_set.params.items() if value is not None}


# ------------------------------------------------------------------------------------------------ as text


class _Writer:
    def __init__(
        self, rule_set: RuleSet, found: Sequence[InverseRule | InverseFlow], tables: Tables, beside: Path | None
    ) -> None:
        self.rules, self.found, self.tables, self.beside = rule_set, found, tables, beside

    def text(self) -> str:
        return "\n".join(self.lines()) + "\n"

    def lines(self) -> Iterator[str]:
        name = self.rules.name
        yield f"# The inverse of {name}, written by `remapkit invert`."
        yield "remapkit: 1"
        yield f"name: {name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else name + _SUFFIX}"
        if self.rules.file.summary is not None:
            yield f"summary: {in_quotes('The inverse of: ' + self.rules.file.summary.value)}"
        yield from self.ends()
        yield from self.params()
        yield from self.required()
        yield from self.written_tables()
        if self.found:
            yield from ("", "rules:")
        for number, rule in enumerate(self.found):
            yield from ([""] if number else [])
            yield from self.flow(rule) if isinstance(rule, InverseFlow) else self.rule(rule)
        if self.rules.keep:
            yield from ("", "keep:")
            for kept in self.rules.keep:
                yield f"  - {self.kept(kept)}"
        if self.rules.add:
            yield from ("", "drop:")
            yield from (
                f"  - {in_quotes(literal_text(target))}" for filled in self.rules.add for target in filled.targets
            )
        yield from self.tests()

    def ends(self) -> Iterator[str]:
        """Source and target change sides, as far as a target can be a source: a model has no keys to read."""
        file = self.rules.file
        source = file.target.keys.value if file.target is not None and file.target.keys is not None else None
        if source or file.source_keys is not None or file.target is not None:
            yield ""
        if file.target is not None and file.target.model is not None:
            yield f"# The source is what a {file.target.model.value} saves."
        if source:
            yield f"source: {{keys: {in_quotes(self.placed(source))}}}"
        if file.source_keys is not None:
            yield f"target: {{keys: {in_quotes(self.placed(file.source_keys.value))}}}"

    def placed(self, path: str) -> str:
        """A path of the given rule file, as seen from where the inverse is to lie."""
        return path if self.beside is None else placed(self.rules, path, self.beside)

    def written_tables(self) -> Iterator[str]:
        if self.tables.found:
            yield from ("", "tables:")
        for name, entries in self.tables.found.items():
            flow = ", ".join(f"{_word(key)}: {_word(value)}" for key, value in entries.items())
            yield (
                f"  {name}: {{lossy: true, entries: {{{flow}}}}}"
                if name in self.tables.lossy
                else f"  {name}: {{{flow}}}"
            )

    def params(self) -> Iterator[str]:
        written = self.rules.file.params
        if written:
            yield from ("", "params:")
        for param in written:
            config = {"config": param.config.value} if param.config is not None else {}
            value: object = None
            if param.value is not None:
                value = int(param.value.value) if param.value.kind == "integer" else param.value.value
            given = {"value": value} if value is not None else {}
            yield f"  {param.name.value}: {flow_text({**config, **given}) if config else flow_text(value)}"

    def required(self) -> Iterator[str]:
        """What is required of params stays true; what is required of keys speaks of those that are targets now."""
        held = [each for each in self.rules.file.require if each.what == "param"]
        left = [each.name.value for each in self.rules.file.require if each.what != "param"]
        if held or left:
            yield ""
        yield from (f"# Not carried over, as it speaks of the other side's keys: {name}" for name in left)
        if held:
            yield "require:"
        for each in held:
            entry: dict[str, object] = {"param": each.name.value, "is": plain_value(each.wanted)}
            yield f"  - {flow_text({**entry, **({'note': each.note.value} if each.note is not None else {})})}"

    def rule(self, rule: InverseRule) -> Iterator[str]:
        yield f"  - id: {_plain(rule.id)}"
        yield from self.pattern(rule)
        yield f"    to: {in_quotes(rule.to)}"

    def pattern(self, rule: InverseRule) -> Iterator[str]:
        surface, text = self.surface(rule)
        yield f"    {surface}: {in_quotes(text)}"
        if rule.leaf is not None:
            yield f"    leaf: [{', '.join(map(_word, rule.leaf))}]"

    def surface(self, rule: InverseRule) -> tuple[str, str]:
        path = self.path(rule) if rule.path else None
        return ("path", path) if path is not None else ("match", "".join(map(_regex, rule.pattern)))

    def flow(self, rule: InverseFlow) -> Iterator[str]:
        """A rule with operations, in the order in which they are done."""
        yield f"  - id: {_plain(rule.id)}"
        if rule.concat is None:
            yield from self.pattern(rule.sources[0][0])
        else:
            yield "    concat:"
            yield from (f"      {name}: {flow_text(value)}" for name, value in rule.concat.items())
            yield "      from:"
            yield from (f"        - {self.source(each, ops)}" for each, ops in rule.sources)
        if rule.stack is not None:
            yield f"    stack: {flow_text(rule.stack)}"
        if rule.ops:
            yield f"    ops: {flow_text(list(rule.ops))}"
        if rule.unstack is not None:
            yield f"    unstack: {flow_text(rule.unstack)}"
        if rule.split is None:
            yield f"    to: {in_quotes(rule.targets[0][0])}"
            return
        yield "    split:"
        yield from (f"      {name}: {flow_text(value)}" for name, value in rule.split.items())
        yield "      into:"
        for to, ops in rule.targets:
            yield (
                f"        - {{to: {in_quotes(to)}, ops: {flow_text(list(ops))}}}"
                if ops
                else f"        - {in_quotes(to)}"
            )

    def source(self, rule: InverseRule, ops: tuple[object, ...]) -> str:
        """One source of a concat: its pattern alone where that is all."""
        surface, text = self.surface(rule)
        leaf = f", leaf: [{', '.join(map(_word, rule.leaf))}]" if rule.leaf is not None else ""
        done = f", ops: {flow_text(list(ops))}" if ops else ""
        return (
            f"{{{surface}: {in_quotes(text)}{leaf}{done}}}" if leaf or done or surface == "match" else in_quotes(text)
        )

    def path(self, rule: InverseRule) -> str | None:
        """The pattern on the path surface, where that can say the same."""
        text = ""
        for each in rule.pattern:
            written = literal_text(each) if isinstance(each, str) else self.path_capture(each)
            if written is None:
                return None
            text += written
        try:
            parts = parse_path(Text.of(text), {name: tuple(entries) for name, entries in self.tables.found.items()})
        except InvalidRules:
            return None
        named = {part.name: part for part in parts if part.name is not None}
        same = all(_same(each, named[each.name]) for each in rule.pattern if isinstance(each, Capture))
        return text if same else None

    def path_capture(self, capture: Capture) -> str | None:
        values = capture.values if capture.part is None else capture.part.values
        if capture.table is not None and tuple(self.tables.found[capture.table]) == values:
            return f"{{{capture.name}:{capture.table}}}"
        if capture.table is not None and set(self.tables.found[capture.table]) == set(values or ()):
            return f"{{{capture.name}:{capture.table}}}"
        if values is None:
            assert capture.part is not None
            if capture.part.written in ("int", "**"):
                return f"{{{capture.name}:{capture.part.written}}}"
            return f"{{{capture.name}}}" if capture.part.node == SEGMENT else None
        written = capture.part.written if capture.part is not None else None
        if written is not None and set(written.split("|")) == set(values):
            return f"{{{capture.name}:{written}}}"
        numbers = sorted(map(int, values)) if _integers(values) else []
        if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{{{capture.name}:{numbers[0]}..{numbers[-1]}}}"
        if len(values) < 2 or any("." in value or choice_text(value) != value for value in values):
            return None
        return f"{{{capture.name}:{'|'.join(values)}}}"

    def kept(self, rule: Rule) -> str:
        """A `keep` stays as it is; one that names a table, which is turned round now, is written as what it means."""
        number = int(rule.id.removeprefix("keep[").removesuffix("]"))
        written: WrittenPattern = self.rules.file.keep[number]
        tables = any(part.table for part in rule.pattern.parts)
        surface, text = (
            ("match", regex_text(rule.pattern)) if tables or written.where else (written.surface, written.text.value)
        )
        leaf = f", leaf: [{', '.join(map(_word, rule.pattern.leaf))}]" if rule.pattern.leaf is not None else ""
        if surface == "path" and not leaf:
            return in_quotes(text)
        return f"{{{surface}: {in_quotes(text)}{leaf}}}"

    def tests(self) -> Iterator[str]:
        back = list(self.tests_back())
        if back:
            yield from ("", "tests:")
        for target, sources in back:
            written = _plain(sources[0]) if len(sources) == 1 else f"[{', '.join(map(_plain, sources))}]"
            yield entry(_plain(target), written)

    def tests_back(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """What each target becomes; of a rule with several sources only where the tests have all of them."""
        joined: dict[str, dict[int, str]] = {}
        for test in self.rules.tests:
            found = self.rules.match(test.source.value)
            if test.target is None or len(found) != 1:
                continue
            flow = found[0].rule.flow
            if flow is None:
                yield test.target.value, (test.source.value,)
            elif flow.stack is None and flow.unstack is None:
                for target in found[0].targets:
                    sources = joined.setdefault(target, {})
                    sources[found[0].rule.branch] = test.source.value
                    if len(sources) == len(flow.patterns):
                        yield target, tuple(sources[branch] for branch in sorted(sources))


def flow_text(value: object) -> str:
    """Plain data as YAML in one line.

    >>> flow_text({"rope": {"to": "half", "heads": "2*n"}}), flow_text([0, "layers.{i}"])
    ("{rope: {to: half, heads: '2*n'}}", "[0, 'layers.{i}']")
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow_text, value)) + "]"
    return _plain(value) if isinstance(value, str) else json.dumps(value)


def _regex(each: str | Capture) -> str:
    if isinstance(each, str):
        return unparse(literal(each))
    if each.part is not None and each.part.values is None:
        return f"(?P<{each.name}>{_inside(unparse(each.part.node))})"
    values = each.values if each.part is None else each.part.values
    return f"(?P<{each.name}>{'|'.join(unparse(literal(value)) for value in values or ())})"


def _inside(text: str) -> str:
    """A whole alternation needs no group of its own inside a capture."""
    inner = text[3:-1]
    return inner if text.startswith("(?:") and text.endswith(")") and not set("()").intersection(inner) else text


def _same(capture: Capture, part: Part) -> bool:
    """Whether a part that was read back has the language it was written for."""
    wanted = capture.values if capture.part is None else capture.part.values
    if wanted is not None:
        return part.values is not None and set(part.values) == set(wanted)
    assert capture.part is not None
    return part.node == capture.part.node


def _plain(text: str) -> str:
    """A text without quotes where every reader takes it for that text; this program's own reads an index as text."""
    return text if _INDEX.fullmatch(text) else quoted(text)


def _word(text: str) -> str:
    """A word of a guard or a table, which stands for itself."""
    return _plain(literal_text(text))


def _label(rule: Rule) -> tuple[Label, ...]:
    span: Span = rule.template.text.span if rule.template is not None else rule.span
    return (Label(span),)
