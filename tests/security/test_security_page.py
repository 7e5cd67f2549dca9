"""docs/security.md promises what is tested, and all of it: every row names an attack or a test, and its words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attacks import ATTACKS
from test_rule_files import RULE_FILES, TARGETS

import remapkit

ROOT = Path(remapkit.__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ALL = {**ATTACKS, "Rule files": {**RULE_FILES, **TARGETS}}


def rows(group: str) -> list[list[str]]:
    """The rows of the table under a heading, without its head."""
    section = PAGE.partition(f"### {group}\n")[2].partition("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r" \| ", line.strip("| "))] for line in lines[2:]]


@pytest.mark.parametrize("group", ALL)
def test_the_table_has_every_attack_with_what_it_gets(group: str) -> None:
    found = rows(group)
    assert [name for name, _, _ in found] == list(ALL[group])
    for name, code, words in found:
        attack = ALL[group][name]
        assert code == attack.code.ljust(5, "x")
        assert words.strip("` ") == (attack.words.strip("` ") or "what was found, at its place"), name


def test_every_row_of_the_shards_names_a_test_that_holds_its_words() -> None:
    tests = (ROOT / "tests" / "checkpoint" / "test_ckpt_sharded.py").read_text(encoding="utf-8")
    files = ("formats/sharded.py", "formats/reader.py", "files/source_file.py", "files/errors.py")
    sources = tests + "".join((ROOT / "remapkit" / file).read_text(encoding="utf-8") for file in files)
    found = rows("Shards")
    assert len(found) > 8
    for _, words, test in found:
        assert f"def {test.strip('`')}(" in tests
        fixed = max(re.split(r"'[^']*'|[0-9]+", words.strip("`")), key=len).strip()
        assert fixed in sources, fixed


def test_a_row_that_nothing_holds_would_be_seen() -> None:
    assert rows("Zip archives")[0][0] == "two `data.pkl`"
    assert PAGE.count("### ") == len(ALL) + 2, "a table without its test"
    assert all(
        f"`{name}`" in PAGE for name in ("tests/security/test_fuzz.py", "tests/security/test_safetensors_verdicts.py")
    )
