"""`from_checkpoint`: the layout of a checkpoint is recognised by its keys, the widths by its shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import remapkit
from remapkit import Diagnostic, FailedCheck, Plan, Reader, RuleSet, UnreadableCheckpoint, UsageError
from remapkit.plugin import (
    ReadOptions,
    SourceLike,
    describe_layouts,
    find_only_path,
    list_names,
    open_source,
    read_json_file,
    read_under_roots,
    show_below,
)

Model = TypeVar("Model", bound=nn.Module)

__all__ = ["OWN_LAYOUT", "PACKS", "load_vae"]

PACKS: Mapping[str, tuple[str, ...]] = {
    "WanVAE": ("wan22_pth", "wan22_diffusers"),
    "Wan21VAE": ("wan21_pth", "wan21_diffusers"),
}
"""The packs for each model. Checkpoints that they wrote are in the model's own layout."""
OWN_LAYOUT = "the model's own layout"

_HALVES = {"encoder": ("encoder.", "conv1."), "decoder": ("decoder.", "conv2.")}


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One way to read the checkpoint."""

    name: str
    rules: RuleSet | None
    plan: Plan
    strangers: tuple[str, ...]
    """Keys of the checkpoint that do not belong to this layout."""


def load_vae(
    cls: type[Model],
    path: SourceLike | Reader,
    rules: RuleSet | str | Path | None,
    *,
    root: str | None,
    strip: Sequence[str],
    siblings: Sequence[type[nn.Module]],
    settings: Mapping[str, Any],
    **how: Any,
) -> Model:
    """Implements `WanVAE.from_checkpoint`. Nothing is allocated before layout, widths and names are checked."""
    with ExitStack() as stack:
        config: dict[str, Any] = {}
        rule_set = rules if rules is None or isinstance(rules, RuleSet) else remapkit.load(rules)
        options = ReadOptions(root, strip=tuple(strip))
        declared = None if rule_set is None else rule_set.file
        if isinstance(path, Reader):
            reader = show_below(path, options, rules=declared)
        else:
            only = find_only_path(path)
            place = path if only is None else _find_vae_folder(only)
            config = {} if only is None else _read_diffusers_settings(_find_vae_folder(only))
            reader = stack.enter_context(open_source(place, options, rules=declared))
        header = reader.header()
        # Names do not depend on widths, so the names of any width recognise the layout.
        structure = {key: value for key, value in (config | dict(settings)).items() if key not in _HALVES}
        names = frozenset(_build_on_meta(cls, {**structure, "encoder": True, "decoder": True}).state_dict())
        if rule_set is None:
            reader = reader if root is not None else _find_root(cls, reader, names)
            chosen = _recognize_layout(cls, siblings, reader, names)
        else:
            plan = rule_set.plan(header)
            plan.raise_for_problems()
            chosen = _Candidate(rule_set.name, rule_set, plan, ())
        vae = _build_on_meta(cls, {**_find_widths(cls, chosen.plan, reader.header().name), **config, **settings})
        _refuse_strangers(chosen, names, cls.__name__)
        # A half model ignores the keys of the other half: they are known, and their bytes are never read.
        half = not (settings.get("encoder", True) and settings.get("decoder", True))
        remapkit.load_into(vae, reader, chosen.rules, strict=not half, **how)
    return vae


def _find_vae_folder(path: Path) -> Path:
    """Return `path`, or its folder `vae` if `path` is the folder of a whole diffusers pipeline."""
    inside = path / "vae"
    return inside if path.is_dir() and (path / "model_index.json").is_file() and inside.is_dir() else path


def _read_diffusers_settings(path: Path) -> dict[str, Any]:
    """Read structure and statistics from a diffusers config next to the checkpoint; widths come from shapes."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        config = read_json_file(file)
    except UnreadableCheckpoint:
        return {}
    if not isinstance(config, dict) or config.get("_class_name") != "AutoencoderKLWan":
        return {}
    ours = {"dim_mult": "dim_mult", "num_res_blocks": "num_res_blocks", "temperal_downsample": "temporal_downsample"}
    ours |= {"latents_mean": "latents_mean", "latents_std": "latents_std"}
    return {ours[key]: value for key, value in config.items() if key in ours and value is not None}


def _build_on_meta(cls: type[Model], settings: Mapping[str, Any]) -> Model:
    with torch.device("meta"):
        return cls(**settings)


def _find_root(cls: type[nn.Module], reader: Reader, names: frozenset[str]) -> Reader:
    """Return the checkpoint under the only root where all keys fit one layout; unchanged if they fit as they are."""
    layouts = _load_layouts(cls.__name__)
    if any(_fits(candidate) for candidate in _list_candidates(layouts, reader, names)):
        return reader
    inside = _find_fitting_roots(layouts, reader, names)
    return inside[0] if len(inside) == 1 else reader


def _find_fitting_roots(layouts: Mapping[str, RuleSet], reader: Reader, names: frozenset[str]) -> list[Reader]:
    return [
        found
        for found in read_under_roots(reader)
        if any(_fits(candidate) for candidate in _list_candidates(layouts, found, names))
    ]


