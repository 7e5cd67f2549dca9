"""docs/diagnostics.md has every code that the source uses, no other, and says of each what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import remapkit

ROOT = Path(remapkit.__file__).parent.parent
PAGE = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"^### (RK\d{3}) · (.+)\n\n(.+)\n\n```\n((?:.+\n)+)```\n\n\*\*What to do:\*\* (.+)$", re.MULTILINE)


def codes_in(*folders: str) -> set[str]:
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {code for path in paths for code in re.findall(r"\bRK\d{3}\b", path.read_text(encoding="utf-8"))}


def test_every_code_is_documented_and_every_documented_code_is_used() -> None:
    documented = [match.group(1) for match in ENTRY.finditer(PAGE)]
    used = codes_in("remapkit", "plugins")
    assert len(used) > 100
    assert sorted(used - set(documented)) == [], "docs/diagnostics.md lacks these"
    assert sorted(set(documented) - used) == [], "nothing uses these any more"
    assert documented == sorted(set(documented)), "each once, in order"


def test_every_heading_is_a_whole_entry() -> None:
    """An entry without its example or its advice would not be found by the test above, but by this one."""
    assert re.findall(r"^### (\S+)", PAGE, re.MULTILINE) == [match.group(1) for match in ENTRY.finditer(PAGE)]


@pytest.mark.parametrize("code", [match.group(1) for match in ENTRY.finditer(PAGE)])
def test_a_code_stands_under_the_heading_of_its_range(code: str) -> None:
    before = PAGE[: PAGE.index(f"### {code} ")]
    assert re.findall(r"^## (RK\d)", before, re.MULTILINE)[-1] == code[:3]


def test_no_message_is_made_without_a_code_of_its_range() -> None:
    """The first argument of a `Diagnostic` is a code, or a name that holds one: never a free text."""
    for path in (ROOT / "remapkit").rglob("*.py"):
        for first in re.findall(r"\bDiagnostic\(\s*([^,\s)]+)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r'"RK\d{3}"|code|self\.code|[a-z_.]+', first), (path, first)
