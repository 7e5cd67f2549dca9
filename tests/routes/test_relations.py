"""Which layout shapes allow: manifests at other sizes, models built at random sizes, and what names leave open."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import remapkit
from remapkit.cli.app import main
from remapkit.registry import layouts
from remapkit.registry.fit_layouts import Verdict, fit_layouts
from remapkit.tensors.relations import Relations
from remapkit.tensors.spec import StateDictSpec, TensorSpec

ROOT = Path(remapkit.__file__).parent.parent
KEYS = ROOT / "rules" / "keys"
MANIFESTS = {path.stem: remapkit.header(path) for path in sorted(KEYS.glob("*.json"))}
Shapes = Mapping[str, tuple[int, ...]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMAPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    layouts._KNOWN.clear()


def make(shapes: Shapes) -> StateDictSpec:
    return StateDictSpec({fqn: TensorSpec("F32", shape) for fqn, shape in shapes.items()})


def scale(known: Shapes, sizes: Mapping[int, int], layers: Callable[[int], list[int]]) -> dict[str, tuple[int, ...]]:
    """Another size: each size replaced by another one, and each first number of a name by some numbers of layers."""
    made: dict[str, tuple[int, ...]] = {}
    for fqn, shape in known.items():
        new = tuple(sizes[size] for size in shape)
        found = re.search(r"(?<=\.)\d+(?=\.)", fqn)
        numbers = layers(int(found[0])) if found else []
        made |= {f"{fqn[: found.start()]}{n}{fqn[found.end() :]}": new for n in numbers} if found else {fqn: new}
    return made


# --------------------------------------------------------------------------------------- no size is taken for another


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(MANIFESTS)))
def test_a_layout_is_contradicted_in_none_of_its_sizes(data: st.DataObject, name: str) -> None:
    known = {fqn: spec.shape for fqn, spec in MANIFESTS[name].items()}
    distinct = sorted({size for shape in known.values() for size in shape})
    sizes = dict(
        zip(
            distinct,
            data.draw(st.lists(st.integers(1, 9), min_size=len(distinct), max_size=len(distinct))),
            strict=True,
        )
    )
    more = data.draw(st.integers(0, 3))
    made = make(scale(known, sizes, lambda n: [n, n + more]))
    relations = Relations(MANIFESTS[name])
    assert list(relations.list_contradictions(made)) == []
    if not more:
        assert relations.has_equal(made)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_a_square_matrix_says_nothing(shape: tuple[int, int]) -> None:
    known = Relations(make({"h.0.weight": (4, 4), "h.0.bias": (4,)}))
    assert list(known.list_contradictions(make({"h.7.weight": shape, "h.7.bias": (5,)}))) == []
    assert len(list(known.list_contradictions(make({"h.7.weight": shape, "h.7.bias": (4,)})))) == 1


def build(name: str, draw: Callable[[st.SearchStrategy[int]], int]) -> dict[str, tuple[int, ...]]:
    """The shapes of a model of a random size, as its own library builds it."""
    import transformers

    heads, layers = draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 2))
    width = heads * draw(st.sampled_from([2, 4, 8]))
    inner, vocab = draw(st.integers(1, 20)), draw(st.integers(2, 30))
    with torch.device("meta"):
        if name == "gpt2_hf":
            config = transformers.GPT2Config(
                vocab_size=vocab,
                n_positions=draw(st.integers(2, 30)),
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                n_inner=inner,
            )
            model: torch.nn.Module = transformers.GPT2LMHeadModel(config)
        elif name == "vit_hf":
            model = transformers.ViTForImageClassification(
                transformers.ViTConfig(
                    hidden_size=width,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    intermediate_size=inner,
                    image_size=8,
                    patch_size=draw(st.sampled_from([2, 4])),
                    num_labels=draw(st.integers(3, 9)),
                )
            )
        elif name == "llama_hf":
            model = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(
                    vocab_size=vocab,
                    hidden_size=width,
                    intermediate_size=inner,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    num_key_value_heads=1,
                    head_dim=2 * draw(st.integers(1, 4)),
                )
            )
        else:
            from diffusers import FluxTransformer2DModel

            model = FluxTransformer2DModel(
                in_channels=draw(st.integers(1, 9)),
                num_layers=layers,
                num_single_layers=layers,
                attention_head_dim=16,
                num_attention_heads=heads,
                joint_attention_dim=draw(st.integers(1, 30)),
                pooled_projection_dim=draw(st.integers(1, 30)),
                guidance_embeds=True,
                axes_dims_rope=(4, 6, 6),
            )
    return {fqn: tuple(tensor.shape) for fqn, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ["gpt2_hf", "vit_hf", "llama_hf", "flux_diffusers"])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_models_of_any_size_are_of_their_layout(name: str, data: st.DataObject) -> None:
    pytest.importorskip("transformers")
    shapes = build(name, data.draw)
    assert set(Relations(MANIFESTS[name]).list_contradictions(make(shapes))) == set()
    found = fit_layouts(make(shapes)).fits
    wanted = {"gpt2_hf": "gpt2/transformers", "vit_hf": "vit/transformers", "llama_hf": "llama/transformers"}
    assert wanted.get(name, "flux/diffusers") in {fit.layout for fit in found}


# --------------------------------------------------------------------------------- GPT-2: two layouts, the same names


def build_gpt2(
    width: int, factor: int, *, transposed: bool, bias: bool = True, layers: int = 2
) -> dict[str, torch.Tensor]:
    made = {
        "wte.weight": torch.randn(20, width),
        "wpe.weight": torch.randn(16, width),
        "ln_f.weight": torch.ones(width),
    }
    made |= {"ln_f.bias": torch.ones(width)} if bias else {}
    linear = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, factor * width),
        "mlp.c_proj": (factor * width, width),
    }
    for layer in range(layers):
        for name, shape in linear.items():
            made[f"h.{layer}.{name}.weight"] = torch.randn(shape if not transposed else shape[::-1])
            made |= {f"h.{layer}.{name}.bias": torch.randn(shape[1])} if bias else {}
        made |= {f"h.{layer}.{norm}.weight": torch.ones(width) for norm in ("ln_1", "ln_2")}
        made |= {f"h.{layer}.{norm}.bias": torch.ones(width) for norm in ("ln_1", "ln_2")} if bias else {}
    return {
        **{f"transformer.{fqn}": each for fqn, each in made.items()},
        "lm_head.weight": made["wte.weight"].clone(),
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(1, 3))
def test_shapes_tell_gpt2_from_gpt2(width: int, factor: int, transposed: bool, bias: bool, layers: int) -> None:
    tensors = build_gpt2(width, factor, transposed=transposed, bias=bias, layers=layers)
    header = make({fqn: tuple(tensor.shape) for fqn, tensor in tensors.items()})
    own, other = ("nanogpt", "transformers")[:: 1 if transposed else -1]
    assert [fit.layout for fit in fit_layouts(header).fits] == [f"gpt2/{own}"]
    named = fit_layouts(header, f"gpt2/{other}").fits
    assert [fit.layout for fit in named] == [f"gpt2/{other}"] and bool(named[0].contradicts) == bias


def test_a_file_in_the_wanted_layout_is_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "gpt2.safetensors", tmp_path / "out.safetensors"
    tensors = build_gpt2(8, 4, transposed=False)
    save_file(tensors, path)
    with pytest.raises(remapkit.UsageError, match="RK664"):
        remapkit.convert(path, "gpt2/transformers", out)
    assert not out.exists()
    written = remapkit.convert(path, "gpt2/nanogpt", out)
    assert written.source == "gpt2/transformers"
    assert torch.equal(
        load_file(out)["transformer.h.1.attn.c_proj.weight"], tensors["transformer.h.1.attn.c_proj.weight"].T
    )
    assert "RK675" not in {each.code for each in written.diagnostics}
    for way in (
        lambda: remapkit.apply("gpt2_hf", out, tmp_path / "again.safetensors"),
        lambda: remapkit.apply("gpt2_hf", out, tmp_path / "more.safetensors", target_keys=remapkit.header(path)),
    ):
        try:
            codes = {each.code for each in way().diagnostics}
        except remapkit.FailedCheck as error:  # against a target the shapes are compared, too
            codes = {"RK675"} if "RK311" in {each.code for each in error.diagnostics} else set()
        assert "RK675" in codes
    with pytest.raises(remapkit.UsageError, match=r"RK663.*has shapes that gpt2/nanogpt has in no size"):
        remapkit.convert(path, "gpt2/transformers", tmp_path / "x.safetensors", from_layout="gpt2/nanogpt")
    with pytest.raises(remapkit.UsageError, match=r"RK663.*where the source was mounted"):
        remapkit.convert({"a.": path}, "gpt2/nanogpt", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.fixture
def square(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose only matrix is square, and two packs that transpose it, one into each direction."""
    entry = {"w": {"dtype": "F32", "shape": [3, 3]}}
    (tmp_path / "keys.json").write_text(json.dumps(entry))
    files = []
    for name, one, other in (("there", "m/a", "m/b"), ("back", "m/b", "m/a")):
        text = f"remapkit: 1\nname: {name}\nfrom: {one}\nto: {other}\n"
        text += "source: {keys: keys.json}\ntarget: {keys: keys.json}\n"
        (tmp_path / f"{name}.yaml").write_text(text + "rules: [{id: w, path: w, ops: [transpose], to: w}]\n")
        files.append(layouts.PackFile(name, tmp_path / f"{name}.yaml", "test"))
    monkeypatch.setattr(layouts, "packs", lambda: tuple(files))
    monkeypatch.setattr("remapkit.api.convert.find_rules", lambda name: tmp_path / f"{name}.yaml")
    real = remapkit.api.convert.load
    monkeypatch.setattr(
        "remapkit.api.convert.load", lambda name, **options: real(tmp_path / f"{name}.yaml", **options)
    )
    save_file({"w": torch.arange(9.0).reshape(3, 3)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_what_shapes_leave_open_is_refused_and_can_be_said(square: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = square.with_name("out.safetensors")
    assert {fit.layout for fit in remapkit.identify(square).layouts} == {"m/a", "m/b"}
    with pytest.raises(remapkit.UsageError, match=r"RK674.*m/a or m/b") as caught:
        remapkit.convert(square, "m/b", out)
    assert "from_layout=" in str(caught.value) and not out.exists()
    assert main(["convert", str(square), "--to", "m/b", "-o", str(out)]) == 2
    assert "--from-layout LAYOUT" in capsys.readouterr().err and not out.exists()
    assert main(["convert", str(square), "--from", "m/a", "--to", "m/b", "-o", str(out)]) == 0
    assert torch.equal(load_file(out)["w"], load_file(square)["w"].T)
    for named, code in (("m/b", "RK664"), ("m/c", "RK660")):
        with pytest.raises(remapkit.UsageError, match=code):
            remapkit.convert(square, "m/b", out, from_layout=named, force=True)


def test_a_named_layout_has_the_names(tmp_path: Path) -> None:
    path = tmp_path / "gpt2.safetensors"
    save_file(build_gpt2(4, 4, transposed=False), path)
    with pytest.raises(remapkit.UsageError, match=r"RK663.*does not have the names of flux/bfl"):
        remapkit.convert(path, "flux/diffusers", tmp_path / "out.safetensors", from_layout="flux/bfl")


# --------------------------------------------------------------------------------------------- names without a prefix


def test_names_without_a_prefix_are_found_like_a_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = build_gpt2(8, 4, transposed=False)
    path, out, mounted = (tmp_path / f"{name}.safetensors" for name in ("hub", "out", "mounted"))
    save_file(
        {fqn.removeprefix("transformer."): each for fqn, each in tensors.items() if fqn != "lm_head.weight"}, path
    )
    (fit,) = remapkit.identify(path).layouts
    assert (fit.layout, fit.lost, fit.missing) == ("gpt2/transformers", "transformer.", ("lm_head.weight",))
    with pytest.raises(remapkit.FailedCheck, match=r"transformer\.=FILE"):
        remapkit.apply("gpt2_hf", path, out, partial=True)
    written = remapkit.convert(path, "gpt2/nanogpt", out, partial=True)
    assert "RK414" in {each.code for each in written.diagnostics}
    remapkit.apply("gpt2_hf", f"transformer.={path}", mounted, partial=True)
    one, other = load_file(out), load_file(mounted)
    assert one.keys() == other.keys() and all(torch.equal(one[fqn], other[fqn]) for fqn in one)
    assert {f"transformer.{fqn}" for fqn in load_file(path)} == one.keys()


@pytest.mark.parametrize("name", ["wan22_vae_upstream", "flux_bfl"])
def test_a_prefix_is_lost_only_where_a_layout_has_it(name: str) -> None:
    (fit,) = fit_layouts(StateDictSpec(dict(MANIFESTS[name]))).fits
    assert (fit.verdict, fit.lost) == (Verdict.EXACT, "")
    cut = {fqn.partition(".")[2]: spec for fqn, spec in MANIFESTS[name].items() if fqn.count(".") > 1}
    assert all(not fit.lost or fit.lost.count(".") == 1 for fit in fit_layouts(StateDictSpec(cut)).fits)


# -------------------------------------------------------------------------------------------------- counts of experts


def test_the_param_that_a_count_is_bound_to_is_named(tmp_path: Path) -> None:
    known = {fqn: spec.shape for fqn, spec in MANIFESTS["mixtral_per_expert"].items()}
    few = {
        fqn: shape for fqn, shape in known.items() if not re.search(r"experts\.[4-7]\.|layers\.(?:[2-9]|\d\d)\.", fqn)
    }
    path = tmp_path / "mix.safetensors"
    save_file({fqn: torch.zeros([min(size, 4) for size in shape]) for fqn, shape in few.items()}, path)
    for way in (
        lambda **options: remapkit.convert(path, "mixtral/stacked", tmp_path / "o.safetensors", **options),
        lambda **options: remapkit.apply("mixtral_per_expert", path, tmp_path / "p.safetensors", **options),
    ):
        with pytest.raises(remapkit.FailedCheck, match="RK340") as caught:
            way()
        assert "params={'experts': 4}" in str(caught.value)
        way(params={"experts": 4})


def test_a_hole_names_no_param(tmp_path: Path) -> None:
    known = MANIFESTS["mixtral_per_expert"]
    one = {fqn: spec for fqn, spec in known.items() if not re.search(r"layers\.0\..*experts\.7\.", fqn)}
    (problem, *_) = remapkit.load("mixtral_per_expert").plan(StateDictSpec(one)).problems
    assert problem.code == "RK340" and not any("--param" in help for help in problem.help)
