"""The alphas of an adapter: its update is up @ down * alpha / r, and what carries alpha depends on the format.

kohya and ComfyUI: a tensor `alpha` for each module; without one, alpha is the LoRA rank (factor 1), as it is in
diffusers' files. PEFT: `lora_alpha` in `adapter_config.json`, with `alpha_pattern` and `rank_pattern` for modules
whose names match, and with `use_rslora` divided by the root of the rank.
Sources: peft/tuners/lora/config.py and layer.py; sd-scripts networks/lora.py; diffusers/utils/peft_utils.py.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.files.strict_json import read_json_file

CONFIG = "adapter_config.json"
"""The file beside the weights of a PEFT adapter."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What `adapter_config.json` says of alphas; `data` is all of it."""

    data: Mapping[str, Any]
    alpha: float
    alphas: Mapping[str, float]
    is_rank_stabilized: bool

    @classmethod
    def read(cls, path: Path) -> PeftConfig:
        """Read the config of an adapter; raises `UsageError` (RK725) if it is none of a LoRA."""
        return cls.of(read_json_file(path), str(path))

    @classmethod
    def of(cls, data: object, place: str) -> PeftConfig:
        """Return the config of these data; raises `UsageError` (RK725)."""
        if not isinstance(data, Mapping):
            raise UsageError(_refuse(place, f"it must be an object, got {type(data).__name__}"))
        alpha, alphas = data.get("lora_alpha"), data.get("alpha_pattern") or {}
        if data.get("peft_type", "LORA") != "LORA":
            raise UsageError(_refuse(place, f"`peft_type` must be LORA, got {data['peft_type']!r}"))
        if not _is_number(alpha):
            raise UsageError(_refuse(place, f"`lora_alpha` must be a number, got {alpha!r}"))
        if not isinstance(alphas, Mapping) or not all(_is_number(each) for each in alphas.values()):
            raise UsageError(_refuse(place, "`alpha_pattern` must map names of modules to numbers"))
        assert isinstance(alpha, int | float)
        return cls(data, float(alpha), dict(alphas), data.get("use_rslora") is True)

    def find_alpha(self, module: str) -> float:
        """Return the alpha of a module, as PEFT finds it: the first pattern that matches the end of its name.

        >>> PeftConfig({}, 8.0, {"attn.to_q": 4.0}, False).find_alpha("blocks.0.attn.to_q")
        4.0
        """
        for pattern, alpha in self.alphas.items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return float(alpha)
            except re.error:
                continue
        return self.alpha

    def find_factor(self, module: str, rank: int) -> float:
        """Return what up @ down is multiplied by."""
        return self.find_alpha(module) / (math.sqrt(rank) if self.is_rank_stabilized else rank)

    def rewrite(self, factors: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
        """Return the config of an adapter with these modules, each with its LoRA rank and its factor.

        >>> config = PeftConfig({"r": 4, "use_rslora": True}, 8.0, {}, True)
        >>> new = config.rewrite({"a": (4, 2.0), "b": (12, 2.0)})
        >>> new["r"], new["lora_alpha"], new["rank_pattern"], new["alpha_pattern"], new["use_rslora"]
        (4, 8, {'b': 12}, {'b': 24}, False)
        """
        return {**self.data, **make_config(factors)}


def make_config(factors: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """Return the fields of a PEFT config that ranks and alphas of modules determine; patterns are whole names."""
    ranks = {module: rank for module, (rank, _) in factors.items()}
    alphas = {module: rank * factor for module, (rank, factor) in factors.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": _shorten(alpha),
        "rank_pattern": {re.escape(name): each for name, each in ranks.items() if each != rank},
        "alpha_pattern": {re.escape(name): _shorten(each) for name, each in alphas.items() if each != alpha},
        "use_rslora": False,
        "target_modules": list(factors),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def write_config(config: Mapping[str, Any]) -> str:
    """Return the text of a config."""
    return json.dumps(config, indent=2) + "\n"


def agree(factors: Sequence[float]) -> bool:
    """Return whether factors are one number; alphas are small numbers, so equal ones are equal floats."""
    return len(set(factors)) <= 1


def _shorten(number: float) -> float:
    return int(number) if number == int(number) else number


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refuse(place: str, what: str) -> Diagnostic:
    return Diagnostic("RK725", f"not the config of a LoRA: {what}", help=("check the file",), place=place)
