"""Writes the value witnesses of the packs anew: `python tests/packs/witnesses.py`.

Each pack is verified against its reference on the small shapes of `pack_kit`; the ways back against the references
the other way round.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from backwards import BACK
from pack_kit import CASES, Case

from remapkit.cli import main


def arguments(case: Case, name: str, folder: Path) -> list[str]:
    """The command line that verifies one pack."""
    manifest = folder / f"{name}.json"
    header = case.small(case.source if name == case.pack else case.target)
    entries = {fqn: {"dtype": "F32", "shape": list(shape)} for fqn, shape in header.items()}
    manifest.write_text(json.dumps(entries), encoding="utf-8")
    module = "backwards" if name in BACK else "oracles"
    params = [word for param, value in case.params.items() for word in ("--param", f"{param}={value}")]
    return ["verify", name, "--oracle", f"py:{module}:{name}", "--keys", str(manifest), *params]


def write_all() -> int:
    """Verify and keep; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        codes = [
            main([*arguments(case, name, Path(folder)), "--write"])
            for case in CASES
            for name in (case.pack, case.back)
        ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(write_all())
