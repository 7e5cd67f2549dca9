"""Messages for schema violations, in the terms of the rule language."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import find_close_name, join_words, quote_excerpt, show_key, suggest_name
from remapkit.rulefile.schema.text import schema_text
from remapkit.rulefile.yaml.compose import MAX_PROBLEMS
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.rulefile.yaml.nodes import BrokenNode, ListNode, MapNode, Node, ScalarNode
from remapkit.rulefile.yaml.scalars import READ_AS, classify_scalar

if TYPE_CHECKING:
    from jsonschema import ValidationError


_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class SchemaPlace:
    """The location of an error: the node, its path of keys and numbers, and the node of its key."""

    path: tuple[str | int, ...]
    node: Node
    key: ScalarNode | None
    parents: tuple[Node, ...]

    @classmethod
    def of(cls, root: Node, path: Sequence[str | int]) -> SchemaPlace:
        node, key, parents = root, None, []
        for step in path:
            parents.append(node)
            if isinstance(node, MapNode) and isinstance(step, str):
                key = node.key(step)
                node = node.get(step) or node
            elif isinstance(node, ListNode) and isinstance(step, int):
                key, node = None, node.items[step]
        return cls(tuple(path), node, key, tuple(parents))

    @property
    def name(self) -> str:
        """The name of the location in a sentence."""
        if not self.path:
            return "the rule file"
        section, last = self.path[0], self.path[-1]
        if section == "rules" and len(self.path) == 2:
            return self.rule
        if isinstance(last, int):
            return f"entry {last + 1} of `{self.path[-2]}`"
        if section == "tables" and len(self.path) == 2:
            return f"the table `{show_key(str(last), 60)}`"
        return (
            f"the test of {quote_excerpt(str(last))}"
            if section == "tests" and len(self.path) == 2
            else f"`{show_key(str(last), 60)}`"
        )

    @property
    def rule(self) -> str:
        id = self.node.get("id") if isinstance(self.node, MapNode) else None
        if isinstance(id, ScalarNode) and id.kind == "text" and id.value:
            return f"the rule {quote_excerpt(id.value)}"
        return f"rule {int(self.path[1]) + 1}"

    @property
    def at(self) -> Span:
        """The span to underline for the whole location: its key, or the key of its first entry."""
        if self.key is not None:
            return self.key.span
        if isinstance(self.node, MapNode) and self.node.entries:
            return self.node.entries[0][0].span
        return self.node.span


@dataclass(frozen=True, slots=True)
class Departure:
    """A violation found by jsonschema: the violated keyword, its value, its schema, and the value in the file."""

    keyword: str
    wanted: Any
    schema: Mapping[str, Any]
    got: Any
    of_a_name: bool

    @classmethod
    def of(cls, error: ValidationError) -> Departure:
        schema = error.schema if isinstance(error.schema, dict) else {}
        of_a_name = "propertyNames" in error.absolute_schema_path
        return cls(str(error.validator), error.validator_value, schema, error.instance, of_a_name)


def explain_departure(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    node = place.node
    lacking = isinstance(node, MapNode) and node.partial and error.keyword in _SAY_THAT_SOMETHING_IS_MISSING
    if not isinstance(node, BrokenNode) and not lacking:
        yield from _EXPLAIN[error.keyword](place, error)


_SAY_THAT_SOMETHING_IS_MISSING = ("required", "minProperties", "oneOf", "anyOf", "dependentRequired")


_MEANT = {"regex": "match", "regexp": "match"}
"""Words of other tools for fields, which are spelled like none of ours or like a wrong one."""


def _explain_unknown_fields(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    assert isinstance(place.node, MapNode)
    known = list(error.schema["properties"])
    free = [name for name in known if place.node.key(name) is None]
    for key, _ in place.node.entries:
        if key.value in known:
            continue
        fields = f"known fields: {', '.join(known)}"
        help = (suggest_name(key.value, free, suggest_name(key.value, known, fields)),)
        if (meant := _MEANT.get(key.value.lower())) in known:
            help = (f"did you mean {meant!r}?",)
        name, colon, value = key.value.partition(":")
        if colon and value and name in known:
            help = (f"a space follows the colon: `{name}: {value}`",)
        if place.path[:1] == ("rules",) and len(place.path) > 2 and key.value in _list_rule_fields():
            help = (f"`{key.value}` is a field of the rule: write it beside `{place.path[2]}`",)
        where = "" if not place.path else f" in {place.name}"
        yield Diagnostic("RK020", f"unknown field {quote_excerpt(key.value)}{where}", (Label(key.span),), help)


def _list_rule_fields() -> Collection[str]:
    return frozenset(json.loads(schema_text())["$defs"]["rule"]["properties"])


def _explain_missing_fields(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    assert isinstance(place.node, MapNode)
    for name in error.wanted:
        if place.node.key(name) is None and name not in _guess_fields(place.node, error.schema):
            field = error.schema["properties"][name]
            yours = "" if "const" in field else " with your own value"
            how = f"add `{name}: {emit_flow(field['examples'][0])}`{yours}"
            yield Diagnostic(
                "RK021", f"{place.name} lacks `{name}`", (Label(place.at),), (how, _describe_field(field))
            )


def _guess_fields(node: MapNode, schema: Mapping[str, Any]) -> set[str]:
    """Guess the fields meant by misspelled ones; reporting these as missing too would be a duplicate."""
    known = list(schema["properties"])
    unknown = itertools.islice((key.value for key, _ in node.entries if key.value not in known), MAX_PROBLEMS)
    close = (find_close_name(name, known) for name in unknown)
    return {name for name in close if name is not None}


def _describe_field(schema: Mapping[str, Any]) -> str:
    text = str(schema["description"]).rstrip(".")
    return text[0].lower() + text[1:]


def _explain_choice(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    if not isinstance(place.node, MapNode):
        return  # `required` accepts non-mappings, so both branches match; the wrong type is reported elsewhere
    options = [name for option in error.wanted for name in option["required"]]
    present = [key for name in options if (key := place.node.key(name)) is not None]
    if len(present) > 1:
        names = " and ".join(f"`{key.value}`" for key in present)
        number = "both" if len(present) == 2 else "all of"
        labels = tuple(Label(key.span) for key in present)
        help = _ONE_OF[options[0]]
        if [key.value for key in present] == ["match", "path"]:
            help = "they are two ways to write one pattern: remove one"
        yield Diagnostic("RK024", f"{place.name} has {number} {names}", labels, (help,))
    elif options[0] == "count":
        help = "add `count: 'layers.{n:int}.{rest:**}'`, `shape: 'head.weight'` or `param: heads`"
        yield Diagnostic("RK021", f"{place.name} requires nothing", (Label(place.at),), (help,))
    elif options[0] in ("from", "into"):
        word = str(place.path[-1])
        several = "from: ['layers.{i:int}.q', 'layers.{i:int}.k']" if word == "concat" else "into: ['q.{i}', 'k.{i}']"
        help = f"add `{several}`, or `by: t` for parts that are numbered by a capture"
        yield Diagnostic("RK021", f"`{word}` has neither `{options[0]}` nor `by`", (Label(place.at),), (help,))
    elif options[0] == "to":
        rule = json.loads(schema_text())["$defs"]["rule"]
        yield from _explain_missing_fields(place, replace(error, wanted=["to"], schema=rule))
    else:
        help = "add `path: 'layers.{n:int}.{rest:**}'` (a path pattern) or `match:` (a regular expression)"
        yield Diagnostic("RK024", f"{place.name} has neither `match` nor `path`", (Label(place.at),), (help,))


_ONE_OF = {
    "match": "a rule reads one pattern, or joins several with `concat` or `merge`: remove one",
    "from": "`from` lists several patterns, `by` counts the keys of one: remove one",
    "into": "`into` lists several targets, `by` counts those of one template: remove one",
    "count": "an entry requires one thing: write the others as entries of their own",
    "to": "a rule has one of `to`, `split`, `copy` and `tie`: remove one",
}


def _explain_too_many(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    if isinstance(place.node, MapNode):
        second = place.node.entries[1][0]
        help = f"operations are a list, one an entry: write `- {second.value}: ...` on its own line"
        yield Diagnostic("RK022", f"{place.name} has two operations", (Label(second.span),), (help,))
    else:
        help = f"for example `{place.path[-1]}: {emit_flow(error.schema['examples'][0])}`"
        title = f"{place.name} must have at most {error.wanted} entries, got {len(error.got)}"
        yield Diagnostic("RK022", title, (Label(place.node.span),), (help,))


def _explain_lacking_all(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    if place.path == ("target",):
        help = "add `model: plugin.module:Class`, `keys: manifest.json`, or both"
        yield Diagnostic("RK021", "`target` names neither a model nor keys", (Label(place.at),), (help,))
    else:
        help = "add a rule under `rules:`, or name the keys to pass through under `keep:`"
        empty = place.node.key("rules") if isinstance(place.node, MapNode) else None
        label = Label(empty.span if empty else place.at)
        yield Diagnostic("RK027", "the file has no rules: every key would be refused", (label,), (help,))


def _explain_lone_field(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    assert isinstance(place.node, MapNode)
    for name, (needed,) in error.wanted.items():
        if place.node.key(needed) is None and (key := place.node.key(name)) is not None:
            help = f"add `{needed}:`, or remove `{name}`"
            yield Diagnostic("RK021", f"`{name}` without `{needed}`", (Label(key.span),), (help,))


def _explain_wrong_type(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    node = place.node
    types = [error.wanted] if isinstance(error.wanted, str) else list(error.wanted)
    # null is accepted instead of a list or a mapping, but is not worth suggesting.
    wanted = _join_with_or([_TYPES[type_] for type_ in types if type_ != "null" or types[0] == "string"])
    label = Label(node.span if node.span.end > node.span.start else place.at)
    if place.path[:1] == ("tables",) and place.path[2:] == ("lossy",) and types != ["boolean"]:
        how = "write `{lossy: true, entries: {key: value, ...}}`"
        yield Diagnostic("RK022", f"the lossy table `{place.path[1]}` has no `entries`", (label,), (how,))
        return
    help: str | None = (_suggest_scalar if isinstance(node, ScalarNode) else _suggest_quotes)(place, types)
    if help is None and place.path and "examples" in error.schema:
        begin = "- " if isinstance(place.path[-1], int) else f"{place.path[-1]}: "
        help = f"for example `{begin}{emit_flow(error.schema['examples'][0])}`"
    if help is None:
        help = (
            _describe_field(error.schema) if place.path else "begin with `remapkit: 1` and `name: ...`, a line each"
        )
    yield Diagnostic("RK022", f"{place.name} must be {wanted}, got {_describe_node(node)}", (label,), (help,))


def _join_with_or(names: Sequence[str]) -> str:
    if "text" in names[:1]:  # a whole number is accepted there, as text
        names = [name for name in names if name != "a whole number"]
    return f"{', '.join(names[:-1])} or {names[-1]}" if names[1:] else names[0]


def _describe_node(node: Node) -> str:
    if isinstance(node, ScalarNode):
        return READ_AS[node.kind]
    return "a list" if isinstance(node, ListNode) else "a mapping"


def _suggest_scalar(place: SchemaPlace, types: Sequence[str]) -> str | None:
    """Suggest what to write instead of a scalar of the wrong kind."""
    node = place.node
    assert isinstance(node, ScalarNode)
    if "array" in types and "string" in types and node.kind == "integer":
        return f"write a list: [{node.value}]"
    if "string" in types and node.kind in ("integer", "number", "boolean", "null"):
        return f"quote it: '{node.value}'"
    if types == ["integer"] and node.kind == "text" and classify_scalar(node.value) == "integer":
        return f"write it without quotes: {node.value}"
    if "array" in types and node.kind in ("text", "integer") and "\n" not in node.span.text:
        inner = f"'{node.value}'" if set(node.value) & set("[]{},'\"") else node.span.text
        return f"write a list: [{inner}]"
    return None


def _suggest_quotes(place: SchemaPlace, types: Sequence[str]) -> str | None:
    """Suggest what to write instead of a mapping or list that was meant as text: `to: {stage}`."""
    written = place.node.span.text
    if place.path[:1] == ("rules",) and place.path[2:] == ("to",) and isinstance(place.node, ListNode):
        how = "to write one tensor under several names use `copy`, to cut it `split`"
        return f"{how}: `copy: {written}`" if "\n" not in written else how
    if "string" in types and written[:1] in ("{", "[") and "\n" not in written:
        return f"a text that begins with {written[0]} must be quoted: '{written}'"
    return None


def _explain_not_one_of(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    options = [str(option) for option in error.wanted]
    value = place.node.value if isinstance(place.node, ScalarNode) else ""
    help = suggest_name(value, options, f"write one of {', '.join(options)}")
    got = (
        quote_excerpt(value)
        if isinstance(place.node, ScalarNode) and place.node.kind == "text"
        else _describe_node(place.node)
    )
    title = f"{place.name} must be {join_words(options, conjunction='or')}, got {got}"
    label = Label(place.node.span if place.node.span.end > place.node.span.start else place.at)
    yield Diagnostic("RK023", title, (label,), (help,))


def _explain_version(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    if isinstance(place.node, ScalarNode) and place.node.kind == "integer":
        title = f"unknown version {place.node.value} of the rule language"
        help = ("write `remapkit: 1`, or install a newer remapkit: this one reads version 1",)
        yield Diagnostic("RK025", title, (Label(place.node.span),), help)


def _explain_empty(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    if error.keyword == "minItems" and isinstance(place.node, ListNode) and place.node.items:
        title = f"{place.name} must have at least {error.wanted} entries, got {len(error.got)}"
        help = f"for example `{emit_flow(error.schema['examples'][0])}`"
        yield Diagnostic("RK026", title, (Label(place.node.span),), (help,))
        return
    what = {"minLength": "an empty text", "minItems": "an empty list", "minProperties": "an empty mapping"}
    node = place.node.span
    label = Label(node if node.end > node.start else place.at)
    help = "write a value" + ("" if error.keyword == "minLength" else ", or remove the field")
    yield Diagnostic("RK026", f"{place.name} is {what[error.keyword]}", (label,), (help,))


def _explain_bad_name(place: SchemaPlace, error: Departure) -> Iterator[Diagnostic]:
    if error.of_a_name and isinstance(place.node, MapNode):
        key = place.node.key(str(error.got))
        at, what = (key.span if key else place.at), f"{str(place.path[-1])[:-1]} name"
        help = "use letters, digits and _; `int` is the name of a type"
        if place.path[-1] == "params":
            help = "use letters, digits and _"
    else:
        at, what, help = (
            place.node.span,
            "name",
            "use letters, digits, _, - and ., and do not begin with - or .",
        )
    yield Diagnostic("RK028", f"{quote_excerpt(str(error.got))} is not a valid {what}", (Label(at),), (help,))


_EXPLAIN: Mapping[str, Callable[[SchemaPlace, Departure], Iterator[Diagnostic]]] = {
    "additionalProperties": _explain_unknown_fields,
    "anyOf": _explain_lacking_all,
    "const": _explain_version,
    "dependentRequired": _explain_lone_field,
    "enum": _explain_not_one_of,
    "maxItems": _explain_too_many,
    "maxProperties": _explain_too_many,
    "minItems": _explain_empty,
    "minLength": _explain_empty,
    "minProperties": _explain_empty,
    "oneOf": _explain_choice,
    "pattern": _explain_bad_name,
    "required": _explain_missing_fields,
    "type": _explain_wrong_type,
}
"""The explanation of each JSON Schema keyword that the schema uses."""
