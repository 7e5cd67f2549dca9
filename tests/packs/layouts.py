"""Small models in the layouts that no installed library has: own code, written from what the layouts mean.

They are the second witness: a real model of transformers or diffusers and one of these, given the same weights in
either layout, must compute the same; the arguments of `forward` are called as there.

Shapes: B batch, T tokens, D width, H heads, F head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class NanoBlock(nn.Module):
    """A GPT-2 block whose linear maps are `nn.Linear`: weights are [out, in], where transformers has [in, out]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv = self.attn["c_attn"](self.ln_1(x_BTD)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.attn["c_proj"](mixed.transpose(1, 2).flatten(2))
        hidden = functional.gelu(self.mlp["c_fc"](self.ln_2(x_BTD)), approximate="tanh")
        return x_BTD + self.mlp["c_proj"](hidden)


class NanoGPT(nn.Module):
    """GPT-2 with the names and shapes of nanoGPT, from token ids [B, T] to logits [B, T, V]."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(context, width),
                "h": nn.ModuleList(NanoBlock(width, heads) for _ in range(layers)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        parts = self.transformer
        x_BTD = parts["wte"](input_ids) + parts["wpe"](torch.arange(input_ids.shape[1]))
        for block in parts["h"]:  # type: ignore[union-attr]
            x_BTD = block(x_BTD)
        return self.lm_head(parts["ln_f"](x_BTD))


class TimmAttention(nn.Module):
    """Attention over all tokens with one map for queries, keys and values, stacked in that order."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TimmBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = TimmAttention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x_BTD))))


class TimmViT(nn.Module):
    """A ViT with timm's names, from images [B, 3, Y, X] to logits of the class token."""

    def __init__(self, size: int, patch: int, width: int, layers: int, heads: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(TimmBlock(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches_BTD = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.cls_token.expand(len(pixel_values), -1, -1), patches_BTD], dim=1) + self.pos_embed
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD)[:, 0])


class MetaBlock(nn.Module):
    """A Llama block that turns neighbouring channels (0 with 1, 2 with 3, ...) as one complex number."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.attention = nn.ModuleDict(
            {
                "wq": nn.Linear(width, heads * head_dim, bias=False),
                "wk": nn.Linear(width, kv_heads * head_dim, bias=False),
                "wv": nn.Linear(width, kv_heads * head_dim, bias=False),
                "wo": nn.Linear(heads * head_dim, width, bias=False),
            }
        )
        maps = {"w1": (width, hidden), "w2": (hidden, width), "w3": (width, hidden)}
        self.feed_forward = nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name, shape in maps.items()})
        self.attention_norm, self.ffn_norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)

    def forward(self, x_BTD: Tensor, turns_TF: Tensor) -> Tensor:
        normed = self.attention_norm(x_BTD)
        q = turned(self.attention["wq"](normed).unflatten(-1, (self.heads, -1)), turns_TF)
        k = turned(self.attention["wk"](normed).unflatten(-1, (self.kv_heads, -1)), turns_TF)
        v = self.attention["wv"](normed).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x_BTD = x_BTD + self.attention["wo"](mixed.transpose(1, 2).flatten(2))
        normed, maps = self.ffn_norm(x_BTD), self.feed_forward
        return x_BTD + maps["w2"](functional.silu(maps["w1"](normed)) * maps["w3"](normed))


def turned(x_BTHF: Tensor, turns_TF: Tensor) -> Tensor:
    """Every pair of neighbouring channels turned by its token's angle; [B, T, H, F] -> [B, H, T, F]."""
    pairs = torch.view_as_complex(x_BTHF.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns_TF[:, None]).flatten(-2).transpose(1, 2)


