"""The steady chunk recorded once and replayed: CUDA graphs, and who may use them when.

A graph reads and writes fixed addresses. So each step of the model (encode a chunk, begin one, finish one) has an
`Arena`: fixed buffers for its input, its output and all that it remembers. A rollout that takes a step is let into
the arena with its memory; the one that was there before takes its own memory out, unless it is gone. As long as one
rollout goes on alone, which is the rule, nothing is copied between chunks.

The invariant: an arena serves one caller at a time, and the arenas of a model are one resource, since their
recordings share a pool of memory. Whoever lets a rollout in, takes one out, computes a chunk or reads what a guest
remembers holds `Graphs.lock` (an arena's `lock` is the same one) from the first look to the copy of the output. The
lock orders the threads; the work that they queue on CUDA streams of their own is ordered by the `Fence` beside it.

Everything but the recording itself runs on the CPU too: see `Capture`.
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
    """Records what a function does with tensors, without doing it."""

    def can_record(self, device: torch.device) -> bool:
        """Whether steps on that device can be recorded."""
        ...

    def record(self, run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
        """A function that repeats what `run` did, on the same addresses; and the tensor that holds its result.

        Raises `RuntimeError` where it cannot be recorded; the thread computes on the same stream as before then.
        """
        ...


class CudaCapture:
    """CUDA graphs that share one pool of memory: they never run at the same time, and no result is left in it."""

    def __init__(self) -> None:
        self._pools: dict[torch.device, object] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def can_record(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def record(self, run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
        # On the model's device, which need not be the current one: work queued elsewhere would not be recorded.
        with torch.cuda.device(device), _restore_stream(device):
            graph = torch.cuda.CUDAGraph()
            side = self._streams.setdefault(device, torch.cuda.Stream(device))
            # Other threads may go on allocating: the strictest mode would fail the recording, or them.
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
    """Back to the stream that was current: `torch.cuda.graph` leaves the thread on its own one where it fails."""
    before = torch.cuda.current_stream(device)
    try:
        yield
    finally:
        torch.cuda.set_stream(before)


class Fence:
    """Puts what several callers queue on CUDA streams of their own into the order in which they came.

    On other devices, where work is done when a call returns, it does nothing.
    """

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None
        self._stream: torch.cuda.Stream | None = None

    def enter(self, device: torch.device) -> None:
        """What the current stream is given from now on comes after what was queued before the last `leave`."""
        if self._event is not None and self._stream is not None and device.type == "cuda":
            current = torch.cuda.current_stream(device)
            if current != self._stream:
                current.wait_event(self._event)

    def leave(self, device: torch.device) -> None:
        """All that the current stream was given so far comes before the next `enter`."""
        if device.type != "cuda":
            return
        current = torch.cuda.current_stream(device)
        if self._event is None or self._stream is None or self._stream.device != current.device:
            self._event = torch.cuda.Event()
        self._stream = current
        self._event.record(current)

    @contextmanager
    def take_turn(self, stream: torch.cuda.Stream | None) -> Iterator[None]:
        """A turn of another stream, in its own memory; the current stream's work goes on after it."""
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
        """Wait until all of it is done: before memory is given back that streams other than its own have used."""
        if self._event is not None:
            self._event.synchronize()


class Arena:
    """Fixed buffers of one step in one size, and the recording of its steady chunk."""

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
        """Bring in what `stream` remembers; `queue` is its caller's CUDA stream.

        Whoever was here before takes his memory along: made on the CUDA stream that he came on last, since he goes on
        using it there, and memory that is free again may be used again by the stream that it was made on.
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
        """The memory of the tenant becomes its own again, if it is still there."""
        tenant = self._tenant() if self._tenant is not None else None
        if tenant is not None:
            with self._fence.take_turn(self._tenant_queue):
                tenant.leave_host()
        self._tenant, self._tenant_queue = None, None

    def run_step(self, step: Step, x: Tensor, stream: Stream) -> Tensor:
        """One chunk: as it is for the first one and the one that warms up, replayed from then on."""
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
        # The next replay writes over the output.
        return self._output.clone()

    def _prove_replay(self) -> bool:
        """Whether the first replay wrote its output: a recording of nothing changes nothing, in silence."""
        assert self._output is not None
        if torch.equal(self._output, _make_pattern(self._output)):
            self._give_up("nothing was recorded, a replay writes no output")
            return False
        self._is_proven = True
        return True

    def _give_up(self, why: str) -> None:
        self._capture, self._replay, self._output, self._input = _NOTHING, None, None, None
        message = f"a CUDA graph could not be recorded, going on without: {why}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _record_step(self, step: Step, x: Tensor) -> bool:
        """Whether it worked. Recording runs nothing, so one that failed leaves all that is remembered as it was."""
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
    """Values that no model gives, so that an output that was not written is known by them."""
    return torch.linspace(-3.7, 2.9, out.numel(), device=out.device).to(out.dtype).reshape(out.shape)


@contextmanager
def _disable_cast_cache() -> Iterator[None]:
    """Autocast keeps the weights that it cast until its block ends; a recording would go on reading them after."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _Nothing:
    """Where recording failed once: not tried again."""

    def can_record(self, device: torch.device) -> bool:
        return False

    def record(self, run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("nothing is recorded here")


_NOTHING = _Nothing()


class Graphs:
    """The arenas of one model: one for each step, of the size that was used last. Copies of a model start without."""

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = CudaCapture() if capture is None else capture
        self.arenas: dict[str, Arena] = {}
        self.lock = threading.RLock()
        self._fence = Fence()

    def run(self, name: str, key: Hashable, step: Step, x: Tensor, stream: Stream) -> Tensor:
        """`step(x, stream)`, in the arena of its name. Another key is another size, or other weights."""
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
        """Give the memory back. Rollouts keep what they remember."""
        with self.lock:
            for arena in self.arenas.values():
                arena.vacate()
            self._fence.drain()
            self.arenas = {}

    def __deepcopy__(self, memo: object) -> Graphs:
        return Graphs(self.capture if not isinstance(self.capture, CudaCapture) else None)

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()
