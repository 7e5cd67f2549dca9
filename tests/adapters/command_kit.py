"""A tiny model in two layouts, the rules between them, and adapters for it: files that commands are tried on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

SOURCE: Mapping[str, tuple[int, ...]] = {
    "img_in.weight": (8, 6),
    "blocks.0.qkv.weight": (12, 8),
    "blocks.0.qkv.bias": (12,),
    "blocks.0.proj.weight": (8, 4),
    "blocks.1.qkv.weight": (12, 8),
    "blocks.1.qkv.bias": (12,),
    "blocks.1.proj.weight": (8, 4),
    "norm.weight": (8,),
}
TARGET: Mapping[str, tuple[int, ...]] = {
    "x_embedder.weight": (8, 6),
    **{f"layers.{n}.{part}.weight": (4, 8) for n in (0, 1) for part in ("to_q", "to_k", "to_v")},
    **{f"layers.{n}.{part}.bias": (4,) for n in (0, 1) for part in ("to_q", "to_k", "to_v")},
    **{f"layers.{n}.out.weight": (8, 4) for n in (0, 1)},
    "norm.weight": (8,),
}
RULES = """\
remapkit: 1
name: tiny
from: tiny/one
to: tiny/two
source: {keys: source.json}
target: {keys: target.json}
rules:
  - {id: input, path: 'img_in.{leaf}', to: 'x_embedder.{leaf}'}
  - id: qkv
    path: 'blocks.{n:int}.qkv.{leaf:weight|bias}'
    split: {dim: 0, into: ['layers.{n}.to_q.{leaf}', 'layers.{n}.to_k.{leaf}', 'layers.{n}.to_v.{leaf}']}
  - {id: out, path: 'blocks.{n:int}.proj.{leaf}', to: 'layers.{n}.out.{leaf}'}
keep: [norm.weight]
"""
MODULES = tuple(key.removesuffix(".weight") for key, shape in SOURCE.items() if len(shape) == 2)
PREFIXES = {
    "peft": "base_model.model.",
    "diffusers": "transformer.",
    "kohya": "lora_unet_",
    "comfy": "diffusion_model.",
}
LEAVES = {
    **dict.fromkeys(("peft", "diffusers"), ("lora_A.weight", "lora_B.weight")),
    **dict.fromkeys(("kohya", "comfy"), ("lora_down.weight", "lora_up.weight")),
}
ALPHAS = ("kohya", "comfy")
"""The formats whose files have alphas as tensors."""


@dataclass(frozen=True)
class Tiny:
    """The files of the model: its rules, the manifests of both layouts, and a folder for more."""

    folder: Path
    rules: Path
    source: Path
    target: Path

    def write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> Path:
        """Write a checkpoint below the folder."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        save_file(dict(tensors), path)
        return path


def make_tiny(folder: Path) -> Tiny:
    files = {"source.json": SOURCE, "target.json": TARGET}
    for name, shapes in files.items():
        written = {key: {"dtype": "F32", "shape": list(shape)} for key, shape in shapes.items()}
        (folder / name).write_text(json.dumps(written))
    (folder / "tiny.yaml").write_text(RULES)
    return Tiny(folder, folder / "tiny.yaml", folder / "source.json", folder / "target.json")


def name_module(module: str, format: str) -> str:
    return PREFIXES[format] + (module.replace(".", "_") if format == "kohya" else module)


def make_lora(
    format: str,
    modules: Sequence[str] = MODULES,
    *,
    rank: int = 2,
    alpha: float | None = 1.0,
    shapes: Mapping[str, tuple[int, ...]] = SOURCE,
) -> dict[str, torch.Tensor]:
    """Return an adapter of some modules; alphas are tensors where the format has them."""
    made = {}
    generator = torch.Generator().manual_seed(0)
    for module in modules:
        rows, columns = shapes[f"{module}.weight"]
        name, (down, up) = name_module(module, format), LEAVES[format]
        made[f"{name}.{down}"] = torch.randn(rank, columns, generator=generator)
        made[f"{name}.{up}"] = torch.randn(rows, rank, generator=generator)
        if format in ALPHAS and alpha is not None:
            made[f"{name}.alpha"] = torch.tensor(alpha)
    return made


def write_peft(tiny: Tiny, name: str = "peft", **fields: object) -> Path:
    """Write a PEFT folder: weights and adapter_config.json."""
    tiny.write(f"{name}/adapter_model.safetensors", make_lora("peft"))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": list(MODULES), **fields}
    (tiny.folder / name / "adapter_config.json").write_text(json.dumps(config))
    return tiny.folder / name
