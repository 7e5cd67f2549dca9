"""Renames the keys of a state dict in memory: planned, checked against the declared target, then moved.

torch is imported only if there are tensors, so it is always imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from remapkit.companions.names import can_have_companions
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck
from remapkit.diagnostics.wording import list_names
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.registry.identify import hint_layout
from remapkit.rules.counted import count_params
from remapkit.tensors.spec import OPAQUE, StateDictSpec

if TYPE_CHECKING:
    from remapkit.rules.model import CompiledRules

UNSAID = ("RK300", "RK306")
"""Problems of files that are allowed in memory: an empty state dict, and names that no file can have."""


def remap(rules: CompiledRules, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Implement `RuleSet.__call__`; plain renames are done without a plan."""
    _check_state_dict(state_dict)
    if any(isinstance(value, dict) for value in state_dict.values()):
        state_dict = _join_nested(state_dict)
    plain = not (rules.has_operations or rules.require or rules.counted or rules.after)
    if plain and rules.file.target is None:
        targets = rules.renamer.rename_keys(state_dict, rules.unmatched)
        if targets is not None and (renamed := _rename_keys(targets, state_dict)) is not None:
            return renamed
    return remap_by_plan(rules, state_dict)


def _join_nested(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tensors of nested dicts under joined names, as a file with these dicts has them."""
    if "torch" not in sys.modules:
        return state_dict  # then there are no tensors
    from remapkit.formats.nested_memory import join_nested
    from remapkit.tensors.from_torch import get_shape

    joined = join_nested(state_dict, get_shape)
    return state_dict if joined is None else joined.tensors


def _rename_keys(targets: list[str | None], state_dict: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the values under their new keys; None if a plan is needed to find out whether anything is wrong."""
    renamed = dict(zip(targets, state_dict.values(), strict=True))
    dropped = targets.count(None)
    if len(renamed) != len(targets) - dropped + bool(dropped) or can_have_companions(state_dict):
        return None
    renamed.pop(None, None)
    return cast(dict[str, Any], renamed) if renamed or not state_dict else None


def _check_state_dict(state_dict: object) -> None:
    if not isinstance(state_dict, Mapping):
        hint = ": call `.state_dict()` on it first" if hasattr(state_dict, "state_dict") else ""
        hint = ": use `rules.plan(path)`, or read the file first" if isinstance(state_dict, str) else hint
        raise TypeError(f"a state dict is a mapping of names to values, not a {type(state_dict).__name__}{hint}")
    wrong = next((key for key in state_dict if not isinstance(key, str)), None)
    if wrong is not None:
        raise TypeError(f"the keys of a state dict are strings, and {wrong!r} is a {type(wrong).__name__}")


def remap_by_plan(rules: CompiledRules, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys and run the operations by a plan. Raises `FailedCheck` with all problems."""
    header = _read_header(state_dict)
    rules = count_params(rules, header)
    plan = make_plan(rules, header)
    problems = [problem for problem in plan.problems if problem.code not in UNSAID]
    if not rules.has_operations:
        problems += [] if problems else _diagnose_target(rules, plan)
        if problems:
            raise FailedCheck(hint_layout(problems, header, rules.name))
        return {move.target: state_dict[move.sources[0]] for move in plan.moves}
    odd = [fqn for move in plan.moves if move.ops for fqn in move.sources if header[fqn] is OPAQUE]
    if odd:
        title = f"{len(odd)} values that operations need are not tensors"
        problems.append(Diagnostic("RK344", title, notes=(list_names(odd),), help=("give a state dict of tensors",)))
    problems += [] if problems else _diagnose_target(rules, plan)
    if problems:
        raise FailedCheck(hint_layout(problems, header, rules.name))
    from remapkit.compute.torch_eager import run_plan

    return run_plan(plan, state_dict)


def _read_header(state_dict: Mapping[str, Any]) -> StateDictSpec:
    """Return names, dtypes and shapes of the tensors; of other values only the names."""
    torch = sys.modules.get("torch")
    name = "the state dict"
    if torch is None or not any(isinstance(value, torch.Tensor) for value in state_dict.values()):
        return StateDictSpec(dict.fromkeys(state_dict, OPAQUE), name=name)
    from remapkit.tensors.from_torch import header_of

    header = header_of(state_dict, name)
    specs = {fqn: header.tensors.get(fqn, OPAQUE) for fqn in state_dict}
    return StateDictSpec(specs, tied=header.tied, name=name)


def _diagnose_target(rules: CompiledRules, plan: ResolvedPlan) -> list[Diagnostic]:
    """Return problems with the declared target; missing keys may be in another part of the checkpoint."""
    if rules.last.file.target is None or not plan.source:
        return []
    from remapkit.plans.target_check import check_declared_target
    from remapkit.sources.declared import read_declared_source

    known = read_declared_source(rules.file)
    whole = known is not None and all(fqn in plan.source for fqn in known)
    return list(check_declared_target(rules, plan, partial=not whole).problems)
