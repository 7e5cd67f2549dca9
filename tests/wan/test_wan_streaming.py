"""A video coded in pieces is the video coded at once, to the last bit; and what the cache does besides."""

from __future__ import annotations

import copy
import gc
import weakref
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from remapkit.plugins.wan.cache import Stream
from remapkit.plugins.wan.vae import Wan21VAE, WanCache, WanCacheError, WanVAE

from tests.numbers_kit import computed_alike

GENERATIONS = {
    "2.2": (lambda **halves: WanVAE(dim=8, dec_dim=12, **halves), 16),
    "2.1": (lambda **halves: Wan21VAE(dim=4, dec_dim=4, **halves), 8),
}
CHUNKS = 4


@pytest.fixture(scope="module", params=list(GENERATIONS))
def world(request, randomise):
    """A model, a video of four chunks, its latent and the decoded latent, each made at once."""
    build, factor = GENERATIONS[request.param]
    vae = randomise(build(), 3)
    shape = (2, 3, 1 + 4 * (CHUNKS - 1), 2 * factor, 3 * factor)
    video = torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        latent = vae.encode(video)
        return vae, video, latent, vae.decode(latent)


def frames_before(chunk):
    return max(0, 1 + 4 * (chunk - 1))


def pieces(video, cuts):
    """The video cut before the given chunks."""
    bounds = [0, *sorted(cuts), CHUNKS]
    return [video[:, :, frames_before(a) : frames_before(b)] for a, b in pairwise(bounds)]


cuts = st.sets(st.integers(1, CHUNKS - 1))


def encode_in_pieces(vae, video, where, cache=None):
    cache = WanCache() if cache is None else cache
    return torch.cat([vae.encode(piece, cache) for piece in pieces(video, where)], dim=2)


def decode_in_pieces(vae, latent, where):
    cache, bounds = WanCache(), [0, *sorted(where), CHUNKS]
    parts = [latent[:, :, a:b] for a, b in pairwise(bounds)]
    return torch.cat([vae.decode(part, cache) for part in parts], dim=2)


@given(where=cuts)
@settings(max_examples=8, deadline=None)
def test_encoding_in_pieces_is_encoding_at_once(world, where):
    vae, video, latent, _ = world
    assert computed_alike(encode_in_pieces(vae, video, where), latent)


@given(where=cuts)
@settings(max_examples=8, deadline=None)
def test_decoding_in_pieces_is_decoding_at_once(world, where):
    vae, _, latent, decoded = world
    assert computed_alike(decode_in_pieces(vae, latent, where), decoded)


@given(where=cuts, data=st.data())
@settings(max_examples=6, deadline=None)
def test_the_past_does_not_see_the_future(world, where, data):
    """Causality, which is what makes pieces possible: a change in chunk n leaves all chunks before it as they are."""
    vae, video, latent, decoded = world
    n = data.draw(st.integers(1, CHUNKS - 1))
    other_video, other_latent = video.clone(), latent.clone()
    other_video[:, :, frames_before(n) :] *= -1
    other_latent[:, :, n:] *= -1
    assert computed_alike(encode_in_pieces(vae, other_video, where)[:, :, :n], latent[:, :, :n])
    assert computed_alike(vae.decode(other_latent)[:, :, : frames_before(n)], decoded[:, :, : frames_before(n)])
    assert not computed_alike(encode_in_pieces(vae, other_video, where), latent)


def test_a_stream_that_forgets_is_caught(world, monkeypatch):
    vae, video, latent, decoded = world
    vae = copy.deepcopy(vae).optimize("off")
    extend = Stream.extend

    def forgetful(self, slot, x_BCTHW, frames):
        joined = extend(self, slot, x_BCTHW, frames)
        if slot.endswith("head.2"):
            self.histories[slot] = torch.zeros_like(self.histories[slot])
        return joined

    monkeypatch.setattr(Stream, "extend", forgetful)
    assert not computed_alike(encode_in_pieces(vae, video, {1, 2}), latent)
    assert not computed_alike(decode_in_pieces(vae, latent, {1, 2}), decoded)


def test_a_stream_that_does_not_know_the_first_chunk_is_caught(world, monkeypatch):
    """Starting anew at every call codes each piece as if it were the start of a video."""
    vae, video, latent, _ = world
    parts = [video[:, :, :1], video[:, :, 1:6]]
    assert not computed_alike(torch.cat([vae.encode(part) for part in parts], dim=2)[:, :, 1:], latent[:, :, 1:3])


def test_memory_layout_of_the_input_does_not_matter(world):
    vae, video, latent, decoded = world
    assert computed_alike(vae.encode(video.transpose(1, 2).contiguous().transpose(1, 2)), latent)
    assert computed_alike(vae.encode(video.contiguous(memory_format=torch.channels_last_3d)), latent)
    assert computed_alike(vae.decode(latent.contiguous(memory_format=torch.channels_last_3d)), decoded)


