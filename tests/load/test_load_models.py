"""Real models: a twin on meta holds what `load_state_dict` loads, bit by bit, and computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from load_kit import Plain, Tiny, on_meta, raw, same_state
from safetensors.torch import save_file, save_model
from torch import nn

import remapkit
from remapkit.api.ruleset import compile_rules
from remapkit.rulefile.read import read_text
from tests.numbers_kit import computed_alike


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 50, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


def unet() -> nn.Module:
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        **blocks,
    ).eval()


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.lstm(x)[0]
        return out


def parametrized() -> nn.Module:
    model = Plain()
    nn.utils.parametrizations.weight_norm(model.a)
    nn.utils.parametrizations.spectral_norm(model.b)
    return model.eval()


def old_weight_norm() -> nn.Module:
    model = Plain()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.a)
    nn.utils.spectral_norm(model.b)
    return model.eval()


tokens = torch.arange(12).reshape(2, 6)
numbers = torch.linspace(-1, 1, 12).reshape(3, 4)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "gpt2": (gpt2, (tokens,)),
    "llama": (llama, (tokens,)),
    "unet": (unet, (torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8), 3)),
    "lstm": (Lstm, (numbers,)),
    "parametrized": (parametrized, (numbers,)),
    "old_weight_norm": (old_weight_norm, (numbers,)),
}


def output(model: nn.Module, inputs: tuple[Any, ...]) -> torch.Tensor:
    with torch.no_grad():
        found = model(*inputs)
    for name in ("logits", "sample"):
        found = getattr(found, name, found)
    assert isinstance(found, torch.Tensor)
    return found


def save(model: nn.Module, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_model(model, str(path))
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=path.suffix != ".legacy")
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".legacy"])
@pytest.mark.parametrize("name", MODELS)
def test_a_twin_on_meta_computes_the_same(name: str, suffix: str, tmp_path: Path) -> None:
    build, inputs = MODELS[name]
    torch.manual_seed(0)
    model = build()
    path = save(model, tmp_path / f"m{suffix}")
    twin = on_meta(build)
    loaded = remapkit.load_into(twin, path)
    assert computed_alike(output(twin, inputs), output(model, inputs))
    reference = build()
    reference.load_state_dict(model.state_dict())
    assert computed_alike(output(twin, inputs), output(reference, inputs))
    same_state(twin, reference)
    assert twin.training == reference.training
    assert loaded.tensors == len({id(value) for value in model.state_dict(keep_vars=True).values()})
    if suffix == ".safetensors":
        assert loaded.shared == loaded.tensors, "every tensor of a safetensors file is aligned to its width"


@pytest.mark.parametrize("name", MODELS)
def test_a_state_dict_in_memory_is_shared(name: str) -> None:
    build, inputs = MODELS[name]
    model = build()
    state = model.state_dict()
    twin = on_meta(build)
    loaded = remapkit.load_into(twin, state)
    assert computed_alike(output(twin, inputs), output(model, inputs))
    assert loaded.shared == loaded.tensors
    assert {value.data_ptr() for value in twin.state_dict().values()} == {v.data_ptr() for v in state.values()}


def test_tied_weights_are_one_parameter_whichever_name_the_file_has(tmp_path: Path) -> None:
    model = gpt2()
    names = ("transformer.wte.weight", "lm_head.weight")
    for name in names:
        state = {key: value for key, value in model.state_dict().items() if key not in names or key == name}
        torch.save(state, tmp_path / "g.pth")
        twin = on_meta(gpt2)
        loaded = remapkit.load_into(twin, tmp_path / "g.pth")
        assert twin.lm_head.weight is twin.transformer.wte.weight
        assert isinstance(twin.lm_head.weight, nn.Parameter)
        assert loaded.tied == (names,)
        assert "RK315" in [note.code for note in loaded.notes]
        assert computed_alike(output(twin, (tokens,)), output(model, (tokens,)))


def test_the_rotary_frequencies_come_from_the_config(tmp_path: Path) -> None:
    path = save(llama(), tmp_path / "l.safetensors")
    twin = on_meta(llama)
    loaded = remapkit.load_into(twin, path)
    assert "model.rotary_emb.inv_freq" in loaded.rebuilt
    assert computed_alike(twin.model.rotary_emb.inv_freq, llama().model.rotary_emb.inv_freq)
    assert twin.model.rotary_emb.inv_freq.dtype == torch.float32


def test_casts_are_what_torch_casts_and_are_counted(tmp_path: Path) -> None:
    model = llama()
    path = save(model, tmp_path / "l.safetensors")
    twin = on_meta(llama)
    loaded = remapkit.load_into(twin, path, dtype=torch.bfloat16)
    count = len(model.state_dict())
    assert (loaded.cast, loaded.rounded, loaded.shared) == (count, count, 0)
    assert dict(loaded.casts) == {("F32", "BF16"): count}
    for name, value in twin.state_dict().items():
        assert raw(value) == raw(model.state_dict()[name].to(torch.bfloat16)), name
    assert twin.model.rotary_emb.inv_freq.dtype == torch.float32, "what the constructor made keeps its dtype"
    assert f"{count} cast F32 -> BF16 (rounded)" in str(loaded)


def test_a_widening_cast_is_not_called_rounded(tmp_path: Path) -> None:
    torch.save(Plain().bfloat16().state_dict(), tmp_path / "p.pth")
    loaded = remapkit.load_into(on_meta(Plain), tmp_path / "p.pth", dtype="model")
    assert (loaded.cast, loaded.rounded) == (3, 0)


def test_integers_are_never_cast(tmp_path: Path) -> None:
    torch.save(nn.BatchNorm1d(3).state_dict(), tmp_path / "b.pth")
    twin = on_meta(lambda: nn.BatchNorm1d(3))
    loaded = remapkit.load_into(twin, tmp_path / "b.pth", dtype=torch.float16)
    assert twin.num_batches_tracked.dtype == torch.int64
    assert loaded.cast == 4
    assert loaded.tensors == 5


def test_without_a_dtype_the_checkpoint_decides_and_it_is_said(tmp_path: Path) -> None:
    torch.save(Plain().half().state_dict(), tmp_path / "p.pth")
    twin = on_meta(Plain)
    loaded = remapkit.load_into(twin, tmp_path / "p.pth")
    assert twin.a.weight.dtype == torch.float16
    assert "RK313" in [note.code for note in loaded.notes]


def test_flags_stay_unless_asked(tmp_path: Path) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "t.pth")
    twin = on_meta(Tiny).eval()
    twin.norm.train()
    remapkit.load_into(twin, tmp_path / "t.pth", factory=Tiny)
    assert [twin.training, twin.norm.training] == [False, True]
    assert [twin.embed.weight.requires_grad, twin.frozen.requires_grad] == [True, False]
    remapkit.load_into(twin, tmp_path / "t.pth", requires_grad=False, train=True)
    assert twin.training and not any(each.requires_grad for each in twin.parameters())
    remapkit.load_into(twin, tmp_path / "t.pth", requires_grad=True, train=False)
    assert not twin.norm.training and all(each.requires_grad for each in twin.parameters())


def test_marks_on_parameters_stay() -> None:
    model = Plain()
    model.a.weight.no_weight_decay = True
    remapkit.load_into(model, Plain().state_dict())
    assert model.a.weight.no_weight_decay


def test_a_loaded_model_trains_and_an_lstm_uses_its_new_weights(tmp_path: Path) -> None:
    path = save(Lstm(), tmp_path / "l.safetensors")
    before = path.read_bytes()
    twin = on_meta(Lstm)
    remapkit.load_into(twin, path)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    first = twin(numbers)
    first.square().sum().backward()
    optimizer.step()
    assert not computed_alike(twin(numbers), first)
    assert path.read_bytes() == before, "training wrote to the file"


def test_rules_dropped_keys_and_wrappers(tmp_path: Path) -> None:
    model = Plain()
    state = {f"net.{name}": value for name, value in model.state_dict().items()}
    torch.save({"ema": {"x": torch.ones(1)}, "state_dict": {**state, "loss.w": torch.ones(2)}}, tmp_path / "p.ckpt")
    rules = tmp_path / "r.yaml"
    rules.write_text(
        "remapkit: 1\nname: r\nrules: [{id: all, path: 'net.{rest:**}', to: '{rest}'}]\ndrop: ['loss.{x}']\n"
    )
    for given in (rules, str(rules), remapkit.load(rules)):
        twin = on_meta(Plain)
        loaded = remapkit.load_into(twin, tmp_path / "p.ckpt", given, root="state_dict")
        same_state(twin, model)
        assert (loaded.rules, loaded.dropped) == ("r", ("loss.w",))
    assert "1 key dropped" in str(loaded)


def test_an_open_reader_stays_open(tmp_path: Path) -> None:
    path = save(Plain(), tmp_path / "p.safetensors")
    with remapkit.open_checkpoint(path) as reader:
        for _ in range(2):
            remapkit.load_into(on_meta(Plain), reader)


def test_not_strict_leaves_strangers_and_keeps_what_has_values() -> None:
    model, source = Plain(), Plain()
    kept = raw(model.b.weight)
    state = {**source.state_dict(), "stranger": torch.ones(1)}
    del state["b.weight"]
    loaded = remapkit.load_into(model, state, strict=False)
    assert (loaded.unexpected, loaded.missing) == (("stranger",), ("b.weight",))
    assert raw(model.a.weight) == raw(source.a.weight)
    assert raw(model.b.weight) == kept


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrappers_that_hold_the_module_are_seen_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    source, inner = Plain(), on_meta(Plain)
    remapkit.load_into(wrap(inner), source.state_dict())
    same_state(inner, source)


def test_a_compiled_submodule_has_plain_names() -> None:
    source, model = Plain(), on_meta(Plain)
    model.a = torch.compile(model.a, backend="eager")
    assert "a._orig_mod.weight" in model.state_dict()
    remapkit.load_into(model, source.state_dict())
    assert computed_alike(model(numbers), source(numbers))


def test_swap_tensors_does_not_undo_ties() -> None:
    source = Tiny()
    twin = on_meta(Tiny)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        remapkit.load_into(twin, source.state_dict(), factory=Tiny)
        assert torch.__future__.get_swap_module_params_on_conversion()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    same_state(twin, source)


def test_the_paragraph_says_what_happened(tmp_path: Path) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "t.pth")
    loaded = remapkit.load_into(on_meta(Tiny), tmp_path / "t.pth", factory=Tiny)
    text = str(loaded)
    assert text.startswith("t.pth -> Tiny by identity: 7 tensors (248 B), 7 without a copy, 1 tied group")
    assert "1 value rebuilt on cpu" in text and "\n" not in text


def test_shards_are_mapped_each(tmp_path: Path) -> None:
    model = Plain()
    state = model.state_dict()
    shards = {"m-1.safetensors": ["a.weight"], "m-2.safetensors": ["a.bias", "b.weight"]}
    for file, names in shards.items():
        save_file({name: state[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    twin = on_meta(Plain)
    loaded = remapkit.load_into(twin, tmp_path)
    assert loaded.shared == 3
    same_state(twin, model)


OPERATIONS = """
remapkit: 1
name: ops
rules:
  - {id: negated, path: a.weight, ops: [{scale: -1}], to: a.weight}
  - {id: parts, path: both, split: {dim: 0, sizes: [SIZES], into: [a.bias, b.weight]}}
