"""What readers say of files that are not what they look like, and which roots a message proposes.

Kinds covered: content that contradicts the name and polyglots, one mapping under several names, several mappings, and
what a trainer keeps beside the model, writing what cannot be read back, tensors without elements, wrong totals,
variants of an index, whole modules, messages of a server, absurdly long names.
"""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from remapkit.cli.app import main
from remapkit.diagnostics.errors import UnreadableCheckpoint
from remapkit.formats import open_checkpoint
from remapkit.formats import state_dict as wrappers
from remapkit.formats import zip_reader as archive
from remapkit.tensors.spec import MAX_NAME, find_name_problem


def refusal(path: Path, **options: Any) -> Any:
    with pytest.raises(UnreadableCheckpoint) as caught:
        open_checkpoint(path, **options)
    return caught.value.diagnostics[0]


def notes(path: Path, **options: Any) -> list[str]:
    with open_checkpoint(path, **options) as reader:
        return [f"{note.code} {note.title}" for note in reader.notes]


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), value), "b": torch.full((3,), value)}


# -------------------------------------------------------------------------------------------------


def test_D7_what_safetensors_sees_is_what_is_read(tmp_path: Path) -> None:
    """A header length of 0x04034b50 begins a file like a zip archive, and a zip lies in its data."""
    buffer = io.BytesIO()
    torch.save({"w": torch.full((4,), 666.0)}, buffer)
    data = buffer.getvalue() + bytes(-len(buffer.getvalue()) % 4)
    length = 0x04034B50
    header = json.dumps({"w": {"dtype": "F32", "shape": [len(data) // 4], "data_offsets": [0, len(data)]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header.ljust(length) + data)
    with open_checkpoint(path) as reader, safe_open(path, "pt") as opened:
        assert reader.format == "safetensors"
        assert b"".join(reader.chunks("w")) == data == opened.get_tensor("w").numpy().tobytes()


@pytest.mark.parametrize("where", ["before the first", "between two", "before the directory"])
@pytest.mark.parametrize("size", [1, 12, 24, 4096])
def test_D7_bytes_of_a_zip_that_belong_to_nothing(where: str, size: int, tmp_path: Path) -> None:
    content = with_gap(where, size)
    (tmp_path / "m.pth").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "m.pth") as opened:
        assert opened.testzip() is None, "other readers take it"
    found = refusal(tmp_path / "m.pth")
    assert found.code in ("RK403", "RK401")


def with_gap(where: str, size: int) -> bytes:
    """An archive of torch.save with foreign bytes in it, its directory corrected."""
    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    content = buffer.getvalue()
    with zipfile.ZipFile(buffer) as opened:
        infos, start = opened.infolist(), opened.start_dir
    at = {"before the first": 0, "between two": infos[1].header_offset, "before the directory": start}[where]
    raw = bytearray(content[:start])
    raw[at:at] = b"\xaa" * size
    directory = len(raw)
    for info in infos:
        offset = info.header_offset + (size if info.header_offset >= at else 0)
        name = info.filename.encode()
        fields = (20, 20, 0, 0, 0, 0, info.CRC, info.file_size, info.file_size, len(name), 0, 0, 0, 0, 0, offset)
        raw += b"PK\x01\x02" + struct.pack("<6H3L5H2L", *fields) + name
    raw += b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, len(infos), len(infos), len(raw) - directory, directory, 0)
    return bytes(raw)


def test_D7_a_reader_that_skips_gaps_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_check_gap", lambda source, entry, start, end: None)
    with pytest.raises(pytest.fail.Exception):
        test_D7_bytes_of_a_zip_that_belong_to_nothing("between two", 12, tmp_path)


def test_D7_data_descriptors_are_no_gaps(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: Any) -> int:
            raise io.UnsupportedOperation

    buffer, out = io.BytesIO(), Pipe()
    torch.save(weights(), buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    (tmp_path / "m.pth").write_bytes(out.getvalue())
    with open_checkpoint(tmp_path / "m.pth") as reader:
        assert len(reader.header()) == 2


@pytest.mark.parametrize("zipped", [True, False])
def test_D7_a_pickle_named_safetensors_is_said(zipped: bool, tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "m.safetensors", _use_new_zipfile_serialization=zipped)
    assert any("RK421" in note and "holds a pickle" in note for note in notes(tmp_path / "m.safetensors"))
    save_file(weights(), tmp_path / "m.pth")
    assert any("RK421" in note for note in notes(tmp_path / "m.pth"))
    torch.save(weights(), tmp_path / "ok.pth")
    assert notes(tmp_path / "ok.pth") == []


# -------------------------------------------------------------------------------------------------


def test_D9_one_mapping_under_two_names_is_found_by_both(tmp_path: Path) -> None:
    state = weights()
    torch.save({"model": state, "ema": {"shadow": state}}, tmp_path / "m.pth")
    for root in (None, "model", "ema.shadow"):
        with open_checkpoint(tmp_path / "m.pth", root=root) as reader:
            assert set(reader.header()) == {"w", "b"} and reader.root == (root or "model")
    with open_checkpoint(tmp_path / "m.pth", root="ema") as reader:
        assert set(reader.header()) == {"shadow.w", "shadow.b"}


TRAINERS_OWN: dict[str, Any] = {
    "loss": torch.tensor(0.5),
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(999)}}, "param_groups": []},
    "optimizer_states": [{"state": {"w": {"exp_avg": torch.zeros(999)}}, "param_groups": [], "more": 1}],
    "lr_scheduler": {"last": torch.ones(99)},
    "scheduler": {"base_lrs": torch.ones(99)},
    "rng_state": torch.zeros(5056, dtype=torch.uint8),
    "cuda_rng_states": {"gpu": torch.zeros(816, dtype=torch.uint8)},
    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.1)}},
    "scaler": {"scale": torch.ones(7)},
}


