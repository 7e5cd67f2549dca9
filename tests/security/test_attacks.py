"""Every attack of `attacks.py` gets the refusal that docs/security.md promises, in bounded memory; nothing is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS, GOOD, Attack
from hostile_kit import archive, legacy, pickled, pth, safetensors

from remapkit.cli import app as cli
from remapkit.formats import open_checkpoint

MEMORY = 1_200_000_000
"""Address space of the process that reads them all: every library is mapped in it, so 1.2 GB leave less than 1 GB."""

ALL = {name: attack for group in ATTACKS.values() for name, attack in group.items()}

READ_ALL = """
import json, os, resource, sys, tempfile
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
from pathlib import Path
import numpy, encodings.cp437, encodings.latin_1, encodings.raw_unicode_escape, encodings.unicode_escape
import remapkit.formats.torch_file, remapkit.formats.sharded
from remapkit.formats import open_checkpoint
from remapkit.diagnostics.errors import RemapkitError

ALLOWED = {"object.__getattr__", "sys._getframe", "mmap.__new__", "tempfile.mkstemp", "os.putenv", "builtins.id"}
TEMPORARY = tempfile.gettempdir()
seen = []
def hook(event, arguments):
    if watching and event not in ALLOWED and not event.startswith(("marshal", "code.")):
        if event == "open":
            # Reading is what is asked for; a compressed storage is inflated into a temporary file without a name.
            writes = isinstance(arguments[2], int) and arguments[2] & 3
            if not writes or "/tmp" in str(arguments[0]) or isinstance(arguments[0], int):
                return
        if event == "os.remove" and os.path.dirname(arguments[0]) == TEMPORARY:
            return  # the name of that temporary file, at once, where the filesystem wants one
        seen.append(f"{event} {arguments!r}"[:200])
watching = False
sys.addaudithook(hook)
for path in sorted(Path(sys.argv[2]).iterdir()):
    before = set(sys.modules)
    seen.clear()
    found = {"name": path.name}
    watching = True
    try:
        with open_checkpoint(path) as reader:
            for fqn in reader.header():
                for _ in reader.chunks(fqn):
                    pass
            reader.check_sums()
        found |= {"code": "", "title": "READ"}
    except RemapkitError as error:
        (one,) = error.diagnostics
        found |= {"code": one.code, "title": one.title, "exit": error.exit_code, "help": list(one.help)}
    watching = False
    found["did"] = list(seen)
    found["imported"] = sorted(set(sys.modules) - before)
    print(json.dumps(found), flush=True)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each attack, named by its number."""
    made = tmp_path_factory.mktemp("attacks")
    for number, attack in enumerate(ALL.values()):
        (made / f"{number:03}").write_bytes(attack.make())
    return made


@pytest.fixture(scope="module")
def verdicts(folder: Path) -> dict[str, dict[str, Any]]:
    """What one process under a limit of memory says of each of them."""
    command = [sys.executable, "-c", READ_ALL, str(MEMORY), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    last = list(ALL)[len(found)] if len(found) < len(ALL) else "the end"
    assert done.returncode == 0, f"died at {last}: {done.stderr[-2000:]}"
    peak_mb = int(done.stderr.split()[-1]) / 1000
    assert peak_mb < 600, "the largest of them is a file of 200 MB"
    return {list(ALL)[int(verdict["name"])]: verdict for verdict in found}


@pytest.mark.parametrize("name", ALL)
def test_an_attack_is_refused_by_name(name: str, verdicts: dict[str, dict[str, Any]]) -> None:
    attack, found = ALL[name], verdicts[name]
    assert found["code"] == attack.code, found["title"]
    assert attack.words in found["title"]
    assert found["exit"] == 2
    assert len(found["title"]) < 1000
    assert "\n" not in found["title"]
    assert found["title"].isprintable()


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_imported_run_or_written(name: str, verdicts: dict[str, dict[str, Any]]) -> None:
    assert verdicts[name]["did"] == []
    assert verdicts[name]["imported"] == []


RULES = "remapkit: 1\nname: r\nrules: [{id: a, path: '{rest:**}', to: 'm.{rest}'}]\n"
LARGE = 4_000_000


@pytest.mark.parametrize("name", ALL)
def test_apply_says_one_thing_exits_with_2_and_writes_nothing(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / f"{list(ALL).index(name):03}"
    if path.stat().st_size > LARGE:
        return  # read above, with the same code
    rules = tmp_path / "r.yaml"
    rules.write_text(RULES)
    before = path.read_bytes()
    code = cli.main(["apply", str(rules), str(path), "-o", str(tmp_path / "out.safetensors")])
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.out == ""
    assert said.err.count("error[") == 1
    assert ALL[name].code in said.err
    assert sorted(tmp_path.iterdir()) == [rules]
    assert path.read_bytes() == before


@pytest.mark.parametrize("make", [pth, legacy])
def test_the_honest_file_beside_them_is_read(make: Any, tmp_path: Path) -> None:
    """Otherwise the attacks might be refused for what they have in common."""
    (tmp_path / "m").write_bytes(make(GOOD))
    with open_checkpoint(tmp_path / "m") as reader:
        assert str(reader.header()["w"]) == "F32 [4]"
        assert b"".join(reader.chunks("w")) == bytes(16)


def test_the_honest_archive_and_header_beside_them_are_read(tmp_path: Path) -> None:
    for content in (
        archive(pickled(GOOD)).bytes(),
        safetensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
    ):
        (tmp_path / "m").write_bytes(content)
        with open_checkpoint(tmp_path / "m") as reader:
            assert list(reader.header()) == ["w"]


def test_an_expanded_view_is_read_where_that_is_asked_for(tmp_path: Path) -> None:
    attack: Attack = ALL["stride 0 that declares 4 TB over 16 bytes"]
    (tmp_path / "m").write_bytes(attack.make())
    with open_checkpoint(tmp_path / "m", allow_expand=True) as reader:
        assert reader.header()["w"].nbytes == 1 << 42
        assert bytes(next(reader.chunks("w"))) == bytes(1 << 18)


def test_metadata_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = {
        "__metadata__": {"a\x1b]0;title\x07": "\x1b[2J\u202e", "long": "x" * 100_000},
        "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    }
    (tmp_path / "m").write_bytes(safetensors(header, bytes(16)))
    assert cli.main(["inspect", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable()
    assert "\\x1b[2J" in said
    assert len(said) < 10_000
