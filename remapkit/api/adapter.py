"""Rules for the adapters of a model, derived from the rules of its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from remapkit.adapters.alphas import CONFIG, METADATA, PeftConfig
from remapkit.adapters.build import AdapterRules, Options, build_adapter
from remapkit.api.adapter_options import AdapterOptions
from remapkit.api.identify import identify_header
from remapkit.companions.formats import read_formats
from remapkit.companions.names import find_adapter_module
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import InvalidRules, UsageError
from remapkit.diagnostics.wording import join_words
from remapkit.formats.options import ReadOptions
from remapkit.formats.reader import Reader
from remapkit.models.target import TargetRef, read_target_header
from remapkit.models.target import header as read_header
from remapkit.plans.count import count_along_route
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.roots import settle_root, take_root
from remapkit.registry.layouts import list_layouts
from remapkit.rulefile.read import read_text
from remapkit.rules.chain import chain_rules
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.sources.declared import read_declared_source
from remapkit.sources.mounts import is_path_mapping
from remapkit.sources.open import open_source
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class DerivedRules:
    """Compiled rules of an adapter, and what they were built of."""

    rules: CompiledRules
    built: AdapterRules


def derive_rules(
    rules: CompiledRules,
    base: StateDictSpec,
    source: StateDictSpec,
    options: AdapterOptions,
    reader: Reader | None = None,
) -> DerivedRules:
    """Return the rules of an adapter with this header; `reader`, if there is one, tells the numbers in alphas.

    Raises what `build_adapter` raises, with the layout that the adapter is for if it is for another model.
    """
    config = _find_config(reader) if _has_peft_names(source) else None
    wanted = Options(options.format, options.fold, config, options.alpha, options.prefix)
    try:
        built = build_adapter(rules, base, source, wanted, make_number_reader(reader))
    except UsageError as error:
        raise name_layout(error, source, rules.name) from None
    if options.alpha is not None:
        _refuse_second_alpha(built, config)
    parts = [compile_rules(read_text(text, f"the adapter of {rules.name}")) for text in built.texts]
    return DerivedRules(reduce(chain_rules, parts), built)


def derive_source(rules: CompiledRules, source: object, options: AdapterOptions) -> DerivedRules:
    """Return the rules of an adapter: a checkpoint, whose alphas are read, or a header.

    Raises `UsageError`: RK730 if the model is not known, and what `derive_rules` raises.
    """
    base = read_base(rules, options)
    rules = count_along_route(rules, base)
    if isinstance(source, str | Path | list | tuple) or is_path_mapping(source):
        with open_source(source, ReadOptions()) as reader:
            return derive_rules(rules, base, reader.header(), options, reader)
    opened: Any = source if hasattr(source, "chunks") else None  # a reader
    return derive_rules(rules, base, read_header(source), options, opened)


def read_base(rules: CompiledRules, options: AdapterOptions, reading: ReadOptions | None = None) -> StateDictSpec:
    """Return the header of the model that adapters are for: the named one, else the declared source of the rules.

    The weights of a checkpoint may be under a root. Raises `UsageError` (RK730) if there is neither.
    """
    named = options.base
    if named is None:
        if (known := read_declared_source(rules.file)) is not None:
            return known
        title = f"{rules.name} declares no manifest of its source, so the modules of the model are not known"
        help = ("name the model: --base MODEL, a checkpoint, a manifest or plugin.module:Class",)
        raise UsageError(Diagnostic("RK730", title, help=help))
    if isinstance(named, str) and ":" in named and not Path(named).exists():
        return read_target_header(TargetRef(named))
    if not isinstance(named, str | Path):
        return read_header(named)

    def plan(reader: Reader) -> tuple[CompiledRules, ResolvedPlan]:
        return rules, make_plan(rules, reader.header())

    own = ReadOptions() if reading is None else replace(reading, root=None, strip=())
    with open_source(named, own, rules=rules.file) as opened:
        found, _ = settle_root(None, rules, opened, opened.header(), plan, take_root, partial=True)
        return found.header()


# ------------------------------------------------------------------------------------------------ what goes wrong


def name_layout(
    error: UsageError, names: StateDictSpec, rules: str = "", *, option: str = "--base MODEL"
) -> UsageError:
    """Return the error about an adapter with no module of the model (RK720), with the layout that it is for.

    `option` is what names another model.
    """
    first, *others = error.diagnostics
    found = {each.layout for each in identify_header(names).adapters} if first.code == "RK720" else set()
    readers = {layout.name: layout.read_by for layout in list_layouts()}
    found = {layout for layout in found if rules not in readers.get(layout, ())}
    if not found:
        return error
    known = [f"it is an adapter of {layout}{_name_readers(readers.get(layout, ()))}" for layout in sorted(found)]
    return UsageError([replace(first, help=(*known, f"or name the model that it is for: {option}")), *others])


def _name_readers(packs: Sequence[str]) -> str:
    if not packs:
        return ""
    return f", which the pack {packs[0]} reads" if len(packs) == 1 else f", which {join_words(packs, 3)} read"


def name_way_back(error: InvalidRules, rules: CompiledRules) -> InvalidRules:
    """Return the error about rules without an inverse, with what leads back if they were derived for an adapter."""
    if rules.file.path is not None or not rules.name.endswith((".adapter", ".alphas")):
        return error
    weights = rules.name.rpartition(".")[0]
    way = (
        f"the way back follows from the inverse of {weights}: apply that to the adapter (`remapkit invert {weights}`)"
    )
    first, *others = error.diagnostics
    return InvalidRules([replace(first, help=(*first.help, way)), *others])


def _refuse_second_alpha(built: AdapterRules, config: PeftConfig | None) -> None:
    """Raise `UsageError` (RK609) if an alpha was given for an adapter that has its own."""
    adapter = built.adapter
    own = [module.tensors["alpha"] for module in adapter.modules if "alpha" in module.tensors]
    where = own[0] if own else CONFIG if config is not None else None
    if where is None and adapter.style.format == "diffusers" and METADATA in adapter.header.metadata:
        where = f"the metadata entry `{METADATA}`"
    if where is not None:
        title = f"--alpha is for adapters without alphas, and this one has them: {where}"
        help = ("leave it out; --fold-alpha multiplies the adapter's own alphas in",)
        raise UsageError(Diagnostic("RK609", title, help=help, place=built.adapter.header.name))


# ------------------------------------------------------------------------------------------------ numbers


def find_config(reader: Reader) -> Path | None:
    """Return the path of the config beside the weights of a PEFT adapter, if there is one."""
    path = getattr(reader, "path", None)
    if not isinstance(path, Path):
        return None
    beside = (path if path.is_dir() else path.parent) / CONFIG
    return beside if beside.is_file() else None


def _has_peft_names(names: StateDictSpec) -> bool:
    """Return whether tensors are named as PEFT names them: a config beside any other file is none of its own."""
    prefixes = read_formats().prefixes
    for fqn in names:
        if find_adapter_module(fqn) is not None and ("lora_A" in fqn or "lora_B" in fqn):
            prefix = next((each for each in prefixes if fqn.startswith(each.text)), None)
            return prefix is None or prefix.format == "peft"
    return False


def _find_config(reader: Reader | None) -> PeftConfig | None:
    path = None if reader is None else find_config(reader)
    return None if path is None else PeftConfig.read(path)


def make_number_reader(reader: Reader | None) -> Callable[[str], float | None]:
    """Return what reads the number that a tensor holds; it returns None where there are no values."""

    def read(fqn: str) -> float | None:
        if reader is None or reader.format == "manifest" or reader.header()[fqn].numel != 1:
            return None
        from remapkit.adapters.numbers import decode_number

        return decode_number(b"".join(bytes(chunk) for chunk in reader.chunks(fqn)), reader.header()[fqn])

    return read
