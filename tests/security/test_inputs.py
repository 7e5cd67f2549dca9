"""What lies beside a checkpoint comes from strangers too: journals, JSON files, paths that a rule file names.

Kinds covered: globals that nothing in a pickle uses, sources that become shorter while they are read, configs and
other small JSON that is no file, endless, deep or says a name twice, tensors below a byte, journals, and paths that
lead out of a rule file's folder.
"""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_kit import call, legacy, mapping, name, pth, tensor, text
from safetensors.torch import load_file, save_file

from remapkit.cli.app import main
from remapkit.diagnostics.errors import UnreadableCheckpoint, UnwritableOutput
from remapkit.files import strict_json as strictjson
from remapkit.files.atomic import journal_path
from remapkit.formats import open_checkpoint
from remapkit.formats import strided as views
from remapkit.formats.pickle import allowlist as allowed
from remapkit.formats.safetensors import header_json
from remapkit.tensors.spec import TensorSpec
from remapkit.write import in_place as inplace

COUNT = int(os.environ.get("REMAPKIT_FUZZ", "300"))

# -------------------------------------------------------------------------------------------------

GADGETS = (
    "trace.Trace.run",
    "profile.Profile.run",
    "numpy.testing._private.utils.runstring",
    "logging.FileHandler",
    "imaplib.IMAP4_stream",
    "_pyrepl.pager.pipe_pager",
    "my.Thing",
    "torch.nn.modules.linear.Linear",
    "functools.partial",
)


def popped(gadget: str) -> bytes:
    return call(gadget, text("x")) + b"0" + mapping(w=tensor())


def only_named(gadget: str) -> bytes:
    return name(gadget) + b"0" + mapping(w=tensor())


def state(gadget: str) -> bytes:
    return (
        name("collections.OrderedDict")
        + b")R"
        + b"("
        + text("w")
        + tensor()
        + b"u"
        + mapping(a=call(gadget, text("x")))
        + b"b"
    )


def stacked(gadget: str) -> bytes:
    module, _, leaf = gadget.rpartition(".")
    return text(module) + text(leaf) + b"\x930" + mapping(w=tensor())


def instance(gadget: str) -> bytes:
    module, _, leaf = gadget.rpartition(".")
    return b"(i" + module.encode() + b"\n" + leaf.encode() + b"\n0" + mapping(w=tensor())


def as_argument(gadget: str) -> bytes:
    return mapping(w=tensor()) + call("builtins.set", call(gadget, text("x"))) + b"0"


