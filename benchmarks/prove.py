"""The time of a proof over all keys: rule sets like those of real models, of several sizes.

    python benchmarks/prove.py [--repeat 5]

Prints for each size the best and the median time of all checks together (without compiling the rules), the goal, and
the machine. The results of the proofs are asserted: a fast wrong answer does not count.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from remapkit.api.ruleset import RuleSet, compile_rules, load
from remapkit.proofs.model import Level
from remapkit.proofs.prover import prove
from remapkit.rulefile.read import read_text

ROOT = Path(__file__).resolve().parent.parent


def model_rules(count: int) -> RuleSet:
    """Return rules of a mixture of experts: blocks, experts, tables, choices, several captures each."""
    lines = [
        "remapkit: 1",
        "name: bench",
        "tables:",
        "  slot: {norm1: residual.0, conv1: residual.2, norm2: residual.3}",
    ]
    lines.append("rules:")
    for number in range(count):
        lines.append(f"  - id: r{number}")
        lines += _model_rule(number)
    lines += ["keep:", "  - 'embed.{leaf:weight|bias}'", "  - 'head.{rest:**}'"]
    return compile_rules(read_text("\n".join(lines) + "\n"))


def _model_rule(number: int) -> Iterator[str]:
    kind, name = number % 5, f"part_{number}"
    if kind == 0:
        yield f"    path: 'model.layers.{{n:int}}.mlp.{name}.experts.{{e:int}}.{{leaf:weight|bias}}'"
        yield f"    to: 'blocks.{{n}}.moe.{name}.{{e}}.{{leaf}}'"
    elif kind == 1:
        yield f"    path: 'model.layers.{{n:0..95}}.attn.{name}.{{rest:**}}'"
        yield f"    to: 'blocks.{{n}}.attention.{name}.{{rest}}'"
    elif kind == 2:
        yield f"    path: 'encoder.{name}.{{stage:int}}.resnets.{{block:int}}.{{slot:slot}}.{{leaf}}'"
        yield f"    to: 'enc.{name}.{{stage}}.{{block}}.{{slot|slot}}.{{leaf}}'"
    elif kind == 3:
        yield rf"    match: 'decoder\.{name}\.(?P<n>\d+)\.(?P<which>q|k|v)_proj\.(?P<leaf>weight|bias)'"
        yield f"    to: 'dec.{{n}}.{name}.{{which}}.{{leaf}}'"
    else:
        yield f"    path: '{name}.{{a}}.{{i:0..11}}.{{rest:**}}'"
        yield f"    to: '{name}x.{{i+1}}.{{a}}.{{rest}}'"


def suffix_rules(count: int) -> RuleSet:
    """Return rules that begin with any text and differ only near their end."""
    lines = ["remapkit: 1", "name: bench", "rules:"]
    for number in range(count):
        lines.append(f"  - id: r{number}")
        lines.append(rf"    match: '(?P<stem>.*)\.leaf_{number}\.(?P<leaf>weight|bias)'")
        lines.append(f"    to: '{{stem}}.renamed_{number}.{{leaf}}'")
    return compile_rules(read_text("\n".join(lines) + "\n"))


def timed(rules: RuleSet, repeat: int) -> list[float]:
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        proof = prove(rules)
        seconds.append(time.perf_counter() - started)
        assert proof.level is Level.ALL, proof
    return sorted(seconds)


def start_up() -> float:
    """Return the time of a whole `lint` process on one pack, including the start of the interpreter."""
    command = [sys.executable, "-m", "remapkit", "lint", str(ROOT / "rules" / "wan22_pth.yaml")]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    cases = [
        ("wan22_pth (4 rules, 3 keeps)", load("wan22_pth"), 0.010),
        ("wan22_diffusers (10 rules)", load("wan22_diffusers"), None),
        ("50 rules", model_rules(50), 0.100),
        ("200 rules", model_rules(200), 0.5),
        ("500 rules", model_rules(500), 1.5),
        ("500 suffix rules", suffix_rules(500), 8.0),
    ]
    print(f"{'':32}{'best':>10}{'median':>10}{'goal':>10}")
    for name, rules, goal in cases:
        seconds = timed(rules, repeat)
        print(f"{name:32}{_ms(seconds[0]):>10}{_ms(statistics.median(seconds)):>10}{_ms(goal) if goal else '':>10}")
    print(f"{'lint, the whole process':32}{_ms(start_up()):>10}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


if __name__ == "__main__":
    main()
