"""The alphas of an adapter: its update is up @ down * alpha / r, and what carries alpha depends on the format.

kohya and ComfyUI: a tensor `alpha` for each module; without one, alpha is the LoRA rank (factor 1), as it is in
diffusers' files. PEFT: `lora_alpha` in `adapter_config.json`, with `alpha_pattern` and `rank_pattern` for modules
whose names match, and with `use_rslora` divided by the root of the rank. diffusers' files may have the same fields in
`__metadata__`, as `lora_adapter_metadata`, each behind the name of its model: `transformer.lora_alpha`.
Sources: peft/tuners/lora/config.py and layer.py, peft/utils/other.py; sd-scripts networks/lora.py;
diffusers/loaders/lora_base.py and utils/peft_utils.py.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.files.strict_json import read_json_file

CONFIG = "adapter_config.json"
"""The file beside the weights of a PEFT adapter."""
METADATA = "lora_adapter_metadata"
"""The entry of `__metadata__` in which diffusers saves the fields of such configs."""
WRAPPED = "base_model.model."
"""What PEFT puts before the names of the modules of the model that it wraps; a config has what follows."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What `adapter_config.json` says of alphas; `data` is all of it, `place` where it was read."""

    data: Mapping[str, Any]
    alpha: float
    alphas: Mapping[str, float]
    is_rank_stabilized: bool
    place: str = CONFIG
    _patterns: Patterns = field(init=False, repr=False, compare=False)
    _rank_patterns: Patterns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_patterns", Patterns(self.alphas))
        object.__setattr__(self, "_rank_patterns", Patterns(self.data.get("rank_pattern") or {}))

    @classmethod
    def read(cls, path: Path) -> PeftConfig:
        """Read the config of an adapter; raises `UsageError` (RK725) if it is none of a LoRA."""
        return cls.of(read_json_file(path), str(path))

    @classmethod
    def of(cls, data: object, place: str) -> PeftConfig:
        """Return the config of these data; raises `UsageError` (RK725)."""
        if not isinstance(data, Mapping):
            raise UsageError(_refuse(place, f"it must be an object, got {type(data).__name__}"))
        check_names(data, place)
        alpha, alphas = data.get("lora_alpha"), data.get("alpha_pattern") or {}
        if data.get("peft_type", "LORA") != "LORA":
            raise UsageError(_refuse(place, f"`peft_type` must be LORA, got {data['peft_type']!r}"))
        if not _is_number(alpha):
            raise UsageError(_refuse(place, f"`lora_alpha` must be a number, got {reprlib.repr(alpha)}"))
        if not all(_is_number(each) for each in alphas.values()):
            raise UsageError(_refuse(place, "`alpha_pattern` must map names of modules to numbers"))
        assert isinstance(alpha, int | float)
        return cls(data, float(alpha), dict(alphas), data.get("use_rslora") is True, place)

    @classmethod
    def find_in_metadata(cls, metadata: Mapping[str, str], component: str) -> PeftConfig | None:
        """Return the config of a kind of model that diffusers saved in `__metadata__`; None if there is none.

        >>> config = PeftConfig.find_in_metadata({METADATA: '{"unet.lora_alpha": 8, "unet.r": 4}'}, "unet")
        >>> config.alpha, dict(config.data)
        (8.0, {'lora_alpha': 8, 'r': 4})
        """
        try:
            entry = json.loads(metadata.get(METADATA, "null"))
        except (ValueError, RecursionError):
            raise UsageError(_refuse(METADATA, "it must be JSON")) from None
        if entry is None:
            return None
        if not isinstance(entry, Mapping):
            raise UsageError(_refuse(METADATA, f"it must be an object, got {type(entry).__name__}"))
        start = f"{component}."
        own = {name.removeprefix(start): value for name, value in entry.items() if name.startswith(start)}
        return cls.of(own, METADATA) if own else None

    def find_alpha(self, module: str) -> float:
        """Return the alpha of a module, as PEFT finds it: the first pattern that matches the end of its name.

        >>> PeftConfig({}, 8.0, {"attn.to_q": 4.0}, False).find_alpha("blocks.0.attn.to_q")
        4.0
        """
        pattern = self._patterns.find(module)
        return float(self.alpha if pattern is None else self.alphas[pattern])

    def find_factor(self, module: str, rank: int) -> float:
        """Return what up @ down is multiplied by."""
        return self.find_alpha(module) / (math.sqrt(rank) if self.is_rank_stabilized else rank)

    def find_rank(self, module: str) -> int | None:
        """Return the LoRA rank that the config gives a module; None if it does not say.

        >>> PeftConfig({"r": 8, "rank_pattern": {"to_q": 4}}, 8.0, {}, False).find_rank("blocks.0.to_q")
        4
        """
        ranks = self.data.get("rank_pattern") or {}
        pattern = self._rank_patterns.find(module)
        rank = self.data.get("r") if pattern is None else ranks[pattern]
        return rank if isinstance(rank, int) and not isinstance(rank, bool) else None

    def rewrite(self, factors: Mapping[str, tuple[int, float]], details: Details | None = None) -> dict[str, Any]:
        """Return the config of an adapter with these modules, each with its LoRA rank and its factor.

        Fields that no module's name is in stay. `target_parameters` goes: all weights that are adapted are those of
        modules in `target_modules`.

        >>> config = PeftConfig({"r": 4, "use_rslora": True, "bias": "none"}, 8.0, {}, True)
        >>> new = config.rewrite({"a": (4, 2.0), "b": (12, 2.0)})
        >>> new["r"], new["lora_alpha"], new["rank_pattern"], new["alpha_pattern"], new["use_rslora"], new["bias"]
        (4, 8, {'b': 12}, {'b': 24}, False, 'none')
        """
        gone = {"target_parameters": None} if "target_parameters" in self.data else {}
        return {"peft_type": "LORA", **self.data, **make_config(factors, details), **gone}


