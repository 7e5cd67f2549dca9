"""Rule sets with an oracle: each rule is written twice, for remapkit and as an expression that `re` reads alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from remapkit.api.ruleset import RuleSet, compile_rules
from remapkit.rulefile.read import read_text


@dataclass(frozen=True)
class Twin:
    """A rule as remapkit reads it, and, independently, its expression and its target for `str.format`."""

    surface: str
    text: str
    expression: str
    to: str
    leaf: tuple[str, ...] | None = None

    def alone(self, key: str) -> str | None:
        """The target that this rule gives a key, tried by itself."""
        if self.leaf is not None and key.split(".")[-1] not in self.leaf:
            return None
        found = re.fullmatch(self.expression, key, re.ASCII)
        return None if found is None else self.to.format(**found.groupdict())


def compiled(twins: Sequence[Twin], **more: Any) -> RuleSet:
    rules = []
    for number, twin in enumerate(twins):
        rule: dict[str, Any] = {"id": f"r{number}", twin.surface: twin.text, "to": twin.to}
        if twin.leaf is not None:
            rule["leaf"] = list(twin.leaf)
        rules.append(rule)
    return compile_rules(read_text(json.dumps({"remapkit": 1, "name": "t", "rules": rules, **more})))


# (as a path, as an expression, whether it is a capture); `@` is where the capture's name goes.
PIECES = [
    ("layers", "layers", False),
    ("layer", "layer", False),
    ("attn", "attn", False),
    ("w", "w", False),
    ("weight", "weight", False),
    ("{@}", "(?P<@>[^.]+)", True),
    ("{@:int}", r"(?P<@>0|[1-9]\d*)", True),
    ("{@:0..11}", "(?P<@>[0-9]|1[01])", True),
    ("{@:q|k|qk}", "(?P<@>q|k|qk)", True),
    ("{@:weight|bias}", "(?P<@>weight|bias)", True),
    ("l{@:int}", r"l(?P<@>0|[1-9]\d*)", True),
    ("{@:q|k}_proj", "(?P<@>q|k)_proj", True),
]
# On the surface `match` the two are the same; some of them cut keys in several ways.
EXPRESSIONS = [
    r"(?P<@>\d+)",
    r"(?P<@>\w+)",
    "(?P<@>.+)",
    "(?P<@>.*)",
    "(?P<@>(?:q|k|qk)*)",
    "(?P<@>[a-z_]+)",
    "(?:layers|layer)",
    r"layers\.(?P<@>\d{1,2})",
    "(?:w|weight)?",
]


@st.composite
def paths(draw: st.DrawFn) -> Twin:
    pieces = draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4))
    text, expression = [], []
    names = []
    for number, (path, match, captures) in enumerate(pieces):
        name = f"c{number}"
        names += [name] * captures
        text.append(path.replace("@", name))
        expression.append(match.replace("@", name))
    if draw(st.integers(0, 3)) == 0:
        text.append("{rest:**}")
        expression.append(r"(?P<rest>[^.]+(?:\.[^.]+)*)")
        names.append("rest")
    return Twin("path", ".".join(text), r"\.".join(expression), target(draw, names), draw(leaves(pieces[-1][0])))


def leaves(last: str) -> st.SearchStrategy[tuple[str, ...] | None]:
    """A guard on the leaf, only where it can hold and fail."""
    if last != "{@}":
        return st.none()
    return st.sampled_from([None, None, ("weight",), ("bias", "weight"), ("w",)])


@st.composite
def matches(draw: st.DrawFn) -> Twin:
    pieces = draw(st.lists(st.sampled_from([*EXPRESSIONS, "layers", "w"]), min_size=1, max_size=3))
    written = [piece.replace("@", f"c{number}") for number, piece in enumerate(pieces)]
    text = draw(st.sampled_from([r"\.", r"\.", ""])).join(written)
    names = re.findall(r"\?P<(\w+)>", text)
    return Twin("match", text, text, target(draw, names))


def target(draw: st.DrawFn, names: list[str]) -> str:
    """A template that uses every capture once, in some order."""
    shuffled = draw(st.permutations(names))
    return draw(st.sampled_from(["t", "50%s", "h.%s%d%%"])) + "".join(f".{{{name}}}" for name in shuffled)


twins = st.lists(paths() | paths() | matches(), min_size=1, max_size=7)


@lru_cache(maxsize=4096)
def readable(expression: str, leaf: tuple[str, ...] | None) -> st.SearchStrategy[str]:
    """Keys that a rule matches, or nearly: those of its expression, with a leaf that it may have."""
    keys = st.from_regex(re.compile(expression, re.ASCII), fullmatch=True)
    if leaf is None:
        return keys
    return st.builds(lambda key, end: key.rpartition(".")[0] + "." + end, keys, st.sampled_from(leaf))


def keys_of(twin: Twin) -> st.SearchStrategy[str]:
    return readable(twin.expression, twin.leaf)


MUTATIONS = (
    "none",
    "deleted",
    "doubled",
    "swapped",
    "digit",
    "zero",
    "leaf",
    "unicode",
    "empty",
    "newline",
    "case",
    "prefix",
    "suffix",
    "cut",
    "dotless",
    "mixed",
)


@st.composite
def near(draw: st.DrawFn, twins: Sequence[Twin]) -> str:
    """A key of one of the rules, and then something that looks like it."""
    key = draw(keys_of(draw(st.sampled_from(twins))))
    how = draw(st.sampled_from(MUTATIONS))
    if how == "mixed":
        other = draw(keys_of(draw(st.sampled_from(twins)))).split(".")
        segments = key.split(".")
        return ".".join(segments[: draw(st.integers(0, len(segments)))] + other[draw(st.integers(0, len(other))) :])
    return mutated(key, how, draw(st.integers(0, 30)), draw(st.integers(0, 30)))


def mutated(key: str, how: str, first: int, second: int) -> str:
    """A key changed in one way; `first` and `second` say at which of its segments."""
    segments = key.split(".")
    at, other = first % len(segments), second % len(segments)
    if how == "deleted":
        del segments[at]
    elif how == "doubled":
        segments.insert(at, segments[at])
    elif how == "swapped":
        segments[at], segments[other] = segments[other], segments[at]
    elif how == "digit":
        segments[at] += str(second % 10)
    elif how == "zero":
        segments[at] = "0" + segments[at]
    elif how == "leaf":
        segments[-1] = ("weight", "bias", "gamma", "w")[second % 4]
    elif how == "unicode":
        segments[at] = re.sub("[0-9]", "٣", segments[at]) if second % 2 else segments[at] + "٣"
    elif how == "empty":
        segments.insert(at, "")
    elif how == "newline":
        segments[-1] += "\n"
    elif how == "case":
        segments[at] = segments[at].swapcase()
    elif how == "prefix":
        segments.insert(0, ("sub", "model", "layers")[second % 3])
    elif how == "suffix":
        segments[-1] += "s"
    elif how == "cut":
        segments[-1] = segments[-1][:-1]
    elif how == "dotless" and len(segments) > 1:
        segments[at - 1 : at + 1] = ["".join(segments[at - 1 : at + 1])]
    return ".".join(segments)
