"""Validate rule files against `rules-v1.schema.json`, the only definition of their structure.

jsonschema is used only to find violations and their locations (`error.validator` and `error.absolute_path`). Its
messages are not used; ours are made from the nodes, which have lines and columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.rulefile.schema.explain import Departure, SchemaPlace, explain_departure
from remapkit.rulefile.schema.fast_check import Predicate, compile_check
from remapkit.rulefile.schema.text import schema_text
from remapkit.rulefile.yaml.compose import MAX_PROBLEMS, explain_problem_limit
from remapkit.rulefile.yaml.nodes import Node
from remapkit.rulefile.yaml.values import to_schema_value

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator


def find_schema_problems(root: Node) -> tuple[Diagnostic, ...]:
    """Return every violation of the schema, in file order."""
    value = to_schema_value(root)
    if _load_fast_check()(value):
        return ()
    errors = list(islice(_make_validator().iter_errors(value), MAX_PROBLEMS + 1))
    problems: dict[Diagnostic, None] = {}
    for error in errors:
        for problem in explain_departure(SchemaPlace.of(root, tuple(error.absolute_path)), Departure.of(error)):
            problems[problem] = None
    version = next((problem for problem in problems if problem.code == "RK025"), None)
    if version is not None:
        return (version,)
    ordered = sorted(problems, key=lambda problem: problem.span.start if problem.span else 0)
    if len(ordered) > 1:
        ordered = [problem for problem in ordered if problem.code != "RK027"]
    if len(errors) > MAX_PROBLEMS:
        ordered = [*ordered[:MAX_PROBLEMS], explain_problem_limit()]
    return tuple(ordered)


@cache
def _load_fast_check() -> Predicate:
    return compile_check(json.loads(schema_text()))


@cache
def _make_validator() -> Draft202012Validator:
    from jsonschema import Draft202012Validator  # takes 60 ms and is needed only for rule files with mistakes

    schema = json.loads(schema_text())
    return Draft202012Validator(_inline_refs(schema, schema["$defs"]))


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
