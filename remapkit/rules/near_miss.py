"""Find where rules stopped matching a key, and which rule came closest to matching it."""

from __future__ import annotations

from collections.abc import Iterable

from remapkit.patterns.stopping import Stop
from remapkit.rules.model import Rule


def list_stops(rules: Iterable[Rule], fqn: str) -> list[tuple[Rule, Stop]]:
    """Return every rule that does not match a key and where it stopped, in rule order."""
    return [(rule, stop) for rule in rules if (stop := rule.find_stop(fqn)) is not None]


def find_nearest_rule(rules: Iterable[Rule], fqn: str) -> tuple[Rule, Stop] | None:
    """Return the rule that matched the longest prefix of a key (the first if tied); None if none matched anything.

    >>> from remapkit.rulefile.read import read_text
    >>> from remapkit.rules.compile import compile_rules
    >>> text = "remapkit: 1\\nname: t\\nrules: [{id: r, path: 'layers.{n:int}.q', to: 'h.{n}.query'}]\\n"
    >>> rule, stop = find_nearest_rule(compile_rules(read_text(text)).everything, "layers.3.k")
    >>> rule.id, stop.offset, stop.reason
    ('r', 9, "expected 'q', found 'k'")
    """
    nearest = max(list_stops(rules, fqn), key=lambda stopped: stopped[1].offset, default=None)
    return nearest if nearest is not None and nearest[1].offset else None
