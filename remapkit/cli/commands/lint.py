"""`remapkit lint`: rule files for themselves, over all keys."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from remapkit.api.ruleset import load
from remapkit.cli.commands.common import find_rule_paths, read_known_source
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import InvalidRules, RemapkitError
from remapkit.diagnostics.wording import count_noun


def run(args: Namespace) -> CommandOutcome:
    """Schema, compilation and the proofs over all keys."""
    diagnostics: list[Diagnostic] = []
    rows: list[tuple[str, ...]] = []
    files: list[dict[str, Any]] = []
    for path in find_rule_paths(args):
        found, row, data = _lint_file(path, allow_undecided=args.allow_undecided)
        diagnostics += found
        rows.append(row)
        files.append(data)
    return CommandOutcome(
        data={"files": files},
        text=(TextTable(("file", ">rules", ">keep", ">drop", "verdict"), tuple(rows)),),
        diagnostics=tuple(diagnostics),
        failed=not all(data["ok"] for data in files),
        findings=True,
    )


def _lint_file(path: Path, *, allow_undecided: bool) -> tuple[list[Diagnostic], tuple[str, ...], dict[str, Any]]:
    """What there is to say of one file, its row of the table, and its data."""
    try:
        rules = load(path)
    except InvalidRules as error:
        verdict = count_noun(len(error.diagnostics), "problem")
        return list(error.diagnostics), (str(path), "", "", "", verdict), {"file": str(path), "ok": False}
    diagnostics, unread = list(rules.warnings), False
    try:
        header = read_known_source(rules)
    except RemapkitError as error:
        diagnostics += error.diagnostics
        header, unread = None, True
    proof = rules.prove(header=header)
    diagnostics += proof.findings
    ok = not proof.blocking(allow_undecided=allow_undecided) and not unread
    counts = (str(len(rules.rules)), str(len(rules.keep)), str(len(rules.drop)))
    data = {"file": str(path), "ok": ok, "level": proof.level.name.lower(), "verdict": proof.verdict}
    return diagnostics, (str(path), *counts, f"{'ok' if ok else 'fails'}: {proof.verdict}"), data
