"""Who may use a recording, where it is made, and what is left behind where that fails.

The kinds: several threads with one model (any schedule of chunks that they compute gives what each alone gives; the
same threads without the lock are seen to fail), several CUDA streams (whatever the order of callers, a
stand-in sees every access to memory ordered after the one before, and what a rollout takes out made on its own
stream), what a recording may rely on (the device, the stream, the state of
autocast, that something was recorded), and the switches of torch that are put back.
"""

from __future__ import annotations

import sys
import threading
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from remapkit.plugins.wan import fast as fast_module
from remapkit.plugins.wan.cache import Stream
from remapkit.plugins.wan.graphs import CudaCapture, Fence, Graphs
from remapkit.plugins.wan.vae import Fast, WanCache, WanCacheError, WanVAE
from wan_kit import GRAPHS, WINDOWS, Recorder, like

CHUNKS = 20


@pytest.fixture(scope="module")
def vae(randomise):
    return randomise(WanVAE(dim=4, dec_dim=4), 5).optimize("off")


def videos(number):
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(1, 3, 4 * CHUNKS - 3, 16, 16, generator=generator) * 2 - 1 for _ in range(number)]


def chunk(video, t):
    return video[:, :, max(0, 4 * t - 3) : 4 * t + 1]


def in_threads(works):
    """Runs them at once, changing threads as often as Python can; what any of them raised is raised."""
    raised = []

    def guarded(work):
        try:
            with torch.no_grad():
                work()
        except BaseException as error:
            raised.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if raised:
        raise raised[0]


def two_threads(vae, quick):
    """40 encodes, 20 a thread, a cache each; the size of the cache is looked at on the way."""
    given_videos = videos(2)
    with torch.no_grad():
        wanted = [vae.encode(video) for video in given_videos]
    found = [[], []]

    def work(i):
        cache = WanCache()
        for t in range(CHUNKS):
            found[i].append(quick.encode(chunk(given_videos[i], t), cache))
            assert cache.nbytes > 0

    in_threads([lambda: work(0), lambda: work(1)])
    for i in range(2):
        torch.testing.assert_close(torch.cat(found[i], 2), wanted[i])


def test_two_threads_with_one_model_and_a_cache_each__A27(vae):
    quick = like(vae, GRAPHS)
    two_threads(vae, quick)
    assert quick._graphs.capture.replays > CHUNKS


def test_threads_without_the_lock_would_be_seen__A27(vae):
    quick = like(vae, GRAPHS)
    quick._graphs.lock = nullcontext()
    with pytest.raises(Exception):  # noqa: B017 (shapes, values or the recorder's own words: as the threads happen to meet)
        two_threads(vae, quick)


@given(st.lists(st.integers(0, 2), min_size=4, max_size=12), st.sampled_from([GRAPHS, WINDOWS]))
@settings(max_examples=8)
def test_any_order_of_turns_between_threads(vae, turns, fast):
    """One thread a video; a chunk each at its turn, so that a schedule can be told again."""
    quick, given_videos = like(vae, fast), videos(3)
    found, caches = [[], [], []], [WanCache() for _ in range(3)]
    for i in turns:
        x = chunk(given_videos[i], len(found[i]))
        in_threads([lambda i=i, x=x: found[i].append(quick.encode(x, caches[i]))])
    for i in range(3):
        if found[i]:
            with torch.no_grad():
                wanted = vae.encode(given_videos[i][:, :, : 4 * len(found[i]) - 3])
            torch.testing.assert_close(torch.cat(found[i], 2), wanted)


def test_gradients_after_another_thread_took_the_place(vae):
    """Frames that a caller in inference mode moves out are no inference tensors: autograd goes on from them."""
    quick, (one, other) = like(vae, GRAPHS), videos(2)
    cache = WanCache()
    with torch.inference_mode():
        quick.encode(chunk(one, 0), cache)
        quick.encode(chunk(other, 0), WanCache())
    assert not any(history.is_inference() for history in cache.encoding.histories())
    with torch.enable_grad():
        x = chunk(one, 1).clone().requires_grad_()
        quick.encode(x, cache).sum().backward()
    assert x.grad is not None


# -------------------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("fast", ["off", WINDOWS, GRAPHS], ids=["off", "windows", "graphs"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("code", ["encode", "decode"])
def test_one_cache_with_autocast_and_without__A43(vae, fast, first, code):
    quick, cache = like(vae, fast), WanCache()
    x = videos(1)[0] if code == "encode" else torch.randn(1, 48, CHUNKS, 1, 1)

    def piece(t):
        return chunk(x, t) if code == "encode" else x[:, :, t : t + 1]

    for t in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=first):
            getattr(quick, code)(piece(t), cache)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=not first),
        pytest.raises(WanCacheError, match="was filled") as said,
    ):
        getattr(quick, code)(piece(4), cache)
    assert "under autocast to torch.bfloat16" in str(said.value) and "without autocast" in str(said.value)
    with torch.autocast("cpu", torch.bfloat16, enabled=first):  # the refusal has torn nothing
        getattr(quick, code)(piece(4), cache)


