"""`remapkit identify` with many packs installed: the time of a new process, with and without the cache.

    python benchmarks/identify.py                # 50 packs, 9 rounds: half a minute
    python benchmarks/identify.py --packs 200

The packs are the shipped ones, and copies of them under other names in a copy of the package, each with manifests of
its own. Four checkpoints are identified: one exactly, one with scales under a root, one of another number of layers,
and an adapter. Printed are the medians and the best of the rounds, of the clock and of the processor's time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
                copied = json.loads(manifest.read_text(encoding="utf-8"))
                copied = {f"{copy}{fqn}" if fqn != "__metadata__" else fqn: each for fqn, each in copied.items()}
                (folder / "rules" / "keys" / f"{copy}{manifest.name}").write_text(json.dumps(copied), "utf-8")


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """Write manifests of four checkpoints, by what they are."""
    exact = ROOT / "rules" / "keys" / "flux_bfl.json"
    names = json.loads(exact.read_text(encoding="utf-8"))
    names.pop("__metadata__", None)
    one = {"dtype": "F32", "shape": []}
    scaled, adapter = {}, {}
    for fqn, entry in names.items():
        if fqn.endswith(".weight") and len(entry["shape"]) == 2:
            scaled[f"model.diffusion_model.{fqn}"] = {**entry, "dtype": "F8_E4M3"}
            scaled[f"model.diffusion_model.{fqn.removesuffix('weight')}scale_weight"] = one
            module = fqn.removesuffix(".weight").replace(".", "_")
            adapter[f"lora_unet_{module}.lora_up.weight"] = adapter[f"lora_unet_{module}.lora_down.weight"] = one
        else:
            scaled[f"model.diffusion_model.{fqn}"] = entry
    more = {fqn.replace("double_blocks.0.", "double_blocks.40."): entry for fqn, entry in names.items()}
    made = {"exactly": exact}
    for what, content in {"scaled": scaled, "more layers": {**names, **more}, "adapter": adapter}.items():
        made[what] = folder / f"{what}.json"
        made[what].write_text(json.dumps(content), encoding="utf-8")
    return made


def measure(folder: Path, checkpoint: Path, cache: str) -> tuple[float, float]:
    """Return the seconds of a new process, and those of the processor."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "REMAPKIT_CACHE": cache, "PYTHONDONTWRITEBYTECODE": ""}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    words = [sys.executable, "-m", "remapkit", "identify", str(checkpoint)]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    spent, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "flux/bfl" in done.stdout, done.stdout
    return spent, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install(folder, given.packs)
        time.sleep(2.1)  # files that have just changed are not trusted
        checkpoints = write_checkpoints(folder)
        warm = str(folder / "cache")
        for checkpoint in checkpoints.values():
            measure(folder, checkpoint, warm)
        runs = [(what, path, warm) for what, path in checkpoints.items()]
        for what, path, cache in (*runs, ("no cache", checkpoints["exactly"], "")):
            times, used = zip(*(measure(folder, path, cache) for _ in range(given.rounds)), strict=True)
            print(
                f"{given.packs} packs, {what}: median {statistics.median(times):.3f} s, best {min(times):.3f} s; "
                f"processor: median {statistics.median(used):.3f} s, best {min(used):.3f} s"
            )


if __name__ == "__main__":
    main()
