"""Wrong use, and what is said about it."""

from __future__ import annotations

import pytest
import torch
from remapkit.plugins.wan.vae import (
    Tiling,
    Wan21VAE,
    WanCache,
    WanCacheError,
    WanInputError,
    WanNotLoadedError,
    WanVAE,
)

from tests.numbers_kit import computed_alike

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def vae(randomise):
    return randomise(WanVAE(dim=4, dec_dim=4), 0)


def video(*shape, dtype=torch.float32, value=0.0):
    return torch.full(shape, value, dtype=dtype)


def with_value(x, index, value):
    x[index] = value
    return x


WRONG_VIDEOS = {
    "rank": (video(3, 5, 32, 32), "it has 4 dimensions, expected 5: [batch, channels, frames, height, width]"),
    "channels": (video(1, 4, 5, 32, 32), "it has 4 channels, expected 3"),
    "swapped": (video(1, 5, 3, 32, 32), "5 channels, expected 3 (dimension 2 has: frames and channels look swapped)"),
    "frames": (video(1, 3, 4, 32, 32), "4 frames do not start a video: expected 1 + 4k (1, 5, 9, ...)"),
    "no frames": (video(1, 3, 0, 32, 32), "0 frames do not start a video"),
    "height": (video(1, 3, 5, 40, 32), "height 40 is not a multiple of 16 (nearest: 32 or 48)"),
    "width": (video(1, 3, 5, 32, 8), "width 8 is not a multiple of 16 (nearest: 16)"),
    "no height": (video(1, 3, 5, 0, 32), "height 0 is not a multiple of 16"),
    "empty batch": (video(0, 3, 5, 32, 32), "the batch is empty"),
    "bytes": (
        video(1, 3, 5, 32, 32, dtype=torch.uint8),
        "its dtype must be floating, got torch.uint8; convert bytes with x.float() / 127.5 - 1",
    ),
    "device": (torch.zeros(1, 3, 5, 32, 32, device="meta"), "it is on meta but the model is on cpu"),
    "range": (video(1, 3, 1, 32, 32, value=255.0), "values from 255 to 255, expected [-1, 1]"),
    "nan": (
        with_value(video(1, 3, 1, 32, 32), (0, 2, 0, 7, 9), NAN),
        "1 values that are NaN or infinite, the first at [b, c, t, h, w] = [0, 2, 0, 7, 9]",
    ),
    "inf": (with_value(video(1, 3, 1, 32, 32), (0, 0, 0, 0, 1), -INF), "= [0, 0, 0, 0, 1]"),
}

WRONG_LATENTS = {
    "rank": (video(48, 2, 2, 2), "it has 4 dimensions, expected 5"),
    "channels": (video(1, 16, 2, 2, 2), "it has 16 channels, expected 48"),
    "swapped": (video(1, 2, 48, 2, 2), "frames and channels look swapped"),
    "no frames": (video(1, 48, 0, 2, 2), "it has no frames"),
    "no width": (video(1, 48, 1, 2, 0), "its frames are empty"),
    "empty batch": (video(0, 48, 1, 2, 2), "the batch is empty"),
    "integers": (video(1, 48, 1, 2, 2, dtype=torch.int64), "its dtype must be floating, got torch.int64"),
    "device": (torch.zeros(1, 48, 1, 2, 2, device="meta"), "it is on meta but the model is on cpu"),
    "nan": (with_value(video(1, 48, 2, 2, 2), (0, 47, 1, 0, 1), NAN), "= [0, 47, 1, 0, 1]"),
}


@pytest.mark.parametrize(("x", "words"), WRONG_VIDEOS.values(), ids=WRONG_VIDEOS)
def test_wrong_videos(vae, x, words):
    with pytest.raises(WanInputError) as caught:
        vae.encode(x)
    assert words in str(caught.value)


@pytest.mark.parametrize(("x", "words"), WRONG_LATENTS.values(), ids=WRONG_LATENTS)
def test_wrong_latents(vae, x, words):
    for use in (vae.decode, vae.iter_decode):
        with pytest.raises(WanInputError) as caught:
            use(x)
        assert words in str(caught.value)


def test_all_problems_are_told_at_once(vae):
    with pytest.raises(WanInputError) as caught:
        vae.encode(video(1, 1, 6, 40, 20, dtype=torch.int32))
    message = str(caught.value)
    words = ["[1, 1, 6, 40, 20]", "1 channels", "6 frames", "height 40", "width 20 ", "torch.int32"]
    assert [word for word in words if word not in message] == []