def test_recordings_under_autocast_and_without_are_two(vae):
    quick, video = like(vae, GRAPHS), videos(1)[0][:, :, :17]
    for cast in (False, True, False, True):
        wanted = like(vae, WINDOWS)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            torch.testing.assert_close(quick.encode(video), wanted.encode(video))
    assert quick._graphs.capture.records == 4
    assert torch.is_autocast_cache_enabled()


# ------------------------------------------------------------------------------------------ what was recorded


class Nothing(Recorder):
    """A recording on the wrong stream: it holds nothing, and its replay does nothing."""

    def record(self, run, device):
        _, out = super().record(run, device)
        return lambda: None, out


def test_a_recording_of_nothing_is_refused__A28(vae):
    quick, video = like(vae, GRAPHS), videos(1)[0]
    quick._graphs.capture = Nothing(quick)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = quick.encode(video)
    torch.testing.assert_close(found, vae.encode(video))
    assert ["nothing was recorded" in str(each.message) for each in said] == [True]


def test_a_recording_of_nothing_that_is_taken_would_be_seen__A28(vae, monkeypatch):
    monkeypatch.setattr("remapkit.plugins.wan.graphs.Arena._prove_replay", lambda arena: True)
    with pytest.raises(AssertionError):
        test_a_recording_of_nothing_is_refused__A28(vae)


class Cuda:
    """`torch.cuda` as far as a recording needs it: devices, a current stream for each, and failures at will."""

    def __init__(self, fail=None, records=True):
        self.fail, self.records, self.now = fail, records, torch.device("cuda", 0)
        self.current = {torch.device("cuda", i): f"default {i}" for i in range(2)}
        self.seen = []

    @contextmanager
    def device(self, device):
        before, self.now = self.now, device
        try:
            yield
        finally:
            self.now = before

    def Stream(self, device):
        return f"side of {device}"

    def current_stream(self, device=None):
        return self.current[device or self.now]

    def set_stream(self, stream):
        self.current[self.now] = stream

    def is_current_stream_capturing(self):
        return self.records

    def CUDAGraph(self):
        class Graph:
            replay = staticmethod(lambda: self.seen.append(("replay", self.now)))
            pool = staticmethod(lambda: f"pool of {self.now}")

        return Graph()

    def graph(self, graph, *, pool, stream, capture_error_mode):
        """As torch's: the stream is not put back where beginning or ending fails."""
        cuda = self

        class Recording:
            def __enter__(self):
                self.before = cuda.current_stream()
                cuda.set_stream(stream)
                cuda.seen.append((cuda.now, stream, pool, capture_error_mode))
                if cuda.fail == "begin":
                    raise RuntimeError("begin")

            def __exit__(self, *error):
                if cuda.fail == "end" or error[0]:
                    raise RuntimeError("end")
                cuda.set_stream(self.before)

        return Recording()


class Result:
    device = torch.device("cuda", 1)


