"""`remapkit test`: the tests that rule files carry, and their manifests end to end."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from remapkit.cli.commands.common import find_rule_paths, load_rules, read_known_source
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.models.target import diagnose_code_target, find_declared_target, read_target_header
from remapkit.plans.check import make_check
from remapkit.plans.make import make_plan
from remapkit.rules.selftest import run_tests

if TYPE_CHECKING:
    from remapkit.api.ruleset import RuleSet


def run(args: Namespace) -> CommandOutcome:
    """The packs' own tests, then their manifests end to end."""
    diagnostics: list[Diagnostic] = []
    rows: list[tuple[str, ...]] = []
    failed = False
    for path in find_rule_paths(args):
        rules = load_rules(path, args)
        report = run_tests(rules)
        found, manifest = _check_manifest(rules)
        diagnostics += [*report.problems, *found]
        failed = failed or bool(report.problems or found)
        verdict = "fails" if report.problems or found else "ok"
        rows.append((rules.name, f"{report.passed} of {report.total}", manifest, verdict))
    return CommandOutcome(
        data={"packs": [dict(zip(("rules", "tests", "manifest", "verdict"), row, strict=True)) for row in rows]},
        text=(TextTable(("rules", "tests", "manifest", "verdict"), tuple(rows)),),
        diagnostics=tuple(diagnostics),
        failed=failed,
        findings=True,
    )


def _check_manifest(rules: RuleSet) -> tuple[list[Diagnostic], str]:
    """The declared source through the rules to the declared target: its problems, and a word for the table."""
    source = read_known_source(rules)
    if source is None:
        return [], "none declared"
    plan = make_plan(rules, source)
    reference = find_declared_target(rules)
    if reference is None:
        return list(plan.problems), f"{len(plan.moves)} of {len(source)} keys; no target declared"
    if diagnose_code_target(reference):
        return list(plan.problems), f"{len(plan.moves)} of {len(source)} keys; {reference.model} is not imported"
    verdict = make_check(plan, read_target_header(reference))
    return list(verdict.problems), f"{verdict.matched} of {len(verdict.target)} targets"
