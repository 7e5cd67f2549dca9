"""Edit a JSON text: what is not changed stays byte for byte, spaces, numbers and the order of keys too."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


@dataclass(slots=True)
class Node:
    """A value and its place in the text; `text` is that of a string, decoded, and None for any other value."""

    start: int
    end: int
    opens: str = ""
    text: str | None = None
    members: list[Member] = field(default_factory=list)


@dataclass(slots=True)
class Member:
    """An item of an array, or a key of an object and its value; it begins where the key does."""

    start: int
    value: Node
    key: str | None = None
    key_end: int = 0


def parse_nodes(text: str) -> Node | None:
    """Return the root of a JSON text, or None if it is none: a text of unknown origin may be anything.

    >>> root = parse_nodes('{"a": [1, "b"]}')
    >>> root.members[0].key, root.members[0].value.members[1].value.text
    ('a', 'b')
    """
    try:
        json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    root: Node | None = None
    stack: list[Node] = []
    key: tuple[int, int, str] | None = None
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token in ",:":
            continue
        if token in "}]":
            stack.pop().end = found.end()
            continue
        if stack and stack[-1].opens == "{" and key is None:
            key = (found.start(), found.end(), _decode(token))
            continue
        node = Node(found.start(), found.end(), token if token in "{[" else "")
        node.text = _decode(token) if token[0] == '"' else None
        if stack:
            start, key_end, name = key or (node.start, node.start, None)
            stack[-1].members.append(Member(start, node, name, key_end))
        else:
            root = node
        if node.opens:
            stack.append(node)
        key = None
    return root


def is_same_json(first: str, second: str) -> bool:
    """Return whether two JSON texts have the same value: spaces and the order of keys do not count.

    >>> is_same_json('{"a": 1, "b": 2}', '{"b":2,"a":1}'), is_same_json("1", "1.0"), is_same_json("{", "{")
    (True, False, True)
    """
    if first == second:
        return True
    try:
        one, other = (json.dumps(json.loads(text), sort_keys=True) for text in (first, second))
    except (ValueError, RecursionError):
        return False
    return one == other


def _decode(token: str) -> str:
    return token[1:-1] if "\\" not in token else str(json.loads(token))


def encode_like(new: str, token: str) -> str:
    r"""Return the JSON of a string, in ASCII if the old token is.

    >>> encode_like("é", '"e"'), encode_like("é", '"ü"')
    ('"\\u00e9"', '"é"')
    """
    return json.dumps(new, ensure_ascii=token.isascii())


def write_members(text: str, node: Node, groups: Sequence[Sequence[str]]) -> str:
    """Return the text of an object or an array with other members, laid out like the old ones.

    Each group has what stands for one old member: nothing, itself, or several.

    >>> old = '{ "a":1,  "b":2,"c":3 }'
    >>> write_members(old, parse_nodes(old), [['"x":1', '"y":1'], ['"b":2'], ['"c":3']])
    '{ "x":1,  "y":1,  "b":2,"c":3 }'
    """
    members = node.members
    if not any(groups):
        return text[node.start] + text[node.end - 1]
    gap = _find_gap(text, node)
    out: list[str] = []
    for number, group in enumerate(groups):
        for place, part in enumerate(group):
            if out:
                kept = number > 0 and place == 0
                out.append(text[members[number - 1].value.end : members[number].start] if kept else gap)
            out.append(part)
    head, tail = text[node.start : members[0].start], text[members[-1].value.end : node.end]
    return f"{head}{''.join(out)}{tail}"


def _find_gap(text: str, node: Node) -> str:
    """Return what stands between two members: as between the first two, else as in texts of this kind."""
    first = node.members[0]
    if len(node.members) > 1:
        return text[first.value.end : node.members[1].start]
    if head := text[node.start + 1 : first.start]:
        return f",{head}"
    return "," if first.key is not None and text[first.key_end : first.value.start].endswith(":") else ", "
