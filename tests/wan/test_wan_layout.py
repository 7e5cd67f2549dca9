"""The state dict: every published tensor, under its grouped name, in its shape, and nothing else."""

from __future__ import annotations

import copy
import doctest
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import remapkit.plugins.wan
import torch
from remapkit.plugins.wan.vae import Wan21VAE, WanVAE

from tests.numbers_kit import computed_alike

PUBLISHED = [
    (WanVAE, "wan22_vae_upstream", "upstream22", 196, 704_688_668),
    (Wan21VAE, "wan21_vae_upstream", "upstream21", 194, 126_892_531),
]


def on_meta(model, **settings):
    with torch.device("meta"):
        return model(**settings)


@pytest.mark.parametrize(("model", "manifest", "renaming", "tensors", "parameters"), PUBLISHED)
def test_full_size_has_exactly_the_published_tensors(
    published_keys, key_map, model, manifest, renaming, tensors, parameters
):
    vae = on_meta(model)
    found = {fqn: list(t.shape) for fqn, t in vae.state_dict().items()}
    assert found == {key_map[renaming](key): shape for key, shape in published_keys(manifest).items()}
    assert len(found) == tensors
    assert sum(p.numel() for p in vae.parameters()) == parameters
    assert not list(vae.buffers())


def test_the_grouped_names(key_map):
    assert [key_map["upstream22"](key) for key in (
        "encoder.downsamples.0.downsamples.1.residual.0.gamma",
        "encoder.downsamples.1.downsamples.0.shortcut.weight",
        "encoder.downsamples.1.downsamples.2.time_conv.bias",
        "decoder.upsamples.0.upsamples.3.resample.1.weight",
        "decoder.middle.1.to_qkv.weight",
        "conv1.weight",
    )] == [
        "encoder.downsamples.0.resnets.1.residual.0.gamma",
        "encoder.downsamples.1.resnets.0.shortcut.weight",
        "encoder.downsamples.1.downsampler.time_conv.bias",
        "decoder.upsamples.0.upsampler.resample.1.weight",
        "decoder.middle.1.to_qkv.weight",
        "conv1.weight",
    ]  # fmt: skip


@pytest.mark.parametrize("model", [WanVAE, Wan21VAE])
def test_halves_are_a_partition_of_the_whole(model):
    whole = set(on_meta(model).state_dict())
    encoder, decoder = (set(on_meta(model, **{other: False}).state_dict()) for other in ("decoder", "encoder"))
    assert encoder | decoder == whole
    assert not encoder & decoder
    assert {key.split(".")[0] for key in encoder} == {"encoder", "conv1"}
    assert {key.split(".")[0] for key in decoder} == {"decoder", "conv2"}


def test_built_on_meta_loaded_and_used(randomise):
    source = randomise(WanVAE(dim=8, dec_dim=12), 0)
    vae = on_meta(WanVAE, dim=8, dec_dim=12)
    vae.load_state_dict(source.state_dict(), strict=True, assign=True)
    video = torch.rand(1, 3, 5, 16, 32) * 2 - 1
    assert computed_alike(vae.encode(video), source.encode(video))


def test_shapes_are_computed_on_meta():
    for model, factor, channels in ((WanVAE, 16, 48), (Wan21VAE, 8, 16)):
        vae = on_meta(model)
        latent = vae.encode(torch.empty(2, 3, 61, 704, 1280, device="meta"))
        assert latent.is_meta
        assert tuple(latent.shape) == (2, channels, 16, 704 // factor, 1280 // factor)
        assert tuple(vae.decode(latent).shape) == (2, 3, 61, 704, 1280)


def test_a_copy_of_a_model_works(randomise):
    vae = randomise(WanVAE(dim=8, dec_dim=12), 0)
    video = torch.rand(1, 3, 1, 16, 16)
    assert computed_alike(copy.deepcopy(vae).encode(video), vae.encode(video))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dim": 0}, "dim must be a positive integer, got 0"),
        ({"dim": 8.0}, "dim must be a positive integer, got 8.0"),
        ({"dim": -1, "patch_size": 0}, "dim must .*, got -1; patch_size must .*, got 0"),
        ({"dim_mult": (1, 2)}, "temporal_downsample has 3 values, expected 1"),
        ({"dim_mult": ()}, "at least one stage"),
        ({"z_dim": 16}, "latents_mean has 48 values, expected 16 .*latents_std has 48 values, expected 16"),
        ({"latents_std": (0.0,) * 48}, "latents_std must"),
        ({"latents_mean": (float("nan"),) * 48}, "latents_mean must"),
        ({"dim_mult": (1, 1, 8, 8)}, "decoder stage 2: .* cannot be duplicated up"),
        ({"dim_mult": (1, 9, 9, 9)}, "encoder stage 1: .* cannot be averaged down"),
        ({"encoder": False, "decoder": False}, "no model"),
    ],
)
def test_settings_that_make_no_model(settings, words):
    with pytest.raises(ValueError, match=words):
        on_meta(WanVAE, **settings)


def test_odd_widths_cannot_be_halved_by_the_upsampler():
    with pytest.raises(ValueError, match="decoder stage 1: 3 channels cannot be halved"):
        on_meta(Wan21VAE, dec_dim=3, dim_mult=(1, 1, 1, 2))


def test_other_factors_in_time_and_space(randomise):
    """Two stages, without and with resampling in time between them: the factors follow the settings."""
    for temporal, frames in (((False,), 3), ((True,), 5)):
        vae = randomise(WanVAE(dim=4, dec_dim=4, dim_mult=(1, 1), temporal_downsample=temporal), 1)
        latent = vae.encode(torch.rand(1, 3, frames, 8, 12))
        assert tuple(latent.shape) == (1, 48, 3, 2, 3)
        assert tuple(vae.decode(latent).shape) == (1, 3, frames, 8, 12)


def test_finding_the_plugin_does_not_import_torch():
    code = "import importlib.util, sys; s = importlib.util.spec_from_file_location('p', sys.argv[1]); "
    code += "m = importlib.util.module_from_spec(s); s.loader.exec_module(m); assert 'torch' not in sys.modules"
    path = Path(remapkit.plugins.wan.__file__)
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_examples_in_the_docstrings():
    names = {name for _, name, _ in pkgutil.iter_modules(remapkit.plugins.wan.__path__)} - {"__main__"}
    if importlib.util.find_spec("triton") is None:
        names.remove("kernel")
    results = [doctest.testmod(importlib.import_module(f"remapkit.plugins.wan.{name}")) for name in names]
    assert sum(result.failed for result in results) == 0
    assert sum(result.attempted for result in results) > 15
