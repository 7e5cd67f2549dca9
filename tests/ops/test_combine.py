"""`multiply`, `divide`, `dequantize`: every way to run them against torch, and what is refused."""

# ruff: noqa: E501 - tables of cases, one line each

from __future__ import annotations

import itertools
import math
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
from remapkit.api.ruleset import compile_rules
from remapkit.cli.app import main
from remapkit.compute.lazy import FileRange, Leaf, build_tree
from remapkit.compute.stream import make_stripes
from remapkit.compute.torch_eager import run_ops
from remapkit.diagnostics.errors import FailedCheck, InvalidRules
from remapkit.ops.base import RefusedOp
from remapkit.ops.byte_ranges import find_byte_ranges
from remapkit.ops.combine import QUANTIZED, Combine
from remapkit.ops.join import Join, infer_move, needs_values
from remapkit.ops.shape import Slice, Transpose
from remapkit.rulefile.read import read_text
from remapkit.tensors.elements import choose_word
from remapkit.tensors.from_torch import TORCH_DTYPES
from remapkit.tensors.spec import TensorSpec
from tests.ops.cases import random_tensor, raw, same, spec_of

FLOATS = ("F32", "F16", "BF16", "F64")


def leaf(tensor: torch.Tensor) -> Leaf:
    spec = spec_of(tensor)
    return Leaf(spec, np.frombuffer(raw(tensor), choose_word(spec.dtype)).reshape(spec.shape))


