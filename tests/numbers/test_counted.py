"""Params that are counted in a checkpoint: one file for all depths, without a config."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck, InvalidRules, RemapkitError

SD3 = """\
remapkit: 1
name: sd3
params:
  layers: {count: 'j.{i:int}.{r:**}', config: num_layers, value: 24}
rules:
  - {id: blocks, path: 'j.{i:0..layers-2}.w', to: 'b.{i}.w'}
  - {id: last, path: 'j.{i:layers-1}.w', ops: [flip_halves], to: 'b.{i}.w'}
keep: [head]
"""
"""The last block is unlike the others."""


def make_state(layers: int) -> dict[str, np.ndarray]:
    return {f"j.{i}.w": np.arange(4, dtype="f4") + 10 * i for i in range(layers)} | {"head": np.ones(1, "f4")}


def wanted(layers: int) -> dict[str, list[float]]:
    rows = {f"b.{i}.w": (np.arange(4) + 10 * i).tolist() for i in range(layers)}
    rows[f"b.{layers - 1}.w"] = [rows[f"b.{layers - 1}.w"][n] for n in (2, 3, 0, 1)]
    return rows | {"head": [1.0]}


def write_rule(to: str, value: int) -> str:
    params = f"{{n: {{count: 'x.{{i:int}}', value: {value}}}}}"
    return f"remapkit: 1\nname: t\nparams: {params}\nrules: [{{id: r, path: 'x.{{i:0..n-1}}', to: '{to}'}}]\n"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "sd3.yaml"
    path.write_text(SD3)
    return path


@pytest.mark.parametrize("layers", [1, 2, 3, 24])
def test_one_pack_writes_checkpoints_of_every_depth(layers: int, pack: Path, tmp_path: Path) -> None:
    """By value, through files; what was found is said, and what is applied is what was proven for it."""
    save_file(make_state(layers), tmp_path / "in.safetensors")
    written = remapkit.apply(pack, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert {name: value.tolist() for name, value in load_file(tmp_path / "out.safetensors").items()} == wanted(layers)
    (note,) = (each for each in written.diagnostics if each.code == "RK372")
    assert (note.title, str(note.span)) == (f"layers = {layers}, counted by j.{{i:int}}.{{r:**}}", f"{pack}:4:20")


def test_a_checkpoint_that_may_lack_layers_is_not_counted(pack: Path, tmp_path: Path) -> None:
    state = {fqn: tensor for fqn, tensor in make_state(4).items() if not fqn.startswith("j.3.")}
    assert len(state) < len(make_state(4))
    save_file(state, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    with pytest.raises(remapkit.FailedCheck, match=r"RK373.*cannot be counted") as caught:
        remapkit.apply(pack, tmp_path / "in.safetensors", out, partial=True)
    assert "params={'layers': NUMBER}" in str(caught.value) and not out.exists()
    remapkit.apply(pack, tmp_path / "in.safetensors", out, partial=True, params={"layers": 4})
    made = {name: value.tolist() for name, value in load_file(out).items()}
    assert made and made.items() <= wanted(4).items()


@settings(max_examples=150, deadline=None)
@given(
    indices=st.sets(st.integers(0, 30), max_size=6),
    given=st.none() | st.integers(1, 8),
    configured=st.none() | st.integers(1, 8),
)
def test_what_is_given_and_a_config_come_before_the_count(
    indices: set[int], given: int | None, configured: int | None
) -> None:
    rules = remapkit.loads(
        SD3,
        params=None if given is None else {"layers": given},
        config=None if configured is None else {"num_layers": configured},
    )
    largest = max(indices) + 1 if indices else 24
    layers = next(value for value in (given, configured, largest) if value is not None)
    header = {f"j.{i}.w": remapkit.TensorSpec("F32", (4,)) for i in sorted(indices)}
    plan = rules.plan({**header, "head": remapkit.TensorSpec("F32", (1,))})
    assert plan.ok == all(i < layers for i in indices)
    flipped = [move.target for move in plan.moves if move.ops]
    assert flipped == ([f"b.{layers - 1}.w"] if layers - 1 in indices else [])
    notes = [each.title for each in plan.warnings if each.code == "RK372"]
    if given is not None or configured is not None:
        assert notes == []
    elif plan.ok:
        counted = f"layers = {largest}, counted by" if indices else "layers = 24, its own value: no key matches"
        assert notes == [f"{counted} j.{{i:int}}.{{r:**}}"]


def test_a_state_dict_a_diff_and_a_check_count_too(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert remapkit.load(pack)({"head": 1}) == {"head": 1}
    save_file(make_state(3), tmp_path / "a.safetensors")
    save_file({name: np.float32(value) for name, value in wanted(3).items()}, tmp_path / "b.safetensors")
    assert remapkit.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rules_a=pack).identical == 4
    options = ["--ckpt", str(tmp_path / "a.safetensors"), "--target-keys", str(tmp_path / "b.safetensors")]
    assert main(["check", str(pack), *options]) == 0
    assert "layers = 3, counted by j.{i:int}.{r:**}" in "".join(capsys.readouterr())


def test_plain_renames_of_a_state_dict_count() -> None:
    """Also where the values of the file would give each key a target."""
    text = write_rule("y.{n-1-i}", value=1)
    assert remapkit.loads(write_rule("y.{n-1-i}", value=5))({"x.0": 0, "x.1": 1}) == {"y.1": 0, "y.0": 1}
    assert remapkit.loads(text)({"x.0": 0, "x.1": 1, "x.2": 2}) == {"y.2": 0, "y.1": 1, "y.0": 2}


def test_rules_are_proven_for_what_was_counted(tmp_path: Path) -> None:
    """With three levels two keys become one; the two that the file has itself are fine."""
    (tmp_path / "t.yaml").write_text(write_rule("y.{i%2}", value=2))
    assert remapkit.lint(tmp_path / "t.yaml").ok and not remapkit.lint(tmp_path / "t.yaml", params={"n": 3}).ok
    save_file({"x.2": np.ones(1)}, tmp_path / "in.safetensors")
    with pytest.raises(InvalidRules, match="RK2"):
        remapkit.apply(tmp_path / "t.yaml", tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(InvalidRules, match="RK2"):
        remapkit.check(
            tmp_path / "t.yaml",
            ckpt=tmp_path / "in.safetensors",
            target_keys={"y.0": remapkit.TensorSpec("F64", (1,))},
        )


@pytest.mark.parametrize("index", [10_001, 10**17, 10**40])
def test_an_absurd_index_is_a_problem_of_the_plan(index: int) -> None:
    plan = remapkit.loads(SD3).plan({f"j.{index}.w": remapkit.TensorSpec("F32", (4,))})
    assert [each.code for each in plan.problems] == ["RK135"] and not plan.moves


def test_an_operation_may_use_a_count_without_a_value() -> None:
    text = (
        "remapkit: 1\nname: t\nparams: {n: {count: 'e.{k:int}.{l:int}', by: l}}\n"
        "rules:\n  - {id: r, path: 'x', ops: [{reshape: [n, -1]}], to: 'y'}\nkeep: ['e.{r:**}']\n"
    )
    header = {name: remapkit.TensorSpec("F32", (12,)) for name in ("x", "e.9.0", "e.1.2")}
    assert remapkit.loads(text).plan(header).target["y"].shape == (3, 4)
    with pytest.raises(FailedCheck, match="RK341"):
        remapkit.loads(text).plan({"x": header["x"]}).raise_for_problems()


@pytest.mark.parametrize(
    ("written", "code", "said"),
    [
        ("{count: 'x.{i}'}", "RK371", "the param 'n': x.{i} captures no integer to count"),
        ("{count: 'x.{i:int}.{j:int}'}", "RK371", "captures several integers, i and j"),
        ("{count: 'x.{i:int}', by: j}", "RK371", "'j' is not an integer capture"),
        ("{count: 'x.{i:0..m}'}", "RK135", "not a range"),
        ("{count: 'x.*'}", "RK219", "a path must be plain text"),
        ("{by: i}", "RK021", "count"),
    ],
)
def test_what_is_said_of_a_bad_count(written: str, code: str, said: str) -> None:
    with pytest.raises(InvalidRules) as caught:
        remapkit.loads(f"remapkit: 1\nname: t\nparams:\n  m: 3\n  n: {written}\nkeep: [a]\n")
    (problem,) = caught.value.diagnostics
    assert problem.code == code and said in problem.title + "".join(problem.help)
    assert str(problem.span).startswith("<string>:5:")


def test_explain_shows_the_values_that_keys_depend_on(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(pack), "j.2.w", "--param", "layers=3"]) == 0
    assert "with layers = 3" in capsys.readouterr().out
    assert main(["explain", str(pack), "j.2.w", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["keys"][0]["params"] == {"layers": 24}


def test_the_inverse_does_not_count_on_the_other_side(pack: Path) -> None:
    text = remapkit.invert(pack, params={"layers": 3}).text
    assert "layers: {config: num_layers, value: 3}" in text and "count" not in text
    rules = remapkit.load(pack)
    header = {f"j.{i}.w": remapkit.TensorSpec("F32", (4,)) for i in range(3)}
    back = remapkit.loads(text).plan(dict(rules.plan(header).target))
    assert back.ok and dict(back.target) == header
    with pytest.raises(RemapkitError, match="RK370"):
        remapkit.loads(text, config={"num_layers": 4}).plan(dict(rules.plan(header).target)).raise_for_problems()
