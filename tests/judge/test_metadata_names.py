"""Metadata that quotes keys or modules which the rules change is rewritten with them, or reported.

Kinds: names as keys and as values, whole modules and ends of paths, renamed, split, joined and dropped, entries that
are no JSON, routes, and names of a thousand segments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import pytest
from judge_kit import rules_of

from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move, RuleRef
from remapkit.plans.stale_metadata import report_metadata, rewrite_metadata
from remapkit.rules.chain import chain_rules
from remapkit.tensors.spec import StateDictSpec, TensorSpec

RULES = """
rules:
  - {id: r, path: 'a.q.{x}', to: 'a.query.{x}'}
  - {id: s, path: 'a.qkv.{x}', split: {dim: 0, into: ['a.to_q.{x}', 'a.to_k.{x}']}}
  - {id: c, concat: {dim: 0, from: ['j.k.weight', 'j.v.weight']}, to: 'j.kv.weight'}
  - {id: e, path: 'layers.{i:int}.q.{x}', to: 'blocks.{i}.query.{x}'}
  - {id: z, path: 'm.z.weight', to: 'n.z.weight'}
  - {id: y, path: 'm.z.bias', to: 'n.y.bias'}
  - {id: u, path: 'm.y.u.weight', to: 'n.weight.1'}
  - {id: o, path: 'layers.{i:int}.o.{x}', to: 'blocks.{i}.out.0.{x}'}
