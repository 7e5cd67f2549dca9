"""The entry `lora_adapter_metadata` of diffusers' files: the config of PEFT, each field behind its model.

Source: diffusers/loaders/lora_base.py, `_save_lora_weights` and `_pack_dict_with_prefix` (`transformer.r`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from remapkit.adapters.alphas import Patterns, PeftConfig, check_names, list_ends
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.files.json_edit import parse_nodes, write_members
from remapkit.formats.quoted_names import LORA

NUMBERS = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "target_parameters"),
)
"""Fields that the modules of an adapter determine, with their LoRA ranks and factors."""
NAMES = ("modules_to_save",)
"""Fields with names of modules that are none of the adapter's own."""


def rewrite_lora_entry(
    text: str,
    component: str,
    modules: Mapping[str, Sequence[str]],
    factors: Mapping[str, tuple[int, float]],
    made: Mapping[str, Any] | None,
) -> str:
    """Return the entry of an adapter whose modules, ranks or alphas are others.

    `component` is the model of diffusers (`transformer`), `modules` maps the old names of modules below it to the new
    ones, and `factors` has the LoRA rank of each new one, and what up @ down is multiplied by. `made` are the fields
    of a config that says this; None if alphas are not known, which leaves numbers as they are. An entry that says
    it already stays byte for byte; fields that have nothing to do with it always do. Raises `UsageError` (RK725).

    >>> text = '{"transformer.lora_alpha": 4, "transformer.r": 4, "transformer.target_modules": ["q", "k"]}'
    >>> from remapkit.adapters.alphas import make_config
    >>> factors = {"a.qk": (8, 1.0)}
    >>> rewrite_lora_entry(text, "transformer", {"a.q": ["a.qk"], "a.k": ["a.qk"]}, factors, make_config(factors))
    '{"transformer.lora_alpha": 8, "transformer.r": 8, "transformer.target_modules": ["a.qk"]}'
    """
    root = parse_nodes(text)
    if root is None or root.opens != "{":
        title = f"not the config of a LoRA: the metadata entry `{LORA}` must be a JSON object"
        raise UsageError(Diagnostic("RK725", title, help=("check the file",)))
    start = f"{component}." if component else ""
    fields = {
        member.key[len(start) :]: json.loads(text[member.value.start : member.value.end])
        for member in root.members
        if member.key is not None and member.key.startswith(start)
    }
    check_names(fields, LORA)
    new: dict[str, Any] = {}
    others = {new for names in modules.values() for new in names if new not in factors}
    if made is not None and (_has_stale(fields, modules, factors) or not _says(fields, factors, others)):
        new = {name: made[name] for name in NUMBERS if name in made and (name in fields or made[name])}
    for name in NAMES:
        if isinstance(fields.get(name), list):
            new[name] = list(dict.fromkeys(each for old in fields[name] for each in modules.get(old, (old,))))
    groups = []
    for member in root.members:
        name = (member.key or "")[len(start) :] if (member.key or "").startswith(start) else ""
        keeps = name not in new or new[name] == fields[name]
        value = text[member.value.start : member.value.end] if keeps else json.dumps(new[name])
        groups.append([text[member.start : member.value.start] + value])
    added = [f"{json.dumps(start + name)}: {json.dumps(value)}" for name, value in new.items() if name not in fields]
    if not root.members:
        return "{" + ", ".join(added) + "}"
    groups[-1] += added
    return text[: root.start] + write_members(text, root, groups) + text[root.end :]


def _has_stale(fields: Mapping[str, Any], modules: Mapping[str, Sequence[str]], new: Mapping[str, object]) -> bool:
    """Return whether a config has ends of paths that were those of old modules, and are of no new one."""
    named = {
        _read_literal(each)
        for name in ("target_modules", "rank_pattern", "alpha_pattern")
        if not isinstance(fields.get(name), str)
        for each in fields.get(name) or ()
    }
    gone = {end for name in modules if name not in new for end in list_ends(name)}
    there = {end for name in new for end in list_ends(name)}
    return not named.isdisjoint(gone - there)


def _says(fields: Mapping[str, Any], factors: Mapping[str, tuple[int, float]], others: Collection[str]) -> bool:
    """Return whether a config gives these modules their ranks and factors, and adapts them and no others."""
    if not isinstance(fields.get("lora_alpha"), int | float):
        return False
    config = PeftConfig.of(fields, LORA)
    ranks, targets = fields.get("rank_pattern") or {}, fields.get("target_modules")
    patterns = Patterns(ranks)
    for module, (rank, factor) in factors.items():
        pattern = patterns.find(module)
        own = fields.get("r") if pattern is None else ranks[pattern]
        if own != rank or config.find_factor(module, rank) != factor:
            return False
    if not isinstance(targets, list):
        return targets == "all-linear"
    named = set(targets)
    adapted = [module for module in (*factors, *others) if not named.isdisjoint(list_ends(module))]
    return adapted == list(factors)


def _read_literal(pattern: str) -> str:
    """Return the name that a pattern is; any other regular expression is the name of no module."""
    return re.sub(r"\\(\W)", r"\1", pattern.removeprefix("^"))
