"""`remapkit learn --through` as a command: what it writes, its JSON, and what wrong input gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import remapkit
from remapkit.cli.app import main
from remapkit.formats.manifest import write_manifest

CODE = """
import torch
RENAMES = {r"^layers": "h", r"gamma$": "weight"}
NUMBER = 3
def convert(sd, prefix="m.", count=1, scale=1.0, deep=False, config=None, name="x"):
    print("converting", type(prefix).__name__, type(count).__name__, type(scale).__name__, type(deep).__name__,
          type(config).__name__, name)
    made = {}
    for key, value in sd.items():
        if "qkv" in key:
            made.update(zip((prefix + key.replace("qkv", part) for part in "qkv"), value.chunk(3)))
        elif "drop" not in key:
            made[prefix + key.replace("twin", "norm")] = value
    made["zeros"] = torch.zeros(2)
    return made
def fails(sd):
    raise RuntimeError("first line\\nlast line")
def needs(sd, config): return sd
"""
KEYS = {
    **{f"layers.{n}.qkv.weight": (12, 4) for n in range(2)},
    **{f"layers.{n}.norm.gamma": (6,) for n in range(2)},
    "twin.w": (6,),
    "norm.w": (6,),
    "drop.w": (3,),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("def convert(sd):\nreturn 3\n")
    (tmp_path / "raises.py").write_text("import nothing_of_this_name\n")
    header = {fqn: remapkit.TensorSpec("F32", shape) for fqn, shape in KEYS.items()}
    write_manifest(remapkit.StateDictSpec(header), tmp_path / "a.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str) -> int:
    return main(["learn", *args])


def test_it_writes_a_pack_that_tests_clean(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--through", "mine.py:convert", "--from", "a.json", "-o", "out.yaml") == 0
    out, err = capsys.readouterr()
    assert "ran mine.py:convert: 7 keys became 10" in out
    assert "rules that map 5 of 7 keys to 10 of 10; proven for all keys" in out
    assert "twin.w, norm.w -> m.norm.w" in err and "zeros" in err and "drop.w" in err
    assert main(["lint", "out.yaml"]) == 0 and main(["test", "out.yaml"]) == 0
    assert sorted(each.name for each in (folder / "keys").iterdir()) == ["out.source.json", "out.target.json"]
    assert run("--through", "mine.py:convert", "--from", "a.json", "-o", "out.yaml") == 2
    assert run("--through", "mine.py:convert", "--from", "a.json", "-o", "out.yaml", "--force") == 0


def read_json(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert main(["learn", "--format", "json", *args]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_json_says_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_json(capsys, "--through", "mine.py:convert", "--from", "a.json", "-o", "-")
    found = data.get("data", data)
    assert found["collisions"] == {"m.norm.w": ["twin.w", "norm.w"]}
    assert (found["vanished"], found["constant"], found["unstable"], found["kept"]) == (["drop.w"], ["zeros"], [], [])
    assert found["added"] == ["zeros"]
    assert [each["targets"] for each in found["relations"]] == [
        [f"m.layers.{n}.{part}.weight" for part in "qkv"] for n in range(2)
    ]
    assert found["pairs"]["norm.w"] == "m.norm.w" and "split:" in found["text"]
    assert not (folder / "keys").exists()


@pytest.mark.parametrize(
    ("given", "types"),
    [
        ([], "str int float bool NoneType x"),
        (
            ["prefix=p.", "count=4", "scale=2.5", "deep=true", "config=null", "name=y"],
            "str int float bool NoneType y",
        ),
        (['config={"a": [1, null]}', "name='quoted'"], "str int float bool dict 'quoted'"),
        (["config=[1]", "scale=1e3", 'name="quoted"', "deep=false"], "str int float bool list quoted"),
        (["config=None", "deep=True"], "str int float bool NoneType x"),
    ],
)
def test_arguments_have_types(folder: Path, capfd: pytest.CaptureFixture[str], given: list[str], types: str) -> None:
    args = [each for pair in given for each in ("--arg", pair)]
    assert run("--through", "mine.py:convert", "--from", "a.json", "-o", "-", *args) == 0
    out, err = capfd.readouterr()
    assert err.count("converting") == 1 and f"converting {types}\n" in err
    assert ("'p.layers." if "prefix=p." in given else "'m.layers.") in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["mine.py:convert"], ["--through needs --from", "--from FILE"]),
        (["mine.py", "--from", "a.json"], ["RK668", "mine.py names a file, but nothing in it", "mine.py:NAME"]),
        (["mine.py:", "--from", "a.json"], ["RK603"]),
        (["mine.py:conver", "--from", "a.json"], ["RK603", "there is no 'conver' in it", "convert"]),
        (["gone.py:convert", "--from", "a.json"], ["RK603", "there is no file gone.py"]),
        (["py:no_such_module:f", "--from", "a.json"], ["RK603", "there is no module no_such_module"]),
        (["py:collections:nothing", "--from", "a.json"], ["RK603", "has no 'nothing'"]),
        (["py:collections", "--from", "a.json"], ["RK6"]),
        (["mine", "--from", "a.json"], ["RK668", "'mine' names no converter"]),
        (["./mine:convert", "--from", "a.json"], ["RK668", "names no converter"]),
        (["", "--from", "a.json"], ["RK668", "names no converter"]),
        (["mine.py:NUMBER", "--from", "a.json"], ["RK668", "is an int, which converts no state dict"]),
        (["mine.py:RENAMES", "--from", "a.json", "--arg", "x=1"], ["RK668", "takes no --arg"]),
        (["broken.py:convert", "--from", "a.json"], ["RK604", "running broken.py failed", "IndentationError"]),
        (["raises.py:convert", "--from", "a.json"], ["RK604", "nothing_of_this_name"]),
        (["mine.py:needs", "--from", "a.json"], ["RK607", "also needs config", "--arg config=value"]),
        (["mine.py:convert", "--from", "a.json", "--arg", "nme=3"], ["RK607", "no argument 'nme'", "name"]),
        (["mine.py:convert", "--from", "a.json", "--arg", "name"], ["RK609", "is not key=value"]),
        (["mine.py:convert", "--from", "a.json", "--arg", "=3"], ["RK609", "is not key=value"]),
        (
            ["mine.py:convert", "--from", "a.json", "--arg", "name=a", "--arg", "name=b"],
            ["RK609", "name is given twice"],
        ),
        (["mine.py:fails", "--from", "a.json"], ["RK669", "last line", "mine.py:17, in fails: raise RuntimeError"]),
        (["mine.py:convert", "--from", "gone.json"], ["RK400", "no such file"]),
        (["mine.py:convert", "--from", "a.json", "--name", "no name"], ["RK623", "is not a valid pack name"]),
        (["mine.py:convert", "--from", "a.json", "--pairs", "p.json"], ["--pairs does not go with --through"]),
        (["mine.py:convert", "--from", "a.json", "--root-a", "x"], ["--root-a does not go with --through"]),
    ],
)
def test_wrong_input_gets_an_answer(
    folder: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: list[str]
) -> None:
    before = sorted(each.name for each in folder.iterdir())
    assert run("--through", *args, "-o", "out.yaml") == 2
    err = capsys.readouterr().err
    assert [word for word in words if word not in err] == [] and "Traceback" not in err, err
    assert [each for each in sorted(path.name for path in folder.iterdir()) if each != "__pycache__"] == [
        each for each in before if each != "__pycache__"
    ]


def test_options_that_need_through(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--from", "a.json"], ["--arg", "x=1"], ["--root", "x"]):
        assert run(*option) == 2
        assert f"{option[0]} needs --through" in capsys.readouterr().err
    assert run("--through", "mine.py:convert", "--from", "a.json", "a.json", "a.json") == 2
    assert "A does not go with --through" in capsys.readouterr().err


DOCS = """
import torch

