"""Two processes that write one output: whatever they do meanwhile, the result is that of one of them.

Covers: a second `apply` onto the same output at every step of a first one, from the same source and from another,
where the first goes on, is killed, or is refused by the system there; one file, shards, and one file in the place of
shards, which is one target in two layouts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from io_kit import chosen, everything_in, leftovers, rules
from nursery import Nursery
from safetensors.torch import save_file

from remapkit.cli.app import main

KINDS = ("single", "shards", "single over shards")
ENDS = ("goes on", "dies", "is refused")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    process = Nursery()
    yield process
    process.close()


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{n}.weight": torch.randn(400, generator=generator) for n in range(3)}


def seen(folder: Path) -> dict[str, bytes]:
    """What readers find: the index and what it names, or the one file; fails where both are there."""
    single, index = folder / "m.safetensors", folder / "m.safetensors.index.json"
    if not index.exists():
        return {single.name: single.read_bytes()} if single.exists() else {}
    names = set(json.loads(index.read_bytes())["weight_map"].values())
    return {name: (folder / name).read_bytes() for name in sorted({*names, index.name})}


@dataclass
class Case:
    folder: Path
    first: list[str]
    seconds: dict[str, list[str]]
    before: dict[str, bytes]
    results: dict[str, dict[str, bytes]]

    def reset(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        for name, data in self.before.items():
            (self.folder / name).write_bytes(data)


def make(kind: str, path: Path) -> Case:
    inputs, folder = path / "in", path / "out"
    inputs.mkdir()
    folder.mkdir()
    pack = str(rules(inputs))
    commands = {}
    for name, seed in (("old", 0), ("a", 1), ("b", 2)):
        save_file(state(seed), inputs / f"{name}.safetensors")
        shards = ["--shard-size", "1700"] if kind == "shards" or (name == "old" and kind != "single") else []
        out = str(folder / "m.safetensors")
        commands[name] = ["apply", pack, str(inputs / f"{name}.safetensors"), "-o", out, "--force", *shards]
    results = {}
    for name in ("a", "b", "old"):
        assert main(commands[name]) == 0
        results[name] = seen(folder)
    return Case(folder, commands["a"], {"a": commands["a"], "b": commands["b"]}, everything_in(folder), results)


def hold(case: Case, done: dict[str, Any], second: str, end: str) -> None:
    """Each is whole or refused by name, and what is there is what one of them made, or what was there before."""
    other = done.get("second", {"code": None, "out": ""})
    for said in (done, other):
        assert "Traceback" not in said["out"]
        assert said["code"] in (0, None) or "RK5" in said["out"], said["out"]
    if other["code"] == 2:
        assert "RK510" in other["out"] and "m.safetensors is being written by another process" in other["out"]
    found = seen(case.folder)
    if done["code"] == 0:
        assert found == case.results["a"] or (other["code"] == 0 and found == case.results[second])
    elif other["code"] == 0:
        assert found in (case.results[second], case.results["a"])
    elif end == "is refused" and "nothing was changed" in done["out"]:
        assert found == case.results["old"]
    else:
        # A killed one has taken the index away, perhaps.
        assert found in (case.results["old"], case.results["a"], {})
    if end == "goes on":
        assert leftovers(case.folder) == []
        assert not (case.folder / "m.safetensors").exists() or len(list(case.folder.iterdir())) == 1


def steps_of(case: Case, nursery: Nursery) -> int:
    case.reset()
    count: int = nursery.run(*case.first)["steps"]
    assert count > 10
    return count


def at_step(case: Case, nursery: Nursery, number: int, second: str, end: str, fault: str = "") -> None:
    case.reset()
    ways = {"goes on": {}, "dies": {"die_at": number}, "is refused": {"fail_at": number}}
    done = nursery.run(*case.first, second=case.seconds[second], pause_at=number, fault=fault, **ways[end])
    hold(case, done, second, end)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_process_at_every_step(kind: str, memory_path: Path, nursery: Nursery) -> None:
    """Every step in one way, each in its turn; the steps that give names in all of them."""
    case = make(kind, memory_path)
    count = steps_of(case, nursery)
    ways = [(second, end) for second in case.seconds for end in ENDS]
    for number in range(1, count + 1):
        for second, end in ways if number > count - 12 else [ways[number % len(ways)]]:
            at_step(case, nursery, number, second, end)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"D2-{kind}")
def test_a_second_process_at_some_steps(kind: str, memory_path: Path, nursery: Nursery) -> None:
    case = make(kind, memory_path)
    for number in chosen(steps_of(case, nursery)):
        at_step(case, nursery, number, "ab"[number % 2], ENDS[number % 3])


@pytest.mark.parametrize(("fault", "kind"), [("no lock", "shards"), ("other layouts stay", "single over shards")])
def test_planted_faults_are_found(fault: str, kind: str, memory_path: Path, nursery: Nursery) -> None:
    case = make(kind, memory_path)
    count = steps_of(case, nursery)
    with pytest.raises((AssertionError, FileNotFoundError)):
        for number in reversed(chosen(count)):
            at_step(case, nursery, number, "b", "goes on", fault)
