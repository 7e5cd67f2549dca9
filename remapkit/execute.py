"""Execution: moves and a reader become files. One target tensor at a time, or the kernel's copy of whole stretches.

Nothing but the target is ever opened for writing, and it appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remapkit.checkpoint.atomic import NewFile, check_space, check_target, sync_directory
from remapkit.checkpoint.copying import Copier, expect_sequential, write_all
from remapkit.checkpoint.faults import cannot_write, sized, unwritable
from remapkit.checkpoint.layout import (
    Copy,
    FileLayout,
    Literal,
    Piece,
    lay_out_safetensors,
    lay_out_shards,
    without_ties,
)
from remapkit.checkpoint.reader import Reader
from remapkit.plan import Move

Progress = Callable[[int, int], None]
"""`progress(done, total)`, both in bytes."""
Run = Callable[[Move, Reader], Iterator[memoryview]]
"""The bytes of a move with operations: contiguous, row-major, little-endian, in pieces of any size."""

INDEX = ".index.json"


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the files (the index last), how many tensors and bytes, and how the bytes went.

    `how` is a subset of reflink, copy_file_range, sendfile, loop (stretches of files), gathered (views, operations).
    """

    files: tuple[Path, ...]
    tensors: int
    nbytes: int
    seconds: float
    how: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)


def execute(
    moves: Sequence[Move],
    reader: Reader,
    out: str | Path,
    *,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
    shard_size: int | None = None,
    force: bool = False,
    untie: bool = False,
    tied: Sequence[Sequence[str]] | None = None,
    progress: Progress | None = None,
    verify: bool = False,
    run: Run | None = None,
) -> Written:
    """Write the targets of `moves`, in their order, to `out`.

    `format` is `safetensors` or `pth`; left out, the suffix of `out` decides. With `shard_size` (bytes) the output is
    `out` without its suffix, `-00001-of-00003.safetensors` and so on, with an index, or one file where one is enough.
    `tied` are groups of targets that share one storage: safetensors keeps one name of each and records the others in
    its metadata, unless `untie` writes copies. `run` makes the tensors of moves with operations.

    Raises `UnwritableOutput` (RK5xx) with nothing changed, `UnreadableCheckpoint` where the source changes meanwhile.
    """
    started = time.monotonic()
    out = Path(out)
    groups = tied if tied is not None else tied_targets(moves, reader)
    given = {"format": "pt", **(metadata or {})}
    kept, recorded = (list(moves), given) if untie else without_ties(moves, groups, given)
    if shard_size is not None:
        layouts = lay_out_shards(_stem(out), kept, reader, recorded, shard_size)
    else:
        layouts = [lay_out_safetensors(out.name, kept, reader, recorded)]
    job = _Job(reader, force, progress, run, sum(layout.nbytes for layout in layouts))
    files = job.write(out.parent, layouts)
    return Written(
        files=files,
        tensors=len(kept),
        nbytes=job.total,
        seconds=time.monotonic() - started,
        how=tuple(job.how),
    )


def _stem(out: Path) -> str:
    return out.name.removesuffix(INDEX).removesuffix(".safetensors")


def tied_targets(moves: Sequence[Move], reader: Reader) -> list[list[str]]:
    """The groups of targets whose sources share one storage."""
    by_source: dict[str, list[str]] = {}
    for move in moves:
        if not move.ops:
            by_source.setdefault(move.sources[0], []).append(move.target)
    groups = ([target for fqn in group for target in by_source.get(fqn, ())] for group in reader.header().tied)
    return [group for group in groups if len(group) > 1]


class _Job:
    """One run of `execute`: progress over all files, and the way the bytes went."""

    def __init__(self, reader: Reader, force: bool, progress: Progress | None, run: Run | None, total: int) -> None:
        self.reader = reader
        self.force = force
        self.total = total
        self.done = 0
        self.how: dict[str, None] = {}
        self._progress = progress
        self._run = run

    def advance(self, nbytes: int) -> None:
        self.done += nbytes
        if self._progress is not None:
            self._progress(self.done, self.total)

    def write(self, folder: Path, layouts: Sequence[FileLayout]) -> tuple[Path, ...]:
        """Write every file, then give all of them their names, the index last."""
        targets = [check_target(folder / layout.name, self.reader.sources, self.force) for layout in layouts]
        check_space(targets[0].parent, layouts[0].name, self.total)
        for source in self.reader.sources:
            expect_sequential(source)
        with contextlib.ExitStack() as stack:
            new_files = [stack.enter_context(NewFile(target, force=self.force)) for target in targets]
            try:
                for new, layout in zip(new_files, layouts, strict=True):
                    self._fill(new, layout)
                    new.flush()
                self.reader.check_unchanged()
                _name_all(new_files)
            except OSError as error:
                raise self._failed(targets[0], error) from error
        return tuple(folder / layout.name for layout in layouts)

    def _failed(self, target: Path, error: OSError) -> Exception:
        refused = cannot_write(target, error)
        if refused.diagnostics[0].code == "RK504":
            after = f"{sized(self.done)} of {sized(self.total)}"
            return unwritable("RK504", f"no space left on {target.parent} after {after}; nothing was changed")
        return refused

    def _fill(self, new: NewFile, layout: FileLayout) -> None:
        copier = Copier(new.fd, self.advance)
        at = 0
        for piece in layout.pieces:
            self._write_piece(new.fd, copier, piece, at)
            at += piece.nbytes
        self.how |= copier.used

    def _write_piece(self, fd: int, copier: Copier, piece: Piece, at: int) -> None:
        if isinstance(piece, Literal):
            write_all(fd, piece.data, at)
            self.advance(piece.nbytes)
        elif isinstance(piece, Copy):
            copier.copy(piece.source, piece.offset, piece.nbytes, at)
        else:
            self._stream(fd, piece.move, at, piece.nbytes)

    def _stream(self, fd: int, move: Move, at: int, nbytes: int) -> None:
        end = at + nbytes
        for chunk in self._chunks(move):
            write_all(fd, chunk, at)
            at += len(chunk)
            self.advance(len(chunk))
        if at != end:
            raise AssertionError(f"{move.target}: {at - (end - nbytes)} bytes written, {nbytes} planned")
        self.how["gathered"] = None

    def _chunks(self, move: Move) -> Iterator[memoryview]:
        if not move.ops:
            return self.reader.chunks(move.sources[0])
        assert self._run is not None, "moves with operations need `run`"
        return self._run(move, self.reader)


def _name_all(new_files: Sequence[NewFile]) -> None:
    """Give the files their names. An index goes first and comes last: between, nothing looks finished."""
    if len(new_files) > 1:
        new_files[-1].target.unlink(missing_ok=True)
        sync_directory(new_files[-1].target.parent)
    for new in new_files[:-1]:
        new.rename()
    if len(new_files) > 1:
        sync_directory(new_files[-1].target.parent)
    new_files[-1].rename()
    sync_directory(new_files[-1].target.parent)
