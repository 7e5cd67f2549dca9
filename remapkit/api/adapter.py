"""Rules for the adapters of a model, derived from the rules of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from remapkit.adapters.alphas import CONFIG, PeftConfig
from remapkit.adapters.build import AdapterRules, Options, build_adapter
from remapkit.companions.formats import read_formats
from remapkit.companions.names import find_adapter_module
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import join_words, suggest_name
from remapkit.formats.options import ReadOptions
from remapkit.formats.reader import Reader
from remapkit.models.target import header as read_header
from remapkit.registry.fit_adapters import is_adapter
from remapkit.rulefile.read import read_text
from remapkit.rules.chain import chain_rules
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.sources.declared import read_declared_source
from remapkit.sources.open import open_source
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """How adapters are read and written, as users say it.

    `base` is the model: a checkpoint, a manifest, a header or a module, where the rules declare none. `format` is one
    of `peft`, `diffusers`, `kohya` and `comfy`, by default that of the file. `fold` multiplies alphas in. `alpha` is
    that of all modules, where the file has none. `prefix` chooses among the models of a file.
    """

    base: object = None
    format: str | None = None
    fold: bool = False
    alpha: float | None = None
    prefix: str | None = None

    def check(self) -> None:
        """Raise `UsageError` (RK609) for a format that there is not, or an alpha that is no positive number."""
        known = list(read_formats().alphas)
        if self.format is not None and self.format not in known:
            title = f"the format of adapters must be {join_words(known, conjunction='or')}, got {self.format!r}"
            help = suggest_name(self.format, known, "leave it out: the result is then named like the input")
            raise UsageError(Diagnostic("RK609", title, help=(help,)))
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            title = f"the alpha of an adapter must be a positive number, got {self.alpha}"
            raise UsageError(Diagnostic("RK609", title, help=("it is `lora_alpha` of adapter_config.json",)))


@dataclass(frozen=True, slots=True)
class DerivedRules:
    """Compiled rules of an adapter, and what they were built of."""

    rules: CompiledRules
    built: AdapterRules


def derive_rules(
    rules: CompiledRules, source: StateDictSpec, options: AdapterOptions, reader: Reader | None = None
) -> DerivedRules:
    """Return the rules of an adapter with this header; `reader`, if there is one, tells the numbers in alphas.

    Raises `UsageError`: RK730 if the model is not known, and what `build_adapter` raises.
    """
    options.check()
    base = read_declared_source(rules.file) if options.base is None else read_header(options.base)
    if base is None:
        title = f"{rules.name} declares no manifest of its source, so the modules of the model are not known"
        raise UsageError(Diagnostic("RK730", title, help=("name the model: --base MODEL",)))
    config = _find_config(reader)
    wanted = Options(options.format, options.fold, config, options.alpha, options.prefix)
    built = build_adapter(rules, base, source, wanted, make_number_reader(reader))
    parts = [compile_rules(read_text(text, f"the adapter of {rules.name}")) for text in built.texts]
    return DerivedRules(reduce(chain_rules, parts), built)


def derive_source(rules: CompiledRules, source: object, options: AdapterOptions) -> DerivedRules:
    """Return the rules of an adapter: a checkpoint, whose alphas are read, or a header."""
    if isinstance(source, str | Path):
        with open_source(source, ReadOptions()) as reader:
            return derive_rules(rules, reader.header(), options, reader)
    return derive_rules(rules, read_header(source), options)


def follows_adapter(rules: CompiledRules, names: StateDictSpec, options: AdapterOptions) -> bool:
    """Return whether rules, written for weights, are applied to an adapter: no rule takes a tensor of it."""
    if not is_adapter(names) or (options.base is None and rules.file.source_keys is None):
        return False
    return not any(rules.match(fqn) for fqn in names if find_adapter_module(fqn) is not None)


def find_config(reader: Reader) -> Path | None:
    """Return the path of the config beside the weights of a PEFT adapter, if there is one."""
    path = getattr(reader, "path", None)
    if not isinstance(path, Path):
        return None
    beside = (path if path.is_dir() else path.parent) / CONFIG
    return beside if beside.is_file() else None


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
