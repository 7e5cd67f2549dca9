"""YAML as located nodes: every character at its place, both parsers alike, nothing that any YAML reads otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from remapkit import yamlnodes
from remapkit.diagnostic import Diagnostic
from remapkit.source import Source, Text
from remapkit.yamlnodes import BrokenNode, ListNode, MapNode, Node, ScalarNode, compose, decode, plain_kind

LOADERS = [yaml.SafeLoader, yaml.CSafeLoader]
assert yaml.__with_libyaml__, "these tests compare the two parsers of PyYAML"


def composed(text: str, loader: Any = yaml.CSafeLoader) -> tuple[Node | None, tuple[Diagnostic, ...]]:
    before, yamlnodes.LOADER = yamlnodes.LOADER, loader
    try:
        return compose(Source("r.yaml", text))
    finally:
        yamlnodes.LOADER = before


def only_scalar(text: str, loader: Any) -> ScalarNode:
    """The scalar of a document like `k: [...]`, `k: ...` or `- - ...`."""
    node, problems = composed(text, loader)
    assert not problems, (text, problems[0])
    while not isinstance(node, ScalarNode):
        assert isinstance(node, MapNode | ListNode), (text, node)
        node = node.entries[-1][1] if isinstance(node, MapNode) else node.items[-1]
    return node


# ------------------------------------------------------------------------------------------------ places

# Each visible character at most once, so that where it stands in the source is beyond doubt.
VISIBLE = st.lists(st.sampled_from("ghijkmGHIJKMé漢😀{}[]().*+?|\\^$,-_'\"#:!&%@`~"), unique=True, max_size=14)


@st.composite
def marked_strings(draw: st.DrawFn) -> str:
    blanks = st.sampled_from(["", "", "", " ", "  ", "\n", "\n\n", "\n ", " \n", "\t"])
    return "".join(draw(blanks) + character for character in draw(VISIBLE)) + draw(blanks)


def check_places(text: Text, source: str) -> None:
    """Every character of the value is at its place in the source, unless an escape or a fold stands for it."""
    places = [text.at(index).start for index in range(len(text.value) + 1)]
    assert places == sorted(places)
    for character, here in zip(text.value, places, strict=False):
        found = source[here : here + 1]
        if character.isspace():
            assert found == character or found in "\n\r" or found == "\\", (text.value, source, here)
        elif found != "\\":
            assert here == source.index(character, text.span.start), (text.value, source, here)


@pytest.mark.parametrize("loader", LOADERS)
@settings(max_examples=150, deadline=None)
@given(
    value=marked_strings(),
    style=st.sampled_from([None, "'", '"', "|", ">"]),
    width=st.integers(3, 60),
    deep=st.booleans(),
)
def test_every_character_of_a_dumped_string_is_at_its_place(
    loader: Any, value: str, style: str | None, width: int, deep: bool
) -> None:
    data = {"K": [{"K": value}]} if deep else {"K": value}
    text = yaml.dump(data, default_style=style, width=width, allow_unicode=True, indent=4 if deep else 2)
    text = (
        text.replace('"K"', "K").replace("'K'", "K").replace("? |-\n  K\n", "? K\n").replace("? >-\n  K\n", "? K\n")
    )
    scalar = only_scalar(text, loader)
    assert scalar.value == value
    check_places(scalar.text, text)


PIECES = [
    "a",
    "b",
    "c",
    " ",
    "  ",
    "\n",
    "\n  ",
    "\n \n  ",
    " \n  ",
    "\r\n  ",
    "\t",
    "''",
    "\\n",
    "\\x41",
    "\\u00e9",
    "\\\n  ",
]
PIECES += ["\\\n\n  ", "\\ ", '\\"', "\\\\", "😀", "\\\t", "\n\n\n  "]


@pytest.mark.parametrize("loader", LOADERS)
@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=12),
    quote=st.sampled_from(["'", '"', "", "|\n  ", ">\n  ", ">+\n\n  "]),
)
@example(pieces=["\\ ", " ", "\n  ", "a"], quote='"')
@example(pieces=["a", " ", "\n  ", "b"], quote="'")
@example(pieces=["a", "\n \n  ", "  ", "b", "\n  ", "c"], quote=">\n  ")
@example(pieces=["  ", "\n  ", "a", "\n \n  ", "b"], quote="|\n  ")
def test_the_places_of_a_written_scalar_agree_with_its_value(loader: Any, pieces: list[str], quote: str) -> None:
    """The value is PyYAML's; the places are ours: as many as characters, in order, and the same characters."""
    closing = quote if quote in ("'", '"') else ""
    text = f"k:\n  {quote}{''.join(pieces)}{closing}\n"
    node, problems = composed(text, loader)
    assume(not problems)
    scalar = only_scalar(text, loader)
    located = scalar.text
    assert located.offsets is None or len(located.offsets) == len(located.value) + 1
    source = Source("r.yaml", text).text
    last = -1
    for index, character in enumerate(located.value):
        here = located.at(index).start
        assert here > last
        last = here
        found = source[here]
        folded = character in " \n" and found in "\r\n"
        escaped = quote == '"' and found == "\\"
        assert found == character or folded or escaped, (source, index)
    if located.value:
        assert located.span.start == located.at(0).start
        assert located.span.end <= scalar.span.end


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("text", "value", "places"),
    [
        ("k: ab", "ab", [(1, 4), (1, 5)]),
        ("k: 'a''b'", "a'b", [(1, 5), (1, 6), (1, 8)]),
        (r'k: "a\x41\n.b"', "aA\n.b", [(1, 5), (1, 6), (1, 10), (1, 12), (1, 13)]),
        ("k: 'a\n\n  b'", "a\nb", [(1, 5), (2, 1), (3, 3)]),
        ('k: "a\\\n   b"', "ab", [(1, 5), (2, 4)]),
        ("k: |\n  a\n   b\n", "a\n b\n", [(2, 3), (2, 4), (3, 3), (3, 4), (3, 5)]),
        ("k: >-\n  a\n  b\n\n  c\n", "a b\nc", [(2, 3), (2, 4), (3, 3), (4, 1), (5, 3)]),
        ("k: |2\n   a\n", " a\n", [(2, 3), (2, 4), (2, 5)]),
        ("é: 😀x", "😀x", [(1, 4), (1, 5)]),
    ],
)
def test_places_by_hand(loader: Any, text: str, value: str, places: list[tuple[int, int]]) -> None:
    located = only_scalar(text, loader).text
    assert located.value == value
    assert [(located.at(i).line, located.at(i).column) for i in range(len(value))] == places


