"""What values leave open among operations: settled by rules of other keys and said, or left open with the reason."""

from __future__ import annotations

import random as python_random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_find_relations import find, random, store
from test_learn_ops import judge
from torch import Tensor

import remapkit
from remapkit.authoring.find_relations import AMBIGUOUS, NOWHERE, SPENT
from remapkit.authoring.find_rounded import Operations, find_operations
from remapkit.authoring.find_siblings import BY_WEIGHT
from remapkit.authoring.pair_by_value import pair_by_value
from remapkit.authoring.relation import SIMPLEST, TIED, UNSETTLED
from remapkit.authoring.settle import By
from remapkit.cli.app import main

Side = dict[str, Tensor]


def search(a: Side, b: Side) -> Operations:
    one, other = store("a", a), store("b", b)
    return find_operations(one, other, pair_by_value(one, other))


def turned(shared: set[int], constant: set[int], n: int) -> tuple[Side, Side]:
    """Layers that B has transposed; some of A share one tensor, some are constants."""
    a = {f"l.{i}.w": random(4, 3, seed=i) for i in range(n)}
    for i in shared:
        a[f"l.{i}.w"] = random(4, 3, seed=99)
    for i in constant - shared:
        a[f"l.{i}.w"] = torch.zeros(4, 3)
    return a, {f"h.{fqn[2]}.w": tensor.T.contiguous() for fqn, tensor in a.items()}


@given(st.sets(st.integers(2, 6)), st.sets(st.integers(2, 6)))
def test_twins_and_constants_go_as_the_rules_of_other_keys_say(shared: set[int], constant: set[int]) -> None:
    found = search(*turned(shared, constant, 7))
    assert not found.reasons
    assert {each.sources: each.targets for each in found.relations} == {
        (f"l.{i}.w",): (f"h.{i}.w",) for i in range(7)
    }
    open_by_value = (constant - shared) | (shared if len(shared) > 1 else set())
    assert {int(each.targets[0][2]) for each in found.relations if each.by} == open_by_value
    assert {each.by for each in found.relations} <= {"", By.RULE.value}


@given(st.integers(2, 6), st.integers(0, 11))
def test_a_twin_with_other_values_is_not_settled(changed: int, place: int) -> None:
    a, b = turned({2, 3, 4, 5, 6}, set(), 7)
    flat = b[f"h.{changed}.w"].reshape(-1).clone()
    flat[place] += 1
    b[f"h.{changed}.w"] = flat.reshape(3, 4)
    found = search(a, b)
    assert f"h.{changed}.w" not in {fqn for each in found.relations for fqn in each.targets}
    assert found.reasons[f"h.{changed}.w"]


def test_it_is_said_what_settled_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, name in zip(turned({2, 3}, {4}, 5), "ab", strict=True):
        save_file(
            {fqn: tensor.contiguous().clone() for fqn, tensor in side.items()}, tmp_path / f"{name}.safetensors"
        )
    pack = tmp_path / "t.yaml"
    assert main(["learn", *(str(tmp_path / f"{name}.safetensors") for name in "ab"), "-o", str(pack)]) == 0
    shown = capsys.readouterr().err
    assert "3 keys of B cannot be decided by value; operations chosen because the rules learned" in shown
    assert "#   h.{2..4}.w  # 3" in pack.read_text() and "2 operation found by value, 3 because" in pack.read_text()


# ------------------------------------------------------------------------------------------------ reasons


