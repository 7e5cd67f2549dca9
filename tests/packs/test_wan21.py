"""The two Wan 2.1 packs end to end: names, shapes, values, and the two routes against one another."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import remapkit
from remapkit.cli.app import main
from remapkit.diagnostics.errors import FailedCheck
from remapkit.models.target import TargetRef, read_target_header

ROOT = Path(remapkit.__file__).parent.parent
KEYS = ROOT / "rules" / "keys"
TOLERANCE = 1e-4
PACKS = ("wan21_pth", "wan21_diffusers")


def wan21_vae() -> nn.Module:
    from remapkit.plugins.wan.vae import Wan21VAE

    with torch.device("meta"):
        return Wan21VAE(dim=8, dec_dim=8)


def loaded(path: Path) -> nn.Module:
    model = wan21_vae()
    model.load_state_dict(load_file(path), strict=True, assign=True)
    assert not [fqn for fqn, tensor in model.named_parameters() if tensor.is_meta]
    return model.eval()


def relative(out: Tensor, reference: Tensor) -> float:
    return float((out - reference).norm() / reference.norm())


def apply(rules: str, source: Path, out: Path) -> Path:
    assert main(["apply", rules, str(source), "-o", str(out)]) == 0
    return out


def saved(state: Mapping[str, Tensor], path: Path) -> Path:
    save_file({fqn: tensor.contiguous() for fqn, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize("pack", PACKS)
def test_194_keys_to_194_targets_of_the_full_size_model(pack: str) -> None:
    rules = remapkit.load(pack)
    source = rules.file.source_keys
    assert source is not None and rules.file.path is not None
    plan = rules.plan(rules.file.path.parent / source.value)
    check = plan.check(read_target_header(TargetRef(model="wan.vae:Wan21VAE")))
    check.raise_for_problems()
    assert (len(plan.source), check.matched, len(check.target)) == (194, 194, 194)
    assert not plan.warnings and not plan.dropped


@pytest.mark.parametrize("pack", PACKS)
def test_a_block_in_the_place_of_a_resampling_is_refused(pack: str, tmp_path: Path) -> None:
    """Places 2, 5 and 8 of the encoder's list never hold a residual block: such a key is of another model."""
    keys = remapkit.load(pack)
    manifest = {"wan21_pth": "wan21_vae_upstream", "wan21_diffusers": "wan21_vae_diffusers"}[pack]
    header = json.loads((KEYS / f"{manifest}.json").read_text())
    name = {"wan21_pth": "downsamples.2.residual.0.gamma", "wan21_diffusers": "down_blocks.2.norm1.gamma"}[pack]
    header[f"encoder.{name}"] = {"dtype": "F32", "shape": [96, 1, 1, 1]}
    (tmp_path / "keys.json").write_text(json.dumps(header))
    with pytest.raises(FailedCheck, match=re.escape(name)):
        keys.plan(tmp_path / "keys.json").check(wan21_vae()).raise_for_problems()


@pytest.mark.parametrize("stage", range(4))
def test_the_arithmetic_of_places_is_that_of_the_stages(stage: int) -> None:
    """Every place of the flat lists, counted here the other way round: from stages and blocks up."""
    plan = {
        move.sources[0]: move.target
        for move in remapkit.load("wan21_pth").plan(KEYS / "wan21_vae_upstream.json").moves
    }
    for side, lists, blocks in (("encoder", "downsamples", 2), ("decoder", "upsamples", 3)):
        for block in range(blocks):
            source = f"{side}.{lists}.{stage * (blocks + 1) + block}.residual.6.bias"
            assert plan[source] == f"{side}.{lists}.{stage}.resnets.{block}.residual.6.bias"
        if stage < 3:
            source = f"{side}.{lists}.{stage * (blocks + 1) + blocks}.resample.1.weight"
            sampler = lists.removesuffix("s").replace("sample", "sampler")
            assert plan[source] == f"{side}.{lists}.{stage}.{sampler}.resample.1.weight"


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """diffusers' own model in its default configuration but for the width, with every tensor random."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(base_dim=8)
    with torch.no_grad():
        for fqn, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if fqn.endswith("gamma"):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise)
        # diffusers clamps what it decodes. A quieter last layer keeps it within [-1, 1], so that nothing is hidden.
        model.decoder.conv_out.weight *= 0.1
    return model.eval()  # type: ignore[no-any-return]


def errors(model: nn.Module, reference: nn.Module) -> tuple[float, float]:
    """Relative errors of the latent and of the decoded video, on a video that is neither square nor one frame."""
    torch.manual_seed(1)
    video = torch.rand(1, 3, 9, 24, 40) * 2 - 1
    config = reference.config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    with torch.inference_mode():
        wanted = (reference.encode(video).latent_dist.mode() - mean) / std
        decoded = reference.decode(wanted * std + mean).sample
        assert decoded.abs().max() < 1, "the oracle clamped: the comparison would be blind"
        return relative(model.encode(video), wanted), relative(model.decode(wanted), decoded)


def test_diffusers_default_configuration_has_the_packs_keys() -> None:
    """The names and shapes of diffusers' own class, at full width on meta, and its statistics."""
    diffusers = pytest.importorskip("diffusers")
    from remapkit.plugins.wan.config import WAN21_MEAN, WAN21_STD

    with torch.device("meta"):
        model = diffusers.AutoencoderKLWan()
    known = {fqn: spec["shape"] for fqn, spec in json.loads((KEYS / "wan21_vae_diffusers.json").read_text()).items()}
    assert {fqn: list(tensor.shape) for fqn, tensor in model.state_dict().items()} == known
    assert tuple(model.config.latents_mean) == WAN21_MEAN
    assert tuple(model.config.latents_std) == WAN21_STD


