"""PEFT's config: read as PEFT reads it, and written so that PEFT finds each module, LoRA rank and alpha again.

The rules by which PEFT looks things up are those of peft/utils/other.py (`get_pattern_key`,
`match_target_against_key`) and peft/tuners/tuners_utils.py (`check_target_module_exists`), written a second time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.adapters import alphas
from remapkit.adapters.alphas import Details, Patterns, PeftConfig, make_config, write_config
from remapkit.adapters.build import Options
from remapkit.diagnostics.errors import RemapkitError
from remapkit.tensors.spec import StateDictSpec, TensorSpec
from tests.adapters.wild_kit import PEFT, Model, dotted, make_file, run

SEGMENT = st.sampled_from(["0", "1", "q", "k", "attn", "to_q", "a(b", "x.y", "q+", "^q"])
MODULES = st.lists(SEGMENT, min_size=1, max_size=3).map(".".join)


def look_up(patterns: Mapping[str, Any], module: str, usual: Any) -> Any:
    """The value of the first pattern that matches, after any segments, the end of a module's name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return usual


def is_target(targets: list[str] | str, module: str) -> bool:
    """A text is a regular expression for whole names, a list has names or ends of names."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


@settings(max_examples=300)
@given(
    st.dictionaries(MODULES, st.tuples(st.integers(1, 8), st.sampled_from([0.25, 1.0, 2.0, 1 / 3])), min_size=1),
    st.sets(MODULES),
)
def test_a_written_config_gives_each_module_its_own(factors: dict[str, tuple[int, float]], others: set[str]) -> None:
    """LoRA rank and alpha of each module, and no module that is not one: also where a name is the end of another."""
    config = json.loads(write_config(make_config(factors, Details([*factors, *others]))))
    for module, (rank, factor) in factors.items():
        assert look_up(config["rank_pattern"], module, config["r"]) == rank
        alpha = look_up(config["alpha_pattern"], module, config["lora_alpha"])
        assert alpha / rank == pytest.approx(factor, rel=1e-12)  # 1 / 3 of a rank has no shortest form
    for module in {*factors, *others}:
        assert is_target(config["target_modules"], module) == (module in factors)


@given(
    st.dictionaries(st.sampled_from(["q", "a.q", r"a\.[qk]", ".*k", "^q", "b.0"]), st.integers(1, 64), max_size=4),
    st.sampled_from(["q", "k", "a.q", "a.k", "b.a.q", "aq", "x.b.0", "xb.0"]),
)
def test_alphas_are_looked_up_as_peft_does(patterns: dict[str, int], module: str) -> None:
    config = PeftConfig.of({"lora_alpha": 16, "alpha_pattern": patterns}, "config")
    assert config.find_alpha(module) == look_up(patterns, module, 16)


PATTERN = st.text("ab.^-\\\\+", max_size=4).filter(lambda text: compiles(rf"(.*\.)?({text})$"))


def compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@settings(max_examples=300)
@given(
    st.lists(st.one_of(PATTERN, MODULES.filter(compiles), MODULES.map(re.escape)), max_size=6, unique=True),
    st.one_of(st.text("ab.-", max_size=5), MODULES),
)
def test_patterns_looked_up_together_are_those_looked_up_alone(patterns: list[str], module: str) -> None:
    alone = [pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", module)]
    assert Patterns(patterns).find_all(module) == alone


def test_names_in_patterns_are_not_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of modules with their own LoRA ranks: read and written without a regular expression for each pair."""
    tried = []
    monkeypatch.setattr(alphas, "matches_module", lambda pattern, module: tried.append(pattern))
    factors = {f"b.{n}.q": (1 + n % 3, 1.0) for n in range(60)} | {"q": (2, 1.0)}
    config = PeftConfig.of({**make_config(factors), "peft_type": "LORA"}, "made")
    for module, (rank, _) in factors.items():
        assert config.find_alpha(module) == rank
    assert not tried


