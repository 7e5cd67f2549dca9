"""The formats of adapter files, as `formats.yaml` describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

Role = Literal["up", "down", "mid", "alpha", "magnitude", "diff", "diff_bias", "up_bias", "whole", "opaque"]
AlphaIn = Literal["tensor", "config", "none"]


@dataclass(frozen=True, slots=True)
class Style:
    """How a file names things: its format, the prefix of its modules, and which leaves it has."""

    format: str
    prefix: str
    leaves: str
    is_flat: bool
    alpha: AlphaIn

    def name(self, module: str, leaf: str) -> str:
        """Return the name of a tensor.

        >>> Style("kohya", "lora_unet_", "kohya", True, "tensor").name("blocks.0.q", "alpha")
        'lora_unet_blocks_0_q.alpha'
        """
        return f"{self.prefix}{flatten(module) if self.is_flat else module}.{leaf}"

    def leaf(self, role: Role) -> str | None:
        """Return the leaf of a role, such as `lora_up.weight`; None if this format has none.

        A ComfyUI file may name matrices as PEFT does, but not what else it has.

        >>> style = Style("comfy", "diffusion_model.", "peft", False, "tensor")
        >>> style.leaf("up"), style.leaf("magnitude"), style.leaf("diff_bias")
        ('lora_B.weight', 'dora_scale', 'diff_b')
        """
        formats = read_formats()
        own = formats.own_leaves[self.format]
        if role == "alpha":
            return formats.leaves["kohya"]["alpha"] if self.alpha == "tensor" else None
        names = (self.leaves, own) if role in ("up", "down") or own == "peft" else (own,)
        return next((leaf for name in names if (leaf := formats.leaves[name].get(role)) is not None), None)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix of module names: the format that has it, and the kinds of models it may be for."""

    text: str
    format: str
    components: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """What a leaf of an adapter that is no product of two matrices belongs to, and the formats that have it."""

    name: str
    formats: frozenset[str]


@dataclass(frozen=True, slots=True)
class Processors:
    """How attention processors are named: the ends of names, the segment before, and the layers that are meant."""

    leaves: Mapping[str, str]
    segment: str
    layers: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Formats:
    """What `formats.yaml` says."""

    titles: Mapping[str, str]
    """How each format is called in messages."""
    alphas: Mapping[str, AlphaIn]
    flat: frozenset[str]
    own_leaves: Mapping[str, str]
    components: Mapping[str, Mapping[str, str]]
    marks: Mapping[str, tuple[str, ...]]
    prefixes: tuple[Prefix, ...]
    leaves: Mapping[str, Mapping[str, str]]
    roles: Mapping[str, tuple[str, Role]]
    opaque: Mapping[str, Opaque]
    processors: Processors

    def style(self, format: str, component: str) -> Style:
        """Return how a format names the modules of a kind of model."""
        prefix = self.components[component][format]
        return Style(format, prefix, self.own_leaves[format], format in self.flat, self.alphas[format])

    def find_component(self, prefix: str, modules: Sequence[str]) -> str:
        """Return the kind of model that an adapter is for, by its prefix and, where that leaves several, its modules.

        >>> read_formats().find_component("lora_unet_", ["down_blocks.0.attentions.0.proj_in"])
        'unet'
        """
        known = next((each.components for each in self.prefixes if each.text == prefix), tuple(self.components))
        firsts = {module.partition(".")[0] for module in modules}
        marked = [kind for kind in known if firsts.intersection(self.marks.get(kind, ()))]
        return (marked or list(known))[0]


def flatten(module: str) -> str:
    """Return the name of a module with `_` for dots."""
    return module.replace(".", "_")


@cache
def read_formats() -> Formats:
    """Read `formats.yaml`."""
    import yaml  # takes time, and is needed only where there is an adapter

    data = yaml.safe_load(files(__package__).joinpath("formats.yaml").read_text(encoding="utf-8"))
    kinds: dict[str, dict[str, list[str]]] = {}
    for component, own in data["components"].items():
        for format in data["formats"]:
            kinds.setdefault(own[format], {}).setdefault(format, []).append(component)
    prefixes = [
        Prefix(text, format, tuple(components)) for text, own in kinds.items() for format, components in own.items()
    ]
    prefixes += [Prefix(text, own["format"], tuple(own["components"])) for text, own in data["prefixes"].items()]
    prefixes.sort(key=lambda each: -len(each.text))
    opaque = {
        leaf: Opaque(own["name"], frozenset(own.get("formats", data["formats"])))
        for own in data["opaque"]
        for leaf in own["leaves"]
    }
    processors = data["processors"]
    roles: dict[str, tuple[str, Role]] = dict.fromkeys(opaque, ("", "opaque"))
    for name, leaves in data["leaves"].items():
        for role, leaf in leaves.items():
            roles.setdefault(leaf, (name, role))
    return Formats(
        titles={name: own["title"] for name, own in data["formats"].items()},
        alphas={name: own["alpha"] for name, own in data["formats"].items()},
        flat=frozenset(name for name, own in data["formats"].items() if own.get("flat")),
        own_leaves={name: own["leaves"] for name, own in data["formats"].items()},
        components={
            name: {format: own[format] for format in data["formats"]} for name, own in data["components"].items()
        },
        marks={name: tuple(own.get("marks", ())) for name, own in data["components"].items()},
        prefixes=tuple(prefixes),
        leaves=data["leaves"],
        roles=roles,
        opaque=opaque,
        processors=Processors(
            processors["leaves"],
            f".{processors['segment']}.",
            {name: tuple(layers) for name, layers in processors["layers"].items()},
        ),
    )
