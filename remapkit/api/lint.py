"""`remapkit.lint`: rule files checked on their own, and proven over all keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remapkit.api.inputs import find_rule_paths
from remapkit.api.ruleset import Config, RuleSet, checked, load
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import InvalidRules, RemapkitError
from remapkit.diagnostics.log import log_diagnostics
from remapkit.proofs.model import Proof
from remapkit.sources.declared import read_declared_source
from remapkit.sources.mounts import parse_declared_files


@dataclass(frozen=True, slots=True)
class LintedFile:
    """One rule file: its rules and their proof, None if it cannot be compiled."""

    path: Path
    ok: bool
    rules: RuleSet | None = None
    proof: Proof | None = None
    diagnostics: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True, slots=True)
class LintReport:
    """What `lint` found in each file."""

    files: tuple[LintedFile, ...]

    def __str__(self) -> str:
        return "\n".join(f"{file.path}: {'ok' if file.ok else 'failed'}" for file in self.files)

    @property
    def ok(self) -> bool:
        """Whether every file passes."""
        return all(file.ok for file in self.files)

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """The errors, warnings and notes of all files."""
        return tuple(diagnostic for file in self.files for diagnostic in file.diagnostics)


@checked
def lint(
    rules: str | Path | Sequence[str | Path] = (),
    *,
    params: Mapping[str, int | Sequence[int]] | None = None,
    config: Config | None = None,
    allow_undecided: bool = False,
) -> LintReport:
    """Check rule files on their own (schema, patterns, templates), and prove them over all keys.

    Args:
        rules: A rule file, the name of an installed pack, or several. Default: every installed pack.
        params, config: Values for the params of the rules; see `load`. What is proven holds for these.
        allow_undecided: Accept rules for which a proof over all keys is undecided.

    Returns:
        `LintReport`, also where a file fails: see its `ok`. Its `diagnostics` are logged too (logger `remapkit`).

    Raises:
        UsageError: Names without a rule file, all of them listed.

    >>> report = lint("wan22_pth")
    >>> report.ok, report.files[0].proof.verdict
    (True, 'proven for all keys')
    """
    names = [rules] if isinstance(rules, str | Path) else rules
    paths = find_rule_paths(names)
    report = LintReport(tuple(_lint_file(path, params, config, allow_undecided) for path in paths))
    log_diagnostics(report.diagnostics)
    return report


def _lint_file(
    path: Path, params: Mapping[str, int | Sequence[int]] | None, config: Config | None, allow_undecided: bool
) -> LintedFile:
    try:
        rules = load(path, params=params, config=config)
    except InvalidRules as error:
        return LintedFile(path, False, diagnostics=error.diagnostics)
    unread: tuple[Diagnostic, ...] = ()
    header = None
    try:
        header = read_declared_source(rules.file)
        parse_declared_files(rules.file)
    except RemapkitError as error:
        unread = error.diagnostics
    proof = rules.prove(header=header)
    ok = not proof.blocking(allow_undecided=allow_undecided) and not unread
    return LintedFile(path, ok, rules, proof, (*rules.warnings, *unread, *proof.findings))