keep: ['b.{rest:**}']
drop: ['c.{rest:**}']
"""
SPEC = TensorSpec("F8_E4M3", (2, 2))
HEADER = dict.fromkeys(
    [
        *("a.q.weight", "a.qkv.weight", "b.k.weight", "c.v.weight", "j.k.weight", "j.v.weight"),
        *("m.z.weight", "m.z.bias", "m.y.u.weight"),
        *(f"layers.{number}.{leaf}.weight" for number in (0, 1) for leaf in ("q", "o")),
    ],
    SPEC,
)
QUANT, LORA = "_quantization_metadata", "lora_adapter_metadata"


def plan_with(metadata: Mapping[str, str], rules: str = RULES) -> ResolvedPlan:
    return make_plan(rules_of(rules), StateDictSpec(HEADER, metadata=metadata))


def said(plan: ResolvedPlan, code: str) -> list[str]:
    return [name for each in plan.warnings if each.code == code for name in each.values["names"]]


# Entries that are rewritten; what is not quoted as a name stays as it is, byte for byte.
REWRITTEN = {
    "layers": (QUANT, '{"layers": {"a.q": {"format": "float8_e4m3fn", "n":1.50e-3}}}', {"a.q": "a.query"}),
    "kept": (QUANT, '{"layers":{"b.k":{}}}', {}),
    "dropped": (QUANT, '{"layers": {"b.k": {},"c.v": {}}}', '{"layers": {"b.k": {}}}'),
    "all dropped": (QUANT, '{"layers": {"c.v": {}}}', '{"layers": {}}'),
    "split": (QUANT, '{"layers": {"a.qkv": {"x": 1}}}', '{"layers": {"a.to_q": {"x": 1}, "a.to_k": {"x": 1}}}'),
    "compact": (QUANT, '{"layers":{"a.qkv":1}}', '{"layers":{"a.to_q":1,"a.to_k":1}}'),
    "joined": (QUANT, '{"layers": {"j.k": {"x": [1]}, "j.v": {"x":[1]}}}', '{"layers": {"j.kv": {"x": [1]}}}'),
    "fields are no names": (QUANT, '{"layers": {"x": "layers.0.q"}, "a.q": 2, "y": ["a.q"]}', {}),
    "A34-lora": (LORA, '{"transformer.r": 4, "transformer.target_modules": ["a.q", "none"]}', {"a.q": "a.query"}),
    "an end": (LORA, '{"target_modules": ["q", "o"]}', '{"target_modules": ["query", "out.0"]}'),
    "an expression for a name": (LORA, r'{"rank_pattern": {"0\\.o": 8}}', r'{"rank_pattern": {"0\\.out\\.0": 8}}'),
    "whole": ("x", '["a.q.weight", "q", "A.q"]', {"a.q.weight": "a.query.weight"}),
    "a list gets all": ("x", '[ "a.qkv.weight",\n "b.k" ]', '[ "a.to_q.weight",\n "a.to_k.weight",\n "b.k" ]'),
    "one in a list": ("x", '{"x": ["a.qkv"]}', '{"x": ["a.to_q", "a.to_k"]}'),
    "joined in a list": ("x", '["j.k", "é", "j.v"]', '["j.kv", "é"]'),
    "a value": ("x", '{"main": "a.q", "\\u00e9": 1.0}', {"a.q": "a.query"}),
    "a key and its value": ("x", '{"a.q": {"of": "a.q.weight"}}', '{"a.query": {"of": "a.query.weight"}}'),
    "an inner module": ("x", '["layers.1"]', '["blocks.1"]'),
    "no names": ("x", '{"a": [true, null, 1e400, "é"], "a": {}}', {}),
    "no JSON": ("x", '{"a.q"', {}),
    "deep, no JSON": ("x", "[" * 5000, {}),
    "plain text": ("x", "a.q.weight", {}),
    "its own spaces": ("x", '["a.q",  "a.qkv",\t"n",7]', '["a.query",  "a.to_q",  "a.to_k",\t"n",7]'),
    "a text": ("x", '"a.q.weight"', {"a.q.weight": "a.query.weight"}),
    "twice": ("x", '["a.q", "a.query", "a.q"]', '["a.query", "a.query"]'),
    "spaces": ("x", '\n { "a.q" : 1 }\n', {"a.q": "a.query"}),
}


@pytest.mark.parametrize(("entry", "text", "new"), list(REWRITTEN.values()), ids=list(REWRITTEN))
def test_names_are_rewritten_and_nothing_else(entry: str, text: str, new: str | Mapping[str, str]) -> None:
    wanted = new if isinstance(new, str) else text
    for old, name in new.items() if not isinstance(new, str) else ():
        wanted = wanted.replace(json.dumps(old), json.dumps(name))
    plan = plan_with({entry: text, "format": "pt"})
    assert plan.ok and said(plan, "RK369") == []
    assert plan.target.metadata[entry] == wanted
    assert bool(said(plan, "RK740")) == (wanted != text)


@pytest.mark.parametrize(
    ("metadata", "names", "why"),
    [
        ({QUANT: '{"layers": {"j.k": {"x": 1}, "j.v": {"x": 1.0}}}'}, ["j.k", "j.v"], "with different values"),
        ({QUANT: '{"layers": {"a.q": 1, "a.query": 2}}'}, ["a.q", "a.query"], "with different values"),
        ({"x": '{"main": "a.qkv.weight"}'}, ["a.qkv.weight"], "2 names in a place for one"),
        ({"x": '{"main": "c.v"}'}, ["c.v"], "dropped"),
        ({"x": '{"main": "layers"}'}, ["layers"], "only the same word"),
        ({LORA: '{"target_modules": ".*\\\\.q"}'}, [".*\\.q"], "a pattern"),
        ({LORA: '{"target_modules": ["k"]}'}, ["k"], "no end of a path"),
        ({"x": '["a.q", "m.z"]'}, ["m.z"], "several modules"),
        ({"x": '["m.y"]'}, ["m.y"], "others too"),
        ({"x": "[" * 120 + '"a.q"' + "]" * 120}, ["..."], "nested deeper"),
        ({"x": '{"a.q": 1}', "y": '{"a.qkv": "a.qkv"}'}, ["a.qkv"], "a place for one"),
    ],
)
def test_names_that_would_be_gone_are_reported(metadata: dict[str, str], names: list[str], why: str) -> None:
    """An entry with one name that cannot be rewritten stays as it is, with all its names."""
    plan = plan_with(metadata)
    assert said(plan, "RK369") == names and plan.ok
    (found,) = [each for each in plan.warnings if each.code == "RK369"]
    assert why in found.notes[0]
    entry = found.values["entry"]
    assert plan.target.metadata[entry] == metadata[entry]


def test_an_entry_that_speaks_of_another_dtype_is_reported() -> None:
    """A layer that is no longer quantized is not quantized under its new name either."""
    rules = "rules: [{id: r, path: 'a.q.{x}', ops: [{cast: BF16}], to: 'a.query.{x}'}]\nunmatched: keep"
    found = [
        each
        for each in plan_with({QUANT: '{"layers": {"a.q": {}, "b.k": {}}}'}, rules).warnings
        if each.code == "RK369"
    ]
    assert [each.values["names"] for each in found] == [["a.q"]] and "becomes BF16" in found[0].notes[0]
    assert said(plan_with({QUANT: '{"layers": {"b.k": {}}}'}, rules), "RK369") == []


def test_a_route_rewrites_the_names_of_the_source_once() -> None:
    """What the first part splits and the second joins again has its one entry; a drop at the end removes it."""
    first = "rules: [{id: s, path: 'a.qkv.{x}', split: {dim: 0, into: ['m.q.{x}', 'm.k.{x}']}}]\nunmatched: keep"
    second = """
