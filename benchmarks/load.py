"""Loading a checkpoint into a module on meta: remapkit compared with safetensors and torch, in separate processes.

    python benchmarks/load.py                     # 2.8 GB, 5 rounds
    python benchmarks/load.py --gigabytes 0.1     # small

Every method runs once per round, in shuffled order; round 0 warms the page cache and is dropped. `load` is the time
until the module is loaded, `and touch` the time until one value of every page was read as well (a map that was not
read yet has cost nothing), `peak` the growth of peak resident memory while loading. Printed are medians, ratios to
the first method, and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remapkit.registry.installed import version

WIDTH = 2048
WAYS = {
    "remapkit, safetensors": "safetensors",
    "remapkit, .pth": "pth",
    "remapkit, copy=True": "safetensors",
    "remapkit, in place": "safetensors",
    "remapkit, in place, assign=True": "safetensors",
    "load_file + load_state_dict, in place": "safetensors",
    "load_file + assign": "safetensors",
    "torch.load(mmap) + assign": "pth",
    "torch.load + assign": "pth",
    "remapkit, dtype=bfloat16": "safetensors",
    "load_file + assign + .to(bfloat16)": "safetensors",
}
CUDA_WAYS = {
    "remapkit, device=cuda": "safetensors",
    "load_file(cuda) + assign": "safetensors",
    "torch.load(mmap) + assign + .to(cuda)": "pth",
}


def build(layers: int) -> Any:
    """Build the module: blocks of a wide weight, a bias and a norm."""
    from torch import nn

    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)) for _ in range(layers)]
    return nn.Sequential(*blocks)


def write(layers: int, folder: Path) -> None:
    """Write the same weights in both formats."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = build(layers).state_dict()
    save_file(state, folder / "m.safetensors")
    torch.save(state, folder / "m.pth")


def ways(path: Path) -> dict[str, Callable[[Any], object]]:
    """Return the methods for a module on meta; those named "in place" get a module with memory."""
    import torch
    from safetensors.torch import load_file

    import remapkit

    def assign(model: Any, state: Any) -> Any:
        model.load_state_dict(state, assign=True)
        return model

    half = torch.bfloat16
    return {
        "remapkit, safetensors": lambda model: remapkit.load_into(model, path),
        "remapkit, .pth": lambda model: remapkit.load_into(model, path),
        "remapkit, copy=True": lambda model: remapkit.load_into(model, path, copy=True),
        "remapkit, dtype=bfloat16": lambda model: remapkit.load_into(model, path, dtype=half),
        "remapkit, device=cuda": lambda model: remapkit.load_into(model, path, device="cuda"),
        "remapkit, in place": lambda model: remapkit.load_into(model, path),
        "remapkit, in place, assign=True": lambda model: remapkit.load_into(model, path, assign=True),
        "load_file + load_state_dict, in place": lambda model: model.load_state_dict(load_file(path)),
        "load_file + assign": lambda model: assign(model, load_file(path)),
        "load_file + assign + .to(bfloat16)": lambda model: assign(model, load_file(path)).to(half),
        "load_file(cuda) + assign": lambda model: assign(model, load_file(path, device="cuda")),
        "torch.load + assign": lambda model: assign(model, torch.load(path, weights_only=True)),
        "torch.load(mmap) + assign": lambda model: assign(model, torch.load(path, weights_only=True, mmap=True)),
        "torch.load(mmap) + assign + .to(cuda)": lambda model: assign(
            model, torch.load(path, weights_only=True, mmap=True)
        ).to("cuda"),
    }


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def measure(way: str, layers: int, path: Path) -> dict[str, float]:
    """Measure one run: seconds to load, seconds until every page was read too, growth of peak memory in bytes."""
    import torch

    load = ways(path)[way]
    small = Path(path.parent, f"small{path.suffix}")
    load_small = ways(small)[way]
    with torch.device("cpu" if "in place" in way else "meta"):
        model, warm = build(layers), build(1)
    load_small(warm)  # imports, and a CUDA context: not measured
    sync = torch.cuda.synchronize if "cuda" in way else lambda: None
    before = peak()
    started = time.perf_counter()
    load(model)
    sync()
    loaded = time.perf_counter()
    at_load = peak()
    # One float per page of 4 KiB.
    total = sum(float(parameter.detach().view(-1)[::1024].sum()) for parameter in model.parameters())
    read = time.perf_counter()
    assert total == total, "NaN"
    assert not any(parameter.is_meta for parameter in model.parameters())
    return {"load": loaded - started, "read": read - started, "peak": at_load - before}


def run(way: str, layers: int, path: Path) -> dict[str, float]:
    """Measure one run in a separate process."""
    command = [sys.executable, __file__, "--measure", way, "--layers", str(layers), "--path", str(path)]
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": root}
    )
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def report(results: dict[str, list[dict[str, float]]], nbytes: int, rounds: int) -> None:
    """Print the table."""
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    print(
        f"{nbytes / 1e9:.2f} GB, medians of {rounds} rounds, warm page cache; remapkit {version()}, "
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores{gpu}"
    )
    print(f"{'':40}{'load':>10}{'':>8}{'and touch':>11}{'peak':>11}")
    first = None  # seconds of the first method
    for way, found in results.items():
        middle = {key: statistics.median(each[key] for each in found) for key in found[0]}
        first = first or middle["load"]
        print(
            f"{way:40}{middle['load'] * 1e3:>7.1f} ms{middle['load'] / first:>7.1f}x"
            f"{middle['read'] * 1e3:>8.0f} ms{middle['peak'] / 1e6:>8.0f} MB"
        )


def main() -> None:
    """Write the files, run the rounds, print the table, remove the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write twice the size; default: a temporary one"
    )
    for name in ("--measure", "--layers", "--path"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, int(args.layers), Path(args.path))))
        return
    layers = max(1, round(args.gigabytes * 1e9 / (4 * WIDTH * (WIDTH + 3))))
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write(1, folder)
        for suffix in (".safetensors", ".pth"):
            (folder / f"m{suffix}").rename(folder / f"small{suffix}")
        # In a separate process: the weights must not stay in this one's memory.
        here = [sys.executable, "-c", f"import load, pathlib; load.write({layers}, pathlib.Path({name!r}))"]
        subprocess.run(here, check=True, cwd=Path(__file__).parent)
        import torch

        chosen = WAYS | (CUDA_WAYS if torch.cuda.is_available() else {})
        results: dict[str, list[dict[str, float]]] = {way: [] for way in chosen}
        for number in range(args.rounds + 1):
            for way in random.sample(list(chosen), len(chosen)):
                found = run(way, layers, folder / f"m.{chosen[way]}")
                if number:
                    results[way].append(found)
        report(results, (folder / "m.safetensors").stat().st_size, args.rounds)


if __name__ == "__main__":
    main()
