"""Layouts become files: every piece written, checked, flushed, and only then named."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from remapkit.checkpoint.atomic import NewFile, check_space, check_target, sync_directory
from remapkit.checkpoint.copying import Copier, expect_sequential, write_all
from remapkit.checkpoint.faults import cannot_write, sized, unwritable
from remapkit.checkpoint.layout import Copy, FileLayout, Literal, Piece
from remapkit.checkpoint.reader import Reader
from remapkit.diagnostic import UnwritableOutput
from remapkit.plan import Move

Progress = Callable[[int, int], None]
"""`progress(done, total)`, both in bytes."""
Run = Callable[[Move, Reader], Iterator[memoryview]]
"""The bytes of a move with operations: contiguous, row-major, little-endian, in pieces of any size."""
Inspect = Callable[[Path, FileLayout], None]
"""Looks at a file that is complete and on the disk, but not named yet; raises where it is not right."""


class Writer:
    """One run: progress over all files, and which ways the bytes went (`how`)."""

    def __init__(
        self, reader: Reader, layouts: Sequence[FileLayout], progress: Progress | None, run: Run | None
    ) -> None:
        self.total = sum(layout.nbytes for layout in layouts)
        self.done = 0
        self.how: dict[str, None] = {}
        self._reader = reader
        self._layouts = layouts
        self._progress = progress
        self._run = run

    def write(self, folder: Path, force: bool, inspect: Inspect | None) -> tuple[Path, ...]:
        """Write every file, then give all of them their names, the index last.

        Raises `UnwritableOutput` (RK5xx) or `UnreadableCheckpoint` (RK4xx), with nothing changed.
        """
        names = [layout.name for layout in self._layouts]
        targets = [check_target(folder / name, self._reader.sources, force) for name in names]
        check_space(targets[0].parent, names[0], self.total)
        for source in self._reader.sources:
            expect_sequential(source)
        with contextlib.ExitStack() as stack:
            try:
                files = [stack.enter_context(NewFile(target, force=force)) for target in targets]
                for new, layout in zip(files, self._layouts, strict=True):
                    self._fill(new.fd, layout)
                    new.flush()
                self._reader.check_unchanged()
                for new, layout in zip(files, self._layouts, strict=True):
                    if inspect is not None:
                        inspect(new.temporary, layout)
                _name_all(files)
            except OSError as error:
                raise self._failed(targets[0], error) from error
        return tuple(folder / name for name in names)

    def _failed(self, target: Path, error: OSError) -> UnwritableOutput:
        refused = cannot_write(target, error)
        if refused.diagnostics[0].code == "RK504":
            after = f"{sized(self.done)} of {sized(self.total)}"
            return unwritable("RK504", f"no space left on {target.parent} after {after}; nothing was changed")
        return refused

    def _advance(self, nbytes: int) -> None:
        self.done += nbytes
        if self._progress is not None:
            self._progress(self.done, self.total)

    def _fill(self, fd: int, layout: FileLayout) -> None:
        copier = Copier(fd, self._advance)
        sealed = {seal.piece: seal.places for seal in layout.seals}
        patches: list[tuple[int, int]] = []
        at = 0
        for number, piece in enumerate(layout.pieces):
            if number in sealed:
                crc = self._write(fd, piece, at)
                patches += [(place, crc) for place in sealed[number]]
            elif isinstance(piece, Copy):
                copier.copy(piece.source, piece.offset, piece.nbytes, at)
            else:
                self._write(fd, piece, at)
            at += piece.nbytes
        for place, crc in patches:
            write_all(fd, crc.to_bytes(4, "little"), place)
        self.how |= copier.used

    def _write(self, fd: int, piece: Piece, at: int) -> int:
        """Write a piece through memory, chunk by chunk; its CRC-32."""
        crc, end = 0, at + piece.nbytes
        for chunk in self._chunks(piece):
            write_all(fd, chunk, at)
            crc = zlib.crc32(chunk, crc)
            at += len(chunk)
            self._advance(len(chunk))
        if at != end:
            raise AssertionError(f"{piece}: {at - end} bytes more than planned")
        return crc

    def _chunks(self, piece: Piece) -> Iterator[memoryview]:
        if isinstance(piece, Literal):
            return iter((memoryview(piece.data),))
        if isinstance(piece, Copy):
            self.how["loop"] = None
            return piece.source.chunks(piece.offset, piece.nbytes)
        self.how["gathered"] = None
        return target_chunks(piece.move, self._reader, self._run)


def target_chunks(move: Move, reader: Reader, run: Run | None) -> Iterator[memoryview]:
    """The bytes of a target: its source's, or what its operations make of its sources."""
    if not move.ops:
        return reader.chunks(move.sources[0])
    assert run is not None, "moves with operations need `run`"
    return run(move, reader)


def _name_all(files: Sequence[NewFile]) -> None:
    """Give the files their names. An index goes first and comes last: between, nothing looks finished."""
    *shards, last = files
    if shards:
        last.target.unlink(missing_ok=True)
        sync_directory(last.target.parent)
    for shard in shards:
        shard.rename()
    if shards:
        sync_directory(last.target.parent)
    last.rename()
    sync_directory(last.target.parent)


def forget_cached(path: Path) -> None:
    """Ask the kernel to drop a file from its cache, so that reading it again reads the disk."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
