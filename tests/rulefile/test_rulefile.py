"""Rule files as written: the structure against the schema, everything kept, every problem told, none twice."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import remapkit
from remapkit.api.ruleset import compile_rules
from remapkit.diagnostics import wording
from remapkit.diagnostics.errors import InvalidRules, UsageError
from remapkit.diagnostics.source import Text
from remapkit.rulefile.read import examine_text, read, read_text, schema_text
from remapkit.rulefile.schema import explain
from remapkit.rulefile.schema import validate as schema
from remapkit.rulefile.yaml import compose as yamlnodes

PACKS = Path(remapkit.__file__).parent.parent / "rules"

FULL = r"""
remapkit: 1
name: full
summary: "all of \"it\""
source: {keys: keys/a.json, domain: ['a.{n:int}', {match: 'b\.\d+', leaf: [x]}]}
target: {model: wan.vae:WanVAE, args: {dim: 160, scale: 0.5, deep: {a: true, b: null, list: [1, x]}}, keys: b.json}
tables:
  slot: {norm1: residual.0, 1: 2}
  many: {lossy: true, entries: {a: x, b: x}}
  entries: {lossy: x, entries: y}
  strict: {lossy: false, entries: {a: b}}
rules:
  - id: one
    match: 'a\.(?P<n>\d+)\.(?P<part>\w+)'
    where: {part: [residual, 2], n: 0..47, m: slot}
    leaf: [weight, 0]
    to: 'b.{n}'
    forget: [part]
    note: a remark
  - {id: two, path: 'a.{n:int}', to: 'c.{n}'}
keep:
  - 'd.{rest:**}'
  - match: e
drop: []
unmatched: keep
tests:
  a.0.residual: b.0
  7: 8
  gone: null
  also: ~
