"""Adapters from Python: the same options as keywords, and derived rules where any rules are taken."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import remapkit
from tests.adapters.command_kit import MODULES, SOURCE, TARGET, Tiny, make_lora, make_tiny, name_module, write_peft


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return make_tiny(tmp_path)


def list_codes(diagnostics: tuple[remapkit.Diagnostic, ...]) -> list[str]:
    return [each.code for each in diagnostics]


def test_apply_returns_the_plan_the_check_and_the_config(tiny: Tiny) -> None:
    written = remapkit.apply(tiny.rules, write_peft(tiny), tiny.folder / "new.safetensors")
    assert written.checked == "exact" and written.check is not None and written.check.ok
    assert len(written.moves) == written.tensors == 18
    assert written.beside == (tiny.folder / "adapter_config.json",)
    assert list_codes(written.diagnostics) == ["RK731", "RK732"]


def test_the_model_may_be_a_header_and_the_adapter_too(tiny: Tiny) -> None:
    text = (
        tiny.rules.read_text().replace("source: {keys: source.json}\n", "").replace("target.json", str(tiny.target))
    )
    rules = remapkit.loads(re.sub("target: .*\n", "", text))
    lora = {fqn: remapkit.TensorSpec("F32", tuple(each.shape)) for fqn, each in make_lora("kohya").items()}
    base = {key: remapkit.TensorSpec("F32", shape) for key, shape in SOURCE.items()}
    target = {key: remapkit.TensorSpec("F32", shape) for key, shape in TARGET.items()}
    report = remapkit.check(rules, keys=lora, base=base, target_keys=target)
    assert report.ok and report.checks[0].matched == 27
    with pytest.raises(remapkit.UsageError, match="RK730") as caught:
        remapkit.check(rules, keys=lora, target_keys=target)
    assert "base=MODEL" in str(caught.value)


def test_check_without_rules_is_a_result_that_fails(tiny: Tiny) -> None:
    path = tiny.write("lora.safetensors", make_lora("comfy") | {"diffusion_model.no.lora_up.weight": torch.zeros(2)})
    report = remapkit.check(ckpt=path, target_keys=tiny.source)
    assert not report.ok
    with pytest.raises(remapkit.FailedCheck, match="RK728"):
        report.raise_for_problems()


def test_a_module_is_a_target_of_an_adapter(tiny: Tiny) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = torch.nn.Linear(6, 8, bias=False)

    path = tiny.write("lora.safetensors", make_lora("diffusers", ["q"], shapes={"q.weight": (8, 6)}))
    assert remapkit.check(ckpt=path, model=Block()).ok


def derive_one(tiny: Tiny) -> tuple[remapkit.RuleSet, Path]:
    path = tiny.write("lora.safetensors", make_lora("kohya"))
    return remapkit.load(tiny.rules).adapter(path), path


def derive_route(tiny: Tiny) -> tuple[remapkit.RuleSet, Path]:
    """Rules of an adapter whose alphas are multiplied in first: two rule files."""
    path = tiny.write("lora.safetensors", make_lora("kohya"))
    rules = remapkit.load(tiny.rules).adapter(path, format="diffusers")
    assert len(rules.parts) == 2
    return rules, path


@pytest.mark.parametrize("derive", [derive_one, derive_route])
def test_derived_rules_are_taken_by_every_function_that_takes_rules(
    tiny: Tiny, derive: Callable[[Tiny], tuple[remapkit.RuleSet, Path]]
) -> None:
    rules, path = derive(tiny)
    written = remapkit.apply(rules, path, tiny.folder / "new.safetensors")
    assert "RK731" not in list_codes(written.diagnostics)
    new = written.files[0]
    assert remapkit.check(rules, path, target_keys=new).ok
    assert remapkit.diff(path, new, rules_a=rules).ok
    assert remapkit.report(rules, path).ok
    state = load_file(path)
    assert remapkit.verify(rules, oracle=lambda _: load_file(new), keys=path).ok is False  # random values, not these
    assert remapkit.verify(rules, oracle=rules, keys=path).ok
    made = rules(state)
    assert set(made) == set(load_file(new)) and all(
        torch.equal(made[fqn], each) for fqn, each in load_file(new).items()
    )
    assert set(rules.plan(path).target) == set(made)
    assert rules.prove().level is remapkit.Level.ALL


def test_the_inverse_of_derived_rules_or_what_leads_back(tiny: Tiny) -> None:
    rules, path = derive_one(tiny)
    state = load_file(path)
    back = rules.inverse()(rules(state))
    assert set(back) == set(state) and all(torch.equal(back[fqn], each) for fqn, each in state.items())
    folded, _ = derive_route(tiny)
    with pytest.raises(remapkit.InvalidRules) as caught:
        folded.inverse()
    assert "the way back follows from the inverse of tiny" in str(caught.value)
    with pytest.raises(remapkit.InvalidRules, match="the way back follows"):
        remapkit.invert(folded.parts[0])


@pytest.mark.parametrize("alpha", [-1.0, 0.0])
def test_an_alpha_must_be_positive(tiny: Tiny, alpha: float) -> None:
    path = tiny.write("lora.safetensors", make_lora("peft"))
    with pytest.raises(remapkit.UsageError, match="alpha"):
        remapkit.apply(tiny.rules, path, dry_run=True, alpha=alpha)


def test_a_format_that_does_not_exist_is_named_with_the_nearest(tiny: Tiny) -> None:
    path = tiny.write("lora.safetensors", make_lora("peft"))
    with pytest.raises(remapkit.UsageError, match="must be peft, diffusers, kohya or comfy, got 'difusers'"):
        remapkit.apply(tiny.rules, path, dry_run=True, adapter_format="difusers")


def test_rules_that_take_the_tensors_of_an_adapter_are_not_replaced(tiny: Tiny) -> None:
    path = tiny.write("lora.safetensors", make_lora("kohya"))
    rules = remapkit.loads("remapkit: 1\nname: own\nkeep: ['{all:**}']\n")
    assert "RK731" not in list_codes(remapkit.apply(rules, path, dry_run=True).diagnostics)
    with pytest.raises(remapkit.UsageError, match="own has rules for these tensors already"):
        remapkit.apply(rules, path, dry_run=True, fold_alpha=True)
    loose = remapkit.loads("remapkit: 1\nname: loose\nunmatched: keep\nrules: []\n")
    assert len(remapkit.apply(loose, path, dry_run=True).moves) == 3 * len(MODULES)


def test_names_with_an_unknown_prefix_are_the_models_own(tiny: Tiny) -> None:
    lora = {fqn.removeprefix("diffusion_model."): each for fqn, each in make_lora("comfy", ["img_in"]).items()}
    written = remapkit.apply(tiny.rules, tiny.write("bare.safetensors", lora), dry_run=True)
    assert {move.target for move in written.moves} == {
        f"x_embedder.{leaf}" for leaf in ("lora_up.weight", "lora_down.weight", "alpha")
    }
    assert name_module("a.b", "kohya") == "lora_unet_a_b"
