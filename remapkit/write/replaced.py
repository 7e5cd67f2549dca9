"""Finds and removes the files of the same checkpoint in another layout, which an output replaces too.

`model.safetensors` and `model.safetensors.index.json` with its shards are one checkpoint, and so are shards of
another count. If both existed, readers would open the one that they look for first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedWrite
from remapkit.diagnostics.wording import escape_line
from remapkit.files.atomic import FileAttributes, NewFile, sync_directory
from remapkit.files.errors import make_existing_error, make_unwritable
from remapkit.files.index_names import derive_output_name, derive_whole_name, is_index
from remapkit.files.source_file import SourceFile, describe_os_error


def find_other_layouts(folder: Path, names: Sequence[str], sources: Sequence[SourceFile], force: bool) -> list[Path]:
    """Return the files in `folder` that belong to the same output as `names` but are not among them, indexes first.

    Raises `UnwritableOutput`: RK501 if one of them is a source, RK500 if there are any and `force` is not set.
    """
    replaced = _list_replaced(folder, names)
    read = {(source.device, source.inode) for source in sources}
    for path in replaced:
        if _read_identity(path) in read:
            title = f"{folder / names[-1]} is another layout of its own source {path.name}"
            help = ("write under another name, or into another folder",)
            raise make_unwritable("RK501", title, help=help)
    if replaced and not force:
        notes = (f"{names[-1]} is the same checkpoint in another layout, and would be replaced",)
        raise make_existing_error(replaced, notes=notes)
    return replaced


def _list_replaced(folder: Path, names: Sequence[str]) -> list[Path]:
    own = set(names)
    output = derive_whole_name(names[-1])
    try:
        beside = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    others = [name for name in beside if name not in own and derive_output_name(name) == output]
    return [folder / name for name in sorted(others, key=lambda name: not is_index(name))]


def _read_identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def dress_files(files: Sequence[NewFile], replaced: Sequence[Path]) -> None:
    """Give every new file the mode and owner of the file that it replaces; a new name gets those of the old layout.

    That is the most restrictive mode of the same kind (index or weights), else of the other kind: a change of layout
    must not make a checkpoint readable for more users. Must be called before any of the old files is removed.
    """
    dresses = [(path, FileAttributes.of(path)) for path in (*(new.target for new in files), *replaced)]
    old = [(path.name, worn) for path, worn in dresses if worn is not None]
    for new, (_, own) in zip(files, dresses, strict=False):
        kind = is_index(new.target.name)
        others = sorted(old, key=lambda named: (is_index(named[0]) != kind, (named[1].mode & 0o777).bit_count()))
        new.set_dress(own or (others[0][1] if others else None))


def remove_replaced(paths: Sequence[Path], new: Path) -> None:
    """Remove the old layout after the new one has its name.

    A link is removed, not its target. Raises `FailedWrite` (RK513) with every file that could not be removed.
    """
    left = []
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            left.append((path, describe_os_error(error)))
    if paths:
        sync_directory(new.parent)
    if left:
        title = (
            f"{new} is written, but {left[0][0].name} of the layout that it replaces cannot be removed: {left[0][1]}"
        )
        names = ", ".join(str(path) for path, _ in left)
        help = (f"remove it: readers may take it for the checkpoint: {names}",)
        raise FailedWrite(Diagnostic("RK513", escape_line(title), help=help))