"""


def values(texts: Any) -> Any:
    return [text.value for text in texts]


def test_everything_that_is_written_is_kept() -> None:
    file = read_text(FULL, "full.yaml")
    assert (file.name.value, file.summary.value if file.summary else None) == ("full", 'all of "it"')
    assert (file.path, file.unmatched, file.source_keys.value if file.source_keys else None) == (
        None,
        "keep",
        "keys/a.json",
    )
    assert [(each.surface, each.text.value, each.leaf is None) for each in file.source_domain] == [
        ("path", "a.{n:int}", True),
        ("match", r"b\.\d+", False),
    ]
    assert file.target is not None and file.target.model is not None and file.target.keys is not None
    assert (file.target.model.value, file.target.keys.value) == ("wan.vae:WanVAE", "b.json")
    assert dict(file.target.model_args) == {
        "dim": 160,
        "scale": 0.5,
        "deep": {"a": True, "b": None, "list": [1, "x"]},
    }
    assert [
        (table.name.value, table.lossy, [(e.key.value, e.value.value) for e in table.entries])
        for table in file.tables
    ] == [
        ("slot", False, [("norm1", "residual.0"), ("1", "2")]),
        ("many", True, [("a", "x"), ("b", "x")]),
        ("entries", False, [("lossy", "x"), ("entries", "y")]),
        ("strict", False, [("a", "b")]),
    ]
    one, two = file.rules
    assert (one.id.value, one.to.value, values(one.forget)) == ("one", "b.{n}", ["part"])
    assert (one.pattern.surface, values(one.pattern.leaf)) == ("match", ["weight", "0"])
    assert [
        (g.capture.value, g.values and values(g.values), g.named and g.named.value) for g in one.pattern.where
    ] == [("part", ["residual", "2"], None), ("n", None, "0..47"), ("m", None, "slot")]
    assert (two.pattern.surface, two.pattern.where, two.pattern.leaf, two.forget) == ("path", (), None, ())
    assert [(each.surface, each.text.value) for each in file.keep] == [("path", "d.{rest:**}"), ("match", "e")]
    assert file.drop == ()
    assert [(test.source.value, test.target and test.target.value) for test in file.tests] == [
        ("a.0.residual", "b.0"),
        ("7", "8"),
        ("gone", None),
        ("also", None),
    ]


def texts_of(value: Any) -> list[Text]:
    if isinstance(value, Text):
        return [value]
    if isinstance(value, tuple):
        return [text for each in value for text in texts_of(each)]
    names = getattr(value, "__dataclass_fields__", {})
    return [text for name in names if name not in ("source", "span") for text in texts_of(getattr(value, name))]


def test_every_text_of_a_pack_knows_its_place() -> None:
    for path in sorted(PACKS.glob("*.yaml")):
        file = read(path)
        found = texts_of(file)
        assert len(found) > 20
        for text in found:
            assert text.span.source is file.source
            assert text.span.text == text.value, "the shipped packs use neither escapes nor folds"


def test_the_digest_is_that_of_the_meaning(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"remapkit: 1\r\nname: a\r\nkeep: [x] # \xc3\xa9\r\n")
    file = read(path)
    assert (file.path, file.source.name) == (path, str(path))
    assert file.digest == read_text("remapkit: 1\nname: b\nkeep:\n  - 'x'\n").digest
    assert file.digest != read_text("remapkit: 1\nname: a\nkeep: [y]\n").digest


MEANT = "remapkit: 1\nname: a\nrules:\n  - {id: r, path: 'a.{n:int}', to: 'b.{n}'}\n  - {id: s, path: c, to: d}\n"


@pytest.mark.parametrize(
    "same",
    [
        "# a comment\n" + MEANT,
        MEANT.replace("name: a", "name: b\nsummary: another"),
        MEANT + "tests: {a.1: b.1}\nsource: {keys: keys/a.json}\nkeep: []\n",
        "name: a\nremapkit: 1\nrules:\n  - {to: d, path: c, id: s}\n  - {to: 'b.{n}', id: r, path: 'a.{n:int}'}",
    ],
    ids=["comment", "name", "tests", "order and layout"],
)
def test_the_digest_covers_what_the_rules_mean(same: str) -> None:
    assert read_text(same).digest == read_text(MEANT).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("b.{n}", "b.{n}.x"),
        ("{n:int}", "{n:*}"),
        ("id: s, path: c", "id: s, leaf: [c], path: c"),
        ("name: a\n", "name: a\nunmatched: keep\n"),
        ("name: a\n", "name: a\nsource: {domain: [c, 'a.{n:int}']}\n"),
        ("name: a\n", "name: a\ntarget: {keys: t.json}\n"),
        ("name: a\n", "name: a\nadd: [{to: z, fill: zeros, shape: [1], dtype: F32}]\n"),
    ],
)
def test_the_digest_changes_with_what_the_rules_mean(old: str, new: str) -> None:
    assert read_text(MEANT.replace(old, new)).digest != read_text(MEANT).digest


# ------------------------------------------------------------------------------------------------ against the schema

FIELDS = ["remapkit", "name", "summary", "source", "target", "tables", "rules", "keep", "drop", "unmatched", "tests"]
INNER = [
    "id",
    "match",
    "path",
    "where",
    "leaf",
    "to",
    "forget",
    "keys",
    "model",
    "args",
    "lossy",
    "entries",
    "domain",
]
SCALARS: list[Any] = ["a.{n}", "", "keep", 1, 0, 2.5, True, None, "x"]
scalars = st.sampled_from(SCALARS)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*INNER, "int", "a-b", "odd"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """Valid files with a few fields replaced, removed or added, so that every branch of the schema is near."""
    document: Any = {
        "remapkit": 1,
        "name": "t",
        "tables": {"s": {"a": "b"}, "m": {"lossy": True, "entries": {"a": "b"}}},
        "rules": [{"id": "r", "path": "a.{n}", "to": "b.{n}", "where": {"n": ["x", 1]}, "leaf": ["w"]}],
        "keep": ["x", {"match": "y"}],
        "target": {"model": "m", "args": {"a": 1}},
        "tests": {"a": "b", "c": None},
    }
    for _ in range(draw(st.integers(0, 4))):
        here = document
        while True:
            steps = list(here) if isinstance(here, dict) else list(range(len(here)))
            inner = [step for step in steps if isinstance(here[step], dict | list) and here[step]]
            if not inner or draw(st.booleans()):
                break
            here = here[draw(st.sampled_from(inner))]
        if isinstance(here, list):
            here.append(draw(anything))
        elif here and draw(st.booleans()):
            here.pop(draw(st.sampled_from(list(here))))
        else:
            here[draw(st.sampled_from([*FIELDS, *INNER, "odd"]))] = draw(anything)
    return document


def as_the_schema_sees(data: Any) -> Any:
    """What is left to the schema: a number that is not whole stays one even as 1.0."""
    if isinstance(data, dict):
        return {key: as_the_schema_sees(value) for key, value in data.items()}
    if isinstance(data, list):
        return [as_the_schema_sees(value) for value in data]
    return Decimal(str(data)) if isinstance(data, float) else data


VALIDATOR = Draft202012Validator(json.loads(schema_text()))


@settings(max_examples=400, deadline=None)
@given(documents())
def test_a_file_has_problems_exactly_where_the_schema_says_so(document: Any) -> None:
    text = yaml.safe_dump(document, sort_keys=False)
    reading = examine_text(text, "r.yaml")
    assert bool(reading.problems) == (not VALIDATOR.is_valid(as_the_schema_sees(document))), text
    for problem in reading.problems:
        assert problem.help and problem.span is not None and problem.span.source.text == text
    titles = [(str(problem.span), problem.title) for problem in reading.problems]
    assert len(set(titles)) == len(titles), "said twice"
    if not reading.problems:
        assert reading.file is not None and len(reading.file.rules) == len(document.get("rules") or [])


@settings(max_examples=200, deadline=None)
@given(documents())
def test_what_is_left_of_a_file_with_problems_is_sound(document: Any) -> None:
    """The partial file holds only parts that were written and have no problem: compiling it may not crash."""
    reading = examine_text(yaml.safe_dump(document, sort_keys=False))
    if reading.file is None:
        assert reading.problems
        return
    places = {label.span.start for problem in reading.problems for label in problem.labels}
    for rule in reading.file.rules:
        assert not any(rule.span.start <= place < rule.span.end for place in places)
    for test in reading.file.tests:
        assert test.source.span.start not in places


def test_the_schema_is_a_schema_and_each_of_its_keywords_has_words() -> None:
    data = json.loads(schema_text())
    Draft202012Validator.check_schema(data)
    keywords: set[str] = set()

    def walk(node: Any, names: bool = False) -> None:
        if isinstance(node, list):
            for each in node:
                walk(each)
        elif isinstance(node, dict):
            keywords.update(() if names else node)
            for key, value in node.items():
                if key not in ("examples", "const", "enum", "required", "dependentRequired"):
                    walk(value, names=not names and key in ("properties", "$defs"))

    walk(data)
    passive = {"$schema", "$defs", "$ref", "title", "description", "examples", "default", "properties", "items"}
    passive |= {"if", "then", "else", "propertyNames", "allOf"}
    assert keywords - passive == set(explain._EXPLAIN)


def test_every_field_has_a_description_for_editors() -> None:
    def lacking(node: Any, path: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        found = []
        for name, field in node.get("properties", {}).items():
            if "description" not in schema._inline_refs(field, json.loads(schema_text())["$defs"]):
                found.append(f"{path}.{name}")
            found += lacking(field, f"{path}.{name}")
        return found

    data = json.loads(schema_text())
    parts = {key: value for key, value in data.items() if key != "anyOf"}
    assert lacking(parts, "") == []
    assert [each for name in data["$defs"] for each in lacking(data["$defs"][name], name)] == []


@pytest.mark.parametrize("path", sorted(PACKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_editors_agree_with_us_about_the_packs(path: Path) -> None:
    """The schema line points at the schema, and plain YAML data is valid too: what an editor checks."""
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    assert (path.parent / first.removeprefix(prefix)).resolve() == Path(schema.__file__).with_name(
        "rules-v1.schema.json"
    )
    VALIDATOR.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


# ------------------------------------------------------------------------------------------------ files and bounds


@pytest.mark.parametrize(("name", "code"), [("missing.yaml", "RK620"), ("folder", "RK621"), ("nul\0.yaml", "RK622")])
def test_what_cannot_be_read_is_a_usage_error(name: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError) as caught:
        read(tmp_path / name)
    assert [each.code for each in caught.value.diagnostics] == [code]
    assert name.rstrip("\0.yaml") in str(caught.value)


def test_a_checkpoint_in_place_of_rules_is_said_shortly(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(
        (80).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}\0\0\0\0' * 9
    )
    with pytest.raises(InvalidRules) as caught:
        read(path)
    assert len(caught.value.diagnostics) == 1
    assert "checkpoint" in str(caught.value)


MANY = {
    "entries of a list": "keep:\n" + "".join(f"  - {{odd{number}: 1}}\n" for number in range(500)),
    "fields of the file": "".join(f"odd{number}: 1\n" for number in range(20_000)),
    "fields of a rule": "rules:\n  - id: r\n" + "".join(f"    odd{number}: 1\n" for number in range(20_000)),
    "fields of two rules": "rules:\n" + "  - {odd0: 1, odd1: 1}\n" * 99 + "  - {odd2: 1, odd3: 1}\n" * 400,
    "tests": "tests:\n" + "".join(f"  t.{number}: [[odd]]\n" for number in range(2_000)),
    "keys of a table": "tables:\n  t:\n" + "".join(f"    k{number}: [odd]\n" for number in range(2_000)),
    "a key again and again": "rules:\n  - id: r\n" + "    odd: 1\n" * 20_000,
}


@pytest.mark.parametrize("name", MANY)
def test_only_the_first_hundred_problems_are_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for no further: the words that are compared with known fields are counted."""
    compared: list[str] = []

    def find_close_name(word: str, known: Iterable[str]) -> str | None:
        compared.append(word)
        return None

    monkeypatch.setattr(wording, "find_close_name", find_close_name)
    monkeypatch.setattr(explain, "find_close_name", find_close_name)
    text = f"remapkit: 1\nname: t\n{MANY[name]}"
    problems = examine_text(text).problems
    assert len(problems) == yamlnodes.MAX_PROBLEMS + 1
    assert problems[-1].code == "RK029"
    assert len(compared) <= 3 * yamlnodes.MAX_PROBLEMS
    lines = [problem.span.line for problem in problems[:-1] if problem.span is not None]
    assert lines == sorted(lines) and lines[-1] <= 110, "the first of the file"


