"""The nodes of a YAML text: scalars, lists and mappings with their positions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from remapkit.diagnostics.source import Span, Text

MAX_DEPTH = 20
"""The deepest nesting of mappings and lists; the rule language needs 5."""


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser of text into events: libyaml if PyYAML was built with it (20 times faster), else pure Python."""


ScalarKind = Literal["text", "integer", "number", "boolean", "null", "empty"]


@dataclass(frozen=True, slots=True, eq=False)
class ScalarNode:
    """A scalar. `text` has its characters, `span` includes the quotes, `kind` is the type that YAML reads it as."""

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
    """A mapping with distinct keys, in order; `partial` if some of its keys were rejected."""

    entries: tuple[tuple[ScalarNode, Node], ...]
    span: Span
    partial: bool = False

    def key(self, name: str) -> ScalarNode | None:
        """Return the key with the given name, with its position."""
        return next((key for key, _ in self.entries if key.value == name), None)

    def get(self, name: str) -> Node | None:
        """Return the value of the given key."""
        return next((node for key, node in self.entries if key.value == name), None)


@dataclass(frozen=True, slots=True, eq=False)
class BrokenNode:
    """A placeholder for a rejected node, so that the rest of the file can be checked without duplicate messages."""

    span: Span


Node = ScalarNode | ListNode | MapNode | BrokenNode


BRACED_TEXT = re.compile(r"[:,{\[]\s*([^\s'\"{}\[\],:#][^\s'\"{}\[\],]*\{[^\s,{}]*\}[^\s,}]*)")
"""A plain text with braces inside a mapping in braces: probably an unquoted path."""


BLOCK_HEADER = re.compile(r"[|>][-+1-9]{0,2}(?:[ \t]+#[^\n]*|[ \t\r]*)(?=\n|\Z)")


PROPERTY = re.compile(r"([&!][^\s,\[\]{}]*)\s*")
