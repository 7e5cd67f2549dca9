"""Metadata that quotes keys or modules which the rules change is reported; other metadata is not.

Kinds: names as keys and as values, whole modules and ends of paths, renamed and dropped, entries that are no JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from judge_kit import rules_of

from remapkit.plans.make import make_plan
from remapkit.plans.stale_metadata import report_stale_names
from remapkit.tensors.spec import StateDictSpec, TensorSpec

RULES = "rules: [{id: r, path: 'a.q.{x}', to: 'a.query.{x}'}]\nkeep: ['b.{rest:**}']\ndrop: ['c.{rest:**}']"
SPEC = TensorSpec("F32", (1,))
HEADER = dict.fromkeys(("a.q.weight", "b.k.weight", "c.v.weight"), SPEC)


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"_quantization_metadata": json.dumps({"layers": {"a.q": {"format": "float8"}}})}, ["a.q"]),
        ({"_quantization_metadata": json.dumps({"layers": {"b.k": {}}})}, []),
        ({"_quantization_metadata": json.dumps({"layers": {"c.v": {}}})}, ["c.v"]),
        ({"lora_adapter_metadata": json.dumps({"transformer.target_modules": ["q", "k"]})}, ["q"]),
        ({"x": json.dumps(["a.q.weight", "q"])}, ["a.q.weight"]),
        ({"format": "pt", "x": "{", "y": "a.q.weight", "z": "[" * 5000}, []),
    ],
    ids=["A34-layers", "kept", "dropped", "A34-lora", "whole", "no JSON"],
)
def test_names_that_would_be_gone_are_reported(metadata: dict[str, str], names: list[str]) -> None:
    plan = make_plan(rules_of(RULES), StateDictSpec(HEADER, metadata=metadata))
    found = [each for each in plan.warnings if each.code == "RK369"]
    assert [name for each in found for name in each.values["names"]] == names
    assert plan.ok


def test_a_name_of_a_thousand_segments_costs_no_more_than_its_length(
    work: Callable[[Callable[[], object]], int],
) -> None:
    """All stretches of such a name are half a million; none is made."""
    quoted = {"ignore": json.dumps({"ignore": ["q"]})}

    def cost(segments: int) -> int:
        name = ".".join(["s"] * segments)
        header = StateDictSpec({**HEADER, name: SPEC}, metadata=quoted)
        plan = make_plan(rules_of(RULES + "\nunmatched: keep"), header)
        return work(lambda: report_stale_names(header, plan.moves))

    assert cost(1000) <= 2 * cost(30)