def test_each_reason_is_given_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    k = random(3, 4)
    a = {f"l.{i}.{part}": k if part == "k" else random(3, 4, seed=i + 7) for i in range(2) for part in "qk"}
    b = {f"h.{i}": torch.cat([a[f"l.{i}.q"], k]) for i in range(2)}
    b["more"], b["zeros"] = random(7, 2, seed=50), torch.zeros(9)
    found = search(a, b)
    assert found.reasons == {
        "h.0": AMBIGUOUS,
        "h.1": AMBIGUOUS,
        "more": NOWHERE,
        "zeros": "undetermined: all of its elements are equal",
    }
    a["x"], b["x"] = random(5), random(5)
    a["y"] = b["y2"] = random(5, seed=3)
    for side, name in ((a, "a"), (b, "b")):
        save_file({fqn: tensor.clone() for fqn, tensor in side.items()}, tmp_path / f"{name}.safetensors")
    report = remapkit.learn(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for reason in found.reasons.values():
        assert any(note.startswith(f"{reason}:\n") for each in report.diagnostics for note in each.notes)
        assert f"# {reason[0].upper()}{reason[1:]}:\n" in report.text


def test_a_spent_budget_is_the_reason() -> None:
    a = {f"x.{n}": random(3, 4, seed=n) for n in range(20)}
    found = find(a, {f"y.{n}": tensor.T.contiguous() for n, tensor in enumerate(a.values())}, limit=10)
    assert found.open_b["y.19"] == SPENT


def test_runs_of_rows_and_orders_of_dimensions_cost_steps() -> None:
    order = list(range(64))
    python_random.Random(0).shuffle(order)
    parts = {f"p.{n}": random(1, 4, seed=n) for n in order}
    whole = {"w": torch.cat([parts[f"p.{n}"] for n in range(64)])}
    assert find(parts, whole).steps >= 64 and find(parts, whole, limit=60).open_b == {"w": SPENT}
    four = {"x": random(2, 3, 4, 5)}
    assert find(four, {"y": four["x"].permute(3, 1, 0, 2).contiguous()}).steps >= 24
    assert find(four, {"y": four["x"].permute(3, 1, 0, 2).contiguous()}, limit=20).open_b == {"y": SPENT}


# ------------------------------------------------------------------------------------------------ what no rule reads


def test_the_listed_drops_make_the_file_apply(tmp_path: Path) -> None:
    a = {f"l.{i}.{leaf}": random(4, seed=3 * i + n) for i in range(3) for n, leaf in enumerate(("w", "b|", "x"))}
    b = {f"h.{fqn[2]}.w": tensor for fqn, tensor in a.items() if fqn.endswith("w")}
    one, other, pack = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "t.yaml"
    for side, file in ((a, one), (b, other)):
        save_file({fqn: tensor.clone() for fqn, tensor in side.items()}, file)
    remapkit.learn(one, other, pack)
    assert main(["apply", str(pack), str(one), "-o", str(tmp_path / "out.safetensors")]) != 0
    text = pack.read_text()
    start = text.index("# drop:")
    dropped = "\n".join(line.removeprefix("# ") for line in text[start:].splitlines())
    pack.write_text(f"{text[:start]}{dropped}\n")
    assert main(["apply", str(pack), str(one), "-o", str(tmp_path / "out.safetensors")]) == 0
    assert set(load_file(tmp_path / "out.safetensors")) == set(b)


# ------------------------------------------------------------------------------------------------ captures


def fused(words: dict[str, str], odd: str = "") -> tuple[Side, Side]:
    a: Side = {}
    b: Side = {}
    for n in range(3):
        for number, (word, other) in enumerate(words.items()):
            q, k = (random(4, 3, seed=100 * n + 10 * number + part) for part in range(2))
            a[f"l.{n}.{word}{odd}.q"], a[f"l.{n}.{word}{odd}.k"] = q, k
            b[f"h.{n}.{other}.qk"] = torch.cat([q, k])
    return a, b


@pytest.mark.parametrize(
    ("sides", "written"),
    [
        (fused({"attn1": "self", "attn2": "cross"}), "{part:part}"),
        (fused({"a": "a (x)", "b": "b (x)"}, " (x)"), "where: {part:"),
        (fused({"a": "x", "b": "y"}, "|"), "tables"),
    ],
    ids=["table", "where", "odd table"],
)
def test_captures_of_a_concat_are_bounded_in_every_part(
    sides: tuple[Side, Side], written: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = ({fqn: tensor.numpy() for fqn, tensor in side.items()} for side in sides)
    report, made = judge(tmp_path, a, b)
    assert made == set(b) and written in report.text and report.text.count("- id:") == 1, report.text
    assert "RK305" not in caplog.text


def test_names_that_count_with_gaps_are_parts_of_a_concat_and_no_stack(tmp_path: Path) -> None:
    parts = {e: random(4, 3, seed=e) for e in (0, 1, 3)}
    a = {f"experts.{e}.w": tensor.numpy() for e, tensor in parts.items()} | {"x": random(5).numpy()}
    b = {"all": torch.stack(list(parts.values())).numpy(), "y": a["x"]}
    report, made = judge(tmp_path, a, b)
    assert made == {"all", "y"} and not report.learned.unsaid
    assert "stack:" not in report.text and "concat:" in report.text


def test_the_names_of_one_tensor_are_one_source_and_it_is_said(tmp_path: Path) -> None:
    embed = random(6, 4)
    turned = embed.T.contiguous()
    torch.save({"embed": embed, "head": embed, "x": random(3)}, tmp_path / "a.pth")
    torch.save({"tok": turned, "out": turned.clone(), "y": random(3)}, tmp_path / "b.pth")
    report = remapkit.learn(tmp_path / "a.pth", tmp_path / "b.pth")
    (relation,) = report.learned.relations
    assert (relation.sources, relation.targets, relation.by) == (("embed",), ("tok", "out"), TIED)
    assert report.learned.pairs == {"x": "y"} and report.learned.only_a == ("head",)
    assert any(each.code == "RK628" and each.title.endswith(TIED) for each in report.diagnostics)


def test_a_row_that_is_known_does_not_make_its_neighbours_certain() -> None:
    """Row 10 would go on after row 9, but its twin was taken: only a window of several rows would tell."""
    whole = random(256)
    whole[100] = whole[10]
    taken = torch.tensor([9, 100, 30, 77, 5, 140, 61, 200, 150, 33, 90, 3, 250, 120, 17, 44, 66, 88])
    found = search({"v": whole}, {"w": whole[taken].contiguous()})
    assert not found.relations and "w" in found.reasons
    # Where the rows follow one another, they do.
    (relation,) = search({"v": whole}, {"w": whole[3:30].contiguous()}).relations
    assert relation.sources == ("v",)


def test_twins_that_no_file_ties_stay_undetermined(tmp_path: Path) -> None:
    embed = random(6, 4)
    torch.save({"embed": embed, "head": embed.clone(), "x": random(3)}, tmp_path / "a.pth")
    torch.save({"tok": embed.T.contiguous(), "y": random(3)}, tmp_path / "b.pth")
    report = remapkit.learn(tmp_path / "a.pth", tmp_path / "b.pth")
    assert report.learned.pairs == {"x": "y"} and not report.learned.relations
    assert "embed and head have the same values" in report.text


def test_what_is_equal_is_reached_beside_what_is_calculated(tmp_path: Path) -> None:
    norm, w = random(8), random(4, 6, seed=1)
    a = {"n": norm.numpy(), "w": w.numpy(), "emb": random(3, 5, seed=2).numpy(), "s": random(9, seed=3).numpy()}
    b = {"n": a["n"], "m": a["n"] + 1, "t1": a["w"], "t2": a["w"], "t3": w.T.contiguous().numpy()}
    b |= {"e": a["emb"], "half": a["emb"].astype("float16"), "turned": a["emb"].T.astype("float16").copy()}
    b["m16"] = a["n"].astype("float16") + np.float16(1)
    assert (b["m16"] != (a["n"] + 1).astype("float16")).any()
    b |= {"s1": a["s"] - 1, "s2": a["s"] + 1, "s3": a["s"][2:5].copy()}
    report, made = judge(tmp_path, a, b)
    assert made == set(b) and not report.learned.settled
    assert not any(each.by for each in report.learned.relations)


def test_a_certain_pair_is_not_lost_to_a_join(tmp_path: Path) -> None:
    a = {"n": random(8).numpy(), "o": random(4, seed=1).numpy(), "w": random(3, 4, seed=2).numpy()}
    a["u"] = random(2, 4, seed=3).numpy()
    joined = torch.cat([torch.from_numpy(a["n"]), torch.from_numpy(a["o"])]).numpy()
    b = {"n": a["n"], "m": joined, "w1": a["w"], "w2": a["w"]}
    b["wu"] = torch.cat([torch.from_numpy(a["w"]), torch.from_numpy(a["u"])]).numpy()
    report, made = judge(tmp_path, a, b)
    assert made == {"n", "w1", "w2"}
    assert report.learned.reasons["m"].startswith("a source of it already becomes n")
    assert report.learned.reasons["wu"].startswith("a source of it already becomes w1")


def test_a_certain_pair_is_not_lost_to_what_its_weight_becomes() -> None:
    a = {"qkv.weight": random(6, 4), "qkv.bias": random(6, seed=1)}
    b = {f"{part}.{fqn[4:]}": each for fqn in a for part, each in zip("qkv", a[fqn].split(2), strict=True)}
    b["all"] = a["qkv.bias"]
    found = {each.sources: set(each.targets) for each in search(a, b).relations}
    assert found[("qkv.weight",)] == {"q.weight", "k.weight", "v.weight"}
    assert found[("qkv.bias",)] == {"all", "q.bias", "k.bias", "v.bias"}


@pytest.mark.parametrize(
    ("old", "new", "by"),
    [
        ([1, 2, 1, 2], [1, 1, 2, 2], SIMPLEST),
        ([0, 0, 1, 0], [0, 1, 0, 0], SIMPLEST),
        ([3, 1, 2, 5], [5, 2, 1, 3], ""),
    ],
)
def test_an_order_of_equal_elements_is_said_to_be_the_simplest(old: list[int], new: list[int], by: str) -> None:
    (relation,) = search({"x": torch.tensor(old)}, {"y": torch.tensor(new)}).relations
    assert relation.by == by


def test_the_simplest_order_is_printed_and_counts_for_less_than_other_keys(tmp_path: Path) -> None:
    order = [2, 0, 3, 1]
    a = {f"l.{n}.w": torch.tensor(some).float() for n, some in enumerate(([1, 2, 3, 4], [5, 1, 7, 2], [1, 2, 1, 2]))}
    b = {f"h.{fqn[2]}.w": tensor[order] for fqn, tensor in a.items()}
    found = {each.targets: each for each in search(a, b).relations}
    assert [found[(f"h.{n}.w",)].by for n in range(3)] == ["", "", By.RULE.value]
    assert all(each.ops == ({"index": {"dim": 0, "order": order}},) for each in found.values())
    report, made = judge(tmp_path, {"x": a["l.2.w"].numpy()}, {"y": np.array([1, 1, 2, 2], "f4")})
    assert made == {"y"} and f"chosen because {SIMPLEST}" in report.diagnostics[0].title


def test_a_list_of_indices_of_equal_elements_is_undetermined() -> None:
    rows = random(3, 4)
    whole = rows[[0, 1, 1, 2, 0]].contiguous()
    found = search({"x": whole, "z": random(2, 9)}, {"y": whole[[3, 1, 0, 4, 2]].contiguous()})
    assert not found.relations and found.reasons == {"y": f"undetermined: {UNSETTLED}"}
    found = search({"x": rows[[0, 1, 1, 2]].contiguous()}, {"y": rows[[0, 1, 2]].contiguous()})
    assert not found.relations and found.reasons == {"y": f"undetermined: {UNSETTLED}"}


@given(st.permutations("kov"), st.booleans())
def test_twins_and_constants_among_biases_are_said(parts: list[str], constant: bool) -> None:
    """A has two biases with equal values, one of which B joins: only the weights tell which."""
    a = {f"{part}.weight": random(3, 4, seed=n) for n, part in enumerate("qkvo")}
    a |= {f"{part}.bias": random(3, seed=9 + n) for n, part in enumerate("qkvo")}
    a[f"{parts[0]}.bias"] = a[f"{parts[1]}.bias"] = torch.zeros(3) if constant else random(3, seed=99)
    b = {f"qkv.{leaf}": torch.cat([a[f"{part}.{leaf}"] for part in "qkv"]) for leaf in ("weight", "bias")}
    found = {each.targets[0]: each for each in search(a, b).relations}
    assert found["qkv.weight"].by == "" and found["qkv.bias"].by == BY_WEIGHT
    assert found["qkv.bias"].sources == ("q.bias", "k.bias", "v.bias")


def test_rows_that_repeat_are_an_index() -> None:
    a = {"w": random(4, 6)}
    (relation,) = find(a, {"x": a["w"][[0, 0, 2, 3]].contiguous()}).relations
    assert relation.ops == ({"index": {"dim": 0, "order": [0, 0, 2, 3]}},)
