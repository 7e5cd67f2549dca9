"""Reference converters, each a function from state dict to state dict: what the packs are held against, bit for bit.

None of this knows remapkit. Where diffusers or transformers ships a converter, it is called; what it does not do
itself (names that were only ever spelled in a script) is written here as a plain list of replacements. The versions
that the packs were held against stand in docs/packs.md.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]


def wan21_vae(state: Mapping[str, Tensor]) -> State:
    """diffusers' single-file converter of the Wan VAE. Right for Wan 2.1; of a Wan 2.2 VAE it loses 36 tensors."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    return dict(convert_wan_vae_to_diffusers(dict(state)))


def wan22_vae(state: Mapping[str, Tensor]) -> State:
    """Renamed by hand: diffusers' converter makes one key of several of 2.2."""
    return {rename_wan22_to_diffusers(fqn): tensor for fqn, tensor in state.items()}


def rename_wan22_to_diffusers(fqn: str) -> str:
    """upstream's name -> diffusers' name, written by hand and apart from the packs."""
    layer = {"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}
    fqn = re.sub(r"^conv1\.", "quant_conv.", fqn)
    fqn = re.sub(r"^conv2\.", "post_quant_conv.", fqn)
    fqn = re.sub(r"^(encoder|decoder)\.conv1\.", r"\1.conv_in.", fqn)
    fqn = re.sub(r"^(encoder|decoder)\.head\.0\.", r"\1.norm_out.", fqn)
    fqn = re.sub(r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out.", fqn)
    fqn = re.sub(r"\.middle\.1\.", ".mid_block.attentions.0.", fqn)
    fqn = re.sub(r"\.middle\.([02])\.", lambda m: f".mid_block.resnets.{int(m[1]) // 2}.", fqn)
    fqn = re.sub(r"\.downsamples\.(\d)\.downsamples\.2\.(resample|time)", r".down_blocks.\1.downsampler.\2", fqn)
    fqn = re.sub(r"\.upsamples\.(\d)\.upsamples\.3\.(resample|time)", r".up_blocks.\1.upsampler.\2", fqn)
    fqn = re.sub(r"\.downsamples\.(\d)\.downsamples\.(\d)\.", r".down_blocks.\1.resnets.\2.", fqn)
    fqn = re.sub(r"\.upsamples\.(\d)\.upsamples\.(\d)\.", r".up_blocks.\1.resnets.\2.", fqn)
    fqn = re.sub(r"\.residual\.([0236])\.", lambda m: f".{layer[m[1]]}.", fqn)
    return re.sub(r"\.shortcut\.", ".conv_shortcut.", fqn)


def wan21_dit(state: Mapping[str, Tensor]) -> State:
    """diffusers' single-file converter of the Wan transformer."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return dict(convert_wan_transformer_to_diffusers(dict(state)))


def flux_bfl(state: Mapping[str, Tensor]) -> State:
    """diffusers' single-file converter of FLUX.1. It only knows the width 3072 (of the rows of `linear1`)."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    return dict(convert_flux_transformer_checkpoint_to_diffusers(dict(state)))


_LLAMA_NAMES = (
    (r"^tok_embeddings\.", "model.embed_tokens."),
    (r"^output\.", "lm_head."),
    (r"^norm\.", "model.norm."),
    (r"\.attention\.w([qkvo])\.", r".self_attn.\1_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"^layers\.", "model.layers."),
)


def llama_meta(state: Mapping[str, Tensor], heads: int = 32, kv_heads: int = 8) -> State:
    """transformers' own `PermuteForRope`, and held against it its reader of GGUF files, which meets the same layout.

    Whole rows move and nothing is computed. `PermuteForRope` takes the number of heads from a config: for the grouped
    keys that is the number of key heads.
    """
    out: State = {}
    for fqn, tensor in state.items():
        name = _renamed(fqn, _LLAMA_NAMES)
        groups = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        out[name] = tensor if groups is None else _to_half_split(fqn, tensor, heads, groups)
    return out


def _to_half_split(fqn: str, tensor: Tensor, heads: int, groups: int) -> Tensor:
    from transformers import LlamaConfig
    from transformers.core_model_loading import PermuteForRope
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    config = LlamaConfig(num_attention_heads=groups, hidden_size=tensor.shape[0])
    (one,) = PermuteForRope().convert({fqn: [tensor]}, [fqn], [fqn], config=config).values()
    gguf = LlamaTensorProcessor({"num_attention_heads": heads, "num_key_value_heads": groups})
    other = gguf.process(tensor.numpy(), ".attn_k." if groups != heads else ".attn_q.").weights
    assert isinstance(one, Tensor)
    assert (one.numpy() == other).all(), f"two converters of transformers disagree on {fqn}"
    return one


_LLAMA_RANKS = {"wo": 1, "w2": 1} | dict.fromkeys(("wq", "wk", "wv", "w1", "w3", "output"), 0)
"""The dimension along which the ranks of Meta's release have a part of a matrix; every rank has the norms whole."""


def join_llama_ranks(state: Mapping[str, Tensor], embedding: int, heads: int, kv_heads: int) -> State:
    """The ranks joined with torch, then `llama_meta`; `embedding` is the dimension along which its parts lie."""
    import torch

    dims = {**_LLAMA_RANKS, "tok_embeddings": embedding}
    parts: dict[str, list[Tensor]] = {}
    for rank in range(len({fqn.split(".")[0] for fqn in state})):
        for fqn, tensor in state.items():
            if fqn.startswith(f"tp{rank}.") and not fqn.endswith("rope.freqs"):
                parts.setdefault(fqn.partition(".")[2], []).append(tensor)
    whole = {}
    for fqn, tensors in parts.items():
        dim = dims.get(fqn.split(".")[-2])
        whole[fqn] = tensors[0] if dim is None else torch.cat(tensors, dim)
        assert dim is not None or all(torch.equal(tensor, tensors[0]) for tensor in tensors), fqn
    return llama_meta(whole, heads, kv_heads)


def llama2_ranks(state: Mapping[str, Tensor]) -> State:
    """The heads of Llama 2 7B."""
    return join_llama_ranks(state, 1, 32, 32)


def llama3_ranks(state: Mapping[str, Tensor]) -> State:
    """The heads of Llama 3 8B."""
    return join_llama_ranks(state, 0, 32, 8)


def mixtral_per_expert(state: Mapping[str, Tensor]) -> State:
    """`MixtralForCausalLM.from_pretrained` on the state dict: transformers stacks the experts while it loads."""
    import torch
    from transformers import MixtralForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    # torch notes at the first use which functions a device applies to. Inside `from_pretrained`, where `linspace` is
    # another one, it would note the wrong one for the rest of the process.
    with torch.device("meta"):
        torch.empty(0)
    with tempfile.TemporaryDirectory() as folder:
        save_file({fqn: tensor.contiguous() for fqn, tensor in state.items()}, Path(folder, "model.safetensors"))
        Path(folder, "config.json").write_text(json.dumps(mixtral_config(state)), encoding="utf-8")
        model, info = MixtralForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return dict(model.state_dict())


def mixtral_fused(state: Mapping[str, Tensor]) -> State:
    """`save_pretrained` of a `MixtralForCausalLM`: transformers takes the stacks apart while it saves."""
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(MixtralConfig(**mixtral_config(state)))
    model.load_state_dict(dict(state), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder, "model.safetensors"))


def mixtral_config(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The config.json that fits the shapes of a state dict of either layout, with heads that are 4 wide."""
    vocabulary, hidden = state["model.embed_tokens.weight"].shape
    q, k = (state[f"model.layers.0.self_attn.{p}_proj.weight"].shape[0] for p in "qk")
    gate = next(tensor for fqn, tensor in state.items() if fqn.endswith(".gate.weight"))
    down = next(tensor for fqn, tensor in state.items() if re.search(r"experts\.(0\.w2\.weight|down_proj)$", fqn))
    return {
        "architectures": ["MixtralForCausalLM"],
        "bos_token_id": None,
        "eos_token_id": None,
        "model_type": "mixtral",
        "dtype": "float32",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": down.shape[-1],
        "num_hidden_layers": 1 + max(int(fqn.split(".")[2]) for fqn in state if fqn.startswith("model.layers.")),
        "num_attention_heads": q // 4,
        "num_key_value_heads": k // 4,
        "head_dim": 4,
        "num_local_experts": gate.shape[0],
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }


def _renamed(fqn: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, text in names:
        fqn = re.sub(pattern, text, fqn)
    return fqn


def gpt2_hf(state: Mapping[str, Tensor]) -> State:
    """transformers keeps the linear maps of GPT-2 as `Conv1D`, [in, out]: weights of these modules are transposed.

    Which modules those are is asked of a `GPT2LMHeadModel`, not of names or shapes.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    layers = 1 + max(int(fqn.split(".")[2]) for fqn in state if fqn.startswith("transformer.h."))
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=8, n_head=2))
    turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    return {fqn: tensor.T.contiguous() if fqn in turned else tensor for fqn, tensor in state.items()}


_VIT_NAMES = (
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "vit.layernorm."),
    (r"^head\.", "classifier."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"^blocks\.", "vit.layers."),
)


def vit_timm(state: Mapping[str, Tensor]) -> State:
    """transformers no longer ships the script for timm's ViT; this is what the layouts say. That two models then
    give the same numbers (`test_values.py`) is the proof of it.
    """
    out: State = {}
    for fqn, tensor in state.items():
        name = _renamed(fqn, _VIT_NAMES)
        if ".attn.qkv." not in name:
            out[name] = tensor
            continue
        for part, piece in zip("qkv", tensor.chunk(3), strict=True):
            out[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = piece
    return out
