"""What a run was told to compute with is what it computes with; and what counts as the same result."""

from __future__ import annotations

import os

import pytest
import torch

from tests.numbers_kit import ULPS, computed_alike

CAPABILITIES = {"default": ("DEFAULT", "NO AVX"), "avx2": ("AVX2",), "avx512": ("AVX512",)}


def test_the_instructions_that_were_asked_for_are_used() -> None:
    """torch ignores a value that it does not know, in silence: a run would say that it had shown what it had not."""
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    if asked is None:
        asked = torch.backends.cpu.get_cpu_capability().lower().replace("no avx", "default")  # the best there is
    assert asked in CAPABILITIES, f"ATEN_CPU_CAPABILITY={asked} is none of {', '.join(CAPABILITIES)}"
    assert torch.backends.cpu.get_cpu_capability() in CAPABILITIES[asked]


def test_the_threads_that_were_asked_for_are_used() -> None:
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize("dtype", ULPS, ids=str)
def test_another_order_is_the_same_and_another_value_is_not(dtype: torch.dtype) -> None:
    """Sums forwards and backwards; then one value of a thousand wrong, two rows swapped, one step of 16 bits lost."""
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(64, 512, generator=generator).to(dtype)
    forwards, backwards = terms.sum(1), sum(terms.flip(1).unbind(1)[1:], terms[:, -1])
    kept = dtype in (torch.float32, torch.float64)  # in 16 bits a sum is kept in single precision by the library
    assert not kept or computed_alike(forwards, backwards)
    wrong = forwards.clone()
    wrong[3] += 0.1 * forwards.abs().max()
    assert not computed_alike(wrong, forwards)
    assert not computed_alike(forwards.roll(1), forwards)
    assert not computed_alike(forwards.to(torch.bfloat16).to(dtype), forwards) or not kept
    assert not computed_alike(forwards.double(), forwards) or dtype == torch.float64
