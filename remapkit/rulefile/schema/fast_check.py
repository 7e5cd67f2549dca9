"""Whether a value is as a schema says, and nothing else: a fast answer for the many files that have nothing wrong.

The schema is compiled into functions, keyword by keyword. Only a plain yes counts: where the answer is no, jsonschema
is asked, finds out what is wrong, and decides. A keyword that is not known here makes every answer no, so that the
schema can grow without this. Importing and running jsonschema takes longer than the rest of reading a rule file.

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


def sound(schema: Mapping[str, Any]) -> Predicate:
    """The check that a schema asks for.

    >>> check = sound({"type": "array", "items": {"type": "string", "minLength": 1}})
    >>> check(["a"]), check(["a", ""]), check("a")
    (True, False, False)
    """
    return _schema(schema, schema.get("$defs", {}))


def _schema(schema: Any, definitions: Mapping[str, Any]) -> Predicate:
    if not isinstance(schema, Mapping):
        return _yes if schema is True else _no
    checks: list[Predicate] = []
    if "if" in schema:
        checks.append(_if(schema, definitions))
    if "properties" in schema or "additionalProperties" in schema:
        checks.append(_properties(schema, definitions))
    for keyword, wanted in schema.items():
        if keyword in _NOTES or keyword in ("if", "then", "else", "properties", "additionalProperties"):
            continue
        make = _KEYWORDS.get(keyword)
        if make is None:
            return _no
        checks.append(make(wanted, definitions))
    return checks[0] if len(checks) == 1 else _all(checks)


def _yes(_: Any) -> bool:
    return True


def _no(_: Any) -> bool:
    return False


def _all(checks: list[Predicate]) -> Predicate:
    def check(value: Any) -> bool:
        for each in checks:  # noqa: SIM110 - a generator would cost as much as the checks
            if not each(value):
                return False
        return True

    return check


def _type(wanted: Any, _: Mapping[str, Any]) -> Predicate:
    names = [wanted] if isinstance(wanted, str) else wanted
    if not set(names) <= set(_TYPES):
        return _no
    types = frozenset(each for name in names for each in _TYPES[name])
    return lambda value: type(value) in types


def _ref(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    name = str(wanted).removeprefix("#/$defs/")
    return _schema(definitions[name], definitions) if name in definitions else _no


def _if(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Predicate:
    condition = _schema(schema["if"], definitions)
    # A condition answers no to what it does not know, too, which would choose the wrong branch.
    if not _known(schema["if"]):
        return _no
    then, otherwise = (_schema(schema.get(branch, True), definitions) for branch in ("then", "else"))
    return lambda value: then(value) if condition(value) else otherwise(value)


def _known(condition: Any) -> bool:
    """Whether a no to a condition is sure: only of types, required fields and the types of fields."""
    return isinstance(condition, Mapping) and all(
        keyword == "required"
        or (keyword == "type" and set([wanted] if isinstance(wanted, str) else wanted) <= set(_TYPES))
        or (keyword == "properties" and all(map(_known, wanted.values())))
        for keyword, wanted in condition.items()
    )


def _properties(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Predicate:
    known = {name: _schema(each, definitions) for name, each in schema.get("properties", {}).items()}
    rest = _schema(schema.get("additionalProperties", True), definitions)

    def check(value: Any) -> bool:
        if type(value) is not dict:
            return True
        for name, each in value.items():  # noqa: SIM110
            if not known.get(name, rest)(each):
                return False
        return True

    return check


def _required(wanted: Any, _: Mapping[str, Any]) -> Predicate:
    names = frozenset(wanted)
    return lambda value: type(value) is not dict or value.keys() >= names


def _one_of(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    if not all(map(_known, wanted)):
        return _no
    checks = [_schema(each, definitions) for each in wanted]
    return lambda value: sum([each(value) for each in checks]) == 1


def _any_of(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    checks = [_schema(each, definitions) for each in wanted]
    return lambda value: any(each(value) for each in checks)


def _dependent(wanted: Any, _: Mapping[str, Any]) -> Predicate:
    return lambda value: (
        type(value) is not dict or all(value.keys() >= set(names) for name, names in wanted.items() if name in value)
    )


def _enum(wanted: Any, _: Mapping[str, Any]) -> Predicate:
    return lambda value: any(type(value) is type(each) and value == each for each in wanted)


def _pattern(wanted: Any, _: Mapping[str, Any]) -> Predicate:
    search = re.compile(wanted).search
    return lambda value: type(value) is not str or search(value) is not None


def _items(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    each = _schema(wanted, definitions)
    return lambda value: type(value) is not list or all(map(each, value))


def _names(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    each = _schema(wanted, definitions)
    return lambda value: type(value) is not dict or all(map(each, value))


def _all_of(wanted: Any, definitions: Mapping[str, Any]) -> Predicate:
    return _all([_schema(each, definitions) for each in wanted])


Sized = type[list[Any]] | type[str] | type[dict[str, Any]]


def _least(kind: Sized) -> Callable[[Any, Mapping[str, Any]], Predicate]:
    return lambda wanted, _: lambda value: type(value) is not kind or len(value) >= wanted


def _most(kind: Sized) -> Callable[[Any, Mapping[str, Any]], Predicate]:
    return lambda wanted, _: lambda value: type(value) is not kind or len(value) <= wanted


_KEYWORDS: Mapping[str, Callable[[Any, Mapping[str, Any]], Predicate]] = {
    "$ref": _ref,
    "allOf": _all_of,
    "anyOf": _any_of,
    "const": lambda wanted, definitions: _enum([wanted], definitions),
    "dependentRequired": _dependent,
    "enum": _enum,
    "items": _items,
    "maxItems": _most(list),
    "maxLength": _most(str),
    "maxProperties": _most(dict),
    "minItems": _least(list),
    "minLength": _least(str),
    "minProperties": _least(dict),
    "oneOf": _one_of,
    "pattern": _pattern,
    "propertyNames": _names,
    "required": _required,
    "type": _type,
}
