"""Chain compiled rules: what one rule file writes is what the next one reads."""

from __future__ import annotations

from dataclasses import replace

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import join_words
from remapkit.rules.model import CompiledRules


def chain_rules(first: CompiledRules, second: CompiledRules) -> CompiledRules:
    """Return the rules that do what `first` and then `second` do; each may be a route.

    Raises `UsageError` (RK666) if both name the layout between them, and no name is common.
    """
    written = [name.value for name in first.last.file.target_layout]
    read = [name.value for name in second.file.source_layout]
    if written and read and not set(written) & set(read):
        title = f"{first.name} writes {written[0]}, but {second.name} reads {read[0]}"
        help = "chain rules of which each reads the layout that the one before writes"
        common = set(written) & {name.value for name in second.last.file.target_layout}
        if common:
            help = f"both write {join_words(sorted(common))}: take the inverse of one, `RuleSet.inverse()`"
        raise UsageError(Diagnostic("RK666", title, help=(help,)))
    return replace(first, name=f"{first.name} then {second.name}", after=(*first.after, *second.parts))
