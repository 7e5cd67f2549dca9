"""What the command line does, one call of the same name does: the same files, verdicts and messages."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.diagnostic import to_json

RULES = "remapkit: 1\nname: one\nrules: [{id: a, path: 'layers.{n:int}.{p}', to: 'h.{n}.{p}'}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    state = {f"layers.{n}.{leaf}": torch.rand(4, generator=generator) for n in range(3) for leaf in ("q", "k")}
    save_file(state, "a.safetensors")
    save_file({name.replace("layers", "h"): value for name, value in state.items()}, "b.safetensors")
    torch.save({"ema": {"w": torch.ones(2)}, "model": {"w": torch.ones(2)}}, "two.pth")
    Path("r.yaml").write_text(RULES)
    Path("two.yaml").write_text(RULES + "  # twice\ndrop: ['layers.{n:int}.q']\n")
    return tmp_path


CASES: dict[str, tuple[list[str], Callable[[], Any], Callable[[Any], dict[str, Any]]]] = {
    "apply": (
        ["apply", "r.yaml", "a.safetensors", "-o", "out/o.safetensors", "--verify", "--no-target"],
        lambda: remapkit.apply("r.yaml", "a.safetensors", "out/o.safetensors", verify=True, declared_target=False),
        lambda found: {"tensors": found.tensors, "bytes": found.nbytes, "verified": True, "how": list(found.how)},
    ),
    "apply shards": (
        ["apply", "r.yaml", "a.safetensors", "-o", "out/s.safetensors", "--shard-size", "48", "--dtype", "bf16"],
        lambda: remapkit.apply("r.yaml", "a.safetensors", "out/s.safetensors", shard_size=48, dtype="bf16"),
        lambda found: {"output": [str(path) for path in found.files], "target": {"checked": "no", "against": None}},
    ),
    "check": (
        ["check", "r.yaml", "--ckpt", "a.safetensors", "--target-keys", "b.safetensors"],
        lambda: remapkit.check(remapkit.load("r.yaml"), "a.safetensors", target_keys="b.safetensors"),
        lambda found: {"ok": found.ok},
    ),
    "diff": (
        ["diff", "a.safetensors", "b.safetensors", "--rules-a", "r.yaml"],
        lambda: remapkit.diff("a.safetensors", "b.safetensors", rules_a="r.yaml"),
        lambda found: {"identical": found.identical, "total": 6, "max_abs": found.max_abs, "ok": found.ok},
    ),
    "explain": (
        ["explain", "r.yaml", "layers.0.q", "x"],
        lambda: remapkit.explain("r.yaml", ["layers.0.q", "x"]),
        lambda found: {"ok": all(each.ok for each in found)},
    ),
    "inspect": (
        ["inspect", "two.pth", "--root", "ema", "--manifest", "out/m.json"],
        lambda: remapkit.inspect("two.pth", root="ema", manifest="out/m.json"),
        lambda found: {"root": found.root, "format": found.format, "bytes": found.header.nbytes},
    ),
    "invert": (
        ["invert", "r.yaml", "-o", "out/i.yaml"],
        lambda: remapkit.invert("r.yaml", "out/i.yaml"),
        lambda found: {"output": str(found.output), "rules": found.rules, "manifests": []},
    ),
    "learn": (
        ["learn", "a.safetensors", "b.safetensors", "-o", "out/l.yaml"],
        lambda: remapkit.learn("a.safetensors", "b.safetensors", "out/l.yaml"),
        lambda found: {"output": str(found.output), "pairs": dict(found.learned.pairs)},
    ),
    "lint": (
        ["lint", "r.yaml", "two.yaml"],
        lambda: remapkit.lint(["r.yaml", "two.yaml"]),
        lambda found: {"ok": found.ok},
    ),
    "new": (
        ["new", "mine", "--from", "a.safetensors", "--to", "b.safetensors", "-o", "out/n.yaml"],
        lambda: remapkit.new("mine", "a.safetensors", "b.safetensors", "out/n.yaml"),
        lambda found: {"output": str(found.output), "manifest": found.manifest},
    ),
    "test": (
        ["test", "gpt2_hf"],
        lambda: remapkit.test("gpt2_hf"),
        lambda found: {"ok": found.ok},
    ),
    "packs": (
        ["packs"],
        remapkit.packs,
        lambda found: {},
    ),
    "verify": (
        ["verify", "r.yaml", "--oracle", "py:shutil:copy", "--keys", "a.safetensors"],
        lambda: remapkit.verify("r.yaml", oracle="py:shutil:copy", keys="a.safetensors"),
        lambda found: {"ok": found.ok, "rules": found.rules},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_function_does_what_the_command_does(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results, diagnostics and every written byte are the same."""
    command, call, data = CASES[name]
    Path("out").mkdir()
    code = main([*command, "--format", "json"])
    printed = json.loads(capsys.readouterr().out)
    by_command = {path.name: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    Path("out").rename("before")
    Path("out").mkdir()
    found = call()
    assert {path.name: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == by_command
    assert {key: printed[key] for key in data(found)} == data(found)
    diagnostics = getattr(found, "diagnostics", ())
    assert printed["diagnostics"] == json.loads(json.dumps(list(map(to_json, diagnostics)), default=str))
    assert code == (0 if getattr(found, "ok", data(found).get("ok", True)) else 1)
    assert capsys.readouterr() == ("", ""), "a function prints nothing"


def test_schema_and_recover_are_functions_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == remapkit.schema()
    assert remapkit.recover("a.safetensors") is False


def test_a_dry_run_has_every_move_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    found = remapkit.apply("r.yaml", "a.safetensors", dry_run=True, target_keys="b.safetensors")
    assert sorted(folder.iterdir()) == before and found.files == ()
    assert found.check is not None and found.check.ok and found.checked == "exact"
    assert [move.target for move in found.moves] == list(found.check.target)
    assert isinstance(found.plan, remapkit.Plan)


def test_in_place_then_back(folder: Path) -> None:
    before = load_file("a.safetensors")
    found = remapkit.apply("r.yaml", "a.safetensors", in_place=True)
    assert found.files == (Path("a.safetensors"),) and set(load_file("a.safetensors")) == set(found.plan.target)
    remapkit.apply(remapkit.load("r.yaml").inverse(), "a.safetensors", in_place=True)
    assert load_file("a.safetensors").keys() == before.keys()


def test_progress_is_bytes_done_and_bytes_in_total(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    found = remapkit.apply("r.yaml", "a.safetensors", "o.safetensors", progress=lambda *call: calls.append(call))
    done, total = zip(*calls, strict=True)
    assert list(done) == sorted(done) and set(total) == {done[-1]} == {found.nbytes}


def test_an_interrupt_leaves_every_file_as_it_was(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remapkit.apply("r.yaml", "a.safetensors", "b.safetensors", force=True, progress=interrupt)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_result_says_is_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="remapkit"):
        found = remapkit.apply("r.yaml", "a.safetensors", "o.safetensors")
        remapkit.lint("two.yaml")
    notes = [record for record in caplog.records if record.levelno == logging.INFO]
    assert [getattr(record, "diagnostic", None) for record in notes] == list(found.diagnostics)
    assert {record.name for record in caplog.records} == {"remapkit"}
    assert [record.levelno for record in caplog.records if "RK201" in record.getMessage()] == [logging.ERROR]


def test_the_command_line_logs_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It prints everything itself; a model that sets up logging must not print it once more."""
    with caplog.at_level(logging.DEBUG, logger="remapkit"):
        main(["apply", "r.yaml", "a.safetensors", "-o", "o.safetensors"])
    assert not caplog.records


def test_a_module_is_a_target(folder: Path) -> None:
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"h": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    report = remapkit.check("r.yaml", keys={"layers.0.weight": remapkit.TensorSpec("F32", (2, 2))}, model=model)
    assert report.checks[0].missing_keys == ("h.0.bias",)
    with pytest.raises(remapkit.FailedCheck, match=r"h\.0\.bias"):
        report.raise_for_problems()


def test_models_and_converters_may_be_given_as_they_are() -> None:
    rules = remapkit.loads(RULES)

    class Old(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[0](x)  # type: ignore[no-any-return]

    class New(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h[0](x)  # type: ignore[no-any-return]

    report = remapkit.verify(rules, source=Old, target=New, input="1,2")
    assert report.ok and report.verdicts[0].tensors == ("h.0.weight", "h.0.bias")
    wrong = remapkit.verify(rules, source=Old, oracle=lambda state: {"h.0.weight": state["layers.0.weight"]})
    assert not wrong.ok and wrong.diagnostics[0].code == "RK710"


def test_what_a_call_reads_is_never_written(folder: Path) -> None:
    """Whatever argument names it: the rules, a checkpoint, pairs, a config, an argument of the model."""
    Path("pairs.json").write_text(json.dumps({"layers.0.q": "h.0.q"}))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    calls: list[Callable[[], object]] = [
        lambda: remapkit.invert("r.yaml", "r.yaml", force=True),
        lambda: remapkit.invert(remapkit.load("r.yaml"), "r.yaml", force=True),
        lambda: remapkit.inspect("a.safetensors", manifest="a.safetensors", force=True),
        lambda: remapkit.learn("a.safetensors", "b.safetensors", "b.safetensors", force=True),
        lambda: remapkit.learn("a.safetensors", "b.safetensors", "pairs.json", pairs="pairs.json", force=True),
        lambda: remapkit.new("x", "a.safetensors", "b.safetensors", "b.safetensors", force=True),
    ]
    for call in calls:
        with pytest.raises(remapkit.UnwritableOutput, match="RK501"):
            call()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
