"""Checkpoints in several files: the index and its shards agree exactly, and no name leads out of the folder."""

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
from ckpt_kit import assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.files import source_file
from remapkit.formats import open_checkpoint

ONE, TWO = "model-00001-of-00002", "model-00002-of-00002"


def write(folder: Path, pth: bool = False, weight_map: Mapping[str, Any] | None = None) -> Path:
    """Two shards and their index: `a` and `b` in the first, `c` in the second."""
    folder.mkdir(exist_ok=True)
    suffix = ".bin" if pth else ".safetensors"
    shards = {ONE: {"a": torch.arange(4.0), "b": torch.arange(3)}, TWO: {"c": torch.ones(2, 2)}}
    for name, tensors in shards.items():
        if pth:
            torch.save(tensors, folder / (name + suffix))
        else:
            save_file(tensors, folder / (name + suffix))
    index = folder / ("pytorch_model.bin.index.json" if pth else "model.safetensors.index.json")
    found = {fqn: name + suffix for name, tensors in shards.items() for fqn in tensors}
    index.write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": found if weight_map is None else weight_map})
    )
    return index


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def refusal(path: Path) -> Diagnostic:
    with pytest.raises(UnreadableCheckpoint) as caught:
        open_checkpoint(path)
    (diagnostic,) = caught.value.diagnostics
    return diagnostic


@pytest.mark.parametrize("pth", [False, True])
def test_shards_by_their_index_and_by_their_folder(pth: bool, tmp_path: Path) -> None:
    index = write(tmp_path / "m", pth)
    for path in (index, index.parent):
        with open_checkpoint(path) as reader:
            assert reader.format == ("sharded pth" if pth else "sharded safetensors")
            assert set(reader.header()) == {"a", "b", "c"}
            order = {
                fqn: {"a": torch.arange(4.0), "b": torch.arange(3), "c": torch.ones(2, 2)}[fqn]
                for fqn in reader.header()
            }
            assert_same(reader, order)
            assert list(reader.header())[-1] == "c"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(homes=st.dictionaries(st.text("abcxyz.", min_size=1, max_size=8), st.integers(0, 4), min_size=1, max_size=12))
