"""Two processes at one file, in place or as a small text: the result is that of one, or of one after the other.

Covers: a second `apply --in-place`, `recover` or `inspect --manifest` onto the file of a first one, at its steps,
where the first goes on, is killed, or is refused by the system there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from io_kit import SUFFIX, chosen, everything_in, leftovers, rules, with_room
from nursery import Nursery
from safetensors.torch import save_file

ENDS = ("goes on", "dies", "is refused")
KINDS = ("in place", "recover", "recover, then in place", "manifest")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    process = Nursery()
    yield process
    process.close()


@dataclass
class Case:
    """Two commands onto one file, and what the file is after each order in which they come to their end."""

    path: Path
    first: list[str]
    second: list[str]
    before: dict[str, bytes]
    results: dict[tuple[str, ...], bytes]

    def reset(self) -> None:
        for path in self.path.parent.iterdir():
            path.unlink()
        for name, data in self.before.items():
            (self.path.parent / name).write_bytes(data)

    def add_results(self, nursery: Nursery) -> None:
        commands = {"first": self.first, "second": self.second}
        for order in (("first",), ("second",), ("first", "second"), ("second", "first")):
            self.reset()
            for name in order:
                assert nursery.run(*commands[name])["code"] == 0
            self.results[order] = self.path.read_bytes()


def make(kind: str, path: Path, nursery: Nursery) -> Case:
    inputs, folder = path / "in", path / "out"
    inputs.mkdir()
    folder.mkdir()
    target = folder / ("m.json" if kind == "manifest" else "m.safetensors")
    in_place = {
        end: ["apply", str(rules(inputs, SUFFIX.replace("renamed.{rest}", f"{{rest}}.{end}"), f"{end}.yaml"))]
        for end in "xy"
    }
    in_place = {end: [*command, str(target), "--in-place"] for end, command in in_place.items()}
    for name, seed in (("old", 0), ("a", 1), ("b", 2)):
        state = {f"{name}.{n}": torch.full((100,), float(seed)) for n in range(8)}
        save_file(state, inputs / f"{name}.safetensors")
    written = {
        name: ["inspect", str(inputs / f"{name}.safetensors"), "--manifest", str(target), "--force"]
        for name in ("old", "a", "b")
    }
    recover = ["recover", str(target)]
    if kind == "manifest":
        assert nursery.run(*written["old"])["code"] == 0
        first, second = written["a"], written["b"]
    else:
        target.write_bytes(with_room((inputs / "old.safetensors").read_bytes()))
        first, second = (recover, recover) if kind == "recover" else (in_place["x"], in_place["y"])
        if kind == "recover, then in place":
            first = recover
    old = target.read_bytes()
    if first is recover:
        interrupt(in_place["x"], target, nursery)
    case = Case(target, first, second, everything_in(folder), {(): old})
    case.add_results(nursery)
    return case


def interrupt(command: list[str], target: Path, nursery: Nursery) -> None:
    """Kill a rename in place while the header is half written, and leave only what was not there for its process."""
    whole = target.read_bytes()
    for number in range(1, 100):
        target.write_bytes(whole)
        assert nursery.run(*command, die_at=number)["killed"]
        for path in target.parent.glob("*.lock"):
            path.unlink()
        if target.read_bytes() != whole:
            assert any(name.endswith(".journal") for name in leftovers(target.parent))
            return
    raise AssertionError("the header was never half written")


def at_step(case: Case, nursery: Nursery, number: int, end: str, fault: str = "") -> bool:
    """Hold what two processes leave; whether the second was kept out by the lock."""
    case.reset()
    ways = {"goes on": {}, "dies": {"die_at": number}, "is refused": {"fail_at": number}}
    done = nursery.run(*case.first, second=case.second, pause_at=number, fault=fault, **ways[end])
    other = done.get("second", {"code": None, "out": ""})
    for said in (done, other):
        assert "Traceback" not in said["out"]
        assert said["code"] in (0, None) or "error[RK5" in said["out"], said["out"]
    ended = {name for name, said in (("first", done), ("second", other)) if said["code"] == 0}
    locked = "RK510" in other["out"]
    if locked:
        assert f"{case.path.name} is being written by another process; nothing was changed" in other["out"]
    if any(name.endswith(".journal") for name in leftovers(case.path.parent)):
        assert end != "goes on"
        assert nursery.run("recover", case.path)["code"] == 0
    found = case.path.read_bytes()
    # A first one that was killed, or refused at a flush, may have come to its end before, or not.
    open_end = set() if end == "goes on" else {"first"}
    possible = [data for order, data in case.results.items() if ended <= set(order) <= ended | open_end]
    assert found in possible, f"step {number}, {end}, {done}"
    if end == "goes on":
        assert ended, "one of two comes to its end"
        assert leftovers(case.path.parent) == []
    return locked


def steps_of(case: Case, nursery: Nursery) -> int:
    case.reset()
    count: int = nursery.run(*case.first)["steps"]
    assert count > 3
    return count


def hold_some(case: Case, nursery: Nursery, ends: tuple[str, ...], fault: str = "") -> None:
    """At some steps each process leaves what it may, and at one of them at least the second is kept out."""
    locked = [
        at_step(case, nursery, number, ends[number % len(ends)], fault)
        for number in reversed(chosen(steps_of(case, nursery)))
    ]
    assert any(locked)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"D2-{kind}")
def test_a_second_process_at_some_steps(kind: str, memory_path: Path, nursery: Nursery) -> None:
    hold_some(make(kind, memory_path, nursery), nursery, ENDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_process_at_every_step(kind: str, memory_path: Path, nursery: Nursery) -> None:
    case = make(kind, memory_path, nursery)
    for number in range(1, steps_of(case, nursery) + 1):
        for end in ENDS:
            at_step(case, nursery, number, end)


@pytest.mark.parametrize("kind", ["in place", "manifest"])
def test_without_the_lock_it_is_found(kind: str, memory_path: Path, nursery: Nursery) -> None:
    case = make(kind, memory_path, nursery)
    with pytest.raises(AssertionError):
        hold_some(case, nursery, ("goes on",), "no lock")
