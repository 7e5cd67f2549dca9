"""Alphas: what up @ down is multiplied by is the same before and after, wherever each format has it."""

from __future__ import annotations

import json
import re
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import remapkit
from remapkit.adapters import derive
from remapkit.adapters.alphas import PeftConfig
from remapkit.adapters.build import Options, build_adapter
from remapkit.adapters.derive import Written
from remapkit.adapters.numbers import decode_number, is_exact, round_number
from remapkit.adapters.summary import summarize_adapter
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck, RemapkitError
from remapkit.tensors.spec import StateDictSpec, TensorSpec
from tests.adapters.wild_kit import (
    DTYPES,
    KOHYA,
    PEFT,
    Model,
    assert_same_effect,
    dotted,
    find_updates,
    kohya,
    make_file,
    run,
    spec_of,
)

JOIN = """
remapkit: 1
name: join
rules:
  - {id: qkv, concat: {dim: 0, from: ['{b}.q.weight', '{b}.k.weight', '{b}.v.weight']}, to: '{b}.qkv.weight'}
  - {id: bias, concat: {dim: 0, from: ['{b}.q.bias', '{b}.k.bias', '{b}.v.bias']}, to: '{b}.qkv.bias'}
  - {id: o, path: '{b}.o.{leaf:weight|bias}', to: '{b}.out.{leaf}'}
"""
SPLIT = """
remapkit: 1
name: split
rules:
  - id: qkv
    path: '{b}.qkv.{leaf:weight|bias}'
    split: {dim: 0, into: ['{b}.to_q.{leaf}', '{b}.to_k.{leaf}', '{b}.to_v.{leaf}']}
  - {id: o, path: '{b}.out.{leaf:weight|bias}', to: '{b}.out.{leaf}'}
"""
MODULES = [f"{block}.{module}" for block in "ab" for module in "qkvo"]
JOINED = [f"{block}.{module}" for block in "ab" for module in ("qkv", "out")]
NAMES = {"kohya": kohya(), "comfy": dotted("diffusion_model."), "diffusers": dotted("transformer.")}
NAMES["peft"] = dotted("base_model.model.")
LEAVES = {"kohya": KOHYA, "comfy": KOHYA, "diffusers": PEFT, "peft": PEFT}


def make_model(rows: int = 4) -> Model:
    shapes = {f"{module}.weight": (rows, 3) for module in MODULES} | {f"{module}.bias": (rows,) for module in MODULES}
    base = StateDictSpec({fqn: TensorSpec("F32", shape) for fqn, shape in shapes.items()})
    return Model(remapkit.loads(JOIN), base)


def make_route() -> Model:
    return Model(remapkit.loads(JOIN).then(remapkit.loads(SPLIT)), make_model().base)


ALPHAS = st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0, 6.0, -1.0])
TENSORS = st.tuples(
    ALPHAS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.sampled_from([(), (1,)])
)


