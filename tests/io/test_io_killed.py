"""Killed at any moment, a conversion leaves the old target or none, and its input as it was.

The writer is slowed from outside, and killed at random moments and at every single step; see `nursery`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from io_kit import LONGER, SUFFIX, everything_in, leftovers, read_back, rules, with_room
from nursery import Nursery
from safetensors.torch import save_file

MOMENTS = 50


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    process = Nursery()
    yield process
    process.close()


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{n}.weight": torch.randn(8, 4 * n + 100, generator=generator) for n in range(13)}


@dataclass
class Case:
    """One conversion, what its target may look like afterwards, and how to find out what it looks like."""

    folder: Path
    arguments: tuple[object, ...]
    source: Path
    before: dict[str, bytes]
    after: dict[str, bytes]
    see: Callable[[Path], dict[str, bytes]]
    reset: Callable[[], None]

    def hold(self, nursery: Nursery) -> str:
        """Whether what a killed run left is old or new (or absent); fails where it is anything else."""
        found = self.see(self.folder)
        assert found in (self.before, self.after, {}), "neither the old target nor the new one"
        return "absent" if not found else "new" if found == self.after else "old"


def visible(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in everything_in(folder).items() if not name.startswith(".remapkit-")}


def sharded(folder: Path) -> dict[str, bytes]:
    """What the index, if there is one, leads to: without an index nothing looks finished."""
    index = folder / "out.safetensors.index.json"
    if not index.exists():
        return {}
    names = set(json.loads(index.read_text())["weight_map"].values())
    return {name: data for name, data in visible(folder).items() if name in names or name == index.name}


def make(kind: str, tmp_path: Path, nursery: Nursery, *, old: bool) -> Case:
    """A case, with the bytes of the whole outcome found by a run that nobody disturbs."""
    inputs, folder = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    folder.mkdir()
    source = inputs / ("m.pth" if kind == "single" else "m.safetensors")
    torch.save(state(), source) if kind == "single" else save_file(state(), source)
    if kind.startswith("in place"):
        target = folder / "m.safetensors"
        text = LONGER if kind == "in place, longer" else SUFFIX.replace("renamed.{rest}", "{rest}.x")
        data = source.read_bytes()
        if kind == "in place, fits":
            data = with_room(data)
        arguments: tuple[object, ...] = ("apply", rules(inputs, text), target, "--in-place")

        def reset() -> None:
            for path in folder.iterdir():
                path.unlink()
            target.write_bytes(data)

        reset()
        before = visible(folder)
        assert nursery.run(*arguments)["code"] == 0
        after = visible(folder)
        return Case(folder, arguments, source, before, after, visible, reset)
    out = folder / "out.safetensors"
    options = ["--shard-size", "18kB"] if kind == "shards" else []
    arguments = ("apply", rules(inputs), source, "-o", out, *options)
    see = sharded if kind == "shards" else visible
    before = {}
    if old:
        save_file(state(1), inputs / "old.safetensors")
        other = ("apply", rules(inputs, name="o.yaml"), inputs / "old.safetensors", "-o", out, *options)
        assert nursery.run(*other)["code"] == 0
        before = see(folder)
        arguments = (*arguments, "--force")
    untouched = everything_in(folder)
    assert nursery.run(*arguments)["code"] == 0
    after = see(folder)

    def put_back() -> None:
        for path in folder.iterdir():
            path.unlink()
        for name, data in untouched.items():
            (folder / name).write_bytes(data)

    put_back()
    return Case(folder, arguments, source, before, after, see, put_back)


def after_kill(case: Case, nursery: Nursery) -> str:
    """What is left; then the next run, or `recover`, must bring it to the end, with nothing left over."""
    if "--in-place" in case.arguments:
        target = case.arguments[2]
        if any(name.endswith(".journal") for name in leftovers(case.folder)):
            looked = nursery.run("inspect", target)
            assert looked["code"] == 2 and "recover" in looked["out"], "a file with a journal is not read"
            assert nursery.run("recover", target)["code"] == 0
        found = case.hold(nursery)
        assert found != "absent"
        return found
    return case.hold(nursery)


def finish(case: Case, nursery: Nursery) -> None:
    """The same command again comes to the end, and what the killed one left behind is gone."""
    arguments = case.arguments if "--in-place" in case.arguments else (*case.arguments, "--force")
    done = nursery.run(*arguments)
    assert done["code"] == 0, done["out"]
    assert case.see(case.folder) == case.after
    assert leftovers(case.folder) == []


KINDS = [
    ("single", False),
    ("single", True),
    ("shards", False),
    ("shards", True),
    ("in place, fits", True),
    ("in place, longer", True),
]


@pytest.fixture
def folder(request: pytest.FixtureRequest, kind: str) -> Path:
    """Memory cannot insert blocks at the front of a file; disks often can, and there it is tested."""
    found: Path = request.getfixturevalue("tmp_path" if kind == "in place, longer" else "memory_path")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "old"), KINDS, ids=lambda value: str(value))
def test_killed_at_random_moments(kind: str, old: bool, folder: Path, nursery: Nursery) -> None:
    case = make(kind, folder, nursery, old=old)
    input_before = case.source.read_bytes()
    case.reset()
    steps = nursery.run(*case.arguments)["steps"]
    chance = random.Random(kind)
    for moment in range(MOMENTS):
        # After one step in every stretch of them, so that none is left out by chance.
        number = 1 + int((steps - 1) * (moment + chance.random()) / MOMENTS)
        case.reset()
        assert nursery.run(*case.arguments, slow=0.0003, kill_from=number)["killed"]
        after_kill(case, nursery)
        assert case.source.read_bytes() == input_before
        if moment % 10 == 0 and case.see(case.folder) != case.after:
            finish(case, nursery)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "old"), KINDS, ids=lambda value: str(value))
def test_killed_at_every_step(kind: str, old: bool, folder: Path, nursery: Nursery) -> None:
    case = make(kind, folder, nursery, old=old)
    found = at_every_step(case, nursery)
    assert found[0] == ("old" if old else "absent")
    assert found[-1] == "new", "once the names are given, it is done"


def at_every_step(case: Case, nursery: Nursery, fault: str = "", every: int = 1) -> list[str]:
    case.reset()
    steps = nursery.run(*case.arguments, fault=fault)["steps"]
    assert steps > 10
    # Steps within one copy or one write are alike: take the last ones, and some before.
    chosen = [n for n in range(1, steps + 1) if n == 1 or n > steps - 16 or n % every == 0]
    found = []
    for number in chosen:
        case.reset()
        assert nursery.run(*case.arguments, die_at=number, fault=fault)["killed"]
        found.append(after_kill(case, nursery))
    return found


@pytest.mark.parametrize(
    ("fault", "kind", "old"),
    [
        ("straight to the target", "single", True),
        ("straight to the target", "single", False),
        ("index first", "shards", False),
        ("old index stays", "shards", True),
        ("no journal", "in place, fits", True),
        ("journal dropped early", "in place, longer", True),
    ],
)
def test_planted_faults_are_found(fault: str, kind: str, old: bool, folder: Path, nursery: Nursery) -> None:
    case = make(kind, folder, nursery, old=old)
    with pytest.raises((AssertionError, KeyError)):
        at_every_step(case, nursery, fault, every=4)


def but_locks(folder: Path) -> dict[str, bytes]:
    """The lock of a killed process locks nothing; the next writer takes it, and removes it."""
    return {name: data for name, data in everything_in(folder).items() if not name.endswith(".lock")}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("kind", ["in place, fits", "in place, longer"])
def test_a_recovery_that_is_killed_can_be_repeated(kind: str, folder: Path, nursery: Nursery) -> None:
    case = make(kind, folder, nursery, old=True)
    case.reset()
    steps = nursery.run(*case.arguments)["steps"]
    half = {}
    for number in range(steps, 0, -1):
        case.reset()
        nursery.run(*case.arguments, die_at=number)
        half = but_locks(case.folder)
        if len(half) == 2 and half["m.safetensors"] not in (
            case.before["m.safetensors"],
            case.after["m.safetensors"],
        ):
            break
    assert recovered(case, half, nursery) > 8
    if kind == "in place, longer":
        with pytest.raises(AssertionError):
            recovered(case, half, nursery, fault="recovery is done at once")


def recovered(case: Case, half: dict[str, bytes], nursery: Nursery, fault: str = "") -> int:
    """Recover from the same state again and again, killed one step later each time; how many steps there are."""
    target, number = case.arguments[2], 0
    while True:
        number += 1
        put(case.folder, half)
        killed = nursery.run("recover", target, die_at=number, fault=fault)["killed"]
        nursery.run("recover", target, fault=fault)
        assert but_locks(case.folder) == case.before
        if not killed:
            return number


def test_apply_in_place_restores_first(memory_path: Path, nursery: Nursery) -> None:
    case = make("in place, fits", memory_path, nursery, old=True)
    case.reset()
    steps = nursery.run(*case.arguments)["steps"]
    for number in range(steps, 0, -1):
        case.reset()
        nursery.run(*case.arguments, die_at=number)
        if len(but_locks(case.folder)) == 2:
            break
    done = nursery.run(*case.arguments)
    assert done["code"] == 0 and "was restored first" in done["out"]
    assert everything_in(case.folder) == case.after


# ------------------------------------------------------------------------------------------------ resume


def killed_late(case: Case, nursery: Nursery) -> int:
    """Kill a sharded run while its last shard is written; how many complete shards wait."""
    case.reset()
    steps = nursery.run(*case.arguments)["steps"]
    for number in range(steps - 10, 0, -1):
        case.reset()
        nursery.run(*case.arguments, die_at=number)
        waiting = [name for name in leftovers(case.folder) if len(name) > 40]
        if len(waiting) == 3 and not visible(case.folder):
            return len(waiting)
    raise AssertionError("never three complete shards")


def test_a_killed_run_over_shards_is_resumed(memory_path: Path, nursery: Nursery) -> None:
    case = make("shards", memory_path, nursery, old=False)
    kept = killed_late(case, nursery)
    assert case.see(case.folder) == {}
    done = nursery.run(*case.arguments, "--verify")
    assert f"resume: {kept} of 4 shards kept" in done["out"]
    assert case.see(case.folder) == case.after
    assert leftovers(case.folder) == []
    assert (
        len(read_back([*sorted(case.folder.glob("*.safetensors")), case.folder / "out.safetensors.index.json"])) == 13
    )


def change_source(case: Case) -> None:
    # Same header, same size: only the values are others.
    save_file(state(5), case.source)


def test_shards_of_another_source_are_not_kept(memory_path: Path, nursery: Nursery) -> None:
    case = make("shards", memory_path, nursery, old=False)
    killed_late(case, nursery)
    change_source(case)
    done = nursery.run(*case.arguments, "--verify")
    assert done["code"] == 0 and "resume" not in done["out"]
    assert leftovers(case.folder) == []


def test_a_resume_that_trusts_any_shard_is_found(memory_path: Path, nursery: Nursery) -> None:
    case = make("shards", memory_path, nursery, old=False)
    fault = "resume trusts any shard"
    killed_late(case, nursery)
    change_source(case)
    done = nursery.run(*case.arguments, "--verify", fault=fault)
    assert done["code"] == 1 and "RK506" in done["out"]


def test_a_shard_that_another_process_holds_is_not_taken(memory_path: Path, nursery: Nursery) -> None:
    import fcntl

    case = make("shards", memory_path, nursery, old=False)
    killed_late(case, nursery)
    held = next(path for path in case.folder.iterdir() if len(path.name) > 40)
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = nursery.run(*case.arguments)
    assert "resume: 2 of 4 shards kept" in done["out"]
    assert case.see(case.folder) == case.after
