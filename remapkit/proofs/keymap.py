r"""Key maps, the subject of the proofs: each maps the keys of one pattern to the targets of one template.

A rule, a `keep` or a `drop` is one key map, and so is an entry of `add`, which has targets and no source. A rule with
several sources or targets is several key maps, numbered by `branch`; captures that an operation consumes
intentionally (the indices of `stack`, or of `concat` or `merge` with `by`) are `folded`. Within a rule, branch and
folded captures are *hidden outputs*, as if they were part of the target: twelve experts that become one tensor do not
collide. In comparisons with other rules the target is the plain key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from remapkit.diagnostics.source import Span, Text
from remapkit.patterns.automaton import MAX_EDGES, Automaton, TooMany, build_automaton
from remapkit.patterns.charset import contains
from remapkit.patterns.finite import build_words_node
from remapkit.patterns.matcher import PatternMatcher
from remapkit.patterns.pattern import CANONICAL, Pattern
from remapkit.patterns.template import CaptureItem, TemplateItem, TextItem
from remapkit.patterns.tree import Alt, Chars, PatternNode, Seq
from remapkit.rulefile.arithmetic import Values
from remapkit.rules.model import CompiledRules, Rule
from remapkit.rules.pipeline import AddedTargets

WHOLE = CaptureItem("")
"""The item for the whole key, which `keep` copies."""


@dataclass(frozen=True, slots=True)
class Made:
    """A part of the target that does not come from a capture: an index that `unstack`, `split` or `copy` counts, or
    the targets of `add`.

    Any whole number, one below `count` if the rule gives the number of indices, or one of the `words`.
    """

    name: str
    count: int | None = None
    words: tuple[str, ...] = ()

    @property
    def node(self) -> PatternNode:
        """Return its language."""
        if self.words:
            return build_words_node(self.words)
        return CANONICAL if self.count is None else _build_range(self.count)


@lru_cache(maxsize=64)
def _build_range(count: int) -> PatternNode:
    """Build the canonical integers below `count` as an automaton of their digits, whose size is that of one number.

    >>> from remapkit.patterns.unparse import unparse
    >>> unparse(_build_range(312))
    '(?:[0-9]|[1-9][0-9]|[12][0-9][0-9]|30[0-9]|31[01])'
    """
    top = str(count)
    lengths = [Seq((_digits("1", "9"), *[_digits("0", "9")] * length)) for length in range(1, len(top) - 1)]
    branches: list[PatternNode] = [_digits("0", "9"), *lengths] if len(top) > 1 else []
    for place, digit in enumerate(top):
        low = "1" if place == 0 and len(top) > 1 else "0"
        if digit > low:
            rest = [_digits("0", "9")] * (len(top) - place - 1)
            branches.append(Seq((*map(_digits, top[:place], top[:place]), _digits(low, chr(ord(digit) - 1)), *rest)))
    return branches[0] if len(branches) == 1 else Alt(tuple(branches))


def _digits(low: str, high: str) -> PatternNode:
    return Chars(((ord(low), ord(high)),))


PatternOf = tuple[str, str, int]
"""One pattern of one rule, keep or drop: its kind, its name, and the number of the pattern."""


@dataclass(frozen=True, slots=True)
class KeyMap:
    """A map from one source pattern to one target; `items` is None if the keys are dropped.

    `forget` are the captures that the author omits intentionally, `lossy` the names of the tables that may map two
    keys to one value; `to` is the position of the template. Key maps with the same `rule_id` belong together, see
    above.
    """

    rule_id: str
    kind: str
    span: Span
    pattern: Pattern
    items: tuple[TemplateItem | Made, ...] | None
    branch: int = 0
    folded: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()
    lossy: tuple[str, ...] = ()
    to: Span | None = None
    reader: PatternMatcher = field(init=False, compare=False, repr=False)
    correlated: dict[tuple[str, ...], tuple[str, ...]] = field(
        init=False, default_factory=dict, compare=False, repr=False
    )
    """The results of `find_correlated`, for the hidden outputs that it was asked with."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reader", PatternMatcher(self.pattern))

    @property
    def owner(self) -> tuple[str, str]:
        """Its kind and name: a rule may have the same name as a keep."""
        return self.kind, self.rule_id

    @property
    def source(self) -> PatternOf:
        """Its rule and pattern: a rule that writes several targets has several key maps with the same source."""
        return self.kind, self.rule_id, self.branch

    @property
    def has_source(self) -> bool:
        """Whether it reads keys: only an entry of `add` does not."""
        return self.kind != "add"

    @property
    def identity(self) -> bool:
        """Whether every key is unchanged."""
        return self.items == (WHOLE,)

    def target(self, fqn: str, captures: Mapping[str, str]) -> str | None:
        """Return the target for a reading of a key, or None if it is dropped."""
        if self.items is None:
            return None
        text = []
        for item in self.items:
            if isinstance(item, TextItem):
                text.append(item.text)
            elif isinstance(item, Made):
                text.append(f"{{{item.name}}}")
            elif isinstance(item, CaptureItem):
                text.append(fqn if item == WHOLE else captures[item.name])
            else:
                text.append(item.mapping[tuple(captures[name] for name in item.names)])
        return "".join(text)


