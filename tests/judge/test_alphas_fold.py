"""Alphas that are folded into their adapters: each divided by its own LoRA rank, once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck, InvalidRules
from tests.ops.cases import same

PAGE = (Path(remapkit.__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
(FOLDED,) = re.findall(r"```yaml\n(remapkit: 1\nname: folded_alphas\n.*?)```", PAGE, re.DOTALL)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 6),
            st.floats(0.25, 64, width=16),
            st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(((), (1,))),
    st.booleans(),
)
def test_each_adapter_has_its_own_factor(
    adapters: list[tuple[int, float, torch.dtype]], shape: tuple[int, ...], conv: bool
) -> None:
    state = {}
    for number, (rank, alpha, dtype) in enumerate(adapters):
        state[f"lora_unet_{number}.alpha"] = torch.full(shape, alpha)
        ends = (1, 1) if conv else ()
        state[f"lora_unet_{number}.lora_up.weight"] = torch.randn(3, rank, *ends).to(dtype)
        state[f"lora_unet_{number}.lora_down.weight"] = torch.randn(rank, 5, *ends).to(dtype)
    made = remapkit.loads(FOLDED)(state)
    assert len(made) == 2 * len(adapters)
    for number, (rank, alpha, dtype) in enumerate(adapters):
        factor = torch.tensor(alpha, dtype=torch.float32) / rank
        up = (state[f"lora_unet_{number}.lora_up.weight"].float() * factor).to(dtype)
        assert torch.equal(made[f"lora_unet_{number}.up.weight"], up)
        assert torch.equal(made[f"lora_unet_{number}.down.weight"], state[f"lora_unet_{number}.lora_down.weight"])


def test_files_and_memory_agree(tmp_path: Path) -> None:
    state = {"a.alpha": torch.tensor(2.0), "b.alpha": torch.tensor(8.0)}
    for module, rank in (("a", 4), ("b", 8)):
        state[f"{module}.lora_up.weight"] = torch.randn(3, rank).bfloat16()
        state[f"{module}.lora_down.weight"] = torch.randn(rank, 3).bfloat16()
    (tmp_path / "r.yaml").write_text(FOLDED)
    save_file(state, tmp_path / "a.safetensors")
    output = tmp_path / "o.safetensors"
    assert (
        main(["apply", str(tmp_path / "r.yaml"), str(tmp_path / "a.safetensors"), "-o", str(output), "--verify"]) == 0
    )
    made = remapkit.loads(FOLDED)(state)
    assert torch.equal(made["a.up.weight"], state["a.lora_up.weight"] * 0.5)
    assert torch.equal(made["b.up.weight"], state["b.lora_up.weight"])
    assert all(same(made[name], value) for name, value in load_file(output).items())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("over: size(1)", "over: size(0)", "divided by its LoRA rank, 4, got `over: 3`"),
        (", over: size(1)", "", "divided by its LoRA rank, 4, got `over: 1`"),
        ("over: size(1)", "over: size(2)", "there is no size(2) in a tensor of 2 dimensions"),
        ("over: size(1)", "over: size(1) - 4", "`over` must be at least 1, got 0"),
        (
            "path: '{m}.lora_down.weight', to",
            "path: '{m}.lora_down.weight', multiply: {by: '{m}.scale', over: 4}, to",
            "must have",
        ),
    ],
)
def test_another_factor_is_refused(old: str, new: str, message: str) -> None:
    text = FOLDED.replace(old, new)
    assert text != FOLDED
    state = {
        "a.alpha": torch.tensor(2.0),
        "a.lora_up.weight": torch.randn(3, 4),
        "a.lora_down.weight": torch.randn(4, 3),
    }
    if message == "must have":
        with pytest.raises(FailedCheck, match="RK340"):
            remapkit.loads(text)(state)
        return
    with pytest.raises(FailedCheck, match=re.escape(message)):
        remapkit.loads(text)(state)


def test_an_alpha_that_is_also_kept_is_refused() -> None:
    """One source is read by one rule, so a copy of the alpha is made beside the product by `copy`."""
    text = FOLDED + "  - {id: keep, path: '{m}.alpha', to: '{m}.alpha'}\n"
    with pytest.raises(FailedCheck, match="RK302"):
        remapkit.loads(text)({"a.alpha": torch.tensor(2.0), "a.lora_up.weight": torch.randn(3, 4)})
    halves = FOLDED.replace("to: '{m}.up.weight'", "split: {dim: 0, into: ['{m}.up.weight', '{m}.more.weight']}")
    state = {
        "a.alpha": torch.tensor(2.0),
        "a.lora_up.weight": torch.randn(4, 4),
        "a.lora_down.weight": torch.randn(4, 3),
    }
    with pytest.raises(FailedCheck, match="must be folded into one tensor of its adapter, and not be kept"):
        remapkit.loads(halves)(state)


def test_the_rank_of_other_adapters_is_not_guessed() -> None:
    text = FOLDED.replace("lora_up.weight", "hada_w1_a").replace("lora_down.weight", "hada_w1_b")
    state = {"a.alpha": torch.tensor(2.0), "a.hada_w1_a": torch.randn(4, 4), "a.hada_w1_b": torch.randn(4, 3)}
    with pytest.raises(FailedCheck, match="a LoRA rank, which this tensor does not show"):
        remapkit.loads(text)(state)


def test_over_must_be_a_number_that_divides() -> None:
    with pytest.raises(InvalidRules) as caught:
        remapkit.loads(FOLDED.replace("over: size(1)", "over: 0"))
    assert [each.code for each in caught.value.diagnostics] == ["RK216"]
