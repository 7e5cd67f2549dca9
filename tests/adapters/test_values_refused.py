"""What no adapter can follow is refused with its reason; what is close to it is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.adapters.build import Options
from remapkit.adapters.fit import fit_to_model
from remapkit.diagnostics.errors import FailedCheck
from tests.adapters import value_kit as kit
from tests.adapters.random_rules import Case, Shape

M = {"m.weight": (4, 6)}
CONV = {"m.weight": (4, 6, 3, 3)}
TWO = {"a.weight": (4, 6), "b.weight": (4, 6)}
STACKS = {"a": (3, 4, 6), "b": (3, 4, 6)}
EXPERTS = {"e.0.a.weight": (4, 6), "e.0.b.weight": (4, 6), "e.1.a.weight": (4, 6), "e.1.b.weight": (4, 6)}
LORA, DORA = ("lora",), ("lora", "magnitude")
Parts = tuple[str, ...] | Mapping[str, tuple[str, ...]]

REFUSED: dict[str, tuple[str, dict[str, Shape], Parts, str]] = {
    "multiply": (
        "path: m.weight, multiply: {by: s}, to: t.weight",
        {**M, "s": (4, 1)},
        {"m.weight": LORA},
        "multiply changes the weight by another tensor, and its update with it",
    ),
    "divide": (
        "path: m.weight, divide: {by: s}, to: t.weight",
        {**M, "s": (4, 1)},
        {"m.weight": LORA},
        "divide changes the weight by another tensor, and its update with it",
    ),
    "fold_weight_norm": (
        "path: m.weight, fold_weight_norm: {g: g, dim: 0}, to: t.weight",
        {**M, "g": (4, 1)},
        {"m.weight": LORA},
        "fold_weight_norm changes the weight by another tensor, and its update with it",
    ),
    "reshape over rows and columns": (
        "path: m.weight, ops: [{reshape: [6, 4]}], to: t.weight",
        M,
        LORA,
        "mixes the rows and the columns of a weight",
    ),
    "rows become part of columns": (
        "path: m.weight, ops: [{rearrange: {pattern: '(x a) b -> a (b x)', x: 2}}], to: t.weight",
        M,
        LORA,
        "the result mixes the rows and the columns of the weight",
    ),
    "an order of rows and columns together": (
        "path: m.weight, ops: [{reshape: [24]}, {flip: {dim: 0}}, {reshape: [4, 6]}], to: t.weight",
        M,
        LORA,
        "flip along a dimension that has rows and columns of the weight",
    ),
    "a flat weight": ("path: m.weight, ops: [{reshape: [24]}], to: t", M, LORA, "the result is not a matrix: [24]"),
    "more than one where there was one": (
        "path: m.weight, ops: [{unsqueeze: 2}, {pad: {dim: 2, to: 3}}], to: t.weight",
        M,
        LORA,
        "pad along a dimension of size 1 that the weight did not have",
    ),
    "stacked convolutions": (
        "path: 'e.{e:int}.weight', stack: {dim: 0, by: e}, to: t",
        {"e.0.weight": (4, 6, 3), "e.1.weight": (4, 6, 3)},
        LORA,
        "it stacks convolutions",
    ),
    "columns concatenated and stacked": (
        "concat: {dim: 1, from: ['e.{e:int}.a.weight', 'e.{e:int}.b.weight']}, stack: {dim: 0, by: e}, to: t",
        EXPERTS,
        LORA,
        "it concatenates columns and stacks the results",
    ),
    "stacks joined": ("concat: {dim: 1, from: [a, b]}, to: t", STACKS, LORA, "it joins stacks of matrices"),
    "a stack with a further dimension": (
        "path: m, ops: [{unsqueeze: 3}], to: t",
        {"m": (3, 4, 6)},
        LORA,
        "the result is a stack, but not of matrices: [3, 4, 6, 1]",
    ),
    "a stack whose matrices become one": (
        "path: m, ops: [{rearrange: {pattern: 'e a b -> (e a) b'}}], to: t",
        {"m": (3, 4, 6)},
        LORA,
        "the result mixes the rows and the columns of the weight",
    ),
    "rows of a stack in front of a dimension of one": (
        "path: m, ops: [{rearrange: {pattern: 'e a b -> (e a) 1 b'}}], to: t",
        {"m": (3, 4, 6)},
        LORA,
        "the result mixes the rows and the columns of the weight",
    ),
    "copies merged, one without an adapter": (
        "merge: [a.weight, b.weight], to: t.weight",
        TWO,
        {"a.weight": LORA},
        "copies of one tensor are merged, and b.weight has no adapter: they would differ",
    ),
    "a magnitude of rows that become columns": (
        "path: m.weight, ops: [transpose], to: t.weight",
        M,
        DORA,
        "a magnitude is of rows, and the rows become columns",
    ),
    "a magnitude of rows that are cut": (
        "path: m.weight, ops: [{slice: {dim: 1, start: 0, stop: 3}}], to: t.weight",
        M,
        DORA,
        "slice changes the rows, and with them the norms that a magnitude is for",
    ),
    "a magnitude of rows that are cut in a split": (
        "path: m.weight, split: {dim: 1, into: [t.weight, u.weight]}",
        M,
        DORA,
        "slice changes the rows, and with them the norms that a magnitude is for",
    ),
    "a magnitude of rows that repeat a column": (
        "path: m.weight, ops: [{index: {dim: 1, order: [0, 0, 1, 2, 3, 4]}}], to: t.weight",
        M,
        DORA,
        "index changes the rows, and with them the norms that a magnitude is for",
    ),
    "a magnitude where rows are new": (
        "path: m.weight, ops: [{pad: {dim: 0, to: 5}}], to: t.weight",
        M,
        DORA,
        "pad changes the rows, and with them the norms that a magnitude is for",
    ),
    "a magnitude where something is added": (
        "path: m.weight, ops: [{add: 1}], to: t.weight",
        M,
        DORA,
        "add changes the rows, and with them the norms that a magnitude is for",
    ),
    "magnitudes of rows that are joined": (
        "concat: {dim: 1, from: [a.weight, b.weight]}, to: t.weight",
        TWO,
        DORA,
        "a magnitude is of rows, and rows are joined to longer ones",
    ),
    "a magnitude for some of the rows": (
        "concat: {dim: 0, from: [a.weight, b.weight]}, to: t.weight",
        TWO,
        {"a.weight": DORA, "b.weight": LORA},
        "a part of the whole is missing: there is none for b.weight",
    ),
    "LoHa": (
        "path: m.weight, ops: [transpose], to: t.weight",
        M,
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        "LoHa follows renames, and this changes the weight",
    ),
    "LoKr": (
        "path: m.weight, split: {dim: 0, into: [t.weight, u.weight]}",
        M,
        ("lokr_w1", "lokr_w2"),
        "LoKr follows renames, and this changes the weight",
    ),
    "a Tucker decomposition": (
        "path: m.weight, split: {dim: 0, into: [t.weight, u.weight]}",
        CONV,
        ("lora", "lora_mid.weight"),
        "a LoRA with a `mid` matrix follows renames, and this changes the weight",
    ),
}
LOOSE: Mapping[str, Shape] = {
    "hada_w1_a": (4, 2), "hada_w1_b": (2, 6), "hada_w2_a": (4, 2), "hada_w2_b": (2, 6),
    "lokr_w1": (2, 2), "lokr_w2": (2, 3), "lora_mid.weight": (1, 1, 3, 3),
}  # fmt: skip


def make(rule: str, shapes: Mapping[str, Shape], parts: Parts, style: str = "kohya") -> tuple[Case, kit.LoRA]:
    own = parts if isinstance(parts, Mapping) else dict.fromkeys(shapes, parts)
    case = Case(rule, dict(shapes), style, dict(own))
    lora = kit.make_adapter(
        case, {weight: 1 if "lora_mid.weight" in own[weight] else 1 + at % 3 for at, weight in enumerate(own)}, {}
    )
    for weight, leaves in own.items():
        name = kit.name_module(style, weight)
        lora.tensors |= {f"{name}.{leaf}": torch.rand(LOOSE[leaf]) for leaf in leaves if leaf in LOOSE}
    return case, lora


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_follow_is_refused_with_its_reason(name: str) -> None:
    rule, shapes, parts, reason = REFUSED[name]
    case, lora = make(rule, shapes, parts)
    weights = {key: torch.rand(shape) for key, shape in shapes.items()}
    with pytest.raises(FailedCheck, match=re.escape(reason)) as caught:
        kit.build(remapkit.loads(case.text), weights, lora, Options())
    assert "cannot follow: " in str(caught.value) and "  --> " in str(caught.value)


MISFITS = {
    "other sizes": ({"m.lora_up.weight": (4, 2), "m.lora_down.weight": (2, 5)}, "must fit the weight, [4, 6]"),
    "two ranks": ({"m.lora_up.weight": (4, 2), "m.lora_down.weight": (3, 6)}, "must fit the weight, [4, 6]"),
    "one matrix": ({"m.lora_up.weight": (4, 2)}, "`down` matrix is missing"),
    "a magnitude for columns": ({"m.dora_scale": (1, 6)}, "must be [4] or [4, 1], got [1, 6]"),
    "a difference of another size": ({"m.diff": (4, 5)}, "the tensor must be [4, 6], got [4, 5]"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_its_weight_is_refused(name: str) -> None:
    shapes, reason = MISFITS[name]
    lora = kit.LoRA({f"lora_unet_{key}": torch.rand(shape) for key, shape in shapes.items()})
    case = Case("path: m.weight, ops: [{flip: {dim: 0}}], to: t.weight", dict(M))
    with pytest.raises(FailedCheck, match=re.escape(reason)):
        kit.build(remapkit.loads(case.text), {"m.weight": torch.rand(4, 6)}, lora, Options())


FOLLOWED: dict[str, tuple[str, dict[str, Shape], Parts]] = {
    "a convolution becomes linear": (
        "path: m.weight, ops: [{reshape: [4, 6]}], to: t.weight",
        {"m.weight": (4, 6, 1, 1)},
        DORA,
    ),
    "a linear layer becomes a convolution": (
        "path: m.weight, ops: [{reshape: [4, 6, 1, 1]}], to: t.weight",
        M,
        DORA,
    ),
    "a kernel is flipped and turned": (
        "path: m.weight, ops: [{permute: [0, 1, 3, 2]}, {flip: {dim: 2}}], to: t.weight",
        {"m.weight": (4, 6, 1, 3)},
        LORA,
    ),
    "rows and back": ("path: m.weight, ops: [transpose, transpose], to: t.weight", M, DORA),
    "experts": (
        "concat: {dim: 0, from: ['e.{e:int}.a.weight', 'e.{e:int}.b.weight']}, stack: {dim: 0, by: e}, to: t",
        EXPERTS,
        {"e.0.b.weight": LORA, "e.1.a.weight": LORA, "e.1.b.weight": LORA},
    ),
    "experts, of which the first has none": (
        "path: 'e.{e:int}.a.weight', stack: {dim: 0, by: e}, ops: [{transpose: [1, 2]}, {flip: {dim: 0}}], to: t",
        {f"e.{at}.a.weight": (4, 6) for at in range(3)},
        {"e.1.a.weight": LORA, "e.2.a.weight": LORA},
    ),
    "a stack in reverse": ("path: m, ops: [{permute: [0, 2, 1]}, {flip: {dim: 0}}], to: t", {"m": (3, 4, 6)}, LORA),
    "some of a stack": (
        "path: m, ops: [{slice: {dim: 0, start: 1, stop: 3}}, {pad: {dim: 1, to: 5}}], to: t",
        {"m": (3, 4, 6)},
        LORA,
    ),
    "parts without an adapter in front and between": (
        "concat: {dim: 0, from: [a.weight, b.weight, c.weight, d.weight]}, to: t.weight",
        {f"{name}.weight": (size, 6) for name, size in (("a", 2), ("b", 3), ("c", 4), ("d", 5))},
        {"b.weight": LORA, "d.weight": LORA},
    ),
    "columns without an adapter": (
        "concat: {dim: 1, from: [a.weight, b.weight, c.weight]}, to: t.weight",
        {f"{name}.weight": (4, size) for name, size in (("a", 2), ("b", 3), ("c", 4))},
        {"b.weight": LORA},
    ),
    "a change of sign, of rows with norms": ("path: m.weight, ops: [{scale: -2}], to: t.weight", M, DORA),
    "one of two copies becomes zeros": (
        "path: m.weight, copy: [{to: t.weight, ops: [zeros]}, u.weight]",
        M,
        LORA,
    ),
    "new rows": ("path: m.weight, ops: [{pad: {dim: 0, to: 6, value: 1}}], to: t.weight", M, LORA),
    "one of each stack": ("path: m, unstack: {dim: 0, by: e}, to: 't.{e}.weight'", {"m": (3, 4, 6)}, LORA),
    "a stack whose index comes to the front": (
        "path: 'e.{e:int}.a.weight', stack: {dim: 1, by: e}, ops: [{permute: [1, 0, 2]}], to: t",
        {f"e.{at}.a.weight": (4, 6) for at in range(3)},
        LORA,
    ),
    "one element in reverse": (
        "path: m.weight, ops: [{unsqueeze: 1}, {flip: {dim: 1}}, {squeeze: 1}], to: t.weight",
        M,
        DORA,
    ),
    "a dimension of one, which was of rows": (
        "path: m.weight, ops: [{reshape: [2, 2, 6]}], split: {dim: 1, into: [t.weight, u.weight]}",
        M,
        LORA,
    ),
    "biases of which the adapter has the whole": (
        "path: 'm.{leaf:weight|bias}', ops: [{add: 1}, {pad: {dim: 0, to: 6, value: 3}}], to: 't.{leaf}'",
        {**M, "m.bias": (4,)},
        {"m.weight": ("lora", "whole")},
    ),
    "differences, of which one is missing": (
        "concat: {dim: 1, from: [a.weight, b.weight]}, to: t.weight",
        TWO,
        {"b.weight": ("diff",)},
    ),
    "differences of a stack": (
        "path: 'e.{e:int}.a.weight', stack: {dim: 1, by: e}, to: t.weight",
        {f"e.{at}.a.weight": (4, 6) for at in range(3)},
        {"e.1.a.weight": ("diff",)},
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_close_to_it_follows(name: str) -> None:
    rule, shapes, parts = FOLLOWED[name]
    has_whole = isinstance(parts, Mapping) and any("whole" in own for own in parts.values())
    for style in ("diffusers",) if has_whole else ("kohya", "comfy"):
        case, lora = make(rule, shapes, parts, style)
        weights = {key: torch.rand(shape) for key, shape in shapes.items()}
        rules = remapkit.loads(case.text)
        built, made = kit.build(rules, weights, lora, Options())
        assert kit.find_error(rules, weights, lora, built, made) <= 1e-6


@pytest.mark.parametrize(
    ("up", "down", "weight"),
    [
        ((4, 2, 1, 1), (2, 6, 1, 1), (4, 6)),
        ((4, 2), (2, 6, 1, 1), (4, 6)),
        ((4, 2, 1, 1), (2, 6), (4, 6, 1, 1)),
        ((4, 2), (2, 6), (4, 6, 1, 1)),
        ((4, 2), (2, 6, 3), (4, 6, 3)),
    ],
)
def test_matrices_of_linear_layers_and_convolutions_take_the_form_of_their_weight(
    up: Shape, down: Shape, weight: Shape
) -> None:
    rules = remapkit.loads(Case("path: m.weight, ops: [{flip: {dim: 0}}], to: t.weight", {}).text)
    lora = kit.LoRA({"lora_unet_m.lora_up.weight": torch.rand(up), "lora_unet_m.lora_down.weight": torch.rand(down)})
    weights = {"m.weight": torch.rand(weight)}
    built, made = kit.build(rules, weights, lora, Options())
    assert kit.find_error(rules, weights, lora, built, made) <= 1e-6
    assert made["lora_unet_t.lora_down.weight"].shape == (2, *weight[1:])


JOINED = """remapkit: 1
name: joined
rules:
  - {{id: up, concat: {{dim: 1, from: [a.lora_up.weight, b.lora_up.weight]}}, to: t.lora_up.weight}}
  - {{id: down, concat: {{dim: 0, from: [a.lora_down.weight, b.lora_down.weight]}}, to: t.lora_down.weight}}
  - {{id: rows, concat: {{dim: 0, from: [a.dora_scale, b.dora_scale]}}, to: t.dora_scale}}
  - {{id: alpha, merge: [{{path: a.alpha, ops: [{{scale: {0}}}]}}, {{path: b.alpha, ops: [{{scale: {1}}}]}}],
     to: t.alpha}}
