"""Frames decoded in tiles: the same picture, up to a seam that is measured."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from remapkit.plugins.wan import tiling as module
from remapkit.plugins.wan.tiling import split_axis
from remapkit.plugins.wan.vae import Tiling, Wan21VAE, WanCache, WanVAE

from tests.numbers_kit import computed_alike


@st.composite
def axes(draw):
    tile = draw(st.integers(1, 12))
    return draw(st.integers(1, 60)), tile, draw(st.integers(0, tile // 2)), draw(st.sampled_from([1, 8, 16]))


@given(axes())
@settings(max_examples=300, deadline=None)
def test_tiles_cover_an_axis_and_their_weights_add_up_to_one(axis):
    length, tile, overlap, factor = axis
    parts = split_axis(length, tile, overlap, factor)
    assert (parts[0].start, parts[-1].stop) == (0, length)
    assert {part.stop - part.start for part in parts} == {min(tile, length)}
    for before, after in pairwise(parts):
        assert before.start < after.start
        assert before.stop - after.start >= overlap
    total = torch.zeros(length * factor, dtype=torch.float64)
    for part in parts:
        total[part.scale_slice(factor)] += torch.tensor(part.weights, dtype=torch.float64)
        assert min(part.weights) >= 0
    assert torch.allclose(total, torch.ones_like(total), atol=1e-12)


@given(axes())
@settings(max_examples=300, deadline=None)
def test_no_more_tiles_than_needed(axis):
    length, tile, overlap, factor = axis
    count = len(split_axis(length, tile, overlap, factor))
    assert count == 1 or (count - 1) * (tile - overlap) + overlap < length


@given(axes())
@settings(max_examples=300, deadline=None)
def test_what_is_near_a_cut_does_not_count(axis):
    """The outer 3/8 of what two neighbours share comes from the other tile alone."""
    length, tile, overlap, factor = axis
    parts = split_axis(length, tile, overlap, factor)
    for before, after in pairwise(parts):
        margin = (before.stop - after.start) * factor * 3 // 8
        assert not any(after.weights[:margin])
        assert not any(before.weights[len(before.weights) - margin :])


@pytest.fixture(scope="module")
def vae(golden_state):
    vae = WanVAE(dim=8, dec_dim=12).eval().requires_grad_(False)
    vae.load_state_dict(golden_state)
    return vae


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def latent():
    """Six tiles of `TILING`."""
    return noise(1, 48, 2, 7, 14)


@pytest.fixture(scope="module")
def untiled(vae, latent):
    with torch.no_grad():
        return vae.decode(latent)


def seam_error(vae, tiling, relative_error):
    """The error of a strip of three tiles that share exactly `tiling.overlap` pixels."""
    tile, shared = tiling.width // 16, tiling.overlap // 16
    latent = noise(1, 48, 2, 4, 3 * tile - 2 * shared)
    assert [t.box[2:] for t in tiling.tiles(4, latent.shape[-1], vae.config)] == [
        (start, start + tile) for start in (0, tile - shared, 2 * (tile - shared))
    ]
    return relative_error(vae.decode(latent, tiling=tiling), vae.decode(latent))


# whole_stages, overlap, the relative error allowed with tiles 128 pixels wide
SEAMS = [
    (0, 0, 0.5),
    (0, 32, 0.2),
    (0, 64, 0.1),
    (1, 0, 0.4),
    (1, 32, 5e-2),
    (1, 64, 5e-3),
    (2, 32, 5e-3),
    (2, 64, 5e-5),
]
SEAMS += [(3, 0, 0.2), (3, 32, 2e-5), (3, 64, 1e-6)]


@pytest.mark.parametrize(("whole_stages", "overlap", "allowed"), SEAMS)
def test_seams(vae, relative_error, whole_stages, overlap, allowed):
    tiling = Tiling(height=128, width=128, overlap=overlap, whole_stages=whole_stages)
    error = seam_error(vae, tiling, relative_error)
    assert allowed / 10 < error < allowed or error < 1e-6


@pytest.mark.parametrize(("whole_stages", "overlap"), [(0, 576), (1, 256), (2, 128)])
def test_beyond_the_reach_of_the_convolutions_there_is_no_seam(vae, relative_error, whole_stages, overlap):
    tiling = Tiling(height=2 * overlap, width=2 * overlap, overlap=overlap, whole_stages=whole_stages)
    assert seam_error(vae, tiling, relative_error) < 1e-6


def test_a_ramp_over_the_whole_overlap_is_caught(vae, relative_error, monkeypatch):
    """The usual blending lets in what the border spoilt."""
    tiling = Tiling(height=128, width=128, overlap=64)
    good = seam_error(vae, tiling, relative_error)
    monkeypatch.setattr(module, "_weigh_pixel", lambda pixel, overlap: min(1.0, (pixel + 0.5) / max(overlap, 1)))
    assert seam_error(vae, tiling, relative_error) > 5 * good


def test_a_frame_that_fits_is_not_touched(vae, latent, untiled):
    tiling = Tiling(height=112, width=512, overlap=48)
    cache = WanCache()
    assert computed_alike(vae.decode(latent[:, :, :1], cache, tiling=tiling), untiled[:, :, :1])
    assert computed_alike(vae.decode(latent[:, :, 1:], cache), untiled[:, :, 1:])  # it counts as no tiling


TILING = Tiling(height=64, width=96, overlap=16)


def test_tiles_and_streaming(vae, latent):
    """At once, in calls, as frames come: bitwise the same tiles."""
    at_once, cache = vae.decode(latent, tiling=TILING), WanCache()
    calls = [vae.decode(frame, cache, tiling=TILING) for frame in latent.split(1, dim=2)]
    assert computed_alike(torch.cat(calls, dim=2), at_once)
    assert computed_alike(torch.cat(list(vae.iter_decode(latent, tiling=TILING)), dim=2), at_once)
    fork = cache.clone()
    assert computed_alike(vae.decode(latent, cache, tiling=TILING), vae.decode(latent, fork, tiling=TILING))


def test_without_a_cache_only_one_tile_is_remembered(vae, latent, monkeypatch):
    held = []
    finish = WanVAE._finish_chunk

    def watched(self, h_BCTHW, stages, stream):
        out = finish(self, h_BCTHW, stages, stream)
        held.append(stream)
        return out

    monkeypatch.setattr(WanVAE, "_finish_chunk", watched)
    vae.decode(latent, tiling=TILING)
    tiles = len(TILING.tiles(7, 14, vae.config))
    assert tiles == 6
    # Both chunks of a tile before the next tile begins.
    assert [held[2 * i] is held[2 * i + 1] for i in range(tiles)] == [True] * tiles
    assert len({id(stream) for stream in held}) <= tiles


def test_clamping_tiles(vae, latent):
    tiled = vae.decode(latent, tiling=TILING)
    assert tiled.abs().max() > 1
    assert computed_alike(vae.decode(latent, tiling=TILING, clamp=True), tiled.clamp(-1, 1))


def test_tiles_of_the_other_generation(randomise, relative_error):
    vae = randomise(Wan21VAE(dim=4, dec_dim=4), 1)
    latent = torch.randn(1, 16, 2, 9, 20, generator=torch.Generator().manual_seed(3))
    tiled = vae.decode(latent, tiling=Tiling(height=72, width=96, overlap=32))
    assert relative_error(tiled, vae.decode(latent)) < 1e-2


def test_tiles_in_bf16(vae, latent, relative_error):
    whole = WanVAE(dim=8, dec_dim=12).bfloat16()
    whole.load_state_dict(vae.state_dict())
    tiled = whole.decode(latent, tiling=TILING)
    assert tiled.dtype == torch.bfloat16
    assert relative_error(tiled, vae.decode(latent, tiling=TILING)) < 2e-2


def test_gradients_through_tiles(vae, latent, relative_error):
    grads = []
    for tiling in (None, Tiling(height=96, width=96, overlap=48, whole_stages=3)):
        z = latent.clone().requires_grad_()
        with torch.enable_grad():
            vae.decode(z, tiling=tiling).square().sum().backward()
        grads.append(z.grad)
    assert relative_error(*grads) < 1e-5


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"height": 0}, "height must be a whole number of pixels, got 0"),
        ({"width": 100.0, "overlap": -16}, "width must .* got 100.0; overlap must .* got -16"),
        ({"overlap": 272}, "overlap=272 is more than half of a tile of 512x512"),
        ({"whole_stages": -1}, "whole_stages must be a number of stages, got -1"),
    ],
)
def test_tilings_that_are_not_possible(settings_, words):
    with pytest.raises(ValueError, match=words):
        Tiling(**settings_)


def test_tilings_that_do_not_fit_the_model(vae, latent):
    words = (
        "height=136 is not a multiple of 16; overlap=40 is not a multiple of 16; whole_stages=4 leaves no stage of 4"
    )
    with pytest.raises(ValueError, match=words):
        vae.decode(latent, tiling=Tiling(height=136, overlap=40, whole_stages=4))
