"""The wheel holds the plugins, the packs, the schema and the typing marker, and nothing else of the repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import remapkit

ROOT = Path(remapkit.__file__).parent.parent


@pytest.mark.slow
def test_what_is_in_the_wheel(tmp_path: Path) -> None:
    """Built by hatchling itself, in this environment: no network is needed."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "remapkit").rglob("*.py")),
        *(f"remapkit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "plugins").rglob("*.py")),
        *(f"remapkit/_bundled/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "rules").rglob("*.yaml")),
        *(f"remapkit/_bundled/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "rules").rglob("*.json")),
        "remapkit/py.typed",
        "remapkit/companions/formats.yaml",
        "remapkit/rulefile/schema/rules-v1.schema.json",
        *(f"remapkit/picture/report.{kind}" for kind in ("css", "html", "js")),
        "remapkit/picture/drawings.js",
    }
    assert "remapkit/plugins/wan/vae.py" in sources and "remapkit/_bundled/rules/wan22_pth.yaml" in sources
    packaged = {name for name in names if ".dist-info/" not in name}
    assert sorted(sources - packaged) == []
    assert sorted(packaged - sources) == [], "no tests, caches or build files"
