"""Scaled weights and adapters through every operation, drop and renaming: what a header shows is judged.

Kinds: the spellings of scales; each operation on a weight and on its scale; a scale that is dropped by name or as
unmatched, that goes astray, or comes from another weight; casts with the scales kept; alphas dropped or led apart;
files without companions, and scales of activations, which nothing is said about. The property draws headers and
rules at random and holds that what passes means what it meant.
"""

# ruff: noqa: E501 (tables of rules read as tables)
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_kit import Header, codes, plan_of, rules_of, specs

from remapkit.api.ruleset import Plan
from remapkit.companions.names import find_scaled_weights
from remapkit.diagnostics.diagnostic import Severity
from remapkit.diagnostics.errors import FailedCheck
from remapkit.plans import companions as judge
from remapkit.plans.cast import cast_plan

F8: tuple[str, list[int]] = ("F8_E4M3", [256, 384])
ONE: tuple[str, list[int]] = ("F32", [])
SCALED: Header = {"m.weight": F8, "m.weight_scale": ONE}
REST = "keep: ['{rest:**}']"


def on_weight(op: str) -> str:
    return f"rules: [{{id: w, path: m.weight, ops: [{op}], to: m.weight}}]\nkeep: [m.weight_scale]"


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        ("m.weight", "m.weight_scale"),
        ("m.weight", "m.weight_scale_inv"),
        ("m.weight", "m.weight_scale_2"),
        ("m.weight", "m.scale_weight"),
        ("m.weight", "m.scale"),
        ("m.weight", "m.scales"),
        ("m.weight", "m.weight.absmax"),
        ("m.weight", "m.weight.quant_state.bitsandbytes__nf4"),
        ("m.weight", "m.SCB"),
        ("experts.w1", "experts.w1_scale"),
        ("m.weight_packed", "m.weight_scale"),
        ("e.up_blocks", "e.up_scales"),
        ("weight", "weight_scale"),
    ],
)
def test_a_dropped_companion_is_named(weight: str, scale: str) -> None:
    plan = plan_of(f"keep: [{weight}]\ndrop: [{scale}]", {weight: F8, scale: ONE})
    assert codes(plan) == ["RK366"]
    assert scale in plan.problems[0].notes[0] and weight in plan.problems[0].notes[0]
    assert codes(plan_of(f"keep: [{weight}]\nunmatched: drop", {weight: F8, scale: ONE})) == ["RK366"]
    assert codes(plan_of(f"keep: [{scale}]\ndrop: [{weight}]", {weight: F8, scale: ONE})) == []


@pytest.mark.parametrize(
    "header",
    [
        {"m.weight": F8, "m.input_scale": ONE},
        {"m.weight": F8, "m.scale_input": ONE},
        {"m.weight": ("BF16", [4, 4]), "m.weight_scale": ONE},
        {"m.weight": F8, "n.weight_scale": ONE},
    ],
)
def test_what_belongs_to_no_scaled_weight_may_be_dropped(header: Header) -> None:
    assert (
        codes(plan_of("rules: [{id: w, path: m.weight, ops: [{cast: BF16}], to: m.weight}]\nunmatched: drop", header))
        == []
    )


