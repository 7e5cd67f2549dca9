"""`remapkit test`: runs the tests in rule files, and checks their manifests end to end."""

from __future__ import annotations

from argparse import Namespace

from remapkit.api.test import PackTest, test
from remapkit.cli.arguments import get_param_options
from remapkit.cli.render import CommandOutcome, TextTable

COLUMNS = ("rules", "tests", "manifest", "verdict")


def run(args: Namespace) -> CommandOutcome:
    """Run the tests of the packs, then check their manifests end to end."""
    report = test(args.rules, **get_param_options(args))
    rows = tuple(map(_make_row, report.packs))
    return CommandOutcome(
        data={"packs": [dict(zip(COLUMNS, row, strict=True)) for row in rows]},
        text=(TextTable(COLUMNS, rows),),
        diagnostics=report.diagnostics,
        failed=not report.ok,
        findings=True,
    )


def _make_row(pack: PackTest) -> tuple[str, ...]:
    return pack.rules, f"{pack.tests.passed} of {pack.tests.total}", pack.manifest, "ok" if pack.ok else "fails"
