"""Source layouts of diffusers' single-file converters, and of what kind each is.

A layout of kind `MODEL` is proven: what the converter makes of it has exactly the keys and the shapes of a small model
of the real class. One of kind `NAMES` has all of its keys, but thin shapes: the converter has widths of the real size
written into it. Both facts are tested, so that a layout that is made up cannot pass for a real one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_utils
from layout_names import *
from real_models import MINIMAX, read_model

from remapkit.formats.manifest import read_manifest
from remapkit.tensors.spec import StateDictSpec, TensorSpec

WAN_VAE = Path(__file__).parents[1] / "wan" / "keys" / "wan21_vae_upstream.json"
State = dict[str, torch.Tensor]


class Kind(Enum):
    """What is known of a layout."""

    MODEL = "keys and shapes are those of a model"
    NAMES = "keys are those of a model, the shapes are thin"


@dataclass(frozen=True, slots=True)
class Layout:
    """How the layout that a converter reads follows from the model that it fills.

    `undo` are replacements of regular expressions, applied in order to each key of the model: keys that become one are
    joined along dimension 0. `asks` are instead keys to begin with for a converter that asks for the others by name.
    `more` are keys that the converter drops, `lacks` matches buffers that the model makes itself, `unshaped` matches
    keys that the source holds in another shape, and `thin` is the shape of all keys where widths are written into the
    converter. `root` is put before the model's own names.
    """

    model: str
    undo: Undo = ()
    asks: tuple[str, ...] = ()
    more: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    lacks: str = "(?!)"
    unshaped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    thin: tuple[int, ...] = ()
    root: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return Kind.NAMES if self.thin else Kind.MODEL


class Wishes(dict[str, Any]):
    """A state dict that has every key that is asked for by name, each full of a number of its own."""

    def __init__(self, shape: tuple[int, ...], known: Iterable[str]) -> None:
        super().__init__()
        self.shape = shape
        self.wished: list[str] = []
        for key in known:
            self[key] = self.make(key)

    def make(self, key: str) -> torch.Tensor:
        self.wished.append(key)
        return torch.full(self.shape, float(len(self.wished) - 1))

    def __missing__(self, key: str) -> torch.Tensor:
        return self.make(key)

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key) if key in self else self.make(key)

WIDE = (21504, 1)
LAYOUTS: dict[str, Layout] = {
    "animatediff_checkpoint_to_diffusers": Layout(
        "motion", MOTION, more={"mid_block.temporal_transformer.pos_encoder.pe": (1, 4, 8)}, lacks=r"pos_embed\.pe$"
    ),
    "auraflow_transformer_checkpoint_to_diffusers": Layout(
        "auraflow",
        asks=tuple(f"{kind}_layers.{n}.mod{x}.1.weight" for n in range(3) for kind, x in (("double", "X"), ("single", "CX"))),
    ),
    "autoencoder_dc_checkpoint_to_diffusers": Layout("dc", DC, unshaped={r"\.(qkv|proj)\.conv\.weight": (1, 1)}),
    "chroma_transformer_checkpoint_to_diffusers": Layout(
        "chroma",
        asks=tuple(
            name.format(n)
            for n in range(3)
            for name in (
                "double_blocks.{}.img_mlp.0.weight",
                "single_blocks.{}.linear2.bias",
                "distilled_guidance_layer.layers.{}.in_layer.bias",
            )
        ),
        thin=WIDE,
    ),
    "cosmos_transformer_checkpoint_to_diffusers": Layout(
        "cosmos", COSMOS, more={"net.accum_iteration": (1,), "net.pos_embedder.seq": (128,)}
    ),
    "ernie_image_transformer_checkpoint_to_diffusers": Layout("ernie", COMFY),
    "flux2_transformer_checkpoint_to_diffusers": Layout("flux2", FLUX2),
    "flux3_transformer_checkpoint_to_diffusers": Layout("flux3", FLUX3, more={"repa_projectors.0.weight": (3, 8)}),
    "flux_transformer_checkpoint_to_diffusers": Layout(
        "flux",
        asks=tuple(
            name.format(n)
            for n in range(3)
            for name in ("double_blocks.{}.img_mlp.0.weight", "single_blocks.{}.linear2.bias", "guidance_in.in_layer.bias")
        ),
        thin=WIDE,
    ),
    "hidream_transformer_to_diffusers": Layout("hidream", COMFY),
    "hunyuan_video_transformer_to_diffusers": Layout("hunyuan", HUNYUAN, thin=WIDE),
    "krea2_transformer_checkpoint_to_diffusers": Layout("krea2", KREA2, unshaped={r"\.blocks\.\d+\.mod\.lin$": (-1,)}),
    "ldm_clip_checkpoint": Layout("clip", CLIP, more={"model.diffusion_model.out.2.bias": (4,)}, lacks="^text_projection"),
    "ltx2_audio_vae_to_diffusers": Layout("ltx2_audio", (*STATISTICS, (r"^", "audio_vae."))),
    "ltx2_transformer_to_diffusers": Layout(
        "ltx2", LTX2, more={"model.diffusion_model.video_embeddings_connector.learnable_registers": (3, 8)}
    ),
    "ltx2_vae_to_diffusers": Layout(
        "ltx2_vae",
        (
            *undo_blocks("encoder", *(f"down_blocks.{place}" for place in ENCODER_2), "mid_block"),
            *undo_blocks("decoder", "mid_block", *(f"up_blocks.{place}" for place in DECODER_2)),
            *VAE_NAMES,
        ),
        more={"vae.per_channel_statistics.channel": (4,)},
    ),
    "ltx_transformer_checkpoint_to_diffusers": Layout("ltx", LTX, more={"vae.decoder.conv_in.conv.bias": (4,)}),
    "ltx_vae_checkpoint_to_diffusers": Layout(
        "ltx_vae",
        (
            *undo_blocks("encoder", *(f"down_blocks.{place}" for place in ENCODER_091), "mid_block"),
            *undo_blocks("decoder", "mid_block", *(f"up_blocks.{place}" for place in DECODER_091)),
            (r"\.conv_shortcut\.conv\.", ".conv_shortcut."),
            (r"\.norm3\.", ".norm3.norm."),
            *VAE_NAMES,
        ),
        more={"vae.per_channel_statistics.channel": (4,), "model.diffusion_model.proj_out.bias": (4,)},
    ),
    "lumina2_to_diffusers": Layout("lumina2", LUMINA2, more={"norm_final.weight": (5,)}, thin=(3840, 1)),
    "minimax_h3_transformer_checkpoint_to_diffusers": Layout(
        "minimax_h3", MINIMAX_H3, more={"rope.inv_freq": (4,)}, args={"config": MINIMAX, "qkv_layout": "interleaved"}
    ),
    "mochi_transformer_checkpoint_to_diffusers": Layout("mochi", asks=("x_embedder.proj.weight",)),
    "qwen_image21_transformer_checkpoint_to_diffusers": Layout(
        "qwen21", ((r"\.img_mlp\.(gate_layer|proj)\.", ".img_mlp.gate_up."), *COMFY)
    ),
    "sana_transformer_to_diffusers": Layout(
        "sana",
        asks=tuple(f"blocks.{n}.scale_shift_table" for n in range(3)),
        more={"pos_embed": (1, 4, 8), "y_embedder.y_embedding": (3, 6)},
    ),
    "sd3_t5_checkpoint_to_diffusers": Layout("t5", T5),
    "sd3_transformer_checkpoint_to_diffusers": Layout(
        "sd3",
        asks=(
            *(f"joint_blocks.{n}.x_block.attn.ln_q.weight" for n in range(3)),
            "joint_blocks.0.x_block.attn2.qkv.weight",
            "context_embedder.weight",
        ),
    ),
    "stable_cascade_unet_single_file_to_diffusers": Layout("stable_cascade", CASCADE),
    "wan_animate_2_transformer_to_diffusers": Layout(
        "wan_animate_2", (*WAN_ATTENTION, (r"^blocks\.(\d+)\.", r"blocks.\1.block."), *COMFY)
    ),
    "wan_transformer_to_diffusers": Layout("wan", (*WAN, *WAN_ATTENTION)),
    "wan_vae_to_diffusers": Layout("wan_vae", asks=tuple(read_manifest(WAN_VAE))),
    "z_image_transformer_checkpoint_to_diffusers": Layout(
        "z_image", Z_IMAGE, more={"model.diffusion_model.norm_final.weight": (8,)}
    ),
}


@cache
def make_layout(name: str) -> StateDictSpec:
    """Return the header of a source that a converter reads."""
    layout = LAYOUTS[name]
    target = read_model(layout.model)
    if layout.asks:
        sources = _ask_converter(name)
    else:
        sources = {fqn: rename(fqn, layout.undo) for fqn in target if not re.search(layout.lacks, fqn)}
    groups: dict[str, list[tuple[int, ...]]] = {}
    for fqn, source in sources.items():
        groups.setdefault(source, []).append(target[fqn].shape)
    shapes = {source: _find_shape(source, parts, layout) for source, parts in groups.items()}
    shapes |= {source: layout.thin or shape for source, shape in layout.more.items()}
    return StateDictSpec({fqn: TensorSpec("F32", shape) for fqn, shape in shapes.items()}, name=f"{name}.json")


def _find_shape(source: str, parts: list[tuple[int, ...]], layout: Layout) -> tuple[int, ...]:
    """Return the shape of parts that are joined along dimension 0."""
    joined = (sum(shape[0] for shape in parts), *parts[0][1:])
    for pattern, change in layout.unshaped.items():
        if re.search(pattern, source):
            joined = (math.prod(joined),) if change == (-1,) else (*joined, *change)
    return layout.thin or joined


def _ask_converter(name: str) -> dict[str, str]:
    """Return the source key of each target of a converter that asks for its keys by name."""
    layout = LAYOUTS[name]
    wishes = Wishes(layout.thin or (48, 1), layout.asks)
    made = get_converter(name)(wishes)
    found = {}
    for fqn, tensor in made.items():
        (number,) = tensor.unique().tolist()
        found[fqn] = wishes.wished[int(number)]
    return found


def rename(fqn: str, undo: Undo) -> str:
    for pattern, replacement in undo:
        fqn = re.sub(pattern, replacement, fqn)
    return fqn


def get_converter(name: str) -> Callable[[State], State]:
    """Return the converter as a function of the state dict alone."""
    return partial(getattr(single_file_utils, f"convert_{name}"), **LAYOUTS[name].args)


def find_differences(name: str) -> list[str]:
    """Return what tells the result of a converter on its layout from the model that it fills."""
    layout, target = LAYOUTS[name], read_model(LAYOUTS[name].model)
    state = {fqn: torch.zeros(spec.shape) for fqn, spec in make_layout(name).items()}
    made = {fqn: tuple(tensor.shape) for fqn, tensor in get_converter(name)(state).items()}
    wanted = {fqn: spec.shape for fqn, spec in target.items() if not re.search(layout.lacks, fqn)}
    found = [f"{fqn} is made, and no key of the model" for fqn in made if fqn not in wanted]
    found += [f"{fqn} is not made" for fqn in wanted if fqn not in made]
    if layout.kind is Kind.MODEL:
        pairs = [(fqn, made[fqn], wanted[fqn]) for fqn in made if fqn in wanted]
        found += [f"{fqn} is {one} and must be {other}" for fqn, one, other in pairs if one != other]
    return found
