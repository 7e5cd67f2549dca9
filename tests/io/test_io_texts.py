"""Small texts: one writer for all of them, and what it refuses.

Covers what every command that writes a text does: a file that the command reads is never written, under whatever name
it is given (itself, a symbolic link, a hard link); an existing file needs `--force`; a symbolic link stays one; a
replaced file keeps its mode; several files are written together or not at all; two processes never write one at once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from io_kit import everything_in, rules
from safetensors.torch import save_file

from remapkit.cli.app import main
from remapkit.diagnostics.errors import UnwritableOutput
from remapkit.files import atomic, text
from remapkit.files.locks import hold_locks
from remapkit.files.text import write_texts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(3), "b": torch.arange(4.0)}, tmp_path / "m.safetensors")
    save_file({"x": torch.ones(3), "y": torch.arange(4.0)}, tmp_path / "n.safetensors")
    (tmp_path / "keys.json").write_text('{"a": {"dtype": "F32", "shape": [3]}}')
    (tmp_path / "pairs.json").write_text('{"a": "x", "b": "y"}')
    rules(tmp_path)
    return tmp_path


# The command without the file to write, the option that names it, and every file that it reads.
COMMANDS: dict[str, tuple[list[str], str, list[str]]] = {
    "inspect": (["inspect", "m.safetensors"], "--manifest", ["m.safetensors"]),
    "new": (
        ["new", "mine", "--from", "m.safetensors", "--to", "keys.json"],
        "-o",
        ["m.safetensors", "keys.json"],
    ),
    "learn": (
        ["learn", "m.safetensors", "n.safetensors", "--pairs", "pairs.json"],
        "-o",
        ["m.safetensors", "n.safetensors", "pairs.json"],
    ),
    "invert": (["invert", "./rules.yaml"], "-o", ["rules.yaml"]),
}
NAMES: dict[str, Callable[[Path, Path], Path]] = {
    "itself": lambda path, other: path,
    "a symbolic link": lambda path, other: (other.symlink_to(path), other)[1],
    "a hard link": lambda path, other: (os.link(path, other), other)[1],
}


def never_over_a_source(folder: Path, command: str, name: str) -> None:
    words, option, sources = COMMANDS[command]
    for number, source in enumerate(sources):
        out = NAMES[name](folder / source, folder / f"other{number}")
        before = everything_in(folder)
        assert main([*words, option, str(out), "--force"]) == 2
        assert everything_in(folder) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"A1-D1-{command}")
def test_no_source_is_written(
    command: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    never_over_a_source(folder, command, name)
    assert "RK501" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_writer_that_knows_no_sources_is_found(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(text, "_list_identities", lambda sources: ())
    with pytest.raises(AssertionError):
        never_over_a_source(folder, command, "itself")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"A1-A2-{command}")
def test_an_existing_file_needs_force_and_keeps_link_and_mode(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    words, option, _ = COMMANDS[command]
    behind, link = folder / "behind.yaml", folder / "link.yaml"
    behind.write_text("old")
    behind.chmod(0o640)
    link.symlink_to(behind)
    assert main([*words, option, str(link)]) == 2
    assert "RK500" in capsys.readouterr().err
    assert behind.read_text() == "old"
    assert not (folder / "keys").exists(), "a folder that was made is removed again"
    assert main([*words, option, str(link), "--force"]) == 0
    assert link.is_symlink() and behind.read_text() != "old"
    assert stat.S_IMODE(behind.stat().st_mode) == 0o640
    assert not list(folder.rglob(".remapkit-*"))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("force", [False, True])
def test_several_texts_are_written_together_or_not_at_all(
    number: int, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    if force:
        for path in paths[:2]:
            path.write_text("old")
    before = everything_in(tmp_path)
    rename = atomic.NewFile.rename

    def failing(self: atomic.NewFile) -> None:
        if self.target == paths[number]:
            raise OSError(5, "input/output error")
        rename(self)

    monkeypatch.setattr(atomic.NewFile, "rename", failing)
    with pytest.raises(UnwritableOutput, match="nothing was changed"):
        write_texts(dict.fromkeys(paths, "new"), force=force)
    assert everything_in(tmp_path) == before
    monkeypatch.setattr(text, "put_back", lambda *_: None)
    with pytest.raises(UnwritableOutput):
        write_texts(dict.fromkeys(paths, "new"), force=force)
    assert (everything_in(tmp_path) == before) == (number == 0), "what puts nothing back is found"


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    read, old = tmp_path / "read", tmp_path / "old"
    read.write_text("r")
    old.write_text("o")
    with pytest.raises(UnwritableOutput) as refused:
        write_texts({read: "", old: "", tmp_path / "new": ""}, force=False, sources=[read])
    assert [each.code for each in refused.value.diagnostics] == ["RK501", "RK500"]
    assert sorted(everything_in(tmp_path)) == ["old", "read"]


@pytest.mark.parametrize("name", ["-", "", "missing/t.json", "."])
def test_names_that_name_no_file(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = everything_in(folder)
    assert main(["inspect", "m.safetensors", "--manifest", name]) == 2
    assert everything_in(folder) == before


def test_two_writers_of_one_text(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with hold_locks([path]), pytest.raises(UnwritableOutput, match=r"t\.json is being written by another process"):
        write_texts({path: "new"}, force=True)
    assert everything_in(tmp_path) == {}
    write_texts({path: "new"}, force=True)
    assert everything_in(tmp_path) == {"t.json": b"new"}