"""


@pytest.mark.parametrize(
    ("one", "other"), [("2.5", "1.6666666666666667"), ("2", "1.6666666666666667"), ("2.5", "2.5")]
)
def test_alphas_of_joined_adapters_are_for_the_joined_ranks(one: str, other: str) -> None:
    header: dict[str, Shape] = {"a.alpha": (), "b.alpha": ()}
    header |= {"a.lora_up.weight": (4, 2), "a.lora_down.weight": (2, 6), "a.dora_scale": (4, 1)}
    header |= {"b.lora_up.weight": (4, 3), "b.lora_down.weight": (3, 6), "b.dora_scale": (4, 1)}
    plan = remapkit.loads(JOINED.format(one, other)).plan(
        {key: remapkit.TensorSpec("F32", header[key]) for key in header}
    )
    is_right = (one, other) == ("2.5", "1.6666666666666667")
    assert {problem.code for problem in plan.problems} == (set() if is_right else {"RK362"})


def test_copies_that_are_merged_have_one_adapter() -> None:
    case, lora = make("merge: [a.weight, b.weight], ops: [{flip: {dim: 0}}], to: t.weight", TWO, LORA)
    for leaf in ("lora_up.weight", "lora_down.weight"):
        lora.tensors[f"lora_unet_b.{leaf}"] = lora.tensors[f"lora_unet_a.{leaf}"]
    weight, rules = torch.rand(4, 6), remapkit.loads(case.text)
    weights = {"a.weight": weight, "b.weight": weight}
    built, made = kit.build(rules, weights, lora, Options())
    assert kit.find_error(rules, weights, lora, built, made) <= 1e-6
    lora.tensors["lora_unet_b.lora_up.weight"] = lora.tensors["lora_unet_a.lora_up.weight"] * 2
    with pytest.raises(remapkit.RemapkitError, match="merge"):
        kit.build(rules, weights, lora, Options())


def test_what_dequantizes_a_weight_leaves_its_adapter() -> None:
    text = "path: m.weight, dequantize: {scale: m.scale, to: F32}, to: t.weight"
    case, lora = make(text, {"m.weight": (4, 6), "m.scale": (4, 1)}, {"m.weight": LORA})
    weights = {"m.weight": torch.rand(4, 6).to(torch.float8_e4m3fn), "m.scale": torch.rand(4, 1)}
    _, made = kit.build(remapkit.loads(case.text), weights, lora, Options())
    assert set(made) == {"lora_unet_t.lora_up.weight", "lora_unet_t.lora_down.weight"}
    assert all(torch.equal(made[key], lora.tensors[key.replace("_t.", "_m.")]) for key in made)


@pytest.mark.parametrize(("leaf", "is_row"), [("lora_magnitude_vector", True), ("dora_scale", False)])
def test_a_magnitude_of_columns_is_not_taken_for_one_of_rows(leaf: str, is_row: bool) -> None:
    """[1, C, 1, 1] of a convolution [C, C, 3, 3]: PEFT's rows, but ComfyUI's columns."""
    style = "peft" if is_row else "comfy"
    case, lora = make("path: m.weight, to: t.weight", {"m.weight": (4, 4, 3, 3)}, LORA, style)
    lora.tensors[f"{kit.name_module(style, 'm.weight')}.{leaf}"] = torch.rand(1, 4, 1, 1)
    rules, weights = remapkit.loads(case.text), {"m.weight": torch.rand(4, 4, 3, 3)}
    header = kit.spec_of(lora.tensors)
    assert (fit_to_model(header, kit.spec_of(weights)).fitting == header) == is_row
    if is_row:
        built, made = kit.build(rules, weights, lora, Options())
        assert kit.find_error(rules, weights, lora, built, made) <= 1e-6
        return
    with pytest.raises(FailedCheck, match=re.escape("must be [4] or [4, 1, 1, 1], got [1, 4, 1, 1]")):
        kit.build(rules, weights, lora, Options())


def test_no_update_needs_no_order() -> None:
    """Where an update becomes zeros, it does not matter which layers store [IN, OUT]."""
    case, lora = make("path: '{x:m|n}.weight', copy: ['t.{x}.weight', {to: 'u.{x}.weight', ops: [zeros]}]", M, LORA)
    _, made = kit.build(remapkit.loads(case.text), {"m.weight": torch.rand(4, 6)}, lora, Options("peft"))
    assert set(made) == {f"base_model.model.t.m.lora_{side}.weight" for side in "AB"}


# ------------------------------------------------------------------------------------------------ rounding


def round_to_bfloat16(exact: Fraction) -> Fraction:
    """Return the nearest number of 8 significant bits, the even one of two; the tests' numbers are normal."""
    if not exact:
        return exact
    unit = Fraction(1)
    while abs(exact) / unit >= 256:
        unit *= 2
    while abs(exact) / unit < 128:
        unit /= 2
    return round(exact / unit) * unit


