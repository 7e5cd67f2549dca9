"""A process that has remapkit imported and forks a child for every command it is given: to be slowed, or killed.

Lines of JSON in, lines of JSON out. A command names the arguments of `remapkit`, and:

* `slow`: seconds to sleep at every step. A step is a system call that changes a file, before it and after it; copies
  and writes are cut into small pieces, so that a step falls within every one of them;
* `die_at`: the number of the step at which the child kills itself;
* `kill_from`: the number of the step after which the child is killed from outside, wherever it is by then; at its end
  it waits for that, so that a busy machine makes it later, never too late;
* `fail_at`: the number of the step at which the system refuses, with an input/output error;
* `second`: the arguments of a second process, which runs from start to end while the first waits at step `pause_at`;
* `fault`: a fault to plant, which the tests must find.

The answer is `{"status": ..., "steps": ..., "out": ...}` when the child is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PIECE = 900
"""Bytes of a single write."""
STRETCH = 12_000
"""Bytes of a single copy."""
WATCHED = ("pwrite", "copy_file_range", "sendfile", "fsync", "rename", "link", "unlink", "fchmod")


# ------------------------------------------------------------------------------------------------ in the nursery


class Steps:
    """Counts the steps of a child where its parent can read them."""

    def __init__(
        self,
        slow: float = 0.0,
        die_at: int | None = None,
        fail_at: int | None = None,
        pause_at: int | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._counter = mmap.mmap(-1, 8)
        self._slow = slow
        self._die_at = die_at
        self._fail_at = fail_at
        self._pause_at = pause_at
        self._pause = pause

    @property
    def count(self) -> int:
        return int.from_bytes(self._counter[:8], "little")

    def __call__(self, before: bool = True) -> None:
        count = self.count + 1
        self._counter[:8] = count.to_bytes(8, "little")
        if count == self._pause_at:
            self._pause()
        if count == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if count == self._fail_at and before:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self._slow:
            time.sleep(self._slow)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            self()
            result = function(*args, **options)
            self(before=False)
            return result

        return watched


def watch(steps: Steps) -> None:
    from remapkit.files import atomic
    from remapkit.files import copy as copying
    from remapkit.write import in_place as inplace
    from remapkit.write import writer as writing

    writing.SMALL = 0
    copying.STEP = STRETCH
    inplace.REWRITE_BELOW = 0  # small files go the way of large ones
    whole = os.pwrite
    os.pwrite = lambda fd, data, at: whole(fd, memoryview(data)[:PIECE], at)  # type: ignore[assignment]
    for name in WATCHED:
        setattr(os, name, steps.around(getattr(os, name)))
    fcntl.ioctl = steps.around(fcntl.ioctl)
    inplace._fallocate = steps.around(inplace._fallocate)
    atomic._rename_noreplace = steps.around(atomic._rename_noreplace)


def plant(fault: str) -> None:
    from remapkit.files import atomic, locks
    from remapkit.write import in_place as inplace
    from remapkit.write import naming
    from remapkit.write import writer as writing

    if fault == "straight to the target":
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        atomic._create_temporary = lambda target: (target, os.open(target, flags))
        atomic.NewFile.rename = lambda self: None  # type: ignore[method-assign]
    elif fault == "no journal":
        inplace._write_journal = lambda path, journal: None
        inplace._drop_journal = lambda path: None
    elif fault == "journal dropped early":
        write = inplace._write_journal
        inplace._write_journal = lambda path, journal: (write(path, journal), inplace.journal_path(path).unlink())  # type: ignore[func-returns-value]
        inplace._drop_journal = lambda path: None
    elif fault == "recovery is done at once":
        # Blocks removed, then killed before the old header is back: half of that state would not be known again.
        fits = inplace.Journal.can_restore
        inplace.Journal.can_restore = (
            lambda self, front, size: (  # type: ignore[method-assign]
                fits(self, front, size) and (size != self.size or front in (self.old, self.new[: len(self.old)]))
            )
        )
    elif fault == "index first":
        name_all = writing.name_outputs
        writing.name_outputs = lambda outputs, _: name_all(
            [naming.FinishedOutput((each.files[-1], *each.files[:-1])) for each in outputs], True
        )
    elif fault == "old index stays":
        writing.name_outputs = lambda outputs, _: [new.rename() for each in outputs for new in each.files]  # type: ignore[misc]
    elif fault == "resume trusts any shard":
        writing.Writer._has_content = lambda self, fd, layout: True  # type: ignore[method-assign]
    elif fault == "no lock":
        locks._take_lock = lambda *_: None
    elif fault == "other layouts stay":
        naming.remove_replaced = lambda paths, new: None
    elif fault:
        raise ValueError(fault)


def child(command: dict[str, Any], steps: Steps, answer: int, last: Callable[[], None]) -> None:
    from remapkit.cli.app import main

    plant(command.get("fault", ""))
    watch(steps)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(command["arguments"])
    os.write(answer, out.getvalue().encode())
    last()
    os._exit(code)


def serve() -> None:
    import remapkit.cli.commands.apply
    import remapkit.cli.commands.inspect
    import remapkit.cli.commands.recover
    import remapkit.models.target
    import remapkit.write.execute  # noqa: F401
    from remapkit.cli import app

    # Whatever is made once is made before the children are: the parser too, half the work of a small file.
    parser = app.make_parser()
    app.make_parser = lambda: parser
    with contextlib.redirect_stdout(io.StringIO()):
        app.main(["lint", "wan22_pth"])
    for line in sys.stdin:
        command = json.loads(line)
        asked, ask = os.pipe()
        told, tell = os.pipe()

        from_outside = bool(command.get("kill_from"))

        def pause(ask: int = ask, told: int = told, wait: bool = not from_outside) -> None:
            os.write(ask, b"?")
            if wait:
                os.read(told, 1)

        names = ("slow", "die_at", "fail_at", "kill_from" if from_outside else "pause_at")
        steps = Steps(*(command.get(name) for name in names), pause)

        def last(steps: Steps = steps, told: int = told, number: int = command.get("kill_from") or 0) -> None:
            if 0 < number <= steps.count:
                os.read(told, 1)

        pid, pipe = born(command, steps, last)
        os.close(ask)
        second: dict[str, Any] = {}
        # Nothing comes where the first ends before the step.
        if command.get("second") and os.read(asked, 1):
            another = {"arguments": command["second"], "fault": command.get("fault", "")}
            second = {"second": ended(*born(another, Steps()))}
            os.write(tell, b"!")
        if from_outside and os.read(asked, 1):
            os.kill(pid, signal.SIGKILL)
        first = ended(pid, pipe)
        for fd in (asked, told, tell):
            os.close(fd)
        print(json.dumps({**first, "steps": steps.count, **second}), flush=True)


def born(command: dict[str, Any], steps: Steps, last: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """A child that runs a command: its number, and where what it says can be read."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            child(command, steps, write, last)
        finally:
            os._exit(99)
    os.close(write)
    return pid, read


def ended(pid: int, read: int) -> dict[str, Any]:
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    return {"status": status, "out": said}


# ------------------------------------------------------------------------------------------------ in the tests


class Nursery:
    """The process, as tests see it."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        root = str(Path(__file__).parent.parent.parent)
        environment = {**os.environ, "PYTHONPATH": root}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )

    def run(self, *arguments: object, **command: Any) -> dict[str, Any]:
        """What became of one command; `killed` says whether it was killed, `code` how it ended otherwise."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"arguments": [str(each) for each in arguments], **command}) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        found["killed"] = os.WIFSIGNALED(found["status"])
        found["code"] = None if found["killed"] else os.WEXITSTATUS(found["status"])
        if "second" in found:
            found["second"]["code"] = os.WEXITSTATUS(found["second"]["status"])
        assert found["code"] != 99, "the child failed"
        return found

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


if __name__ == "__main__":
    serve()
