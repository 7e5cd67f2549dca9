"""Whole rules with operations: in memory, through files, and what is missing, doubled or does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.compute import stream
from remapkit.formats.detect import open_checkpoint
from remapkit.ops.byte_ranges import find_byte_ranges
from remapkit.plans import groups as gather
from remapkit.rulefile.read import read_text
from remapkit.tensors.spec import TensorSpec
from remapkit.write.execute import write_checkpoint
from remapkit.write.layout import CopyPiece, make_tensor_pieces
from tests.ops.cases import raw
from tests.ops.flows import Flowing, flowing


def compiled(text: str, **params: int) -> RuleSet:
    return compile_rules(read_text(text), params or None)


def rules_of(*rules: str, rest: str = "") -> RuleSet:
    body = "".join(f"  - {{id: r{number}, {rule}}}\n" for number, rule in enumerate(rules))
    return compiled(f"remapkit: 1\nname: t\nrules:\n{body}{rest}")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    shapes = {key: tuple(value.shape) for key, value in found.items()}
    return shapes == {key: tuple(value.shape) for key, value in expected.items()} and all(
        raw(found[key]) == raw(value) and found[key].dtype == value.dtype for key, value in expected.items()
    )


@settings(max_examples=80)
@given(flowing())
def test_a_rule_does_in_memory_what_it_says(case: Flowing) -> None:
    rules = compiled(case.text)
    plan = rules.plan(case.state)
    assert plan.ok
    assert {move.target: move.spec.shape for move in plan.moves} == {
        key: tuple(value.shape) for key, value in case.expected.items()
    }
    assert same(rules(case.state), case.expected)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@settings(max_examples=40)
@given(flowing(), st.sampled_from((16, 1 << 20)), st.sampled_from(("safetensors", "pth")))
def test_files_get_the_same_bytes(
    suffix: str, tmp_path_factory: pytest.TempPathFactory, case: Flowing, stripe: int, source: str
) -> None:
    folder = tmp_path_factory.mktemp("flow")
    given_path = folder / f"in.{source}"
    save_file(case.state, given_path) if source == "safetensors" else torch.save(case.state, given_path)
    rules = compiled(case.text)
    with pytest.MonkeyPatch.context() as patch, open_checkpoint(given_path) as reader:
        patch.setattr(stream.make_stripes, "__defaults__", (stripe,))
        plan = rules.plan(reader.header())
        write_checkpoint(plan.moves, reader, folder / f"out.{suffix}", verify=True)
    out = folder / f"out.{suffix}"
    assert same(load_file(out) if suffix == "safetensors" else torch.load(out), case.expected)


@settings(max_examples=60)
@given(flowing())
def test_stretches_of_bytes_are_the_target(case: Flowing) -> None:
    """Wherever a target is said to be stretches of its sources, they are it."""
    rules = compiled(case.text)
    for move in rules.plan(case.state).moves:
        specs = [remapkit.header(case.state)[fqn] for fqn in move.sources]
        ranges = find_byte_ranges(move.ops, specs)
        if ranges is not None:
            data = [raw(case.state[fqn]) for fqn in move.sources]
            made = b"".join(data[r.source][r.offset : r.offset + r.length] for r in ranges)
            assert made == raw(case.expected[move.target])


def test_splits_and_stacks_along_the_first_dimension_are_copied_by_the_kernel(tmp_path: Path) -> None:
    state = {"qkv": torch.randn(12, 5)} | {f"e.{n}": torch.randn(4, 3) for n in range(4)}
    save_file(state, tmp_path / "in.safetensors")
    rules = rules_of(
        "path: qkv, split: {dim: 0, into: [q, k, v]}", "path: 'e.{e:int}', stack: {dim: 0, by: e}, to: experts"
    )
    with open_checkpoint(tmp_path / "in.safetensors") as reader:
        moves = rules.plan(reader.header()).moves
        for move in moves:
            assert all(isinstance(piece, CopyPiece) for piece in make_tensor_pieces(move, reader)), move.target
        written = write_checkpoint(moves, reader, tmp_path / "out.safetensors")
    assert "gathered" not in written.how


# ------------------------------------------------------------------------------------------ what is not whole

EXPERTS = "path: 'e.{e:int}.w', stack: {dim: 0, by: e}, to: experts"
FUSED = "concat: {dim: 0, from: ['{i:int}.q', '{i:int}.k', '{i:int}.v']}, to: '{i}.qkv'"


def told(rules: RuleSet, *keys: str, shapes: dict[str, tuple[int, ...]] | None = None) -> Iterator[str]:
    specs = {key: TensorSpec("F32", (shapes or {}).get(key, (4, 4))) for key in keys}
    for problem in rules.plan(specs).problems:
        yield f"{problem.code} {problem.title}\n" + "\n".join(problem.notes)


def test_a_hole_in_a_stack_is_an_error_that_names_it() -> None:
    (text,) = told(rules_of(EXPERTS), "e.0.w", "e.1.w", "e.3.w")
    assert text == (
        "RK340 r0: 1 source key missing for 1 target\nexperts: e has 0, 1 and 3 but not 2; e.2.w is missing"
    )


def test_a_stack_that_does_not_begin_at_0_is_an_error() -> None:
    (text,) = told(rules_of(EXPERTS), "e.1.w", "e.2.w")
    assert "but not 0; e.0.w is missing" in text


def test_a_far_index_is_named_without_counting_up_to_it() -> None:
    (text,) = told(rules_of(EXPERTS), "e.0.w", "e.4000000000.w")
    assert "3999999999 source keys missing" in text and "not 1 to 3999999999" in text


def test_a_part_of_a_fused_target_that_is_missing_is_named() -> None:
    (text,) = told(rules_of(FUSED), "0.q", "0.k", "0.v", "1.q", "1.k")
    assert text == "RK340 r0: 1 source key missing for 1 target\n1.v (for 1.qkv)"


def test_an_index_twice_is_an_error_that_names_both() -> None:
    rules = rules_of(r"match: 'e\.(?P<e>\d+)\.w', stack: {dim: 0, by: e}, to: experts")
    (text,) = told(rules, "e.0.w", "e.00.w")
    assert text == "RK342 r0: 1 source matches twice; only one of each could be kept\ne.0.w and e.00.w"


@pytest.mark.parametrize(("keys", "code"), [(("e.0.w",), "RK340"), (("e.0.w", "e.1.w", "e.2.w"), "RK343")])
def test_with_a_count_there_must_be_that_many(keys: tuple[str, ...], code: str) -> None:
    rules = rules_of("path: 'e.{e:int}.w', stack: {dim: 0, by: e, count: 2}, to: experts")
    assert [text[:5] for text in told(rules, *keys)] == [code]
    assert not list(told(rules, "e.0.w", "e.1.w"))


def test_parts_that_are_not_equal() -> None:
    rules = rules_of("path: '{i:int}.qkv', split: {dim: 0, into: ['{i}.q', '{i}.k', '{i}.v']}")
    (text,) = told(rules, "0.qkv", "1.qkv", shapes={"0.qkv": (85, 4), "1.qkv": (84, 4)})
    assert text == ("RK350 r0: cannot split 85 rows into 3 equal parts\n0.qkv (F32 [85, 4]) -> 0.q")


def test_what_is_joined_must_fit() -> None:
    (text,) = told(rules_of(FUSED), "0.q", "0.k", "0.v", shapes={"0.k": (2, 3)})
    assert "0.k is [2, 3] but 0.q is [4, 4]; only dimension 0 may differ" in text
    (text,) = told(rules_of(EXPERTS), "e.0.w", "e.1.w", shapes={"e.1.w": (2, 4)})
    assert "e.1.w is [2, 4] but e.0.w is [4, 4]; stacked shapes must match" in text
    rules = rules_of(FUSED.replace("dim: 0", "dim: 0, sizes: equal"))
    (text,) = told(rules, "0.q", "0.k", "0.v", shapes={"0.v": (2, 4)})
    assert "0.v has 2 elements along dimension 0, but 0.q has 4" in text


def test_nothing_is_cast_to_be_joined() -> None:
    state = {"0.q": torch.ones(2), "0.k": torch.ones(2).bfloat16(), "0.v": torch.ones(2)}
    problems = rules_of(FUSED).plan(state).problems
    assert [problem.code for problem in problems] == ["RK353"]
    assert "0.k is BF16 but 0.q is F32; add an explicit cast" in problems[0].title


def test_two_rules_that_write_one_target_collide() -> None:
    rules = rules_of(EXPERTS, "path: other, to: experts")
    assert [text[:5] for text in told(rules, "e.0.w", "e.1.w", "other")] == ["RK303"]


def test_a_param_without_a_value_is_asked_for() -> None:
    rule = "{id: r, path: a, to: b, ops: [{reshape: [n]}]}"
    text = f"remapkit: 1\nname: t\nparams: {{n: {{config: heads}}}}\nrules:\n  - {rule}\n"
    (problem,) = compiled(text).plan({"a": TensorSpec("F32", (4,))}).problems
    assert problem.code == "RK341" and "needs the param 'n'" in problem.title
    assert compiled(text, n=4).plan({"a": TensorSpec("F32", (4,))}).ok
    given_config = compile_rules(read_text(text), config={"heads": 4})
    assert given_config.plan({"a": TensorSpec("F32", (4,))}).ok


def test_copies_are_their_own_and_ties_are_one(tmp_path: Path) -> None:
    rules = rules_of("path: a, copy: [b, c]", "path: d, tie: [e, f]", "path: g, ops: [{scale: 2}], tie: [h, i]")
    state = {"a": torch.ones(2), "d": torch.ones(2), "g": torch.ones(2)}
    out = rules(state)
    assert out["b"].data_ptr() != out["c"].data_ptr()
    assert out["e"].data_ptr() == out["f"].data_ptr() and out["h"] is out["i"]
    save_file(state, tmp_path / "in.safetensors")
    with open_checkpoint(tmp_path / "in.safetensors") as reader:
        plan = rules.plan(reader.header())
        write_checkpoint(plan.moves, reader, tmp_path / "out.pth", tied=plan.tied)
        write_checkpoint(plan.moves, reader, tmp_path / "out.safetensors", tied=plan.tied)
    loaded = torch.load(tmp_path / "out.pth")
    assert loaded["e"].data_ptr() == loaded["f"].data_ptr() and loaded["b"].data_ptr() != loaded["c"].data_ptr()
    assert set(load_file(tmp_path / "out.safetensors")) == {"b", "c", "e", "h"}


def test_what_add_makes(tmp_path: Path) -> None:
    rest = """
