"""Jobs that people asked for: each a rule file as short as it deserves, small tensors, and the right answer.

The answers are made with torch from the definition of the layout, never with our own operations. Each job is done in
memory, from a file to a file, and into a module. Jobs about whole files are in `test_cases_files.py`.
"""

# ruff: noqa: E501 (tables of rules read as tables)
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cases.case_kit import HEAD, Job, State, make_tensors
from tests.ops.ways import found, outcome

WAYS = ("in memory", "safetensors", "load_into")

# ------------------------------------------------------------------------------------------ ranks


def llama_ranks(embedding: int) -> State:
    """Two ranks, width 4, vocabulary 6; norms are the same on both."""
    table = (6, 2) if embedding == 1 else (3, 4)
    shapes = {"tok_embeddings": table, "layers.0.attention.wq": (2, 4), "layers.0.attention.wo": (4, 2)}
    shapes |= {"layers.0.feed_forward.w2": (4, 3), "norm": (4,)}
    state = make_tensors({f"tp{t}.{name}.weight": shape for t in (0, 1) for name, shape in shapes.items()})
    state["tp1.norm.weight"] = state["tp0.norm.weight"].clone()
    return state


def join_llama(state: State, embedding: int) -> State:
    dims = {
        "tok_embeddings": embedding,
        "layers.0.attention.wq": 0,
        "layers.0.attention.wo": 1,
        "layers.0.feed_forward.w2": 1,
    }
    made = {f"{n}.weight": torch.cat([state[f"tp{t}.{n}.weight"] for t in (0, 1)], dim) for n, dim in dims.items()}
    return {**made, "norm.weight": state["tp0.norm.weight"]}


LLAMA = """
rules:
  - {{id: embedding, path: 'tp{{t:int}}.tok_embeddings.weight', concat: {{dim: {}, by: t}}, to: tok_embeddings.weight}}
  - {{id: columns, path: 'tp{{t:int}}.{{m:**}}.wq.weight', concat: {{dim: 0, by: t}}, to: '{{m}}.wq.weight'}}
  - {{id: rows, path: 'tp{{t:int}}.layers.{{i:int}}.{{b}}.{{m:wo|w2}}.weight', concat: {{dim: 1, by: t}}, to: 'layers.{{i}}.{{b}}.{{m}}.weight'}}
  - {{id: norm, path: 'tp{{t:int}}.norm.weight', merge: {{by: t}}, to: norm.weight}}
"""


def split_gate_up(state: State) -> State:
    halves = [state[f"tp{t}.h.0.mlp.weight"].chunk(2) for t in (0, 1)]
    return {"h.0.gate": torch.cat([one for one, _ in halves]), "h.0.up": torch.cat([two for _, two in halves])}


def ungroup(state: State) -> State:
    """Each rank has two groups of two queries, a key and a value, of three rows each."""
    groups = [group for t in (0, 1) for group in state[f"tp{t}.h.0.qkv"].reshape(2, 4, 3, 5)]
    return {
        "h.0.q": torch.stack([group[:2] for group in groups]).reshape(-1, 5),
        "h.0.k": torch.stack([group[2] for group in groups]).reshape(-1, 5),
        "h.0.v": torch.stack([group[3] for group in groups]).reshape(-1, 5),
    }


RANKS = (
    Job(
        "ranks whose embedding is parted along its width",
        LLAMA.format(1),
        lambda: llama_ranks(1),
        lambda s: join_llama(s, 1),
    ),
    Job(
        "ranks whose embedding is parted along the vocabulary",
        LLAMA.format(0),
        lambda: llama_ranks(0),
        lambda s: join_llama(s, 0),
    ),
    Job(
        "gate and up of each rank become the gate of all and up of all",
        """
rules:
  - id: gate_up
    path: 'tp{t:int}.h.{i:int}.mlp.weight'
    concat: {dim: 0, by: t}
    ops: [{rearrange: {pattern: '(t two f) c -> (two t f) c', t: 2, two: 2}}]
    split: {dim: 0, into: ['h.{i}.gate', 'h.{i}.up']}
""",
        lambda: make_tensors({"tp0.h.0.mlp.weight": (6, 4), "tp1.h.0.mlp.weight": (6, 4)}),
        split_gate_up,
    ),
    Job(
        "queries, keys and values that are grouped on each rank",
        """
rules:
  - id: qkv
    path: 'tp{t:int}.h.{i:int}.qkv'
    concat: {dim: 0, by: t}
    ops: [{ungroup_qkv: {heads: 8, kv_heads: 4, head_dim: 3}}]
    split: {dim: 0, sizes: [24, 12, 12], into: ['h.{i}.q', 'h.{i}.k', 'h.{i}.v']}
""",
        lambda: make_tensors({"tp0.h.0.qkv": (24, 5), "tp1.h.0.qkv": (24, 5)}),
        ungroup,
    ),
    Job(
        "layers of pipeline stages, each of which counts from 0",
        """
source: {domain: ['pp0.layers.{i:0..2}.w', 'pp1.layers.{i:0..4}.w']}
params: {offset: [0, 3]}
rules: [{id: layers, path: 'pp{s:0..1}.layers.{i:0..4}.w', to: 'layers.{i+offset[s]}.w'}]
""",
        lambda: make_tensors({f"pp{s}.layers.{i}.w": (2, 3) for s, count in ((0, 3), (1, 5)) for i in range(count)}),
        lambda s: {f"layers.{n}.w": s[f"pp0.layers.{n}.w" if n < 3 else f"pp1.layers.{n - 3}.w"] for n in range(8)},
    ),
    Job(
        "experts of which each rank has four",
        "rules: [{id: experts, path: 'tp{r:0..1}.experts.{e:0..3}.{w:w1|w2}', to: 'experts.{4*r+e}.{w}'}]",
        lambda: make_tensors(
            {f"tp{r}.experts.{e}.{w}": (2, 3) for r in (0, 1) for e in range(4) for w in ("w1", "w2")}
        ),
        lambda s: {f"experts.{n}.{w}": s[f"tp{n // 4}.experts.{n % 4}.{w}"] for n in range(8) for w in ("w1", "w2")},
    ),
)

