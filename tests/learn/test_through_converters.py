"""`learn --through` on converters of diffusers that fuse, split, turn and squeeze: every target, to the byte.

The judge makes values of its own, runs the converter on them, and applies the written rules with the public API.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers.loaders import single_file_utils

import remapkit
from remapkit.diagnostics.errors import UsageError
from remapkit.formats.manifest import write_manifest
from remapkit.models.converter import resolve_converter

Shapes = dict[str, tuple[int, ...]]


def add_linear(shapes: Shapes, name: str, out: int, into: int) -> None:
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)


def make_sd3(width: int = 16, heads: int = 2) -> Shapes:
    shapes: Shapes = {"pos_embed": (1, 9, width), "x_embedder.proj.weight": (width, 4, 2, 2)}
    shapes["x_embedder.proj.bias"] = (width,)
    for name, into in (("t_embedder", 8), ("y_embedder", 12)):
        add_linear(shapes, f"{name}.mlp.0", width, into)
        add_linear(shapes, f"{name}.mlp.2", width, width)
    add_linear(shapes, "context_embedder", width, 20)
    for n in range(3):
        for side in ("x_block", "context_block"):
            name = f"joint_blocks.{n}.{side}"
            add_linear(shapes, f"{name}.attn.qkv", 3 * width, width)
            for norm in ("ln_q", "ln_k"):
                shapes[f"{name}.attn.{norm}.weight"] = (width // heads,)
            is_last = n == 2 and side == "context_block"
            add_linear(shapes, f"{name}.adaLN_modulation.1", (2 if is_last else 6) * width, width)
            if not is_last:
                add_linear(shapes, f"{name}.attn.proj", width, width)
                add_linear(shapes, f"{name}.mlp.fc1", 4 * width, width)
                add_linear(shapes, f"{name}.mlp.fc2", width, 4 * width)
    add_linear(shapes, "final_layer.linear", 8, width)
    add_linear(shapes, "final_layer.adaLN_modulation.1", 2 * width, width)
    return {f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}


def add_conv(shapes: Shapes, name: str, out: int, into: int, size: int = 3) -> None:
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, size, size), (out,)


def add_norm(shapes: Shapes, name: str, width: int) -> None:
    shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)


def add_resnet(shapes: Shapes, name: str, out: int, into: int) -> None:
    add_norm(shapes, f"{name}.norm1", into)
    add_conv(shapes, f"{name}.conv1", out, into)
    add_norm(shapes, f"{name}.norm2", out)
    add_conv(shapes, f"{name}.conv2", out, out)
    if out != into:
        add_conv(shapes, f"{name}.nin_shortcut", out, into, 1)


def make_ldm_vae(widths: tuple[int, ...] = (8, 16)) -> Shapes:
    shapes: Shapes = {}
    last = widths[-1]
    for part in ("encoder", "decoder"):
        add_conv(shapes, f"{part}.conv_in", *((widths[0], 3) if part == "encoder" else (last, 4)))
        before = widths[0] if part == "encoder" else last
        for n, width in enumerate(widths) if part == "encoder" else reversed(list(enumerate(widths))):
            level = f"{part}.{'down' if part == 'encoder' else 'up'}.{n}"
            for block in range(2 if part == "encoder" else 3):
                add_resnet(shapes, f"{level}.block.{block}", width, before)
                before = width
            if part == "encoder" and n < len(widths) - 1:
                add_conv(shapes, f"{level}.downsample.conv", width, width)
            if part == "decoder" and n:
                add_conv(shapes, f"{level}.upsample.conv", width, width)
        for block in (1, 2):
            add_resnet(shapes, f"{part}.mid.block_{block}", last, last)
        add_norm(shapes, f"{part}.mid.attn_1.norm", last)
        for name in ("q", "k", "v", "proj_out"):
            add_conv(shapes, f"{part}.mid.attn_1.{name}", last, last, 1)
        add_norm(shapes, f"{part}.norm_out", before if part == "decoder" else last)
        add_conv(shapes, f"{part}.conv_out", *((8, last) if part == "encoder" else (3, before)))
    add_conv(shapes, "quant_conv", 8, 8, 1)
    add_conv(shapes, "post_quant_conv", 4, 4, 1)
    return {f"first_stage_model.{name}": shape for name, shape in shapes.items()}


def learn(folder: Path, name: str, shapes: Shapes, dtype: str, **arg: Any) -> remapkit.ThroughReport:
    header = {fqn: remapkit.TensorSpec(dtype, shape) for fqn, shape in shapes.items()}
    write_manifest(remapkit.StateDictSpec(header), folder / "source.json")
    return remapkit.learn_through(
        f"py:diffusers.loaders.single_file_utils:convert_{name}",
        folder / "source.json",
        folder / "pack.yaml",
        arg=arg,
    )


def judge(report: remapkit.ThroughReport, name: str, **arg: Any) -> None:
    """Every target that the converter makes is made by the rules, to the bit."""
    generator = torch.Generator().manual_seed(7)
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16}
    a = {
        fqn: torch.randn(spec.shape, generator=generator).to(dtypes[spec.dtype])
        for fqn, spec in report.source.items()
    }
    wanted: Mapping[str, torch.Tensor] = getattr(single_file_utils, f"convert_{name}")(dict(a), **arg)
    assert report.output is not None
    rules = remapkit.load(report.output)
    made = rules({fqn: tensor for fqn, tensor in a.items() if rules.match(fqn)})
    assert set(made) == set(wanted)
    assert [
        fqn for fqn in wanted if made[fqn].dtype != wanted[fqn].dtype or not torch.equal(made[fqn], wanted[fqn])
    ] == []


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_sd3(dtype: str, tmp_path: Path) -> None:
    report = learn(tmp_path, "sd3_transformer_checkpoint_to_diffusers", make_sd3(), dtype)
    judge(report, "sd3_transformer_checkpoint_to_diffusers")
    assert (report.vanished, report.constant, report.unstable, report.collisions) == ((), (), (), {})
    assert "  split:" in report.text
    assert remapkit.test(tmp_path / "pack.yaml").ok and report.text.count("- id:") <= 30


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_the_attention_of_an_ldm_vae_is_squeezed(dtype: str, tmp_path: Path) -> None:
    config = {"down_block_types": ["D"] * 2, "up_block_types": ["U"] * 2}
    report = learn(tmp_path, "ldm_vae_checkpoint", make_ldm_vae(), dtype, config=config)
    judge(report, "ldm_vae_checkpoint", config=config)
    squeezed = [each for each in report.learned.relations if report.source[each.sources[0]].shape == (16, 16, 1, 1)]
    assert len(squeezed) == 8 and report.vanished == ()


def test_a_mapper_that_stacks_without_apply_is_refused(tmp_path: Path) -> None:
    """Renaming alone would lead q, k and v to one key."""
    lines = "orig_to_new_prefix={'a': 'b'}, orig_to_new_stacked={'q_proj': ('qkv_proj', 'q')}"
    (tmp_path / "mapper.py").write_text(f"import types\nmapper = types.SimpleNamespace({lines})\n")
    with pytest.raises(UsageError, match=r"RK668.*orig_to_new_stacked"):
        resolve_converter(f"{tmp_path / 'mapper.py'}:mapper")
