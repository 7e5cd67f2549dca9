"""The two Wan 2.2 packs end to end: names, shapes, values, and the two routes against one another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from oracles import rename_wan22_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import remapkit
from remapkit.cli.app import main
from remapkit.models.target import TargetRef, read_target_header

ROOT = Path(remapkit.__file__).parent.parent
TINY = ROOT / "tests" / "data" / "wan22_vae_tiny"
WIDTHS = {"dim": 8, "dec_dim": 12}
TOLERANCE = 1e-4

# The 5B configuration of diffusers' AutoencoderKLWan, at the width of the small checkpoint.
DIFFUSERS = {
    "base_dim": 8,
    "decoder_base_dim": 12,
    "z_dim": 48,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "is_residual": True,
}


def wan_vae() -> nn.Module:
    from remapkit.plugins.wan.vae import WanVAE

    with torch.device("meta"):
        return WanVAE(**WIDTHS)


def loaded(path: Path) -> nn.Module:
    model = wan_vae()
    model.load_state_dict(load_file(path), strict=True, assign=True)
    assert not [fqn for fqn, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    return model.eval()


def relative(out: Tensor, reference: Tensor) -> float:
    return float((out - reference).norm() / reference.norm())


def apply(rules: str, source: Path, out: Path) -> Path:
    assert main(["apply", rules, str(source), "-o", str(out)]) == 0
    return out


@pytest.mark.parametrize("pack", ["wan22_pth", "wan22_diffusers"])
def test_196_keys_to_196_targets_of_the_full_size_model(pack: str) -> None:
    rules = remapkit.load(pack)
    source = rules.file.source_keys
    assert source is not None and rules.file.path is not None
    plan = rules.plan(rules.file.path.parent / source.value)
    check = plan.check(read_target_header(TargetRef(model="wan.vae:WanVAE")))
    check.raise_for_problems()
    assert (len(plan.source), check.matched, len(check.target)) == (196, 196, 196)
    assert not plan.warnings and not plan.dropped


def test_the_small_checkpoint_loads_strictly_and_gives_upstreams_numbers(tmp_path: Path) -> None:
    model = loaded(apply("wan22_pth", TINY / "upstream.pth", tmp_path / "out.safetensors"))
    golden = load_file(TINY / "golden.safetensors")
    samples = [name.removeprefix("video_") for name in golden if name.startswith("video_")]
    assert len(samples) == 4
    with torch.inference_mode():
        for name in samples:
            assert relative(model.encode(golden[f"video_{name}"]), golden[f"latent_{name}"]) < TOLERANCE
            assert relative(model.decode(golden[f"latent_{name}"]), golden[f"decoded_{name}"]) < TOLERANCE


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """diffusers' own model with every tensor random, norms and biases too: no two are alike."""
    diffusers = pytest.importorskip("diffusers")
    from remapkit.plugins.wan.config import WAN22_MEAN, WAN22_STD

    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(**DIFFUSERS, latents_mean=list(WAN22_MEAN), latents_std=list(WAN22_STD))
    with torch.no_grad():
        for fqn, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if fqn.endswith("gamma"):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise)
    return model.eval()  # type: ignore[no-any-return]


def saved(state: Mapping[str, Tensor], path: Path) -> Path:
    save_file({fqn: tensor.contiguous() for fqn, tensor in state.items()}, path)
    return path


def errors(model: nn.Module, reference: nn.Module) -> tuple[float, float]:
    """Relative errors of the latent and of the decoded video, on a video that is neither square nor one frame."""
    torch.manual_seed(1)
    video = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    config = reference.config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    with torch.inference_mode():
        wanted = (reference.encode(video).latent_dist.mode() - mean) / std
        decoded = reference.decode(wanted * std + mean).sample
        # diffusers clamps what it decodes.
        return relative(model.encode(video), wanted), relative(model.decode(wanted).clamp(-1, 1), decoded)


