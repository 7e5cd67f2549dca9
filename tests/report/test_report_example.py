"""The example of a report in docs/ is the one that `make docs` makes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import remapkit

DOCS = Path(remapkit.__file__).parent.parent / "docs"


def test_the_example_is_what_the_build_makes() -> None:
    """After a change of the page: `make docs`."""
    spec = importlib.util.spec_from_file_location("make_example_report", DOCS / "make_example_report.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    page = maker.make_example()
    assert (DOCS / "report-example.html").read_text(encoding="utf-8") == page == maker.make_example()
    assert len(page) < 300_000 and str(DOCS.parent) not in page


def test_the_page_on_reports_names_every_mark() -> None:
    """The table of docs/report.md has the symbols and the words of the script, and no others."""
    script = (DOCS.parent / "remapkit" / "picture" / "report.js").read_text(encoding="utf-8")
    states = script.split("const STATES = {")[1].split("};")[0]
    shown = set(re.findall(r'\["(.)", "\w+", "([^"]+)"\]', states))
    table = set(
        re.findall(r"^\| ([^|]) \| ([^|]+) \|", (DOCS / "report.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert shown == table and len(shown) == 9
