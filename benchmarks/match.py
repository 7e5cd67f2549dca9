"""Matching a million keys: remapkit compared with a loop over rules and torch-state-bridge, in separate processes.

    python benchmarks/match.py                   # 1,000,000 keys, 5 rounds: some minutes, most of them the loop's
    python benchmarks/match.py --keys 50000      # small

The keys are those of a mixture of experts (`tower_3.layers.12.mlp.experts.77.w1.weight`), the rules path patterns
that begin with literals, or `suffix` rules, `(.*)\\.leaf_7\\.(weight|bias)`, that only differ near their ends.
`targets` is the matcher with its templates, which renames a state dict; `match` also returns the rule of a key and
its captures; `plan` adds every move, and all checks. `start` is the time from the bytes of the rule file to the first
match: YAML, schema, compilation, the matcher. Slow methods get a sample of the keys, and are scaled up. Printed are
medians and the best of the rounds, ratios to `targets`, and the growth of peak memory per key.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

WAYS = ("remapkit, targets", "remapkit, match", "remapkit, plan", "loop over rules", "torch-state-bridge")
SETS = (("path", 18), ("path", 50), ("path", 500), ("suffix", 50), ("suffix", 500))
KINDS = (
    ("mlp.experts.{e:int}.w1.weight", "ffn.experts.{e}.gate.weight"),
    ("mlp.experts.{e:int}.w2.weight", "ffn.experts.{e}.down.weight"),
    ("mlp.experts.{e:int}.w3.weight", "ffn.experts.{e}.up.weight"),
    ("self_attn.q_proj.{leaf:weight|bias}", "attn.query.{leaf}"),
    ("self_attn.k_proj.{leaf:weight|bias}", "attn.key.{leaf}"),
    ("input_layernorm.{leaf}", "norm1.{leaf}"),
)


def rule_file(kind: str, count: int) -> str:
    """Return a rule file with `count` rules."""
    rows = []
    for number in range(count):
        tower, (tail, to) = number // len(KINDS), KINDS[number % len(KINDS)]
        if kind == "path":
            rows.append((f"path: 'tower_{tower}.layers.{{n:int}}.{tail}'", f"stages.{tower}.blocks.{{n}}.{to}"))
        else:
            pattern = rf"(?P<p>.*)\.leaf_{number}\.(?P<leaf>weight|bias)"
            rows.append((f"match: '{pattern}'", f"{{p}}.part_{number}.{{leaf}}"))
    rules = "".join(f"  - id: r{number}\n    {rule}\n    to: '{to}'\n" for number, (rule, to) in enumerate(rows))
    return f"remapkit: 1\nname: benchmark\nrules:\n{rules}"


def keys_for(kind: str, count: int, total: int) -> list[str]:
    """Return distinct keys that the rules match, spread over all rules: mostly keys of experts."""
    towers = max(1, count // len(KINDS))
    keys = []
    for number in range(total):
        if kind == "path":
            tower, rest = number % towers, number // towers
            expert, layer, which = rest // 3 % 256, rest // 768, rest % 3 + 1
            keys.append(f"tower_{tower}.layers.{layer}.mlp.experts.{expert}.w{which}.weight")
        else:
            rule, rest = number % count, number // count
            keys.append(f"model.layers.{rest // 128}.mlp.experts.{rest % 128}.leaf_{rule}.weight")
    return keys


def bridge(kind: str, count: int) -> Callable[[list[str]], object]:
    """Return the same rules for torch-state-bridge."""
    import torch_state_bridge as peer  # type: ignore[import-not-found]

    lines = []
    for number in range(count):
        tower, (tail, to) = number // len(KINDS), KINDS[number % len(KINDS)]
        tail, to = (text.replace(":int", "").replace(":weight|bias", "") for text in (tail, to))
        if kind == "path":
            lines.append(f"tower_{tower}.layers.{{n}}.{tail}, stages.{tower}.blocks.{{n}}.{to}")
        else:
            lines.append(f".leaf_{number}., .part_{number}.")
    rules = "\n".join(lines)
    return lambda keys: peer.state_bridge(dict.fromkeys(keys), rules)


def work(way: str, kind: str, count: int, total: int) -> dict[str, float]:
    """Return seconds for all keys, seconds to start, and bytes of peak memory per key."""
    from remapkit.api.ruleset import compile_rules
    from remapkit.plans.make import make_plan
    from remapkit.rulefile.read import read_text
    from remapkit.tensors.spec import StateDictSpec, TensorSpec

    sample = {"loop over rules": 100_000 // count, "torch-state-bridge": 20_000 // count}.get(way, total)
    keys = keys_for(kind, count, min(total, sample))
    text = rule_file(kind, count)
    spec = TensorSpec("BF16", (2048, 768))
    header = StateDictSpec(dict.fromkeys(keys, spec))
    begin = time.perf_counter()
    rules = compile_rules(read_text(text))
    assert len(rules.match(keys[0])) == 1
    start = time.perf_counter() - begin
    if way == "loop over rules":
        _ = [rule.match(keys[0]) for rule in rules.everything]  # compiled when first used

    def loop(keys: list[str]) -> object:
        return [[match for rule in rules.everything if (match := rule.match(key)) is not None] for key in keys]

    ways: dict[str, Callable[[list[str]], object]] = {
        "remapkit, targets": rules.renamer.rename_keys,
        "remapkit, match": lambda keys: [len(rules.match(key)) for key in keys],
        "remapkit, plan": lambda _: make_plan(rules, header),
        "loop over rules": loop,
    }
    run = ways[way] if way in ways else bridge(kind, count)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    result = run(keys)
    seconds = time.perf_counter() - begin
    assert result is not None and len(getattr(result, "moves", result)) == len(keys)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"seconds": seconds * total / len(keys), "start": start, "memory": grown / len(keys)}


def alone(way: str, kind: str, count: int, total: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, "--kind", kind, "--rules", str(count), "--keys", str(total)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def where() -> str:
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f"{name}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=("path", "suffix"), help=argparse.SUPPRESS)
    parser.add_argument("--rules", type=int, help=argparse.SUPPRESS)
    args: Any = parser.parse_args()
    if args.way:
        print(json.dumps(work(args.way, args.kind, args.rules, args.keys)))
        return
    print(f"{args.keys:,} keys, {args.rounds} rounds; {where()}\n")
    print(f"{'rules':<12} {'way':<22} {'median':>9} {'best':>9} {'ratio':>8} {'start':>8} {'memory a key':>13}")
    for kind, count in SETS:
        first = None
        for way in WAYS:
            if way == "torch-state-bridge" and importlib.util.find_spec("torch_state_bridge") is None:
                print(f"{count:>4} {kind:<7} {way:<22} not installed")
                continue
            found = [alone(way, kind, count, args.keys) for _ in range(args.rounds)]
            median, best = (f([each["seconds"] for each in found]) for f in (statistics.median, min))
            start = min(each["start"] for each in found)
            memory = statistics.median(each["memory"] for each in found)
            first = first or median
            print(
                f"{count:>4} {kind:<7} {way:<22} {median:>7.2f} s {best:>7.2f} s {median / first:>7.1f}x "
                f"{start:>6.3f} s {memory:>11.0f} B",
                flush=True,
            )
        print()


if __name__ == "__main__":
    main()
