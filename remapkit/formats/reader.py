"""The interface of all checkpoint readers: a header, byte extents, and the bytes of one tensor at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol, Self, runtime_checkable

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.files.errors import make_unreadable
from remapkit.files.source_file import CHUNK, Extent, SourceFile
from remapkit.tensors.spec import StateDictSpec


@runtime_checkable
class Reader(Protocol):
    """A checkpoint opened for reading.

    No method imports torch. A reader is a context manager; after `close`, its extents stay valid, but `chunks` can no
    longer be called.
    """

    path: Path
    format: str
    """`safetensors`, `pth`, `legacy pth`, `pickle`, `sharded safetensors`, `sharded pth` or `manifest` (no data)."""
    root: str
    """The wrapper that contains the state dict, such as `a.b`; empty for the file's top level."""
    notes: tuple[Diagnostic, ...]
    """Notes for the user about the file: a wrapper that was used, objects that were ignored."""
    sources: Sequence[SourceFile]
    """The files that are read; none of them may be a target."""
    shards: Mapping[str, Reader]
    """The readers of the shards, by file name; empty for a single file."""

    def header(self) -> StateDictSpec:
        """Return names, dtypes, shapes and tied groups, in the file's order."""
        ...

    def extent(self, fqn: str) -> Extent | None:
        """Return the location of the tensor's bytes, or None if they are not one contiguous range of a file."""
        ...

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield the tensor's bytes, contiguous, row-major and little-endian, in pieces of at most about `size`."""
        ...

    def crc32(self, fqn: str) -> int | None:
        """Return the checksum of exactly the tensor's bytes if the file contains it, else None."""
        ...

    def check_unchanged(self) -> None:
        """Raise `UnreadableCheckpoint` (RK412) if a file was written to since it was opened."""
        ...

    def check_sums(self) -> None:
        """Read everything, and raise `UnreadableCheckpoint` (RK403) if a checksum in the file does not match."""
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
    """The base of readers of files: keeps the files open, and closes them."""

    def __init__(self, path: Path, sources: Sequence[SourceFile]) -> None:
        self.path = path
        self.root = ""
        self.notes: tuple[Diagnostic, ...] = ()
        self.sources = sources
        self.shards: Mapping[str, Reader] = MappingProxyType({})

    def crc32(self, fqn: str) -> int | None:
        """Return None: most formats have no checksums."""
        return None

    def check_sums(self) -> None:
        """Do nothing: most formats have no checksums."""

    def check_unchanged(self) -> None:
        """Raise `UnreadableCheckpoint` (RK412) if a file was written to since it was opened."""
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
