"""`remapkit check`: rules held against a source header and a target; nothing is written."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remapkit.api.ruleset import load
from remapkit.cli.arguments import parse_target
from remapkit.cli.commands.common import load_rules, open_source, read_known_source, refuse_unproven
from remapkit.cli.render import CommandOutcome, TextTable
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.models.target import find_declared_target, read_target_header
from remapkit.plans.check import Check, make_check
from remapkit.plans.make import make_plan
from remapkit.plans.target_check import TargetCheck, check_declared_target
from remapkit.registry.installed import packs
from remapkit.sources.declared import read_header
from remapkit.tensors.spec import StateDictSpec

if TYPE_CHECKING:
    from remapkit.api.ruleset import RuleSet


def run(args: Namespace) -> CommandOutcome:
    """The verdict only, for one rule file or for every pack that leads to the model."""
    rule_sets = [load_rules(name, args) for name in args.rules] or _find_packs(args)
    proven = refuse_unproven(rule_sets, args)
    held = [_check_rules(rules, args) for rules in rule_sets]
    checks = [each.check for each in held if each.check is not None]
    found = [diagnostic for each in checks for diagnostic in (*each.problems, *each.warnings, *each.notes)]
    found += [note for each in held for note in each.notes]
    # A dead rule is in a plan's warnings too.
    found += [finding for finding in proven if finding.code != "RK205"]
    # Two packs that lead to one model have the same things to say about that model.
    diagnostics = [diagnostic for number, diagnostic in enumerate(found) if diagnostic not in found[:number]]
    rows = tuple(_make_row(each) for each in checks)
    failed = any(not each.ok for each in checks)
    return CommandOutcome(
        data={"checks": [{**dump_check(each.check), "checked": each.how} for each in held if each.check is not None]},
        text=(
            TextTable(
                ("rules", "source", "target", ">matched", ">missing", ">unexpected", ">shapes", "verdict"), rows
            ),
        ),
        diagnostics=tuple(diagnostics),
        failed=failed,
        findings=True,
    )


def _find_packs(args: Namespace) -> list[RuleSet]:
    """Every installed pack whose declared target is `--model` (every pack with a target where none is named)."""
    if args.ckpt or args.keys:
        raise UsageError(
            Diagnostic("RK609", "which rules should be checked against this source?", help=("name them: RULES",))
        )
    rule_sets = [load(pack.path) for pack in packs()]
    with_target = [rules for rules in rule_sets if find_declared_target(rules) is not None and rules.file.source_keys]
    if args.model is None:
        return with_target
    found = [rules for rules in with_target if _find_model(rules) == args.model]
    if not found:
        known = sorted({model for rules in with_target if (model := _find_model(rules))})
        raise UsageError(
            Diagnostic(
                "RK610",
                f"no installed pack has the target {args.model}",
                help=(f"packs lead to: {', '.join(known) or 'no model'}", "name the rules: remapkit check RULES ..."),
            )
        )
    return found


def _find_model(rules: RuleSet) -> str | None:
    target = rules.file.target
    return target.model.value if target and target.model else None


def _check_rules(rules: RuleSet, args: Namespace) -> TargetCheck:
    named = parse_target(args)
    reference = named or find_declared_target(rules)
    if reference is None:
        raise UsageError(
            Diagnostic(
                "RK609",
                f"what should {rules.name} be checked against? It declares no target",
                help=("name it with --model M or --target-keys FILE, or declare `target:` in the rule file",),
            )
        )
    plan = make_plan(rules, _read_source(rules, args))
    if named is None and reference.model is None:
        return check_declared_target(rules, plan, strict_dtype=args.strict_dtype)
    return TargetCheck(make_check(plan, read_target_header(reference), strict_dtype=args.strict_dtype), "exact")


def _read_source(rules: RuleSet, args: Namespace) -> StateDictSpec:
    if args.keys:
        return read_header(Path(args.keys))
    if args.ckpt:
        with open_source(Path(args.ckpt), args) as reader:
            return reader.header()
    source = read_known_source(rules)
    if source is None:
        raise UsageError(
            Diagnostic(
                "RK609",
                f"which checkpoint should {rules.name} be checked on? It declares no source",
                help=("name one with --ckpt C or --keys FILE, or declare `source:` in the rule file",),
            )
        )
    return source


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
    """A check as JSON."""
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
