"""Declared targets in other sizes, and metadata that quotes names: which difference counts, and which does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import remapkit
from remapkit.plans.layers import is_another_size
from remapkit.plans.target_check import check_declared_target
from remapkit.tensors.families import mask_indices
from remapkit.tensors.spec import OPAQUE, StateDictSpec
from tests.core.plan_kit import SMALL, Header, header, planned

SIZES = "remapkit: 1\nname: t\nsource: {keys: s.json}\ntarget: {keys: t.json}\n"
LAYERS: Header = {f"l.{i}.{x}": ("F32", [4, 4]) for i in (0, 1) for x in ("q", "k")}


def declared(folder: Path, rules: str, source: Header, target: Header) -> remapkit.RuleSet:
    for name, tensors in (("s", source), ("t", target)):
        entries = {fqn: {"dtype": dtype, "shape": shape} for fqn, (dtype, shape) in tensors.items()}
        (folder / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")
    (folder / "t.yaml").write_text(SIZES + rules, encoding="utf-8")
    return remapkit.load(folder / "t.yaml")


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (LAYERS, False),
        ({"l.0.q": ("F32", [4, 4])}, False),
        ({**LAYERS, "head": ("F32", [4])}, False),
        ({**LAYERS, "l.0.q": ("BF16", [4, 4])}, False),
        ({**LAYERS, "l.0.q": ("F32", [4, 8])}, True),
        ({"l.2.q": ("F32", [4, 4])}, True),
    ],
)
def test_another_size_has_another_shape_or_more_layers(found: Header, wanted: bool) -> None:
    assert is_another_size(header(found), header(LAYERS)) == wanted


def test_a_value_without_a_shape_is_no_other_size() -> None:
    assert not is_another_size({"l.0.q": OPAQUE}, header(LAYERS))
    assert mask_indices("l.0.x1.10") == "l.*.x1.*"


KEEP = "rules: [{id: r, path: 'l.{i:int}.{x}', to: 'm.{i}.{x}'}]"
RENAMED: Header = {fqn.replace("l.", "m.", 1): spec for fqn, spec in LAYERS.items()}


def test_what_is_made_from_a_value_without_a_shape_has_none(tmp_path: Path) -> None:
    rules = declared(tmp_path, KEEP, LAYERS, RENAMED)
    specs = dict(header(LAYERS))
    plan = rules.plan(StateDictSpec({**specs, "l.0.q": OPAQUE}))
    assert [each.code for each in check_declared_target(rules, plan).problems] == []
    half = {fqn: spec for fqn, spec in specs.items() if fqn.startswith("l.0")}
    held = check_declared_target(rules, rules.plan(StateDictSpec(half)))
    assert [each.code for each in held.problems] == ["RK310"]
    assert check_declared_target(rules, rules.plan(StateDictSpec(half)), partial=True).problems == ()


def test_what_is_added_has_its_shape(tmp_path: Path) -> None:
    added = "\nadd: [{to: head, fill: zeros, shape: [2], dtype: F32}]"
    rules = declared(tmp_path, KEEP + added, LAYERS, {**RENAMED, "head": ("F32", [4])})
    plan = rules.plan(header(LAYERS))
    assert [each.code for each in check_declared_target(rules, plan).problems] == ["RK312"]


@pytest.mark.parametrize(
    ("rules", "source", "wanted"),
    [
        (KEEP, {fqn: ("F32", [8, 8]) for fqn in LAYERS}, []),
        (KEEP, {fqn: ("F32", [8]) for fqn in LAYERS}, []),  # the source itself is another
        (KEEP.replace("to:", "ops: [{unsqueeze: 0}], to:"), {fqn: ("F32", [8, 8]) for fqn in LAYERS}, ["RK312"]),
        (KEEP, {f"l.{i}.{x}": ("F32", [4, 4]) for i in range(3) for x in "qk"}, []),
        (KEEP, {f"l.{i}.q": ("F32", [4, 4]) for i in range(3)}, ["RK310"]),
    ],
    ids=["wider", "of another rank", "a dimension more", "deeper", "deeper without k"],
)
def test_another_size_is_held_by_its_dimensions(
    rules: str, source: Header, wanted: list[str], tmp_path: Path
) -> None:
    compiled = declared(tmp_path, rules, LAYERS, RENAMED)
    held = check_declared_target(compiled, compiled.plan(header(source)))
    assert held.how == "layout"
    assert [each.code for each in held.problems] == wanted


def test_one_name_of_a_tied_weight_is_enough_in_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from remapkit.plans import target_check

    rules = declared(tmp_path, KEEP, LAYERS, RENAMED)
    target = header({**RENAMED, "head.w": ("F32", [4, 4])}, tied=(("m.0.q", "head.w"),))
    monkeypatch.setattr(target_check, "read_declared_target", lambda _: target)
    wider: Header = {fqn: ("F32", [8, 8]) for fqn in LAYERS}
    assert check_declared_target(rules, rules.plan(header(wider))).problems == ()


# ------------------------------------------------------------------------------------------------ metadata


def stale(value: Any, *fqns: str) -> list[str]:
    body = "rules: [{id: r, path: '{m:**}.q.{x}', to: '{m}.query.{x}'}]\nunmatched: keep"
    plan = planned(body, dict.fromkeys(fqns, SMALL), metadata={"entry": json.dumps(value)})
    found = [each for each in plan.warnings if each.code in ("RK369", "RK740")]
    assert all(f"{len(each.values['names'])} name" in each.title for each in found)
    return [name for each in found for name in each.values["names"]]


FIELDS = ("target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "exclude_modules", "ignore")


@pytest.mark.parametrize("field", [*FIELDS, "transformer.target_modules"])
def test_the_fields_of_adapters_hold_the_ends_of_names(field: str) -> None:
    for value in (["q"], {"q": 4}, {"any": {"q": {"rank": 4}}}, {"any": [["b.q"]]}):
        assert stale({field: value}, "a.b.q.w") == (["b.q"] if "b.q" in str(value) else ["q"])
    assert stale({field: ["k"]}, "a.b.q.w", "a.k.w") == []


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["a.b.q.w", "a.b.q.w"], ["a.b.q.w"]),
        ({"a.b.q": {"target_modules": ["a.b.q"]}}, ["a.b.q"]),
        (["q", "b.q", "a.b"], []),
        ([], []),
        ({"other": ["q"]}, []),
    ],
)
def test_elsewhere_a_name_is_a_whole_one_and_counts_once(value: Any, names: list[str]) -> None:
    assert stale(value, "a.b.q.w") == names
