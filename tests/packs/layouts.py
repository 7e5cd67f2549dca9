"""Small models in the layouts that no installed library has: own code, written from what the layouts mean.

They are the second witness: a real transformers model and one of these, given the same weights in either layout, must
compute the same. Shapes: B batch, T tokens, D width, H heads, F head_dim, V vocabulary.
"""

from __future__ import annotations

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

    def forward(self, ids_BT: Tensor) -> Tensor:
        parts = self.transformer
        x_BTD = parts["wte"](ids_BT) + parts["wpe"](torch.arange(ids_BT.shape[1]))
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

    def forward(self, images: Tensor) -> Tensor:
        patches_BTD = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.cls_token.expand(len(images), -1, -1), patches_BTD], dim=1) + self.pos_embed
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

    def forward(self, ids_BT: Tensor) -> Tensor:
        angles_TF = torch.arange(ids_BT.shape[1])[:, None] * self.frequencies
        turns_TF = torch.polar(torch.ones_like(angles_TF), angles_TF)
        x_BTD = self.tok_embeddings(ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, turns_TF)
        return self.output(self.norm(x_BTD))
