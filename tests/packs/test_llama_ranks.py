"""Llama in tensor-parallel ranks: the packs `llama2_ranks` and `llama3_ranks`, by value, and back to ranks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import oracles
import pytest
import torch
from layouts import MetaLlama, parted_by_meta
from pack_kit import KEYS, ROPE, State, differing, planted, swap
from safetensors.torch import load_file
from test_values import TOKENS, TOLERANCE, randomised
from torch import nn

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck
from remapkit.proofs.model import Level
from remapkit.tensors.from_torch import header_of

PACKS = {"llama2_ranks": 1, "llama3_ranks": 0}
"""With the dimension along which the ranks have their parts of the embedding."""


@dataclass(frozen=True)
class Numbers:
    """The sizes of a Llama."""

    vocabulary: int = 32
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    inner: int = 24

    @property
    def params(self) -> dict[str, int]:
        return {"heads": self.heads, "kv_heads": self.kv_heads, "hidden": self.hidden}

    def meta(self) -> MetaLlama:
        head_dim = self.hidden // self.heads
        return MetaLlama(self.vocabulary, self.hidden, self.layers, self.heads, self.kv_heads, head_dim, self.inner)

    def transformers(self) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.inner,
            vocab_size=self.vocabulary,
            rms_norm_eps=1e-5,
            bos_token_id=None,
            eos_token_id=None,
        )
        return LlamaForCausalLM(config)


SMALL = Numbers()
GROUPED = Numbers(kv_heads=2)
DEEP = Numbers(layers=32)
PUBLISHED = {
    "llama2_ranks": Numbers(32000, 4096, 32, 32, 32, 11008),
    "llama3_ranks": Numbers(128256, 4096, 32, 32, 8, 14336),
}
"""Llama 2 7B and Llama 3 8B, published in one rank: the sizes of the manifests."""


def small_parts(pack: str, numbers: Numbers, ranks: int) -> State:
    """A random small model in its ranks, keys in no order; those of Llama 2 with the buffer that it has."""
    parts = parted_by_meta(randomised(numbers.meta()).state_dict(), ranks, PACKS[pack])
    if pack == "llama2_ranks":
        parts |= {f"tp{rank}.rope.freqs": torch.rand(4) for rank in range(ranks)}
    keys = list(parts)
    random.Random(0).shuffle(keys)
    return {fqn: parts[fqn] for fqn in keys}


# ------------------------------------------------------------------------------------------ headers


@pytest.mark.parametrize("pack", PACKS)
def test_the_manifests_are_those_of_the_models(pack: str) -> None:
    numbers = PUBLISHED[pack]
    with torch.device("meta"):
        meta, target = numbers.meta().state_dict(), numbers.transformers().state_dict()
        parts = parted_by_meta(meta, 1, PACKS[pack])
    source = {fqn: spec.shape for fqn, spec in remapkit.header(KEYS / f"{pack}.json").items()}
    buffers = {"tp0.rope.freqs": (64,)} if pack == "llama2_ranks" else {}
    assert source == {fqn: tuple(part.shape) for fqn, part in parts.items()} | buffers
    made = {fqn: spec.shape for fqn, spec in remapkit.header(KEYS / f"{pack[:6]}_hf.json").items()}
    assert made == {fqn: tuple(tensor.shape) for fqn, tensor in target.items()}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("pack", PACKS)
def test_every_number_of_ranks_gives_the_published_model(pack: str, ranks: int) -> None:
    rules = remapkit.load(pack)
    assert rules.prove().level is Level.ALL and rules.unmatched == "error"
    with torch.device("meta"):
        parts = parted_by_meta(PUBLISHED[pack].meta().bfloat16().state_dict(), ranks, PACKS[pack])
    plan = rules.plan(header_of(parts))
    plan.check(KEYS / f"{pack[:6]}_hf.json").raise_for_problems()
    assert dict(plan.target) == dict(remapkit.header(KEYS / f"{pack[:6]}_hf.json"))


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("numbers", "ranks"), [(SMALL, 1), (SMALL, 2), (SMALL, 4), (GROUPED, 2)], ids=["1", "2", "4", "grouped-2"]
)
@pytest.mark.parametrize("pack", PACKS)
def test_a_model_in_ranks_computes_what_transformers_model_computes(pack: str, numbers: Numbers, ranks: int) -> None:
    """By two models, and bit for bit against parts that torch joins."""
    meta, target = randomised(numbers.meta()), numbers.transformers()
    parts = parted_by_meta(meta.state_dict(), ranks, PACKS[pack])
    made = remapkit.load(pack, params=numbers.params)(parts)
    assert differing(made, oracles.join_llama_ranks(parts, PACKS[pack], numbers.heads, numbers.kv_heads)) == []
    target.load_state_dict(made, strict=True)
    with torch.inference_mode():
        one, other = meta.eval()(**TOKENS), target.eval()(**TOKENS).logits
    assert float((one - other).norm() / one.norm()) < TOLERANCE


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("pack", PACKS)
def test_the_inverse_gives_the_ranks_back(pack: str, ranks: int) -> None:
    """As many as the param says; all but the buffer."""
    parts = small_parts(pack, SMALL, ranks)
    rules = remapkit.load(pack, params={**SMALL.params, "ranks": ranks})
    back = rules.inverse(partial=pack == "llama2_ranks")
    assert back.prove().level is Level.ALL
    kept = {fqn: part for fqn, part in parts.items() if not fqn.endswith("rope.freqs")}
    assert differing(back(rules(parts)), kept) == []


def test_the_inverse_for_other_ranks_than_those_of_the_manifest_declares_no_target(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Else `tp1.` to `tp3.` would be unexpected."""
    told = {1: "target: {keys: ", 4: "# No target: 'keys/llama3_ranks.json' has ranks = 1."}
    for ranks, said in told.items():
        assert main(["invert", "llama3_ranks", "--param", f"ranks={ranks}"]) == 0
        out = capsys.readouterr().out
        assert said in out and told[5 - ranks] not in out