def test_a_video_is_continued_by_whole_chunks(vae):
    cache = WanCache()
    vae.encode(video(1, 3, 1, 32, 32), cache)
    with pytest.raises(WanInputError, match=r"5 frames do not continue a video: after the first call expected 4k"):
        vae.encode(video(1, 3, 5, 32, 32), cache)


def test_the_rule_of_the_other_generation():
    with pytest.raises(WanInputError, match=r"height 20 is not a multiple of 8 \(nearest: 16 or 24\)"):
        Wan21VAE(dim=2, dec_dim=2).encode(video(1, 3, 1, 20, 24))


def test_a_slight_overshoot_is_no_error(vae):
    vae.encode(video(1, 3, 1, 16, 16, value=1.3))


def test_finite_values_need_not_be_looked_for(vae):
    assert vae.encode(video(1, 3, 1, 16, 16, value=NAN), check_finite=False).isnan().all()
    assert vae.decode(video(1, 48, 1, 1, 1, value=NAN), check_finite=False).isnan().all()
    assert next(vae.iter_decode(video(1, 48, 1, 1, 1, value=NAN), check_finite=False)).isnan().all()


def test_what_is_no_tensor(vae):
    with pytest.raises(TypeError, match=r"video must be a torch\.Tensor, got list"):
        vae.encode([1.0])
    with pytest.raises(TypeError, match=r"latent must be a torch\.Tensor, got NoneType"):
        vae.decode(None)


def test_what_is_no_cache(vae):
    with pytest.raises(TypeError, match="cache must be a WanCache or None, got dict"):
        vae.encode(video(1, 3, 1, 16, 16), {})


def start(vae, **call):
    cache = WanCache()
    vae.decode(video(1, 48, 1, 2, 2), cache, **call)
    return cache


def test_a_cache_of_another_model(vae, randomise):
    twin = randomise(WanVAE(dim=4, dec_dim=4), 0)
    words = r"another model instance \(WanVAE\(dim=4, dec_dim=4, z_dim=48\)\), not by this WanVAE\(dim=4"
    with pytest.raises(WanCacheError, match=words):
        twin.decode(video(1, 48, 1, 2, 2), start(vae))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 48, 1, 2, 3), "it holds frames of 32x32, this call has 32x48"),
        ((2, 48, 1, 2, 2), "it holds a batch of 1, this call has 2"),
        ((3, 48, 1, 1, 2), "a batch of 1, this call has 3; it holds frames of 32x32, this call has 16x32"),
    ],
)
def test_a_cache_of_another_size(vae, shape, words):
    with pytest.raises(WanCacheError) as caught:
        vae.decode(video(*shape), start(vae))
    assert words in str(caught.value)
    assert "call reset()" in str(caught.value)


def test_a_cache_of_another_size_in_the_other_direction(vae):
    cache = WanCache()
    vae.encode(video(1, 3, 1, 32, 32), cache)
    with pytest.raises(WanCacheError, match=r"it holds frames of 32x32, this call has 32x48"):
        vae.encode(video(1, 3, 4, 32, 48), cache)
    vae.encode(video(1, 3, 4, 32, 32), cache)
    assert cache.encoding.chunks == 2


def test_a_cache_of_the_other_generation(vae, randomise):
    other = randomise(Wan21VAE(dim=2, dec_dim=2), 0)
    cache = WanCache()
    other.encode(video(1, 3, 1, 32, 32), cache)
    words = r"another model instance \(Wan21VAE\(dim=2, dec_dim=2, z_dim=16\)\), not by this WanVAE\(dim=4"
    with pytest.raises(WanCacheError, match=words):
        vae.encode(video(1, 3, 4, 32, 32), cache)


def test_a_latent_of_the_other_generation(vae):
    latent = Wan21VAE(dim=2, dec_dim=2).encode(video(1, 3, 1, 32, 32))
    with pytest.raises(WanInputError, match="it has 16 channels, expected 48"):
        vae.decode(latent)


def test_nan_in_a_later_call_leaves_the_video_whole(vae):
    cache, wanted = WanCache(), WanCache()
    later = torch.rand(1, 3, 4, 32, 32)
    for each in (cache, wanted):
        vae.encode(video(1, 3, 1, 32, 32), each)
    with pytest.raises(WanInputError, match="NaN or infinite"):
        vae.encode(with_value(later.clone(), (0, 1, 2, 3, 4), NAN), cache)
    assert computed_alike(vae.encode(later, cache), vae.encode(later, wanted))