"""


@pytest.mark.parametrize("where", ["file", "memory"])
def test_operations_run_on_their_way_into_a_module(where: str, tmp_path: Path) -> None:
    model = Plain()
    state = model.state_dict()
    bias, weight = state["a.bias"], state["b.weight"]
    flat = torch.cat([bias.reshape(-1), weight.reshape(-1)])
    sizes = f"{bias.numel()}, {weight.numel()}"
    text = OPERATIONS.replace("SIZES", sizes).replace(
        "b.weight]", f"{{to: b.weight, ops: [{{reshape: {list(weight.shape)}}}]}}]"
    )
    rules = compile_rules(read_text(text))
    given = {"a.weight": -state["a.weight"], "both": flat}
    path = tmp_path / "p.safetensors"
    save_file(given, path)
    twin = on_meta(Plain)
    loaded = remapkit.load_into(twin, path if where == "file" else given, rules)
    assert (loaded.shared, loaded.copied) == (2, 1), "parts of one tensor are shared, what is calculated is made"
    same_state(twin, model)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_pack_leads_from_upstreams_file_to_a_model_in_one_call(dtype: torch.dtype | None) -> None:
    from remapkit.plugins.wan.vae import WanVAE

    path = Path(remapkit.__file__).parent.parent / "tests" / "data" / "wan22_vae_tiny" / "upstream.pth"
    sizes = {"dim": 8, "dec_dim": 12}
    twin = on_meta(lambda: WanVAE(**sizes))
    loaded = remapkit.load_into(twin, path, "wan22_pth", dtype=dtype)
    reference = WanVAE(**sizes)
    renamed = remapkit.load("wan22_pth")(torch.load(path, weights_only=True))
    reference.load_state_dict({name: value.to(dtype or value.dtype) for name, value in renamed.items()}, assign=True)
    same_state(twin, reference)
    assert (loaded.tensors, loaded.rules) == (196, "wan22_pth")
