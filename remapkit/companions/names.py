"""Find companions by name: the scales and zero points of weights, and the alphas of adapters.

A *scaled weight* is a tensor of 8-bit or packed numbers that has a companion; `input_scale` and `scale_input` belong
to the input of a layer, not to its weight. An *adapter* is all tensors of one LoRA, LoHa or LoKr; its companion is
the alpha. Only names and dtypes are used, because the shape of a scale proves nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

from remapkit.tensors.spec import TensorSpec

COMPANION_SUFFIXES = (
    *("_scale", "_scales", "_scale_inv", "_scale_2", "_scale_inverse", "_scaling_factor", "_global_scale"),
    *("_zero_point", "_zeros", "_absmax", "_shape", "_g_idx", "_block_scale"),
    *(".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".scale", ".scales", ".zero_point"),
)
"""Suffixes of the name of a weight: `weight_scale`, `weight.absmax`."""

COMPANION_PREFIXES = ("scale_", "scales_", "zero_point_")
"""Prefixes of its last segment: `scale_weight`."""

COMPANION_LEAVES = ("scale", "scales", "scale_inv", "zeros", "qzeros", "zero_point", "SCB", "g_idx", "scaling_factor")
"""Last segments of companions of the weight in the same module: `m.scale` scales `m.weight`."""

WEIGHT_LEAVES = ("weight", "qweight", "weight_packed", "packed_weight", "W_q")
"""Last segments of weights that a bare `scale` can belong to."""

MODULE_LEAVES = ("input_scale", "scale_input", "input_global_scale", "activation_scale", "comfy_quant")
"""Last segments of what belongs to the input of a module, or describes its format, and is in no weight's value."""

MARKER = "scaled_fp8"
"""The last segment of the tensor that marks a file of scaled weights for ComfyUI; it belongs to no module."""

_PACKED = ("_packed", "_blocks", "_quantized", "_q")
QUANT_STATE = ".quant_state."
"""The text between the name of a weight and the names in its bitsandbytes state."""

_ENDINGS = (*COMPANION_SUFFIXES, *(f".{each}" for each in COMPANION_LEAVES), ".alpha")
_INSIDE = re.compile(r"(?:^|\.)(?:scales?|zero_point)_\w+$|\.quant_state\.")
_SMALL = ("F8_", "F6_", "F4")
_ADAPTER = re.compile(
    r"^(?P<module>.+?)[._](?:lora(?:_linear_layer)?[._](?:up|down|mid|A|B|magnitude_vector|embedding_[AB])|lora_[AB]"
    r"|hada_[wt]\d(?:_[ab])?|lokr_[wt]\d(?:_[ab])?|oft_blocks|oft_diag|dora_scale)(?:\..+)?$"
)


def can_be_adapter(fqns: Iterable[str]) -> bool:
    """Return whether any key may be a tensor of an adapter: a quick test without false negatives.

    >>> can_be_adapter(["a.weight", "a.bias"]), can_be_adapter(["a.weight", "a.lora_A.weight"])
    (False, True)
    """
    return any("lora" in fqn or "hada_" in fqn or "lokr_" in fqn or "oft_" in fqn or "dora_" in fqn for fqn in fqns)


def can_have_companions(fqns: Iterable[str]) -> bool:
    """Return whether any key may be the name of a companion: a quick test without false negatives.

    >>> can_have_companions(["a.weight", "a.bias"]), can_have_companions(["a.weight", "a.scale_weight"])
    (False, True)
    """
    return any(fqn.endswith(_ENDINGS) or fqn in COMPANION_LEAVES or _INSIDE.search(fqn) is not None for fqn in fqns)


Kind = tuple[str, str]
"""How the name of a companion is made of that of its weight: what it stands at, and the text that is added there."""

_LEAF, _MODULE, _STATE = "leaf", "module", "state"


