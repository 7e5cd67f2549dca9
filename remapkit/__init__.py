"""remapkit: prove that a checkpoint's keys map onto a model, then move the bytes at the speed of `cp`.

    import remapkit
    rules = remapkit.load("wan22_pth")             # an installed pack, or the path of a rule file
    new_state_dict = rules(state_dict)             # renames share storage
    plan = rules.plan("Wan2.2_VAE.pth")            # every move, nothing written
    check = plan.check(model)                      # missing, unexpected, mismatched
    check.raise_for_problems()
    remapkit.load_into(model, "Wan2.2_VAE.pth", rules)  # every tensor in its place, none copied

`__all__` is the whole public surface. Names are imported when first used: `import remapkit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remapkit.api.ruleset import Plan, RuleSet, load, loads
    from remapkit.diagnostics.diagnostic import Diagnostic
    from remapkit.diagnostics.errors import (
        FailedCheck,
        InvalidRules,
        RemapkitError,
        UnreadableCheckpoint,
        UnwritableOutput,
        UsageError,
    )
    from remapkit.formats.detect import open_checkpoint
    from remapkit.formats.reader import Reader
    from remapkit.loading import Loaded, load_into
    from remapkit.models.target import header
    from remapkit.plans.check import Check, Mismatch
    from remapkit.plans.moves import Move
    from remapkit.proofs.model import Level, Proof
    from remapkit.proofs.witness import Witness
    from remapkit.registry.installed import Pack, Plugin, packs, plugins
    from remapkit.tensors.spec import StateDictSpec, TensorSpec

_HOMES = {
    "Check": "plans.check",
    "Diagnostic": "diagnostics.diagnostic",
    "FailedCheck": "diagnostics.errors",
    "InvalidRules": "diagnostics.errors",
    "Level": "proofs.model",
    "Loaded": "loading",
    "Mismatch": "plans.check",
    "Move": "plans.moves",
    "Pack": "registry.installed",
    "Plan": "api.ruleset",
    "Plugin": "registry.installed",
    "Proof": "proofs.model",
    "Reader": "formats.reader",
    "RemapkitError": "diagnostics.errors",
    "RuleSet": "api.ruleset",
    "StateDictSpec": "tensors.spec",
    "TensorSpec": "tensors.spec",
    "UnreadableCheckpoint": "diagnostics.errors",
    "UnwritableOutput": "diagnostics.errors",
    "UsageError": "diagnostics.errors",
    "Witness": "proofs.witness",
    "header": "models.target",
    "load": "api.ruleset",
    "load_into": "loading",
    "loads": "api.ruleset",
    "open_checkpoint": "formats.detect",
    "packs": "registry.installed",
}
"""Where each public name lives; `plugins` is a package, which is callable."""

__all__ = [
    "Check",
    "Diagnostic",
    "FailedCheck",
    "InvalidRules",
    "Level",
    "Loaded",
    "Mismatch",
    "Move",
    "Pack",
    "Plan",
    "Plugin",
    "Proof",
    "Reader",
    "RemapkitError",
    "RuleSet",
    "StateDictSpec",
    "TensorSpec",
    "UnreadableCheckpoint",
    "UnwritableOutput",
    "UsageError",
    "Witness",
    "header",
    "load",
    "load_into",
    "loads",
    "open_checkpoint",
    "packs",
    "plugins",
]


if not TYPE_CHECKING:  # a type checker must see that `remapkit.lod` is a mistake

    def __getattr__(name: str) -> Any:
        if name == "plugins":
            return import_module("remapkit.plugins")
        if name not in _HOMES:
            raise AttributeError(f"module 'remapkit' has no attribute {name!r}")
        value = getattr(import_module(f"remapkit.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
