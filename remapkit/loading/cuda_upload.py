"""Uploads files to a device: one staging buffer is filled from the file while another is copied to the device.

The buffers are page-locked, so that the device copies from them while the host reads. Invariants: until a buffer is
full, each of its bytes is written once (`used` only grows), with small tensors packed next to each other; a full
buffer is reused only after the device has passed the mark after its last copy. So no copy sees bytes of a later
tensor. The cost is two buffers (64 MB) for a checkpoint of any size; the host waits only if it is a whole buffer
ahead.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

import torch

from remapkit.files.source_file import Extent
from remapkit.loading.sources import read_into, view_bytes
from remapkit.tensors.from_torch import TORCH_DTYPES
from remapkit.tensors.spec import TensorSpec

STAGE = 32 << 20
"""The size of one staging buffer in bytes."""
_READERS = 4
_SLICE = 4 << 20


class Mark(Protocol):
    """A point in a device's queue."""

    def synchronize(self) -> None:
        """Wait until everything before it is done."""
        ...


class Queue(Protocol):
    """A device's queue of copies."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy bytes, possibly asynchronously, in the order of the calls."""
        ...

    def mark(self) -> Mark:
        """Return the point after all copies queued so far."""
        ...


class CudaQueue:
    """The current stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy without waiting; `source` is page-locked."""
        target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        """Record an event in the stream."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


class _Stage:
    """One staging buffer, the number of its bytes in use, and the mark after which it is free again."""

    def __init__(self, size: int, pinned: bool) -> None:
        self.tensor = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        self.view = view_bytes(self.tensor)
        self.used = 0
        self.free_after: Mark | None = None


class Upload:
    """Copies tensors from files to a device."""

    def __init__(self, device: torch.device, queue: Queue, *, size: int = STAGE, pinned: bool = True) -> None:
        self._device = device
        self._queue = queue
        self._size = size
        self._stages = [_Stage(size, pinned) for _ in range(2)]
        self._readers = ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))

    def tensor(self, extent: Extent, spec: TensorSpec) -> torch.Tensor:
        """Return the extent's tensor on the device; its bytes are copied asynchronously, in queue order."""
        target = torch.empty(extent.length, dtype=torch.uint8, device=self._device)
        done = 0
        while done < extent.length:
            stage, count = self._reserve_stage(extent.length - done)
            start = stage.used - count
            self._read_extent(extent, done, stage.view[start : stage.used])
            self._queue.copy(target[done : done + count], stage.tensor[start : stage.used])
            done += count
        return target.view(TORCH_DTYPES[spec.dtype]).view(spec.shape)

    def _reserve_stage(self, wanted: int) -> tuple[_Stage, int]:
        """Reserve up to `wanted` bytes; return the stage, and how many of its last used bytes are the caller's."""
        stage = self._stages[0]
        if stage.used == self._size:  # full: mark the end of its copies, and wait for the other stage's copies
            stage.free_after = self._queue.mark()
            self._stages.reverse()
            stage = self._stages[0]
            if stage.free_after is not None:
                stage.free_after.synchronize()
            stage.used = 0
        count = min(wanted, self._size - stage.used)
        stage.used += count
        return stage, count

    def _read_extent(self, extent: Extent, done: int, view: memoryview) -> None:
        """Read with several threads at once: a single one is slower than the bus."""
        offset = extent.offset + done
        if len(view) <= _SLICE:
            read_into(extent.source, offset, view)
            return
        starts = range(0, len(view), _SLICE)
        jobs = [
            self._readers.submit(read_into, extent.source, offset + start, view[start : start + _SLICE])
            for start in starts
        ]
        for job in jobs:
            job.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also after an error: the readers still write to the stages, and the device reads from them.
        self._readers.shutdown()
        self._queue.mark().synchronize()
