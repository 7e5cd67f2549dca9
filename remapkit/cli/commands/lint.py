"""`remapkit lint`: checks and proves rule files on their own, over all keys."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from remapkit.api.lint import LintedFile, lint
from remapkit.cli.arguments import get_param_options
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.wording import count_noun


def run(args: Namespace) -> CommandOutcome:
    """Validate against the schema, compile, and prove over all keys."""
    report = lint(args.rules, allow_undecided=args.allow_undecided, **get_param_options(args))
    return CommandOutcome(
        data={"files": list(map(_dump_file, report.files))},
        text=(TextTable(("file", ">rules", ">keep", ">drop", "verdict"), tuple(map(_make_row, report.files))),),
        diagnostics=report.diagnostics,
        failed=not report.ok,
        findings=True,
    )


def _dump_file(file: LintedFile) -> dict[str, Any]:
    data: dict[str, Any] = {"file": str(file.path), "ok": file.ok}
    if file.proof is not None:
        data |= {"level": file.proof.level.name.lower(), "verdict": file.proof.verdict}
    return data


def _make_row(file: LintedFile) -> tuple[str, ...]:
    if file.rules is None or file.proof is None:
        return str(file.path), "", "", "", count_noun(len(file.diagnostics), "problem")
    counts = (str(len(group)) for group in (file.rules.rules, file.rules.keep, file.rules.drop))
    return str(file.path), *counts, f"{'ok' if file.ok else 'fails'}: {file.proof.verdict}"
