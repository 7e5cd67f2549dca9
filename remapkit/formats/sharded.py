"""Checkpoints in several files, listed by an index: `{"metadata": {...}, "weight_map": {"<fqn>": "<file>"}}`.

Source: the convention of Hugging Face (`model.safetensors.index.json`, written by transformers and by
`split_torch_state_dict_into_shards` of huggingface_hub): `weight_map` maps each FQN to its shard in the index's
folder, and `metadata.total_size` is the size of all tensors in bytes.

An index may come from any source, so its file names are not trusted: they must be plain names, and are opened in the
index's folder, never through a link that points outside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.diagnostics.wording import count_noun, format_bytes, join_words, list_names, show_key
from remapkit.files.errors import FileFault, make_note
from remapkit.files.index_names import ShardSet, derive_output_name, split_index_name
from remapkit.files.source_file import CHUNK, Extent, SourceFile, describe_os_error
from remapkit.formats.options import ReadOptions
from remapkit.formats.quoted_names import merge_entries
from remapkit.formats.reader import FileReader
from remapkit.formats.safetensors import SafetensorsReader
from remapkit.formats.torch_file import PthReader
from remapkit.tensors.spec import StateDictSpec, TensorSpec, find_name_problem, find_recorded_names

Shard = SafetensorsReader | PthReader
FOLLOW_HELP = "if you trust its source, pass --follow-links"


class ShardedReader(FileReader):
    """A reader of a sharded checkpoint. Tensors are in the order of the shards' names.

    Raises `UnreadableCheckpoint` (RK407) if the index and the shards do not match exactly.
    """

    def __init__(self, path: Path, shards: Mapping[str, Shard], source: SourceFile | None) -> None:
        index = () if source is None else (source,)
        super().__init__(path, (*index, *(shard.sources[0] for shard in shards.values())))
        self.format = "sharded pth" if any(shard.format != "safetensors" for shard in shards.values()) else ""
        self.format = self.format or "sharded safetensors"
        self.shards = shards
        self._home: dict[str, Shard] = {}
        tensors: dict[str, TensorSpec] = {}
        metadata: dict[str, str] = {}
        differing: dict[str, None] = {}
        tied: list[tuple[str, ...]] = []
        for shard in shards.values():
            header = shard.header()
            for fqn in header:
                self._home[fqn] = shard
                tensors[fqn] = header[fqn]
            _merge_metadata(metadata, header.metadata, differing)
            tied.extend(header.tied)
        recorded = find_recorded_names(tensors, metadata)
        name = path.name if source is not None else derive_output_name(path.name)
        self._header = StateDictSpec(tensors, tuple(tied), metadata, name, recorded)
        self.notes = (*(note for shard in shards.values() for note in shard.notes), *_note_differing(path, differing))
        roots = {shard.root for shard in shards.values()}
        self.root = roots.pop() if len(roots) == 1 else ""

    def header(self) -> StateDictSpec:
        """Return names, dtypes and shapes of all shards."""
        return self._header

    def extent(self, fqn: str) -> Extent | None:
        """Return the location of the tensor's bytes in its shard."""
        fqn = self._resolve_name(fqn)
        return self._home[fqn].extent(fqn)

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield the tensor's bytes from its shard."""
        fqn = self._resolve_name(fqn)
        return self._home[fqn].chunks(fqn, size)

    def crc32(self, fqn: str) -> int | None:
        """Return the tensor's checksum from its shard."""
        fqn = self._resolve_name(fqn)
        return self._home[fqn].crc32(fqn)

    def _resolve_name(self, fqn: str) -> str:
        return self._header.recorded.get(fqn, fqn)

    def check_sums(self) -> None:
        """Compare the checksums of every shard."""
        for shard in self.shards.values():
            shard.check_sums()

    def close(self) -> None:
        """Close every shard."""
        for shard in self.shards.values():
            shard.close()
        super().close()


def _merge_metadata(merged: dict[str, str], more: Mapping[str, str], differing: dict[str, None]) -> None:
    """Add the metadata of the next shard; where two shards contradict each other, the later one counts."""
    for name, value in more.items():
        one = merge_entries(name, merged[name], value) if name in merged else value
        if one is None and not name.startswith("remapkit."):
            differing[name] = None
        merged[name] = value if one is None else one


def _note_differing(path: Path, differing: Collection[str]) -> Iterator[Diagnostic]:
    if differing:
        count = count_noun(len(differing), "entry", "entries")
        title = f"the shards contradict each other in {count} of their metadata; what the last one says is kept"
        yield replace(make_note("RK431", title, path), notes=(list_names(list(differing)),))


