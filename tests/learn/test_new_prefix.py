"""`new --to` writes the rules of families whose names differ from the target's only by a prefix or a segment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.authoring.find_prefix import Change, find_changes
from remapkit.authoring.new import new_rule_file
from remapkit.formats.manifest import manifest_json
from remapkit.tensors.families import find_families
from remapkit.tensors.spec import StateDictSpec, TensorSpec

SEGMENTS = st.sampled_from(["enc", "dec", "h", "0", "1", "2", "w", "b", "module", "h_0", "h_1", "h_1_w"])
NAMES = st.lists(st.lists(SEGMENTS, min_size=2, max_size=4).map(".".join), min_size=2, max_size=12, unique=True).map(
    lambda names: [f"in.{name}" for name in names]
)


def make_spec(names: list[str]) -> StateDictSpec:
    return StateDictSpec({fqn: TensorSpec("F32", (2 + len(fqn.split(".")[-1]),)) for fqn in names}, name="file")


CHANGES = {
    "added": lambda fqn: f"model.{fqn}",
    "removed": lambda fqn: fqn.removeprefix("in."),
    "replaced": lambda fqn: f"net.{fqn.removeprefix('in.')}",
    "two added": lambda fqn: f"model.net.{fqn}",
}


@settings(max_examples=120, deadline=None)
@given(names=NAMES, kind=st.sampled_from(sorted(CHANGES)), more=NAMES)
def test_a_prefix_that_differs_is_written(names: list[str], kind: str, more: list[str]) -> None:
    """Every source key becomes the target key that the change gives, where no other target is like it."""
    change = CHANGES[kind]
    wanted = {fqn: change(fqn) for fqn in names}
    if set(wanted) & set(wanted.values()):
        return
    target = make_spec([*wanted.values(), *(f"other.0.{fqn}x" for fqn in more)])
    text = new_rule_file("t", make_spec(names), None, target)
    rules = remapkit.loads(text)
    assert {fqn: rules.match(fqn)[0].target for fqn in names} == wanted
    assert rules.plan(make_spec(names)).ok


@settings(max_examples=150, deadline=None)
@given(names=NAMES, others=NAMES)
def test_no_rule_is_written_for_what_is_not_there(names: list[str], others: list[str]) -> None:
    """Whatever the two sides are: what a rule produces is a key of the target with the shape of its source."""
    source, target = make_spec(names), make_spec([f"x.{fqn}" for fqn in others])
    rules = remapkit.loads(new_rule_file("t", source, None, target))
    plan = rules.plan(source)
    assert plan.ok and len(plan.moves) == len(names)
    for move in plan.moves:
        if move.sources != (move.target,):
            assert target[move.target].shape == source[move.sources[0]].shape


def test_a_wrapper_in_mid_key_is_taken_out() -> None:
    source = make_spec([f"layers.{n}.module.{leaf}" for n in range(3) for leaf in ("w", "b")])
    target = make_spec([f"layers.{n}.{leaf}" for n in range(3) for leaf in ("w", "b")])
    rules = remapkit.loads(new_rule_file("t", source, None, target))
    assert rules.match("layers.1.module.w")[0].target == "layers.1.w"


def test_a_numbered_segment_is_taken_out_only_where_it_stands_in_every_key() -> None:
    """`h_1` is also one of `h_{0,1}`: no one rule of the family takes both out, and only one of `h_0.a.h_1`."""
    source = make_spec([f"b.{layer}.h_{n}.a.h_1.{leaf}" for layer in range(2) for n in range(2) for leaf in "bw"])
    target = make_spec([f"b.{layer}.{part}.{leaf}" for layer in range(2) for part in ("h_0.a", "a") for leaf in "bw"])
    (family,) = find_families(source)
    assert family.pattern == "b.{0,1}.h_{0,1}.a.h_1.{b|w}" and find_changes([family], target) == {}
    (alone,) = find_families(make_spec([fqn for fqn in source if ".h_0." in fqn]))
    assert find_changes([alone], target) == {alone: Change(without="h_1")}


def test_two_targets_that_are_alike_are_not_chosen_from() -> None:
    """The query and the key encoder of a momentum model: either could be meant."""
    source = make_spec(["enc.w", "enc.b"])
    target = make_spec([f"{side}.enc.{leaf}" for side in ("q", "k") for leaf in ("w", "b")])
    assert find_changes(find_families(source), target) == {}
    assert "\nrules:\n  # 2 keys" in new_rule_file("t", source, None, target)


def test_a_key_of_another_shape_is_no_target() -> None:
    source = StateDictSpec({"a.w": TensorSpec("F32", (2,)), "a.v": TensorSpec("F32", (2,))})
    target = StateDictSpec({"m.a.w": TensorSpec("F32", (3,)), "m.a.v": TensorSpec("F32", (2,))})
    assert find_changes(find_families(source), target) == {}


def test_a_name_that_a_change_is_not_about_does_not_become_the_empty_key() -> None:
    source = StateDictSpec({fqn: TensorSpec("F32", ()) for fqn in ("it", "x.0", "x.1")})
    target = StateDictSpec({fqn: TensorSpec("F32", ()) for fqn in ("y.0", "y.1", "")})
    changes = find_changes(find_families(source), target)
    assert {family.fqns[0]: change for family, change in changes.items()} == {"x.0": Change(("x",), ("y",))}


def test_a_layer_is_no_prefix() -> None:
    source, target = make_spec(["w", "b"]), make_spec(["0.w", "0.b"])
    assert find_changes(find_families(source), target) == {}
    assert Change(("a",), ()).apply("b.w") is None


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_the_file_of_a_model_says_its_arguments(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = remapkit.header("rules/keys/wan.vae.WanVAE.json")
    moved = StateDictSpec({f"{prefix}{fqn}": spec for fqn, spec in own.items()})
    (tmp_path / "a.json").write_text(manifest_json(moved))
    made = remapkit.new(
        "t", tmp_path / "a.json", "wan.vae:WanVAE", tmp_path / "t.yaml", model_args={"z_dim": 48, "dim": 160}
    )
    assert "target: {model: 'wan.vae:WanVAE', args: {z_dim: 48, dim: 160}}" in made.text
    report = remapkit.check(tmp_path / "t.yaml")
    assert report.ok and len(report.checks[0].plan.moves) == len(own)
    assert [each.code for each in made.diagnostics] == (["RK318"] if prefix else [])


def test_a_name_with_another_shape_has_no_rule() -> None:
    """Two of three keys fit below `model`; the third one's name does too, but it is another tensor there."""
    sizes = {"in.w": 2, "out.conv.w": 3, "mid.proj.lin.w": 4}
    source = StateDictSpec({fqn: TensorSpec("F32", (size,)) for fqn, size in sizes.items()})
    target = StateDictSpec({f"model.{fqn}": TensorSpec("F32", (min(size, 3),)) for fqn, size in sizes.items()})
    changes = find_changes(find_families(source), target)
    assert {family.fqns[0]: change for family, change in changes.items()} == {
        "in.w": Change(added=("model",)),
        "out.conv.w": Change(added=("model",)),
    }
