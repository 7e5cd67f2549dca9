"""The command line as a user meets it: right and wrong use, one clear message, the exit code, nothing written."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import remapkit
from remapkit.cli.app import main
from remapkit.cli.commands import packs

ROOT = Path(remapkit.__file__).parent.parent
TINY = ROOT / "tests" / "data" / "wan22_vae_tiny" / "upstream.pth"

FIVE_MISTAKES = r"""
remapkit: 1
name: five
sumary: a misspelt field
tables:
  slot: {norm1: a, norm2: a}
rules:
  - id: one
    match: 'x\.(?P<k>\d+'
    to: 'y.{k}'
  - id: two
    path: 'a.{i:int}.{slot:slot}'
    to: 'b.{j}.{slot|slot}'
  - id: three
    path: 'c.{i:int}.{leaf}'
    to: 'd.{leaf}'
"""


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def wrong_inputs(folder: Path) -> dict[str, Path]:
    """Files that people really pass, each made by hand."""
    (folder / "empty.pth").touch()
    (folder / "directory").mkdir()
    (folder / "truncated.pth").write_bytes(TINY.read_bytes()[:100_000])
    torch.save({"w": Evil()}, folder / "evil.pth")
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    (folder / "page.safetensors").write_text("<!DOCTYPE html><html><body>404</body></html>")
    save_file({"model.layers.0.mlp.weight": torch.ones(2)}, folder / "other.safetensors")
    return {path.name.partition(".")[0]: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "exit_code", "words"),
    [
        ("missing", 2, "no such file"),
        ("directory", 2, "a directory without a checkpoint"),
        ("empty", 2, "empty"),
        ("truncated", 2, "truncated"),
        ("evil", 2, "posix.system"),
        ("header", 2, "header"),
        ("page", 2, "HTML"),
        ("other", 1, "another layout"),
    ],
)
def test_a_wrong_checkpoint(
    name: str,
    exit_code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    inputs = wrong_inputs(tmp_path)
    before = sorted(tmp_path.iterdir())
    path = inputs.get(name, tmp_path / "missing.pth")
    assert main(["apply", "wan22_pth", str(path), "-o", str(tmp_path / "out.safetensors")]) == exit_code
    shown = capsys.readouterr()
    assert words.lower() in shown.err.lower()
    assert "Traceback" not in shown.err and shown.out == ""
    assert shown.err.count("error[") == 1
    assert sorted(tmp_path.iterdir()) == before, "something was written"


def test_a_rule_file_with_five_mistakes_says_all_five(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "five.yaml"
    path.write_text(FIVE_MISTAKES)
    assert main(["lint", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.count("error[") >= 5
    assert f"{path}:4:1" in out, "the misspelt field"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "--model", "no.such:Model"], "no installed pack"),
        (["check", "wan22_pth", "--model", "no.such:Model"], "no plugin named 'no'"),
        (["apply", "wan22_pth", "{tiny}", "--model", "py:torch.nn:Linear"], "--model-arg"),
        (["apply", "nowhere", "{tiny}"], "no pack named"),
        (["apply", "nowhere.yaml", "{tiny}"], "nowhere.yaml"),
        (["apply", "wan22_pth", "{tiny}", "--model-arg", "dim=8"], "need --model"),
        (["check", "--ckpt", "{tiny}"], "which rules"),
        (["explain", "wan22_pht", "conv1.weight"], "did you mean 'wan22_pth'"),
    ],
)
def test_wrong_use_exits_2_with_one_message(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(TINY) if word == "{tiny}" else word for word in arguments]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("error[") == 1
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    assert main(["apply", "wan22_pth", str(TINY), "-o", str(out)]) == 2
    assert "use --force" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert main(["apply", "wan22_pth", str(TINY), "-o", str(out), "--force"]) == 0
    assert out.stat().st_size > 6_000_000


def test_without_o_the_output_lies_beside_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "ckpt.pth"
    checkpoint.write_bytes(TINY.read_bytes())
    assert main(["apply", "wan22_pth", str(checkpoint)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pth", "ckpt.safetensors"]


def test_a_dry_run_shows_every_move_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["apply", "wan22_pth", str(TINY), "-o", str(out), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "encoder.downsamples.0.downsamples.2.resample.1.weight" in shown
    assert "encoder.downsamples.0.downsampler.resample.1.weight" in shown
    assert not out.exists()


def test_a_half_checkpoint_is_refused_unless_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(TINY, weights_only=True)
    half = tmp_path / "half.pth"
    torch.save({fqn: tensor for fqn, tensor in state.items() if not fqn.startswith("decoder")}, half)
    arguments = ["apply", "wan22_pth", str(half), "-o", str(tmp_path / "out.safetensors")]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "RK316" in err and "--partial" in err
    assert not (tmp_path / "out.safetensors").exists()
    assert main([*arguments, "--partial"]) == 0


def test_apply_against_a_model_of_another_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["apply", "wan22_pth", str(TINY), "-o", str(out), "--model", "wan.vae:WanVAE"]) == 1
    assert "shape mismatches" in capsys.readouterr().err
    assert not out.exists()
    narrow = ["--model-arg", "dim=8", "--model-arg", "dec_dim=12"]
    assert main(["apply", "wan22_pth", str(TINY), "-o", str(out), "--model", "wan.vae:WanVAE", *narrow]) == 0


def test_check_alone_finds_the_packs_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--model", "wan.vae:WanVAE", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    found = {each["rules"]: (each["matched"], each["target_keys"]) for each in data["checks"]}
    assert found["wan22_pth"] == found["wan22_diffusers"] == (196, 196)
    assert data["ok"]


def test_errors_are_json_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "wan22_pth", "missing.pth", "--format", "json"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False and data["exit_code"] == 2
    assert data["diagnostics"][0]["code"].startswith("RK4")


def test_github_annotations_point_at_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "five.yaml"
    path.write_text(FIVE_MISTAKES)
    assert main(["lint", str(path), "--format", "github"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::error")]
    assert len(lines) >= 5
    assert any(f"file={path},line=4,col=1" in line for line in lines)


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m remapkit inspect {TINY} --all | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packs, "run", interrupted)
    assert main(["packs"]) == 130
    assert capsys.readouterr().err == "interrupted: nothing was changed\n"


def test_a_bug_exits_3_and_says_that_it_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(packs, "run", broken)
    assert main(["packs"]) == 3
    assert "This is a bug in remapkit" in capsys.readouterr().err


def test_no_colour_unless_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "--model", "wan.vae:WanVAE"])
    main(["explain", "wan22_pth", "nothing.like.it"])
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err


def test_new_writes_a_rule_file_that_lints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["new", "mine", "--from", str(TINY), "-o", str(path)]) == 0
    assert main(["lint", str(path)]) == 0
    assert main(["test", str(path)]) == 0
    assert "196 of 196" in capsys.readouterr().out, "its manifest was written beside it, and is mapped whole"
    before = path.read_bytes(), (tmp_path / "keys" / "mine.json").read_bytes()
    assert main(["new", "mine", "--from", str(TINY), "-o", str(path)]) == 2
    assert capsys.readouterr().err.count("use --force") == 2, "both files are named"
    assert before == (path.read_bytes(), (tmp_path / "keys" / "mine.json").read_bytes())
    assert main(["new", "mine", "--from", str(TINY), "-o", str(path), "--force"]) == 0


def test_diff_of_two_layouts_is_families_and_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file({f"layers.{n}.{leaf}": torch.ones(2) for n in range(9) for leaf in ("q", "k")}, one)
    save_file({f"h.{n}.q": torch.ones(2) for n in range(9)}, other)
    assert main(["diff", str(one), str(other)]) == 1
    out = capsys.readouterr().out
    assert "layers.{0..8}.{" in out and "(18 keys)" in out and "h.{0..8}.q" in out
    assert "--rules-a" in out and len(out.splitlines()) < 8
    assert main(["diff", str(one), str(other), "--format", "json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["only_a"]) == 18


def test_new_to_nowhere_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "mine", "--from", str(TINY), "-o", str(tmp_path / "no" / "mine.yaml")]) == 2
    assert "error[RK503]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("apply", "check", "lint", "test", "explain", "inspect", "diff", "new", "packs", "schema"):
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        assert "usage: remapkit" in capsys.readouterr().out


def test_in_place_is_named_only_where_it_is_possible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "ckpt.pth"
    checkpoint.write_bytes(TINY.read_bytes())
    assert main(["apply", "wan22_pth", str(checkpoint), "-o", str(checkpoint), "--force"]) == 2
    err = capsys.readouterr().err
    assert "RK501" in err and "write to another file" in err and "--in-place" not in err


@pytest.mark.parametrize("text", ["-1", "nan", "much"])
def test_a_tolerance_must_be_a_number(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["diff", "a", "b", f"--tolerance={text}"])
    assert f"a tolerance must be a number that is not negative, got {text}" in capsys.readouterr().err