def convert(state):
    made = {}
    for key, value in state.items():
        new = key.replace("model.layers.", "blocks.").replace(".gamma", ".weight")
        if "qkv" in key:
            for part, piece in zip("qkv", value.chunk(3)):
                made[new.replace("qkv", f"to_{part}")] = piece
        elif "mlp" in key:
            made[new] = value.t()
        elif "rotary" not in key:
            made[new.replace("norm2", "norm1")] = value
    made["position_ids"] = torch.arange(16)
    return made
"""


def test_the_example_of_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/packs.md shows what the command prints, and the rules that it writes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for n in range(4):
        name = f"model.layers.{n}"
        shapes |= {
            f"{name}.attn.qkv.weight": (96, 32),
            f"{name}.attn.qkv.bias": (96,),
            f"{name}.mlp.weight": (32, 128),
        }
        shapes |= {f"{name}.norm1.gamma": (32,), f"{name}.norm2.gamma": (32,)}
    header = {fqn: remapkit.TensorSpec("BF16", shape) for fqn, shape in shapes.items()}
    header["model.rotary.inv_freq"] = remapkit.TensorSpec("F32", (16,))
    header["model.norm.gamma"] = remapkit.TensorSpec("BF16", (32,))
    write_manifest(remapkit.StateDictSpec(header), tmp_path / "theirs.json")
    (tmp_path / "convert.py").write_text(DOCS)
    monkeypatch.chdir(tmp_path)
    assert run("--through", "convert.py:convert", "--from", "theirs.json", "-o", "ours.yaml") == 0
    page = (Path(remapkit.__file__).parent.parent / "docs" / "packs.md").read_text(encoding="utf-8")
    out, err = capsys.readouterr()
    command = "$ remapkit learn --through convert.py:convert --from theirs.json -o ours.yaml\n"
    assert f"{command}{out}{err}".strip() in page
    text = (tmp_path / "ours.yaml").read_text(encoding="utf-8")
    assert text[text.index("rules:") : text.index("\ntests:")].strip() in page
