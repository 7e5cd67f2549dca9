"""`lora_adapter_metadata` of an adapter with other modules, ranks and alphas says what `PeftConfig` reads of them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import remapkit
from remapkit.adapters import alphas, metadata
from remapkit.adapters.alphas import Details, PeftConfig, make_config
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


def rewrite(
    text: str, component: str, modules: Mapping[str, Sequence[str]], factors: Mapping[str, tuple[int, float]]
) -> str:
    """Rewrite an entry, with the config that these modules have in the new model."""
    every = [new for names in modules.values() for new in names]
    made = make_config(factors, Details([*factors, *every])) if factors else None
    return rewrite_lora_entry(text, component, modules, factors, made)


@given(factors=FACTORS, component=PREFIXES, rslora=st.booleans(), indent=st.sampled_from([None, 2]), data=st.data())
def test_the_entry_says_the_ranks_and_factors(
    factors: Mapping[str, tuple[int, float]], component: str, rslora: bool, indent: int | None, data: st.DataObject
) -> None:
    start = f"{component}." if component else ""
    old = {"r": 4, "lora_alpha": 8, "use_rslora": rslora, "target_modules": ["q"], "lora_bias": False}
    chosen = data.draw(st.lists(st.sampled_from(sorted(old)), unique=True))
    text = json.dumps({start + name: old[name] for name in chosen} | {"other.r": 1.0}, indent=indent)
    new = rewrite(text, component, {}, factors)
    fields = fields_of(new, component)
    config = PeftConfig.of(fields, "test")
    for module, (rank, factor) in factors.items():
        own = [each for pattern, each in (fields.get("rank_pattern") or {}).items() if re.fullmatch(pattern, module)]
        assert (own or [fields["r"]])[0] == rank
        assert math.isclose(config.find_factor(module, rank), factor)  # rank * factor / rank rounds
        assert any(f".{module}".endswith(f".{each}") for each in fields["target_modules"])
    assert json.loads(new)["other.r"] == 1.0 and '"other.r": 1.0' in new
    assert ("lora_bias" in fields) == ("lora_bias" in chosen)
    assert rewrite(new, component, {}, factors) == new, "what is said already stays byte for byte"


def test_what_needs_no_change_stays_byte_for_byte() -> None:
    text = '{ "transformer.r":4,"transformer.lora_alpha": 4.0,\n"transformer.target_modules": ["q"], "x": 1e2}'
    assert rewrite(text, "transformer", {}, {"a.q": (4, 1.0)}) == text
    assert rewrite(text, "transformer", {}, {"a.q": (8, 1.0)}) != text
    assert rewrite(text, "transformer", {}, {"a.q": (4, 2.0)}) != text
    assert rewrite(text, "transformer", {}, {"a.k": (4, 1.0)}) != text


def test_a_name_of_the_past_does_not_stay_beside_a_new_one() -> None:
    text = '{"r": 4, "lora_alpha": 4, "target_modules": ["q", "k", "z"], "rank_pattern": {"k": 4}}'
    assert rewrite(text, "", {"a.q": ["b.q"], "z.k": ["z.k"]}, {"b.q": (4, 1.0), "z.k": (4, 1.0)}) == text
    new = json.loads(rewrite(text, "", {"a.q": ["b.q"], "a.k": ["b.q"]}, {"b.q": (4, 1.0)}))
    assert new["target_modules"] == ["b.q"] and new["rank_pattern"] == {}


def test_an_end_of_other_modules_is_no_target() -> None:
    """`proj_out` is the end of `blocks.0.proj_out` too, which has no adapter."""
    text = '{"r": 4, "lora_alpha": 4, "target_modules": ["proj_out"]}'
    same = {"proj_out": ["proj_out"]}
    assert rewrite(text, "", same, {"proj_out": (4, 1.0)}) == text
    others = {"b.0.last": ["b.0.proj_out"], "b.0.q": ["b.0.q"]}
    for old in ("proj_out", "last_out"):
        new = json.loads(rewrite(text, "", {old: ["proj_out"], **others}, {"proj_out": (4, 1.0)}))
        targets = new["target_modules"]
        assert isinstance(targets, str) and re.fullmatch(targets, "proj_out")
        assert not re.fullmatch(targets, "b.0.proj_out")


def test_numbers_stay_where_alphas_are_not_known() -> None:
    text = '{"r": 4, "lora_alpha": 4, "target_modules": ["q"]}'
    assert rewrite_lora_entry(text, "", {"a.q": ["b.k"]}, {}, None) == text


def test_modules_that_are_saved_whole_follow_the_names() -> None:
    text = '{"unet.modules_to_save": ["head", "norm"], "unet.r": 4}'
    new = rewrite(text, "unet", {"head": ["out.a", "out.b"]}, {})
    assert new == '{"unet.modules_to_save": ["out.a", "out.b", "norm"], "unet.r": 4}'


BAD = [
    "[]",
    "{",
    '{"lora_alpha": 1, "peft_type": "LOHA"}',
    '{"rank_pattern": ["x"]}',
    '{"rank_pattern": "x"}',
    '{"rank_pattern": {"(": 1}}',
    '{"modules_to_save": [{}]}',
    '{"target_modules": [5]}',
    '{"lora_alpha": 1' + "0" * 400 + "}",
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        rewrite(text, "", {}, {"a": (4, 1.0)})
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
        entries = made.metadata()
    if format is not None:
        assert "lora_adapter_metadata" not in entries
        return
    assert json.loads(entries["lora_adapter_metadata"]) == {
        "transformer.r": 12,
        "transformer.lora_alpha": 12,
        "transformer.target_modules": ["double_blocks.0.img_attn.qkv"],
    }


def test_entries_of_many_modules_are_not_compared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No regular expression is tried for a name, and ends of names are listed a fixed number of times for each."""
    calls = Counter[str]()

    def count(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any) -> Any:
            calls[name] += 1
            return real(*args)

        return counting

    monkeypatch.setattr(alphas, "matches_module", count("regex", alphas.matches_module))
    monkeypatch.setattr(metadata, "list_ends", count("ends", alphas.list_ends))
    monkeypatch.setattr(metadata, "_read_literal", count("literal", metadata._read_literal))
    size = 50
    old = [f"b.{n}.q" for n in range(size)]
    numbers = dict.fromkeys(old, 8)
    text = json.dumps({"r": 4, "lora_alpha": 4, "target_modules": old, "rank_pattern": numbers})
    factors = {f"new.{name}": (8, 0.5) for name in old}
    made = rewrite(text, "", {name: [f"new.{name}"] for name in old}, factors)
    assert made == text, "ends of the new names are the old ones"
    assert calls["regex"] == 0 and 0 < calls["ends"] <= 4 * size and 0 < calls["literal"] <= 2 * size


def test_fields_of_a_model_that_is_left_out_go(tmp_path: Path) -> None:
    tensors = {}
    for name in ("transformer.transformer_blocks.0.attn.to_q", "text_encoder.text_model.encoder.layers.0.mlp.fc1"):
        tensors[f"{name}.lora_A.weight"] = torch.ones(4, 3072)
        tensors[f"{name}.lora_B.weight"] = torch.ones(3072, 4)
    entry = {"transformer.r": 4, "transformer.lora_alpha": 4, "text_encoder.r": 4, "text_encoder.lora_alpha": 4}
    save_file(tensors, tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": json.dumps(entry)})
    remapkit.apply("flux_diffusers", tmp_path / "lora.safetensors", tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as made:
        fields = json.loads(made.metadata()["lora_adapter_metadata"])
    assert {name.partition(".")[0] for name in fields} == {"transformer"}
