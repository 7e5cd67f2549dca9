"""Layouts that diffusers' single-file converters read: found by asking each which keys it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.loaders import single_file_utils

from remapkit.tensors.spec import StateDictSpec, TensorSpec


class Wishes(dict[str, Any]):
    """A state dict that has every key that is asked for by name, and remembers those."""

    def __init__(self, shape: tuple[int, ...], known: Iterable[str]) -> None:
        self.shape = shape
        super().__init__((key, torch.zeros(shape)) for key in known)
        self.wished = dict.fromkeys(self)

    def __missing__(self, key: str) -> torch.Tensor:
        self.wished.setdefault(key)
        return torch.zeros(self.shape)

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key) if key in self else self[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self[key]


RENAMED = ("blocks.{n}.self_attn.q.weight", "blocks.{n}.cross_attn.norm_k.weight", "blocks.{n}.ffn.0.bias", "head.w")
PREFIXED = tuple(f"model.diffusion_model.{key}" for key in RENAMED)
_ = "distilled_guidance_layer.layers.1.in_layer.bias"
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "animatediff_checkpoint_to_diffusers": (
        (6, 4),
        ("down.{n}.temporal_transformer.norms.0.weight", "down.{n}.attention_blocks.1.w", "down.{n}.pos_encoder.pe"),
    ),
    "auraflow_transformer_checkpoint_to_diffusers": (
        (6, 4),
        ("double_layers.{n}.modX.1.weight", "single_layers.0.x"),
    ),
    "chroma_transformer_checkpoint_to_diffusers": (
        (21504, 1),
        ("double_blocks.{n}.img_mlp.0.weight", "single_blocks.{n}.linear2.bias", _),
    ),
    "flux_transformer_checkpoint_to_diffusers": (
        (21504, 1),
        ("double_blocks.{n}.img_mlp.0.weight", "single_blocks.{n}.linear2.bias"),
    ),
    "mochi_transformer_checkpoint_to_diffusers": ((6, 2), ()),
    "sana_transformer_to_diffusers": ((6, 2), ("blocks.{n}.scale_shift_table",)),
    "hidream_transformer_to_diffusers": ((6, 4), PREFIXED),
    "ernie_image_transformer_checkpoint_to_diffusers": ((6, 4), PREFIXED),
    "qwen_image21_transformer_checkpoint_to_diffusers": (
        (6, 4),
        (*PREFIXED, "model.diffusion_model.blocks.{n}.img_mlp.gate_up.weight"),
    ),
    "sd3_t5_checkpoint_to_diffusers": ((6, 4), tuple(f"text_encoders.t5xxl.transformer.{key}" for key in RENAMED)),
    "ldm_clip_checkpoint": ((6, 4), tuple(f"cond_stage_model.transformer.{key}" for key in RENAMED)),
    "stable_cascade_unet_single_file_to_diffusers": (
        (6, 4),
        ("blocks.{n}.attn.in_proj_weight", "blocks.{n}.attn.out_proj.bias", "clip_mapper.weight", "b.{n}.w"),
    ),
    "wan_animate_2_transformer_to_diffusers": ((6, 4), tuple(key.replace("{n}.", "{n}.block.") for key in PREFIXED)),
    "wan_transformer_to_diffusers": ((6, 4), RENAMED),
    "flux3_transformer_checkpoint_to_diffusers": (
        (6, 4),
        (
            "single_blocks.{n}.q_proj.weight",
            "single_blocks.{n}.norm.key_norm.scale",
            "txt_in.weight",
            "repa_projectors.w",
        ),
    ),
    "flux2_transformer_checkpoint_to_diffusers": (
        (6, 4),
        (
            "double_blocks.{n}.img_attn.qkv.weight",
            "double_blocks.{n}.img_mlp.0.weight",
            "single_blocks.{n}.linear1.weight",
            "final_layer.adaLN_modulation.1.weight",
            "img_in.weight",
        ),
    ),
    "z_image_transformer_checkpoint_to_diffusers": (
        (6, 4),
        ("layers.{n}.attention.qkv.weight", "layers.{n}.attention.out.weight", "x_embedder.w", "layers.{n}.w"),
    ),
    "krea2_transformer_checkpoint_to_diffusers": ((6, 4), RENAMED),
    "ltx_transformer_checkpoint_to_diffusers": (
        (6, 4),
        tuple(f"model.diffusion_model.transformer_blocks.{{n}}.{key}" for key in ("attn1.q_norm.w", "attn1.to_q.w")),
    ),
    "ltx2_transformer_to_diffusers": ((6, 4), ("model.diffusion_model.transformer_blocks.{n}.attn1.q_norm.weight",)),
    "ltx2_audio_vae_to_diffusers": ((6, 4), ("audio_vae.encoder.{n}.w", "audio_vae.decoder.{n}.w")),
    "autoencoder_dc_checkpoint_to_diffusers": (
        (6, 4, 1, 1),
        (
            "encoder.stages.0.op_list.{n}.context_module.main.qkv.conv.weight",
            "decoder.stages.0.op_list.{n}.main.conv1.conv.w",
        ),
    ),
}


def make_layout(name: str) -> StateDictSpec:
    shape, templates = LAYOUTS[name]
    known = dict.fromkeys(template.format(n=n) for template in templates for n in range(3))
    wishes = Wishes(shape, known)
    getattr(single_file_utils, f"convert_{name}")(wishes)
    return StateDictSpec(dict.fromkeys(wishes.wished, TensorSpec("F32", shape)), name=f"{name}.json")
