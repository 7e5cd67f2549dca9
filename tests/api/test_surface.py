"""The public surface: `__all__` is true for people, for type checkers and at run time, and has every command."""

from __future__ import annotations

import argparse
import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import remapkit
from remapkit.cli import app

ROOT = Path(remapkit.__file__).parent
COMMANDS = sorted(path.stem for path in (ROOT / "cli" / "commands").glob("*.py") if path.stem != "__init__")
SHOWN_ONLY = {
    "format": "how results are printed",
    "all": "inspect: which table is printed; the header has every key",
    "help": "printed",
}
"""Options without a keyword, because they only change what is printed."""
RENAMED = {
    "from": "source",  # a keyword of Python
    "to": "target",
    "model-arg": "model_args",  # a mapping
    "source-arg": "source_args",
    "target-arg": "target_args",
    "param": "params",
    "no-target": "declared_target",  # said positively
    "more-a": "a",
    "more-b": "b",
    "checkpoint": "source",  # of apply and convert; that of inspect has its own name
}


def options_of(command: str) -> list[str]:
    """The names of a command's arguments, without dashes."""
    parser = app.make_parser()
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return [
        max(action.option_strings, key=len).lstrip("-") if action.option_strings else action.dest
        for action in commands.choices[command]._actions
    ]


def list_parameters(command: str) -> set[str]:
    """The keywords of a command's functions: `learn` has two."""
    names = [command, "learn_through"] if command == "learn" else [command]
    return {each for name in names for each in inspect.signature(getattr(remapkit, name)).parameters}


def type_checked_names() -> dict[str, str]:
    """Name and module of what `remapkit/__init__.py` imports for type checkers."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    return {
        name.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names
    }


def test_what_is_exported_typed_and_found_is_the_same() -> None:
    homes = {name: f"remapkit.{home}" for name, home in remapkit._HOMES.items()}
    assert type_checked_names() == {**homes, "plugins": "remapkit.registry.installed"}
    assert set(remapkit.__all__) == {*homes, "plugins", "__version__"}
    assert remapkit.__all__ == sorted(remapkit.__all__) == dir(remapkit)
    for name in remapkit.__all__:
        assert getattr(remapkit, name) is not None
    with pytest.raises(AttributeError, match="lod"):
        remapkit.lod  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_function_with_its_options_as_keywords(command: str) -> None:
    function = getattr(remapkit, command)
    parameters = list_parameters(command)
    for option in options_of(command):
        if option in SHOWN_ONLY:
            continue
        name = option.replace("-", "_")
        assert name in parameters or RENAMED.get(option) in parameters, f"{command}: {option}"
    assert function.__doc__ and ">>>" in function.__doc__


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_only_parses_and_shows(command: str) -> None:
    """What it imports besides the API are types, wording, and the families that a table is made of."""
    allowed = ("remapkit.api", "remapkit.cli", "remapkit.diagnostics.wording")
    named = {
        ("remapkit.authoring.learn", "Learned"),
        ("remapkit.plans.check", "Check"),
        ("remapkit.plans.model", "ResolvedPlan"),
        ("remapkit.plans.moves", "Move"),
        ("remapkit.plans.moves", "describe_sources"),
        ("remapkit.registry.installed", "plugins"),
        ("remapkit.tensors.families", "find_families"),
        ("remapkit.tensors.spec", "StateDictSpec"),
        ("remapkit.tensors.spec", "TensorSpec"),
        ("remapkit.verification", "Verdict"),
    }
    tree = ast.parse((ROOT / "cli" / "commands" / f"{command}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("remapkit"):
            found = {(str(node.module), name.name) for name in node.names}
            assert str(node.module).startswith(allowed) or found <= named, found


def test_import_costs_nothing() -> None:
    """Counted, not timed: nothing that is slow to import is, and little of remapkit itself."""
    program = "import sys, remapkit; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    imported = done.stdout.split()
    slow = {"torch", "numpy", "yaml", "jsonschema", "rich", "safetensors", "argparse", "logging", "json"}
    assert not slow & set(imported)
    assert [name for name in imported if name.startswith("remapkit")] == ["remapkit"]


def test_the_set_for_plugins_is_small() -> None:
    from remapkit import plugin

    assert plugin.__all__ == [
        "ReadOptions",
        "SourceLike",
        "count_noun",
        "describe_layouts",
        "find_only_path",
        "format_bytes",
        "list_names",
        "open_source",
        "read_json_file",
        "read_under_roots",
        "show_below",
        "show_error",
    ]


USE = """
import remapkit

rules = remapkit.load("wan22_pth")
plan: remapkit.Plan = rules.plan("a.pth")
written: remapkit.Written = remapkit.apply(rules, "a.pth", "b.safetensors", shard_size="5GB")
ok: bool = remapkit.check(rules, "a.pth", model="wan.vae:WanVAE").ok
names: list[str] = [pack.describe().summary for pack in remapkit.packs()] + [p.name for p in remapkit.plugins()]
version: str = remapkit.__version__
"""
MISTAKES = {
    "remapkit.lod": 'has no attribute "lod"',
    "remapkit.apply('r', 'a', shard_sise=3)": "shard_sise",
    "remapkit.inspect(3)": "incompatible type",
    "remapkit.diff('a', 'b').okay": "okay",
}


@pytest.mark.slow
def test_the_surface_is_typed(tmp_path: Path) -> None:
    """What is right passes `mypy --strict`; each mistake is one error, at its line."""
    path = tmp_path / "use.py"
    path.write_text(USE + "".join(f"{mistake}\n" for mistake in MISTAKES))
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]  # its cache: `make test` has filled it
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False, cwd=ROOT.parent)
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    first = USE.count("\n") + 1
    assert [line.split(":")[1] for line in lines] == [str(first + number) for number in range(len(MISTAKES))], lines
    for line, words in zip(lines, MISTAKES.values(), strict=True):
        assert words in line
