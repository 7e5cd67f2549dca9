"""Formats are known by content, and what is no checkpoint is called what it is."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.formats import open_checkpoint

STATE = {"w": torch.arange(6.0).reshape(2, 3)}


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def refusal(path: str | Path) -> Diagnostic:
    with pytest.raises(UnreadableCheckpoint) as caught:
        open_checkpoint(path)
    (diagnostic,) = caught.value.diagnostics
    return diagnostic


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin", ".json", ".txt", ""])
def test_the_suffix_means_nothing(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save(STATE, path)
    with open_checkpoint(path) as reader:
        assert reader.format == "pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    with open_checkpoint(path) as reader:
        assert reader.format == "legacy pth"
    save_file(STATE, path)
    with open_checkpoint(path) as reader:
        assert reader.format == "safetensors"
    path.write_text('{"w": {"dtype": "F32", "shape": [2, 3]}}')
    with open_checkpoint(path) as reader:
        assert reader.format == "manifest"


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "code", "title"),
    [
        (b"", "RK401", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "RK401", "a git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "RK401", "an HTML page"),
        (b"  <html>", "RK401", "an HTML page"),
        (b"GGUF" + bytes(20), "RK401", "a GGUF file"),
        (b"\x1f\x8b\x08" + bytes(20), "RK401", "compressed with gzip"),
        (b"PK\x05\x06" + bytes(18), "RK401", "an empty zip archive"),
        (bytes(100), "RK401", "full of zeros"),
        (b"hello world", "RK401", "not a checkpoint: it starts with b'hello wo'"),
        (tar(), "RK409", "a tar archive"),
        (b"\x80\x02}q\x00.", "RK409", "a pickle, but not one that torch.save wrote"),
        (b"[1, 2]", "RK401", "not a checkpoint"),
        (b'{"a": 1}', "RK408", 'expected {"dtype"'),
        (b'{"a"', "RK408", "not valid JSON"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(content: bytes, code: str, title: str, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(content)
    found = refusal(tmp_path / "model")
    assert (found.code, title in found.title) == (code, True), found
    assert found.help or code == "RK408"


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.pth").title == f"no such file: {tmp_path / 'gone.pth'}"
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe").title
    assert "is not a regular file" in refusal("/dev/zero").title
    assert "null" in refusal("a\0b").title
    assert "too long" in refusal("a" * 5000).title
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "loop").code == "RK400"


def test_folders(tmp_path: Path) -> None:
    assert refusal(tmp_path).title == "a directory without a checkpoint"
    save_file(STATE, tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path) as reader:
        assert list(reader.header()) == ["w"]
    torch.save(STATE, tmp_path / "b.pth")
    assert refusal(tmp_path).title == "a directory with 2 checkpoints: a.safetensors and b.pth"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Neither after a refusal, whatever the format, nor after a reader is closed."""
    contents = [
        b"",
        b"PK\x03\x04" + bytes(50),
        b"\x80\x02}.",
        b'{"a": 1}',
        b'{"weight_map": {"a": "../b"}}',
        b"\x02" + bytes(7) + b"{}",
    ]
    before = open_files()
    for number, content in enumerate(contents):
        (tmp_path / f"{number}").write_bytes(content)
        if number < 5:
            refusal(tmp_path / f"{number}")
        else:
            open_checkpoint(tmp_path / f"{number}").close()
    assert open_files() == before
