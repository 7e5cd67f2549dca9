"""Checkpoints with everything in them, rules to rename them, and how results are read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from remapkit.formats import open_checkpoint
from remapkit.plans.moves import Move, RuleRef
from remapkit.write.execute import WrittenFiles, write_checkpoint

SUFFIX = "remapkit: 1\nname: prefix\nrules:\n  - {id: all, path: '{rest:**}', to: 'renamed.{rest}'}\n"
LONGER = SUFFIX.replace("renamed", "a_much_longer_name_than_any_that_stood_there_before.so_that_it_cannot_fit")
UNCHANGED = "remapkit: 1\nname: unchanged\nunmatched: keep\nrules:\n"
UNCHANGED += "  - {id: one, path: 'layer.{n:int}.weight', to: 'block.{n}.weight'}\n"
KEEP = "remapkit: 1\nname: keep\nunmatched: keep\nkeep: ['{all:**}']\n"


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, whatever its dtype and layout."""
    return bytes(tensor.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).numpy())


def bytes_of(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    return {fqn: raw(tensor) for fqn, tensor in state.items()}


def rules(folder: Path, text: str = SUFFIX, name: str = "rules.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def moves_for(path: Path, names: Mapping[str, str] | None = None, **options: bool) -> list[Move]:
    """A move for every tensor of a checkpoint, under new names."""
    with open_checkpoint(path, **options) as reader:
        header = reader.header()
        return [
            Move(names[fqn] if names else f"renamed.{fqn}", (fqn,), (), RuleRef("all"), header[fqn]) for fqn in header
        ]


def convert(source: Path, out: Path, names: Mapping[str, str] | None = None, **options: object) -> WrittenFiles:
    with open_checkpoint(source, allow_expand=True) as reader:
        return write_checkpoint(moves_for(source, names, allow_expand=True), reader, out, **options)  # type: ignore[arg-type]


def read_back(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """What torch or safetensors reads from an output; an index is followed as its readers follow it."""
    last = files[-1]
    if last.suffix == ".pth":
        return dict(torch.load(last, weights_only=True, mmap=True))
    if last.suffix == ".safetensors":
        return load_file(last)
    index = json.loads(last.read_text(encoding="utf-8"))
    shards = {name: load_file(last.parent / name) for name in dict.fromkeys(index["weight_map"].values())}
    assert sorted(shards) == sorted(path.name for path in files[:-1])
    found = {fqn: shards[name][fqn] for fqn, name in index["weight_map"].items()}
    assert sum(map(len, shards.values())) == len(found)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    return found


def leftovers(folder: Path) -> list[str]:
    """Temporary files and journals."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".remapkit-"))


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def with_room(data: bytes, room: int = 4096) -> bytes:
    """A safetensors file whose header is followed by spaces, so that another header fits."""
    length = int.from_bytes(data[:8], "little")
    return (length + room).to_bytes(8, "little") + data[8 : 8 + length] + b" " * room + data[8 + length :]


def chosen(count: int, end: int = 10, every: int = 20) -> list[int]:
    """The steps of the end, where files get their names, and some before."""
    return [n for n in range(1, count + 1) if n == 1 or n % every == 0 or n > count - end]
