"""What `remapkit learn` costs: two checkpoints with the same weights, renamed and with operations, and many keys.

    python benchmarks/learn.py                    # 2.8 GB each and 50,000 keys, 5 rounds
    python benchmarks/learn.py --gigabytes 0.2    # small

Every run is a whole process. Printed are medians, the ratio to hashing both files with `sha256sum`, the peak resident
memory of the largest run, and how many keys of B the learned rules produce. Cases: `renamed` are two transformers
whose tensors only have other names; in `operations` q, k and v are one tensor, gate and up too, and the output
projections are transposed; `keys` are 50,000 vectors of two numbers, and in `open` one in ten has other values in B.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

WORDS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out", "gate": "w1", "up": "w3", "down": "w2"}


def make(folder: Path, gigabytes: float, keys: int) -> None:
    """Write the checkpoints in a process of its own, so that this one stays small."""
    script = f"""
import torch
from pathlib import Path
from safetensors.torch import save_file
folder, layers, words = Path({str(folder)!r}), 16, {WORDS!r}
width = 64 * round(({gigabytes} * 1e9 / 4 / layers / 12) ** 0.5 / 64)
a = {{}}
for layer in range(layers):
    for word in words:
        wide = 8 * width // 3
        shape = (width, width) if word in "qkvo" else (width, wide) if word == "down" else (wide, width)
        a[f"model.layers.{{layer}}.{{word}}.weight"] = torch.randn(shape)
    a[f"model.layers.{{layer}}.norm.weight"] = torch.rand(width)
save_file(a, folder / "a.safetensors")
renamed = {{}}
for fqn, tensor in a.items():
    _, _, layer, word, _ = fqn.split(".")
    renamed[f"blocks.{{layer}}.{{words.get(word, 'ln')}}.weight"] = tensor
save_file(renamed, folder / "renamed.safetensors")
del renamed
made = {{}}
for layer in range(layers):
    get = lambda word: a.pop(f"model.layers.{{layer}}.{{word}}.weight")
    made[f"blocks.{{layer}}.qkv.weight"] = torch.cat([get(word) for word in "qkv"])
    made[f"blocks.{{layer}}.gate_up.weight"] = torch.cat([get("gate"), get("up")])
    made[f"blocks.{{layer}}.out.weight"] = get("o").t().contiguous()
    made[f"blocks.{{layer}}.down.weight"] = get("down").t().contiguous()
    made[f"blocks.{{layer}}.ln.weight"] = get("norm")
save_file(made, folder / "operations.safetensors")
del made
values = torch.randn({keys}, 2)
names = [f"layers.{{n // 512}}.experts.{{n // 2 % 256}}.w{{n % 2 + 1}}.weight" for n in range({keys})]
save_file({{name: value.clone() for name, value in zip(names, values)}}, folder / "many.a.safetensors")
other = {{name.replace("layers", "h"): value.clone() for name, value in zip(names, values)}}
save_file(other, folder / "keys.safetensors")
for name in list(other)[::10]:
    other[name] = torch.randn(2)
save_file(other, folder / "open.safetensors")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def run(words: Sequence[str]) -> tuple[float, float, str]:
    """Return the seconds, the peak resident memory in MB, and what was printed."""
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{words} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.8)
    parser.add_argument("--keys", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.gigabytes, options.keys)
        print(f"{platform.machine()}, {os.cpu_count()} cores, {options.rounds} rounds, medians")
        for case in ("renamed", "operations", "keys", "open"):
            a, b = (
                folder / ("many.a.safetensors" if case in ("keys", "open") else "a.safetensors"),
                folder / f"{case}.safetensors",
            )
            learn = [
                sys.executable,
                "-m",
                "remapkit",
                "learn",
                str(a),
                str(b),
                "-o",
                str(folder / "o.yaml"),
                "--force",
            ]
            ways = {"sha256sum": ["sha256sum", str(a), str(b)], "learn": learn}
            found: dict[str, list[float]] = {way: [] for way in ways}
            said, peak = "", 0.0
            for number in range(options.rounds + 1):
                for way in random.Random(number).sample(sorted(ways), len(ways)):
                    seconds, memory, output = run(ways[way])
                    if way == "learn":
                        said, peak = output, max(peak, memory)
                    if number:
                        found[way].append(seconds)
            hashed, learned = (statistics.median(found[way]) for way in ways)
            counts = next(iter(re.findall(r"\d+ of \d+ keys to \d+ of \d+", said)), "")
            print(
                f"{case:10} {learned:7.2f} s   {learned / hashed:5.2f} x sha256sum   up to {peak:,.0f} MB   {counts}"
            )


if __name__ == "__main__":
    main()
