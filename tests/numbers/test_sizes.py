"""`size(k)` in the numbers of operations: the sizes of the tensor that each operation gets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.cli.app import main
from remapkit.compute.lazy import Leaf, build_tree
from remapkit.compute.stream import make_stripes
from remapkit.compute.torch_eager import run_ops
from remapkit.diagnostics.errors import FailedCheck, InvalidRules
from remapkit.ops.calls import SizedOp
from remapkit.ops.join import infer_move
from remapkit.tensors.elements import choose_word
from tests.ops.cases import Case, call_of, pads, raw, rearrangements, reshapes, same, slices, spec_of, turns

HEAD = "remapkit: 1\nname: t\n"


def in_sizes(draw: Any, written: Any, shape: tuple[int, ...]) -> Any:
    """The same operation with each number said by the sizes of the tensor."""
    if isinstance(written, dict):
        return {
            name: value if name in ("dim", "value", "pattern", "order") else in_sizes(draw, value, shape)
            for name, value in written.items()
        }
    if isinstance(written, list):
        return [in_sizes(draw, each, shape) for each in written]
    if not isinstance(written, int) or written < 0:  # -1 of a reshape is not a number
        return written
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[dim]
    forms = [
        f"size({dim}) - {size} + {written}",
        f"size( {dim} )*0 + {written}",
        f"{written} * (size({dim}) // {size})",
    ]
    return draw(st.sampled_from(forms if size else forms[:2]))


@settings(max_examples=300, deadline=None)
@given(st.one_of(slices(), pads(), reshapes(), rearrangements(), turns()), st.data(), st.sampled_from((8, 1 << 20)))
def test_a_number_in_sizes_is_the_number(case: Case, data: st.DataObject, stripe: int) -> None:
    written = in_sizes(data.draw, case.written, case.spec.shape)
    operation = call_of(written, tuple(case.params)).op(case.params)
    assert isinstance(operation, SizedOp) == ("size" in str(written))
    assert infer_move((operation,), [case.spec], ("a",)) == spec_of(case.expected)
    assert same(run_ops((operation,), [case.tensor]), case.expected)
    leaf = Leaf(case.spec, np.frombuffer(raw(case.tensor), choose_word(case.spec.dtype)).reshape(case.spec.shape))
    made = b"".join(bytes(piece) for piece in make_stripes(build_tree((operation,), [leaf]), stripe))
    assert made == raw(case.expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3))
def test_sizes_are_those_of_the_tensor_at_hand(rows: int, columns: int, more: int) -> None:
    """After a transpose, `size(0)` is the number of columns; a split has the sizes of what it splits."""
    rules = remapkit.loads(
        HEAD + f"params: {{more: {more}}}\nrules:\n"
        "  - id: r\n    path: 'a.{i:int}'\n"
        "    ops: [transpose, {pad: {dim: 0, to: '2*size(0) + more', value: 1}}, {pad: {dim: 1, to: 'size(0)+9'}}]\n"
        "    split: {dim: 1, sizes: ['size(1) - 3 - i', 'i + 1', 2], into: ['x.{i}', 'y.{i}', 'z.{i}']}\n"
    )
    tensor = torch.arange(float(rows * columns)).reshape(rows, columns)
    if rows > 2 * columns + more + 9:
        return
    made = rules({"a.0": tensor, "a.1": tensor})
    whole = torch.cat([tensor.t(), torch.ones(columns + more, rows)])
    whole = torch.cat([whole, torch.zeros(2 * columns + more, 2 * columns + more + 9 - rows)], 1)
    for i in (0, 1):
        for name, part in zip("xyz", whole.split([whole.shape[1] - 3 - i, i + 1, 2], 1), strict=True):
            assert torch.equal(made[f"{name}.{i}"], part)


def test_one_rule_for_tensors_of_several_sizes_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        HEAD + "rules:\n  - {id: vocabulary, path: '{m}.weight', ops: [{pad: {dim: 0, to: '8 * ceil(size(0) / 8)'}}],"
        " to: '{m}.weight'}\n"
        "  - {id: glu, path: '{m}.glu', split: {dim: 0, sizes: [size(0)//2, size(0)//2],"
        " into: ['{m}.gate', '{m}.up']}}\n"
    )
    state = {"a.weight": torch.randn(5, 2), "b.weight": torch.randn(16, 2), "c.glu": torch.randn(6, 2)}
    save_file(state, tmp_path / "a.safetensors")
    output = tmp_path / "o.safetensors"
    assert main(["apply", str(tmp_path / "r.yaml"), str(tmp_path / "a.safetensors"), "-o", str(output)]) == 0
    made = load_file(output)
    assert made["a.weight"].shape == (8, 2) and torch.equal(made["a.weight"][:5], state["a.weight"])
    assert torch.equal(made["b.weight"], state["b.weight"])
    assert torch.equal(made["c.gate"], state["c.glu"][:3]) and torch.equal(made["c.up"], state["c.glu"][3:])


@pytest.mark.parametrize(
    ("rule", "shape", "message"),
    [
        ("ops: [{pad: {to: 'size(2)'}}], to: b", (4, 2), "there is no size(2) in a tensor of 2 dimensions, [4, 2]"),
        ("ops: [{slice: {stop: 'size(0)//2'}}], to: b", (5, 2), "size(0)//2: 5 is not a multiple of 2"),
        ("ops: [{slice: {stop: 'size(0) - 9'}}], to: b", (5,), "`stop` of slice must be at least 0, got -4"),
        (
            "split: {dim: 0, sizes: ['size(0) - 5', 5], into: [x, y]}",
            (5, 2),
            "cannot split [5, 2]: a size must be at least 1, got 0",
        ),
        ("split: {dim: 0, sizes: ['size(0)', 5], into: [x, y]}", (5, 2), "cannot split 5 rows into 5 + 5 = 10"),
    ],
)
def test_a_tensor_whose_sizes_do_not_fit_is_named(rule: str, shape: tuple[int, ...], message: str) -> None:
    rules = remapkit.loads(HEAD + f"rules:\n  - {{id: r, path: a, {rule}}}\n")
    with pytest.raises(FailedCheck, match=re.escape(message)) as caught:
        rules({"a": torch.zeros(shape)})
    (problem,) = caught.value.diagnostics
    assert problem.code == "RK350" and "a (F32 [" in problem.notes[0] and problem.labels


@pytest.mark.parametrize(
    ("text", "code", "at"),
    [
        ("params: {n: 'size(0)'}\nkeep: [a]\n", "RK162", "size(0)"),
        ("add: [{to: x, fill: zeros, shape: ['size(0)'], dtype: F32}]\n", "RK162", "size(0)"),
        (
            "rules: [{id: r, path: 'a.{e:int}', stack: {dim: 0, by: e, count: 'size(0)'}, to: b}]\n",
            "RK162",
            "size(0)",
        ),
        ("rules: [{id: r, concat: {dim: 0, from: [a, b], sizes: ['size(0)', 4]}, to: c}]\n", "RK162", "size(0)"),
        ("rules: [{id: r, path: a, ops: [{slice: {stop: 'size(x)'}}], to: c}]\n", "RK161", "size("),
        ("rules: [{id: r, path: a, ops: [{slice: {stop: 'size()'}}], to: c}]\n", "RK161", "size("),
        ("rules: [{id: r, path: 'a.{i:int}', to: 'b.{size(0)}'}]\n", "RK150", "size(0)"),
        ("require: [{param: n, is: 'size(0)'}]\nparams: {n: 4}\nkeep: [a]\n", "RK162", "size(0)"),
    ],
)
def test_where_there_is_no_tensor_it_is_refused_at_its_place(text: str, code: str, at: str) -> None:
    with pytest.raises(InvalidRules) as caught:
        remapkit.loads(HEAD + text)
    (problem,) = caught.value.diagnostics
    span = problem.labels[0].span
    assert problem.code == code and span.source.text[span.start : span.end].strip("'") == at, problem


def test_a_split_in_sizes_has_an_inverse_and_an_operation_has_none() -> None:
    text = HEAD + (
        "rules:\n  - {id: glu, path: '{m}.glu', split: {dim: 0, sizes: [size(0)//2, size(0)//2],"
        " into: ['{m}.gate', '{m}.up']}}\n"
    )
    rules = remapkit.loads(text)
    state = {"a.glu": torch.randn(6, 2), "b.glu": torch.randn(4)}
    back = rules.inverse()(rules(state))
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    with pytest.raises(InvalidRules, match="uses size\\(k\\), and nothing keeps the sizes"):
        remapkit.loads(
            HEAD
            + "rules: [{id: r, path: a, ops: [{rearrange: {pattern: '(h d) c -> (d h) c', h: size(1)}}], to: b}]\n"
        ).inverse()


def test_params_and_captures_named_size_keep_their_meaning() -> None:
    rules = remapkit.loads(
        HEAD + "params: {size: 3, n: [4, 5]}\nrules:\n"
        "  - {id: r, path: 'a.{i:int}', to: 'b.{i}', ops: [{reshape: [size, 'n[0]', 'size(0)//size//n[0]']}]}\n"
    )
    assert rules.plan({"a.1": remapkit.TensorSpec("F32", (24,))}).target["b.1"].shape == (3, 4, 2)


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    page = (Path(remapkit.__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(remapkit: 1\nname: sizes\n.*?)```", page, re.DOTALL)
    rules = remapkit.loads(example)
    (tmp_path / "r.yaml").write_text(example)
    assert rules.prove().level.name == "ALL" and main(["test", str(tmp_path / "r.yaml")]) == 0
    fused = torch.arange(24.0).reshape(8, 3)
    made = rules({"embed.weight": torch.ones(70, 2), "h.0.fused": fused})
    assert made["embed.weight"].shape == (128, 2) and made["embed.weight"].sum() == 140
    assert [made[f"h.0.{name}"].tolist() for name in ("gate", "up", "rest")] == [
        fused[:2].tolist(),
        fused[2:4].tolist(),
        fused[4:].tolist(),
    ]