def test_diffusers_numbers(reference: nn.Module, tmp_path: Path) -> None:
    source = saved(reference.state_dict(), tmp_path / "diffusers.safetensors")
    model = loaded(apply("wan22_diffusers", source, tmp_path / "out.safetensors"))
    latent, video = errors(model, reference)
    assert latent < TOLERANCE
    assert video < TOLERANCE


def test_a_swap_of_two_tensors_of_one_shape_is_caught_by_value(reference: nn.Module, tmp_path: Path) -> None:
    """norm1 and norm2 of a block have one leaf and one shape: no check of names sees the swap, the numbers do."""
    text = (ROOT / "rules" / "wan22_diffusers.yaml").read_text(encoding="utf-8")
    slots = "norm1: residual.3, conv1: residual.2, norm2: residual.0, conv2: residual.6, conv_shortcut: shortcut"
    text = text.replace("tables:\n", f"tables:\n  swapped: {{{slots}}}\n")
    text = text.replace(".{block|middle_block}.{layer|layer}.", ".{block|middle_block}.{layer|swapped}.")
    planted = tmp_path / "planted.yaml"
    planted.write_text(re.sub(r"(?ms)^tests:.*|^source:.*?$", "", text), encoding="utf-8")
    source = saved(reference.state_dict(), tmp_path / "diffusers.safetensors")
    out = apply(str(planted), source, tmp_path / "out.safetensors")
    latent, video = errors(loaded(out), reference)
    assert latent > 100 * TOLERANCE
    assert video > 100 * TOLERANCE


def test_the_two_routes_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same weights in both layouts, through the two packs: 196 of 196 identical, max |Δ| = 0."""
    upstream = torch.load(TINY / "upstream.pth", weights_only=True)
    other = {rename_wan22_to_diffusers(fqn): tensor for fqn, tensor in upstream.items()}
    assert set(other) == set(remapkit.header(ROOT / "rules/keys/wan22_vae_diffusers.json"))
    one = apply("wan22_pth", TINY / "upstream.pth", tmp_path / "one.safetensors")
    two = apply("wan22_diffusers", saved(other, tmp_path / "d.safetensors"), tmp_path / "two.safetensors")
    capsys.readouterr()
    assert main(["diff", str(one), str(two)]) == 0
    assert "196 of 196 tensors identical, max |Δ| = 0" in capsys.readouterr().out
    # And without writing either: rules on both sides.
    arguments = ["diff", str(TINY / "upstream.pth"), str(tmp_path / "d.safetensors")]
    assert main([*arguments, "--rules-a", "wan22_pth", "--rules-b", "wan22_diffusers"]) == 0
    assert "196 of 196 tensors identical" in capsys.readouterr().out


def test_one_changed_value_is_found_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = apply("wan22_pth", TINY / "upstream.pth", tmp_path / "one.safetensors")
    state = load_file(one)
    state["decoder.head.2.bias"][3] += 0.5
    two = saved(state, tmp_path / "two.safetensors")
    capsys.readouterr()
    assert main(["diff", str(one), str(two)]) == 1
    out = capsys.readouterr().out
    assert "195 of 196 tensors identical, max |Δ| = 0.5" in out
    assert "decoder.head.2.bias" in out


def test_the_direct_pack_and_the_two_through_the_grouped_layout_agree(tmp_path: Path) -> None:
    """upstream -> diffusers -> grouped is upstream -> grouped, bit for bit, and diffusers -> upstream undoes it."""
    upstream = torch.load(TINY / "upstream.pth", weights_only=True)
    direct = remapkit.load("wan22_vae")(upstream)
    assert set(direct) == set(remapkit.header(ROOT / "rules/keys/wan22_vae_diffusers.json"))
    grouped, other = remapkit.load("wan22_pth")(upstream), remapkit.load("wan22_diffusers")(direct)
    assert grouped.keys() == other.keys() and len(grouped) == 196
    assert all(grouped[fqn] is other[fqn] for fqn in grouped)
    back = remapkit.load("wan22_vae_diffusers")(direct)
    assert back.keys() == upstream.keys() and all(back[fqn] is upstream[fqn] for fqn in upstream)
