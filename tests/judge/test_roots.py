"""Roots are found by what the rules match, and messages name the option that makes keys match."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.plans.make import make_plan
from remapkit.plans.roots import find_roots, find_strip, find_target_prefix, list_required, strip_segment
from remapkit.rules.model import CompiledRules
from remapkit.tensors.spec import StateDictSpec, TensorSpec

SPEC = TensorSpec("F32", (2,))
LAYERS = "rules: [{id: r, path: 'layers.{i:int}.{leaf:w|b}', to: 'h.{i}.{leaf}'}]"


def load(text: str = LAYERS) -> CompiledRules:
    return remapkit.loads(f"remapkit: 1\nname: t\n{text}\n")


def spec(*fqns: str) -> StateDictSpec:
    return StateDictSpec(dict.fromkeys(fqns, SPEC), name="file")


segments = st.sampled_from(["layers", "0", "1", "w", "b", "net", "model", "norm"])
keys = st.lists(st.lists(segments, min_size=1, max_size=5).map(".".join), min_size=1, max_size=8, unique=True)
nested = st.builds(
    lambda inside, prefix, outside: list(dict.fromkeys([*(f"{prefix}{fqn}" for fqn in inside), *outside])),
    st.lists(st.sampled_from([f"layers.{i}.{leaf}" for i in "012" for leaf in "wb"]), min_size=1, unique=True),
    st.sampled_from(["", "net.", "model.net.", "layers.", "layers.0."]),
    st.lists(st.sampled_from(["step", "net", "vae.w", "ema.layers.0.w", "opt.layers"]), max_size=3, unique=True),
)


@pytest.mark.parametrize("more", ["", "keep: ['norm.{r:**}']\n", "drop: ['{x}.norm.{r:**}']\n"])
@settings(max_examples=200, deadline=None)
@given(fqns=keys | nested, required=st.lists(st.sampled_from(["layers.0.w", "norm.w"]), max_size=1))
def test_a_root_fits_iff_all_keys_under_it_match_most_by_rules(
    more: str, fqns: list[str], required: list[str]
) -> None:
    patterns = {r"layers\.(0|[1-9]\d*)\.[wb]": True}
    if more.startswith("keep"):
        patterns[r"norm\.[^.]+(\.[^.]+)*"] = False
    elif more:
        patterns[r"[^.]+\.norm\.[^.]+(\.[^.]+)*"] = False

    def fits(inside: list[str]) -> bool:
        kinds = [[by for pattern, by in patterns.items() if re.fullmatch(pattern, fqn)] for fqn in inside]
        return all(kinds) and 2 * sum(any(each) for each in kinds) > len(inside) and set(required) <= set(inside)

    roots = {fqn[: match.start()] for fqn in fqns for match in re.finditer(r"\.", fqn)}
    wanted = {
        root for root in roots if fits([fqn.removeprefix(f"{root}.") for fqn in fqns if fqn.startswith(f"{root}.")])
    }
    found = find_roots(load(f"{more}{LAYERS}"), fqns, required)
    assert {each.root for each in found} == ({""} if fits(fqns) else wanted)
    assert all(each.keys + each.outside == len(fqns) for each in found)


@settings(max_examples=200, deadline=None)
@given(inside=keys, segment=st.sampled_from(["module", "default"]), places=st.lists(st.integers(0, 4), min_size=8))
def test_a_segment_that_is_in_the_way_is_found(inside: list[str], segment: str, places: list[int]) -> None:
    rules = load("rules: [{id: r, path: '{all:**}', to: 'x.{all}', forget: []}]".replace(", forget: []", ""))
    wrapped = []
    for fqn, place in zip(inside, places, strict=False):
        parts = fqn.split(".")
        wrapped.append(".".join([*parts[:place], segment, *parts[place:]]))
    assert [strip_segment(fqn, segment) for fqn in wrapped] == inside[: len(wrapped)]
    assert find_strip(rules, wrapped) is not None


def test_a_pass_through_that_takes_anything_is_no_evidence() -> None:
    rules = load(f"unmatched: keep\n{LAYERS}")
    assert [fit.root for fit in find_roots(rules, ["net.layers.0.w", "net.layers.1.w", "step"])] == ["net"]
    assert [fit.root for fit in find_roots(rules, ["layers.0.w", "layers.1.w", "step"])] == [""]


def test_a_key_that_would_be_dropped_is_not_required() -> None:
    rules = load(f"drop: [mask]\n{LAYERS}")
    assert list_required(spec("layers.0.w", "mask"), rules) == ("layers.0.w",)


@pytest.mark.parametrize(
    ("fqns", "help"),
    [
        (
            ["model.net.layers.0.w", "model.net.layers.1.w", "vae.x"],
            "all 2 keys under 'model.net' match: --root model.net",
        ),
        (
            ["layers.0.module.w", "layers.1.module.b"],
            "without the segment 'module' all of them match: --strip module",
        ),
        (["a.layers.0.w", "b.layers.0.w"], "all 1 key under 'b' match: --root b"),
    ],
)
def test_unmatched_keys_name_the_option_that_helps(fqns: list[str], help: str) -> None:
    (problem, *_) = make_plan(load(), spec(*fqns)).problems
    assert problem.code == "RK301"
    assert help in problem.help


@settings(max_examples=200, deadline=None)
@given(fqns=keys, prefix=st.sampled_from(["", "model.", "a.b."]), more=keys)
def test_a_prefix_on_one_side_is_found(fqns: list[str], prefix: str, more: list[str]) -> None:
    wanted = {f"{prefix}{fqn}" for fqn in fqns} | set(more)
    found = find_target_prefix(fqns, wanted)
    assert found is not None
    assert {found[1] + fqn.removeprefix(found[0]) for fqn in fqns} <= wanted
    back = find_target_prefix([f"{prefix}{fqn}" for fqn in fqns], fqns)
    assert back is not None
    assert {back[1] + f"{prefix}{fqn}".removeprefix(back[0]) for fqn in fqns} <= set(fqns)


def test_missing_keys_say_that_only_a_prefix_differs() -> None:
    rules = remapkit.loads(f"remapkit: 1\nname: t\n{LAYERS}\n")
    plan = rules.plan(spec("layers.0.w", "layers.1.w"))
    check = plan.check(spec("model.h.0.w", "model.h.1.w"))
    (missing,) = [each for each in check.problems if each.code == "RK310"]
    assert any("with 'model.' in front" in note for note in missing.notes)
