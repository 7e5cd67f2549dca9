"""The time of a proof over all keys: rule sets like those of real models, and inputs made to be slow.

    python benchmarks/prove.py [--repeat 5]

Prints for each size the best and the median time of all checks together (without compiling the rules), the goal, and
the machine. The results of the proofs are asserted: a fast wrong answer does not count. The inputs made to be slow
run in a process each, compilation included, and are printed with their peak memory: the goal is 5 s and 500 MB.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
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


def short_suffix_rules(count: int, pattern: str) -> RuleSet:
    """Return rules with any text before a name that ends in a number."""
    lines = ["remapkit: 1", "name: bench", "rules:"]
    for number in range(count):
        lines += [f"  - id: r{number}", f"    {pattern}{number}'", f"    to: '{{p}}.other{number}'"]
    return compile_rules(read_text("\n".join(lines) + "\n"))


def rules_of_one_key(count: int) -> RuleSet:
    """Return rules that all match one key."""
    lines = ["remapkit: 1", "name: bench", "rules:"]
    for number in range(count):
        lines += [
            f"  - id: r{number}",
            f"    path: '{{a:**}}.w{{b{number}}}'",
            f"    to: 'x{number}.{{a}}.{{b{number}}}'",
        ]
    return compile_rules(read_text("\n".join(lines) + "\n"))


def timed(rules: RuleSet, repeat: int, level: Level = Level.ALL) -> list[float]:
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        proof = prove(rules)
        seconds.append(time.perf_counter() - started)
        assert proof.level is level, proof
    return sorted(seconds)


def slow_inputs() -> Iterator[tuple[str, str]]:
    """Yield rule files below 100 lines that once ran for minutes or took gigabytes."""
    rule = "rules:\n  - id: r\n    "
    yield "(?:(?:a?){1000}){20}", rule + "match: '(?:(?:a?){1000}){20}'\n    to: b\n"
    yield "(?:a?){1000}", rule + "match: '(?P<a>(?:a?){1000})'\n    to: 'b.{a}'\n"
    letters = "".join(chr(0x4E00 + number) for number in range(15_000))
    yield (
        r"\d{3} beside 15,000 letters",
        rule + rf"match: '(?P<n>\d{{3}})(?P<a>[{letters}])'" + "\n    to: '{a}.{n}'\n",
    )
    each = "each: {i: 0..999, j: 0..999}"
    yield "add 1,000 x 1,000", f"add: [{{to: 'x.{{i}}.{{j}}', {each}, fill: zeros, shape: [1], dtype: F32}}]\n"
    words = "|".join(f"word{number}x" for number in range(1000))
    yield "1,000 words, match", rule + rf"match: 'a\.(?P<w>{words})\.(?P<c>.*)'" + "\n    to: 'b.{w}.{c}'\n"
    yield "1,000 words, path", rule + f"path: 'a.{{w:{words}}}.{{c:**}}'\n    to: 'b.{{w}}.{{c}}'\n"
    hard = "".join(f"  - {{id: r{n}, match: '(?P<x>[ab]*a[ab]{{{n}}})', to: 'x{n}.{{x}}'}}\n" for n in range(14, 44))
    yield "30 x [ab]*a[ab]{n}", "unmatched: keep\nrules:\n" + hard
    grid = "".join(
        f"  - {{id: r{n}, path: 'a{n}.{{i:0..63}}.{{j:0..63}}', to: 'b{n}.{{i*64+j}}'}}\n" for n in range(90)
    )
    yield "90 x 64 x 64", "rules:\n" + grid


def time_slow_inputs() -> None:
    code = (
        "import sys, time, resource; started = time.perf_counter()\n"
        "from remapkit.api.lint import lint\n"
        "report = lint(sys.argv[1])\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "print(f'{time.perf_counter() - started:.2f} s {peak:>8} MB')\n"
    )
    for name, text in slow_inputs():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "rules.yaml")
            file.write_text(f"remapkit: 1\nname: bench\n{text}", encoding="utf-8")
            done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
        print(f"{name:32}{done.stdout.strip() or done.stderr.strip().splitlines()[-1]}")


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
        ("2,000 rules", model_rules(2000), None),
        ("500 suffix rules", suffix_rules(500), 8.0),
        ("1,000 x .*name{i}", short_suffix_rules(1000, "match: '(?P<p>.*)name"), 2.0),
        ("2,000 x .*name{i}", short_suffix_rules(2000, "match: '(?P<p>.*)name"), 6.0),
        ("1,000 x {p:**}.name{i}", short_suffix_rules(1000, "path: '{p:**}.name"), 2.0),
        ("300 rules that match one key", rules_of_one_key(300), 2.0),
    ]
    print(f"{'':32}{'best':>10}{'median':>10}{'goal':>10}")
    for name, rules, goal in cases:
        seconds = timed(rules, repeat, Level.REFUTED if "one key" in name else Level.ALL)
        print(f"{name:32}{_ms(seconds[0]):>10}{_ms(statistics.median(seconds)):>10}{_ms(goal) if goal else '':>10}")
    print(f"{'lint, the whole process':32}{_ms(start_up()):>10}")
    time_slow_inputs()


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


if __name__ == "__main__":
    main()