@dataclass(frozen=True, slots=True)
class Details:
    """What a config says besides LoRA ranks and factors.

    `modules` are all of the model, and `whole` those that are stored whole. `has_magnitudes`, `has_biases` and
    `has_transposed` say whether modules have magnitudes (DoRA), whether the layers of up matrices have biases, and
    whether weights are stored as [IN, OUT].
    """

    modules: Collection[str] = ()
    whole: Sequence[str] = ()
    has_magnitudes: bool = False
    has_biases: bool = False
    has_transposed: bool = False


def find_peft_start(prefix: str) -> str:
    """Return how PEFT's names of modules start, which its config has, behind which are those of the model.

    >>> find_peft_start("base_model.model.diffusion_model."), find_peft_start("unet.base_model.model.")
    ('diffusion_model.', '')
    """
    return prefix.partition(WRAPPED)[2]


class Patterns:
    """Patterns of `alpha_pattern` or `rank_pattern`, each for the modules whose names end with what it matches.

    Most are names. They are held against a module's name together, one character after another from the end, so that
    a name costs no more with thousands of them; other regular expressions are tried one after the other.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._tree: dict[str, Any] = {}
        self._others: list[int] = []
        for at, pattern in enumerate(self.patterns):
            if _NAME.fullmatch(pattern) is None:
                self._others.append(at)
                continue
            node = self._tree
            for token in reversed(_CHARACTER.findall(pattern.removeprefix("^"))):
                node = node.setdefault(_ANY if token == "." else token[-1], {})
            node.setdefault(_WHOLE if pattern.startswith("^") else _END, []).append(at)

    def find(self, module: str) -> str | None:
        """Return the first pattern that is for a module."""
        return next(iter(self.find_all(module)), None)

    def find_all(self, module: str) -> list[str]:
        """Return all patterns that are for a module, in their order.

        >>> Patterns(["k", "a.q", "^q", "(q|k)", "q"]).find_all("b.a.q")
        ['a.q', '(q|k)', 'q']
        """
        found = [at for at in self._others if matches_module(self.patterns[at], module)]
        nodes = [self._tree]
        for at in range(len(module), -1, -1):
            if at < len(module):
                nodes = [node[key] for node in nodes for key in (module[at], _ANY) if key in node]
            if at == 0 or module[at - 1] == ".":
                keys = (_END, _WHOLE) if at == 0 else (_END,)
                found += [each for node in nodes for key in keys for each in node.get(key, ())]
        return [self.patterns[at] for at in sorted(found)]


_NAME = re.compile(r"\^?(?:[\w.-]|\\[^\w\n])*")
"""A regular expression that is a name: characters, some escaped, and dots, which stand for any."""
_CHARACTER = re.compile(r"\\.|.")
_ANY, _END, _WHOLE = "any", "end", "whole"


def matches_module(pattern: str, module: str) -> bool:
    """Return whether a pattern of `alpha_pattern` or `rank_pattern` is for a module."""
    return re.match(_wrap(pattern), module) is not None


def _wrap(pattern: str) -> str:
    """Return the regular expression that PEFT makes of a pattern."""
    return rf"(.*\.)?({pattern})$"


def check_names(data: Mapping[str, Any], place: str) -> None:
    """Raise `UsageError` (RK725) if fields with names of modules, or patterns of them, are of another form."""
    for name in ("alpha_pattern", "rank_pattern"):
        patterns = data.get(name) or {}
        if not isinstance(patterns, Mapping):
            raise UsageError(_refuse(place, f"`{name}` must map names of modules to numbers"))
        for pattern in patterns:
            try:
                re.compile(_wrap(pattern))
            except (re.error, OverflowError, RecursionError) as error:
                title = (
                    f"`{name}` must have regular expressions, got {pattern!r}, which PEFT puts into {_wrap('...')}"
                )
                raise UsageError(_refuse(place, f"{title}: {getattr(error, 'msg', error)}")) from None
    for name in ("target_modules", "modules_to_save"):
        names = data.get(name)
        is_text = isinstance(names, str) and name == "target_modules"
        if names is None or is_text:
            continue
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise UsageError(_refuse(place, f"`{name}` must be a list of names, got {reprlib.repr(names)}"))


def make_config(factors: Mapping[str, tuple[int, float]], details: Details | None = None) -> dict[str, Any]:
    """Return the fields of a PEFT config that modules, each with its LoRA rank and its factor, determine."""
    details = details or Details()
    ranks = {module: rank for module, (rank, _) in factors.items()}
    alphas = {module: _shorten(rank * factor) for module, (rank, factor) in factors.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _list_patterns(ranks, rank),
        "alpha_pattern": _list_patterns(alphas, alpha),
        "use_rslora": False,
        "use_dora": details.has_magnitudes,
        "lora_bias": details.has_biases,
        "fan_in_fan_out": details.has_transposed,
        "target_modules": _list_targets(factors, details.modules),
        "modules_to_save": list(details.whole) or None,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def _list_patterns(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Return patterns that give each module its value, as PEFT looks it up: the first that matches the end of a name.

    PEFT sorts them when it saves them, so no two may match one module and differ.

    >>> _list_patterns({"q": 2, "a.q": 4, "b": 4}, 4), _list_patterns({"a.q": 2, "b": 4}, 4)
    ({'^q': 2}, {'a.q': 2})
    """
    names = [name for name, value in values.items() if value != usual]
    try:
        patterns = Patterns(names)
        found = [(name, module) for module in values for name in patterns.find_all(module)]
    except re.error:
        found = []
    finds_itself = {name for name, module in found if name == module}
    if finds_itself.issuperset(names) and all(values[name] == values[module] for name, module in found):
        return {name: values[name] for name in names}  # older versions of PEFT only find names as they are
    return {f"^{re.escape(name)}": values[name] for name in names}


