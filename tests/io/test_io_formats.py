"""What torch or safetensors wrote comes out of every route as it went in, to the bit, for torch and safetensors."""

from __future__ import annotations

import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from io_kit import convert, leftovers, moves_for, raw, read_back
from safetensors import safe_open
from safetensors.torch import save_file, save_model

from remapkit.diagnostics.errors import UnwritableOutput
from remapkit.formats import open_checkpoint
from remapkit.formats.safetensors import header_json
from remapkit.tensors.spec import TensorSpec
from remapkit.write import layout
from remapkit.write import torch_zip as zipout
from remapkit.write import writer as writing_module
from remapkit.write.execute import compare_output

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
DTYPES = (*FLOATS, *WHOLE, torch.bool, torch.complex64)
SOURCES = ("zip", "legacy", "safetensors", "sharded")
OUTPUTS = ("safetensors", "shards", "pth")
NAMES = st.text("abz.é0_", min_size=1, max_size=12).map(lambda text: f"k{text}")
SHAPES = st.one_of(st.just(()), st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of random bytes: whole, or a view of a larger one with an offset, strides, or swapped dimensions."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(SHAPES)
    kind = draw(st.sampled_from(("whole", "part", "transposed", "strided")))
    margin = draw(st.integers(0, 3)) if kind == "part" else 0
    numel = margin + 2 * (torch.Size(shape).numel() or 1) + 2
    seed = draw(st.integers(0, 1 << 30))
    data = torch.randint(
        0, 256, (numel * dtype.itemsize,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    if dtype is torch.bool:
        data %= 2
    flat = data.view(dtype)
    if kind == "strided" and shape:
        step = torch.empty((*shape[:-1], 2 * shape[-1])).stride()
        return flat.as_strided((*shape[:-1], 2 * shape[-1]), step)[..., ::2]
    whole = flat[margin : margin + torch.Size(shape).numel()].reshape(shape)
    return whole.transpose(0, -1) if kind == "transposed" and shape else whole if kind == "part" else whole.clone()


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Some tensors, some of them under two names, some as parameters."""
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    state: dict[str, torch.Tensor] = {}
    for name in names:
        tied = bool(state) and draw(st.integers(0, 4)) == 0
        state[name] = draw(st.sampled_from(list(state.values()))) if tied else draw(tensors())
        if state[name].is_floating_point() and draw(st.booleans()) and not tied:
            state[name] = torch.nn.Parameter(state[name], requires_grad=draw(st.booleans()))
    return state


def save(state: dict[str, torch.Tensor], kind: str, folder: Path) -> Path:
    """The state dict as `kind` of file; safetensors holds copies, since it knows no views and no ties."""
    if kind in ("zip", "legacy"):
        torch.save(state, folder / "m.pth", _use_new_zipfile_serialization=kind == "zip")
        return folder / "m.pth"
    whole = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    if kind == "safetensors":
        save_file(whole, folder / "m.safetensors", metadata={"note": "kept"})
        return folder / "m.safetensors"
    index = {}
    for number, name in enumerate(whole):
        file = f"m-{number + 1:05}-of-{len(whole):05}.safetensors"
        save_file({name: whole[name]}, folder / file)
        index[name] = file
    (folder / "m.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder / "m.safetensors.index.json"


def renamed(state: dict[str, torch.Tensor]) -> dict[str, str]:
    """New names in an order of their own: a name's new one is another's old one."""
    return dict(zip(state, [*list(state)[1:], next(iter(state))], strict=True))


def same_through(state: dict[str, torch.Tensor], source: str, output: str, untie: bool) -> None:
    """Save, convert, read back: every name has its dtype, its shape and its bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, out = save(state, source, folder), folder / "out" / ("o.pth" if output == "pth" else "o.safetensors")
        out.parent.mkdir()
        size = 64 if output == "shards" else None
        names = renamed(state)
        written = convert(path, out, names, shard_size=size, untie=untie, verify=True, metadata={"who": "me"})
        found = read_back(written.files)
        assert sorted([*found, *written.tied]) == sorted(state)
        assert not (written.tied and untie)
        for old, new in names.items():
            wanted, got = state[old], found[written.tied.get(new, new)]
            assert (got.dtype, tuple(got.shape)) == (wanted.dtype, tuple(wanted.shape)), new
            assert raw(got) == raw(wanted), new
        assert leftovers(out.parent) == []
        if output != "pth":
            tied_in_metadata(written.files[0], dict(written.tied))


def tied_in_metadata(file: Path, tied: dict[str, str]) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata == {"format": "pt", "who": "me", **tied}


PROPERTY = settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.slow
@PROPERTY
@given(state_dicts(), st.sampled_from(SOURCES), st.sampled_from(OUTPUTS), st.booleans())
def test_every_route_keeps_every_byte(state: dict[str, torch.Tensor], source: str, output: str, untie: bool) -> None:
    same_through(state, source, output, untie)


# ------------------------------------------------------------------------------------------------ planted faults


def wrong_offset(move: object, reader: object) -> object:
    piece = tensor_piece(move, reader)  # type: ignore[arg-type]
    shifted = isinstance(piece, layout.CopyPiece) and piece.nbytes
    return replace(piece, offset=piece.offset - 1) if shifted else piece  # type: ignore[call-arg, type-var]


def swapped(pieces: object) -> list[layout.Piece]:
    found = merged(pieces)  # type: ignore[arg-type]
    return [found[1], found[0], *found[2:]] if len(found) > 1 else found


def greedy(pieces: object) -> list[layout.Piece]:
    """Neighbours become one although they are no neighbours in their source."""
    found: list[layout.Piece] = []
    for piece in merged(pieces):  # type: ignore[arg-type]
        last = found[-1] if found else None
        if isinstance(piece, layout.CopyPiece) and isinstance(last, layout.CopyPiece):
            found[-1] = replace(last, nbytes=last.nbytes + piece.nbytes)
        else:
            found.append(piece)
    return found


tensor_piece, merged = layout.make_tensor_piece, layout._merge_pieces
small_add = writing_module.SmallPieces.add
strides, keys = zipout._compute_strides, zipout._assign_storage_keys
FAULTS: dict[str, tuple[object, str, object, str]] = {
    "an extent that begins one byte early": (layout, "make_tensor_piece", wrong_offset, "safetensors"),
    "an extent of a pth that begins one byte early": (zipout, "make_tensor_piece", wrong_offset, "pth"),
    "two extents swapped": (layout, "_merge_pieces", swapped, "safetensors"),
    "extents merged that are apart": (layout, "_merge_pieces", greedy, "safetensors"),
    "strides of the wrong order": (zipout, "_compute_strides", lambda shape: strides(shape)[::-1], "pth"),
    "everything is tied": (
        zipout,
        "_assign_storage_keys",
        lambda moves, tied: keys(moves, [[move.target for move in moves]]),
        "pth",
    ),
    "gathered without its strides": (
        writing_module,
        "read_target_chunks",
        lambda move, reader, run: iter([memoryview(bytes(move.spec.nbytes))]),
        "safetensors",
    ),
    "small pieces one byte off": (
        writing_module.SmallPieces,
        "add",
        lambda self, piece, at: small_add(self, piece, at + 1),
        "pth",
    ),
    "shards without the last tensor": (
        layout,
        "_split_into_shards",
        lambda moves, size: [[move] for move in moves[:-1]] or [list(moves)],
        "shards",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_property_finds_a_planted_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, planted, output = FAULTS[fault]
    monkeypatch.setattr(where, name, planted)
    # What the writer notices by itself would hide whether the property does.
    monkeypatch.setattr("remapkit.write.execute._compare_targets", lambda *_: None)

    @settings(PROPERTY, max_examples=200, database=None, phases=[Phase.generate], derandomize=True)
    @given(state_dicts(), st.sampled_from(("zip", "safetensors")))
    def holds(state: dict[str, torch.Tensor], source: str) -> None:
        same_through(state, source, output, False)

    with pytest.raises(Exception) as caught:
        holds()
    assert not isinstance(caught.value, UnwritableOutput)


# ------------------------------------------------------------------------------------------------ by name


def tied_state() -> dict[str, torch.Tensor]:
    shared = torch.randn(4, 3)
    return {"embed": shared, "head": shared, "view": shared[1:], "other": torch.ones(2)}


def test_tied_weights_stay_tied_in_a_pth_and_are_recorded_in_safetensors(tmp_path: Path) -> None:
    torch.save(tied_state(), tmp_path / "m.pth")
    names = {name: name.upper() for name in tied_state()}
    convert(tmp_path / "m.pth", tmp_path / "o.pth", names)
    back = torch.load(tmp_path / "o.pth", weights_only=True)
    assert back["EMBED"].data_ptr() == back["HEAD"].data_ptr() != back["VIEW"].data_ptr()
    written = convert(tmp_path / "m.pth", tmp_path / "o.safetensors", names)
    assert written.tied == {"HEAD": "EMBED"}
    with safe_open(tmp_path / "o.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "HEAD": "EMBED"}
        assert "HEAD" not in opened.keys()  # noqa: SIM118
    convert(tmp_path / "m.pth", tmp_path / "u.safetensors", names, untie=True)
    with safe_open(tmp_path / "u.safetensors", "pt") as opened:
        assert torch.equal(opened.get_tensor("HEAD"), opened.get_tensor("EMBED"))


def test_a_tie_is_recorded_as_safetensors_does(tmp_path: Path) -> None:
    """`load_model` of safetensors fills both names from our file, as from its own."""
    from safetensors.torch import load_model

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Linear(3, 3, bias=False)
            self.head = torch.nn.Linear(3, 3, bias=False)
            self.head.weight = self.embed.weight

    model, other = Tied(), Tied()
    save_model(model, str(tmp_path / "theirs.safetensors"))
    torch.save(model.state_dict(), tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "ours.safetensors", {name: name for name in model.state_dict()})
    load_model(other, str(tmp_path / "ours.safetensors"))
    assert torch.equal(other.head.weight, model.embed.weight)


@pytest.mark.parametrize("output", ["o.safetensors", "o.pth", "shards"])
def test_the_same_input_gives_the_same_bytes(output: str, tmp_path: Path) -> None:
    torch.save(tied_state(), tmp_path / "m.pth")
    found = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        options: dict[str, object] = {"shard_size": 40} if output == "shards" else {}
        written = convert(tmp_path / "m.pth", folder / output.replace("shards", "o.safetensors"), **options)
        found.append([(path.name, path.read_bytes()) for path in written.files])
    assert found[0] == found[1]


def test_what_safetensors_has_no_name_for_is_refused_and_a_pth_holds_it(tmp_path: Path) -> None:
    state = {"w": torch.randn(3, dtype=torch.complex128)}
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(UnwritableOutput, match="C128, which safetensors does not support"):
        convert(tmp_path / "m.pth", tmp_path / "o.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]
    convert(tmp_path / "m.pth", tmp_path / "o.pth")
    assert raw(torch.load(tmp_path / "o.pth", weights_only=True)["renamed.w"]) == raw(state["w"])


def test_a_pth_is_a_sound_zip_with_aligned_storages(tmp_path: Path) -> None:
    state = {f"w{n}": torch.randn(n) for n in range(5)}
    save_file(state, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "o.pth", metadata={"who": "me"})
    with zipfile.ZipFile(tmp_path / "o.pth") as archive:
        assert archive.testzip() is None, "every checksum fits"
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            with (tmp_path / "o.pth").open("rb") as file:
                file.seek(entry.header_offset + 26)
                name, extra = struct.unpack("<2H", file.read(4))
            assert (entry.header_offset + 30 + name + extra) % 64 == 0
    with open_checkpoint(tmp_path / "o.pth") as reader:
        assert reader.header().metadata == {"who": "me"}


@pytest.mark.slow
def test_more_than_65535_entries_are_written_with_zip64(tmp_path: Path) -> None:
    header = header_json(((f"w{n}", TensorSpec("U8", (1,))) for n in range(66_000)), {})
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(66_000))
    convert(tmp_path / "m.safetensors", tmp_path / "o.pth")
    with zipfile.ZipFile(tmp_path / "o.pth") as archive:
        assert len(archive.namelist()) == 66_003
    with open_checkpoint(tmp_path / "o.pth") as reader:
        assert len(reader.header()) == 66_000


def test_more_than_4_gb_are_written_with_zip64(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The limit is lowered instead of writing 4 GB: what is past it has its sizes and its place in 64 bits."""
    monkeypatch.setattr(zipout, "_MAX32", 500)
    save_file({"a": torch.arange(1000), "b": torch.arange(1000)}, tmp_path / "m.safetensors")
    data = convert(tmp_path / "m.safetensors", tmp_path / "o.pth").files[0].read_bytes()
    end = data.index(b"PK\x06\x06")
    count, size, at = struct.unpack_from("<8xQQQ", data, end + 24)
    assert (count, data[at : at + 4], at + size) == (5, b"PK\x01\x02", end)
    extra = data.index(struct.pack("<HHQQ", 1, 24, 8000, 8000), at)
    (local,) = struct.unpack_from("<Q", data, extra + 20)
    assert data[local : local + 4] == b"PK\x03\x04"
    assert struct.pack("<HHQQ", 1, 16, 8000, 8000) in data[local : local + 100]


def test_verify_finds_what_differs(tmp_path: Path) -> None:
    state = {"a": torch.arange(300.0), "b": torch.arange(300.0) + 1}
    save_file(state, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "o.safetensors")
    moves = moves_for(tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.safetensors") as reader:
        assert compare_output(moves, reader, tmp_path / "o.safetensors") == 2
        data = bytearray((tmp_path / "o.safetensors").read_bytes())
        data[-1] ^= 1
        (tmp_path / "o.safetensors").write_bytes(data)
        with pytest.raises(UnwritableOutput, match="1 of 2 tensors were written incorrectly") as caught:
            compare_output(moves, reader, tmp_path / "o.safetensors")
    assert "renamed.b" in str(caught.value) and caught.value.exit_code == 1


def test_a_pth_whose_own_checksum_is_wrong_does_not_pass_verify(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "m.pth")
    data = bytearray((tmp_path / "m.pth").read_bytes())
    at = data.index(torch.arange(1000.0).numpy().tobytes())
    data[at] ^= 1
    (tmp_path / "m.pth").write_bytes(data)
    with pytest.raises(Exception, match="checksum"):
        convert(tmp_path / "m.pth", tmp_path / "o.safetensors", verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


def every_reader() -> list[Callable[[Path], object]]:
    return [
        lambda path: torch.load(path, weights_only=True, mmap=True),
        lambda path: torch.load(path, weights_only=True),
    ]


@pytest.mark.parametrize("load", every_reader())
def test_a_pth_of_parameters_and_views_loads_in_torch(load: Callable[[Path], object], tmp_path: Path) -> None:
    whole = torch.randn(6, 5)
    torch.save({"t": whole.T, "p": torch.nn.Parameter(whole[2:4]), "n": torch.tensor(3)}, tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "o.pth", {name: name for name in "tpn"})
    back = load(tmp_path / "o.pth")
    assert isinstance(back, dict) and list(back) == ["t", "p", "n"]
    assert torch.equal(back["t"], whole.T) and torch.equal(back["p"], whole[2:4]) and back["n"] == 3
