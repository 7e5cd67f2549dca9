"""Fit an adapter (LoRA) to the layouts of the installed packs: by its modules, in the form in which it names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from remapkit.companions.formats import flatten, read_formats
from remapkit.companions.names import can_be_adapter, find_adapter_module
from remapkit.registry.candidates import Candidate
from remapkit.tensors.families import mask_indices, mask_numbers


@dataclass(frozen=True, slots=True)
class AdapterFit:
    """How an adapter fits a layout: `known` of its modules are modules of it, named in a known form."""

    layout: str
    form: str
    modules: int
    known: int


def is_adapter(names: Iterable[str]) -> bool:
    """Return whether most of some names are those of an adapter.

    Alphas and differences (`.diff`, `.diff_b`), whose names other files may have too, do not count.

    >>> is_adapter(["a.lora_up.weight", "a.lora_down.weight", "b.diff", "b.diff_b", "c.diff"])
    True
    """
    fqns = [fqn for fqn in names if not fqn.endswith((".alpha", ".diff", ".diff_b"))]
    if not can_be_adapter(fqns):
        return False
    return 2 * sum(find_adapter_module(fqn) is not None for fqn in fqns) > len(fqns)


def fit_adapter(names: Iterable[str], candidates: Iterable[Candidate]) -> tuple[AdapterFit, ...]:
    """Return the layouts that have most of an adapter's modules, each in the forms in which it has most."""
    found_modules = map(find_adapter_module, names)
    modules = list(dict.fromkeys(module for module in found_modules if module is not None))
    forms = [
        (form, is_flat, Counter((mask_numbers if is_flat else mask_indices)(module[len(prefix) :]) for module in own))
        for form, prefix, is_flat in _list_forms()
        if (own := [module for module in modules if module.startswith(prefix)])
    ]
    known: Counter[tuple[str, str]] = Counter()
    for candidate in candidates:
        bases = {kind.rpartition(".")[0] for kind in candidate.kinds}
        flat = {mask_numbers(flatten(base)) for base in bases}
        for form, is_flat, kinds in forms:
            of_form = candidate.layout, form
            known[of_form] = max(
                known[of_form], sum(kinds[kind] for kind in kinds.keys() & (flat if is_flat else bases))
            )
    most = max(known.values(), default=0)
    best = sorted(of_form for of_form, count in known.items() if count == most > 0)
    return tuple(AdapterFit(layout, form, len(modules), most) for layout, form in best)


def _list_forms() -> list[tuple[str, str, bool]]:
    """Return how files name the modules of an adapter: the format, a prefix, and whether dots are written as `_`."""
    formats = read_formats()
    known = [(formats.titles[each.format], each.text, each.format in formats.flat) for each in formats.prefixes]
    return [*known, ("bare", "", False)]