# row, rules, header, codes of problems, codes of warnings
CASES: list[tuple[str, str, Header, list[str], list[str]]] = [
    ("A6-dropped", "rules: [{id: w, path: m.weight, ops: [{cast: BF16}], to: m.weight}]\ndrop: [m.weight_scale]", SCALED, ["RK366"], []),
    ("A6-aside", on_weight("{cast: BF16}"), SCALED, [], ["RK365"]),
    ("A6-none", "rules: [{id: w, path: m.weight, ops: [{cast: BF16}], to: m.weight}]", {"m.weight": F8}, [], []),
    ("A6b-drop", "keep: [m.weight]\ndrop: [m.weight_scale]", SCALED, ["RK366"], []),
    (
        "A6b-concat",
        "rules: [{id: w, concat: {dim: 0, from: [a.weight, b.weight]}, to: c.weight}]\nunmatched: drop",
        {"a.weight": F8, "b.weight": F8, "a.scale_weight": ONE, "b.scale_weight": ONE},
        ["RK362"],
        [],
    ),
    (
        "A6b-transpose",
        "rules: [{id: w, path: m.weight, ops: [transpose], to: m.weight}]\nkeep: [m.weight_scale_inv]",
        {"m.weight": F8, "m.weight_scale_inv": ("F32", [2, 3])},
        ["RK362"],
        [],
    ),
    (
        "A7",
        "rules: [{id: w, path: m.weight, split: {dim: 0, sizes: [320, 320], into: [q.weight, k.weight]}},"
        " {id: s, path: m.weight_scale_inv, split: {dim: 0, sizes: [3, 2], into: [q.weight_scale_inv, k.weight_scale_inv]}}]",
        {"m.weight": ("F8_E4M3", [640, 256]), "m.weight_scale_inv": ("F32", [5, 2])},
        ["RK362"],
        [],
    ),
    ("scale-of-scale", "rules: [{id: s, path: m.weight_scale, ops: [{scale: 2}], to: m.weight_scale}]\nkeep: [m.weight]", SCALED, ["RK363"], []),
    ("exact-scale", "rules: [{id: s, path: m.weight_scale, ops: [{cast: F64}], to: m.weight_scale}]\nkeep: [m.weight]", SCALED, [], []),
    ("apart", "rules: [{id: w, path: m.weight, to: a.weight}, {id: s, path: m.weight_scale, to: b.scale_weight}]", SCALED, ["RK364"], []),
    ("spelt-anew", "rules: [{id: w, path: m.weight, to: a.weight}, {id: s, path: m.weight_scale, to: a.scale_weight}]", SCALED, [], []),
    (
        "swapped",
        "rules: [{id: w, path: 'a.{x:weight|bias}', to: 'c.{x}'}, {id: s, path: 'b.weight_scale', to: 'c.weight_scale'},"
        " {id: v, path: 'b.weight', to: 'd.weight'}, {id: t, path: a.weight_scale, to: d.weight_scale}]",
        {"a.weight": F8, "b.weight": F8, "a.weight_scale": ONE, "b.weight_scale": ONE},
        ["RK364", "RK364", "RK364", "RK364"],
        [],
    ),
    (
        "another's",
        "rules: [{id: s, path: a.weight_scale, to: b.weight_scale}]\nkeep: [b.weight]\ndrop: [a.weight]",
        {"a.weight": F8, "b.weight": F8, "a.weight_scale": ONE},
        ["RK364"],
        [],
    ),
    ("neutral", "keep: [m.weight]\ndrop: [{path: m.weight_scale, neutral: true}]", SCALED, [], ["RK367"]),
    (
        "A38",
        "rules: [{id: u, path: '{m:**}.lora_up.weight', ops: [{scale: 0.5}], to: '{m}.lora_up.weight'}]\n"
        "keep: ['{m:**}.lora_down.weight']\ndrop: ['{m:**}.alpha']",
        {"m.lora_up.weight": ("F32", [8, 4]), "m.lora_down.weight": ("F32", [4, 8]), "m.alpha": ONE},
        ["RK366"],
        [],
    ),
    (
        "A38-AB",
        "keep: ['{m:**}.weight']\ndrop: ['{m:**}.alpha']",
        {"m.lora_B.weight": ("F32", [8, 4]), "m.lora_A.weight": ("F32", [4, 8]), "m.alpha": ONE},
        ["RK366"],
        [],
    ),
    (
        "A38-neutral",
        "keep: ['{m:**}.weight']\ndrop: [{path: '{m:**}.alpha', neutral: true}]",
        {"m.lora_B.weight": ("F32", [8, 4]), "m.alpha": ONE},
        [],
        ["RK367"],
    ),
    (
        "alpha-apart",
        "rules: [{id: r, path: 'm.{x:**}', to: 'n.{x}', where: {x: [lora_up.weight]}}]\nkeep: [m.alpha]",
        {"m.lora_up.weight": ("F32", [8, 4]), "m.alpha": ONE},
        ["RK364"],
        [],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "body", "header", "wanted", "look"), CASES, ids=[each[0] for each in CASES])
def test_moves_of_scaled_weights_and_adapters(
    row: str, body: str, header: Header, wanted: list[str], look: list[str]
) -> None:
    plan = plan_of(body, header)
    assert codes(plan) == wanted, plan.problems
    assert [each.code for each in plan.warnings if each.code in ("RK365", "RK367")] == look


@pytest.mark.parametrize(
    "op",
    ["transpose", "{reshape: [384, 256]}", "{slice: {dim: 0, start: 0, stop: 128}}", "{unsqueeze: 0}", "flip_halves"],
)
def test_every_other_operation_on_a_scaled_weight_is_refused_by_name(op: str) -> None:
    plan = plan_of(on_weight(op), {"m.weight": F8, "m.weight_scale": ("F32", [256, 1])})
    assert codes(plan) == ["RK362"]
    assert op.strip("{").partition(":")[0] in plan.problems[0].title


