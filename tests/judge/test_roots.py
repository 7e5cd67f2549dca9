"""Roots are found by what the rules match, and messages name the option that makes keys match."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.diagnostics.errors import FailedCheck
from remapkit.plans.make import make_plan
from remapkit.plans.roots import (
    find_lost_prefix,
    find_roots,
    find_strip,
    find_target_prefix,
    list_required,
    strip_segments,
)
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
    st.lists(
        st.sampled_from(["step", "net", "vae.w", "ema.layers.0.w", "optimizer.layers"]), max_size=3, unique=True
    ),
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
    roots = {
        root for root in roots if not re.search(r"(^|\.)(\d+|optimizer)(\.|$)", root)
    }  # layers, and a trainer's own
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
    assert [strip_segments(fqn, [segment]) for fqn in wrapped] == inside[: len(wrapped)]
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
            "all 2 keys match under root 'model.net': --root model.net",
        ),
        (
            ["layers.0.module.w", "layers.1.module.b"],
            "without the segment 'module' all of them match: --strip module",
        ),
        (
            ["module.layers.0.w", "module.layers.1.default.w"],
            "without the segments 'module' and 'default' all of them match: --strip module --strip default",
        ),
        (["a.layers.0.w", "b.layers.0.w"], "the only key under root 'b' matches: --root b"),
    ],
)
def test_unmatched_keys_name_the_option_that_helps(fqns: list[str], help: str) -> None:
    (problem, *_) = make_plan(load(), spec(*fqns)).problems
    assert problem.code == "RK301"
    assert help in problem.help


FAR = "rules: [{id: r, path: 'model.net.layers.{i:int}.{leaf:w|b}', to: 'h.{i}.{leaf}'}]"


@settings(max_examples=200, deadline=None)
@given(numbers=st.sets(st.integers(0, 9), min_size=1), prefix=st.sampled_from(["", "net.", "model.net."]), more=keys)
def test_a_prefix_that_all_unmatched_keys_lack_is_found(numbers: set[int], prefix: str, more: list[str]) -> None:
    """By brute force: a prefix of the rule's text fits if every key becomes a match that is not there yet."""
    fqns = list(dict.fromkeys([*(f"{prefix}layers.{number}.w" for number in numbers), *more]))
    pattern = r"model\.net\.layers\.(0|[1-9]\d*)\.[wb]"
    unmatched = [fqn for fqn in fqns if not re.fullmatch(pattern, fqn)]
    heads = ["model.", "model.net.", "model.net.layers."]
    lost = [
        head
        for head in heads
        if all(re.fullmatch(pattern, head + fqn) and head + fqn not in fqns for fqn in unmatched)
    ]
    assert find_lost_prefix(load(FAR), fqns, unmatched) == next(iter(lost), None)


def test_a_file_without_the_prefix_is_read_under_it(tmp_path: Path) -> None:
    source = write(tmp_path / "a.pth", "layers.0.w", "layers.1.b")
    with pytest.raises(FailedCheck) as failed:
        remapkit.apply(load(FAR), source, tmp_path / "o.safetensors")
    help = failed.value.diagnostics[0].help[0]
    assert help == "with 'model.net.' in front all 2 keys match: put it before the name of the file, model.net.=FILE"
    mounted = help.rsplit(" ", 1)[1].replace("FILE", str(source))
    assert set(remapkit.apply(load(FAR), mounted, tmp_path / "o.safetensors").plan.target) == {"h.0.w", "h.1.b"}
    (problem, *_) = make_plan(load(FAR), spec("layers.0.w", "model.net.layers.1.w")).problems
    wanted = "with 'model.net.' in front that key matches, but the others have it: add a rule for keys without it"
    assert problem.help[0] == wanted


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
    advice = "all 2 keys are names of file with 'model.' in front: put it in front of each `to:` of the rules"
    assert missing.help[0] == advice


def write(path: Path, *fqns: str) -> Path:
    torch.save({fqn: torch.full((2,), float(number)) for number, fqn in enumerate(fqns)}, path)
    return path


def test_the_only_root_that_fits_is_taken_and_said(tmp_path: Path) -> None:
    source = write(tmp_path / "a.pth", "step", "vae.x", "model.net.layers.0.w", "model.net.layers.1.b")
    written = remapkit.apply(load(), source, tmp_path / "o.safetensors", declared_target=False)
    assert written.tensors == 2
    said = {each.code: each.title for each in written.diagnostics}
    assert said["RK414"] == "all 2 keys match under root 'model.net', and none under another root fits: it was taken"
    with remapkit.open_checkpoint(written.files[0]) as reader:
        assert bytes(next(reader.chunks("h.1.b"))) == torch.full((2,), 3.0).numpy().tobytes()


@pytest.mark.parametrize("fqns", [("a.layers.0.w", "b.layers.0.w"), ("a.layers.0.w", "a.norm")])
def test_no_root_is_taken_where_several_or_none_fit(fqns: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(FailedCheck) as caught:
        remapkit.apply(load(), write(tmp_path / "a.pth", *fqns), tmp_path / "o.safetensors")
    assert caught.value.diagnostics[0].code == "RK301"
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("root", [None, "model", "."])
def test_what_the_message_says_works(root: str | None, tmp_path: Path) -> None:
    source = write(tmp_path / "a.pth", "model.a.layers.0.w", "model.b.layers.0.w")
    with pytest.raises(FailedCheck) as caught:
        remapkit.apply(load(), source, tmp_path / "o.safetensors", root=root)
    advised = [text.partition("--root ")[2] for text in caught.value.diagnostics[0].help if "--root " in text]
    assert advised == ["model.a", "model.b"]
    for each in advised:
        assert remapkit.apply(load(), source, tmp_path / "o.safetensors", root=each, force=True).tensors == 1


def test_check_and_load_into_take_the_root_too(tmp_path: Path) -> None:
    source = write(tmp_path / "a.pth", "net.layers.0.w", "net.layers.1.w", "step")
    report = remapkit.check(load(), ckpt=source, target_keys={"h.0.w": SPEC, "h.1.w": SPEC})
    assert report.ok
    model = torch.nn.Module()
    model.h = torch.nn.ModuleList([torch.nn.Module(), torch.nn.Module()])
    for each in model.h:
        each.w = torch.nn.Parameter(torch.zeros(2))
    for checkpoint in (source, torch.load(source)):
        loaded = remapkit.load_into(model, checkpoint, load())
        assert "RK414" in [note.code for note in loaded.notes]
        assert model.h[1].w.tolist() == [1.0, 1.0]
