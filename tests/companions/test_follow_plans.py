"""Plans with companions that no rule takes: what follows, what is refused and why, and where block sizes are from."""

# ruff: noqa: E501 (tables of rules read as tables)
from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import remapkit
from remapkit.api.ruleset import Plan
from remapkit.cli.app import main
from remapkit.companions.names import _list_kinds, list_owners, read_kind, spell_kind
from remapkit.plans.roots import find_roots
from remapkit.tensors.spec import StateDictSpec

Header = dict[str, tuple[str, list[int]]]
F8: tuple[str, list[int]] = ("F8_E4M3", [640, 256])
ONE: tuple[str, list[int]] = ("F32", [])
BLOCKS: Header = {"m.weight": F8, "m.weight_scale_inv": ("F32", [5, 2])}
CONFIG: dict[str, Any] = {"quantization_config": {"weight_block_size": [128, 128]}}
CUT = "rules: [{id: w, path: m.weight, split: {dim: 0, sizes: [%s], into: [q.weight, k.weight]}}]"
JOIN = "rules: [{id: w, concat: {dim: 0, from: [q.weight, k.weight]}, to: m.weight}]"
MOVE = "rules: [{id: w, path: m.weight, to: n.weight}]"
SPLIT_SCALE = (
    "{id: s, path: m.weight_scale_inv, split: {dim: 0, sizes: [%s], into: [q.weight_scale_inv, k.weight_scale_inv]}}]"
)


def plan_of(body: str, header: Header, metadata: dict[str, str] | None = None, **options: Any) -> Plan:
    tensors = {fqn: remapkit.TensorSpec(dtype, tuple(shape)) for fqn, (dtype, shape) in header.items()}
    rules = remapkit.loads(f"remapkit: 1\nname: t\n{body}\n", **options)
    return rules.plan(StateDictSpec(tensors, metadata=metadata or {}))


def shapes(plan: Plan) -> dict[str, list[int]]:
    assert plan.ok, [str(each) for each in plan.problems]
    return {move.target: list(move.spec.shape) for move in plan.moves}


def refusal(plan: Plan) -> str:
    (problem,) = plan.problems
    assert problem.code == "RK745"
    return str(problem)


def pair(q: tuple[str, list[int]], k: tuple[str, list[int]], leaf: str = "weight_scale", **more: Any) -> Header:
    return {
        "q.weight": ("F8_E4M3", [256, 64]),
        "k.weight": ("F8_E4M3", [128, 64]),
        f"q.{leaf}": q,
        f"k.{leaf}": k,
        **more,
    }


