"""Biases of an adapter: where they go, what multiplies them, and which are refused."""

from __future__ import annotations

import pytest
import torch

import remapkit
from remapkit.adapters.alphas import PeftConfig
from remapkit.adapters.build import Options
from remapkit.adapters.fit import fit_to_model
from remapkit.diagnostics.errors import FailedCheck
from tests.adapters import value_kit as kit
from tests.adapters.random_rules import Case

IN_PROJ = """remapkit: 1
name: in_proj
rules:
  - {id: w, concat: {dim: 0, from: [a.q.weight, a.k.weight]}, to: a.in_proj_weight}
  - {id: b, concat: {dim: 0, from: [a.q.bias, a.k.bias]}, to: a.in_proj_bias}
"""


def make_biased(style: str, leaf: str, **ranks: int) -> tuple[dict[str, torch.Tensor], kit.LoRA]:
    """Return a model of linear layers with biases, and an adapter of some of them that changes these too."""
    shapes = {f"a.{name}.weight": (4, 6) for name in "qk"} | {f"a.{name}.bias": (4,) for name in "qk"}
    weights = {key: torch.rand(shape) for key, shape in shapes.items()}
    parts = {f"a.{name}.weight": ("lora", leaf) for name in ranks}
    case = Case("", {key: weights[key].shape for key in parts}, style, parts)
    return weights, kit.make_adapter(case, {f"a.{name}.weight": rank for name, rank in ranks.items()}, {})


def test_a_bias_that_becomes_a_parameter_is_changed_by_the_leaf_of_parameters() -> None:
    """ComfyUI adds `a.in_proj_bias.diff`; no loader has a module `a.in_proj_bias` with a bias."""
    weights, lora = make_biased("comfy", "diff_b", q=2, k=1)
    _, made = kit.build(remapkit.loads(IN_PROJ), weights, lora, Options())
    wanted = torch.cat([lora.tensors[f"diffusion_model.a.{name}.diff_b"] for name in "qk"])
    assert torch.equal(made["diffusion_model.a.in_proj_bias.diff"], wanted)
    assert not any(key.endswith("diff_b") for key in made)
    for style, leaf in (("kohya", "diff_b"), ("peft", "lora_B.bias"), ("diffusers", "lora_B.bias")):
        weights, lora = make_biased(style, leaf, q=2, k=1)
        config, reason = PeftConfig({}, 2, {}, True), "have no differences of biases that are not called `bias`"
        with pytest.raises(FailedCheck, match=reason) as caught:
            kit.build(remapkit.loads(IN_PROJ), weights, lora, Options(config=config))
        assert "choose another format: --adapter-format comfy" in caught.value.diagnostics[0].help
        _, made = kit.build(remapkit.loads(IN_PROJ), weights, lora, Options("comfy", config=config))
        assert "diffusion_model.a.in_proj_bias.diff" in made


APART = """remapkit: 1
name: apart
rules:
  - {id: q, path: a.q.bias, to: n.bias}
  - {id: k, path: a.k.weight, to: n.weight}
  - {id: o, path: a.k.bias, to: o.bias}
"""
APARTS = {
    "with the matrices of another": APART + "  - {id: m, path: a.q.weight, to: m.weight}\n",
    "without matrices": APART.replace("n.weight", "m.weight") + "drop: [a.q.weight]\n",
}


@pytest.mark.parametrize("name", APARTS)
@pytest.mark.parametrize(
    ("style", "leaf"), [("peft", "lora_B.bias"), ("diffusers", "lora_B.bias"), ("comfy", "diff_b")]
)
def test_a_bias_of_up_stays_with_its_matrices(name: str, style: str, leaf: str) -> None:
    """alpha / r of the module multiplies the bias: a module of another weight has another factor, or none."""
    rules, (weights, lora) = remapkit.loads(APARTS[name]), make_biased(style, leaf, q=2, k=2)
    lora.tensors.pop(f"{kit.name_module(style, 'a.k.weight')}.{leaf}")
    config = PeftConfig({}, 8.0, {"a.k": 4.0}, False)
    with pytest.raises(FailedCheck, match="the bias of the layer of up goes to another module than"):
        kit.build(rules, weights, lora, Options("peft" if style == "comfy" else None, config=config))
    if style == "comfy":  # a difference of a bias is added as it is, wherever it goes
        _, made = kit.build(rules, weights, lora, Options())
        assert torch.equal(made["diffusion_model.n.diff_b"], lora.tensors["diffusion_model.a.q.diff_b"])


def test_some_of_the_matrices_of_a_module_may_have_biases() -> None:
    text = IN_PROJ.replace("in_proj_", "qk.")
    weights, lora = make_biased("peft", "lora_B.bias", q=2, k=1)
    lora.tensors.pop("base_model.model.a.k.lora_B.bias")
    config = PeftConfig({}, 8.0, {"a.k": 4.0}, False)
    _, made = kit.build(remapkit.loads(text), weights, lora, Options("diffusers", config=config))
    bias = lora.tensors["base_model.model.a.q.lora_B.bias"] * 4
    torch.testing.assert_close(made["transformer.a.qk.lora_B.bias"], torch.cat([bias, torch.zeros(4)]))


@pytest.mark.parametrize("format", ["peft", "comfy"])
def test_a_bias_of_up_without_matrices_has_no_factor(format: str) -> None:
    weights, _ = make_biased("peft", "lora_B.bias")
    lora = kit.LoRA({"base_model.model.a.q.lora_B.bias": torch.rand(4)})
    rules = remapkit.loads(IN_PROJ.replace("in_proj_", "qk."))
    with pytest.raises(FailedCheck, match="RK723"):
        kit.build(rules, weights, lora, Options(format, config=PeftConfig({}, 8.0, {}, False)))


def test_a_bias_that_the_model_lacks_fits_nothing() -> None:
    model = kit.spec_of({"q.weight": torch.rand(4, 6)})
    names = ("q.lora_up.weight", "q.lora_down.weight", "q.diff_b")
    header = kit.spec_of(dict(zip(names, (torch.rand(4, 2), torch.rand(2, 6), torch.rand(4)), strict=True)))
    assert set(fit_to_model(header, model).fitting) == set(names[:2])