BAD = {
    "a list": ([], "it must be an object, got list"),
    "another kind": ({"peft_type": "LOHA", "lora_alpha": 1}, "`peft_type` must be LORA, got 'LOHA'"),
    "no alpha": ({"peft_type": "LORA"}, "`lora_alpha` must be a number, got None"),
    "a boolean": ({"lora_alpha": True}, "`lora_alpha` must be a number, got True"),
    "no number": ({"lora_alpha": float("nan")}, "`lora_alpha` must be a number, got nan"),
    "patterns of texts": ({"lora_alpha": 1, "alpha_pattern": {"q": "4"}}, "must map names of modules to numbers"),
    "a list of patterns": ({"lora_alpha": 1, "alpha_pattern": ["q"]}, "must map names of modules to numbers"),
    "no expression": ({"lora_alpha": 1, "alpha_pattern": {"a(": 4}}, "must have regular expressions, got 'a('"),
    "flags": ({"lora_alpha": 1, "alpha_pattern": {"(?i)q": 4}}, "must have regular expressions, got '(?i)q'"),
    "a large number": ({"lora_alpha": 10**400}, "`lora_alpha` must be a number, got 1000000"),
    "a list of ranks": ({"lora_alpha": 1, "rank_pattern": ["x"]}, "`rank_pattern` must map names of modules to"),
    "a text of ranks": ({"lora_alpha": 1, "rank_pattern": "x"}, "`rank_pattern` must map names of modules to"),
    "no names": ({"lora_alpha": 1, "modules_to_save": [{}]}, "`modules_to_save` must be a list of names, got [{}]"),
    "no targets": ({"lora_alpha": 1, "target_modules": [5]}, "`target_modules` must be a list of names, got [5]"),
}


@pytest.mark.parametrize("name", BAD)
def test_configs_that_are_none_of_a_lora(name: str) -> None:
    data, text = BAD[name]
    with pytest.raises(RemapkitError, match="RK725") as caught:
        PeftConfig.of(data, "adapter_config.json")
    assert text in str(caught.value) and "adapter_config.json" in str(caught.value)


RULES = """
remapkit: 1
name: classifier
rules:
  - {id: layers, path: 'layers.{i:int}.{rest:**}', to: 'blocks.{i}.{rest}'}
  - {id: score, path: 'score.{rest:**}', to: 'head.{rest}'}
  - {id: embed, path: 'embed.weight', to: 'wte.weight'}
"""
SHAPES = {f"layers.{i}.{name}.weight": (4, 3) for i in range(2) for name in ("q", "k")}
SHAPES |= {"layers.0.q.bias": (4,), "layers.1.k.bias": (4,), "score.weight": (2, 4), "embed.weight": (9, 4)}
CONFIG = {
    "peft_type": "LORA",
    "task_type": "SEQ_CLS",
    "base_model_name_or_path": "models/tiny",
    "bias": "all",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.1,
    "target_modules": r".*\.(q|k)",
    "modules_to_save": ["score"],
    "layers_to_transform": [0],
    "layers_pattern": "layers",
    "use_dora": False,
}


@pytest.fixture
def model() -> Model:
    base = StateDictSpec({fqn: TensorSpec("F32", shape) for fqn, shape in SHAPES.items()})
    return Model(remapkit.loads(RULES), base)


