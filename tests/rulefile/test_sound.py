"""The fast answer about a file's structure is the one of jsonschema: both ways, on sound, odd and broken files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from remapkit.rulefile.schema.fast_check import compile_check
from remapkit.rulefile.schema.text import schema_text

SCHEMA = json.loads(schema_text())
JSONSCHEMA = Draft202012Validator(SCHEMA)
FAST = compile_check(SCHEMA)
FULL: dict[str, Any] = {
    "remapkit": 1,
    "name": "t",
    "summary": "s",
    "source": {"keys": "k.json", "domain": ["a.{x}", {"path": "b"}]},
    "target": {"model": "wan.vae:WanVAE", "args": {"dim": 3}, "keys": "k.json"},
    "tables": {"slot": {"a": "b", "c": 1}, "l": {"lossy": True, "entries": {"a": 1}}},
    "rules": [
        {"id": "a", "match": "a(?P<n>.)", "where": {"n": ["1", 2], "m": "0..4"}, "leaf": ["w"], "to": "b"},
        {"id": "b", "path": "a.{n}", "to": "b.{n}", "forget": ["n"], "note": "remark"},
        {"id": "s", "path": "q", "ops": ["transpose", {"permute": [1, 0]}], "split": {"dim": 0, "into": ["a", "b"]}},
        {
            "id": "c",
            "concat": {"dim": 0, "from": ["a.{e}", {"path": "b.{e}"}]},
            "stack": {"by": "e", "dim": 0},
            "to": "x",
        },
        {"id": "t", "path": "w", "tie": ["v", "u"]},
    ],
    "keep": ["a.{b}", {"match": "x", "leaf": ["w"]}],
    "drop": None,
    "unmatched": "keep",
    "params": {"heads": 32, "hidden": {"config": "hidden_size", "value": 4096}},
    "add": [{"to": "ids", "fill": "arange", "shape": [1, "heads"], "dtype": "I64"}],
    "tests": {"a": "b", "c": None, "d": 1, "q": ["a", "b"]},
}
ODD = [None, True, False, 0, 1, 2, "", "int", "x", "a b", "error", Decimal("1.0"), [], {}, ["a"], [None], {"a": 1}]
odd = st.sampled_from([*ODD, object(), {"entries": None}, {"entries": {"a": 1}}, {"lossy": 1, "entries": {}}, [[]]])
names = st.sampled_from(
    [
        "match",
        "path",
        "to",
        "id",
        "entries",
        "lossy",
        "model",
        "args",
        "keys",
        "int",
        "x",
        "rules",
        "ops",
        "dim",
        "into",
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        found += [place for key, each in value.items() for place in places(each, (*path, key))]
    if isinstance(value, list):
        found += [place for number, each in enumerate(value) for place in places(each, (*path, number))]
    return found


@st.composite
def files(draw: st.DrawFn) -> Any:
    """A file that uses everything, changed in up to three places."""
    whole = {"": copy.deepcopy(FULL)}
    for _ in range(draw(st.integers(0, 3))):
        path = ("", *draw(st.sampled_from(places(whole[""]))))
        parent: Any = whole
        for step in path[:-1]:
            parent = parent[step]
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "remove" and len(path) > 1:
            del parent[path[-1]]
        elif how == "add" and isinstance(parent[path[-1]], dict):
            parent[path[-1]][draw(names)] = copy.deepcopy(draw(odd))
        elif how == "add" and isinstance(parent[path[-1]], list):
            parent[path[-1]].append(copy.deepcopy(draw(odd)))
        else:
            parent[path[-1]] = copy.deepcopy(draw(odd))
    return whole[""]


def agree(value: Any) -> None:
    assert FAST(value) == JSONSCHEMA.is_valid(value), value


@settings(max_examples=1500)
@given(files())
def test_the_fast_answer_is_the_one_of_the_schema(value: Any) -> None:
    agree(value)


def test_every_single_change() -> None:
    agree(FULL)
    assert FAST(FULL)
    for path in places(FULL)[1:]:
        for other in (*ODD, ...):
            changed: Any = copy.deepcopy(FULL)
            parent = changed
            for step in path[:-1]:
                parent = parent[step]
            if other is ...:
                del parent[path[-1]]
            else:
                parent[path[-1]] = other
            agree(changed)


@pytest.mark.parametrize("keyword", ["not", "maximum", "prefixItems", "format"])
def test_what_it_does_not_know_it_never_calls_sound(keyword: str) -> None:
    """The schema may grow: until this knows the new keyword, jsonschema is asked."""
    check = compile_check({"items": {"type": "string", keyword: {}}})
    assert check([]) and not check(["a"])
    assert not compile_check({"if": {keyword: 1}, "else": {"type": "string"}})("a")
    assert not compile_check({"oneOf": [{"type": "string"}, {keyword: 1}]})("a")


@settings(max_examples=300)
@given(st.sampled_from([*ODD, ["a", "b"], {"a": 1, "b": 2}, "long"]))
def test_upper_bounds_and_conjunctions(value: Any) -> None:
    """Keywords that the schema may come to use."""
    schema = {"allOf": [{"maxItems": 1}, {"maxLength": 1}, {"maxProperties": 1, "oneOf": [{"type": "array"}, True]}]}
    assert not compile_check(schema)(value)  # a plain true within oneOf is not known: jsonschema is asked
    schema["allOf"][2].pop("oneOf")
    assert compile_check(schema)(value) == Draft202012Validator(schema).is_valid(value)


CHANGES = [
    # what is left out of the schema, and a file that only this makes wrong
    (("properties", "name", "pattern"), {"remapkit": 1, "name": "a b", "keep": ["a"]}),
    (("properties", "remapkit", "const"), {"remapkit": 2, "name": "a", "keep": ["a"]}),
    (("required",), {"remapkit": 1, "keep": ["a"]}),
    (("anyOf",), {"remapkit": 1, "name": "a"}),
    (("additionalProperties",), {"remapkit": 1, "name": "a", "keep": ["a"], "x": 1}),
    (("properties", "target", "dependentRequired"), FULL | {"target": {"keys": "k", "args": {}}}),
    (("properties", "tables", "propertyNames"), FULL | {"tables": {"int": {"a": 1}}}),
    (("properties", "unmatched", "enum"), FULL | {"unmatched": "sometimes"}),
    (("$defs", "rule", "allOf"), FULL | {"rules": [{"id": "a", "match": "a", "path": "b", "to": "c"}]}),
    (("$defs", "table", "else"), FULL | {"tables": {"a": {}}}),
    (("$defs", "texts", "minItems"), FULL | {"keep": [{"path": "a", "leaf": []}]}),
    (("$defs", "match", "minLength"), FULL | {"keep": [{"match": ""}]}),
    (("$defs", "stack", "required"), FULL | {"rules": [{"id": "a", "path": "b.{e}", "stack": {}, "to": "c"}]}),
]


@pytest.mark.parametrize(("path", "value"), CHANGES, ids=[".".join(path) for path, _ in CHANGES])
def test_each_keyword_left_out_is_noticed(path: tuple[str, ...], value: Any) -> None:
    """Planted faults: a check that forgets one keyword calls a file sound that the schema refuses."""
    forgetful = copy.deepcopy(SCHEMA)
    parent = forgetful
    for step in path[:-1]:
        parent = parent[step]
    del parent[path[-1]]
    assert compile_check(forgetful)(value) and not JSONSCHEMA.is_valid(value)
    agree(value)


def test_a_sound_file_is_read_without_jsonschema() -> None:
    code = "import sys, remapkit; remapkit.load('wan22_pth').match('conv1.bias'); print('jsonschema' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
