"""`explain`, `verify`, `diff` and `invert` see a source as `apply` does; `new` takes no root by itself."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import remapkit
from remapkit.cli.app import main
from remapkit.rules.model import CompiledRules
from remapkit.sources.open import PRIVATE_NAMES

LAYERS = "rules: [{id: r, path: 'layers.{i:int}.{leaf:w|b}', to: 'h.{i}.{leaf}'}]"


def load(head: str = "") -> CompiledRules:
    return remapkit.loads(f"remapkit: 1\nname: t\n{head}{LAYERS}\n")


def save(path: Path, *fqns: str) -> Path:
    torch.save({fqn: torch.full((2,), float(number)) for number, fqn in enumerate(fqns)}, path)
    return path


@given(
    root=st.sampled_from(["", "net", "net.unet", "model"]),
    segments=st.lists(st.sampled_from([*PRIVATE_NAMES, "layers", "0", "w", "b", "h"]), min_size=1, max_size=6),
)
def test_explain_reads_a_key_as_the_checkpoint_is_read(root: str, segments: list[str]) -> None:
    rules = load()
    key = ".".join(filter(None, (root, *segments)))
    (found,) = remapkit.explain(rules, key)
    bare = [segment for segment in key.split(".") if segment not in PRIVATE_NAMES]
    cuts = [cut for cut in range(len(bare)) if rules.match(".".join(bare[cut:]))]
    assert found.key == key
    if found.root:
        assert found.ok and f"{found.root}.{found.name}" == ".".join(bare)
    elif bare:
        assert found.name == ".".join(bare)
        assert bool(found.matches) == (0 in cuts)
        if len(cuts) == 1 and cuts[0]:
            assert any(segment.isdecimal() for segment in bare[: cuts[0]]), "a layer is no root"


def test_explain_takes_a_declared_root_and_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (found,) = remapkit.explain(load("source: {root: [net], strip: [module]}\n"), "net.module.layers.0.w")
    assert (found.root, found.name, found.matches[0].target) == ("net", "layers.0.w", "h.0.w")
    (other,) = remapkit.explain(load("source: {root: [net]}\n"), "model.layers.0.w")
    assert not other.matches and not other.root
    (tmp_path / "t.yaml").write_text(f"remapkit: 1\nname: t\n{LAYERS}\n")
    assert main(["explain", str(tmp_path / "t.yaml"), "net._orig_mod.layers.0.w"]) == 0
    assert "read as layers.0.w below the root 'net'" in capsys.readouterr().out
    assert main(["explain", str(tmp_path / "t.yaml"), "layers._orig_mod.0.w", "--format", "json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["keys"]
    assert (shown["read_as"], shown["root"]) == ("layers.0.w", "")


def test_diff_takes_the_only_root_where_the_rules_fit(tmp_path: Path) -> None:
    a = save(tmp_path / "a.pth", "net.layers.0.w", "net.layers.1.w", "step")
    b = save(tmp_path / "b.pth", "h.0.w", "h.1.w")
    assert remapkit.diff(a, b, rules_a=load()).ok
    assert remapkit.diff(b, a, rules_b=load()).ok
    with pytest.raises(remapkit.FailedCheck, match="RK301"):
        remapkit.diff(a, b, rules_a=load(), root_a=".")


@pytest.mark.parametrize("swapped", [False, True])
def test_diff_names_the_root_of_the_other_side(swapped: bool, tmp_path: Path) -> None:
    a = save(tmp_path / "a.pth", "layers.0.w", "layers.1.w")
    b = save(tmp_path / "b.pth", "net.layers.0.w", "net.layers.1.w", "step")
    found = remapkit.diff(b, a) if swapped else remapkit.diff(a, b)
    (hint,) = found.diagnostics
    assert hint.title == "all 2 keys of a.pth are there in b.pth under root 'net'"
    assert hint.help == (f"--root-{'a' if swapped else 'b'} net",)
    assert remapkit.diff(a, b, root_b="net").ok
    assert remapkit.diff(a, save(tmp_path / "c.pth", "x", "y")).diagnostics == ()


def test_diff_names_the_packs_of_two_layouts(tmp_path: Path) -> None:
    names = [json.loads(Path(f"rules/keys/wan22_vae_{side}.json").read_text()) for side in ("upstream", "diffusers")]
    a, b = (save(tmp_path / f"{number}.pth", *names[number]) for number in (0, 1))
    found = remapkit.diff(a, b)
    assert [each.title for each in found.diagnostics] == [
        "these keys are those of layout wan22-vae/upstream (packs wan22_pth and wan22_vae)",
        "these keys are those of layout wan22-vae/diffusers (packs wan22_diffusers and wan22_vae_diffusers)",
    ]


def test_verify_reads_keys_under_the_only_root_that_fits(tmp_path: Path) -> None:
    keys = save(tmp_path / "a.pth", "net.layers.0.w", "net.layers.1.b", "step")
    convert: Callable[[dict[str, object]], dict[str, object]] = lambda state: {  # noqa: E731
        fqn.replace("layers", "h"): value for fqn, value in state.items()
    }
    report = remapkit.verify(load(), oracle=convert, keys=keys)
    assert report.ok and set(report.verdicts[0].tensors) == {"h.0.w", "h.1.b"}


def test_the_inverse_says_what_the_source_had_around_its_names() -> None:
    rules = load("source: {root: [net, model], strip: [module]}\n")
    text = remapkit.invert(rules).text
    assert "# The targets are names below the root of t's source: not under net and model.\n" in text
    assert "# Not restored, because t takes them out of its source's keys: module.\n" in text
    assert remapkit.loads(text).match("h.0.w")[0].target == "layers.0.w"
    assert "root" not in remapkit.invert(load()).text


def test_new_takes_no_root_by_itself(tmp_path: Path) -> None:
    made = remapkit.new("t", save(tmp_path / "a.pth", "net.unet.layers.0.w", "net.unet.norm.b"))
    assert "net.unet.norm.b" in made.text
    (note,) = made.diagnostics
    assert note.title == "all 2 keys are under root 'net' and 'net.unet'"
    assert remapkit.new("t", tmp_path / "a.pth", root="net.unet").diagnostics == ()


# ------------------------------------------------------------------------------------ errors for programs


@pytest.mark.parametrize("form", [["--format", "json"], ["--format=json"]])
@pytest.mark.parametrize("wrong", [["chek"], ["check", "--bogus"], ["apply"], ["diff", "a", "b", "--tolerance", "x"]])
def test_wrong_arguments_are_json_too(wrong: list[str], form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*wrong, *form])
    assert caught.value.code == 2
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False and said["exit_code"] == 2
    assert [each["code"] for each in said["diagnostics"]] == ["RK609"]
    with pytest.raises(SystemExit):
        main(wrong)
    shown = capsys.readouterr()
    assert not shown.out and "usage:" in shown.err


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda folder: remapkit.load("no_such_pack"), errno.ENOENT),
        (lambda folder: remapkit.open_checkpoint(folder / "none.pth"), errno.ENOENT),
        (lambda folder: remapkit.load("wan22_pth", config=folder / "none.json"), errno.ENOENT),
        (lambda folder: remapkit.new("t", save(folder / "a.pth", "w"), None, folder / "a.pth.yaml"), errno.EEXIST),
    ],
)
def test_a_system_error_has_its_number(call: Callable[[Path], object], number: int, tmp_path: Path) -> None:
    (tmp_path / "a.pth.yaml").write_text("")
    with pytest.raises(OSError) as caught:
        call(tmp_path)
    assert isinstance(caught.value, remapkit.RemapkitError)
    assert caught.value.errno == number
    assert pickle.loads(pickle.dumps(caught.value)).errno == number


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a system without /proc")
def test_a_folder_that_exists_is_not_said_to_be_missing(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth", "layers.0.w")
    with pytest.raises(remapkit.UnwritableOutput) as caught:
        remapkit.apply(load(), source, "/proc/x.safetensors")
    assert "no file can be created in /proc" in str(caught.value)
