"""Who may import whom, and who may import torch: held by walking the imports, and by running the command line."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import remapkit

PACKAGE = Path(remapkit.__file__).parent
ROOT = PACKAGE.parent
PACKS = ROOT / "rules"
TINY = ROOT / "tests" / "data" / "wan22_vae_tiny" / "upstream.pth"

# The module map of docs/architecture.md, top row first: a module imports from its own row or a row above.
ROWS: tuple[tuple[str, ...], ...] = (
    ("source", "diagnostic", "spec", "units", "guest"),
    ("yamlnodes", "scalars", "rulefile", "schema", "ops"),
    (
        "literals",
        "pattern",
        "regex",
        "pathpattern",
        "automaton",
        "factor",
        "guards",
        "template",
        "matcher",
        "stopping",
        "languages",
    ),
    (
        *("flows", "arrows", "variants", "nets", "searches", "delays", "questions", "verdicts", "constants"),
        *("rules", "prove", "invert", "require", "companions"),
    ),
    ("plan", "recorded", "gather", "casting", "check"),
    ("checkpoint", "files"),
    ("execute", "compare", "loading", "meta", "running"),
    (
        "library",
        "ruletest",
        "learn",
        "generalise",
        "pairing",
        "settling",
        "derived",
        "examples",
        "families",
        "targets",
        "declared",
        "witness",
        "verification",
    ),
    ("report", "progress", "elsewhere", "commands", "cli", "__main__"),
)
LOADING = {f"loading.{name}" for name in ("carry", "inplace", "into", "job", "module", "rebuild", "upload", "values")}
VERIFICATION = {f"verification.{name}" for name in ("forward", "models", "oracle")}
MAY_IMPORT_TORCH = {
    *LOADING,
    *VERIFICATION,
    "commands.verify",
    "meta",
    "running.eager",
    "checkpoint.legacy",
    "targets",
}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def row_of(module: str) -> int:
    head = module.partition(".")[0]
    return next(number for number, row in enumerate(ROWS) if head in row)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_at_top(tree: ast.Module) -> Iterator[str]:
    """What is imported when the module is: not what only type checkers see, nor what a function imports late."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


def violations(trees: dict[str, ast.Module]) -> list[str]:
    found = []
    for module, tree in trees.items():
        for name in imports_at_top(tree):
            inner = name.removeprefix("remapkit.")
            if name.startswith("remapkit.") and row_of(inner) > row_of(module):
                found.append(f"{module} imports {inner}, which is a row below")
    return found


def torch_importers(trees: dict[str, ast.Module]) -> set[str]:
    return {
        module
        for module, tree in trees.items()
        if any(name == "torch" or name.startswith("torch.") for name in imports(tree))
    }


def test_every_module_is_on_the_map() -> None:
    on_the_map = {module for row in ROWS for module in row}
    assert {module.partition(".")[0] for module in modules()} <= on_the_map
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = {module.partition(".")[0] for module in modules() if f"`{module.partition('.')[0]}" not in architecture}
    assert not missing, f"docs/architecture.md does not name {sorted(missing)}"


def test_a_module_imports_from_its_own_row_or_a_row_above() -> None:
    assert violations(modules()) == []


def test_the_walk_sees_a_planted_violation() -> None:
    planted = {"spec": ast.parse("from remapkit.cli import main")}
    assert violations(planted) == [
        "spec imports cli, which is a row below",
        "spec imports cli.main, which is a row below",
    ]


def test_torch_is_imported_only_where_tensors_are_touched() -> None:
    assert torch_importers(modules()) <= MAY_IMPORT_TORCH


def test_the_walk_sees_a_planted_torch_import_inside_a_function() -> None:
    assert torch_importers({"plan": ast.parse("def f():\n    import torch.nn")}) == {"plan"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["lint"],
        ["test", "{wan22_pth}"],
        ["packs"],
        ["schema"],
        ["explain", "wan22_pth", "conv1.weight"],
        ["invert", "wan22_pth"],
        ["inspect", "{tiny}"],
        ["check", "wan22_pth", "--ckpt", "{tiny}", "--target-keys", "{converted}"],
        ["apply", "wan22_pth", "{tiny}", "-o", "{out}"],
        ["diff", "{tiny}", "{tiny}"],
        ["new", "mine", "--from", "{tiny}", "-o", "-"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_command_imports_torch_for_headers_and_bytes(arguments: list[str], tmp_path: Path) -> None:
    """Run as a process of its own, with a `torch` that fails on import."""
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    converted = tmp_path / "converted.safetensors"
    pack = tmp_path / "wan22_pth.yaml"
    # A pack without its target model: the model is what would rightly import torch.
    text = (PACKS / "wan22_pth.yaml").read_text(encoding="utf-8")
    pack.write_text(text.replace('target: {model: "wan.vae:WanVAE"}', ""))
    shutil.copytree(PACKS / "keys", tmp_path / "keys")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(trap), str(ROOT)])}
    if "{converted}" in arguments:
        command = [sys.executable, "-m", "remapkit", "apply", "wan22_pth", str(TINY), "-o", str(converted)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    places = {"{tiny}": TINY, "{out}": tmp_path / "out.safetensors", "{converted}": converted, "{wan22_pth}": pack}
    command = [sys.executable, "-m", "remapkit", *(str(places.get(word, word)) for word in arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch was imported" not in done.stderr
