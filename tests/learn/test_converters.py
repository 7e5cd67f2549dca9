"""The exam: what is learned through diffusers' converters, or from A and B, is held against their bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
from converters import LAYOUTS, make_layout
from diffusers.loaders import single_file_utils

import remapkit
from remapkit.authoring import learn as examples
from remapkit.authoring.learn import Learned, learn
from remapkit.authoring.pair_by_value import pair_by_value
from remapkit.authoring.through import RandomTensors, StateTensors, run_converter
from remapkit.diagnostics.errors import UsageError
from remapkit.models.converter import resolve_converter

State = dict[str, torch.Tensor]


def spoil(a: State, b: State, kind: str) -> None:
    first, last = next(iter(b)), list(b)[-1]
    if kind == "changed":
        b[last] = b[last].flip(0) + 1
    elif kind == "missing":
        del b[first]
    elif kind == "more":
        b[f"{last}.more"] = torch.rand(5)
    elif kind == "cast":
        b[first] = b[first].double()


def make_a(name: str, kind: str) -> State:
    a = RandomTensors(make_layout(name)).make_state()
    for place, fqn in enumerate(a):
        if kind == "constant" and place % 3:
            a[fqn] = torch.full_like(a[fqn], place % 3 - 1)
        if kind == "tied" and place % 4 == 1:
            a[fqn] = a[next(iter(a))].clone()
    return a


def convert(name: str, a: State) -> State:
    made: Any = getattr(single_file_utils, f"convert_{name}")(dict(a))
    return {fqn: value.clone().contiguous() for fqn, value in made.items() if isinstance(value, torch.Tensor)}


def judge(learned: Learned, a: State, b: State) -> list[str]:
    """Apply the written file with the engine; every key of A and B must be right, or be named as not taken."""
    rules = remapkit.loads(learned.text)
    open_a = {*learned.only_a, *learned.undecided, *learned.unsaid}
    open_b = {*learned.only_b, *learned.open_b, *learned.unsaid.values()}
    taken = {fqn: value for fqn, value in a.items() if rules.match(fqn)}
    made = rules(taken)
    wrong = [fqn for fqn, value in made.items() if fqn not in b or not same(value, b[fqn])]
    silent = [fqn for fqn in b if fqn not in made and fqn not in open_b]
    return [*wrong, *silent, *(fqn for fqn in a if fqn not in taken and fqn not in open_a)]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def sit(name: str, kind: str) -> list[str]:
    a = make_a(name, kind)
    b = convert(name, a)
    spoil(a, b, kind)
    one, other = StateTensors(a, "a"), StateTensors(b, "b")
    try:
        found = learn("t", one.header(), other.header(), pair_by_value(one, other))
    except UsageError as error:
        return [] if error.diagnostics[0].code == "RK625" else [str(error)]
    return judge(found, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_through_the_converter(name: str) -> None:
    converter = resolve_converter(f"py:diffusers.loaders.single_file_utils:convert_{name}")
    found = run_converter(converter, make_layout(name))
    learned = learn("t", found.source.header(), found.target, found.pairing)
    a = make_a(name, "random")
    assert judge(learned, a, convert(name, a)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "constant", "tied", "changed", "missing", "more", "cast"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_from_a_and_b(name: str, kind: str) -> None:
    assert sit(name, kind) == []


@pytest.mark.slow
def test_without_the_replay_the_exam_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fault: Callable[..., set[str]] = lambda rules, source, said, alike: set()  # noqa: E731
    monkeypatch.setattr(examples, "_find_wrong_rules", fault)
    assert any(sit(name, "changed") for name in LAYOUTS)
