"""Learned from two or three layers, right for forty: any index, and counted ones where indices are bounded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_find_relations import make_sides, random
from torch import Tensor

import remapkit

Sides = tuple[dict[str, Tensor], dict[str, Tensor]]


def learn_from(sides: Sides, folder: Path) -> Path:
    for side, name in zip(sides, "ab", strict=True):
        save_file({fqn: tensor.contiguous().clone() for fqn, tensor in side.items()}, folder / f"{name}.safetensors")
    report = remapkit.learn(folder / "a.safetensors", folder / "b.safetensors", folder / "t.yaml", force=True)
    assert not report.learned.only_a and not report.learned.only_b, report.text
    return folder / "t.yaml"


def hold_against(pack: Path, sides: Sides) -> None:
    made = remapkit.load(pack)(sides[0])
    assert set(made) == set(sides[1])
    assert [fqn for fqn, tensor in made.items() if not torch.equal(tensor, sides[1][fqn])] == []


def last_flipped(n: int) -> Sides:
    a = {f"blocks.{i}.{leaf}": random(4, 3, seed=9 * i + k) for i in range(n) for k, leaf in enumerate("wqb")}
    b = {fqn.replace("blocks", "h"): tensor for fqn, tensor in a.items()}
    b[f"h.{n - 1}.w"] = a[f"blocks.{n - 1}.w"].flip(0)
    return a, b


def last_renamed(n: int) -> Sides:
    a = {f"net.layers.{i}.w": random(4, 3, seed=i) for i in range(n)}
    return a, {f"h.{i + 1}.{'last' if i == n - 1 else 'w'}": tensor for i, tensor in enumerate(a.values())}


def reversed_and_turned(n: int) -> Sides:
    a = {f"up.{i}.w": random(4, 3, seed=i) for i in range(n)}
    return a, {f"up_blocks.{n - 1 - i}.weight": tensor.T for i, tensor in enumerate(a.values())}


def shifted(n: int) -> Sides:
    a = {f"layers.{i}.{leaf}": random(4, 3, seed=2 * i + (leaf == "v")) for i in range(n) for leaf in "wv"}
    return a, {f"h.{int(fqn.split('.')[1]) + 3}.{fqn[-1]}": tensor for fqn, tensor in a.items()}


def first_differs(n: int) -> Sides:
    a = {f"layers.{i}.w": random(4, 3, seed=i) for i in range(n)}
    b = {f"h.{i}.w": tensor.T if i else tensor for i, tensor in enumerate(a.values())}
    return a, b


@pytest.mark.parametrize("make", [last_flipped, last_renamed, reversed_and_turned, shifted, first_differs])
def test_a_file_learned_from_three_layers_is_right_for_forty(make: Callable[[int], Sides], tmp_path: Path) -> None:
    pack = learn_from(make(3), tmp_path)
    for depth in (3, 4, 40):
        hold_against(pack, make(depth))


def test_of_two_layers_neither_is_the_exception(tmp_path: Path) -> None:
    text = learn_from(last_flipped(2), tmp_path).read_text()
    assert "params:" not in text and "'blocks.0.w'" in text and "'blocks.1.w'" in text


def test_a_hole_is_not_a_last_layer(tmp_path: Path) -> None:
    a, b = last_flipped(4)
    b["h.1.w"], b["h.3.w"] = a["blocks.1.w"].flip(0), a["blocks.3.w"]
    assert "params:" not in learn_from((a, b), tmp_path).read_text()


def test_an_index_that_can_be_read_in_two_ways_is_not_counted(tmp_path: Path) -> None:
    a = {f"l.{i}.w": random(4, 3, seed=i) for i in range(3)}
    b = {"h.0.w": a["l.0.w"], "h.1.w": a["l.1.w"], "h.2.2": a["l.2.w"].T}
    assert "params:" not in learn_from((a, b), tmp_path).read_text()


# ------------------------------------------------------------------------------------------------ required depths


def reversed_and_last(n: int) -> Sides:
    a = {f"up.{i}.w": random(4, 3, seed=i) for i in range(n)} | {
        f"l.{i}.ada": random(8, 4, seed=90 + i) for i in range(n)
    }
    b = {f"up_blocks.{n - 1 - i}.w": a[f"up.{i}.w"] for i in range(n)}
    b |= {f"x.{i}.ada": a[f"l.{i}.ada"] if i < n - 1 else a[f"l.{i}.ada"].roll(4, 0) for i in range(n)}
    return a, b


def reversed_but_last(n: int) -> Sides:
    a = {f"l.{i}.w": random(4, 3, seed=i) for i in range(n)}
    return a, {f"h.{n - 1 - i}.w" if i < n - 1 else "final.w": a[f"l.{i}.w"] for i in range(n)}


def named_last(n: int) -> Sides:
    a = {f"l.{i}.{leaf}": random(4, 3, seed=2 * i + (leaf == "v")) for i in range(n) for leaf in "wv"}
    return a, {fqn.replace(f"l.{n - 1}", "final").replace("l.", "h."): tensor for fqn, tensor in a.items()}


def named_in_steps(n: int) -> Sides:
    a = {f"s.{i}.mlp.{2 * j}.w": random(4, 3, seed=9 * i + j) for i in range(3) for j in range(n)}
    names = ("first", *(f"m{j}" for j in range(1, n - 1)), "out")
    return a, {f"t.{i}.{names[j]}.w": a[f"s.{i}.mlp.{2 * j}.w"] for i in range(3) for j in range(n)}


def folded_from_the_end(n: int) -> Sides:
    a = {f"layer_{i}.w": random(4, 3, seed=i) for i in range(2 * n)}
    return a, {f"h.{i // n}.{i % n}.w": a[f"layer_{i}.w"] for i in range(2 * n)}


def shuffled(n: int) -> Sides:
    a = {f"l.{i}.w": random(4, 3, seed=i) for i in range(n)}
    return a, {f"h.{(i * i + 5 * i + n) % 11}.w": tensor for i, tensor in enumerate(a.values())}


@pytest.mark.parametrize(
    "make",
    [shuffled, reversed_and_last, reversed_but_last, named_last, named_in_steps, folded_from_the_end, last_flipped],
)
def test_another_depth_is_right_or_refused(make: Callable[[int], Sides], tmp_path: Path) -> None:
    pack = learn_from(make(4), tmp_path)
    hold_against(pack, make(4))
    refused = 0
    for depth in (3, 5, 6):
        try:
            hold_against(pack, make(depth))
        except remapkit.FailedCheck as error:
            refused += 1
            assert "RK370" in str(error)
    assert refused in (0, 3) and bool(refused) == ("require:" in pack.read_text())


def test_of_two_layers_with_names_of_their_own_both_are_required(tmp_path: Path) -> None:
    pack = learn_from(named_last(2), tmp_path)
    hold_against(pack, named_last(2))
    for depth in (1, 3):
        with pytest.raises(remapkit.FailedCheck, match="RK370"):
            hold_against(pack, named_last(depth))


def below_many_numbers(n: int) -> Sides:
    """Two families, with the numbers of seven modules between their own and the one that is reversed."""
    keys = [(one, i) for one in range(2) for i in range(n)]
    a = {f"x.{one}.0.0.0.0.0.0.{i}.w": random(3, seed=9 * one + i) for one, i in keys}
    return a, {f"y.{one}.{n - 1 - i}.w": a[f"x.{one}.0.0.0.0.0.0.{i}.w"] for one, i in keys}


def beside_an_empty_segment(n: int) -> Sides:
    keys = [(one, i) for one in range(2) for i in range(n)]
    a = {f"a.{one}.{i}.w": random(3, seed=9 * one + i) for one, i in keys}
    b = {f"b.{one}.{n - 1 - i}.w": a[f"a.{one}.{i}.w"] for one, i in keys}
    return a | {"a..9.w": random(3, seed=77)}, b | {"c.w": random(3, seed=77)}


@pytest.mark.parametrize("make", [below_many_numbers, beside_an_empty_segment])
def test_only_the_counted_index_is_required(make: Callable[[int], Sides], tmp_path: Path) -> None:
    pack = learn_from(make(4), tmp_path)
    assert "by: i, is: 4}" in pack.read_text()
    hold_against(pack, make(4))
    with pytest.raises(remapkit.FailedCheck, match="RK370"):
        hold_against(pack, make(3))


def test_a_first_layer_that_differs_requires_nothing(tmp_path: Path) -> None:
    assert "require:" not in learn_from(first_differs(4), tmp_path).read_text()


FORMS: dict[str, Callable[[int], object]] = {
    "{i}": lambda i: i,
    "{i+1}": lambda i: i + 1,
    "{i%2}": lambda i: i % 2,
    "{i//2}": lambda i: i // 2,
    "{1-i%2}": lambda i: 1 - i % 2,
    "{i//2+3}": lambda i: i // 2 + 3,
    "{i*3}": lambda i: i * 3,
    "0": lambda i: 0,
    "m": lambda i: "m",
}


@given(st.lists(st.sampled_from(sorted(FORMS)), min_size=1, max_size=3), st.booleans())
def test_what_two_layers_do_not_tell_apart_is_required(forms: list[str], beside: bool) -> None:
    """Two layers fit several forms: for another depth the pack is right, or it refuses.

    Names say nothing twice, and what else lies in a module `h.{i}` is of layer i.
    """
    home = "h" if beside and forms[0] == "{i}" else "g"

    def make(n: int) -> Sides:
        a = {f"l.{i}.{leaf}": random(3, seed=2 * i + (leaf == "v")) for i in range(n) for leaf in "wv"}
        names = {i: ".".join(str(FORMS[form](i)) for form in forms) for i in range(n)}
        b = {f"h.{names[i]}.w": a[f"l.{i}.w"] for i in range(n)}
        return a, b | {f"{home}.{i}.v": a[f"l.{i}.v"] for i in range(n)}

    def tells_apart(used: list[str], n: int = 6) -> bool:
        return len({tuple(FORMS[form](i) for form in used) for i in range(n)}) == n

    numbers = [form for form in forms if form not in ("0", "m")]
    says_twice = any(tells_apart([*numbers[:at], *numbers[at + 1 :]]) for at in range(len(numbers)))
    if says_twice or not tells_apart(forms) or len(make(2)[1]) < 4 or len(make(6)[1]) < 12:
        return
    with tempfile.TemporaryDirectory() as folder:
        pack = learn_from(make(2), Path(folder))
        hold_against(pack, make(2))
        for depth in (1, 3, 6):
            try:
                hold_against(pack, make(depth))
            except remapkit.FailedCheck as error:
                assert "require:" in pack.read_text() and "RK370" in str(error)


@pytest.mark.parametrize("name", ["g.{}.w.0", "g.0.{}.w", "0.{}.w"])
def test_a_number_beside_the_index_is_required_for_two_layers_only(name: str, tmp_path: Path) -> None:
    for n in (2, 3):
        a = {f"l.{i}.w": random(3, seed=i) for i in range(n)}
        pack = learn_from((a, {name.format(i): tensor for i, tensor in enumerate(a.values())}), tmp_path)
        assert ("require:" in pack.read_text()) is (n == 2)


def test_another_rule_tells_that_the_number_is_none_of_the_index(tmp_path: Path) -> None:
    a = {f"l.{i}.{leaf}": random(3, seed=2 * i + (leaf == "v")) for i in range(2) for leaf in "wv"}
    b = {f"h.{fqn[2]}.{'to_out.0' if fqn[4] == 'w' else 'q'}": tensor for fqn, tensor in a.items()}
    assert "require:" not in learn_from((a, b), tmp_path).read_text()


# ------------------------------------------------------------------------------------------------ real layouts

REAL = ("llama_hf", "llama_meta", "gpt2_hf", "gpt2_nanogpt", "vit_hf", "vit_timm", "wan21_dit", "wan21_dit_diffusers")


def deepen(side: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return a side with as many layers, each with other values; the first number of a key is that of its layer."""
    found: dict[str, Tensor] = {}
    for fqn, tensor in side.items():
        words = fqn.split(".")
        place = next((place for place, word in enumerate(words) if word.isdigit()), None)
        is_layer = place is not None and words[place - 1] in ("layers", "h", "blocks")
        for n in range(depth) if is_layer else (None,):
            name = fqn if n is None else ".".join((*words[:place], str(n), *words[place + 1 :]))  # type: ignore[misc]
            found[name] = tensor if n is None else tensor + n
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_real_layout_of_two_layers_teaches_forty(name: str, tmp_path: Path) -> None:
    a, b = make_sides(name, lambda shape, n: random(*shape, seed=n))
    pack = learn_from((a, b), tmp_path)
    params = {"hidden": 256} if name.startswith("llama") else None
    deep = deepen(a, 40)
    assert len(deep) > 10 * len(a) or name == "wan21_dit"
    hold_against(pack, (deep, remapkit.load(name, params=params)(deep)))
