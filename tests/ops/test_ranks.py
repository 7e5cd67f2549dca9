"""Tensors joined by a capture: the parts of ranks, copies that must be equal, several indices; and all of it undone.

Expected tensors are made with torch alone. What differs, or is missing, must be named, and nothing be written.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.cli import app as cli
from remapkit.diagnostics.errors import FailedCheck, InvalidRules
from remapkit.proofs.model import Level
from tests.ops.cases import FLOATS, LAYOUT_DTYPES, opaque, random_tensor, raw
from tests.ops.ways import WAYS, found, outcome

HEAD = "remapkit: 1\nname: t\nrules:\n"
Draw = Callable[[Any], Any]


def rules_of(*lines: str) -> remapkit.RuleSet:
    return remapkit.loads(HEAD + "".join(f"  - {{{line}}}\n" for line in lines))


def refused(rules: remapkit.RuleSet, state: Mapping[str, torch.Tensor]) -> str:
    with pytest.raises(FailedCheck) as caught:
        rules(state)
    return str(caught.value)


# ------------------------------------------------------------------------------------------ families, any and whole


@dataclass(frozen=True)
class Family:
    """A rule file, what it reads, and what it must make; `is_counted` if the rules say all that an inverse needs."""

    text: str
    state: dict[str, torch.Tensor]
    expected: dict[str, torch.Tensor]
    is_counted: bool


@st.composite
def families(draw: Draw) -> Family:
    """Families of one or two indices, concatenated or merged, perhaps stacked by one or two more."""
    word = draw(st.sampled_from(("concat", "merge")))
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    stacked = draw(st.lists(st.integers(1, 2), max_size=2))
    counted, equal = draw(st.booleans()), draw(st.booleans()) or math.prod(counts) == 1
    dim, layers, dtype = draw(st.integers(0, 1)), draw(st.integers(1, 2)), draw(st.sampled_from(LAYOUT_DTYPES))
    widths = [3] * math.prod(counts) if equal else [draw(st.integers(1, 3)) for _ in range(math.prod(counts))]
    names, outer = ("r", "t")[: len(counts)], ("d", "e")[: len(stacked)]
    seeds = itertools.count(draw(st.integers(0, 1 << 20)))
    state, expected = {}, {}
    for layer in range(layers):
        rows = []
        for place in itertools.product(*map(range, stacked)):
            parts = []
            for number, index in enumerate(itertools.product(*map(range, counts))):
                size = widths[number] if word == "concat" else 3
                shape = (size, 4) if dim == 0 else (4, size)
                made = random_tensor(dtype, shape, next(seeds))
                parts.append(parts[0].clone() if word == "merge" and parts else made)
                state[".".join(map(str, (f"tp{index[0]}", *index[1:], "layers", layer, "w", *place)))] = parts[-1]
            rows.append(torch.cat([*map(opaque, parts)], dim) if word == "concat" else opaque(parts[0]))
        whole = torch.stack(rows, 1) if stacked else rows[0]
        expected[f"h.{layer}"] = whole.view(parts[0].dtype)
    keys = ".".join(("tp{r:int}", *(f"{{{name}:int}}" for name in names[1:]), "layers.{i:int}.w"))
    rule: dict[str, Any] = {"id": "r", "path": ".".join((keys, *(f"{{{name}:int}}" for name in outer)))}
    by: dict[str, Any] = {"by": names[0] if len(names) == 1 else names}
    if counted:
        by["count"] = counts[0] if len(names) == 1 else counts
    sizes = {"sizes": "equal"} if equal else {"sizes": widths} if counted else {}
    rule[word] = {"dim": dim, **by, **sizes} if word == "concat" else by
    if outer:
        count = {"count": stacked[0] if len(outer) == 1 else stacked} if counted else {}
        rule["stack"] = {"dim": 1, "by": outer[0] if len(outer) == 1 else outer, **count}
    return Family(f"{HEAD}  - {json.dumps({**rule, 'to': 'h.{i}'})}\n", state, expected, counted)


@settings(max_examples=60)
@given(families(), st.randoms())
def test_families_are_joined_in_the_order_of_their_indices(case: Family, random: Any) -> None:
    rules = remapkit.loads(case.text)
    assert rules.prove().level is Level.ALL
    keys = list(case.state)
    random.shuffle(keys)
    assert found(rules({key: case.state[key] for key in keys})) == found(case.expected)


@settings(max_examples=60)
@given(families())
def test_a_counted_family_has_an_inverse_and_another_has_none(case: Family) -> None:
    rules = remapkit.loads(case.text)
    if not case.is_counted:
        with pytest.raises(InvalidRules) as caught:
            rules.inverse()
        assert {each.code for each in caught.value.diagnostics} == {"RK215"}
        return
    inverse = rules.inverse()
    there = rules(case.state)
    assert inverse.prove().level is Level.ALL
    assert found(inverse(there)) == found(case.state)
    assert found(inverse.inverse()(case.state)) == found(there)


@settings(max_examples=100)
@given(st.data())
def test_a_family_with_holes_says_how_many_keys_are_missing(data: st.DataObject) -> None:
    word = data.draw(
        st.sampled_from(("concat: {dim: 0, by: [r, t]}", "merge: {by: [r, t]}", "stack: {dim: 0, by: [r, t]}"))
    )
    grid = list(itertools.product(range(3), range(3)))
    present = {layer: data.draw(st.lists(st.sampled_from(grid), min_size=1, unique=True)) for layer in range(2)}
    state = {f"{r}.{t}.{layer}": torch.zeros(1) for layer, places in present.items() for r, t in places}
    plan = rules_of(f"id: x, path: '{{r:int}}.{{t:int}}.{{i:int}}', {word}, to: 'h.{{i}}'").plan(state)
    missing = set()
    for layer, places in present.items():
        tops = [
            max(p[n] for each, ps in present.items() for p in ps if each == layer or "stack" not in word)
            for n in (0, 1)
        ]
        full = set(itertools.product(range(tops[0] + 1), range(tops[1] + 1)))
        missing |= {f"{r}.{t}.{layer}" for r, t in full - set(places)}
    assert len(plan.moves) == len({0, 1} - {int(key[-1]) for key in missing})
    if not missing:
        assert plan.ok
        return
    (problem,) = plan.problems
    assert problem.code == "RK340" and f"{len(missing)} source key" in problem.title
    named = {key for line in problem.values["missing"] for key in re.findall(r"\d\.\d\.\d", line)}
    assert named and named <= missing
    for key in missing - named:  # as part of a range of indices
        r, t, layer = key.split(".")
        lines = [line for line in problem.values["missing"] if line.startswith(f"h.{layer}: ")]
        assert any(
            re.search(rf"{name} has .* but not .*\b{n}\b|{name} has .* but not .*0 to 1", line)
            for name, n in (("r", r), ("t", t))
            for line in lines
        ), (key, problem)


# ------------------------------------------------------------------------------------------ merged values that differ


@settings(max_examples=60)
@given(st.sampled_from((*FLOATS, "I32", "U8")), st.integers(0, 1 << 20), st.integers(1, 5), st.integers(1, 2))
def test_how_many_elements_differ_and_by_how_much_is_said(dtype: str, seed: int, count: int, rank: int) -> None:
    kind = {
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F64": torch.float64,
        "I32": torch.int32,
        "U8": torch.uint8,
    }[dtype]
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 100, (4, 5), generator=generator).to(kind)
    other = first.clone()
    changed = torch.randperm(20, generator=generator)[:count]
    other.view(-1)[changed] += torch.randint(1, 50, (count,), generator=generator).to(kind)
    state = {f"tp{t}.norm": other if t == rank else first for t in range(3)}
    said = refused(rules_of("id: x, path: 'tp{t:int}.norm', merge: {by: t}, to: norm"), state)
    largest = (other.double() - first.double()).abs().max().item()
    assert f"tp{rank}.norm differs from tp0.norm in {count} of 20 elements, by at most {largest:g}" in said
    assert "RK347" in said and f"tp{3 - rank}.norm" not in said


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (0.0, -0.0, "only in its bytes: the values are equal"),
        (1.0, float("nan"), "in 1 of 1 element, 1 of which is NaN in only one of the two"),
        (1.0, float("inf"), "in 1 of 1 element, by at most inf"),
    ],
)
def test_bytes_are_compared_not_values(one: float, other: float, said: str) -> None:
    rules = rules_of("id: x, merge: [a, b], to: c")
    assert said in refused(rules, {"a": torch.tensor([one]), "b": torch.tensor([other])})
    assert raw(rules({"a": torch.tensor([other]), "b": torch.tensor([other])})["c"]) == raw(torch.tensor([other]))


def test_sources_are_compared_after_their_own_operations() -> None:
    rules = rules_of("id: x, merge: [a, {path: b, ops: [transpose]}], to: c")
    square = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(rules({"a": square, "b": square.T.contiguous()})["c"], square)
    assert "b differs from a in 2 of 4 elements, by at most 1" in refused(rules, {"a": square, "b": square})


# ------------------------------------------------------------------------------------------ a checkpoint of two ranks

LLAMA = """
  - {id: embed, path: 'tp{t:int}.tok_embeddings.weight', concat: {dim: 1, by: t}, to: embed_tokens.weight}
  - {id: wq, path: 'tp{t:int}.layers.{i:int}.attention.wq.weight', concat: {dim: 0, by: t}, to: 'layers.{i}.q.weight'}
  - id: row
    path: 'tp{t:int}.layers.{i:int}.{b:attention|feed_forward}.{m:wo|w2}.weight'
    concat: {dim: 1, by: t}
    to: 'layers.{i}.{b}.{m}.weight'
  - {id: norm, path: 'tp{t:int}.layers.{i:int}.norm.weight', merge: {by: t}, to: 'layers.{i}.norm.weight'}
  - {id: head, merge: [tp0.output.weight, tp0.tied.weight], to: head.weight}
