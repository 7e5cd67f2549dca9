"""docs/plugins.md: the plugin on the page is written into a folder, and the commands on the page are run with it."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import remapkit
from remapkit.cli.app import main
from remapkit.registry.installed import GROUP

PAGE = (Path(remapkit.__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, and what `pip install -e .` adds: a `.dist-info` folder with the entry points."""
    for _, text in BLOCKS:
        if name := re.match(r"# ([\w/]+\.\w+)\n", text):
            path = tmp_path / name.group(1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    declared = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = declared["name"], declared["version"]
    info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = "".join(f"{plugin} = {package}\n" for plugin, package in declared["entry-points"][GROUP].items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for module in [name for name in sys.modules if name.partition(".")[0] == "remapkit_mine"]:
        del sys.modules[module]


def write_checkpoint(folder: Path) -> None:
    shapes = {"weight": (8, 8), "bias": (8,)}
    torch.save({f"layers.{n}.{leaf}": torch.rand(shape) for n in (0, 1) for leaf, shape in shapes.items()}, folder)


def commands() -> list[list[str]]:
    lines = [line for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
    return [shlex.split(line.removeprefix("$ ")) for line in lines]


def test_the_page_holds(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(project / "upstream.pth")
    for program, *arguments in commands():
        if program == "mkdir":
            (project / arguments[-1]).mkdir(parents=True)
        else:
            assert main(arguments) == 0, (arguments, capsys.readouterr().err)
    assert "net_upstream" in capsys.readouterr().out
    assert (project / "upstream.safetensors").exists()
    rules = project / "remapkit_mine" / "rules" / "net_upstream.yaml"
    rules.write_text(rules.read_text().replace("# source:", "source:"))
    assert main(["test", "net_upstream"]) == 0
    assert main(["check", "--model", "mine.model:Net"]) == 0
    assert "mine.model:Net (4)" in capsys.readouterr().out


def test_the_models_own_manifest_spares_the_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`keys/mine.model.Net.json` beside the rules: `apply` compares with it, and says so where it is not there."""
    write_checkpoint(project / "upstream.pth")
    assert main(["apply", "net_upstream", "upstream.pth", "-o", "a.safetensors"]) == 0
    assert "RK360" in capsys.readouterr().err
    keys = project / "remapkit_mine" / "rules" / "keys"
    keys.mkdir()
    assert main(["inspect", "a.safetensors", "--manifest", str(keys / "mine.model.Net.json")]) == 0
    assert main(["apply", "net_upstream", "upstream.pth", "-o", "b.safetensors"]) == 0
    assert "RK360" not in capsys.readouterr().err


def test_listing_packs_imports_nothing_of_the_plugin(project: Path) -> None:
    assert main(["packs"]) == 0
    assert "remapkit_mine.model" not in sys.modules


def test_the_python_of_the_page_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [text for kind, text in BLOCKS if kind == "python" and text.startswith("import remapkit\n")]
    values: dict[str, object] = {}
    exec(code, values)
    assert values["exit_code"] == 2 and "did you mean 'net_upstream'?" in capsys.readouterr().err
