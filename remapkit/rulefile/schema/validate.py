"""Validate rule files against `rules-v1.schema.json`, the only definition of their structure.

jsonschema is used only to find violations and their locations (`error.validator` and `error.absolute_path`). Its
messages are not used; ours are made from the nodes, which have lines and columns.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.rulefile.schema.explain import Departure, SchemaPlace, explain_departure
from remapkit.rulefile.schema.fast_check import Predicate, compile_check
from remapkit.rulefile.schema.text import schema_text
from remapkit.rulefile.yaml.compose import MAX_PROBLEMS, explain_problem_limit
from remapkit.rulefile.yaml.nodes import Node
from remapkit.rulefile.yaml.values import to_schema_value

if TYPE_CHECKING:
    from jsonschema import ValidationError


def find_schema_problems(root: Node) -> tuple[Diagnostic, ...]:
    """Return every violation of the schema, in file order."""
    value = to_schema_value(root)
    if _load_fast_check()(value):
        return ()
    errors = list(itertools.islice(_make_validator().iter_errors(value), MAX_PROBLEMS + 1))
    # The version comes first: if it is unknown, nothing else is reported.
    errors.sort(key=lambda error: error.validator != "const")
    problems: dict[Diagnostic, None] = {}
    for problem in itertools.chain.from_iterable(_explain_error(root, error) for error in errors):
        problems[problem] = None
        if len(problems) > MAX_PROBLEMS:
            break
    version = next((problem for problem in problems if problem.code == "RK025"), None)
    if version is not None:
        return (version,)
    ordered = sorted(problems, key=lambda problem: problem.span.start if problem.span else 0)
    if len(ordered) > 1:
        ordered = [problem for problem in ordered if problem.code != "RK027"]
    if max(len(errors), len(problems)) > MAX_PROBLEMS:
        ordered = [*ordered[:MAX_PROBLEMS], explain_problem_limit()]
    return tuple(ordered)


def _explain_error(root: Node, error: ValidationError) -> Iterator[Diagnostic]:
    return explain_departure(SchemaPlace.of(root, tuple(error.absolute_path)), Departure.of(error))


@cache
def _load_fast_check() -> Predicate:
    return compile_check(json.loads(schema_text()))


@cache
def _make_validator() -> Any:
    from jsonschema import Draft202012Validator, validators  # takes 60 ms; needed only for files with mistakes

    schema = json.loads(schema_text())
    inlined = _inline_refs(schema, schema["$defs"])
    keywords = {"additionalProperties": _find_further_fields, "properties": _find_in_fields, "items": _find_in_items}
    extended = validators.extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call]
    return extended(inlined)


def _find_in_fields(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """Check the known fields; jsonschema sees those alone in which something is wrong, which are few."""
    if isinstance(value, dict):
        for name, subschema in wanted.items():
            if name in value and not _find_fast_check(subschema)(value[name]):
                yield from validator.descend(value[name], subschema, path=name, schema_path=name)


def _find_in_items(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(value, list):
        for place, item in enumerate(value):
            if not _find_fast_check(wanted)(item):
                yield from validator.descend(item, wanted, path=place)


_FAST_CHECKS: dict[int, tuple[Any, Predicate]] = {}
"""The checks of the parts of the schema by their identity; each is kept beside its check, so that none is reused."""


def _find_fast_check(schema: Any) -> Predicate:
    known = _FAST_CHECKS.get(id(schema))
    if known is None:
        known = _FAST_CHECKS[id(schema)] = schema, compile_check(schema)
    return known[1]


def _find_further_fields(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """Check the fields that `properties` lacks in their order; jsonschema takes them in the order of a set."""
    from jsonschema import ValidationError

    known = schema.get("properties", {})
    further = [name for name in value if name not in known] if isinstance(value, dict) else []
    if isinstance(wanted, Mapping):
        for name in further:
            if not _find_fast_check(wanted)(value[name]):
                yield from validator.descend(value[name], wanted, path=name)
    elif further and not wanted:
        yield ValidationError("unknown fields")


def _inline_refs(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Replace every `$ref` in the schema by its definition, which validates twice as fast."""
    if isinstance(schema, list):
        return [_inline_refs(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inlined = {key: _inline_refs(value, definitions) for key, value in schema.items() if key not in ("$defs", "$ref")}
    if "$ref" in schema:
        named = _inline_refs(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
        return {**named, **inlined}
    return inlined
