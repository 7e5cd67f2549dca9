"""Writes files by their layouts: all pieces are written, checked and flushed before a file gets its name."""

from __future__ import annotations

import contextlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from remapkit.compute.move_bytes import Run, read_target_chunks
from remapkit.diagnostics.errors import RemapkitError, UnwritableOutput
from remapkit.diagnostics.wording import SHOWN, format_bytes_part, join_words
from remapkit.files.atomic import NewFile, check_space, ignore_interrupts, remove_stale
from remapkit.files.copy import Copier, ReadAhead, Writeback, expect_sequential, write_all
from remapkit.files.errors import NO_SPACE, convert_os_error, make_no_space, make_unreadable
from remapkit.files.locks import hold_locks
from remapkit.files.source_file import CHUNK
from remapkit.formats.reader import Reader
from remapkit.write.layout import (
    BytesPiece,
    CopyPiece,
    FileLayout,
    OutputLayout,
    Piece,
    StreamPiece,
    make_fingerprint,
)
from remapkit.write.naming import FinishedOutput, name_outputs
from remapkit.write.targets import check_folders, check_outputs

Progress = Callable[[int, int], None]
"""`progress(done, total)`, both in bytes."""


Inspect = Callable[[Path, FileLayout], None]
"""Checks a file that is complete and on the disk, but still has its temporary name; raises if it is wrong."""


SMALL = 1 << 16
"""Pieces up to this size are collected in memory: a system call for each would cost more than its bytes."""


