"""Names of adapter files: each tensor is read in one way, and nothing of a file vanishes in silence."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import remapkit
from remapkit.adapters.build import Options
from remapkit.adapters.names import Adapter, ModuleNames, get_module, read_adapter, split_leaf
from remapkit.companions.formats import read_formats
from remapkit.diagnostics.errors import RemapkitError
from remapkit.tensors.spec import StateDictSpec, TensorSpec
from tests.adapters.wild_kit import KOHYA, PEFT, Model, dotted, kohya, make_file, run, spec_of

FORMATS = {
    "kohya": (kohya(), KOHYA),
    "comfy": (dotted("diffusion_model."), KOHYA),
    "diffusers": (dotted("transformer."), PEFT),
}
ODD = st.text("ab0_-'\"{}*? \\é/[]()|$:#!&%@`é~+=,;<>", min_size=1, max_size=4)
SEGMENTS = st.one_of(
    ODD, st.sampled_from(["0", "q", "attn", "a_b", "lora_B", "lora", "up", "alpha", "diff", "weight", "base_layer"])
)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=3).map(".".join)


def make_model(keys: dict[str, tuple[int, ...]], rules: str = "keep: ['{all:**}']") -> Model:
    base = StateDictSpec({fqn: TensorSpec("F32", shape) for fqn, shape in keys.items()}, name="model")
    return Model(remapkit.loads(f"remapkit: 1\nname: model\n{rules}\n"), base)


def read_names(file: dict[str, Tensor], keys: list[str], prefix: str | None = None) -> Adapter:
    return read_adapter(StateDictSpec({fqn: spec_of(each) for fqn, each in file.items()}, name="lora"), keys, prefix)


@st.composite
def models(draw: st.DrawFn) -> tuple[Model, list[str]]:
    """A model of linear layers and bare parameters with odd names, and which of its tensors have adapters."""
    names = draw(
        st.lists(NAMES, min_size=1, max_size=6, unique_by=get_module)
    )  # `m` and `m.weight`: no model has both
    keys = {(name if draw(st.integers(0, 4)) == 0 else f"{name}.weight"): (4, 3) for name in names}
    return make_model(keys), draw(st.lists(st.sampled_from(sorted(keys)), min_size=1, unique=True))


def share_flat_names(model: Model, adapted: list[str]) -> bool:
    """Whether an adapted tensor has, with `_` for dots, the name of another: bare parameters give way to weights."""
    flat = {fqn: get_module(fqn).replace(".", "_") for fqn in model.base}
    return any(
        flat[one] == flat[other] and one != other and (other.endswith(".weight") or not one.endswith(".weight"))
        for one in adapted
        for other in model.base
    )


@settings(max_examples=150)
@given(models(), st.sampled_from(sorted(FORMATS)), st.sampled_from(sorted(FORMATS)))
def test_what_is_written_is_read_again(drawn: tuple[Model, list[str]], source: str, target: str) -> None:
    """From every format to every other and back: the same modules, the same names, the same bytes."""
    model, adapted = drawn
    name, leaves = FORMATS[source]
    base = {f"{get_module(fqn)}.weight": spec for fqn, spec in model.base.items()}
    file = make_file(base, map(get_module, adapted), name, leaves)
    clashes = share_flat_names(model, adapted)
    if any(fqn.removeprefix(name("")) in model.base for fqn in file):
        with pytest.raises(RemapkitError, match="RK736"):
            model.convert(file, target)
        return
    if clashes and "kohya" in (source, target):
        with pytest.raises(RemapkitError, match=r"RK721|RK724"):
            model.convert(file, target)
        return
    made = model.convert(file, target)
    read = read_names(made, list(model.base))
    assert sorted(module.weight for module in read.modules) == sorted(adapted)
    assert all({"up", "down"} <= module.tensors.keys() for module in read.modules)
    assert not read.unknown and not read.outside and not read.whole
    back = model.convert({fqn: each for fqn, each in made.items() if not fqn.endswith(".alpha")}, source)
    own = {fqn: each for fqn, each in back.items() if not fqn.endswith(".alpha") or fqn in file}
    assert own.keys() == file.keys() and all(torch.equal(own[fqn], file[fqn]) for fqn in file)


SOUP = [
    f"{prefix}{module}{leaf}"
    for prefix, module, leaf in itertools.product(
        ("transformer.", "unet.", "lora_unet_", "lora_te1_", "base_model.model.", ""),
        ("a", "b.c", "b_c", "gone", "b.c.base_layer"),
        (".lora_A.weight", ".lora_B.weight", ".lora_up.weight", ".lora_down.weight", ".alpha", ".diff_b", ".weight",
         ".bias", ".hada_w1_a", ".dora_scale", ".lora_mid.weight", ".set_weight", ".lora_B.bias", ".nothing", ""),
    )
]  # fmt: skip
SHAPES = {"lora_A.weight": (2, 3), "lora_down.weight": (2, 3), "lora_B.weight": (4, 2), "lora_up.weight": (4, 2)}
DROPS = "rules: [{id: r, path: 'a.{leaf:**}', to: 'z.{leaf}'}]\ndrop: ['b.c.{leaf:**}']"


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from(SOUP), min_size=1, max_size=5, unique=True),
    st.sampled_from(["transformer.a", "lora_unet_a", "lora_unet_b_c", "a"]),
    st.sampled_from([DROPS, "keep: ['{all:**}']"]),
    st.sampled_from([None, *read_formats().alphas]),
)
def test_nothing_of_a_file_vanishes_in_silence(names: list[str], also: str, rules: str, format: str | None) -> None:
    """Of any mixture of names, every tensor is written, or named in a note; or the file is refused."""
    keys = {"a.weight": (4, 3), "a.bias": (4,), "b.c.weight": (4, 3), "b.c.bias": (4,), "n.bias": (4,)}
    model = make_model(keys, rules if rules != DROPS else f"{DROPS}\n  ".rstrip() + "\nkeep: ['n.{leaf:**}']")
    file: dict[str, Tensor] = {
        f"{also}.lora_up.weight": torch.ones(4, 2),
        f"{also}.lora_down.weight": torch.ones(2, 3),
    }
    for fqn in names:
        leaf = ".".join(fqn.rsplit(".", 2)[1:])
        shape = () if fqn.endswith("alpha") else (4, 3) if fqn.endswith((".weight", "set_weight")) else (4,)
        file.setdefault(fqn, torch.ones(SHAPES.get(leaf, shape)))
    try:
        built = model.derive(file, Options(format))
    except RemapkitError as error:
        assert all(each.code.startswith("RK7") for each in error.diagnostics)
        return
    told = "\n".join(map(str, built.diagnostics))
    header = StateDictSpec({fqn: spec_of(each) for fqn, each in file.items()})
    for text in built.texts:
        plan = remapkit.loads(text).plan(header)
        assert not plan.problems
        assert all(each.fqn in told.split() for each in plan.dropped)
        header = plan.target
    assert header


# ------------------------------------------------------------------------------------------------ tables

TWO = {"a.weight": (4, 3), "blocks.0.q.weight": (4, 3), "blocks.0.q.bias": (4,)}
UP, DOWN = torch.ones(4, 2), torch.ones(2, 3)


def lora(module: str, leaves: tuple[str, str] = PEFT) -> dict[str, Tensor]:
    return {f"{module}.{leaves[0]}": UP, f"{module}.{leaves[1]}": DOWN}


REFUSED = {
    "no module of the model": (lora("transformer.x"), ("RK720",), "none of 2 tensors belongs to a module"),
    "only whole tensors": ({"a.weight": torch.ones(4, 3)}, ("RK720",), "none of 1 tensor"),
    "a misspelt module": (
        {**lora("transformer.a"), **lora("transformer.blocks.0.p")},
        ("RK728",),
        "the module of the model with the name nearest to blocks.0.p is blocks.0.q",
    ),
    "a misspelt flat name": (
        {**lora("lora_unet_a", KOHYA), **lora("lora_unet_blocks_0_qq", KOHYA)},
        ("RK728",),
        "nearest to blocks_0_qq is blocks_0_q",
    ),
    "up without down": ({"transformer.a.lora_B.weight": UP}, ("RK735",), "the `down` matrix is missing"),
    "down without up, and a misfit": (
        {
            "transformer.a.lora_A.weight": DOWN,
            **lora("transformer.blocks.0.q"),
            "transformer.blocks.0.q.dora_scale": DOWN,
        },
        ("RK735", "RK735"),
        "got [2, 3]",
    ),
    "matrices of other ranks": (
        {"transformer.a.lora_B.weight": UP, "transformer.a.lora_A.weight": torch.ones(3, 3)},
        ("RK735",),
        "must fit the weight, [4, 3], got [4, 2] and [3, 3]",
    ),
    "one module in two spellings": (
        {**lora("transformer.a"), **lora("transformer.a", KOHYA)},
        ("RK736", "RK736"),
        "2 tensors are the up of a",
    ),
    "a bias that the model does not have": (
        {**lora("diffusion_model.a", KOHYA), "diffusion_model.a.diff_b": torch.ones(4)},
        ("RK728",),
        "the model has no bias for 1 tensor",
    ),
    "an alpha of two numbers": (
        {**lora("lora_unet_a", KOHYA), "lora_unet_a.alpha": torch.ones(2)},
        ("RK737",),
        "must hold one finite number, got the shape [2]",
    ),
    "an alpha that is none": (
        {**lora("lora_unet_a", KOHYA), "lora_unet_a.alpha": torch.tensor(torch.nan)},
        ("RK737",),
        "got nan",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files(name: str) -> None:
    file, codes, text = REFUSED[name]
    with pytest.raises(RemapkitError) as caught:
        make_model(TWO).convert(file)
    assert tuple(each.code for each in caught.value.diagnostics) == codes
    assert text in str(caught.value)


def test_a_prefix_that_nothing_has() -> None:
    file = lora("transformer.a")
    with pytest.raises(remapkit.UsageError, match=r"no tensor with the prefix 'unet.'") as caught:
        make_model(TWO).derive(file, Options(prefix="unet."))
    assert "prefixes in the file: transformer." in str(caught.value)


def test_a_prefix_of_ones_own() -> None:
    model, file = make_model(TWO), lora("my.model.a") | lora("transformer.a")
    built = model.derive(file, Options("comfy", prefix="my.model"))
    assert set(run(built, file)) == {f"diffusion_model.a.{leaf}" for leaf in KOHYA}


def test_a_prefix_may_be_a_part_of_the_name() -> None:
    """GPT-2's modules begin with `transformer.`; where both readings are modules, a prefix decides."""
    model = make_model({"transformer.a.weight": (4, 3), "b.weight": (4, 3)})
    assert set(model.convert(lora("transformer.a"), "comfy")) == {f"diffusion_model.transformer.a.{x}" for x in KOHYA}
    both = make_model({"transformer.a.weight": (4, 3), "a.weight": (4, 3)})
    with pytest.raises(remapkit.UsageError, match=r"transformer\.a may be a or transformer\.a") as caught:
        both.convert(lora("transformer.a"))
    assert caught.value.diagnostics[0].help == ("choose a prefix: --root PREFIX",)
    for prefix, module in (("transformer", "a"), ("", "transformer.a")):
        built = both.derive(lora("transformer.a"), Options("comfy", prefix=prefix))
        assert set(run(built, lora("transformer.a"))) == {f"diffusion_model.{module}.{leaf}" for leaf in KOHYA}


