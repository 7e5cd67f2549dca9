"""Opens any checkpoint; the format is detected from the content, not from the suffix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.diagnostics.arguments import check_arguments
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun, escape_line, join_words, show_key
from remapkit.files.errors import FileFault, make_note, make_unreadable
from remapkit.files.index_names import (
    ShardSet,
    derive_output_name,
    find_shard_set,
    is_first_shard,
    is_index,
    is_same_set,
)
from remapkit.files.source_file import SourceFile
from remapkit.files.strict_json import read_json
from remapkit.formats.manifest import ManifestReader, parse_manifest
from remapkit.formats.options import ReadOptions, clean_root
from remapkit.formats.reader import Reader
from remapkit.formats.renamed import rename_reader
from remapkit.formats.single_file import is_true_safely, open_tensors

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""The suffixes of checkpoints; only used to find one in a folder."""

if TYPE_CHECKING:
    # The readers of pickles are a third of the time that `lint` takes to start, and it opens only manifests.
    from remapkit.formats.safetensors import SafetensorsReader
    from remapkit.formats.sharded import ShardedReader
    from remapkit.formats.torch_file import PthReader

    AnyReader = SafetensorsReader | PthReader | ShardedReader | ManifestReader


@check_arguments()
def open_checkpoint(
    path: str | Path,
    *,
    root: str | None = None,
    strip: Sequence[str] = (),
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
) -> Reader:
    """Open a checkpoint: safetensors, torch.save's zip or legacy format, a pickle of numpy arrays, or a manifest.

    A manifest has no data. Shards are opened through their index, or all together without one; a folder is opened if
    it holds exactly one checkpoint.

    `root` names the state dict in a checkpoint that holds more: a mapping in a pickle (`state_dict`), a prefix of the
    keys of any file (`model.diffusion_model`), or both in one path; `.` is the top level. `strip` names segments that
    are taken out of every key, wherever they are: `("module",)`. `strict_pickle` refuses pickles that name anything
    that a state dict does not need;
    `allow_expand` accepts tensors that repeat a small storage into much more data. `follow_links` accepts shards
    that are links to any place; without it a link must stay in the checkpoint's folder, or in the download cache
    that contains it.

    Raises `UnreadableCheckpoint` for anything else. Nothing that a file names is run or imported, and sizes in the
    file are checked before memory is allocated.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "keys.json")
    >>> _ = path.write_text('{"w": {"dtype": "F32", "shape": [2, 3]}}')
    >>> with open_checkpoint(path) as reader:
    ...     print(reader.format, reader.header()["w"])
    manifest F32 [2, 3]
    """
    return open_with_options(Path(path), ReadOptions(root, strict_pickle, allow_expand, follow_links, tuple(strip)))


def open_with_options(
    path: Path | ShardSet, options: ReadOptions, *, joined: bool = False, lasting: bool = True
) -> Reader:
    """Open a checkpoint; `joined` opens all shards if the path is the first of several without an index.

    Without `lasting` the file may be closed and opened again meanwhile: there may be more than may be open at once.
    """
    if options.root is not None:
        options = replace(options, root=clean_root(options.root))
    reader = _open_path(path, options, joined, lasting)
    root = options.root or ""
    # A pickle is opened under the root; of shards, perhaps under the first part of it.
    rest = root[len(reader.root) :].lstrip(".") if f"{root}.".startswith(f"{reader.root}.") else root
    reader = rename_reader(reader, rest if reader.root else root, options.strip)
    reader.notes += (*_note_contradictions(reader), *_note_empty(reader))
    return reader


def _note_contradictions(reader: Reader) -> Iterator[Diagnostic]:
    """Yield notes if content and name differ: a file named like a format without code may be a pickle."""
    for shard in reader.shards.values():
        yield from _note_contradictions(shard)
    name = reader.path.name
    if not reader.shards and name.endswith(".safetensors") and reader.format != "safetensors":
        pickled = reader.format.endswith("pth")
        what = "a file of torch.save, which holds a pickle" if pickled else "a manifest, which has no data"
        help = ("nothing in it was run here, but programs that unpickle it may run code",) if pickled else ()
        yield make_note("RK421", f"{name} is {what}, not a safetensors file as its name says", reader.path, help=help)
    elif reader.format == "safetensors" and name.endswith((".pth", ".pt", ".ckpt")):
        yield make_note(
            "RK421", f"{name} is a safetensors file, not a file of torch.save as its name says", reader.path
        )