@settings(max_examples=30)
@given(seed=st.integers(0, 999), alpha=st.sampled_from([1.0, 3.0, 5.0, 16.0]), rank=st.sampled_from([2, 3, 6, 7]))
def test_alpha_is_multiplied_in_with_one_rounding(seed: int, alpha: float, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(40, rank, generator=generator).bfloat16()
    lora = kit.LoRA({"lora_unet_m.lora_up.weight": up, "lora_unet_m.alpha": torch.tensor(alpha)})
    lora.tensors["lora_unet_m.lora_down.weight"] = torch.randn(rank, 6, generator=generator).bfloat16()
    rules = remapkit.loads(Case("path: m.weight, ops: [{flip: {dim: 0}}], to: t.weight", {}).text)
    _, made = kit.build(rules, {"m.weight": torch.rand(40, 6)}, lora, Options("diffusers"))
    got = made["transformer.t.lora_B.weight"].flip(0)
    assert got.dtype == torch.bfloat16
    for one, other in zip(up.flatten().tolist(), got.flatten().tolist(), strict=True):
        exact = Fraction(one) * Fraction(alpha) / rank
        assert Fraction(other) == round_to_bfloat16(exact)
    assert torch.equal(made["transformer.t.lora_A.weight"], lora.tensors["lora_unet_m.lora_down.weight"])


def test_an_alpha_of_a_config_is_multiplied_in_or_becomes_a_tensor() -> None:
    case, lora = make("path: m.weight, to: t.weight", M, LORA, "peft")
    lora.config = {"peft_type": "LORA", "r": 1, "lora_alpha": 3}
    lora.ranks = {"m.weight": 2}
    for leaf, shape in (("lora_B.weight", (4, 2)), ("lora_A.weight", (2, 6))):
        lora.tensors[f"base_model.model.m.{leaf}"] = torch.rand(shape)
    lora.config["rank_pattern"] = {"m": 2}
    rules, weights = remapkit.loads(case.text), {"m.weight": torch.rand(4, 6)}
    for format in ("diffusers", "kohya", "comfy", "peft"):
        built, made = kit.build(rules, weights, lora, Options(format, config=lora.read_config()))
        assert kit.find_error(rules, weights, lora, built, made) <= 1e-6
        if format in ("kohya", "comfy"):
            assert made[f"{kit.name_after(built, 't.weight')}.alpha"].item() == 3
