"""Tensors without a dimension, without elements, with one: every operation, on every dtype, by every way there is.

The kinds: an array library's own scalar where a tensor without a dimension is read; a way that knows another dtype or
shape than the others; a way that writes what another one refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remapkit.compute import lazy as arrays
from tests.ops import edges, ways

SOME = ("F32", "BF16", "F8_E4M3", "F8_E8M0", "F4", "BOOL", "C64", "I64", "U16")
FROM_FILES = ("safetensors", "verified", "shards", "diff", "view")
"""The ways that need no torch, and so know the dtypes that it has no name for."""


def given_to(way: str, tensors: ways.Tensors) -> ways.Tensors:
    if way in FROM_FILES:
        return tensors
    return {fqn: tensor for fqn, tensor in tensors.items() if tensor[0].dtype in ways.TORCH_DTYPES}


def holds(edge: edges.Edge, folder: Path, chosen: Sequence[str] = tuple(ways.WAYS)) -> None:
    """Every way makes what the definition says, and refuses with one code what it does not allow."""
    made = edges.bundle(edge)
    for way in chosen:
        given = given_to(way, made.given)
        if given:
            source = folder / "in.safetensors"
            edges.write_safetensors(source, given)
            expected = given_to_targets(way, made, edge)
            assert ways.outcome(way, edge.text, source, folder, given) == expected, f"{edge.name}: {way}"
    for name, tensors in list(made.unfit.items())[:: max(1, len(made.unfit) // 4)]:
        source = folder / "unfit.safetensors"
        edges.write_safetensors(source, tensors)
        outcomes = {
            way: ways.outcome(way, edge.text, source, folder, tensors)
            for way in chosen
            if given_to(way, tensors) == tensors
        }
        codes = set(map(str, outcomes.values()))
        assert len(codes) == 1, f"{edge.name} of {name}: {outcomes}"
        assert codes.pop().startswith("RK35"), f"{edge.name} of {name}: {outcomes}"


def given_to_targets(way: str, made: edges.Bundle, edge: edges.Edge) -> dict[str, Any]:
    return dict(given_to(way, made.expected))


def small(edge: edges.Edge) -> edges.Edge:
    dtypes = tuple(each for each in edge.dtypes if each in SOME) or edge.dtypes
    return replace(edge, dtypes=dtypes)


@pytest.mark.parametrize("edge", edges.ALL, ids=lambda edge: f"A19-{edge.name}")
def test_all_ways_do_what_the_definition_says(edge: edges.Edge, tmp_path: Path) -> None:
    holds(small(edge), tmp_path, ("in memory", "safetensors", "view", "load_into"))


@pytest.mark.slow
@pytest.mark.parametrize("edge", edges.ALL, ids=lambda edge: f"A19-{edge.name}")
def test_all_ways_on_every_dtype(edge: edges.Edge, tmp_path: Path) -> None:
    holds(edge, tmp_path)


@pytest.mark.parametrize("way", sorted(ways.WAYS))
@pytest.mark.parametrize("name", ["stack", "stack negated", "concat", "split", "unstack"])
def test_every_way_with_what_joins_and_cuts(name: str, way: str, tmp_path: Path) -> None:
    (edge,) = (small(each) for each in edges.ALL if each.name == name)
    holds(edge, tmp_path, (way,))


def test_a_stack_through_numbers_of_numpy_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(out: arrays.Array, dim: int, place: slice | int, made: arrays.Array) -> None:
        out[(*(slice(None),) * dim, place)][...] = made

    monkeypatch.setattr(arrays, "put_box", put)
    (edge,) = (small(each) for each in edges.ALL if each.name == "stack")
    with pytest.raises(TypeError):
        holds(edge, tmp_path, ("view",))


def test_halves_that_stay_where_they_are_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = arrays.Picked.read

    def unmoved(self: arrays.Picked, box: arrays.Box) -> arrays.Array:
        if not isinstance(self.chosen, slice):
            return self.inner.read(box)
        return read(self, box)

    monkeypatch.setattr(arrays.Picked, "read", unmoved)
    (edge,) = (small(each) for each in edges.ALL if each.name == "flip_halves")
    with pytest.raises(AssertionError):
        holds(edge, tmp_path, ("view",))