def test_any_partition_is_read_whole(homes: dict[str, int], tmp_path: Path) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    files = {number: f"s{number}.safetensors" for number in homes.values()}
    state = {fqn: torch.full((len(fqn), 2), float(place)) for place, fqn in enumerate(homes)}
    for number, file in files.items():
        save_file({fqn: state[fqn] for fqn, home in homes.items() if home == number}, tmp_path / file)
    index = {"weight_map": {fqn: files[home] for fqn, home in homes.items()}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with open_checkpoint(tmp_path) as reader:
        assert_same(reader, {fqn: state[fqn] for fqn in reader.header()})
        assert set(reader.header()) == set(state)


@pytest.mark.parametrize(
    ("file", "title"),
    [
        ("../x.safetensors", "shard '../x.safetensors' for 'a' points outside the checkpoint"),
        ("../../x", "shard '../../x' for 'a' points outside the checkpoint"),
        ("/etc/passwd", "shard '/etc/passwd' for 'a' points outside the checkpoint"),
        ("sub/x.safetensors", "shard 'sub/x.safetensors' for 'a' points outside the checkpoint"),
        ("..", "shard '..' for 'a' points outside the checkpoint"),
        (".", "shard '.' for 'a' points outside the checkpoint"),
        ("", "shard '' for 'a' points outside the checkpoint"),
        ("C:\\x", "shard 'C:\\\\x' for 'a' points outside the checkpoint"),
        ("x\0.safetensors", "shard 'x\\\\x00.safetensors' for 'a' points outside the checkpoint"),
        ("gone.safetensors", "shard 'gone.safetensors' is missing"),
        ("\ud800", "shard '\\\\ud800' is missing"),
        ("x" * 5000, "is missing"),
        ("model.safetensors.index.json", "shard 'model.safetensors.index.json' is an index or a manifest"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        (7, "its shard is not a file name"),
        (None, "its shard is not a file name"),
    ],
)
def test_names_that_are_no_shard(file: Any, title: str, tmp_path: Path) -> None:
    first = ONE + ".safetensors"
    index = write(tmp_path, weight_map={"a": file, "b": first, "c": TWO + ".safetensors"})
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    found = refusal(index)
    assert title in found.title
    assert found.code in ("RK407", "RK400")


def test_every_missing_shard_is_named(tmp_path: Path) -> None:
    index = write(tmp_path, weight_map={"a": "x1", "b": "x2", "c": TWO + ".safetensors"})
    assert refusal(index).title == "2 of 3 shards are missing: 'x1' and 'x2'"


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/hostname", "gone", "loop"])
def test_a_link_that_leads_out_or_nowhere(target: str, tmp_path: Path) -> None:
    index = write(tmp_path / "m")
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    shard = tmp_path / "m" / (TWO + ".safetensors")
    shard.unlink()
    shard.symlink_to(shard.name if target == "loop" else target)
    found = refusal(index)
    assert found.code == "RK407"
    assert "is a link that " in found.title


def test_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    """`snapshots/<revision>/name -> ../../blobs/<digest>`, as download caches lay files out."""
    home = tmp_path / "models--x" / "snapshots" / "main"
    home.parent.mkdir(parents=True)
    index = write(home)
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    for name in (ONE, TWO):
        shard = home / (name + ".safetensors")
        shard.rename(blobs / name)
        shard.symlink_to(f"../../blobs/{name}")
    with open_checkpoint(index) as reader:
        assert len(reader.header()) == 3


@pytest.mark.parametrize(
    ("weight_map", "title"),
    [
        ({"a": ONE, "b": ONE}, ""),
        ({"a": ONE, "b": ONE, "c": ONE}, "the index says model-00001-of-00002.safetensors, but it is in no shard"),
        ({"a": ONE, "b": TWO, "c": TWO}, "the index says model-00002-of-00002.safetensors, but it is in model-00001"),
        ({"a": ONE, "b": ONE, "c": TWO, "d": TWO}, "but it is in no shard"),
        ({}, "the index's `weight_map` is empty"),
        ([], "an index must have an object `weight_map` that maps names to files"),
        (None, "an index must have an object `weight_map`"),
        ({"a\n": ONE}, "a name holds the control character U+000A"),
        ({"a\ud800": ONE}, "a name holds the lone surrogate U+D800"),
    ],
)
def test_an_index_that_lies(weight_map: Any, title: str, tmp_path: Path) -> None:
    if isinstance(weight_map, dict):
        weight_map = {fqn: file + ".safetensors" for fqn, file in weight_map.items()}
    index = write(tmp_path, weight_map=weight_map)
    if weight_map is None:
        index.write_text('{"weight_map": null}')
    if weight_map == {"a": ONE + ".safetensors", "b": ONE + ".safetensors"}:
        with open_checkpoint(index) as reader:
            assert set(reader.header()) == {"a", "b"}
            assert (
                "files beside the index that it does not list: model-00002-of-00002.safetensors"
                in reader.notes[0].title
            )
        return
    found = refusal(index)
    assert found.code == "RK407"
    assert title in found.title


def test_a_name_in_two_shards(tmp_path: Path) -> None:
    index = write(tmp_path)
    save_file({"c": torch.ones(2, 2), "a": torch.arange(4.0)}, tmp_path / (TWO + ".safetensors"))
    found = refusal(index)
    assert found.title == f"in two shards: {ONE}.safetensors and {TWO}.safetensors"
    assert found.place is not None
    assert found.place.endswith(": a")


def test_a_tensor_that_the_index_does_not_name(tmp_path: Path) -> None:
    index = write(tmp_path)
    save_file({"c": torch.ones(2, 2), "d": torch.ones(1)}, tmp_path / (TWO + ".safetensors"))
    assert refusal(index).title == f"in the shard {TWO}.safetensors, but not in the index"


def test_a_broken_shard_is_named_and_every_file_is_closed(tmp_path: Path) -> None:
    index = write(tmp_path)
    shard = tmp_path / (TWO + ".safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    before = open_files()
    found = refusal(index)
    assert found.place == str(shard)
    assert "truncated" in found.title
    assert open_files() == before


def test_an_index_that_says_a_name_twice(tmp_path: Path) -> None:
    index = write(tmp_path)
    index.write_text('{"weight_map": {"a": "x", "a": "y"}}')
    assert "duplicate name 'a' in the file" in refusal(index).title


def many(folder: Path, count: int) -> Path:
    """So many shards of one tensor each."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        save_file({f"w{number}": torch.full((5,), float(number))}, folder / f"m-{number:05d}.safetensors")
    index = folder / "m.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {f"w{number}": f"m-{number:05d}.safetensors" for number in range(count)}})
    )
    return index


MANY = """
import resource, sys
import numpy
from remapkit.cli.app import main
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
rules, index, out = sys.argv[1:]
sys.exit(main(["apply", rules, index, "-o", out, "--verify"]) or main(["diff", out, index, "--rules-b", rules]))
"""


def test_D18_more_shards_than_open_files_are_allowed(tmp_path: Path) -> None:
    index = many(tmp_path / "m", 200)
    rules = tmp_path / "r.yaml"
    rules.write_text("remapkit: 1\nname: r\nrules: [{id: a, path: 'w{n:int}', to: 'v.{n}'}]\n")
    arguments = [sys.executable, "-c", MANY, rules, index, tmp_path / "o.safetensors"]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "200 of 200 tensors identical" in done.stdout


def test_D18_shards_that_are_closed_meanwhile_are_the_same_when_they_are_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_file, "find_open_limit", lambda: 2)
    index = many(tmp_path, 6)
    before = open_files()
    with open_checkpoint(index) as reader:
        assert open_files() <= before + 4
        for number in (0, 5, 3, 0, 1, 2, 5):
            assert b"".join(reader.chunks(f"w{number}")) == torch.full((5,), float(number)).numpy().tobytes()
        shard = tmp_path / "m-00004.safetensors"
        shard.rename(tmp_path / "away")
        save_file({"w4": torch.full((5,), 666.0)}, shard)
        with pytest.raises(UnreadableCheckpoint, match="RK412"):
            b"".join(reader.chunks("w4"))
    assert open_files() == before


def test_D18_one_shard_taken_for_another_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: whatever lies under the name is opened again."""

    def reopen(self: Any) -> None:
        source_file._POOL.make_room()
        self.fd = os.open(self.path, os.O_RDONLY)
        source_file._POOL.files[id(self)] = self

    monkeypatch.setattr(source_file.SourceFile, "_reopen", reopen)
    with pytest.raises(pytest.fail.Exception):
        test_D18_shards_that_are_closed_meanwhile_are_the_same_when_they_are_opened_again(tmp_path, monkeypatch)
