"""Names that are not UTF-8, streams that are closed or speak ASCII, a working directory that is gone: every command.

The kinds: a name that cannot be encoded where it is printed or written into a file; a stream that is not there, whose
number the next file would get; a path, or a library, that needs the working directory. One process has a child for
each condition; the `slow` tests have a process for each, made by a shell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from remapkit.formats.detect import open_checkpoint

ROOT = str(Path(__file__).parents[2])
BAD = os.fsdecode(b"b\xff\xe9d")
RULES = "remapkit: 1\nname: t\nrules: [{id: all, path: '{r:**}', to: 'n.{r}'}]\ntests: {a: n.a}\n"
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("apply", "R", "C", "-o", "W/o\udcff.safetensors"),
    ("apply", "R", "C", "-o", "W/o\udcff.pth", "--verify"),
    ("apply", "R", "P", "-o", "W/p\udcff.safetensors", "--verify"),
    ("apply", "R", "C", "-o", "W/s\udcff.safetensors", "--shard-size", "16"),
    ("apply", "R", "C", "-o", "W/none\udcff/o.safetensors"),
    ("apply", "R", "C", "--dry-run"),
    ("apply", "R", "C", "--dry-run", "--param", "x\udcff=1"),
    ("apply", "R", "I", "--in-place"),
    ("check", "R", "--ckpt", "C", "--target-keys", "C"),
    ("lint", "R"),
    ("lint", "W/none\udcff.yaml"),
    ("lint", "none\udcff"),
    ("test", "R"),
    ("explain", "R", "a\udcff", "\u202eb\x1b[31m\n::error::x"),
    ("invert", "R"),
    ("invert", "R", "-o", "W/i\udcff.yaml"),
    ("inspect", "C"),
    ("inspect", "C", "--manifest", "W/m\udcff.json"),
    ("inspect", "P", "--root", "x\udcff"),
    ("recover", "C"),
    ("diff", "C", "P", "--rules-a", "R"),
    ("new", "p", "--from", "C", "-o", "-"),
    ("new", "p\udcff", "--from", "C", "-o", "W/n\udcff.yaml"),
    ("learn", "C", "C", "-o", "-", "--name", "x"),
    ("learn", "C", "C", "-o", "W/l\udcff.yaml"),
    ("packs",),
    ("schema",),
    ("verify", "R", "--oracle", "py:x\udcff:f", "--keys", "C"),
    ("apply", "x\udcff.yaml", "y\udcff.pth"),
    ("apply", "--x\udcff"),
)
DRIVER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from remapkit.cli import app as cli
from remapkit.models import reference

def plant(fault):
    if fault == "the working directory is asked for":
        reference.add_current_folder = lambda: sys.path.append(os.getcwd())
    elif fault == "torch is imported where there is none":
        cli._outlive_the_working_directory = lambda: None
    elif fault == "streams that are closed stay closed":
        cli._open_streams = lambda: None

def surround(condition, at):
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if condition in ("no " + name, "no streams"):
            os.close(number)
            setattr(sys, name, None)
        elif number:
            os.dup2(os.open(f"{at}/{name}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    if condition == "no working directory":
        go_nowhere(at)

def go_nowhere(at):
    os.mkdir(f"{at}/gone"); os.chdir(f"{at}/gone"); os.rmdir(f"{at}/gone")

def run(commands, at):
    report = []
    bug = cli._report_bug
    def seen():
        import traceback
        report.append(traceback.format_exc())
        return bug()
    cli._report_bug = seen
    for number, command in enumerate(commands):
        try:
            status = cli.main([*command, "--format", ("text", "json", "github")[number % 3]])
        except SystemExit as error:
            status = error.code
        report.append(status)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with open(f"{at}/report.json", "w", encoding="ascii") as file:
        json.dump(report, file)

for job in json.loads(open(sys.argv[2], encoding="ascii").read()):
    if job["real"]:
        if job["condition"] == "no working directory":
            go_nowhere(job["at"])
        run(job["commands"], job["at"])
        continue
    if job["condition"] != "no working directory":
        import torch
        from remapkit.cli.commands import learn, packs, verify
    pid = os.fork()
    if not pid:
        try:
            surround(job["condition"], job["at"])
            plant(job["fault"])
            run(job["commands"], job["at"])
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
"""
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
STRICT = {"PYTHONIOENCODING": "utf-8:strict", "PYTHONUTF8": "0"}
"""As in any UTF-8 locale."""
REAL = {
    "as usual": "",
    "no stderr": "2>&-",
    "no stdout": ">&-",
    "no streams": "<&- >&- 2>&-",
    "no working directory": "",
}
"""What a shell does to a process before it runs; with an environment that speaks ASCII, a process runs anyway."""
FORKED = ("no working directory", "as usual", "no stderr", "no stdout", "no streams")
"""What a child of one process can have done to it; torch is loaded for all that come after the first."""