def _list_targets(targets: Collection[str], modules: Collection[str]) -> list[str] | str:
    """Return the names of modules; a regular expression if PEFT, which compares their ends, would find others too.

    >>> _list_targets(["a.q", "b"], ["a.q", "b", "c"]), _list_targets(["q", "b"], ["a.q", "q", "b"])
    (['a.q', 'b'], 'q|b')
    """
    known = set(targets)
    ends = (end for module in modules if module not in known for end in list_ends(module))
    if any(end in known for end in ends):
        return "|".join(map(re.escape, targets))
    return list(targets)


def list_ends(module: str) -> list[str]:
    """Return what PEFT takes for the name of a module: its name, and all ends of it after a dot.

    >>> list_ends("blocks.0.q")
    ['blocks.0.q', '0.q', 'q']
    """
    segments = module.split(".")
    return [".".join(segments[at:]) for at in range(len(segments))]


def write_config(config: Mapping[str, Any]) -> str:
    """Return the text of a config."""
    return json.dumps(config, indent=2) + "\n"


def _shorten(number: float) -> float:
    """Return an integer where only the division by the LoRA rank made it none: 1 / 49 * 49 is less than 1."""
    return round(number) if math.isclose(number, round(number), rel_tol=1e-14) else number


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # an integer may be too large to become a float


def _refuse(place: str, what: str) -> Diagnostic:
    return Diagnostic("RK725", f"not the config of a LoRA: {what}", help=("check the file",), place=place)
