"""Values that no checkpoint has: from the constructor, from the config, from the caller; never invented."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from load_kit import Plain, Tiny, on_meta, raw, refused, same_state
from torch import nn

import remapkit
from remapkit.loading.non_persistent import build_without_parameters


def test_the_factory_gives_just_what_is_lost() -> None:
    source = Tiny()
    twin = on_meta(Tiny)
    loaded = remapkit.load_into(twin, source.state_dict(), factory=Tiny)
    assert loaded.rebuilt == ("scale",)
    same_state(twin, source)


def test_a_module_that_has_its_values_needs_no_factory_and_keeps_them() -> None:
    source, model = Tiny(), Tiny()
    with torch.no_grad():
        model.scale.fill_(3.0)
    loaded = remapkit.load_into(model, source.state_dict())
    assert (loaded.rebuilt, model.scale.tolist()) == ((), [3.0] * 6)


def test_values_can_be_given() -> None:
    twin = on_meta(Tiny)
    remapkit.load_into(twin, Tiny().state_dict(), buffers={"scale": torch.full((6,), 5.0)})
    assert twin.scale.tolist() == [5.0] * 6
    assert "scale" not in twin.state_dict()


@pytest.mark.parametrize(
    ("buffers", "word"),
    [
        ({"scale": torch.ones(5)}, "is shape [5], but the module has [6]"),
        ({"scale": torch.ones(6, device="meta")}, "is on meta"),
        ({"scales": torch.ones(6)}, "names a value that Tiny does not have"),
    ],
)
def test_given_values_that_do_not_fit(buffers: dict[str, torch.Tensor], word: str) -> None:
    assert word in refused("RK323", on_meta(Tiny), Tiny().state_dict(), buffers=buffers)


def broken() -> nn.Module:
    raise ValueError("no such config")


@pytest.mark.parametrize(
    ("factory", "word"),
    [
        (broken, "ValueError: no such config"),
        (Plain, "is a different module: frozen is only in the given one"),
        (lambda: Tiny(7), "frozen is [7] instead of [6]"),
        (lambda: on_meta(Tiny), "would stay on meta"),
        (lambda: 3, "the factory returned a int"),
    ],
)
def test_factories_that_give_something_else_are_refused_with_what_was_said(factory: Any, word: str) -> None:
    assert word in refused("RK323", on_meta(Tiny), Tiny().state_dict(), factory=factory)


class Attributes(nn.Module):
    """What real modules do: plain tensors, lists of them, a buffer and an attribute that are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("freq", torch.arange(3.0), persistent=False)
        self.original = self.freq
        self.table = torch.tensor([1, 2])
        self.steps = [torch.tensor(1.0), torch.tensor(2.0)]
        self.by_name = {"x": torch.ones(2)}
        self.alias = [self.weight]
        self.pair = (self.weight, torch.zeros(1))


def test_plain_attributes_and_aliases() -> None:
    source, twin = Attributes(), on_meta(Attributes)
    loaded = remapkit.load_into(twin, source.state_dict(), factory=Attributes)
    same_state(twin, source)
    assert [each.item() for each in twin.steps] == [1.0, 2.0]
    assert twin.by_name["x"].tolist() == [1.0, 1.0]
    assert twin.alias[0] is twin.weight
    assert {"freq", "original", "table", "steps", "by_name", "pair"} == set(loaded.rebuilt)
    assert twin.pair[0] is twin.weight and twin.pair[1].tolist() == [0.0]


def test_a_value_computed_from_a_parameter_is_refused_not_invented() -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("norm", self.weight.detach().norm(), persistent=False)

    assert "norm" in refused("RK323", on_meta(Norms), {"weight": torch.ones(3)}, factory=Norms)


def test_a_parameter_outside_the_state_dict_is_refused() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.hidden = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
            self.register_state_dict_post_hook(self.hide)

        @staticmethod
        def hide(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
            del state[f"{prefix}hidden"]

    text = refused("RK323", on_meta(Hidden), {"weight": torch.ones(3)}, factory=Hidden)
    assert "hidden  (a parameter outside the state dict)" in text


def test_a_part_that_carries_its_config_is_rebuilt_inside_of_another_module() -> None:
    from transformers import LlamaConfig, LlamaModel

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 9}
            self.text = LlamaModel(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))

    source, twin = Holder(), on_meta(Holder)
    loaded = remapkit.load_into(twin, source.state_dict())
    assert "text.rotary_emb.inv_freq" in loaded.rebuilt
    assert raw(twin.text.rotary_emb.inv_freq) == raw(source.text.rotary_emb.inv_freq)


