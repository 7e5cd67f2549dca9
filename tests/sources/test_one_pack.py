"""One pack reads a checkpoint however it lies, without an option: plain, prefixed, wrapped, in shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch

import remapkit
from remapkit.models.reference import resolve_reference

DATA = Path(__file__).parent.parent / "data" / "wan22_vae_tiny" / "upstream.pth"
State = Mapping[str, torch.Tensor]


def prefix(state: State, text: str) -> dict[str, torch.Tensor]:
    return {f"{text}{fqn}": value for fqn, value in state.items()}


def write_plain(state: State, folder: Path) -> Path:
    torch.save(dict(state), folder / "plain.pth")
    return folder / "plain.pth"


def write_below_a_prefix(state: State, folder: Path) -> Path:
    more = {"first_stage_model.x": torch.rand(2), "step": torch.tensor(3)}
    torch.save({**prefix(state, "model.diffusion_model."), **more}, folder / "prefix.pth")
    return folder / "prefix.pth"


def write_wrapped(state: State, folder: Path) -> Path:
    torch.save(prefix(state, "module._orig_mod."), folder / "wrapped.pth")
    return folder / "wrapped.pth"


def write_beside_an_optimizer(state: State, folder: Path) -> Path:
    optimizer = {"state": {0: {"exp_avg": torch.rand(2)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"state_dict": dict(state), "optimizer": optimizer}, folder / "trained.pth")
    return folder / "trained.pth"


def write_shards(state: State, folder: Path) -> Path:
    fqns = list(state)
    for number in range(3):
        part = {fqn: state[fqn].clone() for fqn in fqns[number::3]}
        safetensors.torch.save_file(part, folder / f"model-0000{number + 1}-of-00003.safetensors")
    return folder


def write_two_files(state: State, folder: Path) -> list[Path]:
    """The two halves of the model in files of different formats, both below one prefix."""
    fqns = list(state)
    halves = [{fqn: state[fqn].clone() for fqn in fqns[number::2]} for number in range(2)]
    torch.save({**prefix(halves[0], "model.vae."), "step": torch.tensor(3)}, folder / "first.ckpt")
    safetensors.torch.save_file(prefix(halves[1], "model.vae."), folder / "second.safetensors")
    return [folder / "first.ckpt", folder / "second.safetensors"]


@pytest.mark.parametrize(
    "write",
    [write_plain, write_below_a_prefix, write_wrapped, write_beside_an_optimizer, write_shards, write_two_files],
)
def test_one_pack_reads_a_checkpoint_however_it_lies(
    write: Callable[[State, Path], Path | list[Path]], tmp_path: Path
) -> None:
    state = torch.load(DATA)
    (tmp_path / "in").mkdir()
    source = write(state, tmp_path / "in")
    rules = remapkit.load("wan22_pth")
    wanted = rules(state)

    written = remapkit.apply(rules, source, tmp_path / "out.safetensors", partial=True, declared_target=False)
    found = safetensors.torch.load_file(written.files[0])
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[fqn], wanted[fqn]) for fqn in wanted)

    specs = {fqn: remapkit.TensorSpec("F32", tuple(value.shape)) for fqn, value in wanted.items()}
    assert remapkit.check(rules, ckpt=source, target_keys=specs).ok

    model = resolve_reference("wan.vae:WanVAE").from_checkpoint(source)
    assert all(torch.equal(value, wanted[fqn]) for fqn, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    remapkit.load_into(model, source, rules)
    assert all(torch.equal(value, wanted[fqn]) for fqn, value in model.state_dict().items())
