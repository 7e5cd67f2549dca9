"""Every pack against its manifests and a reference converter, there and back; faults that only values show."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import oracles
import pytest
import torch
import witnesses
from backwards import BACK
from pack_kit import (
    BY_NAME,
    CASES,
    FAULTS,
    KEYS,
    ROOT,
    Case,
    Fault,
    State,
    differing,
    header_of,
    planted,
    random_state,
    shapes,
)
from safetensors.torch import load_file, save_file
from torch import nn

import remapkit
from remapkit.cli.app import main
from remapkit.registry.verified import read_witness

PACKS = [name for case in CASES for name in (case.pack, case.back)]


def oracle_of(case: Case) -> State:
    """What the reference makes of the small random state dict of a case."""
    return case.oracle(case.source_state())


@pytest.mark.parametrize("name", PACKS)
def test_the_real_source_manifest_becomes_the_real_target_manifest(name: str) -> None:
    rules = remapkit.load(name)
    case = next(case for case in CASES if name in (case.pack, case.back))
    source, target = (case.source, case.target) if name == case.pack else (case.target, case.source)
    plan = rules.plan(KEYS / f"{source}.json")
    plan.check(KEYS / f"{target}.json").raise_for_problems()
    assert dict(plan.target) == dict(remapkit.header(KEYS / f"{target}.json"))
    assert not plan.warnings and not plan.dropped
    # Whatever comes in besides is refused, not carried along.
    assert rules.unmatched == "error" and not rules.drop
    assert len(plan.source) == len(shapes(source))


def installed_models() -> dict[str, Callable[[], nn.Module]]:
    """The models of diffusers and transformers whose headers the manifests are."""
    import diffusers
    import transformers as hf

    wan = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    llama = {"num_key_value_heads": 8, "intermediate_size": 14336}
    return {
        "wan21_vae_diffusers": diffusers.AutoencoderKLWan,
        "wan21_dit_diffusers": lambda: diffusers.WanTransformer3DModel(**wan),
        "flux_diffusers": lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True),
        "llama_hf": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**llama)),
        "mixtral_fused": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(num_hidden_layers=4)),
        "gpt2_hf": lambda: hf.GPT2LMHeadModel(hf.GPT2Config()),
        "vit_hf": lambda: hf.ViTForImageClassification(hf.ViTConfig(num_labels=1000)),
    }


def test_the_manifests_are_those_of_the_installed_models() -> None:
    for manifest, make in installed_models().items():
        with torch.device("meta"):
            model = make()
        assert header_of(model.state_dict()) == shapes(manifest), manifest


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_makes_the_target_manifest_too(case: Case) -> None:
    """Else a comparison with it would prove nothing."""
    assert header_of(oracle_of(case)) == case.small(case.target)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_tensor_is_the_references_bit_for_bit(case: Case) -> None:
    state = case.source_state()
    ours = remapkit.load(case.pack, params=case.params)(dict(state))
    theirs = case.oracle(state)
    assert differing(ours, theirs) == []
    # The other pack gives back what went in: from our result, and from theirs.
    back = remapkit.load(case.back, params=case.params)
    assert differing(back(ours), state) == []
    assert differing(back(theirs), state) == []
    # And is the reference the other way round.
    assert differing(BACK[case.back](theirs), state) == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_order_of_keys_does_not_matter(case: Case) -> None:
    state = case.source_state()
    rules = remapkit.load(case.pack, params=case.params)
    assert differing(rules(dict(reversed(state.items()))), rules(dict(state))) == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_real_header_there_and_back(case: Case) -> None:
    """Only headers: what one pack makes of the source manifest, the other makes the source manifest of."""
    there = remapkit.load(case.pack).plan(KEYS / f"{case.source}.json")
    back = remapkit.load(case.back).plan(there.target)
    back.raise_for_problems()
    assert dict(back.target) == dict(there.source)


@pytest.mark.parametrize("name", ["vit_hf", "flux_diffusers"])
def test_a_part_of_a_concatenation_that_is_not_there_is_named(name: str) -> None:
    """Queries and keys without values: neither left out nor carried along."""
    rules = remapkit.load(name)
    header = dict(remapkit.header(KEYS / f"{name}.json"))
    missing = next(fqn for fqn in header if fqn.endswith((".v_proj.weight", ".to_v.weight")))
    del header[missing]
    with pytest.raises(remapkit.RemapkitError, match=re.escape(missing)):
        rules.plan(header).raise_for_problems()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_files_there_and_back(case: Case, tmp_path: Path) -> None:
    """Through the streaming writer, in BF16: header and bytes."""
    state = {fqn: tensor.bfloat16() for fqn, tensor in case.source_state().items()}
    theirs = case.oracle({fqn: tensor.float() for fqn, tensor in state.items()})
    paths = [tmp_path / f"{name}.safetensors" for name in ("source", "there", "back")]
    save_file(state, paths[0])
    for name, source, target in ((case.pack, *paths[:2]), (case.back, *paths[1:])):
        params = [word for param, value in case.params.items() for word in ("--param", f"{param}={value}")]
        assert main(["apply", name, str(source), "-o", str(target), *params]) == 0
    assert differing(load_file(paths[1]), {fqn: tensor.bfloat16() for fqn, tensor in theirs.items()}) == []
    assert differing(load_file(paths[2]), state) == []
    assert dict(remapkit.header(paths[2])) == dict(remapkit.header(paths[0]))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_that_names_and_shapes_do_not_show_is_caught_by_value(fault: Fault, tmp_path: Path) -> None:
    case = BY_NAME[fault.pack]
    path = planted(fault.pack, fault.changes, tmp_path)
    remapkit.load(path).plan(KEYS / f"{case.source}.json").check(KEYS / f"{case.target}.json").raise_for_problems()
    state = case.source_state()
    wrong = remapkit.load(path, params=case.params)(dict(state))
    assert differing(wrong, case.oracle(state))
    # And the inverse does not hide it.
    assert differing(remapkit.load(case.back, params=case.params)(wrong), state)


def test_square_matrices_are_turned() -> None:
    case = BY_NAME["gpt2_hf"]
    state = case.source_state()
    ours = remapkit.load("gpt2_hf")(dict(state))
    square = [f"transformer.h.{i}.attn.c_proj.weight" for i in range(12)]
    for fqn in square:
        assert state[fqn].shape == (12, 12)
        assert torch.equal(ours[fqn], state[fqn].T)
        assert not torch.equal(ours[fqn], state[fqn])
    turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    assert differing(ours, state) == sorted(fqn for fqn in state if fqn.endswith(turned))
    assert len(differing(ours, state)) == 48


@pytest.fixture
def twelve_experts() -> State:
    """One layer of twelve experts: expert 10 stands before expert 2 where names are sorted as texts."""
    case = BY_NAME["mixtral_per_expert"]
    wanted = [fqn for fqn in case.small(case.source) if not re.search(r"layers\.[^0]|experts", fqn)]
    header = {fqn: shape for fqn, shape in case.small(case.source).items() if fqn in wanted}
    header["model.layers.0.block_sparse_moe.gate.weight"] = (12, 16)
    for e in range(12):
        for leaf, shape in (("w1", (24, 16)), ("w2", (16, 24)), ("w3", (24, 16))):
            header[f"model.layers.0.block_sparse_moe.experts.{e}.{leaf}.weight"] = shape
    return random_state(header)


def test_experts_are_stacked_by_number(twelve_experts: State) -> None:
    params = {"experts": 12}
    ours = remapkit.load("mixtral_per_expert", params=params)(dict(twelve_experts))
    assert differing(ours, oracles.mixtral_per_expert(twelve_experts)) == []
    back = remapkit.load("mixtral_fused", params=params)(ours)
    assert differing(back, oracles.mixtral_fused(ours)) == []
    assert differing(back, twelve_experts) == []


@pytest.mark.parametrize("missing", [3, 11])
def test_a_missing_expert_is_named(twelve_experts: State, missing: int) -> None:
    """One in the midst and the last one. transformers takes 0, 1, 2, 4 for 0, 1, 2, 3."""
    state = {fqn: tensor for fqn, tensor in twelve_experts.items() if f".experts.{missing}." not in fqn}
    with pytest.raises(remapkit.RemapkitError, match=rf"(?s)\b{missing}\b"):
        remapkit.load("mixtral_per_expert", params={"experts": 12})(state)


def test_another_number_of_experts_is_not_guessed(twelve_experts: State) -> None:
    with pytest.raises(remapkit.RemapkitError, match=r"(?s)\b8\b"):
        remapkit.load("mixtral_per_expert")(twelve_experts)


def test_heads_come_from_a_config() -> None:
    """The same rows with twice as many heads of half the size: another order, and the right one."""
    case = BY_NAME["llama_meta"]
    state = case.source_state()
    config = {"num_attention_heads": 64, "num_key_value_heads": 16, "hidden_size": 256}
    ours = remapkit.load("llama_meta", config=config)(dict(state))
    assert differing(ours, oracles.llama_meta(state, heads=64, kv_heads=16)) == []
    assert differing(ours, case.oracle(state))


def test_explain_shows_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "vit_timm", "blocks.0.attn.qkv.bias"]) == 0
    out = capsys.readouterr().out
    for part in "qkv":
        assert f" vit.layers.0.attention.{part}_proj.bias" in out
    assert main(["explain", "mixtral_fused", "model.layers.0.mlp.experts.gate_up_proj"]) == 0
    out = capsys.readouterr().out
    assert "experts.{e}.w1.weight" in out and "experts.{e}.w3.weight" in out


def test_every_pack_has_a_row_on_its_page() -> None:
    page = (ROOT / "docs" / "packs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "rules").glob("*.yaml"))


@pytest.mark.parametrize("path", sorted((ROOT / "rules").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pack_has_a_value_witness_for_the_rules_as_they_are(path: Path) -> None:
    """After a change of a pack: `python tests/packs/witnesses.py`."""
    witness = read_witness(path)
    assert witness is not None and witness.verified
    assert witness.describe_state(remapkit.load(path)) not in ("no", "stale")


def test_the_command_lines_of_the_witnesses_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one pack of each kind, as they are typed; and a planted fault fails by them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    case = BY_NAME["vit_timm"]
    for words in (
        witnesses.arguments(case, "vit_timm", tmp_path),
        witnesses.arguments(case, "vit_hf", tmp_path),
        witnesses.by_forward("vit_timm", "vit_timm", tmp_path),
        witnesses.by_forward("vit_timm", "vit_hf", tmp_path),
    ):
        assert main(words) == 0, words
    fault = next(fault for fault in FAULTS if fault.pack == "vit_timm")
    wrong = str(planted("vit_timm", fault.changes, tmp_path))
    for words in (
        witnesses.arguments(case, "vit_timm", tmp_path),
        witnesses.by_forward("vit_timm", "vit_timm", tmp_path),
    ):
        assert main([words[0], wrong, *words[2:]]) == 1, words
