"""The files beside weights: config, tokenizer. Those of a folder are listed, and copied on request, never rewritten.

Texts that belong to new weights, the config of an adapter, are written beside them in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from remapkit.diagnostics.errors import OutputExists
from remapkit.files.atomic import NewFile
from remapkit.files.copy import write_all
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


class FilesBeside:
    """Copies and new texts that get their names together with the checkpoint: `commit` after it is written.

    They are complete before anything is written, and removed if the block ends without a commit. Raises
    `OutputExists` (RK500) if a file is there and `force` is not set, `UnwritableOutput` if one cannot be written
    (RK501: a text in the place of one of the `inputs`).
    """

    def __init__(
        self,
        files: Sequence[Path],
        folder: Path,
        *,
        force: bool,
        texts: Mapping[str, str] | None = None,
        inputs: Sequence[Path] = (),
    ) -> None:
        self._files, self._folder, self._force = files, folder, force
        self._texts, self._inputs = texts or {}, inputs
        self._stack, self._new = ExitStack(), list[NewFile]()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for path in self._files:
                target = self._folder / path.name
                if target.exists() and target.samefile(path):
                    continue
                _fill_copy(self._open(target, stack), path)
            for name, text in self._texts.items():
                target = self._folder / name
                if target.exists() and any(target.samefile(path) for path in self._inputs):
                    title = f"{target} is an input of this command: it is never written"
                    raise make_unwritable("RK501", title, help=("name an output in another folder",))
                _fill(self._open(target, stack), text.encode("utf-8"))
            self._stack = stack.pop_all()
        return self

    def _open(self, target: Path, stack: ExitStack) -> NewFile:
        if target.exists() and not self._force:
            problem = make_unwritable("RK500", f"{target} exists", help=("pass --force to replace it",))
            raise OutputExists(problem.diagnostics)
        self._new.append(stack.enter_context(NewFile(target, force=self._force)))
        return self._new[-1]

    def commit(self) -> tuple[Path, ...]:
        """Give the files their names, and return them."""
        for new in self._new:
            new.commit()
        return tuple(new.target for new in self._new)

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


def _fill(new: NewFile, content: bytes) -> None:
    try:
        write_all(new.fd, content, 0)
    except OSError as error:
        raise convert_os_error(new.target, error) from error