def test_diffusers_numbers(reference: nn.Module, tmp_path: Path) -> None:
    source = saved(reference.state_dict(), tmp_path / "diffusers.safetensors")
    model = loaded(apply("wan21_diffusers", source, tmp_path / "out.safetensors"))
    latent, video = errors(model, reference)
    assert latent < TOLERANCE
    assert video < TOLERANCE


def test_a_swap_of_two_tensors_of_one_shape_is_caught_by_value(reference: nn.Module, tmp_path: Path) -> None:
    """norm1 and norm2 of a block have one leaf and one shape: no check of names sees the swap, the numbers do."""
    text = (ROOT / "rules" / "wan21_diffusers.yaml").read_text(encoding="utf-8")
    slots = "norm1: residual.3, conv1: residual.2, norm2: residual.0, conv2: residual.6, conv_shortcut: shortcut"
    text = text.replace("tables:\n", f"tables:\n  swapped: {{{slots}}}\n")
    text = text.replace(".{block|middle_block}.{layer|layer}.", ".{block|middle_block}.{layer|swapped}.")
    planted = tmp_path / "planted.yaml"
    planted.write_text(re.sub(r"(?ms)^tests:.*|^source:.*?$", "", text), encoding="utf-8")
    source = saved(reference.state_dict(), tmp_path / "diffusers.safetensors")
    latent, video = errors(loaded(apply(str(planted), source, tmp_path / "out.safetensors")), reference)
    assert latent > 100 * TOLERANCE
    assert video > 100 * TOLERANCE


def to_upstream_layout(fqn: str) -> str:
    """diffusers' name -> upstream's name, written by hand and apart from the packs."""
    layer = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    layer["conv_shortcut"] = "shortcut"
    fqn = re.sub(r"\.(norm1|conv1|norm2|conv2|conv_shortcut)\.", lambda m: f".{layer[m[1]]}.", fqn)
    fqn = re.sub(r"^quant_conv\.", "conv1.", fqn)
    fqn = re.sub(r"^post_quant_conv\.", "conv2.", fqn)
    fqn = fqn.replace(".conv_in.", ".conv1.").replace(".norm_out.", ".head.0.").replace(".conv_out.", ".head.2.")
    fqn = fqn.replace(".mid_block.attentions.0.", ".middle.1.")
    fqn = re.sub(r"\.mid_block\.resnets\.([01])\.", lambda m: f".middle.{int(m[1]) * 2}.", fqn)
    fqn = fqn.replace(".down_blocks.", ".downsamples.")
    fqn = re.sub(r"\.up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f".upsamples.{int(m[1]) * 4 + int(m[2])}.", fqn)
    return re.sub(r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f".upsamples.{int(m[1]) * 4 + 3}.", fqn)


def test_the_two_routes_agree(reference: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same weights in both layouts, through the two packs: 194 of 194 identical, max |Δ| = 0."""
    state = reference.state_dict()
    upstream = {to_upstream_layout(fqn): tensor for fqn, tensor in state.items()}
    assert set(upstream) == set(remapkit.header(KEYS / "wan21_vae_upstream.json"))
    torch.save(upstream, tmp_path / "upstream.pth")
    one = apply("wan21_pth", tmp_path / "upstream.pth", tmp_path / "one.safetensors")
    two = apply("wan21_diffusers", saved(state, tmp_path / "d.safetensors"), tmp_path / "two.safetensors")
    capsys.readouterr()
    assert main(["diff", str(one), str(two)]) == 0
    assert "194 of 194 tensors identical, max |Δ| = 0" in capsys.readouterr().out
    # And without writing either: rules on both sides.
    arguments = ["diff", str(tmp_path / "upstream.pth"), str(tmp_path / "d.safetensors")]
    assert main([*arguments, "--rules-a", "wan21_pth", "--rules-b", "wan21_diffusers"]) == 0
    assert "194 of 194 tensors identical" in capsys.readouterr().out
    # The route from upstream's file gives diffusers' numbers too.
    latent, video = errors(loaded(one), reference)
    assert max(latent, video) < TOLERANCE
