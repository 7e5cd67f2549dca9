"""Several captures in one segment of a path: allowed exactly where every key is split in one way."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import pytest
from helpers import pattern, rule, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.api.invert import invert
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Text
from remapkit.patterns.compile import compile_pattern
from remapkit.patterns.matcher import PatternMatcher
from remapkit.patterns.path import parse_path
from remapkit.patterns.segments import find_two_cuts
from remapkit.patterns.steps import Steps
from remapkit.proofs.model import Level
from remapkit.proofs.prover import prove

TABLES = {"dots": ("a.a", "a", "1"), "empty": ("", "a", "_")}
KINDS = {
    "": "[^.]+",
    ":int": "0|[1-9][0-9]*",
    ":0..2": "[012]",
    ":1..11": "[1-9]|1[01]",
    ":a|aa": "a|aa",
    ":a|1_|_1": "a|1_|_1",
    ":dots": r"a\.a|a|1",
    ":empty": "|a|_",
}
LONGEST = 5
TEXTS = ["".join(signs) for size in range(LONGEST + 1) for signs in itertools.product("a1_.", repeat=size)]

Piece = tuple[str, bool]
"""A capture (its kind), or literal text."""
captures = st.sampled_from(sorted(KINDS)).map(lambda kind: (kind, True))
texts = st.sampled_from(["_", "a", "1", "_a", "{'_'}", "-"]).map(lambda text: (text, False))
segments = st.lists(st.one_of(captures, captures, texts), min_size=2, max_size=5)


def write(pieces: Sequence[Piece]) -> str:
    return "".join(f"{{c{place}{text}}}" if is_capture else text for place, (text, is_capture) in enumerate(pieces))


def cut(pieces: Sequence[Piece], text: str) -> Iterator[tuple[str, ...]]:
    """Yield every way to cut a text into pieces, by trying each length of each."""
    if not pieces:
        yield from [()] if not text else []
        return
    (written, is_capture), *rest = pieces
    expression = KINDS[written] if is_capture else re.escape(written.strip("{'}"))
    for end in range(len(text) + 1):
        if re.fullmatch(expression, text[:end], re.ASCII):
            yield from ((text[:end], *following) for following in cut(rest, text[end:]))


@settings(max_examples=60, deadline=None)
@given(segments)
def test_a_segment_is_refused_exactly_if_some_text_has_two_cuts(pieces: list[Piece]) -> None:
    path = write(pieces)
    found = find_two_cuts(parse_path(Text.of(path), TABLES), Steps(1_000_000))
    limit = LONGEST if found is None else len("".join(found[0])) - 1
    assert not any(len(set(cut(pieces, text))) > 1 for text in TEXTS if len(text) <= limit), "a shorter one, or any"
    try:
        compiled = compile_pattern(pattern(path=path), TABLES).pattern
    except InvalidRules as error:
        assert [each.code for each in error.diagnostics] == ["RK132"]
        assert found is not None
    if found is not None:
        one, other = found
        text = "".join(one)
        every = set(cut(pieces, text))
        # Adjacent literals are one part, so the parts are compared by what the captures read.
        read = {tuple(word for word, piece in zip(each, pieces, strict=True) if piece[1]) for each in every}
        named = [place for place, part in enumerate(parse_path(Text.of(path), TABLES)) if part.name]
        assert one != other
        assert "".join(other) == text
        assert {tuple(each[place] for place in named) for each in found} <= read
        return
    reader = PatternMatcher(compiled)
    for text in TEXTS:
        cuts = list(cut(pieces, text))
        wanted = {f"c{place}": word for place, word in enumerate(cuts[0]) if pieces[place][1]} if cuts else None
        assert reader(text) == wanted


@pytest.mark.parametrize(
    ("path", "key", "captures"),
    [
        (
            "lora_unet_{block:down|up}_blocks_{i:int}_attentions_{j:int}_{rest}",
            "lora_unet_down_blocks_1_attentions_0_proj_in",
            {"block": "down", "i": "1", "j": "0", "rest": "proj_in"},
        ),
        (
            "layer_{i:int}-model_{t:int}.{r:**}",
            "layer_3-model_00.w",
            None,
        ),
        (
            "layer_{i:int}-model_{t:int}.{r:**}",
            "layer_3-model_0.a.w",
            {"i": "3", "t": "0", "r": "a.w"},
        ),
        ("{p:q|k|v}{i:int}.w", "q12.w", {"p": "q", "i": "12"}),
        ("{name}_{part:in|out}.w", "a_in_out.w", {"name": "a_in", "part": "out"}),
    ],
)
def test_several_captures_in_one_segment(path: str, key: str, captures: dict[str, str] | None) -> None:
    assert PatternMatcher(compile_pattern(pattern(path=path), {}).pattern)(key) == captures


def refusal(path: str, **more: object) -> str:
    with pytest.raises(InvalidRules) as caught:
        compile_pattern(pattern(path=path, **more), {})  # type: ignore[arg-type]
    return str(caught.value)


def test_a_refusal_shows_the_shortest_key_and_both_cuts() -> None:
    shown = refusal("layers.{n:int}.{a}_{b}.{r:**}")
    assert "RK132" in shown
    assert "the captures of one segment can split 'layers.0.a__a.a' in two ways" in shown
    assert "a = 'a', b = '_a'" in shown
    assert "a = 'a_', b = 'a'" in shown
    assert "(?P<a>[^._]+)" in shown


def test_every_segment_that_splits_in_two_ways_is_reported() -> None:
    with pytest.raises(InvalidRules) as caught:
        compile_pattern(pattern(path="{a}{b}.x{c:int}{d:int}.{e:int}_{f}"), {})
    assert [each.code for each in caught.value.diagnostics] == ["RK132", "RK132"]
    assert ":int" not in caught.value.diagnostics[1].help[0], "both are whole numbers already"


def test_a_guard_can_bound_a_capture_of_a_shared_segment() -> None:
    path = "{a}_{b}"
    assert "RK132" in refusal(path)
    read = PatternMatcher(compile_pattern(pattern(path=path, where={"a": ["x", "y_z"]}), {}).pattern)
    assert read("y_z_c_d") == {"a": "y_z", "b": "c_d"}
    assert "RK132" in refusal(path, where={"a": ["x", "x_y"]})


def test_a_large_segment_costs_steps_in_proportion() -> None:
    steps = Steps(3_000_000)
    compile_pattern(pattern(path="{a:0..9999}x{b:0..9999}-{c}"), {}, steps)
    assert steps.spent < 300_000


def test_a_path_of_many_segments_costs_steps_in_proportion() -> None:
    steps = Steps(3_000_000)
    compile_pattern(pattern(path=".".join(f"{{a{n}:int}}x{{b{n}}}" for n in range(1000))), {}, steps)
    assert steps.spent < 300_000


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("lora_unet_{block:down|up}_blocks_{i:int}_{rest}", "{block}_blocks.{i}.{rest}"),
        ("{i:int}.{t:int}.{r:**}", "layer_{i}-model_{t}.{r}"),
        ("{p:q|k}{i:0..3}_{r}", "{r}.{p}.{i+1}"),
    ],
)
def test_such_rules_are_proven_and_have_an_inverse(path: str, to: str) -> None:
    made = rules(rule("r", to, path=path))
    assert prove(made).level is Level.ALL
    assert "match:" not in invert(made).text
