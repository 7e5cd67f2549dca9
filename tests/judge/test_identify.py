"""The layout of a checkpoint is known by its names: which pack, under which root; messages say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.registry import candidates
from remapkit.registry.identify import describe_layouts, hint_layout, identify_layout
from remapkit.registry.installed import packs
from remapkit.sources.declared import read_declared_source
from remapkit.tensors.families import mask_indices
from remapkit.tensors.spec import StateDictSpec, TensorSpec

DATA: Mapping[str, list[str]] = json.loads(
    (Path(__file__).parents[1] / "data" / "checkpoint_keys.json").read_text(encoding="utf-8")
)
"""The names of real checkpoints, by layout."""
SPEC = TensorSpec("F32", (2,))


def read_layouts() -> dict[str, frozenset[str]]:
    """The oracle's knowledge: the names that each pack declares, numbers left open."""
    found = {}
    for pack in packs():
        known = read_declared_source(remapkit.load(pack.path).file)
        if known:
            found[pack.name] = frozenset(map(mask_indices, known))
    return found


LAYOUTS = read_layouts()


@pytest.mark.parametrize("layout", DATA)
@pytest.mark.parametrize("root", ["", "model.diffusion_model", "net"])
def test_real_checkpoints_are_known_with_or_without_a_prefix(layout: str, root: str) -> None:
    names = [f"{root}.{fqn}" if root else fqn for fqn in DATA[layout]]
    others = ["first_stage_model.x", "optimizer.state.exp_avg", "step"] if root else []
    kinds = set(map(mask_indices, DATA[layout]))
    fitting = {pack: known for pack, known in LAYOUTS.items() if kinds <= known}
    best = min(len(known - kinds) for known in fitting.values())
    wanted = {pack for pack, known in fitting.items() if len(known - kinds) == best}
    found = [fit for fit in identify_layout([*names, *others]) if fit.is_part]
    assert {fit.candidate.layout for fit in found if fit.lacking == best} == wanted
    assert {fit.root for fit in found if fit.candidate.layout in wanted} == {root}
    said = describe_layouts([*names, *others])
    assert said is not None and all(pack in said for pack in wanted)
    assert said.endswith(f": --root {root}") == bool(root)


@settings(max_examples=60, deadline=None)
@given(
    pack=st.sampled_from(sorted(LAYOUTS)),
    seed=st.randoms(use_true_random=False),
    part=st.floats(0, 1),
    foreign=st.lists(st.sampled_from(["zz.w", "head.q", "zz.3.b", "optimizer.m"]), unique=True),
)
def test_how_far_off_a_pack_is(pack: str, seed: object, part: float, foreign: list[str]) -> None:
    """Set arithmetic on the names as they are is what is said of the empty root."""
    known = sorted(LAYOUTS[pack])
    kept = known[: max(1, round(part * len(known)))]
    names = [*kept, *foreign]
    fits = [fit for fit in identify_layout(names) if fit.candidate.layout == pack and not fit.root]
    strangers = set(names) - LAYOUTS[pack]
    if fits:
        (fit,) = fits
        assert (fit.keys, fit.foreign, fit.lacking) == (
            len(names),
            len(strangers),
            len(LAYOUTS[pack] - set(names)),
        )
        assert fit.is_part == (not strangers and 2 * len(LAYOUTS[pack] - set(names)) <= len(known))
    else:
        assert any(fit.candidate.layout == pack for fit in identify_layout(names)) or 2 * len(strangers) > len(names)


