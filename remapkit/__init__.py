"""remapkit: prove that a checkpoint's keys map onto a model, then move the bytes at the speed of `cp`.

    import remapkit
    rules = remapkit.load("wan22_pth")             # an installed pack, or the path of a rule file
    new_state_dict = rules(state_dict)             # renames share storage
    plan = rules.plan("Wan2.2_VAE.pth")            # every move, nothing written
    check = plan.check(model)                      # missing, unexpected, mismatched
    check.raise_for_problems()
    remapkit.load_into(model, "Wan2.2_VAE.pth", rules)  # every tensor in its place, none copied

Each command of the command line is a function of the same name with the same options as keywords: `apply`, `check`,
`convert`, `diff`, `explain`, `identify`, `inspect`, `invert`, `learn`, `lint`, `new`, `packs`, `recover`, `report`,
`schema`, `test`, `verify`.
What they have to say is in the `diagnostics` of their results, and goes to the logger `remapkit`.

`__all__` is the whole public surface. Names are imported when first used: `import remapkit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remapkit.api.apply import Written, apply
    from remapkit.api.check import CheckReport, check
    from remapkit.api.convert import Converted, convert
    from remapkit.api.diff import Diff, diff
    from remapkit.api.explain import Explanation, explain
    from remapkit.api.graph import Graph
    from remapkit.api.identify import Identification, identify
    from remapkit.api.inspect import Inspection, inspect
    from remapkit.api.invert import Inverse, invert
    from remapkit.api.learn import LearnReport, learn
    from remapkit.api.learn_through import ThroughReport, learn_through
    from remapkit.api.lint import LintedFile, LintReport, lint
    from remapkit.api.new import NewRules, new
    from remapkit.api.packs import Pack, PackSummary, packs
    from remapkit.api.recover import recover
    from remapkit.api.report import Report, report
    from remapkit.api.ruleset import Plan, RuleSet, load, loads
    from remapkit.api.schema import schema
    from remapkit.api.test import PackTest, PackTests, test
    from remapkit.api.verify import VerifyReport, verify
    from remapkit.diagnostics.diagnostic import Diagnostic, Severity
    from remapkit.diagnostics.errors import (
        FailedCheck,
        FailedWrite,
        InvalidRules,
        MissingCheckpoint,
        MissingFile,
        OutputExists,
        RefusedRead,
        RemapkitError,
        UnreadableCheckpoint,
        UnwritableOutput,
        UsageError,
    )
    from remapkit.formats.reader import Reader
    from remapkit.loading import Loaded, load_into
    from remapkit.models.target import header
    from remapkit.plans.check import Check, Mismatch
    from remapkit.plans.moves import Move
    from remapkit.proofs.model import Level, Proof
    from remapkit.proofs.witness import Witness
    from remapkit.registry.installed import Plugin, plugins
    from remapkit.sources.open import open_checkpoint
    from remapkit.tensors.spec import StateDictSpec, TensorSpec

    __version__: str

_HOMES = {
    "Check": "plans.check",
    "CheckReport": "api.check",
    "Converted": "api.convert",
    "Diagnostic": "diagnostics.diagnostic",
    "Diff": "api.diff",
    "Explanation": "api.explain",
    "FailedCheck": "diagnostics.errors",
    "FailedWrite": "diagnostics.errors",
    "Graph": "api.graph",
    "Identification": "api.identify",
    "Inspection": "api.inspect",
    "InvalidRules": "diagnostics.errors",
    "Inverse": "api.invert",
    "LearnReport": "api.learn",
    "Level": "proofs.model",
    "LintReport": "api.lint",
    "LintedFile": "api.lint",
    "Loaded": "loading",
    "Mismatch": "plans.check",
    "MissingCheckpoint": "diagnostics.errors",
    "MissingFile": "diagnostics.errors",
    "Move": "plans.moves",
    "NewRules": "api.new",
    "OutputExists": "diagnostics.errors",
    "Pack": "api.packs",
    "PackSummary": "api.packs",
    "PackTest": "api.test",
    "PackTests": "api.test",
    "Plan": "api.ruleset",
    "Plugin": "registry.installed",
    "Proof": "proofs.model",
    "Reader": "formats.reader",
    "RefusedRead": "diagnostics.errors",
    "RemapkitError": "diagnostics.errors",
    "Report": "api.report",
    "RuleSet": "api.ruleset",
    "Severity": "diagnostics.diagnostic",
    "StateDictSpec": "tensors.spec",
    "TensorSpec": "tensors.spec",
    "ThroughReport": "api.learn_through",
    "UnreadableCheckpoint": "diagnostics.errors",
    "UnwritableOutput": "diagnostics.errors",
    "UsageError": "diagnostics.errors",
    "VerifyReport": "api.verify",
    "Witness": "proofs.witness",
    "Written": "api.apply",
    "apply": "api.apply",
    "check": "api.check",
    "convert": "api.convert",
    "diff": "api.diff",
    "explain": "api.explain",
    "header": "models.target",
    "identify": "api.identify",
    "inspect": "api.inspect",
    "invert": "api.invert",
    "learn": "api.learn",
    "learn_through": "api.learn_through",
    "lint": "api.lint",
    "load": "api.ruleset",
    "load_into": "loading",
    "loads": "api.ruleset",
    "new": "api.new",
    "open_checkpoint": "sources.open",
    "packs": "api.packs",
    "recover": "api.recover",
    "report": "api.report",
    "schema": "api.schema",
    "test": "api.test",
    "verify": "api.verify",
}
"""Where each public name lives; `plugins` is a package, which is callable, and `__version__` is looked up."""

__all__ = [
    "Check",
    "CheckReport",
    "Converted",
    "Diagnostic",
    "Diff",
    "Explanation",
    "FailedCheck",
    "FailedWrite",
    "Graph",
    "Identification",
    "Inspection",
    "InvalidRules",
    "Inverse",
    "LearnReport",
    "Level",
    "LintReport",
    "LintedFile",
    "Loaded",
    "Mismatch",
    "MissingCheckpoint",
    "MissingFile",
    "Move",
    "NewRules",
    "OutputExists",
    "Pack",
    "PackSummary",
    "PackTest",
    "PackTests",
    "Plan",
    "Plugin",
    "Proof",
    "Reader",
    "RefusedRead",
    "RemapkitError",
    "Report",
    "RuleSet",
    "Severity",
    "StateDictSpec",
    "TensorSpec",
    "ThroughReport",
    "UnreadableCheckpoint",
    "UnwritableOutput",
    "UsageError",
    "VerifyReport",
    "Witness",
    "Written",
    "__version__",
    "apply",
    "check",
    "convert",
    "diff",
    "explain",
    "header",
    "identify",
    "inspect",
    "invert",
    "learn",
    "learn_through",
    "lint",
    "load",
    "load_into",
    "loads",
    "new",
    "open_checkpoint",
    "packs",
    "plugins",
    "recover",
    "report",
    "schema",
    "test",
    "verify",
]


if not TYPE_CHECKING:  # a type checker must see that `remapkit.lod` is a mistake

    def __getattr__(name: str) -> Any:
        if name == "plugins":
            return import_module("remapkit.plugins")
        if name == "__version__":
            value = import_module("remapkit.diagnostics.version").VERSION
        elif name in _HOMES:
            value = getattr(import_module(f"remapkit.{_HOMES[name]}"), name)
        else:
            raise AttributeError(f"module 'remapkit' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