# ------------------------------------------------------------------------------------------ numbers that differ

KV = (1, 1, 2, 2)


def split_by_layer(state: State) -> State:
    made = {}
    for i, kv in enumerate(KV):
        parts = state[f"layers.{i}.qkv"].split([4 * 3, kv * 3, kv * 3])
        made |= {f"layers.{i}.{name}": part for name, part in zip("qkv", parts, strict=True)}
    return made


def dequantize(state: State) -> State:
    """One product in single precision for each block of 2 x 3, rounded once; the last blocks are smaller."""
    weight, scale = state["m.weight"].float(), state["m.weight_scale_inv"]
    spread = scale.repeat_interleave(2, 0)[:5].repeat_interleave(3, 1)[:, :7]
    return {"m.weight": (weight * spread).bfloat16()}


def last_block(state: State) -> State:
    def made(i: int) -> torch.Tensor:
        value = state[f"joint.{i}.adaln"]
        return torch.cat(value.chunk(2)[::-1]) if i == 2 else value

    return {f"blocks.{i}.adaln": made(i) for i in range(3)}


LAST = """
params: {layers: {count: 'joint.{i:int}.adaln', value: 24}}
rules:
  - {id: blocks, path: 'joint.{i:0..layers-2}.adaln', to: 'blocks.{i}.adaln'}
  - {id: last, path: 'joint.{i:layers-1}.adaln', ops: [flip_halves], to: 'blocks.{i}.adaln'}
"""
VAE = """
params: {levels: {count: 'decoder.up.{i:int}.{rest:**}', value: 4}}
rules:
  - {id: up, path: 'decoder.up.{i:0..levels-1}.{rest:**}', to: 'up_blocks.{levels-1-i}.{rest}'}
  - {id: attention, path: 'decoder.mid.attn.{m:q|k|v}.weight', ops: [{reshape: [4, 4]}], to: 'mid.attn.{m}.weight'}
"""


def vae(levels: int, *more: int) -> State:
    """A decoder of so many levels, whose attention is a 1x1 convolution, or linear."""
    up = {f"decoder.up.{i}.conv.weight": (2, 2, 3, 3) for i in range(levels)}
    return make_tensors({**up, **{f"decoder.mid.attn.{m}.weight": (4, 4, *more) for m in "qkv"}})


def diffusers_vae(state: State) -> State:
    levels = len(state) - 3
    made = {f"up_blocks.{levels - 1 - i}.conv.weight": state[f"decoder.up.{i}.conv.weight"] for i in range(levels)}
    return {**made, **{f"mid.attn.{m}.weight": state[f"decoder.mid.attn.{m}.weight"].reshape(4, 4) for m in "qkv"}}


def swin(state: State) -> State:
    """The four quarters of a patch, along the last dimension, in the order 0, 2, 1, 3."""
    return {
        fqn.replace("stages", "layers"): torch.cat([value.chunk(4, -1)[n] for n in (0, 2, 1, 3)], -1)
        for fqn, value in state.items()
    }


NUMBERS = (
    Job(
        "other numbers of key heads in each layer",
        """
params: {kv_heads: [1, 1, 2, 2]}
rules:
  - id: qkv
    path: 'layers.{i:int}.qkv'
    split: {dim: 0, sizes: [12, '3*kv_heads[i]', '3*kv_heads[i]'], into: ['layers.{i}.q', 'layers.{i}.k', 'layers.{i}.v']}
""",
        lambda: make_tensors({f"layers.{i}.qkv": (3 * (4 + 2 * kv), 5) for i, kv in enumerate(KV)}),
        split_by_layer,
    ),
    Job(
        "8-bit weights with a scale for each block, ragged at both ends",
        "rules: [{id: w, path: '{m:**}.weight', dequantize: {scale: '{m:**}.weight_scale_inv', block: [2, 3], to: BF16}, to: '{m}.weight'}]",
        lambda: {
            "m.weight": (torch.arange(35.0).reshape(5, 7) - 9).to(torch.float8_e4m3fn),
            "m.weight_scale_inv": torch.arange(1.0, 10).reshape(3, 3) / 7,
        },
        dequantize,
    ),
    Job(
        "a last block whose halves are swapped",
        LAST,
        lambda: make_tensors({f"joint.{i}.adaln": (6, 2) for i in range(3)}),
        last_block,
    ),
    Job("levels that count backwards, three of them, convolutions of 1x1", VAE, lambda: vae(3, 1, 1), diffusers_vae),
    Job("levels that count backwards, four of them, linear already", VAE, lambda: vae(4), diffusers_vae),
)

