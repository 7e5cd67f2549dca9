"""Scaled weights and adapters: each case is one condition of the judge, beside its neighbour that is right."""

# ruff: noqa: E501 (tables of rules read as tables)
from __future__ import annotations

import pytest

from tests.core.plan_kit import F8, ONE, Header, codes, planned, warned

SCALED: Header = {"m.weight": F8, "m.weight_scale": ONE}
TWO: Header = {**SCALED, "m.weight_scale_2": ONE}
PAIR: Header = {f"{m}.{leaf}": spec for m in "ab" for leaf, spec in (("weight", F8), ("weight_scale", ONE))}
ROWS: Header = {fqn: ("F32", [256, 1]) if "scale" in fqn else spec for fqn, spec in PAIR.items()}
ADAPTERS: Header = {
    **{f"{m}.lora_{x}.weight": ("F32", [4, 4]) for m in ("q", "k") for x in ("up", "down")},
    "q.alpha": ONE,
    "k.alpha": ONE,
}
CAST = "rules: [{id: w, path: m.weight, ops: [{cast: %s}], to: m.weight}]\n"
BLOCKS: Header = {"m.weight": F8, "m.weight_scale": ("F32", [2, 2])}
RESHAPE = "rules: [{id: s, path: m.weight_scale, ops: [%s], to: m.weight_scale}]\nkeep: [m.weight]"
W1: Header = {"m.w1": F8, "m.w1_scale": ONE, "m.w2": ("BF16", [4, 4])}

# row, the rules, the header, the codes of problems and of warnings
CASES: list[tuple[str, str, Header, list[str]]] = [
    ("a scale by its new name", "rules: [{id: s, path: b.x, to: a.weight_scale}]\nkeep: [a.weight]", {"a.weight": F8, "b.x": ONE}, ["RK364"]),
    ("a name that scales nothing", "rules: [{id: s, path: b.x, to: a.bias}]\nkeep: [a.weight]", {"a.weight": F8, "b.x": ONE}, []),
    ("integers cast, scale kept", CAST % "I32" + "keep: [m.weight_scale]", {"m.weight": ("I8", [4]), "m.weight_scale": ONE}, ["RK365"]),
    ("cast, both scales kept", CAST % "BF16" + "keep: ['m.{s}']".replace("{s}", "{s:weight_scale|weight_scale_2}"), TWO, ["RK365"]),
    ("cast, one of two scales kept", CAST % "BF16" + "keep: [m.weight_scale]\ndrop: [m.weight_scale_2]", TWO, ["RK366"]),
    ("copied with its scale", "rules: [{id: c, path: 'm.{x:weight|weight_scale}', copy: ['a.{x}', 'b.{x}']}]", SCALED, []),
    ("copied without its scale", "rules: [{id: c, path: m.weight, copy: [a.weight, b.weight]}, {id: s, path: m.weight_scale, to: a.weight_scale}]", SCALED, ["RK364"]),
    ("a name that fits another weight", "rules: [{id: s, path: m.w1_scale, to: m.w2_scale}]\nkeep: [m.w1, m.w2]", W1, ["RK364"]),
    ("a name that fits no weight", "rules: [{id: s, path: m.w1_scale, to: m.w3_scale}]\nkeep: [m.w1, m.w2]", W1, []),
    ("a scale of zeros is added", "add: [{to: m.weight_scale, fill: zeros, shape: [], dtype: F32}]\nkeep: [m.weight]", {"m.weight": F8}, ["RK364"]),
    ("a scale of ones is added", "add: [{to: m.weight_scale, fill: ones, shape: [], dtype: F32}]\nkeep: [m.weight]", {"m.weight": F8}, []),
    ("scales of blocks are reshaped", RESHAPE % "{reshape: [4]}", BLOCKS, ["RK363"]),
    ("one scale is reshaped", RESHAPE % "{reshape: [1]}", SCALED, []),
    ("one scale is cast and back", RESHAPE % "{cast: F64}, {unsqueeze: 0}", SCALED, []),
    ("one scale is rounded", RESHAPE % "{cast: BF16}", SCALED, ["RK363"]),
    ("two rules, one fault each", "rules: [{id: a, path: a.weight, ops: [transpose], to: a.weight}, {id: b, path: b.weight, ops: [transpose], to: b.weight}]\nkeep: ['{m}.weight_scale']", ROWS, ["RK362", "RK362"]),
    ("one rule, two faults", "rules: [{id: a, path: '{m}.weight', ops: [transpose], to: '{m}.weight'}]\nkeep: ['{m}.weight_scale']", ROWS, ["RK362"]),
    ("one number for all elements, wherever they go", "rules: [{id: a, path: '{m}.weight', ops: [transpose], to: '{m}.weight'}]\nkeep: ['{m}.weight_scale']", PAIR, []),
    ("adapters are joined", "rules: [{id: j, concat: {dim: 0, from: [q.lora_up.weight, k.lora_up.weight]}, to: j.weight}]\nkeep: ['{m}.lora_down.weight', '{m}.alpha']", ADAPTERS, ["RK362"]),
    ("an alpha beside a module of a longer name", "rules: [{id: a, path: q.alpha, to: q2.alpha}]\nkeep: ['{m}.{x:lora_up|lora_down}.weight', k.alpha]", ADAPTERS, ["RK364"]),
    ("adapters are renamed", "rules: [{id: a, path: 'q.{r:**}', to: 'q2.{r}'}]\nkeep: ['k.{r:**}']", ADAPTERS, []),
]  # fmt: skip


@pytest.mark.parametrize(("body", "header", "wanted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_condition_of_the_judge(body: str, header: Header, wanted: list[str]) -> None:
    plan = planned(body, header)
    found = [code for code in codes(plan) + warned(plan) if code.startswith("RK36")]
    assert found == wanted, [str(each) for each in plan.problems]
    assert set(codes(plan)) == set(wanted) - {"RK365"}
