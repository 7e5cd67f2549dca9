"""Two real models of each pair of layouts: the same weights, in either layout, must give the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from layouts import Flux, MetaLlama, NanoGPT, TimmViT, WanDiT
from pack_kit import BY_NAME, FAULTS, Fault, State, planted
from torch import Tensor, nn

import remapkit

TOLERANCE = 1e-5
"""Relative. The two models order their sums differently; a fault of layout gives an error near 1."""

TOKENS = {"input_ids": torch.arange(14).view(2, 7) * 2}


@dataclass(frozen=True)
class Pair:
    """A model in the pack's source layout, one in its target layout, and one input for both."""

    source: nn.Module
    target: nn.Module
    given: Mapping[str, Tensor]

    def error(self, convert: Callable[[Mapping[str, Tensor]], State]) -> float:
        """The relative difference of the two outputs, once the target has the source's converted state dict."""
        self.target.load_state_dict(convert(self.source.state_dict()), strict=True)
        with torch.inference_mode():
            one, other = (output(model.eval()(**self.given)) for model in (self.source, self.target))
        return float((one - other).norm() / one.norm())


def output(out: object) -> Tensor:
    return out if isinstance(out, Tensor) else out.sample if hasattr(out, "sample") else out.logits  # type: ignore


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter random, norms and biases too: what is left at its first value hides a swap."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.dim() == 1 else noise / parameter[0].numel() ** 0.5)
    return model


def gpt2_hf() -> Pair:
    from transformers import GPT2Config, GPT2LMHeadModel

    # Without the tie each of the two matrices must find its own place.
    config = GPT2Config(
        n_layer=2,
        n_embd=12,
        n_head=3,
        vocab_size=31,
        n_positions=9,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    return Pair(randomised(GPT2LMHeadModel(config)), NanoGPT(31, 9, 12, 2, 3), TOKENS)


def llama_meta() -> Pair:
    from transformers import LlamaConfig, LlamaForCausalLM

    # Four heads that share two heads of keys; queries are square, keys are not.
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=24,
        vocab_size=31,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Pair(
        randomised(MetaLlama(31, 32, 2, 4, 2, 8, 24)),
        LlamaForCausalLM(config),
        TOKENS,
    )


def vit_timm() -> Pair:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        num_hidden_layers=2,
        hidden_size=12,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        num_labels=5,
        layer_norm_eps=1e-6,
    )
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Pair(
        randomised(TimmViT(8, 4, 12, 2, 3, 20, 5)), ViTForImageClassification(config), {"pixel_values": images}
    )


def flux_bfl() -> Pair:
    from diffusers import FluxTransformer2DModel

    sizes = {"in_channels": 6, "joint_attention_dim": 10, "pooled_projection_dim": 14}
    target = FluxTransformer2DModel(
        **sizes,
        num_attention_heads=3,
        attention_head_dim=12,
        axes_dims_rope=(2, 4, 6),
        num_layers=2,
        num_single_layers=2,
        guidance_embeds=True,
    )
    generator = torch.Generator().manual_seed(1)
    given = {
        "hidden_states": torch.randn(2, 5, 6, generator=generator),
        "encoder_hidden_states": torch.randn(2, 3, 10, generator=generator),
        "pooled_projections": torch.randn(2, 14, generator=generator),
        "img_ids": torch.randint(9, (5, 3), generator=generator).float(),
        "txt_ids": torch.randint(9, (3, 3), generator=generator).float(),
        "timestep": torch.tensor([0.25, 0.75]),
        "guidance": torch.tensor([3.5, 1.0]),
    }
    return Pair(randomised(Flux(6, 10, 14, 3, (2, 4, 6), 2, 2)), target, given)


def wan21_dit() -> Pair:
    from diffusers import WanTransformer3DModel

    target = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=10,
        freq_dim=16,
        ffn_dim=20,
        num_layers=2,
    )
    generator = torch.Generator().manual_seed(1)
    given = {
        "hidden_states": torch.randn(2, 4, 3, 4, 6, generator=generator),
        "timestep": torch.tensor([250.0, 750.0]),
        "encoder_hidden_states": torch.randn(2, 3, 10, generator=generator),
    }
    return Pair(randomised(WanDiT(4, 10, 16, 2, 12, 20, 2)), target, given)


PAIRS = {make.__name__: make for make in (gpt2_hf, llama_meta, vit_timm, flux_bfl, wan21_dit)}
PARAMS = {"flux_bfl": {"hidden": 36}, "llama_meta": {"heads": 4, "kv_heads": 2, "head_dim": 8}}


@pytest.mark.parametrize("name", PAIRS)
def test_both_models_compute_the_same(name: str) -> None:
    assert PAIRS[name]().error(remapkit.load(name, params=PARAMS.get(name))) < TOLERANCE


@pytest.mark.parametrize("name", PAIRS)
def test_and_so_they_do_the_other_way_round(name: str) -> None:
    pair = PAIRS[name]()
    randomised(pair.target)
    back = Pair(pair.target, pair.source, pair.given)
    assert back.error(remapkit.load(BY_NAME[name].back, params=PARAMS.get(name))) < TOLERANCE


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.pack in PAIRS], ids=str)
def test_a_planted_fault_shows_in_the_numbers(fault: Fault, tmp_path: Path) -> None:
    rules = remapkit.load(planted(fault.pack, fault.changes, tmp_path), params=PARAMS.get(fault.pack))
    assert PAIRS[fault.pack]().error(rules) > 1000 * TOLERANCE
