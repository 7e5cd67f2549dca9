"""Small rule files and headers for the judges: of the target, of companions, of requirements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from remapkit.api.ruleset import Plan, RuleSet, compile_rules
from remapkit.rulefile.read import read_text
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.spec import TensorSpec

Header = Mapping[str, tuple[str, list[int]]]


def rules_of(body: str, **params: int) -> RuleSet:
    return compile_rules(read_text(f"remapkit: 1\nname: t\n{body}\n"), params)


def specs(header: Header) -> dict[str, TensorSpec]:
    return {fqn: TensorSpec(dtype, tuple(shape)) for fqn, (dtype, shape) in header.items()}


def plan_of(body: str, header: Header, **params: int) -> Plan:
    return rules_of(body, **params).plan(specs(header))


def codes(plan: Plan) -> list[str]:
    return [each.code for each in plan.problems]


def safetensors(path: Path, header: Header, metadata: Mapping[str, str] | None = None) -> Path:
    """A file of zeros."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for fqn, spec in specs(header).items():
        start, end = end, end + spec.numel * DTYPE_BITS[spec.dtype] // 8
        entries[fqn] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return path


def manifest(path: Path, header: Header) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {fqn: {"dtype": dtype, "shape": shape} for fqn, (dtype, shape) in header.items()}
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def rule_file(path: Path, body: str) -> Path:
    path.write_text(f"remapkit: 1\nname: t\n{body}\n", encoding="utf-8")
    return path
