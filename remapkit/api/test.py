"""`remapkit.test`: the tests that rule files carry, and their manifests end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remapkit.api.inputs import find_rule_paths
from remapkit.api.ruleset import Config, RuleSet, checked, resolve_rules
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.log import log_diagnostics
from remapkit.models.target import diagnose_code_target, find_declared_target, read_target_header
from remapkit.plans.check import make_check
from remapkit.plans.make import make_plan
from remapkit.rules.selftest import TestReport, run_tests
from remapkit.sources.declared import read_declared_source


@dataclass(frozen=True, slots=True)
class PackTest:
    """The result for one rule file: its `tests`, and its rules applied from declared source to declared target.

    `manifest` describes the result for the declared source; `problems` lists everything wrong.
    """

    rules: str
    tests: TestReport
    manifest: str
    problems: tuple[Diagnostic, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every test passes and the manifests fit."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class PackTests:
    """What `test` found for each rule file."""

    packs: tuple[PackTest, ...]

    def __str__(self) -> str:
        return "\n".join(f"{pack.rules}: {'ok' if pack.ok else 'failed'}" for pack in self.packs)

    @property
    def ok(self) -> bool:
        """Whether every rule file passes."""
        return all(pack.ok for pack in self.packs)

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """The problems of all rule files."""
        return tuple(problem for pack in self.packs for problem in pack.problems)


@checked
def test(
    rules: str | Path | Sequence[str | Path] = (),
    *,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Config | None = None,
) -> PackTests:
    """Run the tests that rule files carry, and check their manifests end to end.

    Args:
        rules: A rule file, the name of an installed pack, or several. Default: every installed pack.
        params, config: Values for the params of the rules; see `load`.

    Returns:
        `PackTests`, also if a test fails: see its `ok`. Its `diagnostics` are logged too (logger `remapkit`).

    Raises:
        UsageError: Names without a rule file, all of them listed; a declared model that cannot be built.
        InvalidRules: Rules that cannot be compiled.

    >>> found = test("gpt2_hf")
    >>> found.ok, found.packs[0].rules
    (True, 'gpt2_hf')
    """
    names = [rules] if isinstance(rules, str | Path) else rules
    report = PackTests(tuple(_test_pack(resolve_rules(path, params, config)) for path in find_rule_paths(names)))
    log_diagnostics(report.diagnostics)
    return report


test.__test__ = False  # type: ignore[attr-defined]  # pytest would collect a function with this name as a test


def _test_pack(rules: RuleSet) -> PackTest:
    tests = run_tests(rules)
    found, manifest = _check_manifest(rules)
    return PackTest(rules.name, tests, manifest, (*tests.problems, *found))


def _check_manifest(rules: RuleSet) -> tuple[tuple[Diagnostic, ...], str]:
    """Apply the rules to the declared source and check the declared target; return the problems and a description."""
    source = read_declared_source(rules.file)
    if source is None:
        return (), "none declared"
    plan = make_plan(rules, source)
    reference = find_declared_target(rules)
    if reference is None:
        return plan.problems, f"{len(plan.moves)} of {len(source)} keys; no target declared"
    if diagnose_code_target(reference):
        return plan.problems, f"{len(plan.moves)} of {len(source)} keys; {reference.model} is not imported"
    check = make_check(plan, read_target_header(reference))
    return check.problems, f"{check.matched} of {len(check.target)} targets"
