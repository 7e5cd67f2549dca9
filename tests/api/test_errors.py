"""Errors are also what Python code catches, with the exit codes of the command line."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch

import remapkit
from remapkit import Diagnostic

KINDS: dict[str, tuple[type[Exception], int]] = {
    "InvalidRules": (ValueError, 1),
    "FailedCheck": (ValueError, 1),
    "UsageError": (ValueError, 2),
    "UnreadableCheckpoint": (ValueError, 2),
    "MissingFile": (FileNotFoundError, 2),
    "MissingCheckpoint": (FileNotFoundError, 2),
    "RefusedRead": (OSError, 2),
    "UnwritableOutput": (OSError, 2),
    "OutputExists": (FileExistsError, 2),
    "FailedWrite": (OSError, 1),
}
RULES = "remapkit: 1\nname: one\nrules: [{id: a, path: 'a.{n:int}', to: 'b.{n}'}]\n"


@pytest.mark.parametrize("name", KINDS)
def test_each_error_is_also_a_built_in_one(name: str) -> None:
    kind, (other, code) = getattr(remapkit, name), KINDS[name]
    assert issubclass(kind, remapkit.RemapkitError) and issubclass(kind, other) and kind.exit_code == code
    error = kind([Diagnostic("RK000", "one"), Diagnostic("RK001", "two")])
    assert str(error) == "error[RK000]: one\n\nerror[RK001]: two"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and again.diagnostics == error.diagnostics


def test_the_table_has_every_error() -> None:
    found = {name for name in remapkit.__all__ if isinstance(getattr(remapkit, name), type)}
    errors = {name for name in found if issubclass(getattr(remapkit, name), remapkit.RemapkitError)}
    assert errors == {"RemapkitError", *KINDS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RULES)
    Path("bad.yaml").write_text("remapkit: 1\nname: x\nrulez: []\n")
    torch.save({"a.0": torch.ones(2)}, "a.pth")
    torch.save({"c.0": torch.ones(2)}, "c.pth")
    Path("broken.pth").write_bytes(b"PK\x03\x04 nothing")
    Path("there.safetensors").touch()
    Path("param.yaml").write_text(RULES + "params: {heads: {config: num_heads}}\n")
    Path("declares.yaml").write_text("remapkit: 1\nname: d\nsource: {keys: gone.json}\nkeep: ['{all:**}']\n")
    return tmp_path


CALLS = {
    "no rule file": ("load('none.yaml')", "MissingFile"),
    "no pack": ("load('none')", "MissingFile"),
    "no config": ("load('param.yaml', config='none.json')", "MissingFile"),
    "no pairs": ("learn('a.pth', 'c.pth', pairs='none.json')", "MissingFile"),
    "several rule files, none there": ("lint(['none.yaml', 'none'])", "MissingFile"),
    "no checkpoint": ("apply('r.yaml', 'none.pth')", "MissingCheckpoint"),
    "no checkpoint A": ("diff('none.pth', 'a.pth')", "MissingCheckpoint"),
    "no checkpoint to recover": ("recover('none.pth')", "MissingCheckpoint"),
    "no manifest": ("check('r.yaml', 'a.pth', target_keys='none.json')", "MissingCheckpoint"),
    "no declared manifest": ("test('declares.yaml')", "MissingCheckpoint"),
    "a header that is not there": ("header('none.pth')", "MissingCheckpoint"),
    "a broken checkpoint": ("inspect('broken.pth')", "UnreadableCheckpoint"),
    "bad rules": ("load('bad.yaml')", "InvalidRules"),
    "bad text": ("loads('x: [')", "InvalidRules"),
    "keys of another layout": ("apply('r.yaml', 'c.pth')", "FailedCheck"),
    "options that do not fit together": ("apply('r.yaml', 'a.pth', in_place=True, force=True)", "UsageError"),
    "a size that is none": ("apply('r.yaml', 'a.pth', shard_size='5XB')", "UsageError"),
    "two targets": ("check('r.yaml', 'a.pth', model='a:B', target_keys='k.json')", "UsageError"),
    "two sources": ("check('r.yaml', 'a.pth', keys='k.json')", "UsageError"),
    "an output that exists": ("apply('r.yaml', 'a.pth', 'there.safetensors')", "OutputExists"),
    "a manifest that exists": ("inspect('a.pth', manifest='there.safetensors')", "OutputExists"),
    "a folder that is not there": ("apply('r.yaml', 'a.pth', 'none/b.safetensors')", "UnwritableOutput"),
    "an output that is the source": ("inspect('a.pth', manifest='a.pth', force=True)", "UnwritableOutput"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_goes_wrong_raises_the_error_of_its_kind(name: str, folder: Path) -> None:
    call, kind = CALLS[name]
    before = sorted(folder.iterdir())
    with pytest.raises(getattr(remapkit, kind)) as caught:
        eval(f"remapkit.{call}", {"remapkit": remapkit})
    assert type(caught.value) is getattr(remapkit, kind)
    assert sorted(folder.iterdir()) == before


def test_a_file_that_may_not_be_read_is_an_os_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    real = os.open

    def refuse(path: object, *rest: object, **options: object) -> int:
        if str(path).endswith("a.pth"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError) as caught:
        remapkit.inspect("a.pth")
    assert type(caught.value) is remapkit.RefusedRead and "permission denied" in str(caught.value)


def test_compiled_rules_take_no_params() -> None:
    with pytest.raises(TypeError, match="load"):
        remapkit.apply(remapkit.loads(RULES), "a.pth", params={"n": 1})


def test_the_page_has_the_table() -> None:
    page = (Path(remapkit.__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*Error.*|`[A-Z].*) \| `(\w+Error)` \|$", page, re.MULTILINE)
    found = {
        name: other for cell, other in rows for name in re.findall(r"`(\w+)`", re.sub(r" \(an? .*?\)", "", cell))
    }
    assert found == {name: other.__name__ for name, (other, _) in KINDS.items()}