def readings(pattern: Pattern, fqn: str, limit: int = 200) -> tuple[tuple[str, ...], ...]:
    """Return every way to split a key into the parts of a pattern, at most `limit`; none for a huge pattern.

    >>> from remapkit.patterns.pattern import SEGMENTS, Part

    >>> from remapkit.patterns.tree import literal
    >>> from remapkit.diagnostics.source import Text
    >>> text = Text.of("...")
    >>> dotted = (Part("a", SEGMENTS), Part(None, literal(".")), Part("b", SEGMENTS))
    >>> readings(Pattern("match", text, text.span, dotted), "x.y.z")
    (('x.y', '.', 'z'), ('x', '.', 'y.z'))
    """
    if pattern.leaf is not None and fqn.rpartition(".")[2] not in pattern.leaf:
        return ()
    try:
        machine = build_automaton(pattern.parts, MAX_EDGES)
    except TooMany:
        return ()
    count = len(pattern.parts)
    # From the back: for each offset in the key and each position, the possible texts of the remaining parts.
    ways: dict[int, set[tuple[str, ...]]] = {p: {("",) * count} for p in machine.last}
    for index in range(len(fqn) - 1, -1, -1):
        character = fqn[index]
        following: dict[int, set[tuple[str, ...]]] = {}
        for position, tails in ways.items():
            if contains(machine.chars[position], character):
                part = machine.part[position]
                grown = {(*t[:part], character + t[part], *t[part + 1 :]) for t in tails}
                for before in _before(machine, position) if index else ():
                    following.setdefault(before, set()).update(sorted(grown)[:limit])
                if not index and position in machine.first:
                    following.setdefault(-1, set()).update(grown)
        ways = following
    found = ways.get(-1, set()) if fqn else ({("",) * count} if machine.nullable else set())
    return tuple(sorted(found, key=lambda parts: [-len(part) for part in parts])[:limit])


def _before(machine: Automaton, position: int) -> list[int]:
    return [each for each, following in enumerate(machine.follow) if position in following]


def key_maps(rule_set: CompiledRules) -> tuple[KeyMap, ...]:
    """Return the key maps of all rules, `keep`s, `drop`s and entries of `add`; a rule has one for each target.

    >>> import remapkit
    >>> [key_map.rule_id for key_map in key_maps(remapkit.load("wan22_pth"))][-2:]
    ['keep[1]', 'keep[2]']
    """
    lossy = tuple(table.name.value for table in rule_set.file.tables if table.lossy)
    found = [key_map for rule in rule_set.everything for key_map in _key_maps(rule, lossy, rule_set.params)]
    return (*found, *map(_add_map, rule_set.add))


def _add_map(entry: AddedTargets) -> KeyMap:
    nothing = Pattern("path", Text.of(""), entry.span, ())
    items = (Made("add", words=entry.targets),)
    return KeyMap(entry.id, "add", entry.span, nothing, items, to=entry.span)


def _key_maps(rule: Rule, lossy: tuple[str, ...], params: Values) -> Iterator[KeyMap]:
    if rule.template is None:
        items = None if rule.kind == "drop" else (WHOLE,)
        yield KeyMap(rule.id, rule.kind, rule.span, rule.pattern, items, to=rule.span)
        return
    pipeline = rule.pipeline
    counts = pipeline.find_made_counts(params) if pipeline is not None else {}
    made = [Made(name, count) for name, count in counts.items()]
    folded = pipeline.folded if pipeline is not None else ()
    for template in pipeline.templates[rule.branch] if pipeline is not None else (rule.template,):
        for written in _made(template.items, made):
            yield KeyMap(
                rule.id,
                rule.kind,
                rule.span,
                rule.pattern,
                written,
                branch=rule.branch,
                folded=folded,
                forget=template.forget,
                lossy=lossy,
                to=template.text.span,
            )


def _made(items: tuple[TemplateItem | Made, ...], made: Sequence[Made]) -> Iterator[tuple[TemplateItem | Made, ...]]:
    """Yield the items with each counted index inserted: as one part, or enumerated if it is used in arithmetic."""
    if not made:
        yield items
        return
    first, rest = made[0], made[1:]
    uses = [item for item in items if first.name in list_names(item)]
    if len(uses) == 1 and isinstance(uses[0], CaptureItem):
        yield from _made(tuple(first if item == uses[0] else item for item in items), rest)
        return
    for number in range(first.count or 0):
        yield from _made(tuple(_with(item, first.name, str(number)) for item in items), rest)


def list_names(item: TemplateItem | Made) -> tuple[str, ...]:
    """Return the captures that a part of a target depends on."""
    if isinstance(item, TextItem | Made):
        return ()
    return (item.name,) if isinstance(item, CaptureItem) else item.names


def _with(item: TemplateItem | Made, name: str, value: str) -> TemplateItem | Made:
    """Return an item for one value of a capture."""
    if isinstance(item, TextItem | Made) or name not in list_names(item):
        return item
    if isinstance(item, CaptureItem):
        return TextItem(value)
    place = item.names.index(name)
    rows = {
        (*values[:place], *values[place + 1 :]): text
        for values, text in item.mapping.items()
        if values[place] == value
    }
    names = (*item.names[:place], *item.names[place + 1 :])
    return replace(item, names=names, mapping=rows) if names else TextItem(rows[()])
