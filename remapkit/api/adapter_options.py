"""What callers say about adapters (LoRA), and whether a checkpoint is one: most are none, and import nothing more."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from remapkit.companions.names import find_adapter_module
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UnreadableCheckpoint, UsageError
from remapkit.diagnostics.wording import join_words, suggest_name
from remapkit.formats.reader import Reader
from remapkit.registry.fit_adapters import is_adapter
from remapkit.rules.model import CompiledRules
from remapkit.tensors.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """How adapters are read and written, as users say it.

    `base` is the model: a checkpoint, a manifest, a reference, a header or a module, where the rules declare none.
    `format` is one of `peft`, `diffusers`, `kohya` and `comfy`, by default that of the file. `fold` multiplies alphas
    in. `alpha` is that of all modules, where the file has none. `prefix` chooses among the models of a file.
    """

    base: object = None
    format: str | None = None
    fold: bool = False
    alpha: float | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        """Raise `UsageError` (RK609) for a format that there is not, or an alpha that is no positive number."""
        if self.format is not None and self.format not in (known := _list_formats()):
            title = f"the format of adapters must be {join_words(known, conjunction='or')}, got {self.format!r}"
            help = suggest_name(self.format, known, "leave it out: the result is then named like the input")
            raise UsageError(Diagnostic("RK609", title, help=(help,)))
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            title = f"the alpha of an adapter must be a positive number, got {self.alpha}"
            raise UsageError(Diagnostic("RK609", title, help=("it is `lora_alpha` of adapter_config.json",)))

    @property
    def given(self) -> tuple[str, ...]:
        """The options of the command line that were given and are for adapters alone."""
        options = {"adapter-format": self.format, "fold-alpha": self.fold, "alpha": self.alpha, "base": self.base}
        return tuple(f"--{name}" for name, value in options.items() if value is not None and value is not False)


def _list_formats() -> list[str]:
    from remapkit.companions.formats import read_formats

    return list(read_formats().alphas)


def follows_adapter(rules: CompiledRules, names: StateDictSpec, options: AdapterOptions) -> bool:
    """Return whether rules, written for weights, are applied to an adapter: no rule takes a tensor of it.

    Rules that take every key, and know of no model, take those of an adapter as they are.
    """
    if not is_adapter(names):
        return False
    if options.base is None and rules.file.source_keys is None and rules.unmatched != "error":
        return False
    return not any(rules.match(fqn) for fqn in names if find_adapter_module(fqn) is not None)


def find_prefix(root: str | None) -> str | None:
    """Return the prefix of an adapter's modules that a root names, with or without its last sign; None if it is none.

    >>> find_prefix("lora_te1_"), find_prefix("lora_te1"), find_prefix("transformer"), find_prefix("net")
    ('lora_te1_', 'lora_te1_', 'transformer.', None)
    """
    if not root:
        return root
    from remapkit.companions.formats import read_formats

    known = {each.text for each in read_formats().prefixes}
    return next((each for each in (root, f"{root}.", f"{root}_") if each in known), None)


def open_below(root: str | None, open: Callable[[str | None], Reader]) -> tuple[Reader, str | None]:
    """Open a checkpoint below a root; return an adapter whole, with its prefix, if the root is one of its modules."""
    if (prefix := find_prefix(root)) is not None:
        with suppress(UnreadableCheckpoint):
            reader = open(None if prefix else root)
            if is_adapter(reader.header()):
                return reader, prefix
            reader.close()
    return open(root), None
