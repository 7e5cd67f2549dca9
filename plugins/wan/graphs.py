"""The steady chunk recorded once and replayed: CUDA graphs, and who may use them when.

A graph reads and writes fixed addresses. So each step of the model (encode a chunk, begin one, finish one) has an
`Arena`: fixed buffers for its input, its output and all that it remembers. A rollout that takes a step is let into
the arena with its memory; the one that was there before takes its own memory out, unless it is gone. As long as one
rollout goes on alone, which is the rule, nothing is copied between chunks.

Everything but the recording itself runs on the CPU too: see `Capture`.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from .cache import Stream

__all__ = ["Arena", "Capture", "CudaCapture", "Graphs"]

Step = Callable[[Tensor, Stream], Tensor]


class Capture(Protocol):
    """Records what a function does with tensors, without doing it."""

    def works_on(self, device: torch.device) -> bool:
        """Whether steps on that device can be recorded."""
        ...

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """A function that repeats what `run` did, on the same addresses; and the tensor that holds its result."""
        ...


class CudaCapture:
    """CUDA graphs that share one pool of memory: they never run at the same time, and no result is left in it."""

    def __init__(self) -> None:
        self._pool: object = None

    def works_on(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = run()
        self._pool = graph.pool()
        return graph.replay, out


class Arena:
    """Fixed buffers of one step in one size, and the recording of its steady chunk."""

    def __init__(self, key: Hashable, capture: Capture) -> None:
        self.key = key
        self.stream = Stream()
        self._capture = capture
        self._tenant: weakref.ref[Stream] | None = None
        self._is_warm = False
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._replay: Callable[[], None] | None = None

    @property
    def is_recorded(self) -> bool:
        return self._replay is not None

    def admit(self, stream: Stream) -> None:
        """Bring in what `stream` remembers. Whoever was here before takes his memory along."""
        if stream.host is self:
            return
        self.vacate()
        stream.settle()
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
        self._tenant = weakref.ref(stream)

    def vacate(self) -> None:
        """The memory of the tenant becomes its own again, if it is still there."""
        tenant = self._tenant() if self._tenant is not None else None
        if tenant is not None:
            tenant.settle()
        self._tenant = None

    def step(self, step: Step, x: Tensor, stream: Stream) -> Tensor:
        """One chunk: as it is for the first one and the one that warms up, replayed from then on."""
        self.stream.chunks, self.stream.fast = stream.chunks, stream.fast
        if stream.is_first or not self._is_warm:
            out = step(x, self.stream)
            self._is_warm = self._is_warm or not stream.is_first
            return out
        if self._replay is None and not self._record(step, x):
            return step(x, self.stream)
        assert self._input is not None and self._output is not None and self._replay is not None
        self._input.copy_(x)
        self._replay()
        # The next replay writes over the output.
        return self._output.clone()

    def _record(self, step: Step, x: Tensor) -> bool:
        """Whether it worked. Recording runs nothing, so one that failed leaves all that is remembered as it was."""
        if self._capture is _NOTHING:
            return False
        with torch.inference_mode(False), torch.no_grad():
            self._input = torch.empty_like(x)
        fixed = self._input
        try:
            self._replay, self._output = self._capture.record(lambda: step(fixed, self.stream))
        except RuntimeError as error:
            self._capture = _NOTHING
            said = str(error).splitlines()[0]
            warnings.warn(
                f"a CUDA graph could not be recorded, going on without: {said}", RuntimeWarning, stacklevel=2
            )
            return False
        return True


class _Nothing:
    """Where recording failed once: not tried again."""

    def works_on(self, device: torch.device) -> bool:
        return False

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("nothing is recorded here")


_NOTHING = _Nothing()


class Graphs:
    """The arenas of one model: one for each step, of the size that was used last. Copies of a model start without."""

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = CudaCapture() if capture is None else capture
        self.arenas: dict[str, Arena] = {}

    def run(self, name: str, key: Hashable, step: Step, x: Tensor, stream: Stream) -> Tensor:
        """`step(x, stream)`, in the arena of its name. Another key is another size, or other weights."""
        arena = self.arenas.get(name)
        if arena is None or arena.key != key:
            if arena is not None:
                arena.vacate()
            arena = self.arenas[name] = Arena(key, self.capture)
        arena.admit(stream)
        return arena.step(step, x, stream)

    def clear(self) -> None:
        """Give the memory back. Rollouts keep what they remember."""
        for arena in self.arenas.values():
            arena.vacate()
        self.arenas = {}

    def __deepcopy__(self, memo: object) -> Graphs:
        return Graphs(self.capture if not isinstance(self.capture, CudaCapture) else None)

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()