def _note_empty(reader: Reader) -> Iterator[Diagnostic]:
    """Yield notes about tensors without elements: frameworks that partition parameters save them as placeholders."""
    header = reader.header()
    empty = [fqn for fqn, spec in header.items() if 0 in spec.shape]
    if not empty:
        return
    title = f"{count_noun(len(empty), 'tensor')} of {len(header)} {'has' if len(empty) == 1 else 'have'} no elements"
    help = "if ZeRO-3 wrote it, the weights are in other files: gather them first, with zero_to_fp32.py"
    severity = Severity.WARNING if len(empty) == len(header) else Severity.NOTE
    notes = (join_words(map(show_key, empty), 3),)
    yield replace(make_note("RK422", title, reader.path, help=(help,)), notes=notes, severity=severity)


def _open_path(path: Path | ShardSet, options: ReadOptions, joined: bool, lasting: bool) -> Reader:
    found = path
    if isinstance(path, Path):
        if is_true_safely(path.is_dir):
            found = _find_in_folder(path)
        else:
            found = (_find_other_shards(path) if joined else None) or path
    if isinstance(found, Path):
        return _open_file(found, options, lasting)
    from remapkit.formats.sharded import open_shard_set

    return open_shard_set(found, options)


def _find_other_shards(path: Path) -> ShardSet | None:
    """Return the set that a file is the first shard of; None if it is no shard, or an index lists the shards."""
    if not is_first_shard(path.name) or not is_true_safely(path.is_file):
        return None
    whole = derive_output_name(path.name)
    beside = [file for file in _list_files(path.parent) if derive_output_name(file.name) == whole]
    if any(is_index(file.name) for file in beside):
        return None
    return find_shard_set([file for file in beside if is_same_set(file.name, path.name)])


def _open_file(path: Path, options: ReadOptions, lasting: bool) -> Reader:
    source = SourceFile(path, lasting=lasting)
    try:
        return open_single(source, options)
    except FileFault as fault:
        source.close()
        raise fault.at(path) from None
    except BaseException:
        source.close()
        raise


def open_single(source: SourceFile, options: ReadOptions) -> AnyReader:
    """Return a reader for an open file; raises `FileFault` or `UnreadableCheckpoint`. The caller closes the file."""
    return open_tensors(source, options) or _open_json(source, options)


def _open_json(source: SourceFile, options: ReadOptions) -> ShardedReader | ManifestReader:
    value = read_json(source)
    if "weight_map" in value and not isinstance(value["weight_map"], str):
        from remapkit.formats.sharded import open_sharded

        return open_sharded(source, value, options)
    return ManifestReader(source, parse_manifest(value, source.path.name))


def _find_in_folder(folder: Path) -> Path | ShardSet:
    """Return the only index, the only checkpoint or the only set of shards in a folder.

    Raises `UnreadableCheckpoint`: RK400 if there is none, or several.
    """
    candidates = list_checkpoints(folder)
    indexes = [file for file in candidates if is_index(file.name)]
    if len(candidates) == 1:
        return candidates[0]
    if (shards := find_shard_set(candidates)) is not None:
        return shards
    if not candidates:
        raise make_unreadable("RK400", "a directory without a checkpoint", folder, help=("name the file itself",))
    names = join_words((file.name for file in candidates), 8)
    title = f"a directory with {len(candidates)} {'indexes' if indexes else 'checkpoints'}: {names}"
    raise make_unreadable("RK400", title, folder, help=_suggest_names(folder, [file.name for file in candidates]))


def _suggest_names(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return the help for several checkpoints in a folder: numbered ones can be read together."""
    patterns = {re.sub("[0-9]+", "{t}", name) for name in names}
    pattern = patterns.pop()
    if patterns or pattern.count("{t}") != 1:
        return ("name one of them",)
    mount = escape_line(f"tp{{t}}.={folder / pattern}")
    return (f"name one of them, or read all of them, each under a prefix: '{mount}'",)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the indexes in a folder, else the files that have a checkpoint's suffix."""
    files = _list_files(folder)
    return [file for file in files if is_index(file.name)] or [file for file in files if file.suffix in SUFFIXES]


def _list_files(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        title = f"cannot read the directory: {(error.strerror or '').lower()}"
        raise make_unreadable("RK400", title, folder, refused=error) from error