@settings(max_examples=120)
@given(
    st.data(),
    st.sampled_from(["kohya", "comfy", "diffusers"]),
    st.sampled_from([None, *NAMES]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_factors_are_kept_from_every_place_to_every_place(
    data: st.DataObject, source: str, target: str | None, fold: bool, has_values: bool, is_route: bool
) -> None:
    """Alphas in tensors of any float dtype, or missing, equal or mixed, carried, merged or multiplied in."""
    model = make_route() if is_route else make_model()
    there = data.draw(st.lists(st.sampled_from(MODULES), min_size=1, unique=True))
    ranks = {module: data.draw(st.integers(1, 4)) for module in there}
    usual = data.draw(st.sampled_from([0.5, 1.0, 2.0]))  # of the LoRA rank: joined modules often agree
    file = make_file(model.base, there, NAMES[source], LEAVES[source], rank=ranks.__getitem__)
    for module in there:
        kind = data.draw(st.sampled_from(["none", "usual", "usual", "own"]))
        number, dtype, shape = data.draw(TENSORS)
        if kind != "none":
            value = number if kind == "own" else usual * ranks[module]
            file[f"{NAMES[source](module)}.alpha"] = torch.full(shape, value, dtype=dtype)
    built = model.derive(file, Options(target, fold), has_values=has_values)
    made = run(built, file)
    factors = None
    if built.config is not None:
        config = PeftConfig.of(dict(built.config), "made")
        factors = {module: config.find_factor(module, rank) for module, rank in built.ranks.items()}
    assert_same_effect(model, file, made, NAMES[source], NAMES[target or source], (None, factors))
    if (fold and target != "kohya") or target == "diffusers":
        assert not any(fqn.endswith(".alpha") for fqn in made)
    if fold or target == "diffusers":
        assert all(alpha == built.ranks[module] for module, alpha in built.alphas.items())
    for module, alpha in built.alphas.items():
        if alpha is not None and f"{NAMES[target or source](module)}.alpha" in made:
            assert made[f"{NAMES[target or source](module)}.alpha"].item() == alpha


def read_config(data: dict[str, object]) -> PeftConfig:
    return PeftConfig.of({"peft_type": "LORA", **data}, "adapter_config.json")


@pytest.mark.parametrize("target", [None, *NAMES])
@pytest.mark.parametrize("rslora", [False, True])
def test_numbers_of_a_config_go_to_every_format(target: str | None, rslora: bool) -> None:
    """`lora_alpha`, `alpha_pattern` and `use_rslora`: unequal numbers are multiplied in before a join."""
    model = make_model()
    ranks = {module: 1 + index % 3 for index, module in enumerate(MODULES)}
    config = read_config({"lora_alpha": 4, "alpha_pattern": {"a.q": 2, r"b\.[qkv]": 1}, "use_rslora": rslora})
    alphas = {module: {"a.q": 2, "b.q": 1, "b.k": 1, "b.v": 1}.get(module, 4) for module in MODULES}
    factors = {name: alphas[name] / (ranks[name] ** 0.5 if rslora else ranks[name]) for name in MODULES}
    file = make_file(model.base, MODULES, NAMES["peft"], PEFT, rank=ranks.__getitem__)
    built = model.derive(file, Options(target, config=config))
    after = None
    if built.config is not None:
        new = PeftConfig.of(dict(built.config), "made")
        after = {module: new.find_factor(module, rank) for module, rank in built.ranks.items()}
    assert_same_effect(model, file, run(built, file), NAMES["peft"], NAMES[target or "peft"], (factors, after))


def test_a_config_names_modules_by_all_that_follows_the_wrapped_model() -> None:
    """PEFT knows `diffusion_model.a.o` by this name: in what is read, and in what is written."""
    prefix, inner = "base_model.model.diffusion_model.", "diffusion_model."
    model = make_model()
    ranks = {module: 1 if module == "a.o" else 2 for module in MODULES}
    config = read_config({"lora_alpha": 2, "alpha_pattern": {f"^{inner}a.o": 4, "^b.o": 64}})
    file = make_file(model.base, MODULES, dotted(prefix), PEFT, rank=ranks.__getitem__)
    built = model.derive(file, Options(config=config))
    factors = {module: 4.0 if module == "a.o" else 1.0 for module in MODULES}
    assert built.config is not None
    assert all(module.startswith(inner) for module in built.config["target_modules"])
    new = PeftConfig.of(dict(built.config), "made")
    after = {module: new.find_factor(inner + module, rank) for module, rank in built.ranks.items()}
    assert_same_effect(model, file, run(built, file), dotted(prefix), dotted(prefix), (factors, after))
    header = StateDictSpec({fqn: spec_of(each) for fqn, each in file.items()})
    (part,) = summarize_adapter(header, config, lambda fqn: None)
    assert part.alphas == {2.0: 7, 4.0: 1}


def test_patterns_of_a_written_config_have_what_follows_the_wrapped_model() -> None:
    """There they are no ends of other names: without it, `q` is the end of `a.q`, and `b` that of `c.b`."""
    base = StateDictSpec({f"{name}.weight": TensorSpec("F32", (4, 3)) for name in ("q", "a.q", "b", "c.b")})
    rules = remapkit.loads("remapkit: 1\nname: same\nrules: [{id: r, path: '{x:**}.weight', to: '{x}.weight'}]")
    prefix = "base_model.model.diffusion_model."
    ranks = {"q": 1, "a.q": 2, "b": 2}
    file = make_file(base, ranks, dotted(prefix), PEFT, rank=ranks.__getitem__)
    config = Model(rules, base).derive(file, Options(config=read_config({"lora_alpha": 2}))).config
    assert config is not None
    assert config["r"] == 2 and list(config["rank_pattern"].values()) == [1]
    ((pattern, _),) = config["rank_pattern"].items()
    own = {m for m in ("q", "a.q", "b", "c.b") if re.match(rf"(.*\.)?({pattern})$", f"diffusion_model.{m}")}
    assert own == {"q"}
    targets = config["target_modules"]
    assert isinstance(targets, list) and set(targets) == {f"diffusion_model.{m}" for m in ranks}


def test_the_config_beside_a_file_of_kohya_is_not_its_own() -> None:
    model = make_model()
    file = make_file(model.base, MODULES, NAMES["kohya"], KOHYA)
    made = run(model.derive(file, Options(config=read_config({"lora_alpha": 64}))), file)
    assert_same_effect(model, file, made, NAMES["kohya"], NAMES["kohya"])


def test_metadata_of_diffusers_is_read_as_a_config() -> None:
    """`transformer.lora_alpha` in `lora_adapter_metadata`; the result needs none, and fits one that says so."""
    model = make_model()
    own = {"transformer.r": 2, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"a.o": 2}}
    entry = json.dumps({**own, "unet.lora_alpha": 1})
    factors = {module: 1.0 if module == "a.o" else 4.0 for module in MODULES}
    file = make_file(model.base, MODULES, NAMES["diffusers"], PEFT)
    for target in (None, "kohya", "peft"):
        built = model.derive(file, Options(target), metadata={"lora_adapter_metadata": entry})
        after = None
        if target == "peft":
            assert built.config is not None
            config = PeftConfig.of(dict(built.config), "made")
            after = {module: config.find_factor(module, rank) for module, rank in built.ranks.items()}
        made = run(built, file)
        assert_same_effect(model, file, made, NAMES["diffusers"], NAMES[target or "diffusers"], (factors, after))
        assert built.fields is not None and (target != "peft") == (built.config is None)
    with pytest.raises(remapkit.UsageError, match="it must be JSON"):
        model.derive(file, metadata={"lora_adapter_metadata": "{"})


def test_what_metadata_and_configs_need_is_told() -> None:
    """The new modules of each old one, with their LoRA ranks and alphas."""
    model = make_route()
    file = make_file(model.base, ["a.q", "a.k", "a.o"], NAMES["comfy"], KOHYA, alpha=lambda module: 4.0)
    built = model.derive(file)
    assert built.renamed["a.q"] == ("a.to_q", "a.to_k", "a.to_v") and built.renamed["a.o"] == ("a.out",)
    assert built.ranks == {"a.to_q": 4, "a.to_k": 4, "a.to_v": 4, "a.out": 2}
    assert built.alphas == {"a.to_q": 8.0, "a.to_k": 8.0, "a.to_v": 8.0, "a.out": 4.0}
    assert built.factors == {module: (rank, 2.0) for module, rank in built.ranks.items()}
    assert run(built, file)["diffusion_model.a.to_q.alpha"].item() == 8
    assert run(built, file)["diffusion_model.a.out.alpha"].item() == 4


def test_an_alpha_that_its_dtype_cannot_hold_is_multiplied_in() -> None:
    """87 for LoRA rank 1 is 261 for rank 3, which no BF16 is."""
    model = make_model()
    for dtype, is_carried in ((torch.bfloat16, False), (torch.float16, True), (torch.float32, True)):
        file = make_file(model.base, ["a.q", "a.k", "a.v"], NAMES["kohya"], KOHYA, rank=lambda module: 1)
        file |= {f"lora_unet_a_{name}.alpha": torch.tensor(87.0, dtype=dtype) for name in "qkv"}
        made = model.convert(file)
        assert ("lora_unet_a_qkv.alpha" in made) == is_carried
        assert_same_effect(model, file, made, NAMES["kohya"], NAMES["kohya"])


def test_alphas_without_values_are_multiplied_in_where_weights_are_joined() -> None:
    model = make_model()
    file = make_file(model.base, MODULES, NAMES["kohya"], KOHYA, alpha=lambda module: 1.0)
    made = run(model.derive(file, has_values=False), file)
    assert {fqn for fqn in made if fqn.endswith("alpha")} == {"lora_unet_a_out.alpha", "lora_unet_b_out.alpha"}


def test_an_alpha_of_zero_is_carried_and_not_multiplied_in() -> None:
    """sd-scripts takes 0 for the LoRA rank, ComfyUI for 0: both read the same file as before."""
    model = make_model()
    file = make_file(model.base, ["a.o"], NAMES["kohya"], KOHYA, alpha=lambda module: 0.0)
    assert model.convert(file)["lora_unet_a_out.alpha"].item() == 0
    with pytest.raises(RemapkitError, match="some programs take 0 for the LoRA rank"):
        model.convert(file, "diffusers")


@pytest.mark.parametrize("target", ["kohya", "comfy", "diffusers"])
def test_an_unknown_alpha_is_needed_where_none_would_mean_the_rank(target: str) -> None:
    model = make_model()
    file = make_file(model.base, ["a.o"], NAMES["peft"], PEFT)
    renamed = model.derive(file)
    assert renamed.config is None and renamed.fields is None and renamed.alphas == {"a.out": None}
    with pytest.raises(RemapkitError, match="RK726") as caught:
        model.convert(file, target)
    assert "--alpha NUMBER" in caught.value.diagnostics[0].help[1]
    made = run(model.derive(file, Options(target, alpha=8)), file)
    assert_same_effect(model, file, made, NAMES["peft"], NAMES[target], ({"a.o": 4.0}, None))


def test_an_unknown_alpha_is_needed_where_weights_are_joined() -> None:
    file = make_file(make_model().base, MODULES, NAMES["peft"], PEFT)
    with pytest.raises(RemapkitError, match="the alpha of 2 modules is not known"):
        make_model().convert(file)


def test_biases_of_up_are_scaled_with_it_and_differences_are_not() -> None:
    """`lora_B.bias` is multiplied by alpha / r; `diff_b` is added as it is."""
    model = make_model()
    factors = dict.fromkeys(MODULES, 2.0) | {"a.k": 1.0}
    config = read_config({"lora_alpha": 4, "alpha_pattern": {"a.k": 2}})
    file = make_file(model.base, MODULES, NAMES["peft"], PEFT)
    file |= {f"base_model.model.{module}.lora_B.bias": torch.arange(4.0) for module in MODULES}
    for target in ("comfy", "diffusers", "peft"):
        built = model.derive(file, Options(target, config=config))
        after = None
        if built.config is not None:
            new = PeftConfig.of(dict(built.config), "made")
            after = {module: new.find_factor(module, rank) for module, rank in built.ranks.items()}
            assert built.config["lora_bias"] is True
        assert_same_effect(model, file, run(built, file), NAMES["peft"], NAMES[target], (factors, after))


@pytest.mark.parametrize("target", ["comfy", "diffusers"])
def test_differences_of_biases_are_added_as_they_are(target: str) -> None:
    """Where a number of one's own, alpha 8 for LoRA rank 2, is multiplied in."""
    model = make_model()
    file = make_file(model.base, MODULES, NAMES["comfy"], KOHYA)
    file |= {f"diffusion_model.{module}.diff_b": torch.arange(4.0) for module in MODULES}
    weights = {fqn: each for fqn, each in file.items() if "diff_b" not in fqn}
    made = run(model.derive(file, Options(target, fold=True, alpha=8)), file)
    own = {fqn: each for fqn, each in made.items() if not fqn.endswith(("diff_b", "bias"))}
    assert_same_effect(model, weights, own, NAMES["comfy"], NAMES[target], (dict.fromkeys(MODULES, 4.0), None))
    leaf = "diff_b" if target == "comfy" else "lora_B.bias"
    assert made[f"{NAMES[target]('a.out')}.{leaf}"].tolist() == [0, 1, 2, 3]


def test_an_alpha_tensor_is_not_multiplied_in_without_the_bias() -> None:
    model = make_model()
    file = make_file(model.base, ["a.o"], NAMES["diffusers"], PEFT, alpha=lambda module: 4.0)
    file["transformer.a.o.lora_B.bias"] = torch.ones(4)
    with pytest.raises(RemapkitError, match="the bias of the layer of up would need it too"):
        model.convert(file, "comfy")
    assert_same_effect(model, file, model.convert(file), NAMES["diffusers"], NAMES["diffusers"])


def test_alphas_that_are_not_multiplied_in_are_not_kept_silently() -> None:
    model = make_model()
    file = {f"lora_unet_a_o.{leaf}": torch.ones(2, 2) for leaf in ("lokr_w1", "lokr_w2")}
    file["lora_unet_a_o.alpha"] = torch.tensor(4.0)
    assert model.convert(file)["lora_unet_a_out.alpha"].item() == 4
    with pytest.raises(RemapkitError, match="1 alpha cannot be multiplied in: the modules are no product"):
        model.derive(file, Options(fold=True))
    del file["lora_unet_a_o.alpha"]
    assert set(run(model.derive(file, Options(fold=True)), file)) == {f"lora_unet_a_out.lokr_w{at}" for at in (1, 2)}


def test_an_alpha_that_multiplies_nothing_is_dropped_for_that_reason() -> None:
    """ComfyUI adds `diff` as it is. The weight itself is kept, so that it is no reason."""
    model = make_model()
    file = {"diffusion_model.a.o.diff": torch.ones(4, 3), "diffusion_model.a.o.alpha": torch.tensor(4.0)}
    built = model.derive(file)
    assert set(run(built, file)) == {"diffusion_model.a.out.diff"}
    (warning,) = built.diagnostics
    assert warning.code == "RK729" and "have no matrices that they would multiply" in warning.title
    assert warning.notes == ("diffusion_model.a.o.alpha",)


# ------------------------------------------------------------------------------------------------ numbers


@given(st.floats(width=32), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_rounding_is_torchs(number: float, dtype: torch.dtype) -> None:
    wanted = torch.tensor(number, dtype=torch.float32).to(dtype)
    assert torch.equal(torch.tensor(round_number(number, DTYPES[dtype])), wanted.float()) or number != number


@given(
    st.floats(width=16, allow_nan=False, allow_infinity=False),
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from([*DTYPES]),
)
def test_scaling_is_exact_where_torchs_is(alpha: float, new: int, own: int, dtype: torch.dtype) -> None:
    if not dtype.is_floating_point or Fraction(torch.tensor(alpha).to(dtype).item()) != Fraction(alpha):
        return
    wanted = Fraction(alpha) * new / own
    text = f"remapkit: 1\nname: s\nrules: [{{id: s, path: a, ops: [{{scale: {new / own}}}], to: b}}]"
    made: Tensor = remapkit.loads(text)({"a": torch.tensor(alpha, dtype=dtype)})["b"]
    got = made.double().item()
    assert is_exact(alpha, new / own, wanted, DTYPES[dtype]) == (abs(got) != float("inf") and Fraction(got) == wanted)


@given(st.integers(-100, 100), st.sampled_from([*DTYPES]))
def test_numbers_are_decoded(number: int, dtype: torch.dtype) -> None:
    tensor = torch.tensor(number).to(dtype)
    raw = bytes(tensor.reshape(1).view(torch.uint8).tolist())
    assert decode_number(raw, spec_of(tensor)) == number
    assert decode_number(raw * 2, TensorSpec(DTYPES[dtype], (2,))) is None


def test_the_oracle_multiplies_biases() -> None:
    file = make_file({"m.weight": TensorSpec("F32", (2, 2))}, ["m"], dotted(""), PEFT) | {
        "m.lora_B.bias": torch.ones(2)
    }
    base = {"m.bias": TensorSpec("F32", (2,))}
    assert find_updates(file, base, dotted(""), {"m": 3.0})["m.bias"].tolist() == [3, 3]


@pytest.mark.parametrize("leaves", [("lora_up.weight", "lora_down.weight"), ("lora_embedding_B", "lora_embedding_A")])
def test_a_lora_rank_of_zero_is_refused(leaves: tuple[str, str]) -> None:
    model = make_model()
    up, down = leaves
    prefix = "diffusion_model." if up == "lora_up.weight" else "base_model.model."
    file = {f"{prefix}a.o.{up}": torch.ones(4, 0), f"{prefix}a.o.{down}": torch.ones(0, 3)}
    file |= make_file(model.base, ["b.o"], dotted(prefix), KOHYA if up == "lora_up.weight" else PEFT)
    for fold in (False, True):
        with pytest.raises(RemapkitError, match="the adapter of 1 module has the LoRA rank 0") as caught:
            model.derive(file, Options(fold=fold, config=read_config({"lora_alpha": 2})))
        assert [each.code for each in caught.value.diagnostics] == ["RK735"]


@pytest.mark.parametrize("target", ["kohya", "diffusers"])
def test_numbers_are_multiplied_in_without_a_search_for_each_module(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tensor that is made is looked at a fixed number of times, however many there are."""
    looked = Counter[str]()

    class Counting(Written):
        def __getattribute__(self, name: str) -> object:
            looked[name] += 1
            return super().__getattribute__(name)

    monkeypatch.setattr(derive, "Written", Counting)
    counts = []
    for size in (4, 16):
        base = StateDictSpec({f"b.{n}.q.weight": TensorSpec("F32", (4, 3)) for n in range(size)})
        rules = remapkit.loads("remapkit: 1\nname: s\nrules: [{id: r, path: '{x:**}.weight', to: 'n.{x}.weight'}]")
        file = make_file(base, [f"b.{n}.q" for n in range(size)], NAMES["peft"], PEFT)
        looked.clear()
        Model(rules, base).derive(file, Options(target, config=read_config({"lora_alpha": 8}), fold=True))
        counts.append(looked["role"] + looked["side"])
    assert 0 < counts[1] <= 4 * counts[0]


def test_a_config_with_other_ranks_is_of_another_adapter() -> None:
    config = PeftConfig.of({"peft_type": "LORA", "lora_alpha": 64, "r": 64}, "adapter_config.json")
    found = fail_peft(config)
    assert [each.code for each in found] == ["RK739"] and "the LoRA rank 64, and its matrices have 2" in found[
        0
    ].title


def fail_peft(config: PeftConfig) -> tuple[Diagnostic, ...]:
    base = StateDictSpec({"q.weight": TensorSpec("F32", (6, 4))})
    shapes = {"lora_A": (2, 4), "lora_B": (6, 2)}
    header = {f"base_model.model.q.{leaf}.weight": TensorSpec("F32", shape) for leaf, shape in shapes.items()}
    rules = remapkit.loads("remapkit: 1\nname: t\nrules: [{id: a, path: '{m}.weight', to: 'a.{m}.weight'}]\n")
    with pytest.raises(FailedCheck) as raised:
        build_adapter(rules, base, StateDictSpec(header), Options("kohya", config=config), lambda fqn: None)
    return raised.value.diagnostics


@pytest.mark.parametrize(("dtype", "alpha", "codes"), [("F16", 1.0, ["RK734"]), ("BF16", 1.0, []), ("F16", 64.0, [])])
def test_factors_that_halves_cannot_hold_are_warned_of(dtype: str, alpha: float, codes: list[str]) -> None:
    base = StateDictSpec({"q.weight": TensorSpec("F32", (6, 4))})
    shapes = {"lora_down.weight": (128, 4), "lora_up.weight": (6, 128), "alpha": ()}
    header = {f"lora_unet_q.{leaf}": TensorSpec(dtype, shape) for leaf, shape in shapes.items()}
    rules = remapkit.loads("remapkit: 1\nname: t\nrules: [{id: a, path: '{m}.weight', to: 'a.{m}.weight'}]\n")
    built = build_adapter(rules, base, StateDictSpec(header), Options("diffusers"), lambda fqn: alpha)
    assert [each.code for each in built.diagnostics] == codes


@pytest.mark.parametrize(("alpha", "up"), [("I64", "F32"), ("F32", "F8_E4M3")])
def test_what_nothing_can_be_multiplied_with_is_named(alpha: str, up: str) -> None:
    base = StateDictSpec({"q.weight": TensorSpec("F32", (6, 4))})
    specs = {"lora_down.weight": (up, (2, 4)), "lora_up.weight": (up, (6, 2)), "alpha": (alpha, ())}
    header = StateDictSpec({f"lora_unet_q.{leaf}": TensorSpec(*spec) for leaf, spec in specs.items()})
    rules = remapkit.loads("remapkit: 1\nname: t\nrules: [{id: a, path: '{m}.weight', to: 'a.{m}.weight'}]\n")
    with pytest.raises(FailedCheck) as raised:
        build_adapter(rules, base, header, Options("diffusers"), lambda fqn: 4.0)
    assert [each.code for each in raised.value.diagnostics] == ["RK737"]
    assert f"is {alpha if alpha == 'I64' else up}" in str(raised.value)
    assert build_adapter(rules, base, header, Options(), lambda fqn: 4.0).texts


def test_parts_of_different_dtypes_are_not_joined() -> None:
    base = StateDictSpec({f"{name}.weight": TensorSpec("F32", (6, 4)) for name in "qk"})
    header = {}
    for name, dtype in (("q", "F16"), ("k", "F32")):
        header[f"lora_unet_{name}.lora_down.weight"] = TensorSpec(dtype, (2, 4))
        header[f"lora_unet_{name}.lora_up.weight"] = TensorSpec(dtype, (6, 2))
    rules = "rules: [{id: a, concat: {dim: 0, from: [q.weight, k.weight]}, to: qk.weight}]\n"
    with pytest.raises(FailedCheck, match="the adapters of its parts are F16 and F32"):
        build_adapter(
            remapkit.loads("remapkit: 1\nname: t\n" + rules), base, StateDictSpec(header), Options(), lambda fqn: None
        )


def test_peft_has_no_matrices_of_stacks() -> None:
    base = StateDictSpec({f"e.{n}.w.weight": TensorSpec("F32", (6, 4)) for n in range(2)})
    header = {}
    for n in range(2):
        header[f"lora_unet_e_{n}_w.lora_down.weight"] = TensorSpec("F32", (2, 4))
        header[f"lora_unet_e_{n}_w.lora_up.weight"] = TensorSpec("F32", (6, 2))
    rules = remapkit.loads(
        "remapkit: 1\nname: t\nrules: [{id: a, path: 'e.{n:int}.w.weight', stack: {dim: 0, by: n}, to: e.w}]\n"
    )
    with pytest.raises(FailedCheck, match="PEFT has no matrices for a stack of weights"):
        build_adapter(rules, base, StateDictSpec(header), Options("peft"), lambda fqn: None)
    assert build_adapter(rules, base, StateDictSpec(header), Options("comfy"), lambda fqn: None).texts