def _list_roots(layouts: Mapping[str, RuleSet], reader: Reader, names: frozenset[str]) -> str:
    """Return a help that lists the roots under which all keys fit a layout; empty if there are none."""
    found = [f"root={inside.root!r}" for inside in _find_fitting_roots(layouts, reader, names)]
    return f"all keys fit a layout under several roots; choose one: {' or '.join(found[:4])}" if found else ""


def _fits(candidate: _Candidate) -> bool:
    return not candidate.strangers and bool(candidate.plan.moves)


def _recognize_layout(
    cls: type[nn.Module], siblings: Sequence[type[nn.Module]], reader: Reader, names: frozenset[str]
) -> _Candidate:
    """Return the layout that has all keys of the checkpoint. Raises `UsageError` if none or several have."""
    layouts = _load_layouts(cls.__name__)
    candidates = list(_list_candidates(layouts, reader, names))
    fitting = [candidate for candidate in candidates if _fits(candidate)]
    if len(fitting) == 1:
        return fitting[0]
    place = reader.header().name
    if fitting:
        layouts = ", ".join(candidate.name for candidate in fitting)
        title = f"the keys of this checkpoint fit several layouts of {cls.__name__}: {layouts}"
        note = f"it has only {list_names(list(reader.header()))}, which these layouts share"
        help = ("name the layout with rules=",)
        raise UsageError(Diagnostic("RK646", title, notes=(note,), help=help, place=place))
    total = len(reader.header())
    notes = tuple(
        f"{each.name}: {len(each.strangers)} of {total} keys are not in it:\n{list_names(each.strangers)}"
        for each in candidates
    )
    help = [_list_roots(layouts, reader, names), _describe_other_generation(siblings, reader)]
    help = help if any(help) else [describe_layouts(reader.header()) or ""]
    help.append("pass a rule file with rules=, or start one with `remapkit new`")
    title = f"the keys of this checkpoint fit no layout of {cls.__name__}"
    raise UsageError(Diagnostic("RK645", title, notes=notes, help=tuple(filter(None, help)), place=place))


def _load_layouts(model: str) -> dict[str, RuleSet]:
    """Load the rules of each layout once: they are tried below many roots."""
    return {pack: remapkit.load(pack) for pack in PACKS.get(model, ())} | {OWN_LAYOUT: _make_identity_rules()}


def _list_candidates(layouts: Mapping[str, RuleSet], reader: Reader, names: frozenset[str]) -> Iterator[_Candidate]:
    header = reader.header()
    for layout, rules in layouts.items():
        plan = rules.plan(header)
        if layout == OWN_LAYOUT:
            yield _Candidate(layout, None, plan, tuple(fqn for fqn in header if fqn not in names))
            continue
        taken = {source for move in plan.moves if move.target in names for source in move.sources}
        yield _Candidate(layout, rules, plan, tuple(fqn for fqn in header if fqn not in taken))


def _make_identity_rules() -> RuleSet:
    return remapkit.loads("remapkit: 1\nname: identity\nunmatched: keep\nrules: []\n")


def _describe_other_generation(siblings: Sequence[type[nn.Module]], reader: Reader) -> str:
    """Return a hint if the checkpoint is of the other generation, the likeliest mistake; else an empty text."""
    for other in siblings:
        name = other.__name__
        names = frozenset(_build_on_meta(other, {}).state_dict())
        if any(map(_fits, _list_candidates(_load_layouts(name), reader, names))):
            return f"they are keys of the other generation: load them with {name}.from_checkpoint"
    return ""


def _find_widths(cls: type[Model], plan: Plan, place: str) -> dict[str, int]:
    """Read base widths from shapes. If the tensor is missing, the published width applies."""
    shapes = {move.target: move.spec.shape for move in plan.moves}
    found = {
        setting: shapes[fqn][axis] for setting, (fqn, axis) in _WIDTHS.items() if len(shapes.get(fqn, ())) > axis
    }
    patched = cls.__name__ == "WanVAE"
    inputs = shapes.get("encoder.conv1.weight", ())
    if len(inputs) == 5 and inputs[1] != (12 if patched else 3):
        title = f"encoder.conv1.weight takes {inputs[1]} channels: this is not a checkpoint of {cls.__name__}"
        help = ("Wan 2.2 folds 2x2 pixels of 3 channels into 12 (WanVAE); Wan 2.1 takes 3 (Wan21VAE)",)
        raise UsageError(Diagnostic("RK647", title, help=help, place=place))
    return found


_WIDTHS = {
    "dim": ("encoder.conv1.weight", 0),
    "dec_dim": ("decoder.head.0.gamma", 0),
    "z_dim": ("conv2.weight", 1),
}


def _refuse_strangers(chosen: _Candidate, names: frozenset[str], model: str) -> None:
    """Raise for targets that neither half of the model has: loading a half model would silently ignore them."""
    strangers = [move.target for move in chosen.plan.moves if move.target not in names]
    if strangers:
        title = f"{len(strangers)} targets of {chosen.name} are not tensors of {model}"
        help = ("these rules are for another model",)
        raise FailedCheck([Diagnostic("RK311", title, notes=(list_names(strangers),), help=help)])