def _list_kinds(weight: str) -> Iterator[tuple[Kind, str]]:
    """Yield each way to name a companion of a weight, and the name: of its value first, then of its module."""
    head, dot, leaf = weight.rpartition(".")
    packed = next((leaf.removesuffix(each) for each in _PACKED if leaf.endswith(each)), None)
    for place, stem in (("stem", leaf), ("packed", packed)):
        if stem is not None:
            yield from (((place, each), f"{head}{dot}{stem}{each}") for each in COMPANION_SUFFIXES)
            yield from (((place, each), f"{head}{dot}{each}{stem}") for each in COMPANION_PREFIXES)
    is_plain = leaf in WEIGHT_LEAVES
    if is_plain:
        yield from (((_LEAF, each), f"{head}{dot}{each}") for each in COMPANION_LEAVES)
    before = f"{head}{dot}" if is_plain else f"{weight}_"
    yield from (((_MODULE, each), f"{before}{each}") for each in MODULE_LEAVES)


def list_spellings(weight: str) -> Iterator[str]:
    """Yield every possible name of a companion of a weight, except bitsandbytes states.

    >>> [name for name in list_spellings("m.weight") if "scale" in name][:3]
    ['m.weight_scale', 'm.weight_scales', 'm.weight_scale_inv']
    """
    return (name for (place, _), name in _list_kinds(weight) if place != _MODULE)


def read_kind(companion: str, weight: str) -> Kind | None:
    """Return the kind of a companion of a weight, or None if its name is not that of one.

    >>> read_kind("m.scale_weight", "m.weight"), read_kind("m.input_scale", "m.weight")
    (('stem', 'scale_'), ('module', 'input_scale'))
    """
    if companion.startswith(weight + QUANT_STATE):
        return _STATE, companion[len(weight) :]
    return next((kind for kind, name in _list_kinds(weight) if name == companion), None)


def spell_kind(kind: Kind, weight: str) -> str | None:
    """Return the name of the companion of a kind that a weight has; None if a weight of this name cannot have it.

    >>> spell_kind(("stem", "_scale_inv"), "experts.gate_up_proj"), spell_kind(("leaf", "scale"), "m.gate_up_proj")
    ('experts.gate_up_proj_scale_inv', None)
    """
    if kind[0] == _STATE:
        return weight + kind[1]
    return next((name for each, name in _list_kinds(weight) if each == kind), None)


def is_of_module(kind: Kind) -> bool:
    """Return whether companions of a kind belong to the input or the format of a module, not to a weight's value."""
    return kind[0] == _MODULE


def list_owners(companion: str) -> Iterator[str]:
    """Yield every name of a weight that a companion of this name could belong to.

    >>> list(list_owners("m.weight_scale"))[:2], "m.weight" in list_owners("m.input_scale")
    (['m.weight', 'm.weight_packed'], True)
    """
    return (weight for _, weight in _list_owners(companion))


def _list_owners(companion: str) -> Iterator[tuple[Kind, str]]:
    """Yield every kind that a name can be of, and the name of the weight: the inverse of `_list_kinds`."""
    if QUANT_STATE in companion:
        weight, state, rest = companion.partition(QUANT_STATE)
        yield (_STATE, f"{state}{rest}"), weight
    head, dot, leaf = companion.rpartition(".")
    stems = [(each, companion.removesuffix(each)) for each in COMPANION_SUFFIXES if companion.endswith(each)]
    stems += [(each, f"{head}{dot}{leaf.removeprefix(each)}") for each in COMPANION_PREFIXES if leaf.startswith(each)]
    for each, stem in stems:
        yield ("stem", each), stem
        yield from ((("packed", each), f"{stem}{packed}") for packed in _PACKED)
    for place, leaves in ((_LEAF, COMPANION_LEAVES), (_MODULE, MODULE_LEAVES)):
        if leaf in leaves:
            yield from (((place, leaf), f"{head}{dot}{each}") for each in WEIGHT_LEAVES)
    for each in MODULE_LEAVES:
        weight = companion.removesuffix(f"_{each}")
        if weight != companion and weight.rpartition(".")[2] not in WEIGHT_LEAVES:
            yield (_MODULE, each), weight


_ORDER = ("stem", "packed", _LEAF, _STATE, _MODULE)


def pair_companions(fqns: Collection[str], *, with_modules: bool = False) -> dict[str, tuple[str, ...]]:
    """Return the companions of each name that has any, in the order of their kinds; those of modules if asked for.

    >>> pair_companions({"m.weight", "m.weight_scale_2", "m.weight_scale", "m.input_scale"})
    {'m.weight': ('m.weight_scale', 'm.weight_scale_2')}
    """
    found: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
    endings = (*COMPANION_SUFFIXES, *COMPANION_PREFIXES)
    for fqn in fqns:
        if not (can_have_companions((fqn,)) or fqn.endswith(MODULE_LEAVES)):
            continue
        for (place, text), weight in _list_owners(fqn):
            if weight in fqns and (with_modules or place != _MODULE):
                rank = endings.index(text) if place in _ORDER[:2] else 0
                found[weight].append((_ORDER.index(place), rank, fqn))
    return {weight: tuple(dict.fromkeys(fqn for _, _, fqn in sorted(each))) for weight, each in found.items()}


