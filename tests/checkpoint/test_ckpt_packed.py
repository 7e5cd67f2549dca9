"""4-bit floats, two in a byte: between `.pth` and safetensors bit for bit, with the shapes that each format has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import remapkit

F4 = torch.float4_e2m1fn_x2
RULES = "remapkit: 1\nname: t\nrules: [{id: r, path: 'a.{x}', to: 'b.{x}'}]"


def make(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8).view(F4)


def read_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.view(torch.uint8).contiguous().numpy().tobytes()


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    turn=st.booleans(),
    to=st.sampled_from(["pth", "safetensors"]),
)
def test_they_are_renamed_bit_for_bit(
    shape: list[int], turn: bool, to: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The oracles are torch.load, and the bytes that safetensors itself writes for the same tensor."""
    folder = tmp_path_factory.mktemp("packed")
    tensor = make(*shape)
    state = {"a.w": tensor.transpose(0, -1) if turn else tensor, "a.other": torch.ones(2)}
    torch.save(state, folder / "in.pth")
    wanted = {"b.w": state["a.w"].view(torch.uint8).contiguous().view(F4), "b.other": torch.ones(2)}
    header = remapkit.header(folder / "in.pth")
    assert (header["a.w"].dtype, header["a.w"].shape) == (
        "F4",
        (*wanted["b.w"].shape[:-1], 2 * wanted["b.w"].shape[-1]),
    )
    remapkit.apply(remapkit.loads(RULES), folder / "in.pth", folder / f"out.{to}")
    if to == "pth":
        found = torch.load(folder / "out.pth", weights_only=True)
        assert found["b.w"].dtype == F4 and found["b.w"].shape == wanted["b.w"].shape
        assert read_bytes(found["b.w"]) == read_bytes(wanted["b.w"])
        return
    (folder / "own.safetensors").write_bytes(save(wanted))
    ours, own = (remapkit.open_checkpoint(folder / f"{name}.safetensors") for name in ("out", "own"))
    assert dict(ours.header()) == dict(own.header())
    assert b"".join(ours.chunks("b.w")) == b"".join(own.chunks("b.w"))


def test_there_and_back(tmp_path: Path) -> None:
    tensor = make(3, 4)
    (tmp_path / "in.safetensors").write_bytes(save({"a.w": tensor}))
    remapkit.apply(remapkit.loads(RULES), tmp_path / "in.safetensors", tmp_path / "out.pth")
    found = torch.load(tmp_path / "out.pth", weights_only=True)["b.w"]
    assert found.shape == (3, 4) and read_bytes(found) == read_bytes(tensor)


def test_bytes_and_pairs_in_one_storage_are_no_tie(tmp_path: Path) -> None:
    data = torch.randint(0, 256, (2, 4), dtype=torch.uint8)
    torch.save({"a": data.view(F4), "b": data.view(F4), "c": data}, tmp_path / "a.pth")
    assert remapkit.header(tmp_path / "a.pth").tied == (("a", "b"),)


def test_nothing_is_computed_from_them(tmp_path: Path) -> None:
    torch.save({"a.w": make(2, 4)}, tmp_path / "in.pth")
    rules = RULES.replace("to:", "ops: [transpose], to:")
    with pytest.raises(remapkit.RemapkitError, match="RK352"):
        remapkit.apply(remapkit.loads(rules), tmp_path / "in.pth", tmp_path / "out.safetensors")
