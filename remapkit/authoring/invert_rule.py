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
from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Text
from remapkit.diagnostics.wording import join_words
from remapkit.ops.calls import Arg
from remapkit.patterns.finite import MAX_WORDS
from remapkit.patterns.literals import literal_text
from remapkit.patterns.pattern import CANONICAL, Part
from remapkit.patterns.regex import parse_regex
from remapkit.patterns.template import CaptureItem, MapItem, TemplateItem, TextItem
from remapkit.proofs.correlated import find_correlated
from remapkit.proofs.keymap import KeyMap
from remapkit.rules.model import Rule

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
    together = find_correlated(make_key_map(rule))
    items = [item for item in rule.template.items if _has_capture(item, together)]
    if not together:
        return [Inverter(rule, {}, tables, known).invert(rule.id)]
    if len(items) == 1 and isinstance(items[0], MapItem):
        return [Inverter(rule, {}, tables, known, together=together).invert(rule.id)]
    if len(together) == 1:
        split = Inverter(rule, {}, tables, known, together=together).split(rule.id)
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
        raise NoInverse(Diagnostic("RK213", title, make_label(rule), help))
    found = []
    for number, case in enumerate(cases):
        fixed = dict(zip(map(str, names), case, strict=True))
        found.append(Inverter(rule, fixed, tables, known).invert(f"{rule.id}.{number}"))
    return found


def _has_capture(item: TemplateItem, together: Sequence[str]) -> bool:
    if isinstance(item, TextItem):
        return False
    return not set((item.name,) if isinstance(item, CaptureItem) else item.names).isdisjoint(together)


def make_key_map(rule: Rule) -> KeyMap:
    assert rule.template is not None
    return KeyMap(rule.id, rule.kind, rule.span, rule.pattern, rule.template.items)


class Inverter:
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

    def read_target(self) -> InverseRule:
        """Return the pattern of the target, with an empty template."""
        assert self.given.template is not None
        pattern = [self.invert_item(item) for item in self.given.template.items]
        return InverseRule("", tuple(_merge_text(pattern)), "", path=self.given.pattern.surface == "path")

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
        return NoInverse(Diagnostic("RK213", title, make_label(self.given), help))


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


def make_label(rule: Rule) -> tuple[Label, ...]:
    span: Span = rule.template.text.span if rule.template is not None else rule.span
    return (Label(span),)
