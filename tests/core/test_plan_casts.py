"""Casts of a plan: what `--dtype` changes and what it leaves, and what is said of casts that round."""

from __future__ import annotations

import itertools

import pytest
import torch

import remapkit
from remapkit.plans.cast import cast_plan
from remapkit.tensors.dtypes import is_exact_cast
from remapkit.tensors.from_torch import TORCH_DTYPES
from tests.core.plan_kit import F8, ONE, SMALL, codes, planned

KEEP = "keep: ['{all:**}']"
PLAIN = ("F32", "F16", "BF16", "F64")


def test_plain_floats_are_cast_and_the_rest_is_copied() -> None:
    header = {dtype: (dtype, [2]) for dtype in (*PLAIN, "I64", "BOOL", "U8")}
    cast = cast_plan(planned(KEEP, header), "BF16")
    assert {move.target: (move.spec.dtype, len(move.ops)) for move in cast.moves} == {
        dtype: ("BF16", 0 if dtype == "BF16" else 1) if dtype in PLAIN else (dtype, 0) for dtype in header
    }
    assert {(each.values["from"], each.values["to"]) for each in cast.warnings} == {
        ("F32", "BF16"),
        ("F16", "BF16"),
        ("F64", "BF16"),
    }


def test_each_rounding_is_noted_once_and_only_floats_become_infinite() -> None:
    body = "rules: [{id: r, path: a, ops: [{cast: BF16}], to: a}]\nkeep: [b]"
    plan = planned(body, {"a": ("F64", [2]), "b": ("F64", [2])})
    assert [each.title for each in plan.warnings] == ["1 tensor is cast from F64 to BF16, which rounds its values"]
    assert [each.title for each in cast_plan(plan, "fp16").warnings] == [
        "1 tensor is cast from F64 to BF16, which rounds its values",
        "1 tensor is cast from BF16 to F16, which rounds its values; values beyond 65504 become infinite",
        "1 tensor is cast from F64 to F16, which rounds its values; values beyond 65504 become infinite",
    ]


def test_a_recorded_name_is_cast_with_its_tensor() -> None:
    plan = planned("rules: [{id: r, path: '{r:**}', to: 'm.{r}'}]", {"a": SMALL}, recorded={"b": "a"})
    cast = cast_plan(plan, "bf16")
    assert cast.recorded["b"].spec.dtype == "BF16"
    assert cast.target.recorded == {"m.b": "m.a"}


@pytest.mark.parametrize(
    ("header", "title"),
    [
        ({"m.weight": F8, "m.weight_scale": ONE}, "1 tensor of 8-bit floats would be cast without their scales"),
        ({"m.weight": F8}, "1 tensor of 8-bit floats would be cast without their scales"),
        ({"w": ("I8", [4]), "w_scale": ONE}, "1 scaled weight would be kept, but the scales would be cast"),
    ],
)  # fmt: skip
def test_scaled_weights_are_not_cast(header: dict[str, tuple[str, list[int]]], title: str) -> None:
    (problem,) = cast_plan(planned(KEEP, header), "bf16").problems
    assert (problem.code, problem.title, problem.values["names"]) == ("RK346", title, [next(iter(header))])


# ------------------------------------------------------------------------------------------------ roundings


def roundings(body: str, header: dict[str, tuple[str, list[int]]]) -> dict[tuple[str, str], list[str]]:
    plan = planned(body, header)
    assert codes(plan) == []
    found = [each.values for each in plan.warnings if each.code == "RK345"]
    assert all(each["count"] == len(each["names"]) for each in found)
    return {(each["from"], each["to"]): each["names"] for each in found}


def test_a_chain_of_casts_is_followed() -> None:
    body = "rules: [{id: r, path: a, ops: [{cast: F64}, {cast: F16}, {cast: BF16}], to: b}]"
    assert roundings(body, {"a": SMALL}) == {("F64", "F16"): ["b"], ("F16", "BF16"): ["b"]}


def test_each_source_is_cast_by_its_own_operations_and_a_target_counts_once() -> None:
    body = (
        "rules:\n  - id: r\n    concat:\n      dim: 0\n      from:\n"
        "        - {path: 'a.{i:int}', ops: [{cast: BF16}]}\n"
        "        - 'b.{i:int}'\n"
        "        - {path: 'c.{i:int}', ops: [{cast: BF16}]}\n"
        "    to: 'd.{i}'\n"
    )
    header = {"a.0": ("F32", [2]), "b.0": ("BF16", [2]), "c.0": ("F32", [2])}
    assert roundings(body, header) == {("F32", "BF16"): ["d.0"]}
    swapped = body.replace("{path: 'a.{i:int}', ops: [{cast: BF16}]}", "'a.{i:int}'").replace(
        "- 'b.{i:int}'", "- {path: 'b.{i:int}', ops: [{cast: BF16}]}"
    )
    header = {"a.0": ("BF16", [2]), "b.0": ("F64", [2]), "c.0": ("F16", [2])}
    assert roundings(swapped, header) == {("F64", "BF16"): ["d.0"], ("F16", "BF16"): ["d.0"]}


def test_what_is_joined_and_then_cast() -> None:
    body = "rules: [{id: r, concat: {dim: 0, from: [a, b]}, ops: [{cast: F16}], to: c}]"
    assert roundings(body, {"a": SMALL, "b": SMALL}) == {("F32", "F16"): ["c"]}
    assert roundings("keep: [a]", {"a": SMALL}) == {}


@pytest.mark.parametrize("start", ["F16", "BF16", "F32"])
def test_a_chain_of_casts_is_noted_exactly_if_a_value_changes(start: str) -> None:
    """Every pattern of 16 bits (in F32: random ones) through every chain of three."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = bits.view(TORCH_DTYPES[start]) if start != "F32" else torch.randn(1 << 12)
    values = values[values.isfinite()]
    for chain in itertools.product(PLAIN, repeat=3):
        ops = ", ".join(f"{{cast: {dtype}}}" for dtype in chain)
        rules = remapkit.loads(f"remapkit: 1\nname: t\nrules: [{{id: r, path: a, ops: [{ops}], to: b}}]\n")
        noted = [each.values for each in rules.plan({"a": values}).warnings if each.code == "RK345"]
        made = rules({"a": values})["b"]
        changed = not torch.equal(made.double(), values.double())
        assert bool(noted) == changed or (noted and not is_exact_cast(start, chain[0])), (start, chain, noted)


@pytest.mark.parametrize("op", ["{scale: 1.1}", "{add: 1}", "{pad: {to: 8, value: 0.3}}", "{pad: {to: 'size(0)+1'}}"])
def test_what_is_calculated_between_casts_may_round_again(op: str) -> None:
    plan = planned(
        f"rules: [{{id: r, path: a, ops: [{{cast: F64}}, {op}, {{cast: F32}}], to: b}}]", {"a": ("BF16", [4])}
    )
    assert [(each.values["from"], each.values["to"]) for each in plan.warnings] == [("F64", "F32")]
