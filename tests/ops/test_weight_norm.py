"""`fold_weight_norm`: every way to run it against torch's own weight_norm, and what is refused."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import remapkit
from remapkit.cli.app import main
from remapkit.compute.lazy import FileRange, build_tree
from remapkit.compute.stream import make_stripes
from remapkit.compute.torch_eager import run_ops
from remapkit.diagnostics.errors import FailedCheck, InvalidRules
from remapkit.ops.byte_ranges import find_byte_ranges
from remapkit.ops.combine import Combine
from remapkit.ops.join import Join, infer_move, needs_values
from remapkit.ops.shape import Slice, Transpose
from remapkit.tensors.from_torch import TORCH_DTYPES
from remapkit.tensors.spec import TensorSpec
from tests.ops.cases import same, spec_of
from tests.ops.test_combine import leaf

HEAD = "remapkit: 1\nname: t\nrules:\n"


def fold(dim: int | None) -> tuple[Join]:
    return (Join(((), ()), None, None, combine=Combine("fold_weight_norm", dim=dim)),)


def streamed(ops: tuple[Any, ...], tensors: list[torch.Tensor], stripe: int) -> torch.Tensor:
    spec = infer_move(ops, [spec_of(each) for each in tensors], ("v", "g"))
    data = b"".join(bytes(piece) for piece in make_stripes(build_tree(ops, [leaf(each) for each in tensors]), stripe))
    return torch.frombuffer(bytearray(data), dtype=TORCH_DTYPES[spec.dtype]).reshape(spec.shape)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    st.sampled_from(("F32", "F16", "BF16", "F64")),
    st.sampled_from(("F32", "F16", "BF16", "F64")),
    st.integers(0, 1 << 20),
    st.sampled_from((8, 64, 1 << 20)),
    st.data(),
)
def test_it_is_what_torch_computes_in_double_precision_rounded_once(
    shape: tuple[int, ...], dtype: str, other: str, seed: int, stripe: int, data: st.DataObject
) -> None:
    """A unit in the last place for the factor in single precision; in 16 bits, at most the other side of a tie."""
    dim = data.draw(st.sampled_from((None, *range(len(shape)))))
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(shape, generator=generator).to(TORCH_DTYPES[dtype])
    g_shape = [size if d == dim else 1 for d, size in enumerate(shape)]
    g = torch.randn(g_shape, generator=generator).to(TORCH_DTYPES[other])
    given_g = g.reshape(()) if dim is None and data.draw(st.booleans()) else g
    exact = torch._weight_norm(v.double(), g.double(), -1 if dim is None else dim)
    made = run_ops(fold(dim), [v, given_g])
    assert made.dtype == v.dtype and made.shape == v.shape
    if v.dtype == torch.float64:  # sums in another order
        assert torch.allclose(made, exact, rtol=1e-13, atol=0, equal_nan=True)
    else:
        low = high = exact.to(v.dtype)
        for _ in range(2 if v.dtype == torch.float32 else 1):
            low, high = (
                torch.nextafter(x, torch.full_like(x, end)) for x, end in ((low, -math.inf), (high, math.inf))
            )
        assert bool(((low <= made) & (made <= high))[exact.isfinite()].all())
    in_stripes = streamed(fold(dim), [v, given_g], stripe)
    if v.dtype == torch.float64 or g.dtype == torch.float64:
        assert torch.allclose(
            in_stripes, made, rtol=1e-13 if v.dtype == torch.float64 else 1e-2, atol=0, equal_nan=True
        )
    else:
        assert same(in_stripes, made)


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("modern", [False, True])
def test_a_module_with_weight_norm_becomes_one_without(dim: int | None, modern: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv1d(3, 4, 5), nn.ConvTranspose1d(4, 6, 3), nn.Conv1d(6, 2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrap: Any = nn.utils.parametrizations.weight_norm if modern else nn.utils.weight_norm
        for layer in model:
            wrap(layer, dim=dim)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if name.endswith(("weight_g", "original0")):
                each.mul_(torch.rand_like(each) + 0.5)
    v, g = (f"parametrizations.weight.original{n}" for n in "10") if modern else ("weight_v", "weight_g")
    written = "" if dim == 0 else f", dim: {'all' if dim is None else dim}"
    text = HEAD + (
        f"  - id: w\n    path: '{{m:**}}.{v}'\n    fold_weight_norm: {{g: '{{m:**}}.{g}'{written}}}\n"
        "    to: '{m}.weight'\nkeep: ['{m:**}.bias']\n"
    )
    plain = nn.Sequential(nn.Conv1d(3, 4, 5), nn.ConvTranspose1d(4, 6, 3), nn.Conv1d(6, 2, 1))
    (tmp_path / "r.yaml").write_text(text)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    output = tmp_path / "o.safetensors"
    arguments = [str(tmp_path / "r.yaml"), str(tmp_path / "a.safetensors"), "-o", str(output), "--verify"]
    assert main(["apply", *arguments]) == 0
    plain.load_state_dict(load_file(output), strict=True)
    x = torch.randn(2, 3, 20)
    assert torch.allclose(plain(x), model(x), rtol=1e-5, atol=1e-6)
    made = remapkit.loads(text)(model.state_dict())
    assert all(same(made[name], value) for name, value in load_file(output).items())


def test_later_operations_read_rows_and_columns_of_it() -> None:
    v, g = torch.randn(7, 5), torch.rand(7, 1)
    whole = run_ops(fold(0), [v, g])
    assert same(streamed((*fold(0), Slice(0, 2, 6), Transpose()), [v, g], 8), whole[2:6].t().contiguous())


def test_experts_with_weight_norm_become_one_tensor() -> None:
    text = HEAD + (
        "  - {id: w, path: 'e.{e:int}.weight_v', fold_weight_norm: {g: 'e.{e:int}.weight_g'},"
        " stack: {dim: 0, by: e}, to: e.w}\n"
    )
    vs, gs = torch.randn(3, 4, 2), torch.rand(3, 4, 1)
    state = {f"e.{e}.weight_{name}": pair[e].clone() for e in range(3) for name, pair in (("v", vs), ("g", gs))}
    expected = torch.stack([torch._weight_norm(vs[e], gs[e], 0) for e in range(3)])
    assert torch.allclose(remapkit.loads(text)(state)["e.w"], expected, rtol=1e-6)
    state.pop("e.1.weight_g")
    with pytest.raises(FailedCheck, match=re.escape("e.1.weight_g")):
        remapkit.loads(text)(state)


def test_a_norm_of_zero_is_not_a_number_as_in_torch() -> None:
    v, g = torch.zeros(2, 3), torch.ones(2, 1)
    assert torch._weight_norm(v, g, 0).isnan().all() and run_ops(fold(0), [v, g]).isnan().all()
    assert streamed(fold(0), [v, g], 8).isnan().all()


@pytest.mark.parametrize("dim", [None, 0, 1])
def test_a_norm_sums_all_boxes(dim: int | None) -> None:
    """A weight of several boxes, read in pieces: each norm goes over all of them. Sums of ones are exact."""
    v = torch.ones(2, 1 << 19)
    g = torch.ones([size if d == dim else 1 for d, size in enumerate(v.shape)])
    exact = torch._weight_norm(v.double(), g.double(), -1 if dim is None else dim).float()
    torch.testing.assert_close(streamed(fold(dim), [v, g], 1 << 20), exact, rtol=1e-6, atol=0)


def test_the_weight_is_read_twice_and_never_as_a_whole() -> None:
    reads: list[int] = []

    def bytes_at(offset: int, length: int) -> bytes:
        reads.append(length)
        return b"\0\0\x80\x3f" * (length // 4)  # ones

    rows, columns = 64, 1 << 16
    sources = [
        FileRange(TensorSpec("F32", (rows, columns)), bytes_at),
        FileRange(TensorSpec("F32", (rows, 1)), bytes_at),
    ]
    tree = build_tree(fold(0), sources)
    total = sum(len(piece) for piece in make_stripes(tree, 1 << 20))
    assert total == rows * columns * 4 and max(reads) <= 2 << 20
    assert sum(reads) == 2 * total + rows * 4
    assert find_byte_ranges(fold(0), [each.spec for each in sources]) is None
    assert needs_values(fold(0), [each.spec for each in sources])


@pytest.mark.parametrize(
    ("dim", "v", "g", "message", "help"),
    [
        ("", (8, 4), (8,), "a.weight_g is [8], but the norms of a.weight_v, [8, 4], need [8, 1]", "of one weight?"),
        ("", (8, 4), (1, 4), "a.weight_g is [1, 4], but the norms of a.weight_v, [8, 4], need [8, 1]", "`dim: 1`"),
        ("", (8, 4), (1, 1), "need [8, 1]", "`dim: all`"),
        (", dim: all", (8, 4), (8, 1), "need one element", "`dim: 0`"),
        (", dim: 2", (8, 4), (8, 1), "there is no dimension 2 in a.weight_v, [8, 4]", "0 by default"),
    ],
)
def test_lengths_that_do_not_fit_are_named(
    dim: str, v: tuple[int, ...], g: tuple[int, ...], message: str, help: str
) -> None:
    text = HEAD + (
        f"  - {{id: w, path: '{{m}}.weight_v', fold_weight_norm: {{g: '{{m}}.weight_g'{dim}}}, to: '{{m}}.w'}}\n"
    )
    with pytest.raises(FailedCheck, match=re.escape(message)) as caught:
        remapkit.loads(text)({"a.weight_v": torch.zeros(v), "a.weight_g": torch.zeros(g)})
    (problem,) = caught.value.diagnostics
    assert help in problem.help[0] and problem.labels[0].span.source.text[problem.labels[0].span.start] == "{"


@pytest.mark.parametrize(("dim", "code"), [("-1", "RK216"), ("none", "RK216"), ("[0]", "RK022"), ("1.5", "RK022")])
def test_a_dim_that_is_none_is_refused(dim: str, code: str) -> None:
    with pytest.raises(InvalidRules) as caught:
        remapkit.loads(HEAD + f"  - {{id: w, path: v, fold_weight_norm: {{g: g, dim: {dim}}}, to: w}}\n")
    assert {each.code for each in caught.value.diagnostics} == {code}


def test_dtypes_without_arithmetic_are_refused() -> None:
    with pytest.raises(FailedCheck, match=r"fold_weight_norm needs .*, but v is F8_E4M3"):
        remapkit.loads(HEAD + "  - {id: w, path: v, fold_weight_norm: {g: g}, to: w}\n")(
            {"v": torch.zeros(2, 2).to(torch.float8_e4m3fn), "g": torch.zeros(2, 1)}
        )


def test_the_example_of_the_docs_is_proven_and_has_a_partial_inverse(tmp_path: Path) -> None:
    page = (Path(remapkit.__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(remapkit: 1\nname: vocoder\n.*?)```", page, re.DOTALL)
    rules = remapkit.loads(example)
    (tmp_path / "r.yaml").write_text(example)
    assert rules.prove().level.name == "ALL" and main(["test", str(tmp_path / "r.yaml")]) == 0
    with pytest.raises(InvalidRules, match="fold has no inverse: fold_weight_norm rounds"):
        remapkit.invert(rules)
    inverse = remapkit.invert(rules, partial=True)
    assert inverse.lost == ("'{m:**}.weight_v' and '{m:**}.weight_g' (fold)",)
    assert f"# Not restored, because its operations have no inverse: {inverse.lost[0]}\n" in inverse.text
    back = remapkit.loads(inverse.text)({"a.weight": torch.zeros(2), "a.bias": torch.ones(2)})
    assert list(back) == ["a.bias"]


@pytest.mark.parametrize(
    ("rule", "targets"),
    [
        ("path: 'p.{i:int}', ops: [{pad: {to: 8}}], to: 'q.{i}'", ["q.0", "q.1"]),
        ("path: 'p.{i:int}', ops: [{cast: BF16}], split: {dim: 0, into: ['x.{i}', 'y.{i}']}", ["x.0", "y.3"]),
        ("path: 'p.{i:int}', ops: [{slice: {stop: 1}}], unstack: {dim: 0, by: e}, to: 'q.{i}.{e}'", ["q.0.0"]),
        ("path: 'p.{i:int}', stack: {dim: 0, by: i}, ops: [{add: 1}], to: q", ["q"]),
    ],
)
def test_a_rule_without_an_inverse_is_left_out_by_name(rule: str, targets: list[str]) -> None:
    text = (
        HEAD + f"  - {{id: lost, {rule}}}\n  - {{id: r, path: 'r.{{i:int}}', to: 's.{{i}}'}}\ntests: {{r.0: s.0}}\n"
    )
    rules = remapkit.loads(text)
    inverse = remapkit.loads(remapkit.invert(rules, partial=True).text)
    assert inverse.prove().level.name == "ALL"
    state = {name: torch.zeros(2, 2) for name in (*targets, "s.5")}
    assert list(inverse(state)) == ["r.5"]


def test_nothing_is_left_where_every_rule_is_lossy() -> None:
    rules = remapkit.loads(HEAD + "  - {id: lost, path: a, ops: [{pad: {to: 8}}], to: b}\n")
    with pytest.raises(InvalidRules, match="lost has no inverse: pad"):
        remapkit.invert(rules, partial=True)
