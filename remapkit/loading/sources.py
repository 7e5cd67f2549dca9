"""The sources of a plan's tensors: mapped files, or a state dict in memory. Memory is shared if that is safe.

Files are mapped privately, copy-on-write: a write to a loaded tensor (by an optimizer step, for example) goes to
private memory of the process, never to the file. The system can reclaim pages that are not written to.
"""

from __future__ import annotations

import mmap
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from remapkit.compute.merged import find_unequal_in_files
from remapkit.compute.move_bytes import Run, read_target_chunks
from remapkit.compute.stream import fill_buffer
from remapkit.compute.torch_eager import Maker, find_unequal_tensors
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.files.errors import make_unreadable
from remapkit.files.source_file import Extent, SourceFile, describe_os_error
from remapkit.formats.reader import Reader
from remapkit.loading.in_place import MemoryRange, locate_tensor
from remapkit.ops.byte_ranges import Range, find_byte_ranges
from remapkit.plans.moves import Move
from remapkit.plans.roots import RootFit, describe_choice, take_root
from remapkit.tensors.from_torch import TORCH_DTYPES, get_dtype_name, header_of
from remapkit.tensors.spec import StateDictSpec, TensorSpec

# Python defines the flag since 3.13. Without it, systems that count every page of a private map as written refuse to
# map a file larger than memory.
_GENERIC = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64", "riscv64")
_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if _GENERIC else 0)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in host memory; `shared` if it uses the source's memory, `release` frees its pages."""

    tensor: torch.Tensor
    shared: bool
    release: Callable[[], None] = lambda: None


class TensorValues(Protocol):
    """The tensors that moves produce, from files or from memory."""

    is_mapped: bool
    """Whether shared memory is a mapped file, where a failing disk raises a signal instead of an exception."""

    def take_root(self, fit: RootFit) -> tuple[StateDictSpec, TensorValues, tuple[Diagnostic, ...]]:
        """Return the header and the values under a root that was chosen, and the notes that say so."""
        ...

    def place(self, move: Move) -> MemoryRange | None:
        """Return the range of bytes that `tensor` would share, or None if it would copy."""
        ...

    def extent(self, move: Move) -> Extent | None:
        """Return the range of a file that can be uploaded to a device, or None."""
        ...

    def tensor(self, move: Move, *, own: bool = False) -> Value:
        """Return the tensor in host memory; with `own` never shared."""
        ...

    def find_unequal_merges(self, moves: Sequence[Move]) -> list[Diagnostic]:
        """Compare all tensors that are merged; return a problem for each rule whose tensors differ."""
        ...

    def check_unchanged(self) -> None:
        """Raise `UnreadableCheckpoint` (RK412) if a file was written to meanwhile."""
        ...


class FileValues:
    """The tensors of an open checkpoint."""

    is_mapped = True

    def __init__(self, reader: Reader, run: Run | None) -> None:
        self._reader = reader
        self._run = run
        self._maps: dict[SourceFile, mmap.mmap | None] = {}

    def take_root(self, fit: RootFit) -> tuple[StateDictSpec, FileValues, tuple[Diagnostic, ...]]:
        """Return the header and the values under a root that was chosen, and the notes that say so."""
        reader = take_root(self._reader, fit)
        return reader.header(), FileValues(reader, self._run), tuple(reader.notes[len(self._reader.notes) :])

    def place(self, move: Move) -> MemoryRange | None:
        """Return the range of the tensor's extent if it can be mapped, else None."""
        extent = self.extent(move)
        # A tensor that does not start at a multiple of its element's width cannot be used from the map.
        if extent is None or not extent.length or extent.offset % TORCH_DTYPES[move.spec.dtype].itemsize:
            return None
        return f"file {id(extent.source)}", extent.offset, extent.offset + extent.length

    def extent(self, move: Move) -> Extent | None:
        """Return the range of a file that contains the target: its source's, or a part of that."""
        if not move.ops:
            return self._reader.extent(move.sources[0])
        header = self._reader.header()
        part = find_single_range(move, header)
        extent = self._reader.extent(move.sources[part.source]) if part is not None else None
        if part is None or extent is None:
            return None
        return Extent(extent.source, extent.offset + part.offset, part.length)

    def tensor(self, move: Move, *, own: bool = False) -> Value:
        """Return a view of the mapped file if possible, else a copy."""
        place, extent = self.place(move), self.extent(move)
        mapped = self._map_file(extent.source) if place and extent and not own else None
        if mapped is None or extent is None:
            return Value(self._read_tensor(move, extent), shared=False)
        dtype = TORCH_DTYPES[move.spec.dtype]
        flat = torch.frombuffer(mapped, dtype=dtype, count=move.spec.numel, offset=extent.offset)
        return Value(flat.view(move.spec.shape), shared=True, release=lambda: _forget_pages(mapped, extent))

    def find_unequal_merges(self, moves: Sequence[Move]) -> list[Diagnostic]:
        """Compare the tensors of the files."""
        return find_unequal_in_files(moves, self._reader)

    def check_unchanged(self) -> None:
        """Check the reader's files."""
        self._reader.check_unchanged()

    def _map_file(self, source: SourceFile) -> mmap.mmap | None:
        if source not in self._maps:
            self._maps[source] = _map_private(source)
        return self._maps[source]

    def _read_tensor(self, move: Move, extent: Extent | None) -> torch.Tensor:
        raw = torch.empty(move.spec.nbytes, dtype=torch.uint8, device="cpu")
        buffer = view_bytes(raw)
        if extent is not None:
            read_into(extent.source, extent.offset, buffer)
        else:
            fill_buffer(buffer, read_target_chunks(move, self._reader, self._run))
        return raw.view(TORCH_DTYPES[move.spec.dtype]).view(move.spec.shape)


