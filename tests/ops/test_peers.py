"""What others get wrong about operations, each as a case that must come out right or be refused with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.formats.detect import open_checkpoint
from remapkit.plans.cast import cast_plan
from remapkit.rulefile.read import read_text
from remapkit.write.execute import write_checkpoint


def rules_of(*rules: str) -> RuleSet:
    body = "".join(f"  - {{id: r{number}, {rule}}}\n" for number, rule in enumerate(rules))
    return compile_rules(read_text(f"remapkit: 1\nname: t\nrules:\n{body}"))


def written(rules: RuleSet, source: Path, out: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(source) as reader:
        plan = rules.plan(reader.header())
        plan.raise_for_problems()
        write_checkpoint(plan.moves, reader, out, tied=plan.tied, force=True)
    return load_file(out)


def test_experts_0_1_3_are_not_taken_for_0_1_2() -> None:
    rules = rules_of("path: 'e.{e:int}', stack: {dim: 0, by: e}, to: w")
    with pytest.raises(FailedCheck, match=r"e has 0, 1 and 3 but not 2; e\.2 is missing"):
        rules({f"e.{n}": torch.zeros(2) for n in (0, 1, 3)})


def test_a_square_weight_is_transposed_like_any_other(tmp_path: Path) -> None:
    rules = rules_of("path: '{n}.weight', ops: [transpose], to: '{n}.w'")
    state = {"square.weight": torch.randn(3, 3), "wide.weight": torch.randn(3, 4)}
    assert all(torch.equal(rules(state)[f"{n}.w"], state[f"{n}.weight"].t()) for n in ("square", "wide"))
    save_file(state, tmp_path / "in.safetensors")
    found = written(rules, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert all(torch.equal(found[f"{n}.w"], state[f"{n}.weight"].t()) for n in ("square", "wide"))


def test_a_fused_target_without_its_v_is_refused_and_nothing_vanishes() -> None:
    rules = rules_of("concat: {dim: 0, from: [q, k, v]}, to: qkv")
    with pytest.raises(FailedCheck, match=r"v \(for qkv\)"):
        rules({"q": torch.zeros(2), "k": torch.zeros(2)})


def test_parts_go_by_name_and_not_by_their_place_in_the_checkpoint() -> None:
    rules = rules_of("concat: {dim: 0, from: ['{n:int}.q', '{n:int}.k', '{n:int}.v']}, to: '{n}.qkv'")
    state = {f"{n}.{w}": torch.full((1,), float(n * 10 + place)) for n in range(12) for place, w in enumerate("qkv")}
    forwards, backwards = rules(state), rules(dict(reversed(state.items())))
    assert all(torch.equal(forwards[fqn], backwards[fqn]) for fqn in forwards)
    assert forwards["11.qkv"].tolist() == [110, 111, 112]


def test_57_blocks_take_one_rule() -> None:
    rules = rules_of("path: 'blocks.{n:int}.qkv', split: {dim: 0, into: ['b.{n}.q', 'b.{n}.k', 'b.{n}.v']}")
    assert len(rules({f"blocks.{n}.qkv": torch.zeros(3) for n in range(57)})) == 171


def test_parts_of_one_tensor_are_written_with_their_own_bytes(tmp_path: Path) -> None:
    save_file({"qkv": torch.arange(12.0).view(6, 2)}, tmp_path / "in.safetensors")
    found = written(
        rules_of("path: qkv, split: {dim: 0, into: [q, k, v]}"),
        tmp_path / "in.safetensors",
        tmp_path / "o.safetensors",
    )
    assert [found[name].flatten().tolist() for name in "qkv"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with safe_open(tmp_path / "o.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["k", "q", "v"]
    assert (tmp_path / "o.safetensors").stat().st_size < 48 + 5000


def test_a_saved_view_is_read_within_its_bounds(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    state = {"view": whole[:, ::2], "scalar": torch.tensor(3.0), "parameter": torch.nn.Parameter(torch.ones(2, 2))}
    state["small"] = torch.ones(2, 2).to(torch.float8_e4m3fn)
    torch.save({"state_dict": state}, tmp_path / "in.pth")
    rules = rules_of(
        "path: view, ops: [transpose], to: t",
        "path: scalar, ops: [{scale: 2}], to: s",
        "path: parameter, ops: [flip_halves], to: p",
        "path: small, ops: [{cast: {from: F8_E4M3, to: F32}}], to: f",
    )
    found = written(rules, tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert torch.equal(found["t"], whole[:, ::2].t()) and found["s"].item() == 6 and found["s"].shape == ()
    assert torch.equal(found["p"], torch.ones(2, 2)) and torch.equal(found["f"], torch.ones(2, 2))


def test_floats_never_become_integers() -> None:
    state = {"a": torch.tensor([1.2345])}
    with pytest.raises(FailedCheck, match="cannot cast F32 to I32: values would be lost"):
        rules_of("path: a, ops: [{cast: I32}], to: b")(state)
    with pytest.raises(UsageError, match="RK642"):
        cast_plan(rules_of("path: a, to: b").plan(state), "int32")


def test_a_cast_that_rounds_is_said_with_its_count(tmp_path: Path) -> None:
    state = {f"{n}.w": torch.randn(3, 4) for n in range(5)} | {"ids": torch.arange(3)}
    save_file(state, tmp_path / "in.safetensors")
    rules = rules_of("path: '{n:int}.w', to: '{n}.weight'", "path: ids, to: ids")
    with open_checkpoint(tmp_path / "in.safetensors") as reader:
        plan = cast_plan(rules.plan(reader.header()), "bf16")
        assert [note.title for note in plan.warnings] == [
            "5 tensors are cast from F32 to BF16, which rounds their values"
        ]
        write_checkpoint(plan.moves, reader, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(found[f"{n}.weight"], state[f"{n}.w"].bfloat16()) for n in range(5))
    assert torch.equal(found["ids"], state["ids"])


def test_8_bit_floats_are_not_cast_without_their_scales() -> None:
    state = {"a": torch.ones(2).to(torch.float8_e4m3fn)}
    problems = cast_plan(rules_of("path: a, to: b").plan(state), "bf16").problems
    assert [problem.code for problem in problems] == ["RK346"]


def test_diff_compares_what_rules_make_and_not_what_they_read(tmp_path: Path) -> None:
    from remapkit.cli.app import main

    rules = tmp_path / "r.yaml"
    rules.write_text("remapkit: 1\nname: t\nrules:\n  - {id: r, path: w, ops: [transpose], to: w}\n")
    state = {"w": torch.randn(4, 4)}
    save_file(state, tmp_path / "a.safetensors")
    save_file({"w": state["w"].t().contiguous()}, tmp_path / "b.safetensors")
    files = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    assert main(["diff", *files, "--rules-a", str(rules)]) == 0
    assert main(["diff", *files]) == 1
