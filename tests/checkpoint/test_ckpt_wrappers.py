"""Which mapping of a pickle is the state dict: the only one, or the one that is named; never a guess."""

from __future__ import annotations

import argparse
import collections
import enum
import pathlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.formats import open_checkpoint


class Mode(enum.Enum):
    FAST = 1


class Config:
    def __init__(self) -> None:
        self.name = "base"


def weights(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), value), "b": torch.full((3,), value)}


def refusal(path: Path, **options: Any) -> Diagnostic:
    with pytest.raises(UnreadableCheckpoint) as caught:
        open_checkpoint(path, **options)
    (diagnostic,) = caught.value.diagnostics
    return diagnostic


def lightning() -> dict[str, Any]:
    """What trainers save: a state dict among settings, counters and objects of every kind."""
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": collections.OrderedDict(weights(1.0)),
        "loops": {"fit_loop": {"state_dict": {}, "progress": [1, 2.5, None, True]}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": "", "dirpath": pathlib.PurePosixPath("/tmp")}},
        "hyper_parameters": {"args": argparse.Namespace(lr=0.1), "mode": Mode.FAST, "config": Config(), "z": 1 + 2j},
        "sets": ({1, 2}, frozenset({3}), b"bytes", bytearray(b"more"), range(3), collections.Counter("aab")),
        "long": 10**30,
        "text": "é😀" * 50_000,
        "deque": collections.deque([1], maxlen=3),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "default": collections.defaultdict(list, {"k": [1]}),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_trainers_checkpoint(zipped: bool, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(lightning(), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with open_checkpoint(path) as reader:
        assert reader.root == "state_dict"
        assert {fqn: spec.shape for fqn, spec in reader.header().items()} == {"w": (2, 3), "b": (3,)}
        notes = [f"{note.code} {note.title}" for note in reader.notes]
    assert notes[0] == "RK414 the state dict was found under 'state_dict'"
    assert notes[1].startswith("RK413 ")
    assert "objects were ignored (" in notes[1]
    assert "argparse.Namespace" in notes[1]
    strict = refusal(path, strict_pickle=True)
    assert strict.code == "RK411"
    assert "argparse.Namespace" in strict.title


def test_plain_values_are_no_objects(tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), "epoch": 1, "sizes": [1, (2, {"a": None})]}, tmp_path / "m.pth")
    with open_checkpoint(tmp_path / "m.pth", strict_pickle=True) as reader:
        assert len(reader.header()) == 2


@pytest.mark.parametrize("zipped", [True, False])
def test_several_candidates_are_listed_and_chosen_by_name(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"model": weights(1.0), "ema": {"shadow": weights(2.0)}}, path, _use_new_zipfile_serialization=zipped)
    found = refusal(path)
    assert found.code == "RK406"
    assert found.title == "2 mappings of tensors: which one is the state dict?"
    assert found.notes == ("model: 2 tensors, 36 B\nema.shadow: 2 tensors, 36 B",)
    assert found.help == ("choose one: --root model or --root ema.shadow",)
    for root, value in (("model", 1.0), ("ema.shadow", 2.0)):
        with open_checkpoint(path, root=root) as reader:
            assert reader.root == root
            assert b"".join(reader.chunks("b")) == torch.full((3,), value).numpy().tobytes()
    missing = refusal(path, root="emma")
    assert (missing.code, missing.title) == ("RK416", "no tensors at --root emma")
    assert missing.help == ("did you mean --root ema?",)
    with open_checkpoint(path, root=".") as reader:
        assert sorted(reader.header()) == ["ema.shadow.b", "ema.shadow.w", "model.b", "model.w"]


def test_an_optimizer_is_never_taken_for_the_model(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path = tmp_path / "m.pth"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    with open_checkpoint(path) as reader:
        assert reader.root == "model" and list(reader.header()) == list(model.state_dict())
        assert any("the state of an optimizer was ignored (12 tensors)" in str(note) for note in reader.notes)
    with open_checkpoint(path, root="optimizer.state.0") as reader:
        assert set(reader.header()) == {"step", "exp_avg", "exp_avg_sq"}
    torch.save({"model": model.state_dict(), "ema": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    found = refusal(path)
    assert found.code == "RK406" and "optimizer.state.* (4 mappings): 12 tensors" in found.notes[0]


def test_what_only_looks_like_an_optimizer_is_none(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": weights(1.0), "b": {"state": weights(2.0), "param_groups": [], "more": 1}}, path)
    assert refusal(path).code == "RK406"


def test_a_whole_module_is_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / "m.pth")
    found = refusal(tmp_path / "m.pth")
    assert found.title == "the file holds no mapping of tensors"
    assert found.help == ("a whole module was pickled: save `model.state_dict()` instead",)


@pytest.mark.parametrize(
    ("value", "title"),
    [
        ({}, "the file holds no mapping of tensors"),
        ([torch.zeros(2)], "the file holds no mapping of tensors"),
        ({1: torch.zeros(2)}, "the file holds no mapping of tensors"),
        (torch.zeros(2), "the file holds no mapping of tensors"),
        ({"w": torch.zeros(2), 5: torch.zeros(2)}, "a tensor under the key 5, which is not text"),
        ({"w": torch.zeros(2), ("a", "b"): torch.zeros(2)}, "a tensor under the key <a tuple>, which is not text"),
        ({"w\n": torch.zeros(2)}, "a key holds the control character U+000A"),
        (
            {"w\u202e": torch.zeros(2)},
            "a key holds U+202E, which changes the order or the lines in which text is shown",
        ),
        ({"w": torch.zeros(2), "cfg": Config()}, "Config object, not a tensor"),
    ],
)
def test_what_is_no_state_dict(value: Any, title: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "m.pth")
    assert title in refusal(tmp_path / "m.pth").title


def test_extra_state_and_settings_beside_the_tensors_are_left_aside_and_said(tmp_path: Path) -> None:
    state = {**weights(), "head._extra_state": Config(), "version": 3, "name": "x"}
    torch.save(state, tmp_path / "m.pth")
    with open_checkpoint(tmp_path / "m.pth") as reader:
        assert list(reader.header()) == ["w", "b"]
        texts = [note.title for note in reader.notes]
    assert any("2 entries beside the tensors ignored (version: an int and name: a str)" in text for text in texts)


NESTED = st.recursive(
    st.sampled_from(["leaf", 1, None]),
    lambda children: st.one_of(st.dictionaries(st.sampled_from("abcd"), children, max_size=3), st.lists(children)),
    max_leaves=6,
)


@settings(max_examples=60)
@given(value=NESTED, where=st.lists(st.sampled_from("abcd"), max_size=4))
def test_the_only_mapping_is_found_wherever_it_lies(value: Any, where: list[str], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("m") / "m.pth"
    whole: Any = weights()
    for key in reversed(where):
        whole = {"beside": value, key: whole}
    torch.save(whole, path)
    with open_checkpoint(path) as reader:
        assert reader.root == ".".join(where)
        assert list(reader.header()) == ["w", "b"]


def test_a_mapping_under_two_names_is_one(tmp_path: Path) -> None:
    state = weights()
    torch.save({"model": state, "alias": state}, tmp_path / "m.pth")
    with open_checkpoint(tmp_path / "m.pth") as reader:
        assert reader.root == "model"
