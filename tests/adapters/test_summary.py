"""What `inspect` says of an adapter: every module once, with its LoRA rank and its alpha, under its prefix."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import remapkit
from remapkit.adapters.alphas import PeftConfig
from remapkit.adapters.summary import find_lora_rank, summarize_adapter
from remapkit.cli.app import main
from remapkit.tensors.spec import StateDictSpec, TensorSpec

FORMS = {
    ("kohya", "lora_unet_"): ("lora_up.weight", "lora_down.weight"),
    ("kohya", "lora_te1_"): ("lora_up.weight", "lora_down.weight"),
    ("comfy", "diffusion_model."): ("lora_up.weight", "lora_down.weight"),
    ("diffusers", "transformer."): ("lora_B.weight", "lora_A.weight"),
    ("peft", "base_model.model."): ("lora_B.default.weight", "lora_A.default.weight"),
    ("", ""): ("lora.up.weight", "lora.down.weight"),
}
KINDS = ("linear", "conv", "experts")
Module = tuple[str, str, int, int | None, str]


@st.composite
def files(draw: st.DrawFn) -> list[Module]:
    """Modules: format, prefix, LoRA rank, alpha (a tensor) or None, and the kind of the weight."""
    forms = draw(st.lists(st.sampled_from(sorted(FORMS)), min_size=1, max_size=3, unique=True))
    each = st.tuples(st.sampled_from(forms), st.integers(2, 4), st.none() | st.integers(1, 3), st.sampled_from(KINDS))
    return [(*form, rank, alpha, kind) for form, rank, alpha, kind in draw(st.lists(each, min_size=1, max_size=8))]


def make_header(modules: list[Module]) -> tuple[StateDictSpec, dict[str, float]]:
    tensors, alphas = {}, {}
    for number, (format, prefix, rank, alpha, kind) in enumerate(modules):
        up, down = {
            "linear": ((8, rank), (rank, 7)),
            "conv": ((8, rank, 1, 1), (rank, 7, 3, 3)),
            "experts": ((5, 8, rank), (5, rank, 7)),
        }[kind]
        name = f"{prefix}block{'_' if format == 'kohya' else '.'}{number}"
        for leaf, shape in zip(FORMS[format, prefix], (up, down), strict=True):
            tensors[f"{name}.{leaf}"] = TensorSpec("BF16", shape)
        if alpha is not None:
            tensors[f"{name}.alpha"] = TensorSpec("F32", ())
            alphas[f"{name}.alpha"] = float(alpha)
    return StateDictSpec(tensors), alphas


@settings(max_examples=150, deadline=None)
@given(files())
def test_every_module_is_counted_with_its_rank_and_its_alpha(modules: list[Module]) -> None:
    header, alphas = make_header(modules)
    found = {(part.format, part.prefix): part for part in summarize_adapter(header, None, alphas.get)}
    assert set(found) == {(format, prefix) for format, prefix, *_ in modules}
    for form, part in found.items():
        own = [(rank, alpha) for *of, rank, alpha, _ in modules if tuple(of) == form]
        assert part.modules == len(own)
        assert part.ranks == Counter(rank for rank, _ in own)
        assert part.alphas == Counter(float(alpha) for _, alpha in own if alpha is not None)
        assert (part.alpha_in == "tensor") == bool(part.alphas)
        assert str(part).startswith(f"LoRA of {len(own)} module")


def test_alphas_of_a_config_are_those_of_its_patterns() -> None:
    names = [f"base_model.model.{layer}.{part}" for layer in range(2) for part in ("q", "k")]
    shapes = {"lora_A.weight": (4, 6), "lora_B.weight": (6, 4)}
    header = StateDictSpec({f"{n}.{leaf}": TensorSpec("F32", shape) for n in names for leaf, shape in shapes.items()})
    config = PeftConfig.of({"lora_alpha": 8, "alpha_pattern": {"q": 2}}, "adapter_config.json")
    (part,) = summarize_adapter(header, config, lambda fqn: None)
    assert (part.alphas, part.alpha_in) == ({2.0: 2, 8.0: 2}, "config")
    (part,) = summarize_adapter(header, None, lambda fqn: None)
    assert (part.alphas, part.alpha_in) == ({}, "config")
    assert "which is not there" in str(part)


@pytest.mark.parametrize(
    ("leaves", "kind"),
    [
        (["lora_up.weight", "lora_down.weight", "dora_scale", "alpha"], "DoRA"),
        (["lokr_w1", "lokr_w2", "alpha"], "LoKr"),
        (["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"], "LoHa"),
        (["lora_up.weight", "lora_mid.weight", "lora_down.weight"], "LoRA with `mid`"),
        (["diff", "diff_b"], "differences"),
    ],
)
def test_a_kind_has_its_name(leaves: list[str], kind: str) -> None:
    header = StateDictSpec({f"diffusion_model.a.{leaf}": TensorSpec("F32", (4, 4)) for leaf in leaves})
    (part,) = summarize_adapter(header, None, lambda fqn: 1.0)
    assert part.kinds == {kind: 1}
    assert str(part).startswith(f"{kind} of 1 module, in the names of ComfyUI under diffusion_model.")


def test_matrices_that_do_not_agree_have_no_rank() -> None:
    def find(*shapes: tuple[int, ...]) -> int | None:
        return find_lora_rank(*(TensorSpec("F32", shape) for shape in shapes))

    assert find((8, 4), (3, 6)) is None
    assert find((8,), (8, 4)) is None
    assert find((4, 4, 2), (4, 2, 6)) is None, "a 1-D convolution of rank 4, or 4 experts of rank 2"


def save_kohya(path: Path, blocks: int = 40) -> None:
    tensors = {}
    for module in (
        f"double_blocks_{n}_{side}_attn_{part}" for n in range(blocks) for side in ("img", "txt") for part in "qkv"
    ):
        tensors[f"lora_unet_{module}.lora_up.weight"] = torch.zeros(6, 4)
        tensors[f"lora_unet_{module}.lora_down.weight"] = torch.zeros(4, 6)
        tensors[f"lora_unet_{module}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)


def test_a_large_file_is_shown_on_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_kohya(tmp_path / "lora.safetensors")
    assert main(["inspect", str(tmp_path / "lora.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "adapter: LoRA of 240 modules, in the names of kohya under lora_unet_, LoRA rank 4, alpha 2\n" in text
    assert "lora_unet_double_blocks_{0..39}_{img_attn_k|img_attn_q|" in text
    assert len(text) < 1500
    made = remapkit.new("t", tmp_path / "lora.safetensors").text
    assert len(made) < 2500
    assert len(remapkit.loads(made).plan(tmp_path / "lora.safetensors").moves) == 720


def test_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_kohya(tmp_path / "lora.safetensors", 1)
    assert main(["inspect", str(tmp_path / "lora.safetensors"), "--format", "json"]) == 0
    (part,) = json.loads(capsys.readouterr().out)["adapters"]
    assert (part["format"], part["prefix"], part["modules"]) == ("kohya", "lora_unet_", 6)
    assert part["ranks"] == [{"value": 4, "modules": 6}] and part["alphas"] == [{"value": 2.0, "modules": 6}]


def test_a_config_of_another_kind_is_a_warning(tmp_path: Path) -> None:
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(2, 3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    found = remapkit.inspect(tmp_path / "adapter_model.safetensors")
    assert [each.code for each in found.diagnostics] == ["RK725"]
    assert len(found.adapters) == 1


def test_alphas_in_the_metadata_of_diffusers_are_told() -> None:
    shapes = {"lora_A": (2, 4), "lora_B": (6, 2)}
    tensors = {f"transformer.q.{leaf}.weight": TensorSpec("F32", shape) for leaf, shape in shapes.items()}
    entry = '{"transformer.r": 2, "transformer.lora_alpha": 16}'
    for metadata, wanted in (
        ({"lora_adapter_metadata": entry}, {16.0: 1}),
        ({"lora_adapter_metadata": "{"}, {}),
        ({}, {}),
    ):
        (part,) = summarize_adapter(StateDictSpec(tensors, metadata=metadata), None, lambda fqn: None)
        assert part.alphas == wanted
