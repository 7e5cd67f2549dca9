"""Lists of numbers, of which a capture selects one: sizes by layer, and offsets by pipeline stage."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.diagnostics.errors import FailedCheck, InvalidRules
from remapkit.proofs.model import Level

HEAD = "remapkit: 1\nname: t\n"
QKV = HEAD + (
    "params:\n"
    "  dim: 2\n"
    "  heads: {config: num_query_heads}\n"
    "  kv: {config: num_kv_heads}\n"
    "rules:\n"
    "  - id: qkv\n"
    "    path: 'layers.{i:RANGE}.qkv.weight'\n"
    "    split:\n"
    "      dim: 0\n"
    "      sizes: ['dim*heads[i]', 'dim*kv[i]', 'dim*kv[i]']\n"
    "      into: ['TO.q', 'TO.k', 'TO.v']\n"
)
"""OpenELM: the fused projection has other sizes in every layer."""


def write_qkv(bounds: str = "int", to: str = "l.{i}") -> str:
    return QKV.replace("RANGE", bounds).replace("TO", to)


@settings(max_examples=60, deadline=None)
@given(
    kv=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    share=st.integers(1, 3),
    form=st.sampled_from((("int", "{i}"), ("0..9", "{i+3}"), ("0..9", "{9-i}"), ("0..9", "{i}"))),
)
def test_one_rule_splits_every_layer_by_its_own_numbers(kv: list[int], share: int, form: tuple[str, str]) -> None:
    """By value, there and back, against torch."""
    bounds, field = form
    heads = [share * each for each in kv]
    rules = remapkit.loads(write_qkv(bounds, f"l.{field}"), config={"num_query_heads": heads, "num_kv_heads": kv})
    values = {
        f"layers.{i}.qkv.weight": torch.arange(2.0 * (heads[i] + 2 * kv[i]) * 3).reshape(-1, 3)
        for i in range(len(kv))
    }
    wanted = {}
    for i, value in enumerate(values.values()):
        number = eval(field[1:-1], {"__builtins__": {}}, {"i": i})
        for name, part in zip("qkv", value.split([2 * heads[i], 2 * kv[i], 2 * kv[i]]), strict=True):
            wanted[f"l.{number}.{name}"] = part
    made = rules(values)
    assert made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in wanted)
    back = rules.inverse()(made)
    assert back.keys() == values.keys() and all(torch.equal(back[name], values[name]) for name in values)


@settings(max_examples=150, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), wrong=st.integers(0, 3))
def test_layers_of_pipeline_stages_are_counted_on(counts: list[int], wrong: int) -> None:
    """Each stage counts from 0; a proof finds the offsets with which two layers would become one."""
    offsets = [sum(counts[:stage]) for stage in range(len(counts))]
    rule = "  - {{id: s{0}, path: 'pp{{s:{0}..{0}}}.layers.{{i:0..{1}}}.w', to: 'layers.{{i+offset[s]}}.w'}}\n"
    text = HEAD + "params: {offset: [99]}\nrules:\n"
    text += "".join(rule.format(stage, count - 1) for stage, count in enumerate(counts))
    rules = remapkit.loads(text, params={"offset": offsets})
    keys = {f"pp{stage}.layers.{i}.w": (stage, i) for stage, count in enumerate(counts) for i in range(count)}
    assert rules(keys) == {f"layers.{offsets[stage] + i}.w": (stage, i) for stage, i in keys.values()}
    assert rules.prove().level is Level.ALL
    assert rules.inverse()(rules(keys)) == keys
    moved = [max(0, each - wrong) for each in offsets]
    taken = [moved[stage] + i for stage, count in enumerate(counts) for i in range(count)]
    proof = remapkit.loads(text, params={"offset": moved}).prove()
    assert (proof.level is Level.ALL) == (len(set(taken)) == len(taken))


def test_one_rule_for_all_stages() -> None:
    text = HEAD + (
        "params: {offset: [0, 3]}\n"
        "source: {domain: ['pp0.layers.{i:0..2}.w', 'pp1.layers.{i:0..4}.w']}\n"
        "rules: [{id: r, path: 'pp{s:0..1}.layers.{i:0..4}.w', to: 'layers.{i+offset[s]}.w'}]\n"
    )
    rules = remapkit.loads(text)
    assert [rules.match(f"pp{s}.layers.{i}.w")[0].target for s, i in ((0, 2), (1, 0), (1, 4))] == [
        "layers.2.w",
        "layers.3.w",
        "layers.7.w",
    ]
    assert rules.prove().level is Level.DOMAIN


@pytest.mark.parametrize("bounds", ["int", "0..5"])
def test_an_index_beyond_the_list_names_the_list_and_the_key(bounds: str) -> None:
    rules = remapkit.loads(write_qkv(bounds), params={"heads": [2, 2], "kv": [1, 1]})
    header = {f"layers.{i}.qkv.weight": remapkit.TensorSpec("F32", (8, 3)) for i in range(5)}
    (problem,) = rules.plan(header).problems
    assert (problem.code, problem.title) == ("RK341", "qkv: heads has 2 numbers, so there is no heads[2]")
    assert problem.notes == ("layers.2.qkv.weight\nlayers.3.qkv.weight\nlayers.4.qkv.weight",)


def test_an_index_of_five_thousand_digits_is_beyond_every_list() -> None:
    rules = remapkit.loads(write_qkv(), params={"heads": [2], "kv": [1]})
    key = f"layers.{'9' * 5000}.qkv.weight"
    (problem,) = rules.plan({key: remapkit.TensorSpec("F32", (8, 3))}).problems
    assert problem.code == "RK341" and "heads has 1 number, so there is no heads[" in problem.title


@pytest.mark.parametrize(
    ("rule", "code", "said"),
    [
        ("path: 'a.{i:0..2}', to: 'b.{i+k[i]}'", "RK155", "k has 2 numbers, so there is no k[2] for i = 2"),
        ("path: 'a.{i:0..2}', to: 'b.{i+k}'", "RK155", "k is a list of 2 numbers, used without an index for i = 0"),
        ("path: 'a.{i:0..k}', to: 'b.{i}'", "RK135", "k is a list of 2 numbers, used without an index"),
        ("path: 'a.{i:0..n[0]}', to: 'b.{i}'", "RK135", "n is the number 4, used with an index"),
        ("path: 'a.{i:0..k[2]}', to: 'b.{i}'", "RK135", "k has 2 numbers, so there is no k[2]"),
        ("path: 'a.{i:int}', to: 'b.{k[i]}'", "RK154", "arithmetic needs a bounded integer"),
        ("path: 'a.{i:0..1}', to: 'b.{i[0]}'", "RK151", "'i' is a capture, so it has no index"),
        ("path: 'a.{i:0..1}', to: 'b.{k[i}'", "RK150", "'[' is never closed"),
        ("path: 'a.{i:0..1}', to: 'b.{k(i]}'", "RK150", "unexpected '('"),
        (
            "path: 'a.{r}', ops: [{reshape: ['k[r]', -1]}], to: 'b.{r}'",
            "RK162",
            "'r' may be other text than an integer",
        ),
        (
            "path: 'a.{e:int}', stack: {dim: 0, by: e}, ops: [{reshape: ['k[e]', -1]}], to: b",
            "RK162",
            "'e' is counted",
        ),
        ("path: 'a.{i:int}', ops: [{reshape: ['k[j]', -1]}], to: 'b.{i}'", "RK162", "there is no param 'j'"),
    ],
)
def test_what_is_said_of_a_wrong_list(rule: str, code: str, said: str) -> None:
    with pytest.raises(InvalidRules, match=re.escape(said)) as caught:
        remapkit.loads(f"{HEAD}params: {{k: [3, 5], n: 4}}\nrules:\n  - {{id: r, {rule}}}\n")
    assert [each.code for each in caught.value.diagnostics] == [code]


@pytest.mark.parametrize(
    ("op", "shape", "wanted"),
    [
        ("{reshape: ['k[i]', -1]}", (12,), {0: (3, 4), 1: (4, 3)}),
        ("{slice: {stop: 'k[i]+i'}}", (12,), {0: (3,), 1: (5,)}),
        ("{pad: {to: '6 * (i+2)'}}", (12,), {0: (12,), 1: (18,)}),
        ("{rope: {to: half, heads: 'k[i]', head_dim: '12//k[i]'}}", (12,), {0: (12,), 1: None}),
    ],
)
def test_every_number_of_an_operation_may_use_a_capture(
    op: str, shape: tuple[int, ...], wanted: dict[int, object]
) -> None:
    rules = remapkit.loads(
        f"{HEAD}params: {{k: [3, 4]}}\nrules: [{{id: r, path: 'a.{{i:int}}', ops: [{op}], to: 'b.{{i}}'}}]\n"
    )
    for i, expected in wanted.items():
        plan = rules.plan({f"a.{i}": remapkit.TensorSpec("F32", shape)})
        assert (plan.target[f"b.{i}"].shape if plan.ok else None) == expected


def test_the_counts_of_stack_and_unstack_differ_by_layer() -> None:
    text = HEAD + (
        "params: {experts: [2, 3]}\nrules:\n"
        "  - {id: r, path: 'l.{i:int}.e.{e:int}.w', stack: {dim: 0, by: e, count: 'experts[i]'}, to: 'm.{i}.w'}\n"
    )
    rules = remapkit.loads(text)
    values = {
        f"l.{i}.e.{e}.w": torch.full((2,), 10.0 * i + e) for i, count in enumerate((2, 3)) for e in range(count)
    }
    made = rules(values)
    assert {name: tuple(value.shape) for name, value in made.items()} == {"m.0.w": (2, 2), "m.1.w": (3, 2)}
    back = rules.inverse()(made)
    assert back.keys() == values.keys() and all(torch.equal(back[name], values[name]) for name in values)
    values.pop("l.1.e.2.w")
    with pytest.raises(FailedCheck, match=re.escape("l.1.e.2.w")):
        rules(values)


def test_a_param_hides_a_capture_in_an_operation() -> None:
    """Files that had both meant the param."""
    text = HEAD + "params: {i: 3}\nrules: [{id: r, path: 'a.{i:int}', ops: [{reshape: [i, -1]}], to: 'b.{i}'}]\n"
    assert remapkit.loads(text).plan({"a.4": remapkit.TensorSpec("F32", (12,))}).target["b.4"].shape == (3, 4)


def test_the_inverse_requires_the_lists_that_its_names_are_made_of() -> None:
    text = HEAD + "params: {o: {config: o, value: [0, 2]}}\nrules: [{id: r, path: 'a.{s:0..1}', to: 'b.{o[s]}'}]\n"
    inverse = remapkit.invert(remapkit.loads(text)).text
    header = {"b.0": remapkit.TensorSpec("F32", (1,))}
    assert remapkit.loads(inverse).plan(header).ok
    assert {each.code for each in remapkit.loads(inverse, params={"o": [0, 3]}).plan(header).problems} == {"RK370"}
