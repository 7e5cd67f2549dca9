"""`require:` with conditions on params and with dtypes: against Python's own comparisons, in every command."""

from __future__ import annotations

import json
import operator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck, InvalidRules

HEAD = "remapkit: 1\nname: t\n"
SIGNS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 20),
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from(list(SIGNS)),
    st.integers(0, 9),
    st.data(),
)
def test_a_condition_is_what_python_compares(
    a: int, b: int, layers: int, sign: str, number: int, data: st.DataObject
) -> None:
    """`n` is counted in the checkpoint; its own value, 99, is never what is compared."""
    names = {"a": a, "b": b, "n": layers, f"{number}": number}
    forms = [*names.items(), ("a % b", a % b), ("floor(a/b) + n", a // b + layers), ("2*n", 2 * layers)]
    (left, x), (right, y) = (data.draw(st.sampled_from(forms)) for _ in "lr")
    space = data.draw(st.sampled_from(("", " ")))
    rules = remapkit.loads(
        HEAD + f"params: {{a: {a}, b: {b}, n: {{count: 'l.{{i:int}}', value: 99}}}}\nkeep: ['l.{{i:int}}']\n"
        f"require: [{{that: '{left}{space}{sign}{space}{right}'}}]\n"
    )
    plan = rules.plan({f"l.{i}": remapkit.TensorSpec("F32", (1,)) for i in range(layers)})
    assert plan.ok == SIGNS[sign](x, y)
    assert all(each.code == "RK370" and str(x) in each.title + left for each in plan.problems)


def test_the_message_has_the_values_of_both_sides_and_of_every_param() -> None:
    rules = remapkit.loads(
        HEAD + "params: {heads: 12, kv: [5, 8]}\nkeep: [a]\nrequire: [{that: 'heads % kv[0] == 0'}]\n"
    )
    (problem,) = rules.plan({"a": remapkit.TensorSpec("F32", (1,))}).problems
    assert problem.title == "heads % kv[0] == 0 must hold, but heads % kv[0] is 2, heads is 12 and kv is [5, 8]"


RULES = (
    HEAD + "params: {heads: 12}\nkeep: ['w.{i:int}']\nrequire:\n  - {that: heads % 8 == 0}\n"
    "  - {dtype: 'w.{i:int}', is: [F32, BF16]}\n  - {shape: 'w.{i:int}', is: ['2*size(1)', any]}\n"
    "tests: {w.0: w.0}\n"
)


def test_every_command_refuses_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules, source, output = tmp_path / "r.yaml", tmp_path / "a.safetensors", tmp_path / "o.safetensors"
    rules.write_text(RULES.replace("keep", "source: {keys: a.safetensors}\nkeep"))
    save_file(
        {"w.0": torch.zeros(4, 2), "w.1": torch.zeros(4, 2, dtype=torch.float16), "w.2": torch.zeros(3, 2)}, source
    )
    wanted = {
        "heads % 8 == 0 must hold, but heads % 8 is 4 and heads is 12",
        "w.1 must have the dtype F32 or BF16, got F16",
        "w.2 must have the shape [2*size(1), any], got [3, 2]",
    }
    for command in (
        ("apply", str(rules), str(source), "-o", str(output)),
        ("check", str(rules), "--ckpt", str(source), "--target-keys", str(source)),
        ("test", str(rules)),
    ):
        assert main([*command, "--format", "json"]) == 1, command
        said = json.loads(capsys.readouterr().out)["diagnostics"]
        assert wanted <= {each["title"] for each in said if each["code"] == "RK370"}, command
    assert not output.exists()
    model = nn.Module()
    for i in range(3):
        model.register_parameter(f"w_{i}", nn.Parameter(torch.ones(4, 2)))
    with pytest.raises(FailedCheck, match="heads % 8 == 0 must hold"):
        remapkit.load_into(model, source, remapkit.load(rules))
    assert remapkit.load(rules, params={"heads": 16}).plan({"w.0": remapkit.TensorSpec("BF16", (4, 2))}).ok


@pytest.mark.parametrize(
    ("entry", "code", "at"),
    [
        ("{that: 'headz > 3'}", "RK162", "headz > 3"),
        ("{that: 'heads = 3'}", "RK371", "heads = 3"),
        ("{that: 'heads > 3 > 2'}", "RK371", "heads > 3 > 2"),
        ("{that: heads}", "RK371", "heads"),
        ("{that: 'heads > (2'}", "RK161", "("),
        ("{that: 'size(0) > 2'}", "RK162", "size(0) > 2"),
        ("{that: 'heads > 2', is: 3}", "RK371", "3"),
        ("{dtype: w, is: bf16}", "RK371", "bf16"),
        ("{dtype: w, is: [F32, 8]}", "RK371", "8"),
        ("{dtype: w}", "RK021", "dtype"),
    ],
)
def test_what_cannot_be_read_is_refused_at_its_place(entry: str, code: str, at: str) -> None:
    with pytest.raises(InvalidRules) as caught:
        remapkit.loads(HEAD + f"params: {{heads: 8}}\nkeep: [w]\nrequire: [{entry}]\n")
    (problem,) = caught.value.diagnostics
    span = problem.labels[0].span
    assert problem.code == code and span.source.text[span.start : span.end] == at, problem


def test_the_inverse_keeps_conditions_on_params() -> None:
    text = HEAD + (
        "params: {heads: {config: heads, value: 8}}\nrules: [{id: r, path: 'a.{i:int}', to: 'b.{i}'}]\n"
        "require: [{that: heads % 8 == 0, note: as published}, {dtype: 'a.{i:int}', is: F32}]\n"
    )
    inverse = remapkit.invert(remapkit.loads(text)).text
    assert (
        "{that: 'heads % 8 == 0', note: 'as published'}" in inverse
        and "about keys of the other side: a.{i:int}" in inverse
    )
    header = {"b.0": remapkit.TensorSpec("F16", (1,))}
    assert remapkit.loads(inverse).plan(header).ok
    assert {each.code for each in remapkit.loads(inverse, params={"heads": 9}).plan(header).problems} == {"RK370"}
