"""`learn --through`: what a converter does becomes rules, and what it does wrong is said."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import remapkit
from remapkit.api import learn_through as api
from remapkit.authoring import through
from remapkit.authoring.random_tensors import view_bytes
from remapkit.formats.manifest import write_manifest
from remapkit.tensors.from_torch import TORCH_DTYPES

CODE = """
import logging, random, sys, warnings
import numpy, torch
from torch import nn

def merge(sd):
    return {k.replace("b.", "a."): v for k, v in sd.items()}
def in_place(sd):
    for k in list(sd):
        sd["m." + k] = sd.pop(k)
def scales_in_place(sd):
    for v in sd.values():
        v.mul_(2)
def both(sd):
    return {k: v for k, v in sd.items() if "b" not in k} | {"new": torch.ones(3)}, "more"
def breaks(sd):
    for key in sd:
        if "b" in key:
            raise ValueError("no")
def breaks_in_torch(sd):
    return nn.Linear(2, 3).load_state_dict(sd)
def exits(sd):
    sys.exit("away")
def reads(sd):
    return {"w": sd["model.missing"]}
def pops(sd, config=None):
    return {"w": sd.pop("gone")}
def chance(sd): return sd | {"r": torch.tensor(random.random())}
def torch_chance(sd): return sd | {"r": torch.randn(8)}
def numpy_chance(sd): return sd | {"r": torch.from_numpy(numpy.random.rand(8))}
CALLS = []
def toggles(sd):
    CALLS.append(1)
    a, b = sd["a"], sd["b"]
    return {"x": a, "y": b, "z": a if len(CALLS) == 1 else b}
def grows(sd):
    CALLS.append(1)
    return sd | {f"n{len(CALLS)}": torch.zeros(1)}
def by_values(sd):
    return {("up" if v.sum() > 0 else "down") + k: v for k, v in sd.items()}
def number(sd): return 3
def nothing(sd): return {}
def nested(sd): return {"state_dict": sd}
def names(sd): return {1: v for v in sd.values()}
def meta(sd): return {k: v.to("meta") for k, v in sd.items()}
def control(sd): return {k + chr(10): v for k, v in sd.items()}
def pairs(sd): return [("m." + k, v) for k, v in sd.items()]
def yields(sd):
    for k, v in sd.items():
        yield "m." + k, v
def yields_and_breaks(sd):
    yield "m.a", sd["a"]
    raise ValueError("half way")
def parameters(sd): return {k: nn.Parameter(v) for k, v in sd.items()} | {"step": 3, "tags": []}
def gradients(sd): return {k: nn.Parameter(v) * 1 for k, v in sd.items()}
def talks(sd):
    print("printed"); print("to stderr", file=sys.stderr)
    logging.getLogger("mine").warning("logged"); warnings.warn("warned")
    return sd
def nothing_alike(sd): return {k: v * 3 for k, v in sd.items()}
def is_same(sd): return sd
def makes(sd):
    return sd | {
        "zeros": torch.zeros(2, 3, dtype=torch.bfloat16), "ids": torch.arange(6).reshape(1, 6),
        "half": torch.full((3,), 0.1),
        "mask": torch.ones(4, 4).tril().bool(), "one": torch.ones(()), "eps": torch.tensor(1e-6, dtype=torch.float64),
        "minus": torch.full((2,), -7, dtype=torch.int32), "eye": torch.eye(3), "none": torch.zeros(0, 2),
        "nan": torch.full((2,), float("nan")), "inf": torch.full((2,), float("inf")), "{x} [y]": torch.zeros(1),
        "fp8": torch.ones(3).to(torch.float8_e4m3fn), "complex": torch.zeros(2, dtype=torch.complex64),
        "negative zero": torch.full((2,), -0.0),
    }
def makes_two(sd):
    return makes_what_a_rule_may_make(sd) | {"ids": torch.arange(4)}
def makes_what_a_rule_may_make(sd):
    return {k.replace("a.", "b."): v for k, v in sd.items()} | {"b.9.w": torch.zeros(2)}
def picks(sd): return {k: v for k, v in sd.items() if "flag" not in k} | {"flag": torch.ones((), dtype=torch.bool)}
def joins_over(sd):
    made = {}
    for k, v in sd.items():
        one, other = v.chunk(2)
        made[k[-1] + ".0"], made[k[-1] + ".1"] = one, other
    return made