def test_flat_names_of_several_modules_are_refused_only_where_they_are_used() -> None:
    model = make_model({"a.b.weight": (4, 3), "a_b.weight": (4, 3), "c.weight": (4, 3), "c.bias": (4,)})
    assert set(model.convert(lora("lora_unet_c", KOHYA))) == set(lora("lora_unet_c", KOHYA))
    for file, format, code in (
        (lora("lora_unet_a_b", KOHYA), None, "RK721"),
        (lora("transformer.a.b"), "kohya", "RK724"),
    ):
        with pytest.raises(RemapkitError, match=code) as caught:
            model.convert(file, format)
        assert "a.b and a_b" in str(caught.value)


def test_what_looks_like_a_part_of_an_adapter_may_be_the_models_own() -> None:
    """An activation's `alpha` is a whole tensor, unless its module has an adapter too: then it may be either."""
    keys = {"a.weight": (4, 3), "act.alpha": (4,), "m.weight": (4, 3), "m.alpha": (4,)}
    model = make_model(keys, "rules: [{id: r, path: '{all:**}', to: 'new.{all}'}]")
    file = {**lora("transformer.a"), "transformer.act.alpha": torch.ones(4)}
    assert "transformer.new.act.alpha" in model.convert(file)
    alone = {**lora("transformer.a"), "transformer.m.alpha": torch.ones(4)}
    assert "transformer.new.m.alpha" in model.convert(alone)
    with pytest.raises(RemapkitError, match=r"may be the alpha of transformer.m, and a tensor of the model itself"):
        model.convert({**alone, **lora("transformer.m")})


