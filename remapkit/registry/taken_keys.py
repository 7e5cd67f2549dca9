"""Which keys the rules of a pack take, as far as the cache can keep it.

Importing what compiles rules takes longer than everything else that `identify` does. So the cache has the pattern of
each rule as an expression of `re`, where these say all: no pattern depends on the checkpoint (a param that is counted
there), and each reads every key in one way, so that `re` takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remapkit.diagnostics.errors import RemapkitError

if TYPE_CHECKING:
    from remapkit.rulefile.syntax import RuleFile


@dataclass(frozen=True, slots=True)
class TakenKeys:
    """The keys that rules take: `everything`, or those that match one of `patterns`, each with the leaves it allows.

    >>> TakenKeys(False, ((r"h\\.[0-9]+\\.[^.]+", ("w",)),)).select(["h.3.w", "h.3.b", "h.w"])
    {'h.3.w'}
    """

    everything: bool
    patterns: tuple[tuple[str, tuple[str, ...] | None], ...] = ()

    def select(self, fqns: Collection[str]) -> set[str]:
        """Return those keys that the rules take."""
        if self.everything:
            return set(fqns)
        found: set[str] = set()
        for text, leaf in self.patterns:
            matches = re.compile(text).fullmatch
            found |= {fqn for fqn in fqns if matches(fqn) and (leaf is None or fqn.rpartition(".")[2] in leaf)}
        return found

    def dump(self) -> dict[str, Any]:
        """Return them as JSON data."""
        return {"everything": self.everything, "patterns": [[text, leaf] for text, leaf in self.patterns]}

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> TakenKeys:
        """Read JSON data; raises `KeyError`, `TypeError` or `ValueError` for any other."""
        patterns = tuple((str(text), None if leaf is None else tuple(leaf)) for text, leaf in entry["patterns"])
        return cls(bool(entry["everything"]), patterns)


def find_taken(file: RuleFile) -> TakenKeys | None:
    """Return the keys that the rules of a file take in every checkpoint; None if only the rules can say, or none can.

    >>> from remapkit.rulefile.read import read_text
    >>> find_taken(read_text("remapkit: 1\\nname: t\\nkeep: ['h.{n:int}.w']\\n")).select(["h.3.w", "h.03.w"])
    {'h.3.w'}
    """
    from remapkit.patterns.matcher import make_engine
    from remapkit.rules.compile import compile_rules

    try:
        rules = compile_rules(file)
    except RemapkitError:
        return None
    if rules.unmatched != "error":
        return TakenKeys(everything=True)
    if rules.counted and rules.key_params:
        return None
    engines = [(make_engine(rule.pattern), rule.pattern.leaf) for rule in rules.everything]
    patterns = tuple((engine.pattern, leaf) for engine, leaf in engines if isinstance(engine, re.Pattern))
    return TakenKeys(everything=False, patterns=patterns) if len(patterns) == len(engines) else None
