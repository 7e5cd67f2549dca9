"""Checks: missing, unexpected, mismatched, tied and interchangeable, each from headers alone."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import remapkit
from remapkit.api.ruleset import Plan
from remapkit.plans.check import Check, check_known_keys, find_interchangeable, make_check
from remapkit.plans.moves import Move, RuleRef
from remapkit.tensors.spec import StateDictSpec, TensorSpec

F32 = TensorSpec("F32", (4, 4))


def plan_to(targets: dict[str, TensorSpec]) -> Plan:
    moves = tuple(Move(fqn, (f"src.{fqn}",), (), RuleRef("r"), spec) for fqn, spec in targets.items())
    return Plan("t", StateDictSpec({f"src.{fqn}": spec for fqn, spec in targets.items()}, name="a.pth"), moves)


def checked(brought: dict[str, TensorSpec], wanted: dict[str, TensorSpec], **options: object) -> Check:
    tied = options.pop("tied", ())
    target = StateDictSpec(wanted, tied=tied, name="a model")  # type: ignore[arg-type]
    return make_check(plan_to(brought), target, **options)  # type: ignore[arg-type]


def codes(check: Check) -> list[str]:
    return [problem.code for problem in check.problems]


names = st.sampled_from(["a.weight", "b.weight", "a.bias", "b.bias", "c.gamma"])
specs = st.sampled_from([F32, TensorSpec("BF16", (4, 4)), TensorSpec("F32", (4,))])
headers = st.dictionaries(names, specs, min_size=1)


@given(headers, headers)
def test_a_check_is_set_arithmetic(brought: dict[str, TensorSpec], wanted: dict[str, TensorSpec]) -> None:
    check = checked(brought, wanted)
    assert set(check.missing_keys) == set(wanted) - set(brought)
    assert set(check.unexpected_keys) == set(brought) - set(wanted)
    both = set(brought) & set(wanted)
    assert {each.target for each in check.shape_mismatches} == {
        k for k in both if brought[k].shape != wanted[k].shape
    }
    assert {each.target for each in check.dtype_mismatches} == {
        k for k in both if brought[k].dtype != wanted[k].dtype
    }
    assert check.ok == (set(brought) == set(wanted) and not check.shape_mismatches)
    assert check.matched == len(both) - len(check.shape_mismatches)


@given(headers)
def test_interchangeable_targets_are_those_a_swap_of_which_passes(wanted: dict[str, TensorSpec]) -> None:
    """Brute force: a target counts exactly if some other one of the same leaf could take its place unseen."""
    swappable = {
        a
        for a in wanted
        for b in wanted
        if a != b and wanted[a].shape == wanted[b].shape and a.rpartition(".")[2] == b.rpartition(".")[2]
    }
    assert len(find_interchangeable(StateDictSpec(wanted))) == len(swappable)


def test_a_dtype_mismatch_is_a_note_unless_strict() -> None:
    brought, wanted = {"w": F32}, {"w": TensorSpec("BF16", (4, 4))}
    lenient, strict = checked(brought, wanted), checked(brought, wanted, strict_dtype=True)
    assert lenient.ok and [note.code for note in lenient.notes] == ["RK313"]
    assert codes(strict) == ["RK313"] and not strict.notes


def test_any_one_name_of_a_tied_weight_is_enough_and_said() -> None:
    wanted = {"embed.weight": F32, "head.weight": F32}
    for name in wanted:
        check = checked({name: F32}, wanted, tied=(("embed.weight", "head.weight"),))
        assert check.ok
        assert check.satisfied_by_tie == {next(iter(set(wanted) - {name})): name}
        assert "RK315" in [note.code for note in check.notes]


def test_a_tied_weight_under_no_name_is_missing_under_every_name() -> None:
    check = checked(
        {"other": F32}, {"embed.weight": F32, "head.weight": F32}, tied=(("embed.weight", "head.weight"),)
    )
    assert check.missing_keys == ("embed.weight", "head.weight")


def test_a_shape_mismatch_names_both_shapes_and_both_keys() -> None:
    check = checked({"w": TensorSpec("F32", (8, 4))}, {"w": F32})
    text = str(check.problems[0])
    assert codes(check) == ["RK312"]
    assert all(word in text for word in ("w: the checkpoint has [8, 4], a model expects [4, 4]", "from src.w"))


def test_a_missing_key_is_shown_with_the_unexpected_one_that_looks_like_it() -> None:
    check = checked({"encoder.norm1.weight": F32}, {"encoder.norm_1.weight": F32})
    assert "has the shape of the unexpected key encoder.norm1.weight" in str(check.problems[0])


def test_all_problems_are_reported_at_once() -> None:
    check = checked({"x": F32, "w": TensorSpec("F32", (8, 4))}, {"w": F32, "y": F32})
    assert codes(check) == ["RK310", "RK311", "RK312"]
    try:
        check.raise_for_problems()
    except remapkit.FailedCheck as error:
        assert len(error.diagnostics) == 3
    else:
        raise AssertionError("nothing was raised")


def test_a_half_checkpoint_is_seen_from_the_known_keys() -> None:
    known = StateDictSpec({f"src.{name}": F32 for name in ("a", "b", "c")}, name="known")
    rules = remapkit.loads("remapkit: 1\nname: t\nkeep: ['src.{x}']\n")
    problems = check_known_keys(rules, plan_to({"a": F32, "b": F32}), known)
    assert [problem.code for problem in problems] == ["RK316"]
    assert problems[0].values["lacking"] == ["src.c"]
    assert check_known_keys(rules, plan_to({"a": F32, "b": F32, "c": F32, "extra": F32}), known) == []


def test_a_known_key_that_would_be_dropped_may_be_missing() -> None:
    known = StateDictSpec({f"src.{name}": F32 for name in ("a", "b", "mask")}, name="known")
    rules = remapkit.loads("remapkit: 1\nname: t\nkeep: ['src.{x:a|b}']\ndrop: [src.mask]\n")
    assert check_known_keys(rules, plan_to({"a": F32, "b": F32}), known) == []
    (problem,) = check_known_keys(rules, plan_to({"a": F32}), known)
    assert problem.values["lacking"] == ["src.b"]


def test_known_keys_under_a_root_are_said() -> None:
    known = StateDictSpec({f"src.{name}": F32 for name in ("a", "b", "c")}, name="known")
    rules = remapkit.loads("remapkit: 1\nname: t\nkeep: ['{x:**}']\n")
    source = StateDictSpec(dict.fromkeys(("src.a", "net.src.b", "net.src.c"), F32), name="file")
    (problem,) = check_known_keys(rules, rules.plan(source), known)
    assert problem.help[0] == "all 2 are there under root 'net': --root net"


def test_plans_and_checks_of_the_library() -> None:
    """`RuleSet.plan` and `Plan.check` take what users have in hand."""
    rules = remapkit.load("wan22_pth")
    header = remapkit.header("rules/keys/wan22_vae_upstream.json")
    assert len(rules.plan("rules/keys/wan22_vae_upstream.json").moves) == len(rules.plan(header).moves) == 196
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    check = rules.plan(header).check(module)
    assert check.missing_keys == ("weight", "bias")
    assert len(check.unexpected_keys) == 196


def test_a_state_dict_in_memory_is_renamed_without_a_copy() -> None:
    rules = remapkit.load("wan22_pth")
    state = {"conv1.weight": torch.ones(2), "encoder.downsamples.0.downsamples.2.resample.1.bias": torch.zeros(3)}
    new = rules(state)
    assert list(new) == ["conv1.weight", "encoder.downsamples.0.downsampler.resample.1.bias"]
    assert new["conv1.weight"] is state["conv1.weight"]
    assert list(state) == ["conv1.weight", "encoder.downsamples.0.downsamples.2.resample.1.bias"]


def test_a_state_dict_in_memory_with_a_stranger_is_refused() -> None:
    rules = remapkit.load("wan22_pth")
    try:
        rules({"conv1.weight": torch.ones(2), "loss.weight": torch.ones(1)})
    except remapkit.FailedCheck as error:
        assert error.diagnostics[0].values["unmatched"] == ["loss.weight"]
    else:
        raise AssertionError("nothing was raised")
