"""The nodes of a YAML text: scalars, lists and mappings with their places."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from remapkit.diagnostics.source import Span, Text

MAX_DEPTH = 20
"""How deep mappings and lists may be nested; the rule language needs 5."""


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Splits text into events: libyaml's where PyYAML was built with it (20 times faster), else the one in Python."""


ScalarKind = Literal["text", "integer", "number", "boolean", "null", "empty"]


@dataclass(frozen=True, slots=True, eq=False)
class ScalarNode:
    """A scalar. `text` has its characters, `span` includes the quotes, `kind` is what a plain scalar is read as."""

    text: Text
    span: Span
    kind: ScalarKind

    @property
    def value(self) -> str:
        return self.text.value


@dataclass(frozen=True, slots=True, eq=False)
class ListNode:
    """A list."""

    items: tuple[Node, ...]
    span: Span


@dataclass(frozen=True, slots=True, eq=False)
class MapNode:
    """A mapping with distinct keys, in their order; `partial` where some of its keys were refused."""

    entries: tuple[tuple[ScalarNode, Node], ...]
    span: Span
    partial: bool = False

    def key(self, name: str) -> ScalarNode | None:
        """The key of that name, with its place."""
        return next((key for key, _ in self.entries if key.value == name), None)

    def get(self, name: str) -> Node | None:
        """The value under that name."""
        return next((node for key, node in self.entries if key.value == name), None)


@dataclass(frozen=True, slots=True, eq=False)
class BrokenNode:
    """Stands for what was refused, so that the rest of the file can be looked at without saying it twice."""

    span: Span


Node = ScalarNode | ListNode | MapNode | BrokenNode


BRACED_TEXT = re.compile(r"[:,{\[]\s*([^\s'\"{}\[\],:#][^\s'\"{}\[\],]*\{[^\s,{}]*\}[^\s,}]*)")
"""A plain text with braces in it, inside a mapping in braces: what a path that was not quoted looks like."""


BLOCK_HEADER = re.compile(r"[|>][-+1-9]{0,2}(?:[ \t]+#[^\n]*|[ \t\r]*)(?=\n|\Z)")


PROPERTY = re.compile(r"([&!][^\s,\[\]{}]*)\s*")
