"""A declared target is held against the result by every face: the file written, the check, the state dict, the diff.

Kinds: a name that the target lacks, a name that nothing becomes, a shape, with the same size as the declared source,
another size of it, a part of it; no target, a model only, a target that cannot be read; nothing left at all.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from judge_kit import Header, manifest, rule_file, rules_of, safetensors, specs

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck
from remapkit.plans.target_check import check_declared_target

RENAME = "rules: [{id: r, path: 'a.{l}', to: 'bb.{l}'}]"
SPLIT = "rules: [{id: r, path: qkv, split: {dim: 0, sizes: equal, into: [q, k]}}]"
W: Header = {"b.w": ("F32", [4, 4])}
THIRDS: Header = {name: ("F32", [8, 8]) for name in "qkv"}
# row, the rules, the target, the checkpoint, the codes
FAULTS: list[tuple[str, str, Header, Header, list[str]]] = [
    ("A3", RENAME, W, {"a.w": ("F32", [4, 4])}, ["RK310", "RK311"]),
    ("A4", SPLIT, THIRDS, {"qkv": ("F32", [24, 8])}, ["RK310", "RK312"]),
    ("shape", RENAME, {"bb.w": ("F32", [4, 5])}, {"a.w": ("F32", [4, 4])}, ["RK312"]),
]


def said(output: str) -> list[str]:
    return [each["code"] for each in json.loads(output)["diagnostics"] if each["severity"] == "error"]


@pytest.mark.parametrize(("row", "body", "target", "header", "wanted"), FAULTS, ids=[each[0] for each in FAULTS])
@pytest.mark.parametrize("face", ["apply", "dry-run", "check", "diff", "transform"])
def test_a_result_that_is_not_the_target_is_refused(
    face: str,
    row: str,
    body: str,
    target: Header,
    header: Header,
    wanted: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest(tmp_path / "keys" / "t.json", target)
    rules = rule_file(tmp_path / "t.yaml", f"target: {{keys: keys/t.json}}\n{body}")
    file, out = safetensors(tmp_path / "a.safetensors", header), tmp_path / "out.safetensors"
    part = [code for code in wanted if code != "RK310"]  # a state dict, or a side of a diff, may be a part
    if face == "transform":
        state = {fqn: torch.zeros(spec.shape) for fqn, spec in specs(header).items()}
        with pytest.raises(FailedCheck) as refused:
            remapkit.load(rules)(state)
        assert [each.code for each in refused.value.diagnostics] == part
        return
    arguments = {
        "apply": ["apply", str(rules), str(file), "-o", str(out)],
        "dry-run": ["apply", str(rules), str(file), "--dry-run"],
        "check": ["check", str(rules), "--ckpt", str(file)],
        "diff": ["diff", str(file), str(file), "--rules-a", str(rules)],
    }[face]
    assert main([*arguments, "--format", "json"]) == 1
    assert said(capsys.readouterr().out) == (part if face == "diff" else wanted)
    assert not out.exists()


@pytest.mark.parametrize(
    ("target", "options", "why"),
    [
        ("", [], "t declares none"),
        ("target: {model: 'py:os:system'}\n", [], "the model py:os:system, which is imported only with"),
        ("target: {config: c.json}\n", [], "the model of c.json, which a rule file may not import"),
        ("target: {keys: t.json}\n", ["--no-target"], "--no-target"),
    ],
    ids=["none", "model", "config", "unasked"],
)
def test_what_is_not_checked_is_said(
    target: str, options: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(tmp_path / "t.json", W)
    (tmp_path / "c.json").write_text('{"architectures": ["GPT2Model"]}')
    rules = rule_file(tmp_path / "t.yaml", target + RENAME)
    file = safetensors(tmp_path / "a.safetensors", {"a.w": ("F32", [4, 4])})
    assert (
        main(["apply", str(rules), str(file), "-o", str(tmp_path / "o.safetensors"), *options, "--format", "json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == {"checked": "no", "against": None}
    (note,) = [each for each in found["diagnostics"] if each["code"] == "RK360"]
    assert note["severity"] == "note" and "not checked against a target" in note["title"] and why in note["title"]


def test_a_checked_result_says_against_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(tmp_path / "t.json", {"bb.w": ("F32", [4, 4])})
    rules = rule_file(tmp_path / "t.yaml", "target: {keys: t.json}\n" + RENAME)
    file = safetensors(tmp_path / "a.safetensors", {"a.w": ("F32", [4, 4])})
    assert main(["apply", str(rules), str(file), "-o", str(tmp_path / "o.safetensors"), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"]["checked"] == "exact"
    assert found["diagnostics"] == []


def test_a_manifest_that_is_not_there_is_named_where_it_is_declared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = rule_file(tmp_path / "t.yaml", "target: {keys: gone.json}\n" + RENAME)
    file = safetensors(tmp_path / "a.safetensors", {"a.w": ("F32", [4, 4])})
    assert main(["apply", str(rules), str(file), "-o", str(tmp_path / "o.safetensors")]) == 2
    shown = capsys.readouterr().err
    assert "the declared target" in shown and "t.yaml:3:16" in shown


# ------------------------------------------------------------------------------------------------- other sizes

SIZES = "source: {keys: s.json}\ntarget: {keys: t.json}\nrules: [{id: r, path: 'l.{i:int}.{x}', to: '%s.{i}.{x}'}]"
SOURCE: Header = {f"l.{i}.{x}": ("F32", [4, 4]) for i in (0, 1) for x in ("q", "k")}
TARGET: Header = {f"m.{i}.{x}": ("F32", [4, 4]) for i in (0, 1) for x in ("q", "k")}
WIDER: Header = {fqn: ("F32", [8, 8]) for fqn in SOURCE}
DEEPER: Header = {f"l.{i}.{x}": ("F32", [4, 4]) for i in range(3) for x in ("q", "k")}


@pytest.mark.parametrize(("header", "how"), [(SOURCE, "exact"), (WIDER, "layout"), (DEEPER, "layout")])
@pytest.mark.parametrize(("name", "right"), [("m", True), ("n", False)])
def test_another_size_of_the_declared_source_is_held_by_its_names(
    header: Header, how: str, name: str, right: bool, tmp_path: Path
) -> None:
    manifest(tmp_path / "s.json", SOURCE)
    manifest(tmp_path / "t.json", TARGET)
    rules = remapkit.load(rule_file(tmp_path / "t.yaml", SIZES % name))
    held = check_declared_target(rules, rules.plan(specs(header)))
    assert held.how == how
    assert [each.code for each in held.problems] == ([] if right else ["RK310", "RK311"])
    assert [each.code for each in held.notes] == (["RK361"] if how == "layout" else [])


def test_a_part_lacks_nothing_and_a_whole_does(tmp_path: Path) -> None:
    manifest(tmp_path / "s.json", SOURCE)
    manifest(tmp_path / "t.json", {**TARGET, "head": ("F32", [4])})
    rules = remapkit.load(rule_file(tmp_path / "t.yaml", SIZES % "m"))
    assert rules({"l.0.q": 1}) == {"m.0.q": 1}
    with pytest.raises(FailedCheck, match="RK310"):
        rules(dict.fromkeys(SOURCE, 1))


@pytest.mark.parametrize("model", ["WanVAE", "Wan21VAE"])
def test_the_manifests_of_models_are_those_of_the_models(model: str) -> None:
    from remapkit.models.build import build_on_meta
    from remapkit.models.reference import resolve_reference
    from remapkit.registry.installed import find_home
    from remapkit.tensors.from_torch import header_of

    folder = find_home("rules")
    assert folder is not None
    kept = remapkit.header(folder / "keys" / f"wan.vae.{model}.json")
    assert dict(kept) == dict(header_of(build_on_meta(resolve_reference(f"wan.vae:{model}"), model, {}, None)))


# --------------------------------------------------------------------------------------------------- nothing left


@pytest.mark.parametrize("face", ["plan", "transform"])
@pytest.mark.parametrize(
    "body",
    ["rules: [{id: r, path: 'net.{r:**}', to: '{r}'}]\nunmatched: drop", "drop: ['{all:**}']"],
    ids=["A5-unmatched", "A5-drop"],
)
def test_nothing_left_is_an_error(face: str, body: str) -> None:
    rules = rules_of(body)
    if face == "plan":
        assert [each.code for each in rules.plan(specs({"a.weight": ("F32", [2])})).problems] == ["RK368"]
    else:
        with pytest.raises(FailedCheck, match="another layout"):
            rules({"a.weight": 1})
        assert rules({}) == {}


def test_a_judge_that_is_asleep_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The planted fault: nobody asks for the declared target, and the first test of this module fails."""
    from remapkit.compute import rename as renaming

    manifest(tmp_path / "keys" / "t.json", W)
    rules = remapkit.load(rule_file(tmp_path / "t.yaml", f"target: {{keys: keys/t.json}}\n{RENAME}"))
    monkeypatch.setattr(renaming, "_diagnose_target", lambda *_: [])
    assert list(rules({"a.w": torch.zeros(4, 4)})) == ["bb.w"]