def job(condition: str, at: Path, *, real: bool = False, fault: str = "", only: str = "") -> dict[str, Any]:
    """The commands, over files of their own in a new folder."""
    at.mkdir()
    state = {"a.w": torch.ones(4), "b.w": torch.arange(4.0)}
    for name in (f"{BAD}.safetensors", f"{BAD}-in-place.safetensors"):
        save_file(state, at / "x.safetensors")
        (at / "x.safetensors").rename(at / name)
    with (at / f"{BAD}.pth").open("wb") as file:
        torch.save({"state_dict": state}, file)
    (at / f"{BAD}.yaml").write_text(RULES)
    names = {"R": f"{BAD}.yaml", "C": f"{BAD}.safetensors", "P": f"{BAD}.pth", "I": f"{BAD}-in-place.safetensors"}
    commands = [
        [str(at / names[word]) if word in names else word.replace("W/", f"{at}/") for word in command]
        for command in COMMANDS
        if only in ("", command[0])
    ]
    return {"condition": condition, "at": str(at), "commands": commands, "real": real, "fault": fault}


def run(folder: Path, jobs: list[dict[str, Any]], redirect: str = "", more: Mapping[str, str] | None = None) -> None:
    """Run jobs in one process and its children; what they print is put where each of them has its files."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="ascii")
    (folder / "driver.py").write_text(DRIVER)
    arguments = [sys.executable, str(folder / "driver.py"), ROOT, str(folder / "jobs.json")]
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {redirect}', "bash", *arguments],
        capture_output=True,
        cwd=folder,
        env={**os.environ, **(more or {})},
    )
    for each in jobs if jobs[0]["real"] else []:
        Path(each["at"], "stdout").write_bytes(done.stdout)
        Path(each["at"], "stderr").write_bytes(done.stderr)


def printed(at: Path) -> str:
    """What was printed; rule files and the schema are UTF-8 whatever the terminal speaks."""
    found = [at / name for name in ("stdout", "stderr")]
    return b"".join(path.read_bytes() for path in found if path.exists()).decode("utf-8")


def hold(at: Path) -> None:
    """Every command came to its end and said what it has to say; what it wrote is right."""
    assert (at / "report.json").exists(), f"{at.name}: {printed(at)}"
    found = json.loads((at / "report.json").read_text())
    assert [each for each in found if each not in (0, 1, 2)] == [], at.name
    text = printed(at)
    assert all(sign.isprintable() or sign == "\n" for sign in text), at.name
    assert not any(line.lstrip().startswith("::error::x") for line in text.splitlines())
    if len(found) < len(COMMANDS):
        return
    assert found[0] == 0 and found[1] == 0
    written = load_file_at(at / os.fsdecode(b"o\xff.safetensors"))
    assert written["n.b.w"].tolist() == [0.0, 1.0, 2.0, 3.0]
    with open_checkpoint(at / os.fsdecode(b"o\xff.pth")) as reader:
        assert set(reader.header()) == {"n.a.w", "n.b.w"}
    assert not list(at.glob("s*-of-*"))


def test_D11_no_command_falls_over(tmp_path: Path) -> None:
    run(tmp_path, [job(condition, tmp_path / condition) for condition in FORKED], more=STRICT)
    (tmp_path / "real").mkdir()
    run(tmp_path / "real", [job("ascii", tmp_path / "ascii", real=True)], more=ASCII)
    for condition in (*FORKED, "ascii"):
        hold(tmp_path / condition)
    said = [printed(tmp_path / condition) for condition in ("as usual", "no streams")]
    assert said[0].count("error[") >= 5 and said[1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("condition", REAL, ids=lambda name: f"D11-{name}")
def test_no_command_falls_over_in_a_process_of_its_own(condition: str, tmp_path: Path) -> None:
    run(tmp_path, [job(condition, tmp_path / "at", real=True)], REAL[condition])
    hold(tmp_path / "at")


FAULTS = {
    "torch is imported where there is none": ("no working directory", "verify"),
    "streams that are closed stay closed": ("no stdout", "apply"),
    "the working directory is asked for": ("no working directory", "verify"),
}


def test_planted_faults_are_found(tmp_path: Path) -> None:
    jobs = [job(condition, tmp_path / fault, fault=fault, only=only) for fault, (condition, only) in FAULTS.items()]
    run(tmp_path, jobs, more=STRICT)
    for fault in FAULTS:
        with pytest.raises((AssertionError, UnicodeDecodeError)):
            hold(tmp_path / fault)


def load_file_at(path: Path) -> dict[str, torch.Tensor]:
    """safetensors opens text names only."""
    copy = path.parent / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    return load_file(copy)


def test_a_stream_that_is_closed_gives_its_number_to_no_file(tmp_path: Path) -> None:
    """Whatever a library says on descriptor 2 must not land in the file that is being written."""
    program = (
        "import os, sys\n"
        "from remapkit.cli import app as cli\n"
        "cli._open_streams()\n"
        "print(os.open('f', os.O_RDWR | os.O_CREAT) > 2, sys.stderr is not None)\n"
    )
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" 2>&- <&-', "bash", sys.executable, "-c", program],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT},
        text=True,
    )
    assert done.stdout == "True True\n"
