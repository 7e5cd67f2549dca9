"""What a root, a strip and mounts cost: `remapkit apply` on the same tensors, plain and as checkpoints lie.

    python benchmarks/sources.py                 # 50,000 keys, 7 rounds
    python benchmarks/sources.py --keys 2000     # small

Every run is a whole process. All ways run once per round in shuffled order, and round 0 warms up. The tensors have
4 bytes each, so that names are all that costs. Printed are medians, of the clock and of the processor, and
the ratios to `plain` of the same command: `dry run` plans and checks, `apply` also writes. The aim is at most 1.1
with a root and a strip. The time of the processor is the one to trust on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = "model.diffusion_model"
RULES = (
    "remapkit: 1\nname: experts\nrules:\n"
    "  - {id: experts, path: 'layers.{l:int}.experts.{e:int}.{w:w1|w2}.weight', "
    "to: 'blocks.{l}.ffn.{e}.{w}.weight'}\n"
)
RANKS = (
    "remapkit: 1\nname: ranks\nrules:\n"
    "  - {id: experts, path: 'tp{t:int}.layers.{l:int}.experts.{e:int}.{w:w1|w2}.weight', "
    "to: 'r{t}.blocks.{l}.ffn.{e}.{w}.weight'}\n"
)
FILES = 8


def list_keys(count: int) -> list[str]:
    return [f"layers.{n // 512}.experts.{n // 2 % 256}.w{n % 2 + 1}.weight" for n in range(count)]


def save(fqns: Sequence[str], path: Path) -> None:
    values = torch.arange(len(fqns), dtype=torch.float32)
    save_file({fqn: value.clone() for fqn, value in zip(fqns, values, strict=True)}, path)


def make(folder: Path, count: int) -> Mapping[str, list[str]]:
    """Write the checkpoints, and return the arguments of each way."""
    keys = list_keys(count)
    wrapped = [fqn.replace(".experts.", ".module.experts.") for fqn in keys]
    save(keys, folder / "plain.safetensors")
    save([f"{ROOT}.{fqn}" for fqn in keys], folder / "root.safetensors")
    save(wrapped, folder / "strip.safetensors")
    save([f"{ROOT}.{fqn}" for fqn in wrapped], folder / "both.safetensors")
    for number in range(FILES):
        save(keys[number::FILES], folder / f"rank.{number:02d}.safetensors")
    (folder / "rules.yaml").write_text(RULES, encoding="utf-8")
    (folder / "ranks.yaml").write_text(RANKS, encoding="utf-8")
    rules, files = str(folder / "rules.yaml"), {path.stem: str(path) for path in folder.glob("*.safetensors")}
    return {
        "plain": [rules, files["plain"]],
        "root": [rules, files["root"], "--root", ROOT],
        "root, found": [rules, files["root"]],
        "strip": [rules, files["strip"], "--strip", "module"],
        "root and strip": [rules, files["both"], "--root", ROOT, "--strip", "module"],
        f"{FILES} files": [str(folder / "ranks.yaml"), f"tp{{t}}.={folder}/rank.{{t}}.safetensors"],
    }


def run(words: Sequence[str]) -> tuple[float, float]:
    """Return the seconds on the clock and of the processor."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "remapkit", "apply", *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = make(folder, options.keys)
        ends = {"dry run": ["--dry-run"], "apply": ["-o", str(folder / "out.safetensors"), "--force"]}
        pairs = [(way, end) for way in ways for end in ends]
        found: dict[tuple[str, str], list[tuple[float, float]]] = {pair: [] for pair in pairs}
        for number in range(options.rounds + 1):
            for way, end in random.Random(number).sample(pairs, len(pairs)):
                seconds = run([*ways[way], *ends[end]])
                if number:
                    found[way, end].append(seconds)
        print(f"{options.keys:,} keys, {options.rounds} rounds, medians")
        for end in ends:
            plain, plain_busy = (statistics.median(column) for column in zip(*found["plain", end], strict=True))
            for way in ways:
                clock, busy = (statistics.median(column) for column in zip(*found[way, end], strict=True))
                ratios = f"{clock / plain:5.2f} x plain   {busy:7.3f} s CPU   {busy / plain_busy:5.2f} x plain"
                print(f"{end:8} {way:16} {clock:7.3f} s   {ratios}")


if __name__ == "__main__":
    main()