def test_mixed_spellings_become_the_commonest() -> None:
    model = make_model({f"m{i}.weight": (4, 3) for i in range(3)})
    file = {**lora("transformer.m0"), **lora("transformer.m1", KOHYA), **lora("transformer.m2", KOHYA)}
    assert set(model.convert(file)) == {f"transformer.m{i}.{leaf}" for i in range(3) for leaf in KOHYA}


def test_bare_parameters_have_adapters_by_their_own_name() -> None:
    model = make_model({"experts.gate_up_proj": (4, 3)}, "rules: [{id: r, path: '{a}.{b}', to: '{a}.new.{b}'}]")
    assert set(model.convert(lora("base_model.model.experts.gate_up_proj"))) == {
        f"base_model.model.experts.new.gate_up_proj.{leaf}" for leaf in PEFT
    }


def test_embeddings_are_renamed_and_have_no_place_in_kohyas_files() -> None:
    model = make_model({"wte.weight": (10, 4)}, "rules: [{id: r, path: 'wte.weight', to: 'embed.weight'}]")
    file = {
        "transformer.wte.lora_embedding_A": torch.ones(2, 10),
        "transformer.wte.lora_embedding_B": torch.ones(4, 2),
    }
    assert set(model.convert(file)) == {f"transformer.embed.lora_embedding_{side}" for side in "AB"}
    with pytest.raises(RemapkitError, match="the LoRA of an embedding, and kohya files have no such adapter"):
        model.convert(file, "kohya")


