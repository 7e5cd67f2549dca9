"""Source layouts of diffusers' single-file converters, and of what kind each is.

A layout of kind `MODEL` is proven: what the converter makes of it has exactly the keys and shapes of a small model
of the real class. One of kind `WIDE` has them but for fused tensors that the converter cuts by numbers of the real
size: these have as many rows as it wants. Both are tested: a layout that is made up cannot pass for a real one.
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

import layout_names as undo
import torch
from diffusers.loaders import single_file_utils
from real_models import MINIMAX, read_model

from remapkit.formats.manifest import read_manifest
from remapkit.tensors.spec import StateDictSpec, TensorSpec

WAN_VAE = Path(__file__).parents[1] / "wan" / "keys" / "wan21_vae_upstream.json"
State = dict[str, torch.Tensor]


class Kind(Enum):
    """What is known of a layout."""

    MODEL = "keys and shapes are those of a model"
    WIDE = "as `MODEL`, but for rows whose number is written into the converter"


@dataclass(frozen=True, slots=True)
class Layout:
    """How the layout that a converter reads follows from the model that it fills.

    `names` are replacements of regular expressions, applied in order to each key of the model; keys that become one
    are joined along dimension 0. `asks` are instead keys to begin with, for a converter that asks for the others by
    name. `more` are keys that the converter drops, `lacks` matches buffers that the model makes itself, `unshaped`
    matches keys that the source holds in another shape, and `wide` gives the rows of those whose rows are written
    into the converter. `args` are its further arguments.
    """

    model: str
    names: undo.Undo = ()
    asks: tuple[str, ...] = ()
    more: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    lacks: str = "(?!)"
    unshaped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    wide: Mapping[str, int] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return Kind.WIDE if self.wide else Kind.MODEL


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


FLUX_ROWS = {r"^single_blocks\.\d+\.linear1\.": 21504}
LUMINA_ROWS = {r"\.attention\.qkv\.": 3840}
MINIMAX_ARGS = {"config": MINIMAX, "qkv_layout": "interleaved"}
LAYOUTS: dict[str, Layout] = {
    "animatediff_checkpoint_to_diffusers": Layout(
        "motion",
        undo.MOTION,
        more={"mid_block.temporal_transformer.pos_encoder.pe": (1, 4, 8)},
        lacks=r"pos_embed\.pe$",
    ),
    "auraflow_transformer_checkpoint_to_diffusers": Layout(
        "auraflow",
        asks=tuple(
            f"{kind}_layers.{n}.mod{x}.1.weight" for n in range(3) for kind, x in (("double", "X"), ("single", "CX"))
        ),
    ),
    "autoencoder_dc_checkpoint_to_diffusers": Layout("dc", undo.DC, unshaped={r"\.(qkv|proj)\.conv\.weight": (1, 1)}),
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
        wide=FLUX_ROWS,
    ),
    "cosmos_transformer_checkpoint_to_diffusers": Layout(
        "cosmos", undo.COSMOS, more={"net.accum_iteration": (1,), "net.pos_embedder.seq": (128,)}
    ),
    "ernie_image_transformer_checkpoint_to_diffusers": Layout("ernie", undo.COMFY),
    "flux2_transformer_checkpoint_to_diffusers": Layout("flux2", undo.FLUX2),
    "flux3_transformer_checkpoint_to_diffusers": Layout(
        "flux3", undo.FLUX3, more={"repa_projectors.0.weight": (3, 8)}
    ),
    "flux_transformer_checkpoint_to_diffusers": Layout(
        "flux",
        asks=tuple(
            name.format(n)
            for n in range(3)
            for name in (
                "double_blocks.{}.img_mlp.0.weight",
                "single_blocks.{}.linear2.bias",
                "guidance_in.in_layer.bias",
            )
        ),
        wide=FLUX_ROWS,
    ),
    "hidream_transformer_to_diffusers": Layout("hidream", undo.COMFY),
    "hunyuan_video_transformer_to_diffusers": Layout("hunyuan", undo.HUNYUAN, wide=FLUX_ROWS),
    "krea2_transformer_checkpoint_to_diffusers": Layout(
        "krea2", undo.KREA2, unshaped={r"\.blocks\.\d+\.mod\.lin$": (-1,)}
    ),
    "ldm_clip_checkpoint": Layout(
        "clip", undo.CLIP, more={"model.diffusion_model.out.2.bias": (4,)}, lacks="^text_projection"
    ),
    "ltx2_audio_vae_to_diffusers": Layout("ltx2_audio", (*undo.STATISTICS, (r"^", "audio_vae."))),
    "ltx2_transformer_to_diffusers": Layout(
        "ltx2", undo.LTX2, more={"model.diffusion_model.video_embeddings_connector.learnable_registers": (3, 8)}
    ),
    "ltx2_vae_to_diffusers": Layout(
        "ltx2_vae",
        (
            *undo.undo_blocks("encoder", *(f"down_blocks.{place}" for place in undo.ENCODER_2), "mid_block"),
            *undo.undo_blocks("decoder", "mid_block", *(f"up_blocks.{place}" for place in undo.DECODER_2)),
            *undo.VAE_NAMES,
        ),
        more={"vae.per_channel_statistics.channel": (4,)},
    ),
    "ltx_transformer_checkpoint_to_diffusers": Layout("ltx", undo.LTX, more={"vae.decoder.conv_in.conv.bias": (4,)}),
    "ltx_vae_checkpoint_to_diffusers": Layout(
        "ltx_vae",
        (
            *undo.undo_blocks("encoder", *(f"down_blocks.{place}" for place in undo.ENCODER_091), "mid_block"),
            *undo.undo_blocks("decoder", "mid_block", *(f"up_blocks.{place}" for place in undo.DECODER_091)),
            (r"\.conv_shortcut\.conv\.", ".conv_shortcut."),
            (r"\.norm3\.", ".norm3.norm."),
            *undo.VAE_NAMES,
        ),
        more={"vae.per_channel_statistics.channel": (4,), "model.diffusion_model.proj_out.bias": (4,)},
    ),
    "lumina2_to_diffusers": Layout("lumina2", undo.LUMINA2, more={"norm_final.weight": (5,)}, wide=LUMINA_ROWS),
    "minimax_h3_transformer_checkpoint_to_diffusers": Layout(
        "minimax_h3",
        undo.MINIMAX_H3,
        more={"rope.inv_freq": (4,)},
        args=MINIMAX_ARGS,
    ),
    "mochi_transformer_checkpoint_to_diffusers": Layout("mochi", asks=("x_embedder.proj.weight",)),
    "qwen_image21_transformer_checkpoint_to_diffusers": Layout(
        "qwen21", ((r"\.img_mlp\.(gate_layer|proj)\.", ".img_mlp.gate_up."), *undo.COMFY)
    ),
    "sana_transformer_to_diffusers": Layout(
        "sana",
        asks=tuple(f"blocks.{n}.scale_shift_table" for n in range(3)),
        more={"pos_embed": (1, 4, 8), "y_embedder.y_embedding": (3, 6)},
    ),
    "sd3_t5_checkpoint_to_diffusers": Layout("t5", undo.T5),
    "sd3_transformer_checkpoint_to_diffusers": Layout(
        "sd3",
        asks=(
            *(f"joint_blocks.{n}.x_block.attn.ln_q.weight" for n in range(3)),
            "joint_blocks.0.x_block.attn2.qkv.weight",
            "context_embedder.weight",
        ),
    ),
    "stable_cascade_unet_single_file_to_diffusers": Layout("stable_cascade", undo.CASCADE),
    "wan_animate_2_transformer_to_diffusers": Layout(
        "wan_animate_2", (*undo.WAN_ATTENTION, (r"^blocks\.(\d+)\.", r"blocks.\1.block."), *undo.COMFY)
    ),
    "wan_transformer_to_diffusers": Layout("wan", (*undo.WAN, *undo.WAN_ATTENTION)),
    "wan_vae_to_diffusers": Layout("wan_vae", asks=tuple(read_manifest(WAN_VAE))),
    "z_image_transformer_checkpoint_to_diffusers": Layout(
        "z_image", undo.Z_IMAGE, more={"model.diffusion_model.norm_final.weight": (8,)}
    ),
}


@cache
def make_layout(name: str) -> StateDictSpec:
    """Return the header of a source that a converter reads."""
    layout = LAYOUTS[name]
    target = read_model(layout.model)
    groups: dict[str, list[tuple[int, ...]]] = {}
    for fqn, source in map_sources(name).items():
        groups.setdefault(source, []).append(target[fqn].shape)
    shapes = {source: _find_shape(source, parts, layout) for source, parts in groups.items()}
    shapes |= layout.more
    return StateDictSpec({fqn: TensorSpec("F32", shape) for fqn, shape in shapes.items()}, name=f"{name}.json")


def map_sources(name: str) -> dict[str, str]:
    """Return the source key of each target."""
    layout = LAYOUTS[name]
    if layout.asks:
        return _ask_converter(name)
    return {fqn: rename(fqn, layout.names) for fqn in read_model(layout.model) if not re.search(layout.lacks, fqn)}


def _find_rows(source: str, layout: Layout) -> list[int]:
    return [rows for pattern, rows in layout.wide.items() if re.search(pattern, source)]


def _find_shape(source: str, parts: list[tuple[int, ...]], layout: Layout) -> tuple[int, ...]:
    """Return the shape of parts that are joined along dimension 0."""
    joined = (sum(shape[0] for shape in parts), *parts[0][1:])
    for pattern, change in layout.unshaped.items():
        if re.search(pattern, source):
            joined = (math.prod(joined),) if change == (-1,) else (*joined, *change)
    rows = _find_rows(source, layout)
    return (*rows, *joined[1:]) if rows else joined


def _ask_converter(name: str) -> dict[str, str]:
    """Return the source key of each target of a converter that asks for its keys by name."""
    layout = LAYOUTS[name]
    wishes = Wishes((max(layout.wide.values(), default=48), 1), layout.asks)
    made = get_converter(name)(wishes)
    found = {}
    for fqn, tensor in made.items():
        (number,) = set(tensor.reshape(-1).tolist())
        found[fqn] = wishes.wished[int(number)]
    return found


def rename(fqn: str, names: undo.Undo) -> str:
    for pattern, replacement in names:
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
    wide = {fqn for fqn, source in map_sources(name).items() if _find_rows(source, layout)}
    pairs = [(fqn, made[fqn], wanted[fqn]) for fqn in made if fqn in wanted]
    pairs = [(fqn, one[fqn in wide :], other[fqn in wide :]) for fqn, one, other in pairs]
    found += [f"{fqn} is {one} and must be {other}" for fqn, one, other in pairs if one != other]
    return found
