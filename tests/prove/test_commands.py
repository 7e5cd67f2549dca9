"""`lint`, `check` and `apply` prove first, name the level, and refuse what is refuted or undecided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import remapkit
from remapkit.cli.app import main

ROOT = Path(remapkit.__file__).parent.parent
TINY = ROOT / "tests" / "data" / "wan22_vae_tiny" / "upstream.pth"
GOOD = "remapkit: 1\nname: t\nrules: [{id: r, path: 'a.{n:int}', to: 'b.{n}'}]\n"
OVERLAP = f"{GOOD.removesuffix('}]' + chr(10))}}}, {{id: s, path: 'a.{{x}}', to: 'c.{{x}}'}}]\n"
UNDECIDED = "remapkit: 1\nname: t\nrules: [{id: r, match: '(?P<a>(?:xy)*)(?P<b>(?:xy)*)', to: '{b}{a}'}]\n"
LOSSY = "remapkit: 1\nname: t\nrules: [{id: r, path: 'a.{n:int}.{m:int}', to: 'b.{n}', forget: [m]}]\n"
OPEN = "remapkit: 1\nname: t\nrules: [{id: r, path: 'a.{n:int}', to: 'b.{n}'}]\nunmatched: keep\n"


@pytest.fixture
def rule_file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(request.param, encoding="utf-8")
    return path


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"a.0": {"dtype": "F32", "shape": [1]}}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("rule_file", "level", "codes", "exit_code"),
    [
        (GOOD, "all", [], 0),
        (OVERLAP, "refuted", ["RK201"], 1),
        (UNDECIDED, "undecided", ["RK200"], 1),
        (LOSSY, "keys", ["RK202"], 0),
        (OPEN, "keys", ["RK206"], 0),
    ],
    indirect=["rule_file"],
)
def test_lint_names_the_level(
    rule_file: Path, level: str, codes: list[str], exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", str(rule_file), "--format", "json"]) == exit_code
    data = json.loads(capsys.readouterr().out)
    assert (data["ok"], data["files"][0]["level"]) == (exit_code == 0, level)
    assert [each["code"] for each in data["diagnostics"]] == codes


@pytest.mark.parametrize("rule_file", [UNDECIDED], indirect=True)
def test_undecided_passes_only_where_it_is_allowed(rule_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", str(rule_file)]) == 1
    assert main(["lint", str(rule_file), "--allow-undecided"]) == 0
    assert "undecided" in capsys.readouterr().out


@pytest.mark.parametrize("rule_file", [OVERLAP, UNDECIDED], indirect=True)
def test_check_and_apply_refuse_before_anything_else(
    rule_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the checkpoint is looked at: this one is none."""
    broken, out = tmp_path / "broken.safetensors", tmp_path / "out.safetensors"
    broken.write_bytes(b"no checkpoint")
    assert main(["apply", str(rule_file), str(broken), "-o", str(out)]) == 1
    assert main(["check", str(rule_file), "--ckpt", str(broken), "--target-keys", str(broken)]) == 1
    assert "RK20" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("rule_file", [UNDECIDED], indirect=True)
def test_what_is_allowed_goes_on_to_the_checkpoint(rule_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no checkpoint")
    arguments = ["--allow-undecided"]
    assert main(["apply", str(rule_file), str(broken), "-o", str(tmp_path / "out.safetensors"), *arguments]) == 2
    assert main(["check", str(rule_file), "--ckpt", str(broken), "--target-keys", str(broken), *arguments]) == 2


@pytest.mark.parametrize("rule_file", [OPEN], indirect=True)
def test_check_passes_on_what_is_worth_saying(
    rule_file: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target.json"
    target.write_text(json.dumps({"b.0": {"dtype": "F32", "shape": [1]}}), encoding="utf-8")
    assert main(["check", str(rule_file), "--keys", str(keys), "--target-keys", str(target)]) == 0
    assert "note[RK206]" in capsys.readouterr().out


def test_a_target_shaped_key_that_passes_through_is_found_by_the_plan(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(OPEN, encoding="utf-8")
    spec = remapkit.TensorSpec("F32", (1,))
    plan = remapkit.load(rules).plan({"a.0": spec, "b.0": spec})
    assert [problem.code for problem in plan.problems] == ["RK303"]


def test_lint_says_what_is_wrong_with_a_declared_source_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(GOOD + "source: {keys: missing.json}\n", encoding="utf-8")
    assert main(["lint", str(path)]) == 1
    out = capsys.readouterr().out
    assert "missing.json" in out and "proven for all keys" in out


def test_lint_of_every_pack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint"]) == 0
    assert capsys.readouterr().out.count("ok: proven for all keys") >= 2
