"""Plans of small rule files for small headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remapkit.api.ruleset import Plan, RuleSet, compile_rules
from remapkit.plans.make import make_plan
from remapkit.rulefile.read import read_text
from remapkit.tensors.spec import StateDictSpec, TensorSpec

Header = Mapping[str, tuple[str, list[int]]]

F8: tuple[str, list[int]] = ("F8_E4M3", [256, 384])
ONE: tuple[str, list[int]] = ("F32", [])
SMALL: tuple[str, list[int]] = ("F32", [2, 3])


def compiled(body: str, **params: int) -> RuleSet:
    return compile_rules(read_text(f"remapkit: 1\nname: t\n{body}\n"), params or None)


def header(tensors: Header, **more: Any) -> StateDictSpec:
    """A header; `more` are its ties, metadata and records."""
    return StateDictSpec({fqn: TensorSpec(dtype, tuple(shape)) for fqn, (dtype, shape) in tensors.items()}, **more)


def planned(body: str, tensors: Header, **more: Any) -> Plan:
    return Plan.of(make_plan(compiled(body), header(tensors, **more)))


def codes(plan: Plan) -> list[str]:
    return [each.code for each in plan.problems]


def warned(plan: Plan) -> list[str]:
    return [each.code for each in plan.warnings]


def targets(plan: Plan) -> list[str]:
    return [move.target for move in plan.moves]
