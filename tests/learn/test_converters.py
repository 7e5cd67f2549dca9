"""The exam: what is learned through diffusers' converters, or from A and B, is held against their bytes.

26 layouts have the keys and the shapes of small models of diffusers and transformers; 4 have them but for the rows of
fused tensors, which their converters cut by numbers of the real size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
from converter_floors import FLOORS, GUESSES, KINDS, get_floor
from converters import LAYOUTS, WAN_VAE, Kind, find_differences, make_layout
from exam_converters import sit, sit_through

from remapkit.api import learn as command
from remapkit.authoring import find_relations, learn
from remapkit.authoring.pair_by_value import Pairing, pair_by_value
from remapkit.authoring.relation import Relation
from remapkit.authoring.verify_relation import Verifier
from remapkit.formats.manifest import read_manifest

DIT = Path(__file__).parents[2] / "rules" / "keys" / "wan21_dit_upstream.json"
FUSED = {"chroma", "flux", "hunyuan", "lumina2"}
"""The models whose converters cut fused tensors by numbers."""


def find_faults(name: str, kind: str, folder: Path) -> list[str]:
    marks = sit_through(name, folder) if kind == "through" else sit(name, kind, folder)
    found = list(marks.wrong)
    if marks.right < get_floor(name, kind):
        found.append(f"{marks.right} targets are right, not {get_floor(name, kind)}")
    if len(marks.guessed) > GUESSES.get((name, kind), 0):
        found.append(f"more guesses than before: {marks.guessed}")
    return found


def test_at_least_twenty_layouts_are_those_of_models() -> None:
    kinds = {name: layout.kind for name, layout in LAYOUTS.items()}
    assert {LAYOUTS[name].model for name, kind in kinds.items() if kind is Kind.WIDE} == FUSED
    assert sum(kind is Kind.MODEL for kind in kinds.values()) == 26 and FLOORS.keys() == kinds.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_converter_makes_the_keys_and_shapes_of_the_model(name: str) -> None:
    assert find_differences(name) == []


@pytest.mark.slow
def test_the_keys_of_published_files_are_those_of_the_layout() -> None:
    for name, file in (("wan_vae_to_diffusers", WAN_VAE), ("wan_transformer_to_diffusers", DIT)):
        there = set(read_manifest(file))
        ours = {fqn for fqn in make_layout(name) if "img" not in fqn}
        assert ours <= there and len(ours) > 90


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["through", *KINDS])
@pytest.mark.parametrize("name", LAYOUTS)
def test_no_tensor_is_wrong_and_as_many_as_ever_are_right(name: str, kind: str, tmp_path: Path) -> None:
    assert find_faults(name, kind, tmp_path) == []


# ------------------------------------------------------------------------------------------------ planted faults


def ignore_duplicates(*given: object) -> Pairing:
    found = pair_by_value(*given)  # type: ignore[arg-type]
    pairs = {fqn: others[0] for fqn, others in found.alike.items()}
    return replace(found, pairs={**pairs, **found.pairs}, alike={})


def turn_round(patch: pytest.MonkeyPatch) -> None:
    """Turn the targets of both ways to cut a source: one after the other, and each with its own slice."""
    for name in ("build_cut", "build_copies"):
        patch.setattr(find_relations, name, partial(_build_turned, getattr(find_relations, name)))


def _build_turned(build: Callable[..., Relation | None], *given: object) -> Relation | None:
    found = build(*given)
    return found and replace(found, targets=found.targets[::-1])


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no replay": lambda patch: patch.setattr(learn, "_find_wrong_rules", lambda *given: set()),
    "a duplicate is ignored": lambda patch: patch.setattr(command, "pair_by_value", ignore_duplicates),
    "another order": turn_round,
    "another order that is believed": lambda patch: (
        turn_round(patch),
        patch.setattr(Verifier, "is_true", lambda *given: True),
        patch.setattr(command, "has_equal_bytes", lambda *given: True),
    )[0],
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_the_exam(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("flux2_transformer_checkpoint_to_diffusers", "sd3_t5_checkpoint_to_diffusers")
    FAULTS[fault](monkeypatch)
    assert any(find_faults(name, kind, tmp_path) for name in names for kind in ("changed", "tied"))