def test_a_batch_is_its_videos(world, relative_error):
    vae, video, latent, decoded = world
    for i in range(len(video)):
        assert relative_error(vae.encode(video[i : i + 1]), latent[i : i + 1]) < 1e-5
        assert relative_error(vae.decode(latent[i : i + 1]), decoded[i : i + 1]) < 1e-5


def test_frames_come_as_they_are_ready(world):
    vae, _, latent, decoded = world
    chunks = list(vae.iter_decode(latent))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4, 4]
    assert computed_alike(torch.cat(chunks, dim=2), decoded)


def test_frames_of_latents_that_are_made_meanwhile(world):
    vae, _, latent, decoded = world
    made = []

    def latents():
        for t in range(CHUNKS):
            made.append(t)
            yield latent[:, :, t : t + 1]

    stream = vae.iter_decode(latents())
    assert made == []
    first = next(stream)
    assert made == [0]
    assert computed_alike(torch.cat([first, *stream], dim=2), decoded)


def test_leaving_the_iteration_and_continuing(world):
    vae, _, latent, decoded = world
    cache = WanCache()
    chunks = list(islice(vae.iter_decode(latent, cache), 2))
    assert cache.decoding.chunks == 2
    assert computed_alike(torch.cat([*chunks, vae.decode(latent[:, :, 2:], cache)], dim=2), decoded)


def test_a_tensor_is_checked_before_the_first_frame_is_asked_for(world):
    vae, _, latent, _ = world
    with pytest.raises(ValueError, match="channels"):
        vae.iter_decode(latent[:, 1:])


def test_clamping(world):
    vae, _, latent, decoded = world
    assert decoded.abs().max() > 1
    assert computed_alike(vae.decode(latent, clamp=True), decoded.clamp(-1, 1))
    assert computed_alike(torch.cat(list(vae.iter_decode(latent, clamp=True)), dim=2), decoded.clamp(-1, 1))


def test_one_cache_serves_both_directions(world):
    vae, video, latent, decoded = world
    cache, made, seen = WanCache(), [], []
    for piece in pieces(video, {1, 2, 3}):
        made.append(vae.encode(piece, cache))
        seen.append(vae.decode(made[-1], cache))
    assert computed_alike(torch.cat(made, dim=2), latent)
    assert computed_alike(torch.cat(seen, dim=2), decoded)


def test_reset_starts_anew(world):
    vae, video, latent, _ = world
    cache = WanCache()
    vae.encode(video, cache)
    assert cache.nbytes > 0
    assert cache.reset() is cache
    assert cache.nbytes == 0
    assert computed_alike(vae.encode(video, cache), latent)
    vae.encode(video[:1, :, :1], cache.reset())  # another batch, too


def test_a_clone_continues_by_itself(world):
    vae, video, latent, decoded = world
    cache = WanCache()
    vae.encode(video[:, :, :5], cache)
    vae.decode(latent[:, :, :2], cache)
    fork = cache.clone()
    vae.encode(-video[:, :, 5:], fork)
    vae.decode(-latent[:, :, 2:], fork)
    assert (fork.encoding.chunks, cache.encoding.chunks) == (CHUNKS, 2)
    assert computed_alike(vae.encode(video[:, :, 5:], cache), latent[:, :, 2:])
    assert computed_alike(vae.decode(latent[:, :, 2:], cache), decoded[:, :, 5:])


def test_a_cache_moves_whole(world):
    vae, video, _, _ = world
    cache = WanCache()
    vae.decode(vae.encode(video[:, :, :1], cache), cache)
    kept = [h.shape for r in (cache.encoding, cache.decoding) for h in r.histories()]
    assert cache.to("meta") is cache
    assert {h.device.type for r in (cache.encoding, cache.decoding) for h in r.histories()} == {"meta"}
    assert [h.shape for r in (cache.encoding, cache.decoding) for h in r.histories()] == kept
    with pytest.raises(WanCacheError, match=r"it is on meta, the model on cpu: move it with cache\.to\('cpu'\)"):
        vae.encode(video[:, :, 1:5], cache)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_rollout_parked_on_the_cpu_continues_on_cuda(world):
    vae, video, _, _ = world
    vae, video = copy.deepcopy(vae).cuda(), video.cuda()
    cache, parked = WanCache(), WanCache()
    vae.encode(video[:, :, :5], cache)
    vae.encode(video[:, :, :5], parked)
    parked.to("cpu").to("cuda")
    assert computed_alike(vae.encode(video[:, :, 5:], parked), vae.encode(video[:, :, 5:], cache))


