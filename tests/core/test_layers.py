"""The floors of docs/architecture.md hold, and the check that says so notices when they do not.

`make lint` checks the contracts of pyproject.toml on this tree. Here each kind of import that they forbid is planted
in a copy of the code, where the check must fail.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import remapkit

ROOT = Path(remapkit.__file__).parent.parent
FLOORS, CIRCLES, PLUGINS, TORCH = "Floors:", "No circles:", "A plugin imports", "torch is imported"

PLANTED = {
    "up": ("remapkit/tensors/spec.py", "import remapkit.plans.make", FLOORS),
    "sideways": ("remapkit/ops/base.py", "import remapkit.formats.reader", FLOORS),
    "late": ("remapkit/patterns/tree.py", "def _late(): from remapkit.rules import model", FLOORS),
    "for types only": (
        "remapkit/formats/reader.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING: from remapkit.plans import make",
        FLOORS,
    ),
    "circle of files": ("remapkit/plans/moves.py", "import remapkit.plans.make", CIRCLES),
    "circle of folders below a folder": (
        "remapkit/rulefile/yaml/nodes.py",
        "import remapkit.rulefile.schema.text\nimport remapkit.rulefile.schema.validate",
        CIRCLES,
    ),
    "circle in a plugin": ("plugins/wan/config.py", "from . import vae", CIRCLES),
    "a plugin reaches in": ("plugins/wan/media.py", "from remapkit.plans import make", PLUGINS),
    "torch": ("remapkit/plans/make.py", "def _late(): import torch.nn", TORCH),
    "a folder without a floor": ("remapkit/attic/__init__.py", "", FLOORS),
}


def copied(folder: Path) -> Path:
    """The code and its contracts, without what belongs to git or to an environment."""
    for name in ("remapkit", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def checked(folder: Path) -> tuple[int, str]:
    """Exit code and output of the check, as `make lint` runs it."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "plugins")])}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_floors_hold(tmp_path: Path) -> None:
    code, output = checked(copied(tmp_path))
    assert code == 0, output


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_import_is_noticed(tmp_path: Path, name: str) -> None:
    file, line, contract = PLANTED[name]
    path = copied(tmp_path) / file
    path.parent.mkdir(exist_ok=True)
    text = path.read_text() if path.exists() else '"""A folder."""\n'
    path.write_text(f"{text}\n\n{line}\n")
    code, output = checked(tmp_path)
    assert code == 1, output
    broken = [row for row in output.splitlines() if "BROKEN" in row]
    assert any(contract in row for row in broken), output


def test_the_picture_is_drawn_from_the_code() -> None:
    """After a change of imports: `python docs/draw_house.py --write`."""
    drawn = subprocess.run([sys.executable, ROOT / "docs/draw_house.py"], capture_output=True, text=True, check=True)
    assert f"```mermaid\n{drawn.stdout}```" in (ROOT / "docs/architecture.md").read_text()


def test_every_hop_of_the_key_is_in_the_code() -> None:
    page = (ROOT / "docs/architecture.md").read_text().partition("## One key")[2]
    hops = [line for line in page.splitlines() if re.match(r"\d+\. ", line)]
    named = re.findall(r"`(?:remapkit/)?([\w/]+\.py)`(?: `(\w+)`)?", page)
    assert 10 < len(hops) <= 20 and len(named) > 20
    for file, name in named:
        code = (ROOT / "remapkit" / file).read_text()
        assert not name or re.search(rf"^(def|class) {name}\b", code, re.MULTILINE), (file, name)


def test_the_page_fits_a_page() -> None:
    assert len((ROOT / "docs/architecture.md").read_text().splitlines()) <= 110


def test_the_page_names_every_folder() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    folders = {path.parent.name for path in (ROOT / "remapkit").glob("*/__init__.py")}
    assert not [name for name in sorted(folders) if f"`{name}/`" not in page]
