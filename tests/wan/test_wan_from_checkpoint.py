"""A file to a loaded model: which layout, which widths, which half; and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from remapkit.plugins.wan.vae import Wan21VAE, WanCache, WanNotLoadedError, WanVAE
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.cli.app import main
from tests.numbers_kit import computed_alike

TINY = Path(remapkit.__file__).parent.parent / "tests/data/wan22_vae_tiny/upstream.pth"


def on_meta(model, **settings):
    with torch.device("meta"):
        return model(**settings)


def inverse(rename, keys):
    return {rename(key): key for key in keys}


@pytest.fixture(scope="module")
def files(tmp_path_factory, golden_state, key_map, published_keys, randomise):
    """The same weights of each generation in every layout."""
    folder = tmp_path_factory.mktemp("layouts")
    root = Path(remapkit.__file__).parent.parent / "rules/keys"
    weights = {"22": golden_state, "21": randomise(Wan21VAE(dim=8, dec_dim=8), 3).state_dict()}
    found = {}
    for generation, state in weights.items():
        state = {key: tensor.clone() for key, tensor in state.items()}
        found[generation, "own"] = folder / f"own{generation}.safetensors"
        save_file(state, found[generation, "own"])
        for layout in ("upstream", "diffusers"):
            keys = json.loads((root / f"wan{generation}_vae_{layout}.json").read_text())
            names = inverse(key_map[f"{layout}{generation}"], keys)
            path = folder / f"{layout}{generation}" / "vae" / "diffusion_pytorch_model.safetensors"
            if layout == "upstream":
                path = folder / f"upstream{generation}.pth"
                torch.save({names[key]: tensor for key, tensor in state.items()}, path)
            else:
                path.parent.mkdir(parents=True)
                save_file({names[key]: tensor for key, tensor in state.items()}, path)
            found[generation, layout] = path
    return found, weights


CASES = [(g, layout) for g in ("22", "21") for layout in ("own", "upstream", "diffusers")]
MODELS = {"22": WanVAE, "21": Wan21VAE}


@pytest.mark.parametrize(("generation", "layout"), CASES)
def test_every_layout_is_known_by_its_keys_and_every_width_by_its_shapes(files, generation, layout):
    paths, weights = files
    vae = MODELS[generation].from_checkpoint(paths[generation, layout])
    state = vae.state_dict()
    assert set(state) == set(weights[generation])
    assert all(torch.equal(state[key], tensor) for key, tensor in weights[generation].items())
    assert (vae.config.dim, vae.config.dec_dim) == (8, 12 if generation == "22" else 8)
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())


def test_golden_numbers_straight_from_upstreams_file(golden, relative_error):
    for rules in (None, "wan22_pth", remapkit.load("wan22_pth")):
        vae = WanVAE.from_checkpoint(TINY, rules)
    names = [key.removeprefix("video_") for key in golden if key.startswith("video_")]
    for name in names:
        assert relative_error(vae.encode(golden[f"video_{name}"]), golden[f"latent_{name}"]) < 1e-4
        assert relative_error(vae.decode(golden[f"latent_{name}"]), golden[f"decoded_{name}"]) < 1e-4


def test_on_the_cpu_nothing_is_copied(files):
    paths, _ = files
    mapped = WanVAE.from_checkpoint(paths["22", "own"])
    copied = WanVAE.from_checkpoint(paths["22", "own"], copy=True)
    maps = Path("/proc/self/maps").read_text().splitlines()
    spans = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in maps if "own22" in line]

    def inside(tensor):
        return any(start <= tensor.data_ptr() < stop for start, stop in spans)

    assert all(inside(p) for p in mapped.parameters())
    assert not any(inside(p) for p in copied.parameters())


def test_dtype_and_flags(files):
    paths, _ = files
    vae = WanVAE.from_checkpoint(paths["22", "upstream"], dtype=torch.bfloat16, requires_grad=True, train=True)
    assert {p.dtype for p in vae.parameters()} == {torch.bfloat16}
    assert vae.training and all(p.requires_grad for p in vae.parameters())


@pytest.mark.parametrize(("generation", "layout"), CASES)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_half_never_reads_the_bytes_of_the_other(files, monkeypatch, generation, layout, half):
    """With `copy=True` every byte that is wanted is read: what the other half holds must not be among them."""
    paths, weights = files
    path = paths[generation, layout]
    with remapkit.open_checkpoint(path) as reader:
        plan = remapkit.load({"own": "wan22_pth"}.get(layout, f"wan{generation}_{_pack(layout)}")).plan(
            reader.header()
        )
        targets = {m.sources[0]: m.target for m in plan.moves} if layout != "own" else {k: k for k in reader.header()}
        extents = {targets[fqn]: reader.extent(fqn) for fqn in reader.header()}
    foreign = ("decoder.", "conv2.") if half == "encoder" else ("encoder.", "conv1.")
    forbidden = [(e.offset, e.offset + e.length) for fqn, e in extents.items() if fqn.startswith(foreign)]
    read, preadv = [], os.preadv  # the way of data; headers are read another way

    def noted(fd, views, at):
        count = preadv(fd, views, at)
        read.append((at, at + count))
        return count

    monkeypatch.setattr(os, "preadv", noted)

    def forbidden_reads():
        return [span for span in read for bad in forbidden if span[0] < bad[1] and bad[0] < span[1]]

    other = "decoder" if half == "encoder" else "encoder"
    vae = MODELS[generation].from_checkpoint(path, copy=True, **{other: False})
    assert getattr(vae, other) is None
    state = vae.state_dict()
    assert all(torch.equal(tensor, weights[generation][fqn]) for fqn, tensor in state.items())
    assert sum(stop - start for start, stop in read) >= sum(t.nbytes for t in state.values())
    assert not forbidden_reads()
    MODELS[generation].from_checkpoint(path, copy=True)
    assert forbidden_reads(), "a whole model reads them: the watch would have seen it"


def _pack(layout):
    return {"upstream": "pth"}.get(layout, layout)


def test_a_file_with_one_half_only(files, tmp_path):
    _, weights = files
    half = {k: t for k, t in weights["22"].items() if k.startswith(("decoder.", "conv2."))}
    save_file(half, tmp_path / "decoder.safetensors")
    vae = WanVAE.from_checkpoint(tmp_path / "decoder.safetensors", encoder=False)
    assert set(vae.state_dict()) == set(half)
    with pytest.raises(WanNotLoadedError, match="built with encoder=False"):
        vae.encode(torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(remapkit.FailedCheck, match="RK310"):
        WanVAE.from_checkpoint(tmp_path / "decoder.safetensors")


def test_the_folders_of_diffusers(files):
    """The file, the VAE's folder, the pipeline's folder, and shards; the statistics of a config are taken."""
    paths, _ = files
    folder = paths["22", "diffusers"].parent
    mean = [0.5] * 48
    config = {"_class_name": "AutoencoderKLWan", "latents_mean": mean, "temperal_downsample": [False, True, True]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder.parent / "model_index.json").write_text("{}")
    for path in (folder, folder.parent, str(paths["22", "diffusers"])):
        assert WanVAE.from_checkpoint(path).config.latents_mean == tuple(mean)
    assert WanVAE.from_checkpoint(folder, latents_mean=[0.0] * 48).config.latents_mean == (0.0,) * 48
    (folder / "config.json").unlink()


def test_shards(files, tmp_path):
    paths, weights = files
    state = load_file(paths["22", "diffusers"])
    keys, index = list(state), {}
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        name = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({key: state[key] for key in part}, tmp_path / name)
        index |= dict.fromkeys(part, name)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    loaded = WanVAE.from_checkpoint(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights["22"].items())


def test_the_other_generation_is_named(files):
    paths, _ = files
    for layout in ("upstream", "diffusers", "own"):
        for wanted, given in (("22", "21"), ("21", "22")):
            with pytest.raises(remapkit.UsageError) as caught:
                MODELS[wanted].from_checkpoint(paths[given, layout])
            message = str(caught.value)
            assert "error[RK645]" in message
            assert f"load them with {MODELS[given].__name__}.from_checkpoint" in message
            assert f"fit no layout of {MODELS[wanted].__name__}" in message


def test_a_stranger_is_refused_and_every_layout_says_why(files, tmp_path):
    _, weights = files
    save_file({**weights["22"], "loss.logvar": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(remapkit.UsageError) as caught:
        WanVAE.from_checkpoint(tmp_path / "x.safetensors")
    message = str(caught.value)
    assert "the model's own layout: 1 of 197 keys are not in it" in message
    assert "loss.logvar" in message
    for pack in ("wan22_pth", "wan22_diffusers"):
        assert f"{pack}: " in message
    # Nor does a half model swallow it.
    with pytest.raises(remapkit.UsageError, match=r"loss\.logvar"):
        WanVAE.from_checkpoint(tmp_path / "x.safetensors", encoder=False)


def test_keys_that_several_layouts_have_are_not_guessed(tmp_path):
    save_file({"conv1.weight": torch.zeros(96, 96, 1, 1, 1)}, tmp_path / "x.safetensors")
    with pytest.raises(remapkit.UsageError) as caught:
        WanVAE.from_checkpoint(tmp_path / "x.safetensors")
    assert "error[RK646]" in str(caught.value)
    assert "wan22_pth, the model's own layout" in str(caught.value)


def test_rules_that_do_not_fit(files, tmp_path):
    paths, _ = files
    with pytest.raises(remapkit.FailedCheck, match="RK301"):
        WanVAE.from_checkpoint(paths["22", "diffusers"], "wan22_pth")
    with pytest.raises(remapkit.FailedCheck, match="2 targets of stray are not tensors of WanVAE"):
        text = "remapkit: 1\nname: stray\nunmatched: keep\nrules:\n  - {id: a, path: 'conv1.{x}', to: 'conv9.{x}'}\n"
        (tmp_path / "stray.yaml").write_text(text)
        WanVAE.from_checkpoint(paths["22", "own"], tmp_path / "stray.yaml", encoder=False)


def test_half_of_one_generations_names_with_the_shapes_of_the_other(files, tmp_path):
    """The encoders of both have the same names in the model's own layout; their inputs differ."""
    _, weights = files
    save_file({k: t for k, t in weights["21"].items() if k.startswith(("enc", "conv1"))}, tmp_path / "e.safetensors")
    with pytest.raises(remapkit.UsageError) as caught:
        WanVAE.from_checkpoint(tmp_path / "e.safetensors", decoder=False)
    assert "error[RK647]" in str(caught.value) and "takes 3 channels" in str(caught.value)