def recorded(monkeypatch, cuda, run=Result):
    for name in (
        "device",
        "Stream",
        "current_stream",
        "set_stream",
        "is_current_stream_capturing",
        "CUDAGraph",
        "graph",
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    return CudaCapture().record(run, torch.device("cuda", 1))


def test_it_is_made_on_the_models_device_and_a_stream_of_it__A28(monkeypatch):
    cuda = Cuda()
    replay, _ = recorded(monkeypatch, cuda)
    replay()
    one = torch.device("cuda", 1)
    assert cuda.seen == [(one, "side of cuda:1", None, "thread_local"), ("replay", one)]
    assert cuda.now == torch.device("cuda", 0)


def failing():
    raise RuntimeError("run")


@pytest.mark.parametrize(
    ("fail", "records", "run"),
    [("begin", True, Result), ("end", True, Result), (None, False, Result), (None, True, failing)],
    ids=["A42-begin", "A42-end", "A42-another-stream", "A42-run"],
)
def test_one_that_fails_leaves_the_thread_on_its_stream(monkeypatch, fail, records, run):
    cuda = Cuda(fail, records)
    with pytest.raises(RuntimeError):
        recorded(monkeypatch, cuda, run)
    assert cuda.current == {torch.device("cuda", i): f"default {i}" for i in range(2)}
    assert cuda.now == torch.device("cuda", 0)


def test_a_stream_that_is_not_put_back_would_be_seen(monkeypatch):
    monkeypatch.setattr("remapkit.plugins.wan.graphs._restore_stream", lambda device: nullcontext())
    with pytest.raises(AssertionError):
        test_one_that_fails_leaves_the_thread_on_its_stream(monkeypatch, "begin", True, Result)


# ------------------------------------------------------------------------------------------ streams of their own


class Queue:
    """A CUDA stream that does nothing, but knows what comes before its next work: so much of each queue."""

    device = torch.device("cuda", 0)
    current = None

    def __init__(self):
        self.before = {self: 0}

    def work(self):
        self.before[self] += 1

    def wait_event(self, event):
        for queue, count in event.before.items():
            self.before[queue] = max(count, self.before.get(queue, 0))

    @contextmanager
    def chosen(self):
        before, Queue.current = Queue.current, self
        try:
            yield
        finally:
            Queue.current = before


class Event:
    def record(self, queue):
        self.before = dict(queue.before)


class Memory:
    """A tensor on CUDA, as far as its memory goes: made on one queue, used on others, one after the other."""

    device = Queue.device

    def __init__(self):
        self.made_on, self.used_on, self.count = Queue.current, Queue.current, 0

    def use(self, *_):
        queue = Queue.current
        assert queue is self.used_on or queue.before.get(self.used_on, 0) >= self.count, "not in order"
        queue.work()
        self.used_on, self.count = queue, queue.before[queue]

    zero_ = copy_ = use

    def detach(self):
        return self

    def clone(self):
        self.use()
        return Memory()


def a_first_chunk(x, stream):
    for slot in ("one", "two"):
        stream.histories.setdefault(slot, Memory()).use()
    return x


def take_turns(turns):
    """Each rollout on a queue of its own; two directions, which are an arena each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "current_stream", lambda device: Queue.current)
        patch.setattr(torch.cuda, "stream", Queue.chosen)
        patch.setattr(torch.cuda, "Event", Event)
        graphs, queues = Graphs(), [Queue() for _ in range(3)]
        rollouts = {(name, i): Stream() for name in ("encode", "decode") for i in range(3)}
        for name, i in turns:
            with queues[i].chosen():
                graphs.run(name, "key", a_first_chunk, Memory(), rollouts[name, i])
            for (_, owner), rollout in rollouts.items():
                assert all(history.made_on is queues[owner] for history in rollout.histories.values())


@given(st.lists(st.tuples(st.sampled_from(["encode", "decode"]), st.integers(0, 2)), max_size=12))
def test_any_order_of_callers_with_streams_of_their_own(turns):
    take_turns(turns)


MADE_ELSEWHERE = [("encode", 0), ("decode", 1), ("encode", 1)]


def test_memory_made_on_the_last_callers_stream_would_be_seen(monkeypatch):
    take_turns(MADE_ELSEWHERE)
    on = Fence.take_turn
    monkeypatch.setattr(Fence, "take_turn", lambda fence, stream: on(fence, fence._stream))
    with pytest.raises(AssertionError):
        take_turns(MADE_ELSEWHERE)


def test_a_caller_that_does_not_wait_for_what_is_taken_out_would_be_seen(monkeypatch):
    monkeypatch.setattr(Fence, "take_turn", lambda fence, stream: torch.cuda.stream(stream))
    with pytest.raises(AssertionError, match="not in order"):
        take_turns([("encode", 0), ("encode", 1)])


# ------------------------------------------------------------------------------------- switches that are put back


def autotuned():
    return fast_module.autotune_cudnn(Fast(autotune=True), torch.device("cuda"))


@pytest.mark.parametrize("before", [True, False])
def test_the_search_of_cudnn_is_put_back_whoever_goes_first(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    one, other = autotuned(), autotuned()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert torch.backends.cudnn.benchmark
    other.__exit__(None, None, None)
    assert torch.backends.cudnn.benchmark == before
    with pytest.raises(ValueError), autotuned():
        raise ValueError
    assert torch.backends.cudnn.benchmark == before


# ------------------------------------------------------------------------------------------------------- on CUDA


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_threads_with_streams_of_their_own_on_cuda(vae):
    quick = like(vae, GRAPHS)
    quick._graphs = Graphs()
    quick.cuda()
    given_videos, found = videos(2), [[], []]

    def work(i):
        cache = WanCache()
        with torch.cuda.stream(torch.cuda.Stream()):
            for t in range(CHUNKS):
                found[i].append(quick.encode(chunk(given_videos[i], t).cuda(), cache).cpu())

    in_threads([lambda: work(0), lambda: work(1)])
    for i in range(2):
        torch.testing.assert_close(torch.cat(found[i], 2), vae.encode(given_videos[i]), rtol=1e-3, atol=1e-3)
    assert all(arena.is_recorded for arena in quick._graphs.arenas.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_a_model_on_a_device_that_is_not_the_current_one(vae):
    quick = like(vae, GRAPHS)
    quick._graphs = Graphs()
    quick.to("cuda:1")
    video = videos(1)[0]
    with torch.cuda.device(0):
        torch.testing.assert_close(quick.encode(video.to("cuda:1")).cpu(), vae.encode(video), rtol=1e-3, atol=1e-3)
    assert all(arena.is_recorded for arena in quick._graphs.arenas.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recording_that_fails_on_cuda_leaves_the_stream(vae):
    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        CudaCapture().record(lambda: torch.ones(1, device="cuda").sum().item(), torch.device("cuda", 0))
    assert torch.cuda.current_stream() == before