def twice(sd): return {k + str(n): v for k, v in sd.items() for n in range(2)}
def wide(sd): return {k: v.t() if v.shape[0] > 50 else v for k, v in sd.items()}
def tail(sd): return {"a": sd["a"], "tail": sd["b"][48:].sum()}
def inverts(sd): return {k: ~v if v.dtype == torch.bool else v for k, v in sd.items()}
def halves_the_zeros(sd): return {k: v.half() if "0" in k else v for k, v in sd.items()}
def signs(sd): return {k: v for k, v in sd.items()} | {k + ".sign": (v.sum() > 0).float() for k, v in sd.items()}
def only_small(sd): return {k: v for k, v in sd.items() if "b" not in k or v.shape[0] > 50}
"""

Learn = Callable[..., remapkit.ThroughReport]


@pytest.fixture
def learn(tmp_path: Path) -> Learn:
    (tmp_path / "mine.py").write_text(CODE)

    def run(name: str, *keys: str, header: object = None, **args: object) -> remapkit.ThroughReport:
        spec = remapkit.TensorSpec("F32", (8,))
        write_manifest(remapkit.StateDictSpec(header or dict.fromkeys(keys, spec)), tmp_path / "a.json", force=True)  # type: ignore[arg-type]
        return remapkit.learn_through(f"{tmp_path}/mine.py:{name}", tmp_path / "a.json", **args)  # type: ignore[arg-type]

    return run


def fail(learn: Learn, name: str, *keys: str, **args: object) -> str:
    with pytest.raises(remapkit.UsageError) as raised:
        learn(name, *keys, **args)
    return str(raised.value)


def test_two_keys_to_one_target(learn: Learn) -> None:
    found = learn("merge", "a.w", "b.w", "c.w")
    assert found.collisions == {"a.w": ("a.w", "b.w")} and found.vanished == ()
    assert found.learned.pairs == {"b.w": "a.w", "c.w": "c.w"} and found.kept == ("c.w",)
    assert found.diagnostics[0].title == "the converter leads several keys to one target and loses 1 tensor"
    assert found.diagnostics[0].notes == ("a.w, b.w -> a.w",)


def test_a_part_of_a_key_that_is_overwritten(learn: Learn) -> None:
    found = learn("joins_over", "a.x", "b.x", "a.y")
    assert found.collisions == {"x.0": ("a.x", "b.x"), "x.1": ("a.x", "b.x")} and found.vanished == ()
    assert [each.sources for each in found.learned.relations] == [("b.x",), ("a.y",)]
    assert found.diagnostics[0].title.endswith("loses 1 tensor")


def test_a_dict_changed_in_place_and_a_tuple(learn: Learn) -> None:
    assert learn("in_place", "a", "b").learned.pairs == {"a": "m.a", "b": "m.b"}
    found = learn("both", "a", "b")
    assert found.vanished == ("b",) and found.constant == ("new",) and found.unstable == ()


def test_tensors_changed_in_place_are_seen(learn: Learn) -> None:
    """Each run gets tensors of its own: the doubled values must not be taken for those of A."""
    assert "RK680" in fail(learn, "scales_in_place", "a", "b")


@pytest.mark.parametrize("name", ["pairs", "yields"])
def test_pairs_instead_of_a_dict(learn: Learn, name: str) -> None:
    assert learn(name, "a", "b").learned.pairs == {"a": "m.a", "b": "m.b"}


def test_parameters_and_what_is_no_tensor(learn: Learn) -> None:
    found = learn("parameters", "a", "b")
    assert found.learned.pairs == {"a": "a", "b": "b"}
    assert [(each.title, each.notes) for each in found.diagnostics][-1] == (
        "not tensors, ignored: 2 keys",
        ("step\ntags",),
    )
    assert learn("gradients", "a").learned.pairs == {"a": "a"}


@pytest.mark.parametrize("name", ["chance", "torch_chance", "numpy_chance"])
def test_chance_is_said_and_ours_is_not_changed(learn: Learn, name: str) -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    wanted = (float(torch.rand(1)), random.random(), np.random.rand())
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    found = learn(name, "a")
    assert found.unstable == ("r",) and found.constant == () and found.learned.pairs == {"a": "a"}
    assert (float(torch.rand(1)), random.random(), np.random.rand()) == wanted


def test_a_target_that_comes_from_another_key_each_time_has_no_rule(learn: Learn) -> None:
    found = learn("toggles", "a", "b")
    assert found.unstable == ("z",) and found.learned.pairs == {"a": "x", "b": "y"}
    assert "z" in found.learned.only_b and not found.learned.relations


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("breaks", ["RK669", "failed at the key b", "ValueError: no", "in breaks: raise ValueError"]),
        ("breaks_in_torch", ["RK669", "in breaks_in_torch: return nn.Linear"]),
        ("exits", ["RK669", "SystemExit: away"]),
        ("yields_and_breaks", ["RK669", "ValueError: half way", "in yields_and_breaks"]),
        (
            "reads",
            ["RK669", "failed: it reads the key model.missing, which a.json does not have", "in reads: return"],
        ),
        ("pops", ["RK669", "it reads the key gone", "pass it with arg="]),
        ("number", ["RK671", "returned an int, not a state dict"]),
        ("nothing", ["RK671", "returned an empty dict"]),
        ("nested", ["RK671", "a dict without tensors", "return the dict under 'state_dict'"]),
        ("names", ["RK671", "under the key 1, which is not text"]),
        ("meta", ["RK671", "no plain tensor of values for a"]),
        ("control", ["RK671", "holds the control character U+000A"]),
        ("grows", ["RK671", "returns other keys when it runs again on other values"]),
        ("by_values", ["RK671", "returns other keys when it runs again on other values"]),
        ("nothing_alike", ["RK680", "no rule does what the converter does"]),
    ],
)
def test_what_cannot_be_learned(learn: Learn, name: str, words: list[str]) -> None:
    text = fail(learn, name, "a", "b", "c.d", "e.f")
    assert [word for word in words if word not in text] == [], text


@pytest.mark.filterwarnings("ignore:warned")
def test_it_talks_once(learn: Learn, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    found = learn("talks", "a", "b")
    assert found.learned.pairs == {"a": "a", "b": "b"}
    out, err = capfd.readouterr()
    assert out == "" and err.count("printed") == 1 and err.count("to stderr") == 1
    assert [each.message for each in caplog.records if each.name == "mine"] == ["logged"]
    assert logging.root.manager.disable == 0


# ------------------------------------------------------------------------------------------------ dtypes and shapes


def test_what_comes_from_no_key_is_added(learn: Learn, tmp_path: Path) -> None:
    found = learn("makes", "layers.0.w", "layers.1.w", output=tmp_path / "out.yaml")
    made = {"layers.0.w": torch.rand(8), "layers.1.w": torch.rand(8)}
    space: dict[str, Callable[..., dict[str, torch.Tensor]]] = {}
    exec(CODE, space)  # type: ignore[arg-type]
    wanted = space["makes"](dict(made))
    assert set(found.constant) == wanted.keys() - made.keys()
    assert set(found.constant) - set(found.added) == {"eye", "nan", "inf", "fp8", "complex"}
    got = remapkit.load(tmp_path / "out.yaml")(made)
    assert set(got) == {*made, *found.added}
    for fqn, tensor in got.items():
        assert (tensor.dtype, tensor.shape) == (wanted[fqn].dtype, wanted[fqn].shape)
        assert bytes(view_bytes(tensor)) == bytes(view_bytes(wanted[fqn])), fqn
    assert remapkit.test(tmp_path / "out.yaml").ok


def test_what_a_rule_might_make_is_not_added(learn: Learn) -> None:
    """With `add: b.9.w` a source with a layer 9 would have two tensors for one target: the proof must hold."""
    found = learn("makes_what_a_rule_may_make", *(f"a.{n}.w" for n in range(3)))
    assert len(found.learned.pairs) == 3 and found.constant == ("b.9.w",)
    assert remapkit.loads(found.text).prove().level.name == "ALL"
    assert found.added == () and "add:" not in found.text
    both = learn("makes_two", *(f"a.{n}.w" for n in range(3)))
    assert both.added == ("ids",) and both.constant == ("b.9.w", "ids")


@pytest.mark.parametrize("dtype", list(TORCH_DTYPES))
def test_every_dtype(learn: Learn, dtype: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {"e.0.w": (6, 4), "e.1.w": (6, 4), "e.2.w": (0, 3), "one.w": (1,), "sc": ()}
    header = {fqn: remapkit.TensorSpec(dtype, shape) for fqn, shape in shapes.items()}
    found = learn("in_place", header=header)
    assert found.learned.pairs == {fqn: f"m.{fqn}" for fqn in header}
    assert (found.vanished, found.constant, found.unstable, found.collisions) == ((), (), (), {})


def test_an_empty_tensor_that_nothing_tells_from_another_is_named(learn: Learn) -> None:
    empty = remapkit.TensorSpec("F32", (0, 2))
    found = learn("in_place", header={"a.w": remapkit.TensorSpec("F32", (4,)), "x": empty, "y.z": empty})
    assert found.learned.pairs == {"a.w": "m.a.w"} and set(found.learned.undecided) == {"x", "y.z"}
    alone = learn("in_place", header={"a.w": remapkit.TensorSpec("F32", (4,)), "x": empty})
    assert alone.learned.pairs == {"a.w": "m.a.w"} and alone.learned.undecided == {"x": ("m.x",)}
    titles = [each.title for each in found.diagnostics]
    assert "2 keys undetermined: too small for values of their own" in titles
    assert "no rule produces 2 targets whose values the source has" in titles


@pytest.mark.parametrize("dtype", ["F64", "BF16", "I64", "F8_E4M3"])
def test_operations_on_other_dtypes(learn: Learn, dtype: str) -> None:
    header = {f"layers.{n}.x": remapkit.TensorSpec(dtype, (32, 16)) for n in range(2)}
    found = learn("joins_over", header={"a.y": header["layers.0.x"], "b.z": header["layers.1.x"]})
    assert [each.targets for each in found.learned.relations] == [("y.0", "y.1"), ("z.0", "z.1")]


def test_single_bits_are_told_apart(learn: Learn) -> None:
    """One of two runs may have the converter's own constant in a flag of A: more runs tell."""
    flag = remapkit.TensorSpec("BOOL", ())
    for number in range(4):
        header = {f"w{number}": remapkit.TensorSpec("F32", (4,)), "flag": flag, f"other{number}": flag}
        found = learn("picks", header=header)
        assert found.constant == ("flag",) and "flag" not in found.learned.pairs and found.vanished == ("flag",)
        assert found.learned.pairs == {f"w{number}": f"w{number}", f"other{number}": f"other{number}"}


