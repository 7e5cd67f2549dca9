"""Each operation alone: what it infers, what it makes in memory and in stripes, and what undoes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from remapkit.compute import cast as numpy_casts
from remapkit.compute import torch_eager as eager
from remapkit.compute.lazy import Leaf, build_tree
from remapkit.compute.stream import make_stripes
from remapkit.ops import attention, base, join
from remapkit.ops import shape as kinds
from remapkit.ops.byte_ranges import find_byte_ranges
from remapkit.ops.calls import OPERATIONS, Call
from remapkit.tensors.elements import choose_word
from remapkit.tensors.from_torch import TORCH_DTYPES
from tests.ops.cases import CALCULATIONS, EVERY, LAYOUTS, Case, call_of, raw, same, spec_of

every = pytest.mark.parametrize("name", EVERY)


def leaf(tensor: torch.Tensor) -> Leaf:
    """A tensor as a source in memory."""
    spec = spec_of(tensor)
    return Leaf(spec, np.frombuffer(raw(tensor), choose_word(spec.dtype)).reshape(spec.shape))


def streamed(op: base.Op, tensor: torch.Tensor, stripe: int) -> torch.Tensor:
    data = b"".join(bytes(piece) for piece in make_stripes(build_tree((op,), [leaf(tensor)]), stripe))
    spec = op.infer(spec_of(tensor))
    made = torch.frombuffer(bytearray(data), dtype=TORCH_DTYPES[spec.dtype]) if data else torch.empty(0)
    return made.to(TORCH_DTYPES[spec.dtype]).reshape(spec.shape)


def checked(case: Case, stripe: int) -> None:
    """Every face of one operation on one tensor."""
    op = case.call.op(case.params)
    assert op.infer(case.spec) == spec_of(case.expected)
    assert same(eager.chain_ops((op,), case.tensor), case.expected)
    assert same(streamed(op, case.tensor, stripe), case.expected)
    ranges = find_byte_ranges((op,), [case.spec])
    if ranges is not None:
        data = raw(case.tensor)
        assert b"".join(data[r.offset : r.offset + r.length] for r in ranges) == raw(case.expected)


@every
@settings(max_examples=60)
@given(st.data())
def test_an_operation_does_what_torch_says(name: str, data: st.DataObject) -> None:
    checked(data.draw(EVERY[name]), data.draw(st.sampled_from((8, 64, 1 << 20))))


@every
@settings(max_examples=40)
@given(st.data())
def test_the_inverse_undoes_it(name: str, data: st.DataObject) -> None:
    case = data.draw(EVERY[name])
    back = case.call.inverse
    if isinstance(back, str):
        return
    made = eager.chain_ops((case.call.op(case.params),), case.tensor)
    again = eager.chain_ops((back.op(case.params),), made)
    if case.call.name == "scale":
        fits = (made.abs() > torch.finfo(made.dtype).tiny) & made.isfinite()
        assert same(again[fits], case.tensor[fits])
    else:
        assert same(again, case.tensor)
    twice = back.inverse
    if case.call.name == "cast" and isinstance(twice, str):
        return  # back to the narrow dtype is exact only for what came from there, which a rule cannot know
    assert isinstance(twice, Call)
    assert same(eager.chain_ops((twice.op(case.params),), case.tensor), made)


@every
@settings(max_examples=30)
@given(st.data())
def test_what_is_written_is_read_again(name: str, data: st.DataObject) -> None:
    case = data.draw(EVERY[name])
    assert call_of(case.call.to_plain(), tuple(case.params)) == case.call


def test_every_operation_has_a_case() -> None:
    cases = st.one_of(*EVERY.values())
    for name in OPERATIONS:
        quick = settings(max_examples=5000, phases=[Phase.generate])
        found = find(cases, lambda case, name=name: case.call.name == name, settings=quick)
        assert found.call.name == name


# --------------------------------------------------------------------------------------------- planted faults


@contextmanager
def planted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, fault: Callable[..., Any]) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fault)
        yield


def killed(name: str) -> bool:
    """Whether the property of this operation fails now, on the same cases each time."""

    @settings(max_examples=200, database=None, derandomize=True)
    @given(EVERY[name], st.sampled_from((8, 64)))
    def run(case: Case, stripe: int) -> None:
        checked(case, stripe)

    try:
        run()
    except BaseException:
        return True
    return False


def _no_steps(self: base.Op, spec: Any) -> tuple[Any, ...]:
    return ()


def _skips_squares(self: kinds.Transpose, spec: Any) -> tuple[Any, ...]:
    square = len(spec.shape) == 2 and spec.shape[0] == spec.shape[1]
    return () if square else _TRANSPOSE(self, spec)


def _whole_rope(self: attention.Rope, spec: Any) -> tuple[Any, ...]:
    one = attention.Rope(self.to, 1, self.heads * self.head_dim, self.dim)
    return _ROPE(one, spec)


def _truncates(values: Any, dtype: str) -> Any:
    if dtype != "BF16":
        return _RAW(values, dtype)
    return (np.ascontiguousarray(values).astype("<f4").view("<u4") >> 16).astype("<u2")


_TRANSPOSE, _ROPE, _RAW = kinds.Transpose.steps, attention.Rope.steps, numpy_casts.encode_elements


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "fault"),
    [
        ("transpose", kinds.Transpose, "steps", _skips_squares),
        ("flip_halves", attention.FlipHalves, "steps", _no_steps),
        ("rope", attention.Rope, "steps", _whole_rope),
        ("rope", attention.Rope, "steps", _no_steps),
        ("qkv", attention.UngroupQkv, "steps", _no_steps),
        ("cast", numpy_casts, "encode_elements", _truncates),
        ("sums", numpy_casts, "encode_elements", _truncates),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_planted_fault_is_found(
    name: str, owner: Any, attribute: str, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with planted(monkeypatch, owner, attribute, fault):
        assert killed(name)
    assert not killed(name)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("written", "shape", "dtype", "title"),
    [
        ("transpose", (2, 3, 4), "F32", "transpose without dimensions needs a matrix, got 3 dimensions, [2, 3, 4]"),
        ({"transpose": [0, 2]}, (2, 3), "F32", "there is no dimension 2 in a tensor of 2 dimensions, [2, 3]"),
        ({"permute": [1, 0]}, (2, 3, 4), "F32", "permute lists 2 dimensions, but the tensor has 3, [2, 3, 4]"),
        ({"reshape": [4, 2]}, (3, 3), "F32", "cannot reshape [3, 3] (9 elements) to [4, 2] (8 elements)"),
        ({"reshape": {"from": [9], "to": [3, 3]}}, (3, 3), "F32", "reshape expects [9], but the tensor is [3, 3]"),
        ({"squeeze": 1}, (1, 3), "F32", "cannot squeeze dimension 1: it has 3 elements, [1, 3]"),
        ({"slice": {"stop": 9}}, (8, 2), "F32", "slice 0 to 9 does not fit 8 rows, [8, 2]"),
        ({"slice": {"start": 9}}, (8, 2), "F32", "slice 9 to 8 does not fit 8 rows, [8, 2]"),
        ({"pad": {"to": 4}}, (8, 2), "F32", "cannot pad to 4: there are already 8 rows, [8, 2]"),
        ({"pad": {"to": 9, "value": 0.5}}, (8, 2), "I32", "0.5 is not a value of I32"),
        ("flip_halves", (7, 2), "F32", "flip_halves needs an even size, got 7 rows, [7, 2]"),
        (
            {"rope": {"to": "half", "heads": 32, "head_dim": 128}},
            (5120, 8),
            "F32",
            "32 heads of 128 make 4096, but there are 5120 rows, [5120, 8]",
        ),
        ({"index": {"order": [4]}}, (4, 2), "F32", "index has 4, but there are 4 rows, [4, 2]"),
        ({"index": {"order": [2, 1, 0]}}, (4, 2), "F32", "index orders 3, but there are 4 rows, [4, 2]"),
        ({"roll": {"dim": 1, "by": 1}}, (4,), "F32", "there is no dimension 1 in a tensor of 1 dimension, [4]"),
        (
            {"rearrange": {"pattern": "(h two d) c -> (two h d) c", "two": 2, "h": 5}},
            (84, 28),
            "F32",
            "rearrange: 84 rows cannot be divided by h=5 x two=2 to give d in (h two d), [84, 28]",
        ),
        (
            {"rearrange": {"pattern": "(h d) c -> h d c", "h": 5, "d": 2}},
            (84, 28),
            "F32",
            "rearrange: h=5 x d=2 = 10 does not fit 84 rows, [84, 28]",
        ),
        (
            {"rearrange": {"pattern": "a b -> b a", "b": 3}},
            (2, 4),
            "F32",
            "rearrange: b=3 does not fit 4 columns, [2, 4]",
        ),
        ({"rearrange": "a 1 -> a"}, (2, 4), "F32", "rearrange: 1 does not fit 4 columns, [2, 4]"),
        (
            {"rearrange": "a (b) -> b a"},
            (2, 4, 1),
            "F32",
            "rearrange from 'a b' needs 2 dimensions, but the tensor has 3 dimensions, [2, 4, 1]",
        ),
        (
            {"rearrange": "a b ... -> b a ..."},
            (2,),
            "F32",
            "rearrange from 'a b ...' needs at least 2 dimensions, but the tensor has 1 dimension, [2]",
        ),
        ({"cast": "I32"}, (2,), "F32", "cannot cast F32 to I32: values would be lost"),
        ({"cast": "I32"}, (2,), "I64", "cannot cast I64 to I32: values would be lost"),
        ({"cast": {"from": "BF16", "to": "F32"}}, (2,), "F16", "cast expects BF16, but the tensor is F16"),
        ({"scale": 2}, (2,), "I32", "scale needs F16, BF16, F32 or F64, got I32"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(
    written: Any, shape: tuple[int, ...], dtype: str, title: str
) -> None:
    from remapkit.tensors.spec import TensorSpec

    with pytest.raises(base.RefusedOp) as caught:
        call_of(written).op({}).infer(TensorSpec(dtype, shape))
    assert caught.value.title == title


@pytest.mark.parametrize("stop", [0, 2, 3])
def test_a_slice_to_nothing_by_a_param_is_refused(stop: int) -> None:
    from remapkit.tensors.spec import TensorSpec

    call = call_of({"slice": {"start": 3, "stop": "n"}}, ("n",))
    with pytest.raises(base.RefusedOp, match=f"slice 3 to {stop} does not fit 8 rows"):
        call.op({"n": stop}).infer(TensorSpec("F32", (8, 2)))
    assert call.op({"n": 4}).infer(TensorSpec("F32", (8, 2))) == TensorSpec("F32", (1, 2))


def test_parts_must_add_up() -> None:
    from remapkit.tensors.spec import TensorSpec

    spec = TensorSpec("F32", (85, 4))
    with pytest.raises(base.RefusedOp, match="cannot split 85 rows into 3 equal parts"):
        join.SplitPart(0, 0, 3).infer(spec)
    with pytest.raises(base.RefusedOp, match=r"cannot split 85 rows into 40 \+ 44 = 84"):
        join.SplitPart(0, 0, 2, (40, 44)).infer(spec)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({"pad": {"to": 4}}, "how many elements there were"),
        ({"slice": {"stop": 4}}, "slice drops elements"),
        ({"index": {"order": [1, 3]}}, "index [1, 3] leaves elements out or repeats them"),
        ({"index": {"order": [1, 0, 0]}}, "leaves elements out or repeats them"),
        ({"rearrange": "h d c -> (h d) c"}, "rearrange joins 'h' and 'd' without their sizes"),
        ({"cast": "BF16"}, "does not say from which dtype"),
        ({"cast": {"from": "F32", "to": "BF16"}}, "rounds"),
        ({"scale": 3}, "only powers of two"),
        ({"add": 1}, "rounds"),
        ({"reshape": [2, -1]}, "which shape it came from"),
    ],
)
def test_what_cannot_be_undone_says_why(written: Any, reason: str) -> None:
    back = call_of(written).inverse
    assert isinstance(back, str) and reason in back


def test_a_stack_of_which_one_tensor_has_too_many_ranges_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranges of the others would be taken for those of the whole."""
    from remapkit.ops import byte_ranges
    from remapkit.tensors.spec import TensorSpec

    branch = (kinds.Slice(1, 0, 2), kinds.ReshapeOp((2, 4)))
    specs = [TensorSpec("F32", (4, 2))] * 2 + [TensorSpec("F32", (4, 3))] * 2
    joined = (join.Join((branch, branch), 1, 0),)
    ranges = find_byte_ranges(joined, specs)
    assert ranges is not None and sum(each.length for each in ranges) == join.infer_move(joined, specs, "abcd").nbytes
    monkeypatch.setattr(byte_ranges, "MOST", 6)
    assert find_byte_ranges(joined, specs) is None


assert set(LAYOUTS) | set(CALCULATIONS) == set(EVERY)
