"""Every bad rule file of this folder, and the golden text beside it: what its author is told.

`UPDATE_GOLDEN=1 pytest tests/bad` rewrites the texts; read what changed as somebody who meets remapkit for the first
time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from remapkit.api.ruleset import load
from remapkit.diagnostics.diagnostic import render
from remapkit.diagnostics.errors import InvalidRules
from remapkit.rulefile.yaml import compose as yamlnodes

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("*.yaml"))


def told(name: str) -> InvalidRules:
    with pytest.raises(InvalidRules) as caught:
        load(Path(name))
    return caught.value


@pytest.mark.parametrize("loader", [yaml.CSafeLoader, yaml.SafeLoader], ids=["libyaml", "python"])
@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_told_what_the_golden_text_says(
    name: str, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(yamlnodes, "LOADER", loader)
    text = "\n\n".join(render(diagnostic) for diagnostic in told(name).diagnostics) + "\n"
    golden = HERE / name.replace(".yaml", ".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_every_message_has_a_place_in_the_file_and_says_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE)
    for diagnostic in told(name).diagnostics:
        assert diagnostic.span is not None or diagnostic.place == name
        assert diagnostic.help, diagnostic.title
        for label in diagnostic.labels:
            assert label.span.source.name == name
            assert 0 <= label.span.start <= label.span.end <= len(label.span.source.text)


def test_every_golden_text_has_its_file() -> None:
    assert {path.stem for path in HERE.glob("*.txt")} == {Path(name).stem for name in FILES}


def test_every_code_about_rule_files_has_a_file_that_shows_it() -> None:
    """RK029, only the first 100 problems are shown, has a test of its own: nobody wants to read that file."""
    shown = {
        word[6:11] for path in HERE.glob("*.txt") for word in path.read_text("utf-8").split() if word[:6] == "error["
    }
    sources = (HERE.parent.parent / "remapkit" / "rulefile").rglob("*.py")
    used = {code for path in sources for code in path.read_text("utf-8").split('"') if code[:3] == "RK0"}
    assert used - {"RK029", "RK012"} <= shown
