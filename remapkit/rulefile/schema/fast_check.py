"""Check quickly whether a value matches a schema: a fast path for the many files without mistakes.

The schema is compiled into functions, keyword by keyword. Only a positive result is final: after a negative one,
jsonschema decides and finds the violations. A keyword unknown to this module makes every result negative, so the
schema can grow without changes here. Importing and running jsonschema takes longer than the rest of reading a rule
file.

Source: JSON Schema, draft 2020-12, as far as the schema of rule files uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

Predicate = Callable[[Any], bool]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float, Decimal),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_NOTES = frozenset({"$schema", "$defs", "title", "description", "examples", "default"})


def compile_check(schema: Mapping[str, Any]) -> Predicate:
    """Compile a schema into a check.

    >>> check = compile_check({"type": "array", "items": {"type": "string", "minLength": 1}})
    >>> check(["a"]), check(["a", ""]), check("a")
    (True, False, False)
    """
    return _compile_schema(schema, schema.get("$defs", {}))


def _compile_schema(schema: Any, definitions: Mapping[str, Any]) -> Predicate:
    if not isinstance(schema, Mapping):
        return _accept_any if schema is True else _refuse_any
    checks: list[Predicate] = []
    if "if" in schema:
        checks.append(_compile_if(schema, definitions))
    if "properties" in schema or "additionalProperties" in schema:
        checks.append(_compile_properties(schema, definitions))
    for keyword, wanted in schema.items():
        if keyword in _NOTES or keyword in ("if", "then", "else", "properties", "additionalProperties"):
            continue
        make = _KEYWORDS.get(keyword)
        if make is None:
            return _refuse_any
        checks.append(make(wanted, definitions))
    return checks[0] if len(checks) == 1 else _join_checks(checks)


def _accept_any(_: Any) -> bool:
    return True


def _refuse_any(_: Any) -> bool:
    return False


def _join_checks(checks: list[Predicate]) -> Predicate:
    def check(value: Any) -> bool:
        for part in checks:  # noqa: SIM110 - a generator would cost as much as the checks
            if not part(value):
                return False
        return True

    return check


def _compile_type(wanted: Any, _: Mapping[str, Any]) -> Predicate:
    names = [wanted] if isinstance(wanted, str) else wanted
    if not set(names) <= set(_TYPES):
        return _refuse_any
    types = frozenset(type_ for name in names for type_ in _TYPES[name])
    return lambda value: type(value) in types


def _compile_ref(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    name = str(wanted).removeprefix("#/$defs/")
    return _compile_schema(definitions[name], definitions) if name in definitions else _refuse_any


def _compile_if(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Predicate:
    condition = _compile_schema(schema["if"], definitions)
    # A condition is also negative for unknown keywords, which would choose the wrong branch.
    if not _is_decidable(schema["if"]):
        return _refuse_any
    then, otherwise = (_compile_schema(schema.get(branch, True), definitions) for branch in ("then", "else"))
    return lambda value: then(value) if condition(value) else otherwise(value)


def _is_decidable(condition: Any) -> bool:
    """Return whether a negative result is reliable: the condition tests only types, required fields, field types."""
    return isinstance(condition, Mapping) and all(
        keyword == "required"
        or (keyword == "type" and set([wanted] if isinstance(wanted, str) else wanted) <= set(_TYPES))
        or (keyword == "properties" and all(map(_is_decidable, wanted.values())))
        for keyword, wanted in condition.items()
    )


def _compile_properties(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Predicate:
    known = {
        name: _compile_schema(subschema, definitions) for name, subschema in schema.get("properties", {}).items()
    }
    rest = _compile_schema(schema.get("additionalProperties", True), definitions)

    def check(value: Any) -> bool:
        if type(value) is not dict:
            return True
        for name, field in value.items():  # noqa: SIM110
            if not known.get(name, rest)(field):
                return False
        return True

    return check


def _compile_required(wanted: Any, _: Mapping[str, Any]) -> Predicate:
    names = frozenset(wanted)
    return lambda value: type(value) is not dict or value.keys() >= names


def _compile_one_of(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    if not all(map(_is_decidable, wanted)):
        return _refuse_any
    checks = [_compile_schema(branch, definitions) for branch in wanted]
    return lambda value: sum([check(value) for check in checks]) == 1


def _compile_any_of(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    checks = [_compile_schema(branch, definitions) for branch in wanted]
    return lambda value: any(check(value) for check in checks)


def _compile_dependent(wanted: Any, _: Mapping[str, Any]) -> Predicate:
    return lambda value: (
        type(value) is not dict or all(value.keys() >= set(names) for name, names in wanted.items() if name in value)
    )


def _compile_enum(wanted: Any, _: Mapping[str, Any]) -> Predicate:
    return lambda value: any(type(value) is type(allowed) and value == allowed for allowed in wanted)


def _compile_pattern(wanted: Any, _: Mapping[str, Any]) -> Predicate:
    search = re.compile(wanted).search
    return lambda value: type(value) is not str or search(value) is not None


def _compile_items(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    check_item = _compile_schema(wanted, definitions)
    return lambda value: type(value) is not list or all(map(check_item, value))


def _compile_names(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    check_name = _compile_schema(wanted, definitions)
    return lambda value: type(value) is not dict or all(map(check_name, value))


def _compile_all_of(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    return _join_checks([_compile_schema(branch, definitions) for branch in wanted])


Sized = type[list[Any]] | type[str] | type[dict[str, Any]]


def _compile_minimum(kind: Sized) -> Callable[[Any, Mapping[str, Any]], Predicate]:
    return lambda wanted, _: lambda value: type(value) is not kind or len(value) >= wanted


def _compile_maximum(kind: Sized) -> Callable[[Any, Mapping[str, Any]], Predicate]:
    return lambda wanted, _: lambda value: type(value) is not kind or len(value) <= wanted


_KEYWORDS: Mapping[str, Callable[[Any, Mapping[str, Any]], Predicate]] = {
    "$ref": _compile_ref,
    "allOf": _compile_all_of,
    "anyOf": _compile_any_of,
    "const": lambda wanted, definitions: _compile_enum([wanted], definitions),
    "dependentRequired": _compile_dependent,
    "enum": _compile_enum,
    "items": _compile_items,
    "maxItems": _compile_maximum(list),
    "maxLength": _compile_maximum(str),
    "maxProperties": _compile_maximum(dict),
    "minItems": _compile_minimum(list),
    "minLength": _compile_minimum(str),
    "minProperties": _compile_minimum(dict),
    "oneOf": _compile_one_of,
    "pattern": _compile_pattern,
    "propertyNames": _compile_names,
    "required": _compile_required,
    "type": _compile_type,
}
