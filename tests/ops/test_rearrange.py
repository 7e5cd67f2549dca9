"""`rearrange`, `flip`, `roll`, `index`: patterns as they are read, jobs from reports, and what is in memory."""

# ruff: noqa: E501 - tables of cases, one line each

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import remapkit
from remapkit.api.ruleset import compile_rules
from remapkit.compute.lazy import FileRange, build_tree
from remapkit.compute.stream import make_stripes
from remapkit.compute.torch_eager import chain_ops
from remapkit.diagnostics.errors import FailedCheck
from remapkit.ops.rearrange import BadPattern, Rearrange, parse_pattern
from remapkit.ops.steps import Permute, Pick, Reshape
from remapkit.rulefile.read import read_text
from remapkit.tensors.spec import TensorSpec
from tests.ops.cases import call_of, raw

DOCS = Path(remapkit.__file__).parent.parent / "docs" / "operations.md"


def op(pattern: str, **sizes: int) -> Rearrange:
    return Rearrange(pattern, tuple(sizes.items()))


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(TensorSpec("I64", shape).numel).reshape(shape)


# --------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("one", "other"),
    [  # what einops documents as the same
        ("a b c -> c b a", "  a  b   c->c b a"),
        ("a b -> (a b)", "a b -> ( a b )"),
        ("a b 1 -> a b", "a b () -> a b"),
        ("a b -> a 1 b", "a b -> a () b"),
        ("(a 1) -> a", "(1 a) -> (a)"),
        ("... -> ...", "… -> …"),
    ],
)
def test_equal_patterns_are_read_alike(one: str, other: str) -> None:
    assert parse_pattern(one.replace("(a)", "a")) == parse_pattern(other.replace("(a)", "a"))


@pytest.mark.parametrize(
    ("text", "at", "title"),
    [
        ("a b", "a b", "a pattern has one `->`"),
        ("a -> a -> a", "a -> a -> a", "a pattern has one `->`"),
        ("(a -> a)", "(", "'(' is never closed"),
        ("a b) -> a b", ")", "unexpected ')' in a pattern"),
        ("a -> (a", "(", "'(' is never closed"),
        ("a ... -> ... ... a", "...", "'...' is twice on one side"),
        ("a ... -> a", "...", "'...' is only on the left of `->`"),
        ("a -> a ...", "...", "'...' is only on the right of `->`"),
        ("11 a -> a 11", "11", "unexpected '11' in a pattern"),
        ("1a -> 1a", "1a", "unexpected '1a' in a pattern"),
        ("_a -> _a", "_a", "unexpected '_a' in a pattern"),
        ("é -> é", "é", "unexpected 'é' in a pattern"),
        ("a,b -> b a", ",", "unexpected ',' in a pattern"),
        ("a.b -> b a", ".", "unexpected '.' in a pattern"),
        (f"{' '.join(f'x{n}' for n in range(33))} -> x0", "x1", "'x1' is only on the left of `->`"),
        (
            " -> ".join([" ".join(f"x{n}" for n in range(33))] * 2),
            "x32",
            "a pattern must have at most 32 axes, got 33",
        ),
    ],
)
def test_other_patterns_are_refused_at_their_place(text: str, at: str, title: str) -> None:
    with pytest.raises(BadPattern) as caught:
        parse_pattern(text)
    start, end = caught.value.at
    assert (text[start:end], caught.value.title) == (at, title)


@pytest.mark.parametrize(
    ("short", "long", "shape"),
    [
        ("transpose", "a b -> b a", (3, 4)),
        ({"rope": {"to": "half", "heads": 3, "head_dim": 4}}, {"pattern": "(h d p) ... -> (h p d) ...", "h": 3, "p": 2}, (12, 2)),
        ({"rope": {"to": "interleaved", "heads": 3, "head_dim": 4}}, {"pattern": "(h p d) c -> (h d p) c", "h": 3, "p": 2}, (12, 2)),
        ({"squeeze": [2, 3]}, "o i 1 1 -> o i", (3, 2, 1, 1)),
        ({"permute": [2, 0, 1]}, "a b c -> c a b", (2, 3, 4)),
        ({"reshape": [6, 4]}, "a b c -> (a b) c", (2, 3, 4)),
    ],
)  # fmt: skip
def test_short_words_say_the_same(short: Any, long: Any, shape: tuple[int, ...]) -> None:
    x = numbered(*shape)
    made = [chain_ops((call_of(each).op({}),), x) for each in (short, {"rearrange": long})]
    assert torch.equal(made[0], made[1])


@pytest.mark.parametrize(
    ("operation", "shape", "kinds"),
    [
        (op("a b -> a b"), (2, 3), []),
        (op("(h two d) c -> (two h d) c", h=3, two=2), (24, 5), [Pick]),
        (op("(a b) (c d) -> (c d) (b a)", a=2, c=2), (6, 4), [Pick, Permute]),
        (op("o i 1 1 -> o i"), (4, 3, 1, 1), [Reshape]),
        (op("h d c -> (h d) c"), (4, 3, 2), [Reshape]),
        (op("o i h w -> o (h w i)"), (4, 3, 2, 2), [Reshape, Permute, Reshape]),
        (op("a 1 b -> b a 1"), (4, 1, 2), [Reshape, Permute, Reshape]),
        (op("(a b) -> (b a)", a=2), (2 * 40_000,), [Reshape, Permute, Reshape]),  # as a list of pairs: too many
    ],
)
def test_the_fewest_steps_are_taken(operation: Rearrange, shape: tuple[int, ...], kinds: list[type]) -> None:
    assert [type(step) for step in operation.steps(TensorSpec("F32", shape))] == kinds


