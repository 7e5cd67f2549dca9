"""Writes the value witnesses of the packs anew: `python tests/packs/witnesses.py`.

Each pack is verified against its reference on the small shapes of `pack_kit`, the ways back against the references
the other way round; and by two small models where one input is enough for them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from backwards import BACK
from layouts import MetaLlama, parted_by_meta
from pack_kit import CASES, Case, Shape, shapes

from remapkit.cli.app import main


def manifest(header: Mapping[str, Shape], path: Path) -> Path:
    """A header as a manifest."""
    entries = {fqn: {"dtype": "F32", "shape": list(shape)} for fqn, shape in header.items()}
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def arguments(case: Case, name: str, folder: Path) -> list[str]:
    """The command line that verifies one pack."""
    keys = manifest(case.small(case.source if name == case.pack else case.target), folder / f"{name}.json")
    module = "backwards" if name in BACK else "oracles"
    params = [word for param, value in case.params.items() for word in ("--param", f"{param}={value}")]
    return ["verify", name, "--oracle", f"py:{module}:{name}", "--keys", str(keys), *params]


Model = tuple[str, dict[str, object]]

# Two small models of each pair and an input; those that want several inputs are in `test_values.py` alone.
FORWARD: dict[str, tuple[Model, Model, str]] = {
    "gpt2_hf": (
        (
            "py:transformers:GPT2LMHeadModel",
            {
                "n_layer": 2,
                "n_embd": 12,
                "n_head": 3,
                "vocab_size": 31,
                "n_positions": 9,
                "use_cache": False,
                "bos_token_id": None,
                "eos_token_id": None,
                "tie_word_embeddings": False,
            },
        ),
        ("py:layouts:NanoGPT", {"vocabulary": 31, "context": 9, "width": 12, "layers": 2, "heads": 3}),
        "2,7:31",
    ),
    "llama_meta": (
        (
            "py:layouts:MetaLlama",
            {"vocabulary": 31, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 24},
        ),
        (
            "py:transformers:LlamaForCausalLM",
            {
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "intermediate_size": 24,
                "vocab_size": 31,
                "rms_norm_eps": 1e-5,
                "bos_token_id": None,
                "eos_token_id": None,
                "use_cache": False,
            },
        ),
        "2,7:31",
    ),
    "vit_timm": (
        (
            "py:layouts:TimmViT",
            {"size": 8, "patch": 4, "width": 12, "layers": 2, "heads": 3, "hidden": 20, "classes": 5},
        ),
        (
            "py:transformers:ViTForImageClassification",
            {
                "num_hidden_layers": 2,
                "hidden_size": 12,
                "num_attention_heads": 3,
                "intermediate_size": 20,
                "image_size": 8,
                "patch_size": 4,
                "num_labels": 5,
                "layer_norm_eps": 1e-6,
            },
        ),
        "2,3,8,8",
    ),
}
FORWARD_PARAMS = {"llama_meta": ["--param", "heads=4", "--param", "kv_heads=2", "--param", "head_dim=8"]}


def by_forward(pack: str, name: str, folder: Path) -> list[str]:
    """The command line that runs two models, for a pack or for its way back."""
    one, other, given = FORWARD[pack]
    words = ["verify", name, "--input", given, *FORWARD_PARAMS.get(pack, [])]
    sides = {"source": one, "target": other} if name == pack else {"source": other, "target": one}
    for side, (reference, numbers) in sides.items():
        words += [f"--{side}", reference]
        if ":layouts:" in reference:
            words += [word for key, value in numbers.items() for word in (f"--{side}-arg", f"{key}={value}")]
        else:
            config = folder / f"{name}.{side}.json"
            config.write_text(json.dumps(numbers), encoding="utf-8")
            words += [f"--{side}-config", str(config)]
    return words


def of_the_vaes(folder: Path) -> Iterator[list[str]]:
    """The packs of the plugin `wan`: two models for diffusers' layout, a chain for upstream's."""
    from remapkit.plugins.wan.config import WAN22_MEAN, WAN22_STD

    wan22 = {
        "base_dim": 8,
        "decoder_base_dim": 12,
        "z_dim": 48,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "is_residual": True,
        "latents_mean": WAN22_MEAN,
        "latents_std": WAN22_STD,
    }
    for version, numbers, width in (("wan22", wan22, 12), ("wan21", {"base_dim": 8}, 8)):
        config = folder / f"{version}.json"
        config.write_text(json.dumps(numbers), encoding="utf-8")
        words = ["--source", "py:diffusers:AutoencoderKLWan", "--source-config", str(config)]
        words += ["--target-arg", "dim=8", "--target-arg", f"dec_dim={width}"]
        yield ["verify", f"{version}_diffusers", *words, "--forward", "encode", "--forward", "decode"]
        header = {
            fqn: tuple(min(size, 32) for size in shape) for fqn, shape in shapes(f"{version}_vae_upstream").items()
        }
        keys = str(manifest(header, folder / f"{version}_pth.json"))
        yield ["verify", f"{version}_pth", "--oracle", f"py:chains:{version}_pth", "--keys", keys]


def of_llama_ranks(folder: Path) -> Iterator[list[str]]:
    """The packs of Llama in ranks: two layers of four ranks, with the heads of the published models."""
    for name, kv_heads in (("llama2_ranks", 32), ("llama3_ranks", 8)):
        model = MetaLlama(40, 256, 2, 32, kv_heads, 8, 48).state_dict()
        parts = parted_by_meta(model, 4, int(name == "llama2_ranks"))
        keys = str(manifest({fqn: tuple(part.shape) for fqn, part in parts.items()}, folder / f"{name}.json"))
        yield ["verify", name, "--oracle", f"py:oracles:{name}", "--keys", keys, "--param", "hidden=256"]


def commands(folder: Path) -> Iterator[list[str]]:
    """Every command line."""
    yield from of_the_vaes(folder)
    yield from of_llama_ranks(folder)
    for case in CASES:
        for name in (case.pack, case.back):
            yield arguments(case, name, folder)
            if case.pack in FORWARD:
                yield by_forward(case.pack, name, folder)


def write_all() -> int:
    """Verify and keep; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        return max([main([*words, "--write"]) for words in commands(Path(folder))])


if __name__ == "__main__":
    sys.exit(write_all())
