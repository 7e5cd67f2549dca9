"""`remapkit check`: checks rules against a source header and a target; shows the verdicts."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from remapkit.api.check import check
from remapkit.cli.arguments import get_adapter_options, get_param_options, get_reading_options, get_target_options
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.plans.check import Check

COLUMNS = ("rules", "source", "target", ">matched", ">missing", ">unexpected", ">shapes", "verdict")


def run(args: Namespace) -> CommandOutcome:
    """Return the verdict for one rule file, or for every pack whose target is the model."""
    report = check(
        args.rules,
        args.ckpt,
        keys=args.keys,
        allow_undecided=args.allow_undecided,
        **get_target_options(args),
        **get_param_options(args),
        root=args.root,
        **get_reading_options(args),
        **get_adapter_options(args),
    )
    checks = [{**dump_check(each), "checked": how} for each, how in zip(report.checks, report.checked, strict=True)]
    return CommandOutcome(
        data={"checks": checks},
        text=(TextTable(COLUMNS, tuple(map(_make_row, report.checks))),),
        diagnostics=report.diagnostics,
        failed=not report.ok,
        findings=True,
    )


def _make_row(each: Check) -> tuple[str, ...]:
    return (
        each.plan.name,
        f"{each.plan.source.name} ({len(each.plan.source)})",
        f"{each.target.name} ({len(each.target)})",
        str(each.matched),
        str(len(each.missing_keys)),
        str(len(each.unexpected_keys)),
        str(len(each.shape_mismatches)),
        "ok" if each.ok else "fails",
    )


def dump_check(each: Check) -> dict[str, Any]:
    """Return a check as JSON data."""
    return {
        "rules": each.plan.name,
        "source": each.plan.source.name,
        "target": each.target.name,
        "ok": each.ok,
        "source_keys": len(each.plan.source),
        "target_keys": len(each.target),
        "matched": each.matched,
        "missing_keys": list(each.missing_keys),
        "unexpected_keys": list(each.unexpected_keys),
        "shape_mismatches": len(each.shape_mismatches),
        "dtype_mismatches": len(each.dtype_mismatches),
        "satisfied_by_tie": dict(each.satisfied_by_tie),
        "interchangeable": each.interchangeable,
        "through_operations": list(each.through_operations),
    }
