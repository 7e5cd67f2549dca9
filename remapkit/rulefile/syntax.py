"""The content of a rule file as written, as dataclasses in which every value has its position in the text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.source import Source, Span, Text
from remapkit.rulefile.yaml.nodes import ListNode, MapNode, Node, ScalarNode
from remapkit.rulefile.yaml.values import to_plain_value


@dataclass(frozen=True, slots=True)
class WrittenGuard:
    """One entry of `where`: the values that a capture may have, listed or named.

    `values` are listed values (integers in canonical decimal form); `named` is a range (`0..47`) or the name of a
    table (its keys). Exactly one of the two is set.
    """

    capture: Text
    values: tuple[Text, ...] | None
    named: Text | None


@dataclass(frozen=True, slots=True)
class WrittenPattern:
    """A pattern with its guards: `match` (a regular expression) or `path` (a path pattern).

    `neutral` on a `drop` declares that the dropped tensors have no effect: a scale of 1, an alpha equal to its rank.
    """

    surface: Literal["match", "path"]
    text: Text
    span: Span
    where: tuple[WrittenGuard, ...] = ()
    leaf: tuple[Text, ...] | None = None
    neutral: bool = False

    @property
    def content(self) -> tuple[object, ...]:
        """What is written, without its position: two patterns of one content are one."""
        guards = tuple(
            (guard.capture.value, tuple(text.value for text in guard.values or ()), guard.named and guard.named.value)
            for guard in self.where
        )
        return self.surface, self.text.value, guards, tuple(text.value for text in self.leaf or ())


@dataclass(frozen=True, slots=True)
class WrittenOp:
    """One operation: `transpose`, or `{name: arguments}`. The arguments are kept as nodes."""

    name: Text
    args: Node | None
    span: Span


@dataclass(frozen=True, slots=True)
class WrittenSource:
    """One of the patterns that a rule reads, and the operations on its tensors."""

    pattern: WrittenPattern
    ops: tuple[WrittenOp, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenOutput:
    """One of the templates that a rule writes, and the operations on its tensors."""

    to: Text
    ops: tuple[WrittenOp, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenPipeline:
    """The operations of a rule: sources are joined, transformed and split into outputs.

    `concat`, `stack`, `unstack` and `split` are the mappings with the numbers; `combined` are those of
    arithmetic with a second source, by the name of the operation; `share` is `copy` or `tie` if every
    output gets the whole value. Several sources may read one pattern. `merge` is a mapping or the list of its
    sources, `copy` a mapping with `by`.
    """

    sources: tuple[WrittenSource, ...]
    outputs: tuple[WrittenOutput, ...]
    ops: tuple[WrittenOp, ...] = ()
    concat: MapNode | None = None
    stack: MapNode | None = None
    unstack: MapNode | None = None
    split: MapNode | None = None
    share: Literal["copy", "tie"] | None = None
    merge: MapNode | ListNode | None = None
    copy: MapNode | None = None
    combined: tuple[tuple[Text, MapNode], ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """The number of the pattern that each source reads: sources with other operations may read one pattern.

        Two that are the same in all respects are a slip (q, q, v for q, k, v): they keep patterns of their own, which
        then match one key.
        """
        seen: Counter[object] = Counter()
        numbers: dict[object, int] = {}
        found = []
        for source in self.sources:
            ops = repr([(op.name.value, op.args and to_plain_value(op.args)) for op in source.ops])
            pattern = source.pattern.content
            found.append(numbers.setdefault((pattern, seen[pattern, ops]), len(numbers)))
            seen[pattern, ops] += 1
        return tuple(found)


@dataclass(frozen=True, slots=True)
class WrittenRule:
    """One rule: pattern, guards, template and the captures that it may forget.

    `pipeline` is None for a rule that only renames; otherwise `pattern` and `to` are its first source and output.
    """

    id: Text
    pattern: WrittenPattern
    to: Text
    span: Span
    forget: tuple[Text, ...] = ()
    pipeline: WrittenPipeline | None = None


@dataclass(frozen=True, slots=True)
class WrittenFill:
    """One entry of `add`: targets without a source. `each` bounds the captures of `to`; `node` has the rest."""

    to: Text
    node: MapNode
    each: tuple[WrittenGuard, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenParam:
    """A param: its value (a number, a list of numbers, or arithmetic on params; None if it must be given).

    `config` are its names in configs: the first that a config has counts. `count` is a pattern: its value is one more
    than the largest index among the keys of the checkpoint, of the capture `by` if there are several.
    """

    name: Text
    value: ScalarNode | ListNode | None
    config: tuple[Text, ...] = ()
    count: Text | None = None
    by: Text | None = None


RequirementKind = Literal["count", "shape", "dtype", "param", "that"]


@dataclass(frozen=True, slots=True)
class WrittenRequirement:
    """One entry of `require`: its kind, its name, and what must be.

    The name is a pattern of keys (`count`, `shape`, `dtype`), a `param`, or the condition itself (`that`).
    """

    what: RequirementKind
    name: Text
    wanted: Node
    span: Span
    by: Text | None = None
    note: Text | None = None


@dataclass(frozen=True, slots=True)
class WrittenEntry:
    """One entry of a table; a number as key or value is kept in its canonical decimal form."""

    key: Text
    value: Text

    @property
    def span(self) -> Span:
        """The span from the first character of the key to the last of the value."""
        return Span(self.key.span.source, self.key.span.start, self.value.span.end)


@dataclass(frozen=True, slots=True)
class WrittenTable:
    """A table: `name: {key: value, ...}`, or `name: {lossy: true, entries: {key: value, ...}}`."""

    name: Text
    entries: tuple[WrittenEntry, ...]
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class WrittenTest:
    """One test: a source key and its expected target key, or None if it must be dropped.

    `more` are the other targets of a rule that writes several.
    """

    source: Text
    target: Text | None
    more: tuple[Text, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenTarget:
    """The target of the rules: a model (with keyword arguments for its constructor), a manifest, or both.

    `config` is the path of the model's config.json, which names its class if `model` is None.
    """

    model: Text | None
    model_args: tuple[tuple[str, object], ...]
    keys: Text | None
    config: Text | None = None


@dataclass(frozen=True, slots=True)
class RuleFile:
    """A rule file as written. `path` is None for a text that was not read from a file.

    `digest` is `sha256:` and the hex digest of the meaning of the rules, as canonical JSON.
    """

    source: Source
    path: Path | None
    name: Text
    summary: Text | None
    digest: str
    rules: tuple[WrittenRule, ...]
    keep: tuple[WrittenPattern, ...]
    drop: tuple[WrittenPattern, ...]
    tables: tuple[WrittenTable, ...]
    unmatched: Literal["error", "keep", "drop"]
    unmatched_span: Span | None
    tests: tuple[WrittenTest, ...]
    source_keys: Text | None
    source_domain: tuple[WrittenPattern, ...]
    target: WrittenTarget | None
    params: tuple[WrittenParam, ...] = ()
    add: tuple[WrittenFill, ...] = ()
    require: tuple[WrittenRequirement, ...] = ()
    source_root: tuple[Text, ...] = ()
    source_strip: tuple[Text, ...] = ()
    source_files: tuple[Text, ...] = ()
    source_layout: tuple[Text, ...] = ()
    """The name of the layout that the rules read (`from:`), then its other names; empty if it has none."""
    target_layout: tuple[Text, ...] = ()
    """The same of the layout that they write (`to:`)."""
    folder: Path | None = None
    """The folder of the files that it names, for a text that was derived from a rule file and has no path."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of reading a text: its problems, and the valid part of the file.

    `file` is None if so much is wrong that compiling the rest would only report follow-up errors. Otherwise it omits
    the rules, keeps, drops and tests that have problems.
    """

    file: RuleFile | None
    problems: tuple[Diagnostic, ...]
