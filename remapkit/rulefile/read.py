"""Read rule files: parse YAML into dataclasses in which every value has its line and column, without compiling them.

`read` parses YAML into located nodes, validates them against the JSON Schema (the only definition of the structure),
and returns a `RuleFile`, or raises `InvalidRules` with all problems of the file; `rules.compile_rules` compiles it.
`examine` does the same without raising, so that the valid part of a file with problems can be compiled too and all
problems are reported at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules, MissingFile, UsageError
from remapkit.diagnostics.source import Source, Span, Text
from remapkit.diagnostics.wording import quote_excerpt
from remapkit.rulefile.schema.text import schema_text
from remapkit.rulefile.schema.validate import find_schema_problems
from remapkit.rulefile.syntax import (
    Reading,
    RequirementKind,
    RuleFile,
    WrittenEntry,
    WrittenFill,
    WrittenGuard,
    WrittenOp,
    WrittenOutput,
    WrittenParam,
    WrittenPattern,
    WrittenPipeline,
    WrittenRequirement,
    WrittenRule,
    WrittenSource,
    WrittenTable,
    WrittenTarget,
    WrittenTest,
)
from remapkit.rulefile.yaml.compose import MAX_BYTES, compose, decode
from remapkit.rulefile.yaml.nodes import ListNode, MapNode, Node, ScalarNode
from remapkit.rulefile.yaml.values import to_plain_value

__all__ = [
    "Reading",
    "RuleFile",
    "WrittenEntry",
    "WrittenFill",
    "WrittenGuard",
    "WrittenOp",
    "WrittenOutput",
    "WrittenParam",
    "WrittenPattern",
    "WrittenPipeline",
    "WrittenRequirement",
    "WrittenRule",
    "WrittenSource",
    "WrittenTable",
    "WrittenTarget",
    "WrittenTest",
    "examine",
    "examine_text",
    "read",
    "read_text",
    "schema_text",
]


def read(path: Path | str) -> RuleFile:
    """Read the rule file at a path.

    Raises `InvalidRules` with every problem of its YAML and its structure, and `UsageError` if there is no such file.
    """
    return _raise_problems(examine(path))


def read_text(text: str, name: str = "<string>") -> RuleFile:
    """Read a rule file given as text; messages refer to it as `name`.

    >>> file = read_text("remapkit: 1\\nname: t\\nrules:\\n  - {id: q, path: 'h.{n}.q', to: 'layers.{n}.query'}\\n")
    >>> file.rules[0].to.value, str(file.rules[0].to.at(7, 10))
    ('layers.{n}.query', '<string>:4:42')
    """
    return _raise_problems(examine_text(text, name))


def _raise_problems(reading: Reading) -> RuleFile:
    if reading.problems or reading.file is None:
        raise InvalidRules(reading.problems)
    return reading.file


def examine(path: Path | str) -> Reading:
    """Read like `read`, but return the problems of the text in the result instead of raising them."""
    data = read_file_bytes(Path(path))
    source, problems = decode(data, str(path))
    return Reading(None, problems) if problems else _examine_source(source, Path(path))


def examine_text(text: str, name: str = "<string>") -> Reading:
    """Read like `read_text`, but return the problems in the result instead of raising them.

    >>> reading = examine_text("remapkit: 1\\nname: t\\nsumary: ...\\nkeep: ['{all:**}']\\n")
    >>> [problem.title for problem in reading.problems], len(reading.file.keep)
    (["unknown field 'sumary'"], 1)
    """
    return _examine_source(Source(name, text), None)


def read_file_bytes(path: Path) -> bytes:
    """Read the bytes of a rule file (if too large, only the beginning); raises `UsageError` (RK620 to RK622)."""
    help: tuple[str, ...] = ("check the path, or see `remapkit packs` for what is installed",)
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise MissingFile(Diagnostic("RK620", f"{path}: no such rule file", help=help)) from None
    except IsADirectoryError:
        code, title, help = "RK621", f"{path} is a directory", ("name a rule file in it",)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        code, title, help = "RK622", f"{path} cannot be read: {reason}", ()
    raise UsageError(Diagnostic(code, title, help=help))


def _examine_source(source: Source, path: Path | None) -> Reading:
    root, problems = compose(source)
    if root is None:
        return Reading(None, problems)
    problems = (*problems, *find_schema_problems(root))
    written = _Written(source, problems)
    if isinstance(root, MapNode):
        problems = (*problems, *written.find_empty_tests(root))
    problems = tuple(sorted(problems, key=lambda problem: problem.span.start if problem.span else len(source.text)))
    file = None
    if isinstance(root, MapNode) and written.can_be_compiled(root):
        file = written.file(root, path)
    return Reading(file, problems)


_NOT_IN_DIGEST = ("name", "summary", "tests", "from", "to")


def _compute_digest(root: MapNode) -> str:
    """Return `sha256:` and the hex digest of the meaning of the rules.

    Comments, quotes, layout, the order of rules, the name of the pack, its tests, the names of its layouts and the
    manifest of its source do not count: none of these changes a byte of the output.
    """
    meaning: dict[str, Any] = {}
    for key, node in root.entries:
        value: Any = to_plain_value(node)
        if key.value == "source" and isinstance(value, dict):
            value = {name: field for name, field in value.items() if name != "keys"}
        if isinstance(value, list):
            value = sorted(value, key=_to_canonical_json)
        if value and key.value not in _NOT_IN_DIGEST:
            meaning[key.value] = value
    return f"sha256:{hashlib.sha256(_to_canonical_json(meaning).encode()).hexdigest()}"


def _to_canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=repr)


class _Written:
    """The conversion of nodes to dataclasses: anything with a problem is omitted, and the rest matches the schema."""

    def __init__(self, source: Source, problems: Sequence[Diagnostic]) -> None:
        self.source = source
        self.more = any(problem.code == "RK029" for problem in problems)
        self.places = [label.span.start for problem in problems for label in problem.labels]

    def is_sound(self, node: Node, key: ScalarNode | None = None) -> bool:
        start = key.span.start if key is not None else node.span.start
        return not any(start <= place < max(node.span.end, start + 1) for place in self.places)

    def can_be_compiled(self, root: MapNode) -> bool:
        """Return whether rules can be compiled: with a broken table, each rule that uses it would be reported too."""
        if not self.places:
            return True
        if self.more:
            return False
        names = {"name", "remapkit", "tables", "params", "unmatched"}
        return all(root.key(name) is not None for name in ("name", "remapkit")) and all(
            self.is_sound(node, key) for key, node in root.entries if key.value in names
        )

    def file(self, root: MapNode, path: Path | None) -> RuleFile:
        fields = {key.value: node for key, node in root.entries}
        unmatched = fields.get("unmatched")
        source = self.get_mapping(fields, "source")
        summary = fields.get("summary")
        name = fields["name"]
        assert isinstance(name, ScalarNode)
        return RuleFile(
            source=self.source,
            path=path,
            name=name.text,
            summary=_get_text(summary) if summary is not None and self.is_sound(summary) else None,
            digest=_compute_digest(root),
            rules=tuple(self.read_rule(node) for node in self.items(fields.get("rules"))),
            keep=tuple(_read_pattern(node) for node in self.items(fields.get("keep"))),
            drop=tuple(_read_pattern(node) for node in self.items(fields.get("drop"))),
            tables=tuple(_read_table(key, node) for key, node in _list_entries(fields.get("tables"))),
            unmatched=cast(Literal["error", "keep", "drop"], _get_text(unmatched).value) if unmatched else "error",
            unmatched_span=unmatched.span if unmatched is not None else None,
            tests=tuple(self.read_tests(fields.get("tests"))),
            source_keys=_get_optional_text(source.get("keys")) if source else None,
            source_domain=tuple(_read_pattern(node) for node in self.items(source.get("domain"))) if source else (),
            target=self.read_target(fields),
            params=tuple(_read_param(key, node) for key, node in _list_entries(fields.get("params"))),
            add=tuple(_read_fill(node) for node in self.items(fields.get("add")) if isinstance(node, MapNode)),
            require=tuple(_read_requirement(node) for node in self.items(fields.get("require"))),
            source_root=_read_texts(source.get("root")) if source else (),
            source_strip=_read_texts(source.get("strip")) if source else (),
            source_files=_read_texts(source.get("files")) if source else (),
            source_layout=self.read_layout(fields.get("from")),
            target_layout=self.read_layout(fields.get("to")),
        )

    def read_layout(self, node: Node | None) -> tuple[Text, ...]:
        return _read_texts(node) if node is not None and self.is_sound(node) else ()

    def items(self, node: Node | None) -> Iterator[Node]:
        if isinstance(node, ListNode):
            yield from (item for item in node.items if self.is_sound(item))

    def get_mapping(self, fields: dict[str, Node], name: str) -> MapNode | None:
        node = fields.get(name)
        return node if isinstance(node, MapNode) and self.is_sound(node) else None

    def read_rule(self, node: Node) -> WrittenRule:
        assert isinstance(node, MapNode)
        fields = _map_fields(node)
        forget = tuple(_get_text(item) for item in _list_items(fields.get("forget")))
        sources, outputs = _read_sources(node, fields), _read_outputs(fields)
        pipeline = _read_pipeline(node, fields, sources, outputs) if _PIPELINE_FIELDS & set(fields) else None
        return WrittenRule(_get_text(fields["id"]), sources[0].pattern, outputs[0].to, node.span, forget, pipeline)

    def read_tests(self, node: Node | None) -> Iterator[WrittenTest]:
        for key, value in _list_entries(node):
            if (
                isinstance(value, ScalarNode)
                and value.kind != "empty"
                and (not self.places or self.is_sound(value, key))
            ):
                yield WrittenTest(key.text, None if value.kind == "null" else value.text)
            elif isinstance(value, ListNode) and (not self.places or self.is_sound(value, key)):
                first, *more = (_get_text(item) for item in value.items)
                yield WrittenTest(key.text, first, tuple(more))

    def read_target(self, fields: dict[str, Node]) -> WrittenTarget | None:
        target = self.get_mapping(fields, "target")
        if target is None:
            return None
        args = tuple((key.value, to_plain_value(node)) for key, node in _list_entries(target.get("args")))
        model, keys, config = (_get_optional_text(target.get(name)) for name in ("model", "keys", "config"))
        return WrittenTarget(model, args, keys, config)

    def find_empty_tests(self, root: MapNode) -> Iterator[Diagnostic]:
        """Report tests without a target: YAML reads it as null, which would mean that the key must be dropped."""
        for key, value in _list_entries(root.get("tests")):
            if isinstance(value, ScalarNode) and value.kind == "empty":
                help = ("write the target key, or null to say that the key must be dropped",)
                yield Diagnostic(
                    "RK022", f"the test of {quote_excerpt(key.value)} has no target", (Label(key.span),), help
                )


def _list_entries(node: Node | None) -> tuple[tuple[ScalarNode, Node], ...]:
    return node.entries if isinstance(node, MapNode) else ()


def _map_fields(node: Node) -> dict[str, Node]:
    return {key.value: value for key, value in _list_entries(node)}


def _list_items(node: Node | None) -> tuple[Node, ...]:
    return node.items if isinstance(node, ListNode) else ()


def _get_text(node: Node) -> Text:
    assert isinstance(node, ScalarNode)
    return node.text


def _read_texts(node: Node | None) -> tuple[Text, ...]:
    """Return one text, or a list of them, as a tuple."""
    return tuple(map(_get_text, node.items if isinstance(node, ListNode) else () if node is None else (node,)))


def _get_optional_text(node: Node | None) -> Text | None:
    return None if node is None else _get_text(node)


def _read_pattern(node: Node) -> WrittenPattern:
    if isinstance(node, ScalarNode):
        return WrittenPattern("path", node.text, node.span)
    fields = _map_fields(node)
    surface: Literal["match", "path"] = "match" if "match" in fields else "path"
    where = tuple(_read_guard(key, value) for key, value in _list_entries(fields.get("where")))
    leaf = tuple(_get_text(item) for item in _list_items(fields["leaf"])) if "leaf" in fields else None
    neutral = fields.get("neutral")
    is_neutral = isinstance(neutral, ScalarNode) and neutral.value == "true"
    return WrittenPattern(surface, _get_text(fields[surface]), node.span, where, leaf, is_neutral)


COMBINED = {"multiply": "by", "divide": "by", "dequantize": "scale", "fold_weight_norm": "g"}
"""Arithmetic with a second source: the field of a rule, and the field in it with the pattern of that source."""
_PIPELINE_FIELDS = {"ops", "concat", "merge", "stack", "unstack", "split", "copy", "tie", *COMBINED}
"""The fields that make a rule more than a rename."""


def _read_sources(node: MapNode, fields: dict[str, Node]) -> tuple[WrittenSource, ...]:
    concat, merge = fields.get("concat"), fields.get("merge")
    several = concat.get("from") if isinstance(concat, MapNode) else None
    if several is None and isinstance(merge, ListNode):
        several = merge
    if several is None:
        seconds = (_map_fields(fields[name])[source] for name, source in COMBINED.items() if name in fields)
        more = (WrittenSource(_read_pattern(item), _read_ops(item)) for item in seconds)
        return WrittenSource(_read_pattern(node)), *more
    return tuple(WrittenSource(_read_pattern(item), _read_ops(item)) for item in _list_items(several))


def _read_outputs(fields: dict[str, Node]) -> tuple[WrittenOutput, ...]:
    split, copy = fields.get("split"), fields.get("copy")
    several = split.get("into") if isinstance(split, MapNode) else copy or fields.get("tie")
    if not isinstance(several, ListNode):
        return (WrittenOutput(_get_text(fields["to"])),)
    return tuple(
        WrittenOutput(item.text)
        if isinstance(item, ScalarNode)
        else WrittenOutput(_get_text(_map_fields(item)["to"]), _read_ops(item))
        for item in _list_items(several)
    )


def _read_pipeline(
    rule: MapNode, fields: dict[str, Node], sources: tuple[WrittenSource, ...], outputs: tuple[WrittenOutput, ...]
) -> WrittenPipeline:
    parts = {
        name: node
        for name in ("concat", "stack", "unstack", "split")
        if isinstance(node := fields.get(name), MapNode)
    }
    combined = tuple(
        (key.text, item) for key, item in rule.entries if key.value in COMBINED and isinstance(item, MapNode)
    )
    share: Literal["copy", "tie"] | None = "copy" if "copy" in fields else "tie" if "tie" in fields else None
    merge, copy = fields.get("merge"), fields.get("copy")
    return WrittenPipeline(
        sources,
        outputs,
        tuple(map(_read_op, _list_items(fields.get("ops")))),
        share=share,
        merge=merge if isinstance(merge, MapNode | ListNode) else None,
        copy=copy if isinstance(copy, MapNode) else None,
        combined=combined,
        **parts,
    )


def _read_ops(node: Node) -> tuple[WrittenOp, ...]:
    return tuple(map(_read_op, _list_items(_map_fields(node).get("ops"))))


def _read_op(node: Node) -> WrittenOp:
    if isinstance(node, ScalarNode):
        return WrittenOp(node.text, None, node.span)
    ((key, value),) = _list_entries(node)
    return WrittenOp(key.text, value, Span(key.span.source, key.span.start, max(key.span.end, value.span.end)))


def _read_param(key: ScalarNode, node: Node) -> WrittenParam:
    value = node.get("value") if isinstance(node, MapNode) else node
    config = node.get("config") if isinstance(node, MapNode) else None
    written = config.items if isinstance(config, ListNode) else () if config is None else (config,)
    names = tuple(map(_get_text, written))
    fields = _map_fields(node)
    count, by = _get_optional_text(fields.get("count")), _get_optional_text(fields.get("by"))
    return WrittenParam(key.text, value if isinstance(value, ScalarNode | ListNode) else None, names, count, by)


def _read_fill(node: MapNode) -> WrittenFill:
    each = tuple(_read_guard(key, value) for key, value in _list_entries(node.get("each")))
    return WrittenFill(_get_text(_map_fields(node)["to"]), node, each)


def _read_requirement(node: Node) -> WrittenRequirement:
    fields = _map_fields(node)
    what = next(kind for kind in _REQUIREMENTS if kind in fields)
    by, note = _get_optional_text(fields.get("by")), _get_optional_text(fields.get("note"))
    return WrittenRequirement(what, _get_text(fields[what]), fields.get("is", fields[what]), node.span, by, note)


_REQUIREMENTS: tuple[RequirementKind, ...] = ("count", "shape", "dtype", "param", "that")


def _read_guard(key: ScalarNode, value: Node) -> WrittenGuard:
    if isinstance(value, ListNode):
        return WrittenGuard(key.text, tuple(_get_text(item) for item in value.items), None)
    return WrittenGuard(key.text, None, _get_text(value))


def _read_table(key: ScalarNode, node: Node) -> WrittenTable:
    entries = node.get("entries") if isinstance(node, MapNode) else None
    lossy = node.get("lossy") if isinstance(node, MapNode) and isinstance(entries, MapNode) else None
    if isinstance(entries, MapNode):
        node = entries
    written = tuple(WrittenEntry(entry.text, _get_text(value)) for entry, value in _list_entries(node))
    return WrittenTable(key.text, written, isinstance(lossy, ScalarNode) and lossy.value == "true")