def helps_only(extra: list[str], models: list[str], folder: Path) -> None:
    """Either the one model is read, or every root that the help names is one of the models, and works."""
    path = folder / "m.pth"
    torch.save(
        {**{name: TRAINERS_OWN[name] for name in extra}, **{m: weights(float(n)) for n, m in enumerate(models)}}, path
    )
    try:
        with open_checkpoint(path) as reader:
            assert reader.root == models[0] and len(models) == 1
            return
    except UnreadableCheckpoint as error:
        (found,) = error.diagnostics
    named = " ".join(found.help).split("--root ")[1:]
    roots = {word.split()[0].rstrip(",") for word in named}
    assert roots == set(models) and found.code == "RK406"
    for root in roots:
        with open_checkpoint(path, root=root) as reader:
            assert set(reader.header()) == {"w", "b"}


@given(
    extra=st.lists(st.sampled_from(sorted(TRAINERS_OWN)), unique=True, max_size=5),
    models=st.lists(st.sampled_from(["model", "ema", "state_dict", "net"]), unique=True, min_size=1, max_size=3),
)
def test_D9_no_help_proposes_what_the_trainer_keeps(
    extra: list[str], models: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    helps_only(extra, models, tmp_path_factory.mktemp("m"))


def test_D9_a_help_that_takes_the_largest_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrappers, "_can_be_model", lambda candidate: True)
    with pytest.raises(AssertionError):
        helps_only(["lr_scheduler"], ["model"], tmp_path)


def test_D9_where_nothing_looks_like_a_model_none_is_proposed(tmp_path: Path) -> None:
    torch.save({"rng_state": torch.zeros(9), "scheduler": {"a": torch.ones(9)}}, tmp_path / "m.pth")
    assert "--root ." not in " ".join(refusal(tmp_path / "m.pth").help).replace("--root A.B", "")


# ----------------------------------------------------------------------------------------


def test_D19_what_is_written_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.ones(4)}, tmp_path / "m.pth")
    rules = tmp_path / "r.yaml"
    longest = "ü" * (MAX_NAME // 2)
    for name, code in ((longest, 0), (longest + "x", 1)):
        text = f"remapkit: 1\nname: r\nrules:\n  - {{id: a, path: w, to: '{{t}}{name[:1]}'}}\n"
        rules.write_text(text.replace("{t}", ""))
        assert find_name_problem(name) is None if code == 0 else "characters long" in str(find_name_problem(name))
    ones = ", ".join(["1"] * 70)
    rules.write_text(
        f"remapkit: 1\nname: r\nrules:\n  - {{id: a, path: w, ops: [{{reshape: [4, {ones}]}}], to: x}}\n"
    )
    for out in ("o.pth", "o.safetensors"):
        assert main(["apply", str(rules), str(tmp_path / "m.pth"), "-o", str(tmp_path / out)]) in (1, 2)
        assert "dimensions" in capsys.readouterr().err
        assert not (tmp_path / out).exists()


def test_D20_tensors_without_elements(tmp_path: Path) -> None:
    torch.save({"model": {f"layers.{n}.weight": torch.empty(0) for n in range(3)}}, tmp_path / "m.pth")
    (note,) = [note for note in notes(tmp_path / "m.pth") if "RK422" in note]
    assert note == "RK422 3 tensors of 3 have no elements"


@pytest.mark.parametrize(("total", "said"), [(40, 0), (39, 1), (0, 1), (10**18, 1), ("40", 0), (None, 0)])
def test_D20_the_total_of_an_index(total: Any, said: int, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(10)}, tmp_path / "m-00001-of-00001.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": {"a": "m-00001-of-00001.safetensors"}})
    )
    assert sum("RK423" in note for note in notes(index)) == said


def test_D20_an_index_of_a_variant_is_found_in_its_folder(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(10)}, tmp_path / "m.fp16-00001-of-00001.safetensors")
    index = tmp_path / "m.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": {"a": "m.fp16-00001-of-00001.safetensors"}}))
    assert notes(tmp_path) == []
    save_file({"a": torch.zeros(10)}, tmp_path / "m.fp16-00002-of-00001.safetensors")
    assert "does not list: m.fp16-00002-of-00001.safetensors" in notes(tmp_path)[0]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"model": net, "epoch": 3}])
def test_D20_a_whole_module_of_an_own_class(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    torch.save(wrap(Net()), tmp_path / "m.pth")
    (help,) = refusal(tmp_path / "m.pth").help
    assert "a whole module was pickled" in help and "Net" in help and "state_dict()" in help


@pytest.mark.parametrize(
    "value",
    [
        {"error": "Repository not found"},
        {"error": {"message": "Repository not found", "code": 404}},
        {"errors": ["Repository not found"]},
        {"message": "Repository not found", "documentation_url": "x"},
        {"detail": "Repository not found"},
    ],
)
def test_D20_what_a_server_said_instead_of_the_file(value: Any, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_text(json.dumps(value))
    found = refusal(tmp_path / "m.safetensors")
    assert (found.code, found.title) == ("RK401", "a message, not a checkpoint: Repository not found")


def test_D22_a_key_of_80_MB_is_refused_by_its_length_and_quickly(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"k." * 40_000_000: entry}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    started = time.process_time()
    found = refusal(tmp_path / "m.safetensors")
    assert "a name is 80,000,000 characters long" in found.title and len(found.place) < 1000
    assert time.process_time() - started < 20
