"""YAML as located nodes: every character at its place, both parsers alike, nothing that any YAML reads otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.source import Source, Text
from remapkit.rulefile.yaml import compose as yamlnodes
from remapkit.rulefile.yaml import nodes
from remapkit.rulefile.yaml.compose import compose, decode
from remapkit.rulefile.yaml.nodes import BrokenNode, ListNode, MapNode, Node, ScalarNode
from remapkit.rulefile.yaml.scalars import classify_scalar

LOADERS = [yaml.SafeLoader, yaml.CSafeLoader]
assert yaml.__with_libyaml__, "these tests compare the two parsers of PyYAML"


def composed(text: str, loader: Any = yaml.CSafeLoader) -> tuple[Node | None, tuple[Diagnostic, ...]]:
    before, nodes.LOADER = nodes.LOADER, loader
    try:
        return compose(Source("r.yaml", text))
    finally:
        nodes.LOADER = before


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
    assume(scalar.value == value)  # PyYAML folds some texts so that it reads another one back
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
    _, problems = composed(text, loader)
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


def test_a_planted_difference_between_the_parsers_would_be_seen() -> None:
    """libyaml takes `|#` for a comment, and PyYAML's own parser a tab for content: neither gets through."""
    assert [each.code for each in composed("k: |#\n")[1]] == ["RK001"]
    assert [each.code for each in composed("k: |\n  \ta\n", yaml.SafeLoader)[1]] == ["RK009"]


# ------------------------------------------------------------------------------------------------ plain scalars

# YAML 1.2, core schema, 10.3.2: what is not text to a reader of the newer version.
CORE = [
    "null|Null|NULL|~",
    "true|True|TRUE|false|False|FALSE",
    "[-+]?[0-9]+",
    "0o[0-7]+",
    "0x[0-9a-fA-F]+",
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
    r"[-+]?(?:\.inf|\.Inf|\.INF)",
    r"\.nan|\.NaN|\.NAN",
]
RESOLVERS = sorted({rx.pattern for group in yaml.SafeLoader.yaml_implicit_resolvers.values() for _, rx in group})


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(CORE + RESOLVERS).flatmap(
        lambda pattern: st.from_regex(re.compile(pattern, re.ASCII | re.X), fullmatch=True)
    )
)
def test_nothing_that_any_yaml_reads_as_something_else_is_text(value: str) -> None:
    assume("\n" not in value and value not in ("!", "&", "*"))
    assert classify_scalar(value) != "text"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789abefnoxyEINFYS.:_+-~=<", max_size=6))
def test_plain_kinds_agree_with_both_versions(value: str) -> None:
    older = yaml.SafeLoader("").resolve(yaml.ScalarNode, value, (True, False)).rpartition(":")[2]
    newer = next((rx for rx in CORE if re.fullmatch(rx, value)), None)
    kind = classify_scalar(value)
    if kind == "text":
        assert older == "str" and newer is None
    elif kind == "integer":
        assert older == "int" and newer is not None and str(int(value)) == value
    elif kind == "number":
        assert older == "float" and newer is not None
    elif kind is not None:
        assert (older, kind) in {("bool", "boolean"), ("null", "null"), ("null", "empty")}


@pytest.mark.parametrize(
    "value", ["n", "y", "norm1", "0..47", "a.0", "0.weight", "1.2.3", "1_a", "e3", "a:b", "nope"]
)
def test_common_words_need_no_quotes(value: str) -> None:
    assert classify_scalar(value) == "text"


# ------------------------------------------------------------------------------------------------ bytes and bounds


@pytest.mark.parametrize(
    ("data", "code", "column"),
    [
        (b"a: \xff", "RK007", 4),
        ("é: \u00e9".encode("latin-1"), "RK007", 1),
        (b"\xff\xfea\0", "RK007", 1),
        (b"a: \xc3", "RK007", 4),
    ],
)
def test_bytes_that_are_not_utf_8(data: bytes, code: str, column: int) -> None:
    _, problems = decode(data, "r.yaml")
    assert [(each.code, each.span.column) for each in problems if each.span] == [(code, column)]


@given(st.text())
def test_any_text_survives_its_bytes(text: str) -> None:
    source, problems = decode(text.encode(), "r.yaml")
    assert (source.text, problems) == (text, ())


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=30), st.sampled_from(LOADERS))
def test_no_text_is_a_crash(text: str, loader: Any) -> None:
    node, problems = composed(text, loader)
    assert node is not None or problems


MILLION = 1_000_000
BOMBS = {
    "lists": "[" * MILLION,
    "mappings": "{a: " * MILLION,
    "block lists": "- " * MILLION,
    "keys": "? " * MILLION,
    "values": "k: [" + "a," * MILLION,
    "anchors": "&a " * MILLION,
    "aliases": "k: [" + "*a," * MILLION,
    "duplicates": "a: 1\n" * MILLION,
    "a long text": "k: '" + "x \n" * MILLION + "'",
    "blanks in quotes": "k: '" + " " * MILLION + "'",
    "blank lines": "\n" * MILLION,
    "comments of tabs": "#" + "\t" * MILLION,
    "tabs": "\t" * MILLION,
    "NULs": "\0" * MILLION,
    "directives": "%\n" * MILLION,
    "exclamation marks": "!" * MILLION,
    "an open quote": "k: '" + "x\n" * MILLION,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_shortly(name: str) -> None:
    """Not timed: work that grew as the square of a million would not come to an end at all."""
    node, problems = composed(BOMBS[name])
    assert 1 <= len(problems) <= yamlnodes.MAX_PROBLEMS + 1
    assert node is None or isinstance(node, BrokenNode)
    assert sum(len(str(each)) for each in problems) < 100_000


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_twice_the_size_is_at_most_twice_the_work(
    name: str, work: Callable[[Callable[[], object]], int]
) -> None:
    half, whole = (BOMBS[name][: MILLION // 100 * parts] for parts in (1, 2))
    assert work(lambda: composed(whole)) <= 2.2 * work(lambda: composed(half)) + 1000


def test_a_text_beyond_the_bound_is_refused_before_it_is_read() -> None:
    text = "k: v\n" * (yamlnodes.MAX_BYTES // 5 + 1)
    assert [each.code for each in composed(text)[1]] == ["RK012"]
    assert [each.code for each in decode(text.encode(), "r.yaml")[1]] == ["RK012"]
