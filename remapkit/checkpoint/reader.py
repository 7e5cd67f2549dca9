"""What every reader of a checkpoint gives: a header, byte extents, and the bytes of one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from remapkit.diagnostic import Diagnostic
from remapkit.spec import StateDictSpec


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at `offset` of `file`: the whole tensor, contiguous, row-major, little-endian."""

    file: Path
    offset: int
    length: int


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
    """What the user should hear about the file: a wrapper taken, objects ignored."""

    def header(self) -> StateDictSpec:
        """Names, dtypes, shapes and tied groups, in the file's order."""
        ...

    def extent(self, fqn: str) -> Extent | None:
        """Where the tensor's bytes lie, or None where they are not one contiguous stretch of a file."""
        ...

    def chunks(self, fqn: str, size: int = 1 << 18) -> Iterator[memoryview]:
        """The tensor's bytes, contiguous, row-major and little-endian, in pieces of at most about `size` bytes."""
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
