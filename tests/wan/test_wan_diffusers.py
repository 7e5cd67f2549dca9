"""The same numbers as diffusers' `AutoencoderKLWan`, every tensor random."""

from __future__ import annotations

import pytest
import torch
from remapkit.plugins.wan.config import WAN22_MEAN, WAN22_STD
from remapkit.plugins.wan.vae import Wan21VAE, WanVAE

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
# The configuration published for the VAE of Wan 2.2 TI2V-5B, at small width.
WAN22 = {"base_dim": 8, "decoder_base_dim": 12, "z_dim": 48, "is_residual": True, "patch_size": 2}
WAN22 |= {"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16, "scale_factor_temporal": 4}
WAN22 |= {"latents_mean": WAN22_MEAN, "latents_std": WAN22_STD}
WAN21 = {"base_dim": 8}

GENERATIONS = {
    "2.2": (WAN22, lambda: WanVAE(dim=8, dec_dim=12), "diffusers22", (2, 3, 9, 48, 32)),
    "2.1": (WAN21, lambda: Wan21VAE(dim=8, dec_dim=8), "diffusers21", (2, 3, 9, 40, 24)),
}


class Pair:
    """The oracle, and our model with the oracle's weights."""

    def __init__(self, config, ours, rename, randomise):
        self.oracle = randomise(diffusers.AutoencoderKLWan(**config), 7)
        # diffusers clamps what it decodes. A quieter last layer keeps it within [-1, 1], so that nothing is hidden.
        self.oracle.decoder.conv_out.weight *= 0.1
        self.oracle.decoder.conv_out.bias *= 0.1
        self.ours = ours().eval().requires_grad_(False)
        self.state = {rename(key): tensor for key, tensor in self.oracle.state_dict().items()}
        self.ours.load_state_dict(self.state, strict=True)

    def statistics(self):
        config = self.oracle.config
        return (torch.tensor(v).reshape(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))

    def oracle_latent(self, video):
        mean, std = self.statistics()
        return (self.oracle.encode(video).latent_dist.mean - mean) / std

    def oracle_video(self, latent):
        mean, std = self.statistics()
        decoded = self.oracle.decode(latent * std + mean).sample
        assert decoded.abs().max() < 1, "the oracle clamped: the comparison would be blind"
        return decoded


@pytest.fixture(scope="module", params=list(GENERATIONS))
def case(request, key_map, randomise):
    config, ours, renaming, shape = GENERATIONS[request.param]
    video = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        return Pair(config, ours, key_map[renaming], randomise), video


def test_latents(case, relative_error):
    pair, video = case
    assert relative_error(pair.ours.encode(video), pair.oracle_latent(video)) < TOLERANCE


def test_decoded_video(case, relative_error):
    pair, video = case
    latent = pair.oracle_latent(video)
    assert relative_error(pair.ours.decode(latent), pair.oracle_video(latent)) < TOLERANCE


def test_a_swap_of_the_norms_of_one_block_shows(case, relative_error):
    pair, video = case
    latent, decoded = pair.ours.encode(video), pair.ours.decode(pair.oracle_latent(video))
    for side, found in (("encoder.downsamples", latent), ("decoder.upsamples", decoded)):
        one, other = (f"{side}.0.resnets.1.residual.{slot}.gamma" for slot in (0, 3))
        pair.ours.load_state_dict({**pair.state, one: pair.state[other], other: pair.state[one]}, strict=True)
        planted = (
            pair.ours.encode(video) if side.startswith("encoder") else pair.ours.decode(pair.oracle_latent(video))
        )
        pair.ours.load_state_dict(pair.state, strict=True)
        assert relative_error(planted, found) > 10 * TOLERANCE


def test_every_tensor_counts(case, relative_error):
    """A tensor that did not reach the output could be swapped with any other and no test here would see it."""
    pair, video = case
    video = video[:1, :, :5]
    with torch.enable_grad():
        pair.ours.requires_grad_(True)
        pair.ours(video).square().sum().backward()
    grads = {name: p.grad for name, p in pair.ours.named_parameters()}
    pair.ours.requires_grad_(False).zero_grad()
    # The log-variance half of the encoder's head and of conv1 is not used by a deterministic latent.
    assert not [name for name, grad in grads.items() if grad is None or not grad.any()]


def test_gradients(case, relative_error):
    pair, video = case
    latent = pair.oracle_latent(video[:1, :, :5])
    grads = []
    for decode in (pair.ours.decode, pair.oracle_video):
        x = latent.clone().requires_grad_()
        with torch.enable_grad():
            decode(x).square().sum().backward()
        grads.append(x.grad)
    assert relative_error(*grads) < TOLERANCE