# ------------------------------------------------------------------------------------------------ both parsers alike

TOKENS = [
    "a",
    "b: ",
    "c:",
    "- ",
    "\n",
    "\n",
    "\n  ",
    "\n    ",
    " ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "'",
    '"',
    "#",
    "# c\n",
    "|",
    ">",
]
TOKENS += [
    "\n- ",
    "\nk: ",
    "&x ",
    "*x",
    "!t ",
    "---\n",
    "...\n",
    "%Y 1\n",
    "? ",
    ": ",
    "\t",
    "0",
    "no",
    "<<: ",
    "\\d",
    "@",
    "`",
    "|\n  ",
    "-",
]


def shape(node: Node | None) -> Any:
    if isinstance(node, MapNode):
        return ({key.value: shape(value) for key, value in node.entries}, node.span.start, node.span.end)
    if isinstance(node, ListNode):
        return ([shape(item) for item in node.items], node.span.start, node.span.end)
    if isinstance(node, ScalarNode):
        return (node.value, node.kind, node.text.span.start, node.text.offsets, node.span.start, node.span.end)
    return ("broken", node.span.start, node.span.end) if isinstance(node, BrokenNode) else None


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=14).map("".join))
def test_both_parsers_give_the_same_nodes_and_refuse_the_same_texts(text: str) -> None:
    python, c = composed(text, yaml.SafeLoader), composed(text, yaml.CSafeLoader)
    assert bool(python[1]) == bool(c[1])
    if not c[1]:
        assert shape(python[0]) == shape(c[0])
