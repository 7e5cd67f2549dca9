"""A message names options on the command line, and in Python the keywords of the functions."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import remapkit
from remapkit.cli import app
from remapkit.diagnostics.keywords import FLAGS, VALUES, name_keywords

ROOT = Path(remapkit.__file__).parent
FORMATS = {"peft", "diffusers", "kohya", "comfy"}
"""The formats of adapters, which `adapter_format` takes."""
ONLY_COMMANDS = {"help", "format", "all", "manifest"}


def list_options() -> Iterator[tuple[str, str, bool]]:
    """Every option of every command: the command, the option's name, and whether it takes a value."""
    parser = app.make_parser()
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    for command, sub in commands.choices.items():
        for action in sub._actions:
            if action.option_strings:
                yield command, max(action.option_strings, key=len).lstrip("-"), action.nargs != 0


@pytest.mark.parametrize("command", sorted({command for command, *_ in list_options()}))
def test_every_option_has_the_keyword_of_its_function(command: str) -> None:
    names = [command, "learn_through"] if command == "learn" else [command]
    parameters = {each for name in names for each in inspect.signature(getattr(remapkit, name)).parameters}
    for owner, option, takes_value in list_options():
        if owner == command and option not in ONLY_COMMANDS:
            known = VALUES.get(option) if takes_value else FLAGS.get(option, "").partition("=")[0]
            assert known in parameters, f"{command}: --{option}"


def list_messages() -> Iterator[tuple[str, str]]:
    """Every text of the package that names an option; what an f-string puts in is `x.y`."""
    for path in sorted(ROOT.rglob("*.py")):
        if "cli" in path.parts or path.name == "keywords.py":
            continue
        source = path.read_text(encoding="utf-8")
        if "--" not in source:
            continue
        nodes = list(ast.walk(ast.parse(source)))
        docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        inner = {id(value) for node in joined for value in ast.walk(node)} - set(map(id, joined))
        inner_or_docs = inner | docs
        for node in nodes:
            text = ""
            if isinstance(node, ast.JoinedStr):
                text = "".join(each.value if isinstance(each, ast.Constant) else "x.y" for each in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner_or_docs:
                text = node.value
            if "--" not in text:
                continue
            text = re.sub(r"(--[a-z]+)-x\.y", r"\1-a", text)
            if re.search(r"(?<![\w-])--[a-z]", text.replace("--x.y", "")):
                yield str(path.relative_to(ROOT)), text


MESSAGES = sorted(set(list_messages()))


@pytest.mark.parametrize(("file", "text"), MESSAGES)
def test_no_message_in_python_names_an_option(file: str, text: str) -> None:
    said = re.sub(r"`remapkit [^`]*`", "", name_keywords(text))
    assert not re.search(r"(?<![\w-])--[a-z]", said), said
    # No word of a sentence was taken for a value.
    assert set(re.findall(r"='([a-z]+)'", said)) <= {"safetensors", "pth", *FORMATS}


@pytest.mark.parametrize(
    ("option", "keyword"),
    [
        ("--root net", "root='net'"),
        ("--root 'a b'", "root='a b'"),
        ("--root .", "root='.'"),
        ("--root is", "root='is'"),
        ("--root-b M", "root_b='M'"),
        ("--strip module", "strip=['module']"),
        ("--model M", "model=M"),
        ("--model-arg dim=8", "model_args={'dim': 8}"),
        ("--param kv_heads=1,1,2", "params={'kv_heads': [1, 1, 2]}"),
        ("--root PREFIX", "root=PREFIX"),
        ("--alpha NUMBER", "alpha=NUMBER"),
        ("--fold-alpha", "fold_alpha=True"),
        ("--adapter-format kohya", "adapter_format='kohya'"),
        ("--input 1,3,32,32", "input='1,3,32,32'"),
        ("--no-target", "declared_target=False"),
        ("-o 'x'", "output='x'"),
        ("--unknown x", "--unknown x"),
        ("a--root x", "a--root x"),
    ],
)
@pytest.mark.parametrize("frame", ["{}", "pass {}, or not", "({})", "{}; {}", "{}?", "{} is there"])
def test_an_option_anywhere_in_a_sentence(option: str, keyword: str, frame: str) -> None:
    assert name_keywords(frame.format(option, option)) == frame.format(keyword, keyword)


def test_the_same_error_on_the_command_line_and_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(remapkit.UsageError) as caught:
        remapkit.check("wan22_pth", model="wan.vae:WanVAE", target_keys="keys.json")
    assert "model= and target_keys= are two targets" in str(caught.value)
    assert app.main(["check", "wan22_pth", "--model", "wan.vae:WanVAE", "--target-keys", "keys.json"]) == 2
    assert "--model and --target-keys are two targets" in capsys.readouterr().err


def test_a_format_that_does_not_exist_is_a_usage_error_that_names_the_keyword(tmp_path: Path) -> None:
    rules = remapkit.loads("remapkit: 1\nname: same\nkeep: ['{rest:**}']\n")
    source = tmp_path / "source.safetensors"
    save_file({"w": torch.zeros(2)}, source)
    with pytest.raises(remapkit.UsageError, match=r"to_format='zip' is not supported: choose 'safetensors' or 'pth'"):
        remapkit.apply(rules, source, tmp_path / "out", to_format="zip")
    assert not (tmp_path / "out").exists()


def test_the_name_of_an_output_follows_its_keyword_without_a_space() -> None:
    assert name_keywords("name a file with -o OUT") == "name a file with output=OUT"
    assert name_keywords("name it: -o FILE; or -o 'a.=a.pth'") == "name it: output=FILE; or output='a.=a.pth'"
