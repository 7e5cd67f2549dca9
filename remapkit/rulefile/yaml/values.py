"""Convert located nodes to plain JSON values."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from remapkit.rulefile.yaml.nodes import BrokenNode, ListNode, MapNode, Node, ScalarNode


class _Refused:
    """The plain value of an already rejected node: it has no type and causes no further messages."""


def to_schema_value(node: Node) -> Any:
    """Return the plain value to validate against the schema. Keys are always text."""
    if isinstance(node, MapNode):
        return {key.value: to_schema_value(value) for key, value in node.entries}
    if isinstance(node, ListNode):
        return [to_schema_value(item) for item in node.items]
    return _convert_scalar(node)


def _convert_scalar(node: ScalarNode | BrokenNode) -> Any:
    if isinstance(node, BrokenNode):
        return _Refused()
    if node.kind == "integer":
        return int(node.value)
    if node.kind == "number":
        return Decimal(node.value)  # JSON Schema treats a float like 1.0 as a whole number
    if node.kind == "boolean":
        return node.value == "true"
    return node.value if node.kind == "text" else None


def to_plain_value(node: Node) -> object:
    """Return the plain Python value: `dict`, `list`, `str`, `int`, `float`, `bool` or None."""
    if isinstance(node, MapNode):
        return {key.value: to_plain_value(value) for key, value in node.entries}
    if isinstance(node, ListNode):
        return [to_plain_value(item) for item in node.items]
    value = _convert_scalar(node)
    return float(value) if isinstance(value, Decimal) else value