def is_companion_of(name: str, weight: str) -> bool:
    """Return whether a name is a possible name of a companion of a weight."""
    return name.startswith(weight + QUANT_STATE) or name in list_spellings(weight)


def can_be_scaled(weight: str, spec: TensorSpec) -> bool:
    """Return whether the value of a tensor may depend on companions: 8-bit floats or packed numbers."""
    if spec.dtype.startswith(_SMALL) or spec.dtype in ("U8", "I8"):
        return bool(spec.shape)
    leaf = weight.rpartition(".")[2]
    return spec.dtype in ("I32", "U32") and (leaf in WEIGHT_LEAVES[1:] or leaf.endswith(_PACKED))


def find_scaled_weights(header: Mapping[str, TensorSpec]) -> dict[str, tuple[str, ...]]:
    """Find every scaled weight of a header and its companions.

    >>> f8, one = TensorSpec("F8_E4M3", (8, 8)), TensorSpec("F32", ())
    >>> find_scaled_weights({"m.weight": f8, "m.scale_weight": one, "n.weight": f8, "n.scale_input": one})
    {'m.weight': ('m.scale_weight',)}
    """
    return _find_paired(header, with_modules=False)


def find_followers(header: Mapping[str, TensorSpec]) -> dict[str, tuple[str, ...]]:
    """Find what belongs to each weight of 8-bit or packed numbers: its companions, then those of its module.

    >>> f8, one = TensorSpec("F8_E4M3", (8, 8)), TensorSpec("F32", ())
    >>> find_followers({"m.weight": f8, "m.scale_weight": one, "n.weight": f8, "n.scale_input": one})
    {'m.weight': ('m.scale_weight',), 'n.weight': ('n.scale_input',)}
    """
    return _find_paired(header, with_modules=True)


def _find_paired(header: Mapping[str, TensorSpec], *, with_modules: bool) -> dict[str, tuple[str, ...]]:
    if not can_have_companions(header):
        return {}
    pairs = pair_companions(dict.fromkeys(header), with_modules=with_modules)
    found = {fqn: pairs[fqn] for fqn, spec in header.items() if fqn in pairs and can_be_scaled(fqn, spec)}
    taken = {name for names in found.values() for name in names}
    # A scale may itself have 8 bits, but it is not a weight and has no companions.
    return {fqn: names for fqn, names in found.items() if fqn not in taken}


def is_marker(fqn: str) -> bool:
    """Return whether a key is the one that marks a file of scaled weights for ComfyUI.

    >>> is_marker("scaled_fp8"), is_marker("model.scaled_fp8"), is_marker("unscaled_fp8")
    (True, True, False)
    """
    return fqn == MARKER or fqn.endswith(f".{MARKER}")


def find_adapter_module(fqn: str) -> str | None:
    """Return the module that an adapter tensor belongs to, or None for any other tensor.

    >>> find_adapter_module("te_layers_0_q.lora_up.weight"), find_adapter_module("m.lora_A.default.weight")
    ('te_layers_0_q', 'm')
    """
    found = _ADAPTER.match(fqn)
    return None if found is None else found["module"]


def find_adapters(header: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Find every alpha of a header and the tensors of its adapter.

    >>> find_adapters(["m.alpha", "m.lora_up.weight", "m.lora_down.weight", "beta.alpha"])
    {'m.alpha': ('m.lora_up.weight', 'm.lora_down.weight')}
    """
    names = list(header)
    alphas = [fqn for fqn in names if fqn.endswith(".alpha")]
    if not alphas:
        return {}
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for fqn in names:
        if (module := find_adapter_module(fqn)) is not None:
            parts[module].append(fqn)
    found = {alpha: tuple(parts.get(alpha.removesuffix(".alpha"), ())) for alpha in alphas}
    return {alpha: tensors for alpha, tensors in found.items() if tensors}
