"""Converting a checkpoint by renaming: `remapkit apply` compared with `cp` and with common scripts.

    python benchmarks/io.py                      # 2.8 GB each, 5 rounds, warm cache
    python benchmarks/io.py --cold               # also with the page cache dropped before each run (needs root)
    python benchmarks/io.py --gigabytes 0.1      # small
    python benchmarks/io.py --reflink /mnt/xfs   # also on a filesystem that shares blocks
    python benchmarks/io.py --reflink loop       # the same on an XFS in a file, mounted for it (needs root)

Every method is a whole process, start-up included, and every output is fsynced before the clock stops, also that of
`cp`. All methods of a case run once per round in shuffled order; round 0 warms up and is dropped. Printed are
medians, ratios to `cp` of the same round's file, the process's peak resident memory, and the machine. "work" is the
time for writing that remapkit reports, without start-up, reading of headers, planning and checking.

Cases: `pth` and `safetensors` are the Wan 2.2 VAE's header (196 tensors) with random data, `many` 50,000 small
tensors in 8 shards, `in place` a safetensors file whose header is rewritten in place, `reflink` the same safetensors
file on a filesystem that shares blocks. "three outputs" writes encoder, decoder and the rest to a file each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "rules" / "keys" / "wan22_vae_upstream.json"
SHARDS = 8
EXPERTS = (
    "remapkit: 1\nname: experts\nrules:\n"
    "  - {id: experts, path: 'model.layers.{l:int}.experts.{e:int}.{w:w1|w2}.weight', "
    "to: 'blocks.{l}.ffn.{e}.{w}.weight'}\n"
)
LONGER = "remapkit: 1\nname: longer\nrules:\n"
LONGER += "  - {id: all, path: '{rest:**}', to: 'a_much_longer_name_than_before.{rest}'}\n"
SAME = "remapkit: 1\nname: same\nrules:\n  - {id: all, path: '{side:encoder|decoder}.{r:**}', to: '{side|s}.{r}'}\n"
SAME += "tables: {s: {encoder: e, decoder: d}}\nkeep: ['{c:conv1|conv2}.{leaf}']\n"
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Way:
    """One method of converting: a command, and the preparation of its input before the clock starts."""

    name: str
    command: Sequence[str]
    prepare: Callable[[], object] = lambda: None


# ------------------------------------------------------------------------------------------------ the inputs


def make(folder: Path, gigabytes: float, tensors: int) -> None:
    """Write the checkpoints in a separate process: this one stays small and does not add to a child's peak."""
    script = f"""
import json, math, sys, torch
from pathlib import Path
from safetensors.torch import save_file
folder = Path({str(folder)!r})
header = json.loads(Path({str(MANIFEST)!r}).read_text())
whole = sum(4 * math.prod(each["shape"]) for each in header.values())
part = min(1.0, {gigabytes} * 1e9 / whole)
state = {{}}
for fqn, each in header.items():
    shape = list(each["shape"])
    if shape:
        shape[0] = max(1, round(shape[0] * part))
    state[fqn] = torch.randn(shape)
torch.save(state, folder / "m.pth")
save_file(state, folder / "m.safetensors")
del state
count, shards = {tensors}, {SHARDS}
elements = max(1, int({gigabytes} * 1e9 / 2 / count))
(folder / "many").mkdir()
index = {{}}
for shard in range(shards):
    name = f"model-{{shard + 1:05}}-of-{{shards:05}}.safetensors"
    part = {{}}
    for n in range(shard * count // shards, (shard + 1) * count // shards):
        fqn = f"model.layers.{{n // 512}}.experts.{{n // 2 % 256}}.w{{n % 2 + 1}}.weight"
        part[fqn] = torch.randint(-9, 9, (elements,), dtype=torch.int16).view(torch.bfloat16)
        index[fqn] = name
    save_file(part, folder / "many" / name)
total = 2 * elements * count
(folder / "many" / "model.safetensors.index.json").write_text(
    json.dumps({{"metadata": {{"total_size": total}}, "weight_map": index}}))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    for name, text in (("experts", EXPERTS), ("longer", LONGER), ("same", SAME)):
        Path(folder, f"{name}.yaml").write_text(text, encoding="utf-8")


def python(*lines: str) -> list[str]:
    """Return the command of a common script that flushes its output to the disk like the others."""
    durable = "import os; d = os.open(out, os.O_RDONLY); os.fsync(d)"
    return [sys.executable, "-c", "\n".join((*lines, durable))]


def remap(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "remapkit", *arguments]


def apply(*arguments: str) -> list[str]:
    return remap("apply", *arguments, "--format", "json")


def rename(rules: Path) -> str:
    return f"import remapkit; rules = remapkit.load({str(rules)!r})"


def cases(folder: Path) -> dict[str, list[Way]]:
    """Return every case with its methods; the first of each is `cp`."""
    pth, st, many, out = folder / "m.pth", folder / "m.safetensors", folder / "many", folder / "out"
    rules = ROOT / "rules" / "wan22_pth.yaml"
    result = out / "o.safetensors"
    parts = [f"-oencoder.={out}/e.safetensors", f"-odecoder.={out}/d.safetensors", f"-o{out}/r.safetensors"]
    load = f"from safetensors.torch import load_file, save_file; import torch; out = {str(result)!r}; src = "

    def copied() -> None:
        shutil.copyfile(st, result)
        subprocess.run(["sync", str(result)], check=True)

    return {
        "pth": [
            Way("cp", ["sh", "-c", f"cp {pth} {out}/c && sync {out}/c"]),
            Way("remapkit apply", apply(str(rules), str(pth), "-o", str(result))),
            Way(
                "torch.load(mmap) + save_file",
                python(
                    load + repr(str(pth)),
                    rename(rules),
                    "save_file(rules(torch.load(src, mmap=True, weights_only=True)), out)",
                ),
            ),
            Way(
                "torch.load + save_file",
                python(load + repr(str(pth)), rename(rules), "save_file(rules(torch.load(src)), out)"),
            ),
        ],
        "safetensors": [
            Way("cp", ["sh", "-c", f"cp {st} {out}/c && sync {out}/c"]),
            Way("remapkit apply", apply(str(rules), str(st), "-o", str(result))),
            Way("remapkit apply, three outputs", apply(str(rules), str(st), *parts)),
            Way(
                "load_file + save_file",
                python(load + repr(str(st)), rename(rules), "save_file(rules(load_file(src)), out)"),
            ),
        ],
        "many": [
            Way("cp", ["sh", "-c", f"cp {many}/* {out}/ && sync {out}/*"]),
            # Not as JSON: 50,000 moves are 10 MB of JSON, which would add to the time and to this process's memory.
            Way("remapkit apply", remap("apply", f"{folder}/experts.yaml", str(many), "-o", str(result))),
            Way(
                "load_file + save_file",
                python(
                    load + repr(str(many)),
                    rename(folder / "experts.yaml"),
                    "from pathlib import Path",
                    "files = sorted(Path(src).glob('*.safetensors'))",
                    "state = {k: v for f in files for k, v in load_file(f).items()}",
                    "save_file(rules(state), out)",
                ),
            ),
        ],
        "in place": [
            Way("cp", ["sh", "-c", f"cp {st} {out}/c && sync {out}/c"]),
            Way(
                "header that fits",
                apply(f"{folder}/same.yaml", str(result), "--in-place"),
                copied,
            ),
            Way(
                "header that does not",
                apply(f"{folder}/longer.yaml", str(result), "--in-place"),
                copied,
            ),
        ],
    }


# ------------------------------------------------------------------------------------------------ measuring


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def drop_caches() -> None:
    subprocess.run(["sync"], check=True)
    DROP_CACHES.write_text("3\n", encoding="ascii")


@dataclass(frozen=True, slots=True)
class Sample:
    """One whole process: seconds, peak resident bytes, and the seconds of work that remapkit reports."""

    seconds: float
    peak: int
    work: float = math.nan


def once(way: Way, out: Path, cold: bool) -> Sample:
    """Run one whole process."""
    empty(out)
    way.prepare()
    if cold:
        drop_caches()
    else:
        subprocess.run(["sync"], check=True)
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        child = subprocess.Popen(list(way.command), stdout=said, stderr=said, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            sys.exit(f"{way.name} failed with {child.returncode}:\n{said.read().decode(errors='replace')}")
        said.seek(0)
        work = json.loads(said.read())["seconds"] if "json" in way.command else math.nan
    return Sample(seconds, usage.ru_maxrss * 1024, work)


def measure(ways: Sequence[Way], rounds: int, out: Path, cold: bool) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {way.name: [] for way in ways}
    for number in range(rounds + 1):
        for way in random.sample(list(ways), len(ways)):
            sample = once(way, out, cold)
            if number:
                found[way.name].append(sample)
    empty(out)
    return found


def report(case: str, found: dict[str, list[Sample]]) -> dict[str, dict[str, float]]:
    rows = {}
    print(f"\n{case}\n{'way':32} {'seconds':>8} {'x cp':>6} {'peak MB':>8} {'work ms':>8}")
    for name, samples in found.items():
        seconds = statistics.median(each.seconds for each in samples)
        pairs = zip(samples, found["cp"], strict=True)
        ratio = statistics.median(each.seconds / cp.seconds for each, cp in pairs)
        peak = max(each.peak for each in samples) / 1e6
        work = statistics.median(each.work for each in samples)
        rows[name] = {"seconds": seconds, "ratio": ratio, "peak_mb": peak, "work": work}
        shown = "" if math.isnan(work) else f"{work * 1e3:8.1f}"
        print(f"{name:32} {seconds:8.3f} {ratio:6.2f} {peak:8.0f} {shown}", flush=True)
    return rows


# ------------------------------------------------------------------------------------------------ shared blocks


@contextlib.contextmanager
def sharing(place: str, folder: Path, nbytes: int) -> Iterator[Path]:
    """Yield a folder on a filesystem that shares blocks: the given one, or an XFS in a file, mounted temporarily."""
    if place != "loop":
        with tempfile.TemporaryDirectory(dir=place, prefix="remapkit-io-") as name:
            yield Path(name)
        return
    image, mounted = folder / "xfs.image", folder / "xfs"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(max(400 << 20, 3 * nbytes))
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
        image.unlink()


def reflink_ways(source: Path, folder: Path) -> list[Way]:
    st, out = folder / "m.safetensors", folder / "out"
    shutil.copyfile(source / "m.safetensors", st)
    result = out / "o.safetensors"

    def cloned() -> None:
        subprocess.run(["cp", "--reflink=always", str(st), str(result)], check=True)

    rules = ROOT / "rules" / "wan22_pth.yaml"
    return [
        Way("cp", ["sh", "-c", f"cp --reflink=never {st} {out}/c && sync {out}/c"]),
        Way("cp --reflink", ["sh", "-c", f"cp --reflink=always {st} {out}/c && sync {out}/c"]),
        Way("remapkit apply", apply(str(rules), str(st), "-o", str(result))),
        Way("in place", apply(f"{source}/longer.yaml", str(result), "--in-place"), cloned),
    ]


def start_up(rounds: int) -> None:
    """Compare `remapkit --help` with a Python that does nothing."""
    times: dict[str, list[float]] = {"bare": [], "help": []}
    commands = {"bare": [sys.executable, "-c", "pass"], "help": remap("--help")}
    for _ in range(rounds * 4 + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    bare, help = (statistics.median(times[name][1:]) for name in ("bare", "help"))
    print(f"\nstart-up: bare Python {bare * 1e3:.0f} ms, remapkit --help {(help - bare) * 1e3:+.0f} ms")


def where(folder: Path) -> str:
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    free = math.floor(shutil.disk_usage(folder).free / 1e9)
    return (
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{kind.stdout.strip() or 'unknown'} with {free} GB free"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.82)
    parser.add_argument("--tensors", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="also with a cold page cache; needs root")
    parser.add_argument("--ours", action="store_true", help="only cp and remapkit")
    parser.add_argument("--reflink", metavar="PLACE", help="a folder that can share blocks, or `loop`")
    parser.add_argument("--cases", nargs="*", default=None, help="some of: pth, safetensors, many, 'in place'")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: the temporary folder)")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="remapkit-io-") as name:
        folder = Path(name)
        print(where(folder))
        make(folder, args.gigabytes, args.tensors)
        figures = {}
        for cold in [False, True] if args.cold else [False]:
            for case, ways in cases(folder).items():
                if args.cases is None or case in args.cases:
                    ways = [way for way in ways if not args.ours or "save_file" not in way.name]
                    title = f"{case}, {'cold' if cold else 'warm'}"
                    figures[title] = report(title, measure(ways, args.rounds, folder / "out", cold))
        if args.reflink:
            with sharing(args.reflink, folder, int(args.gigabytes * 1e9)) as shared:
                found = measure(reflink_ways(folder, shared), args.rounds, shared / "out", False)
                figures["reflink"] = report("reflink", found)
    start_up(args.rounds)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