def test_one_misshapen_tensor_and_a_width_that_makes_no_model(files, tmp_path):
    _, weights = files
    wrong = {**weights["22"], "decoder.middle.0.residual.0.gamma": torch.ones(7, 1, 1, 1)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(remapkit.FailedCheck, match=r"decoder\.middle\.0\.residual\.0\.gamma"):
        WanVAE.from_checkpoint(tmp_path / "wrong.safetensors")
    wrong = {**weights["22"], "conv2.weight": torch.ones(16, 16, 1, 1, 1)}
    save_file(wrong, tmp_path / "z.safetensors")
    with pytest.raises(ValueError, match="latents_mean has 48 values, expected 16"):
        WanVAE.from_checkpoint(tmp_path / "z.safetensors")


def test_files_that_are_none(tmp_path):
    for make in (
        lambda p: None,
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"\0" * 100),
        lambda p: p.mkdir(),
    ):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        make(path)
        with pytest.raises(remapkit.RemapkitError):
            WanVAE.from_checkpoint(path)


def test_what_apply_writes_is_loaded_and_streams(files, tmp_path):
    assert main(["apply", "wan22_pth", str(TINY), "-o", str(tmp_path / "out.safetensors")]) == 0
    vae, other = WanVAE.from_checkpoint(tmp_path / "out.safetensors"), WanVAE.from_checkpoint(TINY)
    video, cache = torch.rand(1, 3, 5, 16, 32) * 2 - 1, WanCache()
    parts = [vae.encode(video[:, :, :1], cache), vae.encode(video[:, :, 1:], cache)]
    assert computed_alike(torch.cat(parts, 2), other.encode(video))
