"""Names that are not UTF-8, streams that are closed or speak ASCII, a working directory that is gone: every command.

The kinds: a name that cannot be encoded where it is printed or written into a file; a stream that is not there, whose
number the next file would get; a path that needs the working directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from remapkit.checkpoint.opening import open_checkpoint

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
sys.path.insert(0, sys.argv[3])
commands = json.loads(open(sys.argv[1], encoding="ascii").read())
if sys.argv[4] == "gone":
    os.mkdir(sys.argv[2] + ".gone"); os.chdir(sys.argv[2] + ".gone"); os.rmdir(sys.argv[2] + ".gone")
from remapkit import cli
report = []
bug = cli._bug
def seen():
    import traceback
    report.append(traceback.format_exc())
    return bug()
cli._bug = seen
for number, command in enumerate(commands):
    try:
        status = cli.main([*command, "--format", ("text", "json", "github")[number % 3]])
    except SystemExit as error:
        status = error.code
    report.append(status)
with open(sys.argv[2], "w", encoding="ascii") as file:
    json.dump(report, file)
"""
CONDITIONS = {
    "as usual": ("", {}),
    "ascii": ("", {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "no stderr": ("2>&-", {}),
    "no stdout": (">&-", {}),
    "no streams": ("<&- >&- 2>&-", {}),
    "no working directory": ("", {}),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    state = {"a.w": torch.ones(4), "b.w": torch.arange(4.0)}
    for name in (f"{BAD}.safetensors", f"{BAD}-in-place.safetensors"):
        save_file(state, tmp_path / "x.safetensors")
        (tmp_path / "x.safetensors").rename(tmp_path / name)
    with (tmp_path / f"{BAD}.pth").open("wb") as file:
        torch.save({"state_dict": state}, file)
    (tmp_path / f"{BAD}.yaml").write_text(RULES)
    return tmp_path


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda name: f"D11-{name}")
def test_no_command_falls_over(condition: str, place: Path) -> None:
    redirect, more = CONDITIONS[condition]
    at = {"R": f"{BAD}.yaml", "C": f"{BAD}.safetensors", "P": f"{BAD}.pth", "I": f"{BAD}-in-place.safetensors"}
    commands = [
        [str(place / at[word]) if word in at else word.replace("W/", f"{place}/") for word in command]
        for command in COMMANDS
    ]
    (place / "commands.json").write_text(json.dumps(commands), encoding="ascii")
    (place / "driver.py").write_text(DRIVER)
    report = place / "report.json"
    root = str(Path(__file__).parents[2])
    gone = "gone" if condition == "no working directory" else "here"
    line = f'exec "$@" {redirect}'
    arguments = [sys.executable, str(place / "driver.py"), str(place / "commands.json"), str(report), root, gone]
    done = subprocess.run(
        ["bash", "-c", line, "bash", *arguments], capture_output=True, cwd=place, env={**os.environ, **more}
    )
    assert report.exists(), done.stderr.decode("utf-8", "replace")
    found = json.loads(report.read_text())
    assert [each for each in found if each not in (0, 1, 2)] == []
    printed = done.stdout + done.stderr
    text = printed.decode("utf-8")  # rule files and the schema are UTF-8 whatever the terminal speaks
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    assert not any(line.lstrip().startswith("::error::x") for line in text.splitlines())
    written = load_file_at(place / os.fsdecode(b"o\xff.safetensors"))
    assert written["n.b.w"].tolist() == [0.0, 1.0, 2.0, 3.0]
    with open_checkpoint(place / os.fsdecode(b"o\xff.pth")) as reader:
        assert set(reader.header()) == {"n.a.w", "n.b.w"}
    assert not list(place.glob("s*-of-*"))


def load_file_at(path: Path) -> dict[str, torch.Tensor]:
    """safetensors opens text names only."""
    copy = path.parent / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    return load_file(copy)


def test_a_stream_that_is_closed_gives_its_number_to_no_file(place: Path) -> None:
    """Whatever a library says on descriptor 2 must not land in the file that is being written."""
    program = (
        "import os, sys\n"
        "from remapkit import cli\n"
        "cli._open_streams()\n"
        "print(os.open('f', os.O_RDWR | os.O_CREAT) > 2, sys.stderr is not None)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" 2>&- <&-', "bash", sys.executable, "-c", program],
        capture_output=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": root},
        text=True,
    )
    assert done.stdout == "True True\n"
