"""Arrays of numpy in pickles: to the bit what numpy has, and everything that numpy does not write is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.cli import app as cli
from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.formats import open_checkpoint

CODES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "I16": "i2", "U16": "u2", "F16": "f2", "I32": "i4", "U32": "u4",
    "F32": "f4", "C64": "c8", "F64": "f8", "I64": "i8", "U64": "u8", "C128": "c16",
}  # fmt: skip


class Raw:
    """Pickles as a call, with a state."""

    def __init__(self, function: Any, args: tuple[Any, ...], state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    code = draw(st.sampled_from(list(CODES.values())))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    count = int(np.prod(shape)) * draw(st.sampled_from([1, 1, 1, 20_000 if 0 not in shape else 1]))
    if count != int(np.prod(shape)):
        shape = (20_000, *shape)
    seed = draw(st.binary(min_size=16, max_size=16))
    flat = np.resize(np.frombuffer(seed, "u1"), count * np.dtype(code).itemsize)
    array = (flat & 1 if code == "?" else flat).view(code).reshape(shape)
    made = array.transpose(draw(st.permutations(range(len(shape)))))
    return np.asfortranarray(made) if draw(st.booleans()) else made.copy() if draw(st.booleans()) else made


def assert_read(path: Path, state: dict[str, np.ndarray], size: int) -> None:
    with open_checkpoint(path) as reader:
        assert list(reader.header()) == list(state)
        for fqn, array in state.items():
            spec = reader.header()[fqn]
            assert (CODES[spec.dtype], spec.shape) == (array.dtype.str[1:].replace("b1", "?"), array.shape)
            assert b"".join(reader.chunks(fqn, size)) == array.tobytes()
            if (extent := reader.extent(fqn)) is not None:
                assert path.read_bytes()[extent.offset : extent.offset + extent.length] == array.tobytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    state=st.dictionaries(st.sampled_from("abcd"), arrays(), min_size=1),
    protocol=st.integers(2, 5),
    saved=st.sampled_from(["pickle", "zip", "legacy"]),
    size=st.sampled_from([16, 1000, 1 << 18]),
)
def test_what_is_read_is_what_numpy_has(
    state: dict[str, np.ndarray], protocol: int, saved: str, size: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.pkl"
    whole = {"model": state, "__author__": "somebody", "lr": np.float32(0.1), "seen": np.int64(3)}
    if saved == "pickle":
        path.write_bytes(pickle.dumps(whole, protocol))
    else:
        torch.save(whole, path, pickle_protocol=protocol, _use_new_zipfile_serialization=saved == "zip")
    assert_read(path, state, size)


def test_raw_bytes_are_extents(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    for protocol, is_extent in ((2, False), (3, True), (4, True), (5, True)):
        path.write_bytes(pickle.dumps({"w": np.arange(6, dtype="f4")}, protocol))
        with open_checkpoint(path) as reader:
            assert (reader.extent("w") is not None) == is_extent
            assert reader.format == "pickle"


def test_an_array_among_tensors_and_statistics_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    model = {"w": torch.ones(2), "a": np.arange(3.0), "n": np.float64(1)}
    torch.save({"state_dict": model, "statistics": {"mean": np.zeros(5), "deviation": np.ones(5)}}, path)
    with open_checkpoint(path) as reader:
        assert list(reader.header()) == ["w", "a"]
        assert b"".join(reader.chunks("a")) == np.arange(3.0).tobytes()
        assert reader.root == "state_dict"


def test_an_array_that_is_shared_is_tied(tmp_path: Path) -> None:
    path, shared = tmp_path / "model.pkl", np.arange(3.0)
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps({"a": shared, "b": shared, "c": shared.copy()}, protocol))
        with open_checkpoint(path) as reader:
            assert reader.header().tied == (("a", "b"),)


def test_strict_pickle_knows_arrays(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps({"a": np.ones(3), "n": np.int64(3)}, protocol))
        with open_checkpoint(path, strict_pickle=True) as reader:
            assert list(reader.header()) == ["a"]
    path.write_bytes(pickle.dumps({"a": np.ones(3), "n": Raw(pytest.approx, (3,))}))
    with pytest.raises(UnreadableCheckpoint, match="RK411"):
        open_checkpoint(path, strict_pickle=True)


def test_commands_read_a_pickle(tmp_path: Path) -> None:
    path, out = tmp_path / "model.pkl", tmp_path / "out.safetensors"
    state = {"x.w": np.arange(6, dtype="f4").reshape(2, 3), "x.f": np.asfortranarray(np.ones((3, 2), "f2"))}
    path.write_bytes(pickle.dumps({"model": state}, 2))
    rules = tmp_path / "rules.yaml"
    rules.write_text("remapkit: 1\nname: t\nrules:\n  - {id: a, path: 'x.{n}', to: 'y.{n}'}\n")
    assert cli.main(["inspect", str(path)]) == 0
    assert cli.main(["apply", str(rules), str(path), "-o", str(out)]) == 0
    assert_read(out, {"y.w": state["x.w"], "y.f": state["x.f"]}, 1 << 18)
    model = torch.nn.Module()
    model.y = torch.nn.Module()
    model.y.w, model.y.f = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(3, 2).half())
    remapkit.load_into(model, path, rules)
    assert torch.equal(model.y.w.detach(), torch.from_numpy(state["x.w"]))


FUNCTION = np.ones(1).__reduce__()[0]
EMPTY = (np.ndarray, (0,), b"b")
F4 = np.dtype("f4")


def array(state: Any) -> Raw:
    return Raw(FUNCTION, EMPTY, state)


def dtype(code: str, state: Any) -> Raw:
    return Raw(np.dtype, (code, False, True), state)


PLAIN = (3, "<", None, None, None, -1, -1, 0)
WITH_METADATA = (4, *PLAIN[1:], {"a": 1})
REFUSED: dict[str, tuple[Any, str, str]] = {
    "too few bytes": (
        array((1, (2, 3), F4, False, b"1234")),
        "RK404",
        r"of shape \[2, 3\] and dtype float32 has 4 B",
    ),
    "too many bytes": (array((1, (1,), F4, False, b"12345678")), "RK404", "has 8 B of data, not 4 B"),
    "a huge shape": (array((1, (1 << 62, 1 << 62), F4, False, b"1234")), "RK404", "more than a file can have"),
    "a negative size": (array((1, (-1,), F4, False, b"1234")), "RK404", "not made of whole numbers"),
    "a shape of texts": (array((1, ("2",), F4, False, b"1234")), "RK404", "not made of whole numbers"),
    "a short state": (array((1, (1,), F4, False)), "RK404", "is a tuple of 4, not what numpy writes"),
    "another version": (array((2, (1,), F4, False, b"1234")), "RK404", "not what numpy writes"),
    "a state that is no tuple": (array([1, (1,), F4, False, b"1234"]), "RK404", "is a list, not what numpy writes"),
    "no dtype": (array((1, (1,), "f4", False, b"1234")), "RK404", "the dtype of a numpy.ndarray is a str"),
    "no bytes": (array((1, (1,), F4, False, [1])), "RK404", "the bytes of a numpy.ndarray are a list"),
    "text that is no bytes": (array((1, (1,), F4, False, "ab\u0394")), "RK404", "the bytes of a numpy.ndarray are"),
    "an order that is a number": (array((1, (1,), F4, 7, b"1234")), "RK404", "the order of a numpy.ndarray"),
    "no state": (Raw(FUNCTION, EMPTY), "RK409", "'x' is a numpy array without its content"),
    "another class": (Raw(FUNCTION, (Path, (0,), b"b")), "RK404", "'x' is a pathlib.* object, not a tensor"),
    "metadata": (
        array((1, (1,), dtype("f4", WITH_METADATA), False, b"1234")),
        "RK409",
        "'x' is a numpy array whose dtype has metadata",
    ),
    "a dtype's short state": (dtype("f4", (3, "<")), "RK404", "the state of a numpy.dtype is a tuple of 2"),
    "a byte order that is not one": (dtype("f4", (3, "!", *PLAIN[2:])), "RK404", "the byte order of a numpy.dtype"),
    "big-endian": (np.ones(3, ">f4"), "RK409", "'x' is a numpy array of big-endian numbers"),
    "objects": (np.array([{}], "O"), "RK409", "'x' is a numpy array of Python objects"),
    "strings": (np.array(["a"]), "RK409", "'x' is a numpy array of strings"),
    "records": (np.zeros(2, [("a", "f4")]), "RK409", "'x' is a numpy array of records"),
    "dates": (np.zeros(2, "M8[s]"), "RK409", "'x' is a numpy array of dates"),
    "long doubles": (np.zeros(2, "g"), "RK409", "'x' is a numpy array of dtype f16"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_tensor_is_refused_by_name(name: str, protocol: int, tmp_path: Path) -> None:
    value, code, words = REFUSED[name]
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"w": np.ones(2), "x": value}, protocol))
    with pytest.raises(UnreadableCheckpoint, match=words) as caught:
        open_checkpoint(path)
    assert caught.value.diagnostics[0].code == code


def test_a_pickle_without_arrays_and_what_follows_one(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(UnreadableCheckpoint, match="without arrays of numpy"):
        open_checkpoint(path)
    path.write_bytes(pickle.dumps({"a": np.ones(2)}) + b"more")
    with pytest.raises(UnreadableCheckpoint, match="4 B follow the end of the pickle"):
        open_checkpoint(path)


def test_the_same_text_encoded_again_and_again_is_charged(tmp_path: Path) -> None:
    text = b"X\x60\xea\x00\x00" + b"a" * 60_000 + b"q\x00"
    encode = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R0"
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02" + text + b"0" + encode * 3000 + b"}.")
    with pytest.raises(UnreadableCheckpoint, match="builds more than any checkpoint does"):
        open_checkpoint(path)
