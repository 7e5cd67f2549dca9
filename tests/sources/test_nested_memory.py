"""Nested dicts of tensors in memory are read as a file with the same dicts; an open reader as its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.files.errors import FileFault
from remapkit.formats import open_checkpoint
from remapkit.formats.nested_memory import join_state_dict
from remapkit.tensors.from_torch import get_shape
from tests.sources.test_roots import bytes_of, flatten, read_all, tensor

WORDS = ["a", "b", "net", "net.unet", "model", "optimizer", "step"]
VALUES = st.builds(tensor) | st.sampled_from([3, "text", None, 1.5])
TREES = st.recursive(
    VALUES,
    lambda inner: (
        st.dictionaries(st.sampled_from(WORDS), inner, min_size=1, max_size=3) | st.lists(inner, max_size=2)
    ),
    max_leaves=9,
).filter(lambda value: isinstance(value, dict))


@settings(max_examples=150, deadline=None)
@given(tree=TREES, root=st.sampled_from([None, "net", "model.a", "."]))
def test_memory_is_read_as_the_file_with_the_same_dicts(tree: Any, root: str | None, tmp_path_factory: Any) -> None:
    """The oracle is the file: the same tensors under the same names, or an error with the same code."""
    path = tmp_path_factory.mktemp("m") / "m.pth"
    torch.save(tree, path)
    try:
        joined = join_state_dict(tree, get_shape, root)
    except FileFault as fault:
        with pytest.raises(remapkit.UnreadableCheckpoint) as caught:
            open_checkpoint(path, root=root)
        assert caught.value.diagnostics[0].code == fault.code
        return
    if joined is None:
        assert not any("." in fqn for fqn, _ in flatten({"x": list(flatten_lists(tree))}))
        assert not any(isinstance(value, dict) and any(flatten(value)) for value in tree.values())
        return
    with open_checkpoint(path, root=root) as reader:
        assert read_all(reader) == bytes_of(joined.tensors)
        assert reader.root == joined.root


def flatten_lists(value: Any) -> list[Any]:
    return [each for each in value.values() if isinstance(each, list)]


def test_a_dict_twice_and_one_in_itself() -> None:
    shared = {"w": tensor()}
    joined = join_state_dict({"m": {"x": shared, "n": {"v": tensor()}}}, get_shape)
    assert joined is not None and set(joined.tensors) == {"x.w", "n.v"}
    loop: dict[str, Any] = {"w": tensor()}
    loop["again"] = loop
    joined = join_state_dict({"m": loop}, get_shape)
    assert joined is not None and set(joined.tensors) == {"w"}


def test_extra_state_is_no_part_of_the_weights() -> None:
    state = {"w": tensor(), "x._extra_state": {"scale": tensor()}}
    assert join_state_dict(state, get_shape) is None


def test_load_into_and_a_rule_set_take_nested_dicts() -> None:
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(other.parameters())
    optimizer.step()
    checkpoint = {"state_dict": other.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    loaded = remapkit.load_into(model, checkpoint)
    assert torch.equal(model.weight, other.weight)
    assert "the state dict was found under 'state_dict'" in [note.title for note in loaded.notes]
    rules = remapkit.loads("remapkit: 1\nname: t\nrules: [{id: r, path: '{leaf:weight|bias}', to: 'x.{leaf}'}]")
    made = rules(checkpoint)
    assert set(made) == {"x.weight", "x.bias"} and made["x.weight"] is checkpoint["state_dict"]["weight"]
    two = {"a": other.state_dict(), "b": other.state_dict()}
    with pytest.raises(remapkit.FailedCheck, match="root='a' or root='b'"):
        remapkit.load_into(model, two)
    remapkit.load_into(model, two, root="b")
    with pytest.raises(remapkit.FailedCheck, match="RK406"):
        rules(two)


@pytest.mark.parametrize("declared", [False, True])
def test_an_open_reader_takes_a_root_and_segments(declared: bool, tmp_path: Path) -> None:
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    names = {f"net.module._orig_mod.{name}": value for name, value in other.state_dict().items()}
    torch.save({**names, "step": torch.tensor(1)}, tmp_path / "a.pth")
    source = "source: {root: [net], strip: [module]}\n" if declared else ""
    rules = remapkit.loads(f"remapkit: 1\nname: t\n{source}keep: ['{{leaf:weight|bias}}']")
    options: dict[str, Any] = {} if declared else {"root": "net", "strip": ["module"]}
    with open_checkpoint(tmp_path / "a.pth") as reader:
        loaded = remapkit.load_into(model, reader, rules, **options)
        assert torch.equal(model.weight, other.weight)
        assert {"RK413", "RK418"} <= {note.code for note in loaded.notes}
        with pytest.raises(remapkit.UnreadableCheckpoint, match="no tensors at root='nett'"):
            remapkit.load_into(model, reader, rules, root="nett")
        assert set(reader.header()) == {*names, "step"}, "the reader is the caller's, and open"
        assert len(list(reader.chunks("step"))) == 1
    with open_checkpoint(tmp_path / "a.pth", root="net") as reader:
        remapkit.load_into(model, reader, rules, root="net", strip=["module"])
