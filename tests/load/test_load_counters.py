"""`num_batches_tracked`, which old checkpoints lack: exactly as torch's own `load_state_dict`, and said."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import remapkit
from remapkit.diagnostics.errors import FailedCheck
from remapkit.loading.load import load_into

KINDS: list[Callable[[], nn.Module]] = [
    lambda: nn.BatchNorm2d(3),
    lambda: nn.InstanceNorm1d(3, track_running_stats=True),
    lambda: nn.BatchNorm1d(3, affine=False),
]


class Net(nn.Module):
    def __init__(self, kind: Callable[[], nn.Module] = KINDS[0]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList([kind(), kind()])


def old_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {fqn: torch.rand_like(value) for fqn, value in model.state_dict().items() if "num_batches" not in fqn}


def start_counting(model: Net) -> Net:
    for number, norm in enumerate(model.norms):
        norm.num_batches_tracked.fill_(5 + number)  # type: ignore[operator, union-attr]
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["memory", "pth", "safetensors"])
def test_an_old_checkpoint_loads_as_in_torch(kind: Callable[[], nn.Module], way: str, tmp_path: Path) -> None:
    """The oracle is torch: the same values everywhere, on meta with `assign=True`."""
    state = old_state(Net(kind))
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    source = state if way == "memory" else tmp_path / f"a.{way}"
    for build in (lambda: start_counting(Net(kind)), lambda: Net(kind).to("meta")):
        ours, theirs = build(), build()
        loaded = load_into(ours, source)
        theirs.load_state_dict(state, assign=next(theirs.parameters()).is_meta)
        assert all(torch.equal(value, theirs.state_dict()[fqn]) for fqn, value in ours.state_dict().items())
        (note,) = [each for each in loaded.notes if each.code == "RK310"]
        assert note.values["counters"] == [f"norms.{number}.num_batches_tracked" for number in (0, 1)]
        assert "torch before 0.4.1" in note.title and not loaded.missing


def refused(model: nn.Module, state: dict[str, torch.Tensor], theirs: nn.Module) -> list[str]:
    """The keys that both report as missing."""
    assert theirs.load_state_dict(state, strict=False).missing_keys
    with pytest.raises(FailedCheck) as failed:
        load_into(model, state)
    return [fqn for each in failed.value.diagnostics for fqn in each.values.get("missing_keys", [])]


def test_a_state_dict_of_version_2_has_its_counters() -> None:
    state = Net().state_dict()
    assert isinstance(state, OrderedDict)
    for number in (0, 1):
        del state[f"norms.{number}.num_batches_tracked"]
    assert refused(Net(), state, Net()) == [f"norms.{number}.num_batches_tracked" for number in (0, 1)]


def test_no_other_buffer_is_ever_made_up() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))
            self.register_buffer("num_batches_tracked", torch.tensor(0))

    assert refused(Other(), {"running_mean": torch.ones(3)}, Other()) == ["num_batches_tracked"]
    state = old_state(Net())
    del state["norms.1.running_mean"]
    found = refused(Net(), state, Net())
    assert set(found) == {"norms.1.running_mean", "norms.1.num_batches_tracked"}


def test_a_checkpoint_with_a_counter_is_not_old() -> None:
    """torch would take it without a word where no version is recorded; one that lost a key is not converted here."""
    state = {**old_state(Net()), "norms.0.num_batches_tracked": torch.tensor(3)}
    with pytest.raises(FailedCheck, match=r"norms\.1\.num_batches_tracked"):
        load_into(Net(), state)


def test_the_old_names_lead_to_the_version() -> None:
    rules = remapkit.loads("remapkit: 1\nname: t\nrules: [{id: r, path: 'net.{x:**}', to: '{x}'}]")
    model = nn.ModuleDict({"net": Net()})
    state = model.state_dict()
    for number in (0, 1):
        del state[f"net.norms.{number}.num_batches_tracked"]
    with pytest.raises(FailedCheck, match="2 keys missing"):
        load_into(Net(), state, rules)
    load_into(Net(), dict(state), rules)