def test_counts_of_rules_are_those_of_the_model_and_not_of_the_adapter() -> None:
    """An adapter of the first of four levels: the last one counts the levels."""
    rules = """
params: {levels: {count: 'up.{i:int}.{rest:**}', value: 2}}
rules: [{id: r, path: 'up.{i:0..levels-1}.{rest:**}', to: 'down.{levels-1-i}.{rest}'}]
"""
    model = make_model({f"up.{i}.q.weight": (4, 3) for i in range(4)}, rules)
    assert set(model.convert(lora("transformer.up.0.q"))) == set(lora("transformer.down.3.q"))


def test_tensors_of_other_models_are_told_by_their_longest_prefix() -> None:
    names = {**lora("transformer.a"), **lora("base_model.model.diffusion_model.b"), **lora("lora_te_b", KOHYA)}
    outside = read_names(names, ["a.weight"]).outside
    assert set(outside) == {"base_model.model.diffusion_model.", "lora_te_"}


def test_an_adapter_of_which_nothing_is_left_is_refused() -> None:
    model = make_model(TWO, "keep: ['blocks.{rest:**}']\ndrop: ['a.weight']")
    with pytest.raises(RemapkitError, match="nothing of the adapter would be left"):
        model.convert(lora("transformer.a"))


def test_formats_are_complete() -> None:
    """Every kind of model that a prefix is for has a prefix in every format, and every leaf one meaning."""
    formats = read_formats()
    assert {kind for prefix in formats.prefixes for kind in prefix.components} == set(formats.components)
    for kind, format in itertools.product(formats.components, formats.alphas):
        style = formats.style(format, kind)
        for role in ("up", "down"):
            found = split_leaf(style.name("m.0", style.leaf(role) or ""), formats)
            assert found is not None and found.role == role
    given = [leaf for own in formats.leaves.values() for leaf in own.values()] + list(formats.opaque)
    assert len(given) == len(set(given))


def test_weights_before_bare_parameters_of_the_same_flat_name() -> None:
    names = ModuleNames.of(["a.b_bias.weight", "a.b.bias", "x.y", "x_y"])
    assert names.flat["a_b_bias"] == "a.b_bias.weight" and names.shared == {"x_y": ("x.y", "x_y")}
