"""The file names of a checkpoint: indexes, shards, and the output that they belong to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_INDEX = re.compile(r"\.index(\.[A-Za-z0-9_-]+)?\.json")
_SHARD = re.compile(r"(?s)(.+)-([0-9]{5,})-of-([0-9]{5,})((?:\.[A-Za-z0-9_-]+)?\.[^.]+)")
_MAX_SHARDS = 100_000


def split_index_name(name: str) -> tuple[str, str]:
    """Split the name of an index into the name of its checkpoint and its variant; return other names unchanged.

    >>> split_index_name("model.safetensors.index.fp16.json"), split_index_name("model.safetensors.index.json")
    (('model.safetensors', '.fp16'), ('model.safetensors', ''))
    """
    matches = list(_INDEX.finditer(name))
    if matches and matches[-1].end() == len(name):
        return name[: matches[-1].start()], matches[-1][1] or ""
    return name, ""


def is_index(name: str) -> bool:
    """Return whether a file has the name of an index, with or without a variant.

    >>> is_index("model.safetensors.index.json"), is_index("model.safetensors.index.fp16.json"), is_index("m.json")
    (True, True, False)
    """
    return split_index_name(name)[0] != name


def derive_whole_name(name: str) -> str:
    """Return the name that an output would have as one file, from the name of its last file (an index comes last).

    A file that is written alone is the whole output, even if it has the name of a shard.

    >>> derive_whole_name("model.safetensors.index.json"), derive_whole_name("model.safetensors.index.fp16.json")
    ('model.safetensors', 'model.fp16.safetensors')
    >>> derive_whole_name("model-00001-of-00003.safetensors")
    'model-00001-of-00003.safetensors'
    """
    stem, variant = split_index_name(name)
    head, _, suffix = stem.rpartition(".")
    return f"{head}{variant}.{suffix}" if stem != name and head else name


def derive_output_name(name: str) -> str:
    """Return the name that a checkpoint would have as one file, from the name of any of its files in any layout.

    A variant comes before the number of a shard or, with older writers, after it.

    >>> derive_output_name("model-00001-of-00003.safetensors"), derive_output_name("model.safetensors.index.json")
    ('model.safetensors', 'model.safetensors')
    >>> [derive_output_name(f"model{part}.safetensors") for part in (".fp16-00001-of-00003", "-00001-of-00003.fp16")]
    ['model.fp16.safetensors', 'model.fp16.safetensors']
    >>> derive_output_name("pytorch_model.bin"), derive_output_name("rules.yaml"), derive_output_name("README")
    ('pytorch_model.bin', 'rules.yaml', 'README')
    """
    shard = _SHARD.fullmatch(name)
    return derive_whole_name(name) if shard is None or is_index(name) else shard[1] + shard[4]


@dataclass(frozen=True, slots=True)
class ShardSet:
    """The files of one checkpoint that are numbered `-00001-of-00004`, and the names of those that are missing."""

    files: tuple[Path, ...]
    missing: tuple[str, ...]


def find_shard_set(files: Sequence[Path]) -> ShardSet | None:
    """Return the set of shards that all of these files belong to; None if there is no such set.

    Shards are numbered from 1, or from 0 if there is one with this number.

    >>> found = find_shard_set([Path(f"m-0000{n}-of-00003.safetensors") for n in (1, 3)])
    >>> [file.name for file in found.files], found.missing
    (['m-00001-of-00003.safetensors', 'm-00003-of-00003.safetensors'], ('m-00002-of-00003.safetensors',))
    >>> find_shard_set([Path("m-00001-of-00002.safetensors"), Path("n.safetensors")]) is None
    True
    """
    shards = [_SHARD.fullmatch(file.name) for file in files]
    parts = {(shard[1], shard[3], shard[4]) if shard else None for shard in shards}
    if len(parts) != 1 or None in parts:
        return None
    found = {int(shard[2]): (file, len(shard[2])) for file, shard in zip(files, shards, strict=True) if shard}
    ((stem, of, suffix),) = (part for part in parts if part)
    first = 0 if 0 in found else 1
    total = int(of)
    if total > _MAX_SHARDS or not all(first <= number < first + total for number in found):
        return None
    width = max(width for _, width in found.values())
    missing = (number for number in range(first, first + total) if number not in found)
    names = tuple(f"{stem}-{number:0{width}d}-of-{of}{suffix}" for number in missing)
    return ShardSet(tuple(found[number][0] for number in sorted(found)), names)


def is_first_shard(name: str) -> bool:
    """Return whether a file is the first of several shards.

    >>> is_first_shard("m-00001-of-00003.safetensors"), is_first_shard("m-00002-of-00003.safetensors")
    (True, False)
    """
    shard = _SHARD.fullmatch(name)
    return shard is not None and int(shard[2]) < 2 and int(shard[3]) > 1


def is_same_set(name: str, other: str) -> bool:
    """Return whether two files are shards of one set.

    >>> is_same_set("m-00001-of-00003.bin", "m-00003-of-00003.bin"), is_same_set("m-00001-of-00003.bin", "m.bin")
    (True, False)
    """
    one, two = _SHARD.fullmatch(name), _SHARD.fullmatch(other)
    return one is not None and two is not None and one.group(1, 3, 4) == two.group(1, 3, 4)
