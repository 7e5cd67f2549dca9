"""Finds where rules stopped reading a key, and the rule that came nearest to matching it."""

from __future__ import annotations

from collections.abc import Iterable

from remapkit.patterns.stopping import Stop
from remapkit.rules.model import Rule


def list_stops(rules: Iterable[Rule], fqn: str) -> list[tuple[Rule, Stop]]:
    """Every rule that does not match a key, and where it stopped, in the order of the rules."""
    return [(rule, stop) for rule in rules if (stop := rule.find_stop(fqn)) is not None]


def find_nearest_rule(rules: Iterable[Rule], fqn: str) -> tuple[Rule, Stop] | None:
    """The rule that read furthest into a key, the first of several; None where none could read a character.

    >>> from remapkit.rulefile.read import read_text
    >>> from remapkit.rules.compile import compile_rules
    >>> text = "remapkit: 1\\nname: t\\nrules: [{id: r, path: 'layers.{n:int}.q', to: 'h.{n}.query'}]\\n"
    >>> rule, stop = find_nearest_rule(compile_rules(read_text(text)).everything, "layers.3.k")
    >>> rule.id, stop.offset, stop.reason
    ('r', 9, "expected 'q', found 'k'")
    """
    nearest = max(list_stops(rules, fqn), key=lambda stopped: stopped[1].offset, default=None)
    return nearest if nearest is not None and nearest[1].offset else None
