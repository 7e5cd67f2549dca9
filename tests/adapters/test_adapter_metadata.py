"""`lora_adapter_metadata` of an adapter with other modules, ranks and alphas says what `PeftConfig` reads of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import remapkit
from remapkit.adapters.alphas import PeftConfig
from remapkit.adapters.metadata import rewrite_lora_entry
from remapkit.diagnostics.errors import UsageError
from remapkit.formats.quoted_names import LORA
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move, RuleRef
from remapkit.tensors.spec import StateDictSpec, TensorSpec

MODULES = st.sampled_from(["a.q", "a.k", "b.0.q", "b.1.q", "b-2.q"])
FACTORS = st.dictionaries(
    MODULES, st.tuples(st.sampled_from([4, 8, 12]), st.sampled_from([0.5, 1.0, 2.0])), min_size=1
)
PREFIXES = st.sampled_from(["transformer", "unet", ""])


def fields_of(text: str, component: str) -> dict[str, Any]:
    start = f"{component}." if component else ""
    return {name.removeprefix(start): value for name, value in json.loads(text).items() if name.startswith(start)}


@given(factors=FACTORS, component=PREFIXES, rslora=st.booleans(), indent=st.sampled_from([None, 2]), data=st.data())
def test_the_entry_says_the_ranks_and_factors(
    factors: Mapping[str, tuple[int, float]], component: str, rslora: bool, indent: int | None, data: st.DataObject
) -> None:
    start = f"{component}." if component else ""
    old = {"r": 4, "lora_alpha": 8, "use_rslora": rslora, "target_modules": ["q"], "lora_bias": False}
    chosen = data.draw(st.lists(st.sampled_from(sorted(old)), unique=True))
    text = json.dumps({start + name: old[name] for name in chosen} | {"other.r": 1.0}, indent=indent)
    new = rewrite_lora_entry(text, component, {}, factors)
    fields = fields_of(new, component)
    config = PeftConfig.of(fields, "test")
    for module, (rank, factor) in factors.items():
        own = [each for pattern, each in (fields.get("rank_pattern") or {}).items() if re.fullmatch(pattern, module)]
        assert (own or [fields["r"]])[0] == rank
        assert math.isclose(config.find_factor(module, rank), factor)  # rank * factor / rank rounds
        assert any(f".{module}".endswith(f".{each}") for each in fields["target_modules"])
    assert json.loads(new)["other.r"] == 1.0 and '"other.r": 1.0' in new
    assert ("lora_bias" in fields) == ("lora_bias" in chosen)
    assert rewrite_lora_entry(new, component, {}, factors) == new, "what is said already stays byte for byte"


def test_what_needs_no_change_stays_byte_for_byte() -> None:
    text = '{ "transformer.r":4,"transformer.lora_alpha": 4.0,\n"transformer.target_modules": ["q"], "x": 1e2}'
    assert rewrite_lora_entry(text, "transformer", {}, {"a.q": (4, 1.0)}) == text
    assert rewrite_lora_entry(text, "transformer", {}, {"a.q": (8, 1.0)}) != text
    assert rewrite_lora_entry(text, "transformer", {}, {"a.q": (4, 2.0)}) != text
    assert rewrite_lora_entry(text, "transformer", {}, {"a.k": (4, 1.0)}) != text


def test_a_name_of_the_past_does_not_stay_beside_a_new_one() -> None:
    text = '{"r": 4, "lora_alpha": 4, "target_modules": ["q", "k", "z"], "rank_pattern": {"k": 4}}'
    assert rewrite_lora_entry(text, "", {"a.q": ["b.q"], "z.k": ["z.k"]}, {"b.q": (4, 1.0), "z.k": (4, 1.0)}) == text
    new = json.loads(rewrite_lora_entry(text, "", {"a.q": ["b.q"], "a.k": ["b.q"]}, {"b.q": (4, 1.0)}))
    assert new["target_modules"] == ["b.q"] and new["rank_pattern"] == {}


def test_modules_that_are_saved_whole_follow_the_names() -> None:
    text = '{"unet.modules_to_save": ["head", "norm"], "unet.r": 4}'
    new = rewrite_lora_entry(text, "unet", {"head": ["out.a", "out.b"]}, {})
    assert new == '{"unet.modules_to_save": ["out.a", "out.b", "norm"], "unet.r": 4}'


@pytest.mark.parametrize("text", ["[]", "{", '{"lora_alpha": 1, "peft_type": "LOHA"}'])
def test_what_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        rewrite_lora_entry(text, "", {}, {"a": (4, 1.0)})
    assert [each.code for each in caught.value.diagnostics] == ["RK725"]


def test_a_plan_with_such_an_entry_says_it_and_warns_no_more() -> None:
    spec = TensorSpec("F32", (4, 4))
    source = StateDictSpec({"a.q.weight": spec}, metadata={LORA: '["a.q"]', "y": '["a.q"]', "x": "1"})
    plan = ResolvedPlan("t", source, (Move("b.q.weight", ("a.q.weight",), (), RuleRef("r"), spec),))
    assert plan.target.metadata == {LORA: '["b.q"]', "y": '["b.q"]', "x": "1"}
    assert plan.with_entries({LORA: "{}"}).target.metadata == {LORA: "{}", "y": '["b.q"]', "x": "1"}
    assert plan.with_entries({LORA: None}).target.metadata == {"y": '["b.q"]', "x": "1"}


@pytest.mark.parametrize("format", [None, "kohya", "peft"])
def test_apply_writes_the_config_of_the_result(tmp_path: Path, format: str | None) -> None:
    """diffusers reads LoRA ranks and alphas from the entry, so it must be that of the joined adapter, or go."""
    tensors = {}
    for name in ("attn.to_q", "attn.to_k", "attn.to_v"):
        tensors[f"transformer.transformer_blocks.0.{name}.lora_A.weight"] = torch.ones(4, 3072)
        tensors[f"transformer.transformer_blocks.0.{name}.lora_B.weight"] = torch.ones(3072, 4)
    entry = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.target_modules": ["to_q", "to_k", "to_v"]}
    save_file(tensors, tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": json.dumps(entry)})
    out = tmp_path / "made" / "out.safetensors"
    out.parent.mkdir()
    remapkit.apply("flux_diffusers", tmp_path / "lora.safetensors", out, adapter_format=format)
    with safe_open(out, "pt") as made:
        metadata = made.metadata()
    if format is not None:
        assert "lora_adapter_metadata" not in metadata
        return
    assert json.loads(metadata["lora_adapter_metadata"]) == {
        "transformer.r": 12,
        "transformer.lora_alpha": 12,
        "transformer.target_modules": ["double_blocks.0.img_attn.qkv"],
    }