def view_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous uint8 tensor on the host as a writable buffer."""
    data: Any = tensor.numpy()  # a buffer; typed as one only since Python 3.12
    return memoryview(data)


def _map_private(source: SourceFile) -> mmap.mmap | None:
    """Map the whole file copy-on-write; None if its filesystem cannot map, so that it is read instead."""
    try:
        flags = mmap.MAP_PRIVATE | _NORESERVE
        with source.hold_open() as fd:
            return mmap.mmap(fd, source.size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except UnreadableCheckpoint:
        raise
    except ValueError as error:
        raise make_unreadable("RK412", f"{source.path.name} became shorter while it was read", source.path) from error
    except OSError:
        return None


def _forget_pages(mapped: mmap.mmap, extent: Extent) -> None:
    """Free the pages of an extent that is no longer needed."""
    start = -(-extent.offset // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (extent.offset + extent.length - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED, start, length)


def read_into(source: SourceFile, offset: int, buffer: memoryview) -> None:
    """Fill the buffer from `offset` on; raises `UnreadableCheckpoint` if the file cannot be read or is too short."""
    at = 0
    while at < len(buffer):
        try:
            with source.hold_open() as fd:
                count = os.preadv(fd, [buffer[at : at + (1 << 30)]], offset + at)
        except UnreadableCheckpoint:
            raise
        except OSError as error:
            raise make_unreadable(
                "RK400", f"cannot read: {describe_os_error(error)}", source.path, refused=error
            ) from error
        if not count:
            raise make_unreadable("RK412", f"{source.path.name} became shorter while it was read", source.path)
        at += count


class MemoryValues:
    """The tensors of a state dict in memory, used without copying, so that they share its storage."""

    is_mapped = False

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self._state = state
        self._maker = Maker(state)
        self._specs = {
            fqn: TensorSpec(get_dtype_name(value.dtype), tuple(value.shape)) for fqn, value in state.items()
        }

    def take_root(self, fit: RootFit) -> tuple[StateDictSpec, MemoryValues, tuple[Diagnostic, ...]]:
        """Return the header and the values under a root that was chosen, and the note that says so."""
        prefix = f"{fit.root}."
        inside = {fqn.removeprefix(prefix): each for fqn, each in self._state.items() if fqn.startswith(prefix)}
        name = "a state dict in memory"
        return header_of(inside, name), MemoryValues(inside), (describe_choice(fit, name),)

    def place(self, move: Move) -> MemoryRange | None:
        """Return the range of memory of the tensor's elements."""
        if move.ops:
            return self._locate_part(move)
        tensor = self._state[move.sources[0]]
        if not tensor.numel() or tensor.is_meta:
            return None
        return locate_tensor(tensor)

    def extent(self, move: Move) -> None:
        """Return None: there is no file."""

    def tensor(self, move: Move, *, own: bool = False) -> Value:
        """Return the tensor itself, detached; results of operations are new tensors, except parts of one."""
        if move.ops:
            made = self._maker.tensor(move)
            shared = self._locate_part(move) is not None and not own
            return Value(made if shared else made.clone(memory_format=torch.contiguous_format), shared=shared)
        tensor = self._state[move.sources[0]].detach()
        return Value(tensor.clone() if own else tensor, shared=not own)

    def _locate_part(self, move: Move) -> MemoryRange | None:
        """Return the memory of a target that is one range of a contiguous source, else None."""
        part = find_single_range(move, self._specs)
        source = self._state[move.sources[part.source]] if part is not None else None
        if part is None or source is None or not source.is_contiguous() or source.is_meta:
            return None
        start = source.data_ptr() + part.offset
        return str(source.device), start, start + part.length

    def find_unequal_merges(self, moves: Sequence[Move]) -> list[Diagnostic]:
        """Compare the tensors of the state dict."""
        return find_unequal_tensors(moves, self._state, "a state dict in memory")

    def check_unchanged(self) -> None:
        """Do nothing: there is no file."""


def find_single_range(move: Move, specs: Mapping[str, TensorSpec]) -> Range | None:
    """Return the single range of one source that a target with operations consists of, or None."""
    if not move.sources:
        return None
    ranges = find_byte_ranges(move.ops, [specs[fqn] for fqn in move.sources])
    return ranges[0] if ranges is not None and len(ranges) == 1 else None


def find_overlapping_targets(moves: Iterable[Move], values: TensorValues) -> frozenset[str]:
    """Return targets whose bytes overlap those of an earlier one: sharing would tie what the model does not tie."""
    places = [(place, move.target) for move in moves if (place := values.place(move)) is not None]
    overlapping = set()
    inside, end = "", 0
    for (where, start, stop), target in sorted(places):
        if where != inside:
            inside, end = where, 0
        if start < end:
            overlapping.add(target)
        end = max(end, stop)
    return frozenset(overlapping)


def holds_same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors of one shape have the same bytes."""
    if one.dtype != other.dtype:
        return False
    flat = (one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))
    return torch.equal(*flat)