# --------------------------------------------------------------------------------------------- jobs and messages


def run(rule: str, state: dict[str, torch.Tensor], **params: int) -> dict[str, torch.Tensor]:
    """Run one rule, and its inverse, which must give every byte back."""
    named = "".join(f"  {name}: {value}\n" for name, value in params.items())
    text = f"remapkit: 1\nname: t\n{'params:' if params else ''}\n{named}rules:\n  - {{id: r, {rule}}}\n"
    rules = compile_rules(read_text(text))
    made = rules(state)
    back = rules.inverse()(made)
    assert {key: raw(value) for key, value in back.items()} == {key: raw(value) for key, value in state.items()}
    return made


def test_swin_reductions_and_their_norms_by_one_rule() -> None:
    """Quarters in the order 0, 2, 1, 3; the number of channels differs by stage."""
    state = {f"s.{n}.{leaf}": torch.randn(*shape) for n, c in enumerate((3, 5)) for leaf, shape in (("norm", (4 * c,)), ("red", (2 * c, 4 * c)))}  # fmt: skip
    ops = "[{rearrange: {pattern: '... (i j c) -> ... (j i c)', i: 2, j: 2}}]"
    made = run(f"path: 's.{{n:int}}.{{l}}', ops: {ops}, to: 'o.{{n}}.{{l}}'", state)
    for key, value in state.items():
        quarters = value.chunk(4, -1)
        assert torch.equal(made[f"o{key[1:]}"], torch.cat([quarters[n] for n in (0, 2, 1, 3)], -1))


def test_a_detector_with_its_colours_and_its_background_elsewhere() -> None:
    state = {"conv": torch.randn(4, 3, 2, 2), "cls": torch.randn(5, 6)}
    made = run("path: conv, ops: [{index: {dim: 1, order: [2, 1, 0]}}], to: c", {"conv": state["conv"]})
    assert torch.equal(made["c"], state["conv"].flip(1))
    made = run("path: cls, ops: [{roll: {by: shift}}], to: c", {"cls": state["cls"]}, shift=1)
    assert torch.equal(made["c"], torch.cat([state["cls"][-1:], state["cls"][:-1]]))
    made = run("path: conv, ops: [{flip: {dim: 1}}], to: c", {"conv": state["conv"]})
    assert torch.equal(made["c"], state["conv"].flip(1))


def test_the_examples_of_the_docs() -> None:
    section = DOCS.read_text(encoding="utf-8").split("### `rearrange`")[1].split("\n## ")[0]
    (example,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    rules = compile_rules(read_text(f"remapkit: 1\nname: t\nparams: {{heads: 2}}\nrules:\n{example}"))
    state = {"h.0.attn.qkv.weight": torch.randn(12, 5), "h.0.attn.qkv.bias": torch.randn(12)}
    state["stages.1.downsample.norm.bias"] = torch.randn(8)
    made = rules(state)
    for leaf in ("weight", "bias"):
        fused = state[f"h.0.attn.qkv.{leaf}"]
        heads = [head.chunk(3) for head in fused.chunk(2)]
        assert torch.equal(made[f"layers.0.qkv.{leaf}"], torch.cat([head[n] for n in range(3) for head in heads]))
    assert all(raw(value) == raw(state[key]) for key, value in rules.inverse()(made).items())


def test_a_size_that_does_not_divide_is_named_with_its_axis_and_its_tensor() -> None:
    text = """
remapkit: 1
name: t
params: {heads: 5}
rules:
  - {id: r, path: 'a.{n}', ops: [{rearrange: {pattern: '(h d) c -> (d h) c', h: heads}}], to: 'b.{n}'}
"""
    with pytest.raises(FailedCheck) as caught:
        compile_rules(read_text(text))({"a.x": torch.ones(84, 2)})
    (problem,) = caught.value.diagnostics
    assert problem.code == "RK350" and problem.span is not None and problem.span.text.startswith("rearrange")
    assert "84 rows cannot be divided by h=5 to give d in (h d), [84, 2]" in problem.title
    assert any("a.x" in note for note in problem.notes)


# ----------------------------------------------------------------------------------------------------- streaming

LARGE = TensorSpec("F32", (1 << 11, 1 << 10, 1 << 10, 4))
"""A tensor of 32 GB."""


@pytest.mark.parametrize(
    ("ops", "most"),
    [
        ([op("a (b two) c d -> a (two b) c d", two=2)], 1),
        ([op("(a two) b c d -> (two a) b c d", two=2), call_of({"slice": {"dim": 0, "stop": 4}}).op({})], 1),
        ([op("a b c d -> (b c d) a")], 4),
        ([op("a b c d -> a (d c b)")], 1),
        ([op("(x y) b c d -> (y b) x c d", y=4)], 1),
        ([call_of({"flip": {"dim": 2}}).op({}), call_of({"roll": {"dim": 1, "by": 3}}).op({})], 1),
        ([call_of({"index": {"dim": 0, "order": [1500, 3]}}).op({}), call_of("flip").op({})], 1),
    ],
)
def test_a_tensor_that_no_memory_holds_is_computed_in_stripes(ops: list[Any], most: int) -> None:
    """The first stripe of 1 MB needs no more than that from the source, and gaps of a bounded size."""
    reads: list[int] = []

    def bytes_at(offset: int, length: int) -> bytes:
        assert offset >= 0 and offset + length <= LARGE.nbytes
        reads.append(length)
        return bytes(length)

    stripes = make_stripes(build_tree(ops, [FileRange(LARGE, bytes_at)]), 1 << 20)
    assert len(next(stripes)) > 0
    assert 0 < sum(reads) <= most * (64 << 20), (len(reads), sum(reads))