# ------------------------------------------------------------------------------------------ orders and parts

ORDERS = (
    Job(
        "patch reductions and their norms, of any width",
        "rules: [{id: r, path: 'stages.{i:int}.{m:norm|reduction}.{l:weight|bias}', ops: [{rearrange: {pattern: '... (i j c) -> ... (j i c)', i: 2, j: 2}}], to: 'layers.{i}.{m}.{l}'}]",
        lambda: make_tensors(
            {
                "stages.0.reduction.weight": (6, 12),
                "stages.0.norm.weight": (12,),
                "stages.0.norm.bias": (12,),
                "stages.1.reduction.weight": (4, 8),
            }
        ),
        swin,
    ),
    Job(
        "colours and the background class elsewhere",
        """
rules:
  - {id: stem, path: stem.conv1.weight, ops: [{index: {dim: 1, order: [2, 1, 0]}}], to: conv1.weight}
  - {id: classes, path: 'cls.{l:weight|bias}', ops: [{roll: {dim: 0, by: -1}}], to: 'fc.{l}'}
""",
        lambda: make_tensors({"stem.conv1.weight": (2, 3, 2, 2), "cls.weight": (5, 2), "cls.bias": (5,)}),
        lambda s: {
            "conv1.weight": torch.stack([s["stem.conv1.weight"][:, n] for n in (2, 1, 0)], 1),
            **{f"fc.{leaf}": torch.cat([s[f"cls.{leaf}"][1:], s[f"cls.{leaf}"][:1]]) for leaf in ("weight", "bias")},
        },
    ),
    Job(
        "a tied head that is stored twice",
        "rules: [{id: head, merge: [lm_head.weight, embed_tokens.weight], to: embed_tokens.weight}]",
        lambda: {name: torch.arange(6.0).reshape(3, 2) for name in ("embed_tokens.weight", "lm_head.weight")},
        lambda s: {"embed_tokens.weight": s["lm_head.weight"]},
    ),
    Job(
        "a bias that one of three parts does not have",
        "rules: [{id: b, concat: {dim: 0, from: ['h.{i:int}.q', {path: 'h.{i:int}.q', ops: [zeros]}, 'h.{i:int}.v']}, to: 'h.{i}.qkv'}]",
        lambda: make_tensors({f"h.{i}.{m}": (4,) for i in (0, 1) for m in "qv"}),
        lambda s: {f"h.{i}.qkv": torch.cat([s[f"h.{i}.q"], torch.zeros(4), s[f"h.{i}.v"]]) for i in (0, 1)},
    ),
    Job(
        "one rule for two sizes, by the names of its axes",
        "rules: [{id: r, path: '{m}.w', ops: [{rearrange: {pattern: 'o (i j c) -> o i j c', i: 2, j: 2}}], to: '{m}.w'}]",
        lambda: make_tensors({"a.w": (8, 16), "b.w": (16, 32)}),
        lambda s: {"a.w": s["a.w"].reshape(8, 2, 2, 4), "b.w": s["b.w"].reshape(16, 2, 2, 8)},
    ),
    Job(
        "scalars that are stacked",
        "rules: [{id: s, path: 'e.{i:int}.s', stack: {dim: 0, by: i}, ops: [{cast: F64}], to: e.s}]",
        lambda: {f"e.{i}.s": torch.tensor(i / 3) for i in (0, 1)},
        lambda s: {"e.s": torch.stack([s["e.0.s"], s["e.1.s"]]).double()},
    ),
)
JOBS = (*RANKS, *NUMBERS, *ORDERS)


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_a_job_is_done_by_value(job: Job, tmp_path: Path) -> None:
    state = job.source()
    wanted = found(job.wanted(state))
    save_file(state, tmp_path / "in.safetensors")
    for way in WAYS:
        got = outcome(way, HEAD + job.rules.lstrip("\n"), tmp_path / "in.safetensors", tmp_path, found(state))
        assert got == wanted, way


def test_an_answer_that_is_not_the_jobs_would_be_seen(tmp_path: Path) -> None:
    """Values that are in no order would hide a wrong one: all elements of a source differ."""
    for job in JOBS:
        for fqn, value in job.source().items():
            if value.dtype == torch.float32 and "merge" not in job.rules:
                assert len(value.unique()) == value.numel(), (job.name, fqn)