def test_a_state_dict_in_memory_is_judged_too() -> None:
    rules = rules_of("keep: ['{m}.weight']\ndrop: ['{m}.weight_scale']")
    state = {"m.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn), "m.weight_scale": torch.ones(())}
    with pytest.raises(FailedCheck, match="RK366"):
        rules(state)
    assert list(rules({**state, "m.weight": torch.zeros(4, 4)})) == ["m.weight"]


def test_a_cast_of_everything_proposes_no_cast_where_there_are_scales() -> None:
    cast = cast_plan(plan_of(REST, SCALED), "bf16")
    (problem,) = cast.problems
    assert problem.code == "RK346" and "ops:" not in problem.help[0]
    (problem,) = cast_plan(plan_of(REST, {"m.weight": F8}), "bf16").problems
    assert problem.code == "RK346" and "ops:" in problem.help[0]
    packed: Header = {"m.weight": ("I8", [4, 4]), "m.weight_scale": ONE}
    assert [each.code for each in cast_plan(plan_of(REST, packed), "bf16").problems] == ["RK346"]


# -------------------------------------------------------------------------------------------------- the property

FATES = ("keep", "drop", "apart", "cast", "transpose", "double", "other")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Header, str]:
    """Modules with weights, scales and biases, and one fate for each tensor."""
    header: dict[str, tuple[str, list[int]]] = {}
    rules, drops, keeps = [], [], []
    for m in "ab":
        dtype = draw(st.sampled_from(["F8_E4M3", "BF16"]))
        scale = draw(st.sampled_from([None, "weight_scale", "scale_weight", "weight_scale_inv", "input_scale"]))
        header[f"{m}.weight"] = (dtype, [4, 4])
        if scale is not None:
            header[f"{m}.{scale}"] = ("F32", draw(st.sampled_from([[], [2, 2]])))
    for number, fqn in enumerate(header):
        m, _, leaf = fqn.partition(".")
        fate = draw(st.sampled_from(FATES))
        to = {"apart": f"c{number}.{leaf}", "other": f"{'b' if m == 'a' else 'a'}.{leaf}"}.get(fate, fqn)
        op = {"cast": "{cast: BF16}", "transpose": "transpose", "double": "{scale: 2}"}.get(fate)
        if fate == "drop":
            drops.append(fqn)
        elif fate == "keep":
            keeps.append(fqn)
        else:
            rules.append(f"{{id: r{number}, path: {fqn}, to: {to}" + (f", ops: [{op}]" if op else "") + "}")
    return header, f"rules: [{', '.join(rules)}]\nkeep: [{', '.join(keeps)}]\ndrop: [{', '.join(drops)}]"


def changes_meaning(plan: Plan) -> bool:
    """An oracle of its own: whether any weight that is kept has another scale than before, going by whole names."""

    def scales(names: object, weight: str) -> set[str]:
        m = weight.partition(".")[0]
        return {f"{m}.{leaf}" for leaf in ("weight_scale", "scale_weight", "weight_scale_inv")} & set(names)  # type: ignore[call-overload]

    by_target = {move.target: move for move in plan.moves}
    for move in plan.moves:
        (weight,) = move.sources
        if not weight.endswith(".weight") or plan.source[weight].dtype != "F8_E4M3":
            continue
        before, after = scales(plan.source, weight), scales(by_target, move.target)
        is_one = all(plan.source[each].numel == 1 for each in before)
        allowed = {"cast", "transpose"} if is_one else {"cast"}  # one number is for all elements, wherever they are
        if before and any(op.name not in allowed for op in move.ops):
            return True
        if {by_target[each].sources[0] for each in after} != before:
            return True
        exact = [
            op.name == "cast" and getattr(op, "dtype", "") == "F32" for each in after for op in by_target[each].ops
        ]
        if not all(exact):
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_what_passes_means_what_it_meant(world: tuple[Header, str]) -> None:
    header, body = world
    plan = plan_of(body, header)
    if plan.ok:
        assert not changes_meaning(plan), (header, body)


@pytest.mark.parametrize("method", ["_judge_companion", "_judge_dropped", "_judge_strangers", "_judge_weight"])
def test_each_judge_is_needed(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted faults: without any one of them the property fails on one of these."""
    monkeypatch.setattr(judge._Judge, method, lambda *_: None)
    passed = []
    for _, body, header, _, _ in CASES:
        if all(len(spec[1]) < 3 and not fqn.startswith("m.lora") for fqn, spec in header.items()):
            plan = plan_of(body, header)
            passed += [plan] if plan.ok and all(len(move.sources) == 1 for move in plan.moves) else []
    astray = plan_of("rules: [{id: s, path: a.weight_scale, to: b.weight_scale}]\nkeep: [b.weight]\ndrop: [a.weight]",
        {"a.weight": F8, "b.weight": F8, "a.weight_scale": ONE})  # fmt: skip
    passed += [astray] if astray.ok else []
    assert any(changes_meaning(plan) for plan in passed if not _neutral(plan))


def _neutral(plan: Plan) -> bool:
    return any(each.code == "RK367" for each in plan.warnings)


def test_the_notes_are_no_errors() -> None:
    plan = plan_of(on_weight("{cast: BF16}"), SCALED)
    assert [each.severity for each in plan.warnings if each.code == "RK365"] == [Severity.WARNING]
    assert find_scaled_weights(specs(SCALED)) == {"m.weight": ("m.weight_scale",)}