@pytest.mark.parametrize("make", [pth, legacy])
@pytest.mark.parametrize("place", [popped, only_named, state, stacked, instance, as_argument])
@pytest.mark.parametrize("gadget", GADGETS)
def test_D5_a_global_is_held_against_one_list_wherever_it_is_named(
    gadget: str, place: Callable[[str], bytes], make: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    (tmp_path / "m").write_bytes(make(place(gadget)))
    with pytest.raises(UnreadableCheckpoint) as caught:
        open_checkpoint(tmp_path / "m", strict_pickle=True)
    (found,) = caught.value.diagnostics
    assert found.code in ("RK411", "RK404") and gadget in found.title


def test_D5_a_list_of_what_is_reachable_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: what lies in the object only is looked at."""
    monkeypatch.setattr(allowed, "is_allowed", lambda name: True)
    monkeypatch.setattr("remapkit.formats.state_dict.is_allowed", lambda name: True)
    with pytest.raises(pytest.fail.Exception):
        test_D5_a_global_is_held_against_one_list_wherever_it_is_named("my.Thing", popped, pth, tmp_path)


def test_D5_without_the_option_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(pth(popped("my.Thing")))
    with open_checkpoint(tmp_path / "m") as reader:
        assert any("my.Thing" in note.title and "were not imported" in note.title for note in reader.notes)


def test_D5_state_dicts_pass(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    whole = {
        "state_dict": model.state_dict(),
        "epoch": 1,
        "size": torch.Size([1]),
        "kind": torch.float16,
        "ids": {1, 2},
    }
    for zipped in (True, False):
        torch.save(whole, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
        with open_checkpoint(tmp_path / "m.pth", strict_pickle=True) as reader:
            assert len(reader.header()) == 7


# -------------------------------------------------------------------------------------------------

CHILD = """
import sys, torch
from pathlib import Path
from remapkit import open_checkpoint, RemapkitError, load
from remapkit.formats import strided as views
from remapkit.write.execute import write_checkpoint
from remapkit.compute import stream
views._STRIPE = 1 << 16
stream.STRIPE, stream.TRANSPOSED = 1 << 16, 1 << 16 | 1
source, rules, out = map(Path, sys.argv[1:])
def cut(*_):
    with source.open("r+b") as file:
        file.truncate(4096)
with open_checkpoint(source) as reader:
    plan = load(rules).plan(reader)
    try:
        write_checkpoint(plan.moves, reader, out, progress=lambda *_: cut())
    except RemapkitError as error:
        print(error.diagnostics[0].code)
print(sorted(path.name for path in out.parent.iterdir()))
"""


@pytest.mark.parametrize("kind", ["a strided view", "an operation"])
def test_D10_a_source_that_becomes_shorter_ends_no_process(kind: str, tmp_path: Path) -> None:
    import subprocess
    import sys

    weight = torch.arange(1_000_000.0).view(1000, 1000)
    torch.save({"w": weight.T if kind == "a strided view" else weight}, tmp_path / "m.pth")
    ops = "" if kind == "a strided view" else ", ops: [transpose]"
    (tmp_path / "r.yaml").write_text(f"remapkit: 1\nname: r\nrules: [{{id: a, path: w, to: v{ops}}}]\n")
    (tmp_path / "out").mkdir()
    arguments = [tmp_path / "m.pth", tmp_path / "r.yaml", tmp_path / "out" / "o.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["RK412", "[]"]


@pytest.mark.parametrize("seed", range(40))
def test_D10_any_view_is_gathered_to_the_bit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    draw = random.Random(seed)
    monkeypatch.setattr(views, "_NEAR", draw.choice([1, 16, 64]))
    monkeypatch.setattr(views, "_DENSE", draw.choice([1, 64, 4096]))
    monkeypatch.setattr(views, "_STRIPE", draw.choice([8, 64, 1 << 20]))
    shape = [draw.randint(1, 5) for _ in range(draw.randint(0, 4))]
    strides = [draw.choice([0, 1, 2, 3, 7, 20]) for _ in shape]
    dtype = draw.choice(["F32", "I8", "C128", "BF16"])
    width = {"F32": 4, "I8": 1, "C128": 16, "BF16": 2}[dtype]
    last = 3 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    storage = bytes(draw.randbytes((last + 1) * width))
    from remapkit.formats.pickle.values import PickledStorage, PickledTensor

    found = b"".join(
        bytes(piece)
        for piece in views.gather(
            lambda at, length: storage[at : at + length],
            PickledTensor(PickledStorage("0", dtype, last + 1), dtype, 3, tuple(shape), tuple(strides)),
            draw.choice([1, 16, 1 << 18]),
        )
    )
    expected = np.ndarray(shape, f"V{width}", storage, 3 * width, [s * width for s in strides])
    assert found == expected.tobytes()


# -------------------------------------------------------------------------------------------------

CONFIGS: dict[str, Callable[[Path], None]] = {
    "200 kB of brackets": lambda path: path.write_bytes(b"[" * 200_000) and None,
    "objects in objects": lambda path: path.write_bytes(b'{"a":' * 100_000) and None,
    "a pipe": lambda path: os.mkfifo(path),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a name twice": lambda path: path.write_text('{"heads": 4, "heads": 8}') and None,
    "a number of 100,000 digits": lambda path: path.write_text('{"heads": ' + "9" * 100_000 + "}") and None,
    "NaN": lambda path: path.write_text('{"heads": NaN}') and None,
    "20 MB": lambda path: path.write_bytes(b'{"a": "' + b"x" * 20_000_000 + b'"}') and None,
    "not UTF-8": lambda path: path.write_bytes(b'{"a": "\xff"}') and None,
    "no object": lambda path: path.write_text("[1]") and None,
    "nothing": lambda path: path.write_bytes(b"") and None,
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("command", ["--config", "--pairs", "--model-config"])
def test_D12_small_json(kind: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    CONFIGS[kind](path)
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors")
    rules = tmp_path / "r.yaml"
    rules.write_text("remapkit: 1\nname: r\nparams: {heads: {config: heads}}\nkeep: [w]\n")
    source = str(tmp_path / "m.safetensors")
    arguments = {
        "--config": ["apply", str(rules), source, "-o", str(tmp_path / "o.safetensors"), "--config", str(path)],
        "--pairs": ["learn", source, source, "-o", "-", "--pairs", str(path)],
        "--model-config": [
            "check",
            str(rules),
            "--ckpt",
            source,
            "--param",
            "heads=1",
            "--model",
            "py:torch.nn:Linear",
            "--model-config",
            str(path),
        ],
    }
    assert main(arguments[command]) == 2
    said = capsys.readouterr().err
    assert "RK611" in said and said.count("error[") == 1 and len(said) < 2000


def test_D12_a_reader_that_takes_the_last_of_two_names_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(strictjson, "_find_duplicate", lambda pairs: None)
    with pytest.raises(AssertionError):
        test_D12_small_json("a name twice", "--config", tmp_path, capsys)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
@pytest.mark.parametrize(
    "rule",
    [
        "{id: c, concat: {dim: 0, from: [a, b]}, to: z}",
        "{id: s, match: '(?P<n>[ab])', stack: {dim: 0, by: n}, to: z}".replace("(?P<n>[ab])", "x(?P<n>[01])"),
        "{id: t, path: '{n:a|b}', ops: [transpose], to: 'z.{n}'}",
    ],
)
def test_D12_elements_below_a_byte(dtype: str, rule: str) -> None:
    spec = TensorSpec(dtype, (8, 8))
    names = ["x0", "x1"] if "stack" in rule else ["a", "b"]
    from remapkit.api.ruleset import compile_rules
    from remapkit.rulefile.read import read_text

    plan = compile_rules(read_text(f"remapkit: 1\nname: r\nrules: [{rule}]\n")).plan(dict.fromkeys(names, spec))
    assert {"RK425", "RK352"} & {each.code for each in plan.problems}
    renamed = compile_rules(read_text("remapkit: 1\nname: r\nrules: [{id: a, path: '{n}', to: 'z.{n}'}]\n"))
    assert renamed.plan(dict.fromkeys(names, spec)).ok


# -------------------------------------------------------------------------------------------------


def victim(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    path.unlink(missing_ok=True)
    save_file({"w": torch.arange(500.0), "v": torch.ones(3)}, path)
    return path


def honest(path: Path) -> inplace.Journal:
    """What a rename of the file would have written."""
    with open_checkpoint(path) as reader:
        header = reader.header()
        start = reader.extent(next(iter(header))).offset  # type: ignore[union-attr]
    old = path.read_bytes()[:start]
    raw = header_json(((f"renamed.{fqn}", spec) for fqn, spec in header.items()), {})
    insert = 0 if len(raw) + 8 <= start else inplace.BLOCK
    new = (start + insert - 8).to_bytes(8, "little") + raw.ljust(start + insert - 8)
    return inplace.Journal(path.name, path.stat().st_size, insert, old, new)


def packed(facts: bytes, old: bytes, new: bytes) -> bytes:
    body = struct.pack("<3Q", len(facts), len(old), len(new)) + facts + old + new
    return inplace._MAGIC + struct.pack("<L", zlib.crc32(body)) + body


def facts(journal: inplace.Journal, **changed: Any) -> bytes:
    return json.dumps({"file": journal.file, "size": journal.size, "insert": journal.insert} | changed).encode()


JOURNALS: dict[str, Callable[[inplace.Journal], bytes]] = {
    "nothing": lambda j: b"",
    "a magic number": lambda j: inplace._MAGIC,
    "lengths of 2^63": lambda j: inplace._MAGIC + struct.pack("<L3Q", 0, *[1 << 63] * 3),
    "facts that are no JSON": lambda j: packed(b"{", j.old, j.new),
    "facts that are a list": lambda j: packed(b"[]", j.old, j.new),
    "facts in 100,000 brackets": lambda j: packed(b"[" * 100_000, j.old, j.new),
    "no size": lambda j: packed(b'{"file": "m.safetensors", "insert": 0}', j.old, j.new),
    "a size that is text": lambda j: packed(facts(j, size="9"), j.old, j.new),
    "a negative size": lambda j: packed(facts(j, size=-1), j.old, j.new),
    "a size of 2^80": lambda j: packed(facts(j, size=1 << 80), j.old, j.new),
    "an insert of 4 GB": lambda j: packed(facts(j, insert=1 << 32), j.old, j.new),
    "a negative insert": lambda j: packed(facts(j, insert=-4096), j.old, j.new),
    "an insert that is no block": lambda j: packed(facts(j, insert=1), j.old, j.new + b" "),
    "a name of another file": lambda j: packed(facts(j, file="../other"), j.old, j.new),
    "a name that is a number": lambda j: packed(facts(j, file=7), j.old, j.new),
    "an old header that is none": lambda j: packed(facts(j), bytes(len(j.old)), j.new),
    "a new header that is none": lambda j: packed(facts(j), j.old, bytes(len(j.new))),
    "an old header that covers data": lambda j: packed(facts(j), j.old + bytes(64), j.new + bytes(64)),
    "no headers": lambda j: packed(facts(j), b"", b""),
}


@pytest.mark.parametrize("kind", JOURNALS)
def test_D13_a_hostile_journal_changes_nothing(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = victim(tmp_path)
    journal_path(path).write_bytes(JOURNALS[kind](honest(path)))
    untouched(path, capsys)


@pytest.mark.parametrize("kind", ["a pipe", "a link", "a device", "300 MB", "a folder"])
def test_D13_a_journal_that_is_no_small_file(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = victim(tmp_path)
    at = journal_path(path)
    if kind == "a pipe":
        os.mkfifo(at)
    elif kind == "a folder":
        at.mkdir()
    elif kind == "300 MB":
        with at.open("wb") as file:
            file.truncate(300_000_000)
    else:
        (tmp_path / "elsewhere").write_bytes(honest(path).pack())
        at.symlink_to(tmp_path / "elsewhere" if kind == "a link" else "/dev/zero")
    untouched(path, capsys)


def untouched(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = path.read_bytes()
    for command in (["recover", str(path)], ["inspect", str(path)]):
        assert main(command) in (1, 2)
        said = capsys.readouterr().err
        assert said.count("error[") == 1 and len(said) < 1000
    assert path.read_bytes() == before


def test_D13_an_honest_journal_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = victim(tmp_path)
    journal_path(path).write_bytes(honest(path).pack())
    assert main(["recover", str(path)]) == 0
    assert set(load_file(path)) == {"w", "v"}
    capsys.readouterr()


def fuzz_journals(path: Path, count: int, seed: int) -> None:
    """Whatever a journal says: nothing but a refusal comes out, or a file that is as it was."""
    draw = random.Random(seed)
    before = path.read_bytes()
    journal = honest(path)
    for number in range(count):
        parts = [facts(journal), journal.old, journal.new]
        at = draw.randrange(3)
        raw = bytearray(parts[at])
        for _ in range(draw.randint(1, 3)):
            where = draw.randrange(len(raw))
            raw[where : where + draw.randint(0, 4)] = draw.randbytes(draw.randint(0, 4))
        parts[at] = bytes(raw)
        content = packed(*parts) if draw.random() < 0.8 else bytes(raw)
        journal_path(path).write_bytes(content)
        try:
            inplace.recover(path)
        except UnwritableOutput:
            pass
        except Exception as error:
            raise AssertionError(f"number {number}: {error!r}") from error
        assert path.read_bytes() == before, f"number {number} of seed {seed} changed the file"


def test_D13_mutated_journals(tmp_path: Path) -> None:
    fuzz_journals(victim(tmp_path), COUNT, 1)


def test_D13_the_fuzzer_sees_a_planted_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inplace.Journal, "_is_sound", lambda self: True)
    with pytest.raises(AssertionError):
        fuzz_journals(victim(tmp_path), 2000, 1)


def test_D12_mutated_small_json(tmp_path: Path) -> None:
    draw = random.Random(7)
    whole = json.dumps({"heads": 4, "list": [1, 2.5, None, True], "inner": {"text": "\u00fc\\n", "n": -3}}).encode()
    for number in range(COUNT):
        raw = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(raw))
            raw[at : at + draw.randint(0, 3)] = draw.choice([b"[", b"{", b'"', b"\\u", b"9" * 50, draw.randbytes(2)])
        path = tmp_path / "c.json"
        path.write_bytes(raw)
        try:
            strictjson.read_json_file(path)
        except UnreadableCheckpoint as error:
            assert error.diagnostics[0].title.isprintable(), number


# -------------------------------------------------------------------------------------------------


def linked(folder: Path, secret: Path) -> str:
    (folder / "keys").mkdir()
    (folder / "keys" / "x.json").symlink_to(secret)
    return "keys/x.json"


PATHS: dict[str, Callable[[Path, Path], str]] = {
    "up": lambda folder, secret: "../secret.txt",
    "up and down": lambda folder, secret: "keys/../../secret.txt",
    "absolute": lambda folder, secret: str(secret),
    "a link": linked,
    "a device": lambda folder, secret: "/dev/zero",
    "home": lambda folder, secret: "../" * 40 + "etc/hostname",
}


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("command", ["check", "apply", "test", "lint"])
def test_D21_a_rule_file_names_files_below_it_only(
    kind: str, side: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("PASSWORD=hunter2")
    folder = tmp_path / "pack"
    folder.mkdir()
    where = PATHS[kind](folder, secret)
    rules = folder / "r.yaml"
    rules.write_text(
        f"remapkit: 1\nname: r\n{side}: {{keys: '{where}'}}\nkeep: ['{{r:**}}.w']\ntests: {{a.w: a.w}}\n"
    )
    save_file({"a.w": torch.ones(2)}, tmp_path / "m.safetensors")
    source = str(tmp_path / "m.safetensors")
    arguments = {
        "check": ["check", str(rules), *(["--ckpt", source] if side == "target" else ["--target-keys", source])],
        "apply": ["apply", str(rules), source, "-o", str(tmp_path / "o.safetensors")],
        "test": ["test", str(rules)],
        "lint": ["lint", str(rules)],
    }
    code = main(arguments[command])
    said = capsys.readouterr()
    assert "PASSW" not in said.err + said.out and "hunter" not in said.err + said.out
    if code:
        assert "RK424" in said.err + said.out


def test_D21_what_lies_below_is_read_and_not_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "s.txt").write_text("PASSWORD=hunter2")
    rules = tmp_path / "r.yaml"
    rules.write_text(
        "remapkit: 1\nname: r\ntarget: {keys: keys/s.txt}\nsource: {keys: keys/s.txt}\nkeep: ['{r:**}']\n"
    )
    assert main(["check", str(rules)]) == 2
    assert "PASSW" not in capsys.readouterr().err
    (tmp_path / "keys" / "s.txt").unlink()
    os.mkfifo(tmp_path / "keys" / "s.txt")
    assert main(["check", str(rules)]) == 2
    assert "not a regular file" in capsys.readouterr().err
