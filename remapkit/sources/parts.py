"""The files that a source names: one path, several, mounts, or what a rule file declares for a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from remapkit.diagnostics.arguments import describe_value
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import BadArgument, UnreadableCheckpoint
from remapkit.diagnostics.wording import join_words, show_key
from remapkit.files.errors import make_unreadable
from remapkit.files.index_names import ShardSet, find_shard_set, is_same_set
from remapkit.formats.detect import list_checkpoints
from remapkit.sources.mounts import (
    Mount,
    SourceLike,
    find_files,
    is_mount,
    make_mount,
    parse_declared_files,
    parse_mount,
)

if TYPE_CHECKING:
    from remapkit.rulefile.syntax import RuleFile


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a source, or a set of shards, and the prefix of its keys; `mount` is the pattern that found it."""

    prefix: str
    path: Path | ShardSet
    mount: Mount | None = None

    @property
    def first(self) -> Path:
        """The file, or the first shard."""
        return self.path.files[0] if isinstance(self.path, ShardSet) else self.path


def list_parts(source: SourceLike, rules: RuleFile | None = None) -> tuple[Part, ...]:
    """Return the files that a source names, with the prefixes of their keys.

    A folder alone is read as the rule file declares, if it declares files. Shards of one set are one part.

    Raises `BadArgument` for what is no source, `UsageError` (RK426) for a malformed mount, and
    `UnreadableCheckpoint` (RK407, RK427, RK428, RK429) if files do not fit or are missing.

    >>> [(part.prefix, str(part.path)) for part in list_parts({"vae.": "vae.pth", "": "unet.pth"})]
    [('vae.', 'vae.pth'), ('', 'unet.pth')]
    """
    if isinstance(source, Sequence) and not isinstance(source, str) and len(source) == 1:
        source = _check(source[0])
    if isinstance(source, Mapping):
        found = [part for prefix, file in source.items() for part in _expand_mount(make_mount(prefix, _check(file)))]
    elif isinstance(source, str | Path):
        if rules is not None and rules.source_files and not is_mount(str(source)) and Path(source).is_dir():
            return tuple(_expand_declared(rules, Path(source)))
        found = list(_expand(source))
    else:
        found = [part for item in _check_list(source) for part in _expand(item)]
    return tuple(_join_shards(found)) if len(found) > 1 else tuple(found)


def find_only_path(source: SourceLike) -> Path | None:
    """Return the path of a source that is one file or folder; None if it is several, or has a prefix.

    Nothing is opened.

    >>> find_only_path(["unet.pth"]), find_only_path({"vae.": "vae.pth"}), find_only_path(["vae.pth", "unet.pth"])
    (PosixPath('unet.pth'), None, None)
    """
    parts = list_parts(source)
    return parts[0].first if len(parts) == 1 and not parts[0].prefix else None


def _check_list(source: object) -> Sequence[str | Path]:
    if isinstance(source, Sequence) and not isinstance(source, bytes) and source:
        return [_check(item) for item in source]
    what = "no file" if isinstance(source, Sequence) and not source else describe_value(source)
    raise BadArgument(Diagnostic("RK609", f"a checkpoint must be a path, a list or a mapping of paths, got {what}"))


def _check(item: object) -> str | Path:
    if isinstance(item, str | os.PathLike) and str(item):
        return item if isinstance(item, str) else Path(item)
    raise BadArgument(Diagnostic("RK609", f"the path of a checkpoint must be text, got {describe_value(item)}"))


def _expand(item: str | Path) -> Iterator[Part]:
    if not is_mount(str(item)):
        yield Part("", Path(item))
        return
    mount = parse_mount(str(item))
    file = str(mount.file)
    if not mount.file.list_names() and not os.path.lexists(file):
        # `lr=0.1/model.pt` may be meant as a path.
        note = f"{show_key(str(item))!r} was read as PREFIX=FILE; no file has the whole name either"
        raise make_unreadable("RK400", f"no such file: {file}", notes=(note,), refused=FileNotFoundError())
    yield from _expand_mount(mount)


def _expand_mount(mount: Mount, folder: Path | None = None) -> Iterator[Part]:
    group = mount if mount.file.list_names() else None
    yield from (Part(file.prefix, file.path, group) for file in find_files(mount, folder))


def _join_shards(parts: Sequence[Part]) -> Iterator[Part]:
    """Yield the parts; shards of one set that are named one by one become one part."""
    taken: set[int] = set()
    for number, part in enumerate(parts):
        if number in taken:
            continue
        same = [other for other, each in enumerate(parts) if other not in taken and _are_one_set(part, each)]
        shards = find_shard_set([parts[other].first for other in same]) if len(same) > 1 else None
        if shards is None or len(shards.files) < len(same):
            yield part
            continue
        taken.update(same)
        if beside := [name for name in shards.missing if (part.first.parent / name).exists()]:
            title = f"{len(same)} shards of a set are named, but not {join_words(map(show_key, beside), 5)}"
            raise make_unreadable(
                "RK407", title, part.first.parent, help=("name all of them, or the first one alone",)
            )
        yield replace(part, path=shards)


def _are_one_set(one: Part, other: Part) -> bool:
    return (
        one.prefix == other.prefix
        and one.first.parent == other.first.parent
        and is_same_set(one.first.name, other.first.name)
    )


# --------------------------------------------------------------------------------------------- declared files


def _expand_declared(rules: RuleFile, folder: Path) -> Iterator[Part]:
    """Yield the files in a folder that a rule file declares.

    Raises `UnreadableCheckpoint` if they do not fit, and says so too if there is another checkpoint.
    """
    for mount, text in zip(parse_declared_files(rules), rules.source_files, strict=True):
        try:
            if not mount.file.list_names() and not os.path.lexists(folder / str(mount.file)):
                title = f"there is no {show_key(str(mount.file))} here"
                raise make_unreadable("RK427", title, folder)
            yield from _expand_mount(mount, folder)
        except UnreadableCheckpoint as error:
            others = [show_key(file.name) for file in list_checkpoints(folder)]
            note = f"the rule file says which files of a folder it reads: {show_key(text.value)}"
            said = [replace(each, notes=(*each.notes, note)) for each in error.diagnostics]
            if others:
                help = (f"to read {join_words(others, 3, 'or')} instead, name it as the source",)
                said = [replace(each, help=help) for each in said]
            raise type(error)(said) from None
