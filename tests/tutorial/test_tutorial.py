"""The tutorial, word for word: its files are written, its commands run, and they print what the page shows.

`UPDATE_GOLDEN=1 pytest tests/tutorial` writes what they print into the page. Read what changed as somebody who has
never seen remapkit.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import remapkit

PAGE = Path(remapkit.__file__).parent.parent / "docs" / "tutorial.md"
PART = re.compile(
    r"(?:^<!-- file: (?P<file>\S+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
TIME = re.compile(r"in [\d.]+ (?:s|ms) \([^)]*/s\)")
"""The time that a conversion took: the only part of what is printed that changes from run to run."""


def run_console(text: str, folder: Path, environment: dict[str, str], status: int) -> tuple[str, int]:
    """Run the commands of a block; return the block with what they print now, and the last exit status."""
    block = ""
    for command in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            environment[name] = value
        done = subprocess.run(
            ["bash", "-c", f"(exit {status})\n{command}"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        )
        status = done.returncode
        block += f"$ {command}\n{done.stdout.decode('utf-8')}"
    return block, status


@pytest.mark.slow
def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    environment = {
        **{name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")},
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUTF8": "1",
        "REMAPKIT_CACHE": str(tmp_path / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    folder = tmp_path / "tutorial"
    folder.mkdir()
    page = PAGE.read_text(encoding="utf-8")
    made, at, status, kinds = "", 0, 0, []
    for part in PART.finditer(page):
        kinds.append(part["kind"])
        text = part["text"]
        if part["file"]:
            path = folder / part["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif part["kind"] == "console":
            text, status = run_console(text, folder, environment, status)
        made += page[at : part.start("text")] + text
        at = part.end("text")
    made += page[at:]
    assert kinds.count("console") >= 10 and kinds.count("python") == kinds.count("toml") == 1
    if os.environ.get("UPDATE_GOLDEN") and TIME.sub("", made) != TIME.sub("", page):
        PAGE.write_text(made, encoding="utf-8")
        return
    assert TIME.sub("in 0 s", made) == TIME.sub("in 0 s", page)