def test_whole_modules_biases_and_other_fields_of_a_config(model: Model) -> None:
    """`modules_to_save`, `bias` (behind `base_layer` where a layer is wrapped), an embedding, and other fields."""
    name = dotted("base_model.model.")
    file = make_file(model.base, ["layers.0.q", "layers.0.k"], name, PEFT)
    file |= {
        "base_model.model.score.weight": torch.ones(2, 4),
        "base_model.model.layers.0.q.base_layer.bias": torch.ones(4),
        "base_model.model.layers.1.k.bias": torch.ones(4),
        "base_model.model.embed.lora_embedding_A": torch.ones(3, 9),
        "base_model.model.embed.lora_embedding_B": torch.ones(4, 3),
    }
    built = model.derive(file, Options(config=PeftConfig.of(CONFIG, "config")))
    made = run(built, file)
    assert set(made) == {
        *(f"base_model.model.blocks.0.{module}.{leaf}" for module in "qk" for leaf in PEFT),
        *(f"base_model.model.wte.lora_embedding_{side}" for side in "AB"),
        "base_model.model.head.weight",
        "base_model.model.blocks.0.q.base_layer.bias",
        "base_model.model.blocks.1.k.bias",
    }
    assert built.config is not None
    new = dict(built.config)
    assert new["target_modules"] == ["blocks.0.q", "blocks.0.k", "wte"] and new["modules_to_save"] == ["head"]
    assert new["rank_pattern"] == {"wte": 3} and new["lora_alpha"] == 4 and new["alpha_pattern"] == {}
    assert new["layers_to_transform"] is None and new["layers_pattern"] is None
    kept = ("task_type", "base_model_name_or_path", "bias", "lora_dropout", "use_dora")
    assert {field: new[field] for field in kept} == {field: CONFIG[field] for field in kept}


def test_parameters_with_old_names_are_targets_no_more(model: Model) -> None:
    """`target_parameters` may name the weight of a layer, whose module is in `target_modules` then."""
    file = make_file(model.base, ["layers.0.q"], dotted("base_model.model."), PEFT)
    data = {"lora_alpha": 2, "target_parameters": ["layers.0.q.weight"]}
    config = model.derive(file, Options(config=PeftConfig.of(data, "config"))).config
    assert config is not None
    assert config["target_parameters"] is None and config["target_modules"] == ["blocks.0.q"]
    config = model.derive(file, Options(config=PeftConfig.of({"lora_alpha": 2}, "config"))).config
    assert config is not None and "target_parameters" not in config  # which older versions of PEFT do not know


def test_a_known_alpha_without_a_place_is_not_called_unknown(model: Model) -> None:
    """diffusers' files have no alpha of an embedding, and its matrices are only renamed."""
    prefix = "base_model.model.embed.lora_embedding_"
    file = {f"{prefix}A": torch.ones(2, 9), f"{prefix}B": torch.ones(4, 2)}
    file |= make_file(model.base, ["layers.0.q"], dotted("base_model.model."), PEFT)
    with pytest.raises(RemapkitError, match="diffusers files have no place for it") as caught:
        model.derive(file, Options("diffusers", config=PeftConfig.of({"lora_alpha": 8}, "config")))
    assert [each.code for each in caught.value.diagnostics] == ["RK723"]
    model.derive(file, Options("diffusers", config=PeftConfig.of({"lora_alpha": 2}, "config")))
    with pytest.raises(RemapkitError, match="is not known"):
        model.derive(file, Options("diffusers"))


def test_magnitudes_are_told(model: Model) -> None:
    file = make_file(model.base, ["layers.0.q"], dotted("diffusion_model."), ("lora_up.weight", "lora_down.weight"))
    file["diffusion_model.layers.0.q.dora_scale"] = torch.ones(4, 1)
    built = model.derive(file, Options("peft"))
    assert built.config is not None and built.config["use_dora"] is True
    assert "base_model.model.blocks.0.q.lora_magnitude_vector" in run(built, file)


# ------------------------------------------------------------------------------------------------ Conv1D

WIDE, SQUARE = "h.0.c_attn", "h.0.c_proj"
LINEAR = {f"{WIDE}.weight": (12, 4), f"{SQUARE}.weight": (4, 4)}
CONV1D = {fqn: shape[::-1] for fqn, shape in LINEAR.items()}
FLIP = "rules: [{id: r, path: 'h.{rest:**}', ops: [transpose], to: 'new.{rest}'}]"
RENAME = "rules: [{id: r, path: 'h.{rest:**}', to: 'new.{rest}'}]"
"""GPT-2's layers in nanoGPT and in transformers, whose weights are each other's transposed ones."""


