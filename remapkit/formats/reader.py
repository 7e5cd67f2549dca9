"""What every reader of a checkpoint provides: a header, byte extents, and the bytes of one tensor at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.files.errors import make_unreadable
from remapkit.files.source_file import CHUNK, Extent, SourceFile
from remapkit.tensors.spec import StateDictSpec


@runtime_checkable
class Reader(Protocol):
    """A checkpoint opened for reading.

    No method imports torch. A reader is a context manager; after `close` its extents stay valid as facts, its
    `chunks` do not.
    """

    path: Path
    format: str
    """`safetensors`, `sharded safetensors`, `pth`, `legacy pth`, `sharded pth` or `manifest` (which has no data)."""
    root: str
    """The wrapper the state dict was found under, `a.b`; empty where it is the file's top level."""
    notes: tuple[Diagnostic, ...]
    """Notes for the user about the file: a wrapper taken, objects ignored."""
    sources: Sequence[SourceFile]
    """The files that are read; none of them may be a target."""

    def header(self) -> StateDictSpec:
        """Names, dtypes, shapes and tied groups, in the file's order."""
        ...

    def extent(self, fqn: str) -> Extent | None:
        """Where the tensor's bytes are, or None where they are not one contiguous range of a file."""
        ...

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """The tensor's bytes, contiguous, row-major and little-endian, in pieces of at most about `size` bytes."""
        ...

    def crc32(self, fqn: str) -> int | None:
        """The checksum of the tensor's bytes where the file holds just that, else None."""
        ...

    def check_unchanged(self) -> None:
        """Raise `UnreadableCheckpoint` (RK412) where a file was written to since it was opened."""
        ...

    def check_sums(self) -> None:
        """Read everything, and raise `UnreadableCheckpoint` (RK403) where a checksum of the file does not fit."""
        ...

    def close(self) -> None:
        """Release files and maps."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class FileReader:
    """What readers of files share: they hold their files, and close them."""

    def __init__(self, path: Path, sources: Sequence[SourceFile]) -> None:
        self.path = path
        self.root = ""
        self.notes: tuple[Diagnostic, ...] = ()
        self.sources = sources

    def crc32(self, fqn: str) -> int | None:
        """None: most formats hold no checksums."""
        return None

    def check_sums(self) -> None:
        """Nothing: most formats hold no checksums."""

    def check_unchanged(self) -> None:
        """Raise `UnreadableCheckpoint` (RK412) where a file was written to since it was opened."""
        for source in self.sources:
            if source.has_changed():
                raise make_unreadable("RK412", f"{source.path.name} changed while it was read", source.path)

    def close(self) -> None:
        """Close every file; a second call does nothing."""
        for source in self.sources:
            with contextlib.suppress(OSError):
                source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
