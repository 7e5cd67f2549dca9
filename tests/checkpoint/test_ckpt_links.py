"""Shards that are links: a download cache at any depth is read, everything else is refused until it is asked for.

Kinds covered: how deep the file lies below the revision, whether the index is a link too, whether the cache itself is
reached through a link, links within the folder, links out of it, a `blobs` that leads elsewhere, and what is no file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ckpt_kit import assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from remapkit.cli.app import main
from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.formats import open_checkpoint, sharded

STATE = {"a": torch.arange(4.0), "b": torch.ones(2, 3)}
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def cached(cache: Path, folders: tuple[str, ...], index_linked: bool = True, revision: str = "c0ffee") -> Path:
    """What huggingface_hub leaves behind: files named by their hash, and a snapshot of links to them."""
    home = cache.joinpath("snapshots", revision, *folders)
    home.mkdir(parents=True)
    blobs = cache / "blobs"
    blobs.mkdir()
    up = "../" * (2 + len(folders))
    files = {f"s-0000{number}.safetensors": {fqn: value} for number, (fqn, value) in enumerate(STATE.items())}
    for number, (name, state) in enumerate(files.items()):
        save_file(state, blobs / f"{number:064x}")
        (home / name).symlink_to(f"{up}blobs/{number:064x}")
    text = json.dumps({"weight_map": {fqn: name for name, state in files.items() for fqn in state}})
    if index_linked:
        (blobs / "index").write_text(text)
        (home / INDEX).symlink_to(f"{up}blobs/index")
    else:
        (home / INDEX).write_text(text)
    return home / INDEX


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    folders=st.lists(st.sampled_from(["transformer", "unet", "a b", "ü", "snapshots", "blobs"]), max_size=4),
    index_linked=st.booleans(),
    through_a_link=st.booleans(),
    by_folder=st.booleans(),
)
def test_a_download_cache_is_read_at_any_depth(
    folders: list[str],
    index_linked: bool,
    through_a_link: bool,
    by_folder: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tmp_path = tmp_path_factory.mktemp("hub")
    index = cached(tmp_path / "models--o--m", tuple(folders), index_linked)
    if through_a_link:
        (tmp_path / "m").symlink_to(index.parent)
        index = tmp_path / "m" / index.name
    with open_checkpoint(index.parent if by_folder else index) as reader:
        assert_same(reader, STATE)


def test_a_cache_that_is_known_at_one_depth_only_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Planted: only files right below the revision are taken for a cache's."""

    def shallow(home: Path) -> Path | None:
        return home.parent.parent / "blobs" if home.parent.name == "snapshots" else None

    monkeypatch.setattr(sharded, "find_cache_blobs", shallow)
    with pytest.raises((UnreadableCheckpoint, BaseExceptionGroup)):
        test_a_download_cache_is_read_at_any_depth(tmp_path_factory=tmp_path_factory)


def outside(tmp_path: Path) -> tuple[Path, Path]:
    """An index with one shard beside it and one that is a link to another disk; and where that leads."""
    home, other = tmp_path / "m", tmp_path / "disk"
    home.mkdir()
    other.mkdir()
    save_file({"a": STATE["a"]}, home / "one.safetensors")
    save_file({"b": STATE["b"]}, other / "two.safetensors")
    (home / "two.safetensors").symlink_to(other / "two.safetensors")
    (home / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    return home / INDEX, other / "two.safetensors"


def test_a_link_out_is_refused_with_the_option_that_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, _ = outside(tmp_path)
    assert main(["inspect", str(index)]) == 2
    said = capsys.readouterr().err
    assert "RK407" in said and "points outside the checkpoint" in said and "--follow-links" in said
    assert main(["inspect", str(index), "--follow-links"]) == 0
    with open_checkpoint(index, follow_links=True) as reader:
        assert_same(reader, STATE)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [fifo, device])
def test_an_option_never_opens_what_is_no_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    index, target = outside(tmp_path)
    make(target)
    with pytest.raises(UnreadableCheckpoint, match="is not a regular file"):
        open_checkpoint(index, follow_links=True)


def blobs_elsewhere(cache: Path) -> None:
    (cache / "blobs").rename(cache.parent / "elsewhere")
    (cache / "blobs").symlink_to(cache.parent / "elsewhere")


def below_blobs(cache: Path) -> None:
    inner = cache / "blobs" / "inner"
    inner.mkdir()
    for blob in (cache / "blobs").iterdir():
        if blob.is_file() and blob.name != "index":
            blob.rename(inner / blob.name)
            blob.symlink_to(f"inner/{blob.name}")


def blob_is_a_link(cache: Path) -> None:
    blob = cache / "blobs" / f"{0:064x}"
    blob.rename(cache.parent / "secret")
    blob.symlink_to(cache.parent / "secret")


@pytest.mark.parametrize("change", [blobs_elsewhere, below_blobs, blob_is_a_link])
def test_what_only_looks_like_a_cache_is_none(change: Callable[[Path], None], tmp_path: Path) -> None:
    index = cached(tmp_path / "models--o--m", ("transformer",), index_linked=False)
    change(tmp_path / "models--o--m")
    with pytest.raises(UnreadableCheckpoint, match="points outside the checkpoint"):
        open_checkpoint(index)
