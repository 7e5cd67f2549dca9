"""Draws the import graph of the folders, from the code: `python docs/draw_house.py` prints it as Mermaid.

One box a folder, one row a floor (as pyproject.toml has them), and an arrow for each import between two folders, late
imports and those for type checkers included. Arrows that follow from others are left out: where `cli` imports `api`
and `api` imports `plans`, an arrow from `cli` to `plans` would say nothing new. `--write` puts the picture into
docs/architecture.md, where a test compares it with the code.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
START, END = "```mermaid\n", "```\n"


def floors() -> list[list[str]]:
    """The folders of each floor, the lowest floor first."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each["type"] == "layers")
    return [sorted(layer.replace(" ", "").split("|")) for layer in reversed(layers)]


def imports_between(folders: list[str]) -> dict[str, set[str]]:
    """Which folders each folder imports."""
    graph = grimp.build_graph("remapkit", cache_dir=None)
    for folder in folders:
        graph.squash_module(f"remapkit.{folder}")
    return {
        folder: {
            name.removeprefix("remapkit.")
            for name in graph.find_modules_directly_imported_by(f"remapkit.{folder}")
            if name not in ("remapkit", f"remapkit.{folder}")
        }
        for folder in folders
    }


def without_implied(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows without those that follow from others; the graph has no circle, as import-linter holds."""

    def below(folder: str) -> set[str]:
        return arrows[folder].union(*(below(each) for each in arrows[folder]))

    return {folder: own - set().union(*(below(each) for each in own)) for folder, own in arrows.items()}


def picture() -> str:
    """The Mermaid text: a subgraph for each floor, the highest first."""
    rows = floors()
    lines = ["flowchart TD"]
    for number, row in reversed(list(enumerate(rows, 1))):
        boxes = "; ".join(f'{name}["{name}/"]' if name != "plugin" else 'plugin["plugin.py"]' for name in row)
        lines.append(f'  subgraph f{number}["{number}"]; direction LR; {boxes}; end')
    arrows = without_implied(imports_between([name for row in rows for name in row]))
    lines += [f"  {name} --> {' & '.join(sorted(arrows[name]))}" for name in sorted(arrows) if arrows[name]]
    return "\n".join(lines) + "\n"


def on_the_page() -> str:
    """The Mermaid text that docs/architecture.md shows."""
    return PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(PAGE.read_text(encoding="utf-8").replace(on_the_page(), picture()), encoding="utf-8")
    else:
        print(picture(), end="")


if __name__ == "__main__":
    main()
