"""The file names of a checkpoint: indexes, shards, and the output that they belong to."""

from __future__ import annotations

import re

_INDEX = re.compile(r"\.index(\.[A-Za-z0-9_-]+)?\.json")
_SHARD = re.compile(r"(?s)(.+)-[0-9]{5,}-of-[0-9]{5,}((?:\.[A-Za-z0-9_-]+)?\.[^.]+)")


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
    return derive_whole_name(name) if shard is None or is_index(name) else shard[1] + shard[2]
