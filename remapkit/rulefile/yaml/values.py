"""Located nodes as plain JSON values."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from remapkit.rulefile.yaml.nodes import BrokenNode, ListNode, MapNode, Node, ScalarNode


class _Refused:
    """The plain value of what was refused already: it has no type, and nothing more is said about it."""


def schema_value(node: Node) -> Any:
    """The plain value that the schema looks at. Keys are always text."""
    if isinstance(node, MapNode):
        return {key.value: schema_value(value) for key, value in node.entries}
    if isinstance(node, ListNode):
        return [schema_value(item) for item in node.items]
    return _plain(node)


def _plain(node: ScalarNode | BrokenNode) -> Any:
    if isinstance(node, BrokenNode):
        return _Refused()
    if node.kind == "integer":
        return int(node.value)
    if node.kind == "number":
        return Decimal(node.value)  # a float like 1.0 would be a whole number to JSON Schema
    if node.kind == "boolean":
        return node.value == "true"
    return node.value if node.kind == "text" else None


def plain_value(node: Node) -> object:
    """The value as Python would write it: `dict`, `list`, `str`, `int`, `float`, `bool` or None."""
    if isinstance(node, MapNode):
        return {key.value: plain_value(value) for key, value in node.entries}
    if isinstance(node, ListNode):
        return [plain_value(item) for item in node.items]
    value = _plain(node)
    return float(value) if isinstance(value, Decimal) else value
