"""`learn --through` on random converters, against two oracles that know nothing of it.

A table of regular expressions is also run on names alone, which tells what must be reported. A program of renames and
operations is run on values of the test's own: what the written rules make must be what the program makes, and every
other key must be named.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.formats.manifest import write_manifest

CODE = """
import random, re, torch

def rename(sd, steps):
    for pattern, new in steps:
        sd = {re.sub(pattern, new, key): value for key, value in sd.items()}
    return sd

def run(sd, program):
    for step, *args in program:
        sd = globals()["do_" + step](dict(sd), *args)
    return sd

def each(sd, word, do):
    made = {}
    for key, value in sd.items():
        made.update(do(key, value) if word in key else {key: value})
    return made

def do_sub(sd, pattern, new): return rename(sd, [(pattern, new)])
def do_drop(sd, word): return {key: value for key, value in sd.items() if word not in key}
def do_turn(sd, word): return each(sd, word, lambda key, value: {key: value.T if value.ndim == 2 else value})
def do_cast(sd, word, name):
    dtype = getattr(torch, name)
    return each(sd, word, lambda key, value: {key: value.to(dtype) if value.dtype == torch.float32 else value})
def do_copy(sd, word, new): return each(sd, word, lambda key, value: {key: value, key + new: value.clone()})
PLAIN = (torch.float32, torch.float64, torch.int64)
def do_square(sd, word):
    return each(sd, word, lambda key, value: {key: value * value if value.dtype in PLAIN else value})
def do_flip(sd, word): return each(sd, word, lambda key, value: {key: value.flip(0) if value.ndim else value})
def do_lift(sd, word): return each(sd, word, lambda key, value: {key: value[..., None]})
def do_noise(sd, name): return {**sd, name: torch.randn(3) + random.random()}
def do_make(sd, name): return {name: torch.arange(5), **sd}
def do_split(sd, word, parts):
    def do(key, value):
        if not value.ndim or value.shape[0] % len(parts):
            return {key: value}
        return {key + "." + part: one for part, one in zip(parts, value.chunk(len(parts)))}
    return each(sd, word, do)
def do_join(sd, first, second, new):
    for key in [key for key in sd if first in key]:
        other = sd.get(key.replace(first, second))
        if other is not None and other is not sd[key] and other.dtype == sd[key].dtype and sd[key].ndim \\
                and other.shape == sd[key].shape:
            one, other = sd.pop(key), sd.pop(key.replace(first, second))
            sd[key.replace(first, new)] = torch.cat([one, other])
    return sd