def test_what_is_too_large_is_not_identified(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(candidates, "compare_kinds", lambda *args: compared.append(args))
    assert identify_layout(f"w{n}" for n in range(candidates.MAX_KINDS + 1)) == ()
    assert identify_layout([]) == ()
    assert not compared
    monkeypatch.undo()
    counted = []
    compare = candidates.compare_kinds
    monkeypatch.setattr(candidates, "compare_kinds", lambda *args: counted.append(args) or compare(*args))
    identify_layout(f"{'abcdefgh'[n % 8]}{n}.x.w" for n in range(3000))
    assert len(counted) <= (candidates.MAX_ROOTS + 1) * len(LAYOUTS)


def test_problems_of_another_kind_get_no_hint() -> None:
    problem = remapkit.Diagnostic("RK303", "a collision")
    assert hint_layout([problem], DATA["flux_bfl"], "wan22_pth") == (problem,)
    unmatched = remapkit.Diagnostic("RK301", "none", help=("add a rule",))
    assert hint_layout([problem, unmatched], DATA["flux_bfl"], "flux_bfl") == (problem, unmatched)
    (_, hinted) = hint_layout([problem, unmatched], DATA["flux_bfl"], "wan22_pth")
    assert hinted.help == ("these keys are those of layout flux/bfl (pack flux_bfl)", "add a rule")


def save(path: Path, names: list[str]) -> Path:
    torch.save({fqn: torch.zeros(1) for fqn in names}, path)
    return path


@pytest.mark.parametrize("command", ["apply", "check", "diff", "load_into"])
def test_a_wrong_pack_is_told_which_is_right(command: str, tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth", DATA["wan22_vae_diffusers"])
    with pytest.raises(FailedCheck, match="these keys are those of layout wan22-vae/diffusers "):
        if command == "apply":
            remapkit.apply("wan22_pth", source, tmp_path / "o.safetensors")
        elif command == "check":
            remapkit.check("wan22_pth", source, target_keys={"w": SPEC}).raise_for_problems()
        elif command == "diff":
            remapkit.diff(source, source, rules_a="wan22_pth")
        else:
            remapkit.load_into(torch.nn.Linear(1, 1), source, "wan22_pth")


def test_no_root_is_named_that_is_the_prefix_of_a_mount() -> None:
    layout = read_declared_source(remapkit.load("wan22_pth").file)
    assert layout is not None
    tensors = {f"{prefix}{fqn}": SPEC for prefix in ("tp0.", "tp1.") for fqn in layout}
    assert "--root tp0" in str(describe_layouts(StateDictSpec(tensors)))
    assert describe_layouts(StateDictSpec(tensors, prefixes=("tp0.", "tp1."))) is None


def test_a_file_of_a_folder_that_rules_mount_is_told_how_to_read_the_folder() -> None:
    rules = remapkit.load("llama3_ranks")
    (problem,) = [each for each in rules.plan(StateDictSpec({"norm.weight": SPEC})).problems if each.code == "RK301"]
    said = "the rule file reads the files of a folder as tp{t}.=consolidated.{t}.pth: name the folder as the source"
    assert any(said in each for each in problem.help)
    mounted = StateDictSpec({"tp0norm.weight": SPEC}, prefixes=("tp0",))
    (problem,) = [each for each in rules.plan(mounted).problems if each.code == "RK301"]
    assert not any(said in each for each in problem.help)


# ------------------------------------------------------------------------------------ check --ckpt C --model M


def test_check_takes_the_only_pack_of_a_model_that_fits() -> None:
    report = remapkit.check(keys="rules/keys/wan22_vae_upstream.json", model="wan.vae:WanVAE")
    assert report.ok and [check.plan.name for check in report.checks] == ["wan22_pth"]
    (note,) = [each for each in report.diagnostics if each.code == "RK614"]
    assert note.title == "wan22_pth is the only one of 2 packs for wan.vae:WanVAE that fits"


def test_check_says_how_far_off_the_packs_of_a_model_are() -> None:
    with pytest.raises(FailedCheck) as caught:
        remapkit.check(keys="rules/keys/flux_bfl.json", model="wan.vae:WanVAE")
    (problem,) = caught.value.diagnostics
    assert problem.code == "RK615"
    far = "780 of 780 keys matched by no rule, 196 of 196 names of the model missing"
    assert problem.notes == (f"wan22_diffusers: {far}", f"wan22_pth: {far}")
    assert problem.help[0] == "these keys are those of layout flux/bfl (pack flux_bfl)"


def test_check_says_that_a_checkpoint_is_the_models_own() -> None:
    with pytest.raises(FailedCheck, match=r"its keys are names of wan\.vae:WanVAE: there is nothing to convert"):
        remapkit.check(keys="rules/keys/wan.vae.WanVAE.json", model="wan.vae:WanVAE")


def test_check_does_not_choose_among_several_packs_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = remapkit.header("rules/keys/wan22_vae_upstream.json")
    both = [remapkit.load("wan22_pth"), remapkit.load("wan22_pth")]
    monkeypatch.setattr("remapkit.api.check._find_packs", lambda model, has_source: both)
    with pytest.raises(UsageError, match=r"2 packs for wan\.vae:WanVAE fit: wan22_pth"):
        remapkit.check(keys=spec, model="wan.vae:WanVAE")


def test_a_pack_without_a_source_needs_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text("remapkit: 1\nname: bare\ntarget: {model: 'wan.vae:WanVAE'}\nkeep: ['{r:**}']\n")
    found = [type("Found", (), {"path": file, "name": "bare"})]
    monkeypatch.setattr("remapkit.api.check.packs", lambda: found)
    with pytest.raises(UsageError, match=r"on which checkpoint should bare for wan\.vae:WanVAE be checked"):
        remapkit.check(model="wan.vae:WanVAE")
    with pytest.raises(UsageError, match=r"RK610.*no installed pack has the target wan\.vae:WanVEA"):
        remapkit.check(model="wan.vae:WanVEA")
    report = remapkit.check(keys="rules/keys/wan.vae.WanVAE.json", model="wan.vae:WanVAE")
    assert report.ok
