"""Comparing values: as torch sees them, for every dtype, without torch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from io_kit import raw
from safetensors.torch import save_file

from remapkit.cli.app import main
from remapkit.formats import compare, open_checkpoint
from remapkit.tensors import elements
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.dtypes import DTYPES as ROWS
from remapkit.tensors.from_torch import TORCH_DTYPES

DTYPES = list(TORCH_DTYPES)


def as_torch(data: bytes, dtype: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=TORCH_DTYPES[dtype])


@pytest.mark.parametrize("dtype", [name for name in DTYPES if DTYPE_BITS[name] <= 16])
def test_every_code_of_a_small_dtype_is_decoded_as_torch_does(dtype: str) -> None:
    bits = DTYPE_BITS[dtype]
    codes = bytes(range(256)) if bits == 8 else b"".join(n.to_bytes(2, "little") for n in range(1 << 16))
    if dtype == "BOOL":
        codes = b"\0\1"
    with np.errstate(invalid="ignore"):
        found = torch.from_numpy(compare.decode_tensor(memoryview(codes), dtype).astype("f8"))
    expected = as_torch(codes, dtype).to(torch.float64)
    assert torch.equal(found.nan_to_num(nan=123.25), expected.nan_to_num(nan=123.25))


def test_all_dtypes_of_torch_are_tried() -> None:
    assert {"BF16", "F16", "F8_E4M3", "F8_E5M2", "I8", "U16", "BOOL"} <= set(DTYPES)


def distance(a: torch.Tensor, b: torch.Tensor) -> tuple[float, int, int]:
    """The largest |a - b|, how many differ, and how many are NaN in one only, by torch."""
    x, y = a.to(torch.float64), b.to(torch.float64)
    one_only = x.isnan() ^ y.isnan()
    equal = (x == y) | (x.isnan() & y.isnan())
    delta = torch.where(equal | one_only, torch.zeros_like(x), (x - y).abs())
    return (
        (math.nan if one_only.any() else float(delta.max()) if len(x) else 0.0),
        int((~equal).sum()),
        int(one_only.sum()),
    )


@settings(max_examples=150)
@given(
    st.sampled_from(["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F64"]), st.sampled_from(["F32", "BF16"]), st.data()
)
def test_differences_are_torchs(dtype_a: str, dtype_b: str, data: st.DataObject) -> None:
    numel = data.draw(st.integers(0, 9))
    a, b = (
        as_torch(data.draw(st.binary(min_size=numel * w, max_size=numel * w)) or b"\0" * w, name)[:numel]
        for name, w in ((dtype_a, DTYPE_BITS[dtype_a] // 8), (dtype_b, DTYPE_BITS[dtype_b] // 8))
    )
    deltas, only_one = compare._compute_deltas(memoryview(raw(a)), dtype_a, memoryview(raw(b)), dtype_b)
    worst, differing, nans = distance(a, b)
    assert int(only_one.sum()) == nans
    assert int((deltas != 0).sum()) + nans == differing
    if not nans:
        assert float(deltas.max(initial=0.0)) == worst


def test_a_wrong_bias_is_a_planted_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "DTYPES", {**ROWS, "F8_E4M3": replace(ROWS["F8_E4M3"], specials="fnuz")})
    monkeypatch.setattr(elements, "_make_decoding", elements._make_decoding.__wrapped__)
    with pytest.raises(AssertionError):
        test_every_code_of_a_small_dtype_is_decoded_as_torch_does("F8_E4M3")


def test_diff_says_what_differs_and_by_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    same = torch.arange(4.0)
    save_file({name: same.clone() for name in ("same", "close", "shape", "a", "cast")}, a)
    other = {
        "close": same + 0.5,
        "shape": same.reshape(2, 2).clone(),
        "b": same.clone(),
        "cast": same.to(torch.bfloat16),
    }
    save_file({"same": same, **other}, b)
    assert main(["diff", str(a), str(a)]) == 0
    assert "5 of 5 tensors identical, max |Δ| = 0" in capsys.readouterr().out
    assert main(["diff", str(a), str(b), "--format", "json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["identical"], data["total"], data["only_a"], data["only_b"]) == (1, 6, ["a"], ["b"])
    assert data["max_abs"] == 0.5
    assert data["differences"]["shape"] == "shape [4] and [2, 2]"
    assert data["differences"]["cast"] == "F32 and BF16, equal values, other bytes"
    with open_checkpoint(a) as left, open_checkpoint(b) as right:
        found = compare.compare_tensor(left, "close", right, "close")
    assert found.is_within(0.5) and not found.is_within(0.4) and not found.identical
