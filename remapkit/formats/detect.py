"""Opens any checkpoint; the format is detected from the content, not from the suffix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.diagnostics.arguments import check_arguments
from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun, join_words, show_key
from remapkit.files.errors import FileFault, make_note, make_unreadable
from remapkit.files.index_names import is_index
from remapkit.files.source_file import SourceFile
from remapkit.files.strict_json import read_json
from remapkit.formats.manifest import ManifestReader, parse_manifest
from remapkit.formats.options import ReadOptions
from remapkit.formats.reader import Reader
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
    strict_pickle: bool = False,
    allow_expand: bool = False,
    follow_links: bool = False,
) -> Reader:
    """Open a checkpoint: safetensors, torch.save's zip or legacy format, or a manifest (which has no data).

    Shards are opened through their index, and a folder if it holds exactly one index or exactly one checkpoint.

    `root` names the wrapper to use (`state_dict`, `a.b`, or `.` for the top level) if a pickle holds several
    mappings of tensors. `strict_pickle` refuses pickles that name anything that a state dict does not need;
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
    path = Path(path)
    options = ReadOptions(None if root is None else root.strip(), strict_pickle, allow_expand, follow_links)
    reader = _open_file(_find_in_folder(path) if is_true_safely(path.is_dir) else path, options)
    reader.notes += (*_note_contradictions(reader), *_note_empty(reader))
    if root not in (None, "", ".") and reader.format not in ("pth", "legacy pth", "sharded pth"):
        reader.close()
        raise make_unreadable("RK406", f"--root {show_key(str(root))}: a {reader.format} file has no wrappers", path)
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


def _open_file(path: Path, options: ReadOptions) -> Reader:
    source = SourceFile(path)
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


def _find_in_folder(folder: Path) -> Path:
    """Return the only index or the only checkpoint in a folder; otherwise raises `UnreadableCheckpoint` (RK400)."""
    try:
        files = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        title = f"cannot read the directory: {(error.strerror or '').lower()}"
        raise make_unreadable("RK400", title, folder, refused=error) from error
    indexes = [file for file in files if is_index(file.name)]
    candidates = indexes or [file for file in files if file.suffix in SUFFIXES]
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise make_unreadable("RK400", "a directory without a checkpoint", folder, help=("name the file itself",))
    names = join_words((file.name for file in candidates), 8)
    title = f"a directory with {len(candidates)} {'indexes' if indexes else 'checkpoints'}: {names}"
    raise make_unreadable("RK400", title, folder, help=("name one of them",))
