"""Mutated files of every kind: whatever comes, a reader reads it or refuses it with one message."""

from __future__ import annotations

import io
import json
import os
import random
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks import ATTACKS
from hostile_kit import Archive, Entry
from safetensors.torch import save as save_safetensors

from remapkit.diagnostics.errors import RemapkitError
from remapkit.formats import open_checkpoint
from remapkit.formats.pickle import machine as pickle
from remapkit.formats.pickle import opcodes

COUNT = int(os.environ.get("REMAPKIT_FUZZ", "5000")) // 5
"""How many files of each kind; set REMAPKIT_FUZZ=60000 for a longer run."""
MOST = 100_000_000
"""More bytes than this no file of a few kilobytes may give."""


def state() -> dict[str, Any]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    weights = {
        "w": base,
        "view": base[:, ::2],
        "half": base[0].to(torch.bfloat16),
        "f8": base[1].to(torch.float8_e5m2),
    }
    weights |= {"scalar": torch.tensor(3), "none": torch.zeros(0, 2), "p": torch.nn.Parameter(torch.ones(2))}
    return {"state_dict": weights, "epoch": 3, "lr": 0.1, "names": ["a", ("b", None)], "big": 10**20}


def saved(zipped: bool, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(state(), buffer, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return buffer.getvalue()


def bytewise(content: bytes, random: random.Random, ends: int = 0) -> bytes:
    """A few bytes changed, put in, taken away or repeated; `ends` keeps to the last so many bytes."""
    raw = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(max(0, len(raw) - ends) if ends else 0, len(raw) + 1)
        what = random.randrange(6)
        if what == 0 and at < len(raw):
            raw[at] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)])
        elif what == 1:
            raw[at:at] = bytes(random.randrange(256) for _ in range(random.randint(1, 4)))
        elif what == 2:
            del raw[at : at + random.randint(1, 8)]
        elif what == 3:
            raw[at:at] = raw[at : at + random.randint(1, 40)]
        elif what == 4:
            raw[at : at + 4] = random.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\0\0\0\x80"])
        elif at < len(raw):
            raw[at] ^= 1 << random.randrange(8)
    return bytes(raw)


OPCODES = [bytes([opcode]) for opcode in opcodes.OPCODES]


def opcodewise(content: bytes, random: random.Random) -> bytes:
    """Opcodes put in and exchanged, so that the damage is in what they say rather than in how they are written."""
    raw = bytearray(content)
    for _ in range(random.randint(1, 6)):
        at = random.randrange(2, len(raw))
        raw[at : at + random.randint(0, 1)] = random.choice(OPCODES)
    return bytes(raw)


