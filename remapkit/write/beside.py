"""The files beside the weights of a folder: config, tokenizer. Listed, and copied on request; never rewritten."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from remapkit.diagnostics.errors import OutputExists
from remapkit.files.atomic import NewFile
from remapkit.files.errors import convert_os_error, make_unwritable
from remapkit.files.index_names import is_index
from remapkit.sources.mounts import SourceLike
from remapkit.sources.parts import find_only_path

WEIGHTS = (
    ".safetensors",
    ".pth",
    ".pt",
    ".bin",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".npz",
    ".part",
    ".lock",
)
"""Suffixes of weights and of traces of downloads, which are not files beside them."""
LARGEST = 256 << 20
"""Larger files are no config and no tokenizer."""


def list_beside(source: SourceLike) -> tuple[Path, ...]:
    """Return the plain files beside the weights of a folder, or of an index of shards; none for a single file."""
    path = find_only_path(source)
    if path is None:
        return ()
    folder = path if path.is_dir() else path.parent if is_index(path.name) else None
    if folder is None:
        return ()
    try:
        found = sorted(folder.iterdir())
        return tuple(
            each
            for each in found
            if each.is_file()
            and each.suffix.lower() not in WEIGHTS
            and not each.name.startswith(".")
            and not is_index(each.name)
            and each.stat().st_size <= LARGEST
        )
    except OSError:
        return ()


class CopiesBeside:
    """Copies of files that get their names together with the checkpoint: `commit` after it is written.

    They are complete before anything is written, and removed if the block ends without a commit. Raises
    `OutputExists` (RK500) if a file is there and `force` is not set, `UnwritableOutput` if one cannot be copied.
    """

    def __init__(self, files: Sequence[Path], folder: Path, *, force: bool) -> None:
        self._files, self._folder, self._force = files, folder, force
        self._stack, self._copies = ExitStack(), list[NewFile]()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for path in self._files:
                target = self._folder / path.name
                if target.exists() and target.samefile(path):
                    continue
                if target.exists() and not self._force:
                    problem = make_unwritable("RK500", f"{target} exists", help=("pass --force to replace it",))
                    raise OutputExists(problem.diagnostics)
                copy = stack.enter_context(NewFile(target, force=self._force))
                _fill_copy(copy, path)
                self._copies.append(copy)
            self._stack = stack.pop_all()
        return self

    def commit(self) -> tuple[Path, ...]:
        """Give the copies their names, and return them."""
        for copy in self._copies:
            copy.commit()
        return tuple(copy.target for copy in self._copies)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _fill_copy(copy: NewFile, path: Path) -> None:
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                view = memoryview(block)
                while view:
                    view = view[os.write(copy.fd, view) :]
    except OSError as error:
        raise convert_os_error(copy.target, error) from error