"""


def llama() -> dict[str, torch.Tensor]:
    """Two ranks of a Llama of hidden size 4: embedding, wo and w2 are cut along dimension 1, wq along 0."""
    generator = torch.Generator().manual_seed(3)
    state = {"tp0.output.weight": torch.rand(6, 4, generator=generator)}
    state["tp0.tied.weight"] = state["tp0.output.weight"].clone()
    for layer in range(2):
        norm = torch.rand(4, generator=generator)
        for t in (1, 0):
            name = f"tp{t}.layers.{layer}."
            state[f"tp{t}.tok_embeddings.weight"] = torch.rand(6, 2, generator=generator)
            state[name + "attention.wq.weight"] = torch.rand(2, 4, generator=generator).to(torch.bfloat16)
            state[name + "attention.wo.weight"] = torch.rand(4, 2, generator=generator)
            state[name + "feed_forward.w2.weight"] = torch.rand(4, 3, generator=generator)
            state[name + "norm.weight"] = norm.clone()
    return state


def list_ranks(state: Mapping[str, torch.Tensor], layer: int, name: str) -> list[torch.Tensor]:
    return [state[f"tp{t}.layers.{layer}.{name}.weight"] for t in (0, 1)]


def joined(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    made = {"embed_tokens.weight": torch.cat([state[f"tp{t}.tok_embeddings.weight"] for t in (0, 1)], 1)}
    made["head.weight"] = state["tp0.output.weight"]
    for layer in range(2):
        pair = partial(list_ranks, state, layer)
        made[f"layers.{layer}.q.weight"] = torch.cat(pair("attention.wq"), 0)
        made[f"layers.{layer}.attention.wo.weight"] = torch.cat(pair("attention.wo"), 1)
        made[f"layers.{layer}.feed_forward.w2.weight"] = torch.cat(pair("feed_forward.w2"), 1)
        made[f"layers.{layer}.norm.weight"] = pair("norm")[0]
    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_two_ranks_of_a_llama_become_one_model(way: str, suffix: str, tmp_path: Path) -> None:
    text = HEAD + LLAMA.removeprefix("\n")
    state = llama()
    source = save(state, tmp_path / f"in{suffix}")
    assert outcome(way, text, source, tmp_path, found(state)) == found(joined(state))
    state["tp1.layers.1.norm.weight"][2] += 0.5
    save(state, source)
    assert outcome(way, text, source, tmp_path, found(state)) == "RK347"
    assert not list(tmp_path.glob("out*"))


def save(state: Mapping[str, torch.Tensor], path: Path) -> Path:
    path.unlink(missing_ok=True)
    if path.suffix == ".pth":
        torch.save(dict(state), path)
        return path
    from safetensors.torch import save_file

    save_file(dict(state), path)
    return path


def test_a_dry_run_compares_too_and_a_failed_load_changes_nothing(tmp_path: Path) -> None:
    rules = rules_of("id: x, path: 'tp{t:int}.weight', merge: {by: t}, to: weight", "id: b, path: bias, to: bias")
    state = {"tp0.weight": torch.zeros(2, 3), "tp1.weight": torch.ones(2, 3), "bias": torch.ones(2)}
    source = save(state, tmp_path / "in.pth")
    with pytest.raises(FailedCheck, match="RK347"):
        remapkit.apply(rules, source, tmp_path / "out.safetensors", dry_run=True)
    layer = torch.nn.Linear(3, 2)
    before = {key: raw(value) for key, value in layer.state_dict().items()}
    for given_state in (source, state):
        with pytest.raises(FailedCheck, match="in 6 of 6 elements, by at most 1"):
            remapkit.load_into(layer, given_state, rules)
    assert {key: raw(value) for key, value in layer.state_dict().items()} == before


# ------------------------------------------------------------------------------------------ what does not fit

WQ = "id: x, path: 'tp{t:int}.q', concat: {dim: 0, by: t%s}, to: q"
EQUAL, SIZES = WQ % ", sizes: equal", WQ % ", sizes: [3, 1]"
MERGE = "id: x, path: 'tp{t:int}.q', merge: {by: t}, to: q"
NORM = "id: x, path: 'tp{t:int}.{i:int}', merge: {by: t}, to: '{i}'"


@pytest.mark.parametrize(
    ("rule", "shapes", "code", "said"),
    [
        (WQ % "", [(2, 4), (2, 5)], "RK353", "tp1.q is [2, 5] but tp0.q is [2, 4]; only dimension 0 may differ"),
        (WQ % "", [(2, 4), (2,)], "RK353", "tp1.q is [2] but tp0.q is [2, 4]"),
        (EQUAL, [(2, 4), (3, 4)], "RK353", "tp1.q has 3 elements along dimension 0, but tp0.q has 2"),
        (SIZES, [(3, 4), (2, 4)], "RK353", "tp1.q has 2 elements along dimension 0, but `sizes` says 1"),
        (MERGE, [(1,), (2,)], "RK353", "tp1.q is [2] but tp0.q is [1]; merged tensors must be equal"),
        (WQ % "", {"tp0.q", "tp1.q", "tp3.q"}, "RK340", "q: t has 0, 1 and 3 but not 2; tp2.q is missing"),
        (WQ % ", count: 4", {"tp0.q", "tp1.q"}, "RK340", "q: t has 0 and 1 but not 2 to 3; tp2.q is missing"),
        (WQ % ", count: 1", {"tp0.q", "tp1.q"}, "RK343", "1 source key beyond the `count` of 1"),
        (NORM, {"tp0.0", "tp1.0", "tp0.1"}, "RK340", "1: t has 0 but not 1; tp1.1 is missing"),
        ("id: x, merge: [head, embed], to: w", {"head"}, "RK340", "embed (for w)"),
        (WQ % "", {"tp0.q", "tp4000000000.q"}, "RK340", "3999999999 source keys missing for 1 target"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_its_ranks(rule: str, shapes: Any, code: str, said: str) -> None:
    given_shapes = (
        dict.fromkeys(shapes, (1,)) if isinstance(shapes, set) else {f"tp{t}.q": s for t, s in enumerate(shapes)}
    )
    plan = rules_of(rule).plan({key: remapkit.TensorSpec("F32", shape) for key, shape in given_shapes.items()})
    (problem,) = plan.problems
    assert problem.code == code and said in str(problem), problem
    assert "q" not in plan.target and "w" not in plan.target


def test_a_grid_that_is_too_large_to_list_is_not_listed() -> None:
    rules = rules_of("id: x, path: '{r:int}.{t:int}', stack: {dim: 0, by: [r, t]}, to: w")
    plan = rules.plan({f"{n}.{n}": remapkit.TensorSpec("F32", (1,)) for n in range(3000)})
    assert "8997000 source keys missing for 1 target" in plan.problems[0].title
    assert "0.1 (for w)" in str(plan.problems[0])


# ------------------------------------------------------------------------------------------ experts by rank


def test_experts_by_rank_are_renamed_or_stacked_in_the_order_of_rank_and_expert() -> None:
    experts = {f"tp{r}.experts.{e}.w1": torch.full((2,), 4.0 * r + e) for r in range(2) for e in range(4)}
    renamed = rules_of("id: x, path: 'tp{r:0..1}.experts.{e:0..3}.w1', to: 'experts.{4*r+e}.w1'")
    assert {key: value[0].item() for key, value in renamed(experts).items()} == {
        f"experts.{n}.w1": n for n in range(8)
    }
    stacked = rules_of(
        "id: x, path: 'tp{r:int}.experts.{e:int}.w1', stack: {dim: 0, by: [r, e], count: [2, 4]}, to: w1"
    )
    assert stacked(experts)["w1"][:, 0].tolist() == list(range(8))
    assert found(stacked.inverse()(stacked(experts))) == found(experts)
    taken = rules_of("id: x, path: 'w1', unstack: {dim: 0, by: [r, e], count: [2, 4]}, to: 'all.{4*r+e}'")
    assert taken(stacked(experts))["all.6"][0].item() == 6
    assert "`count` is 2 x 4 = 8, got 6 elements to unstack" in refused(taken, {"w1": torch.zeros(6, 2)})


# ------------------------------------------------------------------------------------------ one source several times

WHISPER = """
  - id: qkv
    concat: {dim: 0, from: ['h.{i:int}.q.bias', {path: 'h.{i:int}.q.bias', ops: [zeros]}, 'h.{i:int}.v.bias']}
    to: 'h.{i}.qkv.bias'
  - id: swapped
    concat: {dim: 0, from: [{path: w.a, ops: [{slice: {start: 2}}]}, {path: w.a, ops: [{slice: {stop: 2}}]}]}
    to: w.b
  - {id: around, concat: {dim: 0, from: [w.c, w.d, {path: w.c, ops: [flip_halves]}]}, to: w.e}
  - {id: none, path: x.scale, ops: [zeros], to: x.zero}
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_part_may_be_zeros_and_a_source_may_be_read_twice(way: str, tmp_path: Path) -> None:
    state = {
        f"h.{i}.{name}.bias": random_tensor("BF16", (3,), 2 * i + (name == "v")) for i in (0, 1) for name in "qv"
    }
    state |= {"w.a": random_tensor("F32", (5, 2), 7), "x.scale": torch.tensor(float("nan"))}
    expected = {"w.b": torch.cat([state["w.a"][2:], state["w.a"][:2]]), "x.zero": torch.tensor(0.0)}
    for i in (0, 1):
        q, v = state[f"h.{i}.q.bias"], state[f"h.{i}.v.bias"]
        expected[f"h.{i}.qkv.bias"] = torch.cat([q, torch.zeros(3, dtype=torch.bfloat16), v])
    state |= {"w.c": torch.tensor([1.0, 2.0]), "w.d": torch.tensor([3.0])}
    expected["w.e"] = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])
    source = save(state, tmp_path / "in.pth")
    assert outcome(way, HEAD + WHISPER.removeprefix("\n"), source, tmp_path, found(state)) == found(expected)


