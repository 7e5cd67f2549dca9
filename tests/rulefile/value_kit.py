"""Valid rule files that together use every field of the schema, and any value in the place of any of theirs."""

# ruff: noqa: E501 - tables of values, one line each

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.authoring.invert import invert
from remapkit.diagnostics.diagnostic import Diagnostic, render, to_github, to_json
from remapkit.diagnostics.errors import RemapkitError
from remapkit.plans.make import make_plan
from remapkit.proofs.model import Proof
from remapkit.proofs.prover import prove
from remapkit.rulefile.read import read_text
from remapkit.rules.selftest import run_tests
from remapkit.tensors.spec import StateDictSpec, TensorSpec


@dataclass(frozen=True)
class Raw:
    """A value as it is written in YAML, whatever YAML makes of it."""

    text: str


def written(value: Any) -> str:
    """A value as YAML in one line; pairs stand for a mapping, so that a key can be there twice."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if isinstance(value, tuple):
        return "{" + ", ".join(f"{written(key)}: {written(each)}" for key, each in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def rule_file(document: Mapping[str, Any] | tuple[Any, ...]) -> str:
    """A document as the text of a rule file, a line for each of its fields."""
    pairs = document.items() if isinstance(document, Mapping) else document
    return "".join(f"{written(key)}: {written(value)}\n" for key, value in pairs)


def rules(*entries: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {"remapkit": 1, "name": "t", **fields, "rules": list(entries)}


def op(*ops: Any, **fields: Any) -> dict[str, Any]:
    return rules({"id": "r", "path": "a.{n:int}", "ops": list(ops), "to": "b.{n}"}, **fields)


PARAMS = {"h": 2, "d": {"value": "2*h", "config": "head_dim"}, "k": {"config": "kv", "note": "x"}}
DOCUMENTS: tuple[dict[str, Any], ...] = (
    rules(
        {
            "id": "r",
            "path": "a.{n:int}.{x}.{leaf}",
            "where": {"n": "0..3", "x": ["p", "q"]},
            "leaf": ["weight", "bias"],
            "to": "b.{n+1}.{x|t}.{leaf}",
            "note": "a remark",
        },
        {"id": "f", "match": r"c\.(?P<n>\d+)\.(?P<y>[a-z]+)", "to": "d.{n}", "forget": ["y"]},
        summary="what it does",
        tables={"t": {"p": "one", "q": "two"}},
        keep=["norm.{r:**}", {"path": "k.{x}", "where": {"x": ["u", "v"]}}],
        drop=[{"match": "mask\\..*", "note": "x"}],
        unmatched="error",
        tests={"a.0.p.weight": "b.1.one.weight", "mask.0": None},
    ),
    rules(
        {"id": "r", "path": "a.{x:t}", "to": "b.{x|t}"},
        tables={"t": {"lossy": True, "entries": {"p": "one", "q": "one"}}},
        source={"keys": "none.json", "domain": ["a.{x}"]},
        target={"model": "wan.vae:WanVAE", "args": {"z_dim": 4, "more": [1, None]}, "keys": "none.json"},
        unmatched="drop",
    ),
    rules(
        {
            "id": "c",
            "concat": {
                "dim": 0,
                "from": [{"path": "a.{n:int}", "ops": ["transpose"]}, {"path": "b.{n:int}", "where": {"n": "0..9"}}],
                "sizes": [2, "h"],
            },
            "ops": [{"cast": "F32"}],
            "to": "c.{n}",
        },
        {"id": "s", "path": "e.{i:int}.w", "stack": {"dim": 0, "by": "i", "count": "h"}, "to": "e.w"},
        {"id": "u", "path": "f.w", "unstack": {"dim": -1, "by": "i", "count": 2}, "to": "f.{i}"},
        params=PARAMS,
    ),
    rules(
        {
            "id": "p",
            "path": "q.{n:0..1}",
            "split": {"dim": 0, "sizes": [1, "h"], "into": ["x.{n}", {"to": "y.{n}", "ops": ["flip_halves"]}]},
        },
        {"id": "y", "path": "g.{leaf}", "leaf": ["w"], "copy": ["g1.{leaf}", "g2.{leaf}"]},
        {"id": "t", "path": "m.{leaf}", "tie": ["m1.{leaf}", {"to": "m2.{leaf}", "ops": [{"add": 1}]}]},
        params={"h": 2},
        add=[
            {"to": "z.{i}", "fill": "zeros", "shape": [2, "h"], "dtype": "F32", "each": {"i": "0..1"}},
            {"to": "o", "fill": 0.5, "shape": [], "dtype": "BF16", "note": "x"},
            {"to": "v.{s}", "fill": "tril", "shape": [2, 2], "dtype": "I64", "each": {"s": ["a", "b"]}},
        ],
        tests={"g.w": ["g1.w", "g2.w"]},
    ),
    op("transpose", {"transpose": [0, 1]}, {"permute": [1, 0]}, {"reshape": [4, 1]}),
    op({"reshape": {"from": [2, 2], "to": [-1, "h"]}}, {"unsqueeze": 0}, {"squeeze": [0]}, params={"h": 2}),
    op({"slice": {"dim": 0, "start": 0, "stop": "h"}}, {"pad": {"dim": -1, "to": 4, "value": 1.5}}, params={"h": 2}),
    op({"rope": {"to": "half", "heads": "h", "head_dim": 2, "dim": 0}}, "flip_halves", params={"h": 1}),
    op({"rope": {"to": "interleaved", "heads": 1, "head_dim": "d"}}, {"flip_halves": {"dim": 0}}, params=PARAMS),
    op({"ungroup_qkv": {"heads": "h", "kv_heads": "k", "head_dim": 1, "dim": 0}}, params=PARAMS),
    op({"group_qkv": {"heads": "h//1", "kv_heads": 1, "head_dim": "d - 3"}}, params=PARAMS),
    op(
        "flip",
        {"flip": {"dim": 0}},
        {"roll": {"dim": 0, "by": "h"}},
        {"index": {"dim": 0, "order": [1, 0]}},
        params={"h": 1},
    ),
    rules(
        {"id": "m", "path": "a.{n:int}.w", "multiply": {"by": "a.{n:int}.s"}, "to": "a.{n}"},
        {
            "id": "d",
            "path": "b.{n:int}.w",
            "divide": {"by": {"path": "b.{n:int}.s", "ops": [{"unsqueeze": 0}]}},
            "to": "b.{n}",
        },
        {
            "id": "q",
            "path": "c.{n:int}.w",
            "dequantize": {"scale": "c.{n:int}.s", "block": [2, "h"], "to": "BF16"},
            "to": "c.{n}",
        },
        params={"h": 2},
    ),
    op({"rearrange": "a -> a 1"}, {"rearrange": {"pattern": "(a h) 1 -> h a", "h": "h"}}, params={"h": 2}),
    op({"cast": {"from": "F32", "to": "BF16"}}, {"cast": "F32"}, {"scale": 0.5}, {"scale": 2}, {"add": -1.5}),
)

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**6, 2**31, 2**63, -(2**63), 2**64, 10**19, 10**300, -(10**400),
    0.5, -0.0, 1e-320, 1.5e300, Raw("1e400"), Raw("9" * 5000), Raw("-" + "1" * 200), Raw("1e99999999999999999999"), Raw("1" + "0" * 5000 + ".5"), Raw("-1e999"), Raw(".inf"), Raw("-.inf"), Raw(".nan"), Raw("NaN"),
    Raw("0x10"), Raw("0b1"), Raw("0o7"), Raw("1_000"), Raw("1:30"), Raw("2001-01-01"), Raw("1e5"), Raw("~"), Raw(""),
    "", " ", "a", "h", "d", "k", "zz", "n", "i", "0", "1", "-1", "0.5", "1e3", "nan", "inf", "true", "null", "half", "interleaved",
    "F32", "BF16", "F8_E4M3", "F4", "BOOL", "C64", "zeros", "tril", "arange", "equal", "transpose", "reshape", "scale",
    "h*h", "h//0", "h%0", "1//2", "-h", "2**3", "h+", "(((h)))", "h" * 500, "9" * 30, "1+" * 400 + "1", "(" * 900 + "1" + ")" * 900,
    "{n}", "{n+1}", "{n*10000000}", "{n//0}", "{n%0}", "{n-5}", "{x|t}", "{r:**}", "{n:int}", "{n:0..5}", "{n:5..0}", "{", "}", "{}", "{{n}}",
    "0..3", "3..0", "0..", "..", "0..99999999999999999999", "a.{n:int}", "b.{n}", "a.{n}.{n}", "a..b", ".", "*", "{*}", "**",
    r"(?P<n>\d+)", r"(?P<n>.*)(?P<m>.*)", "(", "[", "a{1,1000}", "(?i)a", r"\d{0}", "a|b", "^a$", r"(?P<x>a)*", "\\",
    "é", "日本", "\U0001f600", "\u202e", "\u0000", "\n", "a\nb", "\x1b[31m", "\ud800", "%0A::error::x", "١", "²", "x" * 400,
    [], [[]], [None], [0], [0, 0], [0, 1], [1, 0], [-1, -1], [0, 1, 2], [2, 2], ["a", "a"], ["a"], [""], [True], [0.5], [{}], ["h", 2], [10**30],
    ["transpose"], [{"scale": 2}], ["a.{n:int}", "b.{n:int}"], [["a"]], list(range(50)),
    {}, {"a": "b"}, {"to": "b"}, {"path": "a"}, {"match": "a"}, {"dim": 0}, {"by": "n"}, {"value": 1}, {"config": "x"}, {"a": {"b": {"c": []}}},
    {"scale": None}, {"cast": "F32"}, {"reshape": []}, {"by": 0.5}, {"factor": "h"}, {"lossy": True, "entries": {}}, {"entries": 1}, {"": ""},
    (("a", 1), ("a", 2)),
)  # fmt: skip

Path = tuple[int | str, ...]


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """The way to every node below a document."""
    steps: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, each in steps:
        yield (*path, step)
        yield from places(each, (*path, step))


def changed(document: Mapping[str, Any], path: Path, change: Callable[[Any, Any], None]) -> dict[str, Any]:
    """A copy in which `change(parent, last step)` was done."""
    made = copy.deepcopy(dict(document))
    parent: Any = made
    for step in path[:-1]:
        parent = parent[step]
    change(parent, path[-1])
    return made


def with_value(document: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    def change(parent: Any, step: Any) -> None:
        parent[step] = value

    return changed(document, path, change)


def without(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    def change(parent: Any, step: Any) -> None:
        del parent[step]

    return changed(document, path, change)


def twice(document: Mapping[str, Any], path: Path) -> str:
    """The text with one node there twice."""
    if len(path) == 1:
        return rule_file((*document.items(), (path[0], document[str(path[0])])))

    def change(parent: Any, step: Any) -> None:
        if isinstance(parent, list):
            parent.insert(step, copy.deepcopy(parent[step]))
        else:
            pairs = (*parent.items(), (step, parent[step]))
            parent.clear()
            parent[_PAIRS] = pairs

    return rule_file(_paired(changed(document, path, change)))


_PAIRS = "\0pairs"


def _paired(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(value[_PAIRS]) if _PAIRS in value else {key: _paired(each) for key, each in value.items()}
    return [_paired(each) for each in value] if isinstance(value, list) else value


def with_key(document: Mapping[str, Any], path: Path, key: Any) -> str | None:
    """The text with another key in the place of one, None where the node has none."""
    parent: Any = document
    for step in path[:-1]:
        parent = parent[step]
    if not isinstance(parent, dict) or not isinstance(key, str | int | float | bool | Raw | None):
        return None
    pairs = tuple((key if each == path[-1] else each, value) for each, value in parent.items())
    return rule_file(pairs if len(path) == 1 else with_value(document, path[:-1], pairs))


def every(first: int = 0, step: int = 1) -> Iterator[str]:
    """Every value in the place of every node and key, each node missing, and each one twice; or one in `step`."""
    return (text for make in itertools.islice(_ways(), first, None, step) if (text := make()) is not None)


def _ways() -> Iterator[Callable[[], str | None]]:
    for document in DOCUMENTS:
        for path in places(document):
            yield partial(_without, document, path)
            yield partial(twice, document, path)
            for value in VALUES:
                yield partial(_with_value, document, path, value)
                yield partial(with_key, document, path, value)


def _without(document: Mapping[str, Any], path: Path) -> str:
    return rule_file(without(document, path))


def _with_value(document: Mapping[str, Any], path: Path, value: Any) -> str:
    return rule_file(with_value(document, path, value))


def some(seed: int) -> str:
    """A rule file with one to three changes, drawn by a seed."""
    draw = random.Random(seed)
    document: Any = draw.choice(DOCUMENTS)
    for _ in range(draw.choice((1, 1, 2, 3))):
        path = draw.choice(list(places(document)) or [("name",)])
        what = draw.randrange(8)
        document = without(document, path) if what == 0 else with_value(document, path, _any_value(draw, document))
    if not document:
        return "{}"
    path = draw.choice(list(places(document)))
    what = draw.randrange(8)
    if what == 0:
        return twice(document, path)
    if what == 1:
        return with_key(document, path, draw.choice(VALUES)) or rule_file(document)
    return rule_file(document)


def _any_value(draw: random.Random, document: Any) -> Any:
    """One of the values, a stretch of another document, or values within one another."""
    what = draw.randrange(6)
    if what < 3:
        return draw.choice(VALUES)
    if what == 3:
        value: Any = draw.choice((*DOCUMENTS, document))
        for step in draw.choice(list(places(value)) or [()]):
            value = value[step]
        return copy.deepcopy(value)
    if what == 4:
        return [_any_value(draw, document) for _ in range(draw.randrange(3))]
    return {draw.choice(("to", "path", "dim", "by", "value", "a", "scale")): _any_value(draw, document)}


# ------------------------------------------------------------------------------------------- what is done with each

KEYS = (
    "a.0", "a.1", "a.0.p.weight", "a.1.q.bias", "a.p", "a.q", "b.0", "b.1", "b.13", "c.7.zz", "e.0.w", "e.1.w", "f.w", "q.0", "q.1",
    "g.w", "m.w", "norm.x.y", "k.u", "mask.0", "a", "",
)  # fmt: skip
HEADER = StateDictSpec(
    {fqn: TensorSpec("F32", ((2, 2), (), (4,), (3, 2), (0, 2))[n % 5]) for n, fqn in enumerate(KEYS) if fqn}, name="x"
)


class Fault(AssertionError):
    """What must never come of a rule file."""


def judged(text: str) -> str:
    """Everything that can be done with a rule file; `ok`, or the code of what refused it.

    Raises `Fault` for a message without a place, and lets through whatever is no `RemapkitError`.
    """
    try:
        compiled = compile_rules(read_text(text, "f.yaml"))
    except RemapkitError as error:
        _looked_at(error.diagnostics, placed=True)
        return error.diagnostics[0].code
    proof = prove(compiled)
    _looked_at(proof.findings, placed=False)
    _inverted(compiled, proof)
    for do in (_tested, _explained, _planned):
        do(compiled)
    return "ok"


def _inverted(compiled: RuleSet, proof: Proof) -> None:
    try:
        back = invert(compiled, proof=proof)
    except RemapkitError as error:
        _looked_at(error.diagnostics, placed=True)
        return
    read_text(back, "inverse.yaml")


def _tested(compiled: RuleSet) -> None:
    _looked_at(run_tests(compiled).problems, placed=True)


def _explained(compiled: RuleSet) -> None:
    for fqn in KEYS:
        compiled.match(fqn)
        for rule in (*compiled.rules, *compiled.keep, *compiled.drop):
            rule.find_stop(fqn)


def _planned(compiled: RuleSet) -> None:
    plan = make_plan(compiled, HEADER)
    _looked_at((*plan.problems, *plan.warnings), placed=False)


def _looked_at(diagnostics: tuple[Diagnostic, ...], *, placed: bool) -> None:
    for each in diagnostics:
        if placed and each.span is None and each.place is None and each.code not in ("RK029",):
            raise Fault(f"without a place: {each}")
        render(each)
        to_github(each)
        json.dumps(to_json(each), default=str)