# ------------------------------------------------------------------------------------------ files


def save_ranks(parts: State, folder: Path) -> Path:
    """As Meta publishes them: one file for each rank, without prefixes, beside other files."""
    folder.mkdir()
    for rank in range(len({fqn.split(".")[0] for fqn in parts})):
        own = {fqn.removeprefix(f"tp{rank}."): part for fqn, part in parts.items() if fqn.startswith(f"tp{rank}.")}
        torch.save(own, folder / f"consolidated.{rank:02d}.pth")
    (folder / "params.json").write_text('{"dim": 32}')
    return folder


def given(numbers: Numbers) -> list[str]:
    return [word for name, value in numbers.params.items() for word in ("--param", f"{name}={value}")]


@pytest.mark.parametrize("mounted", [False, True], ids=["folder", "mount"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("pack", PACKS)
def test_the_published_files_become_one_model(pack: str, ranks: int, mounted: bool, tmp_path: Path) -> None:
    """The pack knows the names of the files in a folder; a mount says them."""
    parts = {fqn: part.bfloat16() for fqn, part in small_parts(pack, DEEP, ranks).items()}
    folder = save_ranks(parts, tmp_path / "in")
    source = f"tp{{t}}.={folder}/consolidated.{{t}}.pth" if mounted else str(folder)
    assert main(["check", pack, "--ckpt", source, *given(DEEP)]) == 0
    assert main(["apply", pack, source, "-o", str(tmp_path / "out.safetensors"), *given(DEEP)]) == 0
    wanted = oracles.join_llama_ranks(
        {fqn: part.float() for fqn, part in parts.items()}, PACKS[pack], DEEP.heads, DEEP.kv_heads
    )
    found = load_file(tmp_path / "out.safetensors")
    assert differing(found, {fqn: tensor.bfloat16() for fqn, tensor in wanted.items()}) == []


@pytest.mark.parametrize("pack", PACKS)
def test_ranks_are_loaded_into_transformers_model(pack: str, tmp_path: Path) -> None:
    parts = small_parts(pack, DEEP, 2)
    target = DEEP.transformers()
    remapkit.load_into(target, save_ranks(parts, tmp_path / "in"), remapkit.load(pack, params=DEEP.params))
    wanted = oracles.join_llama_ranks(parts, PACKS[pack], DEEP.heads, DEEP.kv_heads)
    assert differing(target.state_dict(), wanted) == []


def test_a_rank_that_is_missing_or_disagrees_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_ranks(small_parts("llama3_ranks", DEEP, 4), tmp_path / "in")
    out = tmp_path / "out.safetensors"
    words = ["apply", "llama3_ranks", str(folder), "-o", str(out), *given(DEEP)]
    norm = torch.load(folder / "consolidated.03.pth")
    torch.save({**norm, "norm.weight": norm["norm.weight"] + 1}, folder / "consolidated.03.pth")
    assert main(words) == 1 and not out.exists()
    said = capsys.readouterr().err
    three, first = "tp3.norm.weight (consolidated.03.pth)", "tp0.norm.weight (consolidated.00.pth)"
    assert "RK347" in said and f"{three} differs from {first} in 32 of 32 elements" in said
    # A gap shows in the names of the files; nothing but the heads shows that the last one is missing.
    for rank, code, what in ((1, 2, "t = 1 is missing"), (3, 1, "4 heads of 8 make 32, but there are 24 rows")):
        there = folder / f"consolidated.{rank:02d}.pth"
        there.rename(tmp_path / "away")
        assert main(words) == code and not out.exists()
        assert what in capsys.readouterr().err
        (tmp_path / "away").rename(there)


FAULTS = {
    "no rotary order of queries": ((f"    ops: [{ROPE.format('heads')}]\n", ""),),
    "no rotary order of keys": ((f"    ops: [{ROPE.format('kv_heads')}]\n", ""),),
    "the direction of the rotary order": (("to: half", "to: interleaved"),),
    "gate and up": swap("gate_proj", "up_proj"),
    "the two norms": swap("input_layernorm", "post_attention_layernorm"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("pack", PACKS)
def test_a_fault_that_names_and_shapes_do_not_show_is_caught_by_value(pack: str, fault: str, tmp_path: Path) -> None:
    parts = small_parts(pack, SMALL, 2)
    wrong = remapkit.load(planted(pack, FAULTS[fault], tmp_path), params=SMALL.params)(parts)
    assert differing(wrong, oracles.join_llama_ranks(parts, PACKS[pack], SMALL.heads, SMALL.kv_heads))


# ------------------------------------------------------------------------------------------ what does not fit


def refused(pack: str, parts: State) -> str:
    with pytest.raises(FailedCheck) as caught:
        remapkit.load(pack, params=SMALL.params)(parts)
    return str(caught.value)


@pytest.mark.parametrize(("pack", "other"), [("llama2_ranks", "llama3_ranks"), ("llama3_ranks", "llama2_ranks")])
def test_the_other_layout_of_the_embedding_is_refused(pack: str, other: str) -> None:
    said = refused(pack, small_parts(other, SMALL, 2) if other == "llama3_ranks" else llama2_without_buffer())
    assert "RK370" in said and f"which is what {other} reads" in said


def llama2_without_buffer() -> State:
    return {fqn: part for fqn, part in small_parts("llama2_ranks", SMALL, 2).items() if "rope" not in fqn}


@pytest.mark.parametrize("pack", PACKS)
def test_missing_and_differing_ranks_are_named(pack: str) -> None:
    parts = small_parts(pack, SMALL, 4)
    last = {fqn: part for fqn, part in parts.items() if not fqn.startswith("tp3.")}
    assert "4 heads of 8 make 32, but there are 24 rows" in refused(pack, last)
    middle = {fqn: part for fqn, part in parts.items() if not fqn.startswith("tp1.")}
    assert "t has 0, 2 and 3 but not 1" in refused(pack, middle)
    parts["tp2.layers.1.ffn_norm.weight"][3] += 1
    said = refused(pack, parts)
    assert "tp2.layers.1.ffn_norm.weight differs from tp0.layers.1.ffn_norm.weight in 1 of 32 elements" in said