class MetaLlama(nn.Module):
    """A Llama with the names of Meta's release, from token ids [B, T] to logits [B, T, V]."""

    def __init__(
        self, vocabulary: int, width: int, layers: int, heads: int, kv_heads: int, head_dim: int, hidden: int
    ) -> None:
        super().__init__()
        self.frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
        self.tok_embeddings = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(MetaBlock(width, heads, kv_heads, head_dim, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.output = nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        angles_TF = torch.arange(input_ids.shape[1])[:, None] * self.frequencies
        turns_TF = torch.polar(torch.ones_like(angles_TF), angles_TF)
        x_BTD = self.tok_embeddings(input_ids)
        for layer in self.layers:
            x_BTD = layer(x_BTD, turns_TF)
        return self.output(self.norm(x_BTD))


def parted_by_meta(state: Mapping[str, Tensor], ranks: int, embedding: int) -> dict[str, Tensor]:
    """The state dict of a `MetaLlama` in the parts of its ranks, under `tp0.`, `tp1.` ...

    As the model's parallel layers are defined: a column-parallel map has some of its rows (it makes some of the
    outputs), a row-parallel map some of its columns, and a norm is the same everywhere. The embedding is parted along
    dimension 1 in Llama 2, along dimension 0 (the vocabulary) in Llama 3.
    """
    found = {}
    for fqn, tensor in state.items():
        module = fqn.split(".")[-2]
        dim = {"tok_embeddings": embedding, "wo": 1, "w2": 1}.get(module, 0)
        whole = module.endswith("norm")
        for rank in range(ranks):
            size = tensor.shape[dim] // ranks
            part = tensor if whole else tensor.narrow(dim, rank * size, size)
            found[f"tp{rank}.{fqn}"] = part.clone()
    return found


def embedded(x_B: Tensor, width: int = 256) -> Tensor:
    """Numbers near [0, 1] as cosines and sines of `width / 2` frequencies."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(width // 2) / (width // 2))
    angles = 1000.0 * x_B[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def turns_of(places_TA: Tensor, sizes: Sequence[int]) -> Tensor:
    """The angle of each pair of channels of each token, as complex numbers; an axis has its `sizes` channels."""
    angles = [places_TA[:, i, None] * 10000.0 ** -(torch.arange(0, size, 2) / size) for i, size in enumerate(sizes)]
    angles_TF = torch.cat(angles, dim=-1)
    return torch.polar(torch.ones_like(angles_TF), angles_TF)


def normed(x_BTD: Tensor) -> Tensor:
    """A layer norm without parameters."""
    return functional.layer_norm(x_BTD, x_BTD.shape[-1:], eps=1e-6)


class Embedder(nn.Module):
    """Two maps with a SiLU between."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(given, width), nn.Linear(width, width)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.out_layer(functional.silu(self.in_layer(x_BD)))


class Modulation(nn.Module):
    """Shift, scale and gate, once or twice, from the condition."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts, self.lin = parts, nn.Linear(width, parts * width)

    def forward(self, vec_BD: Tensor) -> tuple[Tensor, ...]:
        return self.lin(functional.silu(vec_BD))[:, None].chunk(self.parts, dim=-1)


class Scale(nn.Module):
    """An RMS norm over the channels of a head, whose parameter is called `scale`."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.scale, eps=1e-6)


def norms_of(head_dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({"query_norm": Scale(head_dim), "key_norm": Scale(head_dim)})


def heads_of(qkv_BTD: Tensor, heads: int, norms: nn.ModuleDict) -> list[Tensor]:
    """Queries, keys and values [B, T, H, F] of one fused result; queries and keys are normed."""
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in qkv_BTD.chunk(3, dim=-1))
    return [norms["query_norm"](q), norms["key_norm"](k), v]


def attended(q_BTHF: Tensor, k_BTHF: Tensor, v_BTHF: Tensor, turns_TF: Tensor) -> Tensor:
    """Attention over all tokens with turned queries and keys: [B, T, H * F]."""
    q, k = turned(q_BTHF, turns_TF), turned(k_BTHF, turns_TF)
    return functional.scaled_dot_product_attention(q, k, v_BTHF.transpose(1, 2)).transpose(1, 2).flatten(2)


class Stream(nn.Module):
    """The half of a double block that images have, and texts too: attention's ends, modulation, feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mod = Modulation(width, 6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.attn["norm"] = norms_of(width // heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def begin(self, x_BTD: Tensor, vec_BD: Tensor) -> list[Tensor]:
        shift, scale, *_ = self.mod(vec_BD)
        return heads_of(self.attn["qkv"](normed(x_BTD) * (1 + scale) + shift), self.heads, self.attn["norm"])

    def end(self, x_BTD: Tensor, mixed_BTD: Tensor, vec_BD: Tensor) -> Tensor:
        _, _, gate, shift, scale, gate_mlp = self.mod(vec_BD)
        x_BTD = x_BTD + gate * self.attn["proj"](mixed_BTD)
        return x_BTD + gate_mlp * self.mlp(normed(x_BTD) * (1 + scale) + shift)


class DoubleBlock(nn.Module):
    """Text and image with weights of their own and one attention, in which the text stands first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        # Registered part by part: the names are `img_mod`, `img_attn`, ..., with no module that holds both halves.
        self.streams = [Stream(width, heads), Stream(width, heads)]
        for name, stream in zip(("txt", "img"), self.streams, strict=True):
            for part, module in stream.named_children():
                self.add_module(f"{name}_{part}", module)

    def forward(self, pair: list[Tensor], vec_BD: Tensor, turns_TF: Tensor) -> list[Tensor]:
        begun = [stream.begin(x_BTD, vec_BD) for stream, x_BTD in zip(self.streams, pair, strict=True)]
        mixed = attended(*(torch.cat(both, dim=1) for both in zip(*begun, strict=True)), turns_TF)
        parts = mixed.split([x_BTD.shape[1] for x_BTD in pair], dim=1)
        ends = zip(self.streams, pair, parts, strict=True)
        return [stream.end(x_BTD, part, vec_BD) for stream, x_BTD, part in ends]


class SingleBlock(nn.Module):
    """One sequence; one map makes queries, keys, values and the hidden layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.linear1, self.linear2 = nn.Linear(width, 7 * width), nn.Linear(5 * width, width)
        self.norm, self.modulation = norms_of(width // heads), Modulation(width, 3)

    def forward(self, x_BTD: Tensor, vec_BD: Tensor, turns_TF: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(vec_BD)
        made = self.linear1(normed(x_BTD) * (1 + scale) + shift)
        qkv, hidden = made.split([3 * self.width, 4 * self.width], dim=-1)
        mixed = attended(*heads_of(qkv, self.heads, self.norm), turns_TF)
        return x_BTD + gate * self.linear2(torch.cat([mixed, functional.gelu(hidden, approximate="tanh")], dim=-1))


class FinalLayer(nn.Module):
    """Norm and map; its modulation gives shift, then scale."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BTD: Tensor, vec_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec_BD)[:, None].chunk(2, dim=-1)
        return self.linear(normed(x_BTD) * (1 + scale) + shift)


class Flux(nn.Module):
    """FLUX.1 with the names of Black Forest Labs' file.

    Image tokens [B, T, channels], text tokens [B, S, text], places [T, 3] and [S, 3], a pooled text [B, pooled], time
    and guidance [B] -> [B, T, channels].
    """

    def __init__(
        self, channels: int, text: int, pooled: int, heads: int, axes: Sequence[int], double: int, single: int
    ) -> None:
        super().__init__()
        width, self.axes = heads * sum(axes), axes
        self.img_in, self.txt_in = nn.Linear(channels, width), nn.Linear(text, width)
        self.time_in, self.guidance_in = Embedder(256, width), Embedder(256, width)
        self.vector_in = Embedder(pooled, width)
        self.double_blocks = nn.ModuleList(DoubleBlock(width, heads) for _ in range(double))
        self.single_blocks = nn.ModuleList(SingleBlock(width, heads) for _ in range(single))
        self.final_layer = FinalLayer(width, channels)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        guidance: Tensor,
    ) -> Tensor:
        vec_BD = self.time_in(embedded(timestep)) + self.guidance_in(embedded(guidance))
        vec_BD = vec_BD + self.vector_in(pooled_projections)
        turns_TF = turns_of(torch.cat([txt_ids, img_ids]), self.axes)
        pair = [self.txt_in(encoder_hidden_states), self.img_in(hidden_states)]
        for block in self.double_blocks:
            pair = block(pair, vec_BD, turns_TF)
        x_BTD = torch.cat(pair, dim=1)
        for block in self.single_blocks:
            x_BTD = block(x_BTD, vec_BD, turns_TF)
        return self.final_layer(x_BTD[:, len(txt_ids) :], vec_BD)


class WanAttention(nn.Module):
    """Attention to `to_BSD`, with norms of queries and keys over all heads together; turned where turns are given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def forward(self, x_BTD: Tensor, to_BSD: Tensor, turns_TF: Tensor | None = None) -> Tensor:
        made = (self.norm_q(self.q(x_BTD)), self.norm_k(self.k(to_BSD)), self.v(to_BSD))
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in made)
        if turns_TF is not None:
            return self.o(attended(q, k, v, turns_TF))
        mixed = functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
        return self.o(mixed.transpose(1, 2).flatten(2))


class WanBlock(nn.Module):
    """Self attention, cross attention, feed-forward. Of three norms only `norm3`, the second to run, has weights."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = WanAttention(width, heads), WanAttention(width, heads)
        self.norm3 = nn.LayerNorm(width, eps=1e-6)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Parameter(torch.zeros(1, 6, width))

    def forward(self, x_BTD: Tensor, text_BSD: Tensor, time_B6D: Tensor, turns_TF: Tensor) -> Tensor:
        parts = (self.modulation + time_B6D).chunk(6, dim=1)
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = parts
        given = normed(x_BTD) * (1 + scale) + shift
        x_BTD = x_BTD + gate * self.self_attn(given, given, turns_TF)
        x_BTD = x_BTD + self.cross_attn(self.norm3(x_BTD), text_BSD)
        return x_BTD + gate_ffn * self.ffn(normed(x_BTD) * (1 + scale_ffn) + shift_ffn)


class WanHead(nn.Module):
    """Norm and map, with a shift and a scale of its own."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.head, self.modulation = nn.Linear(width, channels), nn.Parameter(torch.zeros(1, 2, width))

    def forward(self, x_BTD: Tensor, time_BD: Tensor) -> Tensor:
        shift, scale = (self.modulation + time_BD[:, None]).chunk(2, dim=1)
        return self.head(normed(x_BTD) * (1 + scale) + shift)


class WanDiT(nn.Module):
    """The Wan 2.1 text-to-video transformer with upstream's names.

    Latents [B, C, frames, Y, X], text [B, S, text], time [B] in 0..1000 -> [B, C, frames, Y, X]; a patch is
    1 x 2 x 2.
    """

    def __init__(
        self, channels: int, text: int, frequencies: int, heads: int, head_dim: int, hidden: int, layers: int
    ):
        super().__init__()
        width = heads * head_dim
        self.frequencies, self.head_dim = frequencies, head_dim
        self.patch_embedding = nn.Conv3d(channels, width, (1, 2, 2), (1, 2, 2))
        self.text_embedding = nn.Sequential(
            nn.Linear(text, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.time_embedding = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(WanBlock(width, heads, hidden) for _ in range(layers))
        self.head = WanHead(width, 4 * channels)

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        patches = self.patch_embedding(hidden_states)
        frames, rows, columns = patches.shape[2:]
        third = 2 * (self.head_dim // 6)
        places = torch.cartesian_prod(*(torch.arange(size).float() for size in (frames, rows, columns)))
        turns_TF = turns_of(places, (self.head_dim - 2 * third, third, third))
        time_BD = self.time_embedding(embedded(timestep / 1000, self.frequencies))
        time_B6D = self.time_projection(time_BD).unflatten(1, (6, -1))
        text_BSD = self.text_embedding(encoder_hidden_states)
        x_BTD = patches.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x_BTD = block(x_BTD, text_BSD, time_B6D, turns_TF)
        out = self.head(x_BTD, time_BD).unflatten(1, (frames, rows, columns)).unflatten(-1, (2, 2, -1))
        return out.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)
