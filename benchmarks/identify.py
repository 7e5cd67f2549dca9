"""`remapkit identify` with many packs installed: the time of a new process, with and without the cache.

    python benchmarks/identify.py                # 50 packs, 9 rounds: half a minute
    python benchmarks/identify.py --packs 200

The packs are the shipped ones, and copies of them under other names in a copy of the package, each with manifests of
its own. Printed are the median and the best of the rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def install(folder: Path, packs: int) -> None:
    """Copy the package, and as many packs as wanted."""
    shutil.copytree(ROOT / "remapkit", folder / "remapkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("rules", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    shipped = sorted((folder / "rules").glob("*.yaml"))
    for number in range(packs - len(shipped)):
        path = shipped[number % len(shipped)]
        copy = f"copy{number}_"
        text = path.read_text(encoding="utf-8").replace("keys/", f"keys/{copy}").replace(": wan.vae:", ": none.vae:")
        text = text.replace("name: ", f"name: {copy}", 1).replace("from: ", f"from: {copy}", 1)
        (folder / "rules" / f"{copy}{path.name}").write_text(
            text.replace("\nto: ", f"\nto: {copy}", 1), encoding="utf-8"
        )
        for manifest in (ROOT / "rules" / "keys").glob("*.json"):
            if f"keys/{manifest.name}" in path.read_text(encoding="utf-8"):
                shutil.copy(manifest, folder / "rules" / "keys" / f"{copy}{manifest.name}")


def measure(folder: Path, checkpoint: Path, cache: str) -> float:
    environment = {**os.environ, "PYTHONPATH": str(folder), "REMAPKIT_CACHE": cache}
    started = time.perf_counter()
    words = [sys.executable, "-m", "remapkit", "identify", str(checkpoint)]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    spent = time.perf_counter() - started
    assert "exactly" in done.stdout, done.stdout
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install(folder, given.packs)
        checkpoint = ROOT / "rules" / "keys" / "flux_bfl.json"
        measure(folder, checkpoint, str(folder / "cache"))
        for what, cache in (("cached", str(folder / "cache")), ("no cache", "")):
            times = [measure(folder, checkpoint, cache) for _ in range(given.rounds)]
            print(f"{given.packs} packs, {what}: median {statistics.median(times):.3f} s, best {min(times):.3f} s")


if __name__ == "__main__":
    main()