def parse_index(value: Any) -> dict[str, str]:
    """Return the `weight_map` of an index; raises `FileFault` (RK407)."""
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict):
        raise FileFault("RK407", "an index must have an object `weight_map` that maps names to files")
    if not weight_map:
        raise FileFault("RK407", "the index's `weight_map` is empty")
    for fqn, file in weight_map.items():
        if problem := find_name_problem(fqn):
            raise FileFault("RK407", f"a name {problem}", key=fqn)
        if not isinstance(file, str):
            raise FileFault("RK407", "its shard is not a file name", key=fqn)
        if not _is_plain_name(file):
            raise FileFault("RK407", f"shard {show_key(file)!r} for {show_key(fqn)!r} points outside the checkpoint")
    return weight_map


def _is_plain_name(file: str) -> bool:
    return bool(file) and file not in (".", "..") and not any(character in file for character in "/\\\0")


def open_sharded(source: SourceFile, value: Any, options: ReadOptions) -> ShardedReader:
    """Return a reader of the shards that an index names; `source` is the index file, `value` its JSON."""
    opened: dict[str, Shard] = {}
    try:
        weight_map = parse_index(value)
        files = sorted(set(weight_map.values()))
        missing = [file for file in files if not os.path.lexists(source.path.parent / file)]
        if missing:
            raise _make_missing_fault(missing, len(files))
        _open_under_root(source.path.parent, files, options, opened, lambda: _check_agreement(weight_map, opened))
    except FileFault as fault:
        _close_shards(opened)
        raise fault.at(source.path) from None
    except BaseException:
        _close_shards(opened)
        raise
    reader = ShardedReader(source.path, opened, source)
    if unused := _find_unlisted(source.path, weight_map):
        names = join_words(map(show_key, unused), 5)
        reader.notes += (make_note("RK413", f"files beside the index that it does not list: {names}", source.path),)
    reader.notes += tuple(_note_wrong_total(source.path, value, reader.header()))
    return reader


def open_shard_set(shards: ShardSet, options: ReadOptions) -> ShardedReader:
    """Return a reader of a complete set of shards without an index.

    Raises `UnreadableCheckpoint` (RK407) if shards are missing, if two have one key, or if their state dicts lie
    under different roots.
    """
    path, total = shards.files[0], len(shards.files) + len(shards.missing)
    opened: dict[str, Shard] = {}
    try:
        if shards.missing:
            raise _make_missing_fault(list(shards.missing), total)
        files = [file.name for file in shards.files]
        _open_under_root(path.parent, files, options, opened, lambda: _check_same_root(opened))
    except FileFault as fault:
        _close_shards(opened)
        raise fault.at(path) from None
    except BaseException:
        _close_shards(opened)
        raise
    reader = ShardedReader(path, opened, None)
    title = f"{total} shards without an index were read as one checkpoint"
    reader.notes += (make_note("RK419", title, path.parent),)
    return reader


def _check_same_root(opened: Mapping[str, Shard]) -> None:
    """Check that no tensor is in two shards, and that the state dicts of all shards are under one root."""
    _find_homes(opened)
    roots = {shard.root: file for file, shard in opened.items()}
    if len(roots) > 1:
        (first, one), (other, two) = list(roots.items())[:2]
        title = f"the state dict is under {first!r} in {show_key(one)}, but under {other!r} in {show_key(two)}"
        raise FileFault("RK407", title, help=("choose a root that all shards have: --root A.B",))


def _open_under_root(
    home: Path, files: list[str], options: ReadOptions, opened: dict[str, Shard], check: Callable[[], None]
) -> None:
    """Open the shards under the root, a mapping in each of them; else without it: a prefix of all keys together.

    Only some of the shards may have keys with the prefix.
    """
    try:
        _open_files(home, files, options, opened)
        check()
    except (FileFault, UnreadableCheckpoint) as fault:
        codes = {fault.code} if isinstance(fault, FileFault) else {problem.code for problem in fault.diagnostics}
        if not options.root or not codes <= {"RK407", "RK416"}:
            raise
        _close_shards(opened)
        opened.clear()
        _open_files(home, files, replace(options, root=None), opened)
        check()


def _open_files(home: Path, files: list[str], options: ReadOptions, opened: dict[str, Shard]) -> None:
    try:
        folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileFault("RK400", f"cannot read the directory of the shards: {describe_os_error(error)}") from error
    try:
        for file in files:
            opened[file] = _open_shard(home / file, file, folder, options)
    finally:
        os.close(folder)


def _make_missing_fault(missing: list[str], of: int) -> FileFault:
    if len(missing) == 1:
        title = f"shard {show_key(missing[0])!r} is missing"
    else:
        names = join_words((repr(show_key(file)) for file in missing), 5)
        title = f"{len(missing)} of {of} shards are missing: {names}"
    return FileFault("RK407", title, help=("fetch what is missing again",))