def test_a_half_model_says_which_half_it_has_not(randomise):
    encoder, decoder = WanVAE(dim=4, dec_dim=4, decoder=False), WanVAE(dim=4, dec_dim=4, encoder=False)
    with pytest.raises(WanNotLoadedError, match="built with decoder=False: it cannot decode"):
        encoder.decode(video(1, 48, 1, 2, 2))
    with pytest.raises(WanNotLoadedError, match="built with encoder=False: it cannot encode"):
        decoder.encode(video(1, 3, 1, 32, 32))


def test_a_cache_of_another_dtype(randomise):
    vae = randomise(WanVAE(dim=4, dec_dim=4), 0)
    cache = start(vae)
    with pytest.raises(WanCacheError, match=r"filled in torch.float32, the model computes in torch.bfloat16 now"):
        vae.bfloat16().decode(video(1, 48, 1, 2, 2), cache)


def test_a_cache_of_another_tiling(vae):
    tiling = Tiling(height=16, width=32, overlap=0)
    with pytest.raises(WanCacheError, match=r"filled in 2 tile\(s\), this call has another tiling"):
        vae.decode(video(1, 48, 1, 2, 2), start(vae, tiling=tiling))
    with pytest.raises(WanCacheError, match="another tiling"):
        other = Tiling(height=16, width=32, overlap=0, whole_stages=2)
        vae.decode(video(1, 48, 1, 2, 2), start(vae, tiling=tiling), tiling=other)


def test_a_model_without_weights():
    with torch.device("meta"):
        vae = WanVAE()
    with pytest.raises(WanNotLoadedError) as caught:
        vae.encode(video(1, 3, 1, 16, 16))
    assert "86 of the 86 weights needed are on meta, without data: encoder.conv1.weight" in str(caught.value)
    assert "load_state_dict(..., strict=True, assign=True)" in str(caught.value)


def test_a_model_loaded_in_part(vae):
    with torch.device("meta"):
        partly = WanVAE(dim=4, dec_dim=4)
    fqn = "decoder.upsamples.2.resnets.1.residual.6.bias"
    partly.load_state_dict({k: v for k, v in vae.state_dict().items() if k != fqn}, strict=False, assign=True)
    with pytest.raises(WanNotLoadedError, match=f"1 of the 110 weights needed are on meta, without data: {fqn}"):
        partly.decode(video(1, 48, 1, 2, 2))
    partly.encode(video(1, 3, 1, 16, 16))


def test_weights_in_two_dtypes(randomise):
    vae = randomise(WanVAE(dim=4, dec_dim=4), 0)
    vae.encoder.middle.bfloat16()
    with pytest.raises(WanNotLoadedError, match=r"spread over several dtypes: .* on torch.float32 .*Use \.to"):
        vae.encode(video(1, 3, 1, 16, 16))


def test_gammas_may_stay_in_fp32(randomise):
    vae, reference = (randomise(WanVAE(dim=4, dec_dim=4), 0).bfloat16() for _ in range(2))
    for name, p in vae.named_parameters():
        if name.endswith("gamma"):
            p.data = p.data.float()
    x = torch.rand(1, 3, 1, 16, 16)
    assert computed_alike(vae.encode(x), reference.encode(x))


def test_inputs_of_another_floating_dtype_are_cast(randomise):
    vae = randomise(WanVAE(dim=4, dec_dim=4), 0).bfloat16()
    x = torch.rand(1, 3, 5, 16, 16)
    assert computed_alike(vae.encode(x), vae.encode(x.bfloat16()))
    z = torch.randn(1, 48, 2, 1, 1)
    assert computed_alike(vae.decode(z), vae.decode(z.bfloat16()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_tensors_to_a_cuda_model(randomise):
    vae = randomise(WanVAE(dim=4, dec_dim=4), 0).cuda()
    with pytest.raises(WanInputError, match="it is on cpu but the model is on cuda:0"):
        vae.encode(video(1, 3, 1, 16, 16))
    vae.encoder.head.cpu()
    with pytest.raises(WanNotLoadedError, match="spread over several devices"):
        vae.encode(video(1, 3, 1, 16, 16).cuda())
