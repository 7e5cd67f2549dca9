"""`remapkit lint`: rule files for themselves, over all keys."""

from __future__ import annotations

from argparse import Namespace

from remapkit.commands.common import rule_paths
from remapkit.diagnostic import Diagnostic, InvalidRules
from remapkit.library import load
from remapkit.plan import counted
from remapkit.report import Outcome, Table


def run(args: Namespace) -> Outcome:
    """Schema and compilation of rule files."""
    diagnostics: list[Diagnostic] = []
    rows: list[tuple[str, ...]] = []
    for path in rule_paths(args):
        try:
            rules = load(path)
        except InvalidRules as error:
            diagnostics += error.diagnostics
            rows.append((str(path), "", "", "", counted(len(error.diagnostics), "problem")))
            continue
        diagnostics += rules.warnings
        counts = (str(len(rules.rules)), str(len(rules.keep)), str(len(rules.drop)))
        rows.append((str(path), *counts, "ok"))
    failed = any(row[-1] != "ok" for row in rows)
    return Outcome(
        data={"files": [{"file": row[0], "ok": row[-1] == "ok"} for row in rows]},
        text=(Table(("file", ">rules", ">keep", ">drop", "verdict"), tuple(rows)),),
        diagnostics=tuple(diagnostics),
        failed=failed,
        findings=True,
    )