def spread(scale: torch.Tensor, shape: tuple[int, ...], widths: tuple[int, ...]) -> torch.Tensor:
    """The element of the scale for each element of the weight, one by one."""
    out = torch.empty(shape, dtype=scale.dtype)
    for index in itertools.product(*map(range, shape)):
        out[index] = scale[tuple(place // width for place, width in zip(index, widths, strict=True))]
    return out


@st.composite
def cases(draw: Any) -> tuple[Combine, torch.Tensor, torch.Tensor, torch.Tensor]:
    """An operation, both tensors, and the result."""
    shape = draw(st.lists(st.integers(1, 7), min_size=0, max_size=3).map(tuple))
    kind = draw(st.sampled_from(("dequantize", "multiply", "divide")))
    quantized = kind == "dequantize"
    to = draw(st.sampled_from(("BF16", "F16", "F32"))) if quantized else None
    block = draw(st.lists(st.integers(1, 4), min_size=0, max_size=len(shape)).map(tuple))
    whole = [draw(st.booleans()) for _ in shape]
    blocks = (0,) * (len(shape) - len(block)) + block
    widths = tuple(b or (n if all_of_it else 1) for n, b, all_of_it in zip(shape, blocks, whole, strict=True))
    scale_shape = tuple(math.ceil(n / width) for n, width in zip(shape, widths, strict=True))
    first = random_tensor(draw(st.sampled_from(QUANTIZED if quantized else FLOATS)), shape, draw(st.integers(0, 999)))
    other = random_tensor(draw(st.sampled_from((*FLOATS, "F8_E8M0"))), scale_shape, draw(st.integers(0, 999)))
    wide = torch.float64 if not quantized and torch.float64 in (first.dtype, other.dtype) else torch.float32
    by = spread(other.to(wide), shape, widths)
    made = first.to(wide) / by if kind == "divide" else first.to(wide) * by
    given = other.reshape(()) if other.numel() == 1 and not block and draw(st.booleans()) else other
    return Combine(kind, to, block), first, given, made.to(TORCH_DTYPES[to] if to else first.dtype)


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from((8, 64, 1 << 20)))
def test_it_is_what_torch_makes_of_it(
    case: tuple[Combine, torch.Tensor, torch.Tensor, torch.Tensor], stripe: int
) -> None:
    combine, first, other, expected = case
    ops = (Join(((), ()), None, None, combine=combine),)
    specs = [spec_of(first), spec_of(other)]
    assert infer_move(ops, specs, ("w", "s")) == spec_of(expected)
    assert find_byte_ranges(ops, specs) is None and needs_values(ops, specs)
    assert same(run_ops(ops, [first, other]), expected)
    data = b"".join(bytes(piece) for piece in make_stripes(build_tree(ops, [leaf(first), leaf(other)]), stripe))
    assert same(torch.frombuffer(bytearray(data), dtype=expected.dtype).reshape(expected.shape), expected)


@pytest.mark.parametrize("block", [(2, 4), (1, 1), (1, 9), (7, 1)])
def test_indices_and_slices_read_their_own_scales(block: tuple[int, int]) -> None:
    """Later operations read lists of rows, columns first, and ends of blocks."""
    sizes = tuple(math.ceil(size / width) for size, width in zip((7, 9), block, strict=True))
    first, scale = random_tensor("F8_E4M3", (7, 9), 1), random_tensor("F32", sizes, 2)
    combine = Combine("dequantize", "BF16", block)
    whole = (first.float() * spread(scale, (7, 9), block)).bfloat16()
    from tests.ops.cases import call_of

    for tail, expected in (
        ((Slice(0, 2, 7), Transpose()), whole[2:7].t()),
        (
            (call_of("flip").op({}), call_of({"index": {"dim": 1, "order": [8, 0, 4]}}).op({})),
            whole.flip(0)[:, [8, 0, 4]],
        ),
    ):
        ops = (Join(((), ()), None, None, combine=combine), *tail)
        data = b"".join(bytes(piece) for piece in make_stripes(build_tree(ops, [leaf(first), leaf(scale)]), 8))
        assert same(
            torch.frombuffer(bytearray(data), dtype=torch.bfloat16).reshape(expected.shape), expected.contiguous()
        )


def test_a_weight_that_no_memory_holds_is_dequantized_in_stripes() -> None:
    reads: list[int] = []

    def bytes_at(offset: int, length: int) -> bytes:
        reads.append(length)
        return bytes(length)

    sources = [
        FileRange(TensorSpec("F8_E4M3", (1 << 18, 1 << 18)), bytes_at),
        FileRange(TensorSpec("F32", (1 << 11, 1 << 11)), bytes_at),
    ]
    ops = (Join(((), ()), None, None, combine=Combine("dequantize", "BF16", (128, 128))),)
    assert len(next(make_stripes(build_tree(ops, sources), 1 << 20))) > 0
    assert 0 < sum(reads) < 8 << 20


# ----------------------------------------------------------------------------------------------------- rule files

HEAD = "remapkit: 1\nname: t\nparams: {size: 128}\nrules:\n"
BLOCKS = (
    HEAD + "  - {id: w, path: '{m:**}.weight', dequantize: {scale: '{m:**}.weight_scale_inv', block: [size, 128],"
    " to: BF16}, to: '{m}.weight'}\n"
)


@pytest.mark.parametrize("columns", [384, 300])
def test_blocks_in_a_file(columns: int, tmp_path: Path) -> None:
    weight, scale = torch.randn(256, columns).to(torch.float8_e4m3fn), torch.rand(2, 3)
    expected = (weight.float() * spread(scale, (256, columns), (128, 128))).bfloat16()
    state = {"l.0.weight": weight, "l.0.weight_scale_inv": scale}
    assert torch.equal(compile_rules(read_text(BLOCKS))(state)["l.0.weight"], expected)
    (tmp_path / "r.yaml").write_text(BLOCKS)
    save_file(state, tmp_path / "a.safetensors")
    assert (
        main(
            [
                "apply",
                str(tmp_path / "r.yaml"),
                str(tmp_path / "a.safetensors"),
                "-o",
                str(tmp_path / "o.safetensors"),
                "--verify",
            ]
        )
        == 0
    )
    assert torch.equal(load_file(tmp_path / "o.safetensors")["l.0.weight"], expected)


def test_experts_with_a_scale_each_become_one_tensor() -> None:
    text = HEAD + (
        "  - {id: w, path: 'e.{e:int}.w', dequantize: {scale: {path: 'e.{e:int}.w_scale', ops: [{unsqueeze: 1}]},"
        " to: F32}, stack: {dim: 0, by: e}, ops: [{transpose: [1, 2]}], to: e.w}\n"
    )
    state = {f"e.{e}.w": torch.randn(4, 3).to(torch.float8_e5m2) for e in range(3)}
    scales = {f"e.{e}.w_scale": torch.rand(4) for e in range(3)}
    made = compile_rules(read_text(text))
    with pytest.raises(FailedCheck) as caught:
        made({**state, **scales, "e.4.w": state["e.0.w"]})
    assert {problem.code for problem in caught.value.diagnostics} == {"RK340"}
    expected = torch.stack([state[f"e.{e}.w"].float() * scales[f"e.{e}.w_scale"][:, None] for e in range(3)])
    assert torch.equal(made({**state, **scales})["e.w"], expected.transpose(1, 2))


def test_a_gain_is_folded_into_a_weight_and_out_of_another() -> None:
    text = HEAD + (
        "  - {id: m, path: '{i:int}.w', multiply: {by: '{i:int}.gain'}, to: '{i}.w'}\n"
        "  - {id: d, path: '{i:int}.v', divide: {by: {path: '{i:int}.norm', ops: [{unsqueeze: 0}]}}, to: '{i}.v'}\n"
    )
    state = {
        "0.w": torch.randn(3, 2).bfloat16(),
        "0.gain": torch.rand(()),
        "0.v": torch.randn(3, 2),
        "0.norm": torch.rand(2),
    }
    made = compile_rules(read_text(text))(state)
    assert torch.equal(made["0.w"], (state["0.w"].float() * state["0.gain"]).bfloat16())
    assert torch.equal(made["0.v"], state["0.v"] / state["0.norm"])


@pytest.mark.parametrize(
    ("shape", "dtype", "scale", "scale_dtype", "code", "title"),
    [
        ((256, 384), "F8_E4M3", (2, 4), "F32", "RK353", "a.weight_scale_inv is [2, 4], which does not fit a.weight, [256, 384]: blocks of 128 x 128 need [2, 3]"),
        ((256, 384), "F8_E4M3", (3, 2), "F32", "RK353", "a.weight_scale_inv is [3, 2], which does not fit a.weight, [256, 384]: blocks of 128 x 128 need [2, 3]"),
        ((256, 384), "F8_E4M3", (), "F32", "RK353", "a.weight_scale_inv is [], which does not fit a.weight, [256, 384]: blocks of 128 x 128 need [2, 3]"),
        ((256,), "F8_E4M3", (2,), "F32", "RK353", "`block` has 2 sizes, but a.weight is [256]"),
        ((256, 384), "BF16", (2, 3), "F32", "RK352", "dequantize needs F8_E4M3, F8_E5M2, F8_E4M3FNUZ and F8_E5M2FNUZ, but a.weight is BF16"),
        ((256, 384), "F8_E4M3", (2, 3), "I32", "RK352", "dequantize needs F16, BF16, F32, F64 and F8_E8M0, but a.weight_scale_inv is I32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_anything_moves(
    shape: tuple[int, ...], dtype: str, scale: tuple[int, ...], scale_dtype: str, code: str, title: str
) -> None:
    state = {
        "a.weight": torch.zeros(shape).to(TORCH_DTYPES[dtype]),
        "a.weight_scale_inv": torch.zeros(scale).to(TORCH_DTYPES[scale_dtype]),
    }
    with pytest.raises(FailedCheck) as caught:
        compile_rules(read_text(BLOCKS))(state)
    (problem,) = caught.value.diagnostics
    assert (problem.code, problem.title) == (code, f"w: {title}")
    assert problem.span is not None and problem.span.text.startswith("{scale:")


def test_the_examples_of_the_docs() -> None:
    page = (Path(remapkit.__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.split("## With a second tensor")[1].split("\n## ")[0]
    example = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0]
    state = {
        "a.weight": torch.randn(130, 140).to(torch.float8_e4m3fn),
        "a.weight_scale_inv": torch.rand(2, 2),
        "b.qweight": torch.randn(3, 2).to(torch.float8_e5m2),
        "b.row_scale": torch.rand(3),
        "c.proj": torch.randn(3, 2),
        "c.gain": torch.rand(1, 2),
    }
    made = compile_rules(read_text(f"remapkit: 1\nname: t\nrules:\n{example}"))(state)
    blocks = spread(state["a.weight_scale_inv"], (130, 140), (128, 128))
    assert torch.equal(made["a.weight"], (state["a.weight"].float() * blocks).bfloat16())
    assert torch.equal(made["b.weight"], state["b.qweight"].float() * state["b.row_scale"][:, None])
    assert torch.equal(made["c.proj"], state["c.proj"] * state["c.gain"])


def test_a_row_of_scales_is_not_taken_for_a_column() -> None:
    with pytest.raises(RefusedOp) as caught:
        Combine("dequantize", "BF16").infer(TensorSpec("F8_E4M3", (4, 4)), TensorSpec("F32", (4,)), ("w", "s"))
    assert caught.value.title == "s is [4], which does not fit w, [4, 4]" and "unsqueeze: 1" in caught.value.help[0]


@pytest.mark.parametrize(
    ("extra", "rule"),
    [
        ({}, "ops: [{scale: 2}]"),  # the scale of the second one is missing
        ({"a.weight_scale_2": torch.ones(())}, ""),  # another companion, which nothing multiplies
    ],
)
def test_a_scaled_weight_without_all_of_its_scales_is_refused(extra: dict[str, torch.Tensor], rule: str) -> None:
    state = {
        "a.weight": torch.zeros(256, 384).to(torch.float8_e4m3fn),
        "a.weight_scale_inv": torch.ones(2, 3),
        **extra,
    }
    text = BLOCKS + "drop: ['{m:**}.weight_scale_2']\n"
    if rule:
        state["b.weight"] = state["a.weight"]
    with pytest.raises(FailedCheck) as caught:
        compile_rules(read_text(text))(state)
    assert caught.value.diagnostics[0].code == ("RK340" if rule else "RK362")


def test_two_scaled_weights_are_not_joined() -> None:
    text = (
        HEAD
        + "  - {id: c, concat: {dim: 0, from: [a.weight, b.weight]}, to: c.weight}\ndrop: ['{m:**}.weight_scale']\n"
    )
    state = {f"{m}.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn) for m in "ab"}
    state |= {"a.weight_scale": torch.tensor(1.0), "b.weight_scale": torch.tensor(2.0)}
    with pytest.raises(FailedCheck) as caught:
        compile_rules(read_text(text))(state)
    assert "RK362" in {problem.code for problem in caught.value.diagnostics}


def test_it_has_no_inverse() -> None:
    with pytest.raises(InvalidRules) as caught:
        compile_rules(read_text(BLOCKS)).inverse()
    (problem,) = caught.value.diagnostics
    assert problem.code == "RK215" and "dequantize rounds" in problem.title
