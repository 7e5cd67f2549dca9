"""Several outputs: killed at any step, each file is old or new, and the next run comes to the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from io_kit import KEEP, chosen, everything_in, leftovers, rules
from nursery import Nursery
from safetensors.torch import save_file

import remapkit
from remapkit.files.atomic import NewFile
from remapkit.write import writer as writing


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    process = Nursery()
    yield process
    process.close()


def make_killed(folder: Path, *, old: bool, nursery: Nursery) -> tuple[list[object], Callable[[], None], Any, Any]:
    """A command, what puts its folder back, and the content of each output before and after."""
    inputs, out = folder / "in", folder / "out"
    inputs.mkdir()
    out.mkdir()
    save_file({f"{part}.w": torch.randn(2000) for part in "abc"}, inputs / "m.safetensors")
    files = [f"-o{part}.={out}/{part}.safetensors" for part in "abc"]
    arguments: list[object] = ["apply", rules(inputs, KEEP), inputs / "m.safetensors", *files]
    before = {}
    if old:
        before = {f"{part}.safetensors": part.encode() for part in "abc"}
        arguments.append("--force")

    def reset() -> None:
        for path in out.iterdir():
            path.unlink()
        for name, data in before.items():
            (out / name).write_bytes(data)

    reset()
    assert nursery.run(*arguments)["code"] == 0
    return arguments, reset, before, everything_in(out)


def killed_at(
    numbers: list[int], arguments: Any, reset: Any, before: Any, after: Any, out: Path, run: Any
) -> set[str]:
    """Kill the run at each step: every file is whole; the next run ends, and nothing is left over."""
    seen = set()
    for number in numbers:
        reset()
        assert run(*arguments, die_at=number)["killed"]
        found = {name: data for name, data in everything_in(out).items() if not name.startswith(".remapkit-")}
        states = {name: found.get(name) for name in after}
        for name, data in states.items():
            assert data in (before.get(name), after[name]), f"{name} is neither old nor new at step {number}"
        new = sum(data == after[name] for name, data in states.items())
        seen.add("old" if new == 0 else "new" if new == len(after) else "between")
        done = run(*arguments, *([] if "--force" in arguments else ["--force"]))
        assert done["code"] == 0 and everything_in(out) == after, done["out"]
        assert leftovers(out) == []
    return seen


@pytest.mark.parametrize("old", [False, True])
def test_killed_at_some_steps(old: bool, memory_path: Path, nursery: Nursery) -> None:
    arguments, reset, before, after = make_killed(memory_path, old=old, nursery=nursery)
    reset()
    steps = nursery.run(*arguments)["steps"]
    seen = killed_at(chosen(steps, 24, 30), arguments, reset, before, after, memory_path / "out", nursery.run)
    assert seen == {"old", "between", "new"}, "a machine that dies between two renames leaves whole files"


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_killed_at_every_step(old: bool, memory_path: Path, nursery: Nursery) -> None:
    arguments, reset, before, after = make_killed(memory_path, old=old, nursery=nursery)
    reset()
    steps = nursery.run(*arguments)["steps"]
    killed_at([*range(1, steps + 1)], arguments, reset, before, after, memory_path / "out", nursery.run)


def test_a_killed_run_is_resumed(memory_path: Path, nursery: Nursery) -> None:
    arguments, reset, _, after = make_killed(memory_path, old=False, nursery=nursery)
    out = memory_path / "out"
    reset()
    for number in range(nursery.run(*arguments)["steps"], 0, -1):
        reset()
        nursery.run(*arguments, die_at=number)
        names = everything_in(out)
        if len([name for name in names if len(name) > 40]) == 2 and not after.keys() & names.keys():
            break
    done = nursery.run(*arguments, "--verify")
    assert "resume: 2 of 3 files kept" in done["out"] and everything_in(out) == after


class _Killed(BaseException):
    pass


def test_leftovers_go_even_if_every_file_is_resumed(memory_path: Path, keep: remapkit.RuleSet) -> None:
    source = memory_path / "in.safetensors"
    save_file({f"{part}.w": torch.randn(200) for part in "ab"}, source)
    outputs = {f"{part}.": memory_path / f"{part}.safetensors" for part in "ab"}

    def kill(*_: object) -> None:
        raise _Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writing, "name_outputs", kill)
        patched.setattr(NewFile, "__exit__", lambda self, *_: os.close(self.fd))
        with pytest.raises(_Killed):
            remapkit.apply(keep, source, outputs)
    # The second name of a file that was to be replaced.
    (memory_path / ".remapkit-1-00.tmp").write_text("old")
    assert len(leftovers(memory_path)) == 3
    assert remapkit.apply(keep, source, outputs).kept == 2
    assert leftovers(memory_path) == []