# row, the rules, the header, options, the shapes of the companions of the result
FOLLOW: list[tuple[str, str, Header, dict[str, Any], dict[str, list[int]]]] = [
    ("renamed", MOVE, {"m.weight": F8, "m.weight_scale": ONE, "m.weight_scale_2": ONE}, {}, {"n.weight_scale": [], "n.weight_scale_2": []}),
    ("kept", "keep: [m.weight]", {"m.weight": F8, "m.scale_weight": ONE, "m.scale_input": ONE}, {}, {"m.scale_weight": [], "m.scale_input": []}),
    ("of the module only", MOVE, {"m.weight": F8, "m.input_scale": ONE}, {}, {"n.input_scale": []}),
    ("copied to each part", CUT % "320, 320", {"m.weight": F8, "m.weight_scale": ("F32", [1])}, {}, {"q.weight_scale": [1], "k.weight_scale": [1]}),
    ("rows", CUT % "512, 128", {"m.weight": F8, "m.weight_scale": ("F32", [640, 1])}, {}, {"q.weight_scale": [512, 1], "k.weight_scale": [128, 1]}),
    ("flat rows", CUT % "512, 128", {"m.weight": F8, "m.weight_scale": ("BF16", [640])}, {}, {"q.weight_scale": [512], "k.weight_scale": [128]}),
    ("A7 between blocks", CUT % "256, 384", BLOCKS, {"config": CONFIG}, {"q.weight_scale_inv": [2, 2], "k.weight_scale_inv": [3, 2]}),
    ("a ragged last block", CUT % "512, 128", {"m.weight": F8, "m.weight_scale_inv": ("F32", [3, 2])}, {"config": {"quantization_config": {"weight_block_size": [256, 128]}}}, {"q.weight_scale_inv": [2, 2], "k.weight_scale_inv": [1, 2]}),
    ("blocks of a power of two", CUT % "512, 128", {"m.weight": F8, "m.weight_scale_inv": ("F8_E8M0", [5, 2])}, {"config": CONFIG}, {"q.weight_scale_inv": [4, 2], "k.weight_scale_inv": [1, 2]}),
    ("transposed blocks", "rules: [{id: w, path: m.weight, ops: [transpose], to: m.weight}]", BLOCKS, {"config": CONFIG}, {"m.weight_scale_inv": [2, 5]}),
    ("joined rows", JOIN, pair(("F32", [256, 1]), ("F32", [128, 1])), {}, {"m.weight_scale": [384, 1]}),
    ("joined blocks", JOIN, pair(("F32", [2, 1]), ("F32", [1, 1])), {"config": CONFIG}, {"m.weight_scale": [3, 1]}),
    ("merged", JOIN, pair(ONE, ONE), {}, {"m.weight_scale": []}),
    ("merged format", JOIN, pair(ONE, ONE, **{"q.comfy_quant": ("U8", [27]), "k.comfy_quant": ("U8", [27])}), {}, {"m.weight_scale": [], "m.comfy_quant": [27]}),
    ("packed: NVFP4", MOVE, {"m.weight": ("U8", [64, 32]), "m.weight_scale": ("F8_E4M3", [64, 4]), "m.weight_scale_2": ONE}, {}, {"n.weight_scale": [64, 4], "n.weight_scale_2": []}),
    ("packed, copied", "rules: [{id: w, path: m.weight, copy: [a.weight, b.weight]}]", {"m.weight": ("U8", [64, 32]), "m.weight_scale": ("F8_E4M3", [64, 4])}, {}, {"a.weight_scale": [64, 4], "b.weight_scale": [64, 4]}),
    ("packed: bitsandbytes", MOVE, {"m.weight": ("U8", [1024, 1]), "m.weight.absmax": ("F32", [32]), "m.weight.quant_state.bitsandbytes__nf4": ("U8", [80])}, {}, {"n.weight.absmax": [32], "n.weight.quant_state.bitsandbytes__nf4": [80]}),
    ("packed: compressed tensors", "rules: [{id: w, path: m.weight_packed, to: n.weight_packed}]", {"m.weight_packed": ("I32", [64, 8]), "m.weight_scale": ("F32", [64, 1]), "m.weight_shape": ("I64", [2])}, {}, {"n.weight_scale": [64, 1], "n.weight_shape": [2]}),
    ("int8", CUT % "512, 128", {"m.weight": ("I8", [640, 256]), "m.SCB": ("F32", [640])}, {}, {"q.SCB": [512], "k.SCB": [128]}),
    ("columns are cut freely", "rules: [{id: w, path: m.weight, ops: [{slice: {dim: 1, start: 3, stop: 100}}], to: m.weight}]", {"m.weight": F8, "m.weight_scale": ("F32", [640, 1])}, {}, {"m.weight_scale": [640, 1]}),
    ("rows take their scales along", "rules: [{id: w, path: m.weight, ops: [{rope: {to: half, heads: 10, head_dim: 64}}], to: m.weight}]", {"m.weight": F8, "m.weight_scale": ("F32", [640])}, {}, {"m.weight_scale": [640]}),
    ("a marker", MOVE, {"m.weight": F8, "m.scale_weight": ONE, "scaled_fp8": ("F8_E4M3", [0])}, {}, {"n.scale_weight": [], "scaled_fp8": [0]}),
    ("a marker below a prefix that stays", "rules: [{id: w, path: 'p.{m}.weight', to: 'p.new_{m}.weight'}]", {"p.m.weight": F8, "p.m.scale_weight": ONE, "p.scaled_fp8": ("F8_E4M3", [0])}, {}, {"p.new_m.scale_weight": [], "p.scaled_fp8": [0]}),
    ("the others are kept", f"{MOVE}\nunmatched: keep", {"m.weight": F8, "m.weight_scale": ONE, "o.weight": F8, "o.weight_scale": ONE}, {}, {"n.weight_scale": [], "o.weight_scale": []}),
    ("gone with the weight", f"{MOVE}\ndrop: [o.weight]", {"m.weight": F8, "o.weight": F8, "o.weight_scale": ONE}, {}, {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "header", "options", "wanted"), [row[1:] for row in FOLLOW], ids=[row[0] for row in FOLLOW]
)
def test_companions_follow(body: str, header: Header, options: dict[str, Any], wanted: dict[str, list[int]]) -> None:
    plan = plan_of(body, header, **options)
    assert {
        fqn: shape for fqn, shape in shapes(plan).items() if not fqn.endswith((".weight", "weight_packed"))
    } == wanted
    assert any(each.code == "RK746" for each in plan.warnings)


EXPERTS: Header = {
    f"{fqn}.{leaf}": ("F8_E4M3", [rows, 64]) if leaf == "weight" else ("F32", [-(-rows // 128), 1])
    for fqn, rows in (("0.a", 256), ("0.b", 64), ("1.a", 64), ("1.b", 256))
    for leaf in ("weight", "weight_scale_inv")
}
# row, the rules, the header, options, parts of the message
REFUSED: list[tuple[str, str, Header, dict[str, Any], list[str]]] = [
    ("A7", CUT % "320, 320", BLOCKS, {"config": CONFIG}, ["the cut at row 320 lies inside a block of 128", "256 and 384", "m.weight_scale_inv (F32 [5, 2]) -> k.weight"]),
    ("A7 without a size", CUT % "256, 384", BLOCKS, {}, ["5 scales for 640 rows are of blocks whose size is not known", "config='config.json'"]),
    ("another grid", CUT % "256, 384", {"m.weight": F8, "m.weight_scale_inv": ("F32", [10, 2])}, {"config": CONFIG}, ["blocks of 128 x 128 need scales of the shape [5, 2], got [10, 2]"]),
    ("columns in a block", "rules: [{id: w, path: m.weight, split: {dim: 1, sizes: [64, 192], into: [q.weight, k.weight]}}]", BLOCKS, {"config": CONFIG}, ["the cut at column 64 lies inside a block of 128", "the nearest cuts between blocks are 128"]),
    ("rows of several blocks", "rules: [{id: w, path: m.weight, ops: [{flip: {dim: 0}}, {roll: {dim: 0, by: 1}}], to: m.weight}]", BLOCKS, {"config": CONFIG}, ["elements of several blocks of 128 would be in one block"]),
    ("transposed oblong blocks", "rules: [{id: w, path: m.weight, ops: [transpose], to: m.weight}]", {"m.weight": F8, "m.weight_scale_inv": ("F32", [5, 4])}, {"config": {"quantization_config": {"weight_block_size": [128, 64]}}}, ["the dimensions that its scales are spread over change places"]),
    ("transposed rows", "rules: [{id: w, path: m.weight, ops: [transpose], to: m.weight}]", {"m.weight": F8, "m.weight_scale": ("F32", [640, 1])}, {}, ["change places"]),
    ("transposed flat rows", "rules: [{id: w, path: m.weight, ops: [transpose], to: m.weight}]", {"m.weight": F8, "m.weight_scale": ("F32", [640])}, {}, ["the rows become columns"]),
    ("joined inside a block", JOIN, pair(("F32", [2, 1]), ("F32", [1, 1])) | {"q.weight": ("F8_E4M3", [192, 64])}, {"config": CONFIG}, ["q.weight has 192 rows, and its last block of 128 would go on in the next part"]),
    ("joined inside a block, at a later index", "rules: [{id: w, concat: {dim: 0, from: ['{e:int}.a.weight', '{e:int}.b.weight']}, stack: {dim: 0, by: e}, to: m.weight}]", EXPERTS, {"config": CONFIG}, ["1.a.weight has 64 rows, and its last block of 128 would go on"]),
    ("two that may be blocks", JOIN, pair(("F32", [1, 1]), ("F32", [1, 1])), {}, ["one scale may be for the rows of several parts"]),
    ("different forms", JOIN, pair(ONE, ("F32", [128, 1])), {}, ["of different forms"]),
    ("one without a scale", JOIN, {fqn: spec for fqn, spec in pair(ONE, ONE).items() if fqn != "k.weight_scale"}, {}, ["k.weight has no companion like q.weight_scale"]),
    ("stacked", "rules: [{id: w, path: '{e:int}.weight', stack: {dim: 0, by: e}, to: m.weight}]", {f"{e}.{leaf}": spec for e in range(2) for leaf, spec in (("weight", F8), ("weight_scale", ONE))}, {}, ["stacked too must have the dimensions of its weight"]),
    ("cast", "rules: [{id: w, path: m.weight, ops: [{cast: BF16}], to: m.weight}]", {"m.weight": F8, "m.weight_scale": ONE}, {}, ["cast changes the numbers that the scales multiply", "`dequantize` the weight with its scale first"]),
    ("cast, unmatched kept", "rules: [{id: w, path: m.weight, ops: [{cast: BF16}], to: m.weight}]\nunmatched: keep", {"m.weight": F8, "m.weight_scale": ONE}, {}, ["cast changes the numbers"]),
    ("filled", "rules: [{id: w, path: m.weight, ops: [{pad: {dim: 1, to: 300, value: 1}}], to: m.weight}]", {"m.weight": F8, "m.weight_scale": ONE}, {}, ["its scales would multiply the elements that pad adds, 1"]),
    ("packed: NVFP4", CUT % "32, 32", {"m.weight": ("U8", [64, 32]), "m.weight_scale": ("F8_E4M3", [64, 4])}, {}, ["the numbers of m.weight are packed", "convert the file before quantisation"]),
    ("an unknown order", CUT % "512, 128", {"m.weight": F8, "m.weight_scale": ("F8_E8M0", [640, 8])}, {}, ["scales in F8_E8M0 may be in an order of their own"]),
    ("zero points", CUT % "512, 128", {"m.weight": ("I8", [640, 256]), "m.weight_zero_point": ("I8", [640, 1])}, {}, ["m.weight_zero_point does not scale rows or blocks"]),
    ("an input of many", CUT % "512, 128", {"m.weight": F8, "m.input_scale": ("F32", [256])}, {}, ["m.input_scale is [256], and not one number", "drop it if nothing reads it"]),
    ("no such spelling", "rules: [{id: w, path: m.weight, to: m.proj}]", {"m.weight": F8, "m.scale": ONE}, {}, ["m.proj cannot have a companion spelt like m.scale"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "header", "options", "parts"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_cannot_follow_is_refused_by_name(
    body: str, header: Header, options: dict[str, Any], parts: list[str]
) -> None:
    plan = plan_of(body, header, **options)
    message = refusal(plan)
    assert "error[RK745]: w: " in message
    assert [part for part in parts if part not in message] == [], message
    assert "cast" not in "".join(plan.problems[0].help)


def test_rules_for_companions_are_left_alone() -> None:
    """What a rule takes is judged, not derived; and a part of what belongs together is not filled up."""
    by_hand = plan_of(
        f"{MOVE[:-1]}, {{id: s, path: m.weight_scale, to: n.scale_weight}}]", {"m.weight": F8, "m.weight_scale": ONE}
    )
    assert shapes(by_hand)["n.scale_weight"] == [] and not any(each.code == "RK746" for each in by_hand.warnings)
    alone = plan_of(
        f"{MOVE}\nkeep: [o.weight_scale]\ndrop: [o.weight]", {"m.weight": F8, "o.weight": F8, "o.weight_scale": ONE}
    )
    assert "o.weight_scale" in shapes(alone) and [each.fqn for each in alone.dropped] == ["o.weight"]
    half = plan_of(f"{JOIN[:-1]}, {{id: s, path: q.weight_scale, to: m.weight_scale}}]", pair(ONE, ONE))
    assert {"RK301", "RK745"} & {each.code for each in half.problems} == {"RK301"}


def test_a_word_about_all_other_keys_is_one_about_companions() -> None:
    plan = plan_of(f"{MOVE}\nunmatched: drop", {"m.weight": F8, "m.weight_scale": ONE})
    assert [each.code for each in plan.problems] == ["RK366"]


def test_what_belongs_to_no_scaled_weight_needs_a_rule() -> None:
    plan = plan_of(MOVE, {"m.weight": ("BF16", [4, 4]), "m.weight_scale": ONE, "o.weight_scale": ONE})
    (problem,) = plan.problems
    assert problem.code == "RK301" and problem.values["unmatched"] == ["m.weight_scale", "o.weight_scale"]


def test_a_dequantized_weight_leaves_its_input_scale_to_rules() -> None:
    rule = "rules: [{id: w, path: m.weight, dequantize: {scale: m.weight_scale, to: BF16}, to: m.weight}]"
    plan = plan_of(rule, {"m.weight": F8, "m.weight_scale": ONE, "m.input_scale": ONE})
    (problem,) = plan.problems
    assert problem.code == "RK301" and problem.values["unmatched"] == ["m.input_scale"]


def test_a_rule_with_a_problem_of_its_own_is_the_only_problem() -> None:
    plan = plan_of(CUT % "1, 2", {"m.weight": F8, "m.weight_scale": ONE})
    assert [each.code for each in plan.problems] == ["RK350"]


# ------------------------------------------------------------------------------------------------ the size of blocks


def test_block_sizes_are_from_configs_metadata_and_params() -> None:
    quoted = json.dumps(CONFIG["quantization_config"])
    for metadata in ({"quantization_config": quoted}, {"config": json.dumps(CONFIG)}):
        assert shapes(plan_of(CUT % "256, 384", BLOCKS, metadata))["q.weight_scale_inv"] == [2, 2]
    given = f"params: {{weight_block_size: {{config: none, value: [128, 128]}}}}\n{CUT % '256, 384'}"
    assert shapes(plan_of(given, BLOCKS))["q.weight_scale_inv"] == [2, 2]
    other = plan_of(given, BLOCKS, params={"weight_block_size": [64, 128]})
    assert "blocks of 64 x 128 need scales of the shape [10, 2]" in refusal(other)


@pytest.mark.parametrize("size", [[128], [128, 0], "128", [128, True], {"rows": 128}, 128])
def test_a_size_that_is_none_is_an_error(size: object) -> None:
    plan = plan_of(MOVE, BLOCKS, config={"quantization_config": {"weight_block_size": size}})
    (problem,) = plan.problems
    assert problem.code == "RK748" and json.dumps(size) in problem.title and "the config" in problem.help[0]


def test_two_sizes_are_an_error() -> None:
    quoted = json.dumps({"weight_block_size": [64, 64]})
    plan = plan_of(MOVE, BLOCKS, {"quantization_config": quoted}, config=CONFIG)
    (problem,) = plan.problems
    assert problem.code == "RK748" and "the config: [128, 128]" in problem.title and "[64, 64]" in problem.title


@pytest.mark.parametrize("metadata", [{"config": "no json"}, {"config": "[1]"}, {"quantization_config": '"fp8"'}])
def test_other_metadata_says_nothing(metadata: dict[str, str]) -> None:
    assert "not known" in refusal(plan_of(CUT % "256, 384", BLOCKS, metadata))


def test_blocks_that_rules_cut_are_judged_with_the_size() -> None:
    right = f"{CUT[:-1] % '256, 384'}, {SPLIT_SCALE % '2, 3'}"
    assert shapes(plan_of(right, BLOCKS, config=CONFIG))["k.weight_scale_inv"] == [3, 2]
    assert [each.code for each in plan_of(right, BLOCKS).problems] == ["RK362"]
    wrong = plan_of(f"{CUT[:-1] % '320, 320'}, {SPLIT_SCALE % '3, 2'}", BLOCKS, config=CONFIG)
    (problem,) = wrong.problems
    assert problem.code == "RK362" and "the cut at row 320 lies inside a block of 128" in problem.title
    assert "256 and 384" in problem.help[0]
    swapped = plan_of(f"{CUT[:-1] % '256, 384'}, {SPLIT_SCALE % '3, 2'}", BLOCKS, config=CONFIG)
    assert [each.code for each in swapped.problems] == ["RK362"]


# ------------------------------------------------------------------------------------------------ names and roots


@given(st.sampled_from(["m.weight", "e.w1", "m.qweight", "m.weight_packed", "e.up_blocks", "weight", "W_q"]))
def test_every_kind_is_read_and_spelt_alike(weight: str) -> None:
    for kind, name in _list_kinds(weight):
        assert read_kind(name, weight) == kind and spell_kind(kind, weight) == name
        assert weight in list_owners(name)


def test_a_root_is_found_although_companions_have_no_rule() -> None:
    rules = remapkit.loads("remapkit: 1\nname: t\nrules: [{id: w, path: 'b.{i:int}.weight', to: 'h.{i}.weight'}]")
    keys = [f"net.b.{i}.{leaf}" for i in range(3) for leaf in ("weight", "scale_weight", "scale_input")]
    assert [fit.root for fit in find_roots(rules, [*keys, "net.scaled_fp8", "vae.x"])] == ["net"]
    assert find_roots(rules, [*keys, "net.b.9.scale_weight", "vae.x"]) == ()


def test_a_route_takes_companions_all_the_way() -> None:
    first = remapkit.loads("remapkit: 1\nname: a\nrules: [{id: w, path: m.weight, to: n.weight}]", config=CONFIG)
    cut = "{id: w, path: n.weight, split: {dim: 0, sizes: [256, 384], into: [q.weight, k.weight]}}"
    route = first.then(remapkit.loads(f"remapkit: 1\nname: b\nrules: [{cut}]"))
    plan = route.plan({fqn: remapkit.TensorSpec(dtype, tuple(shape)) for fqn, (dtype, shape) in BLOCKS.items()})
    assert shapes(plan)["k.weight_scale_inv"] == [3, 2]
    assert {move.sources for move in plan.moves} == {("m.weight",), ("m.weight_scale_inv",)}


def test_explain_names_the_weight_that_a_scale_follows(capsys: pytest.CaptureFixture[str]) -> None:
    scale, weight = "double_blocks.0.img_attn.qkv.scale_weight", "double_blocks.0.img_attn.qkv.weight"
    own, below, none = remapkit.explain("flux_bfl", [scale, f"model.{scale}", "double_blocks.0.other.scale_weight"])
    assert own.owner == weight and [match.rule.id for match in own.owners] == ["double.image.qkv"]
    assert (below.root, below.name, below.owner) == ("model", scale, weight)
    assert (none.owner, none.owners) == ("", ())
    assert main(["explain", "flux_bfl", scale]) == 1
    printed = capsys.readouterr().out
    assert f"  follows {weight} if that has 8-bit or packed numbers" in printed
    assert "    double.image.qkv -> transformer_blocks.0.attn.to_q.weight and 2 more" in printed
    main(["explain", "flux_bfl", scale, "--format", "json"])
    (found,) = json.loads(capsys.readouterr().out)["keys"]
    assert found["follows"] == {"weight": weight, "rules": ["double.image.qkv"]}


def test_a_target_with_8_bit_weights_and_no_scales_has_no_place_for_them() -> None:
    plan = plan_of(MOVE, {"m.weight": F8, "m.weight_scale": ONE})
    bits = {"n.weight": remapkit.TensorSpec("F8_E4M3", (640, 256))}
    assert plan.check(bits).unexpected_keys == ("n.weight_scale",)
    plain = plan.check({"n.weight": remapkit.TensorSpec("BF16", (640, 256))})
    assert plain.ok and plain.companions == ("n.weight_scale",)
    assert plan.check({"o.weight": remapkit.TensorSpec("BF16", (640, 256))}).unexpected_keys == (
        "n.weight",
        "n.weight_scale",
    )
