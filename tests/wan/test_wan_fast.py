"""Every part of the fast path against the plain way: the same, but for roundings where sums are added up."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from remapkit.plugins.wan import fast as fast_module
from remapkit.plugins.wan.cache import Stream
from remapkit.plugins.wan.fast import PLAIN, choose_fast
from remapkit.plugins.wan.layers import RMSNorm, add_duplicate, duplicate_up
from remapkit.plugins.wan.vae import Fast, Tiling, Wan21VAE, WanCache, WanFastError, WanVAE
from torch.utils._python_dispatch import TorchDispatchMode
from wan_kit import GRAPHS, WINDOWS, like

from tests.numbers_kit import computed_alike

CHUNKS = 5
GENERATIONS = {
    "2.2": (lambda: WanVAE(dim=4, dec_dim=4), (2, 3, 4 * CHUNKS - 3, 32, 48), (2, 48, CHUNKS, 2, 3)),
    "2.1": (lambda: Wan21VAE(dim=4, dec_dim=4), (2, 3, 4 * CHUNKS - 3, 16, 24), (2, 16, CHUNKS, 2, 3)),
}


@pytest.fixture(scope="module", params=list(GENERATIONS))
def world(request, randomise):
    """A model that computes the plain way, a video, a latent, and what the plain way makes of them."""
    build, video_shape, latent_shape = GENERATIONS[request.param]
    vae = randomise(build(), 5).optimize("off")
    generator = torch.Generator().manual_seed(2)
    video = torch.rand(video_shape, generator=generator) * 2 - 1
    latent = torch.randn(latent_shape, generator=generator)
    with torch.no_grad():
        return vae, video, latent, vae.encode(video), vae.decode(latent)


def frames_before(chunk):
    return max(0, 4 * chunk - 3)


def in_pieces(code, x, cuts, frames, cache=None, between=lambda cache: cache):
    cache = WanCache() if cache is None else cache
    bounds = [0, *sorted(cuts), CHUNKS]
    parts = []
    for start, stop in pairwise(bounds):
        parts.append(code(x[:, :, frames(start) : frames(stop)], cache))
        cache = between(cache)
    return torch.cat(parts, dim=2)


def assert_same(vae, world, cuts=(), between=lambda cache: cache):
    _, video, latent, encoded, decoded = world
    assert computed_alike(in_pieces(vae.encode, video, cuts, frames_before, between=between), encoded)
    assert computed_alike(in_pieces(vae.decode, latent, cuts, lambda chunk: chunk, between=between), decoded)


cuts = st.sets(st.integers(1, CHUNKS - 1))


@pytest.mark.parametrize("fast", [WINDOWS, GRAPHS], ids=["windows", "graphs"])
@given(where=cuts)
@settings(max_examples=4, deadline=None)
def test_to_the_bit_however_the_video_is_split(world, fast, where):
    assert_same(like(world[0], fast), world, where)


@pytest.mark.parametrize("fast", [WINDOWS, GRAPHS], ids=["windows", "graphs"])
@pytest.mark.parametrize(
    "between",
    [
        lambda cache: cache.clone(),
        lambda cache: cache.to("cpu"),
        lambda cache: (
            cache,
            [s.change_histories(torch.clone) for r in (cache.encoding, cache.decoding) for s in r.streams.values()],
        )[0],
    ],
    ids=["clone", "to", "change"],
)
def test_a_cache_that_is_copied_or_moved_goes_on(world, fast, between):
    assert_same(like(world[0], fast), world, {1, 2, 4}, between)


def test_the_way_may_change_between_calls(world):
    vae = like(world[0], "off")
    for ways in ([WINDOWS, "off", GRAPHS, "off"], ["off", GRAPHS, WINDOWS, GRAPHS], [GRAPHS, GRAPHS, "off", WINDOWS]):
        for start in (0, 1):
            order = iter(ways[start:] + ways)
            vae.optimize(next(order))
            assert_same(
                vae, world, {1, 2, 3}, lambda cache, order=order: (vae.optimize(next(order, "off")), cache)[1]
            )


def test_a_buffer_that_shifts_wrongly_is_caught(world, monkeypatch):
    vae = like(world[0], WINDOWS)
    shift = Stream.shift_window
    monkeypatch.setattr(Stream, "shift_window", staticmethod(lambda w, frames: shift(w.flip(2), frames)))
    with pytest.raises(AssertionError):
        assert_same(vae, world)


def test_overlapping_frames_are_shifted_one_after_the_other():
    for frames in range(4):
        for T in range(1, 6):
            window = torch.arange(float(frames + T)).reshape(1, 1, -1, 1, 1).clone()
            wanted = window[:, :, T:].clone()
            Stream.shift_window(window, frames)
            assert torch.equal(window[:, :, :frames], wanted)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize(("time", "space"), [(1, 2), (2, 2), (1, 1), (2, 1)])
@pytest.mark.parametrize("is_first", [True, False])
def test_adding_duplicates_is_adding_what_duplicate_up_makes(channels, time, space, is_first):
    wide = 8
    if channels * time * space * space % wide:
        return
    x = torch.randn(2, wide, 1, 3, 2)
    made = duplicate_up(x, channels, time=time, space=space, is_first=is_first)
    h = torch.randn_like(made)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        found = add_duplicate(h.clone(memory_format=layout), x, WINDOWS, time=time, space=space, is_first=is_first)
        assert torch.equal(found, h + made)


# What only moves data is equal to the bit; another layout lets the convolutions add up in another order.


@pytest.mark.parametrize("windows", [False, True])
def test_channels_last(world, windows, relative_error):
    vae, video, latent, encoded, decoded = world
    other = like(vae, Fast(windows=windows, channels_last=True))
    assert relative_error(other.encode(video), encoded) < 1e-5
    assert relative_error(other.decode(latent), decoded) < 1e-5
    weight = other.decoder.middle[0].residual["2"].weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(weight, vae.decoder.middle[0].residual["2"].weight)
    other.optimize("off")
    assert weight.is_contiguous()
    assert computed_alike(other.decode(latent), decoded)


def test_channels_last_stays_channels_last(world, monkeypatch):
    """No layer falls back to the other layout: each convolution is fed channels innermost."""
    vae, video, latent, *_ = world
    other = like(vae, Fast(windows=True, channels_last=True))
    names, wrong, seen = {id(module): name for name, module in other.named_modules()}, [], set()

    def watched(forward):
        def run(layer, x, weight, bias):
            seen.add(names[id(layer)])
            # A kernel of 1 has one layout only.
            if x.shape[1] > 1 and x.stride(1) != 1 and weight[0, 0].numel() > 1:
                wrong.append((names[id(layer)], x.shape, x.stride()))
            return forward(layer, x, weight, bias)

        return run

    for kind in (torch.nn.Conv2d, torch.nn.Conv3d):
        monkeypatch.setattr(kind, "_conv_forward", watched(kind._conv_forward))
    other.decode(latent)
    other.encode(video)
    assert wrong == []
    assert len(seen) == sum(isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d) for m in other.modules())


def test_16_bits_lose_no_more_than_the_plain_way(world, relative_error):
    vae, video, latent, encoded, decoded = world
    plain, quick = (like(vae, setting).bfloat16() for setting in ("off", "auto"))
    for code, x, wanted in (("encode", video, encoded), ("decode", latent, decoded)):
        errors = [relative_error(getattr(v, code)(x), wanted) for v in (plain, quick)]
        assert 1e-4 < errors[1] < 1.25 * errors[0]


def test_the_cpu_goes_to_the_bit_by_default(world):
    vae = like(world[0], "auto")
    assert vae.fast == "auto"
    assert choose_fast("auto", torch.device("cpu"), torch.float32, grads=False, graphs_work=False) == WINDOWS
    assert_same(vae, world, {2})
    assert vae.decode(world[2][:1].double()).dtype == torch.float32


def test_what_auto_takes():
    cuda = choose_fast("auto", torch.device("cuda"), torch.bfloat16, grads=False, graphs_work=True)
    assert cuda.windows and cuda.channels_last and cuda.graphs and cuda.autotune
    assert (cuda.norm == "triton") == fast_module.has_triton()
    cpu = torch.device("cpu")
    assert choose_fast("auto", cpu, torch.bfloat16, grads=False, graphs_work=False).channels_last
    for device in (cpu, torch.device("cuda")):
        assert choose_fast("auto", device, torch.float32, grads=True, graphs_work=True) == PLAIN
        assert choose_fast("off", device, torch.float32, grads=False, graphs_work=True) == PLAIN
    assert choose_fast(GRAPHS, torch.device("meta"), torch.float32, grads=False, graphs_work=False) == PLAIN


# Gradients


def test_gradients_go_the_plain_way(world):
    vae, _, latent, *_ = world
    grads = []
    for fast in ("off", "auto", GRAPHS):
        other = like(vae, fast)
        z = latent[:, :, :2].clone().requires_grad_()
        cache = WanCache()
        with torch.enable_grad():
            # A chunk in inference, then two under autograd, then one in inference: one cache all along.
            with torch.inference_mode():
                first = other.decode(latent[:, :, :1], cache)
            then = other.decode(z, cache)
            then.square().sum().backward()
            with torch.inference_mode():
                last = other.decode(latent[:, :, 3:4], cache)
        grads.append((first, then.detach(), last, z.grad))
        other.requires_grad_(True)
        with torch.enable_grad():
            other.decode(latent[:, :, :2]).sum().backward()
        assert all(p.grad is not None for p in other.decoder.parameters())
    for found in grads[1:]:
        assert all(computed_alike(a, b) for a, b in zip(found, grads[0], strict=True))


def test_frozen_weights_with_gradients_enabled_still_go_fast(world):
    vae = like(world[0], GRAPHS)
    with torch.enable_grad():
        assert computed_alike(vae.decode(world[2]), world[4])
    assert vae._graphs.capture.replays > 0


# What the buffers save, counted


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count, self.bytes = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.count[name] += 1
        views = func.is_view or name.endswith("_") or (kwargs and "out" in kwargs)
        if isinstance(out, torch.Tensor) and not views:
            self.bytes += out.numel() * out.element_size()
        return out


def steady_chunk(vae, code, x, chunk):
    cache = WanCache()
    for piece in (x[:, :, : frames_before(3)] if code == "encode" else x[:, :, :3],):
        getattr(vae, code)(piece, cache)
    with Ops() as ops:
        getattr(vae, code)(chunk, cache)
    return ops


def test_no_cat_no_clone_and_fewer_bytes_in_a_steady_chunk(world):
    vae, video, latent, *_ = world
    quick = like(vae, WINDOWS)
    for code, x, chunk in (("encode", video, video[:, :, -4:]), ("decode", latent, latent[:, :, -1:])):
        plain, fast = (steady_chunk(v, code, x, chunk) for v in (vae, quick))
        convolutions = sum(
            isinstance(m, torch.nn.Conv3d) and m.kernel_size[0] > 1 for m in getattr(vae, f"{code}r").modules()
        )
        assert plain.count["cat"] == convolutions
        assert fast.count["cat"] == 0
        # The rest are of the attention and of patches and resampling, on both ways alike.
        assert plain.count["clone"] - fast.count["clone"] >= convolutions
        assert fast.count["constant_pad_nd"] == plain.count["constant_pad_nd"] <= 3 + 4
        assert fast.bytes < 0.6 * plain.bytes


# Graphs: everything but the recording itself


def test_one_warm_chunk_one_recording_then_replays(world):
    vae, _, latent, _, decoded = world
    quick = like(vae, GRAPHS)
    recorder = quick._graphs.capture
    assert computed_alike(quick.decode(latent), decoded)
    # Two steps (begin and finish), each: first chunk, warm chunk, then recorded and replayed.
    assert (recorder.records, recorder.replays) == (2, 2 * (CHUNKS - 2))
    assert computed_alike(quick.decode(latent), decoded)
    # The next video replays from its second chunk on.
    assert (recorder.records, recorder.replays) == (2, 2 * (CHUNKS - 2) + 2 * (CHUNKS - 1))


def test_videos_that_take_turns_keep_their_memories(world):
    vae, video, latent, encoded, decoded = world
    quick = like(vae, GRAPHS)
    caches = [WanCache(), WanCache(), WanCache()]
    signs = (1, -1, 0.5)
    wanted = [vae.decode(sign * latent) for sign in signs]
    found = [[], [], []]
    for t in range(CHUNKS):
        for i, sign in enumerate(signs):
            found[i].append(quick.decode(sign * latent[:, :, t : t + 1], caches[i]))
            if t == 2 and i == 0:
                assert computed_alike(quick.encode(video), encoded)
    for i in range(3):
        assert computed_alike(torch.cat(found[i], 2), wanted[i])
    assert quick._graphs.capture.records == 3
    assert decoded is not None


def test_a_memory_that_is_not_taken_along_is_caught(world, monkeypatch):
    monkeypatch.setattr(Stream, "leave_host", lambda self: setattr(self, "host", None))
    with pytest.raises(AssertionError):
        test_videos_that_take_turns_keep_their_memories(world)


def test_a_video_that_is_gone_leaves_nothing_to_take_along(world, monkeypatch):
    quick = like(world[0], GRAPHS)
    quick.decode(world[2])
    gc.collect()
    settled = []
    settle = Stream.leave_host
    monkeypatch.setattr(Stream, "leave_host", lambda self: (settled.append(self.host), settle(self))[1])
    quick.decode(world[2])
    assert [host for host in settled if host is not None] == []


def test_another_size_and_other_weights_are_recorded_anew(world):
    vae, _, latent, _, decoded = world
    quick = like(vae, GRAPHS)
    recorder = quick._graphs.capture
    quick.decode(latent)
    assert computed_alike(quick.decode(latent[..., :2]), vae.decode(latent[..., :2]))
    assert recorder.records == 4
    state = {fqn: tensor.clone() for fqn, tensor in quick.state_dict().items()}
    quick.load_state_dict(state, assign=True)
    assert computed_alike(quick.decode(latent), decoded)
    assert recorder.records == 6
    # In place, the addresses stay: the recording reads the new values.
    changed = like(vae, "off")
    for model in (quick, changed):
        model.decoder.head["2"].bias.data += 1
    assert computed_alike(quick.decode(latent), changed.decode(latent))
    assert recorder.records == 6


def test_tiles_replay(world):
    vae, _, latent, *_ = world
    quick = like(vae, GRAPHS)
    factor = vae.config.spatial_factor
    for stages in (0, 1):
        tiling = Tiling(height=2 * factor, width=2 * factor, overlap=factor, whole_stages=stages)
        wanted = vae.decode(latent, tiling=tiling)
        assert computed_alike(quick.decode(latent, tiling=tiling), wanted)
        cache = WanCache()
        parts = [quick.decode(latent[:, :, t : t + 1], cache, tiling=tiling) for t in range(CHUNKS)]
        assert computed_alike(torch.cat(parts, 2), wanted)
    assert quick._graphs.capture.replays > 20


def test_frames_that_are_given_out_are_nobody_elses(world):
    """Not the buffers of the recording: what was given out must not change when the next chunk is made."""
    vae, _, latent, _, decoded = world
    quick = like(vae, GRAPHS)
    quick.decode(latent)
    assert computed_alike(torch.cat(list(quick.iter_decode(latent)), 2), decoded)


def test_a_recording_that_fails_is_said_once_and_done_without(world):
    vae, _, latent, _, decoded = world
    quick = like(vae, GRAPHS)

    def refuse(run, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    quick._graphs.capture.record = refuse
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert computed_alike(quick.decode(latent), decoded)
        assert computed_alike(quick.decode(latent), decoded)
    words = "a CUDA graph could not be recorded, continuing without: operation not permitted when stream is capturing"
    assert [str(each.message) for each in said] == [words] * 2, "once for each step"
    assert quick._graphs.capture.replays == 0


def test_copies_and_moves_of_a_model_leave_the_graphs_behind(world):
    vae, _, latent, _, decoded = world
    quick = like(vae, GRAPHS)
    cache = WanCache()
    first = quick.decode(latent[:, :, :3], cache)
    assert quick._graphs.arenas
    assert copy.deepcopy(quick)._graphs.arenas == {}
    quick.float()
    assert quick._graphs.arenas == {}
    assert computed_alike(torch.cat([first, quick.decode(latent[:, :, 3:], cache)], 2), decoded)
    quick.optimize("off")
    assert quick._graphs.arenas == {}


def test_the_size_of_a_cache_counts_its_buffers(world):
    vae, _, latent, *_ = world
    for fast in (WINDOWS, GRAPHS):
        quick, cache, plain = like(vae, fast), WanCache(), WanCache()
        quick.decode(latent, cache)
        vae.decode(latent, plain)
        held = [stream.find_holder() for stream in cache.decoding.streams.values()]
        storages = {
            h.untyped_storage().data_ptr(): h.untyped_storage().nbytes() for s in held for h in s.histories.values()
        }
        assert cache.nbytes == sum(storages.values()) > plain.nbytes
        assert cache.to("cpu").nbytes == plain.nbytes


# Settings


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"graphs": True}, "graphs=True needs windows=True"),
        ({"norm": "cuda"}, "norm must be 'eager', 'triton' or 'compile', got 'cuda'"),
        ({"windows": 1, "autotune": None}, "windows must be a bool, got 1; autotune must be a bool, got None"),
    ],
)
def test_parts_that_do_not_go_together(settings_, words):
    with pytest.raises(ValueError, match=words):
        Fast(**settings_)


def test_what_is_no_setting(world):
    with pytest.raises(ValueError, match="fast must be 'auto', 'off' or a Fast"):
        like(world[0], "off").optimize("on")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_named_part_that_cannot_run_is_refused(world, monkeypatch):
    vae = copy.deepcopy(world[0]).optimize(GRAPHS)
    with pytest.raises(WanFastError, match="graphs=True needs CUDA, the model is on cpu"):
        vae.decode(world[2])
    monkeypatch.setattr(fast_module, "has_triton", lambda: False)
    with pytest.raises(WanFastError, match="needs the package triton, which is not installed"):
        vae.optimize(Fast(norm="triton")).decode(world[2])


# One kernel for norm and SiLU

TRITON = """
import sys, torch
from remapkit.plugins.wan import kernel
from remapkit.plugins.wan.fast import Fast, compute_norm
from remapkit.plugins.wan.vae import WanVAE
torch.manual_seed(0)
ULP = {torch.float32: 2**-20, torch.bfloat16: 2**-7, torch.float16: 2**-10}
for C in (1, 5, 8, 96, 160):
    for dtype, ulp in ULP.items():
        for silu in (True, False):
            x = torch.randn(2, C, 3, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
            x[0, :, 0, 0, 0] = 0
            gamma = torch.randn(C, 1, 1, 1, dtype=dtype)
            window = torch.full((2, C, 5, 5, 7), 7.0, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
            out = window[:, :, 2:]
            assert kernel.is_channels_last(x, out)
            kernel.norm_silu(x, gamma, out, silu=silu)
            wanted = compute_norm(x, gamma.float() * C**0.5, silu)
            assert ((out.float() - wanted).abs() <= ulp * wanted.abs() + 1e-6).all(), (C, dtype, silu)
            assert (window[:, :, :2] == 7).all(), "wrote outside of its place"
            assert not out[0, :, 0, 0, 0].any()
x = torch.randn(1, 8, 3, 4, 4)
assert not kernel.is_channels_last(x, x), "channels outermost"
last = x.contiguous(memory_format=torch.channels_last_3d)
assert not kernel.is_channels_last(last, last.double()) and not kernel.is_channels_last(last[..., :2], last[..., :2])
assert kernel.is_channels_last(last[:, :, 1:], last[:, :, 1:])
vae = WanVAE(dim=8, dec_dim=8).eval().requires_grad_(False)
latent, video = torch.randn(1, 48, 3, 2, 3), torch.rand(1, 3, 5, 32, 48) * 2 - 1
plain = vae.optimize("off").decode(latent), vae.encode(video)
# cuDNN gives back the layout that it was given; the CPU's convolutions do not.
for kind, layout in ((torch.nn.Conv2d, torch.channels_last), (torch.nn.Conv3d, torch.channels_last_3d)):
    def forward(layer, x, weight, bias, forward=kind._conv_forward, layout=layout):
        return forward(layer, x, weight, bias).contiguous(memory_format=layout)
    kind._conv_forward = forward
calls, norm_silu = [], kernel.norm_silu
kernel.norm_silu = lambda *a, **k: (calls.append(1), norm_silu(*a, **k))[1]
for windows in (True, False):
    vae.optimize(Fast(windows=windows, channels_last=True, norm="triton"))
    for out, wanted in zip((vae.decode(latent), vae.encode(video)), plain, strict=True):
        assert (out - wanted).norm() / wanted.norm() < 1e-5
norms = sum("gamma" in name for name, _ in vae.decoder.named_parameters()) * 3
norms += sum("gamma" in name for name, _ in vae.encoder.named_parameters()) * 2
assert len(calls) == 2 * norms, f"{len(calls)} of {2 * norms} norms went through the kernel"
print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(not fast_module.has_triton(), reason="triton is not installed: it has 1 GB, and no use on a CPU")
def test_the_triton_kernel_in_the_interpreter():
    code = subprocess.run(
        [sys.executable, "-c", TRITON],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert code.returncode == 0, code.stderr
    assert code.stdout.strip() == "same"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "default",
    reason="torch.compile writes vector code for a processor that is held to plain instructions",
)
def test_compiled_norms():
    for channels, frames in ((8, 1), (12, 4)):
        norm = RMSNorm(channels, cell_dims=3, silu=True)
        norm.gamma.copy_(torch.randn_like(norm.gamma))
        x = torch.randn(2, channels, frames, 6, 10)
        torch.testing.assert_close(norm.compute_fast(x, Fast(norm="compile")), norm(x))
        window = torch.zeros(2, channels, frames + 2, 6, 10)
        norm.compute_into(window[:, :, 2:], x, Fast(norm="compile"))
        torch.testing.assert_close(window[:, :, 2:], norm(x))
        assert not window[:, :, :2].any()


def test_the_triton_kernel_is_not_imported_unless_used(world):
    like(world[0], "auto").decode(world[2])
    assert "remapkit.plugins.wan.kernel" not in sys.modules or fast_module.has_triton()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_on_cuda(world, relative_error, dtype):
    """The real graphs and the real kernel, twice: recorded in the first video, replayed in the second."""
    vae, video, latent, encoded, decoded = world
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    quick = copy.deepcopy(vae).optimize("auto").cuda().to(dtype)
    for _ in range(2):
        assert relative_error(quick.decode(latent.cuda()).float().cpu(), decoded) < tolerance
        assert relative_error(quick.encode(video.cuda()).float().cpu(), encoded) < tolerance
    assert all(arena.is_recorded for arena in quick._graphs.arenas.values())