"""
WORDS = ("q", "k", "gate", "norm")
DTYPES = ("F32", "F32", "F32", "BF16", "F16", "F64", "I64", "BOOL", "F8_E4M3", "C64")
TORCH: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
    "I64": torch.int64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "C64": torch.complex64,
}


@st.composite
def headers(draw: st.DrawFn) -> dict[str, remapkit.TensorSpec]:
    """Layers of a few leaves, with sizes and dtypes of their own, and some single keys."""
    header: dict[str, remapkit.TensorSpec] = {}
    depth = draw(st.integers(1, 3))
    for word in draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True)):
        for leaf in draw(st.sampled_from((("weight",), ("weight", "bias"), ("gamma",)))):
            dtype = draw(st.sampled_from(DTYPES))
            shape = draw(st.sampled_from(((6, 4), (12, 6), (8, 8)))) if leaf == "weight" else (12,)
            header.update((f"layers.{n}.{word}.{leaf}", remapkit.TensorSpec(dtype, shape)) for n in range(depth))
    for number, shape in enumerate(draw(st.lists(st.sampled_from(((), (1,), (0,), (2, 3), (10,))), max_size=3))):
        header[f"one.{number}"] = remapkit.TensorSpec(draw(st.sampled_from(DTYPES)), shape)
    return dict(draw(st.permutations(list(header.items()))))


PATTERNS = ("layers", r"^layers\.(\d+)", "q", "k|q", r"\.bias$", "weight|gamma", r"(\d)", "one", "norm.", "e")
NEWS = ("h", r"blocks.", "w", "k", "", r"x.\\g<0>", "z.y", "layers")
SUBS = st.tuples(st.sampled_from(PATTERNS), st.sampled_from(NEWS)).map(
    lambda pair: [pair[0], pair[1].replace("\\\\g", "\\g")]
)
WORD = st.sampled_from((*WORDS, "weight", "bias", "0", "one", "layers"))
STEPS = st.one_of(
    SUBS.map(lambda pair: ["sub", *pair]),
    st.tuples(st.sampled_from(("turn", "flip", "lift", "square", "drop")), WORD).map(list),
    st.tuples(st.just("cast"), WORD, st.sampled_from(("float16", "bfloat16", "float64"))).map(list),
    st.tuples(st.just("copy"), WORD, st.just("_copy")).map(list),
    st.tuples(st.just("split"), WORD, st.sampled_from((["a", "b"], ["x", "y", "z"]))).map(list),
    st.just(["join", "q", "k", "qk"]),
    st.just(["join", ".0.", ".1.", ".both."]),
    st.just(["noise", "chance"]),
    st.just(["make", "made"]),
)


def make_values(header: Any, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for fqn, spec in header.items():
        dtype = TORCH[spec.dtype]
        if dtype.is_floating_point or dtype.is_complex:
            wide = torch.complex64 if dtype.is_complex else torch.float32
            found[fqn] = torch.randn(spec.shape, generator=generator, dtype=wide).to(dtype)
        else:
            found[fqn] = torch.randint(0, 2 if dtype is torch.bool else 1 << 40, spec.shape, generator=generator).to(
                dtype
            )
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bytes(view(one)) == bytes(view(other))


def view(tensor: torch.Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("through")
    (folder / "converters.py").write_text(CODE)
    return folder


def learn(folder: Path, name: str, header: Any, **arg: Any) -> remapkit.ThroughReport | None:
    """Return the report; None if no rule does anything of it, which must be true."""
    write_manifest(remapkit.StateDictSpec(header), folder / "a.json", force=True)
    try:
        return remapkit.learn_through(f"{folder}/converters.py:{name}", folder / "a.json", arg=arg)
    except remapkit.UsageError as error:
        # torch lacks some operations for eight bits; a program may drop every key.
        words = ("not implemented for", "returned an empty dict")
        assert error.diagnostics[0].code == "RK680" or any(each in str(error) for each in words), error
        return None


def lead_names(header: Any, steps: list[list[str]]) -> dict[str, list[str]]:
    """Return the keys that the expressions lead to each target, in the order in which they overwrite one another."""
    now: dict[str, list[str]] = {fqn: [fqn] for fqn in header}
    for pattern, new in steps:
        made: dict[str, list[str]] = {}
        for fqn, sources in now.items():
            made.setdefault(re.sub(pattern, new, fqn), []).extend(sources)
        now = made
    return now


@settings(max_examples=60)
@given(headers(), st.lists(SUBS, min_size=1, max_size=4))
def test_a_table_of_expressions(folder: Path, header: dict[str, remapkit.TensorSpec], steps: list[list[str]]) -> None:
    wanted = lead_names(header, steps)
    if "" in wanted:
        return
    report = learn(folder, "rename", header, steps=steps)
    by_chance = {fqn for fqn, spec in header.items() if spec.numel < 2 and spec.dtype in ("BOOL", "F8_E4M3")}
    by_chance |= {fqn for fqn, spec in header.items() if not spec.numel}
    if report is None:
        assert by_chance == set(header)
        return
    sure = {target: sources for target, sources in wanted.items() if by_chance.isdisjoint(sources)}
    pairs = {fqn: target for fqn, target in report.learned.pairs.items() if target in sure}
    assert pairs == {sources[-1]: target for target, sources in sure.items()}
    found = {target: set(fqns) for target, fqns in report.collisions.items() if target in sure}
    assert found == {target: set(sources) for target, sources in sure.items() if len(sources) > 1}
    assert all(report.collisions[target][-1] == sure[target][-1] for target in found)
    assert {fqn for fqn in report.kept if fqn not in by_chance} == {
        sources[-1] for target, sources in sure.items() if sources[-1] == target
    }
    assert by_chance.issuperset(report.vanished) and (report.constant, report.unstable) == ((), ())
    check_report(folder, report, "rename", steps=steps)


@settings(max_examples=100)
@given(headers(), st.lists(STEPS, min_size=1, max_size=5))
def test_a_program(folder: Path, header: dict[str, remapkit.TensorSpec], program: list[list[Any]]) -> None:
    report = learn(folder, "run", header, program=program)
    if report is not None:
        check_report(folder, report, "run", program=program)


def check_report(folder: Path, report: remapkit.ThroughReport, name: str, **arg: Any) -> None:
    """Hold the rules against the converter on other values; whatever they do not do must be named."""
    space: dict[str, Any] = {}
    exec(CODE, space)
    arg = json.loads(json.dumps(arg))
    a = make_values(report.source, 11)
    b = space[name](dict(a), **arg)
    rules = remapkit.loads(report.text.replace("remapkit: 1\n", "remapkit: 1\nunmatched: drop\n", 1))
    taken = {fqn: tensor for fqn, tensor in a.items() if rules.match(fqn)}
    made = rules(dict(a))
    assert [fqn for fqn, tensor in made.items() if fqn not in b or not same(tensor, b[fqn])] == [], report.text
    learned = report.learned
    claimed = {*learned.pairs.values(), *(fqn for each in learned.relations for fqn in each.targets), *report.added}
    assert set(made) == claimed
    assert set(b) == claimed | {*learned.only_b, *learned.open_b, *learned.unsaid.values()}
    read = {*learned.pairs, *(fqn for each in learned.relations for fqn in each.sources)}
    assert set(taken) == read and set(a) == read | {*learned.only_a, *learned.undecided, *learned.unsaid}
    said = " ".join(line for each in report.diagnostics for line in (each.title, *each.notes))
    left = [*learned.only_a, *learned.only_b, *learned.open_b, *learned.undecided, *learned.unsaid]
    assert not left or said
    check_effects(report, a, b, lambda state: space[name](state, **arg))


def check_effects(report: remapkit.ThroughReport, a: Any, b: Any, convert: Any) -> None:
    """Check what is said of keys and targets by running the converter on other values of just these."""
    others = make_values(report.source, 12)
    changed = convert({**a, **{fqn: others[fqn] for fqn in report.vanished}})
    stable = [fqn for fqn in b if fqn not in report.unstable]
    assert [fqn for fqn in stable if not same(changed[fqn], b[fqn])] == []
    other = convert(dict(others))
    assert [fqn for fqn in report.constant if not same(other[fqn], b[fqn])] == []
    again = convert(dict(a))
    assert set(report.unstable) == {fqn for fqn in b if not same(again[fqn], b[fqn])}
    for fqns in report.collisions.values():
        changed = convert({**a, **{fqn: others[fqn] for fqn in fqns[:-1]}})
        assert [fqn for fqn in stable if not same(changed[fqn], b[fqn])] == []
    assert all(same(a[fqn], b[fqn]) for fqn in report.kept)
