"""The messages of a proof about the targets of `add:`."""

from __future__ import annotations

from collections.abc import Sequence

from remapkit.diagnostics.diagnostic import Diagnostic, Label, Severity
from remapkit.proofs.keymap import KeyMap
from remapkit.proofs.witness import Witness
from remapkit.rules.model import CompiledRules

OPEN_TITLE = "unmatched keys pass through, so the proof does not cover all keys"


def report_added(rules: CompiledRules, key_maps: Sequence[KeyMap], witness: Witness) -> Diagnostic:
    """Report a witness in which an entry of `add` has a part."""
    one, other = key_maps[witness.key_maps[0]], key_maps[witness.key_maps[-1]]
    target = witness.targets[-1]
    if witness.fault == "open":
        return _report_passing(rules, one, target)
    if not one.has_source and not other.has_source:
        return _report_repeat(one, other, target)
    rule, added = (one, other) if one.has_source else (other, one)
    return _report_clash(rule, witness.keys[0], added, target)


def _report_repeat(one: KeyMap, other: KeyMap, target: str) -> Diagnostic:
    values = {"rules": [one.rule_id, other.rule_id], "target": target}
    if one is other:
        title = f"{one.rule_id} adds the target {target} twice"
        return Diagnostic("RK207", title, (Label(one.span, "here"),), ("add it once",), values=values)
    title = f"{one.rule_id} and {other.rule_id} add the same target {target}"
    labels = (Label(one.span, "first here", primary=False), Label(other.span, "again here"))
    return Diagnostic("RK207", title, labels, ("add it once",), values=values)


def _report_clash(rule: KeyMap, key: str, added: KeyMap, target: str) -> Diagnostic:
    title = f"a key of {rule.rule_id} maps to {target}, which {added.rule_id} adds"
    labels = (
        Label(added.span, f"adds {target}", primary=False),
        Label(rule.to or rule.span, f"{key} -> {target}"),
    )
    values = {"rules": [added.rule_id, rule.rule_id], "target": target, "keys": [key]}
    help = ("bound the captures of the rule, or do not add a target that a source provides",)
    return Diagnostic("RK207", title, labels, help, (f"{key}  (by {rule.rule_id})",), values=values)


def _report_passing(rules: CompiledRules, added: KeyMap, target: str) -> Diagnostic:
    """Report that an unmatched key may pass through onto a target of `add`."""
    span = rules.file.unmatched_span
    labels = (*((Label(span),) if span is not None else ()), Label(added.span, f"adds {target}", primary=False))
    note = (
        f"{target}  would pass through unchanged, and collide with the one that {added.rule_id} adds\n"
        "every plan still checks the keys of its checkpoint"
    )
    help = ("name these keys under `keep:` and remove `unmatched`, or declare `source: {domain: [...]}`",)
    values = {"rules": [added.rule_id], "keys": [target], "targets": [target]}
    return Diagnostic("RK206", OPEN_TITLE, labels, help, (note,), Severity.NOTE, values=values)
