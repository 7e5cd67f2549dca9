"""Count the params of rules in a header; the later parts of a route count in what the earlier ones make of it."""

from __future__ import annotations

from dataclasses import replace

from remapkit.plans.make import make_plan
from remapkit.rules.counted import count_params
from remapkit.rules.model import CompiledRules
from remapkit.tensors.spec import StateDictSpec


def count_along_route(rules: CompiledRules, header: StateDictSpec) -> CompiledRules:
    """Return rules with the params that are counted in a header; the same object if none has another value there."""
    if not rules.after:
        return count_params(rules, header)
    if not any(part.counted for part in rules.parts):
        return rules
    route = count_params(rules.parts[0], header)
    for part in rules.after:
        counted = count_params(part, make_plan(route, header).target)
        route = replace(route, after=(*route.after, counted))
    return replace(route, name=rules.name)
