"""The same numbers as upstream's own code, on upstream's own layout."""

from __future__ import annotations

import pytest
import torch
from remapkit.plugins.wan import vae as wan
from remapkit.plugins.wan.vae import WanCache, WanVAE

CASES = ["1x32x48", "5x32x48", "9x48x32", "17x32x32"]
TOLERANCE = 1e-4


def load(state):
    with torch.device("meta"):
        vae = WanVAE(dim=8, dec_dim=12)
    vae.load_state_dict(state, strict=True, assign=True)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae(golden_state):
    return load(golden_state)


def test_every_golden_video_is_a_case(golden):
    assert {key.split("_", 1)[1] for key in golden} == set(CASES)


def test_nothing_is_left_on_meta(vae):
    assert not [name for name, t in [*vae.named_parameters(), *vae.named_buffers()] if t.is_meta]


@pytest.mark.parametrize("case", CASES)
def test_at_once(vae, golden, relative_error, case):
    latent = vae.encode(golden[f"video_{case}"])
    assert relative_error(latent, golden[f"latent_{case}"]) < TOLERANCE
    assert relative_error(vae.decode(golden[f"latent_{case}"]), golden[f"decoded_{case}"]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_chunk_by_chunk(vae, golden, relative_error, case):
    first, *rest = (golden[f"video_{case}"][:, :, :1], *golden[f"video_{case}"][:, :, 1:].split(4, dim=2))
    cache = WanCache()
    latent = torch.cat([vae.encode(chunk, cache) for chunk in (first, *rest) if chunk.numel()], dim=2)
    assert relative_error(latent, golden[f"latent_{case}"]) < TOLERANCE
    frames = [vae.decode(frame, cache) for frame in golden[f"latent_{case}"].split(1, dim=2)]
    assert [chunk.shape[2] for chunk in frames] == [1] + [4] * (len(frames) - 1)
    assert relative_error(torch.cat(frames, dim=2), golden[f"decoded_{case}"]) < TOLERANCE


def swapped(state, one, other):
    return {**state, one: state[other], other: state[one]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("encoder.downsamples.0.resnets.1.residual.0.gamma", "encoder.downsamples.0.resnets.1.residual.3.gamma"),
        ("encoder.middle.0.residual.2.weight", "encoder.middle.2.residual.2.weight"),
        ("encoder.downsamples.1.downsampler.time_conv.bias", "encoder.downsamples.1.downsampler.resample.1.bias"),
    ],
)
def test_a_swap_of_two_tensors_in_the_encoder_shows(golden, golden_state, relative_error, one, other):
    planted = load(swapped(golden_state, one, other))
    assert relative_error(planted.encode(golden["video_5x32x48"]), golden["latent_5x32x48"]) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("decoder.upsamples.0.resnets.1.residual.0.gamma", "decoder.upsamples.0.resnets.1.residual.3.gamma"),
        ("decoder.upsamples.1.resnets.0.residual.2.bias", "decoder.upsamples.1.resnets.2.residual.6.bias"),
        ("decoder.upsamples.0.upsampler.time_conv.weight", "decoder.upsamples.1.upsampler.time_conv.weight"),
    ],
)
def test_a_swap_of_two_tensors_in_the_decoder_shows(golden, golden_state, relative_error, one, other):
    planted = load(swapped(golden_state, one, other))
    assert relative_error(planted.decode(golden["latent_5x32x48"]), golden["decoded_5x32x48"]) > 10 * TOLERANCE


def test_a_swap_of_the_offsets_within_a_patch_shows(vae, golden, relative_error, monkeypatch):
    """(c, h-offset, w-offset) instead of (c, w-offset, h-offset): the same shapes, a checkerboard in the numbers."""

    def turned(x, size):
        C = x.shape[1]
        return patchify(x, size).unflatten(1, (C, size, size)).transpose(2, 3).flatten(1, 3)

    def turned_back(x, size):
        return unpatchify(x.unflatten(1, (-1, size, size)).transpose(2, 3).flatten(1, 3), size)

    patchify, unpatchify = wan.patchify, wan.unpatchify
    monkeypatch.setattr(wan, "patchify", turned)
    monkeypatch.setattr(wan, "unpatchify", turned_back)
    for case in CASES:
        assert relative_error(vae.encode(golden[f"video_{case}"]), golden[f"latent_{case}"]) > 10 * TOLERANCE
        assert relative_error(vae.decode(golden[f"latent_{case}"]), golden[f"decoded_{case}"]) > 10 * TOLERANCE


def test_bf16_is_fp32_up_to_rounding(golden, golden_state, relative_error):
    vae = load({key: tensor.bfloat16() for key, tensor in golden_state.items()})
    latent = vae.encode(golden["video_9x48x32"])
    decoded = vae.decode(golden["latent_9x48x32"])
    assert latent.dtype == decoded.dtype == torch.bfloat16
    assert relative_error(latent, golden["latent_9x48x32"]) < 2e-2
    assert relative_error(decoded, golden["decoded_9x48x32"]) < 2e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.bfloat16, 2e-2)])
def test_cuda(golden, golden_state, relative_error, monkeypatch, dtype, tolerance):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    vae = load({key: tensor.to("cuda", dtype) for key, tensor in golden_state.items()})
    for case in CASES:
        latent, decoded = vae.encode(golden[f"video_{case}"].cuda()), vae.decode(golden[f"latent_{case}"].cuda())
        assert relative_error(latent.cpu(), golden[f"latent_{case}"]) < tolerance
        assert relative_error(decoded.cpu(), golden[f"decoded_{case}"]) < tolerance
