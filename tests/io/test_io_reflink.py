"""Blocks shared instead of copied, on filesystems that can: XFS and btrfs in a file, mounted where root may."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from io_kit import LONGER, SUFFIX, convert, leftovers, raw, rules
from safetensors.torch import load_file, save_file

from remapkit.cli.app import main
from remapkit.write import in_place as inplace
from remapkit.write import layout

SIZE = 24_000_000
COMMANDS = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}


@pytest.fixture(params=COMMANDS)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty filesystem that can share blocks."""
    kind = request.param
    command = COMMANDS[kind]
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a filesystem from a file")
    if not shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        pytest.skip(f"no {command[0]} here")
    image, folder = tmp_path / "image", tmp_path / kind
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    subprocess.run([*command, str(image)], check=True, env=environment, capture_output=True)
    done = subprocess.run(
        ["mount", "-o", "loop", str(image), str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount {kind} from a file: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        image.unlink()


def make(folder: Path) -> Path:
    """A file whose data starts where the safetensors library puts it: at no multiple of a block."""
    path = folder / "m.safetensors"
    save_file({f"w{n}": torch.randn(SIZE // 4 // 6 + n) for n in range(6)}, path)
    return path


def used(folder: Path) -> int:
    os.sync()
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def contents(path: Path) -> dict[str, bytes]:
    """Copies of the bytes: what `load_file` returns is a map of the file, and changes with it."""
    return {name: raw(tensor) for name, tensor in load_file(path).items()}


def same(state: dict[str, bytes], path: Path, prefix: str = "renamed.") -> bool:
    return {name.removeprefix(prefix): data for name, data in contents(path).items()} == state


def test_a_rename_shares_the_blocks(shared: Path) -> None:
    source = make(shared)
    state, before = contents(source), used(shared)
    written = convert(source, shared / "o.safetensors", verify=True)
    assert "reflink" in written.how
    assert used(shared) - before < SIZE // 20
    assert same(state, shared / "o.safetensors")
    # What one is changed to, the other is not.
    with (shared / "o.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    assert contents(source) == state


def test_an_output_that_is_shorter_than_a_block(shared: Path) -> None:
    """The first block is shared to find out whether that is possible; nothing of it may be left."""
    source = shared / "m.safetensors"
    save_file({"w0": torch.randn(5), "w1": torch.randn(100_000)}, source)
    only = rules(shared, SUFFIX.replace("{rest:**}", "w0").replace("{rest}", "w0") + "drop: [w1]\n")
    assert main(["apply", str(only), str(source), "-o", str(shared / "o.safetensors"), "--verify"]) == 0
    assert same({"w0": contents(source)["w0"]}, shared / "o.safetensors")


def test_shared_blocks_need_no_space(shared: Path) -> None:
    source = make(shared)
    state = contents(source)
    for number in range(100):
        if free(shared) < SIZE // 2:
            break
        (shared / f"filler{number}").write_bytes(os.urandom(1 << 16) * max(1, min(128, free(shared) // (4 << 16))))
        os.sync()
    assert free(shared) < SIZE // 2
    convert(source, shared / "o.safetensors")
    assert same(state, shared / "o.safetensors")


def test_a_header_at_another_offset_is_a_planted_fault(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the padding that keeps offsets apart by whole blocks, everything is copied."""
    source = make(shared)
    before = used(shared)
    padded = layout.pad_header
    monkeypatch.setattr(layout, "pad_header", lambda raw, start=0: padded(raw, (start + 8) % 4096))
    written = convert(source, shared / "o.safetensors")
    assert "copy_file_range" in written.how
    # Whether the kernel shares what it is asked to copy is its own affair; nothing may be wrong either way.
    assert used(shared) - before > SIZE // 2 or "reflink" not in written.how


@pytest.mark.parametrize("text", [SUFFIX, LONGER])
def test_in_place_is_a_new_header_over_shared_blocks(text: str, shared: Path) -> None:
    source = make(shared)
    state, before = contents(source), used(shared)
    prefix = text.split("to: '")[1].split("{rest}")[0]
    assert main(["apply", str(rules(shared, text)), str(source), "--in-place"]) == 0
    assert same(state, source, prefix)
    assert used(shared) - before < SIZE // 20
    assert leftovers(shared) == []


@pytest.mark.parametrize("text", [SUFFIX, LONGER])
def test_in_place_under_a_journal_works_there_too(text: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where blocks cannot be shared the header is overwritten; XFS inserts blocks for a longer one, btrfs cannot."""
    source = make(shared)
    state = contents(source)
    prefix = text.split("to: '")[1].split("{rest}")[0]
    monkeypatch.setattr(inplace, "_clone_file", lambda *_: 0)
    assert main(["apply", str(rules(shared, text)), str(source), "--in-place"]) == 0
    assert same(state, source, prefix)
    assert leftovers(shared) == []