def test_a_source_that_is_read_twice_has_no_inverse_and_is_missed_once() -> None:
    rules = rules_of("id: x, concat: {dim: 0, sizes: equal, from: [a, b, {path: a, ops: [flip_halves]}]}, to: c")
    assert rules.prove().level is Level.ALL
    with pytest.raises(InvalidRules, match="x has no inverse: it reads one source several times"):
        rules.inverse()
    assert "1 source key missing for 1 target" in refused(rules, {"b": torch.zeros(2)})
    assert "b has 2 elements along dimension 0, but a has 4" in refused(
        rules, {"a": torch.zeros(4), "b": torch.zeros(2)}
    )


# ------------------------------------------------------------------------------------------ the inverses of copies


@pytest.mark.parametrize("word", ["copy", "tie"])
def test_the_inverse_of_a_copy_or_a_tie_merges(word: str) -> None:
    rules = rules_of(
        f"id: x, path: 'a.{{n:int}}', {word}: ['b.{{n}}', {{to: 'c.{{n}}', ops: [transpose]}}]"
        if word == "copy"
        else "id: x, path: 'a.{n:int}', tie: ['b.{n}', 'c.{n}']"
    )
    state = {f"a.{n}": random_tensor("F32", (2, 3), n) for n in range(2)}
    there = rules(state)
    inverse = rules.inverse()
    assert found(inverse(there)) == found(state)
    there["c.1"] = there["c.1"].clone(memory_format=torch.contiguous_format)
    there["c.1"].view(torch.uint8)[0] ^= 1
    assert "c.1 differs from b.1" in refused(inverse, there)


def test_explain_says_what_joins_a_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"{HEAD}  - {{{NORM}}}\n")
    assert cli.main(["explain", str(tmp_path / "r.yaml"), "tp1.0"]) == 0
    assert "    merge joins the keys that differ only in t\n" in capsys.readouterr().out


def test_the_parts_of_a_split_by_a_count_are_joined_again() -> None:
    rules = rules_of(
        "id: w, path: w, split: {dim: 1, by: t, sizes: [1, 3]}, to: 'tp{t}.w'",
        "id: n, path: n, copy: {by: t, count: 2}, to: 'tp{t}.n'",
    )
    state = {"w": random_tensor("F32", (2, 4), 1), "n": random_tensor("BF16", (3,), 2)}
    made = rules(state)
    assert {key: tuple(value.shape) for key, value in made.items()} == {
        "tp0.w": (2, 1),
        "tp1.w": (2, 3),
        "tp0.n": (3,),
        "tp1.n": (3,),
    }
    assert made["tp0.n"].data_ptr() != made["tp1.n"].data_ptr()
    assert found(rules.inverse()(made)) == found(state)
