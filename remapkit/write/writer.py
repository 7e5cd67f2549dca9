"""Writes files by their layouts: all pieces are written, checked and flushed before a file gets its name."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from remapkit.compute.move_bytes import Run, read_target_chunks
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedWrite, RemapkitError, UnwritableOutput
from remapkit.diagnostics.wording import escape_line, format_bytes_part
from remapkit.files.atomic import NewFile, check_space, check_targets, ignore_interrupts, sync_directory
from remapkit.files.copy import Copier, ReadAhead, Writeback, expect_sequential, write_all
from remapkit.files.errors import NO_SPACE, convert_os_error, make_no_space, make_unreadable
from remapkit.files.index_names import is_index
from remapkit.files.locks import hold_locks
from remapkit.files.source_file import CHUNK, describe_os_error
from remapkit.formats.reader import Reader
from remapkit.write.layout import BytesPiece, CopyPiece, FileLayout, Piece, StreamPiece, make_fingerprint
from remapkit.write.replaced import dress_files, find_other_layouts, remove_replaced

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

    A sharded output whose run was killed is resumed: every completed shard is compared with its sources, and reused
    if it contains what would be written. In either case files have temporary names while they are written.
    """

    def __init__(
        self, reader: Reader, layouts: Sequence[FileLayout], progress: Progress | None, run: Run | None
    ) -> None:
        self.total = sum(layout.nbytes for layout in layouts)
        self.done = 0
        self.kept = 0
        self.how: dict[str, None] = {}
        self._reader = reader
        self._layouts = layouts
        self._progress = progress
        self._run = run
        self._marks: dict[str, str] = {}
        self._writeback: Writeback | None = None

    @property
    def shards(self) -> int:
        """The number of shards; 0 if the output is one file."""
        return len(self._layouts) - 1

    def write(self, folder: Path, force: bool, inspect: Inspect | None) -> tuple[Path, ...]:
        """Write every file, then give all of them their names, the index last.

        Raises `UnwritableOutput` (RK5xx) or `UnreadableCheckpoint` (RK4xx), with nothing changed.
        """
        names = [layout.name for layout in self._layouts]
        paths = [folder / name for name in names]
        with contextlib.ExitStack() as stack:
            stack.enter_context(hold_locks(paths))
            targets = check_targets(paths, self._reader.sources, force)
            replaced = find_other_layouts(folder, names, self._reader.sources, force)
            for source in self._reader.sources:
                expect_sequential(source)
            try:
                files = self._open_files(stack, targets, force)
                self._check_space(files)
                self._fill_files(files)
                self._check_unchanged()
                for new, layout in zip(files, self._layouts, strict=True):
                    if inspect is not None:
                        inspect(new.temporary, layout)
                with ignore_interrupts():
                    dress_files(files, replaced)
                    _name_files(files, force, [path for path in replaced if is_index(path.name)])
                    remove_replaced(replaced, paths[-1])
            except RemapkitError:
                raise
            except OSError as error:
                raise self._make_failure(targets[0], error) from error
        return tuple(paths)

    def _open_files(self, stack: contextlib.ExitStack, targets: Sequence[Path], force: bool) -> list[NewFile]:
        """Open the files to write; those that a killed run completed first: opening a new one would remove them."""
        _allow_open_files(2 * len(targets))
        for layout in self._layouts if self.shards else ():
            self._marks[layout.name] = make_fingerprint(layout, self._reader.sources) if layout.moves else ""
        kept: list[NewFile | None] = []
        for target, layout in zip(targets, self._layouts, strict=True):
            mark = self._marks.get(layout.name)
            resumed = NewFile.resume(target, mark, layout.nbytes, force=force) if mark else None
            kept.append(self._reuse_file(resumed, layout, stack))
        self.kept = sum(new is not None for new in kept)
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
        """Raise if space is insufficient; shared blocks need none, so a clone may fit on a full filesystem."""
        needed = sum(layout.nbytes for new, layout in zip(files, self._layouts, strict=True) if not new.complete)
        first = next(new for new in files if not new.complete)
        sources = [
            piece.source for layout in self._layouts for piece in layout.pieces if isinstance(piece, CopyPiece)
        ]
        if not (sources and Copier(first.fd, lambda _: None).can_clone(sources[0])):
            check_space(first.target.parent, self._layouts[0].name, needed)

    def _check_unchanged(self) -> None:
        for source in self._reader.sources:
            if source.has_changed():
                title = f"{source.path.name} changed while it was read; nothing was written"
                raise make_unreadable("RK412", title, source.path)

    def _make_failure(self, target: Path, error: OSError) -> UnwritableOutput:
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
        todo = [(new, layout) for new, layout in zip(files, self._layouts, strict=True) if not new.complete]
        skipped = self.done
        copies = (
            (piece.source, piece.offset, piece.nbytes) if isinstance(piece, CopyPiece) else (None, 0, piece.nbytes)
            for _, layout in todo
            for piece in layout.pieces
        )
        with ReadAhead(copies, lambda: self.done - skipped):
            for new, layout in todo:
                self._fill_file(new.fd, layout)
                new.flush()
                if mark := self._marks.get(layout.name):
                    new.mark_complete(mark)

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


def _name_files(files: Sequence[NewFile], force: bool, indexes: Sequence[Path] = ()) -> None:
    """Give the files their names. The old index is removed first and the new one named last, so that the output never
    looks complete in between.

    `indexes` are other indexes of the output, which may list the same shards: they are removed too.
    """
    *shards, last = files
    named: list[NewFile] = []
    had = [index for index in (last.target, *indexes) if index.exists()]
    try:
        if shards and force:
            for index in had:
                index.unlink(missing_ok=True)
            sync_directory(last.target.parent)
        for shard in shards:
            shard.rename()
            named.append(shard)
        if shards:
            sync_directory(last.target.parent)
        last.rename()
    except BaseException as error:
        # Without `force` nothing was replaced, so files that have their names already can be removed again.
        for shard in () if force else named:
            shard.target.unlink(missing_ok=True)
        changed = named or not all(index.exists() for index in had)
        if force and changed and isinstance(error, OSError) and not isinstance(error, RemapkitError):
            raise _make_partial_error(last.target, len(named), len(shards), error) from error
        raise
    sync_directory(last.target.parent)


def _make_partial_error(index: Path, named: int, of: int, error: OSError) -> FailedWrite:
    title = f"{named} of {of} shards were replaced when the system refused: {describe_os_error(error)}"
    notes = (f"{index.name} was removed first, so that nothing looks complete",)
    help = ("remove the cause, then run the same command again",)
    return FailedWrite(Diagnostic("RK514", escape_line(title), notes=notes, help=help, place=str(index)))


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
