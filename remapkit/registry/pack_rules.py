"""Asks packs which keys they take: the cache where it knows, else their rules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import RemapkitError
from remapkit.registry.layouts import PackLayouts

if TYPE_CHECKING:
    from remapkit.rules.model import CompiledRules

MAX_COMPILED = 12
"""The most times that rules are compiled for one checkpoint."""


class PackRules:
    """The rules of packs, for one checkpoint: they are compiled once, and again with what is counted in its keys.

    `broken` are the packs whose rules cannot be compiled, with the first problem of each.
    """

    def __init__(self) -> None:
        self.broken: dict[str, Diagnostic] = {}
        self._compiled: dict[tuple[Path, frozenset[str] | None], CompiledRules | None] = {}

    def select_taken(self, pack: PackLayouts, fqns: Collection[str], keys: Iterable[str]) -> set[str] | None:
        """Return those of some keys that the rules of a pack take in a checkpoint that has `keys`.

        None if its rules cannot be compiled, or if rules were compiled `MAX_COMPILED` times.
        """
        if pack.taken is not None:
            return pack.taken.select(fqns)
        from remapkit.registry.load import load_rules
        from remapkit.rules.counted import count_params

        rules = plain = self._compile_once(pack, None, lambda: load_rules(pack.path))
        if plain is not None and plain.counted:
            here = frozenset(keys)
            rules = self._compile_once(pack, here, lambda: count_params(plain, here))
        if rules is None:
            return None
        return set(fqns) if rules.unmatched != "error" else {fqn for fqn in fqns if rules.match(fqn)}

    def _compile_once(
        self, pack: PackLayouts, keys: frozenset[str] | None, compile: Callable[[], CompiledRules]
    ) -> CompiledRules | None:
        of_pack = pack.path, keys
        if of_pack not in self._compiled:
            if len(self._compiled) == MAX_COMPILED:
                return None
            try:
                self._compiled[of_pack] = compile()
            except RemapkitError as error:
                self._compiled[of_pack] = None
                self.broken[pack.pack] = error.diagnostics[0]
        return self._compiled[of_pack]