@pytest.mark.parametrize(
    ("rule", "help"),
    [
        (
            "{path: a, to: [b, c]}",
            "to write one tensor under several names use `copy`, to cut it `split`: `copy: [b, c]`",
        ),
        (
            "{path: a, ops: [{dequantize: {scale: s}}], to: b}",
            "`dequantize` is a field of the rule: write it beside `ops`",
        ),
        (
            "{path: a, split: {dim: 0, sizes: ['size(h)', 1], into: [b, c]}}",
            "size(k) is the size of dimension k, a plain number: size(0), size(1), size(-1) for the last",
        ),
    ],
)
def test_the_help_names_the_field_that_was_meant_and_nothing_follows(rule: str, help: str) -> None:
    with pytest.raises(InvalidRules) as caught:
        compile_rules(read_text(f"remapkit: 1\nname: x\nrules:\n  - {rule.replace('{', '{id: r, ', 1)}\n"))
    assert [problem.help for problem in caught.value.diagnostics] == [(help,)]


def test_an_unknown_version_is_the_only_problem_of_many() -> None:
    text = "remapkit: 2\nname: t\n" + "".join(f"odd{number}: 1\n" for number in range(500))
    assert [problem.code for problem in examine_text(text).problems] == ["RK025"]


def rules_text(count: int) -> str:
    rules = "".join(
        f"  - id: r{n}\n    path: 'enc.layers.{n}.{{part:a|b}}.{{rest:**}}'\n    to: 'enc.{n}.{{part}}.{{rest}}'\n"
        for n in range(count)
    )
    return f"remapkit: 1\nname: many\nrules:\n{rules}"


def test_twice_the_rules_are_twice_the_work(work: Callable[[Callable[[], object]], int]) -> None:
    read_text(rules_text(1))  # imports, once
    one, two = (work(lambda count=count: read_text(rules_text(count))) for count in (200, 400))
    assert two <= 2.1 * one


@pytest.mark.slow
def test_fifty_thousand_rules_are_read_and_half_a_million_are_refused() -> None:
    assert len(read_text(rules_text(50_000)).rules) == 50_000
    flood = "".join(f"- {{id: {n}, path: a, to: b}}\n" for n in range(300_000))
    assert [each.code for each in examine_text(f"remapkit: 1\nname: t\nrules:\n{flood}").problems] == ["RK012"]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("text", ["remapkit: 1\nname: t\nkeep: ['a']\n", "a: [", "- " * 500, ""])
def test_the_search_for_cycles_goes_on_as_before(text: str, enabled: bool) -> None:
    try:
        if not enabled:
            gc.disable()
        examine_text(text)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_neither_jsonschema_nor_yaml_is_imported_before_a_file_is_read() -> None:
    code = "import sys, remapkit.rules; print(sorted({'jsonschema', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKS.parent)
    assert done.stdout == "[]\n"
