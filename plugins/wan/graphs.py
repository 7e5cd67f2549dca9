"""CUDA graphs: the steady chunk is recorded once and replayed; arenas control which video uses them at a time.

A graph reads and writes fixed addresses. So each step of the model (encode a chunk, begin decoding one, finish it)
has an `Arena`: fixed buffers for its input, its output and the frames that its layers remember. To run a step, a
stream is admitted to the arena and its frames are copied in; the previous stream gets its frames copied
out, if it still exists. While one video runs alone, the usual case, nothing is copied between chunks.

Invariant: an arena serves one caller at a time, and all arenas of a model are one resource, since their recordings
share one memory pool. Code that admits or evicts a stream, runs a chunk, or reads the frames of an admitted stream
holds `Graphs.lock` (every arena's `lock` is the same one) from the first access to the copy of the output. The lock
orders threads; the `Fence` orders the work that they queue on different CUDA streams.

Cost: each arena keeps the windows of its layers for as long as it exists (GBs at 704x1280, see docs/wan.md), plus
its graph's share of the pool. Per chunk: one copy of the input and one of the output; per change of video: one copy
of all remembered frames out and one in. There is one arena per step, for the size used last.

Everything except the recording itself also runs on the CPU: see `Capture`.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from .cache import Stream

__all__ = ["Arena", "Capture", "CudaCapture", "Fence", "Graphs"]

Step = Callable[[Tensor, Stream], Tensor]


class Capture(Protocol):
    """Records the work of a function on tensors without executing it. Tests replace it to run on the CPU."""

    def can_record(self, device: torch.device) -> bool:
        """Whether steps on the device can be recorded."""
        ...

    def record(self, run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
        """Return a function that repeats the work of `run` on the same addresses, and the tensor with its result.

        Raises `RuntimeError` if that cannot be recorded; the current CUDA stream is then the same as before.
        """
        ...


class CudaCapture:
    """CUDA graphs that share one memory pool per device.

    Sharing is safe because they never run at the same time (`Graphs.lock`), and each output is copied out before the
    next replay may reuse its memory.
    """

    def __init__(self) -> None:
        self._pools: dict[torch.device, object] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def can_record(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def record(self, run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
        # The model's device need not be the current one, and work queued on another device would not be recorded.
        with torch.cuda.device(device), _restore_stream(device):
            graph = torch.cuda.CUDAGraph()
            side = self._streams.setdefault(device, torch.cuda.Stream(device))
            # thread_local: in the default mode, an allocation in another thread would fail that thread or the
            # recording.
            recording = torch.cuda.graph(
                graph, pool=self._pools.get(device), stream=side, capture_error_mode="thread_local"
            )
            with recording:
                out = run()
                is_recording = torch.cuda.is_current_stream_capturing()
            if not is_recording or out.device != device:
                raise RuntimeError(f"nothing was recorded: the result is on {out.device}, the recording on {device}")
            self._pools[device] = graph.pool()

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay, out


@contextmanager
def _restore_stream(device: torch.device) -> Iterator[None]:
    """Restore the current stream: after a failure, `torch.cuda.graph` leaves the thread on its own stream."""
    before = torch.cuda.current_stream(device)
    try:
        yield
    finally:
        torch.cuda.set_stream(before)


class Fence:
    """Orders the work that callers queue on different CUDA streams: every caller waits for the previous one.

    Does nothing on other devices, where work is finished when a call returns. Callers hold `Graphs.lock`.
    """

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None
        self._stream: torch.cuda.Stream | None = None

    def enter(self, device: torch.device) -> None:
        """Make later work of the current stream wait for all work that was queued before the last `leave`."""
        if self._event is not None and self._stream is not None and device.type == "cuda":
            current = torch.cuda.current_stream(device)
            if current != self._stream:
                current.wait_event(self._event)

    def leave(self, device: torch.device) -> None:
        """Mark the work queued on the current stream so far; the next `enter` waits for it."""
        if device.type != "cuda":
            return
        current = torch.cuda.current_stream(device)
        if self._event is None or self._stream is None or self._stream.device != current.device:
            self._event = torch.cuda.Event()
        self._stream = current
        self._event.record(current)

    @contextmanager
    def take_turn(self, stream: torch.cuda.Stream | None) -> Iterator[None]:
        """Run the block on another CUDA stream, after earlier work and before later work of the current one."""
        if stream is None:
            yield
            return
        with torch.cuda.stream(stream):
            self.enter(stream.device)
            try:
                yield
            finally:
                self.leave(stream.device)
        self.enter(stream.device)

    def drain(self) -> None:
        """Wait on the CPU until all marked work is done, before memory that other streams have used is freed."""
        if self._event is not None:
            self._event.synchronize()


class Arena:
    """Fixed buffers of one step at one size, and the recording of its steady chunk.

    `stream` holds the buffers. The tenant is the stream whose frames are currently in them: its `host` is this
    arena. The tenant is referenced weakly, so an arena does not keep the cache of an abandoned video alive.

    The first chunk of a video runs plainly, since it is shaped differently. The first steady chunk runs plainly
    too: it warms up (allocates windows, loads kernels, lets cuDNN choose), none of which may happen while
    recording. The next one is recorded, and replayed from then on.
    """

    def __init__(self, key: Hashable, capture: Capture, lock: threading.RLock, fence: Fence) -> None:
        self.key = key
        self.lock = lock
        self.stream = Stream()
        self._fence = fence
        self._capture = capture
        self._tenant: weakref.ref[Stream] | None = None
        self._tenant_queue: torch.cuda.Stream | None = None
        self._is_warm = False
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._replay: Callable[[], None] | None = None
        self._is_proven = False

    @property
    def is_recorded(self) -> bool:
        return self._replay is not None

    def admit_stream(self, stream: Stream, queue: torch.cuda.Stream | None = None) -> None:
        """Make `stream` the tenant; `queue` is the CUDA stream of its caller.

        The previous tenant gets its frames in new memory, allocated on the CUDA stream of its last call: it continues
        to use them there, and PyTorch reuses freed memory in the order of the stream of its allocation.
        """
        if stream.host is self:
            self._tenant_queue = queue
            return
        self.vacate()
        stream.leave_host()
        with torch.inference_mode(False), torch.no_grad():
            for slot, history in self.stream.histories.items():
                remembered = stream.histories.get(slot)
                if remembered is None:
                    history.zero_()
                else:
                    history.copy_(remembered)
            for slot in stream.histories.keys() - self.stream.histories.keys():
                self.stream.histories[slot] = stream.histories[slot].detach().clone()
        stream.histories, stream.windows = {}, {}
        stream.host = self
        self._tenant, self._tenant_queue = weakref.ref(stream), queue

    def vacate(self) -> None:
        """Evict the tenant: copy its frames into its own memory, if it still exists."""
        tenant = self._tenant() if self._tenant is not None else None
        if tenant is not None:
            with self._fence.take_turn(self._tenant_queue):
                tenant.leave_host()
        self._tenant, self._tenant_queue = None, None

    def run_step(self, step: Step, x: Tensor, stream: Stream) -> Tensor:
        """Run one chunk of the tenant: plainly, or by replaying the recording."""
        self.stream.chunks, self.stream.fast = stream.chunks, stream.fast
        if stream.is_first or not self._is_warm:
            out = step(x, self.stream)
            self._is_warm = self._is_warm or not stream.is_first
            return out
        if self._replay is None and not self._record_step(step, x):
            return step(x, self.stream)
        assert self._input is not None and self._output is not None and self._replay is not None
        self._input.copy_(x)
        self._replay()
        if not self._is_proven and not self._prove_replay():
            return step(x, self.stream)
        # A copy: the next replay overwrites the output.
        return self._output.clone()

    def _prove_replay(self) -> bool:
        """Whether the first replay overwrote the pattern in its output: an empty recording replays silently."""
        assert self._output is not None
        if torch.equal(self._output, _make_pattern(self._output)):
            self._give_up("nothing was recorded: a replay writes no output")
            return False
        self._is_proven = True
        return True

    def _give_up(self, why: str) -> None:
        self._capture, self._replay, self._output, self._input = _NOTHING, None, None, None
        message = f"a CUDA graph could not be recorded, continuing without: {why}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _record_step(self, step: Step, x: Tensor) -> bool:
        """Record the steady chunk; False if that fails. Recording executes nothing: all frames stay as they are."""
        if self._capture is _NOTHING:
            return False
        with torch.inference_mode(False), torch.no_grad():
            self._input = torch.empty_like(x)
        fixed = self._input
        try:
            with _disable_cast_cache():
                self._replay, self._output = self._capture.record(lambda: step(fixed, self.stream), x.device)
        except RuntimeError as error:
            self._give_up(str(error).splitlines()[0])
            return False
        self._output.copy_(_make_pattern(self._output))
        self._is_proven = False
        return True


def _make_pattern(out: Tensor) -> Tensor:
    """Return values that no model computes: they reveal an output that was not written."""
    return torch.linspace(-3.7, 2.9, out.numel(), device=out.device).to(out.dtype).reshape(out.shape)


@contextmanager
def _disable_cast_cache() -> Iterator[None]:
    """Disable autocast's cache of cast weights: it is freed at the end of the block, but recordings still read it."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _Nothing:
    """The capture of an arena whose recording failed: it is not tried again."""

    def can_record(self, device: torch.device) -> bool:
        return False

    def record(self, run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("nothing is recorded here")


_NOTHING = _Nothing()


class Graphs:
    """The arenas of one model: one per step, for the size used last. A copy of a model starts without arenas."""

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = CudaCapture() if capture is None else capture
        self.arenas: dict[str, Arena] = {}
        self.lock = threading.RLock()
        self._fence = Fence()

    def run(self, name: str, key: Hashable, step: Step, x: Tensor, stream: Stream) -> Tensor:
        """Run `step(x, stream)` in the arena `name`. Another key means another size or other weights: a new arena."""
        with self.lock:
            self._fence.enter(x.device)
            try:
                arena = self.arenas.get(name)
                if arena is None or arena.key != key:
                    if arena is not None:
                        arena.vacate()
                        self._fence.drain()
                    arena = self.arenas[name] = Arena(key, self.capture, self.lock, self._fence)
                arena.admit_stream(stream, torch.cuda.current_stream(x.device) if x.device.type == "cuda" else None)
                return arena.run_step(step, x, stream)
            finally:
                self._fence.leave(x.device)

    def clear(self) -> None:
        """Free all arenas. Streams keep their frames."""
        with self.lock:
            for arena in self.arenas.values():
                arena.vacate()
            self._fence.drain()
            self.arenas = {}

    def __deepcopy__(self, memo: object) -> Graphs:
        return Graphs(self.capture if not isinstance(self.capture, CudaCapture) else None)

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()