def test_what_follows_from_a_single_bit_is_not_constant(learn: Learn) -> None:
    """The sign of a sum, a float, is the same in half of all pairs of runs."""
    found = learn("signs", *(f"w{number}" for number in range(6)))
    assert found.constant == () and found.learned.only_b == tuple(f"w{number}.sign" for number in range(6))


def test_a_key_that_no_rule_takes_still_counts(learn: Learn) -> None:
    """`require:` counts what a checkpoint has, with the keys that the written rules leave to the user."""
    header = {f"one.{number}": remapkit.TensorSpec("F32", ()) for number in range(3)}
    header |= {f"layers.0.{part}.weight": remapkit.TensorSpec("F32", (6, 4)) for part in "qk"}
    found = learn("halves_the_zeros", header=header)
    assert found.learned.only_a == ("one.0",) and "count: 'one.{i:int}', is: 3" in found.text


def test_a_flag_that_is_used_is_not_called_unused(learn: Learn) -> None:
    for number in range(6):
        header = {"w": remapkit.TensorSpec("F32", (4,)), f"flag{number}": remapkit.TensorSpec("BOOL", ())}
        found = learn("inverts", header=header)
        assert found.vanished == () and found.learned.only_a == (f"flag{number}",)


def test_a_key_under_two_names(learn: Learn) -> None:
    found = learn("twice", "a", "b")
    assert {each.sources: set(each.targets) for each in found.learned.relations} == {
        ("a",): {"a0", "a1"},
        ("b",): {"b0", "b1"},
    }


