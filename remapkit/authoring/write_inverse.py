"""The text of an inverse rule file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from remapkit.authoring.invert_numbers import has_only_integers
from remapkit.authoring.invert_pipeline import InversePipeline
from remapkit.authoring.invert_rule import InverseCapture, InverseRule, Tables
from remapkit.authoring.write_rules import PatternText, write_rule, write_table, write_test
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Text
from remapkit.diagnostics.wording import escape_line, join_words
from remapkit.patterns.literals import choice_text, literal_text
from remapkit.patterns.matcher import regex_text
from remapkit.patterns.path import parse_path
from remapkit.patterns.pattern import SEGMENT, Part
from remapkit.patterns.segments import reads_segments_one_way
from remapkit.patterns.tree import Group, literal
from remapkit.patterns.unparse import unparse
from remapkit.rulefile.arithmetic import ParamValue
from remapkit.rulefile.syntax import WrittenPattern
from remapkit.rulefile.yaml.emit import emit_entry, emit_flow, emit_scalar, quote_text
from remapkit.rulefile.yaml.values import to_plain_value
from remapkit.rules.compile import compile_rules
from remapkit.rules.counted import count_params
from remapkit.rules.model import CompiledRules, Rule
from remapkit.sources.declared import read_declared_source

_SUFFIX = "_inverse"

MAX_LISTED = 8
"""The most words of a capture that are written into a regular expression instead of a guard."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Keys that no inverse restores: a `drop` or a one-way rule with its patterns, or `unmatched` without one.

    `keys` are those known.
    """

    entry: str
    patterns: tuple[str, ...]
    keys: tuple[str, ...] = ()
    one_way: bool = False

    def __str__(self) -> str:
        listed = join_words(map(quote_text, self.patterns))
        what = f"{listed} ({self.entry})" if self.patterns else "keys that no rule matches"
        known = f": {join_words(map(escape_line, self.keys), MAX_SHOWN)}" if self.keys else ""
        return what + known


MAX_SHOWN = 5
"""The most lost keys of one entry that are named."""


def relocate_path(rules: CompiledRules, path: str, folder: Path) -> str:
    """Return the path by which a rule file in `folder` names a file of the rules: `keys/NAME` if it is outside.

    A rule file may only name files below its own folder, so the caller copies such a manifest there.
    """
    given = rules.file.path
    if given is None:
        return path
    seen = Path(os.path.relpath(given.parent / path, folder))
    if ".." not in seen.parts and not seen.is_absolute():
        return seen.as_posix()
    declared = [rules.file.source_keys, rules.file.target.keys if rules.file.target is not None else None]
    same = {path.value for path in declared if path is not None and Path(path.value).name == seen.name}
    # Two manifests with the same name in two folders would become one file: prefix them with their folders.
    name = seen.name if len(same) < 2 else "_".join(part for part in Path(path).parts if part not in ("..", "/"))
    return f"keys/{name}"


def describe_other_counts(rules: CompiledRules) -> list[str]:
    """Return `NAME = NUMBER` for each counted param of the declared source that was given another value."""
    given, config = rules.inputs
    names = [
        each.name.value for each in rules.file.params if each.count is not None and each.name.value in (given or {})
    ]
    known = read_declared_source(rules.file) if names else None
    if known is None:
        return []
    others = {name: value for name, value in (given or {}).items() if name not in names}
    there = count_params(compile_rules(rules.file, others, config), known).params
    return [f"{name} = {there[name]}" for name in names if there[name] != rules.params[name]]


class InverseWriter:
    """Writes the rule file of an inverse for the folder `beside` (None: paths stay unchanged)."""

    def __init__(
        self,
        rule_set: CompiledRules,
        inverses: Sequence[InverseRule | InversePipeline],
        tables: Tables,
        beside: Path | None,
        lost: Sequence[Lost] = (),
        left: Sequence[InverseRule] = (),
    ) -> None:
        self.rules, self.inverses, self.tables, self.beside, self.lost = rule_set, inverses, tables, beside, lost
        self.left = left
        """The patterns of targets that are dropped, because their rules have no inverse."""

    def text(self) -> str:
        return "\n".join(self.write_lines()) + "\n"

    def write_lines(self) -> Iterator[str]:
        name = self.rules.name
        yield f"# The inverse of {name}, written by `remapkit invert`."
        for each in self.lost:
            reason = "its operations have no inverse" if each.one_way else f"{name} drops it"
            yield f"# Not restored, because {reason}: {each}"
        if roots := [text.value for text in self.rules.file.source_root]:
            words = join_words(map(escape_line, roots), MAX_SHOWN)
            yield f"# The targets are names below the root of {name}'s source: not under {words}."
        if segments := [text.value for text in self.rules.file.source_strip]:
            words = join_words(map(escape_line, segments), MAX_SHOWN)
            yield f"# Not restored, because {name} takes them out of its source's keys: {words}."
        yield "remapkit: 1"
        yield f"name: {name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else name + _SUFFIX}"
        if self.rules.file.summary is not None:
            yield f"summary: {quote_text('The inverse of: ' + self.rules.file.summary.value)}"
        yield from self.write_layouts()
        yield from self.write_ends()
        yield from self.write_params()
        yield from self.write_requirements()
        yield from self.write_tables()
        if self.inverses:
            yield from ("", "rules:")
        for number, inverse in enumerate(self.inverses):
            yield from ([""] if number else [])
            lines = (
                self.write_pipeline(inverse)
                if isinstance(inverse, InversePipeline)
                else write_rule(inverse.id, self.write_pattern(inverse), inverse.to)
            )
            yield from (f"  {line}" for line in lines)
        if self.rules.keep:
            yield from ("", "keep:")
            yield from (f"  - {self.write_keep(kept).inline()}" for kept in self.rules.keep)
        added = [InverseRule("", (target,), "") for filled in self.rules.add for target in filled.targets]
        if added or self.left:
            yield from ("", "drop:")
            yield from (f"  - {self.write_pattern(each).inline()}" for each in (*added, *self.left))
        yield from self.write_tests()

    def is_lost(self, rule: str) -> bool:
        """Return whether a rule has no inverse."""
        return any(each.one_way and each.entry == rule for each in self.lost)

    def write_layouts(self) -> Iterator[str]:
        """Swap the names of the layouts. What is lost makes the result another layout, which has no name."""
        file = self.rules.file
        for field, names in (("from", file.target_layout), ("to", () if self.lost else file.source_layout)):
            words = [name.value for name in names]
            if words:
                yield f"{field}: {emit_flow(words if len(words) > 1 else words[0])}"

    def write_ends(self) -> Iterator[str]:
        """Swap source and target, if the target can be a source: a model is not a file of keys."""
        file = self.rules.file
        source = file.target.keys.value if file.target is not None and file.target.keys is not None else None
        if source or file.source_keys is not None or file.target is not None:
            yield ""
        if file.target is not None and file.target.model is not None:
            yield f"# The source is what a {file.target.model.value} saves."
        elif file.target is not None and file.target.config is not None:
            yield f"# The source is what the model of {quote_text(file.target.config.value)} saves."
        if source:
            yield f"source: {{keys: {quote_text(self.relocate_path(source))}}}"
        if file.source_keys is None:
            return
        counts = describe_other_counts(self.rules)
        if any(each.keys for each in self.lost):
            yield f"# No target: {quote_text(file.source_keys.value)} has keys that are not restored."
        elif counts:
            yield f"# No target: {quote_text(file.source_keys.value)} has {join_words(counts)}."
        else:
            yield f"target: {{keys: {quote_text(self.relocate_path(file.source_keys.value))}}}"

    def relocate_path(self, path: str) -> str:
        """Return a path of the given rule file, relative to the folder of the inverse."""
        return path if self.beside is None else relocate_path(self.rules, path, self.beside)

    def write_tables(self) -> Iterator[str]:
        if self.tables.found:
            yield from ("", "tables:")
        for name, entries in self.tables.found.items():
            yield write_table(name, entries.items(), lossy=name in self.tables.lossy)

    def write_params(self) -> Iterator[str]:
        written = self.rules.file.params
        if written:
            yield from ("", "params:")
        for param in written:
            names = [name.value for name in param.config]
            config: dict[str, object] = {"config": names if len(names) > 1 else names[0]} if names else {}
            value = to_plain_value(param.value) if param.value is not None else None
            # The keys that a param is counted by are those of the other side.
            if param.name.value in self.rules.key_params or param.count is not None:
                value = _to_plain(self.rules.params[param.name.value])
            given = {"value": value} if value is not None else {}
            yield emit_entry(param.name.value, {**config, **given} if config else value)

    def write_requirements(self) -> Iterator[str]:
        """Keep requirements on params; those on source keys would now apply to target keys, and become comments.

        The names of the inverse are those for the values in force of the params in keys: it requires these.
        """
        fixed = self.rules.key_params
        held = [each for each in self.rules.file.require if each.what in ("param", "that")]
        left = [each.name.value for each in self.rules.file.require if each.what not in ("param", "that")]
        if held or left or fixed:
            yield ""
        yield from (f"# Not carried over, because it is about keys of the other side: {name}" for name in left)
        if held or fixed:
            yield "require:"
        for name in fixed:
            note = "the names of this inverse are those for this value"
            yield f"  - {emit_flow({'param': name, 'is': _to_allowed(self.rules.params[name]), 'note': note})}"
        for each in held:
            entry: dict[str, object] = {each.what: each.name.value}
            entry |= {"is": to_plain_value(each.wanted)} if each.what == "param" else {}
            yield f"  - {emit_flow({**entry, **({'note': each.note.value} if each.note is not None else {})})}"

    def write_pattern(self, rule: InverseRule) -> PatternText:
        path = self.write_path(rule) if rule.path else None
        if path is not None:
            return PatternText(path, leaf=rule.leaf)
        where: dict[str, Sequence[str]] = {}
        text = "".join(self.write_regex(each, where) for each in rule.pattern)
        return PatternText(text, "match", where, rule.leaf)

    def write_regex(self, each: str | InverseCapture, where: dict[str, Sequence[str]]) -> str:
        """Return a piece of a regular expression; a capture with many words gets a guard in `where`.

        An expression that lists words with a common prefix is compared with itself word by word: the proof of a
        thousand words would take a million steps. A guard is compiled to a trie, where each prefix occurs once.
        """
        if isinstance(each, str):
            return unparse(literal(each))
        if each.regex is not None:
            return f"(?P<{each.name}>{each.regex})"
        words = each.words
        if words is None:
            assert each.part is not None
            return unparse(Group(each.name, each.part.node))
        bounds = _find_range(words)
        listed = bounds is None and len(words) <= MAX_LISTED and len({word[:1] for word in words}) == len(words)
        if listed or any("\n" in word for word in words):
            return f"(?P<{each.name}>{'|'.join(unparse(literal(word)) for word in words)})"
        named = each.table is not None and set(self.tables.found[each.table]) == set(words)
        where[each.name] = (each.table if named else None) or bounds or words
        return rf"(?P<{each.name}>\d+)" if bounds else f"(?P<{each.name}>.{'+' if all(words) else '*'})"

    def write_pipeline(self, inverse: InversePipeline) -> Iterator[str]:
        """Write a rule with operations, its entries in the order of execution."""
        yield f"- id: {emit_scalar(inverse.id)}"
        if len(inverse.sources) == 1:
            yield from (f"  {entry}" for entry in self.write_pattern(inverse.sources[0][0]).entries())
            if inverse.concat is not None:
                yield f"  concat: {emit_flow(inverse.concat)}"
            if inverse.merge is not None:
                yield f"  merge: {emit_flow(inverse.merge)}"
        else:
            yield "  concat:" if inverse.concat is not None else "  merge:"
            yield from (f"    {name}: {emit_flow(value)}" for name, value in (inverse.concat or {}).items())
            yield from (["    from:"] if inverse.concat is not None else [])
            indent = "      " if inverse.concat is not None else "    "
            for rule, ops in inverse.sources:
                yield f"{indent}- {self.write_pattern(rule).inline(*_write_ops(ops))}"
        if inverse.stack is not None:
            yield f"  stack: {emit_flow(inverse.stack)}"
        yield from (f"  {entry}" for entry in _write_ops(inverse.ops))
        if inverse.unstack is not None:
            yield f"  unstack: {emit_flow(inverse.unstack)}"
        if len(inverse.targets) == 1:
            if inverse.split is not None:
                yield f"  split: {emit_flow(inverse.split)}"
            if inverse.copy is not None:
                yield f"  copy: {emit_flow(inverse.copy)}"
            yield f"  to: {quote_text(inverse.targets[0][0])}"
            return
        yield "  split:" if inverse.split is not None else "  copy:"
        yield from (f"    {name}: {emit_flow(value)}" for name, value in (inverse.split or {}).items())
        yield from (["    into:"] if inverse.split is not None else [])
        indent = "      " if inverse.split is not None else "    "
        for to, ops in inverse.targets:
            yield f"{indent}- {emit_flow({'to': to, 'ops': ops}) if ops else quote_text(to)}"

    def write_path(self, rule: InverseRule) -> str | None:
        """Return the pattern as a path, if that parses back to the same language; else None."""
        text = ""
        for each in rule.pattern:
            written = literal_text(each) if isinstance(each, str) else self.write_path_capture(each)
            if written is None:
                return None
            text += written
        try:
            parts = parse_path(Text.of(text), {name: tuple(entries) for name, entries in self.tables.found.items()})
        except InvalidRules:
            return None
        if not reads_segments_one_way(parts):
            return None
        named = {part.name: part for part in parts if part.name is not None}
        same = all(
            _is_same_language(each, named[each.name]) for each in rule.pattern if isinstance(each, InverseCapture)
        )
        return text if same else None

    def write_path_capture(self, capture: InverseCapture) -> str | None:
        values = capture.words
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
        bounds = _find_range(values)
        if bounds is not None:
            return f"{{{capture.name}:{bounds}}}"
        if len(values) < 2 or any("." in value or choice_text(value) != value for value in values):
            return None
        return f"{{{capture.name}:{'|'.join(values)}}}"

    def write_keep(self, rule: Rule) -> PatternText:
        """Copy a `keep`; one that names a table, which is now inverted, is written as a regular expression."""
        number = int(rule.id.removeprefix("keep[").removesuffix("]"))
        written: WrittenPattern = self.rules.file.keep[number]
        if any(part.table for part in rule.pattern.parts) or written.where:
            return PatternText(regex_text(rule.pattern), "match", leaf=rule.pattern.leaf)
        return PatternText(written.text.value, written.surface, leaf=rule.pattern.leaf)

    def write_tests(self) -> Iterator[str]:
        tests = list(self.invert_tests())
        if tests:
            yield from ("", "tests:")
        for target, sources in tests:
            yield from write_test(target, sources)

    def invert_tests(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield targets with their sources; for a rule with several sources only if the tests name all of them."""
        joined: dict[str, dict[int, str]] = {}
        for test in self.rules.tests:
            found = self.rules.match(test.source.value)
            if test.target is None or len(found) != 1:
                continue
            pipeline = found[0].rule.pipeline
            if pipeline is None:
                yield test.target.value, (test.source.value,)
            elif not pipeline.folded and not pipeline.made and not self.is_lost(pipeline.id):
                for target in found[0].targets:
                    sources = joined.setdefault(target, {})
                    sources[found[0].rule.branch] = test.source.value
                    if len(sources) == len(pipeline.patterns):
                        yield target, tuple(sources[branch] for branch in sorted(sources))


def _to_plain(value: ParamValue | None) -> object:
    return list(value) if isinstance(value, tuple) else value


def _to_allowed(value: ParamValue | None) -> object:
    """Return the only value that a requirement allows: a list is one of a list of values."""
    return [list(value)] if isinstance(value, tuple) else value


def _write_ops(ops: Sequence[object]) -> list[str]:
    return [f"ops: {emit_flow(list(ops))}"] if ops else []


def _find_range(words: Sequence[str]) -> str | None:
    """Return the range `0..47` that has exactly these words."""
    numbers = sorted(map(int, words)) if has_only_integers(words) else []
    if numbers and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}..{numbers[-1]}"
    return None


def _is_same_language(capture: InverseCapture, part: Part) -> bool:
    """Whether a part that was read back matches exactly the same words as the capture."""
    wanted = capture.words
    if wanted is not None:
        return part.values is not None and set(part.values) == set(wanted)
    assert capture.part is not None
    return part.node == capture.part.node
