"""Files of ZeRO stage 3, whose parameters are elsewhere: refused with what to do, never converted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import remapkit

EMPTY = torch.empty(0, dtype=torch.bfloat16)


def make_partitioned(own: bool, buffers: bool) -> dict[str, object]:
    """What DeepSpeed saves for a model: an empty tensor for each parameter, buffers whole, and its own entries."""
    model = nn.Sequential(nn.Linear(4, 4), *([nn.BatchNorm1d(4)] if buffers else []))
    parameters = dict(model.named_parameters())
    module = {fqn: EMPTY if fqn in parameters else value for fqn, value in model.state_dict().items()}
    shapes = [{fqn: value.shape for fqn, value in parameters.items()}]
    return {"module": module, "param_shapes": shapes, "ds_version": "0.16.4"} if own else {"module": module}


@pytest.mark.parametrize("buffers", [True, False])
@pytest.mark.parametrize("root", [None, "module"])
def test_partitioned_parameters_are_refused(buffers: bool, root: str | None, tmp_path: Path) -> None:
    state = make_partitioned(True, buffers)
    torch.save(state, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(remapkit.UnreadableCheckpoint) as failed:
        remapkit.open_checkpoint(tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt", root=root)
    (problem,) = failed.value.diagnostics
    number, tensors = (4, 7) if buffers else (2, 2)
    assert problem.code == "RK409"
    assert problem.title == (
        f"{number} of {tensors} tensors under 'module' are empty, of shape [0]: "
        "ZeRO stage 3 has partitioned the parameters over its ranks"
    )
    assert "zero_to_fp32.py" in problem.help[0] and "0.weight" in problem.notes[0]


def test_a_module_without_deepspeeds_own_entries_is_refused_if_all_is_empty(tmp_path: Path) -> None:
    torch.save(make_partitioned(False, False), tmp_path / "a.pth")
    with pytest.raises(remapkit.UnreadableCheckpoint, match="ZeRO stage 3"):
        remapkit.header(tmp_path / "a.pth")


def test_an_empty_tensor_among_others_is_a_tensor(tmp_path: Path) -> None:
    for number, state in enumerate(
        (
            {"a": EMPTY},
            {"a": EMPTY, "b": EMPTY},
            {"a": EMPTY, "b": EMPTY, "c": torch.ones(1)},
            {"a": EMPTY.view(0, 4)},
        )
    ):
        torch.save(state, tmp_path / f"{number}.pth")
        assert list(remapkit.header(tmp_path / f"{number}.pth")) == list(state)
    torch.save({"module": {"a": torch.ones(2)}, "ds_version": "0.16.4"}, tmp_path / "stage2.pth")
    assert list(remapkit.header(tmp_path / "stage2.pth")) == ["a"]
