"""Half checkpoints and other sizes: a checkpoint may have another number of layers, but each must be whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import remapkit
from remapkit.plans.check import MAX_LACKING, check_known_keys
from remapkit.plans.layers import find_layers, find_stacks, is_another_size, list_lacking
from remapkit.tensors.spec import StateDictSpec, TensorSpec
from tests.core.plan_kit import compiled

KEEP = compiled("keep: ['{x:**}']")


def size(layers: int, experts: int, width: int) -> StateDictSpec:
    """A model in one size: layers of equal experts, and two blocks that differ."""
    names = [f"h.{i}.{leaf}" for i in range(layers) for leaf in ("q", *(f"e.{j}.w" for j in range(experts)))]
    shapes = {**dict.fromkeys(names, (width, width)), "head": (width,), "up.0.a": (width,), "up.1.b": (width,)}
    return StateDictSpec({fqn: TensorSpec("F32", shape) for fqn, shape in shapes.items()}, name=f"{layers} layers")


KNOWN = size(4, 2, 8)


def lacking(source: StateDictSpec) -> list[str]:
    problems = check_known_keys(KEEP, KEEP.plan(source), KNOWN)
    assert [each.code for each in problems] in ([], ["RK316"])
    return problems[0].values["lacking"] if problems else []


def without(source: StateDictSpec, *lost: str) -> StateDictSpec:
    return StateDictSpec({fqn: spec for fqn, spec in source.items() if fqn not in lost}, name=source.name)


@given(st.integers(1, 6), st.integers(1, 3), st.data())
def test_a_checkpoint_of_another_size_is_whole_or_names_what_it_lacks(layers: int, experts: int, data) -> None:  # type: ignore[no-untyped-def]
    """The oracle counts the layers and experts that are left, and makes the model of that size."""
    full = size(layers, experts, 4)
    lost = data.draw(st.sets(st.sampled_from(sorted(full)), max_size=5))
    left = without(full, *lost)
    if not is_another_size(left, KNOWN):
        return
    of_layers = [fqn.split(".") for fqn in left if fqn.startswith("h.")]
    last = max((int(each[1]) for each in of_layers), default=3)
    last_expert = max((int(each[3]) for each in of_layers if len(each) > 3), default=1)
    whole = set(size(last + 1, last_expert + 1, 4))
    found = set(lacking(left))
    assert found <= whole - set(left)
    assert bool(found) == bool(whole - set(left))


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (size(2, 2, 4), []),
        (size(9, 5, 4), []),
        (size(9, 2, 8), []),  # more layers alone are another size
        (size(2, 2, 8), [f"h.{i}.{x}" for i in (2, 3) for x in ("q", "e.0.w", "e.1.w")]),  # the same size: truncated
        (without(size(6, 2, 4), "h.3.q", "h.3.e.0.w", "h.3.e.1.w"), ["h.3.q", "h.3.e.0.w", "h.3.e.1.w"]),
        (without(size(6, 2, 4), "h.5.e.1.w"), ["h.5.e.1.w"]),
        (without(size(6, 2, 8), "h.5.q"), ["h.5.q"]),
        (without(size(2, 2, 4), "head"), ["head"]),
        (without(size(2, 2, 4), "up.1.b"), ["up.1.b"]),  # blocks that differ are no layers
    ],
    ids=["fewer", "more", "deeper", "truncated", "a hole", "an expert", "deeper, a key", "head", "blocks"],
)
def test_layers_are_whole(source: StateDictSpec, wanted: list[str]) -> None:
    assert sorted(lacking(source)) == sorted(wanted)


def test_a_far_layer_costs_no_more_than_the_keys_that_there_are() -> None:
    source = {**size(2, 2, 4), "h.999999999999.q": TensorSpec("F32", (4, 4))}
    layers = find_layers(source, KNOWN)
    assert {fqn.split(".")[1] for fqn in list_lacking(source, KNOWN, layers, MAX_LACKING)} == {
        "2",
        "3",
        "999999999999",
    }
    many = {f"h.{2 * i}.q": TensorSpec("F32", (4, 4)) for i in range(50)}
    many.update({f"h.0.e.{2 * i}.w": TensorSpec("F32", (4, 4)) for i in range(50)})
    assert len(list_lacking(many, KNOWN, find_layers(many, KNOWN), 77)) == 77


def test_the_note_says_the_layers(tmp_path: Path) -> None:
    """Nothing tells a truncated file from a small model but the number of layers, with or without a target."""
    import torch

    assert find_stacks(KNOWN) == {("h",): frozenset(range(4)), ("h", "*", "e"): frozenset(range(2))}
    (tmp_path / "s.json").write_text(
        str({fqn: {"dtype": "F32", "shape": list(spec.shape)} for fqn, spec in KNOWN.items()}).replace("'", '"'),
        "utf-8",
    )
    torch.save({fqn: torch.zeros(spec.shape) for fqn, spec in size(3, 2, 4).items()}, tmp_path / "small.pth")
    for target in ("", "target: {keys: s.json}\n"):
        text = f"remapkit: 1\nname: t\nsource: {{keys: s.json}}\n{target}keep: ['{{x:**}}']\n"
        (tmp_path / "t.yaml").write_text(text, "utf-8")
        written = remapkit.apply(tmp_path / "t.yaml", tmp_path / "small.pth", tmp_path / "o.safetensors", force=True)
        (note,) = [each for each in written.diagnostics if each.code == "RK361"]
        assert note.notes == ("h: 3 layers (0..2), declared are 4",)
        assert ("only names" in note.title) == bool(target)


@pytest.mark.parametrize("pack", ["llama_hf", "llama_meta", "llama3_ranks", "gpt2_hf"])
def test_a_small_model_of_a_pack_is_no_part(pack: str) -> None:
    from remapkit.sources.declared import read_declared_source

    rules = remapkit.load(pack)
    known = read_declared_source(rules.file)
    assert known is not None
    (stack,) = [each for each in find_stacks(known) if "*" not in each]
    kept = [
        fqn for fqn in known if (parts := fqn.split("."))[: len(stack)] != list(stack) or int(parts[len(stack)]) < 7
    ]
    small = {fqn: TensorSpec("BF16", tuple(max(n // 2, 1) for n in known[fqn].shape)) for fqn in kept}
    plan = rules.plan(StateDictSpec(small, name="small"))
    assert check_known_keys(rules, plan, known) == []
    del small[kept[len(kept) // 2]]
    assert check_known_keys(rules, rules.plan(StateDictSpec(small, name="small")), known)
