"""`remapkit apply` and `recover` as commands: options, what is said, progress, and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from io_kit import LONGER, SUFFIX, everything_in, leftovers, raw, read_back, rules
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model

import remapkit
from remapkit.api.sizes import parse_size
from remapkit.cli.app import main
from remapkit.diagnostics.errors import UsageError

ROOT = Path(remapkit.__file__).parent.parent
SLOW = """
import sys, time
from remapkit.files import copy as copying
from remapkit.write import writer as writing
copying.STEP, writing.SMALL = 20_000, 0
def slowed(name):
    call = getattr(copying.Copier, name)
    def copy(self, *rest):
        time.sleep(0.02)
        return call(self, *rest)
    setattr(copying.Copier, name, copy)
slowed("_step")
from remapkit.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "m.safetensors"
    path.parent.mkdir()
    save_file({f"w{n}": torch.randn(1000) for n in range(20)}, path, metadata={"author": "somebody"})
    return path


def apply(source: Path, *arguments: object, text: str = SUFFIX) -> int:
    return main(["apply", str(rules(source.parent, text)), str(source), *map(str, arguments)])


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2 << 30), ("1.5kb", 1500), ("7", 7), (" 3 TB ", 3 * 10**12)],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 gigs", "-5GB", "0", "0.1", "5iB", "1e9", "٥GB", "5GB5", "nan", "inf"])
def test_not_a_size(text: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        parse_size(text)
    assert apply(source, "-o", source.with_name("o.safetensors"), f"--shard-size={text}") == 2
    assert "RK613" in capsys.readouterr().err
    assert not source.with_name("o.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "o.pth", "--shard-size", "1MB"], "--shard-size writes safetensors, not .pth"),
        (["-o", "o.safetensors.index.json"], "is the name of an index"),
        (["--in-place", "-o", "x.safetensors"], "it cannot be used with --output"),
        (["--in-place", "--shard-size", "1MB", "--untie"], "it cannot be used with --shard-size, --untie"),
    ],
)
def test_options_that_do_not_fit_together(
    arguments: list[str],
    words: str,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(source.parent)
    rules(source.parent)
    before = everything_in(source.parent)
    assert apply(source, *arguments) == 2
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("error[") == 1
    assert everything_in(source.parent) == before


def test_shards_and_their_index(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.safetensors"
    assert apply(source, "-o", out, "--shard-size", "30kB", "--verify", "--format", "json") == 0
    data = json.loads(capsys.readouterr().out)
    files = [Path(name) for name in data["output"]]
    assert [path.name for path in files] == [
        *(f"o-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
        "o.safetensors.index.json",
    ]
    expected, found = load_file(source), read_back(files)
    assert {name: raw(tensor) for name, tensor in found.items()} == {
        f"renamed.{name}": raw(tensor) for name, tensor in expected.items()
    }
    assert data["verified"] and data["tensors"] == 20
    # The index is a way in like any other, and one shard is one file.
    again = tmp_path / "again"
    again.mkdir()
    assert apply(files[-1], "-o", again / "o.safetensors", "--shard-size", "5GB") == 0
    assert [path.name for path in again.iterdir()] == ["o.safetensors"]


def test_metadata_is_kept_and_says_where_the_file_comes_from(source: Path, tmp_path: Path) -> None:
    out, pth = tmp_path / "o.safetensors", tmp_path / "o.pth"
    assert apply(source, "-o", out) == apply(source, "-o", pth) == 0
    rule_set = remapkit.load(source.parent / "rules.yaml")
    with safe_open(out, "pt") as opened:
        metadata = opened.metadata()
    assert metadata == {
        "author": "somebody",
        "format": "pt",
        "remapkit.rules": "prefix",
        "remapkit.digest": rule_set.digest,
        "remapkit.source": "m.safetensors",
        "remapkit.version": remapkit.__version__,
    }
    with remapkit.open_checkpoint(pth) as reader:
        kept = reader.header().metadata
    assert {**kept, "format": "pt"} == metadata


def test_the_order_is_the_targets_where_it_is_known(source: Path, tmp_path: Path) -> None:
    order = [f"renamed.w{n}" for n in reversed(range(20))]
    manifest = tmp_path / "target.json"
    manifest.write_text(json.dumps({name: {"dtype": "F32", "shape": [1000]} for name in order}))
    for suffix in (".safetensors", ".pth"):
        out = tmp_path / f"o{suffix}"
        assert apply(source, "-o", out, "--target-keys", manifest) == 0
        with remapkit.open_checkpoint(out) as reader:
            assert list(reader.header()) == order


def test_tied_names_that_a_file_records_get_their_new_names(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Linear(3, 3, bias=False)
            self.head = torch.nn.Linear(3, 3, bias=False)
            self.head.weight = self.embed.weight

    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "m.safetensors"
    save_model(Tied(), str(source))
    with safe_open(source, "pt") as opened:
        ((other, kept),) = [item for item in opened.metadata().items() if item[0] != "format"]
    out = tmp_path / "o.safetensors"
    assert apply(source, "-o", out) == 0
    with safe_open(out, "pt") as opened:
        metadata = opened.metadata()
    assert metadata[f"renamed.{other}"] == f"renamed.{kept}"
    assert metadata[other] == kept, "a rule that takes anything is no evidence that the pair is a tied name"
    assert apply(source, "--in-place") == 0
    with safe_open(source, "pt") as opened:
        assert opened.metadata()[f"renamed.{other}"] == f"renamed.{kept}"


def test_tied_weights_are_said_and_untied_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    source, shared = tmp_path / "in" / "m.pth", torch.randn(5)
    torch.save({"a": shared, "b": shared}, source)
    assert apply(source, "-o", tmp_path / "o.safetensors") == 0
    assert "1 tied names are recorded, not written (renamed.b = renamed.a); --untie" in capsys.readouterr().out
    assert apply(source, "-o", tmp_path / "u.safetensors", "--untie", "--verify") == 0
    assert "ok: read back; all 2 tensors" in capsys.readouterr().out
    assert sorted(load_file(tmp_path / "u.safetensors")) == ["renamed.a", "renamed.b"]


@pytest.mark.parametrize("text", [SUFFIX, LONGER])
@pytest.mark.parametrize("numel", [10, 20_000])
def test_in_place(text: str, numel: int, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Small files are written anew, large ones get a new header only; there and back gives every tensor again."""
    save_file({f"w{n}": torch.randn(numel) for n in range(20)}, source, metadata={"author": "somebody"})
    before = {name: raw(tensor) for name, tensor in load_file(source).items()}
    prefix = text.split("to: '")[1].split("{rest}")[0]
    assert apply(source, "--in-place", text=text) == 0
    assert "only the header was rewritten" in capsys.readouterr().out
    assert {name.removeprefix(prefix): raw(tensor) for name, tensor in load_file(source).items()} == before
    back = text.replace("path: '{rest:**}'", f"path: '{prefix}{{rest:**}}'").replace(f"to: '{prefix}", "to: '")
    assert apply(source, "--in-place", text=back) == 0
    assert {name: raw(tensor) for name, tensor in load_file(source).items()} == before
    with safe_open(source, "pt") as opened:
        assert opened.metadata()["author"] == "somebody"
    assert leftovers(source.parent) == []


def test_in_place_and_a_dry_run_change_nothing(source: Path) -> None:
    rules(source.parent)
    before = everything_in(source.parent)
    assert apply(source, "--in-place", "--dry-run") == 0
    assert everything_in(source.parent) == before


# ------------------------------------------------------------------------------------------------ Ctrl-C and progress


def start(tmp_path: Path, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


def wait_until_writing(folder: Path) -> None:
    for _ in range(1000):
        if any((folder / name).stat().st_size for name in leftovers(folder)):
            return
        time.sleep(0.01)
    raise AssertionError("nothing is written")


@pytest.mark.parametrize("options", [[], ["--shard-size", "30kB"], ["--force"]])
def test_ctrl_c_leaves_nothing_behind(options: list[str], source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "o.safetensors"
    out.parent.mkdir()
    if options == ["--force"]:
        out.write_text("old")
    before = everything_in(out.parent)
    path = rules(source.parent)
    child = start(tmp_path, "apply", path, source, "-o", out, *options, stderr=subprocess.PIPE)
    wait_until_writing(out.parent)
    child.send_signal(signal.SIGINT)
    said, errors = child.communicate(timeout=20)
    assert (child.returncode, said, errors) == (130, b"", b"interrupted: nothing was changed\n")
    assert everything_in(out.parent) == before


def test_ctrl_c_is_too_late_once_files_get_their_names(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remapkit.files import atomic

    name = atomic.NewFile.rename

    def interrupted(self: atomic.NewFile) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        name(self)

    monkeypatch.setattr(atomic.NewFile, "rename", interrupted)
    assert apply(source, "-o", tmp_path / "o.safetensors", "--shard-size", "30kB") == 0
    assert (tmp_path / "o.safetensors.index.json").exists()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_progress_on_a_terminal(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "o.safetensors"
    out.parent.mkdir()
    ours, theirs = pty.openpty()
    child = start(tmp_path, "apply", rules(source.parent), source, "-o", out, stderr=theirs)
    os.close(theirs)
    shown = b""
    while child.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.05)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
    child.communicate()
    os.close(ours)
    text = shown.decode()
    assert child.returncode == 0
    assert "writing o.safetensors" in text and "kB/s" in text and "0:00:0" in text and "/8" in text


def test_no_progress_in_a_pipe(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    done = start(tmp_path, "apply", rules(source.parent), source, "-o", out, stderr=subprocess.PIPE)
    _, errors = done.communicate()
    assert done.returncode == 0
    assert [line.partition(b":")[0] for line in errors.splitlines()] == [b"note[RK360]"]


def test_nothing_on_these_paths_imports_torch_or_numpy(source: Path, tmp_path: Path) -> None:
    path, out = rules(source.parent), tmp_path / "o"
    for arguments in (
        ["--help"],
        ["apply", path, source, "-o", f"{out}.safetensors", "--verify"],
        ["apply", path, source, "-o", f"{out}3.safetensors", "--shard-size", "30kB"],
        ["apply", path, source, "-o", f"{out}.pth"],
        ["apply", path, f"{out}.pth", "-o", f"{out}2.safetensors"],
        ["apply", path, source, "--in-place"],
        ["recover", source],
    ):
        command = [sys.executable, "-X", "importtime", "-m", "remapkit", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr[-500:]
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "remapkit.cli.app" in imported
        assert not imported & {"torch", "numpy", "safetensors", "rich"}


# --------------------------------------------------------------------- names that a file only records as tied

BOTH = "  - {id: a, path: x, to: p}\n  - {id: b, path: y, to: q}\n"
TURNED = "  - {id: a, path: x, to: p}\n  - {id: b, path: y, ops: [transpose], to: q}\n"
OWNER_TURNED = "  - {id: a, path: x, ops: [transpose], to: p}\n  - {id: b, path: y, to: q}\n"
JOINED = "  - {id: c, concat: {dim: 0, from: [x, y]}, to: z}\n"
OWNER_DROPPED = "  - {id: b, path: y, to: q}\ndrop: [x]\n"
OWNER_ONLY = "  - {id: a, path: x, to: p}\n"


@pytest.mark.parametrize("options", [("o.safetensors",), ("o.pth",), ("o.safetensors", "--untie")])
@pytest.mark.parametrize("rules", [BOTH, TURNED, OWNER_TURNED, JOINED, OWNER_DROPPED, OWNER_ONLY])
def test_a_recorded_name_is_a_key_like_any_other(
    rules: str, options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same rules on the .pth that ties two names, and on the safetensors file that records one of them."""
    weight = torch.arange(24.0).view(4, 6)
    torch.save({"x": weight, "y": weight}, tmp_path / "t.pth")
    save_file({"x": weight}, tmp_path / "t.safetensors", metadata={"y": "x", "format": "pt", "who": "me"})
    (tmp_path / "r.yaml").write_text(f"remapkit: 1\nname: r\nrules:\n{rules}")
    results = []
    for source in ("t.pth", "t.safetensors"):
        out = tmp_path / source.replace(".", "-") / options[0]
        out.parent.mkdir()
        arguments = ["apply", str(tmp_path / "r.yaml"), str(tmp_path / source), "-o", str(out), "--verify"]
        code = main([*arguments, *options[1:]])
        results.append((code, loaded_with_ties(out) if code == 0 else None))
    capsys.readouterr()
    (code, expected), (other_code, found) = results
    # A key that no rule takes is an error; a record that no rule names may be metadata, and stays it.
    assert (code, other_code) == ((1, 0) if rules == OWNER_ONLY else (0, 0))
    if expected is not None and found is not None:
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[fqn], found[fqn]) for fqn in expected)


def loaded_with_ties(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".pth":
        found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
        return found
    state = load_file(path)
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    return state | {other: state[kept] for other, kept in metadata.items() if kept in state}


def test_recorded_names_in_place(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2), "w": torch.ones(3)}, tmp_path / "m.safetensors", metadata={"y": "x", "who": "me"})
    pack = tmp_path / "r.yaml"
    pack.write_text("remapkit: 1\nname: r\nrules: [{id: a, path: '{n:x|y|w}', to: 'new.{n}'}]\n")
    assert main(["apply", str(pack), str(tmp_path / "m.safetensors"), "--in-place"]) == 0
    with safe_open(tmp_path / "m.safetensors", "pt") as opened:
        assert set(opened.keys()) == {"new.x", "new.w"}
        assert opened.metadata()["new.y"] == "new.x" and opened.metadata()["who"] == "me"
        assert "y" not in opened.metadata()
