"""Small models of diffusers and transformers, on the meta device: what converters must make.

The sizes are as small as the classes allow; dimensions differ where they can, so that a wrong one is seen.
"""

# ruff: noqa: PIE804 - keyword arguments that the classes take as they come, several a line

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from remapkit.tensors.spec import StateDictSpec, TensorSpec

# Neither is typed throughout.
diffusers: Any = import_module("diffusers")
transformers: Any = import_module("transformers")

HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
ROPE: dict[str, Any] = {"axes_dims_rope": (2, 2, 4)}
MINIMAX: dict[str, Any] = {**HEADS, "hidden_size": 12, "num_layers": 3, "num_refiner_layers": 2, "ffn_dim": 10}
VAE: dict[str, Any] = {"latent_channels": 4, "layers_per_block": (1,) * 5}
EFFICIENT: dict[str, Any] = {
    "block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "layers_per_block": (1, 1, 2),
}

MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "auraflow": lambda: diffusers.AuraFlowTransformer2DModel(
        **(HEADS | {"attention_head_dim": 4}),
        **{"sample_size": 4, "num_mmdit_layers": 3, "num_single_dit_layers": 3, "joint_attention_dim": 6},
        **{"caption_projection_dim": 8, "pos_embed_max_size": 4},
    ),
    "chroma": lambda: diffusers.ChromaTransformer2DModel(
        **(HEADS | ROPE),
        **{"in_channels": 4, "num_layers": 3, "num_single_layers": 3, "joint_attention_dim": 6},
        **{"approximator_num_channels": 4, "approximator_hidden_dim": 6, "approximator_layers": 3},
    ),
    "clip": lambda: transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            **{"vocab_size": 11, "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 3},
            **{"num_attention_heads": 2, "max_position_embeddings": 7, "bos_token_id": 0, "eos_token_id": 1},
        )
    ),
    "cosmos": lambda: diffusers.CosmosTransformer3DModel(
        **(HEADS | {"attention_head_dim": 12}),
        **{"in_channels": 4, "out_channels": 4, "num_layers": 3, "text_embed_dim": 6, "adaln_lora_dim": 8},
        **{"max_size": (4, 4, 4), "extra_pos_embed_type": None},
    ),
    "dc": lambda: diffusers.AutoencoderDC(
        **{"latent_channels": 4, "attention_head_dim": 4},
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in EFFICIENT.items()},
        **{f"{side}_block_out_channels": (4, 8, 8) for side in ("encoder", "decoder")},
        **{f"{side}_qkv_multiscales": ((), (), (5,)) for side in ("encoder", "decoder")},
    ),
    "ernie": lambda: diffusers.ErnieImageTransformer2DModel(
        **{"hidden_size": 8, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 10, "in_channels": 4},
        **{"out_channels": 4, "text_in_dim": 6, "rope_axes_dim": (2, 1, 1)},
    ),
    "flux": lambda: diffusers.FluxTransformer2DModel(
        **(HEADS | ROPE),
        **{"in_channels": 4, "num_layers": 3, "num_single_layers": 3, "joint_attention_dim": 6},
        **{"pooled_projection_dim": 6, "guidance_embeds": True},
    ),
    "flux2": lambda: diffusers.Flux2Transformer2DModel(
        **HEADS,
        **{"in_channels": 4, "num_layers": 3, "num_single_layers": 3, "joint_attention_dim": 6},
        **{"timestep_guidance_channels": 10, "axes_dims_rope": (2, 2, 2, 2)},
    ),
    "flux3": lambda: diffusers.Flux3Transformer2DModel(
        **HEADS,
        **{"in_channels": 4, "cond_in_channels": 6, "num_layers": 2, "num_single_layers": 3},
        **{"joint_attention_dim": 6, "timestep_channels": 10, "axes_dims_rope": (2, 2, 2, 2)},
    ),
    "hidream": lambda: diffusers.HiDreamImageTransformer2DModel(
        **HEADS,
        **{"patch_size": 2, "in_channels": 4, "num_layers": 2, "num_single_layers": 1, "caption_channels": [4, 6]},
        **{"text_emb_dim": 6, "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (4, 4)},
        **{"max_resolution": (4, 4), "llama_layers": [0, 1]},
    ),
    "hunyuan": lambda: diffusers.HunyuanVideoTransformer3DModel(
        **HEADS,
        **{"in_channels": 4, "out_channels": 4, "num_layers": 3, "num_single_layers": 3, "text_embed_dim": 6},
        **{"pooled_projection_dim": 6, "rope_axes_dim": (2, 2, 4)},
    ),
    "krea2": lambda: diffusers.Krea2Transformer2DModel(
        **(HEADS | {"attention_head_dim": 4, "num_key_value_heads": 1}),
        **{"in_channels": 4, "num_layers": 3, "intermediate_size": 12, "timestep_embed_dim": 10},
        **{"text_hidden_dim": 6, "num_text_layers": 2, "text_num_attention_heads": 2, "axes_dims_rope": (2, 1, 1)},
        **{"text_num_key_value_heads": 2, "text_intermediate_size": 14},
    ),
    "ltx": lambda: diffusers.LTXVideoTransformer3DModel(
        **(HEADS | {"attention_head_dim": 4}),
        **{"in_channels": 4, "out_channels": 4, "cross_attention_dim": 8, "num_layers": 3, "caption_channels": 6},
    ),
    "ltx2": lambda: diffusers.LTX2VideoTransformer3DModel(
        **(HEADS | {"attention_head_dim": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 6}),
        **{"in_channels": 4, "out_channels": 4, "cross_attention_dim": 8, "audio_in_channels": 6, "num_layers": 3},
        **{"audio_out_channels": 6, "audio_cross_attention_dim": 12, "caption_channels": 10},
    ),
    "ltx2_audio": lambda: diffusers.AutoencoderKLLTX2Audio(
        **{"base_channels": 4, "ch_mult": (1, 2, 2), "num_res_blocks": 2, "latent_channels": 2, "mel_bins": 8}
    ),
    "ltx2_vae": lambda: diffusers.AutoencoderKLLTX2Video(
        **VAE,
        **{"block_out_channels": (4, 8, 16, 16), "decoder_block_out_channels": (4, 8, 16)},
        **{"decoder_layers_per_block": (1,) * 4},
    ),
    "ltx_vae": lambda: diffusers.AutoencoderKLLTXVideo(
        **VAE,
        **{f"{side}block_out_channels": (4, 6, 8, 8) for side in ("", "decoder_")},
        **{"decoder_layers_per_block": (1,) * 5},
    ),
    "lumina2": lambda: diffusers.Lumina2Transformer2DModel(
        **{"sample_size": 4, "in_channels": 4, "hidden_size": 24, "num_layers": 3, "num_attention_heads": 3},
        **{
            "num_kv_heads": 1,
            "multiple_of": 4,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (4, 4, 4),
            "cap_feat_dim": 6,
        },
    ),
    "minimax_h3": lambda: diffusers.MiniMaxH3Transformer3DModel(
        **MINIMAX,
        **{"in_channels": 4, "audio_in_channels": 6, "text_dim": 8, "freq_dim": 10, "time_embed_hidden_dim": 12},
        **{"time_embed_dim": 6, "rope_freq_dim": 1},
    ),
    "mochi": lambda: diffusers.MochiTransformer3DModel(
        **(HEADS | {"attention_head_dim": 4}),  # the converter knows one number of layers
        **{
            "num_layers": 48,
            "pooled_projection_dim": 6,
            "in_channels": 4,
            "text_embed_dim": 10,
            "time_embed_dim": 12,
        },
    ),
    "motion": lambda: diffusers.MotionAdapter(
        **{"block_out_channels": (4, 8), "motion_layers_per_block": 1, "motion_num_attention_heads": 2},
        **{"motion_norm_num_groups": 2, "motion_max_seq_length": 4},
    ),
    "qwen21": lambda: diffusers.QwenImage21Transformer2DModel(
        **(HEADS | ROPE), **{"in_channels": 4, "out_channels": 4, "num_layers": 3, "context_in_dim": 6}
    ),
    "sana": lambda: diffusers.SanaTransformer2DModel(
        **(HEADS | {"attention_head_dim": 4}),
        **{"in_channels": 4, "out_channels": 4, "num_layers": 3, "num_cross_attention_heads": 2},
        **{"cross_attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": 6},
    ),
    "sd3": lambda: diffusers.SD3Transformer2DModel(
        **(HEADS | {"attention_head_dim": 4}),
        **{"sample_size": 4, "in_channels": 4, "num_layers": 3, "joint_attention_dim": 6, "out_channels": 4},
        **{"caption_projection_dim": 8, "pooled_projection_dim": 10, "pos_embed_max_size": 4},
        **{"dual_attention_layers": (0,), "qk_norm": "rms_norm"},
    ),
    "stable_cascade": lambda: diffusers.StableCascadeUNet(
        **{"in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8, "conditioning_dim": 8},
        **{"block_out_channels": (8, 8), "num_attention_heads": (2, 2), "down_num_layers_per_block": (1, 2)},
        **{"up_num_layers_per_block": (2, 1), "clip_text_pooled_in_channels": 6},
    ),
    "t5": lambda: transformers.T5EncoderModel(
        transformers.T5Config(
            **{"vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 10, "num_layers": 3, "num_heads": 2},
            feed_forward_proj="gated-gelu",
        )
    ),
    "wan": lambda: diffusers.WanTransformer3DModel(
        **(HEADS | {"attention_head_dim": 4}),
        **{"patch_size": (1, 2, 2), "in_channels": 4, "out_channels": 4, "text_dim": 6, "freq_dim": 10},
        **{"ffn_dim": 12, "num_layers": 3, "image_dim": 14, "added_kv_proj_dim": 8},
    ),
    "wan_animate_2": lambda: diffusers.WanAnimate2Transformer3DModel(
        **{"in_dim": 4, "dim": 8, "ffn_dim": 12, "freq_dim": 10, "text_dim": 6, "out_dim": 4, "num_heads": 2},
        **{"num_layers": 3, "use_img_emb": False},
    ),
    "wan_vae": lambda: diffusers.AutoencoderKLWan(base_dim=4, z_dim=2),
    "z_image": lambda: diffusers.ZImageTransformer2DModel(
        **{"in_channels": 4, "dim": 8, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 2, "n_kv_heads": 2},
        **{"cap_feat_dim": 6, "axes_dims": [2, 1, 1], "axes_lens": [4, 4, 4]},
    ),
}


def read_model(name: str) -> StateDictSpec:
    """Return the keys and shapes of a model's state dict, as `F32`."""
    with torch.device("meta"):
        state = MODELS[name]().state_dict()
    return StateDictSpec({fqn: TensorSpec("F32", tuple(tensor.shape)) for fqn, tensor in state.items()}, name=name)