def make_gpt2(shapes: dict[str, tuple[int, int]], rules: str) -> Model:
    base = StateDictSpec({fqn: TensorSpec("F32", shape) for fqn, shape in shapes.items()})
    return Model(remapkit.loads(f"remapkit: 1\nname: gpt2\n{rules}\n"), base)


def make_matrices(modules: tuple[str, ...] = (WIDE, SQUARE)) -> dict[str, torch.Tensor]:
    linear = {fqn: TensorSpec("F32", shape) for fqn, shape in LINEAR.items()}
    return make_file(linear, modules, dotted("base_model.model."), PEFT)


@pytest.mark.parametrize(
    ("shapes", "rules", "is_new_conv1d"),
    [(CONV1D, FLIP, False), (CONV1D, RENAME, True), (LINEAR, FLIP, True), (LINEAR, RENAME, False)],
)
def test_matrices_of_peft_are_those_of_the_layer(
    shapes: dict[str, tuple[int, int]], rules: str, is_new_conv1d: bool
) -> None:
    """up [OUT, r] and down [r, IN] whichever way a weight is stored; the config says where it is [IN, OUT]."""
    model, file = make_gpt2(shapes, rules), make_matrices()
    config = PeftConfig.of({"lora_alpha": 2, "fan_in_fan_out": shapes is CONV1D}, "config")
    built = model.derive(file, Options(config=config))
    made = run(built, file)
    assert {fqn.replace(".new.", ".h.") for fqn in made} == set(file)
    assert all(torch.equal(made[fqn.replace(".h.", ".new.")], file[fqn]) for fqn in file)
    assert built.config is not None and built.config["fan_in_fan_out"] == is_new_conv1d

    stored = run(model.derive(file, Options("kohya", config=config)), file)
    for module, is_square in ((WIDE, False), (SQUARE, True)):
        up, down = (
            stored[f"lora_unet_{module.replace('h.', 'new.').replace('.', '_')}.lora_{x}.weight"]
            for x in ("up", "down")
        )
        update = file[f"base_model.model.{module}.lora_B.weight"] @ file[f"base_model.model.{module}.lora_A.weight"]
        assert torch.equal(up @ down, update.T if is_new_conv1d else update), is_square


def test_a_route_there_and_back_leaves_them_as_they_are() -> None:
    back = "rules: [{id: r, path: 'new.{rest:**}', ops: [transpose], to: 'h.{rest}'}]"
    there = make_gpt2(CONV1D, FLIP)
    model = Model(there.rules.then(make_gpt2(LINEAR, back).rules), there.base)
    file = make_matrices()
    built = model.derive(file, Options(config=PeftConfig.of({"lora_alpha": 2, "fan_in_fan_out": True}, "config")))
    made = run(built, file)
    assert made.keys() == file.keys() and all(torch.equal(made[fqn], file[fqn]) for fqn in file)
    assert built.config is not None and built.config["fan_in_fan_out"] is True


def test_square_weights_of_a_mixture_may_be_either() -> None:
    model = make_gpt2({**CONV1D, "h.0.lm_head.weight": (12, 4)}, RENAME)
    linear = {"h.0.lm_head.weight": TensorSpec("F32", (12, 4))}
    file = make_matrices() | make_file(linear, ["h.0.lm_head"], dotted("base_model.model."), PEFT)
    with pytest.raises(RemapkitError, match="square matrices do not show it") as caught:
        model.derive(file)
    assert SQUARE in str(caught.value)
    without = {fqn: each for fqn, each in file.items() if SQUARE not in fqn}
    made = model.convert(without)
    assert all(torch.equal(made[fqn.replace(".h.", ".new.")], without[fqn]) for fqn in without)


def test_magnitudes_of_conv1d_are_of_its_outputs() -> None:
    model, file = make_gpt2(CONV1D, RENAME), make_matrices((WIDE,))
    file[f"base_model.model.{WIDE}.lora_magnitude_vector"] = torch.arange(12.0)
    made = model.convert(file)
    assert torch.equal(made["base_model.model.new.0.c_attn.lora_magnitude_vector"], torch.arange(12.0))
