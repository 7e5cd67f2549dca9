"""`learn --through` on converters that look at values, dtypes, chance or the clock: named, and never frozen in rules.

Properties: whatever a converter decides by, a run that decides otherwise is found, or the line that reads is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.authoring.call_converter import Runner
from remapkit.authoring.find_doubts import KINDS
from remapkit.authoring.random_tensors import RandomTensors, view_bytes
from remapkit.authoring.through import Conversion, run_converter
from remapkit.formats.manifest import write_manifest
from remapkit.models.converter import Converter
from remapkit.tensors.spec import StateDictSpec, TensorSpec

State = dict[str, torch.Tensor]
HEADER = StateDictSpec({f"a.{n}.w": TensorSpec("F32", (6, 4)) for n in range(3)}, name="a.json")


def see(call: Callable[[State], object], header: StateDictSpec = HEADER) -> Conversion:
    return run_converter(Converter("mine.py:convert", call), header)


def rename_if(holds: Callable[[torch.Tensor], object]) -> Callable[[State], object]:
    return lambda sd: {("x." if holds(tensor) else "y.") + fqn: tensor for fqn, tensor in sd.items()}


@pytest.mark.parametrize(
    ("holds", "given"),
    [
        (lambda v: v.max() > 10, "very large and very small values"),
        (lambda v: v.isnan().any(), "infinities and NaN"),
        (lambda v: (v < 0).all(), "negative values"),
        (lambda v: (v > 0).all(), "positive values"),
        (lambda v: v.abs().sum() == 0, "zeros"),
        (lambda v: torch.allclose(v, v[0]), "zeros"),
        (lambda v: max(v.flatten().tolist()) > 50, "very large and very small values"),
        (lambda v: v.numpy().std() > 50, "very large and very small values"),
    ],
)
def test_names_that_follow_from_values(holds: Callable[[torch.Tensor], object], given: str) -> None:
    found = see(rename_if(holds))
    (doubt,) = [each for each in found.doubts if each.given == given]
    assert {fqn[:2] for fqn in doubt.targets} == {"x.", "y."}
    assert len(found.reads) == 1 and "test_doubts.py:" in found.reads[0]


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda v: v.clamp(-65504, 65504), "very large and very small values"),
        (lambda v: torch.nan_to_num(v), "infinities and NaN"),
        (lambda v: torch.where(v.min() >= 0, v.flip(0), v), "positive values"),
        (lambda v: torch.where(v.max() <= 0, v.flip(0), v), "negative values"),
        (lambda v: v.float(), "tensors of F16"),
    ],
)
def test_values_that_random_numbers_do_not_have(change: Callable[[torch.Tensor], torch.Tensor], given: str) -> None:
    found = see(lambda sd: {f"m.{fqn}": change(tensor) for fqn, tensor in sd.items()})
    assert found.pairing.pairs == {fqn: f"m.{fqn}" for fqn in HEADER} and not found.reads
    doubts = {each.given: each.targets for each in found.doubts}
    assert doubts[given] == tuple(f"m.{fqn}" for fqn in HEADER)


def test_a_relation_that_does_not_hold_for_other_values() -> None:
    found = see(lambda sd: {f"m.{fqn}": tensor.t().clamp(max=100) for fqn, tensor in sd.items()})
    assert len(found.relations) == 3
    assert found.doubts[0].given == "very large and very small values" and len(found.doubts[0].targets) == 3


def test_a_relation_on_sizes_that_the_small_run_does_not_have() -> None:
    header = StateDictSpec({"w": TensorSpec("F32", (64, 4))}, name="a.json")
    found = see(lambda sd: {"m": torch.cat([sd["w"][32:], sd["w"][:32]]).clamp(max=100)}, header)
    assert found.relations and [each.given for each in found.doubts][:1] == ["very large and very small values"]


def test_a_converter_that_drops_everything_and_one_that_refuses() -> None:
    assert {each.given for each in see(lambda sd: {k: v for k, v in sd.items() if v.any()}).doubts} == {"zeros"}

    def refuse(sd: State) -> State:
        if not all(tensor.isfinite().all() for tensor in sd.values()):
            raise ValueError("not finite")
        return sd

    found = see(refuse)
    assert found.doubts == () and len(found.reads) == 1


def test_a_dtype_decides() -> None:
    found = see(rename_if(lambda v: v.dtype == torch.float16))
    assert [each.given for each in found.doubts] == ["tensors of F16"] and not found.reads


def test_the_clock_is_seen() -> None:
    with pytest.raises(remapkit.UsageError, match="returns other keys"):
        see(lambda sd: {f"{int(time.time()) % 2}.{fqn}": tensor for fqn, tensor in sd.items()})
    before = time.time, time.time_ns
    found = see(lambda sd: {fqn: tensor * (1 + time.time_ns() % 86_401) for fqn, tensor in sd.items()})
    assert set(found.unstable) == set(HEADER) and (time.time, time.time_ns) == before


def test_chance_that_no_seed_controls() -> None:
    runs = []

    def convert(sd: State) -> State:
        runs.append(1)
        last = {"a.2.w": sd["a.2.w"].flip(0)} if len(runs) > 9 else {}
        return sd | last

    assert see(convert).doubts[-1].targets == ("a.2.w",)


def test_what_feeds_an_unstable_target_is_not_called_unused() -> None:
    found = see(lambda sd: sd | {"a.0.w": sd["a.0.w"] + torch.rand(1)})
    assert found.unstable == ("a.0.w",) and found.vanished == () and found.unclear == ("a.0.w",)


def test_what_only_renames_and_prints_is_not_doubted(capsys: pytest.CaptureFixture[str]) -> None:
    def convert(sd: State) -> State:
        for fqn, tensor in sd.items():
            print(fqn, tensor, f"{tensor.mean()}")
        return {f"m.{fqn}": tensor.t() for fqn, tensor in sd.items()}

    found = see(convert)
    assert (found.doubts, found.reads) == ((), ()) and "tensor(" in capsys.readouterr().err


def test_doubts_are_warnings(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def f(sd): return {('x' if v.max() > 9 else 'y') + k: v for k, v in sd.items()}"
    )
    write_manifest(HEADER, tmp_path / "a.json")
    found = remapkit.learn_through(f"{tmp_path}/mine.py:f", tmp_path / "a.json").diagnostics
    doubt, read = found[:2]
    assert doubt.title == "the converter does something else for other values or dtypes than the rules do"
    assert doubt.notes[0].startswith("very large and very small values: ya.0.w")
    assert read.title == "what the converter does may depend on values: its code reads them"
    assert "mine.py:1, in <dictcomp>" in read.notes[0] or "mine.py:1, in f" in read.notes[0]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["F64", "F32", "F16", "BF16", "I32", "BOOL", "F8_E4M3"]),
    st.sampled_from([*KINDS]),
    st.lists(st.integers(0, 3), max_size=3),
)
def test_kinds_of_values_follow_from_the_seed(dtype: str, kind: str, shape: list[int]) -> None:
    header = StateDictSpec({"a": TensorSpec(dtype, tuple(shape)), "b": TensorSpec(dtype, (40,))})
    one, again = (RandomTensors(header, 2, kind=kind) for _ in range(2))
    for fqn, spec in header.items():
        made = one.make(fqn)
        assert view_bytes(made) == view_bytes(again.make(fqn)) and made.shape == spec.shape
        assert made.dtype == RandomTensors(header).make(fqn).dtype
    b = one.make("b")
    if dtype in ("F64", "F32", "F16", "BF16"):
        holds = {
            "zero": (b == 0).all(),
            "positive": (b >= 0).all() and b.any(),
            "negative": (b <= 0).all() and b.any(),
            "wide": b.isfinite().all() and b.abs().max() > 50,
            "special": b.isnan().any() and b.isinf().any(),
        }
        assert holds[kind]


def test_progress_is_shown_before_each_run() -> None:
    seen: list[tuple[int, int]] = []
    run_converter(Converter("x", lambda sd: sd), HEADER, lambda *given: seen.append(given))
    assert seen[0] == (288, 4 * 288) and len(seen) >= 4 and all(done <= total for done, total in seen)
    assert seen == sorted(set(seen)) and [total for _, total in seen] == sorted(total for _, total in seen)


def test_reading_is_noticed_by_line_and_once() -> None:
    def convert(sd: State) -> State:
        for tensor in sd.values():
            bool(tensor.sum() > 0)
            float(tensor.sum())
        return sd

    runner = Runner(Converter("x", convert))
    for _ in range(2):
        runner.run(RandomTensors(HEADER))
    assert [place.rpartition(": ")[2] for place in runner.reads] == ["bool(tensor.sum() > 0)", "float(tensor.sum())"]