class SmallPieces:
    """A buffer of adjacent small pieces, which are written together."""

    def __init__(self, fd: int, advance: Callable[[int], None]) -> None:
        self._fd = fd
        self._advance = advance
        self._waiting = bytearray()
        self._at = 0
        self.used: dict[str, None] = {}

    def add(self, piece: BytesPiece | CopyPiece, at: int) -> None:
        """Add a piece that follows the last one, or is the first since `flush`."""
        if not self._waiting:
            self._at = at
        if isinstance(piece, BytesPiece):
            self._waiting += piece.data
        else:
            self._waiting += piece.source.read(piece.offset, piece.nbytes)
            self.used["loop"] = None
        if len(self._waiting) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write the collected pieces."""
        if self._waiting:
            write_all(self._fd, bytes(self._waiting), self._at)
            self._advance(len(self._waiting))
            self._waiting.clear()


class Writer:
    """One run: progress over all files, the copy methods used (`how`), and the number of reused shards (`kept`).

    A run of several files that was killed is resumed: every completed file is compared with its sources, and reused
    if it contains what would be written. In either case files have temporary names while they are written.
    """

    def __init__(
        self, reader: Reader, outputs: Sequence[OutputLayout], progress: Progress | None, run: Run | None
    ) -> None:
        self._outputs = outputs
        self._layouts = [layout for output in outputs for layout in output.files]
        self.total = sum(layout.nbytes for layout in self._layouts)
        self.done = 0
        self.kept = 0
        self.how: dict[str, None] = {}
        self._reader = reader
        self._progress = progress
        self._run = run
        self._marks = [""] * len(self._layouts)
        self._filling: NewFile | None = None
        self._writeback: Writeback | None = None

    def write(self, force: bool, inspect: Inspect | None) -> tuple[Path, ...]:
        """Write every file, then give all of them their names: an index after its shards.

        Raises `UnwritableOutput` (RK5xx) or `UnreadableCheckpoint` (RK4xx), with nothing changed.
        """
        paths = [[output.folder / layout.name for layout in output.files] for output in self._outputs]
        every = list(itertools.chain(*paths))
        sources = self._reader.sources
        with contextlib.ExitStack() as stack:
            check_folders(every)
            stack.enter_context(hold_locks(every))
            found = check_outputs(paths, sources, force)
            targets = [target for output in found for target in output.targets]
            for source in sources:
                expect_sequential(source)
            try:
                files = self._open_files(stack, targets, force)
                self._check_space(files)
                self._fill_files(files)
                self._check_unchanged()
                for new, layout in zip(files, self._layouts, strict=True):
                    if inspect is not None:
                        inspect(new.temporary, layout)
                rest = iter(files)
                finished = [
                    FinishedOutput(tuple(itertools.islice(rest, len(output.targets))), output.replaced)
                    for output in found
                ]
                with ignore_interrupts():
                    name_outputs(finished, force)
            except RemapkitError:
                raise
            except OSError as error:
                raise self._make_failure(targets[0], error) from error
        return tuple(every)

    def _open_files(self, stack: contextlib.ExitStack, targets: Sequence[Path], force: bool) -> list[NewFile]:
        """Open the files to write; those that a killed run completed first: opening a new one would remove them."""
        _allow_open_files(2 * len(targets))
        if len(self._layouts) > 1:
            sources = self._reader.sources
            self._marks = [make_fingerprint(layout, sources) if layout.moves else "" for layout in self._layouts]
        kept: list[NewFile | None] = []
        for target, layout, mark in zip(targets, self._layouts, self._marks, strict=True):
            resumed = NewFile.resume(target, mark, layout.nbytes, force=force) if mark else None
            kept.append(self._reuse_file(resumed, layout, stack))
        self.kept = sum(new is not None for new in kept)
        # Opening a file removes the leftovers of dead processes, but perhaps none is opened; ours are locked.
        for folder in {target.parent for target in targets} if self.kept else ():
            remove_stale(folder)
        return [
            new or stack.enter_context(NewFile(target, force=force))
            for new, target in zip(kept, targets, strict=True)
        ]

    def _reuse_file(self, resumed: NewFile | None, layout: FileLayout, stack: contextlib.ExitStack) -> NewFile | None:
        """Return the file if it contains, byte for byte, what would be written now; otherwise remove it."""
        if resumed is None:
            return None
        with contextlib.ExitStack() as own:
            own.enter_context(resumed)
            done = self.done
            if not self._has_content(resumed.fd, layout):
                self.done = done
                return None
            stack.push(own.pop_all())
        return resumed

    def _has_content(self, fd: int, layout: FileLayout) -> bool:
        at = 0
        for piece in layout.pieces:
            for chunk in self._read_expected(piece):
                # Python compares memoryviews element by element, but bytes with one memcmp.
                if os.pread(fd, len(chunk), at) != chunk.tobytes():
                    return False
                at += len(chunk)
                self._advance(len(chunk))
        return at == layout.nbytes

    def _read_expected(self, piece: Piece) -> Iterator[memoryview]:
        if isinstance(piece, BytesPiece):
            return iter((memoryview(piece.data),))
        if isinstance(piece, CopyPiece):
            return piece.source.chunks(piece.offset, piece.nbytes)
        return read_target_chunks(piece.move, self._reader, self._run)

    def _check_space(self, files: Sequence[NewFile]) -> None:
        """Raise if a filesystem lacks space; shared blocks need none, so a clone may fit on a full one."""
        by_device: dict[int, list[tuple[NewFile, FileLayout]]] = {}
        for new, layout in zip(files, self._layouts, strict=True):
            if not new.complete:
                by_device.setdefault(os.fstat(new.fd).st_dev, []).append((new, layout))
        for group in by_device.values():
            first, layout = group[0]
            pieces = itertools.chain.from_iterable(layout.pieces for _, layout in group)
            source = next((piece.source for piece in pieces if isinstance(piece, CopyPiece)), None)
            if source is None or not Copier(first.fd, lambda _: None).can_clone(source):
                name = layout.name if len(group) == 1 else join_words((each.name for _, each in group), SHOWN)
                check_space(first.target.parent, name, sum(layout.nbytes for _, layout in group))

    def _check_unchanged(self) -> None:
        for source in self._reader.sources:
            if source.has_changed():
                title = f"{source.path.name} changed while it was read; nothing was written"
                raise make_unreadable("RK412", title, source.path)

    def _make_failure(self, target: Path, error: OSError) -> UnwritableOutput:
        target = self._filling.target if self._filling is not None else target
        if error.errno in NO_SPACE:
            return make_no_space(target, error, f" after {format_bytes_part(self.done, self.total)}")
        return convert_os_error(target, error)

    def _advance(self, nbytes: int) -> None:
        self.done += nbytes
        if self._writeback is not None:
            self._writeback.advance(nbytes)
        if self._progress is not None:
            self._progress(self.done, self.total)

    def _fill_files(self, files: Sequence[NewFile]) -> None:
        every = zip(files, self._layouts, self._marks, strict=True)
        todo = [(new, layout, mark) for new, layout, mark in every if not new.complete]
        skipped = self.done
        copies = (
            (piece.source, piece.offset, piece.nbytes) if isinstance(piece, CopyPiece) else (None, 0, piece.nbytes)
            for _, layout, _ in todo
            for piece in layout.pieces
        )
        with ReadAhead(copies, lambda: self.done - skipped):
            for new, layout, mark in todo:
                self._filling = new
                self._fill_file(new.fd, layout)
                new.flush()
                if mark:
                    new.mark_complete(mark)
        self._filling = None

    def _fill_file(self, fd: int, layout: FileLayout) -> None:
        """Write the pieces in order: small ones together, ranges of files by the kernel, the others through memory.

        `at` is the offset of the next piece; everything before it is written or buffered in `small`. Checksums that
        are known only after their pieces were read are written last.
        """
        copier = Copier(fd, self._advance)
        self._writeback = Writeback(fd)
        sealed = {seal.piece: seal.places for seal in layout.seals}
        patches: list[tuple[int, int]] = []
        at = 0
        small = SmallPieces(fd, self._advance)
        for number, piece in enumerate(layout.pieces):
            if number not in sealed and piece.nbytes <= SMALL and not isinstance(piece, StreamPiece):
                small.add(piece, at)
                at += piece.nbytes
                continue
            small.flush()
            if number in sealed:
                crc = self._write_piece(fd, piece, at)
                patches += [(place, crc) for place in sealed[number]]
            elif isinstance(piece, CopyPiece):
                copier.copy(piece.source, piece.offset, piece.nbytes, at)
            else:
                self._write_piece(fd, piece, at)
            at += piece.nbytes
        small.flush()
        for place, crc in patches:
            write_all(fd, crc.to_bytes(4, "little"), place)
        self.how |= copier.used | small.used

    def _write_piece(self, fd: int, piece: Piece, at: int) -> int:
        """Write a piece through memory, chunk by chunk; return its CRC-32."""
        crc, end = 0, at + piece.nbytes
        for chunk in self._read_chunks(piece):
            write_all(fd, chunk, at)
            crc = zlib.crc32(chunk, crc)
            at += len(chunk)
            self._advance(len(chunk))
        if at != end:
            raise AssertionError(f"{piece}: {at - end} bytes more than planned")
        return crc

    def _read_chunks(self, piece: Piece) -> Iterator[memoryview]:
        if not isinstance(piece, BytesPiece):
            self.how["loop" if isinstance(piece, CopyPiece) else "gathered"] = None
        return self._read_expected(piece)


def _allow_open_files(more: int) -> None:
    """Raise the soft limit on open files if needed: every shard stays open until all are complete."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 256 + more
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


def forget_cached(path: Path) -> None:
    """Ask the kernel to drop a file from its cache, so that reading it again reads the disk."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