rules: [{id: c, concat: {dim: 0, from: ['m.k.weight', 'm.q.weight']}, to: 'n.kq.weight'}]
keep: ['a.{rest:**}', 'j.{rest:**}', 'm.y.{rest:**}', 'm.z.{rest:**}', 'layers.{rest:**}']
drop: ['b.{rest:**}', 'c.{rest:**}']
"""
    text = '{"layers": {"a.qkv": 1, "b.k": 2, "a.q": 3}}'
    plan = make_plan(chain_rules(rules_of(first), rules_of(second)), StateDictSpec(HEADER, metadata={QUANT: text}))
    assert plan.ok, plan.problems
    assert plan.target.metadata[QUANT] == '{"layers": {"n.kq": 1, "a.q": 3}}'
    notes = [each for each in plan.warnings if each.code == "RK740"]
    assert [each.values["names"] for each in notes] == [{"a.qkv": ["n.kq"], "b.k": []}]


def lora_moves(*moves: tuple[Sequence[str], str, Sequence[int]]) -> tuple[StateDictSpec, list[Move]]:
    header = {fqn: TensorSpec("F32", (4, 8)) for sources, _, _ in moves for fqn in sources}
    text = json.dumps({"transformer.r": 4, "transformer.target_modules": ["q", "k"]})
    made = [Move(new, tuple(old), (), RuleRef("r"), TensorSpec("F32", tuple(shape))) for old, new, shape in moves]
    return StateDictSpec(header, metadata={LORA: text}), made


def test_numbers_of_a_joined_adapter_are_never_kept_in_silence() -> None:
    """`r` and `lora_alpha` follow from no name: a change of them is a warning, or written by who knows it."""
    down = [f"transformer.a.{name}.lora_A.weight" for name in "qk"]
    source, moves = lora_moves((down, "transformer.a.qk.lora_A.weight", [8, 8]))
    (found,) = report_metadata(source, moves)
    assert found.code == "RK741" and "LoRA rank 8, from 4" in found.notes[0]
    assert rewrite_metadata(source, moves).metadata == source.metadata
    settled = {LORA: '{"transformer.r": 8}'}
    assert report_metadata(source, moves, settled) == []
    assert rewrite_metadata(source, moves, settled).metadata == settled
    source, moves = lora_moves(*(([fqn], fqn.replace(".a.", ".b."), [4, 8]) for fqn in down))
    assert report_metadata(source, moves) == [], "the ends are the same"


def test_an_adapter_that_leaves_its_model_is_reported() -> None:
    old, new = "transformer.a.q.lora_A.weight", "diffusion_model.a.q.lora_A.weight"
    source, moves = lora_moves(([old], new, [4, 8]))
    (found,) = report_metadata(source, moves)
    assert found.code == "RK369" and "no longer below transformer" in found.notes[0]


def test_a_module_of_an_adapter_is_found_whatever_lies_behind_it() -> None:
    old, new = "transformer.a.q.lora_A.default.weight", "transformer.b.c.query.lora_A.weight"
    source, moves = lora_moves(([old], new, [4, 8]))
    text = json.loads(rewrite_metadata(source, moves).metadata[LORA])
    assert text == {"transformer.r": 4, "transformer.target_modules": ["c.query", "k"]}


# ------------------------------------------------------------------------------------------------ cost


def test_a_name_of_a_thousand_segments_costs_no_more_than_its_length(
    work: Callable[[Callable[[], object]], int],
) -> None:
    """All stretches of such a name are half a million; none is made."""

    def cost(segments: int) -> int:
        name = ".".join(["s"] * segments)
        quoted = {"ignore": json.dumps({"ignore": ["q", name], "x": [name]})}
        header = StateDictSpec({**HEADER, name: SPEC}, metadata=quoted)
        plan = make_plan(rules_of(RULES + "\nunmatched: keep"), header)
        return work(lambda: report_metadata(header, plan.moves))

    assert cost(1000) <= 2 * cost(30)


@pytest.mark.parametrize("entry", [QUANT, LORA, "x"])
def test_many_names_cost_what_they_are(entry: str, work: Callable[[Callable[[], object]], int]) -> None:
    """Twice the layers cost about twice as much, wherever the names lie."""

    def cost(count: int) -> int:
        old = [f"layers.{number}.a.q" for number in range(count)]
        spec = TensorSpec("F32", (1,))
        moves = [Move(f"n{each}.weight", (f"{each}.weight",), (), RuleRef("r"), spec) for each in old]
        fields = {QUANT: {"layers": dict.fromkeys(old, 1)}, LORA: {"target_modules": old}}
        text = json.dumps(fields.get(entry, {"layer": [*old, *(f"layers.{number}" for number in range(count))]}))
        header = StateDictSpec({f"{each}.weight": spec for each in old}, metadata={entry: text})
        assert "nlayers.7.a.q" in rewrite_metadata(header, moves).metadata[entry]
        return work(lambda: report_metadata(header, moves))

    assert cost(2000) <= 2.2 * cost(1000)
