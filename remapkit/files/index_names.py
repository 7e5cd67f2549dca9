"""The names of a checkpoint's files: which is an index, which a shard, and which output they belong to."""

from __future__ import annotations

import re

_INDEX = re.compile(r"\.index(\.[A-Za-z0-9_-]+)?\.json")
_SHARD = re.compile(r"(?s)(.+)-[0-9]{5,}-of-[0-9]{5,}((?:\.[A-Za-z0-9_-]+)?\.[^.]+)")


def split_index_name(name: str) -> tuple[str, str]:
    """The name of an index without what makes it one, and its variant; other names as they are.

    >>> split_index_name("model.safetensors.index.fp16.json"), split_index_name("model.safetensors.index.json")
    (('model.safetensors', '.fp16'), ('model.safetensors', ''))
    """
    matches = list(_INDEX.finditer(name))
    if matches and matches[-1].end() == len(name):
        return name[: matches[-1].start()], matches[-1][1] or ""
    return name, ""


def is_index(name: str) -> bool:
    """Whether a file is named as an index is, with a variant or without.

    >>> is_index("model.safetensors.index.json"), is_index("model.safetensors.index.fp16.json"), is_index("m.json")
    (True, True, False)
    """
    return split_index_name(name)[0] != name


def derive_whole_name(name: str) -> str:
    """The name that an output has as one file, from its last file's: an index is the last of its shards.

    A file that is written alone is the whole output, also where it is named as a shard is.

    >>> derive_whole_name("model.safetensors.index.json"), derive_whole_name("model.safetensors.index.fp16.json")
    ('model.safetensors', 'model.fp16.safetensors')
    >>> derive_whole_name("model-00001-of-00003.safetensors")
    'model-00001-of-00003.safetensors'
    """
    stem, variant = split_index_name(name)
    head, _, suffix = stem.rpartition(".")
    return f"{head}{variant}.{suffix}" if stem != name and head else name


def derive_output_name(name: str) -> str:
    """The name that a checkpoint has as one file, from that of any of its files in any layout.

    A variant stands before the number of a shard or, as older writers have it, after it.

    >>> derive_output_name("model-00001-of-00003.safetensors"), derive_output_name("model.safetensors.index.json")
    ('model.safetensors', 'model.safetensors')
    >>> [derive_output_name(f"model{part}.safetensors") for part in (".fp16-00001-of-00003", "-00001-of-00003.fp16")]
    ['model.fp16.safetensors', 'model.fp16.safetensors']
    >>> derive_output_name("pytorch_model.bin"), derive_output_name("rules.yaml"), derive_output_name("README")
    ('pytorch_model.bin', 'rules.yaml', 'README')
    """
    shard = _SHARD.fullmatch(name)
    return derive_whole_name(name) if shard is None or is_index(name) else shard[1] + shard[2]