def test_a_cache_holds_only_what_it_says(world):
    """Not the chunks that the remembered frames were cut from, and not the model."""
    vae, video, latent, _ = world
    cache = WanCache()
    vae.encode(video, cache)
    vae.decode(latent, cache)
    histories = [*cache.encoding.histories(), *cache.decoding.histories()]
    assert sum(history.untyped_storage().nbytes() for history in histories) == cache.nbytes
    assert f"{cache.nbytes / 2**20:.1f} MiB" in repr(cache)
    model = copy.deepcopy(vae)
    other = WanCache()
    model.encode(video, other)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_the_memory_does_not_grow_with_the_video(world):
    vae, video, _, _ = world
    cache, sizes = WanCache(), []
    for piece in pieces(video, {1, 2, 3}):
        vae.encode(piece, cache)
        sizes.append(cache.nbytes)
    assert sizes[1:] == [sizes[1]] * 3


def test_a_call_that_fails_half_way_leaves_a_cache_that_says_so(world, monkeypatch):
    vae, video, latent, decoded = world
    cache = WanCache()
    vae.encode(video[:, :, :5], cache)
    vae.decode(latent[:, :, :2], cache)
    before = cache.clone()
    with monkeypatch.context() as patch:
        for half in (vae.encoder, vae.decoder):
            patch.setattr(half.head, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vae.encode(video[:, :, 5:9], cache)
        with pytest.raises(ZeroDivisionError):
            vae.decode(latent[:, :, 2:3], cache)
    with pytest.raises(WanCacheError, match="failed half-way"):
        vae.encode(video[:, :, 5:9], cache)
    with pytest.raises(WanCacheError, match="failed half-way"):
        vae.decode(latent[:, :, 2:3], cache)
    assert computed_alike(vae.encode(video[:, :, 5:], before), latent[:, :, 2:])
    assert computed_alike(vae.decode(latent[:, :, 2:], before), decoded[:, :, 5:])
    assert computed_alike(vae.encode(video, cache.reset()), latent)


def test_a_call_that_is_refused_leaves_the_cache_as_it_was(world):
    vae, video, latent, _ = world
    cache = WanCache()
    vae.encode(video[:, :, :5], cache)
    bad = video[:, :, 5:9].clone()
    bad[0, 0, 2, 3, 4] = float("nan")
    for refused in (bad, video[:, :, 5:8], video[:1, :, 5:9], video[:, :2, 5:9]):
        with pytest.raises(ValueError):
            vae.encode(refused, cache)
    assert computed_alike(vae.encode(video[:, :, 5:], cache), latent[:, :, 2:])


def test_gradients_stay_within_a_call(world):
    vae, video, latent, decoded = world
    cache = WanCache()
    x, z = video.clone().requires_grad_(), latent.clone().requires_grad_()
    with torch.enable_grad():
        first = vae.encode(x[:, :, :5], cache)
        out = vae.decode(z[:, :, :2], cache)
        chunks = list(vae.iter_decode(z))
    assert first.requires_grad and out.requires_grad and all(chunk.requires_grad for chunk in chunks)
    assert not any(h.requires_grad for r in (cache.encoding, cache.decoding) for h in r.histories())
    assert computed_alike(out, decoded[:, :, :5])


def test_inference_mode_and_autograd_take_turns(world):
    vae, video, latent, _ = world
    vae, cache = copy.deepcopy(vae).requires_grad_(True), WanCache()
    with torch.inference_mode():
        vae.encode(video[:, :, :5], cache)
    with torch.enable_grad():
        later = vae.encode(video[:, :, 5:], cache)
        later.sum().backward()
    assert computed_alike(later, latent[:, :, 2:])


@pytest.mark.parametrize("generation", list(GENERATIONS))
def test_one_half_alone(generation, world, randomise):
    """Built, loaded and used without the other half being anywhere, also as a whole model half on meta."""
    build, factor = GENERATIONS[generation]
    whole = randomise(build(), 3)
    video = torch.rand(1, 3, 5, factor, 2 * factor)
    latent = whole.encode(video)
    for name, other in (("encoder", "decoder"), ("decoder", "encoder")):
        own = {
            k: v
            for k, v in whole.state_dict().items()
            if k.split(".")[0] in (name, {"encoder": "conv1"}.get(name, "conv2"))
        }
        with torch.device("meta"):
            half, partly = build(**{other: False}), build()
        half.load_state_dict(own, strict=True, assign=True)
        partly.load_state_dict(own, strict=False, assign=True)
        for vae in (half, partly):
            if name == "encoder":
                assert computed_alike(vae.encode(video), latent)
            else:
                assert computed_alike(vae.decode(latent), whole.decode(latent))
        missing = "cannot decode" if name == "encoder" else "cannot encode"
        with pytest.raises(RuntimeError, match=missing):
            half(video) if name == "decoder" else half.decode(latent)
        with pytest.raises(RuntimeError, match="are on meta"):
            partly.encode(video) if name == "decoder" else partly.decode(latent)