def _open_shard(path: Path, file: str, folder: int, options: ReadOptions) -> Shard:
    from remapkit.formats.single_file import open_tensors

    target = None if options.follow_links else _resolve_link(path, file)
    source = SourceFile(path, name=file, dir_fd=folder, lasting=False)
    try:
        if target is not None and not _is_same_file(source, target):
            raise FileFault("RK407", f"shard {show_key(file)!r} is a link that changed while it was followed")
        reader = open_tensors(source, options)
        if reader is None:
            raise FileFault("RK407", f"shard {show_key(file)!r} is an index or a manifest, not a file of tensors")
    except FileFault as fault:
        source.close()
        # A fault in a shard is reported with the shard's path, a fault in the index with the path of the index.
        if fault.code == "RK407":
            raise
        raise fault.at(path) from None
    except BaseException:
        source.close()
        raise
    return reader


def _resolve_link(path: Path, file: str) -> Path | None:
    """Return the target of a link, which must be in the folder or in the blobs folder of a download cache."""
    try:
        if not path.is_symlink():
            return None
        target, home = path.resolve(strict=True), path.parent.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        words = describe_os_error(error) if isinstance(error, OSError) else "it points to itself"
        raise FileFault("RK407", f"shard {show_key(file)!r} is a link that cannot be followed: {words}") from error
    blobs = find_cache_blobs(home)
    if not target.is_relative_to(home) and (blobs is None or target.parent != blobs):
        title = f"shard {show_key(file)!r} is a link that points outside the checkpoint: {target}"
        raise FileFault("RK407", title, help=(FOLLOW_HELP,))
    return target


def find_cache_blobs(home: Path) -> Path | None:
    """Return the blobs folder of the download cache that contains `home`, or None.

    The layout of huggingface_hub: `snapshots/<revision>/[folders/]name -> ../../[../]blobs/<hash>`, at any depth
    below the revision. `home` is a real path; a folder `blobs` that is a link is not accepted, because it could point
    anywhere.
    """
    for folder in home.parents:
        blobs = folder.parent / "blobs"
        if folder.name == "snapshots" and blobs.is_dir() and not blobs.is_symlink():
            return blobs
    return None


def _is_same_file(source: SourceFile, path: Path) -> bool:
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (source.device, source.inode)


def _check_agreement(weight_map: Mapping[str, str], opened: Mapping[str, Shard]) -> None:
    """Check that every name in the index is in its shard, and that every tensor of a shard is in the index once."""
    homes = _find_homes(opened)
    for fqn, file in homes.items():
        if fqn not in weight_map:
            raise FileFault("RK407", f"in the shard {show_key(file)}, but not in the index", key=fqn)
    for fqn, file in weight_map.items():
        if homes.get(fqn) != file:
            where = f"it is in {show_key(homes[fqn])}" if fqn in homes else "it is in no shard"
            raise FileFault("RK407", f"the index says {show_key(file)}, but {where}", key=fqn)


def _find_homes(opened: Mapping[str, Shard]) -> dict[str, str]:
    """Return the shard of every tensor; raises `FileFault` (RK407) for one in two shards."""
    homes: dict[str, str] = {}
    for file, shard in opened.items():
        for fqn in shard.header():
            if fqn in homes:
                raise FileFault("RK407", f"in two shards: {show_key(homes[fqn])} and {show_key(file)}", key=fqn)
            homes[fqn] = file
    return homes


def _note_wrong_total(path: Path, value: Any, header: StateDictSpec) -> Iterator[Diagnostic]:
    """Yield a note if the index gives another size than its shards; writers count tied weights differently."""
    metadata = value.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, int | float) and total != header.nbytes:
        said = format_bytes(int(total)) if 0 <= total < 1 << 63 else show_key(str(total), 40)
        title = f"the index says {said} of tensors, its shards hold {format_bytes(header.nbytes)}"
        if said == format_bytes(header.nbytes):
            title = f"the index says {total} bytes of tensors, its shards hold {header.nbytes}"
        yield make_note("RK423", title, path, help=("fetch it again if it may be incomplete",))


def _find_unlisted(path: Path, weight_map: Mapping[str, str]) -> list[str]:
    files = set(weight_map.values())
    suffixes = {Path(file).suffix for file in files}
    # A variant is part of the shards' names: `model.fp16-00001-of-00002.safetensors`.
    whole, variant = split_index_name(path.name)
    stem = (whole.rpartition(".")[0] or path.name) + variant
    try:
        beside = list(path.parent.iterdir())
    except OSError:
        return []
    return sorted(
        entry.name
        for entry in beside
        if entry.suffix in suffixes and entry.name.startswith(f"{stem}-") and entry.name not in files
    )


def _close_shards(opened: Mapping[str, Shard]) -> None:
    for shard in opened.values():
        shard.close()