add:
  - {to: ids, fill: arange, shape: [2, 3], dtype: I64}
  - {to: 'mask.{i}', each: {i: 0..1}, fill: tril, shape: [1, 3, 3], dtype: BOOL}
  - {to: half, fill: 0.1, shape: [2], dtype: BF16}
  - {to: scalar, fill: 7, shape: [], dtype: U8}
"""
    rules = rules_of("path: a, to: b", rest=rest)
    expected = {
        "b": torch.ones(1),
        "ids": torch.arange(6).view(2, 3),
        "mask.0": torch.ones(1, 3, 3).tril().bool(),
        "mask.1": torch.ones(1, 3, 3).tril().bool(),
        "half": torch.tensor([0.1, 0.1], dtype=torch.bfloat16),
        "scalar": torch.tensor(7, dtype=torch.uint8),
    }
    assert same(rules({"a": torch.ones(1)}), expected)
    save_file({"a": torch.ones(1)}, tmp_path / "in.safetensors")
    with open_checkpoint(tmp_path / "in.safetensors") as reader:
        write_checkpoint(rules.plan(reader.header()).moves, reader, tmp_path / "out.safetensors")
    assert same(load_file(tmp_path / "out.safetensors"), expected)


# ---------------------------------------------------------------------------------------------- planted faults


def test_a_planted_blindness_for_holes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another tool does: experts 0, 1 and 3 are taken for 0, 1 and 2."""
    monkeypatch.setattr(gather, "_is_broken", lambda *args: False)
    assert not list(told(rules_of(EXPERTS), "e.0.w", "e.1.w", "e.3.w"))


def test_a_planted_order_of_text_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = rules_of(EXPERTS)
    state = {f"e.{n}.w": torch.full((1,), float(n)) for n in range(11)}
    assert rules(state)["experts"].view(-1).tolist() == list(range(11))
    monkeypatch.setattr(gather, "_is_broken", lambda *args: False)
    by_text = lambda items: sorted(items, key=lambda pair: str(pair[0][0]))  # noqa: E731
    monkeypatch.setattr(gather, "sorted", by_text, raising=False)
    with pytest.raises(AssertionError):
        assert rules(state)["experts"].view(-1).tolist() == list(range(11))
