"""The table of dtypes, and the conversions that follow from it: torch's, for every bit pattern."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from remapkit.compute.cast import cast_elements
from remapkit.compute.torch_eager import apply_step
from remapkit.ops.steps import Cast
from remapkit.tensors import elements
from remapkit.tensors.dtypes import CASTABLE_FLOATS, DTYPES, INTEGERS, PLAIN_FLOATS, get_integer_range, is_exact_cast
from remapkit.tensors.elements import choose_word, decode_elements, encode_elements
from remapkit.tensors.from_torch import TORCH_DTYPES, get_dtype_name

FLOATS = [name for name in TORCH_DTYPES if DTYPES[name].kind == "float"]
NARROW = [name for name in FLOATS if DTYPES[name].bits <= 16]
CASTABLE = [name for name in NARROW if name in CASTABLE_FLOATS]
EIGHTS = [name for name in CASTABLE_FLOATS if DTYPES[name].bits == 8]

narrow_casts = pytest.mark.parametrize(("old", "new"), [*itertools.product(CASTABLE, CASTABLE_FLOATS)])


def patterns(dtype: str) -> np.ndarray:
    """Every bit pattern of a dtype of at most 16 bits."""
    return np.arange(1 << DTYPES[dtype].bits, dtype=choose_word(dtype))


def as_torch(raw: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(raw.view("u1").copy()).view(TORCH_DTYPES[dtype])


def hard_floats() -> np.ndarray:
    """Every float32 that an 8-bit or 16-bit float or a midpoint of two is, with its neighbours, and random ones."""
    upper = np.arange(1 << 16, dtype="<u4") << 16
    lower = [upper | low for low in (0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xEFFF, 0xF000, 0xFFFF)]
    halves = np.arange(1 << 16, dtype="<u2").view("<f2").astype("<f4").view("<u4")
    more = np.random.default_rng(3).integers(0, 1 << 32, 1 << 19, dtype="<u4")
    return np.concatenate([*lower, halves, halves + 0x1000, halves + 0xFFF, halves + 0x1001, more]).view("<f4")


def check_encoding(values: np.ndarray, dtype: str) -> None:
    assert_same(encode_elements(values, dtype), apply_step(Cast(dtype), torch.from_numpy(values.copy())), dtype)


def assert_same(found: np.ndarray, expected: torch.Tensor, dtype: str) -> None:
    """Equal bits, but for the payloads of NaN."""
    is_nan = expected.double().isnan().numpy()
    assert np.array_equal(np.isnan(decode_elements(found, dtype)), is_nan)
    assert np.array_equal(found[~is_nan], expected.view(torch.uint8).numpy().view(choose_word(dtype))[~is_nan])


@pytest.mark.parametrize("dtype", NARROW)
def test_every_pattern_is_decoded_as_torch_does(dtype: str) -> None:
    found = decode_elements(patterns(dtype), dtype).astype("f8")
    expected = as_torch(patterns(dtype), dtype).double().numpy()
    assert np.array_equal(found, expected, equal_nan=True)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.signbit(found[numbers]), np.signbit(expected[numbers]))
    assert [DTYPES[dtype].decode(code) for code in np.flatnonzero(numbers).tolist()] == expected[numbers].tolist()


@pytest.mark.parametrize("dtype", CASTABLE)
def test_every_pattern_comes_back_to_itself(dtype: str) -> None:
    numbers = ~np.isnan(decode_elements(patterns(dtype), dtype))
    again = encode_elements(decode_elements(patterns(dtype), dtype), dtype)
    assert np.array_equal(again[numbers], patterns(dtype)[numbers])


@pytest.mark.parametrize("dtype", CASTABLE_FLOATS)
@np.errstate(all="ignore")
def test_every_hard_float_is_encoded_as_torch_does(dtype: str) -> None:
    single = hard_floats()
    check_encoding(single, dtype)
    double = single.astype("<f8")
    check_encoding(np.concatenate([double, np.nextafter(double, np.inf), np.nextafter(double, -np.inf)]), dtype)


@narrow_casts
def test_narrow_floats_are_cast_into_one_another_as_torch_does(old: str, new: str) -> None:
    assert_same(cast_elements(patterns(old), old, new), apply_step(Cast(new), as_torch(patterns(old), old)), new)


@narrow_casts
def test_a_cast_is_exact_where_no_value_changes(old: str, new: str) -> None:
    values = decode_elements(patterns(old), old).astype("f8")
    again = decode_elements(encode_elements(values, new), new).astype("f8")
    numbers = ~np.isnan(values)
    kept = np.array_equal(values, again, equal_nan=True) and np.array_equal(
        np.signbit(values[numbers]), np.signbit(again[numbers])
    )
    assert kept == is_exact_cast(old, new)


def test_the_wide_floats_are_exact_only_into_wider_ones() -> None:
    exact = {(a, b) for a, b in itertools.product(("F32", "F64"), CASTABLE_FLOATS) if is_exact_cast(a, b)}
    assert exact == {("F32", "F32"), ("F32", "F64"), ("F64", "F64")}


@pytest.mark.parametrize("dtype", CASTABLE_FLOATS)
def test_the_largest_value_is_torchs(dtype: str) -> None:
    assert DTYPES[dtype].largest == torch.finfo(TORCH_DTYPES[dtype]).max


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_range_of_integers_is_torchs(dtype: str) -> None:
    found = torch.iinfo(TORCH_DTYPES[dtype])
    assert get_integer_range(dtype) == (found.min, found.max)


def test_names_and_widths_are_torchs() -> None:
    assert {"F32", "BF16", "F8_E4M3", "F8_E5M2", "U16", "C128"} <= set(TORCH_DTYPES)
    for name, dtype in TORCH_DTYPES.items():
        assert get_dtype_name(dtype) == name
        assert dtype.itemsize * 8 == DTYPES[name].bits
    for row in DTYPES.values():
        if row.storage is not None:
            assert getattr(torch, row.storage).dtype == TORCH_DTYPES[row.name]
    assert PLAIN_FLOATS == ("F16", "BF16", "F32", "F64")


# --------------------------------------------------------------------------------------------- planted faults


def _without_sticky_bit(values: Any, dtype: str) -> Any:
    bits = np.ascontiguousarray(values).astype("<f4", copy=False).view("<u4")
    return np.take(elements._make_encoding(dtype), bits >> np.uint32(16))


def _rounding_half_away(values: Any, dtype: str) -> Any:
    row = DTYPES[dtype]
    finite = np.array([row.decode(code) for code in range(row.largest_code + 1)])
    magnitudes = np.searchsorted((finite[:-1] + finite[1:]) / 2, np.abs(values), "right")
    return (magnitudes | (np.signbit(values) * 0x80)).astype("u1")


@pytest.mark.parametrize("dtype", EIGHTS)
@pytest.mark.parametrize("fault", [_without_sticky_bit, _rounding_half_away])
@np.errstate(all="ignore")
def test_a_planted_fault_is_found(dtype: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "encode_elements", fault)
    with pytest.raises(AssertionError):
        check_encoding(hard_floats(), dtype)