def repacked(content: bytes, change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive whose pickle is changed and whose checksums are right, so that the pickle is looked at."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        entries = [(info.filename, old.read(info)) for info in old.infolist()]
    return Archive(
        [
            Entry(name, change(raw) if name.endswith("data.pkl") else raw, deflate=method == zipfile.ZIP_DEFLATED)
            for name, raw in entries
        ]
    ).bytes()


def tables(content: bytes, random: random.Random) -> bytes:
    """Damage to local headers, the directory and the end record only."""
    raw = bytearray(content)
    places = [at for at in range(len(raw) - 4) if raw[at : at + 2] == b"PK"]
    for _ in range(random.randint(1, 3)):
        at = random.choice(places) + random.randrange(4, 46)
        if at + 4 < len(raw):
            raw[at : at + random.choice([1, 2, 4])] = random.choice(
                [b"\0", b"\xff\xff", b"\xff\xff\xff\xff", b"\1\0", b"\x08\0"]
            )
    return bytes(raw)


def indexes(random: random.Random) -> bytes:
    whole = json.dumps(
        {"metadata": {"total_size": 1}, "weight_map": {"a": "s.safetensors", "b": "t.bin", "c": "s.safetensors"}}
    )
    return bytewise(whole.encode(), random)


def manifests(random: random.Random) -> bytes:
    whole = json.dumps(
        {"a.w": {"dtype": "F32", "shape": [2, 3]}, "__metadata__": {"k": "v"}, "b": {"dtype": "U8", "shape": []}}
    )
    return bytewise(whole.encode(), random)


ZIP, OLD = saved(True), saved(False)
DEFLATED = repacked(ZIP, lambda raw: raw, zipfile.ZIP_DEFLATED)
LATE = saved(True, 4)
SAFE = save_safetensors({"a": torch.arange(6.0), "b": torch.zeros(2, 2, dtype=torch.int16)}, {"format": "pt"})
LARGE = re.compile(r"MB|million|300,000|2,000|digits|bomb")
NAMED = {name: attack for group in ATTACKS.values() for name, attack in group.items() if not LARGE.search(name)}
SMALL = [content for attack in NAMED.values() if len(content := attack.make()) < 20_000]

KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "any byte of an archive": lambda random: bytewise(ZIP, random),
    "the directory of an archive": lambda random: bytewise(ZIP, random, 1200),
    "the tables of an archive": lambda random: tables(ZIP, random),
    "a deflated archive": lambda random: bytewise(DEFLATED, random),
    "the pickle of an archive": lambda random: repacked(ZIP, lambda raw: bytewise(raw, random)),
    "the opcodes of a pickle": lambda random: repacked(ZIP, lambda raw: opcodewise(raw, random)),
    "the opcodes of protocol 4": lambda random: repacked(LATE, lambda raw: opcodewise(raw, random)),
    "a legacy file": lambda random: bytewise(OLD[: random.choice([len(OLD), 900])], random),
    "the opcodes of a legacy file": lambda random: opcodewise(OLD, random),
    "a safetensors file": lambda random: bytewise(SAFE, random),
    "an index": indexes,
    "a manifest": manifests,
    "an attack, changed": lambda random: bytewise(random.choice(SMALL), random),
    "noise behind a magic number": lambda random: (
        random.choice([b"PK\x03\x04", b"\x80\x02", b"\x80\x04", OLD[:60], b"{", b"\x10" + bytes(7) + b"{"])
        + random.randbytes(random.randrange(400))
    ),
}


def read(path: Path, **options: Any) -> str:
    """How a file is taken: `read`, or the code of its one refusal. Anything else is a failure of the test."""
    try:
        with open_checkpoint(path, **options) as reader:
            header = reader.header()
            assert header.nbytes < MOST
            for fqn, spec in header.items():
                assert sum(len(piece) for piece in reader.chunks(fqn)) == spec.nbytes
                extent = reader.extent(fqn)
                assert extent is None or 0 <= extent.offset <= extent.offset + extent.length <= extent.source.size
            reader.check_sums()
        return "read"
    except RemapkitError as error:
        (one,) = error.diagnostics
        assert error.exit_code == 2
        assert one.title.isprintable(), one.title
        assert len(one.title) < 2000
        return one.code


@pytest.mark.parametrize("kind", KINDS)
def test_only_refusals_come_out(kind: str, tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_bytes(SAFE)
    torch.save({"b": torch.zeros(1)}, tmp_path / "t.bin")
    generator = random.Random(zlib.crc32(kind.encode()))
    path = tmp_path / "m"
    count = COUNT if "archive" not in kind else COUNT // 2
    for number in range(count):
        content = KINDS[kind](generator)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            taken = read(path) if kind != "a manifest" else reads_manifest(path)
            if taken == "RK406":
                read(path, root="state_dict")
        except Exception as error:
            raise AssertionError(f"number {number} of {kind}: {error!r}\n{content!r}") from error


def reads_manifest(path: Path) -> str:
    """A manifest has no data: only its header is read."""
    try:
        with open_checkpoint(path) as reader:
            assert reader.format == "manifest"
            assert reader.header().nbytes < 1 << 80
        return "read"
    except RemapkitError as error:
        (one,) = error.diagnostics
        assert one.title.isprintable()
        return one.code


def test_the_fuzzer_sees_a_planted_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memo that raises KeyError where a slot was never written: the opcode fuzzer comes upon it."""
    monkeypatch.setattr(pickle.Machine, "recall", lambda self, index: self.push(self.memo[index]))
    with pytest.raises(AssertionError, match="KeyError"):
        test_only_refusals_come_out("the opcodes of a pickle", tmp_path)
