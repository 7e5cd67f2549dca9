"""Base + adapter in the source layout, and converted base + converted adapter, have the same effective weights."""

from __future__ import annotations

import re

import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.adapters.build import Options
from remapkit.adapters.derive import UNKNOWN_ORDER
from remapkit.diagnostics.errors import FailedCheck, RemapkitError
from remapkit.ops.calls import FORMS
from tests.adapters import random_rules
from tests.adapters import value_kit as kit

CLOSE = 1e-6
"""Of the largest weight: factors are rounded to the adapter's F32, everything else is exact."""
REFUSALS = re.compile(
    r"cannot follow: (the result (mixes|is a stack, but not of matrices|is not a matrix)"
    r"|.* mixes the rows and the columns|.* along a dimension that has rows and columns"
    r"|.* along a dimension of size 1 that the weight did not have"
    r"|it (joins stacks|stacks convolutions|concatenates columns and stacks)"
    r"|PEFT has no matrices for a stack)"
)
"""Why updates of a low rank cannot follow operations; RK726: an alpha is not known; RK729: nothing would be left."""


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_both_ways_have_the_same_effective_weights(data: st.DataObject) -> None:
    case = data.draw(random_rules.cases())
    try:
        rules = remapkit.loads(case.text)
        weights = {key: torch.randn(shape) for key, shape in case.weights.items()}
        rules(weights)
    except RemapkitError:
        assume(False)
    lora = data.draw(kit.adapters(case))
    options = Options(
        data.draw(st.sampled_from([None, *random_rules.STYLES])), data.draw(st.booleans()), lora.read_config()
    )
    try:
        built, made = kit.build(rules, weights, lora, options, known=data.draw(st.booleans()))
    except FailedCheck as error:
        event("refused")
        if any(UNKNOWN_ORDER in each.title for each in error.diagnostics):
            assert options.format == "peft" != case.style  # only PEFT's files show which layers store [IN, OUT]
            return
        for each in error.diagnostics:
            assert each.code in ("RK726", "RK729") or (each.code == "RK723" and REFUSALS.search(each.title)), error
        if {each.code for each in error.diagnostics} == {"RK723"} and case.is_generic:
            assert kit.needs_refusal(rules, weights, lora), error
        return
    event(f"converted: {case.style} -> {built.style.format}")
    assert kit.find_error(rules, weights, lora, built, made) <= CLOSE


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_magnitudes_differences_and_biases_follow_the_rows(data: st.DataObject) -> None:
    case = data.draw(random_rules.row_cases())
    rules = remapkit.loads(case.text)
    weights = {key: torch.randn(shape) for key, shape in case.weights.items()}
    lora = data.draw(kit.adapters(case))
    to = data.draw(st.sampled_from([None, random_rules.BESIDE[case.style]]))
    options = Options(to, data.draw(st.booleans()), lora.read_config())
    try:
        built, made = kit.build(rules, weights, lora, options)
    except FailedCheck as error:
        codes = {each.code for each in error.diagnostics}
        repeats = "index" in case.rule and any("magnitude" in parts for parts in case.parts.values())
        assert codes == {"RK726"} or "bias of the layer of up" in str(error) or repeats, error
        return
    assert kit.find_error(rules, weights, lora, built, made) <= CLOSE


def test_every_operation_is_drawn() -> None:
    assert set(random_rules.OPS) == set(FORMS)