def test_the_dtype_that_the_module_was_built_with_stays() -> None:
    twin = on_meta(Tiny).half()
    remapkit.load_into(twin, Tiny().state_dict(), factory=Tiny)
    assert twin.scale.dtype == torch.float16
    assert twin.scale.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_building_without_parameters_takes_no_memory_and_leaves_no_trace() -> None:
    alive: list[int] = []

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for number in range(4):
                setattr(self, f"w{number}", nn.Parameter(torch.randn(1000)))
                alive.append(sum(not each.is_meta for each in self.parameters()))
            self.head = nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.head.weight

    torch.manual_seed(1)
    state = torch.get_rng_state()
    twin = build_without_parameters(Wide)
    assert alive == [0, 0, 0, 0]
    assert all(each.is_meta for each in twin.parameters())
    assert twin.tied.weight is twin.head.weight
    assert torch.equal(torch.get_rng_state(), state)
    assert not nn.Linear(2, 2).weight.is_meta


def test_modules_that_another_thread_builds_meanwhile_keep_their_parameters() -> None:
    found: list[bool] = []

    def factory() -> nn.Module:
        other = threading.Thread(target=lambda: found.append(nn.Linear(2, 2).weight.is_meta))
        other.start()
        other.join()
        return nn.Linear(2, 2)

    assert build_without_parameters(factory).weight.is_meta
    assert found == [False]


@pytest.mark.parametrize("copy", [False, True])
def test_a_default_device_of_meta_changes_nothing(copy: bool, tmp_path: Path) -> None:
    source = Tiny()
    torch.save(source.state_dict(), tmp_path / "t.pth")
    with torch.device("meta"):
        twin = Tiny()
        remapkit.load_into(twin, tmp_path / "t.pth", factory=Tiny, copy=copy)
    same_state(twin, source)


def transformer(name: str, **more: Any) -> nn.Module:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
    kind = getattr(transformers, name)
    model: nn.Module = kind(kind.config_class(**sizes, vocab_size=9), **more)
    return model


def diffuser(name: str, **sizes: Any) -> nn.Module:
    import diffusers

    model: nn.Module = getattr(diffusers, name)(num_layers=1, num_attention_heads=2, **sizes)
    return model


PIXART = {"cross_attention_dim": 16, "caption_channels": 16, "sample_size": 8, "norm_type": "ada_norm_single"}
LOSING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "bert": (lambda: transformer("BertForMaskedLM"), "bert.embeddings.position_ids"),
    "clip": (lambda: transformer("CLIPTextModel"), "embeddings.position_ids"),
    "wan": (
        lambda: diffuser("WanTransformer3DModel", attention_head_dim=12, ffn_dim=8, text_dim=8, freq_dim=8),
        "rope.freqs_cos",
    ),
    "pixart": (lambda: diffuser("PixArtTransformer2DModel", attention_head_dim=8, **PIXART), "pos_embed.pos_embed"),
}


@pytest.mark.parametrize("name", LOSING)
def test_what_real_models_lose_on_meta_comes_back_to_the_bit(name: str) -> None:
    build, value = LOSING[name]
    source, twin = build(), on_meta(build)
    loaded = remapkit.load_into(twin, source.state_dict())
    assert value in loaded.rebuilt
    same_state(twin, source)


def test_a_model_that_its_config_does_not_describe_wholly_wants_a_factory() -> None:
    def build() -> nn.Module:
        return transformer("BertModel", add_pooling_layer=False)

    source, twin = build(), on_meta(build)
    text = refused("RK323", twin, source.state_dict())
    assert "BertModel built again is a different module: pooler.dense.weight is only in the new one" in text
    remapkit.load_into(twin, source.state_dict(), factory=build)
    same_state(twin, source)
