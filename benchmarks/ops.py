"""Operations at the size of real checkpoints, compared with torch: seconds, and the peak memory of the whole process.

    python benchmarks/ops.py                    # 8 GB of experts, a 2 GiB transpose, a cast, fused experts
    python benchmarks/ops.py --gigabytes 1      # smaller

Each run is a separate process; the peak is the kernel's count (VmHWM), which includes pages of mapped files. torch
loads and saves with safetensors, as scripts do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {
    "stack": "experts -> one tensor, along dimension 0",
    "stack1": "the same, along dimension 1",
    "gate_up": "w1 and w3 of each expert -> one tensor",
    "unstack": "one tensor -> experts",
    "transpose": "a transposed square matrix",
    "rope": "rotary pairs of every head",
    "cast": "fp32 -> bf16",
}
RULES = {
    "stack": "path: 'e.{e:int}.w', stack: {dim: 0, by: e}, to: w",
    "stack1": "path: 'e.{e:int}.w', stack: {dim: 1, by: e}, to: w",
    "gate_up": "concat: {dim: 0, from: ['e.{e:int}.w', 'e.{e:int}.v']}, stack: {dim: 0, by: e}, to: w",
    "unstack": "path: w, unstack: {dim: 0, by: e}, to: 'e.{e}.w'",
    "transpose": "path: w, ops: [transpose], to: w",
    "rope": "path: w, ops: [{rope: {to: half, heads: heads, head_dim: 128}}], to: w",
    "cast": "path: w, ops: [{cast: BF16}], to: w",
}
TORCH = """
import sys, torch
from safetensors.torch import load_file, save_file
case, source, out, experts = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
sd = load_file(source)
if case in ("stack", "stack1"):
    new = {"w": torch.stack([sd[f"e.{e}.w"] for e in range(experts)], int(case == "stack1"))}
elif case == "gate_up":
    new = {"w": torch.stack([torch.cat([sd[f"e.{e}.w"], sd[f"e.{e}.v"]]) for e in range(experts)])}
elif case == "unstack":
    new = {f"e.{e}.w": each.clone() for e, each in enumerate(sd["w"])}
elif case == "transpose":
    new = {"w": sd["w"].t().contiguous()}
elif case == "rope":
    rows, columns = sd["w"].shape
    new = {"w": sd["w"].view(rows // 128, 64, 2, columns).transpose(1, 2).reshape(rows, columns)}
else:
    new = {"w": sd["w"].bfloat16()}
save_file(new, out)
"""
OURS = """
import sys
from remapkit.cli.app import main
code = main(sys.argv[1:])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], file=sys.stderr)
sys.exit(code)
"""
PEAK = '\nprint([l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")][0], file=sys.stderr)\n'


def write(path: Path, tensors: dict[str, list[int]]) -> int:
    """Write a safetensors file of fp32 tensors with pseudo-random bytes, in pieces; return its size in bytes."""
    header, at = {}, 0
    for name, shape in tensors.items():
        size = 4
        for each in shape:
            size *= each
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = bytes(bytearray(os.urandom(1 << 20)).translate(bytes(each & 0xBF for each in range(256))))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for left in range(at, 0, -len(block)):
            file.write(block[: min(left, len(block))])
        file.flush()
        os.fsync(file.fileno())
    return at


def shapes(case: str, nbytes: int, experts: int) -> dict[str, list[int]]:
    """Return the shapes of tensors with about `nbytes` bytes in all."""
    if case in ("stack", "stack1", "gate_up"):
        names = [f"e.{e}.{w}" for e in range(experts) for w in ("wv" if case == "gate_up" else "w")]
        return {name: [max(8, nbytes // len(names) // 4 // 2048), 2048] for name in names}
    if case == "unstack":
        return {"w": [experts, max(8, nbytes // experts // 4 // 2048), 2048]}
    side = int((min(nbytes, 2 << 30) / 4) ** 0.5) // 128 * 128
    return {"w": [side, side]}


def timed(command: list[str]) -> tuple[float, int]:
    """Run a process; return its seconds and its peak in MB."""
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        sys.exit(done.stderr)
    return seconds, int(done.stderr.split()[-1]) // 1024


def main() -> None:
    """Run the cases, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.0, help="the size of the experts (default: 8)")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--folder", help="where the files go (default: a temporary folder)")
    parser.add_argument("--without-torch", action="store_true", help="do not run torch: it needs twice the memory")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="remapkit-ops-", dir=args.folder))
    print(f"{'case':<10} {'GB':>6} {'largest':>8} {'s':>7} {'peak MB':>8} {'torch s':>8} {'peak MB':>8} {'same':>5}")
    try:
        for case in args.cases:
            measure(case, folder, args)
    finally:
        shutil.rmtree(folder)


def measure(case: str, folder: Path, args: argparse.Namespace) -> None:
    """Run one case: ours, then torch, then compare the two files."""
    source, ours, theirs = folder / "in.safetensors", folder / "ours.safetensors", folder / "torch.safetensors"
    tensors = shapes(case, int(args.gigabytes * 1e9), args.experts)
    nbytes = write(source, tensors)
    largest = nbytes if case != "unstack" else nbytes // args.experts
    heads = tensors["w"][0] // 128 if case == "rope" else 1
    rules = folder / "rules.yaml"
    text = f"remapkit: 1\nname: bench\nparams: {{heads: {heads}}}\nrules:\n  - {{id: r, {RULES[case]}}}\n"
    rules.write_text(text, encoding="utf-8")
    seconds, peak = timed([sys.executable, "-c", OURS, "apply", str(rules), str(source), "-o", str(ours)])
    row = f"{case:<10} {nbytes / 1e9:>6.2f} {largest / 1e9:>8.2f} {seconds:>7.2f} {peak:>8}"
    if not args.without_torch:
        command = [sys.executable, "-c", TORCH + PEAK, case, str(source), str(theirs), str(args.experts)]
        other, memory = timed(command)
        row += f" {other:>8.2f} {memory:>8} {'yes' if same(ours, theirs) else 'NO':>5}"
        theirs.unlink()
    print(row, flush=True)
    ours.unlink()
    source.unlink()


def same(one: Path, other: Path) -> bool:
    """Return whether two files contain the same tensors."""
    command = [sys.executable, "-m", "remapkit", "diff", str(one), str(other)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    main()
