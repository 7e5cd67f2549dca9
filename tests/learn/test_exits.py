"""Foreign code that ends the process ends nothing of ours: it is an error, as if it had raised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import remapkit
from remapkit.formats.manifest import write_manifest

CODE = """
import os, sys
from torch import nn
def ends(sd): os._exit(0)
def ends_late(sd):
    if len(sd) and os.environ.setdefault("RUNS_OF_MINE", "") != "":
        os._exit(0)
    os.environ["RUNS_OF_MINE"] = "1"
    return dict(sd)
def yields(sd):
    yield from sd.items()
    os._exit(0)
def exits(sd): sys.exit(0)
def forks(sd):
    child = os.fork()
    if not child:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    return {f"m.{fqn}": value for fqn, value in sd.items()}
class Model(nn.Module):
    def __init__(self):
        os._exit(0)
"""
CONVERTERS = ["ends", "ends_late", "yields", "exits"]
PACK = "remapkit: 1\nname: p\nsource: {keys: a.json}\nrules: [{id: r, path: '{k}', to: 'm.{k}'}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "at_import.py").write_text("import os\nos._exit(0)\n")
    (tmp_path / "p.yaml").write_text(PACK)
    header = {fqn: remapkit.TensorSpec("F32", (3,)) for fqn in ("a", "b")}
    write_manifest(remapkit.StateDictSpec(header), tmp_path / "a.json")
    return tmp_path


def run(folder: Path, *words: str) -> tuple[int, str]:
    """In a process of its own: a fault would end the tests."""
    done = subprocess.run([sys.executable, "-m", "remapkit", *words], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_converter_that_ends_the_process_is_an_error(name: str, folder: Path) -> None:
    code, said = run(folder, "learn", "--through", f"mine.py:{name}", "--from", "a.json", "-o", "out.yaml")
    assert code == 2 and "RK669" in said and "SystemExit: " in said, said
    assert "Traceback" not in said and not (folder / "out.yaml").exists()
    if name != "exits":
        assert "it called os._exit(0), which ends the process" in said


def test_a_process_that_it_forks_may_end(folder: Path) -> None:
    code, said = run(folder, "learn", "--through", "mine.py:forks", "--from", "a.json", "-o", "out.yaml")
    assert code == 0 and (folder / "out.yaml").exists(), said


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("learn", "--through", "at_import.py:f", "--from", "a.json", "-o", "o.yaml"), 2, "RK604"),
        (("learn", "--through", "py:at_import:f", "--from", "a.json", "-o", "o.yaml"), 2, "RK604"),
        (("verify", "p.yaml", "--oracle", "py:mine:ends"), 1, "RK714"),
        (("verify", "p.yaml", "--source", "py:mine:Model", "--target", "py:mine:Model"), 2, "RK604"),
        (("check", "p.yaml", "--model", "py:mine:Model"), 2, "RK604"),
    ],
)
def test_so_is_all_other_code_that_is_named(words: tuple[str, ...], code: int, problem: str, folder: Path) -> None:
    got, said = run(folder, *words)
    assert got == code and problem in said and "Traceback" not in said, (got, said)