def test_the_real_sizes_decide(learn: Learn) -> None:
    """Further runs are made on small tensors; what depends on the size must be learned from the large ones."""
    header = {"a.w": remapkit.TensorSpec("F32", (64, 8)), "b.w": remapkit.TensorSpec("F32", (64, 16))}
    found = learn("wide", header=header)
    assert {each.sources[0]: each.ops for each in found.learned.relations} == {
        "a.w": ("transpose",),
        "b.w": ("transpose",),
    }
    tail = {"a": remapkit.TensorSpec("F32", (8,)), "b": remapkit.TensorSpec("F32", (64,))}
    assert learn("tail", header=tail).vanished == ()
    found = learn("only_small", header={**header, "b.x": remapkit.TensorSpec("F32", (4, 4))})
    assert found.learned.pairs == {"a.w": "a.w", "b.w": "b.w"} and found.vanished == ("b.x",)


def test_a_source_that_torch_cannot_hold_or_memory(learn: Learn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "RK608" in fail(learn, "is_same", header={"a": remapkit.TensorSpec("F4", (2,))})
    monkeypatch.setattr(through, "MAX_BYTES", 64)
    assert learn("is_same", "a", "b").learned.pairs == {"a": "a", "b": "b"}
    text = fail(learn, "is_same", "a", "b", "c")
    assert "RK673" in text and "fewer layers" in text
    huge = {"a": remapkit.TensorSpec("F32", (1 << 20, 1 << 20))}
    monkeypatch.undo()
    assert "RK673" in fail(learn, "is_same", header=huge)


def test_a_budget_that_is_spent_is_said(learn: Learn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(through, "MAX_SEARCH", 0)
    monkeypatch.setattr(through, "LEAST_SEARCH", 0)
    found = learn("both", "a", "b")
    assert found.vanished == () and found.learned.only_a == ("b",)
    assert "whether the converter uses 1 key was not found out" in [each.title for each in found.diagnostics]


def test_rules_that_make_other_bytes_are_not_returned(learn: Learn, monkeypatch: pytest.MonkeyPatch) -> None:
    real = api.authoring.learn

    text = "remapkit: 1\nname: t\nrules:\n  - {id: a, path: a, to: m.b}\n  - {id: b, path: b, to: m.a}\n"
    monkeypatch.setattr(api.authoring, "learn", lambda *args: replace(real(*args), text=text))
    said = fail(learn, "in_place", "a", "b")
    assert "RK681" in said and "m.a" in said and "m.b" in said
