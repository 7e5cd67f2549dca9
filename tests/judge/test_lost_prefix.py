"""A prefix that keys lack is not proposed where it would give a key that is there."""

from __future__ import annotations

from remapkit.plans.roots import find_lost_prefix
from tests.core.plan_kit import compiled


def test_a_prefix_gives_no_key_that_is_there() -> None:
    rules = compiled("rules: [{id: r, path: 'net.{i:int}.w', to: 'h.{i}'}]")
    assert find_lost_prefix(rules, ["0.w", "net.1.w"], ["0.w"]) == "net."
    assert find_lost_prefix(rules, ["0.w", "net.0.w"], ["0.w"]) is None
