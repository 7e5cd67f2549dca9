"""An inverse rule set as the text of a rule file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from remapkit.authoring.invert_rule import InverseCapture, InversePipeline, InverseRule, Tables, has_only_integers
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Text
from remapkit.patterns.literals import choice_text, literal_text
from remapkit.patterns.matcher import regex_text
from remapkit.patterns.path import parse_path
from remapkit.patterns.pattern import SEGMENT, Part
from remapkit.patterns.tree import literal
from remapkit.patterns.unparse import unparse
from remapkit.rulefile.syntax import WrittenPattern
from remapkit.rulefile.yaml.emit import emit_entry, emit_flow, emit_scalar, quote_text
from remapkit.rulefile.yaml.values import to_plain_value
from remapkit.rules.model import CompiledRules, Rule

_SUFFIX = "_inverse"


def relocate_path(rules: CompiledRules, path: str, folder: Path) -> str:
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


class InverseWriter:
    def __init__(
        self,
        rule_set: CompiledRules,
        found: Sequence[InverseRule | InversePipeline],
        tables: Tables,
        beside: Path | None,
    ) -> None:
        self.rules, self.found, self.tables, self.beside = rule_set, found, tables, beside

    def text(self) -> str:
        return "\n".join(self.write_lines()) + "\n"

    def write_lines(self) -> Iterator[str]:
        name = self.rules.name
        yield f"# The inverse of {name}, written by `remapkit invert`."
        yield "remapkit: 1"
        yield f"name: {name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else name + _SUFFIX}"
        if self.rules.file.summary is not None:
            yield f"summary: {quote_text('The inverse of: ' + self.rules.file.summary.value)}"
        yield from self.write_ends()
        yield from self.params()
        yield from self.write_requirements()
        yield from self.write_tables()
        if self.found:
            yield from ("", "rules:")
        for number, rule in enumerate(self.found):
            yield from ([""] if number else [])
            yield from self.pipeline(rule) if isinstance(rule, InversePipeline) else self.rule(rule)
        if self.rules.keep:
            yield from ("", "keep:")
            for kept in self.rules.keep:
                yield f"  - {self.write_keep(kept)}"
        if self.rules.add:
            yield from ("", "drop:")
            yield from (
                f"  - {quote_text(literal_text(target))}" for filled in self.rules.add for target in filled.targets
            )
        yield from self.tests()

    def write_ends(self) -> Iterator[str]:
        """Source and target change sides, as far as a target can be a source: a model has no keys to read."""
        file = self.rules.file
        source = file.target.keys.value if file.target is not None and file.target.keys is not None else None
        if source or file.source_keys is not None or file.target is not None:
            yield ""
        if file.target is not None and file.target.model is not None:
            yield f"# The source is what a {file.target.model.value} saves."
        if source:
            yield f"source: {{keys: {quote_text(self.relocate_path(source))}}}"
        if file.source_keys is not None:
            yield f"target: {{keys: {quote_text(self.relocate_path(file.source_keys.value))}}}"

    def relocate_path(self, path: str) -> str:
        """A path of the given rule file, as seen from where the inverse is to lie."""
        return path if self.beside is None else relocate_path(self.rules, path, self.beside)

    def write_tables(self) -> Iterator[str]:
        if self.tables.found:
            yield from ("", "tables:")
        for name, entries in self.tables.found.items():
            table = {literal_text(key): literal_text(value) for key, value in entries.items()}
            yield emit_entry(name, {"lossy": True, "entries": table} if name in self.tables.lossy else table)

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
            yield emit_entry(param.name.value, {**config, **given} if config else value)

    def write_requirements(self) -> Iterator[str]:
        """What is required of params stays true; what is required of keys speaks of those that are targets now."""
        held = [each for each in self.rules.file.require if each.what == "param"]
        left = [each.name.value for each in self.rules.file.require if each.what != "param"]
        if held or left:
            yield ""
        yield from (f"# Not carried over, as it speaks of the other side's keys: {name}" for name in left)
        if held:
            yield "require:"
        for each in held:
            entry: dict[str, object] = {"param": each.name.value, "is": to_plain_value(each.wanted)}
            yield f"  - {emit_flow({**entry, **({'note': each.note.value} if each.note is not None else {})})}"

    def rule(self, rule: InverseRule) -> Iterator[str]:
        yield f"  - id: {emit_scalar(rule.id)}"
        yield from self.pattern(rule)
        yield f"    to: {quote_text(rule.to)}"

    def pattern(self, rule: InverseRule) -> Iterator[str]:
        surface, text = self.surface(rule)
        yield f"    {surface}: {quote_text(text)}"
        if rule.leaf is not None:
            yield f"    leaf: {emit_flow(list(map(literal_text, rule.leaf)))}"

    def surface(self, rule: InverseRule) -> tuple[str, str]:
        path = self.path(rule) if rule.path else None
        return ("path", path) if path is not None else ("match", "".join(map(_write_regex, rule.pattern)))

    def pipeline(self, rule: InversePipeline) -> Iterator[str]:
        """A rule with operations, in the order in which they are done."""
        yield f"  - id: {emit_scalar(rule.id)}"
        if rule.concat is None:
            yield from self.pattern(rule.sources[0][0])
        else:
            yield "    concat:"
            yield from (f"      {name}: {emit_flow(value)}" for name, value in rule.concat.items())
            yield "      from:"
            yield from (f"        - {self.source(each, ops)}" for each, ops in rule.sources)
        if rule.stack is not None:
            yield f"    stack: {emit_flow(rule.stack)}"
        if rule.ops:
            yield f"    ops: {emit_flow(list(rule.ops))}"
        if rule.unstack is not None:
            yield f"    unstack: {emit_flow(rule.unstack)}"
        if rule.split is None:
            yield f"    to: {quote_text(rule.targets[0][0])}"
            return
        yield "    split:"
        yield from (f"      {name}: {emit_flow(value)}" for name, value in rule.split.items())
        yield "      into:"
        for to, ops in rule.targets:
            yield f"        - {emit_flow({'to': to, 'ops': ops}) if ops else quote_text(to)}"

    def source(self, rule: InverseRule, ops: tuple[object, ...]) -> str:
        """One source of a concat: its pattern alone where that is all."""
        surface, text = self.surface(rule)
        return _write_pattern(surface, text, rule.leaf, ops)

    def path(self, rule: InverseRule) -> str | None:
        """The pattern on the path surface, where that can say the same."""
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
        named = {part.name: part for part in parts if part.name is not None}
        same = all(
            _is_same_language(each, named[each.name]) for each in rule.pattern if isinstance(each, InverseCapture)
        )
        return text if same else None

    def write_path_capture(self, capture: InverseCapture) -> str | None:
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
        numbers = sorted(map(int, values)) if has_only_integers(values) else []
        if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{{{capture.name}:{numbers[0]}..{numbers[-1]}}}"
        if len(values) < 2 or any("." in value or choice_text(value) != value for value in values):
            return None
        return f"{{{capture.name}:{'|'.join(values)}}}"

    def write_keep(self, rule: Rule) -> str:
        """A `keep` stays as it is; one that names a table, which is turned round now, is written as what it means."""
        number = int(rule.id.removeprefix("keep[").removesuffix("]"))
        written: WrittenPattern = self.rules.file.keep[number]
        tables = any(part.table for part in rule.pattern.parts)
        surface, text = (
            ("match", regex_text(rule.pattern)) if tables or written.where else (written.surface, written.text.value)
        )
        return _write_pattern(surface, text, rule.pattern.leaf)

    def tests(self) -> Iterator[str]:
        back = list(self.invert_tests())
        if back:
            yield from ("", "tests:")
        for target, sources in back:
            yield emit_entry(target, sources[0] if len(sources) == 1 else sources)

    def invert_tests(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """What each target becomes; of a rule with several sources only where the tests have all of them."""
        joined: dict[str, dict[int, str]] = {}
        for test in self.rules.tests:
            found = self.rules.match(test.source.value)
            if test.target is None or len(found) != 1:
                continue
            pipeline = found[0].rule.pipeline
            if pipeline is None:
                yield test.target.value, (test.source.value,)
            elif pipeline.stack is None and pipeline.unstack is None:
                for target in found[0].targets:
                    sources = joined.setdefault(target, {})
                    sources[found[0].rule.branch] = test.source.value
                    if len(sources) == len(pipeline.patterns):
                        yield target, tuple(sources[branch] for branch in sorted(sources))


def _write_regex(each: str | InverseCapture) -> str:
    if isinstance(each, str):
        return unparse(literal(each))
    if each.part is not None and each.part.values is None:
        return f"(?P<{each.name}>{_strip_group(unparse(each.part.node))})"
    values = each.values if each.part is None else each.part.values
    return f"(?P<{each.name}>{'|'.join(unparse(literal(value)) for value in values or ())})"


def _strip_group(text: str) -> str:
    """A whole alternation needs no group of its own inside a capture."""
    inner = text[3:-1]
    return inner if text.startswith("(?:") and text.endswith(")") and not set("()").intersection(inner) else text


def _is_same_language(capture: InverseCapture, part: Part) -> bool:
    """Whether a part that was read back has the language it was written for."""
    wanted = capture.values if capture.part is None else capture.part.values
    if wanted is not None:
        return part.values is not None and set(part.values) == set(wanted)
    assert capture.part is not None
    return part.node == capture.part.node


def _write_pattern(surface: str, text: str, leaf: Sequence[str] | None, ops: Sequence[object] = ()) -> str:
    """A pattern with its guard and its operations in one line: its text alone where that is all."""
    if surface == "path" and leaf is None and not ops:
        return quote_text(text)
    guard = {"leaf": list(map(literal_text, leaf))} if leaf is not None else {}
    return emit_flow({surface: text, **guard, **({"ops": ops} if ops else {})})
